//! The binary: what was typed, handed to the library.

use std::process::ExitCode;

use antiphon::agent::guard;
use antiphon::cli::{self, Cli, Command};
use antiphon::{demo, node};
use clap::Parser;

fn main() -> ExitCode {
    let Cli { target, command } = Cli::parse();
    match command {
        Command::Run(args) => node::run(&args.file),
        Command::Demo(args) => demo::run(&demo::Options {
            subject: args.subject,
            once: args.once,
            dir: args.dir,
            bin_dir: args.bin_dir,
        }),
        Command::Guard(args) => match guard::stand(&args.socket, &args.data_dir, args.deadline) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("antiphon guard: could not stand guard over {}: {error}", args.data_dir.display());
                ExitCode::FAILURE
            }
        },
        Command::Client(command) => cli::run(&target, command),
    }
}
