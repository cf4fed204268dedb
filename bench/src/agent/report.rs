//! What agents cost: a line of JSON a run, two tables, and the verdict against the goals.
//!
//! Idle figures are judged by the worst node of each run. The verdict fails on silence: a goal without runs, or
//! with fewer than asked for, is not met.

use std::fmt::{self, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::{Measured, Rate};
use crate::cost::Usage;
use crate::load::Mode;
use crate::report::{Verdict, median, shown};
use crate::systems::Choice;

/// Most of a core that an idle agent may take, in percent.
const CPU_PERCENT_MAX: f64 = 1.0;
/// Most memory that an agent may take, in units of 1,000,000 bytes.
const RSS_MB_MAX: f64 = 40.0;
/// How many times Patroni's requests a second the API answers, each on a connection of its own.
const RATE_RATIO_MIN: f64 = 10.0;

/// One run, as it is written and judged.
#[derive(Serialize)]
pub(super) struct Outcome {
    system: &'static str,
    run: u32,
    /// Seconds since 1970.
    at: u64,
    measured: Option<Measured>,
    /// Why the run could not be measured.
    failed: Option<String>,
}

impl Outcome {
    /// The outcome of a run that was measured, or of one that could not be.
    pub(super) fn new(system: &'static str, run: u32, result: anyhow::Result<Measured>) -> Outcome {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let (measured, failed) = match result {
            Ok(measured) => (Some(measured), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        Outcome { system, run, at, measured, failed }
    }

    fn usages(&self, part: Part) -> impl Iterator<Item = &Usage> {
        let nodes = self.measured.iter().flat_map(|measured| &measured.idle);
        nodes.filter_map(move |node| match part {
            Part::Agent => node.agent.as_ref(),
            Part::Store => node.store.as_ref(),
        })
    }

    fn rate(&self, mode: Mode) -> Option<&Rate> {
        self.measured.as_ref()?.rates.iter().find(|rate| rate.mode == mode)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, run {}: ", self.system, self.run)?;
        let Some(measured) = &self.measured else {
            let why = self.failed.as_deref().unwrap_or_default();
            return write!(f, "could not be measured: {why}");
        };
        write!(f, "machine load {:.1}; idle:", measured.machine_load)?;
        for node in &measured.idle {
            if let Some(usage) = &node.agent {
                write!(f, " {} {:.2} % {:.1} MB,", node.node, usage.cpu_percent, usage.rss_mb)?;
            }
        }
        for rate in &measured.rates {
            let Rate { mode, per_second, cpu_us_per_request, errors, .. } = rate;
            write!(f, " {}: {per_second:.0} a second at {cpu_us_per_request:.0} us of CPU", mode.words())?;
            write!(f, ", {errors} errors;")?;
        }
        Ok(())
    }
}

/// What of a node is looked at.
#[derive(Clone, Copy)]
enum Part {
    Agent,
    Store,
}

/// Both tables: idle cost and answers a second.
pub(super) fn tables(outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    let mut systems: Vec<&'static str> = Vec::new();
    for outcome in outcomes {
        if !systems.contains(&outcome.system) {
            systems.push(outcome.system);
        }
    }
    let head =
        ["idle", "", "CPU median", "CPU worst", "RSS median", "RSS worst", "PSS", "wakes/s", "machine load"];
    row(&mut text, &head.map(String::from));
    for system in &systems {
        for (part, name) in [(Part::Agent, "agent"), (Part::Store, "etcd")] {
            text.push_str(&idle_row(&of(outcomes, system), system, part, name));
        }
    }
    text.push('\n');
    let head = ["GET /primary", "", "a second", "ratio", "CPU each", "ratio", "p50", "p99", "errors"];
    row(&mut text, &head.map(String::from));
    for mode in [Mode::Close, Mode::Keep] {
        for system in &systems {
            rate_row(&mut text, outcomes, system, mode);
        }
    }
    text
}

fn of<'a>(outcomes: &'a [Outcome], system: &str) -> Vec<&'a Outcome> {
    outcomes.iter().filter(|outcome| outcome.system == system).collect()
}

