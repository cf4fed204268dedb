//! PostgreSQL 14 to 18: the [`Engine`] that the agent uses.
//!
//! [`Postgres`] is a handle; what it does is spread over this folder by question: what is seen
//! (`observe`), what is written (`config`, `fence`), who runs (`process`), and one file for each kind of
//! work. Dropping it leaves the server running, to be adopted by the next one.

mod binaries;
mod clock;
mod clone;
mod config;
mod control;
mod fence;
mod files;
mod initialise;
pub mod knock;
mod least;
mod logical_slots;
mod observe;
mod probe;
pub mod process;
mod promote;
mod receiver;
mod rewind;
mod scripts;
pub mod settings;
mod slots;
mod sql;
mod start;
mod sync_names;
mod tasks;
mod tls;
mod tool;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use antiphon_core::ha::step::NewLogicalSlot;
use antiphon_core::ha::world::{Database, Upstream};
use antiphon_core::{Epoch, Lsn};
use async_trait::async_trait;
use tokio::sync::watch;

use self::config::Role;
use self::control::{Directory, Facts};
use self::files::Paths;
use self::observe::{FactsCache, Memory};
use self::probe::Probe;
use self::process::{Processes, Supervisor};
use self::settings::PgSettings;
use self::sql::{Session, Target};
use self::tasks::Tasks;
use crate::{About, Change, Engine, EngineError, Work};

/// How long a quick operation may take.
const QUICK: Duration = Duration::from_secs(2);

/// Hands on one PostgreSQL server.
pub struct Postgres {
    inner: Arc<Inner>,
}

struct Inner {
    settings: RwLock<Arc<PgSettings>>,
    paths: Paths,
    expected: Mutex<Option<String>>,
    process: Supervisor,
    events: watch::Sender<u64>,
    /// What the configuration says; held while files are written, so that two writers never mix.
    role: tokio::sync::Mutex<Role>,
    /// The upstream of `role`, for observations.
    upstream: Mutex<Option<Upstream>>,
    fenced: AtomicU64,
    /// The startup process is known to have taken over that there is nobody to stream from.
    receiver_off: AtomicBool,
    /// Held while the data directory is changed by a thread that cannot be interrupted.
    directory: Arc<tokio::sync::Mutex<()>>,
    /// Held while the server's configuration is written by one.
    config_files: Arc<tokio::sync::Mutex<()>>,
    /// Held while the receiver is proven to be off.
    proving: tokio::sync::Mutex<()>,
    /// Counts changes of the upstream, so that a proof of an older one is not taken for the newer one's.
    upstream_changes: AtomicU64,
    tasks: Tasks,
    eyes: tokio::sync::Mutex<Session>,
    memory: Mutex<Memory>,
    facts: tokio::sync::Mutex<FactsCache>,
    probe: Probe,
    /// Held while logical slots are made: when that last failed, and why.
    making_slots: Arc<tokio::sync::Mutex<Option<logical_slots::Failed>>>,
    progress: Mutex<Option<String>>,
    about: Mutex<About>,
    /// Whether the server that was started here comes up as a primary; none if it was found running.
    comes_up_primary: Mutex<Option<bool>>,
    /// What the server was when it was last stopped here, for the callbacks.
    stopped_as: Mutex<Option<&'static str>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves plain values behind, each of them valid.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Postgres {
    /// Takes charge of a server: reads what was promised and adopts what runs. Blocks for a moment.
    ///
    /// # Errors
    /// When the engine's own folder cannot be used, or what is in it cannot be read: a promise that cannot
    /// be read is never guessed at.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn open(settings: PgSettings) -> Result<Self, EngineError> {
        let paths = Paths::prepare(&settings.data_dir, &settings.state_dir)?;
        let fenced = fence::read(&paths)?;
        let role = Role::read(&paths).map_err(|source| EngineError::Io {
            what: format!("read {}: repair or remove it", paths.role().display()),
            source,
        })?;
        if process::kill_tools(&paths.state) {
            tracing::warn!("killed a tool that an earlier agent left at work");
        }
        let (events, _) = watch::channel(0);
        let probe = Probe::start(paths.wal(), paths.data.clone()).map_err(|source| EngineError::Io {
            what: "start the storage probe's thread".to_owned(),
            source,
        })?;
        let upstream = role.upstream.as_ref().map(upstream_of);
        let inner = Inner {
            process: Supervisor::new(paths.data.clone(), events.clone()),
            settings: RwLock::new(Arc::new(settings)),
            paths,
            expected: Mutex::default(),
            events,
            role: tokio::sync::Mutex::new(role),
            upstream: Mutex::new(upstream),
            fenced: AtomicU64::new(fenced.0),
            receiver_off: AtomicBool::new(false),
            directory: Arc::default(),
            config_files: Arc::default(),
            proving: tokio::sync::Mutex::default(),
            upstream_changes: AtomicU64::new(0),
            tasks: Tasks::default(),
            eyes: tokio::sync::Mutex::default(),
            memory: Mutex::default(),
            facts: tokio::sync::Mutex::default(),
            probe,
            making_slots: Arc::default(),
            progress: Mutex::default(),
            about: Mutex::default(),
            comes_up_primary: Mutex::default(),
            stopped_as: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }
}

fn upstream_of(following: &config::Following) -> Upstream {
    Upstream { name: following.name.clone(), epoch: following.epoch }
}

