//! A thread of the router: its own listeners, its own event loop, its own clients and links.
//!
//! Everything is edge-triggered and registered once: the ordinary query costs two reads, two writes and the
//! waits between them. A client and its link are on one thread, so nothing of a session is shared. Nothing here
//! may block; what takes long (names, look-ups, cancel requests) is the control task's.

pub mod client;
mod console;
mod drain;
mod ends;
mod flow;
mod hold;
mod identify;
pub mod link;
mod login;
mod openings;
mod pools;
mod reads;
mod reload;
mod rest;
mod secure;
mod socket;
mod tell;
mod tokens;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token};
use slab::Slab;
use socket2::SockRef;

use crate::judge::Judge;
use crate::orders::Order;
use crate::out::Out;
use crate::parameters::{Interned, Parameters};
use crate::positions::Reading;
use crate::session::Session;
use crate::settings::Settings;
use crate::shared::{ClientId, Note, PoolKey, Shared, Target};
use crate::statements::Statements;
use crate::stats::Asked;

use client::{Client, Errand, Phase};
use link::ServerLink;
use pools::Pool;
use socket::{SEALED_BYTES, Socket};

/// Room for one read and what was left of the one before.
const BUFFER_BYTES: usize = 256 * 1024;
/// The most that is read at once.
const READ_BYTES: usize = 64 * 1024;
/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 1024;
/// Clients accepted before others have their turn.
const ACCEPTS_MAX: usize = 256;
/// The pause after a client could not be accepted (no file descriptor is left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The longest sleep: the clock is looked at this often.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// The token of the letter box.
pub const WAKE: Token = Token(1);
/// What a token belongs to, in its two lowest bits; the place is above.
const LISTENER: usize = 0;
const CLIENT: usize = 2;
const LINK: usize = 3;

/// Something to do when the event at hand is dealt with.
enum Work {
    /// Go on reading a client.
    Client(usize),
    /// Go on reading a link.
    Link(usize),
    /// A link with this serial number is of no use any more.
    Drop(usize, u64),
    /// A client with this serial number has gone.
    Close(usize, u64),
}

/// Chance of the cheap kind (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}

/// A thread.
pub struct Worker {
    number: u16,
    shared: Arc<Shared>,
    /// What the router is told at this time; replaced when all threads are told.
    settings: Arc<Settings>,
    poll: Poll,
    listeners: Vec<TcpListener>,
    clients: Slab<Client>,
    links: Slab<ServerLink>,
    pools: Vec<Pool>,
    pool_numbers: HashMap<PoolKey, usize>,
    /// What may be done with texts, one for each database, and their numbers.
    judges: Vec<Judge>,
    judge_numbers: HashMap<String, usize>,
    statements: Statements,
    interned: Interned,
    defaults: Arc<Parameters>,
    buffer: Vec<u8>,
    /// Room for what is read inside TLS, as it came.
    sealed: Vec<u8>,
    out: Out,
    replies: Vec<u8>,
    work: VecDeque<Work>,
    target: Target,
    reading: Arc<Reading>,
    /// Reads that wait for a position, by the time until which they do; first the first.
    late: VecDeque<(Instant, ClientId)>,
    random: Random,
    silence_at: Instant,
    retire_at: Instant,
    now: Instant,
    serial: u64,
    /// Logins of clients by the time at which they have taken too long; first the first.
    logins: VecDeque<(Instant, ClientId)>,
    /// Logins of links likewise.
    openings: VecDeque<(Instant, usize, u64)>,
    accepts_at: Option<Instant>,
    /// Clients of the console that wait until a database is at rest, and when it is looked at again.
    pausing: VecDeque<(Instant, ClientId)>,
    /// Clients that are answered when more is known of the servers, and until when they wait for that.
    unsettled: VecDeque<(Instant, ClientId)>,
    /// Orders to say when nothing is under way on the leader.
    resting: Vec<Arc<Order>>,
}

