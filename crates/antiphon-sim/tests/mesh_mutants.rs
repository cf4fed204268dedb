//! Every rule of several leaders is needed: with any one of them switched off, the simulation finds what breaks.

use std::ops::Range;

use antiphon_sim::mesh::mutation::{MUTATIONS, Mutation};
use antiphon_sim::mesh::{Options, run};

/// Mutant, seeds within which it is found.
type Row = (Mutation, Range<u64>);

const TABLE: [Row; 32] = [
    (Mutation::NoTombstones, 0..5),
    (Mutation::UpdateMissingSkipped, 350..450),
    (Mutation::CollectEarly, 0..40),
    (Mutation::CollectBeforeAdmitting, 150..250),
    (Mutation::NoCommitWait, 0..5),
    (Mutation::TieByArrival, 0..10),
    (Mutation::NoSameOrigin, 1200..1250),
    (Mutation::FastUnseen, 0..5),
    (Mutation::InsertWithoutLook, 0..5),
    (Mutation::InsertOnce, 50..150),
    (Mutation::BuryAtOnce, 0..80),
    (Mutation::BuryUnsaid, 0..100),
    (Mutation::BuryWithoutWait, 0..100),
    (Mutation::WaitForClientsOnly, 0..100),
    (Mutation::TombstoneGoesBack, 0..100),
    (Mutation::CompleteByClock, 50..110),
    (Mutation::CompleteInclusive, 50..140),
    (Mutation::ReachedTooEarly, 0..60),
    (Mutation::ConfirmBeforeSafe, 0..60),
    (Mutation::SendBeforeSafe, 40..110),
    (Mutation::ProgressApart, 0..5),
    (Mutation::TruncateFirst, 0..60),
    (Mutation::TruncationGoesBack, 0..10),
    (Mutation::TruncateAtOnce, 0..20),
    (Mutation::JoinUnlevelled, 0..30),
    (Mutation::JoinStampsNow, 40..150),
    (Mutation::JoinWithoutTombstones, 450..550),
    (Mutation::JoinWithoutTruncation, 2450..2500),
    (Mutation::JoinByAnyClock, 200..300),
    (Mutation::OpenAtOnce, 60..100),
    (Mutation::LeftIsSeen, 550..600),
    (Mutation::LeaveBeforeSafe, 650..750),
];

fn first_found(mutation: Mutation, seeds: Range<u64>) -> Option<u64> {
    let options = Options { mutation: Some(mutation), ..Options::default() };
    seeds.into_iter().find(|seed| run(*seed, options).violation.is_some())
}

#[test]
fn every_rule_that_is_switched_off_is_missed() {
    let missed: Vec<String> = std::thread::scope(|scope| {
        let look = |(mutation, seeds): Row| {
            scope.spawn(move || {
                let found = first_found(mutation, seeds.clone());
                found.is_none().then(|| format!("{mutation:?} within seeds {seeds:?}"))
            })
        };
        let threads = TABLE.map(look);
        threads.into_iter().filter_map(|thread| thread.join().expect("a run does not panic")).collect()
    });
    assert!(missed.is_empty(), "not found: {missed:?}");
}

#[test]
fn every_mutant_is_in_the_table() {
    assert!(MUTATIONS.iter().all(|mutation| TABLE.iter().any(|row| row.0 == *mutation)));
}
