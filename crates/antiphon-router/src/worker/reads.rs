//! Where a session's next round goes: to a follower if it is a read and one is far enough, else to the leader.
//!
//! The first read after a write goes to the leader at once. The next ones wait a little for a follower, so that a
//! session comes back to followers; one that waited in vain does not wait again for a while. What a follower does
//! not answer, for whatever reason, the leader does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use antiphon_sql::Catalogue;

use super::client::Errand;
use super::pools::Pool;
use super::{Work, Worker};
use crate::judge::Judge;
use crate::loss::Refusal;
use crate::own::Went;
use crate::pace::Wish;
use crate::positions::{Choice, Consistency, Follower, choose};
use crate::route::{self, Look};
use crate::routes::Reason;
use crate::session::{Lost, Reads, Status};
use crate::shared::{ClientId, Place, PoolKey};

/// After a wait in vain a session does not wait for so many times as long.
const HURRIES_FOR: u32 = 5;

/// How often it is looked whether followers are silent, at most.
const SILENCE_LOOK: Duration = Duration::from_millis(250);
/// A read is given up after its follower was silent at so many looks, and if it has left the cluster, at so many.
const SILENT_LOOKS_MAX: u32 = 3;
const LEFT_LOOKS_MAX: u32 = 40;

/// Where a round goes.
enum Route {
    Leader(Reason),
    /// To this one, by the number of the pool.
    Follower(usize, Arc<Follower>, Reads),
    /// It waits for a position.
    Later,
}

/// What may be done with texts of a pool's database.
pub(super) fn judge_of<'a>(judges: &'a mut [Judge], pools: &[Pool], pool: usize) -> &'a mut Judge {
    let number = pools.get(pool).map_or(0, |pool| pool.judge);
    judges.get_mut(number).expect("a session has a pool, and a pool its database's judge")
}

impl Worker {
    /// Gives a client a link to where the round at the front of `input` goes; false if it has to wait.
    pub(super) fn attach(&mut self, slot: usize, input: &[u8]) -> bool {
        let route = self.route(slot, input);
        match &route {
            Route::Later => return false,
            Route::Leader(reason) => self.count(*reason),
            Route::Follower(..) => self.count(Reason::Follower),
        }
        let Some(client) = self.clients.get_mut(slot) else { return false };
        let number = match route {
            Route::Later => return false,
            Route::Leader(reason) => {
                client.errand = Errand::Leader;
                client.session.reads = Reads::No;
                client.session.only_reads = match reason {
                    Reason::Strong
                    | Reason::NoneWell
                    | Reason::NoneFarEnough
                    | Reason::Lagging
                    | Reason::Busy => true,
                    Reason::Follower
                    | Reason::Off
                    | Reason::Pinned
                    | Reason::NotARead
                    | Reason::NotWhole
                    | Reason::Paused
                    | Reason::Refused => false,
                };
                client.session.went = Some(Went::Leader(reason));
                client.pool
            }
            Route::Follower(number, follower, reads) => {
                follower.busy.fetch_add(1, Ordering::Relaxed);
                client.session.reads = reads;
                client.session.went = Some(Went::Follower(follower.name.clone()));
                let connection = follower.feed.connection();
                client.errand = Errand::Follower(follower, connection);
                client.misses = 0;
                number
            }
        };
        self.take_link(slot, number)
    }

    fn count(&self, reason: Reason) {
        if let Some(inbox) = self.shared.threads.get(usize::from(self.number)) {
            inbox.routes.count(reason);
        }
    }

    fn route(&mut self, slot: usize, input: &[u8]) -> Route {
        if self.settings.reads.is_none() {
            return Route::Leader(Reason::Off);
        }
        let paused = self.clients.get(slot).is_some_and(|client| self.is_paused(client.pool));
        let Some(client) = self.clients.get_mut(slot) else { return Route::Later };
        let session = &mut client.session;
        if let Some(reason) = client.detour.take() {
            return Route::Leader(reason);
        }
        if paused {
            return Route::Leader(Reason::Paused);
        }
        if session.status != Status::Idle || session.lost != Lost::Nothing || session.begins.is_some() {
            return Route::Leader(Reason::NotARead);
        }
        let judge = judge_of(&mut self.judges, &self.pools, client.pool);
        if judge.wants_catalogue()
            && let Some(pool) = self.pools.get(client.pool)
        {
            self.shared.want_catalogue(&pool.key.database);
        }
        if !session.parameters.suit_followers(session.plain_texts) {
            return Route::Leader(Reason::NotARead);
        }
        let reads = match route::look(session, input, judge) {
            Look::Reads => Reads::Round,
            Look::Begins(text) => Reads::Begun(text),
            Look::Leader(reason) => {
                client.misses = 0;
                return Route::Leader(reason);
            }
        };
        if session.consistency == Consistency::Strong {
            return Route::Leader(Reason::Strong);
        }
        let now_ms = self.shared.ms_of(self.now);
        self.shared.pace.wish(Wish::Read, now_ms);
        let (level, random) = (session.consistency, self.random.next());
        let Some(balance) = self.settings.reads.as_ref().map(|reads| &reads.balance) else {
            return Route::Leader(Reason::Off);
        };
        match choose(&self.reading, &mut session.floor, level, now_ms, balance, random) {
            Choice::One(place) => {
                client.wait_until = None;
                let follower = self.reading.followers.get(place).cloned();
                let number = follower.as_ref().and_then(|follower| self.pool_at(slot, follower.address));
                match follower.zip(number) {
                    Some((follower, number)) => Route::Follower(number, follower, reads),
                    None => Route::Leader(Reason::NoneWell),
                }
            }
            Choice::NoneWell => Route::Leader(Reason::NoneWell),
            Choice::Lagging => Route::Leader(Reason::Lagging),
            Choice::NoneFarEnough => {
                self.shared.pace.wish(Wish::Urgent, now_ms);
                self.wait_or_go(slot)
            }
        }
    }

