//! Applying the transactions of one other node: each once, in order, each row as the versions decide.
//!
//! Two ways. The fast one is for what does not conflict: whole transactions in flight, every statement of which
//! fails unless the change's writer had seen what it overwrites. What fails there goes the careful way: row by row,
//! looked at under a lock, decided by the core, recorded. So a conflict costs a round trip and its absence nothing,
//! and no decision rests on what was read before a lock was held.

mod absent;
mod aside;
mod careful;
mod chunk;
mod count;
mod error;
mod fast;
mod large;
mod merge;
mod target;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use antiphon_core::Lsn;
use antiphon_core::mesh::{CommitTime, NodeId, Reached, Version};
use bytes::Bytes;

use self::absent::Absent;
pub use self::error::ApplyError;
pub use self::merge::Merger;
use self::merge::Turn;
use self::target::Target;
use crate::announcement::{Announcement, PREFIX};
use crate::name::TableName;
use crate::row::Op;
use crate::session::{Param, Session};
use crate::shape::Shape;
use crate::transaction::{Nonsense, Step, Steps, Transaction};

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
    /// What the source had seen of everybody at the end of the batch.
    pub seen: Reached,
    /// The node's last announcement said that its log was complete up to here, and all before it is applied.
    pub complete_to: Option<CommitTime>,
}

/// Who is who, as seen from here.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The node whose changes are applied.
    pub source: NodeId,
    /// This node.
    pub own: NodeId,
    /// The number of the source's replication origin here.
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
    steps: Steps,
    merger: Merger,
    /// What the transaction at hand has merged into rows that it loses against.
    merged: HashSet<(u32, Op)>,
    /// Which of its deletes find no row.
    absent: Absent,
    /// This link's turn to correct what is counted, until the transaction at hand is through.
    turn: Option<Turn>,
    /// What the source had applied of everybody when it wrote what comes now.
    seen: Arc<Reached>,
    /// No change of a third node that is older than this can arrive any more.
    settled: CommitTime,
    /// Up to where it is applied.
    progress: Lsn,
    /// A transaction that ends here is set aside instead.
    skip: Option<Lsn>,
    at: Lsn,
    /// How many transactions are sent at once: fewer while they conflict, since what follows one is sent again.
    reach: usize,
}

/// A transaction with its rows brought to the tables here.
struct Prepared {
    end: Lsn,
    version: Version,
    /// What its writers had seen of everybody else.
    seen: Arc<Reached>,
    ops: Changes,
}

/// Changes and where they go.
type Changes = Vec<(Arc<Target>, Op)>;

impl Applier {
    /// An applier for `identity.source`, from where its log was left. `steps` reads its log.
    #[must_use]
    pub fn new(
        session: Session,
        identity: Identity,
        tables: Vec<Shape>,
        steps: Steps,
        merger: Merger,
        seen: Reached,
        from: Resume,
    ) -> Self {
        let tables = tables.into_iter().map(|shape| (shape.table(), Arc::new(shape))).collect();
        Self {
            session,
            identity,
            tables,
            targets: HashMap::new(),
            steps,
            merger,
            merged: HashSet::new(),
            absent: Absent::default(),
            turn: None,
            seen: Arc::new(seen),
            settled: CommitTime::UNKNOWN,
            progress: from.progress,
            skip: from.skip,
            at: from.progress,
            reach: fast::REACH_MAX,
        }
    }

