//! Every way that a leader can look to one follower, and whether it is suspected then.

use std::time::Duration;

use antiphon_core::ha::cluster::{Cause, Leader, Phase};
use antiphon_core::ha::detector::{lease_ran_out, look_again, suspecters, suspicion};
use antiphon_core::ha::world::{Knock, Link, Server, World};

use crate::exhaust::Gen;
use crate::world::{NOW, TERM, cluster, leader, name, world};

const LINKS: [Link; 3] = [Link::Up, Link::Refused, Link::Down];
const KNOCKS: [Knock; 4] = [Knock::Unknown, Knock::Answers, Knock::Refused, Knock::Silent];

fn follower() -> (World, Leader) {
    let leader = leader("a");
    (world(cluster(TERM, Phase::Led { leader: leader.clone() }), Server::Absent), leader)
}

/// How the leader looks: when it was heard, its link, its port, its lease.
fn visit(mut check: impl FnMut(&World, &Leader)) {
    let (mut world, leader) = follower();
    let mut gen_ = Gen::default();
    while !gen_.done() {
        let peer = world.peers.get_mut(&name("a")).expect("a peer");
        peer.heard =
            *gen_.of(&[None, Some(NOW - Duration::from_secs(2)), Some(NOW - Duration::from_millis(100))]);
        peer.link = *gen_.of(&LINKS);
        peer.knock = *gen_.of(&KNOCKS);
        world.store.lease_since = NOW - *gen_.of(&[Duration::from_secs(1), Duration::from_secs(60)]);
        world.store.phase_since = NOW - *gen_.of(&[Duration::from_millis(300), Duration::from_secs(60)]);
        world.settings.pause = gen_.flag();
        check(&world, &leader);
    }
}

fn heard_now(world: &World) -> bool {
    let peer = &world.peers[&name("a")];
    peer.link == Link::Up && peer.heard_within(world.now, world.settings.failure_timeout)
}

#[test]
fn a_leader_that_is_heard_and_renews_its_lease_is_never_suspected() {
    visit(|world, leader| {
        let well = heard_now(world) && !lease_ran_out(world);
        assert!(!well || suspicion(world, leader).is_none(), "{:?}", world.peers[&name("a")]);
    });
}

#[test]
fn a_server_that_may_live_under_a_silent_agent_keeps_its_leader_until_the_lease_has_run_out() {
    visit(|world, leader| {
        let may_live = matches!(world.peers[&name("a")].knock, Knock::Answers | Knock::Unknown);
        if may_live && !lease_ran_out(world) {
            assert!(suspicion(world, leader).is_none(), "{:?}", world.peers[&name("a")]);
        }
    });
}

#[test]
fn refused_connections_to_agent_and_server_are_proof_at_once() {
    visit(|world, leader| {
        let peer = &world.peers[&name("a")];
        let proof = peer.link == Link::Refused && peer.knock == Knock::Refused && !world.settings.pause;
        assert_eq!(proof, suspicion(world, leader) == Some(Cause::ProcessesGone), "{peer:?}");
    });
}

#[test]
fn a_new_leader_is_given_failure_timeout_to_be_heard() {
    visit(|world, leader| {
        let young = world.now.since(world.store.phase_since) < world.settings.failure_timeout;
        if young && !lease_ran_out(world) {
            assert_ne!(suspicion(world, leader), Some(Cause::Silent), "{:?}", world.peers[&name("a")]);
        }
    });
}

#[test]
fn in_a_pause_nobody_is_suspected() {
    visit(|world, leader| assert!(!world.settings.pause || suspicion(world, leader).is_none()));
}

#[test]
fn a_suspicion_that_only_time_brings_begins_when_it_was_said_to_be_looked_for_again() {
    visit(|world, leader| {
        if suspicion(world, leader).is_some() || world.settings.pause {
            return;
        }
        // Heard for the last time now: if nothing more comes, looking again when told to must end in suspicion.
        let mut later = world.clone();
        let mut looks = 0;
        while suspicion(&later, leader).is_none() {
            let at = look_again(&later, leader);
            let at = at.unwrap_or_else(|| panic!("nobody looks again at {:?}", world.peers[&name("a")]));
            assert!(at > later.now, "looked for in the past");
            later.now = at;
            looks += 1;
            assert!(looks <= 3, "looked for again and again");
        }
    });
}

#[test]
fn a_member_counts_each_voter_that_suspects_this_term_and_is_heard() {
    let (mut world, leader) = follower();
    let mut gen_ = Gen::default();
    while !gen_.done() {
        let mut expected = 1;
        for other in ["c", "d"] {
            let suspects = *gen_.of(&[None, Some(TERM), Some(antiphon_core::Epoch(TERM.0 - 1))]);
            let heard = gen_.flag();
            let peer = world.peers.get_mut(&name(other)).expect("a peer");
            peer.beat.as_mut().expect("it has spoken").suspects = suspects;
            peer.heard = heard.then_some(NOW);
            expected += usize::from(heard && suspects == Some(TERM));
        }
        assert_eq!(suspecters(&world, &leader), expected);
    }
}
