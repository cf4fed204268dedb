//! Hands on a database server: what it does is observed, what is asked of it is done, nothing is decided.
//!
//! One trait, [`Engine`], and one implementation, [`Postgres`]. Quick operations are awaited in line, each
//! with a deadline; whatever takes longer than a decision is a [`Work`] that is begun and then visible in
//! the next observation. An engine never asks whether what it is told is wise, with one exception that is a
//! promise on disk: it follows nobody of a term below the one that it is fenced for.

use std::collections::BTreeMap;
use std::time::Duration;

use antiphon_core::ha::step::NewLogicalSlot;
use antiphon_core::ha::world::{Database, StopMode, SyncNames, Task, Upstream};
use antiphon_core::{Epoch, Lsn, Timeline};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::watch;

pub mod pg;

pub use pg::Postgres;
pub use pg::knock::server_knock;
pub use pg::process::kill_server;
pub use pg::settings::{Credentials, PgSettings, ReplicaCommand, ReplicaMethod};

/// Why an operation was not done.
#[derive(Debug, Error)]
pub enum EngineError {
    /// Another task runs; only a stop may interrupt one.
    #[error("{asked:?} cannot begin while {running:?} goes on: wait for it or stop the server")]
    Busy {
        /// What runs.
        running: Task,
        /// What was asked for.
        asked: Task,
    },
    /// Following would break a promise; the caller acted on an old view.
    #[error("may not follow a leader of epoch {asked}: this server is fenced for epoch {fenced}")]
    Fenced {
        /// Term of the leader.
        asked: Epoch,
        /// The term promised.
        fenced: Epoch,
    },
    /// The server does not run, or does not answer yet.
    #[error("could not {what}: the server does not run")]
    NotRunning {
        /// What was tried.
        what: String,
    },
    /// A file or process operation failed.
    #[error("could not {what}")]
    Io {
        /// What was tried.
        what: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The server refused or the connection broke.
    #[error("could not {what}")]
    Sql {
        /// What was tried.
        what: String,
        /// Why not.
        #[source]
        source: tokio_postgres::Error,
    },
    /// It did not end in time; it may have happened, or may yet.
    #[error("could not {what} within {limit:?}")]
    Deadline {
        /// What was tried.
        what: String,
        /// How long it was given.
        limit: Duration,
    },
    /// Another server that is needed for it does not answer; nothing was changed here, and nothing here is at fault.
    #[error("could not {what}: the server at {address} does not answer")]
    Unreachable {
        /// What was tried.
        what: String,
        /// Where the other server is.
        address: String,
        /// How that showed.
        #[source]
        source: Box<EngineError>,
    },
    /// Something else, in words that say what to do.
    #[error("could not {what}: {reason}")]
    Failed {
        /// What was tried.
        what: String,
        /// Why not, and the remedy.
        reason: String,
    },
}

/// Work that takes longer than a decision. Addresses are `host:port` of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// Create the first data directory and start it as a primary.
    Initialise,
    /// Take a base backup; the server here must not run. It is not started afterwards.
    Clone {
        /// Whose.
        address: String,
        /// Keep the present data directory under another name.
        keep_old: bool,
    },
    /// Rewind the data directory to the history of a primary; the server here must not run.
    Rewind {
        /// Which primary.
        address: String,
    },
    /// Start in recovery; ends when the server answers.
    StartStandby {
        /// Whom to follow, and its server's address; nobody if none.
        upstream: Option<(Upstream, String)>,
    },
    /// Start as primary; ends when the server answers.
    StartPrimary {
        /// The term that it serves in.
        epoch: Epoch,
        /// What commits wait for from the first one on.
        sync: SyncNames,
    },
    /// End recovery.
    Promote {
        /// The term that it is promoted in.
        epoch: Epoch,
        /// The timeline to take.
        timeline: Timeline,
        /// What commits wait for from the first one on.
        sync: SyncNames,
    },
    /// Stop the server: ends when no process of it is left. A harder mode may be begun while a softer one
    /// goes on, and any stop interrupts other work.
    Stop {
        /// How hard.
        mode: StopMode,
    },
    /// Change `synchronous_standby_names` and see that every WAL sender has taken it over.
    SetSync {
        /// The new setting.
        sync: SyncNames,
        /// Also wait for a commit under it.
        prove: bool,
    },
    /// Write a checkpoint.
    Checkpoint,
}

