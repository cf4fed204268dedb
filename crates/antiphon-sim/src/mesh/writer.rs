//! Clients: short transactions over few keys, statement by statement, and a commit in three steps.

use std::collections::VecDeque;

use antiphon_core::mesh::{CommitTime, Version};

use super::server::{Actor, Lock, Resource};
use super::state::{Effect, Gone, Key, Op, Row, Truth, Value, id};
use super::{Committer, Event, Mesh, Stage};
use crate::clock::{MS, US};

/// What a client wants done.
#[derive(Clone, Copy, Debug)]
enum Statement {
    /// Write the row, whether it is there or not.
    Put(Key, Value),
    /// Change the row, if there is one.
    Update(Key, Value),
    /// Delete the row, if there is one.
    Delete(Key),
    /// Give the row another key, if there is one and the key is free.
    Move(Key, Key),
    /// Delete all rows.
    Truncate,
}

/// A client.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    plan: VecDeque<Statement>,
    tx: Option<u64>,
    committing: bool,
}

impl Writer {
    /// Its transaction, which has not begun to commit.
    pub fn idle_in(&self) -> Option<u64> {
        self.tx.filter(|_| !self.committing)
    }

    /// It has nothing open.
    pub fn is_idle(&self) -> bool {
        self.tx.is_none()
    }
}

impl Mesh {
    pub(crate) fn write(&mut self, node: usize, writer: usize) {
        let here = &self.nodes[node].writers[writer];
        if here.committing {
            return;
        }
        let Some(xid) = here.tx else { return self.begin_writing(node, writer) };
        self.nodes[node].server.awake(xid);
        let Some(statement) = self.nodes[node].writers[writer].plan.front().copied() else {
            return self.begin_commit(node, writer, xid);
        };
        match self.execute(node, xid, statement, Actor::Writer(writer)) {
            Lock::Wait => {}
            Lock::Deadlock => self.give_up(node, writer, xid),
            Lock::Taken => {
                self.nodes[node].writers[writer].plan.pop_front();
                let epoch = self.nodes[node].server.epoch;
                let pause = self.moment();
                self.after(pause, Event::Write { node, epoch, writer });
            }
        }
    }

    fn give_up(&mut self, node: usize, writer: usize, xid: u64) {
        let woken = self.nodes[node].server.end(xid, None);
        self.wake(node, woken);
        self.rest(node, writer);
    }

    fn rest(&mut self, node: usize, writer: usize) {
        self.nodes[node].writers[writer] = Writer::default();
        let epoch = self.nodes[node].server.epoch;
        let pause = self.rng.around(self.shape.think);
        self.after(pause, Event::Write { node, epoch, writer });
    }

    fn begin_writing(&mut self, node: usize, writer: usize) {
        if !self.nodes[node].open {
            return;
        }
        let mut plan = VecDeque::new();
        for _ in 0..if self.rng.chance(300) { self.rng.range(2, 4) } else { 1 } {
            plan.push_back(self.statement(node));
        }
        let xid = self.nodes[node].server.begin();
        let here = &mut self.nodes[node].writers[writer];
        (here.plan, here.tx) = (plan, Some(xid));
        self.write(node, writer);
    }

    /// A key, the first ones more often; where keys have homes, one of this node's.
    fn key(&mut self, node: usize) -> Option<Key> {
        let keys = self.shape.keys;
        let key = if self.rng.chance(400) { self.rng.index(keys.min(2)) } else { self.rng.index(keys) };
        if !self.shape.homes {
            return Some(key);
        }
        let own = (0..keys).filter(|key| key % self.shape.nodes == node).count();
        (own > 0).then(|| node + self.rng.index(own) * self.shape.nodes)
    }

    fn statement(&mut self, node: usize) -> Statement {
        let value = self.rng.below(self.shape.values);
        if self.rng.chance(self.shape.truncate_per_mille) {
            return Statement::Truncate;
        }
        let Some(key) = self.key(node) else { return Statement::Update(0, value) };
        match self.rng.below(100) {
            0..35 => Statement::Put(key, value),
            35..65 => Statement::Update(key, value),
            65..92 => Statement::Delete(key),
            _ => self.key(node).map_or(Statement::Delete(key), |to| Statement::Move(key, to)),
        }
    }

