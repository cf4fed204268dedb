//! Physical replication slots: one for every other member on every member, kept moving, so that whoever
//! becomes leader still has the WAL that each follower needs.

use super::decide::Decision;
use super::step::Step;
use super::world::{Database, Server, World};
use crate::{Lsn, NodeName};

/// Adds the upkeep of the slots here where it is due.
pub(super) fn with_slots(world: &World, db: &Database, mut decision: Decision) -> Decision {
    if !world.settings.postgresql.use_slots {
        return decision;
    }
    let mut keep = Vec::new();
    let mut drop = Vec::new();
    for (name, stored) in &world.store.members {
        if name == world.me.name() || stored.value.server_address.is_none() {
            continue;
        }
        let slot = name.slot_name();
        let held = db.slots.get(&slot).copied();
        if vanished(world, name) && !attached(db, name) {
            drop.extend(held.is_some().then_some(slot));
            continue;
        }
        let to = if streams_from_here(world, db, name) { None } else { safe_to_release(world, db, name) };
        let moves = match (held, to) {
            (None, _) => true,
            (Some(held), Some(to)) => {
                held.is_none_or(|held| held.bytes_to(to).is_some_and(|b| b >= MOVE_BYTES))
            }
            (Some(_), None) => false,
        };
        if moves {
            keep.push((slot, to));
        }
    }
    if !keep.is_empty() || !drop.is_empty() {
        decision.steps.push(Step::Slots { keep, drop });
    }
    decision
}

/// A slot is moved when it would free at least this much; each move costs a write.
const MOVE_BYTES: u64 = 1024 * 1024;

/// Not heard for `member_slots_ttl`.
fn vanished(world: &World, name: &NodeName) -> bool {
    let heard = world.peers.get(name).and_then(|peer| peer.heard).unwrap_or_default().max(world.me.started);
    world.now.since(heard) >= world.settings.member_slots_ttl
}

/// Streams from the primary here, whether or not its agent is heard: its slot is in use.
fn attached(db: &Database, name: &NodeName) -> bool {
    matches!(&db.server, Server::Primary(primary) if primary.standbys.iter().any(|standby| standby.name == *name))
}

/// PostgreSQL itself moves the slot of a member that streams from this server.
fn streams_from_here(world: &World, db: &Database, name: &NodeName) -> bool {
    match &db.server {
        Server::Primary(_) => attached(db, name),
        _ => world
            .peers
            .get(name)
            .and_then(|p| p.beat.as_ref())
            .is_some_and(|beat| beat.server.upstream.as_ref() == Some(world.me.name())),
    }
}

/// WAL that neither that member nor this one needs any more.
fn safe_to_release(world: &World, db: &Database, name: &NodeName) -> Option<Lsn> {
    let beat = world.peers.get(name)?.beat.as_ref()?;
    let theirs = beat.server.replayed.or(beat.server.position.map(|position| position.lsn))?;
    let mine = match &db.server {
        Server::Standby(standby) => standby.replayed,
        Server::Primary(primary) => primary.flushed,
        _ => return None,
    };
    Some(theirs.min(mine))
}
