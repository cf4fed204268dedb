//! Why a verb was not carried out, by what the caller can do about it: each kind has its exit code.

use std::process::ExitCode;

use thiserror::Error;

/// A verb that was not carried out.
#[derive(Debug, Error)]
pub enum Failure {
    /// It was refused, or it failed (exit code 1).
    #[error("{0}")]
    Refused(String),
    /// The command line or a file is wrong (exit code 2).
    #[error("{0}")]
    Usage(String),
    /// A member could not be reached; nothing was done (exit code 3).
    #[error("could not reach {url}: {why}")]
    Unreachable {
        /// Where.
        url: String,
        /// What went wrong.
        why: String,
    },
    /// No answer came to a request that was sent: it may have been carried out (exit code 4).
    #[error("{0}")]
    Unknown(String),
}

impl Failure {
    /// The process's exit code.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code())
    }

    /// The same as a number.
    pub fn code(&self) -> u8 {
        match self {
            Self::Refused(_) => 1,
            Self::Usage(_) => 2,
            Self::Unreachable { .. } => 3,
            Self::Unknown(_) => 4,
        }
    }
}
