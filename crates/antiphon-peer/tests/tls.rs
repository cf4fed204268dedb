//! What the links promise when members have certificates: messages arrive, a dead peer shows as fast as without,
//! nobody gets in without a certificate of the cluster's authority, and nobody falls back to the clear.

#![allow(clippy::unwrap_used, reason = "a failed assumption of a test is a failed test")]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use antiphon_peer::{Channel, Down, Inboxes, Link, PeerSettings, Peers};
use antiphon_testcerts::Authority;
use antiphon_tls::{File, Identity, MemberFiles, MemberTls};
use bytes::Bytes;

const PATIENCE: Duration = Duration::from_secs(20);

/// A directory that is removed when it is dropped.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("antiphon-peer-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// An address that nobody listens at, and none of those that the kernel gives to connections meanwhile.
fn free_address() -> String {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 12_000 + u16::try_from(std::process::id() % 150).unwrap() * 100;
    let mut addresses = std::iter::repeat_with(|| {
        format!("127.0.0.1:{}", first + NEXT.fetch_add(1, Ordering::Relaxed) % 100)
    });
    addresses.find(|address| TcpListener::bind(address).is_ok()).unwrap()
}

fn certificates(authority: &Authority, name: &str, host: &str, trusted: &Path) -> MemberFiles {
    let issued = authority.issue(name, &[host]);
    let identity = Identity {
        certificates: File::new("raft.tls.certfile", issued.certificate),
        key: Some(File::new("raft.tls.keyfile", issued.key)),
    };
    MemberFiles { identity, authorities: File::new("raft.tls.cafile", trusted) }
}

fn settings(address: &str, tls: Option<MemberTls>) -> PeerSettings {
    PeerSettings {
        cluster: "main".to_owned(),
        node: format!("node-{address}"),
        address: address.to_owned(),
        listen: address.to_owned(),
        secret: "a long shared secret".to_owned(),
        tls,
    }
}

/// A member with a certificate of this authority.
fn member(authority: &Authority, name: &str, peers: &[String], address: &str) -> (Peers, Inboxes) {
    let tls = MemberTls::load(&certificates(authority, name, "127.0.0.1", &authority.file)).unwrap();
    Peers::start(settings(address, Some(tls)), peers.to_vec()).unwrap()
}

async fn wait_link(peers: &Peers, to: &str, wanted: impl Fn(&Link) -> bool) -> Link {
    let mut links = peers.links();
    let found = tokio::time::timeout(PATIENCE, links.wait_for(|links| links.get(to).is_some_and(&wanted)));
    match found.await {
        Ok(found) => found.unwrap()[to].clone(),
        Err(_) => panic!("the link to {to} stays {:?}", peers.links().borrow().get(to)),
    }
}

fn is_up(link: &Link) -> bool {
    matches!(link, Link::Up { .. })
}

