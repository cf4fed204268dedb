//! Whom a follower streams from: the leader, or the member that its `replicatefrom` tag names.
//!
//! A follower of a lost upstream, or of one that lacks the WAL it needs, goes to the leader; two members that name
//! each other do too.

use super::cluster::Leader;
use super::world::{Database, Local, Server, ServerBrief, Upstream, World};
use crate::{Lsn, NodeName};

/// The upstream and the `host:port` of its server.
pub(super) fn upstream(world: &World, leader: &Leader, leader_address: &str) -> (Upstream, String) {
    let wanted = world.me.tags().replicatefrom.as_ref().filter(|name| *name != &leader.name);
    let usable = wanted.filter(|name| {
        streams(world, leader, name) && !depends_on_me(world, name) && missing(world, name).is_none()
    });
    let address = usable.and_then(|name| world.store.member(name)?.server_address.clone());
    match (usable, address) {
        (Some(name), Some(address)) => (Upstream { name: name.clone(), epoch: leader.epoch }, address),
        _ => (Upstream { name: leader.name.clone(), epoch: leader.epoch }, leader_address.to_owned()),
    }
}

/// Heard of lately, and itself streaming what this leader writes: one that has not heard of the leader yet
/// still streams from an earlier one.
fn streams(world: &World, leader: &Leader, name: &NodeName) -> bool {
    let of_this_leader = |brief: &ServerBrief| {
        brief.state == "streaming" && brief.position.is_some_and(|end| end.timeline == leader.timeline)
    };
    world.peers.get(name).is_some_and(|peer| {
        peer.heard_within(world.now, world.settings.failure_timeout)
            && peer.beat.as_ref().is_some_and(|beat| of_this_leader(&beat.server))
    })
}

/// Where the WAL of a member begins, if that is beyond where the WAL here ends.
///
/// Nothing else tells the two apart: `pg_stat_wal_receiver` is empty, and what PostgreSQL says of it is in its log,
/// in the server's language. Positions in heartbeats need no further connection and no further rights.
pub(super) fn missing(world: &World, name: &NodeName) -> Option<Lsn> {
    let Local::Database(Database { server: Server::Standby(standby), .. }) = &world.local else {
        return None;
    };
    let end = standby.position?.lsn;
    let oldest = world.peers.get(name)?.beat.as_ref()?.server.oldest_wal?;
    (end < oldest).then_some(oldest)
}

/// Following the chain of upstreams from `name` leads back here.
fn depends_on_me(world: &World, name: &NodeName) -> bool {
    let mut at = name.clone();
    for _ in 0..=world.peers.len() {
        let next = world.peers.get(&at).and_then(|p| p.beat.as_ref()).and_then(|b| b.server.upstream.clone());
        match next {
            Some(next) if next == *world.me.name() => return true,
            Some(next) => at = next,
            None => return false,
        }
    }
    true
}

/// The `host:port` of a follower that is tagged as a preferred source of base backups, if one streams.
pub(super) fn clone_source(world: &World, leader: &Leader) -> Option<String> {
    let members = world.store.members.values().map(|stored| &stored.value);
    let mut sources =
        members.filter(|m| m.tags.clonefrom && m.name != *world.me.name() && streams(world, leader, &m.name));
    sources.find_map(|m| m.server_address.clone())
}
