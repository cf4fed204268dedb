//! How far each server is, as last sampled, and what a session may therefore read where.
//!
//! Pure but for the clock that callers give. A server is sampled by one task (`feed`), never by a query of a client.
//! A sample says where the server was at some time after the sample's number was drawn, so a session that draws
//! a mark now knows: the first sample with a higher number covers all that has ended before. Positions are only
//! compared within one epoch: a floor of an earlier one becomes "where the new leader is".

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::balance::{self, Balance, Candidate};

/// A sample that is older than this says nothing about whether the server is well, in milliseconds.
const FRESH_MS: u64 = 500;
/// How long a server is left alone that refused a connection, in milliseconds; twice as long each time that it does
/// so again, and at most so long. After as long without that it begins anew.
const BAN_MS: u64 = 500;
const BAN_MS_MAX: u64 = 30_000;

/// What is known of one server's position. Written by the feed alone, read by every thread.
#[derive(Debug)]
pub struct Feed {
    /// Unlike any other feed's in this process; 0 is nobody's.
    pub id: u64,
    /// How often the feed had to connect: a server that was restarted may be behind where it was.
    connection: AtomicU64,
    /// Samples that were begun.
    begun: AtomicU64,
    /// The newest sample that has been answered.
    done: AtomicU64,
    /// Its position.
    lsn: AtomicU64,
    /// When it was answered, in milliseconds of the router's clock; 0 if the server is not well.
    at_ms: AtomicU64,
    /// Since when it has been well without a break, by the same clock.
    well_since_ms: AtomicU64,
    /// The server is believed to have all that its leader had at this time of the router's clock; 0 if unknown.
    as_of_ms: AtomicU64,
}

/// All that had ended at a server when this was drawn is covered by its next sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    feed: u64,
    connection: u64,
    sample: u64,
}

impl Feed {
    /// Of a server that has not been asked yet.
    pub fn new(id: u64) -> Self {
        let zero = AtomicU64::default;
        Self {
            id,
            connection: zero(),
            begun: zero(),
            done: zero(),
            lsn: zero(),
            at_ms: zero(),
            well_since_ms: zero(),
            as_of_ms: zero(),
        }
    }

    /// The feed has connected anew.
    pub fn connected(&self) {
        self.connection.fetch_add(1, Ordering::SeqCst);
    }

    /// The server is not well as far as the feed knows.
    pub fn lost(&self) {
        self.at_ms.store(0, Ordering::SeqCst);
    }

    /// A sample is begun: its number.
    pub fn begin(&self) -> u64 {
        self.begun.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// A sample was answered.
    pub fn answered(&self, sample: u64, lsn: u64, as_of_ms: u64, now_ms: u64) {
        // The position first: who sees the sample's number sees at least its position.
        self.lsn.store(lsn, Ordering::SeqCst);
        self.done.store(sample, Ordering::SeqCst);
        self.as_of_ms.store(as_of_ms, Ordering::SeqCst);
        if !self.is_fresh(now_ms) {
            self.well_since_ms.store(now_ms, Ordering::SeqCst);
        }
        self.at_ms.store(now_ms.max(1), Ordering::SeqCst);
    }

    /// A mark for what has ended on a link that was taken at this connection of the feed.
    pub fn mark(&self, connection: u64) -> Mark {
        Mark { feed: self.id, connection, sample: self.begun.load(Ordering::SeqCst) }
    }

    /// Which connection of the feed this is.
    pub fn connection(&self) -> u64 {
        self.connection.load(Ordering::SeqCst)
    }

    /// The newest position.
    pub fn lsn(&self) -> u64 {
        self.lsn.load(Ordering::SeqCst)
    }

    /// Whether the server answered a moment ago.
    pub fn is_fresh(&self, now_ms: u64) -> bool {
        let at = self.at_ms.load(Ordering::SeqCst);
        at > 0 && now_ms.saturating_sub(at) < FRESH_MS
    }

    fn is_of(&self, mark: Mark) -> bool {
        mark.feed == self.id && mark.connection == self.connection()
    }

    /// The position that covers a mark of this connection, if a sample begun after it has been answered.
    fn covers(&self, mark: Mark) -> Option<u64> {
        (self.done.load(Ordering::SeqCst) > mark.sample).then(|| self.lsn())
    }
}

/// A follower that may be read from.
#[derive(Debug)]
pub struct Follower {
    /// The member.
    pub name: Arc<str>,
    /// Its server.
    pub address: SocketAddr,
    /// How far it is.
    pub feed: Feed,
    /// Its zone, if the member says so.
    pub zone: Option<Box<str>>,
    /// Its part of the reads.
    pub weight: u32,
    /// Sessions that read there now, of all threads.
    pub busy: AtomicU32,
    banned_until_ms: AtomicU64,
    /// How often it was left alone in a row.
    bans: AtomicU32,
}

impl Follower {
    /// One that nobody reads from yet.
    pub fn new(name: &str, address: SocketAddr, feed: u64) -> Self {
        Self {
            name: name.into(),
            address,
            feed: Feed::new(feed),
            zone: None,
            weight: 1,
            busy: AtomicU32::default(),
            banned_until_ms: AtomicU64::default(),
            bans: AtomicU32::default(),
        }
    }

