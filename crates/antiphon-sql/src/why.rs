//! Why a statement is not certainly a read: each reason is a sentence an operator can act on.
//!
//! The reasons are for `SHOW` and for logs; what to do is always the same, go to the leader.

use std::fmt;

/// Why a statement goes to the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Why {
    /// INSERT, UPDATE, DELETE, MERGE, TRUNCATE and the like.
    Writes,
    /// A WITH query that changes rows.
    WritesInWith,
    /// SELECT INTO.
    Into,
    /// FOR UPDATE and its kin.
    Locks,
    /// A statement that is no query.
    Utility,
    /// BEGIN, COMMIT and the like: see [`crate::Transaction`].
    TransactionControl,
    /// SET, SHOW or RESET of one of our own settings: see [`crate::Setting`].
    OwnSetting,
    /// The parser did not take it, or it nests too deep.
    Unparsable,
    /// Longer than [`crate::TEXT_MAX`].
    TooLong,
    /// The parser took it, but this crate does not know the construct.
    Unclear,
    /// It names a temporary table or schema.
    Temporary,
    /// It calls a function, or uses an operator or a type, that may write or differ from call to call.
    Volatile,
    /// It calls a function whose answer is of the server, not of the data.
    ServerState,
    /// It reads a view of the server's own state.
    ServerView,
    /// It reads or moves a sequence.
    Sequence,
    /// It takes or asks for an advisory lock.
    AdvisoryLock,
    /// It reads or writes large objects.
    LargeObject,
    /// It calls something that depends on, or changes, settings of the session.
    SessionSetting,
    /// It reads a table that has no copy on followers.
    Unlogged,
    /// It reads a foreign table.
    Foreign,
    /// A name that the catalogue does not have, perhaps because it is new.
    UnknownName,
    /// The database's catalogue was not read yet, or could not be.
    NoCatalogue,
}

impl Why {
    /// The sentence.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Writes => "it changes data",
            Self::WritesInWith => "a WITH query in it changes data",
            Self::Into => "SELECT INTO creates a table; write CREATE TABLE AS to make that plain",
            Self::Locks => "it locks rows (FOR UPDATE or the like)",
            Self::Utility => "it is no query",
            Self::TransactionControl => "it begins or ends a transaction",
            Self::OwnSetting => "it concerns the router itself",
            Self::Unparsable => "PostgreSQL's parser did not take it, or it nests too deep",
            Self::TooLong => "it is too long to be looked through; a hint can send it to a follower",
            Self::Unclear => "it has a construct that is not looked into; a hint can send it to a follower",
            Self::Temporary => "it names a temporary table, which only its session's server has",
            Self::Volatile => {
                "it uses a function, operator or type that is VOLATILE; declare it STABLE if it only reads"
            }
            Self::ServerState => "it asks about the server, which only the leader can answer for",
            Self::ServerView => "it reads a view of the server's own state",
            Self::Sequence => "it reads or moves a sequence, which only the leader knows exactly",
            Self::AdvisoryLock => "an advisory lock means something on the leader only",
            Self::LargeObject => "it uses large objects",
            Self::SessionSetting => "it depends on settings of the session on its server",
            Self::Unlogged => "it reads an unlogged table, which followers do not have",
            Self::Foreign => "it reads a foreign table",
            Self::UnknownName => "it uses a name that the catalogue does not have yet",
            Self::NoCatalogue => "the catalogue of its database was not read yet",
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.sentence())
    }
}