impl Work {
    /// The task that this work is shown as.
    pub fn task(&self) -> Task {
        match self {
            Self::Initialise => Task::Initialise,
            Self::Clone { .. } => Task::Clone,
            Self::Rewind { .. } => Task::Rewind,
            Self::StartStandby { .. } | Self::StartPrimary { .. } => Task::Start,
            Self::Promote { .. } => Task::Promote,
            Self::Stop { mode } => Task::Stop(*mode),
            Self::SetSync { .. } => Task::SetSync,
            Self::Checkpoint => Task::Checkpoint,
        }
    }
}

/// Settings that can change while the engine lives.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// The server's parameters as the user wants them; ours come on top.
    pub parameters: BTreeMap<String, String>,
    /// Logical slots are to be copied to the followers (PostgreSQL 17 and newer; others cannot).
    pub synchronise_slots: bool,
    /// Lines of the host-based access file; the default ones if none.
    pub access: Option<Vec<String>>,
    /// Lines of the user name map; the data directory's if none.
    pub identities: Option<Vec<String>>,
    /// How long a server or its storage may fail to answer before it counts as stuck.
    pub failure_timeout: Option<Duration>,
}

/// A parameter that a restart would change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingRestart {
    /// What the server runs with.
    pub old_value: Option<String>,
    /// What its files say.
    pub new_value: Option<String>,
}

/// What lists and metrics show beyond what decisions need; refreshed about once a second.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// The server's version as a number (`150020`), once it has answered.
    pub version: Option<u32>,
    /// When its main process started, as the server writes it.
    pub started: Option<String>,
    /// Parameters that a restart would change.
    pub pending_restart: BTreeMap<String, PendingRestart>,
    /// Who streams from this server: the server's own view of it, one JSON object a follower.
    pub replication: Vec<serde_json::Value>,
    /// When the last replayed transaction was committed, as the server writes it (a standby).
    pub replayed_at: Option<String>,
    /// Replay is paused (a standby).
    pub replay_paused: bool,
    /// Where the oldest WAL begins that is still here.
    pub oldest_wal: Option<Lsn>,
}

/// Hands on one server. All methods may be called at any time, from any task.
#[async_trait]
pub trait Engine: Send + Sync {
    /// Looks at the server: never longer than about half a second, cheap enough for several times a second.
    async fn observe(&self) -> Database;

    /// Changes whenever something happened that the next observation shows: the server's exit, a task's end.
    fn events(&self) -> watch::Receiver<u64>;

    /// The data directory must have this system identifier, or is refused; any if none.
    fn expect_system_identifier(&self, identifier: Option<String>);

    /// Durably promises to follow no leader of a term below `epoch`, then switches the WAL receiver off.
    /// The promise stands when this returns `Ok`; that the receiver is off is what `observe` shows later.
    async fn fence(&self, epoch: Epoch) -> Result<(), EngineError>;

    /// The term promised, as it is on disk.
    fn fenced(&self) -> Epoch;

    /// Streams from another member, without a restart; only sets it if the server does not run.
    ///
    /// # Errors
    /// [`EngineError::Fenced`] if the upstream's term is below the one promised.
    async fn follow(&self, upstream: Upstream, address: &str) -> Result<(), EngineError>;

    /// Switches the WAL receiver off without a promise.
    async fn unfollow(&self) -> Result<(), EngineError>;

    /// Creates and moves forward physical slots, drops slots of either kind, and begins to create logical ones,
    /// which may take until the transactions of this moment have ended. Slots in use are left alone.
    async fn slots(
        &self,
        keep: &[(String, Option<Lsn>)],
        drop: &[String],
        logical: &[NewLogicalSlot],
    ) -> Result<(), EngineError>;

    /// Takes new settings over; true if some of them wait for a restart.
    async fn reload(&self, change: Change) -> Result<bool, EngineError>;

    /// Begins work; its progress and end are part of later observations.
    ///
    /// # Errors
    /// [`EngineError::Busy`] if other work goes on that this may not interrupt.
    fn begin(&self, work: Work) -> Result<(), EngineError>;

    /// How far the running task is, in words for a list: `512 MB of 2100 MB`.
    fn progress(&self) -> Option<String>;

    /// Facts for lists and metrics.
    fn about(&self) -> About;
}

/// An error with its causes, as one sentence.
pub fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
        cause = inner.source();
    }
    text
}
