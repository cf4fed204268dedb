//! One look at the server: its processes, its data directory, and one SQL round trip.
//!
//! A look takes at most [`LOOK`], whatever hangs: file access happens on another thread, and what has not
//! come back in time is replaced by what was last known, until that is too old to be believed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use antiphon_core::ha::cluster::Position;
use antiphon_core::ha::world::{Database, LogicalSlot, Server, Stopped, SyncNames, Task};
use antiphon_core::{Instant, Lsn, NodeName, Timeline};
use tokio::task::JoinHandle;

use super::binaries::Binaries;
use super::clock::now;
use super::control::{self, Directory, Facts};
use super::process::Processes;
use super::{Inner, lock};

mod answer;

/// The longest that one look takes.
const LOOK: Duration = Duration::from_millis(500);
/// How much of it the data directory's disk may take.
const LOOK_AT_FILES: Duration = Duration::from_millis(200);
/// How often what changes seldom is looked at.
const SELDOM: Duration = Duration::from_secs(1);

/// What a process of the server does: the process, and when it began.
type Doing = (i64, String);

/// What was seen before, for what one look cannot show.
#[derive(Default)]
pub(super) struct Memory {
    /// The main process that the rest is about.
    pid: Option<i32>,
    /// The latest answer, as a server.
    last: Option<Server>,
    unanswered: Option<(Instant, String)>,
    /// The highest timeline in a standby's `pg_wal`, and when that was seen.
    timeline: Option<SeenTimeline>,
    was_receiving: bool,
    /// Where the WAL of a standby ends that is to stream and does not, and since when.
    starved: Option<(Lsn, Instant)>,
    history: Option<(Timeline, Vec<Position>)>,
    waiting: BTreeMap<Doing, Instant>,
    last_streaming: BTreeMap<NodeName, Instant>,
    seldom: Option<Instant>,
    slots: BTreeMap<String, Option<Lsn>>,
    logical_slots: BTreeMap<String, LogicalSlot>,
    pub(super) proven: Option<SyncNames>,
    pub(super) checkpointed: Option<Instant>,
    complained: bool,
}

#[derive(Clone, Copy)]
struct SeenTimeline {
    timeline: Timeline,
    at: Instant,
    /// The receiver was known to be off before.
    surely_off: bool,
}

impl Memory {
    /// The next look reads the slots anew.
    pub(super) fn forget_slots(&mut self) {
        self.seldom = None;
    }

    /// PostgreSQL keeps copies of the leader's logical slots here, or did before a promotion.
    pub(super) fn has_copied_slots(&self) -> bool {
        self.logical_slots.values().any(|slot| slot.synced)
    }

    /// It was a primary when it last answered.
    pub(super) fn was_primary(&self) -> bool {
        matches!(self.last, Some(Server::Primary(_)))
    }

    /// Starts over for another main process.
    fn begin(&mut self, pid: i32) {
        if self.pid != Some(pid) {
            let last_streaming = std::mem::take(&mut self.last_streaming);
            *self = Self { pid: Some(pid), last_streaming, ..Self::default() };
        }
    }
}

/// What is known of the data directory, and the read of it that is under way.
#[derive(Default)]
pub(super) struct FactsCache {
    value: Option<Facts>,
    binaries: Option<Result<Binaries, String>>,
    /// When it was read, and how many events there had been.
    read: Option<(Instant, u64)>,
    under_way: Option<(JoinHandle<Found>, Instant, u64)>,
}

type Found = (Facts, Option<Result<Binaries, String>>);

impl Inner {
    pub(super) async fn observe(self: &Arc<Self>) -> Database {
        let started = tokio::time::Instant::now();
        let (facts, binaries) = self.facts().await;
        if facts.as_ref().is_some_and(|facts| facts.pid_file.is_some()) && self.tasks.running().is_none() {
            self.process.adopt();
        }
        let task = self.tasks.running();
        let server = match self.process.processes() {
            Processes::Running { pid, since } => {
                let left = LOOK.saturating_sub(started.elapsed());
                let found = facts.as_ref().is_some_and(|facts| !facts.standby);
                let primary = lock(&self.comes_up_primary).unwrap_or(found);
                self.running(pid, Server::Starting { since, primary }, task.map(|(task, _)| task), left).await
            }
            Processes::Orphans { how } => Server::Orphans { how },
            Processes::None => self.at_rest(facts.as_ref(), binaries, task.map(|(task, _)| task)),
        };
        let identifier = facts.as_ref().and_then(|facts| match &facts.directory {
            Directory::Data { control, .. } => Some(control.system_identifier.clone()),
            Directory::Absent | Directory::Foreign(_) => None,
        });
        let refused = identifier.as_ref().and_then(|identifier| self.identity_problem(identifier));
        let (slots, logical_slots) = {
            let memory = lock(&self.memory);
            (memory.slots.clone(), memory.logical_slots.clone())
        };
        Database {
            system_identifier: identifier,
            server: refused.map_or(server, |reason| Server::Refused { reason }),
            task,
            failed: self.tasks.failed(),
            half_built: facts.is_some_and(|facts| facts.half_built),
            disk_full: self.probe.full(),
            slots,
            logical_slots,
        }
    }

