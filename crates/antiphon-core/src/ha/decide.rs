//! THE HEART: what a member knows goes in, what it does next comes out.
//!
//! One pure function. It is called after every event and whenever `wake_at` has come; calling it more often
//! than needed is harmless, because a step that is already done is not asked for again.

use std::time::Duration;

use serde::Serialize;

use super::cluster::{Cause, Cluster, Leader, Member, Phase, Promise};
use super::role::Role;
use super::step::Step;
use super::why::Why;
use super::world::{Database, Local, Server, Stored, Task, World};
use super::{bootstrap, detector, elect, follow, lead, lease, slots};
use crate::{Epoch, Instant};

/// What to do now, why, and when to look again at the latest.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decision {
    /// What this member is.
    #[serde(flatten)]
    pub role: Role,
    /// Effects, in order; the first that fails ends the list.
    pub steps: Vec<Step>,
    /// The reason.
    pub why: Why,
    /// Look again at this moment even if nothing happens.
    pub wake_at: Option<Instant>,
    /// The term whose leader this member suspects to be dead; told to the others by heartbeat.
    pub suspects: Option<Epoch>,
}

impl Decision {
    /// A decision to do nothing.
    pub(super) fn rest(role: Role, why: Why) -> Self {
        Self { role, steps: Vec::new(), why, wake_at: None, suspects: None }
    }

    /// A decision to take one step.
    pub(super) fn step(role: Role, why: Why, step: Step) -> Self {
        Self { steps: vec![step], ..Self::rest(role, why) }
    }

    /// The same, looking again at `at` or earlier.
    pub(super) fn waking(mut self, at: Instant) -> Self {
        self.wake_at = Some(self.wake_at.map_or(at, |known| known.min(at)));
        self
    }
}

/// Decides.
pub fn decide(world: &World) -> Decision {
    let Some(cluster) = &world.store.cluster else { return bootstrap::create(world) };
    if let Some(why) = distrust(world, &cluster.value) {
        return lease::hold_still(world, why);
    }
    match &world.local {
        Local::Witness => witness(world, cluster),
        Local::Database(db) => {
            if let Some(why) = untouchable(&cluster.value, db) {
                let decision = Decision::rest(Role::Waiting, why);
                return with_vote(world, cluster, with_record(world, None, decision));
            }
            database(world, cluster, db)
        }
    }
}

fn database(world: &World, cluster: &Stored<Cluster>, db: &Database) -> Decision {
    let me = world.me.name();
    match &cluster.value.phase {
        Phase::Bootstrapping { by } => bootstrap::proceed(world, cluster, by, db),
        Phase::Led { leader } if leader.name == *me => lead::lead(world, cluster, leader, db),
        Phase::Led { leader } => with_vote(world, cluster, follow::follow(world, leader, db)),
        Phase::Electing { cause, last, .. } if last.name == *me => {
            elect::as_last_leader(world, cluster, cause, last, db)
        }
        Phase::Electing { cause, last, .. } => elect::as_member(world, cluster, cause, last, db),
    }
}

fn witness(world: &World, cluster: &Stored<Cluster>) -> Decision {
    let decision = Decision::rest(Role::Witness, Why::Witnessing);
    with_vote(world, cluster, with_record(world, None, decision))
}

/// Why the record of leadership as it is seen here must not be acted upon, if it must not.
fn distrust(world: &World, cluster: &Cluster) -> Option<Why> {
    if let Err(problem) = cluster.check() {
        return Some(Why::RecordUnsound { problem: problem.to_owned() });
    }
    // A term is fenced for only after the store named it: this member's view of the store is an older one.
    let behind = world.me.fenced > cluster.epoch;
    behind.then_some(Why::StoreBehind { fenced: world.me.fenced, seen: cluster.epoch })
}

