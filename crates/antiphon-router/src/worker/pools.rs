//! Links of one user to one database: taken, given back, opened, waited for, and passed to other threads.
//!
//! The number of links is bounded over all threads. A client for whom no link may be opened queues with a
//! ticket, in one order over all threads; who gives up a link gives it to the thread whose ticket is first.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Interest, Token};

use super::client::{Phase, Wish};
use super::link::{Idle, ServerLink, Stage};
use super::{LINK, Work, Worker};
use crate::login::ServerLogin;
use crate::session::{Farewell, Link};
use crate::shared::{Budget, ClientId, Note, PoolKey, lock};
use crate::wire::messages::{self, Complaint};

/// Users and databases that a thread serves.
const POOLS_MAX: usize = 1000;
/// The pause before another attempt to reach a server that could not be reached.
const RETRY_PAUSE: Duration = Duration::from_millis(25);
/// How long logging in to a server, or cleaning a link, may take.
pub(super) const OPENING_MAX: Duration = Duration::from_secs(5);

/// A pool as one thread sees it.
pub(super) struct Pool {
    pub(super) key: PoolKey,
    pub(super) budget: Arc<Budget>,
    idle: Idle,
    /// Clients that wait for a link, and until when.
    waiting: VecDeque<(ClientId, Instant)>,
    /// Clients that wait until a server has told of itself, and until when.
    greeting: VecDeque<(ClientId, Instant)>,
    opening: usize,
    /// Tickets of this thread that are in the queue of all threads.
    tickets: usize,
    retry_at: Option<Instant>,
}

impl Pool {
    /// When something must be done even if nothing happens.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let front = |queue: &VecDeque<(ClientId, Instant)>| queue.front().map(|(_, due)| *due);
        let retry = self.retry_at.filter(|_| self.wants() > self.opening);
        front(&self.waiting).into_iter().chain(front(&self.greeting)).chain(retry).min()
    }

    fn wants(&self) -> usize {
        self.waiting.len() + usize::from(!self.greeting.is_empty())
    }
}

impl Worker {
    /// The pool of a user and a database; none if there are too many.
    pub(super) fn pool_of(&mut self, wish: &Wish) -> Option<usize> {
        let key = (wish.user.clone(), wish.database.clone());
        if let Some(known) = self.pool_numbers.get(&key) {
            return Some(*known);
        }
        if self.pools.len() >= POOLS_MAX {
            return None;
        }
        let number = self.pools.len();
        self.pools.push(Pool {
            key: key.clone(),
            budget: self.shared.budget(&key),
            idle: Idle::new(),
            waiting: VecDeque::new(),
            greeting: VecDeque::new(),
            opening: 0,
            tickets: 0,
            retry_at: None,
        });
        self.pool_numbers.insert(key, number);
        Some(number)
    }

    pub(super) fn wait_for_greeting(&mut self, pool: usize, client: ClientId) {
        let due = self.now + self.shared.settings.failover_hold;
        if let Some(pool) = self.pools.get_mut(pool) {
            pool.greeting.push_back((client, due));
        }
        self.open_links(pool);
    }

    /// Gives a client a link; false if it has to wait.
    pub(super) fn attach(&mut self, slot: usize) -> bool {
        let Some(client) = self.clients.get_mut(slot) else { return false };
        let number = client.pool;
        let Some(pool) = self.pools.get_mut(number) else { return false };
        let link = if self.target.leader.is_some() { pool.idle.pop_back() } else { None };
        if let Some(link) = link {
            pool.budget.idle.fetch_sub(1, Ordering::SeqCst);
            client.link = Some(link);
            client.fresh_link = true;
            if let Some(link) = self.links.get_mut(link) {
                link.client = Some(slot);
            }
            return true;
        }
        client.waits = true;
        pool.waiting.push_back((client.id(slot), self.now + self.shared.settings.failover_hold));
        self.open_links(number);
        false
    }

    /// Asks other threads for links, for as many clients as none can be opened for.
    fn queue(&mut self, number: usize) {
        let Some(pool) = self.pools.get_mut(number) else { return };
        let missing = pool.wants().saturating_sub(pool.opening + pool.tickets);
        if missing == 0 {
            return;
        }
        // First the tickets, then the look: who puts a link aside does it the other way round.
        for _ in 0..missing {
            pool.budget.queue(self.number, self.now);
        }
        pool.tickets += missing;
        if pool.budget.idle.load(Ordering::SeqCst) > pool.idle.len() {
            for (thread, inbox) in self.shared.threads.iter().enumerate() {
                if thread != usize::from(self.number) {
                    inbox.put(Note::Wanted(pool.key.clone()));
                }
            }
        }
    }

