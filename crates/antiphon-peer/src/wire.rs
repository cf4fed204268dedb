//! Frames of an authenticated connection: `length u32 | channel u8 | body | tag [16]`.
//!
//! The length counts channel and body. The tag is an HMAC-SHA256, cut to 16 bytes, over the frame's number in
//! this connection, its head and its body, with a key that only this connection has: a frame that was
//! injected, altered, replayed or left out ends the connection. Memory grows with the bytes that arrive,
//! never with the length that was told.

use std::io;

use bytes::{Bytes, BytesMut};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use tokio::io::{AsyncRead, AsyncReadExt};

/// The longest message, in bytes.
pub const BODY_BYTES_MAX: usize = 8 * 1024 * 1024 - 1;

pub(crate) const PING: u8 = 0;
pub(crate) const RAFT: u8 = 1;
pub(crate) const BEAT: u8 = 2;

const TAG_BYTES: usize = 16;
const READ_STEP_BYTES: usize = 64 * 1024;

/// Numbers and signs the frames of one direction of one connection.
pub(crate) struct Seal {
    mac: Hmac<Sha256>,
    frames: u64,
}

impl Seal {
    pub(crate) fn new(mac: Hmac<Sha256>) -> Self {
        Self { mac, frames: 0 }
    }

    fn next(&mut self, head: &[u8], body: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.mac.clone();
        mac.update(&self.frames.to_be_bytes());
        mac.update(head);
        mac.update(body);
        self.frames = self.frames.saturating_add(1);
        mac
    }
}

/// Appends one frame to `out`. `body` is at most [`BODY_BYTES_MAX`] long: callers have checked.
pub(crate) fn put_frame(out: &mut BytesMut, seal: &mut Seal, channel: u8, body: &[u8]) {
    let length = u32::try_from(body.len() + 1).unwrap_or(u32::MAX).to_be_bytes();
    let head = [length[0], length[1], length[2], length[3], channel];
    let tag = seal.next(&head, body).finalize().into_bytes();
    out.extend_from_slice(&head);
    out.extend_from_slice(body);
    out.extend(tag.iter().take(TAG_BYTES));
}

/// Reads one frame and checks its tag. Any error means that the connection must end.
pub(crate) async fn read_frame<R>(from: &mut R, seal: &mut Seal) -> io::Result<(u8, Bytes)>
where
    R: AsyncRead + Unpin,
{
    let mut head = [0_u8; 5];
    from.read_exact(&mut head).await?;
    let [a, b, c, d, channel] = head;
    let length = u32::from_be_bytes([a, b, c, d]);
    let body_bytes = usize::try_from(length).ok().and_then(|length| length.checked_sub(1));
    let body_bytes = match body_bytes {
        Some(bytes) if bytes <= BODY_BYTES_MAX => bytes,
        Some(_) | None => return Err(invalid(format!("a frame of {length} bytes"))),
    };
    let mut frame = read_bytes(from, body_bytes + TAG_BYTES).await?;
    let tag = frame.split_off(body_bytes);
    let genuine = seal.next(&head, &frame).verify_truncated_left(&tag).is_ok();
    if genuine { Ok((channel, frame.freeze())) } else { Err(invalid("a frame with a wrong tag".to_owned())) }
}

async fn read_bytes<R: AsyncRead + Unpin>(from: &mut R, count: usize) -> io::Result<BytesMut> {
    let mut bytes = BytesMut::with_capacity(count.min(READ_STEP_BYTES));
    while bytes.len() < count {
        let missing = count - bytes.len();
        bytes.reserve(missing.min(READ_STEP_BYTES));
        // `take` keeps the read from running into the next frame.
        if from.take(missing as u64).read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(bytes)
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal() -> Seal {
        Seal::new(Hmac::new_from_slice(b"a session key").unwrap())
    }

    async fn read_all(mut bytes: &[u8]) -> Vec<io::Result<(u8, Bytes)>> {
        let mut seal = seal();
        let mut frames = Vec::new();
        while !bytes.is_empty() {
            frames.push(read_frame(&mut bytes, &mut seal).await);
            if frames.last().unwrap().is_err() {
                break;
            }
        }
        frames
    }

    fn two_frames() -> (BytesMut, usize) {
        let (mut out, mut seal) = (BytesMut::new(), seal());
        put_frame(&mut out, &mut seal, RAFT, b"first");
        let length = out.len();
        put_frame(&mut out, &mut seal, BEAT, b"second");
        (out, length)
    }

    #[tokio::test]
    async fn a_frame_arrives_as_it_was_sent() {
        let (bytes, _) = two_frames();
        let frames: Vec<_> = read_all(&bytes).await.into_iter().map(Result::unwrap).collect();
        assert_eq!(frames, [(RAFT, Bytes::from_static(b"first")), (BEAT, Bytes::from_static(b"second"))]);
    }

    #[tokio::test]
    async fn a_changed_replayed_or_omitted_frame_is_refused() {
        let (bytes, first) = two_frames();
        for position in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[position] ^= 1;
            assert!(read_all(&changed).await.last().unwrap().is_err(), "byte {position}");
        }
        let replayed = [&bytes[..first], &bytes[..first]].concat();
        assert!(read_all(&replayed).await[1].is_err());
        assert!(read_all(&bytes[first..]).await[0].is_err());
    }

    #[tokio::test]
    async fn a_length_out_of_bounds_is_refused_before_anything_is_read() {
        for length in [0_u32, 8 * 1024 * 1024 + 1, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
            let mut bytes = length.to_be_bytes().to_vec();
            bytes.push(RAFT);
            let error = read_frame(&mut bytes.as_slice(), &mut seal()).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{length}");
        }
    }
}
