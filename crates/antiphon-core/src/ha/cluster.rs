//! What the members agree on: the records that the store holds, as types.
//!
//! The record under `cluster` is the only place where leadership is decided; each change of it is a
//! compare-and-swap on its revision. `members/NAME` is written by its owner alone. Everything here is small,
//! versioned by `FORMAT`, and independent of which store keeps it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{Epoch, Lsn, NodeName, Timeline};

/// Version of the stored records; a reader refuses a newer one instead of guessing.
pub const FORMAT: u32 = 1;

/// How far a server's WAL reaches. Ordered: a higher timeline is always later, because promotions take the
/// timeline of their epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// The timeline that the WAL at `lsn` belongs to.
    pub timeline: Timeline,
    /// The end of the WAL that is safely on disk.
    pub lsn: Lsn,
}

/// Who leads, since which term.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// The leading member.
    pub name: NodeName,
    /// The term it was elected in.
    pub epoch: Epoch,
    /// The timeline it writes (its own promotion's, or an older one if it was confirmed in place).
    pub timeline: Timeline,
}

/// Why an election was opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Cause {
    /// A majority of the voters has not heard the leader for `failure_timeout`.
    Silent,
    /// The leader's host refuses connections to both its agent and its server.
    ProcessesGone,
    /// The leader's agent reports that its server died, and how.
    ServerDied {
        /// What the operating system said of its end.
        how: String,
    },
    /// The leader's agent reports that its server runs but cannot serve, and why.
    CannotServe {
        /// What failed: a probe, the disk.
        why: String,
    },
    /// Asked for by an operator: hand over to this member.
    Switchover {
        /// The member that is to lead next.
        to: NodeName,
    },
    /// Asked for by an operator when no leader could be asked.
    Failover {
        /// The member that is to lead next.
        to: NodeName,
        /// Promote it even if it cannot be shown to hold every acknowledged write.
        accept_loss: bool,
    },
}

/// Where leadership stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Phase {
    /// One member creates the first data directory.
    Bootstrapping {
        /// The member that does.
        by: NodeName,
    },
    /// A member leads, in the term `Cluster::epoch`.
    Led {
        /// That member.
        leader: Leader,
    },
    /// The term `Cluster::epoch` has no leader yet.
    Electing {
        /// Why.
        cause: Cause,
        /// The member that opened it.
        opened_by: NodeName,
        /// Who led before. It holds every acknowledged write and may win its own succession.
        last: Leader,
    },
}

/// How PostgreSQL picks among the members of a sync set. The promise is the same for both: any `k`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// `ANY k (…)`: the first `k` acknowledgements, whoever sends them.
    Any,
    /// `FIRST k (…)`: the first `k` connected members of the list.
    First,
}

/// A sync set: `k` of `members` must have flushed a commit before it is acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncSet {
    /// `ANY` or `FIRST`.
    pub method: Method,
    /// How many acknowledgements a commit waits for; 1 to the number of members.
    pub k: usize,
    /// The members, in order of priority, without repetition.
    pub members: Vec<NodeName>,
}

impl SyncSet {
    /// Whether it is one: `k` of its members can acknowledge, and none is counted twice.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence about its record.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.k == 0 || self.k > self.members.len() {
            return Err("its sync set asks for none, or for more members than it has");
        }
        if self.members.iter().collect::<BTreeSet<_>>().len() < self.members.len() {
            return Err("its sync set names a member twice");
        }
        Ok(())
    }
}

/// What the store promises about acknowledged commits; an election relies on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "promise", rename_all = "snake_case")]
pub enum Promise {
    /// Nothing: acknowledged commits may be on the leader only, and losing some is accepted.
    Asynchronous,
    /// Acknowledged commits may be on the leader only, and losing them is not accepted: nobody else may be
    /// promoted by itself.
    Alone,
    /// Each acknowledged commit is on `k` of the set.
    Quorum(SyncSet),
}

/// The record under `cluster`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// [`FORMAT`].
    pub format: u32,
    /// PostgreSQL's system identifier; none until the first data directory exists.
    pub system_identifier: Option<String>,
    /// The highest term that was ever named. Never goes back.
    pub epoch: Epoch,
    /// Where leadership stands.
    #[serde(flatten)]
    pub phase: Phase,
    /// What acknowledged commits can be relied on to have reached.
    pub sync: Promise,
    /// No member below this position may win: the winner's position at the last election, which covers every
    /// commit acknowledged in earlier terms.
    pub base: Position,
}

/// The last term: timelines are 32 bits wide, and one more must fit.
const EPOCH_MAX: u64 = u32::MAX as u64 - 1;

