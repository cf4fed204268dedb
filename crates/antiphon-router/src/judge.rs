//! What may be done with a text: looked up by its bytes, or by its shape without literals, and judged once.
//!
//! One for each database of a thread. A verdict holds for every session of the database; what depends on the
//! session (its settings, its transaction) is asked elsewhere (`route`). In doubt a text belongs to the leader.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use antiphon_sql::{Access, Catalogue, Content, Hint, Isolation, Statement, Transaction, Why};

use crate::sql;

/// Texts that are kept, and their bytes.
const TEXTS_MAX: usize = 20_000;
const BYTES_MAX: usize = 16 * 1024 * 1024;
/// Texts of which a follower has said that they are no reads.
const REFUSED_MAX: usize = 10_000;

/// What may be done with a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// It certainly only reads, and a follower answers it as the leader would.
    Reads,
    /// It begins a transaction that only reads, and does nothing else.
    BeginsReading,
    /// It is not certain what it does. In a transaction that only reads, a follower may say.
    Unproven,
    /// Only the leader can answer it, and a follower would answer wrongly instead of refusing.
    LeaderOnly,
}

/// The verdicts of a database.
#[derive(Debug, Default)]
pub struct Judge {
    known: HashMap<Box<[u8]>, Known>,
    bytes: usize,
    refused: HashSet<Box<[u8]>>,
    catalogue: Option<Arc<Catalogue>>,
    /// Verdicts of an earlier catalogue are passed anew.
    version: u64,
    asked: bool,
    /// Room for a shape.
    shape: Vec<u8>,
}

#[derive(Debug)]
struct Known {
    class: Class,
    version: u64,
    /// What it says by itself; none if that is enough for a verdict.
    statement: Option<Box<Statement>>,
}

impl Judge {
    /// What may be done with a text.
    pub fn class(&mut self, sql: &[u8]) -> Class {
        // A text without literals is its own shape, and costs no more than this.
        if let Some(known) = self.known.get_mut(sql) {
            return known.class(self.version, self.catalogue.as_deref());
        }
        let mut shape = std::mem::take(&mut self.shape);
        shape_of(sql, &mut shape);
        let class = match self.known.get_mut(shape.as_slice()) {
            Some(known) => known.class(self.version, self.catalogue.as_deref()),
            None => self.look(sql, &shape),
        };
        self.shape = shape;
        class
    }

    /// A follower refused a text: it is no read, whatever was thought.
    pub fn refuse(&mut self, sql: &[u8]) {
        if self.refused.len() >= REFUSED_MAX {
            self.refused.clear();
        }
        let mut shape = Vec::new();
        shape_of(sql, &mut shape);
        self.known.remove(shape.as_slice());
        self.refused.insert(shape.into());
    }

    /// What names mean from now on; none if that is not known.
    pub fn learn(&mut self, catalogue: Option<Arc<Catalogue>>) {
        self.catalogue = catalogue;
        self.version += 1;
    }

    /// Whether what names mean has to be asked for: it has not been yet.
    pub fn wants_catalogue(&mut self) -> bool {
        !std::mem::replace(&mut self.asked, true)
    }

    /// Judges a text of a shape that is not known.
    fn look(&mut self, sql: &[u8], shape: &[u8]) -> Class {
        if self.known.len() >= TEXTS_MAX || self.bytes >= BYTES_MAX {
            self.forget();
        }
        let refused = self.refused.contains(shape);
        let (class, statement) = match std::str::from_utf8(sql) {
            Ok(_) if sql::effects(sql).pins.is_some() => (Class::LeaderOnly, None),
            Ok(text) if !refused => {
                let statement = antiphon_sql::parse(text);
                (judge(&statement, self.catalogue.as_deref()), Some(Box::new(statement)))
            }
            Ok(_) | Err(_) => (Class::Unproven, None),
        };
        self.bytes += shape.len();
        self.known.insert(shape.into(), Known { class, version: self.version, statement });
        class
    }

    fn forget(&mut self) {
        self.known.clear();
        self.bytes = 0;
    }
}

impl Known {
    /// The verdict by the catalogue of this version.
    fn class(&mut self, version: u64, catalogue: Option<&Catalogue>) -> Class {
        if self.version != version {
            self.version = version;
            if let Some(statement) = &self.statement {
                self.class = judge(statement, catalogue);
            }
        }
        self.class
    }
}

/// A text without its literals, which do not decide what it is.
fn shape_of(sql: &[u8], into: &mut Vec<u8>) {
    match std::str::from_utf8(sql) {
        Ok(text) => antiphon_sql::shape(text, into),
        Err(_) => {
            into.clear();
            into.extend_from_slice(sql);
        }
    }
}

