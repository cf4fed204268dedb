//! World: all that a decision may see, as one immutable snapshot.
//!
//! The agent builds it from the store's pushed snapshot, the peers' heartbeats and the engine's observation;
//! the simulation builds it from a model. Nothing in it can be asked for more: what is not here cannot
//! influence a decision.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::cluster::{Cluster, Lease, Member, Position, Request, SyncSet, Tags};
use crate::{Epoch, Instant, Lsn, NodeName, Timeline, settings::Settings};

/// A stored record and the store's revision at its last write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored<T> {
    /// The record.
    pub value: T,
    /// Revision of its last write; a change of it names this revision.
    pub revision: u64,
}

/// All that one member knows at one moment.
#[derive(Clone, Debug)]
pub struct World {
    /// This moment.
    pub now: Instant,
    /// This member.
    pub me: Me,
    /// The cluster's settings.
    pub settings: Settings,
    /// The store's newest snapshot here.
    pub store: StoreView,
    /// The other members, by name.
    pub peers: BTreeMap<NodeName, Peer>,
    /// The database server here; `Local::Witness` on a member without one.
    pub local: Local,
    /// The routers that follow this member.
    pub routers: Routers,
}

/// The routers that follow a member's events. Before a planned hand-over they are told to hold back what begins, and
/// say when nothing of theirs is under way any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Routers {
    /// How many have not said so.
    pub awaited: usize,
    /// Since when they have been asked, without a break.
    pub asked: Option<Instant>,
}

/// This member: what it is and what it has promised.
#[derive(Clone, Debug)]
pub struct Me {
    /// The record it would publish, with `fence`, `release` and `serving` as they last were.
    pub member: Member,
    /// When this agent started.
    pub started: Instant,
    /// The term that it is fenced for, read back from disk. Never goes back.
    pub fenced: Epoch,
    /// Until when its own lease lets it serve, if it holds one (counted from before the renewal was sent).
    pub lease_until: Option<Instant>,
    /// Started with an empty store on purpose: may create the cluster.
    pub may_bootstrap: bool,
    /// Removing a data directory that cannot be rewound is allowed (it is renamed if it holds unique WAL).
    pub may_reinitialise: bool,
    /// An operator asked to build this member anew.
    pub reinitialise_requested: Option<Reinitialise>,
    /// An operator asked to restart the server here.
    pub restart_requested: bool,
}

/// How an operator wants a member to be built anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reinitialise {
    /// From the leader, also if another member is tagged as the source of base backups.
    pub from_leader: bool,
    /// What goes on with the directory meanwhile (a base backup, a rewind, a start) is broken off.
    pub force: bool,
}

impl Me {
    /// The member's name.
    pub fn name(&self) -> &NodeName {
        &self.member.name
    }

    /// The member's tags.
    pub fn tags(&self) -> &Tags {
        &self.member.tags
    }
}

/// The store as this member last saw it.
#[derive(Clone, Debug, Default)]
pub struct StoreView {
    /// The record of leadership; none before the bootstrap.
    pub cluster: Option<Stored<Cluster>>,
    /// Since when (this member's clock) the record of leadership has had its present epoch and phase.
    pub phase_since: Instant,
    /// The leader's lease.
    pub lease: Option<Stored<Lease>>,
    /// Since when (this member's clock) the lease has had its present revision.
    pub lease_since: Instant,
    /// The members' records.
    pub members: BTreeMap<NodeName, Stored<Member>>,
    /// What an operator asked for, if it is due.
    pub request: Option<Stored<Request>>,
    /// How many members vote on whether the leader is to be deposed.
    pub voters: usize,
}

impl StoreView {
    /// How long the lease lasts that was renewed last; none if there is none.
    pub fn lease_ttl(&self) -> Option<Duration> {
        self.lease.as_ref().map(|lease| Duration::from_millis(lease.value.ttl_ms))
    }

    /// A member's record.
    pub fn member(&self, name: &NodeName) -> Option<&Member> {
        self.members.get(name).map(|stored| &stored.value)
    }
}

/// What the link to a peer's agent shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Link {
    /// Connected.
    Up,
    /// The peer's kernel answers and nobody listens: the agent is gone.
    Refused,
    /// Not connected for another reason.
    Down,
}

