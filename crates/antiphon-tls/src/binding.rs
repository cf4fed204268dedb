//! What SCRAM binds a login to: the hash of the server's certificate (`tls-server-end-point`, RFC 5929).
//!
//! The hash is the one of the certificate's own signature, but SHA-256 where that is MD5 or SHA-1. Only the few
//! bytes of the certificate that say so are read here; whether it can be trusted is looked at elsewhere.

use sha2::{Digest, Sha256, Sha384, Sha512};

const SEQUENCE: u8 = 0x30;
const OBJECT: u8 = 0x06;
/// The first parameter of RSA-PSS: its hash.
const FIRST: u8 = 0xa0;

/// A family of hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

/// The binding to a certificate (DER); none if its signature has no hash of its own, as Ed25519 has none.
pub(crate) fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    Some(match hash(certificate)? {
        Hash::Sha256 => Sha256::digest(certificate).to_vec(),
        Hash::Sha384 => Sha384::digest(certificate).to_vec(),
        Hash::Sha512 => Sha512::digest(certificate).to_vec(),
    })
}

fn hash(certificate: &[u8]) -> Option<Hash> {
    let (whole, _) = element(certificate, SEQUENCE)?;
    let (_, behind_what_is_signed) = element(whole, SEQUENCE)?;
    let (algorithm, _) = element(behind_what_is_signed, SEQUENCE)?;
    let (name, parameters) = element(algorithm, OBJECT)?;
    match name {
        // RSA with MD5, SHA-1, SHA-256, -384, -512, and PSS, whose hash is a parameter.
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, which] => match which {
            4 | 5 | 11 => Some(Hash::Sha256),
            12 => Some(Hash::Sha384),
            13 => Some(Hash::Sha512),
            10 => hash_of_pss(parameters),
            _ => None,
        },
        // ECDSA with SHA-1, SHA-256, -384, -512.
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01] | [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 2] => {
            Some(Hash::Sha256)
        }
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 3] => Some(Hash::Sha384),
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 4] => Some(Hash::Sha512),
        _ => None,
    }
}

fn hash_of_pss(parameters: &[u8]) -> Option<Hash> {
    let (parameters, _) = element(parameters, SEQUENCE)?;
    // Left out, it is SHA-1.
    let Some((first, _)) = element(parameters, FIRST) else { return Some(Hash::Sha256) };
    let (algorithm, _) = element(first, SEQUENCE)?;
    match element(algorithm, OBJECT)?.0 {
        [0x2b, 0x0e, 0x03, 0x02, 0x1a] | [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 1] => {
            Some(Hash::Sha256)
        }
        [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 2] => Some(Hash::Sha384),
        [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 3] => Some(Hash::Sha512),
        _ => None,
    }
}

/// What an element of this kind at the front holds, and what follows it.
fn element(bytes: &[u8], kind: u8) -> Option<(&[u8], &[u8])> {
    let [tag, length, rest @ ..] = bytes else { return None };
    if *tag != kind {
        return None;
    }
    let (length, rest) = match length {
        0..=0x7f => (usize::from(*length), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
            (digits.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn der(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
        let inside = parts.concat();
        let mut bytes = vec![kind];
        match u8::try_from(inside.len()) {
            Ok(short @ 0..=0x7f) => bytes.push(short),
            _ => {
                bytes.push(0x82);
                bytes.extend(u16::try_from(inside.len()).unwrap().to_be_bytes());
            }
        }
        bytes.extend(inside);
        bytes
    }

    /// As much of a certificate as is looked at.
    fn certificate(name: &[u8], parameters: &[u8]) -> Vec<u8> {
        let signed = der(SEQUENCE, &[&[7; 300]]);
        let algorithm = der(SEQUENCE, &[&der(OBJECT, &[name]), parameters]);
        der(SEQUENCE, &[&signed, &algorithm, &der(3, &[&[0; 65]])])
    }

    #[test]
    fn the_hash_is_that_of_the_signature_and_never_a_broken_one() {
        let rsa = |which: u8| vec![0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, which];
        let ecdsa = |which: u8| vec![0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, which];
        let cases = [
            (rsa(4), Some(32)),
            (rsa(5), Some(32)),
            (rsa(11), Some(32)),
            (rsa(12), Some(48)),
            (rsa(13), Some(64)),
            (ecdsa(2), Some(32)),
            (ecdsa(3), Some(48)),
            (ecdsa(4), Some(64)),
            // Ed25519.
            (vec![0x2b, 0x65, 0x70], None),
        ];
        for (name, length) in cases {
            let bytes = end_point(&certificate(&name, &[5, 0]));
            assert_eq!(bytes.map(|bytes| bytes.len()), length, "{name:?}");
        }
        let sha512 = der(OBJECT, &[&[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 3]]);
        let pss = der(SEQUENCE, &[&der(FIRST, &[&der(SEQUENCE, &[&sha512])])]);
        assert_eq!(hash(&certificate(&rsa(10), &pss)), Some(Hash::Sha512));
        assert_eq!(hash(&certificate(&rsa(10), &der(SEQUENCE, &[]))), Some(Hash::Sha256));
    }

    #[test]
    fn what_is_no_certificate_binds_nothing() {
        let sound = certificate(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 2], &[]);
        for end in 0..sound.len() {
            assert_eq!(end_point(&sound[..end]), None, "{end} bytes");
        }
        for bytes in [&b""[..], b"0", &[0x30, 0x80], &[0x30, 0x85, 1, 1, 1, 1, 1], &[0xff; 64]] {
            assert_eq!(end_point(bytes), None, "{bytes:?}");
        }
    }
}
