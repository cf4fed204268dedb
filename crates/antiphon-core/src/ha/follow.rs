//! What a member does under another member's leadership: follow it, and bring its data there first if needed.
//!
//! A follower attaches only after its own history was compared with the leader's; never to a leader of a
//! term below the one it is fenced for.

use std::time::Duration;

use super::cascade;
use super::cluster::{Leader, Serving};
use super::decide::{Decision, busy, with_record};
use super::elect::stop;
use super::rejoin::{self, Fork};
use super::role::Role;
use super::slots;
use super::step::Step;
use super::why::Why;
use super::world::{Database, Server, StandbyServer, StopMode, Stopped, Task, Upstream, World};
use crate::{Instant, NodeName};

/// Another member leads.
pub(super) fn follow(world: &World, leader: &Leader, db: &Database) -> Decision {
    let epoch = leader.epoch;
    let rejoining = Role::Rejoining;
    let decision = match &db.server {
        Server::Primary(_) | Server::Starting { primary: true, .. } | Server::Stuck { primary: true, .. } => {
            return stop(world, db, Role::Demoting, Why::Deposed { by: epoch }, StopMode::Fast);
        }
        Server::Orphans { .. } => {
            return stop(world, db, Role::Demoting, Why::ClearingOrphans, StopMode::Kill);
        }
        Server::Stuck { why, .. } => {
            return stop(world, db, rejoining, Why::CannotServe { why: why.clone() }, StopMode::Immediate);
        }
        Server::Starting { .. } if world.me.reinitialise_requested.is_some() => act(world, leader, db),
        Server::Starting { since, .. } => await_start(world, leader, *since),
        Server::Refused { .. } => Decision::rest(Role::Waiting, Why::WaitingForBootstrap),
        Server::Standby(_) | Server::Stopped(_) | Server::Absent => act(world, leader, db),
    };
    with_record(world, None, decision)
}

/// The server can be worked on, or needs to be.
fn act(world: &World, leader: &Leader, db: &Database) -> Decision {
    let wish = world.me.reinitialise_requested;
    let on_directory = matches!(db.task, Some((Task::Clone | Task::Rewind | Task::Start, _)));
    if wish.is_some_and(|wish| wish.force) && on_directory {
        let step = Step::Stop { mode: StopMode::Fast };
        return Decision::step(Role::Rejoining, Why::Cloning, step);
    }
    if let Some((why, at)) = busy(world, db, &[Task::Clone, Task::Rewind, Task::Start]) {
        let role = match (&db.server, db.task) {
            (Server::Standby(standby), None | Some((Task::Checkpoint, _))) => role_of(standby, leader),
            _ => Role::Rejoining,
        };
        let decision = Decision::rest(role, why);
        return at.map_or(decision.clone(), |at| decision.waking(at));
    }
    let Some((serving, address)) = in_office(world, leader) else { return wait_for(world, leader, db) };
    if db.half_built || db.server == Server::Absent || wish.is_some() {
        let source = cascade::clone_source(world, leader).filter(|_| wish.is_none_or(|w| !w.from_leader));
        let address = source.unwrap_or_else(|| address.to_owned());
        let keep_old = db.half_built;
        return Decision::step(Role::Rejoining, Why::Cloning, Step::Clone { address, keep_old });
    }
    if let Server::Stopped(Stopped { crash: Some(_), .. }) = &db.server
        && world.settings.pause
        && !world.me.restart_requested
    {
        return Decision::rest(Role::Waiting, Why::Paused);
    }
    if of_later_term(leader, db) {
        return Decision::rest(Role::Rejoining, Why::NoStore).waking(world.now + Duration::from_secs(1));
    }
    match &db.server {
        Server::Stopped(stopped) => from_rest(world, leader, serving, address, db, stopped),
        Server::Standby(standby) => attach(world, leader, serving, address, db, standby),
        _ => unreachable!(
            "follow() passes on only what is stopped, absent or in recovery, or to be built anew"
        ),
    }
}

/// The history here is of a later term than that of the leader known here: the store has moved on and this
/// member has not heard of it, so nothing here may be judged by that leader's history.
fn of_later_term(leader: &Leader, db: &Database) -> bool {
    let timeline = match &db.server {
        Server::Standby(standby) => standby.position.map(|position| position.timeline),
        Server::Stopped(stopped) => Some(stopped.checkpoint.timeline),
        _ => None,
    };
    timeline.is_some_and(|timeline| u64::from(timeline.0) > leader.epoch.0)
}

