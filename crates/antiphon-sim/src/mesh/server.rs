//! A server in miniature: transactions that lock rows, commit times that are taken before the log has the commit,
//! effects that are seen only after, and a crash that loses what was not flushed.
//!
//! What is not there cannot be locked: two transactions that write the same absent key meet only when both insert it,
//! as in a unique index. Deadlocks are found when they arise, and the one that would close the circle gives up.

use std::collections::BTreeMap;
use std::rc::Rc;

use antiphon_core::mesh::{CommitTime, Version};

use super::state::{Effect, Entry, Gone, Key, Knew, Op, Place, Row, State, id};

/// Who acts in a transaction, and is woken when what it waits for has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// A client, by its number.
    Writer(usize),
    /// The applier of a node.
    Applier(usize),
}

/// What can be locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// A row, also one that is being inserted.
    Row(Key),
    /// A tombstone.
    Gone(Key),
    /// The record of truncations.
    Truncation,
}

/// What came of asking for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// It is ours.
    Taken,
    /// Somebody has it; the actor is woken when that one ends.
    Wait,
    /// Whoever has it waits for us.
    Deadlock,
}

/// A transaction under way.
#[derive(Clone, Debug, Default)]
pub struct Tx {
    /// What it changed so far.
    pub effects: Vec<Effect>,
    /// What its log will say.
    pub steps: Vec<(Op, Knew)>,
    locks: Vec<Resource>,
    /// It writes into the table.
    pub in_table: bool,
    waits_for: Option<u64>,
    waiters: Vec<Actor>,
}

/// A server.
#[derive(Debug)]
pub struct Server {
    /// It runs.
    pub up: bool,
    /// How often it was started.
    pub epoch: u64,
    /// What everybody sees.
    pub state: State,
    /// What would be left after a crash.
    pub durable: State,
    /// All commits, in order.
    pub log: Vec<Rc<Entry>>,
    /// The log is safe up to here.
    pub flushed: Place,
    /// The next transaction's number.
    pub next_xid: u64,
    /// Transactions under way, by number.
    pub txs: BTreeMap<u64, Tx>,
    rows: Vec<Option<u64>>,
    gone: Vec<Option<u64>>,
    truncation: Option<u64>,
    table: Option<u64>,
    /// Somebody waits for all of the table, so nobody else begins to write into it.
    wanted: Option<u64>,
}

impl Server {
    /// An empty one.
    pub fn new(keys: usize) -> Self {
        Self {
            up: true,
            epoch: 0,
            state: State::new(keys),
            durable: State::new(keys),
            log: Vec::new(),
            flushed: 0,
            next_xid: 1,
            txs: BTreeMap::new(),
            rows: vec![None; keys],
            gone: vec![None; keys],
            truncation: None,
            table: None,
            wanted: None,
        }
    }

    /// Begins a transaction.
    pub fn begin(&mut self) -> u64 {
        let xid = self.next_xid;
        self.next_xid += 1;
        self.txs.insert(xid, Tx::default());
        xid
    }

    /// The oldest transaction that runs, or the next.
    pub fn oldest(&self) -> u64 {
        self.txs.keys().next().copied().unwrap_or(self.next_xid)
    }

    fn slot(&mut self, resource: Resource) -> &mut Option<u64> {
        match resource {
            Resource::Row(key) => &mut self.rows[key],
            Resource::Gone(key) => &mut self.gone[key],
            Resource::Truncation => &mut self.truncation,
        }
    }

    /// Nobody has it.
    pub fn is_free(&mut self, resource: Resource) -> bool {
        self.slot(resource).is_none()
    }

    fn wait(&mut self, xid: u64, holder: u64, actor: Actor) -> Lock {
        let mut next = Some(holder);
        while let Some(one) = next {
            if one == xid {
                return Lock::Deadlock;
            }
            next = self.txs.get(&one).and_then(|tx| tx.waits_for);
        }
        self.tx(xid).waits_for = Some(holder);
        self.tx(holder).waiters.push(actor);
        Lock::Wait
    }

    /// A transaction under way.
    pub fn tx(&mut self, xid: u64) -> &mut Tx {
        self.txs.get_mut(&xid).expect("it is under way")
    }

    /// Locks something until the transaction ends.
    pub fn lock(&mut self, xid: u64, resource: Resource, actor: Actor) -> Lock {
        match *self.slot(resource) {
            Some(holder) if holder == xid => Lock::Taken,
            Some(holder) => self.wait(xid, holder, actor),
            None => {
                *self.slot(resource) = Some(xid);
                self.tx(xid).locks.push(resource);
                Lock::Taken
            }
        }
    }

    /// Begins to write into the table: nobody may have it for himself.
    pub fn enter(&mut self, xid: u64, actor: Actor) -> Lock {
        if self.tx(xid).in_table {
            return Lock::Taken;
        }
        match self.table.or(self.wanted) {
            Some(holder) if holder != xid && self.txs.contains_key(&holder) => self.wait(xid, holder, actor),
            _ => {
                self.tx(xid).in_table = true;
                Lock::Taken
            }
        }
    }

