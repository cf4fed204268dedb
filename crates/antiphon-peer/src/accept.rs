//! Takes connections of peers: lets in those that prove themselves, and hands on what they send.
//!
//! Strangers cost little: a bounded number of unproven connections, in all and for one host, each with 5 s
//! and 1 KiB a message; with TLS, whose handshake is work for the thread of the heartbeats, also a bounded number
//! of one host in a second; one log line a second at most says who was refused and why. A peer has one
//! connection: a new one, once proven, takes the place of the old.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use antiphon_tls::{Stream, farewell};
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::cover;
use crate::handshake::{self, HandshakeError, Identity};
use crate::wire::{self, Seal};
use crate::{Channel, Shared};

const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(5);
/// Dialers ping four times a second: one that is silent for this long is gone.
const SILENCE_TIME_MAX: Duration = Duration::from_secs(3);
const UNPROVEN_MAX: usize = 64;
const UNPROVEN_PER_HOST_MAX: usize = 16;
/// Members dial a few times a second at most.
const HANDSHAKES_PER_HOST_AND_SECOND_MAX: usize = 30;
/// Hosts whose handshakes are counted; when more come in a second, the others wait for the next one.
const HOSTS_COUNTED_MAX: usize = 256;
const REFUSALS_LOGGED_EVERY: Duration = Duration::from_secs(1);
/// How long to wait when the system gives no connection (out of descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts for as long as it is polled.
pub(crate) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let door = Arc::new(Door::default());
    let mut guests = JoinSet::new();
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                door.refuse("a connection", &format!("it could not be accepted: {error}"));
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Ended tasks are taken out, so that the set holds live connections only.
        while guests.try_join_next().is_some() {}
        if shared.tls.is_some() && !door.may_begin(from.ip()) {
            door.refuse(&from.to_string(), "too many connections of its host in one second");
            continue;
        }
        let Some(unproven) = Unproven::enter(&door, from.ip()) else {
            door.refuse(&from.to_string(), "too many connections have not proven themselves yet");
            continue;
        };
        guests.spawn(welcome(stream, from, unproven, Arc::clone(&door), Arc::clone(&shared)));
    }
}

async fn welcome(
    stream: TcpStream,
    from: SocketAddr,
    unproven: Unproven,
    door: Arc<Door>,
    shared: Arc<Shared>,
) {
    let _ = stream.set_nodelay(true);
    match timeout(HANDSHAKE_TIME_MAX, enter(stream, &shared)).await {
        Ok(Ok((stream, peer, seal))) => {
            drop(unproven);
            shared.nudge(&peer.address);
            // A task of its own, so that a later connection of the same peer can end this one.
            let task = tokio::spawn(listen(stream, seal, peer.address.clone(), Arc::clone(&door), shared));
            let _ends_with_us = Ends(task.abort_handle());
            door.admit(peer.address, task.abort_handle());
            let _ = task.await;
        }
        Ok(Err(HandshakeError::Refused(why))) => door.refuse(&from.to_string(), &why),
        Ok(Err(HandshakeError::RefusedByPeer(why))) => {
            door.refuse(&from.to_string(), &format!("it refused this member: {why}"));
        }
        // A connection that ends by itself is no news: peers die, and monitors knock.
        Ok(Err(HandshakeError::Io(error))) => {
            if let Some(why) = antiphon_tls::reason(&error) {
                door.refuse(&from.to_string(), &why);
            }
        }
        Err(_) => door.refuse(&from.to_string(), "it did not prove itself in time"),
    }
}

/// Everything that a stranger has to pass.
async fn enter(stream: TcpStream, shared: &Shared) -> Result<(Stream, Identity, Seal), HandshakeError> {
    let mut stream = cover::accept(stream, shared.tls.as_ref()).await?;
    match handshake::accept(&mut stream, &shared.identity, &shared.key).await {
        Ok((peer, seal)) => Ok((stream, peer, seal)),
        Err(error) => {
            if matches!(error, HandshakeError::Refused(_)) {
                farewell(&mut stream).await;
            }
            Err(error)
        }
    }
}

