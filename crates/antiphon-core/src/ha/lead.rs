//! What the leader does: hold the lease, serve, keep the sync set and the slots in order, and give way.
//!
//! A leader that cannot serve says so itself and opens the election of the next term; one that cannot reach
//! the store stops writes before its lease ends.

use std::time::Duration;

use super::cluster::{Cause, Cluster, Leader, Member, Promise, Serving};
use super::decide::{Decision, busy, open_election, with_record};
use super::elect::stop;
use super::role::Role;
use super::step::Step;
use super::sync::{self, SyncChange};
use super::why::Why;
use super::world::{Database, PrimaryServer, Server, StandbyServer, StopMode, Stopped, Stored, Task, World};
use super::{slots, switchover};
use crate::{Instant, Timeline};

/// This member leads, by the store's word.
pub(super) fn lead(world: &World, cluster: &Stored<Cluster>, leader: &Leader, db: &Database) -> Decision {
    let epoch = leader.epoch;
    let give_up = |cause: Cause, why: Why, stop: Option<StopMode>| {
        let mut decision = Decision::rest(Role::Demoting, why);
        decision.steps.push(open_election(world, cluster, leader, cause));
        decision.steps.extend(stop.map(|mode| Step::Stop { mode }));
        decision
    };
    let promoting = Role::Promoting { epoch };
    let decision = match &db.server {
        Server::Primary(primary) => serve(world, cluster, leader, db, primary),
        Server::Standby(standby) => promote(world, cluster, leader, db, standby),
        Server::Stopped(stopped) => start(world, cluster, leader, db, stopped),
        Server::Starting { since } => {
            let limit = *since + world.settings.primary_start_timeout.max(world.settings.failure_timeout * 5);
            if world.now >= limit {
                let why = "it did not start within primary_start_timeout".to_owned();
                give_up(
                    Cause::CannotServe { why: why.clone() },
                    Why::CannotServe { why },
                    Some(StopMode::Kill),
                )
            } else {
                Decision::rest(promoting, Why::Starting).waking(limit)
            }
        }
        Server::Orphans { how } => {
            let how = how.clone();
            give_up(Cause::ServerDied { how: how.clone() }, Why::ServerDied { how }, Some(StopMode::Kill))
        }
        Server::Stuck { why, .. } if !world.settings.pause => {
            let why = why.clone();
            give_up(Cause::CannotServe { why: why.clone() }, Why::CannotServe { why }, Some(StopMode::Kill))
        }
        Server::Stuck { .. } => Decision::rest(promoting, Why::Paused),
        Server::Absent if db.task.is_none() => {
            let why = "its data directory is gone".to_owned();
            give_up(Cause::CannotServe { why: why.clone() }, Why::CannotServe { why }, None)
        }
        Server::Absent | Server::Refused { .. } => Decision::rest(promoting, Why::Starting),
    };
    with_lease(world, cluster, leader, decision)
}

/// When the lease ends. An agent that has just started counts from its start: its predecessor may have
/// renewed up to then.
fn lease_end(world: &World) -> Instant {
    world.me.lease_until.unwrap_or(world.me.started + world.settings.ttl)
}

/// Adds the renewal of the lease when a quarter of it is used up.
fn with_lease(world: &World, cluster: &Stored<Cluster>, leader: &Leader, mut decision: Decision) -> Decision {
    let gives_way = decision
        .steps
        .iter()
        .any(|step| matches!(step, Step::ChangeCluster { cluster, .. } if cluster.leader().is_none()));
    if gives_way {
        return decision;
    }
    let ttl = world.settings.ttl;
    let due = world.me.lease_until.map_or(world.now, |until| until - ttl * 3 / 4);
    if world.now >= due {
        // First, and never waited for: whatever else is slow or fails must not cost the lease.
        decision.steps.insert(0, Step::RenewLease { epoch: leader.epoch, expect: cluster.revision });
        return decision.waking(world.now + ttl / 8);
    }
    decision.waking(due)
}

/// The server accepts writes.
fn serve(
    world: &World,
    cluster: &Stored<Cluster>,
    leader: &Leader,
    db: &Database,
    primary: &PrimaryServer,
) -> Decision {
    let role = Role::Leader { epoch: leader.epoch };
    let end = lease_end(world);
    if !holds_lease(world, end) {
        let mode = if world.now >= end { StopMode::Kill } else { StopMode::Fast };
        return stop(world, db, Role::Demoting, Why::LeaseLost, mode);
    }
    if let Some((Task::Stop(_), _)) = db.task {
        return Decision::rest(role, Why::Restarting);
    }
    let serving =
        Serving { epoch: leader.epoch, timeline: primary.timeline, history: primary.history.clone() };
    let record = Member { serving: Some(serving), ..world.me.member.clone() };
    let decision = with_record(world, Some(record), Decision::rest(role.clone(), standing(cluster)));
    if db.task.is_some() {
        return decision;
    }
    if world.me.restart_requested {
        return Decision::step(role, Why::Restarting, Step::Stop { mode: StopMode::Fast });
    }
    if let Some(handing_over) = switchover::prepare(world, cluster, leader, primary) {
        return handing_over;
    }
    let decision = with_sync(world, cluster, db, primary, decision);
    slots::with_slots(world, db, decision)
}

