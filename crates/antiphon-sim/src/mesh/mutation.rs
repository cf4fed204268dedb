//! Mutants: each switches one rule off, around the core and never in it, to see that the simulation notices.

use antiphon_core::mesh::resolve::Action;
use antiphon_core::mesh::{Local, Verdict, Version};

use super::Mesh;
use super::state::Op;

/// A rule that is switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Deletes leave no tombstones.
    NoTombstones,
    /// A row that is not there is not updated.
    UpdateMissingSkipped,
    /// Tombstones are collected when the quickest of the others has passed them.
    CollectEarly,
    /// Tombstones are collected without having looked who joins.
    CollectBeforeAdmitting,
    /// Changes do not wait for the clock.
    NoCommitWait,
    /// Of two writes with the same time the one that arrives wins.
    TieByArrival,
    /// A node's next write to its own row wins only if it is later by the clock.
    NoSameOrigin,
    /// The fast way writes over whatever it finds.
    FastUnseen,
    /// The fast way inserts without looking for a tombstone.
    InsertWithoutLook,
    /// The careful way does not look for a tombstone again once a row is written.
    InsertOnce,
    /// A delete that finds nothing counts at once.
    BuryAtOnce,
    /// It waits for those who write into the table, and is not known while it does.
    BuryUnsaid,
    /// It is known, and does not wait.
    BuryWithoutWait,
    /// It does not wait for other links.
    WaitForClientsOnly,
    /// A tombstone takes the place of a later one.
    TombstoneGoesBack,
    /// A log is complete up to what the clock shows.
    CompleteByClock,
    /// A log is complete up to the very microsecond at which the clock was read.
    CompleteInclusive,
    /// What was announced is believed applied before it is.
    ReachedTooEarly,
    /// What is applied is confirmed before it is safe.
    ConfirmBeforeSafe,
    /// The log is sent before it is safe.
    SendBeforeSafe,
    /// The progress is written in a transaction of its own.
    ProgressApart,
    /// A truncation is applied before what stands before it in its transaction.
    TruncateFirst,
    /// A truncation takes the place of a later one.
    TruncationGoesBack,
    /// A truncation counts at once.
    TruncateAtOnce,
    /// A copy is made of a donor that has not applied what the newcomer's streams leave out.
    JoinUnlevelled,
    /// A copy's rows all have the time of the copy.
    JoinStampsNow,
    /// A copy has no tombstones.
    JoinWithoutTombstones,
    /// A copy has no truncation.
    JoinWithoutTruncation,
    /// A newcomer takes writes before its clock is past what was copied.
    JoinByAnyClock,
    /// A server takes writes before its clock is past what is in its log.
    OpenAtOnce,
    /// What a node that left had written counts as seen by everybody, whenever they wrote.
    LeftIsSeen,
    /// A node is let go when the others have applied its log, safely or not.
    LeaveBeforeSafe,
}

/// Every mutant.
pub const MUTATIONS: [Mutation; 32] = [
    Mutation::NoTombstones,
    Mutation::UpdateMissingSkipped,
    Mutation::CollectEarly,
    Mutation::CollectBeforeAdmitting,
    Mutation::NoCommitWait,
    Mutation::TieByArrival,
    Mutation::NoSameOrigin,
    Mutation::FastUnseen,
    Mutation::InsertWithoutLook,
    Mutation::InsertOnce,
    Mutation::BuryAtOnce,
    Mutation::BuryUnsaid,
    Mutation::BuryWithoutWait,
    Mutation::WaitForClientsOnly,
    Mutation::TombstoneGoesBack,
    Mutation::CompleteByClock,
    Mutation::CompleteInclusive,
    Mutation::ReachedTooEarly,
    Mutation::ConfirmBeforeSafe,
    Mutation::SendBeforeSafe,
    Mutation::ProgressApart,
    Mutation::TruncateFirst,
    Mutation::TruncationGoesBack,
    Mutation::TruncateAtOnce,
    Mutation::JoinUnlevelled,
    Mutation::JoinStampsNow,
    Mutation::JoinWithoutTombstones,
    Mutation::JoinWithoutTruncation,
    Mutation::JoinByAnyClock,
    Mutation::OpenAtOnce,
    Mutation::LeftIsSeen,
    Mutation::LeaveBeforeSafe,
];

impl Mesh {
    pub(crate) fn is(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    /// Changes what was decided.
    pub(crate) fn tamper_verdict(&self, incoming: Version, op: Op, local: Local, verdict: &mut Verdict) {
        let here = match local {
            Local::Row(version) | Local::Gone(version) => Some(version),
            Local::Absent => None,
        };
        let arrives = match op {
            Op::Delete(..) if matches!(local, Local::Gone(_)) => Action::Bury,
            _ => Action::Apply,
        };
        match (self.mutation, here) {
            (Some(Mutation::TieByArrival), Some(here)) if here.at == incoming.at => verdict.action = arrives,
            (Some(Mutation::NoSameOrigin), Some(here)) if incoming < here => verdict.action = Action::Keep,
            (Some(Mutation::UpdateMissingSkipped), None) if matches!(op, Op::Update(..)) => {
                verdict.action = Action::Keep;
            }
            _ => {}
        }
    }
}
