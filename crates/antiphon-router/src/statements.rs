//! Prepared statements of the protocol, shared: one name of our own for each text, whoever prepared it.
//!
//! Pure. A client's names are its session's. On a server link a text has the name that it has in this store, so
//! that a statement that one client prepared is ready for the next one, and no two names clash. A name is never
//! used for a second text, and differs between threads, between which links move. What a text means depends on the
//! schema: one that is prepared after that has changed is another statement, as whoever prepared it before was told
//! other columns.

use std::collections::HashMap;
use std::sync::Arc;

use crate::sql::Effects;

/// Statements that a link keeps before the one that was used longest ago is closed.
const LINK_STATEMENTS_MAX: usize = 250;
/// Fewest texts at which the store looks for ones that nobody uses.
const SWEEP_AT_MIN: usize = 1000;

/// A text that was prepared.
#[derive(Debug)]
pub struct Statement {
    /// Unlike any other's in this process.
    pub id: u64,
    /// Its name on servers.
    pub name: String,
    /// The body of its Parse after the name: the text, a NUL, and the types of its parameters.
    pub text: Arc<[u8]>,
    /// What it may leave behind.
    pub effects: Effects,
    /// How often schemas had changed when it was prepared.
    schemas: u64,
}

/// The statements of a thread.
#[derive(Debug)]
pub struct Statements {
    by_text: HashMap<Arc<[u8]>, Arc<Statement>>,
    next: u64,
    /// At this many texts, those that nobody uses any more are forgotten.
    sweep_at: usize,
}

impl Statements {
    /// An empty store for a thread of this number.
    pub fn new(thread: u16) -> Self {
        Self { by_text: HashMap::new(), next: u64::from(thread) << 48, sweep_at: SWEEP_AT_MIN }
    }

    /// The statement of a text that is prepared when schemas have changed so often; `look` is asked what it may
    /// leave behind if it is new.
    pub fn get(&mut self, text: &[u8], schemas: u64, look: impl FnOnce() -> Effects) -> Arc<Statement> {
        if let Some(known) = self.by_text.get(text).filter(|known| known.schemas >= schemas) {
            return known.clone();
        }
        if self.by_text.len() >= self.sweep_at {
            self.by_text.retain(|_, statement| Arc::strong_count(statement) > 1);
            self.sweep_at = SWEEP_AT_MIN.max(2 * self.by_text.len());
        }
        let id = self.next;
        self.next += 1;
        let text: Arc<[u8]> = text.into();
        let name = format!("antiphon_{id:x}");
        let new = Arc::new(Statement { id, name, text: text.clone(), effects: look(), schemas });
        self.by_text.insert(text, new.clone());
        new
    }

    /// How many texts are kept.
    pub fn len(&self) -> usize {
        self.by_text.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.by_text.is_empty()
    }
}

/// The statements that a link's server knows.
#[derive(Debug, Default)]
pub struct Prepared {
    used: HashMap<u64, (u64, Arc<Statement>)>,
    clock: u64,
}

impl Prepared {
    /// Whether the server knows a statement; it counts as used now.
    pub fn has(&mut self, id: u64) -> bool {
        self.clock += 1;
        match self.used.get_mut(&id) {
            Some((used, _)) => {
                *used = self.clock;
                true
            }
            None => false,
        }
    }

    /// The server is told a statement; gives the one to close for it, if there are too many.
    pub fn add(&mut self, statement: &Arc<Statement>) -> Option<Arc<Statement>> {
        self.clock += 1;
        self.used.insert(statement.id, (self.clock, statement.clone()));
        if self.used.len() <= LINK_STATEMENTS_MAX {
            return None;
        }
        let oldest = self.used.iter().min_by_key(|(_, (used, _))| *used).map(|(id, _)| *id)?;
        self.used.remove(&oldest).map(|(_, statement)| statement)
    }

    /// The server does not know it after all.
    pub fn remove(&mut self, id: u64) {
        self.used.remove(&id);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.used.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.used.is_empty()
    }

    /// The server has forgotten all of them.
    pub fn clear(&mut self) {
        self.used.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_has_one_name_as_long_as_somebody_uses_it() {
        let mut store = Statements::new(1);
        let a = store.get(b"select 1\0\0\0", 0, Effects::default);
        let b = store.get(b"select 1\0\0\0", 0, || unreachable!("it is known"));
        assert_eq!(a.id, b.id);
        assert_ne!(Statements::new(2).get(b"x", 0, Effects::default).id >> 48, 1);
        for n in 0..10 * SWEEP_AT_MIN {
            store.get(n.to_string().as_bytes(), 0, Effects::default);
        }
        assert!(store.len() <= 2 * SWEEP_AT_MIN, "{} texts are kept", store.len());
        assert_eq!(store.get(b"select 1\0\0\0", 0, Effects::default).id, a.id);
    }

    #[test]
    fn a_text_is_another_statement_after_the_schema_has_changed() {
        let mut store = Statements::new(0);
        let before = store.get(b"select", 0, Effects::default);
        let after = store.get(b"select", 1, Effects::default);
        assert_ne!((before.id, &before.name), (after.id, &after.name));
        assert_eq!(store.get(b"select", 1, || unreachable!("it is known")).id, after.id);
    }

    #[test]
    fn a_link_closes_what_was_used_longest_ago() {
        let mut store = Statements::new(0);
        let mut prepared = Prepared::default();
        let all: Vec<_> = (0..=LINK_STATEMENTS_MAX)
            .map(|n| store.get(n.to_string().as_bytes(), 0, Effects::default))
            .collect();
        for statement in &all[..LINK_STATEMENTS_MAX] {
            assert!(prepared.add(statement).is_none());
        }
        assert!(prepared.has(all[0].id));
        let closed = prepared.add(&all[LINK_STATEMENTS_MAX]).unwrap();
        assert_eq!(closed.id, all[1].id);
        assert!(!prepared.has(closed.id));
    }
}
