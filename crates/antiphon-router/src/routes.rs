//! Why a statement went where it went: one reason each, counted.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is certainly a read, and a follower is far enough.
    Follower,
    /// Reads are not split off.
    Off,
    /// The session keeps its link to the leader.
    Pinned,
    /// It is not certainly a read.
    NotARead,
    /// Not all of it had come when it had to be decided, or it is too long to be repeated.
    NotWhole,
    /// The session wants the leader's answers.
    Strong,
    /// No follower is well.
    NoneWell,
    /// Every follower is farther behind than the file allows.
    Lagging,
    /// No follower is known to have what the session must see.
    NoneFarEnough,
    /// A follower could not answer it.
    Refused,
    /// No link to the chosen follower was free in time.
    Busy,
    /// The console has paused the database: it waits.
    Paused,
}

/// All reasons, in their order.
const ALL: [Reason; 12] = [
    Reason::Follower,
    Reason::Off,
    Reason::Pinned,
    Reason::NotARead,
    Reason::NotWhole,
    Reason::Strong,
    Reason::NoneWell,
    Reason::Lagging,
    Reason::NoneFarEnough,
    Reason::Refused,
    Reason::Busy,
    Reason::Paused,
];

impl Reason {
    /// A word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Follower => "follower",
            Self::Off => "off",
            Self::Pinned => "pinned",
            Self::NotARead => "not_a_read",
            Self::NotWhole => "not_whole",
            Self::Strong => "strong",
            Self::NoneWell => "none_well",
            Self::Lagging => "lagging",
            Self::NoneFarEnough => "none_far_enough",
            Self::Refused => "refused",
            Self::Busy => "busy",
            Self::Paused => "paused",
        }
    }
}

/// How many statements or transactions went somewhere for each reason.
#[derive(Debug, Default)]
pub struct Routes([AtomicU64; ALL.len()]);

impl Routes {
    /// One more.
    pub fn count(&self, reason: Reason) {
        if let Some(count) = self.0.get(reason as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many for each reason.
    pub fn counts(&self) -> impl Iterator<Item = (Reason, u64)> {
        ALL.into_iter().zip(&self.0).map(|(reason, count)| (reason, count.load(Ordering::Relaxed)))
    }

    /// Adds those of another.
    pub fn add(&self, other: &Self) {
        for (count, more) in self.0.iter().zip(&other.0) {
            count.fetch_add(more.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

impl std::fmt::Display for Routes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (place, (reason, count)) in self.counts().filter(|(_, count)| *count > 0).enumerate() {
            let between = if place == 0 { "" } else { " " };
            write!(f, "{between}{}={count}", reason.word())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_count() {
        for (place, reason) in ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, place);
            let routes = Routes::default();
            routes.count(reason);
            routes.count(reason);
            routes.add(&routes);
            assert_eq!(routes.to_string(), format!("{}=4", reason.word()));
        }
    }
}
