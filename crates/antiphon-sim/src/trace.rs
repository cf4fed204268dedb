//! The trace of a run: a hash of every event always, the events as text when asked for.
//!
//! Two runs of a seed have the same hash. Text is only put together when somebody reads it.

use crate::clock::{MS, Time};

/// The longest trace that is kept; older lines make room.
const LINES_MAX: usize = 200_000;

/// What happened.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    lines: Option<std::collections::VecDeque<String>>,
}

impl Trace {
    /// A trace that keeps text if `verbose`.
    pub fn new(verbose: bool) -> Self {
        Self { hash: 0xCBF2_9CE4_8422_2325, lines: verbose.then(std::collections::VecDeque::new) }
    }

    /// Takes a number into the hash.
    pub fn mix(&mut self, value: u64) {
        self.hash = (self.hash ^ value).wrapping_mul(0x0000_0100_0000_01B3).rotate_left(23);
    }

    /// Notes a line, put together only if somebody wants it.
    pub fn note(&mut self, now: Time, line: impl FnOnce() -> String) {
        let Some(lines) = &mut self.lines else { return };
        if lines.len() >= LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(format!("{:>6}.{:03} {}", now / (1000 * MS), now / MS % 1000, line()));
    }

    /// Whether text is kept.
    pub fn is_verbose(&self) -> bool {
        self.lines.is_some()
    }

    /// The hash of all events so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for line in self.lines.iter().flatten() {
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}
