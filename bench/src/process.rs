//! Running and ending processes: commands with a deadline, servers with a log file, signals by process id.
//!
//! It ends only processes it is given by id; it never looks any up by name.

use std::fs::{File, OpenOptions, create_dir_all};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, chown};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

/// Servers run as this user: PostgreSQL refuses root.
pub(crate) const SERVER_USER: &str = "postgres";

const POLL: Duration = Duration::from_millis(250);

/// Runs a command to its end and returns its output; an error when it fails or takes longer than `limit`.
pub(crate) async fn run(mut command: Command, limit: Duration) -> anyhow::Result<String> {
    let shown = format!("{:?}", command.as_std());
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(limit, command.output())
        .await
        .with_context(|| format!("{shown} did not end within {limit:?}"))?
        .with_context(|| format!("could not run {shown}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{shown} ended with {}: {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Starts a server that writes what it says to `log`.
pub(crate) fn start(mut command: Command, log: &Path) -> anyhow::Result<Child> {
    let open = || OpenOptions::new().create(true).append(true).open(log);
    let (out, err): (File, File) = (open()?, open()?);
    command.stdin(Stdio::null()).stdout(out).stderr(err);
    // A group of its own: the terminal's interrupt is for us, we stop the servers ourselves.
    command.process_group(0).kill_on_drop(true);
    command.spawn().with_context(|| format!("could not start {:?}", command.as_std()))
}

/// Sends a signal to one process; one that is gone already needs none.
pub(crate) fn send(pid: Option<u32>, signal: Signal) {
    if let Some(pid) = pid.and_then(|pid| i32::try_from(pid).ok()) {
        let _gone = kill(Pid::from_raw(pid), signal);
    }
}

/// Kills a server we started and waits for its end, so that no dead process stays behind.
pub(crate) async fn kill_and_reap(child: &mut Child) {
    if let Err(error) = child.kill().await {
        eprintln!("could not end process {:?}: {error}", child.id());
    }
}

/// Asks again until `look` answers yes; it says what it waits for when `limit` has passed.
pub(crate) async fn wait_until<F, Answer>(what: &str, limit: Duration, mut look: F) -> anyhow::Result<()>
where
    F: FnMut() -> Answer,
    Answer: Future<Output = Result<(), String>>,
{
    let deadline = Instant::now() + limit;
    loop {
        let Err(why) = look().await else { return Ok(()) };
        if Instant::now() >= deadline {
            bail!("{what}: not within {limit:?}: {why}");
        }
        sleep(POLL).await;
    }
}

/// A fresh folder for one measurement, on disk (not in memory), that the server user can enter.
pub(crate) fn work_folder() -> anyhow::Result<PathBuf> {
    let folder = PathBuf::from(format!("/var/tmp/antiphon-bench-{}", std::process::id()));
    create_dir_all(&folder)?;
    Ok(folder)
}

/// Makes a folder that belongs to the server user.
pub(crate) fn server_folder(folder: &Path) -> anyhow::Result<()> {
    create_dir_all(folder).with_context(|| format!("could not make {}", folder.display()))?;
    let user = User::from_name(SERVER_USER)?;
    let user =
        user.with_context(|| format!("there is no user {SERVER_USER}: install PostgreSQL from apt"))?;
    chown(folder, Some(user.uid), Some(user.gid))?;
    Ok(())
}
