//! Up to when everything is known: the times that let a node forget deletes, group commits and tell a conflict
//! from a write that was simply later.

use std::collections::{BTreeMap, VecDeque};

use super::version::{CommitTime, NodeId};

/// Most moments that are watched at a time. With more, every second one is given up: coarser, never wrong.
const MOMENTS_MAX: usize = 256;

/// Up to when all commits of a server are in its log.
///
/// A transaction takes its commit time before its commit is in the log, so a clock's reading proves nothing. But
/// whoever had no transaction number at a moment commits later than that moment; so, when the last of those that
/// had one has ended, everything up to that moment is in the log.
#[derive(Clone, Debug)]
pub struct Completeness {
    moments: VecDeque<(CommitTime, u64)>,
    complete: CommitTime,
}

impl Default for Completeness {
    fn default() -> Self {
        Self { moments: VecDeque::new(), complete: CommitTime::UNKNOWN }
    }
}

impl Completeness {
    /// Notes one reading of the server: its clock, read before its snapshot, and the snapshot's oldest running
    /// and first unassigned transaction (`pg_snapshot_xmin`, `pg_snapshot_xmax`). Gives the time up to which
    /// every commit was in the log when the snapshot was taken; the time itself is included.
    pub fn observe(&mut self, now: CommitTime, oldest_running: u64, next: u64) -> CommitTime {
        if self.moments.len() == MOMENTS_MAX {
            let mut keep = false;
            self.moments.retain(|_| {
                keep = !keep;
                keep
            });
        }
        // A clock that was set back: what it said before holds no more than what it says now.
        self.moments.retain(|(at, _)| *at < now);
        self.moments.push_back((now, next));
        while let Some((at, before)) = self.moments.front().copied() {
            if oldest_running < before {
                break;
            }
            // Whoever had no number yet may commit at this very microsecond, or for as long as a coarse clock stands.
            self.complete = CommitTime(at.0.saturating_sub(1)).max(self.complete);
            self.moments.pop_front();
        }
        self.complete
    }
}

/// For each other node, the time up to which its commits have been applied somewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reached(BTreeMap<NodeId, CommitTime>);

impl Reached {
    /// Nothing is known of these nodes yet.
    pub fn unknown(nodes: impl IntoIterator<Item = NodeId>) -> Self {
        Self(nodes.into_iter().map(|node| (node, CommitTime::UNKNOWN)).collect())
    }

    /// All commits of `node` up to `at` are applied. Never goes back.
    pub fn advance(&mut self, node: NodeId, at: CommitTime) {
        let reached = self.0.entry(node).or_insert(CommitTime::UNKNOWN);
        *reached = at.max(*reached);
    }

    /// That node takes no part any more. Nobody is let go before everybody has all that it wrote. This is remembered,
    /// and announced like everything else: what a writer wrote before it knew may not have seen all of it.
    pub fn release(&mut self, node: NodeId) {
        self.advance(node, CommitTime(i64::MAX));
    }

    /// How far `node` is applied.
    #[must_use]
    pub fn of(&self, node: NodeId) -> CommitTime {
        self.0.get(&node).copied().unwrap_or(CommitTime::UNKNOWN)
    }

    /// Every node with what is applied of it.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, CommitTime)> {
        self.0.iter().map(|(node, at)| (*node, *at))
    }

    /// What is older than this, a writer on node `writer` had seen, whoever wrote it, when it committed at `at`.
    /// Nobody ever saw what is later than itself, whatever the clocks say.
    #[must_use]
    pub fn limit(&self, writer: NodeId, at: CommitTime) -> CommitTime {
        self.of_all_but(&[writer]).min(CommitTime(at.0.saturating_sub(1)))
    }

    /// The time up to which the commits of all nodes but these are applied: no change that is older can arrive
    /// any more. The greatest time if there are no others.
    #[must_use]
    pub fn of_all_but(&self, nodes: &[NodeId]) -> CommitTime {
        let others = self.0.iter().filter(|(node, _)| !nodes.contains(node));
        others.map(|(_, at)| *at).min().unwrap_or(CommitTime(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_complete_when_all_who_could_still_commit_before_it_have_ended() {
        let mut server = Completeness::default();
        assert_eq!(server.observe(CommitTime(10), 100, 100), CommitTime(9), "nobody runs");
        assert_eq!(server.observe(CommitTime(20), 100, 103), CommitTime(9), "100 to 102 run");
        assert_eq!(server.observe(CommitTime(30), 102, 105), CommitTime(9), "102 runs still");
        assert_eq!(server.observe(CommitTime(40), 103, 105), CommitTime(19), "103 and 104 run");
        assert_eq!(server.observe(CommitTime(50), 105, 105), CommitTime(49), "nobody runs");
    }

    #[test]
    fn a_clock_that_is_set_back_makes_nothing_complete_too_early() {
        let mut server = Completeness::default();
        server.observe(CommitTime(100), 7, 9);
        assert_eq!(server.observe(CommitTime(50), 8, 9), CommitTime::UNKNOWN);
        assert_eq!(server.observe(CommitTime(60), 9, 9), CommitTime(59));
    }

    #[test]
    fn one_old_transaction_costs_bounded_memory() {
        let mut server = Completeness::default();
        for tick in 0..10_000 {
            server.observe(CommitTime(tick), 1, 2 + u64::try_from(tick).expect("positive"));
        }
        assert!(server.moments.len() <= MOMENTS_MAX);
        assert_eq!(server.observe(CommitTime(10_000), 10_003, 10_003), CommitTime(9_999));
    }

    #[test]
    fn the_slowest_of_the_others_bounds_what_may_be_forgotten() {
        let node = |number| NodeId::new(number).expect("not zero");
        let mut reached = Reached::unknown([node(1), node(2)]);
        reached.advance(node(1), CommitTime(10));
        assert_eq!(reached.of_all_but(&[]), CommitTime::UNKNOWN);
        assert_eq!(reached.of_all_but(&[node(2)]), CommitTime(10));
        reached.advance(node(2), CommitTime(7));
        reached.advance(node(2), CommitTime(5));
        assert_eq!(reached.of_all_but(&[]), CommitTime(7));
        reached.release(node(2));
        assert_eq!(reached.of_all_but(&[]), CommitTime(10));
    }
}
