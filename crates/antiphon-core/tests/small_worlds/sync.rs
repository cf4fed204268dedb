//! Every change of the sync set over four members, step by step, against every commit that may have been
//! acknowledged on the way and every choice of whom an election finds fenced.
//!
//! A commit is modelled by what is certain about where it is: for each of some sets, it is on `k` of its
//! members. An election under a promise finds `n - k + 1` of its members fenced; a commit that all of them may
//! lack is one that the promise does not speak for.

use std::collections::BTreeMap;

use antiphon_core::ha::cluster::{Cluster, Method, Phase, Promise, SyncSet};
use antiphon_core::ha::sync::{SyncChange, covers, next, target};
use antiphon_core::ha::world::{PrimaryServer, Server, Standby, SyncNames};
use antiphon_core::{Lsn, Timeline};

use crate::exhaust::Gen;
use crate::world::{TERM, cluster, leader, name, world};

const MEMBERS: [&str; 4] = ["b", "c", "d", "e"];
/// The longest change: names to the promise, wider promise, names proven, promise, names.
const STEPS_MAX: usize = 6;

/// `k` of the members in `mask`.
type Certain = (u8, u32);

fn all_sets() -> Vec<SyncSet> {
    let mut sets = Vec::new();
    for mask in 1_u8..16 {
        let members: Vec<_> = (0..4).filter(|at| mask & (1 << at) != 0).map(|at| name(MEMBERS[at])).collect();
        for k in 1..=members.len() {
            sets.push(SyncSet { method: Method::Any, k, members: members.clone() });
        }
    }
    sets
}

fn certain(set: &SyncSet) -> Certain {
    let bit = |member: &str| set.members.iter().any(|name| name.as_str() == member);
    let mask = (0..4).filter(|at| bit(MEMBERS[*at])).fold(0, |mask, at| mask | 1 << at);
    (mask, u32::try_from(set.k).expect("at most four"))
}

/// What is certain of a commit that is acknowledged under these names; nothing if they are nobody's.
fn of_names(names: &SyncNames) -> Vec<Certain> {
    match names {
        SyncNames::Set(set) => vec![certain(set)],
        SyncNames::Nobody | SyncNames::Foreign(_) => Vec::new(),
    }
}

/// Whether no election under `promise` can miss a commit of which this is certain.
fn speaks_for(promise: &Promise, commit: &[Certain]) -> bool {
    let Promise::Quorum(set) = promise else { return true };
    let (members, k) = certain(set);
    let fences = members.count_ones() - k + 1;
    let fenced = (1_u8..16).filter(|fenced| fenced & !members == 0 && fenced.count_ones() == fences);
    // Missed: each of the sets can have acknowledged without one of those that are fenced.
    let missed_by = |fenced: u8| commit.iter().all(|(mask, k)| (mask & !fenced).count_ones() >= *k);
    !fenced.into_iter().any(missed_by)
}

/// A server and a store in the middle of a change.
#[derive(Clone, Debug)]
struct Change {
    names: SyncNames,
    proven: Option<SyncNames>,
    promise: Promise,
    commits: Vec<Vec<Certain>>,
}

impl Change {
    fn check(&self, what: &str) {
        for commit in &self.commits {
            assert!(speaks_for(&self.promise, commit), "{what}: {commit:?} can be missed in {self:?}");
        }
    }

    fn acknowledge(&mut self) {
        let commit = of_names(&self.names);
        if !self.commits.contains(&commit) {
            self.commits.push(commit);
        }
    }

    /// A commit was waited for under the names in effect: all WAL before it is where they say.
    fn prove(&mut self) {
        let proof = of_names(&self.names);
        for commit in &mut self.commits {
            commit.extend(&proof);
        }
        self.proven = Some(self.names.clone());
    }

    fn take(&mut self, step: SyncChange) {
        match step {
            SyncChange::Promise(promise) => self.promise = promise,
            SyncChange::Names { names, prove } => {
                if self.names != names {
                    self.proven = None;
                }
                self.names = names;
                self.acknowledge();
                self.check("between new names and their proof");
                if prove {
                    self.prove();
                }
            }
        }
        self.acknowledge();
    }
}

