//! What a node tells the others in its own log: up to when that log is complete, and what it had applied of
//! theirs when it said so.
//!
//! Being in the log is the point: whatever follows the announcement there was written by somebody who had seen
//! what it says was applied.

use std::collections::BTreeMap;

use antiphon_core::mesh::{CommitTime, NodeId, Reached};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The prefix of the messages that are announcements.
pub const PREFIX: &str = "antiphon";

const FORMAT: u32 = 1;

/// An announcement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// Who makes it.
    pub node: NodeId,
    /// All commits of its node up to this time stand before it in the log.
    pub complete_to: CommitTime,
    /// What was applied at its node.
    pub applied: Reached,
}

/// A text that is no announcement.
#[derive(Debug, Error)]
pub enum NoAnnouncement {
    /// It cannot be read.
    #[error("an announcement cannot be read: {0}")]
    Text(#[from] serde_json::Error),
    /// It is of another release.
    #[error("an announcement has format {0}, and this release reads {FORMAT}: upgrade antiphon on this node")]
    Format(u32),
    /// It speaks of node 0.
    #[error("an announcement speaks of node 0, which there is not")]
    Nobody,
}

#[derive(Serialize, Deserialize)]
struct Text {
    v: u32,
    node: u16,
    complete_to: i64,
    applied: BTreeMap<u16, i64>,
}

/// What was applied of each node, as text to be kept.
#[must_use]
pub fn reached_text(reached: &Reached) -> String {
    let times: BTreeMap<u16, i64> = reached.iter().map(|(node, at)| (node.number(), at.0)).collect();
    serde_json::to_string(&times).expect("a map of numbers has a text")
}

/// The same, read again.
///
/// # Errors
/// If that is no such text.
pub fn parse_reached(text: &str) -> Result<Reached, NoAnnouncement> {
    let times: BTreeMap<u16, i64> = serde_json::from_str(text)?;
    let mut reached = Reached::default();
    for (node, at) in times {
        reached.advance(NodeId::new(node).ok_or(NoAnnouncement::Nobody)?, CommitTime(at));
    }
    Ok(reached)
}

impl Announcement {
    /// As it stands in the log.
    #[must_use]
    pub fn to_text(&self) -> String {
        let applied = self.applied.iter().map(|(node, at)| (node.number(), at.0)).collect();
        let text = Text { v: FORMAT, node: self.node.number(), complete_to: self.complete_to.0, applied };
        serde_json::to_string(&text).expect("numbers and maps of numbers have a text")
    }

    /// From the log.
    ///
    /// # Errors
    /// If that is no announcement of this release's.
    pub fn parse(text: &[u8]) -> Result<Self, NoAnnouncement> {
        let text: Text = serde_json::from_slice(text)?;
        if text.v != FORMAT {
            return Err(NoAnnouncement::Format(text.v));
        }
        let id = |number| NodeId::new(number).ok_or(NoAnnouncement::Nobody);
        let mut applied = Reached::default();
        for (node, at) in text.applied {
            applied.advance(id(node)?, CommitTime(at));
        }
        Ok(Self { node: id(text.node)?, complete_to: CommitTime(text.complete_to), applied })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_is_read_as_it_was_made_and_a_strange_one_refused() {
        let node = |number| NodeId::new(number).expect("not zero");
        let mut applied = Reached::unknown([node(2)]);
        applied.advance(node(3), CommitTime(-5));
        let made = Announcement { node: node(1), complete_to: CommitTime(7), applied };
        assert_eq!(Announcement::parse(made.to_text().as_bytes()).expect("sound"), made);
        for strange in [
            "",
            "{}",
            r#"{"v":2,"node":1,"complete_to":0,"applied":{}}"#,
            r#"{"v":1,"node":0,"complete_to":0,"applied":{}}"#,
        ] {
            assert!(Announcement::parse(strange.as_bytes()).is_err(), "{strange}");
        }
    }
}
