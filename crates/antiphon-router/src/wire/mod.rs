//! The frontend/backend protocol of PostgreSQL, framed in place: where a message ends, and nothing copied.
//!
//! Pure. A message is its kind (one byte) and its length (four, which count themselves); only those five bytes
//! are read of what is passed on. `startup` reads the packets before that format begins, `messages` writes the
//! few that the router says itself, `rows` its own results, `fields` looks into the few that it must understand.
//! Nothing here reads a socket or keeps state.

pub mod fields;
pub mod messages;
pub mod rows;
pub mod startup;

/// Bytes before a message's body: its kind and its length.
pub const HEADER_BYTES: usize = 5;

/// Longest message, as PostgreSQL bounds it (1 GiB), in bytes after the kind.
const LENGTH_MAX: usize = 0x3fff_fffe;
/// Longest message of a kind that carries little more than a name, as PostgreSQL bounds it.
const SMALL_LENGTH_MAX: usize = 10_000;

/// What stands at the front of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Less than a header.
    Partial,
    /// A message of this kind and of this many bytes, header included; they need not all be there yet.
    Message {
        /// Its first byte.
        kind: u8,
        /// All of its bytes.
        bytes: usize,
    },
    /// No message of the protocol begins like this.
    Malformed,
}

/// Frames a message of a client that has logged in.
pub fn from_client(buffer: &[u8]) -> Frame {
    let longest = match buffer.first() {
        None => return Frame::Partial,
        Some(b'Q' | b'P' | b'B' | b'F' | b'd' | b'f') => LENGTH_MAX,
        Some(b'C' | b'D' | b'E' | b'H' | b'S' | b'X' | b'c' | b'p') => SMALL_LENGTH_MAX,
        Some(_) => return Frame::Malformed,
    };
    framed(buffer, longest)
}

/// Frames a message of a server.
pub fn from_server(buffer: &[u8]) -> Frame {
    match buffer.first() {
        None => Frame::Partial,
        Some(kind) if kind.is_ascii_alphanumeric() => framed(buffer, LENGTH_MAX),
        Some(_) => Frame::Malformed,
    }
}

fn framed(buffer: &[u8], longest: usize) -> Frame {
    let [kind, a, b, c, d, ..] = *buffer else { return Frame::Partial };
    match usize::try_from(u32::from_be_bytes([a, b, c, d])) {
        Ok(length) if (4..=longest).contains(&length) => Frame::Message { kind, bytes: length + 1 },
        Ok(_) | Err(_) => Frame::Malformed,
    }
}

#[cfg(test)]
mod tests;
