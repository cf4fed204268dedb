//! What a node that joins gets from its donor, and with which versions.
//!
//! A row's version decides every later conflict. What is older than anything that can still arrive may get any
//! version that is older than that, so it is copied as one; what is newer keeps its own.

use super::version::{CommitTime, NodeId, Version};

/// Up to when the donor had applied everybody at the copy's moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Horizon {
    /// No change that is older can arrive at the newcomer any more.
    pub seen_to: CommitTime,
    /// What rows are written as that are older than this.
    pub stamp: Version,
}

impl Horizon {
    /// The horizon of a copy from `donor`, which had applied of each other active node what `others` say, nothing
    /// being [`CommitTime::UNKNOWN`]. `clock` is the donor's, read before the copy's moment was chosen: whatever it
    /// commits afterwards is later.
    pub fn new(donor: NodeId, clock: CommitTime, others: impl IntoIterator<Item = CommitTime>) -> Self {
        match others.into_iter().min() {
            Some(seen_to) => Self { seen_to, stamp: Version { at: seen_to, node: donor } },
            None => Self { seen_to: CommitTime(i64::MAX), stamp: Version { at: clock, node: donor } },
        }
    }

    /// The version that a row of the donor's has on the newcomer.
    #[must_use]
    pub fn of_row(&self, row: Version) -> Version {
        if row.at <= self.seen_to { self.stamp } else { row }
    }

    /// Whether a tombstone, or a truncation, can still meet something that it wins against.
    #[must_use]
    pub fn needs(&self, gone: Version) -> bool {
        gone.at > self.seen_to
    }
}
