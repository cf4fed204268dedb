//! Why: the reason of a decision, as an enum whose `Display` is the sentence that an operator reads.
//!
//! Where a human must act, the remedy is in the sentence. Nothing tests the text; code matches the variants.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::world::{Link, Task};
use crate::{Epoch, Lsn, NodeName};

/// The reason of a decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum Why {
    /// The cluster has no record yet and this member may not or need not create it.
    WaitingForBootstrap,
    /// This member creates the cluster.
    Bootstrapping,
    /// This member takes its existing server into a new cluster.
    Adopting,
    /// The data directory belongs to another system.
    ForeignDataDirectory {
        /// The cluster's system identifier.
        cluster: String,
        /// The directory's.
        here: String,
    },
    /// The data directory must not be touched.
    DataDirectoryRefused {
        /// A sentence with the remedy.
        reason: String,
    },
    /// A vote without data.
    Witnessing,
    /// The leader and its lease are well.
    Leading,
    /// The sync set is being changed.
    ChangingSyncSet,
    /// This member was elected and promotes its server.
    Promoting,
    /// This member leads and starts its server.
    StartingPrimary,
    /// Commits are acknowledged by the leader alone: no follower can acknowledge them.
    Degraded,
    /// The server died under a live agent.
    ServerDied {
        /// How.
        how: String,
    },
    /// The server runs and cannot serve.
    CannotServe {
        /// Why.
        why: String,
    },
    /// The lease is about to end and could not be renewed.
    LeaseLost,
    /// Another member leads; the server here was a primary.
    Deposed {
        /// The term that deposed it.
        by: Epoch,
    },
    /// A hand-over is being prepared or carried out.
    SwitchingOver {
        /// To whom.
        to: NodeName,
    },
    /// A hand-over is about to be opened, and has been announced.
    HandingOver {
        /// To whom.
        to: NodeName,
    },
    /// The disk under the leader's server is full.
    DiskFull {
        /// The follower with space that leadership is handed to; none if there is none.
        to: Option<NodeName>,
    },
    /// A request cannot be met.
    RequestRefused {
        /// Why.
        reason: String,
    },
    /// Follows as it should.
    Following {
        /// Whom.
        upstream: NodeName,
    },
    /// The leader was elected and does not serve yet.
    WaitingForLeader {
        /// Whom.
        leader: NodeName,
    },
    /// The leader has been silent for too long, here at least.
    SuspectingLeader {
        /// Whom.
        leader: NodeName,
        /// What its link shows.
        link: Link,
    },
    /// An election is opened.
    OpeningElection {
        /// The term it is for.
        epoch: Epoch,
    },
    /// Fenced, and reporting it.
    Fencing {
        /// The term.
        epoch: Epoch,
    },
    /// This member wins.
    Winning {
        /// The term.
        epoch: Epoch,
    },
    /// Another member is the better choice.
    AnotherIsBetter {
        /// Whom.
        name: NodeName,
    },
    /// Too few members of the sync set have been fenced to be sure of every acknowledged write.
    WaitingForFences {
        /// How many reported.
        have: usize,
        /// How many are needed.
        need: usize,
    },
    /// Only the last leader holds every acknowledged write.
    OnlyLastLeaderMayWin {
        /// Whom.
        last: NodeName,
    },
    /// The most advanced reports are below what earlier terms acknowledged.
    BehindEarlierTerms,
    /// The members that may lead lack WAL that another one has.
    MostAdvancedMayNotLead {
        /// Who has it.
        name: NodeName,
    },
    /// Every candidate is further behind the last leader than `maximum_lag_on_failover`.
    TooFarBehind {
        /// Bytes.
        lag_bytes: u64,
    },
    /// Asynchronous mode: the old leader's lease may still be running.
    WaitingForLease,
    /// This member may not lead (nofailover).
    MayNotLead,
    /// The position of the WAL here is not known yet.
    PositionUnknown,
    /// The history here has left the leader's: the data directory is rewound.
    Diverged,
    /// The data directory is built anew from another member.
    Cloning,
    /// The server starts.
    Starting,
    /// A task is in progress.
    Working {
        /// Which.
        task: Task,
    },
    /// A task failed; it is tried again after a pause.
    Retrying {
        /// Which.
        task: Task,
        /// What was said.
        error: String,
    },
    /// The directory cannot be rewound, and building it anew is not allowed.
    NeedsReinit,
    /// The WAL that would follow what is here is gone, and building the directory anew is not allowed.
    WalGone {
        /// Where the WAL here ends.
        end: Lsn,
        /// Whom it follows.
        upstream: NodeName,
        /// Where the WAL there begins.
        oldest: Lsn,
    },
    /// Processes of a dead server are being ended.
    ClearingOrphans,
    /// An operator asked for a restart.
    Restarting,
    /// The management is paused.
    Paused,
    /// Cut off from the store; followers go on as they were.
    NoStore,
    /// The store as it is seen here is older than what this member has promised.
    StoreBehind {
        /// The term that this member is fenced for.
        fenced: Epoch,
        /// The newest term that is seen here.
        seen: Epoch,
    },
    /// The record of leadership cannot be acted upon.
    RecordUnsound {
        /// What is wrong with it, as the end of a sentence.
        problem: String,
    },
}

