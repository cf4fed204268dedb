//! The default store: Raft among the cluster's members, in this process, with a log of its own.
//!
//! [`RaftStore`] is a handle; the member behind it ([`node::Node`]) is stepped by a thread of its own,
//! because it flushes the log and because load in the rest of the program must not look like death to its
//! peers. When the member stops for an error, every call says so: it never goes on with what it cannot trust.

mod bridge;
mod calls;
mod codec;
mod disk;
mod log;
mod machine;
mod members;
mod node;
mod pace;
mod packet;
mod storage;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use antiphon_peer::{Envelope, Link, Peers};
use async_trait::async_trait;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::error;

use self::calls::{Reply, Wish};
use self::node::{Node, Windows};
use self::pace::Pace;
use crate::{Snapshot, Store, StoreError, Transaction, space};

pub use self::disk::DiskError;

/// Calls that wait for the member's thread.
const CALL_QUEUE_MAX: usize = 512;
/// Messages and calls that are taken before the log is flushed for all of them.
const BATCH_MAX: usize = 256;
/// What a call waits longer than the member's own deadline, in case its thread hangs on the disk.
const GRACE: Duration = Duration::from_millis(500);

/// How a Raft member is started.
#[derive(Debug)]
pub struct RaftSettings {
    /// The member's directory; it is made if missing.
    pub data_dir: PathBuf,
    /// The links to the other members. The store decides whom they dial ([`Peers::set_peers`]).
    pub peers: Peers,
    /// What arrives for Raft.
    pub inbox: mpsc::Receiver<Envelope>,
    /// The address that peers know this member by.
    pub address: String,
    /// The addresses that the cluster begins with; the same on every member. Later changes of the membership
    /// are in the log, and this list then only says whom to ask.
    pub members: Vec<String>,
    /// Never found a cluster: wait until [`RaftStore::add_member`] is called on one of its members.
    pub join: bool,
    /// Times.
    pub timings: RaftTimings,
}

/// The times of a Raft member.
#[derive(Clone, Copy, Debug)]
pub struct RaftTimings {
    /// What the others are counted in.
    pub tick: Duration,
    /// A leader is heard this often, in ticks.
    pub heartbeat_ticks: usize,
    /// A leader that is not heard for one to two times this, in ticks, is replaced.
    pub election_ticks: usize,
    /// How long a commit or a read waits for a majority.
    pub call_limit: Duration,
    /// How long a change of the membership waits.
    pub change_limit: Duration,
}

impl Default for RaftTimings {
    /// Heartbeats every 100 ms, elections after 250 to 500 ms, 2 s for calls, 30 s for membership changes.
    fn default() -> Self {
        Self {
            tick: Duration::from_millis(10),
            heartbeat_ticks: 10,
            election_ticks: 25,
            call_limit: Duration::from_secs(2),
            change_limit: Duration::from_secs(30),
        }
    }
}

impl RaftTimings {
    fn call_ticks(&self) -> u64 {
        self.ticks(self.call_limit)
    }

    fn change_ticks(&self) -> u64 {
        self.ticks(self.change_limit)
    }

    fn ticks(&self, span: Duration) -> u64 {
        let ticks = span.as_nanos() / self.tick.as_nanos().max(1);
        u64::try_from(ticks).unwrap_or(u64::MAX).max(1)
    }
}

