//! Pace: turns the time that passes into ticks, and says when the next one that matters is due.
//!
//! A member that is at rest sleeps through the ticks that change nothing and counts them afterwards: waking for
//! each would be most of what an idle member costs. Time beyond the planned rest is never counted. The thread
//! could not use it, be it that the process was paused or that the host was busy, so it must not count against
//! the leader.

use std::time::Duration;

use tokio::time::Instant;

/// Counts ticks.
pub(super) struct Pace {
    tick: Duration,
    /// Ticks are counted up to here.
    counted: Instant,
    rest: u64,
}

impl Pace {
    /// Counts from now on, first in single ticks.
    pub(super) fn new(tick: Duration, now: Instant) -> Self {
        Self { tick: tick.max(Duration::from_millis(1)), counted: now, rest: 1 }
    }

    /// This many ticks may pass before the next one matters; at least one.
    pub(super) fn rest(&mut self, ticks: u64) {
        self.rest = ticks.max(1);
    }

    /// When the rest is over.
    pub(super) fn over(&self) -> Instant {
        self.counted + self.tick * u32::try_from(self.rest).unwrap_or(u32::MAX)
    }

    /// The ticks that have passed and count: those within the rest.
    pub(super) fn passed(&mut self, now: Instant) -> u64 {
        let span = now.saturating_duration_since(self.counted).as_nanos();
        let tick = self.tick.as_nanos();
        // Less than a tick, so it fits.
        let begun = Duration::from_nanos(u64::try_from(span % tick).unwrap_or(0));
        if span >= tick {
            self.counted = now - begun;
        }
        u64::try_from(span / tick).unwrap_or(u64::MAX).min(self.rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(10);

    fn pace() -> (Pace, Instant) {
        let start = Instant::now();
        (Pace::new(TICK, start), start)
    }

    #[test]
    fn every_tick_of_a_rest_is_counted_once() {
        let (mut pace, start) = pace();
        pace.rest(7);
        assert_eq!(pace.over(), start + 7 * TICK);
        // Something came in after 4.5 ticks.
        assert_eq!(pace.passed(start + TICK * 9 / 2), 4);
        assert_eq!(pace.passed(start + TICK * 19 / 4), 0);
        pace.rest(2);
        assert_eq!(pace.over(), start + 6 * TICK);
        assert_eq!(pace.passed(start + 6 * TICK), 2);
    }

    #[test]
    fn a_pause_counts_for_no_more_than_the_rest_that_was_planned() {
        let (mut pace, start) = pace();
        let woken = start + 1000 * TICK + TICK / 2;
        assert_eq!(pace.passed(woken), 1);
        assert_eq!(pace.over(), start + 1001 * TICK);
        assert_eq!(pace.passed(woken), 0);
        // A clock that stands still, or a reading that is older, is no time at all.
        assert_eq!(pace.passed(start), 0);
    }
}