    /// Takes the whole table: all others that write into it must have ended.
    pub fn enter_alone(&mut self, xid: u64, actor: Actor) -> Lock {
        if self.table == Some(xid) {
            return Lock::Taken;
        }
        let other = |(at, tx): (&u64, &Tx)| (*at != xid && tx.in_table).then_some(*at);
        let holder = self.table.or_else(|| self.txs.iter().find_map(other));
        if let Some(holder) = holder {
            if self.wanted.is_none() {
                self.wanted = Some(xid);
            }
            return self.wait(xid, holder, actor);
        }
        self.table = Some(xid);
        self.wanted = self.wanted.filter(|wanted| *wanted != xid);
        self.tx(xid).in_table = true;
        Lock::Taken
    }

    /// A row as this transaction sees it.
    pub fn row(&self, xid: u64, key: Key) -> Option<Row> {
        let own = self.txs.get(&xid).map_or(&[][..], |tx| &tx.effects);
        let changed = own.iter().rev().find_map(|effect| match effect {
            Effect::Row(at, row) if *at == key => Some(*row),
            _ => None,
        });
        changed.unwrap_or(self.state.rows[key])
    }

    /// A tombstone as this transaction sees it.
    pub fn tombstone(&self, xid: u64, key: Key) -> Option<Gone> {
        let own = self.txs.get(&xid).map_or(&[][..], |tx| &tx.effects);
        let changed = own.iter().rev().find_map(|effect| match effect {
            Effect::Gone(at, gone) if *at == key => Some(*gone),
            _ => None,
        });
        changed.unwrap_or(self.state.gone[key])
    }

    /// The table's truncation as this transaction sees it.
    pub fn truncation(&self, xid: u64) -> Option<Gone> {
        let own = self.txs.get(&xid).map_or(&[][..], |tx| &tx.effects);
        let changed = own.iter().rev().find_map(|effect| match effect {
            Effect::Truncated(gone) => Some(*gone),
            _ => None,
        });
        changed.unwrap_or(self.state.truncated)
    }

    /// Forgets what a transaction waited for: it was woken.
    pub fn awake(&mut self, xid: u64) {
        if let Some(tx) = self.txs.get_mut(&xid) {
            tx.waits_for = None;
        }
    }

    /// Writes the commit into the log. What it changed is not seen yet.
    pub fn write_commit(
        &mut self,
        node: usize,
        xid: u64,
        at: CommitTime,
        origin: Option<usize>,
    ) -> Rc<Entry> {
        let place = self.log.len() + 1;
        let tx = self.tx(xid);
        let (effects, steps) = (std::mem::take(&mut tx.effects), std::mem::take(&mut tx.steps));
        let version = Version { at, node: id(origin.unwrap_or(node)) };
        // What a node has applied when a writer commits, the writer counts as having seen: a row that he wrote was
        // locked, and what had no row to wait for had lost to a delete that he did see.
        let knew = self.state.knew();
        let steps =
            steps.into_iter().map(|(op, then)| (op, if origin.is_none() { knew } else { then })).collect();
        let own = origin.is_none().then_some((place, knew));
        let stamp = |effect: Effect| match effect {
            Effect::Row(key, Some(mut row)) => {
                row.version = version;
                if origin.is_none() {
                    (row.truth.place, row.truth.knew) = (place, knew);
                }
                Effect::Row(key, Some(row))
            }
            Effect::Gone(key, Some(gone)) => Effect::Gone(key, Some(stamp_gone(gone, version, own))),
            Effect::Truncated(Some(gone)) => Effect::Truncated(Some(stamp_gone(gone, version, own))),
            other => other,
        };
        let effects = effects.into_iter().map(stamp).collect();
        let entry = Rc::new(Entry { at, origin, steps, effects, says: None });
        self.log.push(entry.clone());
        entry
    }

    /// Lets everybody see what a transaction changed, and gives its locks back; who waited for it is to be woken.
    pub fn end(&mut self, xid: u64, entry: Option<&Entry>) -> Vec<Actor> {
        for effect in entry.iter().flat_map(|entry| &entry.effects) {
            self.state.apply(effect);
        }
        let Some(tx) = self.txs.remove(&xid) else { return Vec::new() };
        for resource in tx.locks {
            *self.slot(resource) = None;
        }
        self.table = self.table.filter(|holder| *holder != xid);
        self.wanted = self.wanted.filter(|wanted| *wanted != xid);
        tx.waiters
    }

    /// The log is safe up to here; gives whether that is news.
    pub fn flush(&mut self, upto: Place) -> bool {
        let upto = upto.min(self.log.len());
        let news = upto > self.flushed;
        while self.flushed < upto {
            let entry = self.log[self.flushed].clone();
            for effect in &entry.effects {
                self.durable.apply(effect);
            }
            self.flushed += 1;
        }
        news
    }

    /// Everything that was not safe is gone.
    pub fn crash(&mut self) {
        self.up = false;
        self.epoch += 1;
        self.log.truncate(self.flushed);
        self.state = self.durable.clone();
        self.txs.clear();
        self.rows.iter_mut().chain(&mut self.gone).for_each(|holder| *holder = None);
        (self.truncation, self.table, self.wanted) = (None, None, None);
    }
}

fn stamp_gone(mut gone: Gone, version: Version, own: Option<(Place, Knew)>) -> Gone {
    gone.version = version;
    if let Some((place, knew)) = own {
        (gone.truth.place, gone.truth.knew) = (place, knew);
    }
    gone
}
