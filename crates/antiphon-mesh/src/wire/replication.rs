//! Logical replication: the commands for slots, and the stream that is read from one.
//!
//! The server keeps what was not confirmed. It ends a stream on which it has heard nothing for
//! `wal_sender_timeout`, so a confirmation is due whenever it asks for one.

use antiphon_core::Lsn;
use bytes::{Buf, BufMut, Bytes};
use postgres_protocol::message::backend::Message;

use super::reader::{COPY_BOTH_RESPONSE, HEADER_BYTES};
use super::{Connection, Reader, WireError, Writer};
use crate::name::Quoted;

/// The release from which on the options of a slot stand in parentheses.
const WITH_PARENTHESES: u32 = 150_000;
const COPY_DATA: u8 = b'd';
const DATA: u8 = b'w';
const KEEPALIVE: u8 = b'k';
/// A message of the output plugin follows its kind, where it is, where the log ended, and when it was sent.
const DATA_HEADER_BYTES: usize = 25;
/// Kind, where the log ended, when it was sent, and whether an answer is wanted.
const KEEPALIVE_BYTES: usize = 18;

/// A server, as it tells itself from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct System {
    /// Of the data directory; its copies have the same.
    pub system_id: String,
    /// The timeline.
    pub timeline: u32,
    /// How far its log is written.
    pub xlogpos: Lsn,
    /// The database of this connection.
    pub dbname: Option<String>,
}

/// What happens to the snapshot of the moment at which a slot begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Snapshot {
    /// It can be imported elsewhere, for as long as this connection does nothing else.
    Export,
    /// The transaction that runs on this connection has it.
    Use,
    /// Nothing.
    Nothing,
}

/// A slot that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    /// From here on commits are delivered.
    pub lsn: Lsn,
    /// The exported snapshot's name.
    pub snapshot: Option<String>,
}

/// One message of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A message of the output plugin.
    Data {
        /// Where in the log it is.
        start: Lsn,
        /// How far the log was written when it was sent.
        end: Lsn,
        /// When that was, in microseconds since 2000.
        sent_at: i64,
        /// The message.
        data: Bytes,
    },
    /// There is nothing to tell.
    Keepalive {
        /// Everything before here has been sent.
        end: Lsn,
        /// Whether the server wants to hear of us at once.
        reply_now: bool,
    },
}

impl Connection {
    /// Asks the server who it is.
    ///
    /// # Errors
    /// What the server says, or if it says nothing of use.
    pub async fn identify_system(&mut self) -> Result<System, WireError> {
        let rows = self.query("IDENTIFY_SYSTEM").await?;
        let read = || match rows.into_iter().next()?.as_slice() {
            [Some(system_id), Some(timeline), Some(position), dbname] => Some(System {
                system_id: system_id.clone(),
                timeline: timeline.parse().ok()?,
                xlogpos: position.parse().ok()?,
                dbname: dbname.clone(),
            }),
            _ => None,
        };
        read().ok_or_else(|| self.reader.broken("an answer to IDENTIFY_SYSTEM of another form"))
    }

    /// Makes a logical slot for `pgoutput`. `failover`, which standbys keep a copy of, needs release 17.
    ///
    /// # Errors
    /// What the server says, or if it says nothing of use.
    pub async fn create_slot(
        &mut self,
        name: &str,
        snapshot: Snapshot,
        two_phase: bool,
        failover: bool,
    ) -> Result<Created, WireError> {
        let command = create_command(self.server_version(), name, snapshot, two_phase, failover);
        let rows = self.query(&command).await?;
        let read = || match rows.into_iter().next()?.as_slice() {
            [_, Some(lsn), snapshot, ..] => {
                Some(Created { lsn: lsn.parse().ok()?, snapshot: snapshot.clone() })
            }
            _ => None,
        };
        read().ok_or_else(|| self.reader.broken("an answer to CREATE_REPLICATION_SLOT of another form"))
    }

    /// Drops a slot; with `wait` not before nobody reads from it any more.
    ///
    /// # Errors
    /// What the server says: 42704 if there is none, 55006 if somebody reads from it.
    pub async fn drop_slot(&mut self, name: &str, wait: bool) -> Result<(), WireError> {
        let wait = if wait { " WAIT" } else { "" };
        self.query(&format!("DROP_REPLICATION_SLOT {}{wait}", Quoted(name))).await.map(drop)
    }
}

fn create_command(version: u32, name: &str, snapshot: Snapshot, two_phase: bool, failover: bool) -> String {
    let mut options = Vec::new();
    let begin = format!("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput", Quoted(name));
    if version < WITH_PARENTHESES {
        options.push(match snapshot {
            Snapshot::Export => "EXPORT_SNAPSHOT",
            Snapshot::Use => "USE_SNAPSHOT",
            Snapshot::Nothing => "NOEXPORT_SNAPSHOT",
        });
        options.extend(two_phase.then_some("TWO_PHASE"));
        options.extend(failover.then_some("FAILOVER"));
        return format!("{begin} {}", options.join(" "));
    }
    options.push(match snapshot {
        Snapshot::Export => "SNAPSHOT 'export'",
        Snapshot::Use => "SNAPSHOT 'use'",
        Snapshot::Nothing => "SNAPSHOT 'nothing'",
    });
    options.extend(two_phase.then_some("TWO_PHASE true"));
    options.extend(failover.then_some("FAILOVER true"));
    format!("{begin} ({})", options.join(", "))
}

