//! What the leader does: hold the lease, serve, keep the sync set and the slots in order, and give way.
//!
//! A leader that cannot serve says so itself and opens the election of the next term; one that cannot reach
//! the store stops writes before its lease ends.

use std::time::Duration;

use super::cluster::{Cause, Cluster, Leader, Member, Position, Promise, Serving};
use super::decide::{Decision, busy, open_election, with_record};
use super::elect::{stop, stop_within};
use super::role::Role;
use super::step::Step;
use super::sync::{self, SyncChange};
use super::why::Why;
use super::world::{
    Database, Local, PrimaryServer, Server, StandbyServer, StopMode, Stopped, Stored, Task, World,
};
use super::{lease, slots, switchover};
use crate::Timeline;

/// This member leads, by the store's word.
pub(super) fn lead(world: &World, cluster: &Stored<Cluster>, leader: &Leader, db: &Database) -> Decision {
    let decision = lease::overrun(world, db).unwrap_or_else(|| act(world, cluster, leader, db));
    with_lease(world, cluster, leader, decision)
}

fn act(world: &World, cluster: &Stored<Cluster>, leader: &Leader, db: &Database) -> Decision {
    let epoch = leader.epoch;
    let promoting = Role::Promoting { epoch };
    match &db.server {
        Server::Primary(primary) => serve(world, cluster, leader, db, primary),
        Server::Standby(standby) => promote(world, cluster, leader, db, standby),
        Server::Stopped(stopped) => start(world, cluster, leader, db, stopped),
        Server::Starting { .. } if !lease::held(world) => {
            stop(world, db, Role::Demoting, Why::LeaseLost, StopMode::Kill)
        }
        Server::Starting { since, .. } => {
            let limit = *since + patience(world);
            if world.now < limit {
                return Decision::rest(promoting, Why::Starting).waking(limit);
            }
            if world.settings.pause {
                return Decision::rest(promoting, Why::Paused);
            }
            let why = "it did not start within primary_start_timeout".to_owned();
            give_up(
                world,
                cluster,
                leader,
                db,
                Cause::CannotServe { why: why.clone() },
                Why::CannotServe { why },
            )
        }
        Server::Orphans { .. } | Server::Stuck { .. } | Server::Absent if world.settings.pause => {
            Decision::rest(promoting, Why::Paused)
        }
        // In an ordered stop the main process may end before the last of its children.
        Server::Orphans { .. } if matches!(db.task, Some((Task::Stop(_), _))) => stopping(world, leader, db),
        Server::Orphans { how } => {
            let how = how.clone();
            give_up(
                world,
                cluster,
                leader,
                db,
                Cause::ServerDied { how: how.clone() },
                Why::ServerDied { how },
            )
        }
        Server::Stuck { why, .. } => {
            let why = why.clone();
            give_up(
                world,
                cluster,
                leader,
                db,
                Cause::CannotServe { why: why.clone() },
                Why::CannotServe { why },
            )
        }
        Server::Absent if db.task.is_none() => cannot(world, cluster, leader, "its data directory is gone"),
        Server::Absent | Server::Refused { .. } => Decision::rest(promoting, Why::Starting),
    }
}

/// How long a start or a promotion may take.
fn patience(world: &World) -> Duration {
    world.settings.primary_start_timeout.max(world.settings.failure_timeout * 5)
}

/// Kills the server and opens the election. The stop comes first: it must not wait for the store.
fn give_up(
    world: &World,
    cluster: &Stored<Cluster>,
    leader: &Leader,
    db: &Database,
    cause: Cause,
    why: Why,
) -> Decision {
    let mut decision = stop(world, db, Role::Demoting, why, StopMode::Kill);
    decision.steps.push(open_election(world, cluster, leader, cause));
    decision
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
    let due = lease::renew_at(world);
    if world.now >= due {
        // First, and never waited for: whatever else is slow or fails must not cost the lease.
        let end = match &world.local {
            Local::Database(Database { server: Server::Primary(primary), .. }) => {
                Some(Position { timeline: primary.timeline, lsn: primary.flushed })
            }
            Local::Database(_) | Local::Witness => None,
        };
        decision.steps.insert(0, Step::RenewLease { epoch: leader.epoch, expect: cluster.revision, end });
        return decision.waking(world.now + world.settings.ttl / 8);
    }
    decision.waking(due)
}

/// The server is being stopped while this member leads: for a restart. Nobody waits for a hand-over, but a
/// shutdown that hangs would stop writes for ever.
fn stopping(world: &World, leader: &Leader, db: &Database) -> Decision {
    let role = Role::Leader { epoch: leader.epoch };
    let patience = world.settings.primary_stop_timeout.unwrap_or(world.settings.retry_timeout * 3);
    stop_within(world, db, role, Why::Restarting, StopMode::Fast, patience)
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
    if matches!(db.task, Some((Task::Stop(_), _))) {
        return stopping(world, leader, db);
    }
    let serving =
        Serving { epoch: leader.epoch, timeline: primary.timeline, history: primary.history.clone() };
    let record = Member { serving: Some(serving), ..world.me.member.clone() };
    let resting = Decision::rest(role.clone(), standing(cluster, db));
    let decision = with_record(world, Some(record), resting);
    if db.task.is_some() {
        return decision;
    }
    if world.me.restart_requested {
        return Decision::step(role, Why::Restarting, Step::Stop { mode: StopMode::Fast });
    }
    if let Some(leaving) = switchover::leave_full_disk(world, cluster, leader, db, primary) {
        return leaving;
    }
    let decision = match switchover::prepare(world, cluster, leader, db, primary) {
        Some(mut next) => {
            let waits = next.steps.is_empty();
            next.steps.splice(..0, decision.steps);
            if !waits {
                return next;
            }
            next
        }
        None => decision,
    };
    let decision = with_sync(world, cluster, db, primary, decision);
    slots::with_slots(world, db, decision)
}

