//! What is kept of passwords, and what logs in with it: SCRAM verifiers, and MD5 hashes of old.
//!
//! Pure. A hash of the old kind is as good as the password: it proves its user to the router and the router to the
//! server alike. It is never sent as it is.

use md5::{Digest, Md5};

use crate::scram::{self, ScramError, Verifier};

/// Hexadecimal digits of a hash.
const DIGITS: usize = 32;
const PREFIX: &str = "md5";

/// What a server or a userlist keeps of a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Secret {
    /// A SCRAM-SHA-256 verifier.
    Scram(Verifier),
    /// `md5` and the hash of password and user.
    Md5(Hash),
}

/// What logs in at a server as one of its users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// What a client's proof gave away.
    Scram(scram::Credentials),
    /// The hash that the server keeps, too.
    Md5(Hash),
}

/// A hash of password and user, as hexadecimal digits.
#[derive(Clone, PartialEq, Eq)]
pub struct Hash([u8; DIGITS]);

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hash")
    }
}

impl Secret {
    /// Reads what `pg_authid.rolpassword` has.
    ///
    /// # Errors
    /// If it is neither.
    pub fn parse(text: &str) -> Result<Self, ScramError> {
        match text.strip_prefix(PREFIX).and_then(Hash::of_digits) {
            Some(hash) => Ok(Self::Md5(hash)),
            None => Verifier::parse(text).map(Self::Scram),
        }
    }
}

impl Hash {
    fn of_digits(text: &str) -> Option<Self> {
        let digits: [u8; DIGITS] = text.as_bytes().try_into().ok()?;
        let sound = digits.iter().all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(digit));
        sound.then_some(Self(digits))
    }

    /// What proves it to whoever drew this salt.
    pub fn proof(&self, salt: [u8; 4]) -> String {
        let mut hash = Md5::new();
        hash.update(self.0);
        hash.update(salt);
        let digits: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{PREFIX}{digits}")
    }

    /// Whether a client's answer proves it. Takes as long for any answer of the right length.
    pub fn is_proved_by(&self, salt: [u8; 4], answer: &[u8]) -> bool {
        let wanted = self.proof(salt);
        let differs = wanted.bytes().zip(answer).fold(0, |differs, (a, b)| differs | (a ^ b));
        answer.len() == wanted.len() && differs == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_proved_as_postgresql_proves_it() {
        // md5('secret' || 'anna')
        let hash = |text: &str| match Secret::parse(text) {
            Ok(Secret::Md5(hash)) => Some(hash),
            _ => None,
        };
        let mut digits = Md5::new();
        digits.update(b"secretanna");
        let digits: String = digits.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let kept = hash(&format!("md5{digits}")).unwrap();
        let mut wanted = Md5::new();
        wanted.update(digits.as_bytes());
        wanted.update([1, 2, 3, 4]);
        let wanted: String = wanted.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let answer = format!("md5{wanted}");
        assert_eq!(kept.proof([1, 2, 3, 4]), answer);
        assert!(kept.is_proved_by([1, 2, 3, 4], answer.as_bytes()));
        assert!(!kept.is_proved_by([1, 2, 3, 5], answer.as_bytes()));
        assert!(!kept.is_proved_by([1, 2, 3, 4], &answer.as_bytes()[..34]));
        assert!(!kept.is_proved_by([1, 2, 3, 4], b""));
        assert!(hash("md5").is_none() && hash(&format!("md5{}", digits.to_uppercase())).is_none());
        assert_eq!(format!("{kept:?}"), "Hash", "it is a password");
    }
}
