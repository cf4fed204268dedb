//! Applying, transaction by transaction: first as if nothing conflicted, and with a closer look where that fails.
//!
//! The same steps as the real applier takes, each at its own time, so that clients and other appliers come between.

use std::collections::VecDeque;
use std::rc::Rc;

use antiphon_core::mesh::resolve::needs_no_look;
use antiphon_core::mesh::{Change, CommitTime, Local, Reached, Version};

use super::careful::{Absent, Closer};
use super::judge::Met;
use super::mutation::Mutation;
use super::server::{Actor, Lock, Resource};
use super::state::{Effect, Entry, Gone, Knew, Op, Place, Row, Truth, Value, id};
use super::{Event, Mesh};
use crate::clock::{MS, US};

/// A transaction to be applied.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// Where it stands in its log.
    pub place: Place,
    /// The transaction.
    pub entry: Rc<Entry>,
    /// What its writers had seen.
    pub seen: Reached,
    /// Its steps, as they are carried out here.
    pub steps: Vec<(Op, Knew)>,
}

/// What one attempt came to so far.
#[derive(Clone, Debug)]
pub struct Work {
    /// Its transaction here.
    pub xid: u64,
    /// Which step is next.
    pub nth: usize,
    /// The closer look; none: the fast way.
    pub closer: Option<Closer>,
}

/// What applies the transactions of one node.
#[derive(Clone, Debug, Default)]
pub struct Applier {
    busy: bool,
    /// What is to be applied, in order.
    pub batch: VecDeque<Prepared>,
    end: Place,
    complete_to: Option<CommitTime>,
    /// The next is to be looked at.
    careful: bool,
    /// What is under way.
    pub work: Option<Work>,
    /// A delete that is being made known, in a transaction of its own.
    pub saying: Option<Absent>,
    /// Who is waited for, by transaction number.
    pub grace: Option<Vec<u64>>,
    /// Deletes of this transaction that are known.
    pub known: Vec<Absent>,
}

impl Applier {
    /// Nothing is under way.
    pub fn is_idle(&self) -> bool {
        !self.busy
    }
}

/// What came of a step.
pub enum Done {
    /// It is done.
    Yes,
    /// Somebody is in the way and wakes us.
    Wait,
    /// It needs another moment.
    Later,
    /// Not this way.
    Fails,
    /// This delete has to be known first.
    Unknown(Absent),
}

impl From<Lock> for Done {
    fn from(lock: Lock) -> Self {
        match lock {
            Lock::Taken => Self::Yes,
            Lock::Wait => Self::Wait,
            Lock::Deadlock => Self::Fails,
        }
    }
}

impl Mesh {
    /// Rolls back what an applier has open.
    pub(crate) fn abandon(&mut self, node: usize, source: usize) {
        let here = &mut self.nodes[node];
        let Some(link) = here.links[source].as_mut() else { return };
        let work = link.applier.work.take();
        if let Some(work) = work
            && here.server.txs.contains_key(&work.xid)
        {
            let woken = here.server.end(work.xid, None);
            self.wake(node, woken);
        }
    }

    pub(crate) fn apply(&mut self, node: usize, source: usize) {
        let link = self.nodes[node].link_mut(source);
        if link.applier.saying.is_some() {
            return self.say(node, source);
        }
        if link.applier.grace.is_some() {
            return self.wait_for_writers(node, source);
        }
        if link.applier.work.is_some() {
            return self.go_on(node, source);
        }
        if !link.applier.batch.is_empty() {
            return self.begin_next(node, source);
        }
        if link.buffer.is_empty() {
            link.applier.busy = false;
            link.applied = link.received;
            return;
        }
        // What came together is applied together, once the clock here is past all of it.
        link.applier.busy = true;
        let count = link.buffer.len().min(self.shape.batch_max);
        let latest = link.buffer.iter().take(count).map(|(_, entry)| entry.at).max();
        let session = link.session;
        let clock = self.nodes[node].wall.read(self.now);
        let wait = latest.and_then(|latest| clock.wait_until_past(latest));
        if let Some(wait) = wait.filter(|_| !self.is(Mutation::NoCommitWait)) {
            let pause = self.nodes[node].wall.until(wait).min(50 * MS);
            self.after(pause, Event::Apply { node, source, session });
            return;
        }
        self.bring(node, source, count);
    }

