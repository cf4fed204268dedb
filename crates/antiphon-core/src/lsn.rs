//! A position in the write-ahead log.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A byte position in the WAL. Written as PostgreSQL writes it: two hexadecimal halves, `16/B374D848`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Lsn(pub u64);

/// A text that is not a WAL position.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0:?} is not a WAL position: expected two hexadecimal numbers like 16/B374D848")]
pub struct InvalidLsn(String);

impl Lsn {
    /// Bytes from here up to `ahead`; none if `ahead` is behind.
    pub fn bytes_to(self, ahead: Self) -> Option<u64> {
        ahead.0.checked_sub(self.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF))
    }
}

impl FromStr for Lsn {
    type Err = InvalidLsn;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let half = |s: &str| {
            let sound = (1..=8).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_hexdigit());
            sound.then(|| u64::from_str_radix(s, 16).ok()).flatten()
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Self(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| InvalidLsn(text.to_owned()))
    }
}

impl TryFrom<String> for Lsn {
    type Error = InvalidLsn;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Lsn> for String {
    fn from(lsn: Lsn) -> Self {
        lsn.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_reads_back_as_it_was_written() {
        for text in ["0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF"] {
            assert_eq!(text.parse::<Lsn>().expect("a position").to_string(), text);
        }
    }

    #[test]
    fn what_is_no_position_is_refused() {
        for bad in ["", "/", "1", "1/", "G/0", "+1/0", "123456789/0", "0/0/0"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad:?} was taken");
        }
    }
}
