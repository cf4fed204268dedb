//! The server's processes: started, adopted, signalled, and seen to be gone.
//!
//! The main process is held by a pidfd, so its exit is an event, and a signal never reaches another process
//! that got its number. A dead main process is not the end of the server: every process that works in the
//! data directory is an orphan that may still commit, and the server counts as stopped when none is left.
//! `postmaster.pid` is never deleted here: a new server refuses to start while orphans live, and rightly.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use antiphon_core::Instant;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::Child;
use tokio::sync::watch;

use super::clock::now;
use super::control;

/// How often orphans are looked for again, beside their exit being an event: one may have forked another.
const ORPHAN_RESCAN: Duration = Duration::from_millis(200);

/// The server's processes as they are now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Processes {
    /// None, and how the last main process ended if nobody wished it.
    #[default]
    None,
    /// The main process runs.
    Running { pid: i32, since: Instant },
    /// The main process is gone, others are not.
    Orphans { how: String },
}

#[derive(Default)]
struct State {
    processes: Processes,
    crash: Option<String>,
    handle: Option<Arc<OwnedFd>>,
    /// A stop was asked for: the exit is no crash.
    stopping: bool,
}

/// Watches over the processes of one data directory.
pub(super) struct Supervisor {
    data: PathBuf,
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // A panic elsewhere leaves plain values behind, each of them valid.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Supervisor {
    /// Takes over what runs already.
    pub(super) fn new(data: PathBuf, changed: watch::Sender<u64>) -> Self {
        let supervisor = Self { data, state: Arc::default(), changed };
        if !supervisor.adopt() && !scan(&supervisor.data).is_empty() {
            lock(&supervisor.state).processes =
                Processes::Orphans { how: "the main process was gone when this agent started".to_owned() };
            let watcher = supervisor.watcher();
            tokio::spawn(async move { watcher.orphans().await });
        }
        supervisor
    }

    /// The processes now.
    pub(super) fn processes(&self) -> Processes {
        lock(&self.state).processes.clone()
    }

    /// How the server ended, if it was not asked to.
    pub(super) fn crash(&self) -> Option<String> {
        lock(&self.state).crash.clone()
    }

    /// Takes over a main process that runs and was not started here; true if there is one.
    pub(super) fn adopt(&self) -> bool {
        if self.processes() != Processes::None {
            return false;
        }
        let Some(file) = control::pid_file(&self.data) else { return false };
        let Some(handle) = open(file.pid) else { return false };
        // Looked at after the handle was opened: what is true now is true of the process that it holds.
        if !works_in(file.pid, &self.data) {
            return false;
        }
        tracing::info!(pid = file.pid, "adopted the running server");
        self.hold(file.pid, handle, None);
        true
    }

    /// Starts the main process, which outlives this one.
    pub(super) fn spawn(
        &self,
        postgres: &Path,
        config: &Path,
        settings: &[String],
        log: &Path,
    ) -> io::Result<()> {
        if self.processes() != Processes::None {
            return Err(io::Error::other("a server process is there already"));
        }
        if fs::metadata(log).is_ok_and(|log| log.len() > LOG_BYTES_MAX) {
            fs::rename(log, log.with_extension("log.1"))?;
        }
        let log = fs::OpenOptions::new().create(true).append(true).open(log)?;
        let mut setting = std::ffi::OsString::from("config_file=");
        setting.push(config);
        let mut command = tokio::process::Command::new(postgres);
        command.arg("-D").arg(&self.data).arg("-c").arg(setting);
        command.args(settings.iter().flat_map(|setting| ["-c", setting]));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // A group of its own: a signal from the terminal is for the agent, not for the server.
        command.process_group(0).env_remove("NOTIFY_SOCKET").current_dir("/");
        // Its WAL receiver is a client too.
        super::tool::isolate(command.as_std_mut());
        let child = command.spawn()?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        let Some((pid, handle)) = pid.and_then(|pid| Some((pid, open(pid)?))) else {
            return Err(io::Error::other("the server's process could not be opened"));
        };
        self.hold(pid, handle, Some(child));
        Ok(())
    }

    fn hold(&self, pid: i32, handle: OwnedFd, child: Option<Child>) {
        let handle = Arc::new(handle);
        let mut state = lock(&self.state);
        state.processes = Processes::Running { pid, since: now() };
        state.crash = None;
        state.stopping = false;
        state.handle = Some(Arc::clone(&handle));
        drop(state);
        let watcher = self.watcher();
        tokio::spawn(async move {
            let how = ended(&handle, child).await;
            watcher.main_ended(how).await;
        });
        self.changed.send_modify(|count| *count += 1);
    }

    fn watcher(&self) -> Watcher {
        Watcher { data: self.data.clone(), state: Arc::clone(&self.state), changed: self.changed.clone() }
    }

    /// Signals the main process; false if there is none.
    pub(super) fn signal(&self, signal: Signal) -> bool {
        let handle = lock(&self.state).handle.clone();
        handle.is_some_and(|handle| pidfd_send_signal(&*handle, signal).is_ok())
    }

    /// From now on an exit is what was asked for.
    pub(super) fn expect_exit(&self) {
        lock(&self.state).stopping = true;
    }

    /// SIGKILL to the main process and to every process in the data directory.
    pub(super) fn kill_all(&self) {
        // The main process first, so that it starts no others.
        self.signal(Signal::KILL);
        for (_, handle) in scan(&self.data) {
            if let Err(error) = pidfd_send_signal(&handle, Signal::KILL) {
                tracing::debug!(%error, "a server process ended before it could be killed");
            }
        }
    }

