//! Commands: what an operator can ask of one agent. What concerns the whole cluster is written to the store
//! instead, so that it survives the agent that was asked.

use antiphon_core::ha::world::Reinitialise;
use tokio::sync::oneshot;

/// An order to this agent.
#[derive(Debug)]
pub enum Command {
    /// Restart the server here, in place, as primary or standby as it is.
    Restart {
        /// Answered when the server answers again, or with what went wrong.
        done: oneshot::Sender<Result<(), String>>,
    },
    /// Read the node file again and reload the server.
    Reload {
        /// Answered with the parameters that now wait for a restart.
        done: oneshot::Sender<Result<Vec<String>, String>>,
    },
    /// Build the data directory here anew from another member.
    Reinitialise {
        /// From whom, and whether what goes on is broken off.
        how: Reinitialise,
        /// Answered when the work has begun, or with why it cannot.
        done: oneshot::Sender<Result<(), String>>,
    },
}

/// How many commands may wait for the agent.
pub const COMMANDS_MAX: usize = 16;