impl Why {
    /// Nothing goes on before somebody has done what the sentence says.
    pub fn needs_operator(&self) -> bool {
        matches!(
            self,
            Self::NeedsReinit
                | Self::WalGone { .. }
                | Self::ForeignDataDirectory { .. }
                | Self::DataDirectoryRefused { .. }
                | Self::RecordUnsound { .. }
        )
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WaitingForBootstrap => f.write_str("waiting for the cluster to be created by another member"),
            Self::Bootstrapping => f.write_str("creating the cluster's first data directory"),
            Self::Adopting => f.write_str("taking the existing server into a new cluster"),
            Self::ForeignDataDirectory { cluster, here } => write!(
                f,
                "the data directory here has system identifier {here}, the cluster has {cluster}: \
                 move it away, or point data_dir elsewhere"
            ),
            Self::DataDirectoryRefused { reason } => f.write_str(reason),
            Self::Witnessing => f.write_str("voting; this member holds no data"),
            Self::Leading => f.write_str("leading"),
            Self::ChangingSyncSet => f.write_str("leading; changing who acknowledges commits"),
            Self::Promoting => f.write_str("elected; promoting the server"),
            Self::StartingPrimary => f.write_str("leading; starting the server"),
            Self::Degraded => f.write_str(
                "leading alone: no follower acknowledges commits, so nobody else can be promoted safely; \
                 bring a follower back",
            ),
            Self::ServerDied { how } => write!(f, "the server died ({how}); handing leadership over"),
            Self::CannotServe { why } => write!(f, "the server cannot serve ({why}); handing leadership over"),
            Self::LeaseLost => f.write_str("the lease was not renewed: stopping writes before it ends"),
            Self::Deposed { by } => write!(f, "term {by} has deposed this primary; demoting it"),
            Self::SwitchingOver { to } => write!(f, "handing leadership over to {to}"),
            Self::HandingOver { to } => {
                write!(f, "about to hand leadership over to {to}; routers hold what begins now")
            }
            Self::DiskFull { to: Some(to) } => {
                write!(f, "the server's disk is full: handing leadership over to {to}, which has space")
            }
            Self::DiskFull { to: None } => f.write_str(
                "leading, but the server's disk is full and no follower with space can take over: free space there",
            ),
            Self::RequestRefused { reason } => write!(f, "the request cannot be met: {reason}"),
            Self::Following { upstream } => write!(f, "following {upstream}"),
            Self::WaitingForLeader { leader } => write!(f, "waiting for {leader}, just elected, to accept writes"),
            Self::SuspectingLeader { leader, link } => {
                let seen = match link {
                    Link::Up => "its link is up, but its heartbeats or the renewals of its lease have stopped",
                    Link::Refused => "its host refuses connections to its agent and its server",
                    Link::Down => "its host does not answer",
                };
                write!(f, "suspecting {leader}: {seen}")
            }
            Self::OpeningElection { epoch } => write!(f, "opening the election of term {epoch}"),
            Self::Fencing { epoch } => write!(f, "fenced for term {epoch}: following no leader of an earlier term"),
            Self::Winning { epoch } => write!(f, "taking leadership of term {epoch}"),
            Self::AnotherIsBetter { name } => write!(f, "leaving leadership to {name}, the better candidate"),
            Self::WaitingForFences { have, need } => write!(
                f,
                "{have} of {need} members of the sync set are fenced; with fewer, an acknowledged write could be lost"
            ),
            Self::OnlyLastLeaderMayWin { last } => write!(
                f,
                "only {last} is known to hold every acknowledged write: bring it back, or accept the loss with \
                 `antiphon failover --candidate NAME --accept-loss`"
            ),
            Self::BehindEarlierTerms => f.write_str(
                "no member here holds all that earlier terms acknowledged: bring back the last leader, or accept \
                 the loss with `antiphon failover --candidate NAME --accept-loss`",
            ),
            Self::MostAdvancedMayNotLead { name } => {
                write!(f, "{name} has WAL that no candidate has, and is tagged so that it may not lead")
            }
            Self::TooFarBehind { lag_bytes } => {
                write!(f, "the best candidate lacks {lag_bytes} bytes, more than maximum_lag_on_failover")
            }
            Self::WaitingForLease => f.write_str("waiting until the old leader's lease has run out"),
            Self::MayNotLead => f.write_str("this member is tagged so that it may not lead"),
            Self::PositionUnknown => f.write_str("waiting until the server has read all the WAL it has"),
            Self::Diverged => f.write_str("the history here has left the leader's; rewinding"),
            Self::Cloning => f.write_str("building the data directory from another member"),
            Self::Starting => f.write_str("the server is starting"),
            Self::Working { task } => write!(f, "{task} in progress"),
            Self::Retrying { task, error } => write!(f, "{task} failed and is tried again: {error}"),
            Self::NeedsReinit => f.write_str(
                "the data directory cannot be brought back to the leader's history: run `antiphon reinit` for this \
                 member, or set remove_data_directory_on_diverged_timelines",
            ),
            Self::WalGone { end, upstream, oldest } => write!(
                f,
                "the WAL here ends at {end}, and what {upstream} still has begins at {oldest}: run `antiphon reinit` for \
                 this member, set restore_command if an archive has the rest, or set \
                 remove_data_directory_on_diverged_timelines"
            ),
            Self::ClearingOrphans => f.write_str("ending what is left of a dead server before anything is started"),
            Self::Restarting => f.write_str("restarting the server as asked"),
            Self::Paused => f.write_str("paused: no automatic action; `antiphon resume` ends it"),
            Self::NoStore => f.write_str("the store has not answered yet"),
            Self::StoreBehind { fenced, seen } => write!(
                f,
                "fenced for term {fenced} while the store shows term {seen} here: waiting until it has caught up; if \
                 it never does, the store was restored from an old backup: restore a newer one"
            ),
            Self::RecordUnsound { problem } => write!(
                f,
                "the store's record of leadership is not acted upon: {problem}; upgrade this member, or restore the \
                 record from a backup of the store"
            ),
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Initialise => "initdb",
            Self::Clone => "base backup",
            Self::Rewind => "pg_rewind",
            Self::Start => "start",
            Self::Stop(_) => "stop",
            Self::Promote => "promotion",
            Self::SetSync => "change of synchronous_standby_names",
            Self::Checkpoint => "checkpoint",
        })
    }
}