    /// No follower is far enough for a read: it waits, or goes to the leader.
    fn wait_or_go(&mut self, slot: usize) -> Route {
        let wait = self.settings.reads.as_ref().map_or_else(Default::default, |reads| reads.causal_wait);
        let now = self.now;
        let Some(client) = self.clients.get_mut(slot) else { return Route::Later };
        let waited = client.wait_until.take();
        let hurries = client.hurries_until.is_some_and(|until| until > now);
        let until = match waited {
            Some(until) => Some(until),
            None if client.misses == 0 || hurries || wait.is_zero() => None,
            None => Some(now + wait),
        };
        if let Some(until) = until.filter(|until| *until > now) {
            client.wait_until = Some(until);
            client.waits = true;
            let id = client.id(slot);
            self.late.push_back((until, id));
            if let Some(inbox) = self.shared.threads.get(usize::from(self.number)) {
                inbox.waits.store(true, Ordering::SeqCst);
            }
            return Route::Later;
        }
        if waited.is_some() {
            let followers = self.reading.followers.iter().map(|follower| follower.feed.lsn());
            tracing::debug!(
                floor = ?client.session.floor,
                leader = self.reading.leader.as_ref().map(|feed| feed.lsn()),
                followers = ?followers.collect::<Vec<_>>(),
                "a read waited in vain for a follower"
            );
            client.hurries_until = Some(now + wait * HURRIES_FOR);
        }
        client.misses = client.misses.saturating_add(1);
        Route::Leader(Reason::NoneFarEnough)
    }

    /// Reads that wait for a position go on if there is one now, or they have waited long enough.
    pub(super) fn serve_late(&mut self) {
        let now_ms = self.shared.ms_of(self.now);
        let settings = self.settings.clone();
        let reads = settings.reads.as_ref();
        for (until, id) in std::mem::take(&mut self.late) {
            let waits = |client: &&mut super::Client| {
                client.serial == id.serial && client.waits && client.wait_until == Some(until)
            };
            let Some(client) = self.clients.get_mut(id.slot).filter(waits) else { continue };
            let session = &mut client.session;
            let choice = reads.map(|reads| {
                choose(&self.reading, &mut session.floor, session.consistency, now_ms, &reads.balance, 0)
            });
            if until > self.now && matches!(choice, Some(Choice::NoneFarEnough)) {
                self.late.push_back((until, id));
                continue;
            }
            client.waits = false;
            client.resumes = true;
            self.work.push_back(Work::Client(id.slot));
        }
        if self.late.is_empty()
            && self.unsettled.is_empty()
            && let Some(inbox) = self.shared.threads.get(usize::from(self.number))
        {
            inbox.waits.store(false, Ordering::SeqCst);
        }
    }

    /// What names of a database mean is known, or not any more.
    pub(super) fn learn(&mut self, database: &str, catalogue: Option<Arc<Catalogue>>) {
        let judge = self.judge_numbers.get(database).and_then(|number| self.judges.get_mut(*number));
        if let Some(judge) = judge {
            judge.learn(catalogue);
        }
    }

    /// The session's link is free of it, and it had sent what changes the meaning of names.
    pub(super) fn tell_of_schema(&self, pool: usize) {
        // Counted when it was sent, too; what was prepared between the two is of before.
        self.shared.gates.schemas.changed();
        if self.settings.reads.is_some()
            && let Some(pool) = self.pools.get(pool)
        {
            self.shared.schema_changed(&pool.key.database);
        }
    }

    /// The pool of a client's user and database at a follower; none if there are too many pools.
    fn pool_at(&mut self, slot: usize, address: SocketAddr) -> Option<usize> {
        let home = self.clients.get(slot)?.pool;
        let pool = self.pools.get(home)?;
        if let Some((_, number)) = pool.followers.iter().find(|(at, _)| *at == address) {
            return Some(*number);
        }
        let number = self.pool_with(PoolKey { place: Place::Follower(address), ..pool.key.clone() })?;
        self.pools.get_mut(home)?.followers.push((address, number));
        Some(number)
    }

