//! Orders to all threads at once. Each carries one out and tells what it has; the last one answers who asked.
//!
//! Clients and links belong to one thread each, so nothing about them can be looked up from outside.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::shared::{ClientId, PoolKey, lock};
use crate::sql::Pin;
use crate::stats::{Counts, Histogram};

/// What the threads shall do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Tell of the pools.
    Tell,
    /// The same, and of every client and every link.
    TellEach,
    /// Say when nothing of a session is under way on the leader. Not carried out if sessions go on there before.
    Rest,
    /// Serve whoever waits: a database is not paused any more.
    Resume,
    /// Take over what the router is told now.
    Settings,
    /// Close links that are not to be used again.
    Renew,
    /// Close all clients and links of this database, or of all.
    Kill(Option<String>),
    /// Close the client with this number, as [`Socket::id`] has it.
    KillClient(u64),
}

/// Who asked.
#[derive(Debug)]
pub enum Asker {
    /// A client of the console, of this thread.
    Client(u16, ClientId),
    /// A task.
    Task(Mutex<Option<oneshot::Sender<Vec<Told>>>>),
}

/// An order.
#[derive(Debug)]
pub struct Order {
    /// What to do.
    pub what: What,
    asker: Asker,
    left: AtomicUsize,
    told: Mutex<Vec<Told>>,
}

/// What a thread tells.
#[derive(Debug, Default)]
pub struct Told {
    /// Its pools.
    pub pools: Vec<PoolTold>,
    /// Clients that have not logged in yet.
    pub logging_in: usize,
    /// Its clients, if they were asked for.
    pub clients: Vec<Socket>,
    /// Its links, if they were asked for.
    pub links: Vec<Socket>,
    /// The client that was to be closed was here.
    pub killed: bool,
}

/// A pool of a thread.
#[derive(Clone, Debug)]
pub struct PoolTold {
    /// Whose it is.
    pub key: PoolKey,
    /// Clients that do not wait for a link.
    pub clients_active: usize,
    /// Clients that do.
    pub clients_waiting: usize,
    /// How long the first of them has waited.
    pub waits: Duration,
    /// Links that sessions have.
    pub active: usize,
    /// Of these, how many have a cancel request on its way.
    pub being_canceled: usize,
    /// Links that nobody has.
    pub idle: usize,
    /// Links that are being cleaned.
    pub tested: usize,
    /// Links that log in.
    pub login: usize,
    /// Everything so far.
    pub counts: Counts,
    /// What was counted lately, and in how long.
    pub recent: (Counts, Duration),
    /// How long servers took to answer.
    pub queries: Histogram,
    /// How long clients waited for a link.
    pub wait_times: Histogram,
}

/// A client or a link.
#[derive(Clone, Debug)]
pub struct Socket {
    /// Unlike that of any other in this process.
    pub id: u64,
    /// The user.
    pub user: String,
    /// The database.
    pub database: String,
    /// What it does, in PgBouncer's words.
    pub state: &'static str,
    /// The other end.
    pub peer: Option<SocketAddr>,
    /// This end.
    pub local: Option<SocketAddr>,
    /// How long it has been here.
    pub age: Duration,
    /// How long ago it asked what has not been answered.
    pub asked: Option<Duration>,
    /// How long it has waited for a link.
    pub waits: Duration,
    /// It is closed as soon as nobody uses it.
    pub close_needed: bool,
    /// The number of the client that has the link, or of the link that the client has.
    pub other: Option<u64>,
    /// The server's process.
    pub process: u32,
    /// What TLS it is inside of; empty in the clear.
    pub tls: String,
    /// What the client calls itself.
    pub application_name: String,
    /// Statements that are prepared.
    pub prepared: usize,
    /// Why the session keeps its link.
    pub pinned: Option<Pin>,
}

impl Order {
    /// An order to so many threads.
    pub fn new(what: What, asker: Asker, threads: usize) -> Self {
        Self { what, asker, left: AtomicUsize::new(threads), told: Mutex::default() }
    }

    /// A thread has carried it out. If it was the last, a task that asked is answered; a client that asked is
    /// returned, for its thread to be told.
    pub fn done(&self, told: Told) -> Option<(u16, ClientId)> {
        lock(&self.told).push(told);
        if self.left.fetch_sub(1, Ordering::SeqCst) > 1 {
            return None;
        }
        match &self.asker {
            Asker::Client(thread, client) => Some((*thread, *client)),
            Asker::Task(answer) => {
                if let Some(answer) = lock(answer).take() {
                    // Who has gone meanwhile does not want it.
                    let _ = answer.send(self.take());
                }
                None
            }
        }
    }

    /// Who asked, if a client did.
    pub fn client(&self) -> Option<ClientId> {
        match self.asker {
            Asker::Client(_, client) => Some(client),
            Asker::Task(_) => None,
        }
    }

    /// What the threads told.
    pub fn take(&self) -> Vec<Told> {
        std::mem::take(&mut lock(&self.told))
    }
}

/// A number that no other socket of this process has.
pub fn socket_id(thread: u16, serial: u64) -> u64 {
    serial << 6 | u64::from(thread)
}

/// How long ago something was.
pub fn ago(now: Instant, at: Instant) -> Duration {
    now.saturating_duration_since(at)
}
