//! Replication slots: a physical one for every other member on every member, kept moving, so that whoever
//! becomes leader still has the WAL that each follower needs; and the permanent slots of the settings.
//!
//! Permanent physical slots are on every data member and follow the leader's. Permanent logical slots are
//! made on the leader; their copies on followers are PostgreSQL's own work (17 and newer). A slot is dropped
//! only if Antiphon made it: a member's record names such slots before they are created, and a copy inherits
//! the name from the record of the member that made the original. Slots of `ignore_slots` are never touched.

use std::collections::{BTreeMap, BTreeSet};

use super::decide::Decision;
use super::step::{NewLogicalSlot, Step};
use super::world::{Database, Local, LogicalSlot, Peer, Server, World};
use crate::settings::{PermanentSlot, SlotKind};
use crate::{Lsn, NodeName};

/// A slot is moved when it would free at least this much; each move costs a write.
const MOVE_BYTES: u64 = 1024 * 1024;

/// What is to be done.
#[derive(Default)]
struct Upkeep {
    keep: Vec<(String, Option<Lsn>)>,
    drop: Vec<String>,
    logical: Vec<NewLogicalSlot>,
}

/// Adds the upkeep of the slots here where it is due.
pub(super) fn with_slots(world: &World, db: &Database, mut decision: Decision) -> Decision {
    if !world.settings.postgresql.use_slots {
        return decision;
    }
    let mut upkeep = Upkeep::default();
    members(world, db, &mut upkeep);
    permanent(world, db, &mut upkeep);
    no_longer_wanted(world, db, &mut upkeep);
    let Upkeep { keep, drop, logical } = upkeep;
    if !keep.is_empty() || !drop.is_empty() || !logical.is_empty() {
        decision.steps.push(Step::Slots { keep, drop, logical });
    }
    decision
}

/// The members' own slots.
fn members(world: &World, db: &Database, upkeep: &mut Upkeep) {
    for (name, stored) in &world.store.members {
        if name == world.me.name() || stored.value.server_address.is_none() {
            continue;
        }
        let slot = name.slot_name();
        let held = db.slots.get(&slot).copied();
        let spared = world.settings.slots.contains_key(&slot) || ignored_physical(world, &slot);
        if vanished(world, name) && !attached(db, name) && !spared {
            upkeep.drop.extend(held.is_some().then_some(slot));
            continue;
        }
        let to = if streams_from_here(world, db, name) { None } else { safe_to_release(world, db, name) };
        let moves = match (held, to) {
            (None, _) => true,
            (Some(held), Some(to)) => held.is_none_or(|held| worth_moving(held, to)),
            // One that was given up would keep a server from starting that must stream first.
            (Some(held), None) => held.is_none() && comes_up(world, db, name),
        };
        if moves {
            upkeep.keep.push((slot, to));
        }
    }
}

/// The slots of the settings: what is missing or behind.
fn permanent(world: &World, db: &Database, upkeep: &mut Upkeep) {
    let leads = matches!(db.server, Server::Primary(_));
    for (name, wanted) in wanted(world) {
        // Named in the stored record first: what is made and not named could never be dropped again.
        let may_make = published(world).is_some_and(|slots| slots.contains(name));
        match (wanted, db.slots.get(name), db.logical_slots.get(name)) {
            (PermanentSlot::Physical, None, None) if may_make => upkeep.keep.push((name.clone(), None)),
            (PermanentSlot::Physical, Some(Some(held)), _) => {
                let to = consumed(world, db, name).filter(|to| worth_moving(*held, *to));
                upkeep.keep.extend(to.map(|to| (name.clone(), Some(to))));
            }
            (PermanentSlot::Logical { database, plugin }, None, None) if leads && may_make => {
                let (name, database, plugin) = (name.clone(), database.clone(), plugin.clone());
                let lost = made_elsewhere(world, &name);
                upkeep.logical.push(NewLogicalSlot { name, database, plugin, lost });
            }
            (PermanentSlot::Logical { database, plugin }, None, Some(here)) => {
                let differs = here.database != *database || here.plugin != *plugin;
                // What a former leader still has is no copy, and keeps PostgreSQL from making one.
                let stale = if leads { differs } else { !here.synced };
                if may_make && stale && !here.active {
                    upkeep.drop.push(name.clone());
                }
            }
            (PermanentSlot::Physical | PermanentSlot::Logical { .. }, _, _) => {}
        }
    }
}

/// Slots that Antiphon made and the settings do not name any more.
fn no_longer_wanted(world: &World, db: &Database, upkeep: &mut Upkeep) {
    let leads = matches!(db.server, Server::Primary(_));
    for name in published(world).into_iter().flatten() {
        if world.settings.slots.contains_key(name) || is_a_members(world, name) {
            continue;
        }
        let physical = db.slots.contains_key(name) && !ignored_physical(world, name);
        // A copy goes when the original does.
        let droppable = |slot: &LogicalSlot| (leads || !slot.synced) && !slot.active;
        let logical = db.logical_slots.get(name).is_some_and(|slot| {
            droppable(slot) && !ignored_logical(world, name, &slot.database, &slot.plugin)
        });
        if physical || logical {
            upkeep.drop.push(name.clone());
        }
    }
}

