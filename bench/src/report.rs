//! What was measured: one line of JSON a run, a table at the end, and the verdict against the goals.
//!
//! The verdict fails on silence: a goal without runs, or with fewer than asked for, is not met.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions, create_dir_all};
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde::Serialize;

use crate::events::{Event, Measured};
use crate::systems::Choice;

/// One run, as it is written and judged.
#[derive(Serialize)]
pub(crate) struct Outcome {
    system: String,
    event: Event,
    run: u32,
    /// Seconds since 1970.
    at: u64,
    outage_ms: Option<u64>,
    acked: usize,
    lost: usize,
    client_errors: u64,
    leader_before: Option<String>,
    leader_after: Option<String>,
    /// Why the run could not be measured.
    failed: Option<String>,
}

impl Outcome {
    /// The outcome of a run that was measured, or of one that could not be.
    pub(crate) fn new(system: &str, event: Event, run: u32, result: anyhow::Result<Measured>) -> Outcome {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let (measured, failed) = match result {
            Ok(measured) => (Some(measured), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        let measured = measured.as_ref();
        Outcome {
            system: system.to_string(),
            event,
            run,
            at,
            outage_ms: measured
                .and_then(|m| m.outage)
                .and_then(|outage| u64::try_from(outage.as_millis()).ok()),
            acked: measured.map_or(0, |m| m.acked),
            lost: measured.map_or(0, |m| m.lost),
            client_errors: measured.map_or(0, |m| m.errors),
            leader_before: measured.map(|m| m.from.to_string()),
            leader_after: measured.map(|m| m.to.to_string()),
            failed,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}, run {}: ", self.system, self.event.words(), self.run)?;
        if let Some(why) = &self.failed {
            return write!(f, "could not be measured: {why}");
        }
        match self.outage_ms {
            Some(outage) => write!(f, "{} without writes", seconds(outage))?,
            None => write!(f, "writes did not come back")?,
        }
        let (before, after) = (self.leader_before.as_deref(), self.leader_after.as_deref());
        let (before, after) = (before.unwrap_or_default(), after.unwrap_or_default());
        write!(f, ", {before} -> {after}, {} acknowledged, {} lost", self.acked, self.lost)?;
        write!(f, ", {} errors at the client", self.client_errors)
    }
}

/// Where each run is written as soon as it is known.
pub(crate) struct Log(File);

impl Log {
    /// Opens the file for appending.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Log> {
        if let Some(folder) = path.parent() {
            create_dir_all(folder).with_context(|| format!("could not make {}", folder.display()))?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path);
        Ok(Log(file.with_context(|| format!("could not open {}", path.display()))?))
    }

    /// Appends one run as a line of JSON.
    pub(crate) fn write<T: Serialize>(&mut self, outcome: &T) -> anyhow::Result<()> {
        let mut line = serde_json::to_string(outcome)?;
        line.push('\n');
        self.0.write_all(line.as_bytes()).context("could not write a run to the file of runs")
    }
}

/// The runs of one event on one system, put together.
struct Summary {
    runs: usize,
    /// Ascending; a run without recovery counts as endless.
    outages_ms: Vec<u64>,
    lost: usize,
    /// Errors that clients saw.
    errors: u64,
    failed: usize,
}

impl Summary {
    fn of(outcomes: &[Outcome], system: &str, event: Event) -> Summary {
        let mut summary = Summary { runs: 0, outages_ms: Vec::new(), lost: 0, errors: 0, failed: 0 };
        for outcome in outcomes.iter().filter(|o| o.system == system && o.event == event) {
            summary.runs += 1;
            summary.lost += outcome.lost;
            summary.errors += outcome.client_errors;
            summary.failed += usize::from(outcome.failed.is_some());
            if outcome.failed.is_none() {
                summary.outages_ms.push(outcome.outage_ms.unwrap_or(u64::MAX));
            }
        }
        summary.outages_ms.sort_unstable();
        summary
    }

    /// The middle outage, the longer of the two middle ones when their number is even.
    fn median(&self) -> Option<u64> {
        self.outages_ms.get(self.outages_ms.len() / 2).copied()
    }