    /// It refused a connection or broke one: it is left alone until it has been sampled again, for a while at least,
    /// which is longer each time.
    pub fn ban(&self, now_ms: u64) {
        self.feed.lost();
        let until = self.banned_until_ms.load(Ordering::SeqCst);
        if until > now_ms {
            // Several links break at a time.
            return;
        }
        if until + BAN_MS_MAX < now_ms {
            self.bans.store(0, Ordering::SeqCst);
        }
        let before = self.bans.fetch_add(1, Ordering::SeqCst).min(16);
        self.banned_until_ms.store(now_ms + (BAN_MS << before).min(BAN_MS_MAX), Ordering::SeqCst);
    }

    /// Whether it is no farther behind its leader than that. While nobody leads there is nothing to be behind.
    fn keeps_up(&self, leader: Option<&Feed>, balance: &Balance, now_ms: u64) -> bool {
        let Some(leader) = leader.filter(|leader| leader.is_fresh(now_ms)) else { return true };
        let within = |most: Duration| {
            let as_of = self.feed.as_of_ms.load(Ordering::SeqCst);
            as_of > 0 && u128::from(now_ms.saturating_sub(as_of)) <= most.as_millis()
        };
        let near = |most: u64| leader.lsn().saturating_sub(self.feed.lsn()) <= most;
        balance.lag_max.is_none_or(within) && balance.lag_bytes_max.is_none_or(near)
    }

    /// Whether it answered a moment ago, and broke nothing since.
    pub fn is_well(&self, now_ms: u64) -> bool {
        self.feed.is_fresh(now_ms) && self.banned_until_ms.load(Ordering::SeqCst) <= now_ms
    }
}

/// The servers as reads see them.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// The epoch whose positions these are; while nobody leads, the last one that was led.
    pub epoch: u64,
    /// The leader's feed; none while nobody leads.
    pub leader: Option<Arc<Feed>>,
    /// Who may be read from besides.
    pub followers: Vec<Arc<Follower>>,
}

/// How much a session asks of its reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Every read sees all that was committed before: the leader answers it.
    Strong,
    /// Reads see what the session wrote, and never go back.
    #[default]
    ReadYourWrites,
    /// Reads never go back; what the session wrote may be missing from them.
    Monotonic,
    /// Reads are at most so many milliseconds behind.
    Bounded(u64),
    /// Reads see some state of the past.
    Eventual,
}

/// A floor that can be handed from process to process: `epoch/LSN`, as `7/0/3000148`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// The epoch whose leader's position it is; 0 is before all of them.
    pub epoch: u64,
    /// The position.
    pub lsn: u64,
}

impl Token {
    /// One that no follower meets, for what nobody has sampled: the reads of its epoch go to the leader.
    pub fn unknown(epoch: u64) -> Self {
        Self { epoch: epoch.max(1), lsn: u64::MAX }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:X}/{:X}", self.epoch, self.lsn >> 32, self.lsn & 0xffff_ffff)
    }
}

