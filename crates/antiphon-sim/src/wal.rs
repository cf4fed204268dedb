//! Write-ahead log as branches: each promotion begins one, each has one writer, each remembers where it left
//! its parent. A branch is known by its number here, so that two with the same timeline are told apart.
//!
//! Content is only what matters to a client: which commits end where, and which of them were acknowledged.

use antiphon_core::ha::cluster::Position;
use antiphon_core::{Lsn, Timeline};

use crate::clock::Time;
use crate::net::NodeId;

/// A place in the log: all of a branch up to here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Which branch.
    pub branch: usize,
    /// Up to where.
    pub lsn: u64,
}

/// A branch of the log.
#[derive(Debug)]
pub struct Branch {
    /// Its timeline, as PostgreSQL numbers it.
    pub timeline: u32,
    /// Where it left which branch.
    pub parent: Option<Point>,
    /// Who writes it.
    pub owner: NodeId,
    /// The end of the newest acknowledged commit that must not be lost; 0 if there is none.
    pub protected: u64,
}

/// A commit of a client.
#[derive(Clone, Copy, Debug)]
pub struct Commit {
    /// Where it ends.
    pub at: Point,
    /// When it was acknowledged.
    pub acknowledged: Option<Time>,
}

/// All branches and commits of a run.
#[derive(Debug, Default)]
pub struct Wal {
    /// The branches.
    pub branches: Vec<Branch>,
    /// The commits, in the order they were begun.
    pub commits: Vec<Commit>,
}

impl Wal {
    /// Begins a branch.
    pub fn branch(&mut self, timeline: u32, parent: Option<Point>, owner: NodeId) -> usize {
        self.branches.push(Branch { timeline, parent, owner, protected: 0 });
        self.branches.len() - 1
    }

    /// How much of `branch` is part of the log that ends at `end`; none if nothing of it is.
    pub fn shared(&self, end: Point, branch: usize) -> Option<u64> {
        let mut at = end;
        loop {
            if at.branch == branch {
                return Some(at.lsn);
            }
            let left = self.branches[at.branch].parent?;
            at = Point { branch: left.branch, lsn: left.lsn };
        }
    }

    /// Whether the log that ends at `end` has all of `part`.
    pub fn contains(&self, end: Point, part: Point) -> bool {
        self.shared(end, part.branch).is_some_and(|lsn| part.lsn <= lsn)
    }

    /// The position as PostgreSQL shows it.
    pub fn position(&self, point: Point) -> Position {
        Position { timeline: Timeline(self.branches[point.branch].timeline), lsn: Lsn(point.lsn) }
    }

    /// The ancestors of a branch and where each was left, oldest first.
    pub fn history(&self, branch: usize) -> Vec<Position> {
        let mut history = Vec::new();
        let mut at = branch;
        while let Some(left) = self.branches[at].parent {
            history.push(self.position(left));
            at = left.branch;
        }
        history.reverse();
        history
    }

    /// Whether a standby whose log ends at `down` may stream from a server whose log ends at `up`, by what
    /// PostgreSQL compares: timelines and positions, not content.
    pub fn streamable(&self, down: Point, up: Point) -> Stream {
        let timeline = self.branches[down.branch].timeline;
        let mut at = up;
        loop {
            let branch = &self.branches[at.branch];
            if branch.timeline == timeline {
                let same = at.branch == down.branch || self.contains(at, Point { lsn: down.lsn, ..down });
                return match (down.lsn <= at.lsn, same) {
                    (false, _) => Stream::Ahead,
                    (true, true) => Stream::Sound,
                    (true, false) => Stream::AcrossFork,
                };
            }
            match branch.parent {
                Some(left) => at = left,
                None => return Stream::Foreign,
            }
        }
    }
}

/// What comes of an attempt to stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// It streams.
    Sound,
    /// Refused: the standby is ahead of the server, or of the fork.
    Ahead,
    /// Refused: the standby's timeline is no ancestor.
    Foreign,
    /// It streams, and the data differ from here on: PostgreSQL does not notice.
    AcrossFork,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_branches_of_one_timeline_are_told_apart() {
        let mut wal = Wal::default();
        let root = wal.branch(1, None, 0);
        let left = wal.branch(2, Some(Point { branch: root, lsn: 100 }), 1);
        let right = wal.branch(2, Some(Point { branch: root, lsn: 90 }), 2);
        let at = |branch, lsn| Point { branch, lsn };
        assert!(wal.contains(at(left, 150), at(root, 100)));
        assert!(!wal.contains(at(right, 150), at(root, 95)));
        assert_eq!(wal.streamable(at(left, 120), at(right, 150)), Stream::AcrossFork);
        assert_eq!(wal.streamable(at(root, 95), at(right, 150)), Stream::Ahead);
        assert_eq!(wal.streamable(at(root, 90), at(left, 150)), Stream::Sound);
    }
}
