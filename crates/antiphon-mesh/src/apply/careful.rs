//! The careful way: one transaction, row by row, each looked at under a lock before the core decides it.
//!
//! A row that is not there cannot be locked. So a row is inserted only if nobody did meanwhile, and its tombstone is
//! looked for again afterwards: by then, whoever was deleting it has been waited for. And a delete of such a row is made
//! known before it counts.

use std::sync::Arc;

use antiphon_core::Lsn;
use antiphon_core::mesh::resolve::Action;
use antiphon_core::mesh::{Change, Local, Verdict, Version, resolve};

use super::absent::DUE_MAX;
use super::merge::{Detour, Merge};
use super::{Applied, Applier, ApplyError, PROGRESS, Prepared, Target, progress_params};
use crate::row::{Op, Text, to_json};
use crate::session::Param;
use crate::shape::{LOOK_FOR_TRUNCATION, Shape};
use crate::wire::WireError;

/// How often a transaction is tried when others are in the way.
pub(super) const ATTEMPTS_MAX: u32 = 10;
/// How often a row is looked at anew because others insert and delete it.
pub(super) const LOOKS_MAX: u32 = 20;

/// What is here under a key.
struct Found {
    local: Local,
    row: Option<Vec<Text>>,
    /// This transaction's own delete is known already, and whoever might have been inserting the row has ended.
    known: bool,
}

impl Applier {
    /// Applies one transaction.
    pub(super) async fn careful(
        &mut self,
        transaction: &Prepared,
        applied: &mut Applied,
    ) -> Result<(), ApplyError> {
        let mut attempt = 1;
        loop {
            let mut conflicts = Vec::new();
            match self.attempt(transaction, &mut conflicts).await {
                Ok(()) => {
                    applied.note(conflicts);
                    self.forget_detours();
                    return Ok(());
                }
                Err(ApplyError::Detour(detour)) => self.take(*detour, transaction.version).await?,
                Err(error) if error.is_lost() => return Err(error),
                Err(error) => {
                    self.session.ask("ROLLBACK", &[]).await?;
                    if !error.is_transient() || attempt == ATTEMPTS_MAX {
                        return Err(error);
                    }
                    attempt += 1;
                }
            }
        }
    }

    /// Makes a detour, after which the transaction begins anew.
    pub(super) async fn take(&mut self, detour: Detour, version: Version) -> Result<(), ApplyError> {
        self.session.ask("ROLLBACK", &[]).await?;
        self.make(detour, version).await
    }

    /// The transaction at hand is through.
    pub(super) fn forget_detours(&mut self) {
        self.merged.clear();
        self.absent.clear();
        self.turn = None;
    }

    /// A detour, if more than so many deletes have to be known first.
    pub(super) fn detour_if_due(&self, more_than: usize) -> Result<(), ApplyError> {
        if self.absent.due() > more_than {
            return Err(ApplyError::Detour(Box::new(Detour::Bury)));
        }
        Ok(())
    }

    async fn attempt(
        &mut self,
        transaction: &Prepared,
        conflicts: &mut Vec<&'static str>,
    ) -> Result<(), ApplyError> {
        self.session.ask("BEGIN", &[]).await?;
        self.absent.begin();
        self.rows(transaction, &transaction.ops, conflicts).await?;
        self.detour_if_due(0)?;
        let source = self.identity.source.number().to_string();
        self.session.ask(PROGRESS, &progress_params(transaction, source.as_bytes())).await?;
        self.session.ask("COMMIT", &[]).await?;
        Ok(())
    }

    /// Decides rows one by one, in the transaction that is open.
    pub(super) async fn rows(
        &mut self,
        transaction: &Prepared,
        ops: &[(Arc<Target>, Op)],
        conflicts: &mut Vec<&'static str>,
    ) -> Result<(), ApplyError> {
        for (target, op) in ops {
            if *op == Op::Truncate {
                self.truncate(target, transaction.version).await?;
            } else if let Some(kind) = self.row(transaction, target, op).await? {
                conflicts.push(kind);
            }
        }
        self.detour_if_due(DUE_MAX)?;
        self.settle(ops).await
    }

