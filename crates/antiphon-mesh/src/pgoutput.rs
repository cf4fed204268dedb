//! The messages of `pgoutput`, protocol 1 to 4, decoded. Pure.
//!
//! Values are slices of the message, in the form in which the server sent them. A message that is cut, has more than
//! belongs to it, or is of a kind that the protocol does not have there is an error and nothing else: the stream is
//! believed in nothing that decides how much is reserved. What a message means (which transaction a change belongs
//! to, whether its table is known) is looked at by who asked for it.

mod cursor;

#[cfg(test)]
mod tests;

use antiphon_core::Lsn;
use bytes::Bytes;

use self::cursor::Cursor;
pub use self::cursor::StreamError;

/// No table has more columns.
const COLUMNS_MAX: usize = 1664;

/// A message, and inside a stream of a transaction in progress the (sub)transaction that a change belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The transaction or subtransaction; none outside of a stream, and of what belongs to no one transaction.
    pub xid: Option<u32>,
    /// The message.
    pub message: Message,
}

/// One message. Times are microseconds since 2000.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A transaction that has committed begins.
    Begin {
        /// Where its commit is.
        final_lsn: Lsn,
        /// When it committed.
        committed_at: i64,
        /// Its number.
        xid: u32,
    },
    /// It ends.
    Commit {
        /// Where its commit is.
        lsn: Lsn,
        /// Behind it: what to confirm once it is safe.
        end_lsn: Lsn,
        /// When it committed.
        committed_at: i64,
    },
    /// The transaction came from elsewhere.
    Origin {
        /// Where its commit was there.
        lsn: Lsn,
        /// What the sending server calls that place.
        name: String,
    },
    /// What a table is like, before the first change of it and after each change of its form.
    Relation(Relation),
    /// A type that is none of the built-in ones.
    Type {
        /// Its number.
        id: u32,
        /// Its schema.
        schema: String,
        /// Its name.
        name: String,
    },
    /// A row is new.
    Insert {
        /// Its table.
        relation: u32,
        /// The row.
        new: Tuple,
    },
    /// A row has changed.
    Update {
        /// Its table.
        relation: u32,
        /// What it was, if its key changed or the table's identity is all of it.
        old: Option<Old>,
        /// What it is.
        new: Tuple,
    },
    /// A row is gone.
    Delete {
        /// Its table.
        relation: u32,
        /// What it was.
        old: Old,
    },
    /// Tables were emptied.
    Truncate {
        /// Which.
        relations: Vec<u32>,
        /// Those that refer to them, too.
        cascade: bool,
        /// Their sequences begin anew.
        restart_identity: bool,
    },
    /// What somebody wrote to the log with `pg_logical_emit_message`.
    Logical {
        /// It belongs to a transaction that committed.
        transactional: bool,
        /// Where it is.
        lsn: Lsn,
        /// Whom it is for.
        prefix: String,
        /// The message.
        content: Bytes,
    },
    /// A piece of a transaction in progress begins.
    StreamStart {
        /// The transaction.
        xid: u32,
        /// It is its first piece.
        first: bool,
    },
    /// It ends.
    StreamStop,
    /// A streamed transaction has committed.
    StreamCommit {
        /// The transaction.
        xid: u32,
        /// Where its commit is.
        lsn: Lsn,
        /// Behind it: what to confirm once it is safe.
        end_lsn: Lsn,
        /// When it committed.
        committed_at: i64,
    },
    /// A streamed transaction or a part of one was undone.
    StreamAbort {
        /// The transaction.
        xid: u32,
        /// The part of it that was undone: itself if it is all.
        subxid: u32,
        /// Where and when, with `streaming 'parallel'`.
        aborted: Option<(Lsn, i64)>,
    },
    /// A transaction that is prepared begins.
    BeginPrepare(Prepared),
    /// It ends.
    Prepare(Prepared),
    /// A streamed transaction is prepared.
    StreamPrepare(Prepared),
    /// A prepared transaction has committed.
    CommitPrepared {
        /// Where its commit is.
        lsn: Lsn,
        /// Behind it: what to confirm once it is safe.
        end_lsn: Lsn,
        /// When it committed.
        committed_at: i64,
        /// Its number.
        xid: u32,
        /// Its name.
        gid: String,
    },
    /// A prepared transaction was undone.
    RollbackPrepared {
        /// Behind its preparation.
        prepare_end_lsn: Lsn,
        /// Behind its end.
        end_lsn: Lsn,
        /// When it was prepared.
        prepared_at: i64,
        /// When it was undone.
        rolled_back_at: i64,
        /// Its number.
        xid: u32,
        /// Its name.
        gid: String,
    },
}

