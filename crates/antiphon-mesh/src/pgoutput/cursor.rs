//! Reading the parts of one message of `pgoutput` from the front, and saying where one is not there.

use antiphon_core::Lsn;
use bytes::Bytes;

/// A stream that is not what `pgoutput` sends. The slot's position is where to look.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a change cannot be read: {what}, at byte {at} of {length} of a message {kind:?}")]
pub struct StreamError {
    /// The kind of the message.
    pub kind: char,
    /// How far it was read.
    pub at: usize,
    /// How long it is.
    pub length: usize,
    /// What is wrong there.
    pub what: &'static str,
}

/// A message, and how far it has been read.
pub(super) struct Cursor {
    data: Bytes,
    at: usize,
}

impl Cursor {
    pub(super) fn new(data: Bytes) -> Self {
        Self { data, at: 0 }
    }

    pub(super) fn error(&self, what: &'static str) -> StreamError {
        let kind = self.data.first().copied().map_or('?', char::from);
        StreamError { kind, at: self.at, length: self.data.len(), what }
    }

    pub(super) fn remaining(&self) -> usize {
        self.data.len() - self.at
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], StreamError> {
        let found = self.data.get(self.at..).and_then(|rest| rest.first_chunk::<N>()).copied();
        let found = found.ok_or_else(|| self.error(what))?;
        self.at += N;
        Ok(found)
    }

    pub(super) fn u8(&mut self, what: &'static str) -> Result<u8, StreamError> {
        self.array(what).map(u8::from_be_bytes)
    }

    pub(super) fn u16(&mut self, what: &'static str) -> Result<u16, StreamError> {
        self.array(what).map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, StreamError> {
        self.array(what).map(u32::from_be_bytes)
    }

    pub(super) fn i32(&mut self, what: &'static str) -> Result<i32, StreamError> {
        self.array(what).map(i32::from_be_bytes)
    }

    pub(super) fn i64(&mut self, what: &'static str) -> Result<i64, StreamError> {
        self.array(what).map(i64::from_be_bytes)
    }

    pub(super) fn lsn(&mut self, what: &'static str) -> Result<Lsn, StreamError> {
        self.array(what).map(u64::from_be_bytes).map(Lsn)
    }

    /// A part of the message, with its length before it. Nothing is copied.
    pub(super) fn bytes(&mut self, what: &'static str) -> Result<Bytes, StreamError> {
        let begin = self.at;
        let length = usize::try_from(self.u32(what)?).unwrap_or(usize::MAX);
        if length > self.remaining() {
            self.at = begin;
            return Err(self.error(what));
        }
        let bytes = self.data.slice(self.at..self.at + length);
        self.at += length;
        Ok(bytes)
    }

    /// A text that ends with a zero byte.
    pub(super) fn text(&mut self, what: &'static str) -> Result<String, StreamError> {
        let rest = self.data.get(self.at..).unwrap_or_default();
        let end = rest.iter().position(|byte| *byte == 0).ok_or_else(|| self.error(what))?;
        let text = std::str::from_utf8(rest.get(..end).unwrap_or_default());
        let text = text.map_err(|_| self.error(what))?.to_owned();
        self.at += end + 1;
        Ok(text)
    }

    /// Sees that nothing follows.
    pub(super) fn end(&self) -> Result<(), StreamError> {
        if self.remaining() == 0 { Ok(()) } else { Err(self.error("there is more than belongs to it")) }
    }
}