    /// Decides one row; gives the kind of the conflict if there was one.
    async fn row(
        &mut self,
        transaction: &Prepared,
        target: &Arc<Target>,
        op: &Op,
    ) -> Result<Option<&'static str>, ApplyError> {
        for _ in 0..LOOKS_MAX {
            let found = self.look(transaction, target, op).await?;
            let mut verdict = decide(transaction, target, op, found.local);
            if let (Op::Update { old: Some(old), .. } | Op::Delete { old: Some(old), .. }, Some(row)) =
                (op, &found.row)
                && verdict.action == Action::Apply
                && old == row
            {
                // It overwrites just what its writer saw, so nobody disagrees.
                verdict.conflict = None;
            }
            if let (Local::Row(version), Action::Keep) = (found.local, verdict.action)
                && target.mapping.shape.merges()
                && matches!(op, Op::Insert { .. } | Op::Update { .. })
                && !self.merged.contains(&(target.mapping.relation.id, op.clone()))
                // What is older than a delete is gone with the row that was there then; this is another one.
                && self.gone(target, &texts(&op.key(&target.mapping.shape))).await? <= Some(transaction.version)
            {
                let merge = Merge { target: target.clone(), op: op.clone(), version };
                return Err(ApplyError::Detour(Box::new(Detour::Merge(merge))));
            }
            if verdict.action == Action::Bury && !found.known {
                let key = op.key(&target.mapping.shape);
                self.absent.found(target, &key, found.local);
                self.absent.push(target, key);
                return Ok(None);
            }
            let done = self.carry_out(transaction, target, op, &found, verdict).await;
            if done.map_err(|error| refused(error, target, op, transaction))? {
                // An entry of a ledger has one writer, who agrees with himself.
                if let Some(kind) = verdict.conflict
                    && target.mapping.shape.ledger_of.is_none()
                {
                    self.record(transaction, target, op, &found, verdict).await?;
                    return Ok(Some(kind.name()));
                }
                return Ok(None);
            }
        }
        Err(ApplyError::Restless {
            table: target.mapping.shape.table().to_string(),
            key: key_text(target, op),
        })
    }

    async fn look(&mut self, transaction: &Prepared, target: &Target, op: &Op) -> Result<Found, ApplyError> {
        let shape = &target.mapping.shape;
        let key = op.key(shape);
        let answer = self.session.ask(&shape.look(), &texts(&key)).await?;
        if let Some(row) = answer.rows.into_iter().next() {
            let version = self.version(row[0].as_ref(), row[1].as_ref());
            return Ok(Found { local: Local::Row(version), row: Some(row[2..].to_vec()), known: false });
        }
        let gone = self.gone(target, &texts(&key)).await?;
        if gone == Some(transaction.version) {
            // It was made known by this transaction itself, now or before a crash.
            let before = self.absent.before(target, &key);
            let local = before.unwrap_or(Local::Absent);
            return Ok(Found { local, row: None, known: before.is_some() });
        }
        Ok(Found { local: gone.map_or(Local::Absent, Local::Gone), row: None, known: false })
    }

    /// The latest delete of that key, its own or its table's.
    async fn gone(&mut self, target: &Target, key: &[Param<'_>]) -> Result<Option<Version>, ApplyError> {
        let shape = &target.mapping.shape;
        let tombstone = self.session.ask(&shape.look_for_tombstone(), key).await?;
        let table = shape.id.to_string();
        let truncation =
            self.session.ask(LOOK_FOR_TRUNCATION, &[Param::Text(Some(table.as_bytes()))]).await?;
        let deletes = tombstone.rows.iter().chain(&truncation.rows);
        Ok(deletes.map(|row| self.version(row[0].as_ref(), row[1].as_ref())).max())
    }

    /// Writes what was decided; false if somebody came first and it must be decided again.
    async fn carry_out(
        &mut self,
        transaction: &Prepared,
        target: &Target,
        op: &Op,
        found: &Found,
        verdict: Verdict,
    ) -> Result<bool, ApplyError> {
        let shape = &target.mapping.shape;
        let key = op.key(shape);
        match (verdict.action, op) {
            // To bury is nothing more: its tombstone was made known before, and is locked.
            (Action::Keep | Action::Bury, _) => Ok(true),
            (Action::Stop, _) => Err(ApplyError::Undecided {
                kind: verdict.conflict.map_or("conflict", antiphon_core::mesh::Conflict::name),
                table: shape.table().to_string(),
                key: key_text(target, op),
            }),
            (Action::Apply, Op::Delete { .. } | Op::Truncate) => {
                self.session.ask(&shape.delete(), &texts(&key)).await?;
                self.bury(target, &key, transaction.version).await?;
                Ok(true)
            }
            (Action::Apply, Op::Insert { row } | Op::Update { row, .. }) if found.row.is_some() => {
                let values: Vec<_> =
                    target.update_order.iter().map(|at| Param::Text(row[*at].as_deref())).collect();
                Ok(self.session.ask(&shape.update(), &values).await?.affected == 1)
            }
            (Action::Apply, Op::Insert { row } | Op::Update { row, .. }) => {
                let inserted = self.session.ask(&shape.insert_if_absent(), &texts(row)).await?.affected == 1;
                if inserted && let Some(gone) = self.gone(target, &texts(&key)).await? {
                    let again = decide(transaction, target, op, Local::Gone(gone));
                    if again.action != Action::Apply {
                        self.session.ask(&shape.delete(), &texts(&key)).await?;
                        return Ok(false);
                    }
                }
                Ok(inserted)
            }
        }
    }

    /// Writes the conflict into this node's history.
    async fn record(
        &mut self,
        transaction: &Prepared,
        target: &Target,
        op: &Op,
        found: &Found,
        verdict: Verdict,
    ) -> Result<(), ApplyError> {
        let shape = &target.mapping.shape;
        let all = || 0..shape.columns.len();
        let local_row = found.row.as_ref().map(|row| to_json(shape, all(), row).to_string());
        let remote_row = match op {
            Op::Insert { row } | Op::Update { row, .. } => Some(to_json(shape, all(), row).to_string()),
            Op::Delete { .. } | Op::Truncate => None,
        };
        let local = match found.local {
            Local::Row(version) | Local::Gone(version) => Some(version),
            Local::Absent => None,
        };
        let key = to_json(shape, shape.key.iter().copied(), &op.key(shape)).to_string();
        let table = shape.oid.to_string();
        let kind = verdict.conflict.map_or("", antiphon_core::mesh::Conflict::name);
        let resolution = match verdict.action {
            Action::Apply | Action::Keep if shape.merges() && found.row.is_some() => "merge",
            Action::Apply | Action::Bury => "apply_remote",
            Action::Keep | Action::Stop => "keep_local",
        };
        let local_node = local.map(|version| version.node.number().to_string());
        let remote_node = transaction.version.node.number().to_string();
        let remote_lsn = transaction.end.0.cast_signed();
        let text = |value: &'_ Option<String>| value.as_ref().map(|text| text.clone().into_bytes());
        let (local_row, remote_row, local_node) = (text(&local_row), text(&remote_row), text(&local_node));
        // A time that nobody remembers is "-infinity", which is this number in the server's own format.
        let local_at = local.map_or(Param::Text(None), |version| Param::Long(version.at.0));
        let params = [
            Param::Text(Some(table.as_bytes())),
            Param::Text(Some(kind.as_bytes())),
            Param::Text(Some(resolution.as_bytes())),
            Param::Text(Some(key.as_bytes())),
            Param::Text(local_row.as_deref()),
            Param::Text(local_node.as_deref()),
            local_at,
            Param::Text(remote_row.as_deref()),
            Param::Text(Some(remote_node.as_bytes())),
            Param::Long(transaction.version.at.0),
            Param::Long(remote_lsn),
        ];
        let insert = "INSERT INTO antiphon.conflicts (rel, kind, resolution, key, local_row, local_node, local_at, \
                      remote_row, remote_node, remote_at, remote_lsn) \
                      VALUES ($1::oid, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";
        self.session.ask(insert, &params).await?;
        Ok(())
    }
}

