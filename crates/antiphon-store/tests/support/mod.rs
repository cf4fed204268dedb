//! Members of a Raft cluster in this process, over real sockets on loopback and real files, for the tests.
//!
//! Everything is removed and stopped when it is dropped. What waits here looks at a condition until it holds;
//! nothing waits for time to pass.

#![allow(clippy::unwrap_used, dead_code, reason = "a failed assumption of a test is a failed test")]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use antiphon_peer::{PeerSettings, Peers};
use antiphon_store::{RaftSettings, RaftStatus, RaftStore, RaftTimings, Transaction};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A directory that is removed when it is dropped.
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("antiphon-store-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// Addresses in ascending order, so that `addresses[0]` has the lowest rank.
pub(crate) fn free_addresses(count: usize) -> Vec<String> {
    let held: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let mut addresses: Vec<String> = held.iter().map(|held| held.local_addr().unwrap().to_string()).collect();
    addresses.sort();
    addresses
}

pub(crate) struct Member {
    pub(crate) address: String,
    pub(crate) dir: PathBuf,
    pub(crate) store: RaftStore,
    pub(crate) peers: Peers,
}

pub(crate) fn put(key: &str, value: &str) -> Transaction {
    Transaction { puts: vec![(key.to_owned(), value.to_owned())], ..Transaction::default() }
}

/// Starts one member.
pub(crate) fn start(dir: &Path, address: &str, members: &[String], join: bool) -> Member {
    let settings = PeerSettings {
        cluster: "test".to_owned(),
        node: address.to_owned(),
        address: address.to_owned(),
        listen: address.to_owned(),
        secret: "secret".to_owned(),
        tls: None,
    };
    // A port of a member that was just stopped may take a moment to be free.
    let deadline = Instant::now() + PATIENCE;
    let (peers, inboxes) = loop {
        match Peers::start(settings.clone(), members.to_vec()) {
            Ok(started) => break started,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::yield_now();
    };
    let store = RaftStore::start(RaftSettings {
        data_dir: dir.to_owned(),
        peers: peers.clone(),
        inbox: inboxes.raft,
        address: address.to_owned(),
        members: members.to_vec(),
        join,
        timings: RaftTimings { call_limit: Duration::from_secs(10), ..RaftTimings::default() },
    })
    .unwrap();
    Member { address: address.to_owned(), dir: dir.to_owned(), store, peers }
}

/// Starts `count` members that have not met, and waits until all know one leader.
pub(crate) async fn cluster(dir: &TempDir, count: usize) -> Vec<Member> {
    let addresses = free_addresses(count);
    let members: Vec<Member> = addresses
        .iter()
        .map(|address| start(&dir.path().join(address), address, &addresses, false))
        .collect();
    wait_leader(&members).await;
    members
}

/// Waits until all of `members` name the same leader, one of them; returns its position.
pub(crate) async fn wait_leader(members: &[Member]) -> usize {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let leaders: Vec<_> = members.iter().map(|member| member.store.status().leader).collect();
        let agreed = leaders.iter().all(|leader| *leader == leaders[0]);
        if let (true, Some(leader)) = (agreed, &leaders[0])
            && let Some(position) = members.iter().position(|member| member.address == *leader)
        {
            return position;
        }
        assert!(Instant::now() < deadline, "no leader: {leaders:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Waits until a member's status is as wanted.
pub(crate) async fn wait_status(member: &Member, wanted: impl Fn(&RaftStatus) -> bool) {
    let mut status = member.store.watch_status();
    let found = tokio::time::timeout(PATIENCE, status.wait_for(|status| wanted(status)));
    let found = found.await.map(|found| found.map(|_| ()));
    assert!(matches!(found, Ok(Ok(()))), "{} stays {:?}", member.address, member.store.status());
}
