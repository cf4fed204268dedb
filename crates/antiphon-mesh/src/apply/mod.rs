//! Applying the transactions of one other node: each once, in order, each row as the versions decide.
//!
//! Two ways. The fast one is for what does not conflict: whole transactions in flight, every statement of which
//! fails unless the change's writer had seen what it overwrites. What fails there goes the careful way: row by row,
//! looked at under a lock, decided by the core, recorded. So a conflict costs a round trip and its absence nothing,
//! and no decision rests on what was read before a lock was held.

mod aside;
mod careful;
mod fast;

use std::collections::HashMap;
use std::sync::Arc;

use antiphon_core::Lsn;
use antiphon_core::mesh::{CommitTime, NodeId, Reached, Resolver, Version};
use bytes::Bytes;
use thiserror::Error;

use crate::announcement::{Announcement, NoAnnouncement, PREFIX};
use crate::name::TableName;
use crate::pgoutput::Relation;
use crate::row::{Mapping, Misfit, Op};
use crate::session::{Param, Session, Statement};
use crate::shape::Shape;
use crate::transaction::{Step, Transaction};
use crate::wire::{ServerError, WireError};

/// Why a transaction could not be applied.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The connection failed, or a statement of ours did.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The server refused a change.
    #[error("could not apply a change of {table}, key {key}, of the transaction that ends at {end}: {error}")]
    Refused {
        /// The table.
        table: String,
        /// The row's key.
        key: String,
        /// The transaction.
        end: Lsn,
        /// What the server said.
        #[source]
        error: Box<ServerError>,
    },
    /// It does not fit the tables here.
    #[error("could not apply the transaction that ends at {end}: {misfit}")]
    Misfit {
        /// The transaction.
        end: Lsn,
        /// How.
        #[source]
        misfit: Misfit,
    },
    /// A table that takes no part here.
    #[error(
        "the other node sends changes of table {0}, which takes no part in the mesh here: run `antiphon mesh add-table`"
    )]
    Stranger(TableName),
    /// A conflict that a person has to decide.
    #[error(
        "a conflict ({kind}) in {table}, key {key}, is to be decided by hand, as the table's resolver says: change the row, then run `antiphon mesh skip`"
    )]
    Undecided {
        /// Its kind.
        kind: &'static str,
        /// The table.
        table: String,
        /// The row's key.
        key: String,
    },
    /// Its announcements make no sense.
    #[error(transparent)]
    Announcement(#[from] NoAnnouncement),
    /// Others write the same rows all the time.
    #[error(
        "gave up on a row of {table}, key {key}, which others insert and delete all the time: it is tried again"
    )]
    Restless {
        /// The table.
        table: String,
        /// The row's key.
        key: String,
    },
}

impl ApplyError {
    /// Whether the same may well succeed when it is tried again at once: somebody else held a lock or came first.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        let code = match self {
            Self::Refused { error, .. } | Self::Wire(WireError::Server(error)) => &error.code,
            Self::Restless { .. } => return true,
            _ => return false,
        };
        // Serialization failure, deadlock, lock not available, and a unique key that somebody took meanwhile.
        matches!(code.as_str(), "40001" | "40P01" | "55P03" | "23505")
    }
}

/// What came of a batch.
#[derive(Debug, Default)]
pub struct Applied {
    /// Transactions that had something to apply.
    pub transactions: u64,
    /// Rows written, deleted or left because another version stands.
    pub rows: u64,
    /// Conflicts, by kind.
    pub conflicts: HashMap<&'static str, u64>,
    /// Everything of the node up to here is applied.
    pub end: Option<Lsn>,
    /// The node's last announcement said that its log was complete up to here, and all before it is applied.
    pub complete_to: Option<CommitTime>,
}

/// Who is who, as seen from here.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The node whose changes are applied.
    pub source: NodeId,
    /// The number of its replication origin here.
    pub origin: u32,
    /// Which node each replication origin here stands for; zero, the own, included.
    pub nodes: HashMap<u32, NodeId>,
}