fn standing(cluster: &Stored<Cluster>) -> Why {
    if cluster.value.sync == Promise::Alone { Why::Degraded } else { Why::Leading }
}

/// Whether there is enough left of the lease to go on; writes end before it does.
fn holds_lease(world: &World, end: Instant) -> bool {
    let enough = world.now + world.settings.ttl / 4 < end;
    enough || world.settings.pause || (world.settings.failsafe_mode && everyone_answers(world))
}

/// `failsafe_mode`: every other member answers this one directly.
fn everyone_answers(world: &World) -> bool {
    let mut others = world.store.members.keys().filter(|name| *name != world.me.name());
    others.all(|name| {
        world.peers.get(name).is_some_and(|peer| peer.heard_within(world.now, world.settings.failure_timeout))
    })
}

/// Adds the next step of a change of the sync set.
fn with_sync(
    world: &World,
    cluster: &Stored<Cluster>,
    db: &Database,
    primary: &PrimaryServer,
    mut decision: Decision,
) -> Decision {
    let target = sync::target(world, &cluster.value, primary);
    let look_again = world.now + world.settings.failure_timeout / 2;
    match sync::next(&primary.sync, primary.proven.as_ref(), &cluster.value.sync, &target) {
        None => {}
        Some(SyncChange::Promise(sync)) => {
            decision.why = Why::ChangingSyncSet;
            decision.steps.push(Step::ChangeCluster {
                cluster: Box::new(Cluster { sync, ..cluster.value.clone() }),
                expect: cluster.revision,
                take_lease: false,
                lease_unchanged: None,
                consume_request: None,
            });
        }
        Some(SyncChange::Names { names, prove }) => match busy(world, db) {
            Some((why, at)) => {
                decision.why = why;
                decision.wake_at = at;
            }
            None => {
                decision.why = Why::ChangingSyncSet;
                decision.steps.push(Step::SetSync { sync: names, prove });
            }
        },
    }
    decision.waking(look_again)
}

/// Elected; the server is still in recovery.
fn promote(
    world: &World,
    cluster: &Stored<Cluster>,
    leader: &Leader,
    db: &Database,
    standby: &StandbyServer,
) -> Decision {
    let epoch = leader.epoch;
    let role = Role::Promoting { epoch };
    if let Some((Task::Promote, since)) = db.task {
        let limit = since + world.settings.primary_start_timeout.max(world.settings.failure_timeout * 5);
        if world.now >= limit {
            return cannot(world, cluster, leader, "its promotion did not end within primary_start_timeout");
        }
        return Decision::rest(role, Why::Promoting).waking(limit);
    }
    if let Some((task, _)) = db.task {
        return Decision::rest(role, Why::Working { task });
    }
    if db.failed.as_ref().is_some_and(|failed| failed.task == Task::Promote) {
        return cannot(world, cluster, leader, "its promotion failed");
    }
    let timeline = Timeline(u32::try_from(epoch.0).expect("a term beyond 2^32 elections cannot come about"));
    if standby.position.is_some_and(|position| position.timeline >= timeline) {
        return cannot(world, cluster, leader, "it was demoted when its lease ran out");
    }
    if world.me.lease_until.is_none_or(|until| world.now >= until) {
        return Decision::rest(role, Why::NoStore);
    }
    let sync = cluster.value.sync.names();
    Decision::step(role, Why::Promoting, Step::Promote { epoch, timeline, sync })
}

/// Leads, and the server does not run.
fn start(
    world: &World,
    cluster: &Stored<Cluster>,
    leader: &Leader,
    db: &Database,
    stopped: &Stopped,
) -> Decision {
    let epoch = leader.epoch;
    let role = Role::Promoting { epoch };
    if let Some(how) = &stopped.crash
        && !world.settings.pause
    {
        let how = how.clone();
        let step = open_election(world, cluster, leader, Cause::ServerDied { how: how.clone() });
        return Decision::step(role, Why::ServerDied { how }, step);
    }
    if db.task.is_some() {
        return Decision::rest(role, Why::Starting);
    }
    if let Some(failed) = db.failed.as_ref().filter(|failed| failed.task == Task::Start) {
        return cannot(world, cluster, leader, &format!("it did not start: {}", failed.error));
    }
    if world.settings.pause && !world.me.restart_requested {
        return Decision::rest(role, Why::Paused);
    }
    if world.me.lease_until.is_none_or(|until| world.now + world.settings.ttl / 4 >= until) {
        return Decision::rest(role, Why::NoStore).waking(world.now + Duration::from_millis(200));
    }
    let sync = cluster.value.sync.names();
    let step = if stopped.primary {
        Step::StartPrimary { epoch, sync }
    } else {
        Step::StartStandby { upstream: None }
    };
    Decision::step(role, Why::StartingPrimary, step)
}

fn cannot(world: &World, cluster: &Stored<Cluster>, leader: &Leader, why: &str) -> Decision {
    let step = open_election(world, cluster, leader, Cause::CannotServe { why: why.to_owned() });
    Decision::step(Role::Demoting, Why::CannotServe { why: why.to_owned() }, step)
}
