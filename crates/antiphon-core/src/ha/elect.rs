//! What a member does while an election is open: fence itself, report, and take leadership if it is the one.
//!
//! The last leader may succeed itself: it holds every write that it acknowledged. It does so at once if it
//! was deposed by mistake, and after some patience if its server died, because promoting a follower is
//! usually sooner than recovering from a crash.

use std::time::Duration;

use super::cluster::{Cause, Cluster, FenceReport, Leader, Member, Phase, Position, Promise, Release};
use super::decide::{Decision, busy, open_election, with_record};
use super::role::Role;
use super::step::Step;
use super::why::Why;
use super::world::{Database, Failure, Server, StandbyServer, StopMode, Stopped, Stored, Task, World};
use super::{detector, election, lease, sync};
use crate::{Lsn, Timeline};

/// An election is open and this member led before.
pub(super) fn as_last_leader(
    world: &World,
    cluster: &Stored<Cluster>,
    cause: &Cause,
    last: &Leader,
    db: &Database,
) -> Decision {
    if let Some(stopping) = lease::overrun(world, db) {
        return stopping;
    }
    let demoting = |why: Why, mode: StopMode| stop(world, db, Role::Demoting, why, mode);
    match &db.server {
        Server::Primary(primary) => match cause {
            Cause::Switchover { to } | Cause::Failover { to, .. } => {
                demoting(Why::SwitchingOver { to: to.clone() }, StopMode::Fast)
            }
            // Deposed by mistake. Who is still not heard would be deposed again and again.
            Cause::Silent | Cause::ProcessesGone if detector::hears_majority(world) => {
                succeed_itself(cluster, last, primary.timeline)
            }
            // This member itself said that it could not serve, or others do not hear it: they are given the
            // time to take over.
            Cause::Silent | Cause::ProcessesGone | Cause::ServerDied { .. } | Cause::CannotServe { .. } => {
                let at = world.store.phase_since + patience(world, cluster, cause, last);
                if world.now >= at {
                    succeed_itself(cluster, last, primary.timeline)
                } else {
                    Decision::rest(
                        Role::Fenced { epoch: cluster.value.epoch },
                        Why::Fencing { epoch: cluster.value.epoch },
                    )
                    .waking(at)
                }
            }
        },
        // In an ordered stop the main process may end before the last of its children.
        Server::Orphans { .. } if matches!(db.task, Some((Task::Stop(_), _))) => {
            demoting(Why::ClearingOrphans, StopMode::Fast)
        }
        Server::Orphans { how } => demoting(Why::ServerDied { how: how.clone() }, StopMode::Kill),
        Server::Stuck { why, .. } => demoting(Why::CannotServe { why: why.clone() }, StopMode::Kill),
        Server::Stopped(stopped) if stopped.primary && !db.half_built => {
            released(world, cluster, cause, last, stopped, db)
        }
        Server::Standby(_)
        | Server::Stopped(_)
        | Server::Starting { .. }
        | Server::Absent
        | Server::Refused { .. } => as_member(world, cluster, cause, last, db),
    }
}

/// The last leader's server is stopped and nothing of it is left: say so, and wait for a successor.
fn released(
    world: &World,
    cluster: &Stored<Cluster>,
    cause: &Cause,
    last: &Leader,
    stopped: &Stopped,
    db: &Database,
) -> Decision {
    let epoch = cluster.value.epoch;
    // The checkpoint record begins there; whoever has a byte more has all of it.
    let end = stopped
        .clean
        .then(|| Position { lsn: Lsn(stopped.checkpoint.lsn.0.saturating_add(1)), ..stopped.checkpoint });
    let release =
        world.me.member.release.filter(|release| release.epoch == epoch).unwrap_or(Release { epoch, end });
    let record = Member { release: Some(release), serving: None, ..world.me.member.clone() };
    let at = world.store.phase_since + patience(world, cluster, cause, last);
    let resting = Decision::rest(Role::Demoting, Why::Fencing { epoch });
    let decision = with_record(world, Some(record), resting);
    if !decision.steps.is_empty() || world.now < at {
        return decision.waking(at.max(world.now + Duration::from_millis(100)));
    }
    if let Some((why, until)) = busy(world, db, &[Task::Start]) {
        return Decision { why, wake_at: until, ..decision };
    }
    succeed_itself(cluster, last, last.timeline)
}

/// How long the last leader leaves the election to others.
fn patience(world: &World, cluster: &Stored<Cluster>, cause: &Cause, last: &Leader) -> Duration {
    let silent = matches!(cause, Cause::Silent | Cause::ProcessesGone);
    let others = world.peers.iter().any(|(name, peer)| {
        (silent || peer.heard_within(world.now, world.settings.failure_timeout))
            && world.store.member(name).is_some_and(|m| m.server_address.is_some() && m.tags.may_lead())
    });
    let nobody_else = cluster.value.sync == Promise::Alone
        && election::released_end(world, &cluster.value, last).is_none()
        && world.me.member.release.is_none_or(|release| release.end.is_none());
    if !others || nobody_else {
        return Duration::ZERO;
    }
    // A hand-over counts from the end of the stop, which takes its time.
    let stop = match cause {
        Cause::Switchover { .. } | Cause::Failover { .. } => world.settings.retry_timeout,
        Cause::Silent | Cause::ProcessesGone | Cause::ServerDied { .. } | Cause::CannotServe { .. } => {
            Duration::ZERO
        }
    };
    stop + if world.settings.primary_start_timeout.is_zero() {
        world.settings.failure_timeout * 10
    } else {
        world.settings.failure_timeout * 3
    }
}