impl Worker {
    /// A thread with this number in `shared.threads`.
    pub fn new(
        number: u16,
        shared: Arc<Shared>,
        poll: Poll,
        mut listeners: Vec<TcpListener>,
    ) -> io::Result<Self> {
        for (place, listener) in listeners.iter_mut().enumerate() {
            poll.registry().register(listener, Token(place << 2 | LISTENER), Interest::READABLE)?;
        }
        let mut interned = Interned::default();
        let defaults = interned.get(Parameters::default());
        let (target, reading) = shared.target();
        Ok(Self {
            number,
            target,
            reading,
            late: VecDeque::new(),
            random: Random(u64::from(number)),
            silence_at: Instant::now(),
            retire_at: Instant::now(),
            settings: shared.settings(),
            shared,
            poll,
            listeners,
            clients: Slab::new(),
            links: Slab::new(),
            pools: Vec::new(),
            pool_numbers: HashMap::new(),
            judges: Vec::new(),
            judge_numbers: HashMap::new(),
            statements: Statements::new(number),
            interned,
            defaults,
            buffer: vec![0; BUFFER_BYTES],
            sealed: vec![0; SEALED_BYTES],
            out: Out::default(),
            replies: Vec::new(),
            work: VecDeque::new(),
            now: Instant::now(),
            serial: 0,
            logins: VecDeque::new(),
            openings: VecDeque::new(),
            accepts_at: None,
            pausing: VecDeque::new(),
            unsettled: VecDeque::new(),
            resting: Vec::new(),
        })
    }

