//! What threads and the control task share, and how they wake each other. Locks are held for a few instructions.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use antiphon_sql::Catalogue;
use mio::Waker;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::catalogues::Catalogues;
use crate::gates::Gates;
use crate::orders::{Asker, Order, Told, What};
use crate::pace::Pace;
use crate::positions::Reading;
use crate::routes::Routes;
use crate::secrets::{Credentials, Secret};
use crate::settings::{Settings, Source};
use crate::worker::link::ServerLink;

/// How long a client waits for a link of its own thread before it gets one of another.
const PATIENCE: Duration = Duration::from_millis(5);
/// How long a verifier is used without asking again.
const VERIFIER_FRESH: Duration = Duration::from_secs(5);
/// Verifiers that are kept.
const VERIFIERS_MAX: usize = 10_000;
/// What the key of a cancel request ends with that another router has handed on: it is not handed on again.
pub const FORWARDED: &[u8] = b"antiphon";
/// Names of servers that are kept.
const HOSTS_MAX: usize = 1000;

/// Where sessions go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// The newest epoch that is known; 0 before anything is.
    pub epoch: u64,
    /// The server of its leader; none while there is none that serves.
    pub leader: Option<SocketAddr>,
}

/// A client of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientId {
    /// Its place.
    pub slot: usize,
    /// Unlike that of any other client of the thread.
    pub serial: u64,
}

/// Whose links are alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PoolKey {
    /// The user.
    pub user: String,
    /// The database.
    pub database: String,
    /// Where they go.
    pub place: Place,
}

/// Where links go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// To whoever leads.
    Leader,
    /// To this server, as long as it may be read from.
    Follower(SocketAddr),
}

/// Settings that a server reports at a login, by name.
pub type Reported = Arc<Vec<(String, String)>>;

/// Something for a thread.
pub enum Note {
    /// The target has changed, or who may be read from.
    Target,
    /// Servers were sampled, and a client of this thread waits for that.
    Positions,
    /// What names of this database mean; none if that is not known any more.
    Catalogue(String, Option<Arc<Catalogue>>),
    /// A user was looked up: what is kept of its password, none if there is no such user, or what went wrong.
    User(ClientId, Result<Option<Secret>, String>),
    /// Another thread wants links that nobody uses here.
    Wanted(PoolKey),
    /// A link was given up: this thread, whose turn it is, may open one.
    Room(PoolKey),
    /// A link of another thread, for a client of this one.
    Link(Box<ServerLink>),
    /// The client with this number and key wants its statement cancelled.
    Cancel {
        /// The client's number.
        process: u32,
        /// Its key.
        key: Vec<u8>,
        /// Another router has handed it on.
        forwarded: bool,
    },
    /// A cancel request for this link has been dealt with: its place and serial number.
    Cancelled(usize, u64),
    /// The router is about to end.
    Drain,
    /// All threads shall do this.
    Order(Arc<Order>),
    /// All threads have done what a client of this one wants.
    Ordered(Arc<Order>),
    /// The file was read again for this client of the console: what waits for a restart, or why nothing has changed.
    Reloaded(ClientId, Result<Vec<&'static str>, String>),
}

/// Something for the control task.
pub enum Ask {
    /// Read what names mean in this database, now and from now on.
    Catalogue(String),
    /// Read the file again, for a client of this thread's console.
    Reload(u16, ClientId),
    /// Look a user up.
    User {
        /// Who asks.
        thread: u16,
        /// For whom.
        client: ClientId,
        /// The user.
        user: String,
    },
    /// Hand a cancel request on to the other routers: the client with this number and key is none of this one's.
    Forward {
        /// The client's number.
        process: u32,
        /// Its key.
        key: Vec<u8>,
    },
    /// Send a cancel request.
    Cancel {
        /// Who asks.
        thread: u16,
        /// The link's place and serial number there.
        link: (usize, u64),
        /// The server.
        server: SocketAddr,
        /// The server's process.
        process: u32,
        /// Its key.
        key: Vec<u8>,
    },
}

/// A thread's letter box.
pub struct Inbox {
    notes: Mutex<VecDeque<Note>>,
    waker: Waker,
    /// Clients of the thread wait for positions.
    pub waits: AtomicBool,
    /// Where statements of its clients went, by reason.
    pub routes: Routes,
}

impl Inbox {
    /// One that wakes by this.
    pub fn new(waker: Waker) -> Self {
        Self { notes: Mutex::default(), waker, waits: AtomicBool::new(false), routes: Routes::default() }
    }

