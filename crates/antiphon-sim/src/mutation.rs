//! Mutants: each switches one safety rule off, around the core and never in it, to see that the simulation
//! notices.
//!
//! A mutant changes what the core is shown or what becomes of its steps. A simulation that finds none of
//! them would prove nothing.

use antiphon_core::ha::cluster::{Position, Promise};
use antiphon_core::ha::step::Step;
use antiphon_core::ha::world::{Local, Server, Stopped, SyncNames, World};
use antiphon_core::{Instant, Timeline};

use crate::Sim;
use crate::net::NodeId;

/// A safety rule that is switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// A member reports without having stopped its receiver.
    ReportBeforeFence,
    /// One report is enough, whatever the sync set is.
    OneReportIsEnough,
    /// The store promises a new sync set before PostgreSQL runs with it.
    PromiseBeforeNames,
    /// New names count as proven without a commit under them.
    SkipProve,
    /// No position is remembered from earlier terms.
    DropBase,
    /// Asynchronous mode: neither the leader nor its guard minds the end of the lease.
    IgnoreLeaseEnd,
    /// The fence is in memory only.
    FenceNotDurable,
    /// The position is reported before all local WAL was read.
    PositionTooEarly,
    /// A directory that a rewind left half-built is started.
    StartHalfBuilt,
    /// A promotion takes the next timeline instead of its term's.
    TimelineLastPlusOne,
    /// A follower attaches without comparing histories.
    FollowWithoutForkCheck,
    /// Leadership is released while backends of the dead server live on.
    ReleaseBeforeOrphansGone,
    /// One member alone may depose the leader.
    OneDeafMemberOpens,
    /// The lease is counted from the answer, not from when the renewal was sent.
    LeaseFromAnswer,
    /// That the leader acknowledged alone is forgotten.
    AloneIgnored,
    /// Names are chosen by a record that a change on its way may still replace.
    NamesUnsettled,
}

/// Every mutant.
pub const MUTATIONS: [Mutation; 16] = [
    Mutation::ReportBeforeFence,
    Mutation::OneReportIsEnough,
    Mutation::PromiseBeforeNames,
    Mutation::SkipProve,
    Mutation::DropBase,
    Mutation::IgnoreLeaseEnd,
    Mutation::FenceNotDurable,
    Mutation::PositionTooEarly,
    Mutation::StartHalfBuilt,
    Mutation::TimelineLastPlusOne,
    Mutation::FollowWithoutForkCheck,
    Mutation::ReleaseBeforeOrphansGone,
    Mutation::OneDeafMemberOpens,
    Mutation::LeaseFromAnswer,
    Mutation::AloneIgnored,
    Mutation::NamesUnsettled,
];

