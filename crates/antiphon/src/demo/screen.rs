//! The demo's view: a frame that is drawn over itself on a terminal, plain lines elsewhere.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::load::Load;

/// Slices of the time line.
const SLICES: usize = 60;
/// Width of a slice.
const SLICE: Duration = Duration::from_millis(500);
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Where the demo speaks.
pub struct Screen {
    live: bool,
    drawn: usize,
    started: Instant,
    told: Vec<String>,
}

impl Screen {
    /// Live on a terminal, unless `plain`.
    pub fn new(plain: bool) -> Self {
        let live = !plain && std::io::stdout().is_terminal();
        Self { live, drawn: 0, started: Instant::now(), told: Vec::new() }
    }

    /// Whether frames are drawn.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// Says something that stays.
    pub fn tell(&mut self, line: &str) {
        let line = format!("{:>6.1} s  {line}", self.started.elapsed().as_secs_f64());
        if !self.live {
            println!("{line}");
        }
        self.told.push(line);
    }

    /// Draws the members and the load over the frame before.
    pub fn draw(&mut self, seen: Option<&Value>, load: Option<&Load>) {
        let mut frame = String::from("\x1b[1mAntiphon demo\x1b[0m  three PostgreSQL servers on loopback\n\n");
        members(&mut frame, seen);
        if let Some(load) = load {
            writes(&mut frame, load);
        }
        self.draw_frame(frame);
    }

    /// Draws this, and below it what was told, over the frame before.
    pub fn draw_frame(&mut self, mut frame: String) {
        if !self.live {
            return;
        }
        frame.push('\n');
        for line in self.told.iter().rev().take(14).rev() {
            // Writing to a String cannot fail.
            let _ = writeln!(frame, "{line}");
        }
        let mut out = std::io::stdout().lock();
        if self.drawn > 0 {
            let _ = write!(out, "\x1b[{}A\x1b[J", self.drawn);
        }
        let _ = out.write_all(frame.as_bytes());
        let _ = out.flush();
        self.drawn = frame.lines().count();
    }
}

fn members(frame: &mut String, seen: Option<&Value>) {
    let _ = writeln!(
        frame,
        "  \x1b[2m{:<8}{:<16}{:<18}{:>4}  {:>10}\x1b[0m",
        "member", "role", "state", "TL", "lag"
    );
    let members = seen.and_then(|seen| seen["members"].as_array()).cloned().unwrap_or_default();
    for member in &members {
        let text = |key: &str| member[key].as_str().unwrap_or("").to_owned();
        let lag = match &member["lag"] {
            Value::Number(bytes) => format!("{bytes} B"),
            other => other.as_str().unwrap_or("").to_owned(),
        };
        let colour = match (text("role").as_str(), text("state").as_str()) {
            ("leader", "running") => "\x1b[32;1m",
            (_, "streaming") => "\x1b[32m",
            _ => "\x1b[33m",
        };
        let timeline = member["timeline"].as_u64().map_or_else(String::new, |timeline| timeline.to_string());
        let _ = writeln!(
            frame,
            "  {colour}{:<8}{:<16}{:<18}\x1b[0m{timeline:>4}  {lag:>10}",
            text("name"),
            text("role"),
            text("state")
        );
    }
    if members.is_empty() {
        frame.push_str("  no member answers yet\n");
    }
}

fn writes(frame: &mut String, load: &Load) {
    let rates = load.rates(SLICE, SLICES);
    let highest = rates.iter().copied().max().unwrap_or(0).max(1);
    let line: String = rates
        .iter()
        .map(|count| if *count == 0 { ' ' } else { BARS[(count * (BARS.len() - 1)) / highest] })
        .collect();
    let latest = rates.iter().rev().skip(1).take(2).sum::<usize>();
    let (acknowledged, unknown) = load.counts();
    let _ = writeln!(frame, "\n  writes/s {latest:>6}  \x1b[36m{line}\x1b[0m");
    let _ = writeln!(frame, "  acknowledged {acknowledged}, outcome unknown {unknown}");
}
