//! Links of one user to one database at one place: taken, given back, waited for, and passed to other threads.
//!
//! The number of links is bounded over all threads. A client for whom no link may be opened queues with a
//! ticket, in one order over all threads; who gives up a link gives it to the thread whose ticket is first. Nobody
//! waits long for a follower: the leader answers, too.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mio::{Interest, Token};

use super::client::{Phase, Wish};
use super::link::{Idle, ServerLink, Stage};
use super::{LINK, Work, Worker};
use crate::gates::Gate;
use crate::judge::Judge;
use crate::routes::Reason;
use crate::session::Reads;
use crate::shared::{Budget, ClientId, Note, Place, PoolKey};
use crate::stats::Stats;
use crate::wire::messages::{Complaint, Severity};

/// Users and databases that a thread serves.
const POOLS_MAX: usize = 1000;
/// How long a read waits for a link to a follower before it goes to the leader.
const FOLLOWER_WAIT: Duration = Duration::from_millis(250);
/// Who waits because the console paused the database is not turned away; it is looked at again after this.
const PAUSED_LOOK: Duration = Duration::from_secs(1);

/// A client that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiter {
    pub(super) client: ClientId,
    pub(super) since: Instant,
    /// When it has waited too long.
    due: Instant,
}

/// A pool as one thread sees it.
pub(super) struct Pool {
    pub(super) key: PoolKey,
    pub(super) budget: Arc<Budget>,
    /// The budget of the same user and database at the leader, which has what the user proved.
    pub(super) home: Arc<Budget>,
    /// What may be done with texts of the database, by its number.
    pub(super) judge: usize,
    /// The pools of the same user and database at followers.
    pub(super) followers: Vec<(SocketAddr, usize)>,
    pub(super) idle: Idle,
    /// Clients that wait for a link.
    pub(super) waiting: VecDeque<Waiter>,
    /// Clients that wait until a server has told of itself.
    pub(super) greeting: VecDeque<Waiter>,
    pub(super) opening: usize,
    /// Tickets of this thread that are in the queue of all threads.
    tickets: usize,
    pub(super) retry_at: Option<Instant>,
    /// The last attempt to reach the server failed.
    pub(super) unreachable: bool,
    /// What the console has closed of the database.
    pub(super) gate: Arc<Gate>,
    /// What was done.
    pub(super) stats: Stats,
}

impl Pool {
    /// When something must be done even if nothing happens.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let front = |queue: &VecDeque<Waiter>| queue.front().map(|waiter| waiter.due);
        let retry = self.retry_at.filter(|_| self.wants() > self.opening);
        front(&self.waiting).into_iter().chain(front(&self.greeting)).chain(retry).min()
    }

    pub(super) fn wants(&self) -> usize {
        self.waiting.len() + usize::from(!self.greeting.is_empty())
    }

    /// Everybody who waits here.
    pub(super) fn waiters(&self) -> impl Iterator<Item = &Waiter> {
        self.waiting.iter().chain(&self.greeting)
    }
}

impl Worker {
    /// The pool of a user and a database at the leader; none if there are too many.
    pub(super) fn pool_of(&mut self, wish: &Wish) -> Option<usize> {
        let key = PoolKey { user: wish.user.clone(), database: wish.database.clone(), place: Place::Leader };
        self.pool_with(key)
    }

    /// The pool with this key; none if there are too many.
    pub(super) fn pool_with(&mut self, key: PoolKey) -> Option<usize> {
        if let Some(known) = self.pool_numbers.get(&key) {
            return Some(*known);
        }
        if self.pools.len() >= POOLS_MAX {
            return None;
        }
        let number = self.pools.len();
        let judge = match self.judge_numbers.get(&key.database) {
            Some(known) => *known,
            None => {
                let mut judge = Judge::default();
                judge.learn(self.shared.catalogues.get(&key.database));
                self.judges.push(judge);
                self.judge_numbers.insert(key.database.clone(), self.judges.len() - 1);
                self.judges.len() - 1
            }
        };
        self.pools.push(Pool {
            budget: self.shared.budget(&key),
            home: self.shared.budget(&PoolKey { place: Place::Leader, ..key.clone() }),
            gate: self.shared.gates.of(&key.database),
            key: key.clone(),
            judge,
            followers: Vec::new(),
            idle: Idle::new(),
            waiting: VecDeque::new(),
            greeting: VecDeque::new(),
            opening: 0,
            tickets: 0,
            retry_at: None,
            unreachable: false,
            stats: Stats::new(self.now),
        });
        self.pool_numbers.insert(key, number);
        Some(number)
    }