/// What becomes of a change that meets this.
fn decide(transaction: &Prepared, target: &Target, op: &Op, local: Local) -> Verdict {
    let change = match op {
        Op::Insert { .. } => Change::Insert,
        Op::Update { .. } => Change::Update,
        Op::Delete { .. } | Op::Truncate => Change::Delete,
    };
    resolve(change, transaction.version, &transaction.seen, local, &target.rules)
}

pub(super) fn texts(values: &[Text]) -> Vec<Param<'_>> {
    values.iter().map(|value| Param::Text(value.as_deref())).collect()
}

fn key_text(target: &Target, op: &Op) -> String {
    key_text_of(target, &op.key(&target.mapping.shape))
}

pub(super) fn key_text_of(target: &Target, key: &[Text]) -> String {
    let shape = &target.mapping.shape;
    to_json(shape, shape.key.iter().copied(), key).to_string()
}

fn refused(error: ApplyError, target: &Target, op: &Op, transaction: &Prepared) -> ApplyError {
    let shape = &target.mapping.shape;
    refused_row(error, shape, &op.key(shape), transaction.end)
}

/// The same error, saying of which row it is if the server refused something.
pub(super) fn refused_row(error: ApplyError, shape: &Shape, key: &[Text], end: Lsn) -> ApplyError {
    match error {
        ApplyError::Wire(WireError::Server(error)) => ApplyError::Refused {
            table: shape.table().to_string(),
            key: to_json(shape, shape.key.iter().copied(), key).to_string(),
            end,
            error,
        },
        other => other,
    }
}