impl FromStr for Token {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('/');
        let epoch = parts.next().and_then(|epoch| epoch.parse().ok()).ok_or(())?;
        let mut half = || parts.next().and_then(|half| u32::from_str_radix(half, 16).ok()).ok_or(());
        let (high, low) = (half()?, half()?);
        let lsn = u64::from(high) << 32 | u64::from(low);
        if parts.next().is_none() { Ok(Self { epoch, lsn }) } else { Err(()) }
    }
}

/// From where on a session's reads may see the database.
#[derive(Debug, Default)]
pub struct Floor {
    epoch: u64,
    lsn: u64,
    /// What has not been covered by a sample yet.
    open: Option<Mark>,
}

impl Floor {
    /// The session's use of the leader has ended: it wrote there, or saw all that was there.
    pub fn used_leader(&mut self, reading: &Reading) {
        self.epoch = self.epoch.max(reading.epoch);
        self.open = Some(leads(reading));
    }

    /// The session has read from a follower, on a link that was taken at this connection of its feed.
    pub fn used_follower(&mut self, reading: &Reading, follower: &Follower, connection: u64) {
        self.settle(reading);
        self.epoch = self.epoch.max(reading.epoch);
        self.open = match self.open {
            // At a level that does not ask for what is still open: the leader is ahead of both.
            Some(mark) if !follower.feed.is_of(mark) => Some(leads(reading)),
            Some(_) | None => Some(follower.feed.mark(connection)),
        };
    }

    /// Takes in what has been sampled since.
    pub fn settle(&mut self, reading: &Reading) {
        if self.epoch < reading.epoch && (self.open.is_some() || self.lsn > 0) {
            // Where the new leader is covers all that is left of what earlier ones wrote.
            (self.epoch, self.lsn, self.open) = (reading.epoch, 0, Some(leads(reading)));
        }
        let Some(mark) = self.open else { return };
        let feeds = reading.followers.iter().map(|follower| &follower.feed);
        match feeds.chain(reading.leader.as_deref()).find(|feed| feed.is_of(mark)) {
            Some(feed) => {
                if let Some(lsn) = feed.covers(mark) {
                    self.lsn = self.lsn.max(lsn);
                    self.open = None;
                }
            }
            // That server is gone or was restarted: the leader is ahead of all that it ever showed.
            None => self.open = Some(leads(reading)),
        }
    }

    /// The floor for another process; none before a sample has covered it. Only after [`Floor::settle`].
    fn token(&self) -> Option<Token> {
        self.open.is_none().then_some(Token { epoch: self.epoch, lsn: self.lsn })
    }

    /// The session shall see at least this, too. A token of another epoch than the floor's is not compared: where
    /// the leader is now covers both.
    pub fn raise(&mut self, token: Token) {
        if token.epoch == 0 {
            return;
        }
        let new = self.open.is_none() && self.lsn == 0;
        if new {
            (self.epoch, self.lsn) = (self.epoch.max(token.epoch), token.lsn);
        }
        if token.epoch == self.epoch {
            self.lsn = self.lsn.max(token.lsn);
        } else {
            (self.epoch, self.lsn, self.open) = (self.epoch.max(token.epoch), 0, Some(Mark::default()));
        }
    }

    /// Whether a follower has all that the session must see. Only after [`Floor::settle`].
    fn is_met_by(&self, follower: &Follower) -> bool {
        // Who reads on where it last read sees no less.
        let open = self.open.is_none_or(|mark| follower.feed.is_of(mark));
        open && follower.feed.lsn() >= self.lsn
    }
}

/// All that the leader has now. Without a leader nobody can say: resolved when there is one.
fn leads(reading: &Reading) -> Mark {
    reading.leader.as_ref().map(|feed| feed.mark(feed.connection())).unwrap_or_default()
}

/// The floors of a session, by what its level counts.
#[derive(Debug, Default)]
pub struct Floors {
    /// What it wrote, and what its reads saw.
    all: Floor,
    /// What its reads saw.
    seen: Floor,
}

