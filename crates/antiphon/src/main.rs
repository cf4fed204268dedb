//! The binary: a thin shell around the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("run") => antiphon::node::run(std::path::Path::new(&args[2])),
        Some("guard") => {
            antiphon::agent::guard::stand(std::path::Path::new(&args[3]), std::path::Path::new(&args[5]), args[7].parse().unwrap()).unwrap();
            ExitCode::SUCCESS
        }
        _ => antiphon::demo::run(&antiphon::demo::Options { once: args.contains(&"--once".to_owned()), ..Default::default() }),
    }
}
