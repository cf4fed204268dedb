//! Whether a data directory's history is still part of the leader's.
//!
//! PostgreSQL streams across a fork without complaint when two timelines have the same number; ours never do,
//! because a promotion takes the timeline of its term. That makes this comparison sufficient.

use super::cluster::{Position, Serving};

/// How a history relates to the leader's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fork {
    /// All of it is part of the leader's.
    Shared,
    /// It has something that the leader's has not.
    Diverged,
}

/// Compares the end of a history with the leader's.
pub fn fork(serving: &Serving, end: Position) -> Fork {
    if end.timeline == serving.timeline {
        return Fork::Shared;
    }
    match serving.history.iter().find(|left| left.timeline == end.timeline) {
        Some(left) if end.lsn <= left.lsn => Fork::Shared,
        Some(_) | None => Fork::Diverged,
    }
}

/// The same for a directory that was shut down cleanly: its last record begins at `checkpoint`, so the
/// history must go on beyond that.
pub fn fork_of_checkpoint(serving: &Serving, checkpoint: Position) -> Fork {
    let mut end = checkpoint;
    end.lsn.0 = end.lsn.0.saturating_add(1);
    fork(serving, end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Epoch, Lsn, Timeline};

    fn at(timeline: u32, lsn: u64) -> Position {
        Position { timeline: Timeline(timeline), lsn: Lsn(lsn) }
    }

    /// A leader on timeline 5, which left 2 at 800 and 1 at 500; 3 and 4 were never its own.
    fn serving() -> Serving {
        Serving { epoch: Epoch(5), timeline: Timeline(5), history: vec![at(1, 500), at(2, 800)] }
    }

    #[test]
    fn what_ends_before_the_fork_is_shared_and_one_byte_more_is_not() {
        for (end, expected) in [
            (at(1, 1), Fork::Shared),
            (at(1, 500), Fork::Shared),
            (at(1, 501), Fork::Diverged),
            (at(2, 800), Fork::Shared),
            (at(2, 801), Fork::Diverged),
            (at(5, u64::MAX), Fork::Shared),
        ] {
            assert_eq!(fork(&serving(), end), expected, "{end:?}");
        }
    }

    #[test]
    fn a_timeline_that_the_leader_never_wrote_is_another_history() {
        for timeline in [3, 4, 6] {
            assert_eq!(fork(&serving(), at(timeline, 1)), Fork::Diverged, "timeline {timeline}");
        }
    }

    #[test]
    fn a_shutdown_checkpoint_at_the_fork_lies_beyond_it() {
        assert_eq!(fork_of_checkpoint(&serving(), at(2, 799)), Fork::Shared);
        assert_eq!(fork_of_checkpoint(&serving(), at(2, 800)), Fork::Diverged);
    }

    #[test]
    fn a_damaged_checkpoint_position_is_no_panic() {
        assert_eq!(fork_of_checkpoint(&serving(), at(2, u64::MAX)), Fork::Diverged);
    }
}