fn idle_row(outcomes: &[&Outcome], system: &str, part: Part, name: &str) -> String {
    let all = |figure: fn(&Usage) -> f64| -> Vec<f64> {
        outcomes.iter().flat_map(|outcome| outcome.usages(part)).map(figure).collect()
    };
    let (cpu, rss) = (all(|usage| usage.cpu_percent), all(|usage| usage.rss_mb));
    let mut text = String::new();
    if cpu.is_empty() {
        return text;
    }
    let loads = outcomes.iter().filter_map(|outcome| Some(outcome.measured.as_ref()?.machine_load)).collect();
    row(
        &mut text,
        &[
            system.into(),
            name.into(),
            shown(median(cpu.clone()), 2, " %"),
            shown(worst(&cpu), 2, " %"),
            shown(median(rss.clone()), 1, " MB"),
            shown(worst(&rss), 1, " MB"),
            shown(median(all(|usage| usage.pss_mb)), 1, " MB"),
            shown(median(all(|usage| usage.wakes_per_second)), 0, ""),
            shown(median(loads), 1, ""),
        ],
    );
    text
}

fn rate_row(text: &mut String, outcomes: &[Outcome], system: &str, mode: Mode) {
    let medians = |system: &str, figure: fn(&Rate) -> f64| {
        median(of(outcomes, system).iter().filter_map(|outcome| outcome.rate(mode)).map(figure).collect())
    };
    let peer = Choice::Patroni.name();
    let (rate, peers_rate) = (medians(system, |r| r.per_second), medians(peer, |r| r.per_second));
    let (cpu, peers_cpu) =
        (medians(system, |r| r.cpu_us_per_request), medians(peer, |r| r.cpu_us_per_request));
    row(
        text,
        &[
            mode.words().into(),
            system.into(),
            shown(rate, 0, ""),
            shown(ratio(rate, peers_rate), 1, ""),
            shown(cpu, 0, " us"),
            shown(ratio(cpu, peers_cpu), 3, ""),
            shown(medians(system, |r| r.p50_ms), 2, " ms"),
            shown(medians(system, |r| r.p99_ms), 2, " ms"),
            shown(medians(system, |r| r.errors as f64), 0, ""),
        ],
    );
}

fn row(text: &mut String, cells: &[String; 9]) {
    let [a, b, c, d, e, f, g, h, i] = cells;
    // Writing to a String cannot fail.
    let _always_ok = writeln!(text, "{a:<23} {b:<16} {c:>10} {d:>10} {e:>10} {f:>10} {g:>9} {h:>9} {i:>12}");
}

fn worst(figures: &[f64]) -> Option<f64> {
    figures.iter().copied().max_by(f64::total_cmp)
}

fn ratio(own: Option<f64>, peers: Option<f64>) -> Option<f64> {
    own.zip(peers).filter(|(_, peers)| *peers > 0.0).map(|(own, peers)| own / peers)
}

