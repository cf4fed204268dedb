//! The cost of an agent: what it takes while nothing happens, and how fast its API answers `GET /primary`.
//!
//! A run starts a cluster from nothing, lets it rest, and puts load on its leader's API from the client's host.
//! Runs of the systems take turns, so that a change in what else the machine does meets all of them.

mod report;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::Programs;
use crate::cost::{self, Cost, Owner, Usage};
use crate::events::{stop, whole};
use crate::load::{self, Mode};
use crate::net::{Net, Node};
use crate::report::Log;
use crate::systems::{self, Choice, Proxy, REST_PORT, System};

/// A cluster that has just become whole still has work to do for a while.
const SETTLE: Duration = Duration::from_secs(15);

/// What `agent` is asked to do.
#[derive(Args)]
pub(crate) struct Wanted {
    /// Runs of each system
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// Which systems; their runs take turns
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["patroni", "antiphon"])]
    systems: Vec<Choice>,
    /// For how long an idle cluster is looked at
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    idle_seconds: u64,
    /// For how long there is load on the API, in each of two modes
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    load_seconds: u64,
    /// Where each run is appended as a line of JSON
    #[arg(long, default_value = "target/bench-agent.jsonl")]
    out: PathBuf,
    #[command(flatten)]
    programs: Programs,
}

impl Wanted {
    /// Where runs are written.
    pub(crate) fn out(&self) -> &Path {
        &self.out
    }

    /// The programs that are measured.
    pub(crate) fn programs(&self) -> &Programs {
        &self.programs
    }
}

/// What one run showed.
#[derive(Serialize)]
struct Measured {
    /// What else the machine had to do: its load average when the idle time began.
    machine_load: f64,
    idle: Vec<Idle>,
    rates: Vec<Rate>,
    /// Memory of the leader's agent after the load, in units of 1,000,000 bytes.
    rss_mb_after_load: Option<f64>,
}

/// What one node used while idle.
#[derive(Serialize)]
struct Idle {
    node: String,
    agent: Option<Usage>,
    store: Option<Usage>,
}

/// What the leader's API did under load.
#[derive(Serialize)]
struct Rate {
    mode: Mode,
    per_second: f64,
    cpu_us_per_request: f64,
    p50_ms: f64,
    p99_ms: f64,
    errors: u64,
}

/// Runs all that is wanted, prints the tables and the verdict.
pub(crate) async fn measure(wanted: &Wanted, net: &Net, folder: &Path) -> anyhow::Result<ExitCode> {
    let mut log = Log::open(&wanted.out)?;
    let mut outcomes = Vec::new();
    for run in 1..=wanted.runs {
        for choice in &wanted.systems {
            let folder = folder.join(format!("{}-{run}", choice.name()));
            let mut system = systems::make(*choice, &wanted.programs, net, &folder, Proxy::Without)?;
            let result = run_once(system.as_mut(), net, wanted).await;
            stop(system.as_mut(), net).await;
            let outcome = report::Outcome::new(choice.name(), run, result);
            eprintln!("{outcome}");
            log.write(&outcome)?;
            outcomes.push(outcome);
        }
    }
    print!("{}", report::tables(&outcomes));
    let verdict = report::judge(&outcomes, wanted.runs);
    println!("{verdict}");
    Ok(ExitCode::from(verdict.code()))
}

async fn run_once(system: &mut dyn System, net: &Net, wanted: &Wanted) -> anyhow::Result<Measured> {
    eprintln!("starting {} ...", system.name());
    system.start().await?;
    let leader = whole(system).await?;
    sleep(SETTLE).await;
    let machine_load = cost::machine_load();
    let idle = idle(net, Duration::from_secs(wanted.idle_seconds)).await?;
    anyhow::ensure!(whole(system).await? == leader, "the leader changed while nothing happened");
    let mut rates = Vec::new();
    for mode in [Mode::Close, Mode::Keep] {
        rates.push(rate(net, leader, mode, Duration::from_secs(wanted.load_seconds)).await?);
    }
    let after = cost::look(&net.pids(leader).await?, Owner::Agent);
    let rss_mb_after_load = after.since(&Cost::default(), Duration::from_secs(1)).map(|usage| usage.rss_mb);
    Ok(Measured { machine_load, idle, rates, rss_mb_after_load })
}

/// What every node uses while nothing is asked of the cluster.
async fn idle(net: &Net, span: Duration) -> anyhow::Result<Vec<Idle>> {
    let mut before = Vec::new();
    for node in Node::ALL {
        before.push((node, look(net, node).await?, Instant::now()));
    }
    sleep(span).await;
    let mut idle = Vec::new();
    for (node, (agent, store), at) in before {
        let (agent_now, store_now) = look(net, node).await?;
        let agent = agent_now.since(&agent, at.elapsed());
        let store = store_now.since(&store, at.elapsed());
        idle.push(Idle { node: node.to_string(), agent, store });
    }
    Ok(idle)
}

async fn look(net: &Net, node: Node) -> anyhow::Result<(Cost, Cost)> {
    let pids = net.pids(node).await?;
    Ok((cost::look(&pids, Owner::Agent), cost::look(&pids, Owner::Store)))
}

async fn rate(net: &Net, leader: Node, mode: Mode, span: Duration) -> anyhow::Result<Rate> {
    let url = format!("http://{}:{REST_PORT}/primary", leader.address());
    let pids = net.pids(leader).await?;
    let before = cost::look(&pids, Owner::Agent);
    let report = load::load(&url, mode, span).await?;
    let cpu = cost::look(&pids, Owner::Agent).cpu_since(&before);
    Ok(Rate {
        mode,
        per_second: report.per_second,
        cpu_us_per_request: cpu.as_secs_f64() * 1e6 / report.requests as f64,
        p50_ms: report.p50_ms,
        p99_ms: report.p99_ms,
        errors: report.errors,
    })
}