impl Floors {
    /// The session's use of the leader has ended; `saw`: it was given rows.
    pub fn used_leader(&mut self, reading: &Reading, saw: bool) {
        self.all.used_leader(reading);
        if saw {
            self.seen.used_leader(reading);
        }
    }

    /// See [`Floor::used_follower`].
    pub fn used_follower(&mut self, reading: &Reading, follower: &Follower, connection: u64) {
        self.all.used_follower(reading, follower, connection);
        self.seen.used_follower(reading, follower, connection);
    }

    /// The floor for another process, of all that the session did; none before a sample has covered it.
    pub fn token(&mut self, reading: &Reading) -> Option<Token> {
        self.all.settle(reading);
        self.all.token()
    }

    /// The session shall see at least this, too.
    pub fn raise(&mut self, token: Token) {
        self.all.raise(token);
        self.seen.raise(token);
    }

    fn of(&mut self, level: Consistency) -> &mut Floor {
        match level {
            Consistency::Monotonic => &mut self.seen,
            Consistency::Strong
            | Consistency::ReadYourWrites
            | Consistency::Bounded(_)
            | Consistency::Eventual => &mut self.all,
        }
    }
}

/// Where a read may go.
#[derive(Clone, Debug)]
pub enum Choice {
    /// To one of these, by their places in [`Reading::followers`].
    One(usize),
    /// To the leader: no follower is well.
    NoneWell,
    /// To the leader: all that are well are too far behind for anybody.
    Lagging,
    /// To the leader, or later: followers are well, and none is known to be far enough.
    NoneFarEnough,
}

/// Chooses a follower among those that will do.
pub fn choose(
    reading: &Reading,
    floors: &mut Floors,
    level: Consistency,
    now_ms: u64,
    balance: &Balance,
    random: u64,
) -> Choice {
    let floor = floors.of(level);
    floor.settle(reading);
    let fits = |follower: &Follower| match level {
        Consistency::Strong => false,
        Consistency::ReadYourWrites | Consistency::Monotonic => floor.is_met_by(follower),
        Consistency::Bounded(bound) => {
            let as_of = follower.feed.as_of_ms.load(Ordering::SeqCst);
            as_of > 0 && now_ms.saturating_sub(as_of) <= bound
        }
        Consistency::Eventual => true,
    };
    let well = || {
        let all = reading.followers.iter().enumerate();
        all.filter(|(_, follower)| follower.weight > 0 && follower.is_well(now_ms))
    };
    let keeps_up = |follower: &Follower| follower.keeps_up(reading.leader.as_deref(), balance, now_ms);
    let fitting = well().filter(|(_, follower)| keeps_up(follower) && fits(follower));
    let candidates = fitting.map(|(place, follower)| Candidate {
        place,
        weight: follower.weight,
        busy: follower.busy.load(Ordering::Relaxed),
        near: balance.zone.is_some() && follower.zone.as_deref() == balance.zone.as_deref(),
        well_for_ms: now_ms.saturating_sub(follower.feed.well_since_ms.load(Ordering::SeqCst)),
    });
    match balance::pick(&candidates, balance, random) {
        Some(place) => Choice::One(place),
        None if well().next().is_none() => Choice::NoneWell,
        None if !well().any(|(_, follower)| keeps_up(follower)) => Choice::Lagging,
        None => Choice::NoneFarEnough,
    }
}

/// The end of the last record, out of where a leader would write the next one: at the start of a page that is
/// behind the page's header, where no follower that has replayed everything ever is.
pub fn end_of_wal(insert: u64, page_bytes: u64, segment_bytes: u64) -> u64 {
    const HEADER: u64 = 24;
    const HEADER_OF_SEGMENT: u64 = 40;
    if segment_bytes > 0 && insert % segment_bytes == HEADER_OF_SEGMENT {
        return insert - HEADER_OF_SEGMENT;
    }
    if page_bytes > 0 && insert % page_bytes == HEADER && insert % segment_bytes.max(1) != HEADER {
        return insert - HEADER;
    }
    insert
}

#[cfg(test)]
mod tests;