/// Holds Antiphon's runs against the goals.
pub(super) fn judge(outcomes: &[Outcome], runs: u32) -> Verdict {
    let own = of(outcomes, Choice::Antiphon.name());
    let peers = of(outcomes, Choice::Patroni.name());
    if own.is_empty() {
        return Verdict::NotJudged;
    }
    let mut short = Vec::new();
    for (name, of) in [(Choice::Antiphon.name(), &own), (Choice::Patroni.name(), &peers)] {
        let measured = of.iter().filter(|outcome| outcome.measured.is_some()).count();
        if measured < runs as usize {
            short.push(format!("{measured} of {runs} runs of {name} were measured"));
        }
    }
    let worst_nodes = |figure: fn(&Usage) -> f64| -> Vec<f64> {
        own.iter()
            .filter_map(|outcome| worst(&outcome.usages(Part::Agent).map(figure).collect::<Vec<_>>()))
            .collect()
    };
    let cpu = median(worst_nodes(|usage| usage.cpu_percent));
    if cpu.is_none_or(|cpu| cpu >= CPU_PERCENT_MAX) {
        let found = shown(cpu, 2, " %");
        short.push(format!("CPU of an idle agent: {found} of a core, goal below {CPU_PERCENT_MAX} %"));
    }
    let mut memory = worst_nodes(|usage| usage.rss_mb);
    memory.extend(own.iter().filter_map(|outcome| outcome.measured.as_ref()?.rss_mb_after_load));
    let memory = worst(&memory);
    if memory.is_none_or(|memory| memory >= RSS_MB_MAX) {
        let found = shown(memory, 1, " MB");
        short.push(format!("memory of an agent: {found}, goal below {RSS_MB_MAX} MB"));
    }
    let rate = |of: &[&Outcome]| {
        median(of.iter().filter_map(|outcome| outcome.rate(Mode::Close)).map(|r| r.per_second).collect())
    };
    let found = ratio(rate(&own), rate(&peers));
    if found.is_none_or(|found| found < RATE_RATIO_MIN) {
        let found = shown(found, 1, "");
        short.push(format!("answers a second: {found} times Patroni's, goal {RATE_RATIO_MIN} times"));
    }
    if short.is_empty() { Verdict::Met } else { Verdict::Short(short) }
}

#[cfg(test)]
mod tests {
    use super::super::Idle;
    use super::*;

    fn outcome(system: Choice, cpu_percent: f64, rss_mb: f64, per_second: f64) -> Outcome {
        let agent =
            Usage { cpu_percent, rss_mb, pss_mb: 5.0, wakes_per_second: 9.0, threads: 7, processes: 1 };
        let quiet = Usage { cpu_percent: 0.0, rss_mb: 1.0, ..agent };
        let idle = [agent, quiet]
            .map(|agent| Idle { node: "n1".into(), agent: Some(agent), store: None })
            .into_iter()
            .collect();
        let rate = Rate {
            mode: Mode::Close,
            per_second,
            cpu_us_per_request: 9.0,
            p50_ms: 1.0,
            p99_ms: 2.0,
            errors: 0,
        };
        let measured = Measured { machine_load: 0.5, idle, rates: vec![rate], rss_mb_after_load: None };
        Outcome::new(system.name(), 1, Ok(measured))
    }

    fn said(cpu_percent: f64, rss_mb: f64, per_second: f64) -> String {
        let peer = outcome(Choice::Patroni, 3.0, 60.0, 500.0);
        judge(&[peer, outcome(Choice::Antiphon, cpu_percent, rss_mb, per_second)], 1).to_string()
    }

    #[test]
    fn each_goal_is_judged_by_the_worst_node() {
        assert_eq!(said(0.9, 39.0, 5000.0), "all goals are met");
        assert!(said(1.0, 39.0, 5000.0).contains("1.00 % of a core"));
        assert!(said(0.9, 40.0, 5000.0).contains("memory of an agent: 40.0 MB"));
        assert!(said(0.9, 39.0, 4999.0).contains("10.0 times Patroni's"));
    }

    #[test]
    fn silence_meets_no_goal() {
        assert_eq!(judge(&[], 1).code(), 2);
        let alone = [outcome(Choice::Antiphon, 0.1, 9.0, 9000.0)];
        assert!(judge(&alone, 1).to_string().contains("0 of 1 runs of patroni"));
        let failed = Outcome::new(Choice::Antiphon.name(), 1, Err(anyhow::anyhow!("no")));
        assert!(judge(&[failed], 1).to_string().contains("CPU of an idle agent: -"));
    }

    #[test]
    fn tables_show_each_system_and_mode() {
        let outcomes =
            [outcome(Choice::Patroni, 3.0, 60.0, 500.0), outcome(Choice::Antiphon, 0.5, 20.0, 6000.0)];
        let tables = tables(&outcomes);
        assert!(tables.contains("3.00 %") && tables.contains("12.0"), "{tables}");
    }
}
