//! Whether this member takes the leader for dead.
//!
//! Looks only at what was heard directly and at the lease; a suspicion deposes nobody until a majority of the
//! voters shares it. A live server under a silent agent is not dead: its agent may be back before the lease
//! ends, and killing the manager must not cost an outage.

use super::cluster::{Cause, Leader};
use super::world::{Knock, Link, Peer, World};
use crate::Instant;

/// What speaks against the leader, if anything.
pub fn suspicion(world: &World, leader: &Leader) -> Option<Cause> {
    if world.settings.pause || leader.name == *world.me.name() {
        return None;
    }
    let lease_ran_out = lease_ran_out(world);
    let Some(peer) = world.peers.get(&leader.name) else {
        return lease_ran_out.then_some(Cause::Silent);
    };
    if peer.heard_within(world.now, world.settings.failure_timeout) && peer.link == Link::Up {
        let vouched = world.settings.failsafe_mode && says_it_leads(peer, leader);
        return (lease_ran_out && !vouched).then_some(Cause::Silent);
    }
    if peer.link == Link::Refused && peer.knock == Knock::Refused {
        return Some(Cause::ProcessesGone);
    }
    let silent = world.now >= silent_from(world, peer);
    match peer.knock {
        Knock::Silent | Knock::Refused => silent.then_some(Cause::Silent),
        Knock::Answers | Knock::Unknown => (silent && lease_ran_out).then_some(Cause::Silent),
    }
}

/// When the silence of this peer begins to count as death.
pub fn silent_from(world: &World, peer: &Peer) -> Instant {
    let heard = peer.heard.unwrap_or_default().max(world.store.phase_since).max(world.me.started);
    heard + world.settings.failure_timeout
}

/// Whether the leader's lease has run out on every clock.
pub fn lease_ran_out(world: &World) -> bool {
    world.now >= lease_out_from(world)
}

/// When the lease has run out on every clock: nobody saw it renewed for `ttl`, and some more for clocks that
/// run at different rates.
fn lease_out_from(world: &World) -> Instant {
    let ttl = world.store.lease_ttl().unwrap_or(world.settings.ttl);
    world.store.lease_since.max(world.me.started) + ttl + ttl / 20
}

/// When a leader that is not suspected now may become so although nothing is heard of it; none if never.
pub fn look_again(world: &World, leader: &Leader) -> Option<Instant> {
    if world.settings.pause {
        return None;
    }
    let silent = world.peers.get(&leader.name).map(|peer| silent_from(world, peer));
    [silent, Some(lease_out_from(world))].into_iter().flatten().filter(|at| *at > world.now).min()
}

fn says_it_leads(peer: &Peer, leader: &Leader) -> bool {
    peer.beat.as_ref().is_some_and(|beat| beat.leads == Some(leader.epoch))
}

/// How many voters, this one included, take the leader of the present term for dead.
pub fn suspecters(world: &World, leader: &Leader) -> usize {
    let others = world.peers.values().filter(|peer| {
        peer.heard_within(world.now, world.settings.failure_timeout)
            && peer.beat.as_ref().is_some_and(|beat| beat.suspects == Some(leader.epoch))
    });
    1 + others.count()
}

/// Whether a majority of the voters, this one included, is heard here. Links carry both ways or neither, so
/// it is also who hears this member.
pub fn hears_majority(world: &World) -> bool {
    let heard =
        world.peers.values().filter(|peer| peer.heard_within(world.now, world.settings.failure_timeout));
    (1 + heard.count()) * 2 > world.store.voters
}

/// `failsafe_mode` asks for it: every other member answers this one directly.
pub fn everyone_answers(world: &World) -> bool {
    let mut others = world.store.members.keys().filter(|name| *name != world.me.name());
    others.all(|name| {
        world.peers.get(name).is_some_and(|peer| peer.heard_within(world.now, world.settings.failure_timeout))
    })
}
