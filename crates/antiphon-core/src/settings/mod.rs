//! Cluster-wide settings: what Patroni keeps under its `config` key and under `bootstrap.dcs`.
//!
//! Two layers. The raw document (JSON, as stored in the cluster and changed by `PATCH /config`) says only
//! what somebody wrote; [`Settings::resolve`] turns it into typed, checked values with every default filled
//! in, or into all of its mistakes at once. Decisions see resolved settings only, handed to them.
//!
//! A document comes from a store that others can write to, so nothing in it is believed: parameters that
//! would make PostgreSQL run a command or load a library are refused unless the local node file allows them.
//! This module must not read files or the environment.

mod error;
mod keys;
mod merge;
mod nearest;
mod page;
mod parameters;
mod read;
mod slots;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use error::{KeyPath, SettingsError};
pub use keys::{KEYS, Key, Kind, without_effect};
pub use merge::{Change, diff, merge};
pub use nearest::nearest;
pub use page::page;
pub use parameters::{
    Origin, check_hba_line, check_parameter, gone_parameter, needs_opt_in, scalar_text,
    works_only_cluster_wide,
};
pub use read::{bytes, span};
pub use slots::{PermanentSlot, SlotKind, SlotMatcher};

/// How commits are confirmed by followers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyncMode {
    /// Asynchronous: a commit is acknowledged before any follower has it.
    Off,
    /// `FIRST k`: the k followers of highest priority confirm.
    On,
    /// `ANY k`: any k followers of the sync set confirm.
    Quorum,
}

/// Whether the document may hold parameters that run a command or load a library
/// (`postgresql.allow_dynamic_commands` in the node file).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DynamicCommands {
    /// They are mistakes.
    Refused,
    /// This node's file has opted in.
    Allowed,
}

/// Resolved cluster-wide settings: typed, checked, complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// How long a leader may serve without renewing its lease. At least 1 s.
    pub ttl: Duration,
    /// How often an idle node looks again. Events wake it at once.
    pub loop_wait: Duration,
    /// How long an operation on the store or on PostgreSQL is tried again before it counts as failed.
    pub retry_timeout: Duration,
    /// How long a leader's heartbeats may be silent before it is suspected. At least 200 ms.
    pub failure_timeout: Duration,
    /// Asynchronous mode: bytes of WAL that a candidate may be behind.
    pub maximum_lag_on_failover: u64,
    /// Bytes of WAL a follower may be behind before it is replaced in the sync set; none: never for lag.
    pub maximum_lag_on_syncnode: Option<u64>,
    /// How many promotions the history keeps; 0: all.
    pub max_timelines_history: u32,
    /// How long a crashed leader may take to restart in place before it hands over; zero: always hand over.
    pub primary_start_timeout: Duration,
    /// Synchronous mode: how long a leader may take to stop before it is killed; none: as long as its lease.
    pub primary_stop_timeout: Option<Duration>,
    /// How commits are confirmed.
    pub synchronous_mode: SyncMode,
    /// Writes wait when no sync member is left, instead of the sync set being emptied.
    pub synchronous_mode_strict: bool,
    /// k: how many followers confirm a commit. At least 1.
    pub synchronous_node_count: u32,
    /// How long commits wait for an acknowledgement before the sync set is emptied; none: as long as its
    /// members are seen.
    pub sync_timeout: Option<Duration>,
    /// A leader without a majority of the store stays leader while every member answers it directly.
    pub failsafe_mode: bool,
    /// How long the slot of a member that is gone keeps WAL.
    pub member_slots_ttl: Duration,
    /// No automatic change: failover, restart and rejoin wait for an operator.
    pub pause: bool,
    /// Permanent replication slots by name.
    pub slots: BTreeMap<String, PermanentSlot>,
    /// Slots that belong to others and are left alone.
    pub ignore_slots: Vec<SlotMatcher>,
    /// What concerns the servers.
    pub postgresql: PostgresSettings,
}

/// The cluster-wide part of the servers' configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostgresSettings {
    /// Whether a deposed leader that diverged is rewound.
    pub use_pg_rewind: bool,
    /// Whether members keep their WAL with physical slots.
    pub use_slots: bool,
    /// Parameters of postgresql.conf, as text.
    pub parameters: BTreeMap<String, String>,
    /// Lines of pg_hba.conf; none: the local file's.
    pub pg_hba: Vec<String>,
    /// Lines of pg_ident.conf; none: the local file's.
    pub pg_ident: Vec<String>,
    /// Recovery parameters (`restore_command`, `recovery_min_apply_delay`), as text.
    pub recovery_conf: BTreeMap<String, String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(5),
            loop_wait: Duration::from_secs(10),
            retry_timeout: Duration::from_secs(10),
            failure_timeout: Duration::from_secs(1),
            maximum_lag_on_failover: 1024 * 1024,
            maximum_lag_on_syncnode: None,
            max_timelines_history: 0,
            primary_start_timeout: Duration::from_secs(300),
            primary_stop_timeout: None,
            synchronous_mode: SyncMode::Quorum,
            synchronous_mode_strict: false,
            synchronous_node_count: 1,
            sync_timeout: None,
            failsafe_mode: false,
            member_slots_ttl: Duration::from_secs(30 * 60),
            pause: false,
            slots: BTreeMap::new(),
            ignore_slots: Vec::new(),
            postgresql: PostgresSettings::default(),
        }
    }
}

impl Default for PostgresSettings {
    fn default() -> Self {
        Self {
            use_pg_rewind: true,
            use_slots: true,
            parameters: BTreeMap::new(),
            pg_hba: Vec::new(),
            pg_ident: Vec::new(),
            recovery_conf: BTreeMap::new(),
        }
    }
}

impl Settings {
    /// Checks a document and fills in the defaults. Parameters that run a command are refused.
    ///
    /// # Errors
    /// Every mistake of the document, each with its key, its value and what was expected.
    pub fn resolve(document: &Value) -> Result<Self, Vec<SettingsError>> {
        Self::resolve_with(document, DynamicCommands::Refused)
    }

    /// The same for a node whose file says what the document may hold.
    ///
    /// # Errors
    /// As [`Settings::resolve`].
    pub fn resolve_with(document: &Value, commands: DynamicCommands) -> Result<Self, Vec<SettingsError>> {
        let mut settings = Self::default();
        let mut errors = keys::apply(document, commands, &mut settings);
        if errors.is_empty() {
            errors = settings.contradictions();
        }
        if errors.is_empty() { Ok(settings) } else { Err(errors) }
    }

    /// Values that are sound one by one and cannot work together.
    fn contradictions(&self) -> Vec<SettingsError> {
        let mut errors = Vec::new();
        if self.failure_timeout * 2 > self.ttl {
            errors.push(SettingsError::refused(
                KeyPath::of(&["failure_timeout"]),
                format!(
                    "{:?} is more than half of ttl ({:?}), so a lease could run out before its holder is suspected; \
                     lower failure_timeout or raise ttl",
                    self.failure_timeout, self.ttl
                ),
            ));
        }
        let commit = self.postgresql.parameters.get("synchronous_commit").map(String::as_str);
        if self.synchronous_mode != SyncMode::Off && matches!(commit, Some("off" | "local")) {
            errors.push(SettingsError::refused(
                KeyPath::of(&["postgresql", "parameters", "synchronous_commit"]),
                "acknowledges commits that no follower has, which synchronous_mode promises not to do; remove it, or \
                 set synchronous_mode to off"
                    .to_owned(),
            ));
        }
        errors
    }
}

#[cfg(test)]
mod tests;