fn standing(cluster: &Stored<Cluster>, db: &Database) -> Why {
    match &cluster.value.sync {
        _ if db.disk_full => Why::DiskFull { to: None },
        Promise::Alone => Why::Degraded,
        Promise::Asynchronous | Promise::Quorum(_) => Why::Leading,
    }
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
        Some(SyncChange::Names { names, prove }) => match busy(world, db, &[Task::SetSync]) {
            Some((why, at)) => {
                decision.why = why;
                decision.wake_at = at;
            }
            None => {
                decision.why = Why::ChangingSyncSet;
                // Names that the promise does not speak for are set right at once, also without the store.
                decision
                    .steps
                    .extend(sync::covers(&cluster.value.sync, &primary.sync).then(|| settle(cluster)));
                decision.steps.push(Step::SetSync { sync: names, prove });
            }
        },
    }
    decision.waking(look_again)
}

/// Writes the record as it is. A change of it that was sent earlier and whose answer never came may still be on
/// its way to the store: it names the revision that this write ends, so it cannot come into force after the
/// names were chosen by this record.
fn settle(cluster: &Stored<Cluster>) -> Step {
    Step::ChangeCluster {
        cluster: Box::new(cluster.value.clone()),
        expect: cluster.revision,
        take_lease: false,
        lease_unchanged: None,
        consume_request: None,
    }
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
        let limit = since + patience(world);
        if world.now >= limit {
            return cannot(world, cluster, leader, "its promotion did not end within primary_start_timeout");
        }
        return Decision::rest(role, Why::Promoting).waking(limit);
    }
    if let Some((task, _)) = db.task {
        return Decision::rest(role, Why::Working { task });
    }
    if let Some(error) = failed_in_this_term(world, db, Task::Promote) {
        return cannot(world, cluster, leader, &format!("its promotion failed: {error}"));
    }
    let timeline = Timeline(u32::try_from(epoch.0).expect("a term beyond 2^32 elections cannot come about"));
    if standby.position.is_some_and(|position| position.timeline >= timeline) {
        if world.settings.pause {
            return Decision::rest(role, Why::Paused);
        }
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
        && !is_dealt_with(world, leader)
    {
        let how = how.clone();
        let step = open_election(world, cluster, leader, Cause::ServerDied { how: how.clone() });
        return Decision::step(role, Why::ServerDied { how }, step);
    }
    if db.task.is_some() {
        return Decision::rest(role, Why::Starting);
    }
    if let Some(resting) = paused(world, db, stopped, &role) {
        return resting;
    }
    if db.half_built {
        return cannot(world, cluster, leader, "its data directory is half built");
    }
    if let Some(error) = failed_in_this_term(world, db, Task::Start).filter(|_| !world.settings.pause) {
        return cannot(world, cluster, leader, &format!("it did not start: {error}"));
    }
    if world.me.lease_until.is_none() || !lease::in_hand(world) {
        return Decision::rest(role, Why::NoStore).waking(world.now + Duration::from_millis(200));
    }
    let sync = cluster.value.sync.names();
    let steps = if stopped.primary {
        vec![settle(cluster), Step::StartPrimary { epoch, sync }]
    } else {
        vec![Step::StartStandby { upstream: None }]
    };
    Decision { steps, ..Decision::rest(role, Why::StartingPrimary) }
}

/// In a pause a server that somebody else ended, or that cannot be started, is left to the operator; one that
/// was stopped for a restart is started again.
fn paused(world: &World, db: &Database, stopped: &Stopped, role: &Role) -> Option<Decision> {
    if !world.settings.pause {
        return None;
    }
    if db.half_built || (stopped.crash.is_some() && !world.me.restart_requested) {
        return Some(Decision::rest(role.clone(), Why::Paused));
    }
    let (why, at) = busy(world, db, &[Task::Start])?;
    let resting = Decision::rest(role.clone(), why);
    Some(at.map_or(resting.clone(), |at| resting.waking(at)))
}

/// The crash was before this term: its election has left leadership here, for the server to be started.
fn is_dealt_with(world: &World, leader: &Leader) -> bool {
    let of_this_term = |serving: &Serving| serving.epoch == leader.epoch;
    let published = world.store.member(world.me.name());
    let served = published.and_then(|me| me.serving.as_ref()).is_some_and(of_this_term);
    !served && world.me.member.release.is_some_and(|release| release.epoch == leader.epoch)
}

/// What was said when this task failed, if it failed in this term: an earlier failure was answered by an
/// election, and the term that followed is a new attempt.
fn failed_in_this_term(world: &World, db: &Database, task: Task) -> Option<String> {
    let failed = db.failed.as_ref().filter(|failed| failed.task == task)?;
    (failed.at >= world.store.phase_since).then(|| failed.error.clone())
}

fn cannot(world: &World, cluster: &Stored<Cluster>, leader: &Leader, why: &str) -> Decision {
    let step = open_election(world, cluster, leader, Cause::CannotServe { why: why.to_owned() });
    Decision::step(Role::Demoting, Why::CannotServe { why: why.to_owned() }, step)
}
