//! Promises of the whole protocol, kept by every simulated cluster of every shape.
//!
//! A failure names the seed; `cargo sim -- SEED --size S --mode M` replays it with its trace.

use antiphon_sim::shape::{MODES, Mode, SIZES, Size};
use antiphon_sim::{Options, run};

/// Seeds of each size and mode. Many more are run by hand (`cargo sim -- --seeds`).
const SEEDS: u64 = 24;

fn check(mode: Mode) {
    for size in SIZES {
        for seed in 0..SEEDS {
            let outcome = run(seed, Options { size: Some(size), mode: Some(mode), ..Options::default() });
            assert_eq!(outcome.violation, None, "seed {seed} of {size:?} {mode:?}");
        }
    }
}

#[test]
fn asynchronous_clusters_have_one_primary_at_a_time_and_lose_no_more_than_agreed() {
    check(Mode::Asynchronous);
}

#[test]
fn first_k_clusters_lose_no_acknowledged_write_and_recover() {
    check(Mode::First);
}

#[test]
fn any_k_clusters_lose_no_acknowledged_write_and_recover() {
    check(Mode::Any);
}

#[test]
fn strict_clusters_lose_no_acknowledged_write_and_recover() {
    check(Mode::Strict);
}

#[test]
fn semi_synchronous_clusters_lose_no_acknowledged_write_and_recover() {
    check(Mode::SemiSync);
}

#[test]
fn a_seed_is_the_same_run_every_time() {
    for (seed, mode) in (100..).zip(MODES) {
        let options = Options { size: Some(Size::Five), mode: Some(mode), ..Options::default() };
        let (one, two) = (run(seed, options), run(seed, Options { verbose: true, ..options }));
        assert_eq!(
            (one.hash, one.events, one.simulated),
            (two.hash, two.events, two.simulated),
            "seed {seed}"
        );
        assert!(!two.trace.is_empty(), "seed {seed} left no trace");
    }
}

#[test]
fn clusters_elect_and_acknowledge_much() {
    let outcomes = (0..20).map(|seed| run(seed, Options::default()));
    let (acknowledged, elections) =
        outcomes.fold((0, 0), |sum, outcome| (sum.0 + outcome.acknowledged, sum.1 + outcome.elections));
    assert!(acknowledged > 10_000, "{acknowledged} commits prove little");
    assert!(elections > 10, "{elections} elections prove little");
}
