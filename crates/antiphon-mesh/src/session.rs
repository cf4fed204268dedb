//! The connection through which changes are applied: prepared statements, one by one or many in flight.
//!
//! It writes as the replication origin of the node whose changes it applies, so that the log says so and no
//! loop arises; and with `session_replication_role` at `replica`, so that users' triggers and foreign keys, which
//! had their say where the change was made, do not have it again.

use std::collections::HashMap;

use bytes::Bytes;
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{DataRowBody, Message};

use crate::dsn::Dsn;
use crate::name::Literal;
use crate::wire::{BINARY, Connection, Kind, Reader, ServerError, TEXT, WireError, Writer};

/// What every session that applies is set to.
pub(crate) const SETTINGS: [(&str, &str); 12] = [
    // Who waited for a lock sees what was committed meanwhile.
    ("default_transaction_isolation", "read committed"),
    ("search_path", ""),
    ("session_replication_role", "replica"),
    ("DateStyle", "ISO"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "1"),
    ("bytea_output", "hex"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    // What is applied is confirmed to its node only when a later commit of this server's own says that it is safe.
    ("synchronous_commit", "off"),
];

/// A parameter of a statement.
#[derive(Clone, Copy, Debug)]
pub enum Param<'a> {
    /// A value as text; none: null.
    Text(Option<&'a [u8]>),
    /// Eight bytes: a time in microseconds since 2000, or a bigint.
    Long(i64),
    /// Four bytes: an `oid` or an integer.
    Number(u32),
}

/// A statement of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Statement(u32);

/// What a statement gave.
#[derive(Debug, Default)]
pub struct Answer {
    /// Its rows, values as text.
    pub rows: Vec<Vec<Option<Bytes>>>,
    /// How many rows it wrote.
    pub affected: u64,
}

/// How a group of transactions ended.
#[derive(Debug, Default)]
pub struct Outcome {
    /// How many of them committed.
    pub committed: usize,
    /// What stopped the next one, and with it all that followed.
    pub error: Option<ServerError>,
}

impl Outcome {
    fn note(&mut self, message: Message) {
        match message {
            Message::CommandComplete(body) if body.tag().is_ok_and(|tag| tag == "COMMIT") => {
                self.committed += 1;
            }
            Message::ErrorResponse(body) => self.error = self.error.take().or(Some(ServerError::from(&body))),
            _ => {}
        }
    }
}

/// A session that applies changes.
#[derive(Debug)]
pub struct Session {
    reader: Reader,
    writer: Writer,
    statements: HashMap<String, Statement>,
    formats: Vec<i16>,
    numbers: Vec<u8>,
    outcome: Outcome,
    /// Something was put and its answers have not all been read.
    in_flight: bool,
}

impl Session {
    /// Connects, and takes the replication origin `origin` for itself.
    ///
    /// # Errors
    /// If the server cannot be reached or lacks a right or the origin, or if somebody else applies for it.
    pub async fn open(dsn: &Dsn, origin: &str) -> Result<Self, WireError> {
        let mut session = Self::with(dsn, "antiphon mesh apply", &SETTINGS).await?;
        session.write_as(origin).await?;
        Ok(session)
    }

    /// Connects with these settings and as no origin.
    ///
    /// # Errors
    /// If the server cannot be reached or refuses a setting.
    pub async fn with(
        dsn: &Dsn,
        application_name: &str,
        settings: &[(&str, &str)],
    ) -> Result<Self, WireError> {
        let connection = Connection::open(dsn, Kind::Sql, application_name, settings).await?;
        let (reader, writer) = connection.split();
        Ok(Self {
            reader,
            writer,
            statements: HashMap::new(),
            formats: Vec::new(),
            numbers: Vec::new(),
            outcome: Outcome::default(),
            in_flight: false,
        })
    }

    /// Takes a replication origin for itself.
    ///
    /// # Errors
    /// If there is none of that name or a right is missing, or if somebody else has it.
    pub async fn write_as(&mut self, origin: &str) -> Result<(), WireError> {
        let set_up = format!("SELECT pg_catalog.pg_replication_origin_session_setup({})", Literal(origin));
        self.ask(&set_up, &[]).await?;
        Ok(())
    }

    /// The statement with this text, prepared at its first use; what is in flight is waited for then.
    ///
    /// # Errors
    /// If the server refuses it, or has refused something that was in flight.
    pub async fn prepare(&mut self, sql: &str) -> Result<Statement, WireError> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(*statement);
        }
        if self.in_flight {
            let outcome = self.run().await?;
            if let Some(error) = outcome.error {
                return Err(WireError::from(Box::new(error)));
            }
        }
        let number = u32::try_from(self.statements.len()).expect("fewer statements than tables times ten");
        self.writer.parse(&name_of(number), sql, &[])?;
        self.settle().await?;
        self.statements.insert(sql.to_owned(), Statement(number));
        Ok(Statement(number))
    }

    /// Puts a statement behind those that are to be sent.
    ///
    /// # Errors
    /// If there are too many or too large values for one message.
    pub fn put(&mut self, statement: Statement, params: &[Param<'_>]) -> Result<(), WireError> {
        self.formats.clear();
        self.numbers.clear();
        for param in params {
            self.formats.push(if matches!(param, Param::Text(_)) { TEXT } else { BINARY });
            match param {
                Param::Text(_) => {}
                Param::Long(value) => self.numbers.extend_from_slice(&value.to_be_bytes()),
                Param::Number(value) => self.numbers.extend_from_slice(&value.to_be_bytes()),
            }
        }
        let mut numbers = &self.numbers[..];
        let mut next = |bytes: usize| {
            let (number, rest) = numbers.split_at(bytes);
            numbers = rest;
            Some(number)
        };
        let values = params.iter().map(|param| match param {
            Param::Text(text) => *text,
            Param::Long(_) => next(8),
            Param::Number(_) => next(4),
        });
        self.writer.bind(&name_of(statement.0), &self.formats, values)?;
        self.writer.execute();
        self.in_flight = true;
        Ok(())
    }

    /// How many bytes are to be sent.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.writer.len()
    }

    /// Sends what was put so far; false once the server has refused something, which makes the rest pointless.
    ///
    /// # Errors
    /// If the connection fails.
    pub async fn push(&mut self) -> Result<bool, WireError> {
        let (reader, writer, outcome) = (&mut self.reader, &mut self.writer, &mut self.outcome);
        loop {
            // A server that cannot send its answers stops reading, so they are read meanwhile.
            tokio::select! {
                sent = writer.flush() => {
                    sent?;
                    return Ok(outcome.error.is_none());
                }
                message = reader.next() => outcome.note(message?),
            }
        }
    }

    /// Sends what was put, which is whole transactions, and waits until the server is through with it.
    ///
    /// # Errors
    /// If the connection fails. What the server refuses is in the outcome.
    pub async fn run(&mut self) -> Result<Outcome, WireError> {
        self.writer.sync();
        let (reader, writer, outcome) = (&mut self.reader, &mut self.writer, &mut self.outcome);
        let read = async {
            loop {
                match reader.next().await? {
                    Message::ReadyForQuery(_) => return Ok(()),
                    message => outcome.note(message),
                }
            }
        };
        tokio::try_join!(read, writer.flush())?;
        self.in_flight = false;
        Ok(std::mem::take(&mut self.outcome))
    }

    /// Runs one statement and waits for what it gives.
    ///
    /// # Errors
    /// If the server refuses it or the connection fails.
    pub async fn ask(&mut self, sql: &str, params: &[Param<'_>]) -> Result<Answer, WireError> {
        let statement = self.prepare(sql).await?;
        self.put(statement, params)?;
        self.settle().await
    }

    /// Runs one statement once for each of these and waits for the rows of all, one after the other.
    ///
    /// # Errors
    /// If the server refuses one or the connection fails.
    pub async fn ask_each<'a, P: AsRef<[Param<'a>]>>(
        &mut self,
        sql: &str,
        each: impl IntoIterator<Item = P>,
    ) -> Result<Answer, WireError> {
        let statement = self.prepare(sql).await?;
        for params in each {
            self.put(statement, params.as_ref())?;
        }
        self.settle().await
    }

    /// Sends what was put and gives the rows of all of it.
    async fn settle(&mut self) -> Result<Answer, WireError> {
        self.writer.sync();
        let (reader, writer) = (&mut self.reader, &mut self.writer);
        let read = async {
            let mut answer = Answer::default();
            let mut failure = None;
            loop {
                match reader.next().await? {
                    Message::ReadyForQuery(_) => return failure.map_or(Ok(answer), Err),
                    Message::DataRow(row) => answer.rows.push(values(&row)),
                    Message::CommandComplete(body) => {
                        let tag = body.tag().unwrap_or_default();
                        answer.affected =
                            tag.rsplit(' ').next().and_then(|count| count.parse().ok()).unwrap_or(0);
                    }
                    Message::ErrorResponse(body) => failure = failure.or(Some(WireError::from(body))),
                    _ => {}
                }
            }
        };
        let (answer, ()) = tokio::try_join!(read, writer.flush())?;
        self.in_flight = false;
        Ok(answer)
    }
}

fn name_of(statement: u32) -> String {
    format!("s{statement}")
}

fn values(row: &DataRowBody) -> Vec<Option<Bytes>> {
    let buffer = row.buffer_bytes();
    let mut ranges = row.ranges();
    let mut values = Vec::new();
    // A row that is cut short was refused by the reader.
    while let Ok(Some(range)) = ranges.next() {
        values.push(range.map(|range| buffer.slice(range)));
    }
    values
}
