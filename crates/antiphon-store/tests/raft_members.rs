//! What the embedded Raft store promises beyond the contract: it survives restarts, the death of its leader,
//! lost directories, and changes of its membership.
//!
//! Members run in this process, over real sockets and real files; stopping one closes both.

#![allow(clippy::unwrap_used, reason = "a failed assumption of a test is a failed test")]

mod support;

use antiphon_store::{RaftError, Store, StoreError};
use support::{Member, TempDir, put, start, wait_leader, wait_status};

async fn value(member: &Member, key: &str) -> Option<String> {
    let seen = member.store.read().await.unwrap();
    seen.entries.get(key).map(|stored| stored.value.clone())
}

fn addresses(members: &[Member]) -> Vec<String> {
    members.iter().map(|member| member.address.clone()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_survive_a_restart_of_all_members() {
    for count in [1, 3] {
        let dir = TempDir::new();
        let members = support::cluster(&dir, count).await;
        let all = addresses(&members);
        let revision = members[0].store.commit(put("kept", "yes")).await.unwrap();
        let paths: Vec<_> =
            members.iter().map(|member| (member.dir.clone(), member.address.clone())).collect();
        drop(members);
        let members: Vec<Member> =
            paths.iter().map(|(dir, address)| start(dir, address, &all, false)).collect();
        wait_leader(&members).await;
        for member in &members {
            assert_eq!(value(member, "kept").await.as_deref(), Some("yes"));
            let seen = member.store.read().await.unwrap();
            assert_eq!(seen.entries["kept"].revision, revision);
        }
        assert!(members[0].store.commit(put("kept", "more")).await.unwrap() > revision);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minority_answers_nothing_and_a_majority_goes_on() {
    let dir = TempDir::new();
    let mut members = support::cluster(&dir, 3).await;
    let all = addresses(&members);
    let third = members.pop().unwrap();
    let (third_dir, third_address) = (third.dir.clone(), third.address.clone());
    drop(third);
    members[0].store.commit(put("two", "enough")).await.unwrap();
    let second = members.pop().unwrap();
    let (second_dir, second_address) = (second.dir.clone(), second.address.clone());
    drop(second);
    let alone = &members[0];
    let (read, write) = tokio::join!(alone.store.read(), alone.store.commit(put("alone", "no")));
    assert!(matches!(read, Err(StoreError::Timeout(_))), "{read:?}");
    assert!(matches!(write, Err(StoreError::Timeout(_))), "{write:?}");
    members.push(start(&second_dir, &second_address, &all, false));
    members.push(start(&third_dir, &third_address, &all, false));
    wait_leader(&members).await;
    for member in &members {
        assert_eq!(value(member, "two").await.as_deref(), Some("enough"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_three_configured_members_found_the_cluster_and_the_third_comes_in_later() {
    let dir = TempDir::new();
    let all = support::free_addresses(3);
    // The lowest address is the one that is missing.
    let mut members: Vec<Member> =
        all[1..].iter().map(|address| start(&dir.path().join(address), address, &all, false)).collect();
    wait_leader(&members).await;
    assert_eq!(members[0].store.voters().unwrap().len(), 3, "a majority of the configured is asked for");
    members[0].store.commit(put("founded", "by two")).await.unwrap();
    members.push(start(&dir.path().join(&all[0]), &all[0], &all, false));
    wait_status(&members[2], |status| status.members.iter().filter(|member| member.votes).count() == 3).await;
    assert_eq!(value(&members[2], "founded").await.as_deref(), Some("by two"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_lost_its_directory_comes_back_under_a_new_id() {
    let dir = TempDir::new();
    let mut members = support::cluster(&dir, 3).await;
    let all = addresses(&members);
    members[0].store.commit(put("kept", "by two")).await.unwrap();
    let wiped = members.remove(1);
    let (path, address, old) = (wiped.dir.clone(), wiped.address.clone(), wiped.store.status().node);
    drop(wiped);
    std::fs::remove_dir_all(&path).unwrap();
    members.push(start(&path, &address, &all, false));
    let back = members.last().unwrap();
    assert_ne!(back.store.status().node, old, "it must not vote as the one that forgot its votes");
    wait_status(back, |status| {
        status.members.len() == 3 && status.members.iter().all(|member| member.votes && member.id != old)
    })
    .await;
    assert_eq!(value(back, "kept").await.as_deref(), Some("by two"));
    // It counts: with another member gone, it is part of the majority.
    drop(members.remove(0));
    members[1].store.commit(put("again", "two")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_and_go_while_the_store_serves() {
    let dir = TempDir::new();
    let mut members = support::cluster(&dir, 1).await;
    let first = vec![members[0].address.clone()];
    for number in 0..1500 {
        // More than the log keeps: the newcomers need a snapshot.
        members[0].store.commit(put("number", &number.to_string())).await.unwrap();
    }
    for _ in 0..2 {
        let address = support::free_address();
        members.push(start(&dir.path().join(&address), &address, &first, true));
        members[0].store.add_member(&address).await.unwrap();
        assert!(members[0].store.voters().unwrap().contains(&address));
        assert_eq!(value(members.last().unwrap(), "number").await.as_deref(), Some("1499"));
    }
    assert_eq!(members[0].store.voters().unwrap().len(), 3);
    // The leader itself goes, at the request of another.
    let leader = wait_leader(&members).await;
    let gone = members[leader].address.clone();
    let asked = (leader + 1) % 3;
    members[asked].store.remove_member(&gone).await.unwrap();
    assert!(!members[asked].store.voters().unwrap().contains(&gone));
    members[asked].store.commit(put("number", "after")).await.unwrap();
    members.remove(leader);
    let rest = members[0].address.clone();
    members[1].store.remove_member(&rest).await.unwrap();
    drop(members.remove(0));
    members[0].store.commit(put("number", "alone")).await.unwrap();
    let last = members[0].address.clone();
    let refused = members[0].store.remove_member(&last).await;
    assert!(matches!(refused, Err(StoreError::Invalid(_))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_commit_is_lost_when_leaders_die_again_and_again() {
    let dir = TempDir::new();
    let mut members = support::cluster(&dir, 3).await;
    let all = addresses(&members);
    for round in 0..10 {
        let leader = wait_leader(&members).await;
        let acknowledged = members[(leader + round) % 3].store.commit(put("round", &round.to_string())).await;
        acknowledged.unwrap();
        let dead = members.remove(leader);
        let (path, address) = (dead.dir.clone(), dead.address.clone());
        drop(dead);
        for member in &members {
            assert_eq!(value(member, "round").await, Some(round.to_string()));
        }
        members.push(start(&path, &address, &all, false));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_serves_one_process_and_one_address() {
    let dir = TempDir::new();
    let member = support::cluster(&dir, 1).await.remove(0);
    let settings = |address: &str| {
        let peer = antiphon_peer::PeerSettings {
            cluster: "test".to_owned(),
            node: "second".to_owned(),
            address: address.to_owned(),
            listen: support::free_address(),
            secret: "secret".to_owned(),
            tls: None,
        };
        let (peers, inboxes) = antiphon_peer::Peers::start(peer, vec![]).unwrap();
        antiphon_store::RaftSettings {
            data_dir: member.dir.clone(),
            peers,
            inbox: inboxes.raft,
            address: address.to_owned(),
            members: vec![address.to_owned()],
            join: false,
            timings: antiphon_store::RaftTimings::default(),
        }
    };
    let second = antiphon_store::RaftStore::start(settings(&member.address)).err().unwrap();
    assert!(matches!(&second, RaftError::Disk(antiphon_store::DiskError::InUse(_))), "{second}");
    let moved = settings("127.0.0.1:1");
    drop(member);
    let refused = antiphon_store::RaftStore::start(moved).err().unwrap();
    assert!(refused.to_string().contains("belongs to the member at"), "{refused}");
}
