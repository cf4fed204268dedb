//! Calls under way: commits, reads and membership changes that someone waits for.
//!
//! A commit is proposed again when the leader changes or nothing was heard of it for a while; the machine
//! does it once, because it knows the request's number. A read asks for a read index again in the same cases.
//! All end at their deadline. Time is counted in ticks: nothing here looks at a clock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::machine::REQUESTS_REMEMBERED;
use crate::space::Applied;
use crate::{Snapshot, StoreError, Transaction};

/// Commits, reads and changes that may wait at once, each.
pub(crate) const CALLS_MAX: usize = REQUESTS_REMEMBERED / 2;

pub(crate) type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// The leader, as far as a call cares: a change of either means that what was sent may be lost.
pub(crate) type Leadership = (u64, u64);

/// A commit that has not been applied here yet.
pub(crate) struct Commit {
    pub(crate) data: Vec<u8>,
    pub(crate) transaction: Transaction,
    pub(crate) reply: Reply<u64>,
    pub(crate) waits: Waits,
}

/// A read that has no index yet, or whose index is not applied yet.
pub(crate) struct Read {
    pub(crate) index: Option<u64>,
    pub(crate) reply: Reply<Arc<Snapshot>>,
    pub(crate) waits: Waits,
}

/// A change of the membership that has not come true yet.
pub(crate) struct Change {
    pub(crate) wish: Wish,
    pub(crate) reply: Reply<()>,
    pub(crate) deadline: u64,
}

/// What a change shall bring about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// The member at this address votes.
    Add(String),
    /// No member has this address.
    Remove(String),
}

/// When a call was last sent, to whom, and until when it waits; in ticks.
pub(crate) struct Waits {
    sent: Option<(u64, Leadership)>,
    deadline: u64,
}

impl Waits {
    pub(crate) fn until(deadline: u64) -> Self {
        Self { sent: None, deadline }
    }

    /// True if the call must be sent (again) now.
    pub(crate) fn is_due(&self, now: u64, leadership: Leadership, resend_ticks: u64) -> bool {
        self.sent.is_none_or(|(at, to)| to != leadership || now >= at.saturating_add(resend_ticks))
    }

    pub(crate) fn mark_sent(&mut self, now: u64, leadership: Leadership) {
        self.sent = Some((now, leadership));
    }
}

/// All calls of one member, by number.
#[derive(Default)]
pub(crate) struct Calls {
    pub(crate) commits: BTreeMap<u64, Commit>,
    pub(crate) reads: BTreeMap<u64, Read>,
    pub(crate) changes: Vec<Change>,
}

impl Calls {
    /// Nobody waits for anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.commits.is_empty() && self.reads.is_empty() && self.changes.is_empty()
    }

    /// Answers the commit with this number, if it is one of ours that still waits.
    pub(crate) fn resolve(&mut self, request: u64, applied: Applied) {
        if let Some(commit) = self.commits.remove(&request) {
            // Who asked may have gone; then nobody needs the answer.
            let _ = commit.reply.send(applied.answer(&commit.transaction));
        }
    }

    /// Answers the reads whose index is applied.
    pub(crate) fn serve_reads(&mut self, applied: u64, space: &Arc<Snapshot>) {
        let served = |read: &Read| read.index.is_some_and(|index| index <= applied);
        for (_, read) in take_if(&mut self.reads, served) {
            let _ = read.reply.send(Ok(Arc::clone(space)));
        }
    }

    /// Ends the calls whose deadline has come.
    pub(crate) fn expire(&mut self, now: u64, limit: Duration, limit_of_changes: Duration) {
        for (_, commit) in take_if(&mut self.commits, |commit| commit.waits.deadline <= now) {
            let _ = commit.reply.send(Err(StoreError::Timeout(limit)));
        }
        for (_, read) in take_if(&mut self.reads, |read| read.waits.deadline <= now) {
            let _ = read.reply.send(Err(StoreError::Timeout(limit)));
        }
        for change in self.changes.extract_if(.., |change| change.deadline <= now) {
            let _ = change.reply.send(Err(StoreError::Timeout(limit_of_changes)));
        }
    }
}

/// Takes out all for which `condition` holds.
pub(crate) fn take_if<T>(map: &mut BTreeMap<u64, T>, condition: impl Fn(&T) -> bool) -> Vec<(u64, T)> {
    let taken: Vec<u64> = map.iter().filter(|(_, value)| condition(value)).map(|(key, _)| *key).collect();
    taken.into_iter().filter_map(|key| map.remove_entry(&key)).collect()
}