    /// Hands a note over.
    pub fn put(&self, note: Note) {
        lock(&self.notes).push_back(note);
        if let Err(error) = self.waker.wake() {
            tracing::error!(%error, "could not wake a thread of the router");
        }
    }

    /// All notes so far.
    pub fn take(&self) -> VecDeque<Note> {
        std::mem::take(&mut *lock(&self.notes))
    }
}

/// Links of a user to a database, over all threads.
#[derive(Default)]
pub struct Budget {
    used: AtomicUsize,
    /// Links that nobody uses now, in all threads.
    pub idle: AtomicUsize,
    tickets: Mutex<VecDeque<(u16, Instant)>>,
    tickets_count: AtomicUsize,
    /// The settings that servers report at a login.
    pub greeting: Mutex<Option<Reported>>,
    /// What the user proved last.
    pub credentials: Mutex<Option<Credentials>>,
}

impl Budget {
    /// Takes the right to open a link, if one is left.
    pub fn take(&self, max: u32) -> bool {
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        let next = |used: usize| (used < max).then_some(used + 1);
        self.used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next).is_ok()
    }

    /// Whether there are more links than there may be: fewer are allowed than before.
    pub fn is_overdrawn(&self, max: u32) -> bool {
        self.used.load(Ordering::SeqCst) > usize::try_from(max).unwrap_or(usize::MAX)
    }

    /// Gives it back.
    pub fn give_back(&self) {
        self.used.fetch_sub(1, Ordering::SeqCst);
    }

    /// A client of this thread waits for a link that somebody gives up.
    pub fn queue(&self, thread: u16, now: Instant) {
        lock(&self.tickets).push_back((thread, now));
        self.tickets_count.fetch_add(1, Ordering::SeqCst);
    }

    /// Who gets a link that `thread` gives up: whoever has waited longest, but one of the thread's own as long as
    /// no other has waited for [`PATIENCE`]: a link that stays costs no system call and wakes nobody.
    pub fn next(&self, thread: u16, now: Instant) -> Option<u16> {
        if self.tickets_count.load(Ordering::SeqCst) == 0 {
            return None;
        }
        let mut tickets = lock(&self.tickets);
        let (first, since) = *tickets.front()?;
        let waited = now.saturating_duration_since(since) >= PATIENCE;
        let own =
            if first == thread || waited { None } else { tickets.iter().position(|(of, _)| *of == thread) };
        let (next, _) = tickets.remove(own.unwrap_or(0))?;
        self.tickets_count.fetch_sub(1, Ordering::SeqCst);
        Some(next)
    }
}

/// Everything that is shared.
pub struct Shared {
    settings: watch::Sender<Arc<Settings>>,
    /// Where the file is read again.
    pub source: Source,
    /// The file is read by one at a time.
    pub reloads: tokio::sync::Mutex<()>,
    /// The threads' letter boxes.
    pub threads: Vec<Inbox>,
    /// The control task's.
    pub control: mpsc::Sender<Ask>,
    /// Clients at this time.
    pub clients: AtomicUsize,
    /// How many of them wait because nobody leads.
    pub held: Arc<AtomicUsize>,
    /// The router ends.
    pub ends: AtomicBool,
    /// It is about to: nobody is let in, and who is done goes.
    pub drains: AtomicBool,
    /// Called when the last client has gone.
    pub emptied: Notify,
    /// What impossible verifiers are made of.
    pub secret: [u8; 32],
    /// How often servers are sampled.
    pub pace: Pace,
    /// What names mean.
    pub catalogues: Catalogues,
    /// What the console has closed.
    pub gates: Gates,
    feeds: AtomicU64,
    began: Instant,
    target: Mutex<(Target, Arc<Reading>)>,
    hosts: RwLock<HashMap<SocketAddr, String>>,
    verifiers: RwLock<HashMap<String, (Option<Secret>, Instant)>>,
    budgets: Mutex<HashMap<PoolKey, Arc<Budget>>>,
}

