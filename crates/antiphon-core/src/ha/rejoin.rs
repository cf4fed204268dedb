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
