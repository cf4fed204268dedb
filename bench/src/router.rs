//! The cost of a router: CPU time a query, queries a second and their latency, beside its peers.
//!
//! A leader and its follower, pgbench, and one way from it to them at a time run on one host, whose loopback is the
//! network. In each round every way has its turn in every cell, one right after the other, so that a change in what
//! else the machine does meets all of them; figures are medians over the rounds. Each measurement starts its proxy
//! anew, and nothing of the one before is left at the servers when it begins.

mod cell;
mod idle;
mod pgbench;
mod report;
mod servers;
mod way;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Serialize;
use tokio::process::Command;
use tokio_postgres::Config;

use crate::Programs;
use crate::net::{Net, Node};
use crate::process::server_folder;
use crate::report::Log;

use cell::{Cell, Proof};
use pgbench::{Extent, Load};
use servers::Servers;
use way::{Kit, Running, Way};

/// Files that a process may have open: enough for all clients and for what they are led to.
const FILES: u64 = 16_384;

/// What `router` is asked to do.
#[derive(Args)]
pub(crate) struct Wanted {
    /// Rounds; in each, every way has its turn in every cell
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Ways from pgbench to the servers; their turns begin with another one in each round
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Way::ALL)]
    ways: Vec<Way>,
    /// What is asked of each way
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Cell::ALL)]
    cells: Vec<Cell>,
    /// For how long there is load, in each measurement; the servers need the first of it to let 100 clients in
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// The bin directory of a PgBouncer newer than the system's (scripts/servers.sh pgbouncer-newest)
    #[arg(long, value_parser = crate::from_here)]
    pgbouncer_newest: Option<PathBuf>,
    /// Where each measurement is appended as a line of JSON
    #[arg(long, default_value = "target/bench-router.jsonl")]
    out: PathBuf,
    #[command(flatten)]
    programs: Programs,
}

impl Wanted {
    /// Where measurements are written.
    pub(crate) fn out(&self) -> &Path {
        &self.out
    }

    /// The programs that are measured.
    pub(crate) fn programs(&self) -> &Programs {
        &self.programs
    }
}

/// The host that everything runs on.
struct Host {
    net: Net,
    folder: PathBuf,
    postgresql: PathBuf,
}

impl Host {
    /// One node's host; the others stay empty.
    const NODE: Node = Node::ALL[0];

    /// A command on the host, as the server user.
    fn command(&self, program: &Path) -> Command {
        self.net.command_on(Host::NODE, program)
    }

    /// A copy of a program of ours, which may lie where the server user cannot look.
    fn copy(&self, program: &Path, name: &str) -> anyhow::Result<PathBuf> {
        let copy = self.folder.join(name);
        std::fs::copy(program, &copy).with_context(|| format!("could not copy {}", program.display()))?;
        Ok(copy)
    }

    /// How this program itself connects to what listens there.
    fn config(port: u16, proof: Proof) -> Config {
        let mut config = Config::new();
        config.host(Host::NODE.address().to_string()).port(port).user(proof.user()).dbname("postgres");
        if let Some(password) = proof.password() {
            config.password(password);
        }
        config
    }
}

/// What one measurement showed.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(untagged)]
enum Measured {
    /// Of a load.
    Load {
        queries: u64,
        per_second: f64,
        /// CPU time of the proxy, which is the same as seconds a million queries; nothing where there is no proxy.
        cpu_us_per_query: Option<f64>,
        p50_ms: f64,
        p99_ms: f64,
    },
    /// Of clients that do nothing.
    Idle { kib_per_client: f64 },
}

/// Measures all that is wanted, prints the tables and the verdict.
pub(crate) async fn measure(wanted: &Wanted, net: &Net, folder: &Path) -> anyhow::Result<ExitCode> {
    raise_file_limit()?;
    server_folder(folder)?;
    let mut log = Log::open(&wanted.out)?;
    let host = Host {
        net: net.clone(),
        folder: folder.to_path_buf(),
        postgresql: wanted.programs.postgresql().to_path_buf(),
    };
    let antiphon = host.copy(&wanted.programs.antiphon()?, "antiphon")?;
    let servers = Servers::start(&host, &antiphon).await?;
    let mut kit = Kit::new(&host, wanted, antiphon, &servers).await?;
    eprintln!("{}", kit.versions());
    let mut ways: Vec<Way> = wanted.ways.iter().copied().filter(|way| kit.has(*way)).collect();
    let mut outcomes = Vec::new();
    for round in 1..=wanted.rounds {
        for cell in &wanted.cells {
            let able: Vec<Way> = ways.iter().copied().filter(|way| kit.can(*way, *cell)).collect();
            for way in able {
                let result = measure_one(&host, &mut kit, &servers, way, *cell, wanted.seconds).await;
                let outcome = report::Outcome::new(way, *cell, round, result);
                eprintln!("{outcome}");
                log.write(&outcome)?;
                outcomes.push(outcome);
            }
        }
        ways.rotate_left(1);
    }
    println!("{}\n{}", kit.versions(), report::tables(&outcomes));
    let verdict = report::judge(&outcomes, &wanted.cells, wanted.rounds);
    println!("{verdict}");
    Ok(ExitCode::from(verdict.code()))
}

/// Starts a way, puts a cell's load on it, and stops it.
async fn measure_one(
    host: &Host,
    kit: &mut Kit,
    servers: &Servers,
    way: Way,
    cell: Cell,
    seconds: u64,
) -> anyhow::Result<Measured> {
    servers.quiet().await?;
    let running = kit.start(host, way, cell.proof()).await?;
    let measured = match cell.load() {
        Some(load) => under_load(host, &running, &load, seconds).await,
        None => idle::idle(host, &running).await,
    };
    running.stop().await;
    measured
}

async fn under_load(host: &Host, running: &Running, load: &Load, seconds: u64) -> anyhow::Result<Measured> {
    pgbench::put(host, running.port(), load, Extent::WarmUp).await?;
    let before = running.cost();
    let report = pgbench::put(host, running.port(), load, Extent::Seconds(seconds)).await?;
    let after = running.cost();
    let queries = report.transactions * load.queries_each;
    let cpu = after.zip(before).map(|(after, before)| after.cpu_since(&before));
    Ok(Measured::Load {
        queries,
        per_second: report.per_second * load.queries_each as f64,
        cpu_us_per_query: cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / queries as f64),
        p50_ms: report.p50_ms,
        p99_ms: report.p99_ms,
    })
}

/// A thousand clients need as many open files in what they connect to, which inherits this limit.
fn raise_file_limit() -> anyhow::Result<()> {
    let (now, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = now.max(most.min(FILES));
    setrlimit(Resource::RLIMIT_NOFILE, wanted, most).context("could not raise the limit of open files")
}
