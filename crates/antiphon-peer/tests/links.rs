//! What the links between members promise, over real sockets on loopback: messages arrive, a dead peer shows
//! at once, and nobody without the secret gets in or does harm.
//!
//! Members and strangers run in this process; a stranger has a plain socket and may say anything.

#![allow(clippy::unwrap_used, reason = "a failed assumption of a test is a failed test")]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use antiphon_peer::{Channel, Down, Inboxes, Link, PeerSettings, Peers};
use bytes::Bytes;

const PATIENCE: Duration = Duration::from_secs(20);

/// An address that nobody listens at, and none of those that the kernel gives to connections meanwhile.
fn free_address() -> String {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 12_000 + u16::try_from(std::process::id() % 150).unwrap() * 100;
    let mut addresses = std::iter::repeat_with(|| {
        format!("127.0.0.1:{}", first + NEXT.fetch_add(1, Ordering::Relaxed) % 100)
    });
    addresses.find(|address| TcpListener::bind(address).is_ok()).unwrap()
}

fn settings(address: &str) -> PeerSettings {
    PeerSettings {
        cluster: "main".to_owned(),
        node: format!("node-{address}"),
        address: address.to_owned(),
        listen: address.to_owned(),
        secret: "a long shared secret".to_owned(),
        tls: None,
    }
}

fn pair() -> ((Peers, Inboxes), (Peers, Inboxes)) {
    let addresses = [free_address(), free_address()];
    let start = |own: &str| Peers::start(settings(own), addresses.to_vec()).unwrap();
    (start(&addresses[0]), start(&addresses[1]))
}

/// Waits until the link to `to` is as wanted, and returns it.
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

/// A member still serves: another one links to it and is heard.
async fn assert_serves(member: &Peers, inboxes: &mut Inboxes) {
    let (visitor, _inboxes) =
        Peers::start(settings(&free_address()), vec![member.address().to_owned()]).unwrap();
    wait_link(&visitor, member.address(), is_up).await;
    assert!(visitor.send(member.address(), Channel::Beat, Bytes::from_static(b"still here")));
    let heard = tokio::time::timeout(PATIENCE, inboxes.beats.recv()).await.unwrap().unwrap();
    assert_eq!(heard.body, "still here");
}