/// Where a node's log was left.
#[derive(Clone, Copy, Debug)]
pub struct Resume {
    /// Everything before here is applied.
    pub progress: Lsn,
    /// The transaction that ends here is to be set aside.
    pub skip: Option<Lsn>,
}

/// Applies the changes of one node.
#[derive(Debug)]
pub struct Applier {
    session: Session,
    identity: Identity,
    tables: HashMap<TableName, Arc<Shape>>,
    targets: HashMap<u32, Arc<Target>>,
    /// What the source had applied of everybody when it wrote what comes now.
    seen: Reached,
    /// Up to where it is applied.
    progress: Lsn,
    /// A transaction that ends here is set aside instead.
    skip: Option<Lsn>,
    at: Lsn,
}

/// A table of the source, the table here, and the statements that bring one to the other.
#[derive(Debug)]
struct Target {
    mapping: Mapping,
    /// The order in which an UPDATE takes the values of a row.
    update_order: Vec<usize>,
    insert_new: Statement,
    update_seen: Statement,
    delete_seen: Statement,
    resolver: Resolver,
}

/// A transaction with its rows brought to the tables here.
struct Prepared {
    end: Lsn,
    version: Version,
    /// What its writers had seen of everybody else.
    seen: Reached,
    ops: Vec<(Arc<Target>, Op)>,
    truncated: Vec<Arc<Target>>,
}

impl Applier {
    /// An applier for `identity.source`, from where its log was left.
    #[must_use]
    pub fn new(
        session: Session,
        identity: Identity,
        tables: Vec<Shape>,
        seen: Reached,
        from: Resume,
    ) -> Self {
        let tables = tables.into_iter().map(|shape| (shape.table(), Arc::new(shape))).collect();
        Self {
            session,
            identity,
            tables,
            targets: HashMap::new(),
            seen,
            progress: from.progress,
            skip: from.skip,
            at: from.progress,
        }
    }

    /// Applies these transactions, which follow each other in the source's log.
    ///
    /// # Errors
    /// Why the first that could not be applied could not. What stands before it is applied.
    pub async fn apply(&mut self, batch: &[Transaction]) -> Result<Applied, ApplyError> {
        let mut applied = Applied::default();
        let mut group = Vec::new();
        let progress = self.progress;
        for transaction in batch.iter().filter(|transaction| transaction.end > progress) {
            self.at = transaction.end;
            if self.skip == Some(transaction.end) {
                self.all(&std::mem::take(&mut group), &mut applied).await?;
                self.set_aside(transaction).await?;
            } else if let Some(prepared) = self.bring(transaction, &mut applied).await? {
                group.push(prepared);
            }
        }
        self.all(&group, &mut applied).await?;
        applied.end = batch.last().map(|last| last.end);
        self.progress = self.progress.max(applied.end.unwrap_or_default());
        Ok(applied)
    }

    /// Where the transaction ends that was at hand last: the one that failed, after an error.
    #[must_use]
    pub fn at(&self) -> Lsn {
        self.at
    }

    async fn all(&mut self, mut group: &[Prepared], applied: &mut Applied) -> Result<(), ApplyError> {
        while let Some(first) = group.first() {
            let committed = self.fast(group).await?;
            for done in &group[..committed] {
                applied.count(done);
            }
            group = &group[committed..];
            if committed == 0 {
                self.at = first.end;
                self.careful(first, applied).await?;
                applied.count(first);
                group = &group[1..];
            }
        }
        Ok(())
    }