impl Shared {
    /// The beginning, with these letter boxes.
    pub fn new(
        settings: Settings,
        source: Source,
        threads: Vec<Inbox>,
        control: mpsc::Sender<Ask>,
        secret: [u8; 32],
    ) -> Self {
        Self {
            settings: watch::Sender::new(Arc::new(settings)),
            source,
            reloads: tokio::sync::Mutex::default(),
            threads,
            control,
            clients: AtomicUsize::new(0),
            held: Arc::default(),
            ends: AtomicBool::new(false),
            drains: AtomicBool::new(false),
            emptied: Notify::new(),
            secret,
            pace: Pace::default(),
            catalogues: Catalogues::default(),
            gates: Gates::default(),
            feeds: AtomicU64::default(),
            began: Instant::now(),
            target: Mutex::default(),
            hosts: RwLock::default(),
            verifiers: RwLock::default(),
            budgets: Mutex::default(),
        }
    }

    /// What the router is told at this time. A thread uses its own copy, which it is given with an order.
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.borrow().clone()
    }

    /// The same, for a task that must hear of changes.
    pub fn watch_settings(&self) -> watch::Receiver<Arc<Settings>> {
        self.settings.subscribe()
    }

    /// The router is told something else from now on. Threads have to be ordered to look.
    pub fn set_settings(&self, settings: Arc<Settings>) {
        // Whoever was let in or not by what was asked of the old ones is looked up anew.
        self.verifiers.write().unwrap_or_else(PoisonError::into_inner).clear();
        self.settings.send_replace(settings);
    }

    /// A number that no feed has had.
    pub fn feed_number(&self) -> u64 {
        self.feeds.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Where sessions go now, to write and to read.
    pub fn target(&self) -> (Target, Arc<Reading>) {
        lock(&self.target).clone()
    }

    /// Sessions go elsewhere from now on; reads, too, if that is given.
    pub fn set_target(&self, target: Target, reading: Option<Reading>) {
        {
            let mut known = lock(&self.target);
            known.0 = target;
            if let Some(reading) = reading {
                known.1 = Arc::new(reading);
            }
        }
        self.tell_all(|| Note::Target);
    }

    /// What the members call a server; its address if they have not spoken of it.
    pub fn host(&self, server: SocketAddr) -> String {
        let hosts = self.hosts.read().unwrap_or_else(PoisonError::into_inner);
        hosts.get(&server).cloned().unwrap_or_else(|| server.ip().to_string())
    }

    /// The members call a server so.
    pub fn set_host(&self, server: SocketAddr, host: &str) {
        let mut hosts = self.hosts.write().unwrap_or_else(PoisonError::into_inner);
        if hosts.len() >= HOSTS_MAX {
            hosts.clear();
        }
        hosts.insert(server, host.to_owned());
    }

    /// Where statements went, over all threads.
    pub fn routes(&self) -> Routes {
        let sum = Routes::default();
        self.threads.iter().for_each(|inbox| sum.add(&inbox.routes));
        sum
    }

    /// Has every thread do something for a task, which hears when all have.
    pub fn ask(&self, what: What) -> oneshot::Receiver<Vec<Told>> {
        let (answer, told) = oneshot::channel();
        self.order(Order::new(what, Asker::Task(Mutex::new(Some(answer))), self.threads.len()));
        told
    }

    /// Has every thread carry out an order.
    pub fn order(&self, order: Order) {
        let order = Arc::new(order);
        self.tell_all(|| Note::Order(order.clone()));
    }

    /// Hands a note to every thread.
    pub fn tell_all(&self, note: impl Fn() -> Note) {
        self.threads.iter().for_each(|inbox| inbox.put(note()));
    }

    /// The schema of a database has changed: nobody knows what names mean until that was read again.
    pub fn schema_changed(&self, database: &str) {
        self.catalogues.changed(database, || self.tell_all(|| Note::Catalogue(database.to_owned(), None)));
        self.want_catalogue(database);
    }

    /// What names mean in a database is wanted. If too much is asked for, it is asked for again at the next use.
    pub fn want_catalogue(&self, database: &str) {
        if self.control.try_send(Ask::Catalogue(database.to_owned())).is_err() {
            tracing::debug!(database, "a catalogue could not be asked for");
        }
    }

    /// The router's clock in milliseconds, never 0.
    pub fn clock_ms(&self) -> u64 {
        self.ms_of(Instant::now())
    }

    /// A time by the router's clock.
    pub fn ms_of(&self, at: Instant) -> u64 {
        let passed = at.saturating_duration_since(self.began).as_millis();
        u64::try_from(passed).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// A server was sampled: whoever waits for that looks again.
    pub fn sampled(&self) {
        for inbox in self.threads.iter().filter(|inbox| inbox.waits.load(Ordering::SeqCst)) {
            inbox.put(Note::Positions);
        }
    }

    /// The links of a user to a database at one place.
    pub fn budget(&self, key: &PoolKey) -> Arc<Budget> {
        lock(&self.budgets).entry(key.clone()).or_default().clone()
    }

    /// What is known of a user, and whether that is fresh.
    pub fn secret_of(&self, user: &str) -> Option<(Option<Secret>, bool)> {
        let verifiers = self.verifiers.read().unwrap_or_else(PoisonError::into_inner);
        let (verifier, at) = verifiers.get(user)?;
        Some((verifier.clone(), at.elapsed() < VERIFIER_FRESH))
    }

    /// A user was looked up.
    pub fn set_secret(&self, user: &str, verifier: Option<Secret>) {
        let mut verifiers = self.verifiers.write().unwrap_or_else(PoisonError::into_inner);
        if verifiers.len() >= VERIFIERS_MAX {
            verifiers.retain(|_, (verifier, at)| verifier.is_some() && at.elapsed() < VERIFIER_FRESH);
        }
        if verifiers.len() < VERIFIERS_MAX {
            verifiers.insert(user.to_owned(), (verifier, Instant::now()));
        }
    }

    /// Somebody wants a statement cancelled: the thread that has its client is in the client's number.
    pub fn cancel(&self, process: u32, key: Vec<u8>, forwarded: bool) {
        match self.threads.get((process >> 24) as usize) {
            Some(inbox) => inbox.put(Note::Cancel { process, key, forwarded }),
            None if forwarded => {}
            None => self.forward(process, key),
        }
    }

    /// A cancel request is for no client of this router. If too much is asked for, it is dropped, as any may be.
    pub fn forward(&self, process: u32, key: Vec<u8>) {
        if !self.settings.borrow().peers.is_empty()
            && self.control.try_send(Ask::Forward { process, key }).is_err()
        {
            tracing::debug!("a cancel request could not be handed on");
        }
    }

    /// Hands a note to a thread.
    pub fn note(&self, thread: u16, note: Note) {
        if let Some(inbox) = self.threads.get(usize::from(thread)) {
            inbox.put(note);
        }
    }
}

/// A lock whose holder cannot have left it half-changed: every change under it is one step.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_never_overdrawn_and_serves_in_order() {
        let budget = Budget::default();
        assert!(budget.take(2) && budget.take(2) && !budget.take(2));
        budget.give_back();
        assert!(budget.take(2));
        assert!(budget.is_overdrawn(1) && !budget.is_overdrawn(2));
        let start = Instant::now();
        for thread in [1, 0, 0] {
            budget.queue(thread, start);
        }
        assert_eq!(budget.next(0, start), Some(0), "a thread's own first, for a moment");
        assert_eq!(budget.next(0, start + PATIENCE), Some(1), "and then whoever was first");
        assert_eq!(budget.next(2, start), Some(0), "whoever has none of its own helps others at once");
        assert_eq!(budget.next(0, start), None);
    }
}