async fn rejection(peers: &Peers, to: &str) -> String {
    let rejected = |link: &Link| matches!(link, Link::Down { reason: Down::Rejected(_), .. });
    match wait_link(peers, to, rejected).await {
        Link::Down { reason: Down::Rejected(why), .. } => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn messages_of_any_size_arrive_in_order_inside_tls() {
    let dir = Dir::new();
    let authority = Authority::new(&dir.0, "ca");
    let addresses = [free_address(), free_address()];
    let (a, _a_in) = member(&authority, "a", &addresses, &addresses[0]);
    let (b, mut b_in) = member(&authority, "b", &addresses, &addresses[1]);
    wait_link(&a, b.address(), is_up).await;
    wait_link(&b, a.address(), is_up).await;
    let large = Bytes::from(vec![7; 3 * 1024 * 1024]);
    assert!(a.send(b.address(), Channel::Raft, large.clone()));
    for number in 0..100_u8 {
        assert!(a.send(b.address(), Channel::Raft, Bytes::from(vec![number])));
    }
    assert!(a.send(b.address(), Channel::Beat, Bytes::from_static(b"beat")));
    let received = async {
        assert_eq!(b_in.beats.recv().await.unwrap().body, "beat");
        assert_eq!(b_in.raft.recv().await.unwrap().body, large);
        for number in 0..100_u8 {
            assert_eq!(b_in.raft.recv().await.unwrap().body[..], [number]);
        }
    };
    tokio::time::timeout(PATIENCE, received).await.unwrap();
}

#[tokio::test]
async fn a_single_small_message_is_not_held_back() {
    let dir = Dir::new();
    let authority = Authority::new(&dir.0, "ca");
    let addresses = [free_address(), free_address()];
    let (a, _a_in) = member(&authority, "a", &addresses, &addresses[0]);
    let (b, mut b_in) = member(&authority, "b", &addresses, &addresses[1]);
    wait_link(&a, b.address(), is_up).await;
    let mut slowest = Duration::ZERO;
    for _ in 0..50 {
        let sent = Instant::now();
        assert!(a.send(b.address(), Channel::Beat, Bytes::from_static(b"beat")));
        tokio::time::timeout(PATIENCE, b_in.beats.recv()).await.unwrap().unwrap();
        slowest = slowest.max(sent.elapsed());
    }
    println!("slowest of 50 heartbeats: {slowest:?}");
    // What is not flushed would leave with the next ping, a quarter of a second later.
    assert!(slowest < Duration::from_millis(200), "{slowest:?}");
}

#[tokio::test]
async fn a_peer_that_stops_is_refused_as_fast_as_in_the_clear() {
    let dir = Dir::new();
    let authority = Authority::new(&dir.0, "ca");
    let addresses = [free_address(), free_address()];
    let (a, _a_in) = member(&authority, "a", &addresses, &addresses[0]);
    let b = member(&authority, "b", &addresses, &addresses[1]);
    wait_link(&a, &addresses[1], is_up).await;
    let stopped = Instant::now();
    drop(b);
    wait_link(&a, &addresses[1], |link| matches!(link, Link::Down { reason: Down::Refused, .. })).await;
    let took = stopped.elapsed();
    println!("from the stop of a peer to Refused: {took:?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
    let _back = member(&authority, "b", &addresses, &addresses[1]);
    wait_link(&a, &addresses[1], is_up).await;
}

#[tokio::test]
async fn of_two_members_one_of_which_has_tls_neither_gets_in_and_both_say_why() {
    let dir = Dir::new();
    let authority = Authority::new(&dir.0, "ca");
    let addresses = [free_address(), free_address()];
    let (covered, mut covered_in) = member(&authority, "a", &addresses, &addresses[0]);
    let (plain, mut plain_in) = Peers::start(settings(&addresses[1], None), addresses.to_vec()).unwrap();
    let why = rejection(&plain, covered.address()).await;
    assert!(why.contains("has TLS on its links and the other has not"), "{why}");
    let why = rejection(&covered, plain.address()).await;
    assert!(why.contains("does not speak TLS"), "{why}");
    assert!(!plain.send(covered.address(), Channel::Beat, Bytes::from_static(b"in the clear")));
    assert!(!covered.send(plain.address(), Channel::Beat, Bytes::from_static(b"in the clear")));
    assert!(covered_in.beats.try_recv().is_err() && plain_in.beats.try_recv().is_err());
}

#[tokio::test]
async fn a_certificate_of_another_authority_or_for_another_host_is_refused_with_the_reason() {
    let dir = Dir::new();
    let (ours, theirs) = (Authority::new(&dir.0, "ours"), Authority::new(&dir.0, "theirs"));
    let addresses = [free_address(), free_address(), free_address()];
    let (inside, _in) = member(&ours, "inside", &addresses, &addresses[0]);
    // Knows the secret and has a certificate, which is not ours.
    let (outside, _out) = member(&theirs, "outside", &addresses, &addresses[1]);
    assert!(rejection(&outside, inside.address()).await.contains("not signed by an authority"));
    assert!(rejection(&inside, outside.address()).await.contains("not signed by an authority"));
    // A member's certificate that is for another host serves nobody who dials this one.
    let elsewhere = certificates(&ours, "elsewhere", "elsewhere.example", &ours.file);
    let tls = MemberTls::load(&elsewhere).unwrap();
    let (stray, _stray_in) = Peers::start(settings(&addresses[2], Some(tls)), addresses.to_vec()).unwrap();
    let why = rejection(&inside, stray.address()).await;
    assert!(why.contains("is not for 127.0.0.1") && why.contains("elsewhere.example"), "{why}");
    wait_link(&stray, inside.address(), is_up).await;
}

#[tokio::test]
async fn certificates_are_replaced_without_a_lost_link() {
    let dir = Dir::new();
    let authority = Authority::new(&dir.0, "ca");
    let addresses = [free_address(), free_address(), free_address()];
    let tls = MemberTls::load(&certificates(&authority, "a", "127.0.0.1", &authority.file)).unwrap();
    let (a, _a_in) = Peers::start(settings(&addresses[0], Some(tls.clone())), addresses.to_vec()).unwrap();
    let (b, mut b_in) = member(&authority, "b", &addresses, &addresses[1]);
    let Link::Up { since, .. } = wait_link(&a, b.address(), is_up).await else { panic!("not up") };
    tls.replace(&MemberTls::load(&certificates(&authority, "a2", "127.0.0.1", &authority.file)).unwrap());
    // A link that is made with the new files.
    let (c, _c_in) = member(&authority, "c", &addresses, &addresses[2]);
    wait_link(&a, c.address(), is_up).await;
    wait_link(&c, a.address(), is_up).await;
    assert!(a.send(b.address(), Channel::Beat, Bytes::from_static(b"same link")));
    tokio::time::timeout(PATIENCE, b_in.beats.recv()).await.unwrap().unwrap();
    let links = a.links();
    assert!(matches!(links.borrow()[b.address()], Link::Up { since: now, .. } if now == since));
}

#[tokio::test]
async fn a_flood_of_handshakes_neither_holds_up_heartbeats_nor_keeps_members_out() {
    let dir = Dir::new();
    let authority = Authority::new(&dir.0, "ca");
    let addresses = [free_address(), free_address()];
    let (a, _a_in) = member(&authority, "a", &addresses, &addresses[0]);
    let (b, mut b_in) = member(&authority, "b", &addresses, &addresses[1]);
    wait_link(&a, b.address(), is_up).await;
    // Another authority's certificates: every handshake is begun, and fails where it costs most.
    let stranger = Authority::new(&dir.0.join("stranger"), "stranger");
    let tls = MemberTls::load(&certificates(&stranger, "s", "127.0.0.1", &stranger.file)).unwrap();
    let flood: Vec<_> = (0..4)
        .map(|_| {
            let (client, to) = (tls.client.clone(), addresses[1].clone());
            tokio::spawn(async move {
                loop {
                    if let Ok(stream) = tokio::net::TcpStream::connect(&to).await {
                        let _ = client.connect("127.0.0.1", stream).await;
                    }
                }
            })
        })
        .collect();
    let mut slowest = Duration::ZERO;
    for _ in 0..100 {
        let sent = Instant::now();
        assert!(a.send(b.address(), Channel::Beat, Bytes::from_static(b"beat")));
        tokio::time::timeout(PATIENCE, b_in.beats.recv()).await.unwrap().unwrap();
        slowest = slowest.max(sent.elapsed());
    }
    println!("slowest of 100 heartbeats in a flood: {slowest:?}");
    flood.iter().for_each(tokio::task::JoinHandle::abort);
    let (c, _c_in) = member(&authority, "c", &addresses, &free_address());
    wait_link(&c, b.address(), is_up).await;
}

#[tokio::test]
async fn strangers_that_begin_tls_and_stop_do_no_harm() {
    use std::io::{Read, Write};
    let dir = Dir::new();
    let authority = Authority::new(&dir.0, "ca");
    let address = free_address();
    let (a, _a_in) = member(&authority, "a", &[], &address);
    for bytes in
        [&b"\x16"[..], b"\x16\x03\x01\xff\xff", b"\x16\x03\x01\x00\x05\x01\xff\xff\xff\xff", b"H", b""]
    {
        let (to, bytes) = (address.clone(), bytes.to_vec());
        let said = tokio::task::spawn_blocking(move || {
            let mut stream = std::net::TcpStream::connect(to).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let _ = stream.write_all(&bytes);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut said = Vec::new();
            let _ = stream.read_to_end(&mut said);
            said.len()
        });
        assert!(said.await.unwrap() < 1024, "a stranger is told little");
    }
    let (b, _b_in) = member(&authority, "b", std::slice::from_ref(&address), &free_address());
    wait_link(&b, &address, is_up).await;
    drop(a);
}