/// Sends `bytes` and waits until the member hangs up; returns what it said.
fn knock(address: &str, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // The member may hang up before it has read everything: that is an answer, too.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said);
    said
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn messages_arrive_in_order_on_their_channel_with_the_sender_named() {
    let ((a, _a_in), (b, mut b_in)) = pair();
    wait_link(&a, b.address(), is_up).await;
    let large = Bytes::from(vec![7; 3 * 1024 * 1024]);
    assert!(a.send(b.address(), Channel::Raft, large.clone()));
    for number in 0..100_u8 {
        assert!(a.send(b.address(), Channel::Raft, Bytes::from(vec![number])));
    }
    assert!(a.send(b.address(), Channel::Beat, Bytes::from_static(b"beat")));
    let beat = b_in.beats.recv().await.unwrap();
    assert_eq!((beat.from.as_str(), &beat.body[..]), (a.address(), &b"beat"[..]));
    assert_eq!(b_in.raft.recv().await.unwrap().body, large);
    for number in 0..100_u8 {
        assert_eq!(b_in.raft.recv().await.unwrap().body[..], [number]);
    }
    assert!(!a.send(b.address(), Channel::Raft, Bytes::from(vec![0; antiphon_peer::BODY_BYTES_MAX + 1])));
    assert!(!a.send("127.0.0.1:1", Channel::Beat, Bytes::new()), "a stranger has no queue");
}

#[tokio::test]
async fn a_peer_that_stops_is_refused_at_once_and_found_again_when_it_returns() {
    let ((a, _a_in), b) = pair();
    let b_address = b.0.address().to_owned();
    wait_link(&a, &b_address, is_up).await;
    let stopped = Instant::now();
    drop(b);
    wait_link(&a, &b_address, |link| matches!(link, Link::Down { reason: Down::Refused, .. })).await;
    let took = stopped.elapsed();
    println!("from the stop of a peer to Refused: {took:?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
    let _back = Peers::start(settings(&b_address), vec![]).unwrap();
    wait_link(&a, &b_address, is_up).await;
}

#[tokio::test]
async fn a_peer_that_does_not_answer_is_reported_as_timed_out_or_lost_not_as_refused() {
    // Listens, and never says a word: what a frozen process looks like.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let (a, _a_in) = Peers::start(settings(&free_address()), vec![address.clone()]).unwrap();
    wait_link(&a, &address, |link| matches!(link, Link::Down { reason: Down::TimedOut, .. })).await;
}

#[tokio::test]
async fn removed_peers_are_forgotten_and_no_longer_sent_to() {
    let ((a, _a_in), (b, _b_in)) = pair();
    wait_link(&a, b.address(), is_up).await;
    a.set_peers(vec![]);
    let mut links = a.links();
    tokio::time::timeout(PATIENCE, links.wait_for(|links| links.is_empty())).await.unwrap().unwrap();
    assert!(!a.send(b.address(), Channel::Beat, Bytes::new()));
}

#[tokio::test]
async fn a_wrong_secret_is_refused_and_the_dialer_learns_why() {
    let (member, mut inboxes) = Peers::start(settings(&free_address()), vec![]).unwrap();
    let wrong = PeerSettings { secret: "guessed".to_owned(), ..settings(&free_address()) };
    let (stranger, _in) = Peers::start(wrong, vec![member.address().to_owned()]).unwrap();
    let why = rejection(&stranger, member.address()).await;
    assert!(why.contains("secret"), "{why}");
    assert!(!stranger.send(member.address(), Channel::Raft, Bytes::from_static(b"let me in")));
    assert_serves(&member, &mut inboxes).await;
    assert!(inboxes.raft.try_recv().is_err());
}

#[tokio::test]
async fn a_member_of_another_cluster_is_refused_by_name() {
    let (member, _inboxes) = Peers::start(settings(&free_address()), vec![]).unwrap();
    let other = PeerSettings { cluster: "other".to_owned(), ..settings(&free_address()) };
    let (stranger, _in) = Peers::start(other, vec![member.address().to_owned()]).unwrap();
    let why = rejection(&stranger, member.address()).await;
    assert!(why.contains("cluster") && why.contains("other"), "{why}");
}

#[tokio::test]
async fn a_peer_that_is_not_who_was_dialled_is_refused() {
    let listen = free_address();
    let elsewhere = PeerSettings { listen: listen.clone(), ..settings("member.example:9") };
    let (_member, _inboxes) = Peers::start(elsewhere, vec![]).unwrap();
    let (dialer, _in) = Peers::start(settings(&free_address()), vec![listen.clone()]).unwrap();
    let why = rejection(&dialer, &listen).await;
    assert!(why.contains("member.example:9"), "{why}");
}

#[tokio::test]
async fn garbage_huge_lengths_and_half_hellos_do_no_harm() {
    let (member, mut inboxes) = Peers::start(settings(&free_address()), vec![]).unwrap();
    let before = resident_kib();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..300_usize {
        let mut bytes: Vec<u8> = (0..round % 97)
            .map(|_| {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                (seed >> 24) as u8
            })
            .collect();
        match round % 4 {
            0 => {}
            1 => bytes.splice(0..0, [b'H', 0xff, 0xff]).for_each(drop),
            2 => bytes.splice(0..0, *b"H\0\x40ANTP\0\x01").for_each(drop),
            _ => bytes.splice(0..0, [0xff; 8]).for_each(drop),
        }
        let address = member.address().to_owned();
        let said = tokio::task::spawn_blocking(move || knock(&address, &bytes)).await.unwrap();
        assert!(said.len() < 1024, "a stranger is told little");
    }
    assert_serves(&member, &mut inboxes).await;
    assert!(resident_kib() < before + 32 * 1024, "memory grew from {before} KiB to {} KiB", resident_kib());
}

#[tokio::test]
async fn slow_strangers_are_bounded_and_do_not_keep_members_out_for_long() {
    let (member, mut inboxes) = Peers::start(settings(&free_address()), vec![]).unwrap();
    // More than the member lets wait; each says one byte and no more.
    let slow: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut stream = TcpStream::connect(member.address()).unwrap();
            let _ = stream.write_all(b"H");
            stream
        })
        .collect();
    assert_serves(&member, &mut inboxes).await;
    drop(slow);
}

#[tokio::test]
async fn who_waits_for_company_is_called_when_raft_speaks_and_not_while_it_wants_to_rest() {
    let ((a, _inboxes), (b, _)) = pair();
    wait_link(&a, b.address(), is_up).await;
    let speak = || a.send(b.address(), Channel::Raft, Bytes::from_static(b"raft"));
    let company = a.company(Duration::ZERO);
    let (called, ()) = tokio::join!(tokio::time::timeout(PATIENCE, company), async {
        tokio::task::yield_now().await;
        assert!(speak());
    });
    called.expect("it is called at the first message");
    let rest = Duration::from_millis(200);
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    let began = Instant::now();
    let (called, ()) = tokio::join!(tokio::time::timeout(PATIENCE, a.company(rest)), async {
        while began.elapsed() < 2 * rest {
            assert!(speak());
            assert!(a.send(b.address(), Channel::Beat, Bytes::from_static(b"a beat calls nobody")));
            ticks.tick().await;
        }
    });
    called.expect("it is called after its rest");
    let began = Instant::now();
    let mut called = std::pin::pin!(a.company(rest));
    while began.elapsed() < rest / 2 {
        assert!(speak());
        tokio::select! {
            () = &mut called => panic!("it wants to rest"),
            _ = ticks.tick() => {}
        }
    }
}
