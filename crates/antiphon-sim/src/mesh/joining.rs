//! Nodes that join and leave.
//!
//! Joining: slots for the newcomer on all others, the donor levelled past their beginnings, a copy of the donor at
//! one moment, and streams from where the copy ends. Leaving: no writes any more, and nobody is let go before what it
//! wrote is safe with all others.

use antiphon_core::mesh::joining::Horizon;
use antiphon_core::mesh::{CommitTime, Version};

use super::mutation::Mutation;
use super::node::Member;
use super::shape::NODES_MAX;
use super::state::{Effect, Entry, Place, State, id};
use super::{Event, Mesh};
use crate::clock::MS;

/// How far a join is.
#[derive(Clone, Debug)]
enum Stage {
    /// Slots on all but the donor wait for who is under way there, by transaction number.
    Slots([u64; NODES_MAX]),
    /// The donor applies what they had written.
    Level,
    /// The donor's own slot and snapshot wait for who is under way there.
    Export(u64, CommitTime),
    /// The copy is written.
    Copy(Box<State>, Place, CommitTime),
    /// The newcomer's clock gets past everything that was copied.
    Clock(CommitTime),
}

/// A join.
#[derive(Clone, Debug)]
pub struct Join {
    number: usize,
    donor: usize,
    begins: [Place; NODES_MAX],
    stage: Stage,
}

/// A leave.
#[derive(Clone, Debug)]
pub struct Leave {
    /// Who leaves.
    pub node: usize,
    end: Option<Place>,
}

