//! Every safety rule is needed: with any one of them switched off, the simulation finds what breaks.
//!
//! A mutant that is not found within its number of seeds means that the model or the nemesis has become too
//! gentle. The table is printed in `docs/reference/simulation.md`.

use std::ops::Range;

use antiphon_sim::mutation::{MUTATIONS, Mutation};
use antiphon_sim::shape::{Mode, Size};
use antiphon_sim::{Options, run};

/// Mutant, size and mode to look in (drawn by seed if none), seeds within which it is found.
type Row = (Mutation, Option<Size>, Option<Mode>, Range<u64>);

const TABLE: [Row; 16] = [
    (Mutation::ReportBeforeFence, None, None, 0..40),
    (Mutation::OneReportIsEnough, None, None, 0..400),
    (Mutation::PromiseBeforeNames, None, None, 0..20),
    (Mutation::SkipProve, None, None, 0..700),
    (Mutation::DropBase, None, None, 0..800),
    (Mutation::IgnoreLeaseEnd, None, None, 0..40),
    (Mutation::FenceNotDurable, None, None, 0..600),
    (Mutation::PositionTooEarly, None, Some(Mode::Any), 1050..1150),
    (Mutation::StartHalfBuilt, None, None, 0..800),
    (Mutation::TimelineLastPlusOne, None, None, 0..600),
    (Mutation::FollowWithoutForkCheck, None, None, 0..20),
    (Mutation::ReleaseBeforeOrphansGone, None, Some(Mode::Asynchronous), 0..100),
    (Mutation::OneDeafMemberOpens, None, None, 0..20),
    (Mutation::LeaseFromAnswer, None, Some(Mode::Asynchronous), 1550..1650),
    (Mutation::AloneIgnored, None, None, 0..500),
    (Mutation::NamesUnsettled, Some(Size::TwoAndWitness), Some(Mode::Any), 0..600),
];

fn first_found(mutation: Mutation, size: Option<Size>, mode: Option<Mode>, seeds: Range<u64>) -> Option<u64> {
    let options = Options { size, mode, mutation: Some(mutation), verbose: false };
    seeds.into_iter().find(|seed| run(*seed, options).violation.is_some())
}

#[test]
fn every_rule_that_is_switched_off_is_missed() {
    let missed: Vec<String> = std::thread::scope(|scope| {
        let look = |(mutation, size, mode, seeds): Row| {
            scope.spawn(move || {
                let found = first_found(mutation, size, mode, seeds.clone());
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
