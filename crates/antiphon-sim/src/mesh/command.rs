//! `sim mesh`: replays a seed with its trace, or runs many and says how fast.

use std::process::ExitCode;
use std::time::Instant;

use super::mutation::{MUTATIONS, Mutation};
use super::{Counts, Options, run};

const USAGE: &str = "sim mesh SEED [--nodes N] [--mutation X]\n\
    sim mesh --seeds A..B [--threads N] [--keep-going] [--nodes N] [--mutation X]";

struct Arguments {
    seeds: std::ops::Range<u64>,
    replay: bool,
    threads: u64,
    keep_going: bool,
    options: Options,
}

fn parse(mut words: impl Iterator<Item = String>) -> Option<Arguments> {
    let mut found =
        Arguments { seeds: 0..0, replay: false, threads: 1, keep_going: false, options: Options::default() };
    while let Some(word) = words.next() {
        match word.as_str() {
            "--seeds" => {
                let range = words.next()?;
                let (from, to) = range.split_once("..")?;
                found.seeds = from.parse().ok()?..to.parse().ok()?;
            }
            "--threads" => found.threads = words.next()?.parse().ok().filter(|threads| *threads > 0)?,
            "--keep-going" => found.keep_going = true,
            "--nodes" => found.options.nodes = Some(words.next()?.parse().ok()?),
            "--mutation" => found.options.mutation = Some(mutation(&words.next()?)?),
            seed => {
                let seed = seed.parse().ok()?;
                (found.seeds, found.replay) = (seed..seed + 1, true);
            }
        }
    }
    (!found.seeds.is_empty() && found.options.nodes.is_none_or(|nodes| (2..=5).contains(&nodes)))
        .then_some(found)
}

fn mutation(word: &str) -> Option<Mutation> {
    let plain = |text: &str| {
        text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect::<String>()
    };
    MUTATIONS.into_iter().find(|mutation| plain(&format!("{mutation:?}")) == plain(word))
}

/// Runs the command with what follows its name.
pub fn main(words: impl Iterator<Item = String>) -> ExitCode {
    let Some(arguments) = parse(words) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if arguments.replay {
        let outcome = run(arguments.seeds.start, Options { verbose: true, ..arguments.options });
        print!("{}", outcome.trace);
        println!("{:?}, hash {:016x}, {:?}", outcome.violation, outcome.hash, outcome.counts);
        return if outcome.violation.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    many(&arguments)
}

/// What some seeds came to.
#[derive(Default)]
struct Sum {
    seeds: u64,
    failures: Vec<(u64, String)>,
    counts: Counts,
}

fn some(arguments: &Arguments, first: u64) -> Sum {
    let mut sum = Sum::default();
    let mut seed = arguments.seeds.start + first;
    while seed < arguments.seeds.end && (arguments.keep_going || sum.failures.is_empty()) {
        let outcome = run(seed, arguments.options);
        sum.seeds += 1;
        sum.counts.add(&outcome.counts);
        if let Some(violation) = outcome.violation {
            println!("seed {seed}: {violation}");
            sum.failures.push((seed, violation));
        }
        seed += arguments.threads;
    }
    sum
}

fn many(arguments: &Arguments) -> ExitCode {
    let begun = Instant::now();
    let sums: Vec<Sum> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..arguments.threads).map(|first| scope.spawn(move || some(arguments, first))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a run does not panic")).collect()
    });
    let mut all = Sum::default();
    for sum in sums {
        all.seeds += sum.seeds;
        all.failures.extend(sum.failures);
        all.counts.add(&sum.counts);
    }
    let wall = begun.elapsed().as_secs_f64();
    let counts = all.counts;
    println!(
        "{} seeds, {} failed; {:.0} seeds/s, {:.0} events/s; {} transactions written, {} applied, {} of them the fast \
         way; {} conflicts, {} of them needless; {} tombstones collected, {} crashes, {} joined, {} left",
        all.seeds,
        all.failures.len(),
        all.seeds as f64 / wall,
        counts.events as f64 / wall,
        counts.written,
        counts.applied,
        counts.fast,
        counts.conflicts,
        counts.needless,
        counts.collected,
        counts.crashes,
        counts.joined,
        counts.left,
    );
    if all.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
