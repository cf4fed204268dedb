//! Transactions that do not fit into memory: read piece by piece, applied as one.
//!
//! First as if nothing conflicted; if something does, again with a savepoint for each piece, and only the pieces in
//! which something conflicts row by row.

use std::sync::Arc;

use super::{Applied, Applier, ApplyError, Changes, PROGRESS, Prepared, Target, progress_params};
use crate::row::Op;
use crate::transaction::{Nonsense, Transaction};

/// Changes of a piece.
const PIECE_CHANGES: usize = 1000;
/// How often it is tried when others are in the way.
const ATTEMPTS_MAX: u32 = 10;

impl Applier {
    /// Applies a large transaction.
    pub(super) async fn large(
        &mut self,
        transaction: &mut Transaction,
        applied: &mut Applied,
    ) -> Result<(), ApplyError> {
        let prepared = self.prepared(transaction);
        let mut attempt = 0;
        loop {
            let careful = attempt > 0;
            let mut conflicts = Vec::new();
            let result = self.pieces(transaction, &prepared, careful, &mut conflicts, applied).await;
            match result {
                Ok(Some(rows)) => {
                    applied.count(rows);
                    applied.note(conflicts);
                    self.forget_detours();
                    return Ok(());
                }
                Ok(None) => {}
                Err(ApplyError::Detour(detour)) => self.take(*detour, prepared.version).await?,
                Err(error) if error.is_lost() => return Err(error),
                Err(error) => {
                    self.session.ask("ROLLBACK", &[]).await?;
                    if attempt > 0 && (!error.is_transient() || attempt == ATTEMPTS_MAX) {
                        return Err(error);
                    }
                }
            }
            attempt += 1;
        }
    }

    /// Applies it piece by piece; gives how many rows that were, and none if something is in the way.
    async fn pieces(
        &mut self,
        transaction: &mut Transaction,
        prepared: &Prepared,
        careful: bool,
        conflicts: &mut Vec<&'static str>,
        applied: &mut Applied,
    ) -> Result<Option<u64>, ApplyError> {
        self.session.ask("BEGIN", &[]).await?;
        self.absent.begin();
        let mut decoder = self.steps.decoder(transaction.streamed);
        let mut piece = Changes::with_capacity(PIECE_CHANGES);
        let mut rows = 0;
        for message in transaction.body.read().map_err(Nonsense::Disk)? {
            let message = message.map_err(Nonsense::Disk)?;
            let step = self.steps.read(&mut decoder, &transaction.body.undone, message)?;
            let Some(step) = step else { continue };
            // A table that is new needs statements to be prepared, which waits for all that was sent.
            self.step(step, transaction.end, applied, &mut piece).await?;
            if piece.len() >= PIECE_CHANGES {
                rows += piece.len() as u64;
                if !self.piece(prepared, &piece, careful, conflicts).await? {
                    return self.give_up().await;
                }
                piece.clear();
            }
        }
        rows += piece.len() as u64;
        if !self.piece(prepared, &piece, careful, conflicts).await? {
            return self.give_up().await;
        }
        self.detour_if_due(0)?;
        let progress = self.session.prepare(PROGRESS).await?;
        let commit = self.session.prepare("COMMIT").await?;
        let source = self.identity.source.number().to_string();
        self.session.put(progress, &progress_params(prepared, source.as_bytes()))?;
        self.session.put(commit, &[])?;
        Ok((self.finish().await? == 1).then_some(rows))
    }

    async fn give_up(&mut self) -> Result<Option<u64>, ApplyError> {
        self.session.run().await?;
        self.session.ask("ROLLBACK", &[]).await?;
        Ok(None)
    }

    /// Sends one piece; false if something is in the way.
    async fn piece(
        &mut self,
        prepared: &Prepared,
        piece: &[(Arc<Target>, Op)],
        careful: bool,
        conflicts: &mut Vec<&'static str>,
    ) -> Result<bool, ApplyError> {
        let simple = !piece.iter().any(|(_, op)| *op == Op::Truncate);
        if !careful {
            if !simple {
                return Ok(false);
            }
            self.put_changes(piece, prepared.seen_of_everybody())?;
            return Ok(self.session.push().await?);
        }
        if simple {
            self.session.ask("SAVEPOINT piece", &[]).await?;
            self.put_changes(piece, prepared.seen_of_everybody())?;
            if self.session.run().await?.error.is_none() {
                self.session.ask("RELEASE SAVEPOINT piece", &[]).await?;
                return Ok(true);
            }
            self.session.ask("ROLLBACK TO SAVEPOINT piece", &[]).await?;
        }
        self.rows(prepared, piece, conflicts).await?;
        Ok(true)
    }
}