impl Sim {
    fn is(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    pub(crate) fn starts_half_built(&self) -> bool {
        self.is(Mutation::StartHalfBuilt)
    }

    pub(crate) fn fence_is_skipped(&self) -> bool {
        self.is(Mutation::ReportBeforeFence)
    }

    pub(crate) fn proof_is_skipped(&self) -> bool {
        self.is(Mutation::SkipProve)
    }

    pub(crate) fn lease_is_ignored(&self) -> bool {
        self.is(Mutation::IgnoreLeaseEnd)
    }

    pub(crate) fn lease_counts_from(&self, node: NodeId, sent: Instant) -> Instant {
        if self.is(Mutation::LeaseFromAnswer) { self.nodes[node].clock.local(self.now) } else { sent }
    }

    /// A crash takes the fence with it, if it is not on disk.
    pub(crate) fn lose_fence(&mut self, node: NodeId) {
        let lost = self.nodes[node].before_fence.take();
        if let Some((fenced, upstream)) = lost
            && self.is(Mutation::FenceNotDurable)
        {
            self.nodes[node].fenced = fenced;
            if self.nodes[node].server.upstream.is_none() {
                self.nodes[node].server.upstream = upstream;
                self.connect(node);
            }
        }
    }

    /// Changes what the core is shown.
    pub(crate) fn tamper_world(&self, node: NodeId, world: &mut World) {
        let Some(mutation) = self.mutation else { return };
        match mutation {
            Mutation::ReportBeforeFence => {
                if let Some(cluster) = &world.store.cluster
                    && cluster.value.leader().is_none()
                {
                    world.me.fenced = cluster.value.epoch;
                    if let Local::Database(db) = &mut world.local
                        && let Server::Standby(standby) = &mut db.server
                    {
                        (standby.receiving, standby.upstream) = (false, None);
                    }
                }
            }
            Mutation::OneReportIsEnough => self.change_promise(world, |promise| {
                if let Promise::Quorum(set) = promise {
                    set.k = set.members.len();
                }
            }),
            Mutation::AloneIgnored => self.change_promise(world, |promise| {
                if *promise == Promise::Alone {
                    *promise = Promise::Asynchronous;
                }
            }),
            Mutation::DropBase => {
                if let Some(cluster) = &mut world.store.cluster {
                    cluster.value.base = Position::default();
                }
            }
            Mutation::IgnoreLeaseEnd => {
                if let Some(until) = &mut world.me.lease_until {
                    *until = world.now + world.settings.ttl;
                }
            }
            Mutation::PositionTooEarly => self.report_early(node, world),
            Mutation::StartHalfBuilt => {
                if let Local::Database(db) = &mut world.local
                    && db.server != Server::Absent
                {
                    db.half_built = false;
                }
            }
            Mutation::FollowWithoutForkCheck => histories_agree(world),
            Mutation::ReleaseBeforeOrphansGone => self.hide_orphans(node, world),
            Mutation::OneDeafMemberOpens => world.store.voters = 1,
            Mutation::PromiseBeforeNames
            | Mutation::SkipProve
            | Mutation::FenceNotDurable
            | Mutation::TimelineLastPlusOne
            | Mutation::LeaseFromAnswer
            | Mutation::NamesUnsettled => {}
        }
    }

    /// While an election is open.
    fn change_promise(&self, world: &mut World, change: impl FnOnce(&mut Promise)) {
        if let Some(cluster) = &mut world.store.cluster
            && cluster.value.leader().is_none()
        {
            change(&mut cluster.value.sync);
        }
    }

    fn report_early(&self, node: NodeId, world: &mut World) {
        let end = self.nodes[node].server.end().map(|end| self.wal.position(end));
        if let Local::Database(db) = &mut world.local
            && let Server::Standby(standby) = &mut db.server
            && standby.position.is_none_or(|position| position.lsn > standby.replayed)
        {
            standby.position = end.map(|end| Position { lsn: standby.replayed, ..end });
        }
    }

    fn hide_orphans(&self, node: NodeId, world: &mut World) {
        let Some(directory) = &self.nodes[node].server.directory else { return };
        if let Local::Database(db) = &mut world.local
            && let Server::Orphans { .. } = &db.server
        {
            let checkpoint = self.wal.position(directory.checkpoint);
            db.task = None;
            db.server = Server::Stopped(Stopped {
                crash: Some("killed".to_owned()),
                clean: false,
                primary: true,
                restored: false,
                checkpoint,
            });
        }
    }

    /// Changes what becomes of the steps.
    pub(crate) fn tamper_steps(&mut self, node: NodeId, steps: &mut Vec<Step>) {
        match self.mutation {
            Some(Mutation::PromiseBeforeNames) => self.promise_first(node, steps),
            Some(Mutation::NamesUnsettled) => {
                let names = |step: &Step| matches!(step, Step::SetSync { .. } | Step::StartPrimary { .. });
                if steps.iter().any(names) {
                    steps.retain(|step| !matches!(step, Step::ChangeCluster { .. }));
                }
            }
            Some(Mutation::TimelineLastPlusOne) => {
                let end = self.nodes[node].server.end();
                let last = end.map_or(0, |end| self.wal.branches[end.branch].timeline);
                for step in steps.iter_mut() {
                    if let Step::Promote { timeline, .. } = step {
                        *timeline = Timeline(last + 1);
                    }
                }
            }
            _ => {}
        }
    }

    fn promise_first(&self, node: NodeId, steps: &mut Vec<Step>) {
        let Some(cluster) = self.nodes[node].agent.as_ref().and_then(|a| a.world.store.cluster.clone())
        else {
            return;
        };
        let Some(at) = steps.iter().position(|step| matches!(step, Step::SetSync { .. })) else { return };
        let Some(Step::SetSync { sync: SyncNames::Set(set), .. }) = steps.get(at) else { return };
        let set = set.clone();
        steps.retain(|step| !matches!(step, Step::ChangeCluster { .. }));
        let mut changed = cluster.value;
        changed.sync = Promise::Quorum(set);
        let promise = Step::ChangeCluster {
            cluster: Box::new(changed),
            expect: cluster.revision,
            take_lease: false,
            lease_unchanged: None,
            consume_request: None,
        };
        let at = steps.iter().position(|step| matches!(step, Step::SetSync { .. })).unwrap_or(0);
        steps.insert(at, promise);
    }
}

/// Every position is part of the leader's history.
fn histories_agree(world: &mut World) {
    let Local::Database(db) = &world.local else { return };
    let here = match &db.server {
        Server::Standby(standby) => standby.position,
        Server::Stopped(stopped) => Some(stopped.checkpoint),
        _ => None,
    };
    let Some(mut here) = here else { return };
    here.lsn.0 += 1;
    if let Local::Database(db) = &mut world.local
        && let Server::Stopped(stopped) = &mut db.server
    {
        stopped.clean = true;
    }
    for member in world.store.members.values_mut() {
        if let Some(serving) = &mut member.value.serving {
            serving.history.insert(0, here);
        }
    }
}