/// The leader does not serve yet: be ready for it.
fn wait_for(world: &World, leader: &Leader, db: &Database) -> Decision {
    let why = Why::WaitingForLeader { leader: leader.name.clone() };
    match &db.server {
        Server::Standby(standby) if follows(standby, leader) => {
            Decision::rest(Role::Rejoining, why).waking(world.now + Duration::from_secs(1))
        }
        Server::Standby(standby) if is_part_of_base(world, standby) => {
            match before_promotion(world, leader) {
                Some(step) => Decision::step(Role::Rejoining, why, step),
                None => Decision::rest(Role::Rejoining, why).waking(world.now + Duration::from_secs(1)),
            }
        }
        Server::Stopped(stopped) if !stopped.primary && !db.half_built => {
            Decision::step(Role::Rejoining, Why::Starting, Step::StartStandby { upstream: None })
        }
        Server::Standby(standby) if standby.upstream.is_some() && world.me.fenced >= leader.epoch => {
            Decision::step(Role::Rejoining, why, Step::Unfollow)
        }
        _ => Decision::rest(Role::Rejoining, why).waking(world.now + Duration::from_secs(1)),
    }
}

/// Attaches to a leader that is still in recovery. Its receiver was off when it won, so it sends nothing before its
/// promotion but what it won with; connected by then, this member acknowledges the first commit of the term.
fn before_promotion(world: &World, leader: &Leader) -> Option<Step> {
    let address = world.store.member(&leader.name)?.server_address.as_deref()?;
    let (upstream, address) = cascade::upstream(world, leader, address);
    let allowed = upstream.name == leader.name && upstream.epoch >= world.me.fenced;
    allowed.then_some(Step::Follow { upstream, address })
}

fn follows(standby: &StandbyServer, leader: &Leader) -> bool {
    let of_leader = |from: &Upstream| from.name == leader.name && from.epoch == leader.epoch;
    standby.upstream.as_ref().is_some_and(of_leader)
}

/// All that is here is part of what the last election's winner had: it ends on the same timeline, and no later.
fn is_part_of_base(world: &World, standby: &StandbyServer) -> bool {
    let Some(base) = world.store.cluster.as_ref().map(|cluster| cluster.value.base) else { return false };
    let off = standby.upstream.is_none() && !standby.receiving;
    let ends = standby.position.filter(|_| off);
    ends.is_some_and(|end| end.timeline == base.timeline && end.lsn <= base.lsn)
}

/// The server does not run: start it in recovery, rewound if its history needs it.
fn from_rest(
    world: &World,
    leader: &Leader,
    serving: &Serving,
    address: &str,
    db: &Database,
    stopped: &Stopped,
) -> Decision {
    let diverged = stopped.primary
        && (!stopped.clean || rejoin::fork_of_checkpoint(serving, stopped.checkpoint) == Fork::Diverged);
    if diverged {
        return rewind(world, address, db);
    }
    // A restored directory shares the leader's history by construction, and answers nobody before it has
    // streamed; any other is compared with the leader's before it attaches.
    let upstream = stopped.restored.then(|| cascade::upstream(world, leader, address));
    Decision::step(Role::Rejoining, Why::Starting, Step::StartStandby { upstream })
}

/// The server starts. One that was restored and then interrupted cannot answer before it streams.
fn await_start(world: &World, leader: &Leader, since: Instant) -> Decision {
    let decision = Decision::rest(Role::Rejoining, Why::Starting);
    let Some((_, address)) = in_office(world, leader) else { return decision };
    let at = since + world.settings.failure_timeout * 5;
    if world.now < at {
        return decision.waking(at);
    }
    let (upstream, address) = cascade::upstream(world, leader, address);
    let step = Step::Follow { upstream, address };
    Decision::step(Role::Rejoining, Why::Starting, step).waking(world.now + world.settings.failure_timeout)
}

/// What the leader serves in this term and its server's address, once it says so.
fn in_office<'a>(world: &'a World, leader: &Leader) -> Option<(&'a Serving, &'a str)> {
    let leading = world.store.member(&leader.name)?;
    let serving = leading.serving.as_ref().filter(|serving| serving.epoch == leader.epoch)?;
    Some((serving, leading.server_address.as_deref()?))
}