/// The slots on the server here that Antiphon made or is about to make: what this member's record is to name.
pub(super) fn answered_for(world: &World) -> BTreeSet<String> {
    let mut slots = world.me.member.slots.clone();
    let Local::Database(db) = &world.local else { return slots };
    let leads = match &db.server {
        Server::Primary(_) => true,
        Server::Standby(_) => false,
        // What is on it is not known.
        _ => return slots,
    };
    let is_here = |name: &String| db.slots.contains_key(name) || db.logical_slots.contains_key(name);
    slots.retain(|name| world.settings.slots.contains_key(name) || is_here(name));
    if !world.settings.postgresql.use_slots {
        return slots;
    }
    for (name, wanted) in wanted(world) {
        let made_here = !is_here(name) && (leads || *wanted == PermanentSlot::Physical);
        let copied =
            db.logical_slots.get(name).is_some_and(|slot| slot.synced) && made_elsewhere(world, name);
        if made_here || copied {
            slots.insert(name.clone());
        }
    }
    slots
}

/// Where the permanent physical slots stand here, for the heartbeats of a leader.
pub fn permanent_positions(world: &World) -> BTreeMap<String, Lsn> {
    let Local::Database(db) = &world.local else { return BTreeMap::new() };
    if !matches!(db.server, Server::Primary(_)) {
        return BTreeMap::new();
    }
    let physical = wanted(world).filter(|(_, slot)| **slot == PermanentSlot::Physical);
    physical.filter_map(|(name, _)| Some((name.clone(), (*db.slots.get(name)?)?))).collect()
}

/// The slots of the settings that are Antiphon's to keep.
fn wanted(world: &World) -> impl Iterator<Item = (&String, &PermanentSlot)> {
    world.settings.slots.iter().filter(|(name, slot)| {
        let ignored = match slot {
            PermanentSlot::Physical => ignored_physical(world, name),
            PermanentSlot::Logical { database, plugin } => ignored_logical(world, name, database, plugin),
        };
        !ignored && !is_a_members(world, name)
    })
}

fn is_a_members(world: &World, slot: &str) -> bool {
    world.store.members.keys().chain([world.me.name()]).any(|name| name.slot_name() == slot)
}

/// What the stored record of this member names.
fn published(world: &World) -> Option<&BTreeSet<String>> {
    world.store.member(world.me.name()).map(|member| &member.slots)
}

/// Another member's record names it.
fn made_elsewhere(world: &World, slot: &str) -> bool {
    let others = world.store.members.iter().filter(|(name, _)| *name != world.me.name());
    others.into_iter().any(|(_, stored)| stored.value.slots.contains(slot))
}

fn ignored_physical(world: &World, name: &str) -> bool {
    world.settings.ignore_slots.iter().any(|slot| slot.matches(name, SlotKind::Physical, None, None))
}

fn ignored_logical(world: &World, name: &str, database: &str, plugin: &str) -> bool {
    let matches = |slot: &crate::settings::SlotMatcher| {
        slot.matches(name, SlotKind::Logical, Some(database), Some(plugin))
    };
    world.settings.ignore_slots.iter().any(matches)
}

fn worth_moving(held: Lsn, to: Lsn) -> bool {
    held.bytes_to(to).is_some_and(|bytes| bytes >= MOVE_BYTES)
}

/// WAL that the consumer of a permanent slot has taken from the leader, as far as it is here.
fn consumed(world: &World, db: &Database, slot: &str) -> Option<Lsn> {
    let Server::Standby(standby) = &db.server else { return None };
    let leader = world.store.cluster.as_ref()?.value.leader()?;
    let beat = world.peers.get(&leader.name)?.beat.as_ref()?;
    beat.slots.get(slot).map(|at| (*at).min(standby.replayed))
}

/// Not heard for `member_slots_ttl`.
fn vanished(world: &World, name: &NodeName) -> bool {
    let heard = world.peers.get(name).and_then(|peer| peer.heard).unwrap_or_default().max(world.me.started);
    world.now.since(heard) >= world.settings.member_slots_ttl
}

/// Streams from the primary here, whether or not its agent is heard: its slot is in use.
fn attached(db: &Database, name: &NodeName) -> bool {
    matches!(&db.server, Server::Primary(primary) if primary.standbys.iter().any(|standby| standby.name == *name))
}

/// Its agent is heard and its server neither streams from here nor says how far it is.
fn comes_up(world: &World, db: &Database, name: &NodeName) -> bool {
    let heard = |peer: &Peer| peer.heard_within(world.now, world.settings.failure_timeout);
    world.peers.get(name).is_some_and(heard) && !streams_from_here(world, db, name)
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
