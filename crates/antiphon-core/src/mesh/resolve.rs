//! What becomes of a change from elsewhere that meets what is here. Pure, total, and the same on every node.
//!
//! With [`Resolver::LastUpdateWins`] for all kinds the answer is the greater version, whatever else is known, so that any order of
//! delivery ends in the same rows. Whether it was a conflict is a second question, asked for the record and for
//! the other resolvers: it was one if the change's writer had not seen what stands here.

use super::conflict::Conflict;
use super::rules::{Resolver, Rules};
use super::version::{CommitTime, NodeId, Version};
use super::watermark::Reached;

/// What somebody did to a row elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Inserted it.
    Insert,
    /// Updated it.
    Update,
    /// Deleted it.
    Delete,
}

/// What is here under the change's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Local {
    /// A row.
    Row(Version),
    /// A tombstone: the row was deleted.
    Gone(Version),
    /// Neither.
    Absent,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make the row what the change says: write it, or delete it and keep a tombstone.
    Apply,
    /// Keep a tombstone; there is no row to delete.
    Bury,
    /// Leave everything as it is.
    Keep,
    /// Stop: a person has to decide.
    Stop,
}

/// What to do, and what for the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What to do.
    pub action: Action,
    /// The conflict that this decided.
    pub conflict: Option<Conflict>,
}

/// Whether a writer on node `writer`, which had seen of the others what `seen` says, had seen this version.
#[must_use]
pub fn had_seen(writer: NodeId, seen: &Reached, version: Version) -> bool {
    version.node == writer || version.at <= seen.of(version.node)
}

/// Whether `incoming` is to stand in the place of what is here, if nobody else has a say: it is later, or its own
/// node's next.
#[must_use]
pub fn replaces(incoming: Version, here: Version) -> bool {
    incoming >= here || incoming.node == here.node
}

/// Whether a row may be written over, or deleted, without being looked at: [`resolve`] would apply the change
/// and call it no conflict. `limit` is [`Reached::limit`] of what the change's writer had seen.
#[must_use]
pub fn needs_no_look(row: Version, writer: NodeId, limit: CommitTime) -> bool {
    row.at <= limit || row.node == writer
}

/// Decides a change of version `incoming`, whose writer had seen the commits of other nodes as far as `seen` says,
/// against what is here.
#[must_use]
pub fn resolve(change: Change, incoming: Version, seen: &Reached, local: Local, rules: &Rules) -> Verdict {
    let unseen = |version: Version| !had_seen(incoming.node, seen, version);
    match (change, local) {
        (Change::Insert, Local::Row(here)) if unseen(here) => {
            decide(incoming, here, Conflict::InsertExists, rules)
        }
        (Change::Update, Local::Row(here)) if unseen(here) => {
            decide(incoming, here, Conflict::UpdateOriginDiffers, rules)
        }
        (Change::Delete, Local::Row(here)) if unseen(here) => {
            decide(incoming, here, Conflict::DeleteOriginDiffers, rules)
        }
        (Change::Update, Local::Gone(here)) if unseen(here) => {
            decide(incoming, here, Conflict::UpdateDeleted, rules)
        }
        // Its writer knew this row, so this is its successor. A clock that was set back changes nothing of that,
        // as long as it is the same node's: the order of its log is the order of its writes. And whoever inserts anew
        // after a delete has no opponent, nor has one whose row was deleted before it arrived here; and whoever updates
        // a row after a delete that he had seen knows of an insert that is still on its way here.
        (_, Local::Row(here)) | (Change::Insert | Change::Update, Local::Gone(here)) => {
            plain(replaces(incoming, here))
        }
        // Whoever deletes what is deleted agrees.
        (Change::Delete, Local::Gone(here)) => {
            let action = if replaces(incoming, here) { Action::Bury } else { Action::Keep };
            if unseen(here) {
                missing(action, Conflict::DeleteMissing, rules)
            } else {
                Verdict { action, conflict: None }
            }
        }
        (Change::Insert, Local::Absent) => plain(true),
        (Change::Update, Local::Absent) => missing(Action::Apply, Conflict::UpdateMissing, rules),
        (Change::Delete, Local::Absent) => missing(Action::Bury, Conflict::DeleteMissing, rules),
    }
}

fn plain(applies: bool) -> Verdict {
    Verdict { action: if applies { Action::Apply } else { Action::Keep }, conflict: None }
}

fn decide(incoming: Version, local: Version, conflict: Conflict, rules: &Rules) -> Verdict {
    let action = match rules.of(conflict).change_wins(incoming, local) {
        Some(true) => Action::Apply,
        Some(false) => Action::Keep,
        None => Action::Stop,
    };
    Verdict { action, conflict: Some(conflict) }
}

/// There is no row, so nobody's write is in the way, and only what is set for this very kind has a say: the row is often
/// just late. A delete of what is not here is remembered all the same.
fn missing(action: Action, conflict: Conflict, rules: &Rules) -> Verdict {
    let action = match (rules.for_just(conflict), action) {
        (Some(Resolver::Error), _) => Action::Stop,
        (Some(Resolver::KeepLocal), Action::Apply) => Action::Keep,
        (_, action) => action,
    };
    Verdict { action, conflict: Some(conflict) }
}
