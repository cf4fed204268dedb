//! Clocks: one true time in nanoseconds, and each node's own, which starts elsewhere and runs at its own rate.
//!
//! Decisions see only a node's own clock. Events are scheduled on the true one.

use antiphon_core::Instant;

/// True time since the simulation began, in nanoseconds.
pub type Time = u64;

/// A microsecond.
pub const US: Time = 1_000;
/// A millisecond.
pub const MS: Time = 1_000_000;
/// A second.
pub const SEC: Time = 1_000_000_000;

/// A node's boot-time clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    offset: u64,
    base: Time,
    parts_per_million: u64,
}

impl Clock {
    /// A clock that shows `offset` at the start and runs at the given rate.
    pub fn new(offset: u64, parts_per_million: u64) -> Self {
        Self { offset, base: 0, parts_per_million }
    }

    /// What it shows at a true time.
    pub fn local(&self, now: Time) -> Instant {
        let span = u128::from(now.saturating_sub(self.base)) * u128::from(self.parts_per_million) / 1_000_000;
        Instant(self.offset + u64::try_from(span).unwrap_or(u64::MAX / 2))
    }

    /// The first true time at which it shows `at` or more.
    pub fn real(&self, at: Instant) -> Time {
        let span = u128::from(at.0.saturating_sub(self.offset)) * 1_000_000;
        let span = span.div_ceil(u128::from(self.parts_per_million));
        self.base + u64::try_from(span).unwrap_or(u64::MAX / 2)
    }

    /// Goes on at another rate from `now` on.
    pub fn set_rate(&mut self, now: Time, parts_per_million: u64) {
        self.offset = self.local(now).0;
        self.base = now;
        self.parts_per_million = parts_per_million;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_reaches_what_it_is_asked_for_and_never_goes_back() {
        let mut clock = Clock::new(77, 990_001);
        for at in [1, 5 * MS, 3 * SEC + 1, 90 * SEC] {
            let wanted = Instant(77 + at);
            assert!(clock.local(clock.real(wanted)) >= wanted);
        }
        let before = clock.local(SEC);
        clock.set_rate(SEC, 1_010_000);
        assert!(clock.local(SEC) >= before);
    }
}