/// Why the data directory here is left alone, if it is.
fn untouchable(cluster: &Cluster, db: &Database) -> Option<Why> {
    if let Server::Refused { reason } = &db.server {
        return Some(Why::DataDirectoryRefused { reason: reason.clone() });
    }
    match (&cluster.system_identifier, &db.system_identifier) {
        (Some(theirs), Some(here)) if theirs != here && !matches!(db.task, Some((Task::Clone, _))) => {
            Some(Why::ForeignDataDirectory { cluster: theirs.clone(), here: here.clone() })
        }
        _ => None,
    }
}

/// Adds this member's vote on the leader: suspects it, and opens an election when a majority does.
///
/// A lease that ran out is no member's opinion but the store's: on that alone any one may open it, as long as
/// nobody has renewed the lease meanwhile.
fn with_vote(world: &World, cluster: &Stored<Cluster>, mut decision: Decision) -> Decision {
    let Some(leader) = cluster.value.leader() else { return decision };
    // Who acknowledges alone is the only one that could win: while it renews its lease, deposing it is idle.
    let idle = cluster.value.sync == Promise::Alone && !detector::lease_ran_out(world);
    let suspicion = detector::suspicion(world, leader).filter(|cause| !(idle && *cause == Cause::Silent));
    let Some(cause) = suspicion else {
        return match detector::look_again(world, leader) {
            Some(at) => decision.waking(at),
            None => decision,
        };
    };
    decision.suspects = Some(leader.epoch);
    let link = world.peers.get(&leader.name).map_or(super::world::Link::Down, |peer| peer.link);
    if detector::suspecters(world, leader) * 2 > world.store.voters {
        decision.why = Why::OpeningElection { epoch: cluster.value.epoch.next() };
        decision.steps.insert(0, open_election(world, cluster, leader, cause));
    } else if let Some(lease) = world.store.lease.as_ref().filter(|_| detector::lease_ran_out(world)) {
        decision.why = Why::OpeningElection { epoch: cluster.value.epoch.next() };
        let mut step = open_election(world, cluster, leader, cause);
        if let Step::ChangeCluster { lease_unchanged, .. } = &mut step {
            *lease_unchanged = Some(lease.revision);
        }
        decision.steps.insert(0, step);
    } else {
        decision.why = Why::SuspectingLeader { leader: leader.name.clone(), link };
    }
    decision.waking(world.now + Duration::from_millis(50))
}

/// The step that opens the election of the next term.
pub(super) fn open_election(world: &World, cluster: &Stored<Cluster>, last: &Leader, cause: Cause) -> Step {
    let phase = Phase::Electing { cause, opened_by: world.me.name().clone(), last: last.clone() };
    Step::ChangeCluster {
        cluster: Box::new(Cluster { epoch: cluster.value.epoch.next(), phase, ..cluster.value.clone() }),
        expect: cluster.revision,
        take_lease: false,
        lease_unchanged: None,
        consume_request: None,
    }
}

/// Adds the publication of this member's own record where the stored one differs.
pub(super) fn with_record(world: &World, record: Option<Member>, mut decision: Decision) -> Decision {
    let record = record.unwrap_or_else(|| Member { serving: None, ..world.me.member.clone() });
    let record = Member { slots: slots::answered_for(world), ..record };
    if world.store.member(world.me.name()) != Some(&record) {
        decision.steps.push(Step::Publish { member: Box::new(record) });
    }
    decision
}

/// The pause before a failed task is tried again: 1 s, doubled up to 30 s.
pub(super) fn retry_at(db: &Database) -> Option<Instant> {
    let failure = db.failed.as_ref()?;
    let doubled = 1_u64 << failure.times.saturating_sub(1).min(5);
    Some(failure.at + Duration::from_secs(doubled.min(30)))
}

/// What stands in the way of a new task: one that goes on, or the pause after one of `kinds` failed.
pub(super) fn busy(world: &World, db: &Database, kinds: &[Task]) -> Option<(Why, Option<Instant>)> {
    if let Some((task, _)) = db.task {
        return Some((Why::Working { task }, None));
    }
    let failure = db.failed.as_ref().filter(|failure| kinds.contains(&failure.task))?;
    let at = retry_at(db).filter(|at| *at > world.now)?;
    Some((Why::Retrying { task: failure.task, error: failure.error.clone() }, Some(at)))
}
