//! What queries cost: a line of JSON a measurement, tables of medians, and the verdict against the goals.
//!
//! Both set-ups of the router are held against PgBouncer as the system has it, and where that one cannot do a cell
//! against the newer one. The verdict fails on silence: a goal without measurements, or with fewer rounds than asked
//! for, is not met.

use std::fmt::{self, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::Measured;
use super::cell::Cell;
use super::way::Way;
use crate::report::{Verdict, median, shown};

/// Antiphon's set-ups, which are judged.
const OWN: [Way; 2] = [Way::Antiphon, Way::AntiphonSplit];
/// What they are held against: the first one that was measured in a cell.
const PEERS: [Way; 2] = [Way::Pgbouncer, Way::PgbouncerNewest];

/// One measurement, as it is written and judged.
#[derive(Serialize)]
pub(super) struct Outcome {
    way: Way,
    cell: Cell,
    round: u32,
    /// Seconds since 1970.
    at: u64,
    measured: Option<Measured>,
    /// Why it could not be measured.
    failed: Option<String>,
}

impl Outcome {
    /// The outcome of a measurement, or of one that could not be made.
    pub(super) fn new(way: Way, cell: Cell, round: u32, result: anyhow::Result<Measured>) -> Outcome {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let (measured, failed) = match result {
            Ok(measured) => (Some(measured), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        Outcome { way, cell, round, at, measured, failed }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "round {}, {}, {}: ", self.round, self.cell.words(), self.way.name())?;
        match &self.measured {
            None => write!(f, "could not be measured: {}", self.failed.as_deref().unwrap_or_default()),
            Some(Measured::Idle { kib_per_client }) => write!(f, "{kib_per_client:.2} KiB a client"),
            Some(Measured::Load { per_second, cpu_us_per_query, p50_ms, p99_ms, .. }) => {
                let cpu = shown(*cpu_us_per_query, 1, " us");
                write!(
                    f,
                    "{per_second:.0} a second, {cpu} of CPU each, p50 {p50_ms:.2} ms, p99 {p99_ms:.2} ms"
                )
            }
        }
    }
}

/// What of a measurement is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Figure {
    /// Microseconds a query, or KiB an idle client.
    Cost,
    Rate,
    Middle,
    Slow,
}

impl Figure {
    fn of(self, measured: &Measured) -> Option<f64> {
        let figure = match (self, *measured) {
            (Figure::Cost, Measured::Idle { kib_per_client }) => Some(kib_per_client),
            (_, Measured::Idle { .. }) => None,
            (Figure::Cost, Measured::Load { cpu_us_per_query, .. }) => cpu_us_per_query,
            (Figure::Rate, Measured::Load { per_second, .. }) => Some(per_second),
            (Figure::Middle, Measured::Load { p50_ms, .. }) => Some(p50_ms),
            (Figure::Slow, Measured::Load { p99_ms, .. }) => Some(p99_ms),
        };
        figure.filter(|figure| figure.is_finite())
    }

    /// The median over the rounds.
    fn median(self, outcomes: &[Outcome], way: Way, cell: Cell) -> Option<f64> {
        let of = outcomes.iter().filter(|outcome| outcome.way == way && outcome.cell == cell);
        median(of.filter_map(|outcome| self.of(outcome.measured.as_ref()?)).collect())
    }
}

/// The tables: cost, rate, latencies.
pub(super) fn tables(outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    let tables = [
        (Figure::Cost, 1, "CPU seconds of the proxy a million queries; memory for an idle client in KiB"),
        (Figure::Rate, 0, "queries a second"),
        (Figure::Middle, 2, "p50 of a transaction in ms, its connection not counted"),
        (Figure::Slow, 2, "p99 of a transaction in ms, its connection not counted"),
    ];
    for (figure, digits, title) in tables {
        // Writing to a String cannot fail.
        let _always_ok = writeln!(text, "\n{title}");
        row(&mut text, "", Cell::ALL.map(|cell| cell.words().to_string()));
        for way in Way::ALL {
            // Memory is in other units than time: its digits count.
            let digits = |cell| if cell == Cell::Idle { 2 } else { digits };
            let cells = Cell::ALL.map(|cell| shown(figure.median(outcomes, way, cell), digits(cell), ""));
            if cells.iter().any(|cell| cell != "-") {
                row(&mut text, way.name(), cells);
            }
        }
    }
    text
}

fn row(text: &mut String, name: &str, cells: [String; 9]) {
    let _always_ok = write!(text, "{name:<17}");
    for cell in cells {
        let _always_ok = write!(text, "{cell:>15}");
    }
    text.push('\n');
}

/// Holds Antiphon's set-ups against the goals of the cells asked for.
pub(super) fn judge(outcomes: &[Outcome], cells: &[Cell], rounds: u32) -> Verdict {
    let own = OWN.into_iter().filter(|way| outcomes.iter().any(|outcome| outcome.way == *way));
    let own: Vec<Way> = own.collect();
    if own.is_empty() {
        return Verdict::NotJudged;
    }
    let mut short = Vec::new();
    for way in own {
        for cell in cells {
            short.extend(shortfalls(outcomes, way, *cell, rounds));
        }
    }
    if short.is_empty() { Verdict::Met } else { Verdict::Short(short) }
}

/// The goals that one set-up misses in one cell.
fn shortfalls(outcomes: &[Outcome], way: Way, cell: Cell, rounds: u32) -> Vec<String> {
    let what = format!("{}, {}", way.name(), cell.words());
    let own = |figure: Figure| figure.median(outcomes, way, cell);
    let mut short = Vec::new();
    let measured = outcomes.iter().filter(|o| o.way == way && o.cell == cell && o.measured.is_some()).count();
    if measured < rounds as usize {
        short.push(format!("{what}: {measured} of {rounds} rounds were measured"));
    }
    let unit = if cell == Cell::Idle { "KiB" } else { "us of CPU" };
    if let Some(most) = cell.most()
        && own(Figure::Cost).is_none_or(|found| found > most)
    {
        short.push(format!("{what}: {} {unit}, goal {most}", shown(own(Figure::Cost), 2, "")));
    }
    if matches!(cell, Cell::Logins | Cell::Idle) {
        return short;
    }
    let Some(peer) = PEERS.into_iter().find(|peer| Figure::Rate.median(outcomes, *peer, cell).is_some())
    else {
        // Without the newer PgBouncer there is none that prepares, and nothing to be held against.
        if !cell.prepares() {
            short.push(format!("{what}: no PgBouncer was measured"));
        }
        return short;
    };
    let mut hold = |figure: Figure, unit: &str, digits: usize, meets: fn(f64, f64) -> bool| {
        let theirs = figure.median(outcomes, peer, cell);
        if !own(figure).zip(theirs).is_some_and(|(own, theirs)| meets(own, theirs)) {
            let (found, theirs) = (shown(own(figure), digits, ""), shown(theirs, digits, ""));
            short.push(format!("{what}: {found} {unit}, {} {theirs}", peer.name()));
        }
    };
    hold(Figure::Cost, unit, 2, |own, theirs| own <= theirs);
    hold(Figure::Rate, "a second", 0, |own, theirs| own >= theirs);
    // Of a transaction with a connection of its own only the rest is timed, which says little.
    if cell != Cell::Connections {
        hold(Figure::Slow, "ms at p99", 3, |own, theirs| own <= theirs);
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(way: Way, cell: Cell, cpu: f64, per_second: f64, p99_ms: f64) -> Outcome {
        let measured = match cell {
            Cell::Idle => Measured::Idle { kib_per_client: cpu },
            _ => Measured::Load {
                queries: 1000,
                per_second,
                cpu_us_per_query: Some(cpu).filter(|_| way != Way::Direct),
                p50_ms: 0.2,
                p99_ms,
            },
        };
        Outcome::new(way, cell, 1, Ok(measured))
    }

    fn said(outcomes: &[Outcome], cell: Cell) -> String {
        judge(outcomes, &[cell], 1).to_string()
    }

    #[test]
    fn each_figure_is_held_against_pgbouncer() {
        let with = |cpu, per_second, p99_ms| {
            let peer = outcome(Way::Pgbouncer, Cell::Simple, 16.0, 20_000.0, 1.0);
            said(&[peer, outcome(Way::Antiphon, Cell::Simple, cpu, per_second, p99_ms)], Cell::Simple)
        };
        assert_eq!(with(16.0, 20_000.0, 1.0), "all goals are met");
        assert!(with(16.1, 20_000.0, 1.0).contains("16.10 us of CPU, pgbouncer 16.00"));
        assert!(with(16.0, 19_999.0, 1.0).contains("19999 a second, pgbouncer 20000"));
        assert!(with(16.0, 20_000.0, 1.1).contains("1.100 ms at p99"));
    }

    #[test]
    fn the_newer_pgbouncer_is_the_measure_where_the_other_has_no_cell() {
        let newer = || outcome(Way::PgbouncerNewest, Cell::Prepared, 20.0, 9.0, 1.0);
        let own = || outcome(Way::AntiphonSplit, Cell::Prepared, 21.0, 9.0, 1.0);
        assert!(said(&[newer(), own()], Cell::Prepared).contains("pgbouncer newest 20.00"));
        let older = outcome(Way::Pgbouncer, Cell::Prepared, 22.0, 9.0, 1.0);
        assert_eq!(said(&[newer(), older, own()], Cell::Prepared), "all goals are met");
        assert_eq!(said(&[own()], Cell::Prepared), "all goals are met");
    }

    #[test]
    fn some_goals_hold_whatever_peers_do() {
        let own = |cell, cost| said(&[outcome(Way::Antiphon, cell, cost, 9.0, 1.0)], cell);
        assert_eq!(own(Cell::Logins, 200.0), "all goals are met");
        assert!(own(Cell::Logins, 200.1).contains("200.10 us of CPU, goal 200"));
        assert_eq!(own(Cell::Idle, 1.5), "all goals are met");
        assert!(own(Cell::Idle, 1.6).contains("1.60 KiB, goal 1.5"));
    }

    #[test]
    fn silence_meets_no_goal() {
        assert_eq!(judge(&[], &[Cell::Simple], 1).code(), 2);
        let own = || outcome(Way::Antiphon, Cell::Rows, 70.0, 9.0, 1.0);
        assert!(said(&[own()], Cell::Rows).contains("no PgBouncer was measured"));
        assert!(said(&[own()], Cell::Idle).contains("antiphon, idle KiB: 0 of 1 rounds"));
        let failed = Outcome::new(Way::Antiphon, Cell::Rows, 1, Err(anyhow::anyhow!("no")));
        assert!(said(&[failed], Cell::Rows).contains("0 of 1 rounds"));
    }

    #[test]
    fn tables_show_each_way_that_was_measured() {
        let outcomes = [
            outcome(Way::Direct, Cell::Simple, 0.0, 28_713.0, 0.5),
            outcome(Way::Antiphon, Cell::Simple, 17.14, 25_000.0, 0.6),
        ];
        let tables = tables(&outcomes);
        assert!(tables.contains("17.1") && tables.contains("28713"), "{tables}");
        assert!(!tables.contains("haproxy"), "{tables}");
    }
}
