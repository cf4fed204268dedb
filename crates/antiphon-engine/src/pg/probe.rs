//! Does the storage under the WAL still finish a write?
//!
//! A thread of its own writes and syncs a small file in `pg_wal`, because a stuck disk must hang that thread
//! and nothing else. At most one write is under way; what it found, or for how long it has been at it, is
//! read without waiting.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use antiphon_core::Instant;

use super::clock::now;

/// The least time between two writes.
const INTERVAL: Duration = Duration::from_secs(1);

/// A disk with less space left than this is full: the server needs more for the next relation or segment.
const FULL_BYTES: u64 = 128 * 1024;

#[derive(Default)]
struct State {
    /// When the write that is under way began.
    begun: Option<Instant>,
    ended: Option<Instant>,
    /// Since when writes fail, and how the latest one did.
    failing: Option<(Instant, String)>,
    /// No space is left.
    full: bool,
}

/// The probing thread's near end.
pub(super) struct Probe {
    state: Arc<Mutex<State>>,
    ask: mpsc::SyncSender<()>,
}

impl Probe {
    /// Starts the thread, which ends when this is dropped. It writes in `wal`, and asks for the space left
    /// there and in `data`, which may be another disk.
    pub(super) fn start(wal: PathBuf, data: PathBuf) -> io::Result<Self> {
        let state = Arc::<Mutex<State>>::default();
        let (ask, asked) = mpsc::sync_channel(1);
        let shared = Arc::clone(&state);
        std::thread::Builder::new().name("storage-probe".to_owned()).spawn(move || {
            let mut full = false;
            while asked.recv().is_ok() {
                full = tell_if_full([&wal, &data], full);
                let result = write(&wal.join("antiphon.probe"));
                let mut state = shared.lock().unwrap_or_else(PoisonError::into_inner);
                state.full = full;
                state.begun = None;
                state.ended = Some(now());
                state.failing = match (result, state.failing.take()) {
                    (Ok(()), _) => None,
                    (Err(error), before) => {
                        Some((before.map_or_else(now, |(since, _)| since), error.to_string()))
                    }
                };
            }
        })?;
        Ok(Self { state, ask })
    }

    /// Whether no space was left at the latest probe.
    pub(super) fn full(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).full
    }

    /// Has the next write begin if one is due; since when the storage does not serve, and why, if so.
    pub(super) fn look(&self, timeout: Duration) -> Option<(Instant, String)> {
        let now = now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let due = state.begun.is_none() && state.ended.is_none_or(|ended| now.since(ended) >= INTERVAL);
        if due && self.ask.try_send(()).is_ok() {
            state.begun = Some(now);
        }
        let late = state.begun.filter(|begun| now.since(*begun) >= timeout);
        let hung =
            late.map(|since| (since, format!("a write and sync in pg_wal has not ended within {timeout:?}")));
        hung.or_else(|| {
            let (since, error) = state.failing.as_ref()?;
            Some((*since, format!("a write and sync in pg_wal failed: {error}")))
        })
    }
}

/// Says when the storage becomes full, and when it is not any more; whether it is.
fn tell_if_full(folders: [&Path; 2], before: bool) -> bool {
    let left = |folder: &Path| {
        let space = rustix::fs::statvfs(folder).ok()?;
        Some(space.f_bavail.saturating_mul(space.f_frsize))
    };
    // What cannot be asked fails the write, too, and is told there.
    let least = folders.into_iter().filter_map(|folder| Some((left(folder)?, folder))).min();
    let Some((left, folder)) = least else { return before };
    let full = left < FULL_BYTES;
    if full && !before {
        tracing::error!(
            folder = %folder.display(), left,
            "the server's disk is full: writes fail; free space there. A leader hands over to a follower that has space"
        );
    } else if before && !full {
        tracing::info!(folder = %folder.display(), left, "the server's disk has space again");
    }
    full
}

fn write(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).write(true).truncate(false).open(path)?;
    file.write_all(&[b'.'; 512])?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait_for(probe: &Probe, wanted: impl Fn(Option<&(Instant, String)>) -> bool) -> bool {
        let deadline = now() + Duration::from_secs(5);
        while now() < deadline {
            if wanted(probe.look(Duration::from_secs(1)).as_ref()) {
                return true;
            }
            std::thread::yield_now();
        }
        false
    }

    #[test]
    fn a_disk_with_space_is_not_told_full() {
        let (here, nowhere) = (std::env::temp_dir(), Path::new("/nonexistent/folder"));
        assert!(!tell_if_full([&here, nowhere], true));
        assert!(tell_if_full([nowhere, nowhere], true), "what cannot be asked changes nothing");
    }

    #[test]
    fn storage_that_fails_a_write_is_reported_with_the_reason() {
        let probe = Probe::start("/nonexistent/folder".into(), "/".into()).expect("a thread");
        assert!(wait_for(&probe, |found| found.is_some_and(|(_, why)| why.contains("No such file"))));
    }

    #[test]
    fn storage_that_serves_is_not_reported() {
        let folder = std::env::temp_dir().join(format!("antiphon-probe-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let probe = Probe::start(folder.clone(), folder.clone()).expect("a thread");
        assert!(wait_for(&probe, |found| found.is_none() && folder.join("antiphon.probe").exists()));
        std::fs::remove_dir_all(&folder).expect("removed");
    }
}