/// Why a Raft member could not start, or stopped.
#[derive(Debug, Error)]
pub enum RaftError {
    /// Its files cannot be used, or could not be written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The library refused.
    #[error("the raft library refused")]
    Raft(#[source] raft::Error),
    /// A committed entry that this release does not understand.
    #[error("entry {0} of the log is not of this release; start the release that the other members run")]
    Entry(u64),
    /// The thread could not be started.
    #[error("could not start the raft thread")]
    Thread(#[source] std::io::Error),
    /// The links to peers are gone.
    #[error("the links to peers were closed")]
    LinksClosed,
}

/// One member of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftMember {
    /// Its Raft id, drawn with its directory.
    pub id: u64,
    /// Its peer address.
    pub address: String,
    /// Whether it votes; if not, it is catching up.
    pub votes: bool,
}

/// What a member knows of the store's state, for people to look at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RaftStatus {
    /// This member's Raft id.
    pub node: u64,
    /// The peer address of the leader, if one is known. A member that is cut off may name a former one.
    pub leader: Option<String>,
    /// The term.
    pub term: u64,
    /// The last entry known to be committed.
    pub commit_index: u64,
    /// The last entry applied.
    pub applied_index: u64,
    /// Everyone in the cluster, by address.
    pub members: Vec<RaftMember>,
}

/// What can be asked of a member.
enum Call {
    Commit(Transaction, Reply<u64>),
    Read(Reply<Arc<Snapshot>>),
    Change(Wish, Reply<()>),
}

/// A handle on this member. Cheap to clone; the member stops when the last clone is dropped.
#[derive(Clone)]
pub struct RaftStore {
    calls: mpsc::Sender<Call>,
    space: watch::Receiver<Arc<Snapshot>>,
    status: watch::Receiver<RaftStatus>,
    timings: RaftTimings,
    failure: Arc<OnceLock<String>>,
    // After `calls`: the thread ends when the last sender is gone, and is then waited for.
    _thread: Arc<Thread>,
}

struct Thread(Mutex<Option<JoinHandle<()>>>);

impl Drop for Thread {
    fn drop(&mut self) {
        if let Some(handle) = self.0.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            // Ends within one turn. A panic in it was caught and recorded.
            let _ = handle.join();
        }
    }
}

impl RaftStore {
    /// Opens the member's directory and starts it. Returns before the cluster has a leader.
    pub fn start(settings: RaftSettings) -> Result<Self, RaftError> {
        let windows = Windows { space: watch::Sender::new(Arc::default()), status: watch::Sender::default() };
        let (space, status) = (windows.space.subscribe(), windows.status.subscribe());
        let node = Node::open(&settings, windows)?;
        let RaftSettings { peers, inbox, timings, .. } = settings;
        let (calls, called) = mpsc::channel(CALL_QUEUE_MAX);
        let failure = Arc::new(OnceLock::new());
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(RaftError::Thread)?;
        let handle = std::thread::Builder::new()
            .name("raft".to_owned())
            .spawn({
                let failure = Arc::clone(&failure);
                move || {
                    antiphon_peer::priority::raise();
                    // The library panics where its own invariants break: this member is then not to be
                    // trusted.
                    let run = AssertUnwindSafe(|| runtime.block_on(run(node, peers, inbox, called, timings)));
                    let why = match catch_unwind(run) {
                        Ok(Ok(())) => return,
                        Ok(Err(error)) => describe(&error),
                        Err(_) => "a broken invariant; the panic before this line says which".to_owned(),
                    };
                    error!(why, "this member of the store stopped; the others go on without it");
                    let _ = failure.set(why);
                }
            })
            .map_err(RaftError::Thread)?;
        let thread = Thread(Mutex::new(Some(handle)));
        Ok(Self { calls, space, status, timings, failure, _thread: Arc::new(thread) })
    }

    /// Lets the member at `address`, which waits without state, into the cluster and returns once it votes.
    /// [`StoreError::Timeout`] if it did not show up or catch up in time; it may still do so later.
    pub async fn add_member(&self, address: &str) -> Result<(), StoreError> {
        self.ask(self.timings.change_limit, |reply| Call::Change(Wish::Add(address.to_owned()), reply)).await
    }

    /// Takes the member at `address` out of the cluster and returns once it is out. Ask another member than
    /// the one to be removed: that one need not learn of it. To let it in again, remove its directory first.
    pub async fn remove_member(&self, address: &str) -> Result<(), StoreError> {
        self.ask(self.timings.change_limit, |reply| Call::Change(Wish::Remove(address.to_owned()), reply))
            .await
    }

