//! `sim`: replays a seed with its trace, or runs many and says how fast.
//!
//! A seed that fails is replayed once more with text, and the trace is written to a file that is named.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use antiphon_sim::clock::SEC;
use antiphon_sim::mutation::{MUTATIONS, Mutation};
use antiphon_sim::shape::{MODES, Mode, SIZES, Size};
use antiphon_sim::{Options, mesh, run};

const USAGE: &str = "sim SEED [--size S] [--mode M] [--mutation X]\n\
    sim --seeds A..B [--seconds N] [--keep-going] [--size S] [--mode M] [--mutation X]\n\
    sim mesh ... for several leaders\n\
    sizes: two-and-witness three five; modes: asynchronous first any strict semi-sync";

struct Arguments {
    seeds: std::ops::Range<u64>,
    replay: bool,
    seconds: Option<u64>,
    keep_going: bool,
    options: Options,
}

fn parse() -> Option<Arguments> {
    let mut found = Arguments {
        seeds: 0..0,
        replay: false,
        seconds: None,
        keep_going: false,
        options: Options::default(),
    };
    // `cargo sim -- SEED` passes the dashes on.
    let mut words = std::env::args().skip(1).filter(|word| word != "--");
    while let Some(word) = words.next() {
        match word.as_str() {
            "--seeds" => {
                let range = words.next()?;
                let (from, to) = range.split_once("..")?;
                found.seeds = from.parse().ok()?..to.parse().ok()?;
            }
            "--seconds" => found.seconds = Some(words.next()?.parse().ok()?),
            "--keep-going" => found.keep_going = true,
            "--size" => found.options.size = Some(size(&words.next()?)?),
            "--mode" => found.options.mode = Some(mode(&words.next()?)?),
            "--mutation" => found.options.mutation = Some(mutation(&words.next()?)?),
            seed => {
                let seed = seed.parse().ok()?;
                (found.seeds, found.replay) = (seed..seed + 1, true);
            }
        }
    }
    (!found.seeds.is_empty()).then_some(found)
}

fn plain(text: &str) -> String {
    text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

fn size(word: &str) -> Option<Size> {
    SIZES.into_iter().find(|size| plain(&format!("{size:?}")) == plain(word))
}

fn mode(word: &str) -> Option<Mode> {
    MODES.into_iter().find(|mode| plain(&format!("{mode:?}")) == plain(word))
}

fn mutation(word: &str) -> Option<Mutation> {
    MUTATIONS.into_iter().find(|mutation| plain(&format!("{mutation:?}")) == plain(word))
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1).filter(|word| word != "--").peekable();
    if words.next_if(|word| word == "mesh").is_some() {
        return mesh::command::main(words);
    }
    let Some(arguments) = parse() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if arguments.replay {
        let outcome = run(arguments.seeds.start, Options { verbose: true, ..arguments.options });
        print!("{}", outcome.trace);
        println!("{:?}, hash {:016x}, {} events", outcome.violation, outcome.hash, outcome.events);
        return if outcome.violation.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    many(&arguments)
}

fn many(arguments: &Arguments) -> ExitCode {
    let begun = Instant::now();
    let (mut seeds, mut failures, mut simulated, mut events) = (0_u64, 0_u64, 0_u64, 0_u64);
    let (mut acknowledged, mut lost, mut elections, mut human) = (0_u64, 0_u64, 0_u64, 0_u64);
    for seed in arguments.seeds.clone() {
        if arguments.seconds.is_some_and(|limit| begun.elapsed() >= Duration::from_secs(limit)) {
            break;
        }
        let outcome = run(seed, arguments.options);
        seeds += 1;
        simulated += outcome.simulated;
        events += outcome.events;
        acknowledged += outcome.acknowledged;
        lost += outcome.lost;
        elections += outcome.elections;
        human += u64::from(outcome.needs_human);
        if let Some(violation) = outcome.violation {
            failures += 1;
            println!("seed {seed}: {violation}");
            if !arguments.keep_going {
                let again = run(seed, Options { verbose: true, ..arguments.options });
                let path = std::env::temp_dir().join(format!("antiphon-sim-{seed}.trace"));
                match std::fs::write(&path, again.trace) {
                    Ok(()) => println!("the trace is in {}", path.display()),
                    Err(error) => eprintln!("could not write the trace to {}: {error}", path.display()),
                }
                break;
            }
        }
    }
    let wall = begun.elapsed().as_secs_f64();
    let clusters = simulated as f64 / SEC as f64;
    println!(
        "{seeds} seeds, {failures} failed, {human} waited for an operator; {:.1} seeds/s, {:.0} cluster-seconds/s, \
         {:.0} events/s; {acknowledged} commits acknowledged, {lost} lost where accepted, {elections} elections",
        seeds as f64 / wall,
        clusters / wall,
        events as f64 / wall
    );
    if failures > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