    /// Whether nothing runs in the data directory, not even what was never seen to start.
    pub(super) fn is_empty(&self) -> bool {
        self.processes() == Processes::None && scan(&self.data).is_empty()
    }
}

/// A log that has grown larger than this is renamed at the next start.
const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;

struct Watcher {
    data: PathBuf,
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
}

impl Watcher {
    async fn main_ended(&self, how: String) {
        let wished = {
            let mut state = lock(&self.state);
            state.handle = None;
            state.processes = Processes::Orphans { how: how.clone() };
            if !state.stopping {
                state.crash = Some(how.clone());
            }
            state.stopping
        };
        self.changed.send_modify(|count| *count += 1);
        if wished {
            tracing::info!(how, "the server stopped");
        } else {
            tracing::error!(how, "the server ended and was not asked to");
        }
        self.orphans().await;
    }

    /// Waits until no process is left in the data directory.
    async fn orphans(&self) {
        loop {
            let left = scan(&self.data);
            let Some((pid, handle)) = left.into_iter().next() else { break };
            tracing::debug!(pid, "a server process outlives the main one");
            // Both outcomes lead to another look.
            drop(tokio::time::timeout(ORPHAN_RESCAN, exit_of(handle)).await);
        }
        lock(&self.state).processes = Processes::None;
        self.changed.send_modify(|count| *count += 1);
    }
}

/// Waits for the end of a process and says how it ended, as far as a stranger can know.
async fn ended(handle: &Arc<OwnedFd>, child: Option<Child>) -> String {
    while !has_exited(handle) {
        match handle.try_clone() {
            Ok(duplicate) => exit_of(duplicate).await,
            Err(_) => tokio::time::sleep(ORPHAN_RESCAN).await,
        }
    }
    match child {
        Some(mut child) => match child.wait().await {
            Ok(status) => format!("its main process ended with {status}"),
            Err(error) => format!("its main process ended ({error})"),
        },
        None => "its main process ended (it was started by an earlier agent, so how is not known)".to_owned(),
    }
}

/// Waits until the process of a pidfd has exited: the pidfd becomes readable.
async fn exit_of(handle: OwnedFd) {
    #[allow(
        deprecated,
        reason = "its successor is unsafe, for descriptors that may be closed: an OwnedFd never is"
    )]
    let watched = AsyncFd::with_interest(handle, Interest::READABLE);
    match watched {
        Ok(watched) => {
            if let Err(error) = watched.readable().await {
                tracing::debug!(%error, "the runtime ends");
            }
        }
        Err(error) => {
            tracing::error!(%error, "a process cannot be watched: looking at it again and again instead");
            tokio::time::sleep(ORPHAN_RESCAN).await;
        }
    }
}

/// Whether the process of a pidfd has exited.
fn has_exited(handle: &OwnedFd) -> bool {
    let mut watched = [PollFd::new(handle, PollFlags::IN)];
    poll(&mut watched, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
}

fn open(pid: i32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

/// Whether this is a server process in that data directory: a shell that was left there is none.
fn works_in(pid: i32, data: &Path) -> bool {
    let link = |name: &str| fs::read_link(format!("/proc/{pid}/{name}")).ok();
    let server = |program: PathBuf| {
        program.file_name().is_some_and(|name| name.to_string_lossy().contains("postgres"))
    };
    link("cwd").is_some_and(|folder| folder == data) && link("exe").is_some_and(server)
}

/// Every live server process in the data directory.
fn scan(data: &Path) -> Vec<(i32, OwnedFd)> {
    let pids = processes().filter(|pid| works_in(*pid, data));
    pids.filter_map(|pid| Some((pid, open(pid)?))).filter(|(pid, _)| works_in(*pid, data)).collect()
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// SIGKILL to every server process in a data directory, for a guard that has no engine; how many there were.
pub fn kill_server(data: &Path) -> usize {
    let mut killed = 0;
    // A main process that is being killed can still have started a child: look again until nothing is left.
    for _ in 0..KILL_ROUNDS_MAX {
        let found = scan(data);
        if found.is_empty() {
            break;
        }
        killed += found.iter().filter(|(_, handle)| pidfd_send_signal(handle, Signal::KILL).is_ok()).count();
        std::thread::sleep(Duration::from_millis(5));
    }
    killed
}

/// Rounds of [`kill_server`]; one is enough unless a process was being started.
const KILL_ROUNDS_MAX: usize = 20;

/// Kills the tools that are at work, which run in the engine's own folder; true if there were any.
pub(super) fn kill_tools(state: &Path) -> bool {
    let mut any = false;
    for pid in processes() {
        let link = |name: &str| fs::read_link(format!("/proc/{pid}/{name}")).ok();
        let tool = |program: PathBuf| {
            let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
            ["pg_", "initdb", "postgres"].iter().any(|prefix| name.starts_with(prefix))
        };
        let ours = || link("cwd").is_some_and(|folder| folder == state) && link("exe").is_some_and(tool);
        let handle = if ours() { open(pid).filter(|_| ours()) } else { None };
        if let Some(handle) = handle {
            any = true;
            if let Err(error) = pidfd_send_signal(&handle, Signal::KILL) {
                tracing::debug!(%error, "a tool ended before it could be killed");
            }
        }
    }
    any
}

/// Has one process of the server end; it must be one.
pub(super) fn terminate(pid: i32, data: &Path) {
    if let Some(handle) = open(pid).filter(|_| works_in(pid, data))
        && let Err(error) = pidfd_send_signal(&handle, Signal::TERM)
    {
        tracing::debug!(pid, %error, "it ended before it could be told to");
    }
}