/// Hands on what one proven peer sends until its connection ends.
async fn listen(stream: Stream, mut seal: Seal, from: String, door: Arc<Door>, shared: Arc<Shared>) {
    let mut stream = BufReader::new(stream);
    loop {
        let (channel, body) = match timeout(SILENCE_TIME_MAX, wire::read_frame(&mut stream, &mut seal)).await
        {
            Ok(Ok(frame)) => frame,
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::InvalidData => {
                return door.refuse(&from, &format!("it sent {error}"));
            }
            Ok(Err(_)) | Err(_) => return,
        };
        let channel = match channel {
            wire::PING => continue,
            wire::RAFT => Channel::Raft,
            wire::BEAT => Channel::Beat,
            unknown => return door.refuse(&from, &format!("it sent on the unknown channel {unknown}")),
        };
        if !shared.deliver(&from, channel, body) {
            door.refuse(&from, "the inbox is full; a message was dropped");
        }
    }
}

struct Ends(AbortHandle);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Counts who is in, and who was refused.
#[derive(Default)]
struct Door(Mutex<Book>);

#[derive(Default)]
struct Book {
    unproven: usize,
    unproven_by_host: BTreeMap<IpAddr, usize>,
    proven: BTreeMap<String, AbortHandle>,
    /// Handshakes begun in the second that began then.
    begun: BTreeMap<IpAddr, usize>,
    second: Option<Instant>,
    logged: Option<Instant>,
    unlogged: u64,
}

impl Door {
    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(&self, address: String, connection: AbortHandle) {
        let mut book = self.book();
        book.proven.retain(|_, other| !other.is_finished());
        if let Some(old) = book.proven.insert(address, connection) {
            old.abort();
        }
    }

    /// Whether this host may have another handshake in this second.
    fn may_begin(&self, host: IpAddr) -> bool {
        let mut book = self.book();
        if book.second.is_none_or(|second| second.elapsed() >= Duration::from_secs(1)) {
            book.second = Some(Instant::now());
            book.begun.clear();
        }
        let hosts = book.begun.len();
        let Some(begun) = book.begun.get_mut(&host) else {
            let counted = hosts < HOSTS_COUNTED_MAX;
            if counted {
                book.begun.insert(host, 1);
            }
            return counted;
        };
        *begun += 1;
        *begun <= HANDSHAKES_PER_HOST_AND_SECOND_MAX
    }

    fn refuse(&self, from: &str, why: &str) {
        let mut book = self.book();
        if book.logged.is_some_and(|logged| logged.elapsed() < REFUSALS_LOGGED_EVERY) {
            book.unlogged = book.unlogged.saturating_add(1);
            return;
        }
        book.logged = Some(Instant::now());
        let unlogged = std::mem::take(&mut book.unlogged);
        drop(book);
        warn!(from, why, unlogged, "refused a peer");
    }
}

/// A place among the connections that have not proven themselves; given back when dropped.
struct Unproven {
    door: Arc<Door>,
    host: IpAddr,
}

impl Unproven {
    fn enter(door: &Arc<Door>, host: IpAddr) -> Option<Self> {
        let mut book = door.book();
        let of_host = book.unproven_by_host.get(&host).copied().unwrap_or(0);
        if book.unproven >= UNPROVEN_MAX || of_host >= UNPROVEN_PER_HOST_MAX {
            return None;
        }
        book.unproven += 1;
        book.unproven_by_host.insert(host, of_host + 1);
        drop(book);
        Some(Self { door: Arc::clone(door), host })
    }
}

impl Drop for Unproven {
    fn drop(&mut self) {
        let mut book = self.door.book();
        book.unproven = book.unproven.saturating_sub(1);
        if let Some(count) = book.unproven_by_host.get_mut(&self.host) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                book.unproven_by_host.remove(&self.host);
            }
        }
    }
}
