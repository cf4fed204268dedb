//! Load on an HTTP API, put there by wrk, and what it reports.
//!
//! An answer that is not 2xx makes the whole measurement fail: refusals would be counted as speed.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Serialize;
use tokio::process::Command;

use crate::process::run;

const CONNECTIONS: u32 = 8;
/// wrk ends by itself; it is given this much longer.
const GRACE: Duration = Duration::from_secs(15);

/// What a client does after an answer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    /// It asks for the connection to be closed, and opens another.
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

/// What wrk reports.
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
    /// Connections that failed, and requests that were not answered within 2 s.
    pub(crate) errors: u64,
}

/// Asks `url` as often as one thread with 8 connections can.
///
/// # Errors
/// When wrk cannot be run, or when an answer was no 2xx.
pub(crate) async fn load(url: &str, mode: Mode, span: Duration) -> anyhow::Result<Report> {
    let mut command = Command::new(Path::new("wrk"));
    command.args(["--threads", "1", "--connections", &CONNECTIONS.to_string(), "--latency"]);
    command.args(["--duration", &format!("{}s", span.as_secs())]);
    if mode == Mode::Close {
        command.args(["--header", "Connection: close"]);
    }
    command.arg(url);
    let said = run(command, span + GRACE).await.context("no load (scripts/servers.sh wrk)")?;
    parse(&said).with_context(|| format!("{url}: {}", said.trim()))
}

fn parse(said: &str) -> anyhow::Result<Report> {
    let after = |name: &str| said.lines().find_map(|line| line.trim().strip_prefix(name)).map(str::trim);
    if let Some(refused) = after("Non-2xx or 3xx responses:") {
        bail!("{refused} answers were refusals");
    }
    let requests = said.lines().find_map(|line| line.trim().split_once(" requests in "));
    let requests: Option<u64> = requests.and_then(|(count, _)| count.parse().ok());
    let per_second: Option<f64> = after("Requests/sec:").and_then(|rate| rate.parse().ok());
    let errors = after("Socket errors:").unwrap_or_default();
    let errors = errors.split([' ', ',']).filter_map(|word| word.parse::<u64>().ok()).sum();
    match (requests, per_second, after("50%").and_then(millis), after("99%").and_then(millis)) {
        (Some(requests @ 1..), Some(per_second), Some(p50_ms), Some(p99_ms)) => {
            Ok(Report { requests, per_second, p50_ms, p99_ms, errors })
        }
        _ => bail!("wrk reported nothing that can be read"),
    }
}

/// wrk writes `713.00us`, `1.20ms` or `2.05s`.
fn millis(text: &str) -> Option<f64> {
    let units = [("us", 0.001), ("ms", 1.0), ("s", 1000.0), ("m", 60_000.0)];
    units.iter().find_map(|(unit, factor)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "Running 10s test @ http://10.77.0.11:8008/primary\n  1 threads and 8 connections\n  \
        Thread Stats   Avg      Stdev     Max   +/- Stdev\n    Latency   713.00us    1.31ms  42.10ms   96.22%\n  \
        Latency Distribution\n     50%  480.00us\n     75%  650.00us\n     90%    1.10ms\n     99%    2.05s \n  \
        123456 requests in 10.01s, 60.10MB read\nRequests/sec:  12333.27\nTransfer/sec:      6.00MB\n";

    #[test]
    fn a_report_is_read() {
        let report = parse(SAID).unwrap();
        let expected =
            Report { requests: 123_456, per_second: 12_333.27, p50_ms: 0.48, p99_ms: 2050.0, errors: 0 };
        assert_eq!(report, expected);
        let troubled = format!("{SAID}  Socket errors: connect 0, read 7, write 1, timeout 2\n");
        assert_eq!(parse(&troubled).unwrap().errors, 10);
    }

    #[test]
    fn refusals_and_silence_are_no_speed() {
        assert!(parse(&format!("{SAID}  Non-2xx or 3xx responses: 5\n")).is_err());
        assert!(parse(&SAID.replace("123456 requests", "0 requests")).is_err());
        assert!(parse("").is_err());
    }
}