    /// Another thread wants links of this user and database that nobody uses here.
    pub(super) fn wanted(&mut self, key: &PoolKey) {
        if let Some(number) = self.pool_numbers.get(key).copied().filter(|_| self.target.leader.is_some()) {
            self.share(number);
        }
    }

    /// Another thread gave up a link, and this one's ticket was first.
    pub(super) fn may_open(&mut self, key: &PoolKey) {
        let Some(number) = self.pool_numbers.get(key).copied() else { return };
        self.redeem(number);
        self.open_links(number);
    }

    fn redeem(&mut self, number: usize) {
        if let Some(pool) = self.pools.get_mut(number) {
            pool.tickets = pool.tickets.saturating_sub(1);
        }
    }

    /// Gives idle links to whose turn it is.
    fn share(&mut self, number: usize) {
        loop {
            let Some(pool) = self.pools.get_mut(number) else { return };
            if pool.idle.is_empty() || self.target.leader.is_none() {
                return;
            }
            let Some(thread) = pool.budget.next(self.number, self.now) else { return };
            let Some(link) = pool.idle.pop_back() else { return };
            pool.budget.idle.fetch_sub(1, Ordering::SeqCst);
            self.hand(link, thread);
        }
    }

    /// The session of a link has no use for it any more.
    pub(super) fn release(&mut self, slot: usize) {
        let Some(link) = self.links.get_mut(slot) else { return };
        if let Some(client) = link.client.take().and_then(|client| self.clients.get_mut(client)) {
            client.link = None;
            client.session.again.never();
        }
        if link.cancels > 0 {
            // The request would hit the next session's statement.
            link.stage = Stage::Cancelling;
            return;
        }
        self.offer(slot);
    }

    /// A link that nobody has goes to whoever is next.
    pub(super) fn offer(&mut self, slot: usize) {
        let Some(link) = self.links.get_mut(slot) else { return };
        link.stage = Stage::Ready;
        if link.epoch < self.target.epoch && self.target.leader.is_some() || !link.wire.answers.is_empty() {
            self.work.push_back(Work::Drop(slot, link.serial));
            return;
        }
        let number = link.pool;
        let Some(pool) = self.pools.get(number) else { return };
        match pool.budget.next(self.number, self.now) {
            Some(thread) if self.target.leader.is_some() => {
                self.hand(slot, thread);
                // If whoever had the ticket has gone, it is the next one's turn.
                self.share(number);
            }
            Some(thread) => {
                pool.budget.queue(thread, self.now);
                self.set_aside(slot, number);
            }
            None if self.grant(slot, number) => {}
            None => {
                self.set_aside(slot, number);
                self.share(number);
            }
        }
    }

    fn set_aside(&mut self, slot: usize, number: usize) {
        let Some(pool) = self.pools.get_mut(number) else { return };
        pool.idle.push_back(slot);
        pool.budget.idle.fetch_add(1, Ordering::SeqCst);
    }

    /// Gives a link to the client of this thread that has waited longest; false if none waits.
    fn grant(&mut self, slot: usize, number: usize) -> bool {
        if self.target.leader.is_none() {
            return false;
        }
        let Some(pool) = self.pools.get_mut(number) else { return false };
        while let Some((id, _)) = pool.waiting.pop_front() {
            let waits =
                self.clients.get_mut(id.slot).filter(|client| client.serial == id.serial && client.waits);
            let (Some(client), Some(link)) = (waits, self.links.get_mut(slot)) else { continue };
            client.waits = false;
            client.link = Some(slot);
            client.fresh_link = true;
            client.resumes = true;
            link.client = Some(id.slot);
            self.work.push_back(Work::Client(id.slot));
            return true;
        }
        false
    }

    /// Hands a link to a thread whose ticket was first.
    fn hand(&mut self, slot: usize, thread: u16) {
        let Some(number) = self.links.get(slot).map(|link| link.pool) else { return };
        if thread == self.number {
            self.redeem(number);
            if !self.grant(slot, number) {
                self.set_aside(slot, number);
            }
            return;
        }
        let Some(mut link) = self.links.try_remove(slot) else { return };
        if let Err(error) = self.poll.registry().deregister(&mut link.stream) {
            tracing::warn!(%error, "a link could not be moved to another thread; it is closed");
            return self.gave_up(number);
        }
        self.shared.note(thread, Note::Link(Box::new(link)));
    }

