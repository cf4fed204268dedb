//! The receiving half of a connection: bytes into messages.
//!
//! Messages are slices of the buffer that was read into. A slice that is kept keeps the whole buffer, some 64 KiB.
//! A length is believed only as far as bytes have come: no server makes us reserve more than twice what it sent.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::message::backend::{self, Message};
use tokio::io::{AsyncReadExt, ReadHalf};

use super::WireError;
use super::socket::Socket;

/// What is asked of the system in one call, in bytes.
const READ_BYTES: usize = 64 * 1024;
/// With less room than this the buffer grows before the next call.
const ROOM_BYTES_MIN: usize = 16 * 1024;
/// The longest message that a server sends, in bytes: it builds them in one piece of memory, and has none larger.
const MESSAGE_BYTES_MAX: usize = 0x4000_0000;
/// Kind and length of a message.
pub(super) const HEADER_BYTES: usize = 5;
/// The answer to `START_REPLICATION`, which the library does not know.
pub(super) const COPY_BOTH_RESPONSE: u8 = b'W';

/// The receiving half of a connection.
#[derive(Debug)]
pub struct Reader {
    pub(super) half: ReadHalf<Socket>,
    pub(super) input: BytesMut,
    /// The buffer has grown for a long message.
    is_grown: bool,
    pub(super) parameters: BTreeMap<String, String>,
    pub(super) server: Arc<str>,
}

impl Reader {
    pub(super) fn new(half: ReadHalf<Socket>, server: Arc<str>) -> Self {
        let (input, parameters) = (BytesMut::with_capacity(READ_BYTES), BTreeMap::new());
        Self { half, input, is_grown: false, parameters, server }
    }

    /// The next message. Errors and notices of the server are messages too ([`super::ServerError`] reads them), since
    /// after an error the answers to what was sent before it still come; a change of a parameter is none.
    ///
    /// Cancel-safe: what has come stays in the buffer.
    ///
    /// # Errors
    /// If the connection is at its end, or what comes is no message. It is of no use any more then.
    pub async fn next(&mut self) -> Result<Message, WireError> {
        loop {
            if let Some(message) = self.buffered()? {
                return Ok(message);
            }
            self.fill().await?;
        }
    }

    /// The next message if all of it has come.
    ///
    /// # Errors
    /// If what has come is no message.
    pub fn buffered(&mut self) -> Result<Option<Message>, WireError> {
        while self.front()?.is_some() {
            match Message::parse(&mut self.input) {
                Ok(Some(Message::ParameterStatus(status))) => self.note(&status)?,
                Ok(message) => return Ok(message),
                Err(error) => return Err(self.broken(error.to_string())),
            }
        }
        Ok(None)
    }

    /// What the server last said of one of its parameters.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    fn note(&mut self, status: &backend::ParameterStatusBody) -> Result<(), WireError> {
        match (status.name(), status.value()) {
            (Ok(name), Ok(value)) => {
                self.parameters.insert(name.to_owned(), value.to_owned());
                Ok(())
            }
            (Err(error), _) | (_, Err(error)) => Err(self.broken(format!("a parameter: {error}"))),
        }
    }

    /// The kind of the first message and its bytes with its header, if all of it has come.
    pub(super) fn front(&self) -> Result<Option<(u8, usize)>, WireError> {
        match self.length()? {
            Some((kind, bytes)) if bytes <= self.input.len() => Ok(Some((kind, bytes))),
            Some(_) | None => Ok(None),
        }
    }

    /// The kind and length of the first message as its header has them.
    fn length(&self) -> Result<Option<(u8, usize)>, WireError> {
        let [kind, a, b, c, d, ..] = self.input[..] else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if !(4..=MESSAGE_BYTES_MAX).contains(&length) {
            return Err(self.broken(format!("a message {:?} of {length} bytes", char::from(kind))));
        }
        Ok(Some((kind, length + 1)))
    }

    /// Takes the first message of so many bytes out; what it holds behind its header.
    pub(super) fn take(&mut self, bytes: usize) -> Bytes {
        let mut message = self.input.split_to(bytes).freeze();
        message.advance(HEADER_BYTES);
        message
    }

    /// Waits for more bytes. Cancel-safe.
    pub(super) async fn fill(&mut self) -> Result<(), WireError> {
        let missing = self.length()?.map_or(0, |(_, bytes)| bytes.saturating_sub(self.input.len()));
        self.make_room(missing);
        match self.half.read_buf(&mut self.input).await {
            Ok(0) => Err(WireError::Closed { server: self.server.clone(), what: "the connection" }),
            Ok(_) => Ok(()),
            Err(error) => Err(WireError::Io { server: self.server.clone(), doing: "reading", error }),
        }
    }

    /// Makes room for the next read, of a message of which so many bytes have yet to come.
    fn make_room(&mut self, missing: usize) {
        if self.is_grown && self.input.len() + missing <= READ_BYTES {
            // What a long message took is given back, not taken up again.
            let mut input = BytesMut::with_capacity(2 * READ_BYTES);
            input.extend_from_slice(&self.input);
            self.input = input;
            self.is_grown = false;
            return;
        }
        let room = self.input.capacity() - self.input.len();
        if room >= ROOM_BYTES_MIN && room >= missing {
            return;
        }
        let more = missing.min(self.input.len()).max(READ_BYTES);
        self.is_grown |= more > READ_BYTES;
        self.input.reserve(more);
    }

    pub(super) fn broken(&self, what: impl Into<String>) -> WireError {
        WireError::Protocol { server: self.server.clone(), what: what.into() }
    }
}