    /// Runs until the router ends.
    pub fn run(mut self) {
        let mut events = Events::with_capacity(EVENTS_MAX);
        while !self.shared.ends.load(Ordering::Relaxed) {
            let sleep = self.next_due().map_or(SLEEP_MAX, |due| due.saturating_duration_since(self.now));
            match self.poll.poll(&mut events, Some(sleep.min(SLEEP_MAX))) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!(%error, thread = self.number, "the router cannot wait for events; this thread ends");
                    return;
                }
            }
            self.now = Instant::now();
            // Links first: a server that has gone is known before anybody is given its link.
            for event in events.iter().filter(|event| event.token().0 & 3 == LINK) {
                self.link_event(event.token().0 >> 2, event);
            }
            for event in events.iter() {
                let token = event.token();
                match token.0 & 3 {
                    CLIENT => self.client_event(token.0 >> 2, event),
                    LISTENER => self.accept(),
                    _ if token == WAKE => self.notes(),
                    _ => {}
                }
            }
            self.timers();
            self.say_if_at_rest();
        }
        let farewell = drain::farewell();
        for slot in self.clients.iter().map(|(slot, _)| slot).collect::<Vec<_>>() {
            self.dismiss(slot, &farewell);
        }
    }

    fn link_event(&mut self, slot: usize, event: &mio::event::Event) {
        let Some(link) = self.links.get_mut(slot) else { return };
        link.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        link.hung_up |= event.is_read_closed() || event.is_error();
        if event.is_writable() {
            self.flush_link(slot);
        }
        self.work.push_back(Work::Link(slot));
        self.do_work();
    }

    fn client_event(&mut self, slot: usize, event: &mio::event::Event) {
        let Some(client) = self.clients.get_mut(slot) else { return };
        client.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        client.hung_up |= event.is_read_closed() || event.is_error();
        if event.is_writable() {
            self.flush_client(slot);
        }
        self.work.push_back(Work::Client(slot));
        self.do_work();
    }

    fn do_work(&mut self) {
        while let Some(work) = self.work.pop_front() {
            match work {
                Work::Client(slot) => self.pump_client(slot),
                Work::Link(slot) => self.pump_link(slot),
                Work::Drop(slot, serial) => self.drop_link(slot, serial),
                Work::Close(slot, serial) => self.close_client(slot, serial),
            }
        }
    }

    fn notes(&mut self) {
        for note in
            self.shared.threads.get(usize::from(self.number)).map(|inbox| inbox.take()).unwrap_or_default()
        {
            match note {
                Note::Target => self.retarget(),
                Note::Positions => {
                    self.serve_late();
                    self.look_at_unsettled();
                }
                Note::Catalogue(database, catalogue) => self.learn(&database, catalogue),
                Note::User(client, found) => self.looked_up(client, found),
                Note::Wanted(key) => self.wanted(&key),
                Note::Room(key) => self.may_open(&key),
                Note::Link(link) => self.adopt(*link),
                Note::Cancel { process, key, forwarded } => self.cancel(process, &key, forwarded),
                Note::Cancelled(slot, serial) => self.cancelled(slot, serial),
                Note::Drain => self.drain(),
                Note::Order(order) => self.obey(&order),
                Note::Ordered(order) => self.ordered(&order),
                Note::Reloaded(client, done) => self.reloaded(client, done),
            }
            self.do_work();
        }
    }

    fn accept(&mut self) {
        self.accepts_at = None;
        for place in 0..self.listeners.len() {
            let mut left = ACCEPTS_MAX;
            while let Some(listener) = self.listeners.get(place) {
                match listener.accept() {
                    Ok((stream, _)) => self.accepted(stream),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                    Err(error) => {
                        tracing::warn!(%error, "could not accept a client; trying again");
                        self.accepts_at = Some(self.now + ACCEPT_PAUSE);
                        break;
                    }
                }
                left -= 1;
                if left == 0 {
                    // The event has been used up: the rest is looked at when the others have had their turn.
                    self.accepts_at = Some(self.now);
                    break;
                }
            }
        }
    }

    fn accepted(&mut self, mut stream: mio::net::TcpStream) {
        self.serial += 1;
        let entry = self.clients.vacant_entry();
        let slot = entry.key();
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registered = self.poll.registry().register(&mut stream, Token(slot << 2 | CLIENT), interest);
        // Small answers do not wait for acknowledgements of earlier ones; a client whose host is gone is noticed.
        let tuned = |()| stream.set_nodelay(true).and_then(|()| SockRef::from(&stream).set_keepalive(true));
        if let Err(error) = registered.and_then(tuned) {
            tracing::debug!(%error, "a client went before it came");
            return;
        }
        let client = Client {
            socket: Socket::new(stream),
            serial: self.serial,
            since: self.now,
            phase: Phase::Opening(0),
            session: Session::new(self.defaults.clone()),
            pool: 0,
            link: None,
            fresh_link: false,
            errand: Errand::Nothing,
            asked: Asked::default(),
            waits: false,
            hold: None,
            wait_until: None,
            detour: None,
            misses: 0,
            hurries_until: None,
            busy: false,
            out: Vec::new(),
            inbox: Vec::new(),
            resumes: false,
            readable: false,
            hung_up: false,
            leaves: false,
            key: Vec::new(),
        };
        self.logins.push_back((self.now + self.settings.login_timeout, client.id(slot)));
        entry.insert(client);
        self.shared.clients.fetch_add(1, Ordering::Relaxed);
    }

    fn next_due(&self) -> Option<Instant> {
        let waits = self.pools.iter().filter_map(Pool::next_due);
        let logins = self.logins.front().map(|(due, _)| *due);
        let openings = self.openings.front().map(|(due, ..)| *due);
        let late = self.late.front().map(|(due, _)| *due);
        let pausing = self.pausing.front().map(|(due, _)| *due);
        let unsettled = self.unsettled.front().map(|(due, _)| *due);
        let queues = [logins, openings, late, pausing, unsettled, self.accepts_at];
        waits.chain(queues.into_iter().flatten()).min()
    }

    fn timers(&mut self) {
        if self.accepts_at.is_some_and(|at| at <= self.now) {
            self.accept();
        }
        while let Some((due, id)) = self.logins.front().copied().filter(|(due, _)| *due <= self.now) {
            self.logins.pop_front();
            let late = |client: &Client| {
                client.serial == id.serial && !matches!(client.phase, Phase::Session | Phase::Console(_))
            };
            if self.clients.get(id.slot).is_some_and(late) {
                tracing::debug!(?due, "a client did not log in in time");
                self.close_client(id.slot, id.serial);
            }
        }
        while let Some((_, slot, serial)) =
            self.openings.front().copied().filter(|(due, ..)| *due <= self.now)
        {
            self.openings.pop_front();
            let late = |link: &ServerLink| {
                let opens = link.stage.is_opening() || matches!(link.stage, link::Stage::Reset);
                link.serial == serial && opens
            };
            if self.links.get(slot).is_some_and(late) {
                self.drop_link(slot, serial);
            }
        }
        self.serve_pools();
        self.look_at_pauses();
        self.leave_silent();
        self.retire_links();
        if self.late.front().is_some_and(|(due, _)| *due <= self.now) {
            self.serve_late();
        }
        if self.unsettled.front().is_some_and(|(due, _)| *due <= self.now) {
            self.look_at_unsettled();
        }
        self.do_work();
    }
}
