//! Framing: every cut of a message, every length, every first byte.

use super::*;

#[test]
fn a_message_is_framed_as_soon_as_its_header_is_there() {
    let query = messages::query("select 1");
    for end in 0..HEADER_BYTES {
        assert_eq!(from_client(&query[..end]), Frame::Partial, "{end} bytes");
    }
    for end in HEADER_BYTES..=query.len() {
        assert_eq!(from_client(&query[..end]), Frame::Message { kind: b'Q', bytes: query.len() });
    }
}

#[test]
fn no_length_outside_of_the_bounds_is_a_message() {
    for (kind, length) in [(b'Q', 0u32), (b'Q', 3), (b'Q', u32::MAX), (b'Q', 0x4000_0000), (b'S', 10_001)] {
        let mut packet = vec![kind];
        packet.extend(length.to_be_bytes());
        assert_eq!(from_client(&packet), Frame::Malformed, "{} with {length}", char::from(kind));
    }
}

#[test]
fn no_unknown_kind_is_a_message() {
    for kind in 0..=u8::MAX {
        let known = b"QPBFdfCDEHSXcp".contains(&kind);
        let framed = from_client(&[kind, 0, 0, 0, 4]);
        assert_eq!(framed != Frame::Malformed, known, "{kind}");
        let framed = from_server(&[kind, 0, 0, 0, 4]);
        assert_eq!(framed != Frame::Malformed, kind.is_ascii_alphanumeric(), "{kind}");
    }
}
