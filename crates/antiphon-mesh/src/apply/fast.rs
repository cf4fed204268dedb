//! The fast way: transactions in flight, each of which fails as a whole if anything in it conflicts.

use super::{Applier, ApplyError, PROGRESS, Prepared, progress_params};
use crate::row::Op;
use crate::session::Param;

/// Most bytes that are put together before they are sent.
const GROUP_BYTES_MAX: usize = 1 << 18;

impl Applier {
    /// Sends as many of these as fit and gives how many of them committed. Whatever stopped the next one is left
    /// to the careful way, which will meet it again if it is of substance.
    pub(super) async fn fast(&mut self, group: &[Prepared]) -> Result<usize, ApplyError> {
        let begin = self.session.prepare("BEGIN").await?;
        let commit = self.session.prepare("COMMIT").await?;
        let progress = self.session.prepare(PROGRESS).await?;
        let source = self.identity.source.number().to_string();
        for transaction in group {
            if !transaction.truncated.is_empty() || self.session.pending() > GROUP_BYTES_MAX {
                break;
            }
            self.session.put(begin, &[])?;
            self.put_rows(transaction)?;
            self.session.put(progress, &progress_params(transaction, source.as_bytes()))?;
            self.session.put(commit, &[])?;
        }
        if self.session.pending() == 0 {
            return Ok(0);
        }
        let outcome = self.session.run().await?;
        if let Some(error) = &outcome.error {
            tracing::trace!(%error, committed = outcome.committed, "not without a closer look");
            self.session.ask("ROLLBACK", &[]).await?;
        }
        Ok(outcome.committed)
    }

    fn put_rows(&mut self, transaction: &Prepared) -> Result<(), ApplyError> {
        // Whoever is older than this had been seen by the writer, whichever node it was; and a writer never saw
        // what is later than itself, whatever its clock says.
        let seen = transaction.seen.of_all_but(&[self.identity.source]).0;
        let seen = Param::Long(seen.min(transaction.version.at.0.saturating_sub(1)));
        let origin = Param::Number(self.identity.origin);
        for (target, op) in &transaction.ops {
            let mut params: Vec<Param<'_>> = Vec::with_capacity(target.update_order.len() + 2);
            let statement = match op {
                Op::Insert { row } => {
                    params.extend(row.iter().map(|value| Param::Text(value.as_deref())));
                    target.insert_new
                }
                Op::Update { row, .. } => {
                    params.extend(target.update_order.iter().map(|at| Param::Text(row[*at].as_deref())));
                    params.extend([seen, origin]);
                    target.update_seen
                }
                Op::Delete { key, .. } => {
                    params.extend(key.iter().map(|value| Param::Text(value.as_deref())));
                    params.extend([seen, origin]);
                    target.delete_seen
                }
            };
            self.session.put(statement, &params)?;
        }
        Ok(())
    }
}