    fn bring(&mut self, node: usize, source: usize, count: usize) {
        let ahead = self.is(Mutation::TruncateFirst);
        let mut early = None;
        let link = self.nodes[node].link_mut(source);
        for _ in 0..count {
            let Some((place, entry)) = link.buffer.pop_front() else { break };
            link.applier.end = place;
            if let Some(says) = &entry.says {
                for (other, at) in says.applied.iter() {
                    link.seen.advance(other, at);
                }
                link.applier.complete_to = link.applier.complete_to.max(Some(says.complete_to));
                early = early.max(Some(says.complete_to));
            }
            if !entry.steps.is_empty() {
                let mut steps = entry.steps.clone();
                if ahead {
                    steps.sort_by_key(|(op, _)| *op != Op::Truncate);
                }
                link.applier.batch.push_back(Prepared { place, entry, seen: link.seen.clone(), steps });
            }
        }
        if let Some(at) = early.filter(|_| self.is(Mutation::ReachedTooEarly)) {
            self.nodes[node].reached.advance(id(source), at);
        }
        self.begin_next(node, source);
    }

    fn begin_next(&mut self, node: usize, source: usize) {
        let link = self.nodes[node].link_mut(source);
        let session = link.session;
        let Some(next) = link.applier.batch.front() else {
            return self.end_batch(node, source);
        };
        let truncates = next.steps.iter().any(|(op, _)| *op == Op::Truncate);
        let careful = link.applier.careful || truncates;
        let here = &mut self.nodes[node];
        let xid = here.server.begin();
        let closer = careful.then(Closer::default);
        here.link_mut(source).applier.work = Some(Work { xid, nth: 0, closer });
        let pause = self.moment();
        self.after(pause, Event::Apply { node, source, session });
    }

    fn end_batch(&mut self, node: usize, source: usize) {
        self.progress_apart(node, source);
        let here = &mut self.nodes[node];
        let link = here.link_mut(source);
        link.applied = link.applied.max(link.applier.end);
        let complete = link.applier.complete_to.take();
        let session = link.session;
        if let Some(at) = complete {
            here.reached.advance(id(source), at);
        }
        self.after(5 * US, Event::Apply { node, source, session });
    }

    fn go_on(&mut self, node: usize, source: usize) {
        let link = self.nodes[node].link_mut(source);
        let session = link.session;
        let (Some(mut work), Some(next)) = (link.applier.work.clone(), link.applier.batch.front().cloned())
        else {
            return;
        };
        self.nodes[node].server.awake(work.xid);
        loop {
            let Some((op, knew)) = next.steps.get(work.nth).copied() else {
                return self.commit_applied(node, source, &next, work.xid);
            };
            let done = match &mut work.closer {
                None => self.fast_step(node, source, &next, work.xid, op, knew),
                Some(closer) => self.careful_step(node, source, &next, work.xid, closer, op, knew),
            };
            match done {
                Done::Yes => work.nth += 1,
                Done::Later => {}
                Done::Wait => {
                    self.nodes[node].link_mut(source).applier.work = Some(work);
                    return;
                }
                Done::Unknown(absent) => {
                    self.abandon(node, source);
                    self.nodes[node].link_mut(source).applier.saying = Some(absent);
                    let pause = self.moment();
                    self.after(pause, Event::Apply { node, source, session });
                    return;
                }
                Done::Fails => {
                    self.nodes[node].link_mut(source).applier.careful = true;
                    self.abandon(node, source);
                    let pause = self.moment();
                    self.after(pause, Event::Apply { node, source, session });
                    return;
                }
            }
            if self.rng.chance(400) {
                self.nodes[node].link_mut(source).applier.work = Some(work);
                let pause = self.moment();
                self.after(pause, Event::Apply { node, source, session });
                return;
            }
        }
    }

    /// A write of this change's, not stamped yet: as the server says of a row of the own transaction.
    pub(crate) fn row_of(source: usize, place: Place, value: Value, knew: Knew) -> Row {
        let version = Version { at: CommitTime::UNKNOWN, node: id(source) };
        Row { value, version, copied: false, truth: Truth { node: source, place, knew } }
    }

    /// The same of a delete.
    pub(crate) fn gone_of(&self, source: usize, place: Place, knew: Knew) -> Gone {
        let version = Version { at: CommitTime::UNKNOWN, node: id(source) };
        Gone { version, since: self.now, truth: Truth { node: source, place, knew } }
    }

    fn may_overwrite(&self, row: &Row, next: &Prepared, source: usize) -> bool {
        let limit = next.seen.limit(id(source), next.entry.at);
        let fits = needs_no_look(row.version, id(source), limit);
        match self.mutation {
            Some(Mutation::FastUnseen) => true,
            Some(Mutation::NoSameOrigin) => row.version.at <= limit,
            _ => fits,
        }
    }

