//! A connection to a PostgreSQL server below the client library: messages are written and read one by one.
//!
//! So that changes can be pipelined with their values passed on as the bytes that came, and logical replication be
//! read, which the client library does neither. [`Dsn::control`] gives the client library's own kind of connection
//! for everything else. A connection has no deadline after its login: who waits for a server says how long.

mod control;
mod error;
mod login;
mod open;
mod reader;
pub mod replication;
mod socket;
mod writer;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{DataRowBody, Message};

pub use self::error::{ServerError, WireError};
pub use self::reader::Reader;
pub use self::writer::{BINARY, TEXT, Writer};

use crate::dsn::Dsn;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Statements.
    Sql,
    /// Commands of logical replication; statements by [`Connection::query`] as well.
    Replication,
}

/// A connection on which somebody is logged in and nothing is under way.
#[derive(Debug)]
pub struct Connection {
    reader: Reader,
    writer: Writer,
    process: u32,
    secret: u32,
}

impl Connection {
    /// Connects to the first server of the connection string that will do, and logs in. `settings` are parameters of
    /// the session from its start (`search_path`).
    ///
    /// # Errors
    /// Why no server will do.
    pub async fn open(
        dsn: &Dsn,
        kind: Kind,
        application_name: &str,
        settings: &[(&str, &str)],
    ) -> Result<Self, WireError> {
        open::open(dsn, kind, application_name, settings).await
    }

    /// The server's release, as `server_version_num` has it: 150020; 0 if it does not say.
    pub fn server_version(&self) -> u32 {
        self.parameter("server_version").map_or(0, version_number)
    }

    /// What the server last said of one of its parameters.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.reader.parameter(name)
    }

    /// The process that serves the connection, as `pg_stat_activity.pid` has it.
    pub fn process(&self) -> u32 {
        self.process
    }

    /// The server, for messages.
    pub fn server(&self) -> &Arc<str> {
        &self.reader.server
    }

    /// Runs statements and gives their rows, as text.
    ///
    /// # Errors
    /// What the server says of the first that failed; the connection goes on then.
    pub async fn query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, WireError> {
        self.writer.query(sql)?;
        self.writer.flush().await?;
        let (mut rows, mut failed) = (Vec::new(), None);
        loop {
            match self.reader.next().await? {
                Message::DataRow(row) => rows.push(self.texts(&row)?),
                Message::ErrorResponse(body) => failed = failed.or(Some(WireError::from(body))),
                Message::ReadyForQuery(_) => return failed.map_or(Ok(rows), Err),
                Message::CopyInResponse(_) => {
                    return Err(self.reader.broken("a copy where rows were asked for"));
                }
                // Of a copy that goes the other way nothing is wanted.
                _ => {}
            }
        }
    }

    /// The two halves. Both may be waited for at the same time.
    pub fn split(self) -> (Reader, Writer) {
        (self.reader, self.writer)
    }

    fn texts(&self, row: &DataRowBody) -> Result<Vec<Option<String>>, WireError> {
        let mut texts = Vec::new();
        let mut ranges = row.ranges();
        loop {
            let text = match ranges.next() {
                Ok(None) => return Ok(texts),
                Ok(Some(None)) => None,
                Ok(Some(Some(range))) => {
                    let bytes = row.buffer().get(range).unwrap_or_default();
                    let text = std::str::from_utf8(bytes);
                    Some(text.map_err(|_| self.reader.broken("a value that is not UTF-8"))?.to_owned())
                }
                Err(error) => return Err(self.reader.broken(format!("a row: {error}"))),
            };
            texts.push(text);
        }
    }
}

/// `15.20 (Debian …)` as 150020.
fn version_number(text: &str) -> u32 {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().ok());
    let major = numbers.next().flatten().unwrap_or(0);
    // A beta has a letter there: its number is not the minor release.
    let is_released = text.trim_start_matches(|c: char| c.is_ascii_digit()).starts_with('.');
    let minor = numbers.next().flatten().filter(|_| is_released).unwrap_or(0);
    major.saturating_mul(10_000).saturating_add(minor)
}
