//! What the console has closed: databases that are paused or disabled, and links that are to be made anew. And how
//! often a schema was changed, since when statements that were prepared before are not shared.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::shared::lock;

/// What is closed of one database, or of all.
#[derive(Debug, Default)]
pub struct Gate {
    paused: AtomicBool,
    disabled: AtomicBool,
    renewals: AtomicU64,
}

impl Gate {
    /// Sessions wait instead of getting links; whether that is new.
    pub fn pause(&self) -> bool {
        !self.paused.swap(true, Ordering::SeqCst)
    }

    /// Sessions get links again; whether that is new.
    pub fn resume(&self) -> bool {
        self.paused.swap(false, Ordering::SeqCst)
    }

    /// Whether sessions wait.
    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    /// New clients are turned away, or let in again.
    pub fn disable(&self, disabled: bool) {
        self.disabled.store(disabled, Ordering::SeqCst);
    }

    /// Whether new clients are turned away.
    pub fn is_disabled(&self) -> bool {
        self.disabled.load(Ordering::SeqCst)
    }

    /// Links that there are now are not given to anybody again.
    pub fn renew(&self) {
        self.renewals.fetch_add(1, Ordering::SeqCst);
    }
}

/// How often schemas have changed. Counted over all databases: what is prepared again needlessly costs little.
#[derive(Debug, Default)]
pub struct Schemas(AtomicU64);

impl Schemas {
    /// One was changed.
    pub fn changed(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    /// How often so far.
    pub fn changes(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// The gates of all databases.
#[derive(Debug, Default)]
pub struct Gates {
    /// What holds for every database.
    pub all: Gate,
    /// How often any schema was changed, or was found to have been.
    pub schemas: Schemas,
    databases: Mutex<HashMap<String, Arc<Gate>>>,
}

impl Gates {
    /// The gate of a database.
    pub fn of(&self, database: &str) -> Arc<Gate> {
        lock(&self.databases).entry(database.to_owned()).or_default().clone()
    }

    /// The databases that were named so far.
    pub fn databases(&self) -> Vec<Arc<Gate>> {
        lock(&self.databases).values().cloned().collect()
    }

    /// Whether sessions of a database wait.
    pub fn is_paused(&self, gate: &Gate) -> bool {
        self.all.is_paused() || gate.is_paused()
    }

    /// Grows when links of a database shall be made anew.
    pub fn renewals(&self, gate: &Gate) -> u64 {
        self.all.renewals.load(Ordering::SeqCst) + gate.renewals.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_closed_for_all_is_closed_for_each() {
        let gates = Gates::default();
        let (a, b) = (gates.of("a"), gates.of("b"));
        assert!(a.pause() && !a.pause());
        assert!(gates.is_paused(&gates.of("a")) && !gates.is_paused(&b));
        assert!(gates.all.pause() && gates.is_paused(&b));
        assert!(a.resume() && !a.resume() && gates.is_paused(&a));
        let before = (gates.renewals(&a), gates.renewals(&b));
        a.renew();
        gates.all.renew();
        assert_eq!((gates.renewals(&a), gates.renewals(&b)), (before.0 + 2, before.1 + 1));
    }
}
