//! `antiphon-bench`: Antiphon beside its peers, on the same machine, in one run.
//!
//! `failover` asks how long writes stop when a leader fails, and whether acknowledged writes are lost; `agent`
//! asks what the agent costs and how fast its API answers; `router` asks what a query costs on its way through a
//! proxy. For these each node is a network namespace on one bridge, the client another; the program starts itself
//! once more inside the client's namespace, so that it reaches the nodes only over that bridge. It needs root, touches
//! no other network and no PostgreSQL but its own, and takes everything down again at the end. `mesh` asks how fast
//! changes go from one leader to another; its servers are on this host, and it needs none of that.

mod agent;
mod client;
mod cost;
mod events;
mod load;
mod mesh;
mod net;
mod process;
mod relay;
mod report;
mod router;
mod systems;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use events::Event;
use net::Net;
use systems::{Choice, Proxy};

/// Antiphon beside its peers, in one run.
#[derive(Parser)]
#[command(name = "antiphon-bench", version)]
struct Cli {
    #[command(subcommand)]
    order: Order,
}

#[derive(Subcommand)]
enum Order {
    #[command(flatten)]
    Question(Question),
    /// How fast do changes go from one leader to another, and at what cost?
    Mesh(mesh::Wanted),
    /// Copies bytes between connections; `router` starts it as the floor of what a proxy costs.
    #[command(hide = true)]
    Relay(relay::Wanted),
}

#[derive(Subcommand)]
enum Question {
    /// How long do writes stop when a leader fails, and is an acknowledged write lost?
    Failover(Failover),
    /// What does the agent cost while nothing happens, and how fast does its API answer?
    Agent(agent::Wanted),
    /// What does a query cost on its way through the router, and how fast is it?
    Router(router::Wanted),
}

/// What `failover` is asked to do.
#[derive(Args)]
pub(crate) struct Failover {
    /// Runs of each event
    #[arg(long, default_value_t = 20)]
    runs: u32,
    /// Runs of each event on each peer; without it, as many as --runs (a peer's run takes several times as long)
    #[arg(long)]
    peer_runs: Option<u32>,
    /// Which systems, one after the other
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["patroni", "patroni-fastest", "antiphon"])]
    systems: Vec<Choice>,
    /// Which events
    #[arg(long, value_enum, value_delimiter = ',',
          default_values = ["postgres-killed", "node-killed", "node-cut-off", "switchover"])]
    events: Vec<Event>,
    /// Where each run is appended as a line of JSON
    #[arg(long, default_value = "target/bench-failover.jsonl")]
    out: PathBuf,
    #[command(flatten)]
    programs: Programs,
}

/// The programs that are measured, and what becomes of their files.
#[derive(Args)]
pub(crate) struct Programs {
    /// PostgreSQL's bin directory (scripts/servers.sh ensure)
    #[arg(long, value_parser = from_here)]
    postgresql: PathBuf,
    /// Patroni's bin directory (scripts/servers.sh patroni)
    #[arg(long, value_parser = from_here)]
    patroni: Option<PathBuf>,
    /// The antiphon binary; without it, the one beside this program
    #[arg(long, value_parser = from_here)]
    antiphon: Option<PathBuf>,
    /// Keep the nodes' directories, logs included, and say where they are
    #[arg(long)]
    keep: bool,
}

/// A path as given from the present folder; servers are started in folders of their own.
fn from_here(given: &str) -> std::io::Result<PathBuf> {
    std::path::absolute(given)
}

/// Names the network to the program's second self, which runs inside it.
const NET_VARIABLE: &str = "ANTIPHON_BENCH_NET";

#[tokio::main]
async fn main() -> ExitCode {
    let done = match (Cli::parse().order, std::env::var(NET_VARIABLE)) {
        (Order::Relay(wanted), _) => relay::run(&wanted).map(|()| ExitCode::SUCCESS),
        (Order::Mesh(wanted), _) => mesh::run(&wanted).await,
        (Order::Question(question), Ok(prefix)) => run_inside(&question, Net::existing(prefix)).await,
        (Order::Question(_), Err(_)) => run_outside().await,
    };
    done.unwrap_or_else(|error| {
        eprintln!("antiphon-bench: {error:#}");
        ExitCode::from(2)
    })
}