    /// The server that links of a pool go to now; none if nobody may have one.
    pub(super) fn server_of(&self, number: usize) -> Option<SocketAddr> {
        match self.pools.get(number)?.key.place {
            _ if self.is_paused(number) => None,
            Place::Leader => self.target.leader,
            Place::Follower(address) => self.follower_at(address).map(|follower| follower.address),
        }
    }

    /// Whether the console lets nobody have a link of a pool.
    pub(super) fn is_paused(&self, number: usize) -> bool {
        self.pools.get(number).is_some_and(|pool| self.shared.gates.is_paused(&pool.gate))
    }

    /// Whether a link may not be given to anybody any more.
    pub(super) fn is_outlived(&self, link: &ServerLink) -> bool {
        let pool = self.pools.get(link.pool);
        if pool.is_some_and(|pool| self.shared.gates.renewals(&pool.gate) != link.renewals) {
            return true;
        }
        match link.key_of.place {
            Place::Leader => link.epoch < self.target.epoch && self.target.leader.is_some(),
            // Which epoch it was opened in does not matter: the server as a whole follows the leader or not.
            Place::Follower(address) => self.follower_at(address).is_none(),
        }
    }

    pub(super) fn wait_for_greeting(&mut self, pool: usize, client: ClientId) {
        if let Err(complaint) = self.hold(client.slot, pool) {
            return self.dismiss(client.slot, &Complaint { severity: Severity::Fatal, ..complaint });
        }
        let due = self.now + self.settings.failover_hold;
        if let Some(pool) = self.pools.get_mut(pool) {
            pool.greeting.push_back(Waiter { client, since: self.now, due });
        }
        self.open_links(pool);
    }

    /// Gives a client a link of a pool, or has its round answered with an error; false if it has to wait.
    pub(super) fn take_link(&mut self, slot: usize, number: usize) -> bool {
        let serves = self.server_of(number).is_some();
        let (Some(client), Some(pool)) = (self.clients.get_mut(slot), self.pools.get_mut(number)) else {
            return false;
        };
        let link = if serves { pool.idle.pop_back() } else { None };
        if let Some(link) = link {
            pool.budget.idle.fetch_sub(1, Ordering::SeqCst);
            pool.stats.counts.assignments += 1;
            client.link = Some(link);
            client.fresh_link = true;
            if let Some(link) = self.links.get_mut(link) {
                link.client = Some(slot);
            }
            return true;
        }
        if let Err(complaint) = self.hold(slot, number) {
            self.refuse_round(slot, complaint);
            return true;
        }
        let (Some(client), Some(pool)) = (self.clients.get_mut(slot), self.pools.get_mut(number)) else {
            return false;
        };
        client.waits = true;
        let most = match pool.key.place {
            Place::Leader => self.settings.failover_hold,
            Place::Follower(_) => FOLLOWER_WAIT.min(self.settings.failover_hold),
        };
        pool.waiting.push_back(Waiter { client: client.id(slot), since: self.now, due: self.now + most });
        self.open_links(number);
        false
    }

    /// Asks other threads for links, for as many clients as none can be opened for.
    pub(super) fn queue(&mut self, number: usize) {
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
        if let Some(number) =
            self.pool_numbers.get(key).copied().filter(|number| self.server_of(*number).is_some())
        {
            self.share(number);
        }
    }

    /// Another thread gave up a link, and this one's ticket was first.
    pub(super) fn may_open(&mut self, key: &PoolKey) {
        let Some(number) = self.pool_numbers.get(key).copied() else { return };
        self.redeem(number);
        self.open_links(number);
    }

