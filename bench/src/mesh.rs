//! Several leaders: how fast changes go from one server to another, and at what cost, beside subscriptions of
//! PostgreSQL's own and pglogical.
//!
//! Each system in turn gets two fresh servers with the same rows and is asked all questions; in each round the turns
//! begin with another system. All runs on one machine, over its loopback, one system at a time. Antiphon decides
//! conflicts in all of it: that cannot be switched off.

mod agent;
mod cell;
mod drain;
mod lag;
mod load;
mod pair;
mod race;
mod report;
mod server;
mod writers;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::report::Log;
use crate::{Programs, process};
use cell::{Cell, System};
use load::Extent;
use pair::{Kit, Pair};
use report::Outcome;
use server::{Place, Template};

/// What `mesh` is asked to do.
#[derive(Args)]
pub(crate) struct Wanted {
    /// Rounds; in each, every system has its turn in every cell
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Systems; their turns begin with another one in each round
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = System::ALL)]
    systems: Vec<System>,
    /// What is asked of each
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Cell::ALL)]
    cells: Vec<Cell>,
    /// Rows of the table, and of the large INSERT and UPDATE
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1000..=100_000_000))]
    rows: u64,
    /// Transactions of one row each
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(100..=100_000_000))]
    transactions: u64,
    /// Updates of the row that both nodes write
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(100..=100_000_000))]
    race: u64,
    /// For how long lag is measured, and each slice of local writing
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// The bin directory of a PostgreSQL with pglogical (scripts/servers.sh pglogical); without it, none is measured
    #[arg(long, value_parser = crate::from_here)]
    pglogical: Option<PathBuf>,
    /// Where each measurement is appended as a line of JSON
    #[arg(long, default_value = "target/bench-mesh.jsonl")]
    out: PathBuf,
    #[command(flatten)]
    programs: Programs,
}

/// What one measurement showed.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(untagged)]
enum Measured {
    /// A backlog was drained. CPU times are in seconds; of the agents there is one only where there are any.
    Drain {
        amount: u64,
        seconds: f64,
        per_second: f64,
        publisher_cpu_s: f64,
        subscriber_cpu_s: f64,
        agents_cpu_s: Option<f64>,
        agent_rss_mb: Option<f64>,
    },
    /// Changes became visible.
    Lag { probes: usize, per_second: f64, p50_ms: f64, p90_ms: f64, p99_ms: f64, max_ms: f64 },
    /// Local writers, without the mesh and with it. CPU time is the server's, for each transaction.
    Writers { without_per_second: f64, with_per_second: f64, rate_ratio: f64, cpu_ratio: f64 },
    /// Both nodes wrote one row.
    Race { updates: u64, missed: u64, conflicts: Option<u64> },
}

/// Measures until it is done or interrupted, and leaves nothing behind but the measurements.
pub(crate) async fn run(wanted: &Wanted) -> anyhow::Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let folder = process::work_folder().context("could not make a folder for the servers")?;
    let outcome = tokio::select! {
        outcome = measure(wanted, &folder) => outcome,
        _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted; what was measured is in {}", wanted.out.display())),
        _ = terminate.recv() => Err(anyhow::anyhow!("ended; what was measured is in {}", wanted.out.display())),
    };
    if wanted.programs.keeps() {
        eprintln!("the servers' directories are kept in {}", folder.display());
    } else {
        // Servers whose handles were dropped write until they see that they have been killed.
        for _ in 0..20 {
            if std::fs::remove_dir_all(&folder).is_ok() || !folder.exists() {
                return outcome;
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        eprintln!("could not remove {}", folder.display());
    }
    outcome
}

async fn measure(wanted: &Wanted, folder: &Path) -> anyhow::Result<ExitCode> {
    let kit = kit(wanted, folder).await?;
    let mut log = Log::open(&wanted.out)?;
    let mut systems: Vec<System> = wanted.systems.iter().copied().filter(|system| kit.has(*system)).collect();
    let mut cells = wanted.cells.clone();
    // The last of them leave the servers other than they were.
    cells.sort_unstable();
    let mut run = Run { wanted, kit: &kit, log: &mut log, outcomes: Vec::new(), round: 0 };
    for round in 1..=wanted.rounds {
        run.round = round;
        for system in &systems {
            run.of_a_pair(*system, &cells).await?;
            run.by_themselves(*system, &cells).await?;
        }
        systems.rotate_left(1);
    }
    let outcomes = run.outcomes;
    println!("PostgreSQL {}, {} rows, {} rounds", kit.release, wanted.rows, wanted.rounds);
    println!("{}", report::tables(&outcomes));
    let verdict = report::judge(&outcomes, &cells, wanted.rounds);
    println!("{verdict}");
    Ok(ExitCode::from(verdict.code()))
}

/// Makes what all pairs of servers are made of.
async fn kit(wanted: &Wanted, folder: &Path) -> anyhow::Result<Kit> {
    let place = Place { folder: folder.to_path_buf(), bin: wanted.programs.postgresql().to_path_buf() };
    place.make()?;
    let antiphon = folder.join("antiphon");
    let program = wanted.programs.antiphon()?;
    std::fs::copy(&program, &antiphon).with_context(|| format!("could not copy {}", program.display()))?;
    eprintln!("making two servers with {} rows", wanted.rows);
    let templates = [
        Template::make(&place, "template-1", wanted.rows).await?,
        Template::make(&place, "template-2", wanted.rows).await?,
    ];
    let pglogical = match &wanted.pglogical {
        Some(bin) if wanted.systems.contains(&System::Pglogical) => {
            let place = Place { folder: folder.to_path_buf(), bin: bin.clone() };
            let templates = [
                Template::make(&place, "template-3", wanted.rows).await?,
                Template::make(&place, "template-4", wanted.rows).await?,
            ];
            Some((place, templates))
        }
        _ => None,
    };
    let release = place.release().await?;
    Ok(Kit { place, release, templates, pglogical, antiphon })
}

/// All measurements so far, and what the next ones are made with.
struct Run<'a> {
    wanted: &'a Wanted,
    kit: &'a Kit,
    log: &'a mut Log,
    outcomes: Vec<Outcome>,
    round: u32,
}

