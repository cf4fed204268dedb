//! The boot-time clock, for the one question of the API that depends on it: is the lease still running?

use antiphon_core::Instant;
use nix::time::{ClockId, clock_gettime};

/// This moment, on the clock that the agent's observations are stamped with.
pub(super) fn now() -> Instant {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME)
        .expect("CLOCK_BOOTTIME exists on every Linux since 2.6.39, and reading it cannot fail otherwise");
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec()).unwrap_or(0);
    Instant(seconds * 1_000_000_000 + nanoseconds)
}
