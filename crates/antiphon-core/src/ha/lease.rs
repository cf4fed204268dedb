//! The lease that lets a leader serve: how much of it is left, and what must be stopped when it ends.
//!
//! Counted on this member's clock from before the renewal was sent, so it ends here before it ends for
//! anybody else. Nothing here asks whether the store can be reached: no lease, no writes.

use std::time::Duration;

use super::decide::Decision;
use super::detector;
use super::elect::stop;
use super::role::Role;
use super::why::Why;
use super::world::{Database, Local, Server, StopMode, Task, World};
use crate::Instant;

/// When the lease ends. An agent that has just started counts from its start: its predecessor may have
/// renewed up to then.
pub(super) fn end(world: &World) -> Instant {
    let ttl = world.store.lease_ttl().unwrap_or(world.settings.ttl);
    world.me.lease_until.unwrap_or(world.me.started + ttl)
}

/// When the lease is to be renewed: a quarter of it is used up, or it is to last longer or shorter.
pub(super) fn renew_at(world: &World) -> Instant {
    let Some(until) = world.me.lease_until else { return world.now };
    match world.store.lease_ttl() {
        Some(ttl) if ttl == world.settings.ttl => until - ttl * 3 / 4,
        Some(_) | None => world.now,
    }
}

/// How long before the lease ends writes are stopped, so that a fast stop can end in time.
fn margin(world: &World) -> Duration {
    (world.settings.ttl / 4).min(world.settings.failure_timeout)
}

/// Whether there is enough left of the lease itself to begin something under it.
pub(super) fn in_hand(world: &World) -> bool {
    world.now + margin(world) < end(world)
}

/// Whether there is enough left of the lease to go on; writes end before it does.
pub(super) fn held(world: &World) -> bool {
    in_hand(world)
        || world.settings.pause
        || (world.settings.failsafe_mode && detector::everyone_answers(world))
}

/// The stop of a server that writes, or comes to, without a lease; none if all is well.
pub(super) fn overrun(world: &World, db: &Database) -> Option<Decision> {
    let mode = match &db.server {
        _ if held(world) => return None,
        Server::Primary(_) if world.now < end(world) => StopMode::Fast,
        Server::Primary(_)
        | Server::Orphans { .. }
        | Server::Starting { primary: true, .. }
        | Server::Stuck { primary: true, .. } => StopMode::Kill,
        Server::Standby(_) if matches!(db.task, Some((Task::Promote, _))) => StopMode::Kill,
        Server::Standby(_)
        | Server::Stuck { primary: false, .. }
        | Server::Starting { primary: false, .. }
        | Server::Stopped(_)
        | Server::Absent
        | Server::Refused { .. } => return None,
    };
    Some(stop(world, db, Role::Demoting, Why::LeaseLost, mode))
}

/// What is left to do when the store's record cannot be relied on: nothing, until the lease ends.
pub(super) fn hold_still(world: &World, why: Why) -> Decision {
    let resting = Decision::rest(Role::Waiting, why).waking(world.now + world.settings.failure_timeout);
    match &world.local {
        Local::Database(db) => overrun(world, db).unwrap_or(resting),
        Local::Witness => resting,
    }
}