/// A prepared transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// Where its preparation is.
    pub lsn: Lsn,
    /// Behind it.
    pub end_lsn: Lsn,
    /// When it was.
    pub prepared_at: i64,
    /// Its number.
    pub xid: u32,
    /// Its name.
    pub gid: String,
}

/// By what old rows are identified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The primary key.
    Default,
    /// Nothing.
    Nothing,
    /// All columns.
    Full,
    /// A chosen unique index.
    Index,
}

/// What a table is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// Its number on the sending server.
    pub id: u32,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// By what old rows are identified.
    pub identity: Identity,
    /// The columns that are published.
    pub columns: Vec<Column>,
}

/// A column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// It is part of what identifies a row.
    pub key: bool,
    /// Its name.
    pub name: String,
    /// Its type's number on the sending server.
    pub type_id: u32,
    /// Its type's modifier (`varchar(10)`), or -1.
    pub modifier: i32,
}

/// What a row was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Old {
    /// What identified it; all other columns are null.
    Key(Tuple),
    /// All of it.
    Full(Tuple),
}

/// The values of a row, one for each column of its [`Relation`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tuple(pub Vec<Value>);

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// None.
    Null,
    /// A long value, stored apart, that the update did not touch; it is not sent.
    Unchanged,
    /// In the type's text form.
    Text(Bytes),
    /// In the type's binary form.
    Binary(Bytes),
}

/// Decodes the messages of one stream, in their order.
#[derive(Debug)]
pub struct Decoder {
    protocol: u8,
    /// Inside a piece of a transaction in progress, where changes say which (sub)transaction they belong to.
    in_stream: bool,
}

impl Decoder {
    /// For a stream that was begun with this `proto_version`.
    pub fn new(protocol: u8) -> Self {
        Self { protocol, in_stream: false }
    }

    /// The same, inside a piece of a transaction in progress.
    pub fn inside_stream(protocol: u8) -> Self {
        Self { protocol, in_stream: true }
    }

    /// Decodes a message.
    ///
    /// # Errors
    /// What is wrong with it, and where. The stream is of no use any more.
    pub fn decode(&mut self, data: Bytes) -> Result<Decoded, StreamError> {
        let mut cursor = Cursor::new(data);
        let kind = cursor.u8("it is empty")?;
        let since = match kind {
            b'B' | b'C' | b'O' | b'R' | b'Y' | b'I' | b'U' | b'D' | b'T' | b'M' => 1,
            b'S' | b'E' | b'c' | b'A' => 2,
            b'b' | b'P' | b'K' | b'r' | b'p' => 3,
            _ => return Err(cursor.error("the kind is not known")),
        };
        if since > self.protocol {
            return Err(cursor.error("the kind is of a later protocol than was asked for"));
        }
        let is_change = matches!(kind, b'R' | b'Y' | b'I' | b'U' | b'D' | b'T' | b'M');
        if self.in_stream && !is_change && !matches!(kind, b'O' | b'E') {
            return Err(cursor.error("the kind does not belong inside a streamed transaction"));
        }
        let xid =
            if self.in_stream && is_change { Some(cursor.u32("a transaction's number")?) } else { None };
        let message = if is_change { change(kind, &mut cursor) } else { self.frame(kind, &mut cursor) }?;
        cursor.end()?;
        Ok(Decoded { xid, message })
    }

