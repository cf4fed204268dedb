//! From messages of the log to whole transactions. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use antiphon_core::Lsn;
use antiphon_core::mesh::CommitTime;
use bytes::Bytes;
use thiserror::Error;

use crate::pgoutput::{Message, Old, Relation, Tuple};

/// A transaction of another node, whole.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// Behind its commit in that node's log: where the stream goes on after it.
    pub end: Lsn,
    /// When it committed.
    pub committed_at: CommitTime,
    /// It was applied there, not written there: the name of the replication origin by which it came.
    pub forwarded_from: Option<String>,
    /// What it did, in order.
    pub steps: Vec<Step>,
}

/// What a transaction did.
#[derive(Clone, Debug)]
pub enum Step {
    /// Wrote a row.
    Row(RowChange),
    /// Emptied these tables.
    Truncate(Vec<Arc<Relation>>),
    /// Left a message in the log.
    Message {
        /// Whom it is for.
        prefix: Bytes,
        /// What it says.
        content: Bytes,
    },
}

/// A write of a row.
#[derive(Clone, Debug)]
pub struct RowChange {
    /// The table, as it was there.
    pub relation: Arc<Relation>,
    /// Its writer updated a row that was there.
    pub is_update: bool,
    /// What the row was, where the log says.
    pub old: Option<Old>,
    /// What it is; none: deleted.
    pub new: Option<Tuple>,
}

/// Messages that cannot follow each other, or speak of what was not introduced.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum OutOfOrder {
    /// A change outside of any transaction.
    #[error("the stream has {0} outside of a transaction")]
    Outside(&'static str),
    /// A second beginning.
    #[error("the stream begins a transaction within another")]
    Within,
    /// A table that was never described.
    #[error("the stream names table {0}, which it has not described")]
    UnknownTable(u32),
    /// Something that was not asked for.
    #[error("the stream has {0}, which was not asked for")]
    Unasked(&'static str),
}

/// Puts transactions together from messages.
#[derive(Debug, Default)]
pub struct Assembler {
    relations: HashMap<u32, Arc<Relation>>,
    open: Option<Transaction>,
}

impl Assembler {
    /// Takes one message; gives a transaction with its last one.
    ///
    /// # Errors
    /// If the message cannot stand here: the stream is not one of a PostgreSQL server, or was cut.
    pub fn take(&mut self, message: Message) -> Result<Option<Transaction>, OutOfOrder> {
        match message {
            Message::Begin { final_lsn, committed_at, .. } => {
                if self.open.is_some() {
                    return Err(OutOfOrder::Within);
                }
                self.open = Some(Transaction {
                    end: final_lsn,
                    committed_at: CommitTime(committed_at),
                    forwarded_from: None,
                    steps: Vec::new(),
                });
            }
            Message::Commit { end_lsn, .. } => {
                let mut whole = self.open.take().ok_or(OutOfOrder::Outside("a commit"))?;
                whole.end = end_lsn;
                return Ok(Some(whole));
            }
            Message::Origin { name, .. } => self.open("an origin")?.forwarded_from = Some(name),
            Message::Relation(relation) => {
                self.relations.insert(relation.id, Arc::new(relation));
            }
            Message::Insert { relation, new } => self.row(relation, false, None, Some(new))?,
            Message::Update { relation, old, new } => self.row(relation, true, old, Some(new))?,
            Message::Delete { relation, old } => self.row(relation, false, Some(old), None)?,
            Message::Truncate { relations, .. } => {
                let named = relations.into_iter().map(|id| self.relation(id)).collect::<Result<_, _>>()?;
                self.open("a truncate")?.steps.push(Step::Truncate(named));
            }
            Message::Logical { transactional: true, prefix, content, .. } => {
                self.open("a message")?.steps.push(Step::Message { prefix: prefix.into(), content });
            }
            Message::Type { .. } | Message::Logical { transactional: false, .. } => {}
            Message::StreamStart { .. }
            | Message::StreamStop
            | Message::StreamCommit { .. }
            | Message::StreamAbort { .. } => {
                return Err(OutOfOrder::Unasked("part of a streamed transaction"));
            }
            _ => return Err(OutOfOrder::Unasked("a prepared transaction")),
        }
        Ok(None)
    }

    /// Whether a transaction has begun and not ended.
    #[must_use]
    pub fn is_within(&self) -> bool {
        self.open.is_some()
    }

    fn open(&mut self, what: &'static str) -> Result<&mut Transaction, OutOfOrder> {
        self.open.as_mut().ok_or(OutOfOrder::Outside(what))
    }

    fn relation(&self, id: u32) -> Result<Arc<Relation>, OutOfOrder> {
        self.relations.get(&id).cloned().ok_or(OutOfOrder::UnknownTable(id))
    }

    fn row(
        &mut self,
        id: u32,
        is_update: bool,
        old: Option<Old>,
        new: Option<Tuple>,
    ) -> Result<(), OutOfOrder> {
        let relation = self.relation(id)?;
        self.open("a change")?.steps.push(Step::Row(RowChange { relation, is_update, old, new }));
        Ok(())
    }
}
