//! Wall clocks: what a server takes commit times from. They are wrong, drift, are set, and some are coarse.

use antiphon_core::mesh::CommitTime;

use crate::clock::{SEC, Time, US};

/// A server's wall clock, in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Wall {
    /// How far it is ahead of the true time at `since`; negative: behind.
    ahead: i64,
    since: Time,
    /// How many microseconds it gains in a second.
    drift: i64,
    /// It goes on in steps of so many microseconds.
    grain: i64,
}

impl Wall {
    /// A clock.
    pub fn new(ahead: i64, drift: i64, grain: i64) -> Self {
        Self { ahead, since: 0, drift, grain: grain.max(1) }
    }

    fn exact(&self, now: Time) -> i64 {
        let gained = (now - self.since) as i64 / US as i64 * self.drift / (SEC / US) as i64;
        (now / US) as i64 + self.ahead + gained
    }

    /// What it shows.
    pub fn read(&self, now: Time) -> CommitTime {
        CommitTime(self.exact(now).div_euclid(self.grain) * self.grain)
    }

    /// Sets it forward, or back.
    pub fn step(&mut self, now: Time, micros: i64) {
        let shown = self.exact(now);
        self.ahead = shown - (now / US) as i64 + micros;
        self.since = now;
    }

    /// True time that passes, about, until it has gone on by so many microseconds.
    pub fn until(&self, micros: u64) -> Time {
        (micros + self.grain as u64) * US
    }
}
