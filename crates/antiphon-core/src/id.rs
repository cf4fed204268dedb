//! Names and numbers that identify things: members, leadership terms, timelines.
//!
//! They are types and not strings so that a name with a quote or a slash in it is refused where it enters
//! and never reaches a slot name, a connection string, a file path or `synchronous_standby_names`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The longest member name: what PostgreSQL keeps of an `application_name` (63 bytes).
pub const NODE_NAME_BYTES_MAX: usize = 63;

/// The name of a member: 1 to 63 bytes of ASCII letters, digits, `_`, `-` and `.`, beginning with a letter,
/// a digit or `_`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

/// Why a text is not a member name.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "{name:?} is not a member name: use 1 to {NODE_NAME_BYTES_MAX} ASCII letters, digits, '_', '-' or '.', \
     beginning with a letter, a digit or '_'"
)]
pub struct InvalidNodeName {
    name: String,
}

impl NodeName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the physical replication slot that keeps WAL for this member: lower case, `-` and `.`
    /// become `_` (Patroni's rule, so that both can share a cluster).
    pub fn slot_name(&self) -> String {
        self.0.to_ascii_lowercase().replace(['-', '.'], "_")
    }
}

impl FromStr for NodeName {
    type Err = InvalidNodeName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        let starts_well = name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        if name.len() <= NODE_NAME_BYTES_MAX && starts_well && name.chars().all(allowed) {
            Ok(Self(name.to_owned()))
        } else {
            Err(InvalidNodeName { name: name.to_owned() })
        }
    }
}

impl TryFrom<String> for NodeName {
    type Error = InvalidNodeName;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        name.parse()
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> Self {
        name.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A leadership term. It only grows and is the fencing token everywhere; a bootstrap is epoch 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The term after this one.
    ///
    /// # Panics
    /// When 2^64 terms are used up, which only a corrupted store can bring about.
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("an epoch is counted up by elections: 2^64 of them never happen"))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A PostgreSQL timeline. A promotion takes the timeline of its epoch, so no two promotions share one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timeline(pub u32);

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_could_escape_its_place_is_refused() {
        for bad in ["", "a b", "a'b", "a\"b", "../x", "a/b", "a\nb", "-a", "ä", &"x".repeat(64)] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_slot_is_named_as_patroni_names_it() {
        let name: NodeName = "PG-node.1".parse().expect("a good name");
        assert_eq!(name.slot_name(), "pg_node_1");
    }
}
