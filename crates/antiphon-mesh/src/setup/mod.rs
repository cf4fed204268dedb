//! Making a database a node: the first one, one more, and no more.

mod add;
mod copy;
mod create;
mod install;
mod join;
mod leave;
mod level;
mod preflight;
mod sequences;
mod settings;

use thiserror::Error;

use crate::node::{NodeError, explain};
use crate::verify::VerifyError;
use crate::wire::WireError;

pub use add::{Addition, add_table, types};
pub use create::{Creation, create};
pub use join::{Joining, Progress, join};
pub use leave::{Leaving, leave};
pub use preflight::{Finding, check};
pub use sequences::{STEP, sequences, spread_sequences};
pub use settings::{Set, Settings, set_table};

/// Why a set-up was not done.
#[derive(Debug, Error)]
pub enum SetupError {
    /// A server cannot be reached.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A server refused something.
    #[error("{}", explain(.0))]
    Control(#[from] tokio_postgres::Error),
    /// A database is not what it should be.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// Nodes could not be compared, or made the same.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// Something has to be put right first.
    #[error("not ready:{}", findings.iter().map(|finding| format!("\n  {finding}")).collect::<String>())]
    NotReady {
        /// What, each with its remedy.
        findings: Vec<Finding>,
    },
    /// It cannot be done.
    #[error("{0}")]
    Refused(String),
}
