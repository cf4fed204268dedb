//! Promises of several leaders, kept by every simulated mesh.
//!
//! A failure names the seed; `cargo sim mesh SEED --nodes N` replays it with its trace.

use antiphon_sim::mesh::{Counts, Options, run};

/// Seeds of each size. Many more are run by hand (`cargo sim mesh --seeds`).
const SEEDS: u64 = 80;

fn check(nodes: usize) -> Counts {
    let mut counts = Counts::default();
    for seed in 0..SEEDS {
        let outcome = run(seed, Options { nodes: Some(nodes), ..Options::default() });
        assert_eq!(outcome.violation, None, "seed {seed} of {nodes} nodes");
        counts.add(&outcome.counts);
    }
    assert!(counts.applied > 10_000 && counts.fast > 1_000, "{counts:?} proves little");
    assert!(counts.conflicts > 1_000 && counts.collected > 100, "{counts:?} proves little");
    assert!(counts.crashes > 5 && counts.joined > 1, "{counts:?} proves little");
    counts
}

#[test]
fn two_nodes_end_with_the_same_rows() {
    check(2);
}

#[test]
fn three_nodes_end_with_the_same_rows() {
    assert!(check(3).left > 1);
}

#[test]
fn four_nodes_end_with_the_same_rows() {
    assert!(check(4).left > 1);
}

#[test]
fn five_nodes_end_with_the_same_rows() {
    assert!(check(5).left > 1);
}

#[test]
fn a_seed_is_the_same_run_every_time() {
    for seed in 100..105 {
        let one = run(seed, Options::default());
        let two = run(seed, Options { verbose: true, ..Options::default() });
        assert_eq!((one.hash, one.simulated), (two.hash, two.simulated), "seed {seed}");
        assert!(!two.trace.is_empty(), "seed {seed} left no trace");
    }
}