    fn worst(&self) -> Option<u64> {
        self.outages_ms.last().copied()
    }
}

/// The table: median, worst, lost, and how often Antiphon's median each peer's is.
pub(crate) fn table(outcomes: &[Outcome]) -> String {
    let mut rows = BTreeMap::new();
    for outcome in outcomes {
        rows.insert((outcome.event.words(), outcome.system.as_str()), outcome.event);
    }
    let mut text = String::new();
    let head = ["event", "system", "runs", "median", "worst", "ratio", "lost", "errors", "failed"];
    line(&mut text, &head.map(String::from));
    for ((words, system), event) in rows {
        let own = Summary::of(outcomes, Choice::Antiphon.name(), event).median();
        let summary = Summary::of(outcomes, system, event);
        let ratio = match (summary.median(), own) {
            (Some(theirs), Some(own)) if own > 0 && theirs < u64::MAX => {
                format!("{:.1}", theirs as f64 / own as f64)
            }
            _ => "-".into(),
        };
        let show = |outage: Option<u64>| outage.map_or("-".into(), seconds);
        let counts = [summary.lost.to_string(), summary.errors.to_string(), summary.failed.to_string()];
        let (median, worst) = (show(summary.median()), show(summary.worst()));
        let [lost, errors, failed] = counts;
        let runs = summary.runs.to_string();
        line(&mut text, &[words.into(), system.into(), runs, median, worst, ratio, lost, errors, failed]);
    }
    text
}

fn line(text: &mut String, cells: &[String; 9]) {
    let [event, system, runs, median, worst, ratio, lost, errors, failed] = cells;
    // Writing to a String cannot fail.
    let _always_ok = writeln!(
        text,
        "{event:<28} {system:<16} {runs:>4} {median:>9} {worst:>9} {ratio:>6} {lost:>5} {errors:>7} {failed:>6}"
    );
}

fn seconds(millis: u64) -> String {
    if millis == u64::MAX { "for ever".into() } else { format!("{:.2} s", millis as f64 / 1000.0) }
}

/// A figure as text, or a dash.
pub(crate) fn shown(figure: Option<f64>, digits: usize, unit: &str) -> String {
    figure.map_or("-".into(), |figure| format!("{figure:.digits$}{unit}"))
}

/// The middle one, the larger of the two middle ones when their number is even.
pub(crate) fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied()
}

/// Whether Antiphon met its goals.
pub(crate) enum Verdict {
    /// Each goal is met.
    Met,
    /// The goals that are not, in words.
    Short(Vec<String>),
    /// Antiphon was not measured.
    NotJudged,
}

impl Verdict {
    /// The exit code: 0 met, 1 short, 2 not judged.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Verdict::Met => 0,
            Verdict::Short(_) => 1,
            Verdict::NotJudged => 2,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Met => f.write_str("all goals are met"),
            Verdict::Short(goals) => write!(f, "goals that fall short: {}", goals.join("; ")),
            Verdict::NotJudged => f.write_str("no goal was judged: antiphon was not among the systems"),
        }
    }
}

/// Holds Antiphon's runs against the goals of the events asked for.
pub(crate) fn judge(outcomes: &[Outcome], events: &[Event], runs: u32) -> Verdict {
    let own = Choice::Antiphon.name();
    if !outcomes.iter().any(|outcome| outcome.system == own) {
        return Verdict::NotJudged;
    }
    let mut short = Vec::new();
    for event in events {
        let summary = Summary::of(outcomes, own, *event);
        let (median, worst) = event.goals();
        let mut hold = |what: &str, found: Option<u64>, goal: Duration| {
            let goal = u64::try_from(goal.as_millis()).unwrap_or(u64::MAX);
            if found.is_none_or(|found| found > goal) {
                let found = found.map_or("nothing measured".into(), seconds);
                short.push(format!("{}, {what}: {found}, goal {}", event.words(), seconds(goal)));
            }
        };
        hold("median", summary.median(), median);
        hold("worst", summary.worst(), worst);
        let measured = summary.runs - summary.failed;
        if measured < runs as usize {
            short.push(format!("{}: {measured} of {runs} runs were measured", event.words()));
        }
        if summary.lost > 0 {
            short.push(format!("{}: {} acknowledged writes were lost", event.words(), summary.lost));
        }
    }
    if short.is_empty() { Verdict::Met } else { Verdict::Short(short) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Node;

    fn outcome(event: Event, outage_ms: Option<u64>, lost: usize) -> Outcome {
        let outage = outage_ms.map(Duration::from_millis);
        let (from, to) = (Node::ALL[0], Node::ALL[1]);
        let measured = Measured { outage, acked: 100, lost, errors: 0, from, to };
        Outcome::new(Choice::Antiphon.name(), event, 1, Ok(measured))
    }

    fn said(outcomes: &[Outcome], runs: u32) -> String {
        judge(outcomes, &[Event::Switchover], runs).to_string()
    }

    #[test]
    fn goals_are_met_only_within_time_and_without_loss() {
        assert_eq!(said(&[outcome(Event::Switchover, Some(300), 0)], 1), "all goals are met");
        assert!(said(&[outcome(Event::Switchover, Some(301), 0)], 1).contains("median: 0.30 s"));
        assert!(
            said(&[outcome(Event::Switchover, Some(10), 1)], 1).contains("1 acknowledged writes were lost")
        );
    }

    #[test]
    fn silence_meets_no_goal() {
        assert_eq!(judge(&[], &[Event::Switchover], 1).code(), 2);
        assert!(said(&[outcome(Event::Switchover, None, 0)], 1).contains("for ever"));
        assert!(said(&[outcome(Event::Switchover, Some(10), 0)], 2).contains("1 of 2 runs"));
        assert!(said(&[outcome(Event::NodeKilled, Some(10), 0)], 1).contains("nothing measured"));
    }
}
