//! From messages of the log to whole transactions. They come one after the other, or, while they are still in
//! progress and large, in pieces among those of others.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use antiphon_core::Lsn;
use antiphon_core::mesh::CommitTime;
use bytes::Bytes;
use thiserror::Error;

use crate::body::Body;
use crate::pgoutput::{Decoder, Message, Old, Relation, StreamError, Tuple};

/// A transaction of another node, whole.
#[derive(Debug)]
pub struct Transaction {
    /// Behind its commit in that node's log: where the stream goes on after it.
    pub end: Lsn,
    /// When it committed.
    pub committed_at: CommitTime,
    /// It was applied there, not written there: the name of the replication origin by which it came.
    pub forwarded_from: Option<String>,
    /// It came in pieces, whose messages say to which part of it they belong.
    pub streamed: bool,
    /// What it did.
    pub body: Body,
}

/// What a transaction did, one after the other.
#[derive(Clone, Debug)]
pub enum Step {
    /// Wrote a row.
    Row(RowChange),
    /// Emptied these tables.
    Truncate(Vec<Arc<Relation>>),
    /// Left a message in the log.
    Message {
        /// Whom it is for.
        prefix: String,
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

/// A stream that makes no sense, or could not be kept.
#[derive(Debug, Error)]
pub enum Nonsense {
    /// A message cannot be read.
    #[error(transparent)]
    Message(#[from] StreamError),
    /// A change outside of any transaction.
    #[error("it has {0} outside of a transaction")]
    Outside(&'static str),
    /// A second beginning.
    #[error("it begins a transaction within another")]
    Within,
    /// A table that was never described.
    #[error("it names table {0}, which it has not described")]
    UnknownTable(u32),
    /// Something that was not asked for.
    #[error("it has {0}, which was not asked for")]
    Unasked(&'static str),
    /// A large transaction could not be kept.
    #[error("a large transaction could not be kept in the folder for temporary files: {0}")]
    Disk(#[from] io::Error),
}

/// Puts transactions together from messages.
#[derive(Debug)]
pub struct Assembler {
    decoder: Decoder,
    open: Option<Transaction>,
    /// Transactions in progress, by their numbers.
    pieces: HashMap<u32, Transaction>,
    /// The one whose piece is being received.
    piece: Option<u32>,
}

impl Assembler {
    /// For a stream that was begun with this `proto_version`.
    #[must_use]
    pub fn new(protocol: u8) -> Self {
        Self { decoder: Decoder::new(protocol), open: None, pieces: HashMap::new(), piece: None }
    }

    /// Takes one message; gives a transaction with its last one.
    ///
    /// # Errors
    /// If the message cannot stand here: the stream is not one of a PostgreSQL server, or was cut.
    pub fn take(&mut self, data: Bytes) -> Result<Option<Transaction>, Nonsense> {
        if let Some(b'R' | b'Y' | b'I' | b'U' | b'D' | b'T' | b'M') = data.first() {
            return self.keep(&data).map(|()| None);
        }
        match self.decoder.decode(data)?.message {
            Message::Begin { final_lsn, committed_at, .. } => {
                if self.open.is_some() {
                    return Err(Nonsense::Within);
                }
                self.open = Some(Transaction::new(final_lsn, committed_at, false));
            }
            Message::Commit { end_lsn, .. } => {
                let mut whole = self.open.take().ok_or(Nonsense::Outside("a commit"))?;
                whole.end = end_lsn;
                return Ok(Some(whole));
            }
            Message::Origin { name, .. } => {
                self.current().ok_or(Nonsense::Outside("an origin"))?.forwarded_from = Some(name);
            }
            Message::StreamStart { xid, .. } => {
                self.piece = Some(xid);
                self.pieces.entry(xid).or_insert_with(|| Transaction::new(Lsn::default(), 0, true));
            }
            Message::StreamStop => self.piece = None,
            Message::StreamCommit { xid, end_lsn, committed_at, .. } => {
                let mut whole = self.pieces.remove(&xid).ok_or(Nonsense::Outside("a commit"))?;
                (whole.end, whole.committed_at) = (end_lsn, CommitTime(committed_at));
                return Ok(Some(whole));
            }
            Message::StreamAbort { xid, subxid, .. } if xid == subxid => {
                self.pieces.remove(&xid);
            }
            Message::StreamAbort { xid, subxid, .. } => {
                if let Some(piece) = self.pieces.get_mut(&xid) {
                    piece.body.undone.insert(subxid);
                }
            }
            _ => return Err(Nonsense::Unasked("a prepared transaction")),
        }
        Ok(None)
    }

    /// Whether a transaction has begun and not ended.
    #[must_use]
    pub fn is_within(&self) -> bool {
        self.open.is_some() || !self.pieces.is_empty()
    }

    fn current(&mut self) -> Option<&mut Transaction> {
        match self.piece {
            Some(xid) => self.pieces.get_mut(&xid),
            None => self.open.as_mut(),
        }
    }

    fn keep(&mut self, data: &Bytes) -> Result<(), Nonsense> {
        match self.current() {
            // What is applied there is not applied here by this stream: no need to keep it.
            Some(transaction) if transaction.forwarded_from.is_some() && data.first() != Some(&b'R') => {
                Ok(())
            }
            Some(transaction) => Ok(transaction.body.push(data)?),
            // A message that belongs to no transaction may stand anywhere, and is for nobody here.
            None if data.first() == Some(&b'M') => Ok(()),
            None => Err(Nonsense::Outside("a change")),
        }
    }
}

impl Transaction {
    fn new(end: Lsn, committed_at: i64, streamed: bool) -> Self {
        Self {
            end,
            committed_at: CommitTime(committed_at),
            forwarded_from: None,
            streamed,
            body: Body::default(),
        }
    }
}

/// Reads what transactions did, in the order of their commits: tables are described before their first change, in
/// whichever transaction that is.
#[derive(Debug)]
pub struct Steps {
    protocol: u8,
    relations: HashMap<u32, Arc<Relation>>,
}

impl Steps {
    /// For a stream that was begun with this `proto_version`.
    #[must_use]
    pub fn new(protocol: u8) -> Self {
        Self { protocol, relations: HashMap::new() }
    }

    /// What reads the messages of a transaction.
    #[must_use]
    pub fn decoder(&self, streamed: bool) -> Decoder {
        if streamed { Decoder::inside_stream(self.protocol) } else { Decoder::new(self.protocol) }
    }

    /// Reads one message of a transaction, of which these parts were undone; none if it is no step.
    ///
    /// # Errors
    /// If it makes no sense.
    pub fn read(
        &mut self,
        decoder: &mut Decoder,
        undone: &std::collections::HashSet<u32>,
        message: Bytes,
    ) -> Result<Option<Step>, Nonsense> {
        let decoded = decoder.decode(message)?;
        let dead = decoded.xid.is_some_and(|xid| undone.contains(&xid));
        let row = |steps: &Self, id, is_update, old, new| {
            let relation = steps.relation(id)?;
            Ok(Some(Step::Row(RowChange { relation, is_update, old, new })))
        };
        match decoded.message {
            Message::Relation(relation) => {
                self.relations.insert(relation.id, Arc::new(relation));
                Ok(None)
            }
            _ if dead => Ok(None),
            Message::Insert { relation, new } => row(self, relation, false, None, Some(new)),
            Message::Update { relation, old, new } => row(self, relation, true, old, Some(new)),
            Message::Delete { relation, old } => row(self, relation, false, Some(old), None),
            Message::Truncate { relations, .. } => {
                let named = relations.into_iter().map(|id| self.relation(id)).collect::<Result<_, _>>()?;
                Ok(Some(Step::Truncate(named)))
            }
            Message::Logical { transactional: true, prefix, content, .. } => {
                Ok(Some(Step::Message { prefix, content }))
            }
            _ => Ok(None),
        }
    }

    fn relation(&self, id: u32) -> Result<Arc<Relation>, Nonsense> {
        self.relations.get(&id).cloned().ok_or(Nonsense::UnknownTable(id))
    }
}
