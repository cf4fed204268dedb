//! Every small election: three followers, each with a report or without, alive or not, able to lead or not,
//! under every promise over them, with every kind of cause and of last word from the old leader.
//!
//! The law of safety needs no model of time: a commit at some position may have been acknowledged if `k` of
//! the sync set have it or have not reported yet, and whoever wins must have it.

use std::time::Duration;

use antiphon_core::ha::cluster::{Cause, Cluster, FenceReport, Phase, Position, Promise, Release};
use antiphon_core::ha::election::win;
use antiphon_core::ha::world::{Server, Stopped, World};
use antiphon_core::{Epoch, NodeName};

use crate::exhaust::Gen;
use crate::world::{NOW, TERM, cluster, leader, member, name, peer, position, sync_set, world};

const FOLLOWERS: [&str; 3] = ["b", "c", "d"];
const EPOCH: Epoch = Epoch(4);
const BEHIND: u64 = 900;
const AHEAD: u64 = 1000;

/// Every promise over the followers.
fn promises() -> Vec<Promise> {
    let mut promises = vec![Promise::Alone];
    for mask in 1_usize..8 {
        let members: Vec<&str> = (0..3).filter(|at| mask & (1 << at) != 0).map(|at| FOLLOWERS[at]).collect();
        promises.extend((1..=members.len()).map(|k| Promise::Quorum(sync_set(k, &members))));
    }
    promises
}

fn causes() -> Vec<Cause> {
    vec![Cause::Silent, Cause::Switchover { to: name("c") }]
}

fn electing(sync: Promise, cause: Cause, base: Position) -> Cluster {
    let phase = Phase::Electing { cause, opened_by: name("d"), last: leader("a") };
    Cluster { sync, base, ..cluster(EPOCH, phase) }
}

/// A follower's part of a world: without a report, or with one in each of the ways that matter.
fn place(world: &mut World, follower: &str, gen_: &mut Gen) {
    let fenced = gen_.flag();
    let (ahead, alive) = if fenced { (gen_.flag(), gen_.flag()) } else { (false, true) };
    // Two that may not lead, alive or not, are enough.
    let may_lead = !fenced || follower == "d" || gen_.flag();
    let report = FenceReport { epoch: EPOCH, position: position(3, if ahead { AHEAD } else { BEHIND }) };
    let stored = &mut world.store.members.get_mut(&name(follower)).expect("a member").value;
    stored.fence = fenced.then_some(report);
    stored.tags.nofailover = !may_lead;
    world.peers.get_mut(&name(follower)).expect("a peer").heard = alive.then_some(NOW);
}

/// Whether this follower, if it is alive, wins.
fn wins(world: &mut World, cluster: &Cluster, me: &str) -> bool {
    let me = name(me);
    if world.peers[&me].heard.is_none() {
        return false;
    }
    let Phase::Electing { cause, last, .. } = &cluster.phase else { unreachable!("it was made so") };
    world.me.member = world.store.members[&me].value.clone();
    let itself = world.peers.remove(&me).expect("a peer");
    let won = win(world, cluster, cause, last).is_ok();
    world.peers.insert(me, itself);
    won
}

/// The highest position at which an acknowledged commit may be, as far as `member`'s position goes below it.
fn may_be_acknowledged(world: &World, cluster: &Cluster, lsn: u64, end: Option<Position>) -> bool {
    if end.is_some_and(|end| position(3, lsn) > end) {
        return false;
    }
    let Promise::Quorum(set) = &cluster.sync else { return true };
    let may_have = |member: &&NodeName| {
        world.store.members[*member].value.fence.is_none_or(|fence| fence.position.lsn.0 >= lsn)
    };
    set.members.iter().filter(may_have).count() >= set.k
}