    /// Takes a link over from another thread.
    pub(super) fn adopt(&mut self, mut link: ServerLink) {
        let wish = Wish { user: link.key_of.0.clone(), database: link.key_of.1.clone(), minor: 0 };
        let budget = self.shared.budget(&link.key_of);
        let Some(number) = self.pool_of(&wish) else { return budget.give_back() };
        self.serial += 1;
        let entry = self.links.vacant_entry();
        let slot = entry.key();
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().register(&mut link.stream, Token(slot << 2 | LINK), interest)
        {
            tracing::warn!(%error, "a link could not be taken over; it is closed");
            return self.gave_up(number);
        }
        link.pool = number;
        link.serial = self.serial;
        entry.insert(link);
        self.redeem(number);
        self.offer_own(slot, number);
    }

    /// A link that came for a client of this thread.
    fn offer_own(&mut self, slot: usize, number: usize) {
        if self.links.get(slot).is_some_and(|link| link.epoch < self.target.epoch) {
            return self.offer(slot);
        }
        if !self.grant(slot, number) {
            self.set_aside(slot, number);
            self.share(number);
        }
    }

    /// Opens links as long as somebody waits for one; if no more may be opened, queues for those of others.
    pub(super) fn open_links(&mut self, number: usize) {
        loop {
            let now = self.now;
            let Some(pool) = self.pools.get_mut(number) else { return };
            let Some(server) = self.target.leader else { return };
            if pool.retry_at.is_some_and(|at| at > now) || pool.opening >= pool.wants() {
                return;
            }
            if !pool.budget.take(self.shared.settings.pool_size) {
                return self.queue(number);
            }
            pool.opening += 1;
            if let Err(error) = self.open_link(number, server) {
                tracing::debug!(%error, %server, "could not begin to connect to a server");
                self.pause_opening(number);
                return self.gave_up(number);
            }
        }
    }

    fn open_link(&mut self, number: usize, server: std::net::SocketAddr) -> std::io::Result<()> {
        let mut nonce = [0; crate::scram::NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(|error| std::io::Error::other(error.to_string()))?;
        let mut stream = TcpStream::connect(server)?;
        self.serial += 1;
        let entry = self.links.vacant_entry();
        let slot = entry.key();
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(slot << 2 | LINK), interest)?;
        stream.set_nodelay(true)?;
        let Some(pool) = self.pools.get(number) else { return Ok(()) };
        let (user, database) = &pool.key;
        let credentials = lock(&pool.budget.credentials).clone();
        entry.insert(ServerLink {
            stream,
            serial: self.serial,
            pool: number,
            key_of: pool.key.clone(),
            epoch: self.target.epoch,
            server,
            stage: Stage::Login(Box::new(ServerLogin::new(credentials, nonce))),
            wire: Link::new(self.defaults.clone()),
            client: None,
            // Written when the connection stands.
            out: messages::start(&[("user", user), ("database", database)]),
            inbox: Vec::new(),
            readable: false,
            hung_up: false,
            process: 0,
            key: Vec::new(),
            cancels: 0,
        });
        self.openings.push_back((self.now + OPENING_MAX, slot, self.serial));
        Ok(())
    }