impl Inner {
    fn settings(&self) -> Arc<PgSettings> {
        Arc::clone(&self.settings.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn fenced(&self) -> Epoch {
        Epoch(self.fenced.load(Ordering::SeqCst))
    }

    fn changed(&self) {
        self.events.send_modify(|count| *count += 1);
    }

    fn say(&self, progress: String) {
        *lock(&self.progress) = Some(progress);
    }

    /// Where the local server is reached: as it says itself, else as it will be told.
    fn target(&self) -> Target {
        let settings = self.settings();
        let told = config::socket_folders(&self.paths, &settings).into_iter().next();
        Target { socket_dir: told.unwrap_or_default().into(), port: settings.port }
    }

    /// A fresh connection to the local server.
    async fn connect(&self) -> Result<tokio_postgres::Client, EngineError> {
        if !matches!(self.process.processes(), Processes::Running { .. }) {
            return Err(EngineError::NotRunning { what: "connect to the server".to_owned() });
        }
        sql::connect(&self.target(), &self.settings().superuser, QUICK).await
    }

    /// A fresh connection to one database of the local server.
    async fn connect_to_database(&self, database: &str) -> Result<tokio_postgres::Client, EngineError> {
        sql::connect_to_database(&self.target(), &self.settings().superuser, database, QUICK).await
    }

    /// Changes the data directory off the event loop, one change at a time.
    async fn change_directory<T: Send + 'static>(
        &self,
        what: &str,
        change: impl FnOnce(&Paths) -> io::Result<T> + Send + 'static,
    ) -> Result<T, EngineError> {
        let paths = self.paths.clone();
        files::exclusively(&self.directory, what, move || change(&paths)).await
    }

    /// The data directory, which must be one that may be used and at rest.
    async fn directory_at_rest(&self, what: &str) -> Result<Facts, EngineError> {
        if !self.process.is_empty() {
            let reason = "processes of it are still there: stop it first".to_owned();
            return Err(EngineError::Failed { what: what.to_owned(), reason });
        }
        let paths = self.paths.clone();
        let facts = files::blocking(what, move || Ok(control::inspect(&paths))).await?;
        let refused = match &facts.directory {
            Directory::Foreign(reason) => Some(reason.clone()),
            Directory::Data { control, .. } => self.identity_problem(&control.system_identifier),
            Directory::Absent => None,
        };
        match refused {
            Some(reason) => Err(EngineError::Failed { what: what.to_owned(), reason }),
            None => Ok(facts),
        }
    }

    /// Why a data directory with this identifier must not be touched.
    fn identity_problem(&self, identifier: &str) -> Option<String> {
        let expected = lock(&self.expected).clone()?;
        (expected != identifier).then(|| {
            format!(
                "the data directory {} has the system identifier {identifier} and this cluster {expected}: it belongs \
                 to another cluster; move it away or name another data directory",
                self.paths.data.display()
            )
        })
    }

    async fn perform(self: &Arc<Self>, work: Work) -> Result<(), EngineError> {
        match work {
            Work::Initialise => self.initialise().await,
            Work::Clone { address, keep_old } => self.clone_from(&address, keep_old).await,
            Work::Rewind { address } => self.rewind(&address).await,
            Work::StartStandby { upstream } => self.start_standby(upstream).await,
            Work::StartPrimary { epoch, sync } => self.start_primary(epoch, &sync).await,
            Work::Promote { epoch, timeline, sync } => self.promote(epoch, timeline, &sync).await,
            Work::Stop { mode } => self.stop(mode).await,
            Work::SetSync { sync, prove } => self.set_sync(&sync, prove).await,
            Work::Checkpoint => self.checkpoint().await,
        }
    }
}

#[async_trait]
impl Engine for Postgres {
    async fn observe(&self) -> Database {
        self.inner.observe().await
    }

    fn events(&self) -> watch::Receiver<u64> {
        self.inner.events.subscribe()
    }

    fn expect_system_identifier(&self, identifier: Option<String>) {
        *lock(&self.inner.expected) = identifier;
    }

    async fn fence(&self, epoch: Epoch) -> Result<(), EngineError> {
        self.inner.fence(epoch).await
    }

    fn fenced(&self) -> Epoch {
        self.inner.fenced()
    }

    async fn follow(&self, upstream: Upstream, address: &str) -> Result<(), EngineError> {
        self.inner.follow(upstream, address).await
    }

    async fn unfollow(&self) -> Result<(), EngineError> {
        self.inner.unfollow().await
    }

    async fn slots(
        &self,
        keep: &[(String, Option<Lsn>)],
        drop: &[String],
        logical: &[NewLogicalSlot],
    ) -> Result<(), EngineError> {
        self.inner.slots(keep, drop, logical).await
    }

    async fn reload(&self, change: Change) -> Result<bool, EngineError> {
        self.inner.reload(change).await
    }

    fn begin(&self, work: Work) -> Result<(), EngineError> {
        let task = work.task();
        let inner = &self.inner;
        inner.tasks.begin(task, |id| {
            let inner = Arc::clone(inner);
            *lock(&inner.progress) = None;
            // Boxed: the future of the longest work would be moved around otherwise.
            let running = Box::pin(async move {
                let result = inner.perform(work).await;
                *lock(&inner.progress) = None;
                inner.tasks.end(id, &result);
                inner.changed();
            });
            tokio::spawn(running).abort_handle()
        })
    }

    fn progress(&self) -> Option<String> {
        lock(&self.inner.progress).clone()
    }

    fn about(&self) -> About {
        lock(&self.inner.about).clone()
    }
}