/// Lays the network, runs this program again inside it, and takes the network down whatever happened.
async fn run_outside() -> anyhow::Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        bail!("only root can make network namespaces: run it as root");
    }
    let net = Net::create().await?;
    let outcome = run_second_self(&net).await;
    net.destroy().await;
    outcome
}

async fn run_second_self(net: &Net) -> anyhow::Result<ExitCode> {
    let program = std::env::current_exe().context("could not find this program's own path")?;
    let mut command = net.command_at_client(&program);
    command.args(std::env::args_os().skip(1)).env(NET_VARIABLE, net.prefix());
    let mut child = command.spawn().context("could not start inside the client's network namespace")?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let status = tokio::select! {
        status = child.wait() => status?,
        // The terminal sends its interrupt to both; the second self stops its servers, then ends.
        _ = interrupt.recv() => child.wait().await?,
        _ = terminate.recv() => {
            process::send(child.id(), nix::sys::signal::Signal::SIGTERM);
            child.wait().await?
        }
    };
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(2)).unwrap_or(2)))
}

async fn run_inside(question: &Question, net: Net) -> anyhow::Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let folder = process::work_folder().context("could not make a folder for the nodes")?;
    let (out, programs) = match question {
        Question::Failover(wanted) => (wanted.out.as_path(), &wanted.programs),
        Question::Agent(wanted) => (wanted.out(), wanted.programs()),
        Question::Router(wanted) => (wanted.out(), wanted.programs()),
    };
    let answered = async {
        match question {
            Question::Failover(wanted) => measure(wanted, &net, &folder).await,
            Question::Agent(wanted) => agent::measure(wanted, &net, &folder).await,
            Question::Router(wanted) => router::measure(wanted, &net, &folder).await,
        }
    };
    let outcome = tokio::select! {
        outcome = answered => outcome,
        _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted; the runs so far are in {}", out.display())),
        _ = terminate.recv() => Err(anyhow::anyhow!("ended; the runs so far are in {}", out.display())),
    };
    net.kill_everything_in_nodes().await;
    if programs.keep {
        eprintln!("the nodes' directories are kept in {}", folder.display());
    } else if let Err(error) = std::fs::remove_dir_all(&folder) {
        eprintln!("could not remove {}: {error}", folder.display());
    }
    outcome
}

async fn measure(wanted: &Failover, net: &Net, folder: &std::path::Path) -> anyhow::Result<ExitCode> {
    let mut log = report::Log::open(&wanted.out)?;
    let mut results = Vec::new();
    for choice in &wanted.systems {
        let folder = folder.join(choice.name());
        let mut system = systems::make(*choice, &wanted.programs, net, &folder, Proxy::With)?;
        let runs = match choice {
            Choice::Antiphon => wanted.runs,
            _ => wanted.peer_runs.unwrap_or(wanted.runs),
        };
        results.extend(events::run_all(system.as_mut(), net, &wanted.events, runs, &mut log).await?);
    }
    print!("{}", report::table(&results));
    let verdict = report::judge(&results, &wanted.events, wanted.runs);
    println!("{verdict}");
    Ok(ExitCode::from(verdict.code()))
}

impl Programs {
    /// PostgreSQL's bin directory.
    pub(crate) fn postgresql(&self) -> &std::path::Path {
        &self.postgresql
    }

    /// Whether files are kept.
    pub(crate) fn keeps(&self) -> bool {
        self.keep
    }

    /// Patroni's bin directory, when one was given.
    pub(crate) fn patroni(&self) -> Option<&std::path::Path> {
        self.patroni.as_deref()
    }

    /// The antiphon binary: the one named, else the one beside this program.
    pub(crate) fn antiphon(&self) -> anyhow::Result<PathBuf> {
        if let Some(named) = &self.antiphon {
            return Ok(named.clone());
        }
        let beside = std::env::current_exe()?.with_file_name("antiphon");
        if !beside.exists() {
            bail!("no antiphon at {}: build it, or name one with --antiphon", beside.display());
        }
        Ok(beside)
    }
}
