//! Step: an effect as a value. The agent carries them out in order and stops at the first that fails.
//!
//! A step says what, never why (that is [`super::why::Why`]) and never whether it is still right: the next
//! decision sees what came of it.

use serde::{Deserialize, Serialize};

use super::cluster::{Cluster, Member, Position, SyncSet};
use super::world::{StopMode, SyncNames, Upstream};
use crate::{Epoch, Lsn, Timeline};

/// One effect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// Change the record of leadership, if it is still at `expect` (0: it does not exist).
    ChangeCluster {
        /// The new record.
        cluster: Box<Cluster>,
        /// Revision that this change was decided on.
        expect: u64,
        /// Also take the lease of the new term (a win).
        take_lease: bool,
        /// The lease must still be at this revision: it was counted as run out.
        lease_unchanged: Option<u64>,
        /// Remove the operator's request, which must be at this revision.
        consume_request: Option<u64>,
    },
    /// Remove the operator's request at this revision: it cannot be met or is done.
    DropRequest {
        /// Its revision.
        revision: u64,
    },
    /// Renew the lease of this term, if the record of leadership is still at `expect`.
    RenewLease {
        /// The term.
        epoch: Epoch,
        /// Revision of the record of leadership.
        expect: u64,
        /// How far the WAL of the server here reaches, if it accepts writes.
        end: Option<Position>,
    },
    /// Write this member's own record.
    Publish {
        /// The record.
        member: Box<Member>,
    },
    /// Durably refuse every leader of a term below `epoch`, then stop the WAL receiver.
    Fence {
        /// The term.
        epoch: Epoch,
    },
    /// Stream from another member (a reload, not a restart).
    Follow {
        /// Whom, in which term.
        upstream: Upstream,
        /// `host:port` of its server.
        address: String,
    },
    /// Switch the WAL receiver off without a promise.
    Unfollow,
    /// Create the first data directory and start it as a primary.
    Initialise,
    /// Take a base backup from a member; a server that runs here is stopped first.
    Clone {
        /// `host:port` of its server.
        address: String,
        /// Keep the present data directory under another name: it may hold WAL that nobody else has.
        keep_old: bool,
    },
    /// Rewind the data directory to the history of a member; a server that runs here is stopped first.
    Rewind {
        /// `host:port` of the leader's server.
        address: String,
    },
    /// Start in recovery, following `upstream` if given.
    StartStandby {
        /// Whom to follow, with the `host:port` of its server.
        upstream: Option<(Upstream, String)>,
    },
    /// Start as primary: only in a term that the store has given to this member.
    StartPrimary {
        /// The term.
        epoch: Epoch,
        /// What commits wait for from the first one on.
        sync: SyncNames,
    },
    /// End recovery and take this timeline.
    Promote {
        /// The term that it is promoted in.
        epoch: Epoch,
        /// The timeline to take.
        timeline: Timeline,
        /// What commits wait for from the first one on.
        sync: SyncNames,
    },
    /// Stop the server.
    Stop {
        /// How hard.
        mode: StopMode,
    },
    /// Change `synchronous_standby_names`, see that every WAL sender has taken it over, and if `prove` wait
    /// for a commit under it.
    SetSync {
        /// The new setting.
        sync: SyncNames,
        /// Wait for a commit to be acknowledged under it.
        prove: bool,
    },
    /// Write a checkpoint, so that the shutdown that follows is short.
    Checkpoint,
    /// Bring the slots to this list: create, move forward, drop.
    Slots {
        /// Physical slots and the position to move each to (none: leave it where it is).
        keep: Vec<(String, Option<Lsn>)>,
        /// Slots to drop, of either kind.
        drop: Vec<String>,
        /// Logical slots to create.
        logical: Vec<NewLogicalSlot>,
    },
}

/// A logical slot that is to be created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewLogicalSlot {
    /// Its name.
    pub name: String,
    /// The database it decodes.
    pub database: String,
    /// Its output plugin.
    pub plugin: String,
    /// An earlier leader had it and it was not carried over: its consumer misses changes.
    pub lost: bool,
}

/// `synchronous_standby_names` for a sync set, every name quoted.
pub fn synchronous_standby_names(set: &SyncSet) -> String {
    let method = match set.method {
        super::cluster::Method::Any => "ANY",
        super::cluster::Method::First => "FIRST",
    };
    let names: Vec<String> = set.members.iter().map(|name| format!("\"{name}\"")).collect();
    format!("{method} {} ({})", set.k, names.join(", "))
}