/// Whether a peer's database server answers a knock at its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Knock {
    /// Not tried lately.
    Unknown,
    /// A server process answered.
    Answers,
    /// The peer's kernel answers and nobody listens: the server is gone.
    Refused,
    /// No answer within the deadline.
    Silent,
}

/// Another member, as heard directly.
#[derive(Clone, Debug)]
pub struct Peer {
    /// When its last heartbeat came.
    pub heard: Option<Instant>,
    /// That heartbeat.
    pub beat: Option<Beat>,
    /// The link to its agent.
    pub link: Link,
    /// The newest knock at its server.
    pub knock: Knock,
}

impl Peer {
    /// Whether its server's disk has space, as far as is known.
    pub fn has_space(&self) -> bool {
        self.beat.as_ref().is_none_or(|beat| !beat.server.disk_full)
    }

    /// Whether a heartbeat came within `span`.
    pub fn heard_within(&self, now: Instant, span: Duration) -> bool {
        self.heard.is_some_and(|at| now.since(at) < span)
    }
}

/// What a member says of itself every 100 ms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// Who speaks.
    pub name: NodeName,
    /// The term whose leader it suspects to be dead, if it does.
    pub suspects: Option<Epoch>,
    /// The term that it leads with a server that accepts writes, if it does.
    pub leads: Option<Epoch>,
    /// Its server, in short.
    pub server: ServerBrief,
    /// Where the permanent physical slots stand that consumers use here (a leader's).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub slots: BTreeMap<String, Lsn>,
}

/// A server as its agent tells the others; also what lists and metrics show.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerBrief {
    /// Patroni's word for its state: `running`, `streaming`, `starting`, `stopped`, `creating replica`, …
    pub state: String,
    /// `primary`, `replica`, `witness` or `uninitialized`.
    pub role: String,
    /// Timeline and end of WAL on disk, if known.
    pub position: Option<Position>,
    /// Replayed up to here (a standby).
    pub replayed: Option<Lsn>,
    /// The member that it streams from.
    pub upstream: Option<NodeName>,
    /// A restart is needed for settings to take effect.
    pub pending_restart: bool,
    /// A disk under it has no space left.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disk_full: bool,
    /// Where the WAL begins that it can still send, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_wal: Option<Lsn>,
    /// What an operator has to do there, as a sentence, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Bytes of old data directories and diverged WAL that are kept there until an operator removes them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub kept_bytes: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl ServerBrief {
    /// Whether that member has a data directory, also one whose server cannot be asked.
    pub fn holds_data(&self) -> bool {
        self.position.is_some() || !matches!(self.role.as_str(), "uninitialized" | "witness")
    }
}

/// `synchronous_standby_names` as the server runs with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyncNames {
    /// Empty: commits wait for nobody.
    Nobody,
    /// Ours.
    Set(SyncSet),
    /// Something that Antiphon did not write.
    Foreign(String),
}

/// A follower as the primary's `pg_stat_replication` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standby {
    /// Its `application_name`, if that is a member's name.
    pub name: NodeName,
    /// `state` is `streaming`.
    pub streaming: bool,
    /// Flushed up to here.
    pub flushed: Lsn,
}

/// Where a standby's WAL receiver gets its WAL from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    /// The member.
    pub name: NodeName,
    /// The term of the cluster's leader when this upstream was set.
    pub epoch: Epoch,
}

/// Work on the server that takes longer than a decision: its progress is part of the next World.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// initdb and the first start.
    Initialise,
    /// pg_basebackup.
    Clone,
    /// pg_rewind.
    Rewind,
    /// A start that has not led to an answering server yet.
    Start,
    /// A stop in the given mode.
    Stop(StopMode),
    /// A promotion.
    Promote,
    /// `synchronous_standby_names` is changed and proven to be in effect.
    SetSync,
    /// A checkpoint before a hand-over.
    Checkpoint,
}

/// How hard a server is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopMode {
    /// Sessions are ended, the WAL is flushed to the followers, a checkpoint is written.
    Fast,
    /// The server aborts; the next start recovers.
    Immediate,
    /// SIGKILL to every process of it.
    Kill,
}

/// The database server on this member and its data directory.
#[expect(clippy::large_enum_variant, reason = "there is one of it, and nearly every member has a server")]
#[derive(Clone, Debug, PartialEq)]
pub enum Local {
    /// This member has no server by intent.
    Witness,
    /// This member has a server, or is to get one.
    Database(Database),
}

