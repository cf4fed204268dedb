//! Why a transaction could not be applied.

use antiphon_core::Lsn;
use antiphon_core::mesh::rules::NoRules;
use thiserror::Error;

use super::merge::Detour;
use crate::announcement::NoAnnouncement;
use crate::name::TableName;
use crate::row::Misfit;
use crate::transaction::Nonsense;
use crate::wire::{ServerError, WireError};

/// Why a transaction could not be applied.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The connection failed, or a statement of ours did.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The server refused a change.
    #[error("could not apply a change of {table}, key {key}, of the transaction that ends at {end}: {error}")]
    Refused {
        /// The table.
        table: String,
        /// The row's key.
        key: String,
        /// The transaction.
        end: Lsn,
        /// What the server said.
        #[source]
        error: Box<ServerError>,
    },
    /// It does not fit the tables here.
    #[error("could not apply the transaction that ends at {end}: {misfit}")]
    Misfit {
        /// The transaction.
        end: Lsn,
        /// How.
        #[source]
        misfit: Misfit,
    },
    /// A table that takes no part here.
    #[error(
        "the other node sends changes of table {0}, which takes no part in the mesh here: run `antiphon mesh add-table`"
    )]
    Stranger(TableName),
    /// A conflict that a person has to decide.
    #[error(
        "a conflict ({kind}) in {table}, key {key}, is to be decided by hand, as the table's resolver says: change the row, then run `antiphon mesh skip`"
    )]
    Undecided {
        /// Its kind.
        kind: &'static str,
        /// The table.
        table: String,
        /// The row's key.
        key: String,
    },
    /// What decides its conflicts is set to nothing that is known.
    #[error("how conflicts of {table} are decided: {error}; run `antiphon mesh set-table --resolver`")]
    NoRules {
        /// The table.
        table: String,
        /// What is set.
        #[source]
        error: NoRules,
    },
    /// The log makes no sense.
    #[error("the stream of the other node makes no sense: {0}")]
    Nonsense(#[from] Nonsense),
    /// Its announcements make no sense.
    #[error(transparent)]
    Announcement(#[from] NoAnnouncement),
    /// Something else has to be done first.
    #[error("something has to be done first, in a transaction of its own")]
    Detour(Box<Detour>),
    /// Others write the same rows all the time.
    #[error("gave up on a row of {table}, key {key}, which others write all the time: it is tried again")]
    Restless {
        /// The table.
        table: String,
        /// The row's key.
        key: String,
    },
}

impl ApplyError {
    /// Whether the session is of no use any more.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(
            self,
            Self::Wire(WireError::Io { .. } | WireError::Closed { .. } | WireError::Protocol { .. })
        )
    }

    /// Whether the same may well succeed when it is tried again at once: somebody else held a lock or came first.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        let code = match self {
            Self::Refused { error, .. } | Self::Wire(WireError::Server(error)) => &error.code,
            Self::Restless { .. } => return true,
            _ => return false,
        };
        // Serialization failure, deadlock, lock not available, and a unique key that somebody took meanwhile.
        matches!(code.as_str(), "40001" | "40P01" | "55P03" | "23505")
    }
}