impl Cluster {
    /// Whether the record can be acted upon, whoever wrote it.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence about it.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.format > FORMAT {
            return Err("it was written by a newer version");
        }
        if !(1..=EPOCH_MAX).contains(&self.epoch.0) {
            return Err("its epoch is out of range");
        }
        let term_is_sound = match &self.phase {
            Phase::Bootstrapping { .. } => true,
            Phase::Led { leader } => leader.epoch == self.epoch && leader.timeline.0 > 0,
            Phase::Electing { last, .. } => last.epoch < self.epoch && last.timeline.0 > 0,
        };
        if !term_is_sound {
            return Err("its leader is of another term");
        }
        match &self.sync {
            Promise::Quorum(set) => set.check(),
            Promise::Asynchronous | Promise::Alone => Ok(()),
        }
    }

    /// The leader, if one is in office.
    pub fn leader(&self) -> Option<&Leader> {
        match &self.phase {
            Phase::Led { leader } => Some(leader),
            Phase::Bootstrapping { .. } | Phase::Electing { .. } => None,
        }
    }
}

/// The record under `lease`: renewed by the leader; followers count the time since it last changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The term it belongs to.
    pub epoch: Epoch,
    /// The leader that renews it.
    pub holder: NodeName,
    /// Counted up at each renewal.
    pub count: u64,
    /// How long it lasts from its renewal on, in milliseconds. Part of the record, so that its holder and those
    /// who wait for its end count the same while the setting changes.
    pub ttl_ms: u64,
    /// How far the holder's WAL reached at the renewal: what a successor may not be too far behind. Heartbeats say
    /// it, too, and are forgotten when the one who heard them starts anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<Position>,
}

/// A follower's promise: it streams from no leader of a term below `epoch`, and its WAL ends at `position`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceReport {
    /// The term that it is fenced for.
    pub epoch: Epoch,
    /// All the WAL it has.
    pub position: Position,
}

/// A former leader's word that its server is stopped, every process of it gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// The term that it released leadership for: the term of the election that follows.
    pub epoch: Epoch,
    /// Where its WAL ends after a clean shutdown; none if it crashed or was killed.
    pub end: Option<Position>,
}

/// A primary in office: which term, and the history of the timeline it writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serving {
    /// The term that it serves in.
    pub epoch: Epoch,
    /// The timeline that it writes.
    pub timeline: Timeline,
    /// Its ancestors: each timeline and where it was left, oldest first.
    pub history: Vec<Position>,
}

/// What an operator can say of a member in its file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tags {
    /// Never becomes leader.
    pub nofailover: bool,
    /// Preferred among equals; 0 means never (as `nofailover`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failover_priority: Option<u32>,
    /// Gets no read traffic.
    pub noloadbalance: bool,
    /// Preferred source of base backups.
    pub clonefrom: bool,
    /// Streams from this member instead of the leader, while it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicatefrom: Option<NodeName>,
    /// Never acknowledges commits for others.
    pub nosync: bool,
    /// Anything else that was given, for filters of the HTTP API.
    #[serde(flatten)]
    pub custom: BTreeMap<String, serde_json::Value>,
}

impl Tags {
    /// Whether this member may lead.
    pub fn may_lead(&self) -> bool {
        !self.nofailover && self.failover_priority != Some(0)
    }

    /// Preference among equals; higher wins.
    pub fn priority(&self) -> u32 {
        self.failover_priority.unwrap_or(1)
    }

    /// Whether this member may acknowledge commits: one that can never lead could keep a write from
    /// everyone who can.
    pub fn may_acknowledge(&self) -> bool {
        !self.nosync && self.may_lead() && self.replicatefrom.is_none()
    }
}

/// The record under `members/NAME`, written by that member alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// [`FORMAT`].
    pub format: u32,
    /// Its name.
    pub name: NodeName,
    /// `host:port` that the other agents reach it at.
    pub peer_address: String,
    /// `host:port` that clients and followers reach its server at; none for a witness.
    pub server_address: Option<String>,
    /// URL of its HTTP API.
    pub api_url: String,
    /// Its tags.
    pub tags: Tags,
    /// Its own file has it replay late (`recovery_min_apply_delay`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub delayed: bool,
    /// Its latest fence, if it gave one.
    pub fence: Option<FenceReport>,
    /// Its latest release of leadership, if it gave one.
    pub release: Option<Release>,
    /// What it serves as primary, if it does.
    pub serving: Option<Serving>,
    /// Permanent slots that are on its server because Antiphon made them: those that it may drop.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub slots: BTreeSet<String>,
}

impl Member {
    /// Whether it may acknowledge commits. One that replays late may not: a write that only it has would make
    /// it the leader, and end its delay.
    pub fn may_acknowledge(&self) -> bool {
        self.tags.may_acknowledge() && !self.delayed
    }
}

/// The record under `failover`: what an operator asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The leader that the operator saw; the request is void if another leads by then.
    pub leader: Option<NodeName>,
    /// Who shall lead next; the best one if not given.
    pub candidate: Option<NodeName>,
    /// Seconds since 1970 to begin at, if not at once. The agent turns it into a moment of its own clock.
    pub scheduled_at: Option<u64>,
    /// Promote the candidate even if it cannot be shown to hold every acknowledged write.
    #[serde(default)]
    pub accept_loss: bool,
}
