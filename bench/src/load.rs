//! Load on an HTTP API, put there by ab (ApacheBench), and what it reports.
//!
//! An answer that is not 2xx makes the whole measurement fail: refusals would be counted as speed. It is not wrk,
//! because that one opens a second connection, and drops it, for every answer that ends with its connection, as
//! each of Patroni's does; Patroni would be given twice the work and show half of its speed.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Serialize;
use tokio::process::Command;

use crate::process::run;

const CONNECTIONS: u32 = 8;
/// ab ends by itself; it is given this much longer.
const GRACE: Duration = Duration::from_secs(15);
/// ab reserves memory for its last request beforehand; this is more than it can send.
const REQUESTS_PER_SECOND_MAX: u64 = 100_000;

/// What a client does after an answer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    /// It has the connection closed, and opens another.
    Close,
    /// It asks again on the same connection, if the server keeps it.
    Keep,
}

impl Mode {
    /// The mode in words, for tables.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Mode::Close => "a connection a request",
            Mode::Keep => "connections kept",
        }
    }
}

/// What ab reports.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Report {
    /// Requests that were answered.
    pub(crate) requests: u64,
    /// Requests a second.
    pub(crate) per_second: f64,
    /// Median time to an answer, in milliseconds.
    pub(crate) p50_ms: f64,
    /// 99 of 100 answers took at most this many milliseconds.
    pub(crate) p99_ms: f64,
    /// Requests that failed.
    pub(crate) errors: u64,
}

/// Asks `url` as often as one thread with 8 connections can.
///
/// # Errors
/// When ab cannot be run, or when an answer was no 2xx.
pub(crate) async fn load(url: &str, mode: Mode, span: Duration) -> anyhow::Result<Report> {
    let most = REQUESTS_PER_SECOND_MAX * span.as_secs();
    let mut command = Command::new(Path::new("ab"));
    command.args(["-q", "-c", &CONNECTIONS.to_string(), "-t", &span.as_secs().to_string()]);
    // Answers may differ in length; the distribution of times is wanted as numbers.
    command.args(["-n", &most.to_string(), "-l", "-e", "/dev/stdout"]);
    if mode == Mode::Keep {
        command.arg("-k");
    }
    command.arg(url);
    let said = run(command, span + GRACE).await.context("no load (scripts/servers.sh ab)")?;
    parse(&said).with_context(|| format!("{url}: {}", said.trim()))
}

fn parse(said: &str) -> anyhow::Result<Report> {
    let after = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    if let Some(refused) = after("Non-2xx responses:") {
        bail!("{refused} answers were refusals");
    }
    let number = |name: &str| after(name)?.split_whitespace().next()?.parse::<f64>().ok();
    let requests: Option<u64> = after("Complete requests:").and_then(|count| count.parse().ok());
    let errors: Option<u64> = after("Failed requests:").and_then(|count| count.parse().ok());
    let rate = number("Requests per second:");
    match (requests, rate, number("50,"), number("99,"), errors) {
        (Some(requests @ 1..), Some(per_second), Some(p50_ms), Some(p99_ms), Some(errors)) => {
            Ok(Report { requests, per_second, p50_ms, p99_ms, errors })
        }
        _ => bail!("ab reported nothing that can be read"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "Percentage served,Time in ms\n0,0.171\n1,0.211\n50,0.480\n98,1.9\n99,2.050\n\
        Concurrency Level:      8\nTime taken for tests:   10.001 seconds\nComplete requests:      123456\n\
        Failed requests:        0\nTotal transferred:      1029384 bytes\n\
        Requests per second:    12333.27 [#/sec] (mean)\nTime per request:       0.649 [ms] (mean)\n";

    #[test]
    fn a_report_is_read() {
        let report = parse(SAID).unwrap();
        let expected =
            Report { requests: 123_456, per_second: 12_333.27, p50_ms: 0.48, p99_ms: 2.05, errors: 0 };
        assert_eq!(report, expected);
        let troubled = SAID.replace("requests:        0", "requests:        7\n   (Connect: 0, Receive: 7)");
        assert_eq!(parse(&troubled).unwrap().errors, 7);
    }

    #[test]
    fn refusals_and_silence_are_no_speed() {
        assert!(parse(&format!("{SAID}Non-2xx responses:      5\n")).is_err());
        assert!(parse(&SAID.replace("123456", "0")).is_err());
        assert!(parse("").is_err());
    }
}
