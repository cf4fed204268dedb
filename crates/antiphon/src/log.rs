//! The log: lines on standard error, of a level that can change while the program runs.

use std::sync::Arc;

use tracing_subscriber::EnvFilter;

use crate::config::{LogConfig, LogFormat, LogLevel};

/// The variable that says what is logged, whatever the file says.
const VARIABLE: &str = "ANTIPHON_LOG";

/// The log of this process.
#[derive(Clone)]
pub struct Log {
    format: LogFormat,
    filter: Arc<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>,
}

impl Log {
    /// Starts it. Once in a process.
    pub fn start(log: &LogConfig) -> Self {
        let builder = tracing_subscriber::fmt()
            .with_env_filter(filter(log))
            .with_writer(std::io::stderr)
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .with_target(false);
        let filter: Arc<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync> = match log.format {
            LogFormat::Json => {
                let builder = builder.json().with_filter_reloading();
                let handle = builder.reload_handle();
                builder.init();
                Arc::new(move |filter| handle.reload(filter).map_err(|error| error.to_string()))
            }
            LogFormat::Plain => {
                let builder = builder.with_filter_reloading();
                let handle = builder.reload_handle();
                builder.init();
                Arc::new(move |filter| handle.reload(filter).map_err(|error| error.to_string()))
            }
        };
        Self { format: log.format, filter }
    }

    /// Logs as the file says now; what of it waits for a restart.
    pub fn change(&self, log: &LogConfig) -> Option<&'static str> {
        if let Err(why) = (self.filter)(filter(log)) {
            tracing::error!(why, "the level of the log could not be changed");
        }
        (self.format != log.format).then_some("log.format")
    }
}

fn filter(log: &LogConfig) -> EnvFilter {
    let level = match log.level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    };
    EnvFilter::new(std::env::var(VARIABLE).unwrap_or_else(|_| level.to_owned()))
}