    /// Everyone in the cluster, as this member knows.
    pub fn members(&self) -> Vec<RaftMember> {
        self.status.borrow().members.clone()
    }

    /// What this member knows of the store.
    pub fn status(&self) -> RaftStatus {
        self.status.borrow().clone()
    }

    /// [`RaftStore::status`], pushed on every change.
    pub fn watch_status(&self) -> watch::Receiver<RaftStatus> {
        self.status.clone()
    }

    async fn ask<T>(&self, limit: Duration, call: impl FnOnce(Reply<T>) -> Call) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        match self.calls.try_send(call(reply)) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                return Err(StoreError::Unavailable("too many calls wait for this member".to_owned()));
            }
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(self.stopped()),
        }
        match timeout(limit + GRACE, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(self.stopped()),
            Err(_) => Err(StoreError::Timeout(limit)),
        }
    }

    fn stopped(&self) -> StoreError {
        let why = self.failure.get().map_or("it is stopping", String::as_str);
        StoreError::Unavailable(format!("this member stopped: {why}"))
    }
}

#[async_trait]
impl Store for RaftStore {
    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
        space::check(&transaction)?;
        self.ask(self.timings.call_limit, |reply| Call::Commit(transaction, reply)).await
    }

    async fn read(&self) -> Result<Arc<Snapshot>, StoreError> {
        self.ask(self.timings.call_limit, Call::Read).await
    }

    fn watch(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.space.clone()
    }

    fn voters(&self) -> Option<Vec<String>> {
        let status = self.status.borrow();
        let voters = status.members.iter().filter(|member| member.votes);
        Some(voters.map(|member| member.address.clone()).collect())
    }
}

/// What the member's thread is woken by.
enum Event {
    /// The rest is over.
    Time,
    /// Someone asks.
    Call(Call),
    /// A peer speaks.
    Message(Envelope),
    /// A link came up or went down.
    Links(Arc<BTreeMap<String, Link>>),
}

/// Feeds the member until all handles are gone. Nothing else runs on this thread, so that a flush holds up
/// nobody but this member.
async fn run(
    mut node: Node,
    peers: Peers,
    mut inbox: mpsc::Receiver<Envelope>,
    mut called: mpsc::Receiver<Call>,
    timings: RaftTimings,
) -> Result<(), RaftError> {
    let mut pace = Pace::new(timings.tick, Instant::now());
    let mut links = peers.links();
    node.see_links(&links.borrow_and_update().clone());
    loop {
        pace.rest(node.rest());
        let event = tokio::select! {
            biased;
            () = sleep_until(pace.over()) => Event::Time,
            call = called.recv() => match call {
                Some(call) => Event::Call(call),
                None => return Ok(()),
            },
            envelope = inbox.recv() => match envelope {
                Some(envelope) => Event::Message(envelope),
                None => return Err(RaftError::LinksClosed),
            },
            changed = links.changed() => {
                changed.map_err(|_| RaftError::LinksClosed)?;
                Event::Links(Arc::clone(&links.borrow_and_update()))
            }
        };
        // Time first: it passed before the event came, and what is due now is counted from now.
        for _ in 0..pace.passed(Instant::now()) {
            node.tick()?;
        }
        match event {
            Event::Time => {}
            Event::Call(call) => node.call(call),
            Event::Message(envelope) => node.receive(&envelope)?,
            Event::Links(links) => node.see_links(&links),
        }
        for _ in 0..BATCH_MAX {
            let Ok(envelope) = inbox.try_recv() else { break };
            node.receive(&envelope)?;
        }
        for _ in 0..BATCH_MAX {
            let Ok(call) = called.try_recv() else { break };
            node.call(call);
        }
        node.turn()?;
    }
}

/// An error with what caused it, in one line.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