fn rewind(world: &World, address: &str, db: &Database) -> Decision {
    let failures = db.failed.as_ref().filter(|failed| failed.task == Task::Rewind).map_or(0, |f| f.times);
    let can_rewind = world.settings.postgresql.use_pg_rewind && failures < REWINDS_MAX;
    if can_rewind {
        return Decision::step(Role::Rejoining, Why::Diverged, Step::Rewind { address: address.to_owned() });
    }
    if world.me.may_reinitialise {
        let step = Step::Clone { address: address.to_owned(), keep_old: true };
        return Decision::step(Role::Rejoining, Why::Cloning, step);
    }
    Decision::rest(Role::Rejoining, Why::NeedsReinit)
}

/// Attempts of pg_rewind before the directory is given up.
const REWINDS_MAX: u32 = 3;

/// In recovery: attach to the right member, once the histories were compared.
fn attach(
    world: &World,
    leader: &Leader,
    serving: &Serving,
    leader_address: &str,
    db: &Database,
    standby: &StandbyServer,
) -> Decision {
    let role = role_of(standby, leader);
    if world.me.restart_requested {
        return Decision::step(role, Why::Restarting, Step::Stop { mode: StopMode::Fast });
    }
    let (upstream, address) = cascade::upstream(world, leader, leader_address);
    assert!(
        upstream.epoch >= world.me.fenced,
        "a follower streams from no leader of a term it is fenced against"
    );
    if standby.upstream.as_ref() == Some(&upstream) {
        // One that was started with its upstream was not compared before; a fork shows as never streaming.
        let forked = |position| rejoin::fork(serving, position) == Fork::Diverged;
        if !standby.streaming && standby.position.is_some_and(forked) {
            return rewind(world, leader_address, db);
        }
        if let Some(decision) = starved(world, leader, leader_address, standby, &upstream.name) {
            return decision;
        }
        let decision = Decision::rest(role, Why::Following { upstream: upstream.name });
        return slots::with_slots(world, db, decision);
    }
    // What an earlier term's leader still sends could leave the history right after it was compared.
    let of_earlier_term = standby.upstream.as_ref().is_some_and(|from| from.epoch != leader.epoch);
    let switched_off = standby.upstream.is_none() && !standby.receiving;
    let settled = switched_off || (standby.upstream.is_some() && !of_earlier_term);
    let Some(position) = standby.position.filter(|_| settled) else {
        let decision =
            Decision::rest(role, Why::PositionUnknown).waking(world.now + Duration::from_millis(100));
        // Only a receiver that is off lets the end of the local WAL be known for certain.
        return if standby.upstream.is_some() {
            Decision { steps: vec![Step::Unfollow], ..decision }
        } else {
            decision
        };
    };
    if rejoin::fork(serving, position) == Fork::Diverged {
        return rewind(world, leader_address, db);
    }
    Decision::step(
        role,
        Why::Following { upstream: upstream.name.clone() },
        Step::Follow { upstream, address },
    )
}

/// The WAL that would follow what is here is gone for good from where this member streams.
///
/// All that is here is part of the leader's history, which was compared before: a copy of the leader's data lacks
/// nothing, so the old directory need not be kept.
fn starved(
    world: &World,
    leader: &Leader,
    leader_address: &str,
    standby: &StandbyServer,
    upstream: &NodeName,
) -> Option<Decision> {
    let oldest = cascade::missing(world, upstream)?;
    let end = standby.position?.lsn;
    let patience = world.settings.failure_timeout * 5;
    if world.now.since(standby.starved_since?) < patience {
        return None;
    }
    if world.me.may_reinitialise && !world.settings.pause {
        let address = cascade::clone_source(world, leader).unwrap_or_else(|| leader_address.to_owned());
        let step = Step::Clone { address, keep_old: false };
        return Some(Decision::step(Role::Rejoining, Why::Cloning, step));
    }
    let why = Why::WalGone { end, upstream: upstream.clone(), oldest };
    Some(Decision::rest(Role::Rejoining, why).waking(world.now + patience))
}

fn role_of(standby: &StandbyServer, leader: &Leader) -> Role {
    match &standby.upstream {
        Some(upstream) if upstream.epoch == leader.epoch => {
            Role::Follower { upstream: upstream.name.clone() }
        }
        _ => Role::Rejoining,
    }
}
