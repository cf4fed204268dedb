//! What must hold, from what really happened.
//!
//! At the end: every node has the same rows, and each is the one that the greatest version of all its writes and
//! deletes says; no delete is remembered any more. During the run: each transaction is applied once, in order, none
//! left out; tombstones are no older than what they wait for; and of conflicts:
//!
//! - exact: if a change meets what was written concurrently with it, that is reported, unless the row there is just
//!   what the change's writer had overwritten;
//! - conservative: it is also reported if the writer had seen it but its node has not said so yet, or if what is here
//!   was written by somebody who had seen the change. Those are counted as needless.
//! - left out: rows that a newcomer has copied under a common stamp.

use antiphon_core::mesh::resolve::had_seen;
use antiphon_core::mesh::{Change, Local, Version};

use super::applier::{Prepared, shown};
use super::careful::must_be_told;
use super::shape::SETTLED_WITHIN;
use super::state::{Effect, Entry, Gone, Knew, Op, Place, Row, Value, id};
use super::{Event, Mesh};
use crate::clock::{MS, Time, US};

/// What a change met.
#[derive(Clone, Copy, Debug)]
pub enum Met {
    /// A row.
    Row(Row),
    /// A tombstone.
    Gone(Gone),
    /// Neither.
    Nothing,
}

impl Met {
    /// As the core is shown it.
    pub fn local(&self) -> Local {
        match self {
            Self::Row(row) => Local::Row(row.version),
            Self::Gone(gone) => Local::Gone(gone.version),
            Self::Nothing => Local::Absent,
        }
    }
}

/// What is known of the truth.
#[derive(Debug, Default)]
pub struct Judge {
    /// What was broken first.
    pub violation: Option<String>,
    /// Since when, at last, nothing is broken that was not before.
    pub calm_since: Time,
    sessions: u64,
    equal: bool,
}

impl Judge {
    /// A number that no link had.
    pub fn next_session(&mut self) -> u64 {
        self.sessions += 1;
        self.sessions
    }
}

/// The last word on a key: its version, where it stands, and the content, if it is a row.
type Winner = (Version, Place, usize, Option<Value>);

impl Mesh {
    pub(crate) fn blame(&mut self, what: impl FnOnce(&Self) -> String) {
        if self.judge.violation.is_none() {
            let what = what(self);
            self.note(|_| format!("VIOLATION {what}"));
            self.judge.violation = Some(what);
        }
    }

    /// A change met something, and it was reported as a conflict or not.
    #[expect(clippy::too_many_arguments, reason = "everything that is said of one meeting")]
    pub(crate) fn met(
        &mut self,
        node: usize,
        source: usize,
        next: &Prepared,
        change: Change,
        met: &Met,
        knew: Knew,
        same: bool,
        reported: bool,
    ) {
        self.counts.conflicts += u64::from(reported);
        let (truth, version, copied) = match met {
            Met::Row(row) => (row.truth, row.version, row.copied),
            Met::Gone(gone) => (gone.truth, gone.version, false),
            Met::Nothing => return,
        };
        let concurrent = truth.node != source
            && (knew[truth.node] as Place) < truth.place
            && (truth.knew[source] as Place) < next.place;
        self.counts.needless += u64::from(reported && !concurrent);
        let local = met.local();
        let excused = copied || (same && self.shape.full_rows);
        if concurrent && !reported && !excused && must_be_told(change, local).is_some() {
            self.blame(|_| {
                format!(
                    "a conflict was not reported: {change:?} at place {} of n{} met {} on n{}",
                    next.place,
                    id(source),
                    shown(local),
                    id(node)
                )
            });
        }
        if reported && had_seen(id(source), &next.seen, version) {
            self.blame(|_| {
                format!("a conflict was reported with {version}, which the writer is known to have seen")
            });
        }
    }

    /// A transaction is about to be committed: it is the next, and was not applied before.
    pub(crate) fn exactly_once(&mut self, node: usize, source: usize, next: &Prepared) {
        let before = self.nodes[node].server.state.applied[source];
        if next.place <= before {
            self.blame(|_| format!("n{} applies place {} of n{} twice", id(node), next.place, id(source)));
            return;
        }
        let log = &self.nodes[source].server.log;
        let skipped = (before + 1..next.place)
            .find(|place| log.get(place - 1).is_some_and(|entry| entry.is_for_others()));
        if let Some(place) = skipped {
            self.blame(|_| format!("n{} skips place {place} of n{}", id(node), id(source)));
        }
    }