    /// The follower with this address, if it may be read from.
    pub(super) fn follower_at(&self, address: SocketAddr) -> Option<&Arc<Follower>> {
        self.reading.followers.iter().find(|follower| follower.address == address)
    }

    /// A follower refused a connection or broke one.
    pub(super) fn ban(&self, address: SocketAddr) {
        if let Some(follower) = self.follower_at(address) {
            tracing::debug!(follower = &*follower.name, "a follower is left alone for a while");
            follower.ban(self.shared.ms_of(self.now));
        }
    }

    /// A client that waits for a link to a follower goes to the leader.
    pub(super) fn detour(&mut self, id: ClientId, reason: Reason) {
        let waits = self.clients.get_mut(id.slot).filter(|client| client.serial == id.serial && client.waits);
        let Some(client) = waits else { return };
        client.leave_link(&self.reading);
        client.waits = false;
        client.resumes = true;
        client.detour = Some(reason);
        self.work.push_back(Work::Client(id.slot));
    }

    /// All clients that wait for links of a pool go to the leader.
    pub(super) fn detour_all(&mut self, number: usize, reason: Reason) {
        let Some(pool) = self.pools.get_mut(number) else { return };
        for waiter in std::mem::take(&mut pool.waiting) {
            self.detour(waiter.client, reason);
        }
    }

    /// A follower could not answer a read, and its client has heard nothing of it: the leader does.
    pub(super) fn repeat_at_leader(&mut self, link: usize, refusal: Refusal) {
        let Some((serial, number)) = self.links.get(link).and_then(|link| Some((link.serial, link.client?)))
        else {
            return;
        };
        let Some(client) = self.clients.get_mut(number) else { return };
        client.detour = Some(Reason::Refused);
        if refusal == Refusal::NoRead {
            let judge = judge_of(&mut self.judges, &self.pools, client.pool);
            route::texts(&client.session, client.session.again.bytes(), |sql| judge.refuse(sql));
        }
        if client.session.reads != Reads::Round {
            // Its transaction has to end.
            return self.drop_link(link, serial);
        }
        self.lose_to(number, link);
        let Some(drained) = self.links.get_mut(link) else { return };
        drained.client = None;
        drained.wire.drains = true;
        let rest = std::mem::take(&mut drained.inbox);
        if !rest.is_empty() {
            self.link_bytes(link, &rest);
        }
    }

    /// A transaction that only reads leaves its follower for the leader, or fails; whether to go on with what its
    /// client sent, of which nothing must come before what is sent again.
    pub(super) fn leave_follower(&mut self, slot: usize, misplaced: bool) -> bool {
        let Some(link) = self.clients.get(slot).and_then(|client| client.link) else { return false };
        let Some(serial) = self.links.get(link).map(|link| link.serial) else { return false };
        self.drop_link(link, serial);
        let Some(client) = self.clients.get_mut(slot) else { return false };
        if misplaced && client.session.lost == Lost::Untold {
            client.session.lost = Lost::Misplaced;
        }
        client.inbox.is_empty()
    }

    /// Reads whose follower has been silent for a while are looked for elsewhere: nothing else ends a connection to
    /// a host that is gone. One that only left the cluster is given longer to answer.
    pub(super) fn leave_silent(&mut self) {
        if self.silence_at > self.now {
            return;
        }
        self.silence_at = self.now + SILENCE_LOOK;
        let now_ms = self.shared.ms_of(self.now);
        let mut dead = Vec::new();
        for (slot, link) in &mut self.links {
            let Place::Follower(address) = link.key_of.place else { continue };
            let follower = self.reading.followers.iter().find(|follower| follower.address == address);
            let most = if follower.is_some() { SILENT_LOOKS_MAX } else { LEFT_LOOKS_MAX };
            link.silent_looks = match follower {
                Some(follower) if follower.feed.is_fresh(now_ms) => 0,
                Some(_) | None => link.silent_looks.saturating_add(1),
            };
            if link.client.is_some() && link.silent_looks >= most {
                dead.push((slot, link.serial));
            }
        }
        for (slot, serial) in dead {
            tracing::debug!(slot, "a follower is silent; its read goes elsewhere");
            self.drop_link(slot, serial);
        }
    }

    /// A link that stays with its client was read: more may wait behind what has been answered.
    pub(super) fn go_on(&mut self, client: Option<usize>) {
        let Some(slot) = client else { return };
        self.leave_if_done(slot);
        let Some(client) = self.clients.get_mut(slot) else { return };
        client.keeps_link(&self.reading);
        if client.session.changed_schema
            && !client.session.in_flight()
            && client.session.status == Status::Idle
        {
            client.session.changed_schema = false;
            let pool = client.pool;
            return self.tell_of_schema(pool);
        }
        if client.busy && !client.session.in_flight() {
            client.busy = false;
            client.resumes = true;
            self.work.push_back(Work::Client(slot));
        }
    }
}