    /// One statement that fails unless the change's writer had seen what it meets.
    fn fast_step(
        &mut self,
        node: usize,
        source: usize,
        next: &Prepared,
        xid: u64,
        op: Op,
        knew: Knew,
    ) -> Done {
        macro_rules! take {
            ($lock:expr) => {
                match $lock {
                    Lock::Taken => {}
                    other => return other.into(),
                }
            };
        }
        let actor = Actor::Applier(source);
        let gone = self.gone_of(source, next.place, knew);
        let Some(key) = op.key() else { return Done::Fails };
        let server = &mut self.nodes[node].server;
        take!(server.enter(xid, actor));
        if !matches!(op, Op::Insert(..)) && server.row(xid, key).is_none() {
            return Done::Fails;
        }
        take!(server.lock(xid, Resource::Row(key), actor));
        let row = server.row(xid, key);
        match (op, row) {
            (Op::Insert(_, value), None) => {
                let dead = server.tombstone(xid, key).is_some() || server.truncation(xid).is_some();
                if dead && !self.is(Mutation::InsertWithoutLook) && !self.is(Mutation::NoTombstones) {
                    return Done::Fails;
                }
                let row = Self::row_of(source, next.place, value, knew);
                self.nodes[node].server.tx(xid).effects.push(Effect::Row(key, Some(row)));
                Done::Yes
            }
            (Op::Insert(..), Some(_)) | (Op::Truncate, _) | (_, None) => Done::Fails,
            (Op::Update(_, value, old), Some(here)) => {
                if !self.may_overwrite(&here, next, source) {
                    return Done::Fails;
                }
                self.met(node, source, next, Change::Update, &Met::Row(here), knew, old == here.value, false);
                let row = Self::row_of(source, next.place, value, knew);
                self.nodes[node].server.tx(xid).effects.push(Effect::Row(key, Some(row)));
                Done::Yes
            }
            (Op::Delete(_, old), Some(here)) => {
                if !self.may_overwrite(&here, next, source) {
                    return Done::Fails;
                }
                take!(self.nodes[node].server.lock(xid, Resource::Gone(key), actor));
                self.met(node, source, next, Change::Delete, &Met::Row(here), knew, old == here.value, false);
                let tx = self.nodes[node].server.tx(xid);
                tx.effects.push(Effect::Row(key, None));
                if self.is(Mutation::NoTombstones) {
                    return Done::Yes;
                }
                self.nodes[node].server.tx(xid).effects.push(Effect::Gone(key, Some(gone)));
                Done::Yes
            }
        }
    }

    fn commit_applied(&mut self, node: usize, source: usize, next: &Prepared, xid: u64) {
        let apart = self.is(Mutation::ProgressApart);
        self.exactly_once(node, source, next);
        let here = &mut self.nodes[node];
        let tx = here.server.tx(xid);
        tx.effects.push(Effect::Applied(source, next.place));
        if !apart {
            tx.effects.push(Effect::Progress(source, next.place));
        }
        let entry = here.server.write_commit(node, xid, next.entry.at, Some(source));
        self.nothing_goes_back(node, &entry);
        let here = &mut self.nodes[node];
        let woken = here.server.end(xid, Some(&entry));
        here.transactions += 1;
        let link = here.link_mut(source);
        let work = link.applier.work.take();
        link.applier.batch.pop_front();
        link.applier.careful = false;
        link.applier.known.clear();
        let session = link.session;
        self.counts.applied += 1;
        self.counts.fast += u64::from(work.is_some_and(|work| work.closer.is_none()));
        let place = next.place;
        self.note(|_| format!("n{} applied {place} of n{}: {:?}", id(node), id(source), entry.effects));
        self.wake(node, woken);
        self.after(5 * US, Event::Apply { node, source, session });
    }

    /// Where the rule is off, the progress is written in a transaction of its own.
    fn progress_apart(&mut self, node: usize, source: usize) {
        if !self.is(Mutation::ProgressApart) {
            return;
        }
        let at = self.nodes[node].wall.read(self.now);
        let end = self.nodes[node].link_mut(source).applier.end;
        let server = &mut self.nodes[node].server;
        let xid = server.begin();
        server.tx(xid).effects.push(Effect::Progress(source, end));
        let entry = server.write_commit(node, xid, at, Some(node));
        server.end(xid, Some(&entry));
    }
}

/// What is there, for people.
pub fn shown(local: Local) -> String {
    match local {
        Local::Row(version) => format!("the row {version}"),
        Local::Gone(version) => format!("the delete {version}"),
        Local::Absent => "nothing".to_owned(),
    }
}
