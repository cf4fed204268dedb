//! When and where a row was last written: the total order that all nodes agree in.

use std::fmt;
use std::num::NonZeroU16;

/// A node of a mesh, by its number. Numbers are given once and never again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(NonZeroU16);

impl NodeId {
    /// The node with this number; none for zero, which is no node's.
    #[must_use]
    pub fn new(number: u16) -> Option<Self> {
        NonZeroU16::new(number).map(Self)
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

/// When a transaction committed, by its node's clock: microseconds since 2000-01-01 00:00 UTC, as PostgreSQL counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommitTime(pub i64);

impl CommitTime {
    /// Before everything: the time of what nobody remembers.
    pub const UNKNOWN: Self = Self(i64::MIN);

    /// How far `later` is ahead, in microseconds; none if it is not.
    #[must_use]
    pub fn micros_to(self, later: Self) -> Option<u64> {
        let ahead = i128::from(later.0) - i128::from(self.0);
        u64::try_from(ahead).ok().filter(|ahead| *ahead > 0)
    }

    /// How long, in microseconds, a change that committed at `at` waits while a clock shows this; none if it need not
    /// wait any more. It waits until the clock is past it and not just there: what is written over it in the same
    /// microsecond would tie with it, and the greater node would win instead of the later write.
    #[must_use]
    pub fn wait_until_past(self, at: Self) -> Option<u64> {
        self.micros_to(Self(at.0.saturating_add(1)))
    }
}

/// What a row's last write is ordered by. A later time wins; at the same time the greater node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// When the transaction that wrote it committed, where it was first committed.
    pub at: CommitTime,
    /// Where that was.
    pub node: NodeId,
}

impl fmt::Display for Version {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}@{}", self.at.0, self.node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u16) -> NodeId {
        NodeId::new(number).expect("not zero")
    }

    #[test]
    fn a_later_commit_wins_and_a_tie_goes_to_the_greater_node() {
        let early = Version { at: CommitTime(1), node: node(9) };
        let late = Version { at: CommitTime(2), node: node(1) };
        let tie = Version { at: CommitTime(2), node: node(2) };
        assert!(early < late && late < tie);
    }

    #[test]
    fn no_difference_of_times_overflows() {
        assert_eq!(CommitTime::UNKNOWN.micros_to(CommitTime(i64::MAX)), Some(u64::MAX));
        assert_eq!(CommitTime(5).micros_to(CommitTime(5)), None);
        assert_eq!(CommitTime(5).micros_to(CommitTime(4)), None);
        assert_eq!(
            CommitTime(5).wait_until_past(CommitTime(i64::MAX)),
            CommitTime(5).micros_to(CommitTime(i64::MAX))
        );
    }

    #[test]
    fn a_change_waits_until_its_time_is_over() {
        assert_eq!(CommitTime(4).wait_until_past(CommitTime(5)), Some(2));
        assert_eq!(CommitTime(5).wait_until_past(CommitTime(5)), Some(1));
        assert_eq!(CommitTime(6).wait_until_past(CommitTime(5)), None);
    }
}