    pub(super) fn redeem(&mut self, number: usize) {
        if let Some(pool) = self.pools.get_mut(number) {
            pool.tickets = pool.tickets.saturating_sub(1);
        }
    }

    /// Gives idle links to whose turn it is.
    fn share(&mut self, number: usize) {
        while self.server_of(number).is_some() {
            let Some(pool) = self.pools.get_mut(number) else { return };
            if pool.idle.is_empty() {
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
        let client = self.links.get_mut(slot).and_then(|link| link.client.take());
        if let Some(number) = client
            && let Some(client) = self.clients.get_mut(number)
        {
            client.leave_link(&self.reading);
            client.session.again.never();
            if std::mem::take(&mut client.busy) {
                client.resumes = true;
                self.work.push_back(Work::Client(number));
            }
            if std::mem::take(&mut client.session.changed_schema) {
                let pool = client.pool;
                self.tell_of_schema(pool);
            }
            self.leave_if_done(number);
        }
        let Some(link) = self.links.get_mut(slot) else { return };
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
        let (number, serial) = (link.pool, link.serial);
        let Some(link) = self.links.get(slot) else { return };
        let useless = self.is_outlived(link) || self.is_too_old(link) || self.is_surplus(link);
        if useless || !link.wire.answers.is_empty() {
            self.work.push_back(Work::Drop(slot, serial));
            return;
        }
        let Some(pool) = self.pools.get(number) else { return };
        match pool.budget.next(self.number, self.now) {
            Some(thread) if self.server_of(number).is_some() => {
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
        if let Some(link) = self.links.get_mut(slot) {
            link.idle_since = self.now;
        }
        pool.idle.push_back(slot);
        pool.budget.idle.fetch_add(1, Ordering::SeqCst);
    }

    /// Gives a link to the client of this thread that has waited longest; false if none waits.
    fn grant(&mut self, slot: usize, number: usize) -> bool {
        if self.server_of(number).is_none() {
            return false;
        }
        let now_ms = self.shared.ms_of(self.now);
        let Some(pool) = self.pools.get_mut(number) else { return false };
        while let Some(Waiter { client: id, since, .. }) = pool.waiting.pop_front() {
            let waits =
                self.clients.get_mut(id.slot).filter(|client| client.serial == id.serial && client.waits);
            let (Some(client), Some(link)) = (waits, self.links.get_mut(slot)) else { continue };
            client.waits = false;
            client.hold = None;
            client.resumes = true;
            self.work.push_back(Work::Client(id.slot));
            if !client.errand.still_holds(now_ms) {
                // Where it was to read has changed meanwhile: it is looked for again.
                client.leave_link(&self.reading);
                client.session.reads = Reads::No;
                continue;
            }
            client.link = Some(slot);
            client.fresh_link = true;
            link.client = Some(id.slot);
            pool.stats.counts.assignments += 1;
            pool.stats.waited(self.now.saturating_duration_since(since));
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
        if let Err(error) = self.poll.registry().deregister(&mut link.socket.tcp) {
            tracing::warn!(%error, "a link could not be moved to another thread; it is closed");
            return self.gave_up(number);
        }
        self.shared.note(thread, Note::Link(Box::new(link)));
    }

    /// Takes a link over from another thread.
    pub(super) fn adopt(&mut self, mut link: ServerLink) {
        let budget = self.shared.budget(&link.key_of);
        let Some(number) = self.pool_with(link.key_of.clone()) else { return budget.give_back() };
        self.serial += 1;
        let entry = self.links.vacant_entry();
        let slot = entry.key();
        let interest = Interest::READABLE | Interest::WRITABLE;
        let tcp = &mut link.socket.tcp;
        if let Err(error) = self.poll.registry().register(tcp, Token(slot << 2 | LINK), interest) {
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
        let outlived = |link: &ServerLink| match link.key_of.place {
            Place::Leader => link.epoch < self.target.epoch,
            Place::Follower(_) => self.is_outlived(link),
        };
        if self.links.get(slot).is_some_and(outlived) {
            return self.offer(slot);
        }
        if !self.grant(slot, number) {
            self.set_aside(slot, number);
            self.share(number);
        }
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

    pub(super) fn give_up_waiting(&mut self, id: ClientId, complaint: &Complaint) {
        let waits = |client: &super::client::Client| {
            client.serial == id.serial && (client.waits || matches!(client.phase, Phase::Greeting(_)))
        };
        if self.clients.get(id.slot).is_some_and(waits) {
            self.dismiss(id.slot, complaint);
        }
    }

    /// Sessions go elsewhere, or nowhere for now.
    pub(super) fn retarget(&mut self) {
        let (target, reading) = self.shared.target();
        let before = std::mem::replace(&mut self.target, target);
        self.reading = reading;
        let now = self.target;
        let leads = now.leader.is_some() && before != now;
        if now.leader.is_some() {
            self.resting.clear();
        }
        if before != now {
            tracing::debug!(thread = self.number, ?before, ?now, "sessions go elsewhere");
        }
        let useless = |link: &ServerLink| match link.key_of.place {
            Place::Leader => leads && (link.epoch < now.epoch || Some(link.server) != now.leader),
            // What is being read may be read to its end.
            Place::Follower(_) => link.client.is_none() && self.is_outlived(link),
        };
        let old = self.links.iter().filter(|(_, link)| useless(link));
        let old: Vec<_> = old.map(|(slot, link)| (slot, link.serial)).collect();
        for (slot, serial) in old {
            self.drop_link(slot, serial);
        }
        self.look_at_unsettled();
        for number in 0..self.pools.len() {
            match self.pools.get(number).map(|pool| pool.key.place) {
                Some(Place::Leader) if !leads => self.hold_all(number),
                Some(Place::Follower(_)) if self.server_of(number).is_none() => {
                    self.detour_all(number, Reason::NoneWell);
                }
                Some(Place::Leader | Place::Follower(_)) => {
                    if let Some(pool) = self.pools.get_mut(number) {
                        pool.retry_at = None;
                    }
                    self.serve(number);
                }
                None => {}
            }
        }
    }

    /// Who waits may go on: a database is not paused any more.
    pub(super) fn serve_all(&mut self) {
        for number in 0..self.pools.len() {
            self.serve(number);
        }
    }

    /// Closes links that nobody uses and that nobody shall be given any more.
    pub(super) fn drop_outlived(&mut self) {
        let old = self.links.iter().filter(|(_, link)| link.client.is_none() && self.is_outlived(link));
        let old: Vec<_> = old.map(|(slot, link)| (slot, link.serial)).collect();
        for (slot, serial) in old {
            self.drop_link(slot, serial);
        }
    }

    /// Gives idle links of a pool to who waits, and opens what is missing.
    fn serve(&mut self, number: usize) {
        self.share(number);
        while self.server_of(number).is_some() {
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
            pool.stats.age(self.now);
            let paused = self.shared.gates.is_paused(&pool.gate);
            let mut late = Vec::new();
            for queue in [&mut pool.waiting, &mut pool.greeting] {
                while let Some(waiter) = queue.front().copied().filter(|waiter| waiter.due <= self.now) {
                    if paused {
                        let due = self.now + self.settings.failover_hold.max(PAUSED_LOOK);
                        queue.iter_mut().for_each(|waiter| waiter.due = due);
                        break;
                    }
                    queue.pop_front();
                    late.push(waiter.client);
                }
            }
            if pool.retry_at.is_some_and(|at| at <= self.now) {
                // Whatever comes of it: what is due for ever would keep the thread awake.
                pool.retry_at = None;
                self.open_links(number);
            }
            if self.pools.get(number).is_some_and(|pool| pool.key.place != Place::Leader) {
                late.into_iter().for_each(|id| self.detour(id, Reason::Busy));
                continue;
            }
            for id in late {
                let hold = self.settings.failover_hold;
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
