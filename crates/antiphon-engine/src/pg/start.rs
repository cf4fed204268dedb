//! Starting as standby or primary, stopping, reloading, and the scripts that are told of it.
//!
//! A start checks everything that could make it a wrong one first; the role's files are written while the
//! role is locked, so that a fence that comes in meanwhile is written after them and told to the server.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use antiphon_core::Epoch;
use antiphon_core::ha::world::{StopMode, SyncNames, Upstream};
use rustix::process::Signal;
use tokio::time::{Instant as Deadline, sleep_until};

use super::binaries::Binaries;
use super::clock::now;
use super::config::{self, Following, NOBODY_YET, Role};
use super::control::{Control, Directory};
use super::files::{self, Paths};
use super::process::{self, Processes};
use super::sql::{self, value, within};
use super::{Inner, QUICK, lock};
use crate::{Change, EngineError};

/// Time between two tries to connect to a starting server.
const TRY: Duration = Duration::from_millis(20);
/// The longest that a checkpoint may take.
const CHECKPOINT_MAX: Duration = Duration::from_secs(600);

impl Inner {
    /// The programs for the data directory here, or the newest.
    pub(super) async fn binaries(&self, major: Option<u32>) -> Result<Binaries, EngineError> {
        let configured = self.settings().bin_dir.clone();
        let found = files::blocking("find the server's programs", move || {
            Ok(Binaries::find(configured.as_deref(), major))
        });
        found.await?
    }

    /// The programs and the control file of a data directory that may be started.
    async fn startable(&self) -> Result<(Binaries, Control), EngineError> {
        let what = "start the server";
        let facts = self.directory_at_rest(what).await?;
        let failed = |reason: &str| EngineError::Failed { what: what.to_owned(), reason: reason.to_owned() };
        if facts.half_built {
            return Err(failed("its data directory was left half-built by a clone or rewind: clone it anew"));
        }
        match facts.directory {
            Directory::Data { major, control, .. } => Ok((self.binaries(Some(major)).await?, control)),
            Directory::Absent => Err(failed("there is no data directory: clone one")),
            Directory::Foreign(reason) => Err(failed(&reason)),
        }
    }

    pub(super) async fn start_standby(
        &self,
        upstream: Option<(Upstream, String)>,
    ) -> Result<(), EngineError> {
        let (binaries, control) = self.startable().await?;
        let upstream = match upstream {
            Some((upstream, address)) => {
                config::host_and_port(&address)
                    .map_err(|reason| EngineError::Failed { what: "follow".to_owned(), reason })?;
                Some(Following { name: upstream.name, epoch: upstream.epoch, address })
            }
            None => None,
        };
        let mut role = self.role.lock().await;
        if let Some(asked) =
            upstream.as_ref().map(|upstream| upstream.epoch).filter(|epoch| *epoch < self.fenced())
        {
            return Err(EngineError::Fenced { asked, fenced: self.fenced() });
        }
        let sync = if role.sync.is_empty() { NOBODY_YET.to_owned() } else { role.sync.clone() };
        let receiver_off = upstream.is_none();
        let next = Role { upstream, sync, ..role.clone() };
        self.change_directory("make the data directory a standby's", move |paths| {
            remove_dangling_histories(paths, control.checkpoint.timeline.0)?;
            files::remove_durably(&paths.data.join("recovery.signal"))?;
            files::write_durably(&paths.standby_signal(), b"", 0o600)
        })
        .await?;
        self.write_role(&mut role, next).await?;
        let least = self.least(&binaries).await;
        *lock(&self.comes_up_primary) = Some(false);
        self.spawn(&binaries, &least).await?;
        // The server reads what was written before it started: there is nothing to prove.
        self.receiver_off.store(receiver_off, Ordering::SeqCst);
        drop(role);
        self.wait_until_it_answers().await?;
        if !least.is_empty() {
            // It compares what it was started with with its files only when it reads them again.
            self.tell_server().await?;
        }
        self.tell_of_start("replica");
        Ok(())
    }

