//! Load by pgbench, and what it reports: it is the client that a user would measure with, and asks alike of all.
//!
//! It runs on the servers' host with two threads. As libpq does by default, it asks for TLS, which nobody here has,
//! and goes on without. Latencies come from its log of a sample of the transactions; they begin when the connection
//! is there. An error of any client makes the measurement fail.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};

use super::Host;
use super::cell::Proof;
use crate::process::{run, server_folder};

/// pgbench ends by itself; it is given this much longer.
const GRACE: Duration = Duration::from_secs(30);
/// Threads of pgbench.
const THREADS: u32 = 2;
/// The part of the transactions whose times are written down.
const SAMPLED: f64 = 0.2;
/// Rows that the accounts of pgbench's first scale have.
pub(super) const ACCOUNTS: u32 = 100_000;
/// Transactions of each client before a measurement begins.
const WARM_UP: u32 = 50;

/// How statements are sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    Simple,
    Extended,
    Prepared,
}

/// What clients do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Script {
    /// Reads a row by its key, as pgbench's own `select-only`.
    Row,
    /// Does so ten times in a pipeline.
    Pipeline,
    /// Reads all rows of the table of 1,000.
    Rows,
}

impl Script {
    /// Queries in a pipeline.
    pub(super) const PIPELINED: u64 = 10;
    /// The query of [`Script::Rows`].
    const ROWS: &'static str = "SELECT number, filler FROM thousand;\n";
    const ROW: &'static str = "SELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n";

    fn text(self) -> String {
        let draw = format!("\\set aid random(1, {ACCOUNTS})\n");
        match self {
            Script::Row => draw + Script::ROW,
            Script::Pipeline => {
                let queries = Script::ROW.repeat(usize::try_from(Script::PIPELINED).unwrap_or_default());
                format!("{draw}\\startpipeline\n{queries}\\endpipeline\n")
            }
            Script::Rows => Script::ROWS.to_string(),
        }
    }
}

/// What is asked, by how many clients, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) mode: Mode,
    pub(super) clients: u32,
    pub(super) script: Script,
    /// Each transaction has a connection of its own.
    pub(super) reconnects: bool,
    /// Queries of a transaction.
    pub(super) queries_each: u64,
    pub(super) proof: Proof,
}

/// How much of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Extent {
    /// A few transactions, so that connections are open and texts known.
    WarmUp,
    /// So many seconds.
    Seconds(u64),
}

/// What pgbench reports.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Report {
    /// Transactions that were carried out.
    pub(super) transactions: u64,
    /// Transactions a second.
    pub(super) per_second: f64,
    /// Median time of a transaction, in milliseconds.
    pub(super) p50_ms: f64,
    /// 99 of 100 transactions took at most this many milliseconds.
    pub(super) p99_ms: f64,
}

/// Puts load on what listens at this port of the host.
///
/// # Errors
/// When pgbench cannot be run, or a client of it saw an error.
pub(super) async fn put(host: &Host, port: u16, load: &Load, extent: Extent) -> anyhow::Result<Report> {
    let folder = host.folder.join("pgbench");
    server_folder(&folder)?;
    let script = folder.join("script.sql");
    std::fs::write(&script, load.script.text())?;
    let mut command = host.command(&host.postgresql.join("pgbench"));
    // Whether there are Kerberos tickets would be looked up for each connection.
    command.env("PGGSSENCMODE", "disable");
    if let Some(password) = load.proof.password() {
        command.env("PGPASSWORD", password);
    }
    command.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-U", load.proof.user(), "-n"]);
    let mode = match load.mode {
        Mode::Simple => "simple",
        Mode::Extended => "extended",
        Mode::Prepared => "prepared",
    };
    command.args(["-M", mode, "-c", &load.clients.to_string(), "-j", &THREADS.to_string()]);
    command.arg("-f").arg(&script);
    if load.reconnects {
        command.arg("-C");
    }
    let limit = match extent {
        Extent::WarmUp => {
            command.args(["-t", &WARM_UP.to_string()]);
            GRACE
        }
        Extent::Seconds(seconds) => {
            command.args(["-T", &seconds.to_string(), "--log", &format!("--sampling-rate={SAMPLED}")]);
            command.arg(format!("--log-prefix={}", folder.join("log").display()));
            GRACE + Duration::from_secs(seconds)
        }
    };
    command.arg("postgres");
    let said = run(command, limit).await.context("pgbench");
    let times = times(&folder);
    // Whatever it said, the next run begins without logs.
    std::fs::remove_dir_all(&folder).context("could not remove the logs of pgbench")?;
    parse(&said?, &times?)
}

/// The times of all transactions in the logs, in milliseconds, in order.
fn times(folder: &Path) -> anyhow::Result<Vec<f64>> {
    let mut times = Vec::new();
    for entry in std::fs::read_dir(folder)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("log.") {
            let text = std::fs::read_to_string(entry.path())?;
            times.extend(text.lines().filter_map(time));
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// The time in a line of the log: client, number, microseconds, script, and when.
fn time(line: &str) -> Option<f64> {
    let micros: u64 = line.split(' ').nth(2)?.parse().ok()?;
    Some(micros as f64 / 1000.0)
}

fn parse(said: &str, times: &[f64]) -> anyhow::Result<Report> {
    let after = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let failed = after("number of failed transactions:").and_then(|text| text.split(' ').next());
    if failed.is_some_and(|failed| failed != "0") {
        bail!("pgbench saw errors: {}", said.trim());
    }
    let transactions = after("number of transactions actually processed:");
    let transactions = transactions.and_then(|text| text.split('/').next()?.trim().parse().ok());
    let per_second = after("tps =").and_then(|text| text.split(' ').next()?.parse().ok());
    let (Some(transactions @ 1..), Some(per_second)) = (transactions, per_second) else {
        bail!("pgbench reported nothing that can be read: {}", said.trim());
    };
    let percentile = |part: usize| times.get(times.len() * part / 100).copied().unwrap_or(f64::NAN);
    Ok(Report { transactions, per_second, p50_ms: percentile(50), p99_ms: percentile(99) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "pgbench (15.20)\ntransaction type: script.sql\nscaling factor: 1\nquery mode: simple\n\
        number of clients: 8\nduration: 5 s\nnumber of transactions actually processed: 126000\n\
        number of failed transactions: 0 (0.000%)\nlatency average = 0.317 ms\n\
        initial connection time = 9.020 ms\ntps = 25217.613203 (without initial connection time)\n";

    #[test]
    fn a_report_is_read() {
        let times: Vec<f64> = (0..200).map(f64::from).collect();
        let report = parse(SAID, &times).unwrap();
        let expected =
            Report { transactions: 126_000, per_second: 25_217.613_203, p50_ms: 100.0, p99_ms: 198.0 };
        assert_eq!(report, expected);
        let counted = SAID.replace("126000", "400/400");
        assert_eq!(parse(&counted, &times).unwrap().transactions, 400);
        assert_eq!(time("3 17 512 0 1700000000 5"), Some(0.512));
    }

    #[test]
    fn errors_and_silence_are_no_speed() {
        assert!(parse(&SAID.replace("transactions: 0", "transactions: 3"), &[]).is_err());
        assert!(parse(&SAID.replace("126000", "0"), &[]).is_err());
        assert!(parse("", &[]).is_err());
    }

    #[test]
    fn a_pipeline_has_as_many_queries_as_are_counted() {
        let text = Script::Pipeline.text();
        assert_eq!(text.matches("SELECT").count() as u64, Script::PIPELINED);
        assert!(text.contains("\\startpipeline") && text.ends_with("\\endpipeline\n"));
    }
}