/// Leadership stays with the last leader, in the new term and on its own timeline.
fn succeed_itself(cluster: &Stored<Cluster>, last: &Leader, timeline: Timeline) -> Decision {
    let epoch = cluster.value.epoch;
    let leader = Leader { epoch, timeline, name: last.name.clone() };
    let led = Cluster { phase: Phase::Led { leader }, ..cluster.value.clone() };
    let step = take(led, cluster.revision, None);
    Decision::step(Role::Promoting { epoch }, Why::Winning { epoch }, step)
}

fn take(cluster: Cluster, expect: u64, lease_unchanged: Option<u64>) -> Step {
    Step::ChangeCluster {
        cluster: Box::new(cluster),
        expect,
        take_lease: true,
        lease_unchanged,
        consume_request: None,
    }
}

/// An election is open and another member led before.
pub(super) fn as_member(
    world: &World,
    cluster: &Stored<Cluster>,
    cause: &Cause,
    last: &Leader,
    db: &Database,
) -> Decision {
    let epoch = cluster.value.epoch;
    let role = Role::Fenced { epoch };
    let deposed = match &db.server {
        Server::Primary(_) | Server::Stuck { primary: true, .. } => {
            Some((Why::Deposed { by: epoch }, StopMode::Fast))
        }
        // The last leader may succeed itself.
        Server::Starting { primary: true, .. } if last.name != *world.me.name() => {
            Some((Why::Deposed { by: epoch }, StopMode::Fast))
        }
        // It would end as a primary of an earlier term.
        Server::Standby(_) if matches!(db.task, Some((Task::Promote, _))) => {
            Some((Why::Deposed { by: epoch }, StopMode::Immediate))
        }
        Server::Orphans { .. } => Some((Why::ClearingOrphans, StopMode::Kill)),
        Server::Standby(_)
        | Server::Stuck { primary: false, .. }
        | Server::Stopped(_)
        | Server::Starting { .. }
        | Server::Absent
        | Server::Refused { .. } => None,
    };
    if let Some((why, mode)) = deposed {
        let mut decision = stop(world, db, Role::Demoting, why, mode);
        decision.steps.extend((world.me.fenced < epoch).then_some(Step::Fence { epoch }));
        return decision;
    }
    if let Some(at) = hand_over_until(world, cluster, cause, last) {
        let Cause::Switchover { to } = cause else { unreachable!("only a switchover is handed over") };
        return Decision::rest(role, Why::SwitchingOver { to: to.clone() }).waking(at);
    }
    if world.me.fenced < epoch {
        return Decision::step(role, Why::Fencing { epoch }, Step::Fence { epoch });
    }
    match &db.server {
        Server::Standby(standby) => candidate(world, cluster, cause, last, db, standby),
        Server::Stopped(stopped) if !stopped.primary && !db.half_built => {
            match busy(world, db, &[Task::Start]) {
                Some((why, at)) => Decision { wake_at: at, ..Decision::rest(role, why) },
                None => Decision::step(role, Why::Starting, Step::StartStandby { upstream: None }),
            }
        }
        Server::Primary(_)
        | Server::Orphans { .. }
        | Server::Stuck { .. }
        | Server::Stopped(_)
        | Server::Starting { .. }
        | Server::Absent
        | Server::Refused { .. } => {
            // Without a candidate nobody else would say what is missing.
            let why = election::obstacle(world, &cluster.value, last).unwrap_or(Why::Fencing { epoch });
            Decision::rest(role, why)
        }
    }
}

/// A planned hand-over lets the followers stream until the leader has stopped; until when at most.
fn hand_over_until(
    world: &World,
    cluster: &Stored<Cluster>,
    cause: &Cause,
    last: &Leader,
) -> Option<crate::Instant> {
    let Cause::Switchover { .. } = cause else { return None };
    let released = world
        .store
        .member(&last.name)
        .and_then(|m| m.release)
        .is_some_and(|r| r.epoch == cluster.value.epoch);
    let until = world.store.phase_since + world.settings.retry_timeout;
    let dead = detector::suspicion(world, last).is_some();
    (!released && !dead && world.now < until).then_some(until)
}

