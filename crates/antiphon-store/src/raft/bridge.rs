//! The library's voice.
//!
//! Raft's own log lines, sent to `tracing`, one level down: what matters to an operator is said by this
//! crate.

use slog::{Drain, Level, Logger, Never, OwnedKVList, Record, o};

/// A logger for the library.
pub(crate) fn logger() -> Logger {
    Logger::root(Bridge, o!())
}

struct Bridge;

impl Drain for Bridge {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, _values: &OwnedKVList) -> Result<(), Never> {
        match record.level() {
            Level::Critical | Level::Error => tracing::error!(target: "raft", "{}", record.msg()),
            Level::Warning | Level::Info => tracing::debug!(target: "raft", "{}", record.msg()),
            Level::Debug | Level::Trace => tracing::trace!(target: "raft", "{}", record.msg()),
        }
        Ok(())
    }
}
