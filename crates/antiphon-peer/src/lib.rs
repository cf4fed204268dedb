//! Authenticated links between the members of a cluster.
//!
//! Carries two channels, heartbeats and Raft messages, and is the instrument of death detection: each member
//! dials every other one for what it sends, and what became of that connection ([`Link`]) is known within
//! milliseconds when a peer's process dies, because its kernel then refuses the reconnect.
//!
//! Everything runs on one OS thread with a runtime of its own, so that load in the rest of the program cannot
//! hold up a heartbeat. Nothing here waits for the caller and nothing makes the caller wait: queues are
//! bounded, and what does not fit is dropped. Messages may be lost, never altered, injected or replayed; with
//! TLS ([`PeerSettings::tls`]) nobody else can read them either.

mod accept;
mod cover;
mod dial;
mod handshake;
mod outbox;
pub mod priority;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use antiphon_tls::MemberTls;
use bytes::Bytes;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tracing::{info, warn};

use crate::handshake::{Identity, Key};
use crate::outbox::Outbox;

pub use crate::wire::BODY_BYTES_MAX;

/// Envelopes that wait to be taken from an inbox; more are dropped.
pub const INBOX_ENVELOPES_MAX: usize = 1024;
/// Bytes that wait in both inboxes together; more are dropped.
const INBOX_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long the runtime may take to let go of a name lookup when it stops.
const STOP_TIME_MAX: Duration = Duration::from_millis(200);

/// Who this member is, and what it shares with its peers.
#[derive(Clone)]
pub struct PeerSettings {
    /// Name of the cluster; members of another one are refused. At most 255 bytes.
    pub cluster: String,
    /// Name of this node, told to peers. At most 255 bytes.
    pub node: String,
    /// `host:port` that peers dial; the identity of this member. At most 255 bytes.
    pub address: String,
    /// `ip:port` to listen on.
    pub listen: String,
    /// Shared by all members; never sent.
    pub secret: String,
    /// Certificates for both ends of every link; none: links are in the clear. All members have them, or none.
    pub tls: Option<MemberTls>,
}

impl fmt::Debug for PeerSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerSettings")
            .field("cluster", &self.cluster)
            .field("node", &self.node)
            .field("address", &self.address)
            .field("listen", &self.listen)
            .field("tls", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

/// Why the links could not be started.
#[derive(Debug, Error)]
pub enum PeerError {
    /// The listener could not be opened.
    #[error("could not listen for peers on {listen}; check `listen` and that nothing else uses the port")]
    Listen {
        /// The address asked for.
        listen: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The thread or its runtime could not be made.
    #[error("could not start the peer thread")]
    Thread(#[source] io::Error),
    /// A setting cannot be used.
    #[error("the peer setting {0}")]
    Setting(&'static str),
}

/// What a message is for; each channel has its own queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// Consensus. When the queue is full the newest is dropped: Raft resends.
    Raft,
    /// Heartbeats, sent before anything else. When the queue is full the oldest is dropped: it is stale.
    Beat,
}

/// One message from a peer.
#[derive(Debug)]
pub struct Envelope {
    /// The sender's address, proven to belong to a member of the cluster.
    pub from: String,
    /// What it sent.
    pub body: Bytes,
    /// Holds a share of the inbox's bytes until the message is dropped.
    _share: Option<OwnedSemaphorePermit>,
}

impl Envelope {
    /// A message that did not come through a socket.
    pub fn new(from: String, body: Bytes) -> Self {
        Self { from, body, _share: None }
    }
}

/// Where messages arrive.
#[derive(Debug)]
pub struct Inboxes {
    /// Messages of [`Channel::Raft`].
    pub raft: mpsc::Receiver<Envelope>,
    /// Messages of [`Channel::Beat`].
    pub beats: mpsc::Receiver<Envelope>,
}

/// The state of the connection that this member dials to a peer. Times are CLOCK_BOOTTIME, in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// Both sides have proven that they know the secret.
    Up {
        /// The peer's node name.
        node: String,
        /// Since when.
        since: u64,
    },
    /// There is no connection.
    Down {
        /// What the last attempt, or the last connection, ended with.
        reason: Down,
        /// Since when for this reason.
        since: u64,
    },
}

/// Why a link is down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Down {
    /// No attempt has ended yet.
    Connecting,
    /// The peer's kernel refuses: its host is up and its process is gone.
    Refused,
    /// The connection was closed or reset.
    Lost,
    /// No answer: the peer's host is dead, frozen or cut off.
    TimedOut,
    /// The host cannot be reached, or its name not be resolved.
    Unreachable(String),
    /// One side does not accept the other, and why.
    Rejected(String),
}

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connecting => f.write_str("not connected yet"),
            Self::Refused => f.write_str("connection refused: the host answers, the process is gone"),
            Self::Lost => f.write_str("connection lost"),
            Self::TimedOut => f.write_str("no answer in time"),
            Self::Unreachable(why) => write!(f, "unreachable: {why}"),
            Self::Rejected(why) => write!(f, "rejected: {why}"),
        }
    }
}