    /// A transaction is about to be seen: it is later than all that it takes the place of, deletes included.
    pub(crate) fn nothing_goes_back(&mut self, node: usize, entry: &Entry) {
        if self.shape.homes {
            return;
        }
        let version = Version { at: entry.at, node: id(entry.origin.unwrap_or(node)) };
        let state = &self.nodes[node].server.state;
        // What is known of a delete that is not carried out yet: it will look at this again.
        let done =
            |gone: &Gone| gone.truth.node == node || state.applied[gone.truth.node] >= gone.truth.place;
        let known = |gone: Option<Gone>| gone.filter(done).map(|gone| gone.version);
        let truncated = known(state.truncated);
        // A row that is written and taken back at once was not written.
        let last = |nth: usize, key: usize| {
            !entry.effects[nth + 1..].iter().any(|later| matches!(later, Effect::Row(at, _) if *at == key))
        };
        let older = entry.effects.iter().enumerate().find_map(|(nth, effect)| {
            let here = match *effect {
                Effect::Row(key, None) => state.rows[key].map(|row| row.version),
                Effect::Row(key, Some(_)) if last(nth, key) => {
                    let row = state.rows[key].map(|row| row.version);
                    row.max(known(state.gone[key])).max(truncated)
                }
                Effect::Gone(key, Some(_)) => known(state.gone[key]),
                Effect::Truncated(Some(_)) => truncated,
                _ => None,
            };
            here.filter(|here| *here > version)
        });
        if let Some(older) = older {
            let what = format!("n{} lets {version} take the place of {older}: {:?}", id(node), entry.steps);
            self.blame(|_| what);
        }
    }

    /// No tombstone is kept for longer than it takes to hear of everybody.
    pub(crate) fn few_tombstones(&mut self, node: usize) {
        let shape = &self.shape;
        let skew = shape.skew.unsigned_abs() * US;
        let bound = 300 * MS + 30 * shape.tick + 20 * shape.delay + 8 * shape.collect_every + 6 * skew;
        let bound = bound + 6 * shape.members_every;
        // A log whose clock was set back is not complete for longer than any of this.
        if shape.homes || self.now < self.judge.calm_since + bound {
            return;
        }
        let state = &self.nodes[node].server.state;
        let oldest = state.gone.iter().chain([&state.truncated]).flatten().map(|gone| gone.since).min();
        if let Some(age) = oldest.map(|oldest| self.now - oldest).filter(|age| *age > bound) {
            self.blame(|_| format!("n{} keeps a tombstone for {} ms", id(node), age / MS));
        }
    }

    /// Everything that was written is applied everywhere.
    fn is_settled(&self) -> bool {
        let active = self.active();
        let last = |node: usize| {
            let log = &self.nodes[node].server.log;
            log.iter().rposition(|entry| entry.is_for_others()).map_or(0, |at| at + 1)
        };
        let all = |node: &usize| {
            let here = &self.nodes[*node];
            let applied = &here.server.state.applied;
            here.server.up
                && here.writers.iter().all(super::writer::Writer::is_idle)
                && active.iter().all(|other| other == node || applied[*other] >= last(*other))
        };
        self.join.is_none() && self.leave.is_none() && active.iter().all(all)
    }

    pub(crate) fn check(&mut self) {
        let late = self.now > self.shape.heal_at + SETTLED_WITHIN;
        if !self.judge.equal && self.is_settled() {
            self.compare();
            self.judge.equal = true;
        }
        let left: usize = self.active().iter().map(|node| self.nodes[*node].server.state.tombstones()).sum();
        if self.judge.equal && left == 0 {
            self.done = true;
        } else if late {
            let equal = self.judge.equal;
            self.blame(|_| format!("not settled: everything applied {equal}, tombstones {left}"));
        }
        self.after(10 * MS, Event::Check);
    }

    /// The last word on every key.
    fn winners(&self) -> Vec<Option<Winner>> {
        let mut winners: Vec<Option<Winner>> = vec![None; self.shape.keys];
        for (node, here) in self.nodes.iter().enumerate() {
            for (at, entry) in here.server.log.iter().enumerate().filter(|(_, entry)| entry.is_for_others()) {
                let version = Version { at: entry.at, node: id(node) };
                for (nth, (op, _)) in entry.steps.iter().enumerate() {
                    let value = match op {
                        Op::Insert(_, value) | Op::Update(_, value, _) => Some(*value),
                        Op::Delete(..) | Op::Truncate => None,
                    };
                    let keys = op.key().map_or(0..self.shape.keys, |key| key..key + 1);
                    for key in keys {
                        let candidate = (version, at, nth, value);
                        let homes = self.shape.homes;
                        let wins = winners[key].is_none_or(|(best, place, step, _)| {
                            if homes {
                                (at, nth) > (place, step)
                            } else {
                                (version, at, nth) > (best, place, step)
                            }
                        });
                        if wins {
                            winners[key] = Some(candidate);
                        }
                    }
                }
            }
        }
        winners
    }

    fn compare(&mut self) {
        let winners = self.winners();
        for node in self.active() {
            for (key, winner) in winners.iter().enumerate() {
                let here = self.nodes[node].server.state.rows[key];
                let expected = winner.and_then(|(version, _, _, value)| value.map(|value| (version, value)));
                let same = match (here, expected) {
                    (None, None) => true,
                    (Some(row), Some((version, value))) => {
                        row.value == value && (row.copied || row.version == version)
                    }
                    _ => false,
                };
                if !same {
                    let here = here.map(|row| (row.version.to_string(), row.value));
                    let winner = winner.map(|(version, _, _, value)| (version.to_string(), value));
                    self.blame(|_| {
                        format!("n{} has {here:?} under key {key}, and the last word is {winner:?}", id(node))
                    });
                    return;
                }
            }
        }
    }
}