/// A server, its data directory and the work that goes on with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Database {
    /// The system identifier of the data directory, if it has one.
    pub system_identifier: Option<String>,
    /// The server.
    pub server: Server,
    /// Work that has not ended, and since when.
    pub task: Option<(Task, Instant)>,
    /// When and why the latest task failed, until another succeeds.
    pub failed: Option<Failure>,
    /// A rewind or clone was begun and never ended: the directory must not be started.
    pub half_built: bool,
    /// A disk under the data directory has no space left.
    pub disk_full: bool,
    /// The physical slots that exist here, by name, with what they hold back.
    pub slots: BTreeMap<String, Option<Lsn>>,
    /// The logical slots that exist here and outlive a restart, by name.
    pub logical_slots: BTreeMap<String, LogicalSlot>,
}

/// A slot for logical decoding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogicalSlot {
    /// The database it decodes.
    pub database: String,
    /// Its output plugin.
    pub plugin: String,
    /// It is, or was before a promotion, a copy that PostgreSQL keeps in step with the leader's.
    pub synced: bool,
    /// A consumer uses it at this moment.
    pub active: bool,
}

/// A task that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which.
    pub task: Task,
    /// When.
    pub at: Instant,
    /// How many times in a row.
    pub times: u32,
    /// What was said.
    pub error: String,
}

/// What the server does.
#[derive(Clone, Debug, PartialEq)]
pub enum Server {
    /// There is no data directory, or an empty one.
    Absent,
    /// The data directory is one that must not be touched, and why.
    Refused {
        /// A sentence with the remedy.
        reason: String,
    },
    /// No process of it is left.
    Stopped(Stopped),
    /// The main process is gone and others are not: they may still commit.
    Orphans {
        /// How the main process ended.
        how: String,
    },
    /// Started and not answering yet.
    Starting {
        /// Since when.
        since: Instant,
        /// It comes up as a primary.
        primary: bool,
    },
    /// In recovery, answering.
    Standby(StandbyServer),
    /// Out of recovery, answering.
    Primary(PrimaryServer),
    /// Was answering and does not any more, or its storage does not.
    Stuck {
        /// Since when.
        since: Instant,
        /// What failed.
        why: String,
        /// It was a primary when it last answered.
        primary: bool,
    },
}

/// A server that does not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// How it ended, if it ended under this agent's eyes and not at its wish.
    pub crash: Option<String>,
    /// Its control file says that it was shut down cleanly.
    pub clean: bool,
    /// Its control file says that it was a primary.
    pub primary: bool,
    /// It was just cloned or rewound: it answers only after it has received what its source had by then.
    pub restored: bool,
    /// Where the latest checkpoint is; after a clean shutdown nothing follows it.
    pub checkpoint: Position,
}

/// A standby that answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandbyServer {
    /// What it is set to stream from; none if its receiver is switched off.
    pub upstream: Option<Upstream>,
    /// A WAL receiver runs.
    pub receiving: bool,
    /// `pg_stat_wal_receiver` says `streaming`.
    pub streaming: bool,
    /// All the WAL it has; none until that is known for certain.
    pub position: Option<Position>,
    /// Replayed up to here.
    pub replayed: Lsn,
    /// It is set to stream and does not, nor does it get WAL in another way: since when.
    pub starved_since: Option<Instant>,
}

/// A primary that answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrimaryServer {
    /// The timeline that it writes.
    pub timeline: Timeline,
    /// The end of its flushed WAL.
    pub flushed: Lsn,
    /// Its ancestors: each timeline and where it was left, oldest first.
    pub history: Vec<Position>,
    /// `synchronous_standby_names` in effect.
    pub sync: SyncNames,
    /// The newest setting of it under which a commit was waited for and acknowledged.
    pub proven: Option<SyncNames>,
    /// Its followers.
    pub standbys: Vec<Standby>,
    /// When each member was last seen streaming from here.
    pub last_streaming: BTreeMap<NodeName, Instant>,
    /// Since when a commit has been waiting for an acknowledgement, if one has.
    pub waiting_since: Option<Instant>,
    /// A checkpoint was completed at this moment for a hand-over.
    pub checkpointed: Option<Instant>,
}