    /// What begins and ends transactions and pieces of them.
    fn frame(&mut self, kind: u8, cursor: &mut Cursor) -> Result<Message, StreamError> {
        Ok(match kind {
            b'B' => Message::Begin {
                final_lsn: cursor.lsn("the position of the commit")?,
                committed_at: cursor.i64("the time of the commit")?,
                xid: cursor.u32("the transaction's number")?,
            },
            b'C' => {
                flags(cursor)?;
                let (lsn, end_lsn, committed_at) = commit(cursor)?;
                Message::Commit { lsn, end_lsn, committed_at }
            }
            b'O' => Message::Origin {
                lsn: cursor.lsn("the position at the origin")?,
                name: cursor.text("the origin's name")?,
            },
            b'S' => {
                let message = Message::StreamStart {
                    xid: cursor.u32("the transaction's number")?,
                    first: bits(1, cursor)? == 1,
                };
                self.in_stream = true;
                message
            }
            b'E' => {
                if !self.in_stream {
                    return Err(cursor.error("no piece of a transaction has begun"));
                }
                self.in_stream = false;
                Message::StreamStop
            }
            b'c' => {
                let xid = cursor.u32("the transaction's number")?;
                flags(cursor)?;
                let (lsn, end_lsn, committed_at) = commit(cursor)?;
                Message::StreamCommit { xid, lsn, end_lsn, committed_at }
            }
            b'A' => stream_abort(cursor)?,
            b'b' => Message::BeginPrepare(prepared(cursor)?),
            b'P' => {
                flags(cursor)?;
                Message::Prepare(prepared(cursor)?)
            }
            b'p' => {
                flags(cursor)?;
                Message::StreamPrepare(prepared(cursor)?)
            }
            b'K' => {
                flags(cursor)?;
                let (lsn, end_lsn, committed_at) = commit(cursor)?;
                Message::CommitPrepared {
                    lsn,
                    end_lsn,
                    committed_at,
                    xid: cursor.u32("the transaction's number")?,
                    gid: cursor.text("the prepared transaction's name")?,
                }
            }
            b'r' => {
                flags(cursor)?;
                Message::RollbackPrepared {
                    prepare_end_lsn: cursor.lsn("the position behind the preparation")?,
                    end_lsn: cursor.lsn("the position behind it")?,
                    prepared_at: cursor.i64("the time of the preparation")?,
                    rolled_back_at: cursor.i64("its time")?,
                    xid: cursor.u32("the transaction's number")?,
                    gid: cursor.text("the prepared transaction's name")?,
                }
            }
            _ => return Err(cursor.error("the kind is not known")),
        })
    }
}

/// What belongs to a transaction.
fn change(kind: u8, cursor: &mut Cursor) -> Result<Message, StreamError> {
    Ok(match kind {
        b'R' => Message::Relation(relation(cursor)?),
        b'Y' => Message::Type {
            id: cursor.u32("the type's number")?,
            schema: schema(cursor)?,
            name: cursor.text("the type's name")?,
        },
        b'I' => {
            let relation = cursor.u32("the table's number")?;
            match cursor.u8("the kind of the row")? {
                b'N' => Message::Insert { relation, new: tuple(cursor)? },
                _ => return Err(cursor.error("an inserted row must be a new one")),
            }
        }
        b'U' => {
            let relation = cursor.u32("the table's number")?;
            let mut kind = cursor.u8("the kind of the row")?;
            let old = old(kind, cursor)?;
            if old.is_some() {
                kind = cursor.u8("the kind of the row")?;
            }
            match kind {
                b'N' => Message::Update { relation, old, new: tuple(cursor)? },
                _ => return Err(cursor.error("an updated row must end with the new one")),
            }
        }
        b'D' => {
            let relation = cursor.u32("the table's number")?;
            let kind = cursor.u8("the kind of the row")?;
            match old(kind, cursor)? {
                Some(old) => Message::Delete { relation, old },
                None => return Err(cursor.error("a deleted row must be an old one")),
            }
        }
        b'T' => {
            let count = cursor.u32("the number of tables")?;
            let flags = bits(3, cursor)?;
            if usize::try_from(count).ok().and_then(|count| count.checked_mul(4)) != Some(cursor.remaining())
            {
                return Err(cursor.error("there are not as many tables as it says"));
            }
            let relations = (0..count).map(|_| cursor.u32("a table's number")).collect::<Result<_, _>>()?;
            Message::Truncate { relations, cascade: flags & 1 != 0, restart_identity: flags & 2 != 0 }
        }
        b'M' => Message::Logical {
            transactional: bits(1, cursor)? == 1,
            lsn: cursor.lsn("its position")?,
            prefix: cursor.text("the prefix")?,
            content: cursor.bytes("the content")?,
        },
        _ => return Err(cursor.error("the kind is not known")),
    })
}