#[test]
fn every_change_arrives_and_at_each_step_the_promise_speaks_for_every_acknowledged_commit() {
    let sets = all_sets();
    let promises: Vec<Promise> = [Promise::Asynchronous, Promise::Alone]
        .into_iter()
        .chain(sets.iter().cloned().map(Promise::Quorum))
        .collect();
    let names: Vec<SyncNames> =
        [SyncNames::Nobody].into_iter().chain(sets.into_iter().map(SyncNames::Set)).collect();
    let mut gen_ = Gen::default();
    while !gen_.done() {
        let (promise, names) = (gen_.of(&promises).clone(), gen_.of(&names).clone());
        if !covers(&promise, &names) {
            continue;
        }
        let target = gen_.of(&promises);
        // What was acknowledged before is where the promise says, and no more is certain of it.
        let before = match &promise {
            Promise::Quorum(set) => vec![certain(set)],
            Promise::Asynchronous | Promise::Alone => Vec::new(),
        };
        let mut change = Change { names, proven: None, promise, commits: vec![before] };
        change.acknowledge();
        change.check("covers() is wrong");
        if gen_.flag() {
            change.prove();
        }
        let start = change.clone();
        let mut steps = 0;
        while let Some(step) = next(&change.names, change.proven.as_ref(), &change.promise, target) {
            change.take(step.clone());
            change.check("after a step");
            steps += 1;
            assert!(steps <= STEPS_MAX, "from {start:?} to {target:?}: still {step:?} after {steps} steps");
        }
        assert_eq!(change.names, target.names(), "from {start:?} to {target:?}");
        assert_eq!(change.promise, *target, "from {start:?}");
    }
}

#[test]
fn names_that_antiphon_did_not_write_are_replaced_before_anything_is_promised() {
    for set in all_sets() {
        let promise = Promise::Quorum(set);
        for names in [SyncNames::Nobody, SyncNames::Foreign("*".to_owned())] {
            let step = next(&names, None, &promise, &promise);
            assert_eq!(step, Some(SyncChange::Names { names: promise.names(), prove: false }));
        }
    }
}

#[test]
fn a_set_of_none_of_too_many_or_of_one_twice_is_no_sync_set() {
    let set = |k, members: &[&str]| SyncSet {
        method: Method::Any,
        k,
        members: members.iter().map(|member| name(member)).collect(),
    };
    assert!(set(1, &["b"]).check().is_ok());
    for bad in [set(0, &["b"]), set(2, &["b"]), set(1, &[]), set(0, &[]), set(1, &["b", "b"])] {
        assert!(bad.check().is_err(), "{bad:?} was taken");
    }
}

#[test]
fn who_is_far_behind_the_best_follower_acknowledges_nothing_and_the_best_one_always_may() {
    let standby =
        |text: &str, flushed: u64| Standby { name: name(text), streaming: true, flushed: Lsn(flushed) };
    let acknowledge = |standbys: Vec<Standby>, most: Option<u64>| {
        let primary = PrimaryServer {
            timeline: Timeline(3),
            flushed: Lsn(5000),
            history: Vec::new(),
            sync: SyncNames::Nobody,
            proven: None,
            standbys,
            last_streaming: BTreeMap::new(),
            waiting_since: None,
            checkpointed: None,
        };
        let record = Cluster { sync: Promise::Alone, ..cluster(TERM, Phase::Led { leader: leader("b") }) };
        let mut world = world(record.clone(), Server::Primary(primary.clone()));
        world.settings.maximum_lag_on_syncnode = most;
        match target(&world, &record, &primary) {
            Promise::Quorum(set) => set.members,
            other => panic!("{other:?}"),
        }
    };
    let both = || vec![standby("c", 1000), standby("d", 500)];
    assert_eq!(acknowledge(both(), None), [name("c"), name("d")]);
    assert_eq!(acknowledge(both(), Some(500)), [name("c"), name("d")]);
    assert_eq!(acknowledge(both(), Some(499)), [name("c")]);
    assert_eq!(acknowledge(vec![standby("d", 1)], Some(10)), [name("d")], "behind the leader alone");
}