    /// What the files say, as new as their disk allows.
    async fn facts(&self) -> (Option<Facts>, Option<Result<Binaries, String>>) {
        let mut cache = self.facts.lock().await;
        let (now, events) = (now(), *self.events.borrow());
        let fresh = cache.read.is_some_and(|(at, seen)| seen == events && now.since(at) < SELDOM);
        if !fresh && cache.under_way.is_none() {
            let paths = self.paths.clone();
            let known = cache.binaries.clone().filter(Result::is_ok);
            let configured = self.settings().bin_dir.clone();
            let read = tokio::task::spawn_blocking(move || {
                let facts = control::inspect(&paths);
                let major = match &facts.directory {
                    Directory::Data { major, .. } => Some(*major),
                    Directory::Absent | Directory::Foreign(_) => None,
                };
                let binaries = major.map(|major| match known {
                    Some(Ok(known)) if known.major == major => Ok(known),
                    _ => {
                        Binaries::find(configured.as_deref(), Some(major)).map_err(|error| error.to_string())
                    }
                });
                (facts, binaries)
            });
            cache.under_way = Some((read, now, events));
        }
        if let Some((mut read, at, seen)) = cache.under_way.take() {
            match tokio::time::timeout(LOOK_AT_FILES, &mut read).await {
                Ok(Ok((facts, binaries))) => {
                    cache.value = Some(facts);
                    cache.binaries = binaries;
                    cache.read = Some((at, seen));
                }
                Ok(Err(error)) => tracing::error!(%error, "the look at the data directory failed"),
                Err(_) => cache.under_way = Some((read, at, seen)),
            }
        }
        (cache.value.clone(), cache.binaries.clone())
    }

    fn at_rest(
        &self,
        facts: Option<&Facts>,
        binaries: Option<Result<Binaries, String>>,
        task: Option<Task>,
    ) -> Server {
        let building = matches!(task, Some(Task::Initialise | Task::Clone));
        let Some(facts) = facts else {
            let why = "the data directory's disk does not answer".to_owned();
            return Server::Stuck { since: now(), why, primary: false };
        };
        match &facts.directory {
            Directory::Absent => Server::Absent,
            Directory::Foreign(_) if building => Server::Absent,
            Directory::Foreign(reason) => Server::Refused { reason: reason.clone() },
            Directory::Data { control, backup, .. } => {
                if let Some(Err(reason)) = binaries {
                    return Server::Refused { reason };
                }
                Server::Stopped(Stopped {
                    crash: self.process.crash(),
                    clean: control.clean && !backup,
                    primary: control.primary && !backup,
                    restored: *backup,
                    checkpoint: control.checkpoint,
                })
            }
        }
    }

    async fn running(
        self: &Arc<Self>,
        pid: i32,
        starting: Server,
        task: Option<Task>,
        limit: Duration,
    ) -> Server {
        lock(&self.memory).begin(pid);
        if matches!(task, Some(Task::Stop(_))) {
            // It takes no connections any more; what it was last is what it is until it is gone.
            return lock(&self.memory).last.clone().unwrap_or(starting);
        }
        let asked = tokio::time::timeout(limit, self.ask()).await;
        let timeout = self.settings().failure_timeout;
        let why = match asked {
            Ok(Ok(server)) => {
                let mut memory = lock(&self.memory);
                memory.unanswered = None;
                memory.last = Some(server.clone());
                drop(memory);
                // A follower's storage is looked at for its space; that it is slow costs nobody a write.
                return match (self.probe.look(timeout), &server) {
                    (Some((since, why)), Server::Primary(_)) => Server::Stuck { since, why, primary: true },
                    (Some(_) | None, _) => server,
                };
            }
            Ok(Err(why)) => why,
            Err(_) => format!("it has not answered a query within {limit:?}"),
        };
        let mut memory = lock(&self.memory);
        let Some(last) = memory.last.clone() else { return starting };
        let (since, why) = memory.unanswered.get_or_insert_with(|| (now(), why)).clone();
        let primary = matches!(last, Server::Primary(_));
        if now().since(since) < timeout { last } else { Server::Stuck { since, why, primary } }
    }

    /// Whether the receiver is known to be off, if it is to be off.
    fn receiver_is_off(&self) -> bool {
        self.receiver_off.load(Ordering::SeqCst)
    }
}