    /// Matches a transaction with the tables here; none if there is nothing to apply.
    async fn bring(
        &mut self,
        transaction: &Transaction,
        applied: &mut Applied,
    ) -> Result<Option<Prepared>, ApplyError> {
        let version = Version { at: transaction.committed_at, node: self.identity.source };
        let mut prepared = Prepared {
            end: transaction.end,
            version,
            seen: self.seen.clone(),
            ops: Vec::with_capacity(transaction.steps.len()),
            truncated: Vec::new(),
        };
        for step in &transaction.steps {
            match step {
                Step::Row(change) => {
                    let target = self.target(&change.relation).await?;
                    let ops = target.mapping.ops(change);
                    let ops = ops.map_err(|misfit| ApplyError::Misfit { end: transaction.end, misfit })?;
                    prepared.ops.extend(ops.into_iter().map(|op| (target.clone(), op)));
                }
                Step::Truncate(relations) => {
                    for relation in relations {
                        prepared.truncated.push(self.target(relation).await?);
                    }
                }
                Step::Message { prefix, content } if prefix == PREFIX.as_bytes() => {
                    let announcement = Announcement::parse(content)?;
                    if announcement.node == self.identity.source {
                        for (node, at) in announcement.applied.iter() {
                            self.seen.advance(node, at);
                        }
                        applied.complete_to = applied.complete_to.max(Some(announcement.complete_to));
                    }
                }
                Step::Message { .. } => {}
            }
        }
        let empty = prepared.ops.is_empty() && prepared.truncated.is_empty();
        Ok((!empty).then_some(prepared))
    }

    async fn target(&mut self, relation: &Arc<Relation>) -> Result<Arc<Target>, ApplyError> {
        if let Some(known) = self.targets.get(&relation.id)
            && Arc::ptr_eq(&known.mapping.relation, relation)
        {
            return Ok(known.clone());
        }
        let name = TableName::new(&relation.schema, &relation.name);
        let shape = self.tables.get(&name).ok_or(ApplyError::Stranger(name))?;
        let mapping = Mapping::new(relation.clone(), shape);
        let mapping = mapping.map_err(|misfit| ApplyError::Misfit { end: self.progress, misfit })?;
        let shape = &mapping.shape;
        let target = Arc::new(Target {
            update_order: shape.settable().into_iter().chain(shape.key.iter().copied()).collect(),
            insert_new: self.session.prepare(&shape.insert_new()).await?,
            update_seen: self.session.prepare(&shape.update_seen()).await?,
            delete_seen: self.session.prepare(&shape.delete_seen()).await?,
            resolver: resolver_of(shape),
            mapping,
        });
        self.targets.insert(relation.id, target.clone());
        Ok(target)
    }

    /// Who wrote a row, from what the server says of it.
    fn version(&self, at: Option<&Bytes>, origin: Option<&Bytes>) -> Version {
        let number =
            |text: Option<&Bytes>| text.and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
        let at = number(at).map_or(CommitTime::UNKNOWN, CommitTime);
        let origin = number(origin).and_then(|origin| u32::try_from(origin).ok());
        let node = origin.and_then(|origin| self.identity.nodes.get(&origin)).copied();
        Version { at, node: node.unwrap_or(self.identity.source) }
    }
}

impl Applied {
    fn count(&mut self, prepared: &Prepared) {
        self.transactions += 1;
        self.rows += prepared.ops.len() as u64;
    }
}

/// Notes in the applying transaction how far the source is applied, and gives it the source's time. The latter last,
/// since an error after it would advance the origin (PostgreSQL 16 and newer).
const PROGRESS: &str = "WITH p AS (UPDATE antiphon.progress SET lsn = $1, committed_at = $2 WHERE node = $3 RETURNING 1) \
     SELECT pg_catalog.pg_replication_origin_xact_setup($1, $2) FROM p";

fn progress_params<'a>(prepared: &Prepared, source: &'a [u8]) -> [Param<'a>; 3] {
    [Param::Long(prepared.end.0.cast_signed()), Param::Long(prepared.version.at.0), Param::Text(Some(source))]
}

/// The resolver that a table's entry asks for.
fn resolver_of(shape: &Shape) -> Resolver {
    match shape.resolver.as_str() {
        Some("first_update_wins") => Resolver::FirstUpdateWins,
        Some("keep_local") => Resolver::KeepLocal,
        Some("apply_remote") => Resolver::ApplyRemote,
        Some("error") => Resolver::Error,
        _ => Resolver::LastUpdateWins,
    }
}