impl Run<'_> {
    /// The cells that one pair of servers goes through, one after the other.
    async fn of_a_pair(&mut self, system: System, cells: &[Cell]) -> anyhow::Result<()> {
        let shared = |cell: &Cell| cell.shares_servers() && cell.is_for(system);
        let cells: Vec<Cell> = cells.iter().copied().filter(shared).collect();
        let Some(first) = cells.first().copied() else { return Ok(()) };
        let name = format!("{}-{}", system.name(), self.round);
        let mut pair = match Box::pin(Pair::start(self.kit, system, &name, false)).await {
            Ok(pair) => pair,
            Err(error) => {
                self.take(system, first, Err(error))?;
                return self.clear(&name);
            }
        };
        for cell in cells {
            let measured = match cell {
                Cell::Lag => lag::lag(&pair, self.wanted.seconds).await,
                Cell::Race => race::race(&pair, system.is_own(), self.wanted.race).await,
                _ => drain::drain(&mut pair, cell, self.extent()).await,
            };
            let failed = measured.is_err();
            self.take(system, cell, measured)?;
            if failed {
                // What is left undone would be measured with the next.
                break;
            }
        }
        pair.stop().await;
        self.clear(&name)
    }

    /// The cells that need servers of their own.
    async fn by_themselves(&mut self, system: System, cells: &[Cell]) -> anyhow::Result<()> {
        for cell in cells.iter().filter(|cell| !cell.shares_servers() && cell.is_for(system)) {
            let name = format!("{}-{}-alone", system.name(), self.round);
            let measured = if *cell == Cell::Unjoined {
                self.unjoined(system, &name).await
            } else {
                let (rows, seconds) = (self.wanted.rows, self.wanted.seconds);
                Box::pin(writers::writers(self.kit, *cell, &name, rows, seconds)).await
            };
            self.take(system, *cell, measured)?;
            self.clear(&name)?;
        }
        Ok(())
    }

    async fn unjoined(&self, system: System, name: &str) -> anyhow::Result<Measured> {
        let mut pair = Box::pin(Pair::start(self.kit, system, name, true)).await?;
        let measured = drain::drain(&mut pair, Cell::Unjoined, self.extent()).await;
        pair.stop().await;
        measured
    }

    fn extent(&self) -> Extent {
        Extent { rows: self.wanted.rows, transactions: self.wanted.transactions }
    }

    /// Writes an outcome down and keeps it.
    fn take(&mut self, system: System, cell: Cell, result: anyhow::Result<Measured>) -> anyhow::Result<()> {
        let outcome = Outcome::new(system, cell, self.round, result);
        eprintln!("{outcome}");
        self.log.write(&outcome)?;
        self.outcomes.push(outcome);
        Ok(())
    }

    /// Removes servers that have been stopped, unless they are to be looked at: many would fill the disk.
    fn clear(&self, name: &str) -> anyhow::Result<()> {
        if self.wanted.programs.keeps() {
            return Ok(());
        }
        let folder = self.kit.place.folder.join(name);
        std::fs::remove_dir_all(&folder).with_context(|| format!("could not remove {}", folder.display()))
    }
}