    /// A link that died is not idle any more.
    pub(super) fn forget_idle(&mut self, number: usize, slot: usize) {
        let Some(pool) = self.pools.get_mut(number) else { return };
        let before = pool.idle.len();
        pool.idle.retain(|idle| *idle != slot);
        if pool.idle.len() < before {
            pool.budget.idle.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// An attempt to open a link failed: the next one waits a moment.
    pub(super) fn pause_opening(&mut self, number: usize) {
        let retry_at = Some(self.now + RETRY_PAUSE);
        if let Some(pool) = self.pools.get_mut(number) {
            pool.opening = pool.opening.saturating_sub(1);
            pool.retry_at = retry_at;
        }
    }

    /// A link of a pool is no more: somebody may open another one.
    pub(super) fn gave_up(&mut self, number: usize) {
        let Some(pool) = self.pools.get(number) else { return };
        pool.budget.give_back();
        match pool.budget.next(self.number, self.now) {
            Some(thread) if thread != self.number => self.shared.note(thread, Note::Room(pool.key.clone())),
            Some(_) => {
                self.redeem(number);
                self.open_links(number);
            }
            None => self.open_links(number),
        }
    }

    /// A link has logged in.
    pub(super) fn opened(&mut self, slot: usize, greeting: Vec<(String, String)>) {
        let Some(number) = self.links.get(slot).map(|link| link.pool) else { return };
        let Some(pool) = self.pools.get_mut(number) else { return };
        pool.opening = pool.opening.saturating_sub(1);
        *lock(&pool.budget.greeting) = Some(Arc::new(greeting));
        for (id, _) in std::mem::take(&mut pool.greeting) {
            let waits = |client: &super::client::Client| {
                client.serial == id.serial && matches!(client.phase, Phase::Greeting(_))
            };
            if self.clients.get(id.slot).is_some_and(waits) {
                self.greeted(id.slot);
            }
        }
        self.offer(slot);
    }

    /// A server refused a login.
    pub(super) fn opening_failed(&mut self, slot: usize, why: &Farewell) {
        let Some(link) = self.links.get(slot) else { return };
        let (number, serial) = (link.pool, link.serial);
        self.work.push_back(Work::Drop(slot, serial));
        // Starting, stopping, full or a standby yet: this passes.
        if why.code.starts_with("57P") || why.code == "53300" {
            return;
        }
        let Some(pool) = self.pools.get_mut(number) else { return };
        tracing::info!(
            user = pool.key.0,
            database = pool.key.1,
            why.code,
            why.message,
            "a server refused a login"
        );
        // What was proved once may not be the password any more.
        *lock(&pool.budget.credentials) = None;
        let waiting = std::mem::take(&mut pool.waiting).into_iter().chain(std::mem::take(&mut pool.greeting));
        let complaint = Complaint::fatal("28000", "the server did not let this user in")
            .with_detail(Some(format!("The server said: {} ({})", why.message, why.code)));
        for (id, _) in waiting.collect::<Vec<_>>() {
            self.give_up_waiting(id, &complaint);
        }
    }

    fn give_up_waiting(&mut self, id: ClientId, complaint: &Complaint) {
        let waits = |client: &super::client::Client| {
            client.serial == id.serial && (client.waits || matches!(client.phase, Phase::Greeting(_)))
        };
        if self.clients.get(id.slot).is_some_and(waits) {
            self.dismiss(id.slot, complaint);
        }
    }

    /// Sessions go elsewhere, or nowhere for now.
    pub(super) fn retarget(&mut self) {
        let before = std::mem::replace(&mut self.target, self.shared.target());
        tracing::debug!(thread = self.number, ?before, now = ?self.target, "sessions go elsewhere");
        if self.target.leader.is_none() {
            return;
        }
        let old = self
            .links
            .iter()
            .filter(|(_, link)| link.epoch < self.target.epoch || Some(link.server) != self.target.leader);
        let old: Vec<_> = old.map(|(slot, link)| (slot, link.serial)).collect();
        for (slot, serial) in old {
            self.drop_link(slot, serial);
        }
        for number in 0..self.pools.len() {
            if let Some(pool) = self.pools.get_mut(number) {
                pool.retry_at = None;
            }
            self.serve(number);
        }
    }

    /// Gives idle links of a pool to who waits, and opens what is missing.
    fn serve(&mut self, number: usize) {
        self.share(number);
        while self.target.leader.is_some() {
            let Some(pool) = self.pools.get_mut(number) else { return };
            if pool.waiting.is_empty() {
                break;
            }
            let Some(link) = pool.idle.pop_back() else { break };
            pool.budget.idle.fetch_sub(1, Ordering::SeqCst);
            if !self.grant(link, number) {
                self.set_aside(link, number);
            }
        }
        self.open_links(number);
    }

    /// What is due in the pools: waits that took too long, and another attempt to reach a server.
    pub(super) fn serve_pools(&mut self) {
        for number in 0..self.pools.len() {
            let Some(pool) = self.pools.get_mut(number) else { return };
            let mut late = Vec::new();
            for queue in [&mut pool.waiting, &mut pool.greeting] {
                while let Some((id, _)) = queue.front().copied().filter(|(_, due)| *due <= self.now) {
                    queue.pop_front();
                    late.push(id);
                }
            }
            if pool.retry_at.is_some_and(|at| at <= self.now) {
                // Whatever comes of it: what is due for ever would keep the thread awake.
                pool.retry_at = None;
                self.open_links(number);
            }
            for id in late {
                let hold = self.shared.settings.failover_hold;
                let complaint = match self.target.leader {
                    Some(_) => {
                        Complaint::fatal("53300", format!("no server connection was free within {hold:?}"))
                    }
                    None => Complaint::fatal("57P03", format!("the cluster had no leader for {hold:?}")),
                };
                self.give_up_waiting(id, &complaint);
            }
        }
    }
}
