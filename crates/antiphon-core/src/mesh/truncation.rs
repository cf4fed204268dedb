//! What a truncation does where it arrives: it deletes every row that it would win against, and stands for all keys.
//!
//! It is one delete of many rows, so it is decided as one, row by row, and its record never goes back.

use super::resolve::replaces;
use super::version::Version;

/// Whether a truncation deletes a row that is here.
#[must_use]
pub fn truncates(truncation: Version, row: Version) -> bool {
    replaces(truncation, row)
}

/// Whether a truncation's version takes the place of the one that stands here for the table's last.
#[must_use]
pub fn supersedes(truncation: Version, standing: Option<Version>) -> bool {
    standing.is_none_or(|standing| replaces(truncation, standing))
}