impl Mesh {
    pub(crate) fn active(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].is_active(*node)).collect()
    }

    pub(crate) fn begin_join(&mut self) {
        let active = self.active();
        let reachable = active.iter().all(|node| self.nodes[*node].server.up);
        let number = self.nodes.len();
        if self.join.is_some() || self.leave.is_some() || !reachable || number == NODES_MAX {
            return;
        }
        let donor = active[self.rng.index(active.len())];
        self.found(number);
        let mut members = self.nodes[donor].members;
        members[number] = Member::Joining;
        self.nodes[number].members = members;
        self.nodes[number].slots = [None; NODES_MAX];
        let mut running = [0; NODES_MAX];
        for other in &active {
            self.nodes[*other].members[number] = Member::Joining;
            self.nodes[number].slots[*other] = Some(0);
            running[*other] = self.nodes[*other].server.next_xid;
        }
        self.note(|_| format!("n{} joins, with n{} as donor", id(number), id(donor)));
        self.join = Some(Join { number, donor, begins: [0; NODES_MAX], stage: Stage::Slots(running) });
        self.look_again(Event::Join);
    }

    pub(crate) fn join_goes_on(&mut self) {
        let Some(mut join) = self.join.take() else { return };
        let others: Vec<usize> = self.active().into_iter().filter(|other| *other != join.donor).collect();
        let (number, donor) = (join.number, join.donor);
        match join.stage.clone() {
            Stage::Slots(running) => {
                for other in &others {
                    if self.nodes[*other].slots[number].is_none()
                        && self.nodes[*other].server.oldest() >= running[*other]
                    {
                        let begin = self.nodes[*other].server.log.len();
                        self.flush(*other, begin);
                        join.begins[*other] = begin;
                        self.nodes[*other].slots[number] = Some(begin);
                    }
                }
                if others.iter().all(|other| self.nodes[*other].slots[number].is_some()) {
                    join.stage = Stage::Level;
                }
            }
            Stage::Level => {
                let progress = self.nodes[donor].server.state.progress;
                let level = others.iter().all(|other| progress[*other] >= join.begins[*other]);
                if level || self.is(Mutation::JoinUnlevelled) {
                    let clock = self.nodes[donor].wall.read(self.now);
                    join.stage = Stage::Export(self.nodes[donor].server.next_xid, clock);
                }
            }
            Stage::Export(running, clock) => {
                if self.nodes[donor].server.oldest() >= running {
                    let begin = self.nodes[donor].server.log.len();
                    self.flush(donor, begin);
                    self.nodes[donor].slots[number] = Some(begin);
                    let snapshot = self.nodes[donor].server.durable.clone();
                    let horizon = self.horizon(donor, clock, &others, &snapshot);
                    let copied = self.copied(&snapshot, horizon, donor, begin);
                    let until = self.latest_version(donor).map_or(clock, |latest| latest.at.max(clock));
                    join.stage = Stage::Copy(Box::new(copied), begin, until);
                    self.join = Some(join);
                    let pause = self.rng.range(2 * MS, 50 * MS);
                    self.after(pause, Event::Join);
                    return;
                }
            }
            Stage::Copy(copied, begin, until) => {
                self.write_copy(number, donor, &copied, begin);
                join.stage = Stage::Clock(until);
            }
            Stage::Clock(until) => {
                let clock = self.nodes[number].wall.read(self.now);
                if clock.wait_until_past(until).is_none() || self.is(Mutation::JoinByAnyClock) {
                    for node in others.into_iter().chain([donor, number]) {
                        self.nodes[node].members[number] = Member::Active;
                    }
                    self.counts.joined += 1;
                    self.judge.calm_since = self.judge.calm_since.max(self.now);
                    self.note(|_| format!("n{} has joined", id(number)));
                    self.boot(number);
                    let epoch = self.nodes[number].server.epoch;
                    self.after(MS, Event::Flusher { node: number, epoch });
                    self.open(number);
                    return;
                }
            }
        }
        self.join = Some(join);
        self.look_again(Event::Join);
    }

    fn horizon(&self, donor: usize, clock: CommitTime, others: &[usize], snapshot: &State) -> Horizon {
        let complete = others.iter().map(|other| snapshot.complete[*other]);
        let mut horizon = Horizon::new(id(donor), clock, complete);
        if self.is(Mutation::JoinStampsNow) {
            let at = self.nodes[donor].wall.read(self.now);
            horizon = Horizon { seen_to: CommitTime(i64::MAX), stamp: Version { at, node: id(donor) } };
        }
        horizon
    }

    /// What the newcomer gets.
    fn copied(&self, snapshot: &State, horizon: Horizon, donor: usize, begin: Place) -> State {
        let mut copied = snapshot.clone();
        for row in copied.rows.iter_mut().flatten() {
            let version = horizon.of_row(row.version);
            row.copied |= version != row.version;
            row.version = version;
        }
        let all = self.is(Mutation::JoinStampsNow);
        for gone in copied.gone.iter_mut().chain([&mut copied.truncated]) {
            *gone = gone.filter(|gone| horizon.needs(gone.version) || all);
        }
        if self.is(Mutation::JoinWithoutTombstones) {
            copied.gone.fill(None);
        }
        if self.is(Mutation::JoinWithoutTruncation) {
            copied.truncated = None;
        }
        copied.progress[donor] = begin;
        copied.applied[donor] = begin;
        copied.complete = [CommitTime::UNKNOWN; NODES_MAX];
        copied
    }

    fn write_copy(&mut self, number: usize, donor: usize, copied: &State, begin: Place) {
        let mut effects = Vec::new();
        let now = self.now;
        for (key, row) in copied.rows.iter().enumerate() {
            effects.push(Effect::Row(key, *row));
        }
        for (key, gone) in copied.gone.iter().enumerate() {
            effects.push(Effect::Gone(key, gone.map(|gone| super::state::Gone { since: now, ..gone })));
        }
        effects.push(Effect::Truncated(copied.truncated));
        for node in 0..NODES_MAX {
            effects.push(Effect::Progress(node, copied.progress[node]));
            effects.push(Effect::Applied(node, copied.applied[node]));
        }
        let at = self.nodes[number].wall.read(self.now);
        let server = &mut self.nodes[number].server;
        for effect in &effects {
            server.state.apply(effect);
        }
        // Its rows keep their times, as they would if every group of them were a transaction of its own.
        let at = if server.log.is_empty() { CommitTime::UNKNOWN } else { at };
        server.log.push(std::rc::Rc::new(Entry {
            at,
            origin: Some(donor),
            steps: Vec::new(),
            effects,
            says: None,
        }));
        let end = server.log.len();
        server.flush(end);
        self.note(|mesh| {
            format!(
                "n{} has a copy of n{} at {begin}: {:?}",
                id(number),
                id(donor),
                mesh.nodes[number].server.state
            )
        });
    }

    /// Somebody whom a join needs has gone: what was made is taken away.
    pub(crate) fn abort_join(&mut self) {
        let Some(join) = self.join.take() else { return };
        self.note(|_| format!("n{} does not join after all", id(join.number)));
        for node in 0..self.nodes.len() {
            self.nodes[node].members[join.number] = Member::Left;
            self.nodes[node].slots[join.number] = None;
        }
        self.nodes[join.number].server.up = false;
    }

    pub(crate) fn begin_leave(&mut self) {
        let active = self.active();
        if self.join.is_some() || self.leave.is_some() || active.len() < 3 {
            return;
        }
        let node = active[self.rng.index(active.len())];
        self.note(|_| format!("n{} leaves", id(node)));
        self.nodes[node].open = false;
        self.leave = Some(Leave { node, end: None });
        self.look_again(Event::Leave);
    }

    pub(crate) fn leave_goes_on(&mut self) {
        let Some(mut leave) = self.leave.take() else { return };
        let node = leave.node;
        let idle = self.nodes[node].writers.iter().all(super::writer::Writer::is_idle);
        if !self.nodes[node].server.up || !idle {
            self.leave = Some(leave);
            return self.look_again(Event::Leave);
        }
        let Some(end) = leave.end else {
            let end = self.nodes[node].server.log.len();
            self.flush(node, end);
            leave.end = Some(end);
            self.leave = Some(leave);
            return self.look_again(Event::Leave);
        };
        let others: Vec<usize> = self.active().into_iter().filter(|other| *other != node).collect();
        let early = self.is(Mutation::LeaveBeforeSafe);
        let has = |other: &usize| {
            let applied = self.nodes[*other].link(node).map_or(0, |link| link.applied);
            let safe = self.nodes[node].slots[*other].unwrap_or(0);
            safe >= end || (early && applied >= end)
        };
        if !others.iter().all(has) {
            self.leave = Some(leave);
            return self.look_again(Event::Leave);
        }
        for other in 0..self.nodes.len() {
            self.nodes[other].members[node] = Member::Left;
            self.nodes[other].slots[node] = None;
        }
        self.stop_agent(node);
        self.nodes[node].server.up = false;
        self.counts.left += 1;
        self.judge.calm_since = self.judge.calm_since.max(self.now);
        self.note(|_| format!("n{} has left", id(node)));
        // Whoever loses something now that only the one who left had can get it from nobody.
        let unlucky = others[self.rng.index(others.len())];
        if !self.healed && self.rng.chance(400) {
            let soon = self.rng.range(MS, 8 * MS);
            self.after(soon, Event::Crash { node: unlucky });
        }
    }
}