/// The links of this member. Cheap to clone; the thread stops when the last clone is dropped.
#[derive(Clone)]
pub struct Peers {
    shared: Arc<Shared>,
    runtime: Handle,
    // Dropped after nothing else is left of a handle: its drop ends the thread and waits for it. None in a
    // handle that a task on the thread has.
    _thread: Option<Arc<Thread>>,
}

/// What callers and the thread both see.
pub(crate) struct Shared {
    pub(crate) identity: Identity,
    pub(crate) key: Key,
    pub(crate) tls: Option<MemberTls>,
    pub(crate) outboxes: Mutex<BTreeMap<String, Arc<Outbox>>>,
    pub(crate) links: watch::Sender<Arc<BTreeMap<String, Link>>>,
    pub(crate) wanted: watch::Sender<BTreeSet<String>>,
    raft: mpsc::Sender<Envelope>,
    beats: mpsc::Sender<Envelope>,
    room: Arc<Semaphore>,
    company: Company,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").field("address", &self.shared.identity.address).finish_non_exhaustive()
    }
}

struct Thread {
    stop: watch::Sender<bool>,
    handle: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        let handle = self.handle.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(handle) = handle {
            // Bounded by STOP_TIME_MAX. An Err is a panic that the panic hook has reported.
            let _ = handle.join();
        }
    }
}

impl Peers {
    /// Listens, and dials every address of `initial` but the own one, until the last clone is dropped.
    pub fn start(settings: PeerSettings, initial: Vec<String>) -> Result<(Self, Inboxes), PeerError> {
        check(&settings)?;
        let PeerSettings { cluster, node, address, listen, secret, tls } = settings;
        let (raft_in, raft) = mpsc::channel(INBOX_ENVELOPES_MAX);
        let (beats_in, beats) = mpsc::channel(INBOX_ENVELOPES_MAX);
        let shared = Arc::new(Shared {
            identity: Identity { cluster, node, address },
            key: Key::from_secret(&secret),
            tls,
            outboxes: Mutex::default(),
            links: watch::Sender::new(Arc::default()),
            wanted: watch::Sender::new(BTreeSet::new()),
            raft: raft_in,
            beats: beats_in,
            room: Arc::new(Semaphore::new(INBOX_BYTES_MAX)),
            company: Company::default(),
        });
        let refused = |source| PeerError::Listen { listen: listen.clone(), source };
        let socket = std::net::TcpListener::bind(&listen).map_err(refused)?;
        socket.set_nonblocking(true).map_err(refused)?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(PeerError::Thread)?;
        let tasks = runtime.handle().clone();
        let (stop, stopped) = watch::channel(false);
        let handle = std::thread::Builder::new()
            .name("peers".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || {
                    priority::raise();
                    runtime.block_on(run(socket, shared, stopped));
                    runtime.shutdown_timeout(STOP_TIME_MAX);
                }
            })
            .map_err(PeerError::Thread)?;
        let thread = Thread { stop, handle: Mutex::new(Some(handle)) };
        let peers = Self { shared, runtime: tasks, _thread: Some(Arc::new(thread)) };
        peers.set_peers(initial);
        Ok((peers, Inboxes { raft, beats }))
    }

    /// Runs a task on the thread of the links: for what has to be as prompt as they are and never holds them up.
    /// A message that it takes or sends wakes no other thread. It ends with the thread, which its handle does not
    /// keep alive.
    pub fn spawn<T: Future<Output = ()> + Send + 'static>(&self, task: impl FnOnce(Self) -> T) {
        let links = Self { _thread: None, ..self.clone() };
        self.runtime.spawn(task(links));
    }

    /// Queues `body` for the peer at address `to`. Never blocks. Returns false if it was dropped: the link is
    /// down, the queue is full, the peer unknown or the body longer than [`BODY_BYTES_MAX`].
    pub fn send(&self, to: &str, channel: Channel, body: Bytes) -> bool {
        if channel == Channel::Raft {
            self.shared.company.call();
        }
        let outboxes = self.shared.outboxes.lock().unwrap_or_else(PoisonError::into_inner);
        body.len() <= BODY_BYTES_MAX && outboxes.get(to).is_some_and(|outbox| outbox.push(channel, body))
    }

    /// Waits until a message of Raft is about to be sent, but for those of the next while. Who speaks at once shares
    /// its packets: half of what a member at rest costs is to be woken for each. For one task on the thread of the
    /// links.
    pub async fn company(&self, rest: Duration) {
        self.shared.company.wait(rest).await;
    }

    /// Dials exactly these addresses from now on (the own one is left out); links to others are closed.
    pub fn set_peers(&self, addresses: Vec<String>) {
        let own = &self.shared.identity.address;
        let wanted: BTreeSet<String> = addresses.into_iter().filter(|address| address != own).collect();
        self.shared.wanted.send_if_modified(|now| {
            let changed = *now != wanted;
            *now = wanted;
            changed
        });
    }

    /// The state of every link, by address, pushed on every change.
    pub fn links(&self) -> watch::Receiver<Arc<BTreeMap<String, Link>>> {
        self.shared.links.subscribe()
    }

    /// The address that peers know this member by.
    pub fn address(&self) -> &str {
        &self.shared.identity.address
    }
}