/// Visits every small election; `check` is told who would win it.
fn visit(age: Duration, mut check: impl FnMut(&World, &Cluster, Option<Position>, &[&str])) {
    let (promises, causes) = (promises(), causes());
    let ends = [None, Some(position(3, BEHIND)), Some(position(3, AHEAD))];
    let bases = [position(2, 800), position(3, BEHIND + 50)];
    let rest = Server::Stopped(Stopped {
        crash: None,
        clean: true,
        primary: false,
        restored: false,
        checkpoint: position(3, BEHIND),
    });
    let mut world = world(electing(Promise::Alone, Cause::Silent, bases[0]), rest);
    world.peers.insert(name("b"), peer("b"));
    world.peers.get_mut(&name("a")).expect("a peer").heard = None;
    world.store.phase_since = NOW - age;
    let mut gen_ = Gen::default();
    while !gen_.done() {
        let cluster = electing(gen_.of(&promises).clone(), gen_.of(&causes).clone(), *gen_.of(&bases));
        let end = *gen_.of(&ends);
        let mut last = member("a");
        last.release = end.map(|end| Release { epoch: EPOCH, end: Some(end) });
        world.store.members.get_mut(&name("a")).expect("a member").value = last;
        for follower in FOLLOWERS {
            place(&mut world, follower, &mut gen_);
        }
        let winners: Vec<&str> =
            FOLLOWERS.into_iter().filter(|follower| wins(&mut world, &cluster, follower)).collect();
        check(&world, &cluster, end, &winners);
    }
}

fn holds_all(world: &World, cluster: &Cluster, end: Option<Position>, winner: &str) {
    let fence = world.store.members[&name(winner)].value.fence.expect("a winner has reported");
    let shown = || {
        let reports: Vec<_> = FOLLOWERS.iter().map(|f| world.store.members[&name(f)].value.fence).collect();
        format!(
            "{winner} wins under {:?} with base {:?}, end {end:?}, {reports:?}",
            cluster.sync, cluster.base
        )
    };
    assert!(world.store.members[&name(winner)].value.tags.may_lead(), "{}", shown());
    for lsn in [BEHIND, AHEAD].into_iter().filter(|lsn| *lsn > fence.position.lsn.0) {
        assert!(!may_be_acknowledged(world, cluster, lsn, end), "{lsn} may be lost: {}", shown());
    }
    let proven = end.is_some_and(|end| fence.position >= end);
    assert!(proven || fence.position >= cluster.base, "earlier terms may be lost: {}", shown());
}

fn only_the_last_leader_succeeds_one_that_was_alone(
    cluster: &Cluster,
    end: Option<Position>,
    winners: &[&str],
) {
    assert!(cluster.sync != Promise::Alone || end.is_some() || winners.is_empty(), "{winners:?} win");
}

fn enough_able_followers_have_a_winner(world: &World, cluster: &Cluster, winners: &[&str]) {
    let Promise::Quorum(set) = &cluster.sync else { return };
    let able = |follower: &str| {
        let stored = &world.store.members[&name(follower)].value;
        let ahead = stored.fence.is_some_and(|fence| fence.position.lsn.0 == AHEAD);
        ahead && stored.tags.may_lead() && world.peers[&name(follower)].heard.is_some()
    };
    let fenced = set.members.iter().filter(|m| world.store.members[*m].value.fence.is_some()).count();
    if fenced >= set.fences_needed() && FOLLOWERS.into_iter().any(able) {
        assert!(!winners.is_empty(), "nobody wins under {:?}: {:?}", cluster.sync, world.store.members);
    }
}

#[test]
fn whoever_wins_has_every_write_that_may_have_been_acknowledged_and_nobody_else_wins_beside_it() {
    visit(Duration::from_millis(600), |world, cluster, end, winners| {
        assert!(winners.len() <= 1, "{winners:?} win the same world under {:?}", cluster.sync);
        for winner in winners {
            holds_all(world, cluster, end, winner);
        }
    });
}

#[test]
fn when_every_turn_has_come_whoever_wins_has_every_acknowledged_write_and_somebody_wins_who_can() {
    visit(Duration::from_secs(3600), |world, cluster, end, winners| {
        for winner in winners {
            holds_all(world, cluster, end, winner);
        }
        only_the_last_leader_succeeds_one_that_was_alone(cluster, end, winners);
        enough_able_followers_have_a_winner(world, cluster, winners);
    });
}

#[test]
fn a_report_of_an_earlier_election_counts_for_nothing() {
    let cluster = electing(Promise::Quorum(sync_set(1, &["b"])), Cause::Silent, position(2, 800));
    let rest = Server::Absent;
    let mut world = world(cluster.clone(), rest);
    let stored = &mut world.store.members.get_mut(&name("b")).expect("a member").value;
    stored.fence = Some(FenceReport { epoch: TERM, position: position(3, AHEAD) });
    world.me.member = stored.clone();
    assert!(win(&world, &cluster, &Cause::Silent, &leader("a")).is_err());
}
