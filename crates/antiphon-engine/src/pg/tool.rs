//! Runs PostgreSQL's own tools: pg_basebackup, pg_rewind, initdb, a single-user server.
//!
//! A tool runs in a process group of its own, in the engine's folder (so that a later agent finds what was
//! left over), with messages in English and passwords only in the password file. Dropping the future kills
//! the group.

use std::collections::VecDeque;
use std::path::Path;
use std::process::Stdio;

use nix::unistd::{User, geteuid};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use crate::EngineError;

/// Lines that are kept of what a tool said.
const LINES_MAX: usize = 40;

/// Kills a tool's process group unless it has ended.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0
            && let Err(error) = kill_process_group(pid, Signal::KILL)
        {
            tracing::debug!(%error, "a tool ended before it could be killed");
        }
    }
}

/// A tool's command with the environment that all of them get.
pub(super) fn command(program: &Path, folder: &Path, passwords: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder).env("LC_ALL", "C").env("PGPASSFILE", passwords);
    isolate(command.as_std_mut());
    command
}

/// Takes away what of the agent's environment would stand in for what a connection string does not say. libpq also
/// looks for certificates in the home directory, and fails if it may not look: an agent that root started has root's.
pub(super) fn isolate(command: &mut std::process::Command) {
    for name in LIBPQ_VARIABLES {
        command.env_remove(name);
    }
    if let Ok(Some(user)) = User::from_uid(geteuid()) {
        command.env("HOME", user.dir);
    }
}

const LIBPQ_VARIABLES: [&str; 16] = [
    "PGPASSWORD",
    "PGOPTIONS",
    "PGSERVICE",
    "PGHOST",
    "PGPORT",
    "PGUSER",
    "PGDATA",
    "PGDATABASE",
    "PGSSLMODE",
    "PGSSLCERT",
    "PGSSLKEY",
    "PGSSLROOTCERT",
    "PGSSLCRL",
    "PGSSLCRLDIR",
    "PGGSSENCMODE",
    "PGCHANNELBINDING",
];

/// Runs a tool to its end; returns what it said (its last lines, both streams). `on_line` sees each line.
pub(super) async fn run(
    what: &str,
    mut command: Command,
    mut on_line: impl FnMut(&str) + Send,
) -> Result<Vec<String>, EngineError> {
    let io = |source| EngineError::Io { what: what.to_owned(), source };
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(io)?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    let mut group = Group(pid);
    let (Some(mut out), Some(mut err)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(io(std::io::Error::other("its output is not connected")));
    };
    let mut lines = VecDeque::new();
    let mut keep = |text: &str| {
        on_line(text);
        if lines.len() == LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(text.to_owned());
    };
    let (mut from_out, mut from_err) = (Splitter::default(), Splitter::default());
    let (mut out_open, mut err_open) = (true, true);
    let (mut out_bytes, mut err_bytes) = ([0; 4096], [0; 4096]);
    while out_open || err_open {
        tokio::select! {
            read = out.read(&mut out_bytes), if out_open => {
                let count = read.map_err(io)?;
                out_open = count > 0;
                from_out.push(out_bytes.get(..count).unwrap_or_default(), &mut keep);
            }
            read = err.read(&mut err_bytes), if err_open => {
                let count = read.map_err(io)?;
                err_open = count > 0;
                from_err.push(err_bytes.get(..count).unwrap_or_default(), &mut keep);
            }
        }
    }
    let status = child.wait().await.map_err(io)?;
    group.0 = None;
    let lines: Vec<String> = lines.into();
    if status.success() {
        return Ok(lines);
    }
    let telling =
        |line: &&String| line.contains("error:") || line.contains("fatal:") || line.contains("FATAL:");
    let last = lines.iter().rev().find(telling).or(lines.last());
    let said = last.map_or_else(|| "it said nothing".to_owned(), |line| line.trim().to_owned());
    Err(EngineError::Failed { what: what.to_owned(), reason: format!("{said} ({status})") })
}

/// Cuts a stream into lines; a carriage return ends one too (progress reports).
#[derive(Default)]
struct Splitter(Vec<u8>);

/// A line longer than this is cut.
const LINE_BYTES_MAX: usize = 8192;

impl Splitter {
    fn push(&mut self, bytes: &[u8], line: &mut impl FnMut(&str)) {
        if bytes.is_empty() {
            self.flush(line);
        }
        for byte in bytes {
            if matches!(byte, b'\n' | b'\r') || self.0.len() == LINE_BYTES_MAX {
                self.flush(line);
            }
            if !matches!(byte, b'\n' | b'\r') {
                self.0.push(*byte);
            }
        }
    }

    fn flush(&mut self, line: &mut impl FnMut(&str)) {
        let text = String::from_utf8_lossy(&self.0).trim_end().to_owned();
        self.0.clear();
        if !text.is_empty() {
            line(&text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_tool_has_its_own_users_home_and_no_certificates_of_the_agents_environment() {
        let mut command = command(Path::new("/bin/sh"), Path::new("/"), Path::new("/nowhere"));
        command.env("PGSSLMODE", "disable").env("HOME", "/elsewhere");
        isolate(command.as_std_mut());
        command.args(["-c", "echo \"$HOME:$PGSSLMODE\""]);
        let said = run("try", command, |_| ()).await.expect("it ends well");
        let user = User::from_uid(geteuid()).expect("a directory of users").expect("this user");
        assert_eq!(said, [format!("{}:", user.dir.display())]);
    }

    #[tokio::test]
    async fn a_failed_tool_is_reported_by_its_telling_line() {
        let mut command = command(Path::new("/bin/sh"), Path::new("/"), Path::new("/nowhere"));
        command.args(["-c", "echo fine; echo 'x: error: no space left' >&2; echo later >&2; exit 3"]);
        let error = run("try", command, |_| ()).await.expect_err("it fails");
        assert!(error.to_string().contains("x: error: no space left"), "{error}");
    }
}
