//! The name of whoever a certificate is for: the common name in its subject, as PostgreSQL compares it with users.
//!
//! Reads as little of the certificate as it must, which has been verified before. What is odd has no name: several
//! common names, or one that is no text.

/// Tags of DER.
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT: u8 = 0x06;
const VERSION: u8 = 0xa0;
/// UTF8String, PrintableString, IA5String.
const TEXTS: [u8; 3] = [0x0c, 0x13, 0x16];
/// The object identifier of a common name, 2.5.4.3.
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];

/// The common name of a certificate's subject; none if it has not exactly one.
pub fn common_name(certificate: &[u8]) -> Option<String> {
    let (mut to_be_signed, _) = expect(expect(certificate, SEQUENCE)?.0, SEQUENCE)?;
    if to_be_signed.first() == Some(&VERSION) {
        to_be_signed = element(to_be_signed)?.2;
    }
    // Serial number, algorithm, issuer, validity.
    for _ in 0..4 {
        to_be_signed = element(to_be_signed)?.2;
    }
    let (mut subject, _) = expect(to_be_signed, SEQUENCE)?;
    let mut found = None;
    while !subject.is_empty() {
        let (mut names, rest) = expect(subject, SET)?;
        subject = rest;
        while !names.is_empty() {
            let (name, rest) = expect(names, SEQUENCE)?;
            names = rest;
            let (kind, value) = expect(name, OBJECT)?;
            if kind != COMMON_NAME {
                continue;
            }
            let (tag, text, _) = element(value)?;
            let text =
                std::str::from_utf8(text).ok().filter(|text| TEXTS.contains(&tag) && !text.contains('\0'))?;
            if found.replace(text.to_owned()).is_some() {
                return None;
            }
        }
    }
    found
}

/// The content of an element with this tag, and what follows.
fn expect(from: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, content, rest) = element(from)?;
    (found == tag).then_some((content, rest))
}

/// The first element: its tag, its content, and what follows.
fn element(from: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let [tag, length, rest @ ..] = from else { return None };
    let (length, rest) = match length {
        short @ 0..=0x7f => (usize::from(*short), rest),
        long => {
            let count = usize::from(long & 0x7f);
            let bytes = rest.get(..count).filter(|bytes| (1..=4).contains(&bytes.len()))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest.get(count..)?)
        }
    };
    Some((*tag, rest.get(..length)?, rest.get(length..)?))
}
