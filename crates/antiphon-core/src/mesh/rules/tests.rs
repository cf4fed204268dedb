//! What each resolver promises, on every world of two or three nodes that write a row a few times.

use super::super::resolve::{Action, Change, Local, resolve};
use super::super::version::CommitTime;
use super::super::watermark::Reached;
use super::*;

fn node(number: u16) -> NodeId {
    NodeId::new(number).expect("not zero")
}

/// A write on its way.
#[derive(Clone)]
struct Sent {
    change: Change,
    version: Version,
    seen: Reached,
}

/// Nodes with one row each, and what they have sent.
#[derive(Clone)]
struct World {
    rows: Vec<Local>,
    seen: Vec<Reached>,
    sent: Vec<Vec<Sent>>,
    /// How many of each sender's writes each node has taken.
    taken: Vec<Vec<usize>>,
    clock: i64,
    /// Rows that were deleted are inserted again.
    anew: bool,
}

impl World {
    fn of(nodes: usize, anew: bool) -> Self {
        let origin = Version { at: CommitTime(0), node: node(1) };
        let mut seen = Reached::default();
        (1..=nodes).for_each(|number| seen.advance(node(u16::try_from(number).expect("few")), CommitTime(0)));
        Self {
            rows: vec![Local::Row(origin); nodes],
            seen: vec![seen; nodes],
            sent: vec![Vec::new(); nodes],
            taken: vec![vec![0; nodes]; nodes],
            clock: 0,
            anew,
        }
    }

    fn write(&mut self, at: usize, delete: bool) {
        self.clock += 1;
        let version = Version { at: CommitTime(self.clock), node: node(u16::try_from(at + 1).expect("few")) };
        let is_row = matches!(self.rows[at], Local::Row(_));
        let change = match (delete, is_row) {
            (true, true) => Change::Delete,
            (true, false) => return,
            (false, true) => Change::Update,
            (false, false) if !self.anew => return,
            (false, false) => Change::Insert,
        };
        self.rows[at] = if delete { Local::Gone(version) } else { Local::Row(version) };
        self.sent[at].push(Sent { change, version, seen: self.seen[at].clone() });
    }

    /// Takes the next write of `from`; false if there is none.
    fn take(&mut self, at: usize, from: usize, rules: &Rules) -> bool {
        let Some(sent) = self.sent[from].get(self.taken[at][from]).cloned() else { return false };
        self.taken[at][from] += 1;
        let verdict = resolve(sent.change, sent.version, &sent.seen, self.rows[at], rules);
        match (verdict.action, sent.change) {
            (Action::Apply, Change::Delete) | (Action::Bury, _) => self.rows[at] = Local::Gone(sent.version),
            (Action::Apply, _) => self.rows[at] = Local::Row(sent.version),
            (Action::Keep | Action::Stop, _) => {}
        }
        self.seen[at].advance(sent.version.node, sent.version.at);
        true
    }

    /// Everything arrives; whether all nodes have the same then.
    fn ends_alike(mut self, rules: &Rules) -> bool {
        let nodes = self.rows.len();
        for (at, from) in (0..nodes).flat_map(|at| (0..nodes).map(move |from| (at, from))) {
            while at != from && self.take(at, from, rules) {}
        }
        let row = |local: &Local| match local {
            Local::Row(version) => Some(*version),
            Local::Gone(_) | Local::Absent => None,
        };
        self.rows.iter().all(|local| row(local) == row(&self.rows[0]))
    }
}

/// How many of all histories of so many steps end with different rows.
fn differing(world: &World, rules: &Rules, deletes: &[bool], steps: usize) -> usize {
    let own = usize::from(!world.clone().ends_alike(rules));
    if steps == 0 {
        return own;
    }
    let nodes = world.rows.len();
    let mut differ = own;
    for at in 0..nodes {
        for delete in deletes.iter().copied() {
            let mut next = world.clone();
            next.write(at, delete);
            differ += differing(&next, rules, deletes, steps - 1);
        }
        for from in (0..nodes).filter(|from| *from != at) {
            let mut next = world.clone();
            if next.take(at, from, rules) {
                differ += differing(&next, rules, deletes, steps - 1);
            }
        }
    }
    differ
}

fn rules(resolver: Resolver) -> Rules {
    Rules { all: resolver, ..Rules::default() }
}

#[test]
fn the_last_update_wins_on_all_nodes_whatever_comes_in_what_order() {
    assert_eq!(differing(&World::of(2, true), &rules(Resolver::LastUpdateWins), &[false, true], 6), 0);
    assert_eq!(differing(&World::of(3, true), &rules(Resolver::LastUpdateWins), &[false, true], 4), 0);
}

#[test]
fn two_nodes_that_delete_nothing_end_alike_by_the_priority_of_either() {
    for first in [1, 2] {
        let rules = rules(Resolver::OriginPriority(vec![node(first)]));
        assert_eq!(differing(&World::of(2, false), &rules, &[false], 7), 0, "{first} first");
    }
}

#[test]
fn each_doubt_about_a_resolver_has_a_history_that_shows_it() {
    for resolver in [Resolver::FirstUpdateWins, Resolver::KeepLocal, Resolver::ApplyRemote] {
        assert!(resolver.doubt().is_some());
        assert_ne!(differing(&World::of(2, false), &rules(resolver), &[false], 5), 0);
    }
    let priority = Resolver::OriginPriority(vec![node(1), node(2)]);
    assert!(priority.doubt().is_some());
    assert_ne!(differing(&World::of(3, false), &rules(priority), &[false], 5), 0);
}

#[test]
fn rules_read_as_they_were_stored_and_nothing_else_is_taken() {
    let mut all = rules(Resolver::OriginPriority(vec![node(3), node(1)]));
    assert_eq!(all.to_json(), json!({"origin_priority": [3, 1]}));
    assert_eq!(Rules::from_json(&all.to_json()), Ok(all.clone()));
    all.set(Some(Conflict::UpdateDeleted), Resolver::Error);
    assert_eq!(Rules::from_json(&all.to_json()), Ok(all.clone()));
    assert_eq!(all.of(Conflict::UpdateDeleted), &Resolver::Error);
    assert_eq!(all.for_just(Conflict::UpdateMissing), None);
    for bad in [json!("latest"), json!({"latest": "error"}), json!({"origin_priority": [0]}), json!(7)] {
        assert!(Rules::from_json(&bad).is_err(), "{bad}");
    }
}
