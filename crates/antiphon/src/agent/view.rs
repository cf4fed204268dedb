//! View: what the agent shows to the outside, as one immutable value pushed on every change.
//!
//! The HTTP API, the command line, the metrics and the demo read this and nothing else of the agent, so a
//! slow reader can hold up no decision.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use antiphon_core::Lsn;
use antiphon_core::ha::decide::Decision;
use antiphon_core::ha::world::World;
use antiphon_engine::PendingRestart;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What this agent knows and does.
#[derive(Clone, Debug)]
pub struct View {
    /// The cluster's name (`scope`).
    pub scope: String,
    /// What the newest decision was made from.
    pub world: Arc<World>,
    /// That decision.
    pub decision: Arc<Decision>,
    /// The cluster-wide settings as they are stored, and the store's revision of them (0: not stored yet).
    pub config: (Value, u64),
    /// Past promotions, oldest first.
    pub history: Vec<HistoryEntry>,
    /// A switchover that waits for its time.
    pub scheduled: Option<antiphon_core::ha::cluster::Request>,
    /// The server, in figures that decide nothing.
    pub server: ServerFacts,
    /// Seconds since 1970 when the store was last heard.
    pub store_seen: u64,
    /// The embedded store's own state for display; none with etcd.
    pub raft: Option<Value>,
    /// Progress of long work on the server, in words.
    pub progress: Option<String>,
}

/// A promotion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// The timeline that was left.
    pub timeline: u32,
    /// Where.
    pub lsn: Lsn,
    /// Why, as a sentence.
    pub reason: String,
    /// When (RFC 3339, UTC).
    pub at: String,
    /// Who was promoted.
    pub leader: String,
    /// The term that began.
    pub epoch: u64,
}

/// Figures of the server for display.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ServerFacts {
    /// `server_version_num`, 0 if not known.
    pub version: u32,
    /// `pg_postmaster_start_time()` as text, if it runs.
    pub started: Option<String>,
    /// Settings that wait for a restart.
    pub pending_restart: BTreeMap<String, PendingRestart>,
    /// `pg_stat_replication` of this server, for `GET /patroni`: one JSON object a follower with `usename`,
    /// `application_name`, `client_addr`, `state`, `sync_state`, `sync_priority`.
    pub replication: Vec<Value>,
    /// Time of the last replayed transaction, as text.
    pub replayed_at: Option<String>,
    /// Replay is paused.
    pub replay_paused: bool,
    /// Where the oldest WAL begins that is still here.
    pub oldest_wal: Option<Lsn>,
    /// Semi-sync counters, as MySQL has them.
    pub semi_sync: SemiSync,
    /// Old data directories and diverged WAL that wait for an operator.
    pub kept: Vec<Kept>,
}

/// A directory that is kept because it holds, or may hold, what no other member has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// Which.
    pub path: PathBuf,
    /// Bytes of the files in it.
    pub bytes: u64,
}

/// What MySQL calls `Rpl_semi_sync_source_*`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SemiSync {
    /// Times that the sync set was emptied because nobody acknowledged in time.
    pub timeouts: u64,
    /// Times that it was filled again.
    pub resumptions: u64,
    /// Whether commits wait for an acknowledgement now.
    pub active: bool,
}
