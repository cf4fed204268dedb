//! The user's scripts: callbacks, for which nobody waits, and those that the engine waits for.
//!
//! Lines are split into words as a shell does. What is waited for is ended with its task: a harder stop does not
//! wait for a script of a softer one.

use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;

use super::settings::Callbacks;
use super::{Inner, tool};
use crate::{EngineError, sentence};

/// A script's program, and its arguments.
pub(super) fn words(script: &str) -> Result<(String, Vec<String>), EngineError> {
    let wrong = || EngineError::Failed {
        what: format!("read the command {script:?}"),
        reason: "it is empty, or a quote in it is not closed".to_owned(),
    };
    let mut words = shlex::split(script).ok_or_else(wrong)?.into_iter();
    Ok((words.next().ok_or_else(wrong)?, words.collect()))
}

impl Inner {
    /// Runs a script in the background; its errors are only logged.
    pub(super) fn call_back(
        &self,
        choose: impl FnOnce(&Callbacks) -> Option<String>,
        action: &'static str,
        role: &'static str,
    ) {
        let settings = self.settings();
        let Some(script) = choose(&settings.callbacks) else { return };
        let (program, arguments) = match words(&script) {
            Ok(words) => words,
            Err(error) => {
                return tracing::warn!(action, error = sentence(&error), "a callback could not run");
            }
        };
        tokio::spawn(async move {
            let mut command = Command::new(program);
            command.args(arguments).args([action, role, &settings.scope]).stdin(Stdio::null());
            match command.kill_on_drop(true).status().await {
                Ok(status) if status.success() => tracing::debug!(script, action, "called back"),
                Ok(status) => tracing::warn!(script, action, %status, "a callback failed"),
                Err(error) => {
                    tracing::warn!(script, action, error = sentence(&error), "a callback could not run");
                }
            }
        });
    }

    /// What must succeed before a promotion.
    pub(super) async fn pre_promote(&self) -> Result<(), EngineError> {
        match &self.settings().pre_promote {
            Some(script) => self.wait_for("run the pre_promote script", script).await,
            None => Ok(()),
        }
    }

    /// What runs before a stop that clients are given time for; its failure keeps no server running.
    pub(super) async fn before_stop(&self) {
        let settings = self.settings();
        let Some(script) = &settings.before_stop else { return };
        if let Err(error) = self.wait_for("run the before_stop script", script).await {
            tracing::warn!(script, error = sentence(&error), "the server is stopped nevertheless");
        }
    }

    async fn wait_for(&self, what: &str, script: &str) -> Result<(), EngineError> {
        let (program, arguments) = words(script)?;
        let mut command = tool::command(Path::new(&program), &self.paths.state, &self.paths.passwords());
        command.args(arguments);
        tool::run(what, command, |line| tracing::info!(script, line)).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_split_as_a_shell_does() {
        let (program, arguments) = words("/opt/x 'a b' c\\ d \"\"").unwrap();
        assert_eq!(
            (program.as_str(), arguments),
            ("/opt/x", vec!["a b".into(), "c d".into(), String::new()])
        );
        for script in ["", " ", "x 'a"] {
            assert!(words(script).unwrap_err().to_string().contains("quote"), "{script}");
        }
    }
}
