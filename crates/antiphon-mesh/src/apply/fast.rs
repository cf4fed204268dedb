//! The fast way: transactions in flight, each of which fails as a whole if anything in it conflicts.
//!
//! Several may become one here, which then has the last one's time: only where no change of a third node can still
//! arrive that is older than that, for such a change might lose against a time that its opponent never had.

use super::{Applier, ApplyError, PROGRESS, Prepared, progress_params};
use crate::row::Op;

/// Most bytes that are put together before they are sent.
const GROUP_BYTES_MAX: usize = 1 << 18;
/// Most transactions that are sent at once.
pub(super) const REACH_MAX: usize = 1000;
/// Fewer transactions than this are not made one.
const JOINED_MIN: usize = 4;
/// Most changes of transactions that are made one.
const JOINED_CHANGES_MAX: usize = 4000;

impl Applier {
    /// Sends as many of these as fit and gives how many of them committed. Whatever stopped the next one is left
    /// to the careful way, which will meet it again if it is of substance.
    pub(super) async fn fast(&mut self, group: &[Prepared]) -> Result<usize, ApplyError> {
        let simple = group.iter().take_while(|whole| !whole.ops.iter().any(|(_, op)| *op == Op::Truncate));
        let group = &group[..simple.take(self.reach).count()];
        let joined = self.joinable(group);
        if joined >= JOINED_MIN && self.join(&group[..joined]).await? {
            return Ok(joined);
        }
        let group = if joined >= JOINED_MIN { &group[..joined] } else { group };
        for transaction in group {
            if self.session.pending() > GROUP_BYTES_MAX {
                break;
            }
            self.put_whole(std::slice::from_ref(transaction)).await?;
        }
        if self.session.pending() == 0 {
            return Ok(0);
        }
        self.finish().await
    }

    /// How many of these, from the first, may be made one.
    fn joinable(&self, group: &[Prepared]) -> usize {
        let mut changes = 0;
        let fits = |transaction: &&Prepared| {
            changes += transaction.ops.len();
            transaction.version.at <= self.settled && changes <= JOINED_CHANGES_MAX
        };
        group.iter().take_while(fits).count()
    }

    /// Applies these as one; false, and nothing, if there is anything in the way.
    async fn join(&mut self, group: &[Prepared]) -> Result<bool, ApplyError> {
        self.put_whole(group).await?;
        Ok(self.finish().await? == 1)
    }

    /// Puts a transaction that does what all of these did.
    async fn put_whole(&mut self, group: &[Prepared]) -> Result<(), ApplyError> {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { return Ok(()) };
        let begin = self.session.prepare("BEGIN").await?;
        let commit = self.session.prepare("COMMIT").await?;
        let progress = self.session.prepare(PROGRESS).await?;
        let source = self.identity.source.number().to_string();
        self.session.put(begin, &[])?;
        // The first had seen least.
        let seen = first.seen_of_everybody();
        match group {
            [only] => self.put_changes(&only.ops, seen)?,
            several => {
                let ops: Vec<_> = several.iter().flat_map(|whole| whole.ops.iter().cloned()).collect();
                self.put_changes(&ops, seen)?;
            }
        }
        self.session.put(progress, &progress_params(last, source.as_bytes()))?;
        self.session.put(commit, &[])?;
        Ok(())
    }

    /// Waits for what was put; gives how many transactions committed.
    pub(super) async fn finish(&mut self) -> Result<usize, ApplyError> {
        let outcome = self.session.run().await?;
        self.reach = match outcome.error {
            Some(_) => (self.reach / 2).max(1),
            None => (self.reach * 2).min(REACH_MAX),
        };
        if let Some(error) = &outcome.error {
            tracing::trace!(%error, committed = outcome.committed, "not without a closer look");
            self.session.ask("ROLLBACK", &[]).await?;
        }
        Ok(outcome.committed)
    }
}