/// A byte for later use.
fn flags(cursor: &mut Cursor) -> Result<(), StreamError> {
    bits(0, cursor).map(drop)
}

/// Flags, of which none but these is known. What another one may say is not known to be harmless.
fn bits(known: u8, cursor: &mut Cursor) -> Result<u8, StreamError> {
    let bits = cursor.u8("the flags")?;
    if bits & !known == 0 { Ok(bits) } else { Err(cursor.error("there are flags that are not known")) }
}

/// Where a commit is, where it ends, and when it was.
fn commit(cursor: &mut Cursor) -> Result<(Lsn, Lsn, i64), StreamError> {
    Ok((
        cursor.lsn("the position of the commit")?,
        cursor.lsn("the position behind the commit")?,
        cursor.i64("the time of the commit")?,
    ))
}

fn prepared(cursor: &mut Cursor) -> Result<Prepared, StreamError> {
    Ok(Prepared {
        lsn: cursor.lsn("the position of the preparation")?,
        end_lsn: cursor.lsn("the position behind the preparation")?,
        prepared_at: cursor.i64("the time of the preparation")?,
        xid: cursor.u32("the transaction's number")?,
        gid: cursor.text("the prepared transaction's name")?,
    })
}

fn stream_abort(cursor: &mut Cursor) -> Result<Message, StreamError> {
    let xid = cursor.u32("the transaction's number")?;
    let subxid = cursor.u32("the part's number")?;
    // Told by its length alone: it depends on an option that is not part of the protocol's version.
    let aborted = if cursor.remaining() == 0 {
        None
    } else {
        Some((cursor.lsn("the position of its end")?, cursor.i64("the time of its end")?))
    };
    Ok(Message::StreamAbort { xid, subxid, aborted })
}

/// A schema's name: the system's own is left out.
fn schema(cursor: &mut Cursor) -> Result<String, StreamError> {
    let name = cursor.text("the schema's name")?;
    Ok(if name.is_empty() { "pg_catalog".to_owned() } else { name })
}

fn relation(cursor: &mut Cursor) -> Result<Relation, StreamError> {
    let id = cursor.u32("the table's number")?;
    let schema = schema(cursor)?;
    let name = cursor.text("the table's name")?;
    let identity = match cursor.u8("the table's identity")? {
        b'd' => Identity::Default,
        b'n' => Identity::Nothing,
        b'f' => Identity::Full,
        b'i' => Identity::Index,
        _ => return Err(cursor.error("the table's identity is not known")),
    };
    let count = column_count(cursor)?;
    let mut columns = Vec::with_capacity(count);
    for _ in 0..count {
        columns.push(Column {
            key: bits(1, cursor)? == 1,
            name: cursor.text("a column's name")?,
            type_id: cursor.u32("a column's type")?,
            modifier: cursor.i32("a column's modifier")?,
        });
    }
    Ok(Relation { id, schema, name, identity, columns })
}

/// A number of columns, each of which takes at least a byte of what follows.
fn column_count(cursor: &mut Cursor) -> Result<usize, StreamError> {
    let count = usize::from(cursor.u16("the number of columns")?);
    if count > COLUMNS_MAX || count > cursor.remaining() {
        return Err(cursor.error("there cannot be as many columns as it says"));
    }
    Ok(count)
}

fn old(kind: u8, cursor: &mut Cursor) -> Result<Option<Old>, StreamError> {
    Ok(match kind {
        b'K' => Some(Old::Key(tuple(cursor)?)),
        b'O' => Some(Old::Full(tuple(cursor)?)),
        _ => None,
    })
}

fn tuple(cursor: &mut Cursor) -> Result<Tuple, StreamError> {
    let count = column_count(cursor)?;
    let mut values = Vec::with_capacity(count);
    for _ in 0..count {
        values.push(match cursor.u8("the kind of a value")? {
            b'n' => Value::Null,
            b'u' => Value::Unchanged,
            b't' => Value::Text(cursor.bytes("a value")?),
            b'b' => Value::Binary(cursor.bytes("a value")?),
            _ => return Err(cursor.error("the kind of a value is not known")),
        });
    }
    Ok(Tuple(values))
}