    /// Does one statement, or waits for a lock: then it is done again from its beginning.
    fn execute(&mut self, node: usize, xid: u64, statement: Statement, actor: Actor) -> Lock {
        let homes = self.shape.homes.then_some(self.shape.nodes);
        let since = self.now;
        let server = &mut self.nodes[node].server;
        macro_rules! take {
            ($lock:expr) => {
                match $lock {
                    Lock::Taken => {}
                    other => return other,
                }
            };
        }
        let knew = server.state.knew();
        let truth = Truth { node, place: 0, knew };
        let version = Version { at: CommitTime::UNKNOWN, node: id(node) };
        let row = |value| Row { value, version, copied: false, truth };
        let gone = Gone { version, since, truth };
        match statement {
            Statement::Put(key, value) => {
                take!(server.enter(xid, actor));
                take!(server.lock(xid, Resource::Row(key), actor));
                let op = match server.row(xid, key) {
                    Some(old) => Op::Update(key, value, old.value),
                    None => Op::Insert(key, value),
                };
                let tx = server.tx(xid);
                tx.effects.push(Effect::Row(key, Some(row(value))));
                tx.steps.push((op, knew));
            }
            Statement::Update(key, value) => {
                if server.row(xid, key).is_none() || homes.is_some_and(|nodes| key % nodes != node) {
                    return Lock::Taken;
                }
                take!(server.enter(xid, actor));
                take!(server.lock(xid, Resource::Row(key), actor));
                let Some(old) = server.row(xid, key) else { return Lock::Taken };
                let tx = server.tx(xid);
                tx.effects.push(Effect::Row(key, Some(row(value))));
                tx.steps.push((Op::Update(key, value, old.value), knew));
            }
            Statement::Delete(key) => {
                if server.row(xid, key).is_none() {
                    return Lock::Taken;
                }
                take!(server.enter(xid, actor));
                take!(server.lock(xid, Resource::Row(key), actor));
                let Some(old) = server.row(xid, key) else { return Lock::Taken };
                take!(server.lock(xid, Resource::Gone(key), actor));
                let tx = server.tx(xid);
                tx.effects.extend([Effect::Row(key, None), Effect::Gone(key, Some(gone))]);
                tx.steps.push((Op::Delete(key, old.value), knew));
            }
            Statement::Move(from, to) => {
                if server.row(xid, from).is_none() || from == to {
                    return Lock::Taken;
                }
                take!(server.enter(xid, actor));
                take!(server.lock(xid, Resource::Row(from), actor));
                let Some(old) = server.row(xid, from) else { return Lock::Taken };
                take!(server.lock(xid, Resource::Row(to), actor));
                if server.row(xid, to).is_some() {
                    return Lock::Taken;
                }
                take!(server.lock(xid, Resource::Gone(from), actor));
                let tx = server.tx(xid);
                tx.effects.extend([Effect::Row(from, None), Effect::Gone(from, Some(gone))]);
                tx.effects.push(Effect::Row(to, Some(row(old.value))));
                tx.steps.push((Op::Delete(from, old.value), knew));
                tx.steps.push((Op::Insert(to, old.value), knew));
            }
            Statement::Truncate => {
                take!(server.enter_alone(xid, actor));
                take!(server.lock(xid, Resource::Truncation, actor));
                for key in 0..server.state.rows.len() {
                    server.tx(xid).effects.push(Effect::Row(key, None));
                }
                let tx = server.tx(xid);
                tx.effects.push(Effect::Truncated(Some(gone)));
                tx.steps.push((Op::Truncate, knew));
            }
        }
        Lock::Taken
    }

    fn begin_commit(&mut self, node: usize, writer: usize, xid: u64) {
        if self.nodes[node].server.tx(xid).steps.is_empty() {
            return self.give_up(node, writer, xid);
        }
        self.nodes[node].writers[writer].committing = true;
        self.time_commit(node, Committer::Writer(writer), xid);
    }

    /// Takes the commit time. The log has the commit a little later, now and then much later.
    pub(crate) fn time_commit(&mut self, node: usize, who: Committer, xid: u64) {
        let at = self.nodes[node].wall.read(self.now);
        let late = self.rng.chance(self.shape.late_per_mille);
        let pause = if late { self.rng.range(100 * US, 12 * MS) } else { self.rng.below(60) * US };
        let epoch = self.nodes[node].server.epoch;
        self.after(pause, Event::Commit { node, epoch, who, xid, stage: Stage::Timed(at) });
    }

    pub(crate) fn commit(&mut self, node: usize, who: Committer, xid: u64, stage: Stage) {
        let epoch = self.nodes[node].server.epoch;
        match stage {
            Stage::Timed(at) => {
                let entry = match who {
                    Committer::Writer(_) => self.nodes[node].server.write_commit(node, xid, at, None),
                    Committer::Agent => match self.write_announcement(node, xid, at) {
                        Some(entry) => entry,
                        None => return,
                    },
                };
                self.note(|_| format!("n{} commits {:?} at {}", id(node), entry.steps, entry.at.0));
                let place = self.nodes[node].server.log.len();
                self.send_unsafe(node);
                let waits = who == Committer::Agent || self.rng.chance(self.shape.sync_per_mille);
                let mut pause = self.rng.below(40) * US;
                if waits {
                    let flush = self.rng.range(100 * US, 3 * MS);
                    self.after(flush, Event::Flush { node, epoch, upto: place });
                    pause += flush + if self.rng.chance(30) { self.rng.below(30 * MS) } else { 0 };
                    pause += self.nodes[node].hang_until.saturating_sub(self.now);
                }
                let stage = Stage::Logged(entry);
                self.after(pause, Event::Commit { node, epoch, who, xid, stage });
            }
            Stage::Logged(entry) => {
                self.nothing_goes_back(node, &entry);
                let woken = self.nodes[node].server.end(xid, Some(&entry));
                self.wake(node, woken);
                match who {
                    Committer::Writer(writer) => {
                        self.counts.written += 1;
                        self.rest(node, writer);
                    }
                    Committer::Agent => self.announced(node, xid),
                }
            }
        }
    }
}