/// Calls a task when Raft speaks, if that wants to be called by now.
#[derive(Default)]
struct Company {
    /// On the clock of [`boot_nanos`].
    not_before: AtomicU64,
    called: Notify,
}

impl Company {
    fn call(&self) {
        if boot_nanos() >= self.not_before.load(Ordering::Relaxed) {
            self.called.notify_one();
        }
    }

    async fn wait(&self, rest: Duration) {
        let rest = u64::try_from(rest.as_nanos()).unwrap_or(u64::MAX);
        let not_before = boot_nanos().saturating_add(rest);
        self.not_before.store(not_before, Ordering::Relaxed);
        loop {
            self.called.notified().await;
            // One call can come twice: it was left from before.
            if boot_nanos() >= not_before {
                return;
            }
        }
    }
}

impl Shared {
    /// Records a link's state; `since` stays when the reason is the one that was.
    pub(crate) fn set_link(&self, address: &str, state: Result<String, Down>) {
        self.links.send_if_modified(|links| {
            let same = match (links.get(address), &state) {
                (Some(Link::Up { node, .. }), Ok(now)) => node == now,
                (Some(Link::Down { reason, .. }), Err(now)) => reason == now,
                (Some(_), _) | (None, _) => false,
            };
            if same {
                return false;
            }
            let since = boot_nanos();
            let link = match state {
                Ok(node) => {
                    info!(peer = address, node, "linked to peer");
                    Link::Up { node, since }
                }
                Err(reason) => {
                    if matches!(reason, Down::Rejected(_)) {
                        // Only people can put that right.
                        warn!(peer = address, %reason, "no link to peer");
                    } else {
                        info!(peer = address, %reason, "no link to peer");
                    }
                    Link::Down { reason, since }
                }
            };
            Arc::make_mut(links).insert(address.to_owned(), link);
            true
        });
    }

    /// A peer has linked to us: dials it at once if it was not reached.
    pub(crate) fn nudge(&self, address: &str) {
        let outboxes = self.outboxes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(outbox) = outboxes.get(address) {
            outbox.nudge();
        }
    }

    /// Hands a message to its inbox; false if there is no room for it.
    pub(crate) fn deliver(&self, from: &str, channel: Channel, body: Bytes) -> bool {
        let Ok(share) = u32::try_from(body.len()) else { return false };
        let Ok(share) = Arc::clone(&self.room).try_acquire_many_owned(share) else { return false };
        let envelope = Envelope { from: from.to_owned(), body, _share: Some(share) };
        match channel {
            Channel::Raft => self.raft.try_send(envelope).is_ok(),
            Channel::Beat => self.beats.try_send(envelope).is_ok(),
        }
    }
}

fn check(settings: &PeerSettings) -> Result<(), PeerError> {
    let PeerSettings { cluster, node, address, listen: _, secret, tls: _ } = settings;
    for (text, complaint) in [
        (cluster, "`cluster` must have 1 to 255 bytes and no control characters"),
        (node, "`node` must have 1 to 255 bytes and no control characters"),
        (address, "`address` must have 1 to 255 bytes and no control characters"),
    ] {
        if !handshake::is_name(text) {
            return Err(PeerError::Setting(complaint));
        }
    }
    if secret.is_empty() {
        return Err(PeerError::Setting("`secret` is empty; give all members the same long random text"));
    }
    Ok(())
}

async fn run(socket: std::net::TcpListener, shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) {
    let listener = match TcpListener::from_std(socket) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "could not listen for peers; no peer can reach this member");
            return;
        }
    };
    tokio::select! {
        () = accept::serve(listener, Arc::clone(&shared)) => {}
        () = dial::serve(shared) => {}
        _ = stopped.wait_for(|stop| *stop) => {}
    }
}

/// Nanoseconds of CLOCK_BOOTTIME; zero where the clock cannot be read, which no Linux of this decade does.
pub(crate) fn boot_nanos() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
        .ok()
        .and_then(|time| u64::try_from(Duration::from(time).as_nanos()).ok())
        .unwrap_or(0)
}