/// A stream from a slot.
#[derive(Debug)]
pub struct Replication {
    reader: Reader,
    writer: Writer,
}

impl Replication {
    /// Begins to read from a slot, at `from` or where it was last confirmed, whichever is later. `options` are those
    /// of the output plugin.
    ///
    /// # Errors
    /// What the server says: 55006 if another reads from it.
    pub async fn start(
        connection: Connection,
        slot: &str,
        from: Lsn,
        options: &[(&str, &str)],
    ) -> Result<Self, WireError> {
        let listed: Vec<String> = options
            .iter()
            // Of this language a backslash is no part: quotes are doubled, and that is all.
            .map(|(key, value)| format!("{} '{}'", Quoted(key), value.replace('\'', "''")))
            .collect();
        let command =
            format!("START_REPLICATION SLOT {} LOGICAL {from} ({})", Quoted(slot), listed.join(", "));
        let (mut reader, mut writer) = connection.split();
        writer.query(&command)?;
        writer.flush().await?;
        loop {
            match reader.front()? {
                Some((COPY_BOTH_RESPONSE, bytes)) => {
                    reader.take(bytes);
                    return Ok(Self { reader, writer });
                }
                Some(_) => match reader.buffered()? {
                    Some(Message::ErrorResponse(body)) => return Err(body.into()),
                    Some(Message::NoticeResponse(_)) | None => {}
                    Some(_) => return Err(reader.broken("an answer to START_REPLICATION of another form")),
                },
                None => reader.fill().await?,
            }
        }
    }

    /// The next message of the stream. Cancel-safe.
    ///
    /// # Errors
    /// If the stream is at its end: what the server says, or that it says no more.
    pub async fn next(&mut self) -> Result<Frame, WireError> {
        loop {
            match self.reader.front()? {
                Some((COPY_DATA, bytes)) => {
                    let data = self.reader.take(bytes);
                    return frame(data)
                        .ok_or_else(|| self.reader.broken("a piece of the stream of another form"));
                }
                Some(_) => match self.reader.buffered()? {
                    Some(Message::ErrorResponse(body)) => return Err(body.into()),
                    Some(Message::CopyDone | Message::CommandComplete(_)) => {
                        let server = self.reader.server.clone();
                        return Err(WireError::Closed { server, what: "the stream of changes" });
                    }
                    Some(Message::NoticeResponse(_)) | None => {}
                    Some(_) => return Err(self.reader.broken("a message that no stream of changes has")),
                },
                None => self.reader.fill().await?,
            }
        }
    }

    /// The next message of the stream if it has already come. Whatever else has come is left to [`Self::next`].
    pub fn buffered(&mut self) -> Option<Frame> {
        let Ok(Some((COPY_DATA, bytes))) = self.reader.front() else { return None };
        if !is_frame(self.reader.input.get(HEADER_BYTES..bytes)?) {
            return None;
        }
        frame(self.reader.take(bytes))
    }

    /// Tells the server that everything before `flushed` is safe here. `clock` is the time, in microseconds since
    /// 2000. Cancel-safe: what was not sent goes with the next one.
    ///
    /// # Errors
    /// If the connection is at its end.
    pub async fn confirm(&mut self, flushed: Lsn, clock: i64, reply_now: bool) -> Result<(), WireError> {
        let output = &mut self.writer.output;
        output.put_slice(&[COPY_DATA, 0, 0, 0, 38, b'r']);
        // Written, flushed, applied: what is not safe here is not told of.
        for _ in 0..3 {
            output.put_u64(flushed.0);
        }
        output.put_i64(clock);
        output.put_u8(u8::from(reply_now));
        self.writer.flush().await
    }

    /// The server, for messages.
    pub fn server(&self) -> &str {
        &self.reader.server
    }
}

fn is_frame(data: &[u8]) -> bool {
    match data.first() {
        Some(&DATA) => data.len() >= DATA_HEADER_BYTES,
        Some(&KEEPALIVE) => data.len() == KEEPALIVE_BYTES,
        Some(_) | None => false,
    }
}

fn frame(mut data: Bytes) -> Option<Frame> {
    if !is_frame(&data) {
        return None;
    }
    if data.get_u8() == DATA {
        let (start, end, sent_at) = (Lsn(data.get_u64()), Lsn(data.get_u64()), data.get_i64());
        return Some(Frame::Data { start, end, sent_at, data });
    }
    let (end, _sent_at) = (Lsn(data.get_u64()), data.get_i64());
    Some(Frame::Keepalive { end, reply_now: data.get_u8() != 0 })
}