fn judge(statement: &Statement, catalogue: Option<&Catalogue>) -> Class {
    if let Content::Transaction(Transaction::Begin(modes)) = &statement.content {
        let reads = modes.access == Some(Access::ReadOnly)
            && modes.isolation != Some(Isolation::Serializable)
            && statement.hint != Some(Hint::Leader);
        return if reads { Class::BeginsReading } else { Class::Unproven };
    }
    let verdict = match catalogue {
        Some(catalogue) => antiphon_sql::certainly_reads(statement, catalogue),
        None => Err(Why::NoCatalogue),
    };
    let because = match (verdict, statement.hint) {
        (Ok(()), Some(Hint::Follower) | None) => return Class::Reads,
        (Ok(()), Some(Hint::Leader)) => return Class::Unproven,
        (Err(why), hint) => (why, hint),
    };
    match because {
        (
            Why::AdvisoryLock
            | Why::Sequence
            | Why::Temporary
            | Why::LargeObject
            | Why::SessionSetting
            | Why::Unlogged,
            _,
        ) => Class::LeaderOnly,
        // Its author knows better than we do; should it write after all, the follower says so.
        (
            Why::Volatile
            | Why::Unclear
            | Why::TooLong
            | Why::UnknownName
            | Why::ServerState
            | Why::ServerView
            | Why::Foreign,
            Some(Hint::Follower),
        ) => Class::Reads,
        (_, _) => Class::Unproven,
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// One that knows a table `t` and a few functions.
    pub fn informed() -> Judge {
        let mut judge = Judge::default();
        let rows = [
            ["relation", "public", "t", "safe", "", ""],
            ["function", "public", "stable_one", "safe", "", ""],
            ["function", "public", "volatile_one", "volatile", "", ""],
        ];
        judge.learn(Some(Arc::new(Catalogue::from_rows(rows))));
        judge
    }

    #[test]
    fn only_what_is_proved_reads() {
        let mut judge = informed();
        let cases = [
            ("SELECT * FROM t", Class::Reads),
            ("SELECT stable_one()", Class::Reads),
            ("SELECT volatile_one()", Class::Unproven),
            ("SELECT volatile_one() /* antiphon: follower */", Class::Reads),
            ("SELECT * FROM t /* antiphon: leader */", Class::Unproven),
            ("SELECT * FROM t FOR UPDATE", Class::Unproven),
            ("INSERT INTO t VALUES (1)", Class::Unproven),
            ("INSERT INTO t VALUES (1) /* antiphon: follower */", Class::Unproven),
            ("BEGIN READ ONLY", Class::BeginsReading),
            ("BEGIN", Class::Unproven),
            ("BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY", Class::Unproven),
            ("BEGIN READ ONLY; SELECT 1", Class::Unproven),
            ("LISTEN x", Class::LeaderOnly),
            ("SET work_mem = '1MB'", Class::LeaderOnly),
        ];
        for (sql, class) in cases {
            assert_eq!(judge.class(sql.as_bytes()), class, "{sql}");
            assert_eq!(judge.class(sql.as_bytes()), class, "{sql}, again");
        }
    }

    #[test]
    fn verdicts_follow_the_catalogue() {
        let mut judge = Judge::default();
        assert_eq!(judge.class(b"SELECT * FROM t"), Class::Unproven);
        judge.learn(informed().catalogue);
        assert_eq!(judge.class(b"SELECT * FROM t"), Class::Reads);
        judge.learn(None);
        assert_eq!(judge.class(b"SELECT * FROM t"), Class::Unproven);
    }

    #[test]
    fn a_text_that_was_refused_stays_refused() {
        let mut judge = informed();
        assert_eq!(judge.class(b"SELECT * FROM t"), Class::Reads);
        judge.refuse(b"SELECT * FROM t");
        assert_eq!(judge.class(b"SELECT * FROM t"), Class::Unproven);
        judge.learn(informed().catalogue);
        assert_eq!(judge.class(b"SELECT * FROM t"), Class::Unproven);
        for number in 0..2 * TEXTS_MAX {
            judge.class(format!("SELECT * FROM t WHERE n = {number}").as_bytes());
        }
        assert_eq!(judge.known.len(), 2, "literals make no other text");
        for number in 0..2 * TEXTS_MAX {
            judge.class(format!("LISTEN x{number}").as_bytes());
        }
        assert!(judge.known.len() <= TEXTS_MAX);
    }
}