    pub(super) async fn start_primary(&self, epoch: Epoch, sync: &SyncNames) -> Result<(), EngineError> {
        let fenced = self.fenced();
        if epoch < fenced {
            return Err(EngineError::Fenced { asked: epoch, fenced });
        }
        let (binaries, _) = self.startable().await?;
        let mut role = self.role.lock().await;
        let next = Role { upstream: None, sync: config::sync_text(sync), ..role.clone() };
        self.change_directory("make the data directory a primary's", |paths| {
            files::remove_durably(&paths.data.join("recovery.signal"))?;
            files::remove_durably(&paths.standby_signal())
        })
        .await?;
        self.write_role(&mut role, next).await?;
        *lock(&self.comes_up_primary) = Some(true);
        self.spawn(&binaries, &[]).await?;
        drop(role);
        self.wait_until_it_answers().await?;
        self.tell_of_start("primary");
        Ok(())
    }

    /// Starts the main process on the configuration that is written, and these settings on top.
    async fn spawn(&self, binaries: &Binaries, settings: &[String]) -> Result<(), EngineError> {
        let postgres = binaries.program("postgres")?;
        let paths = self.paths.clone();
        let cleaned = tokio::task::spawn_blocking(move || config::clean_auto_conf(&paths)).await;
        let what = "start the server";
        let removed = cleaned
            .map_err(|error| EngineError::Failed { what: what.to_owned(), reason: error.to_string() })??;
        if !removed.is_empty() {
            tracing::warn!(
                ?removed,
                "took settings out of postgresql.auto.conf that antiphon must set itself"
            );
        }
        self.process
            .spawn(&postgres, &self.paths.config(), settings, &self.paths.log())
            .map_err(|source| EngineError::Io { what: what.to_owned(), source })
    }

    async fn wait_until_it_answers(&self) -> Result<(), EngineError> {
        let settings = self.settings();
        let deadline = Deadline::now() + settings.start_timeout;
        while matches!(self.process.processes(), Processes::Running { .. }) {
            if let Ok(client) = sql::connect(&self.target(), &settings.superuser, QUICK).await
                && within("ask the server", QUICK, client.simple_query("SELECT 1")).await.is_ok()
            {
                return Ok(());
            }
            if Deadline::now() > deadline {
                let what = "see the server answer (it goes on starting)".to_owned();
                return Err(EngineError::Deadline { what, limit: settings.start_timeout });
            }
            sleep_until(Deadline::now() + TRY).await;
        }
        let log = self.paths.log();
        let said = files::blocking("read the server's log", move || Ok(files::tail(&log, 8192))).await?;
        let fatal = said.lines().rev().find(|line| line.contains("FATAL:") || line.contains("PANIC:"));
        let reason = fatal.or(said.lines().last()).unwrap_or("it said nothing").to_owned();
        Err(EngineError::Failed { what: "start the server".to_owned(), reason })
    }

    /// Ends when no process is left. It has no deadline of its own: whoever ordered it orders a harder one.
    pub(super) async fn stop(&self, mode: StopMode) -> Result<(), EngineError> {
        let mut events = self.events.subscribe();
        let ran = self.process.processes() != Processes::None;
        if mode == StopMode::Fast && matches!(self.process.processes(), Processes::Running { .. }) {
            self.before_stop().await;
        }
        self.process.expect_exit();
        match (self.process.processes(), mode) {
            (Processes::Running { .. }, StopMode::Fast) => self.process.signal(Signal::INT),
            (Processes::Running { .. }, StopMode::Immediate) => self.process.signal(Signal::QUIT),
            (Processes::Running { .. }, StopMode::Kill)
            | (Processes::Orphans { .. } | Processes::None, _) => false,
        };
        while process::kill_tools(&self.paths.state) || !self.process.is_empty() {
            // Without a main process there is no orderly end for the others.
            let orphaned = !matches!(self.process.processes(), Processes::Running { .. });
            if orphaned || mode == StopMode::Kill {
                self.process.kill_all();
            }
            // Both outcomes lead to another look.
            drop(tokio::time::timeout(Duration::from_millis(100), events.changed()).await);
        }
        self.eyes.lock().await.close();
        if ran {
            let role = self.role_word();
            *lock(&self.stopped_as) = Some(role);
            self.call_back(|callbacks| callbacks.on_stop.clone(), "on_stop", role);
        }
        Ok(())
    }

