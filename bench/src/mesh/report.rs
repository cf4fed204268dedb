//! What several leaders cost: a line of JSON a measurement, tables of medians, and the verdict against the goals.
//!
//! Each figure is held against the best that any native setting reached in that figure and cell. The verdict fails
//! on silence: a goal without measurements, or with fewer rounds than asked for, is not met.

use std::fmt::{self, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::Measured;
use super::cell::{Cell, System};
use crate::cost::machine_load;
use crate::report::{Verdict, median, shown};

/// The longest that half of all changes may take to be visible, and all but a hundredth, in milliseconds.
const LAG_GOALS_MS: (f64, f64) = (1.0, 30.0);
/// The least that local writers may keep of their rate.
const WRITERS_GOAL: f64 = 0.97;
/// The most memory that an agent may ever have, in units of 1,000,000 bytes.
const RSS_GOAL_MB: f64 = 200.0;

/// One measurement, as it is written and judged.
#[derive(Serialize)]
pub(super) struct Outcome {
    system: System,
    cell: Cell,
    round: u32,
    /// Seconds since 1970.
    at: u64,
    /// How many processes wanted to run at its end, over a minute.
    load: f64,
    measured: Option<Measured>,
    /// Why it could not be measured.
    failed: Option<String>,
}

impl Outcome {
    /// The outcome of a measurement, or of one that could not be made.
    pub(super) fn new(system: System, cell: Cell, round: u32, result: anyhow::Result<Measured>) -> Outcome {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let (measured, failed) = match result {
            Ok(measured) => (Some(measured), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        Outcome { system, cell, round, at, load: machine_load(), measured, failed }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "round {}, {}, {}: ", self.round, self.cell.words(), self.system.name())?;
        let Some(measured) = &self.measured else {
            return write!(f, "could not be measured: {}", self.failed.as_deref().unwrap_or_default());
        };
        match *measured {
            Measured::Drain {
                amount,
                seconds,
                per_second,
                publisher_cpu_s,
                subscriber_cpu_s,
                agents_cpu_s,
                agent_rss_mb,
            } => {
                write!(
                    f,
                    "{amount} in {seconds:.2} s, {per_second:.0} a second; CPU {publisher_cpu_s:.2} s, "
                )?;
                write!(f, "{subscriber_cpu_s:.2} s, agents {}", shown(agents_cpu_s, 2, " s"))?;
                write!(f, " with at most {}", shown(agent_rss_mb, 0, " MB"))
            }
            Measured::Lag { probes, per_second, p50_ms, p90_ms, p99_ms, max_ms } => {
                write!(
                    f,
                    "{probes} probes at {per_second:.0} a second, p50 {p50_ms:.2} ms, p90 {p90_ms:.2} ms, "
                )?;
                write!(f, "p99 {p99_ms:.2} ms, max {max_ms:.2} ms")
            }
            Measured::Writers { without_per_second, with_per_second, rate_ratio, cpu_ratio } => {
                write!(f, "{with_per_second:.0} a second, without the mesh {without_per_second:.0}: ")?;
                write!(f, "{rate_ratio:.3} of that at {cpu_ratio:.3} of the CPU time")
            }
            Measured::Race { updates, missed, conflicts } => {
                write!(f, "{missed} of {updates} updates missed")?;
                conflicts.map_or(Ok(()), |conflicts| write!(f, ", {conflicts} conflicts decided"))
            }
        }
    }
}

/// What of a measurement is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Figure {
    PerSecond,
    /// CPU seconds of both servers for a million rows or transactions.
    ServersCpu,
    PublisherCpu,
    SubscriberCpu,
    AgentsCpu,
    Rss,
    P50,
    P90,
    P99,
    Max,
    WritersRate,
    WritersCpu,
    Missed,
}

impl Figure {
    fn of(self, measured: &Measured) -> Option<f64> {
        let figure = match *measured {
            Measured::Drain {
                amount,
                per_second,
                publisher_cpu_s,
                subscriber_cpu_s,
                agents_cpu_s,
                agent_rss_mb,
                ..
            } => {
                let each = |cpu: f64| cpu * 1e6 / amount as f64;
                match self {
                    Figure::PerSecond => Some(per_second),
                    Figure::ServersCpu => Some(each(publisher_cpu_s + subscriber_cpu_s)),
                    Figure::PublisherCpu => Some(each(publisher_cpu_s)),
                    Figure::SubscriberCpu => Some(each(subscriber_cpu_s)),
                    Figure::AgentsCpu => agents_cpu_s.map(each),
                    Figure::Rss => agent_rss_mb,
                    _ => None,
                }
            }
            Measured::Lag { p50_ms, p90_ms, p99_ms, max_ms, .. } => match self {
                Figure::P50 => Some(p50_ms),
                Figure::P90 => Some(p90_ms),
                Figure::P99 => Some(p99_ms),
                Figure::Max => Some(max_ms),
                _ => None,
            },
            Measured::Writers { rate_ratio, cpu_ratio, .. } => match self {
                Figure::WritersRate => Some(rate_ratio),
                Figure::WritersCpu => Some(cpu_ratio),
                _ => None,
            },
            Measured::Race { missed, .. } => (self == Figure::Missed).then_some(missed as f64),
        };
        figure.filter(|figure| figure.is_finite())
    }

    fn all(self, outcomes: &[Outcome], system: System, cell: Cell) -> Vec<f64> {
        let of = outcomes.iter().filter(|outcome| outcome.system == system && outcome.cell == cell);
        of.filter_map(|outcome| self.of(outcome.measured.as_ref()?)).collect()
    }

    /// The median over the rounds.
    fn median(self, outcomes: &[Outcome], system: System, cell: Cell) -> Option<f64> {
        median(self.all(outcomes, system, cell))
    }

    /// The best median of all native settings.
    fn native(self, outcomes: &[Outcome], cell: Cell) -> Option<f64> {
        let medians =
            System::NATIVE.into_iter().filter_map(|system| self.median(outcomes, system, cell.of_peers()));
        if self == Figure::PerSecond { medians.reduce(f64::max) } else { medians.reduce(f64::min) }
    }

    /// How many times the best of the native settings.
    fn times_native(self, outcomes: &[Outcome], system: System, cell: Cell) -> Option<f64> {
        Some(self.median(outcomes, system, cell)? / self.native(outcomes, cell)?)
    }
}

/// The tables: drains, lag, writers, the hot row.
pub(super) fn tables(outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    let columns = |cell: Cell, system: System| {
        let at = |figure: Figure, digits, unit| shown(figure.median(outcomes, system, cell), digits, unit);
        let times = |figure: Figure| shown(figure.times_native(outcomes, system, cell), 2, " x");
        if cell.drains() {
            let (rate, cpu) = (at(Figure::PerSecond, 0, ""), at(Figure::ServersCpu, 1, ""));
            let of_each = format!("{}/{}", at(Figure::PublisherCpu, 1, ""), at(Figure::SubscriberCpu, 1, ""));
            vec![
                rate,
                times(Figure::PerSecond),
                cpu,
                times(Figure::ServersCpu),
                of_each,
                at(Figure::AgentsCpu, 1, ""),
                at(Figure::Rss, 0, ""),
            ]
        } else {
            match cell {
                Cell::Lag => [Figure::P50, Figure::P90, Figure::P99, Figure::Max]
                    .map(|figure| at(figure, 2, ""))
                    .into(),
                Cell::Race => vec![at(Figure::Missed, 0, "")],
                _ => [Figure::WritersRate, Figure::WritersCpu].map(|figure| at(figure, 3, "")).into(),
            }
        }
    };
    let drain = ["a second", "native's", "CPU s/M", "native's", "each", "agents", "RSS MB"];
    let kinds: [(&str, &[&str], &[Cell]); 4] = [
        (
            "backlogs: rate; CPU seconds a million, of both servers, of each, of the agents; memory",
            &drain,
            &[Cell::Small, Cell::Unjoined, Cell::Insert, Cell::Update],
        ),
        ("lag at 500 updates a second, in ms", &["p50", "p90", "p99", "max"], &[Cell::Lag]),
        ("updates of a hot row that were missed", &["missed"], &[Cell::Race]),
        (
            "local writers, as a part of what they are without the mesh",
            &["rate", "CPU time"],
            &[Cell::WritersUpdate, Cell::WritersReplace],
        ),
    ];
    for (title, head, cells) in kinds {
        let measured = |cell: Cell, system| {
            outcomes.iter().any(|o| o.cell == cell && o.system == system && o.measured.is_some())
        };
        let rows: Vec<(Cell, System)> = cells
            .iter()
            .flat_map(|cell| System::ALL.map(|system| (*cell, system)))
            .filter(|(cell, system)| measured(*cell, *system))
            .collect();
        if rows.is_empty() {
            continue;
        }
        // Writing to a String cannot fail.
        let _always_ok = writeln!(text, "\n{title}");
        line(&mut text, "", "", head.iter().map(|head| (*head).to_string()));
        for (cell, system) in rows {
            line(&mut text, cell.words(), system.name(), columns(cell, system).into_iter());
        }
    }
    text
}

fn line(text: &mut String, cell: &str, system: &str, figures: impl Iterator<Item = String>) {
    let _always_ok = write!(text, "{cell:<28}{system:<18}");
    for figure in figures {
        let _always_ok = write!(text, "{figure:>11}");
    }
    text.push('\n');
}

/// Holds Antiphon's set-ups against the goals of the cells asked for.
pub(super) fn judge(outcomes: &[Outcome], cells: &[Cell], rounds: u32) -> Verdict {
    let own: Vec<System> =
        System::OWN.into_iter().filter(|system| outcomes.iter().any(|o| o.system == *system)).collect();
    if own.is_empty() {
        return Verdict::NotJudged;
    }
    let mut short = Vec::new();
    for system in own {
        for cell in cells.iter().filter(|cell| cell.is_for(system)) {
            short.extend(shortfalls(outcomes, system, *cell, rounds));
        }
    }
    if short.is_empty() { Verdict::Met } else { Verdict::Short(short) }
}

/// The goals that one set-up misses in one cell.
fn shortfalls(outcomes: &[Outcome], system: System, cell: Cell, rounds: u32) -> Vec<String> {
    let what = format!("{}, {}", system.name(), cell.words());
    let mut short = Vec::new();
    let of = |o: &&Outcome| o.system == system && o.cell == cell && o.measured.is_some();
    let measured = outcomes.iter().filter(of).count();
    if measured < rounds as usize {
        short.push(format!("{what}: {measured} of {rounds} rounds were measured"));
    }
    let mut hold = |found: Option<f64>, unit: &str, goal: f64, meets: fn(&f64, &f64) -> bool| {
        if !found.is_some_and(|found| meets(&found, &goal)) {
            short.push(format!("{what}: {} {unit}, goal {goal}", shown(found, 3, "")));
        }
    };
    let own = |figure: Figure| figure.median(outcomes, system, cell);
    let times = |figure: Figure| figure.times_native(outcomes, system, cell);
    if let Some((rate, cpu)) = cell.goal() {
        hold(times(Figure::PerSecond), "times native's rate", rate, f64::ge);
        if let Some(cpu) = cpu {
            hold(times(Figure::ServersCpu), "times native's CPU time", cpu, f64::le);
        }
        let most = Figure::Rss.all(outcomes, system, cell).into_iter().reduce(f64::max);
        hold(most, "MB of memory", RSS_GOAL_MB, f64::lt);
        return short;
    }
    match cell {
        Cell::Lag => {
            hold(own(Figure::P50), "ms at p50", LAG_GOALS_MS.0, f64::lt);
            hold(own(Figure::P99), "ms at p99", LAG_GOALS_MS.1, f64::lt);
        }
        Cell::Race => {
            let most = Figure::Missed.all(outcomes, system, cell).into_iter().reduce(f64::max);
            hold(most, "updates missed", 0.0, f64::le);
        }
        _ => hold(own(Figure::WritersRate), "of the rate without", WRITERS_GOAL, f64::ge),
    }
    short
}

#[cfg(test)]
mod tests;