/// Fenced: report, then win or wait.
fn candidate(
    world: &World,
    cluster: &Stored<Cluster>,
    cause: &Cause,
    last: &Leader,
    db: &Database,
    standby: &StandbyServer,
) -> Decision {
    let epoch = cluster.value.epoch;
    let role = Role::Fenced { epoch };
    let look_again = world.now + Duration::from_millis(100);
    if standby.receiving || standby.upstream.is_some() {
        // A restart of the agent or the server can have left the receiver's setting behind the fence.
        return Decision::step(role, Why::Fencing { epoch }, Step::Fence { epoch }).waking(look_again);
    }
    let Some(position) = standby.position else {
        return Decision::rest(role, Why::PositionUnknown).waking(look_again);
    };
    let report = world.me.member.fence.filter(|fence| fence.epoch == epoch);
    let report = report.unwrap_or(FenceReport { epoch, position });
    let record = Member { fence: Some(report), serving: None, ..world.me.member.clone() };
    let decision = with_record(world, Some(record), Decision::rest(role.clone(), Why::Fencing { epoch }));
    if !decision.steps.is_empty() {
        return decision;
    }
    // Elected and never promoted, it has acknowledged nothing beyond the position that it won with.
    let has_all = position.timeline == last.timeline || position == cluster.value.base;
    let was_last = last.name == *world.me.name() && has_all;
    let alone_holds_all =
        was_last && world.now >= world.store.phase_since + patience(world, cluster, cause, last);
    if let Some(forced) = forced(world, cluster, last) {
        return forced;
    }
    if let Some((why, Some(at))) = busy(world, db, &[Task::Promote]) {
        // A promotion that fails each time must not spin through terms; meanwhile another may take its turn.
        return Decision::rest(role, why).waking(at);
    }
    let won = if alone_holds_all { Ok(position) } else { election::win(world, &cluster.value, cause, last) };
    match won {
        Ok(base) => win(world, cluster, cause, last, base),
        Err(why) => Decision::rest(role, why).waking(look_again),
    }
}

/// An operator asked for this member to lead although nobody leads: a new term with that as its cause.
fn forced(world: &World, cluster: &Stored<Cluster>, last: &Leader) -> Option<Decision> {
    let request = world.store.request.as_ref()?;
    let to = request.value.candidate.as_ref().filter(|to| *to == world.me.name())?;
    let cause = Cause::Failover { to: to.clone(), accept_loss: request.value.accept_loss };
    let mut step = open_election(world, cluster, last, cause);
    if let Step::ChangeCluster { consume_request, .. } = &mut step {
        *consume_request = Some(request.revision);
    }
    let epoch = cluster.value.epoch;
    Some(Decision::step(Role::Fenced { epoch }, Why::OpeningElection { epoch: epoch.next() }, step))
}

fn win(world: &World, cluster: &Stored<Cluster>, cause: &Cause, last: &Leader, base: Position) -> Decision {
    let epoch = cluster.value.epoch;
    let timeline = Timeline(u32::try_from(epoch.0).expect("a term beyond 2^32 elections cannot come about"));
    let leader = Leader { name: world.me.name().clone(), epoch, timeline };
    let sync = sync::promise_of_winner(world, &cluster.value);
    let led = Cluster { phase: Phase::Led { leader }, sync, base, ..cluster.value.clone() };
    // Where the lease decided, one that was renewed meanwhile keeps the old leader in office.
    let by_lease = cluster.value.sync == Promise::Asynchronous
        || matches!(cause, Cause::Failover { accept_loss: true, .. });
    let counted_out = by_lease && detector::lease_ran_out(world);
    let lease = world.store.lease.as_ref().filter(|_| counted_out && last.name != *world.me.name());
    let step = take(led, cluster.revision, lease.map(|lease| lease.revision));
    Decision::step(Role::Promoting { epoch }, Why::Winning { epoch }, step)
}

/// Stops the server, harder the longer it takes.
pub(super) fn stop(world: &World, db: &Database, role: Role, why: Why, mode: StopMode) -> Decision {
    let patience = world.settings.primary_stop_timeout.unwrap_or(world.settings.failure_timeout * 2);
    stop_within(world, db, role, why, mode, patience)
}

/// Stops the server; each mode is given `patience`, then the next harder one is tried.
pub(super) fn stop_within(
    world: &World,
    db: &Database,
    role: Role,
    why: Why,
    mode: StopMode,
    patience: Duration,
) -> Decision {
    let wanted = match (db.task, &db.failed) {
        (Some((Task::Stop(running), since)), _) => {
            let escalate = world.now.since(since) >= patience;
            let next = if escalate { harder(running) } else { running }.max(mode);
            if next == running {
                let again = if escalate { world.now + patience } else { since + patience };
                return Decision::rest(role, why).waking(again);
            }
            next
        }
        (_, Some(Failure { task: Task::Stop(StopMode::Kill), .. })) => {
            match busy(world, db, &[Task::Stop(StopMode::Kill)]) {
                // Nothing is harder; a process that survives this is in the kernel's hands.
                Some((_, Some(at))) => return Decision::rest(role, why).waking(at),
                _ => StopMode::Kill,
            }
        }
        (_, Some(Failure { task: Task::Stop(failed), .. })) => harder(*failed).max(mode),
        _ => mode,
    };
    Decision::step(role, why, Step::Stop { mode: wanted }).waking(world.now + patience)
}

fn harder(mode: StopMode) -> StopMode {
    match mode {
        StopMode::Fast => StopMode::Immediate,
        StopMode::Immediate | StopMode::Kill => StopMode::Kill,
    }
}