    pub(super) async fn checkpoint(&self) -> Result<(), EngineError> {
        let client = self.connect().await?;
        within("write a checkpoint", CHECKPOINT_MAX, client.batch_execute("CHECKPOINT")).await?;
        lock(&self.memory).checkpointed = Some(now());
        Ok(())
    }

    pub(super) async fn reload(&self, change: Change) -> Result<bool, EngineError> {
        let mut role = self.role.lock().await;
        let mut next = (*self.settings()).clone();
        next.parameters = change.parameters;
        next.synchronise_slots = change.synchronise_slots;
        next.pg_hba = change.access;
        next.pg_ident = change.identities;
        next.failure_timeout = change.failure_timeout.unwrap_or(next.failure_timeout);
        let next = Arc::new(next);
        let before = std::mem::replace(
            &mut *self.settings.write().unwrap_or_else(std::sync::PoisonError::into_inner),
            next,
        );
        let same = role.clone();
        if let Err(error) = self.write_role(&mut role, same).await {
            // What cannot be written is not in force either.
            *self.settings.write().unwrap_or_else(std::sync::PoisonError::into_inner) = before;
            return Err(error);
        }
        let asked = std::time::SystemTime::now();
        self.tell_server().await?;
        if !matches!(self.process.processes(), Processes::Running { .. }) {
            return Ok(false);
        }
        let loaded = now();
        let client = self.wait_until_reloaded(asked).await?;
        let query = "SELECT count(*) FROM pg_settings WHERE pending_restart";
        let pending: i64 = value("read pending settings", QUICK, &client, query, &[]).await?;
        tracing::info!(pending, took = ?now().since(loaded), "the server read its configuration again");
        lock(&self.memory).forget_slots();
        self.call_back(|callbacks| callbacks.on_reload.clone(), "on_reload", self.role_word());
        Ok(pending > 0)
    }

    /// A connection that was made after the main process read its configuration.
    async fn wait_until_reloaded(
        &self,
        asked: std::time::SystemTime,
    ) -> Result<tokio_postgres::Client, EngineError> {
        let deadline = Deadline::now() + QUICK;
        loop {
            let client = self.connect().await?;
            let query = "SELECT pg_conf_load_time()";
            let loaded: std::time::SystemTime =
                value("ask when the configuration was read", QUICK, &client, query, &[]).await?;
            if loaded >= asked || Deadline::now() > deadline {
                return Ok(client);
            }
            sleep_until(Deadline::now() + Duration::from_millis(5)).await;
        }
    }

    /// Patroni's word for what the server last was.
    fn role_word(&self) -> &'static str {
        if lock(&self.memory).was_primary() { "primary" } else { "replica" }
    }

    /// A start after a stop by this engine is a restart, or a change of role.
    fn tell_of_start(&self, role: &'static str) {
        match lock(&self.stopped_as).take() {
            Some(before) if before == role => {
                self.call_back(|callbacks| callbacks.on_restart.clone(), "on_restart", role);
            }
            Some(_) => self.call_back(|callbacks| callbacks.on_role_change.clone(), "on_role_change", role),
            None => self.call_back(|callbacks| callbacks.on_start.clone(), "on_start", role),
        }
    }
}

/// Removes empty timeline histories above everything real: what a promotion that never happened left, and
/// what a server would refuse to start on.
fn remove_dangling_histories(paths: &Paths, checkpoint: u32) -> io::Result<()> {
    let mut empty: Vec<(u32, PathBuf)> = Vec::new();
    let mut highest = checkpoint;
    for entry in fs::read_dir(paths.wal())?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(timeline) = name.get(..8).and_then(|head| u32::from_str_radix(head, 16).ok()) else {
            continue;
        };
        if name.len() == 24 {
            highest = highest.max(timeline);
        } else if name.get(8..) == Some(".history") {
            if entry.metadata()?.len() == 0 {
                empty.push((timeline, entry.path()));
            } else {
                highest = highest.max(timeline);
            }
        }
    }
    for (_, path) in empty.into_iter().filter(|(timeline, _)| *timeline > highest) {
        files::remove_durably(&path)?;
    }
    Ok(())
}
