//! The sending half of a connection: messages are put into a buffer, and the buffer is sent at once.
//!
//! Nothing is allocated but the buffer. Who sends much without reading may wait forever, since a server stops
//! reading while nobody takes its answers: read at the same time (both halves are cancel-safe).

use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncWriteExt, WriteHalf};

use super::WireError;
use super::socket::Socket;

/// What the buffer begins with, in bytes.
const BUFFER_BYTES: usize = 8 * 1024;
/// Of a batch that was longer than this the buffer is given back, in bytes.
const KEPT_BYTES_MAX: usize = 1024 * 1024;

/// The format code of text.
pub const TEXT: i16 = 0;
/// The format code of a type's own bytes.
pub const BINARY: i16 = 1;

/// The sending half of a connection.
#[derive(Debug)]
pub struct Writer {
    pub(super) half: WriteHalf<Socket>,
    pub(super) output: BytesMut,
    server: Arc<str>,
}

impl Writer {
    pub(super) fn new(half: WriteHalf<Socket>, server: Arc<str>) -> Self {
        Self { half, output: BytesMut::with_capacity(BUFFER_BYTES), server }
    }

    /// Bytes that wait for the next flush.
    pub fn len(&self) -> usize {
        self.output.len()
    }

    /// Whether none wait.
    pub fn is_empty(&self) -> bool {
        self.output.is_empty()
    }

    /// Prepares a statement under a name (`Parse`). Types that are left out or 0 the server finds out.
    ///
    /// # Errors
    /// If name or text hold a zero byte. Nothing is sent of it then.
    pub fn parse(&mut self, name: &str, sql: &str, types: &[u32]) -> Result<(), WireError> {
        self.put("a statement", |output| frontend::parse(name, sql, types.iter().copied(), output))
    }

    /// Gives a prepared statement its values, on the unnamed portal (`Bind`). `formats` has a code for each value, or
    /// one for all, or none if all are text; results come as text.
    ///
    /// # Errors
    /// If there are more than 65,535 values or more than 2 GiB. Nothing is sent of it then.
    pub fn bind<'a>(
        &mut self,
        statement: &str,
        formats: &[i16],
        values: impl IntoIterator<Item = Option<&'a [u8]>>,
    ) -> Result<(), WireError> {
        self.put("the values of a statement", |output| {
            let serialize = |value: Option<&[u8]>, output: &mut BytesMut| match value {
                Some(bytes) => {
                    output.put_slice(bytes);
                    Ok(postgres_protocol::IsNull::No)
                }
                None => Ok(postgres_protocol::IsNull::Yes),
            };
            frontend::bind("", statement, formats.iter().copied(), values, serialize, [], output).map_err(
                |error| match error {
                    frontend::BindError::Conversion(error) => std::io::Error::other(error),
                    frontend::BindError::Serialization(error) => error,
                },
            )
        })
    }

    /// Runs what was bound, to its end (`Execute`).
    pub fn execute(&mut self) {
        // Kind, length, the empty name of the portal, no limit of rows.
        self.output.put_slice(&[b'E', 0, 0, 0, 9, 0, 0, 0, 0, 0]);
    }

    /// Ends a batch (`Sync`): after an error the server passes over everything up to here.
    pub fn sync(&mut self) {
        frontend::sync(&mut self.output);
    }

    /// Runs statements without values (`Query`).
    ///
    /// # Errors
    /// If the text holds a zero byte. Nothing is sent of it then.
    pub fn query(&mut self, sql: &str) -> Result<(), WireError> {
        self.put("a statement", |output| frontend::query(sql, output))
    }

    /// Sends what waits. Cancel-safe: what was not sent is sent by the next one.
    ///
    /// # Errors
    /// If the connection is at its end.
    pub async fn flush(&mut self) -> Result<(), WireError> {
        let is_long = self.output.len() > KEPT_BYTES_MAX;
        let sent = async {
            while !self.output.is_empty() {
                if self.half.write_buf(&mut self.output).await? == 0 {
                    return Err(std::io::ErrorKind::WriteZero.into());
                }
            }
            self.half.flush().await
        };
        let sent = sent.await;
        if is_long && self.output.is_empty() {
            self.output = BytesMut::with_capacity(BUFFER_BYTES);
        }
        sent.map_err(|error| WireError::Io { server: self.server.clone(), doing: "writing", error })
    }

    /// Writes a message whole or not at all.
    pub(super) fn put(
        &mut self,
        what: &str,
        message: impl FnOnce(&mut BytesMut) -> std::io::Result<()>,
    ) -> Result<(), WireError> {
        let before = self.output.len();
        message(&mut self.output).map_err(|error| {
            self.output.truncate(before);
            WireError::Unsendable { what: format!("{what}: {error}") }
        })
    }
}
