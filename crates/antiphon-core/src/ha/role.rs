//! Role: what a member is at a moment, as lists, metrics and the HTTP API show it.

use serde::{Deserialize, Serialize};

use crate::{Epoch, NodeName};

/// What a member is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case")]
pub enum Role {
    /// Votes and holds no data.
    Witness,
    /// Has no part yet: no cluster, no data, or a directory that must not be touched.
    Waiting,
    /// Creates or adopts the first data directory.
    Bootstrapping,
    /// Leads with a server that accepts writes, in this term.
    Leader {
        /// The term.
        epoch: Epoch,
    },
    /// Was given leadership and its server does not accept writes yet.
    Promoting {
        /// The term.
        epoch: Epoch,
    },
    /// Streams from another member.
    Follower {
        /// From whom.
        upstream: NodeName,
    },
    /// Follows nobody: an election is open, or the leader does not serve yet.
    Fenced {
        /// The term that it is fenced for.
        epoch: Epoch,
    },
    /// Was a primary and is being stopped.
    Demoting,
    /// Its data directory is being brought back to the leader's history.
    Rejoining,
}