    /// Applies these transactions, which follow each other in the source's log. No change of a third node that is
    /// older than `settled` can arrive any more.
    ///
    /// # Errors
    /// Why the first that could not be applied could not. What stands before it is applied.
    pub async fn apply(
        &mut self,
        batch: &mut [Transaction],
        settled: CommitTime,
    ) -> Result<Applied, ApplyError> {
        self.settled = settled;
        let mut applied = Applied::default();
        let mut group = Vec::new();
        for transaction in &mut *batch {
            if transaction.end <= self.progress {
                // Applied before; but it may describe tables that later ones write.
                self.read_descriptions(transaction)?;
                continue;
            }
            self.at = transaction.end;
            let alone = self.skip == Some(transaction.end) || transaction.body.is_large();
            if alone {
                self.all(&std::mem::take(&mut group), &mut applied).await?;
                self.at = transaction.end;
            }
            if self.skip == Some(transaction.end) {
                self.set_aside(transaction).await?;
            } else if transaction.body.is_large() {
                self.large(transaction, &mut applied).await?;
            } else if let Some(prepared) = self.bring(transaction, &mut applied).await? {
                group.push(prepared);
            }
        }
        self.all(&group, &mut applied).await?;
        applied.end = batch.last().map(|last| last.end);
        applied.seen = Reached::clone(&self.seen);
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
                applied.count(done.ops.len() as u64);
            }
            group = &group[committed..];
            if committed == 0 {
                self.at = first.end;
                self.careful(first, applied).await?;
                applied.count(first.ops.len() as u64);
                group = &group[1..];
            }
        }
        Ok(())
    }

    fn read_descriptions(&mut self, transaction: &mut Transaction) -> Result<(), ApplyError> {
        let mut decoder = self.steps.decoder(transaction.streamed);
        for message in transaction.body.read().map_err(Nonsense::Disk)? {
            let message = message.map_err(Nonsense::Disk)?;
            self.steps.read(&mut decoder, &transaction.body.undone, message)?;
        }
        Ok(())
    }

    /// Matches a transaction with the tables here; none if there is nothing to apply.
    async fn bring(
        &mut self,
        transaction: &mut Transaction,
        applied: &mut Applied,
    ) -> Result<Option<Prepared>, ApplyError> {
        let mut decoder = self.steps.decoder(transaction.streamed);
        let mut prepared = self.prepared(transaction);
        for message in transaction.body.read().map_err(Nonsense::Disk)? {
            let message = message.map_err(Nonsense::Disk)?;
            let step = self.steps.read(&mut decoder, &transaction.body.undone, message)?;
            if let Some(step) = step {
                self.step(step, transaction.end, applied, &mut prepared.ops).await?;
            }
        }
        Ok((!prepared.ops.is_empty()).then_some(prepared))
    }

    /// A transaction without its rows.
    fn prepared(&self, transaction: &Transaction) -> Prepared {
        let version = Version { at: transaction.committed_at, node: self.identity.source };
        Prepared { end: transaction.end, version, seen: self.seen.clone(), ops: Vec::new() }
    }

    /// Matches one step with the tables here, and hears what the source announces.
    async fn step(
        &mut self,
        step: Step,
        end: Lsn,
        applied: &mut Applied,
        changes: &mut Changes,
    ) -> Result<(), ApplyError> {
        match step {
            Step::Row(change) => {
                let target = self.target(&change.relation).await?;
                let ops = target.mapping.ops(&change);
                let ops = ops.map_err(|misfit| ApplyError::Misfit { end, misfit })?;
                changes.extend(ops.into_iter().map(|op| (target.clone(), op)));
            }
            Step::Truncate(relations) => {
                for relation in &relations {
                    changes.push((self.target(relation).await?, Op::Truncate));
                }
            }
            Step::Message { prefix, content } if prefix == PREFIX => {
                let announcement = Announcement::parse(&content)?;
                let source = self.identity.source;
                if announcement.node == source {
                    let mut seen = Reached::clone(&self.seen);
                    for (node, at) in announcement.applied.iter().filter(|(node, _)| *node != source) {
                        seen.advance(node, at);
                    }
                    self.seen = Arc::new(seen);
                    applied.complete_to = applied.complete_to.max(Some(announcement.complete_to));
                }
            }
            Step::Message { .. } => {}
        }
        Ok(())
    }

    /// Who wrote a row, from what the server says of it.
    fn version(&self, at: Option<&Bytes>, origin: Option<&Bytes>) -> Version {
        let number =
            |text: Option<&Bytes>| text.and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
        let at = number(at).map_or(CommitTime::UNKNOWN, CommitTime);
        let origin = number(origin).and_then(|origin| u32::try_from(origin).ok());
        let node = origin.and_then(|origin| self.identity.nodes.get(&origin)).copied();
        // Whoever writes here in a name that is no node's of this mesh writes here.
        Version { at, node: node.unwrap_or(self.identity.own) }
    }
}

impl Applied {
    fn note(&mut self, conflicts: Vec<&'static str>) {
        for kind in conflicts {
            *self.conflicts.entry(kind).or_default() += 1;
        }
    }

    fn count(&mut self, rows: u64) {
        self.transactions += 1;
        self.rows += rows;
    }
}

impl Prepared {
    /// Whoever is older than this had been seen by the writer, whichever node it was; and a writer never saw what is
    /// later than itself, whatever its clock says.
    fn seen_of_everybody(&self) -> i64 {
        self.seen.of_all_but(&[self.version.node]).0.min(self.version.at.0.saturating_sub(1))
    }
}

/// Notes in the applying transaction how far the source is applied, and gives it the source's time. The latter last,
/// since an error after it would advance the origin (PostgreSQL 16 and newer).
const PROGRESS: &str = "WITH p AS (UPDATE antiphon.progress SET lsn = $1, committed_at = $2 WHERE node = $3 RETURNING 1) \
     SELECT pg_catalog.pg_replication_origin_xact_setup($1, $2) FROM p";

fn progress_params<'a>(prepared: &Prepared, source: &'a [u8]) -> [Param<'a>; 3] {
    [Param::Long(prepared.end.0.cast_signed()), Param::Long(prepared.version.at.0), Param::Text(Some(source))]
}
