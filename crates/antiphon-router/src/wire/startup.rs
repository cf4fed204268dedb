//! The packets that come before the format of all others: start, cancel, and the questions for encryption.
//!
//! Pure, and the first thing that a stranger's bytes meet: every length is bounded, every text ends where it
//! says. What is not understood is malformed; nothing is guessed.

/// Longest packet, as PostgreSQL bounds it, in bytes.
pub const PACKET_BYTES_MAX: usize = 10_000;
/// Most parameters in a start packet.
const PARAMETERS_MAX: usize = 128;
/// Shortest and longest secret of a cancel request, in bytes (protocol 3.2).
const KEY_BYTES: std::ops::RangeInclusive<usize> = 4..=256;

const CANCEL: u32 = (1234 << 16) | 5678;
const TLS: u32 = (1234 << 16) | 5679;
const GSS: u32 = (1234 << 16) | 5680;

/// The newest protocol that is spoken, 3.2.
pub const NEWEST_MINOR: u16 = 2;

/// What a connection opens with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opening {
    /// Not all of it is there.
    Partial,
    /// A session is asked for.
    Start(Start),
    /// A statement of another connection shall be cancelled.
    Cancel {
        /// The process that the other connection was told.
        process: u32,
        /// The secret that it was told.
        key: Vec<u8>,
    },
    /// The client asks for TLS; the answer is one byte.
    Tls,
    /// The client asks for GSS encryption; the answer is one byte.
    Gss,
    /// A protocol that is not spoken: major and minor version.
    Foreign(u16, u16),
    /// No packet of the protocol: what is wrong, in words.
    Malformed(&'static str),
}

/// What a session begins with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Start {
    /// Minor version of protocol 3 that the client asked for.
    pub minor: u16,
    /// Options of the protocol (`_pq_.…`) that are not known here.
    pub unknown_options: Vec<String>,
    /// Names and values, `user` among them.
    pub parameters: Vec<(String, String)>,
}

impl Start {
    /// The value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Reads the packet at the front of `buffer`, and how many bytes it has.
pub fn open(buffer: &[u8]) -> (Opening, usize) {
    let [a, b, c, d, rest @ ..] = buffer else { return (Opening::Partial, 0) };
    let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
    if !(8..=PACKET_BYTES_MAX).contains(&length) {
        return (Opening::Malformed("invalid length of startup packet"), 0);
    }
    let Some(packet) = rest.get(..length - 4) else { return (Opening::Partial, 0) };
    let [a, b, c, d, body @ ..] = packet else { return (Opening::Partial, 0) };
    let version = u32::from_be_bytes([*a, *b, *c, *d]);
    let opening = match version {
        CANCEL => cancel(body),
        TLS if body.is_empty() => Opening::Tls,
        GSS if body.is_empty() => Opening::Gss,
        TLS | GSS => Opening::Malformed("invalid length of encryption request"),
        _ => match ((version >> 16) as u16, (version & 0xffff) as u16) {
            (3, minor) => start(minor, body),
            (major, minor) => Opening::Foreign(major, minor),
        },
    };
    (opening, length)
}

fn cancel(body: &[u8]) -> Opening {
    match body {
        [a, b, c, d, key @ ..] if KEY_BYTES.contains(&key.len()) => {
            Opening::Cancel { process: u32::from_be_bytes([*a, *b, *c, *d]), key: key.to_vec() }
        }
        _ => Opening::Malformed("invalid length of cancel request"),
    }
}

fn start(minor: u16, body: &[u8]) -> Opening {
    let mut start = Start { minor, ..Start::default() };
    let mut texts = body.split_inclusive(|byte| *byte == 0);
    loop {
        let Some(name) = texts.next().and_then(text) else {
            return Opening::Malformed("invalid startup packet layout: expected terminator as last byte");
        };
        if name.is_empty() {
            break;
        }
        let Some(value) = texts.next().and_then(text) else {
            return Opening::Malformed("invalid startup packet layout: a parameter has no value");
        };
        if start.parameters.len() + start.unknown_options.len() >= PARAMETERS_MAX {
            return Opening::Malformed("too many parameters in startup packet");
        }
        if name.starts_with("_pq_.") {
            start.unknown_options.push(name);
        } else {
            start.parameters.push((name, value));
        }
    }
    if texts.next().is_some() {
        return Opening::Malformed("invalid startup packet layout: bytes after the terminator");
    }
    Opening::Start(start)
}

/// A text up to its NUL; none if the NUL is missing or the text is not UTF-8.
fn text(bytes: &[u8]) -> Option<String> {
    let bytes = bytes.strip_suffix(&[0])?;
    String::from_utf8(bytes.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(version: u32, body: &[u8]) -> Vec<u8> {
        let mut packet = (u32::try_from(body.len()).unwrap() + 8).to_be_bytes().to_vec();
        packet.extend(version.to_be_bytes());
        packet.extend(body);
        packet
    }

    #[test]
    fn a_start_packet_is_read_whole_or_not_at_all() {
        let bytes = packet(3 << 16 | 2, b"user\0anna\0database\0shop\0_pq_.new\0x\0\0");
        for end in 0..bytes.len() {
            assert_eq!(open(&bytes[..end]), (Opening::Partial, 0), "{end} bytes");
        }
        let (Opening::Start(start), used) = open(&bytes) else { panic!("a start packet") };
        assert_eq!(used, bytes.len());
        assert_eq!((start.minor, start.get("user"), start.get("database")), (2, Some("anna"), Some("shop")));
        assert_eq!(start.unknown_options, ["_pq_.new"]);
    }

    #[test]
    fn cancel_requests_of_both_protocols_are_read() {
        for key in [vec![1u8; 4], vec![7; 32], vec![9; 256]] {
            let mut body = 77u32.to_be_bytes().to_vec();
            body.extend(&key);
            assert_eq!(open(&packet(CANCEL, &body)).0, Opening::Cancel { process: 77, key });
        }
        assert!(matches!(open(&packet(CANCEL, &[0; 7])).0, Opening::Malformed(_)));
        assert!(matches!(open(&packet(CANCEL, &[0; 261])).0, Opening::Malformed(_)));
    }

    #[test]
    fn what_is_no_packet_is_refused_at_once() {
        let huge = (PACKET_BYTES_MAX as u32 + 1).to_be_bytes();
        for bytes in [&huge[..], &[0, 0, 0, 7], b"GET / HTTP/1.1\r\n", &[0x16, 3, 1, 2, 0]] {
            assert!(matches!(open(bytes).0, Opening::Malformed(_)), "{bytes:?}");
        }
        for body in [&b""[..], b"user", b"user\0", b"user\0anna\0", b"user\0anna\0\0more", b"\xff\0x\0\0"] {
            assert!(matches!(open(&packet(3 << 16, body)).0, Opening::Malformed(_)), "{body:?}");
        }
        assert_eq!(open(&packet(2 << 16, b"\0")).0, Opening::Foreign(2, 0));
        assert!(matches!(open(&packet(TLS, b"x")).0, Opening::Malformed(_)));
        let many: Vec<u8> = (0..200).flat_map(|n| format!("p{n}\0v\0").into_bytes()).chain([0]).collect();
        assert!(matches!(open(&packet(3 << 16, &many)).0, Opening::Malformed(_)));
    }
}
