//! Proof that the WAL receiver is off and stays off.
//!
//! That no receiver runs at one moment proves nothing: the startup process may not have read the reloaded
//! configuration yet and start one with the old upstream a moment later. The order is therefore: a fresh
//! connection shows the new setting (so the main process has read it and signalled its children); then the
//! startup process is seen in a wait after which it handles its signals before anything else, or, if it is
//! busy replaying, confirms a short pause of replay, which it does only after handling them; then a receiver
//! that still runs is told to end, and none is there. A server that lags in its replay is fenced as fast.

use std::fs;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant as Deadline, sleep_until};
use tokio_postgres::Client;

use super::process::Processes;
use super::sql::{value, within};
use super::{Inner, QUICK, control, lock, process};
use crate::EngineError;

/// Time between two looks.
const TICK: Duration = Duration::from_millis(2);

impl Inner {
    /// Has a running server read its configuration again. It gets no signal before it can take one.
    pub(super) async fn tell_server(&self) -> Result<(), EngineError> {
        let deadline = Deadline::now() + QUICK;
        loop {
            let Processes::Running { pid, .. } = self.process.processes() else { return Ok(()) };
            // The file is written after the handlers are set; before, SIGHUP would kill the server.
            if control::pid_file(&self.paths.data).is_some_and(|file| file.pid == pid) {
                self.process.signal(Signal::HUP);
                return Ok(());
            }
            if Deadline::now() > deadline {
                let what = "have the starting server read its configuration".to_owned();
                return Err(EngineError::Deadline { what, limit: QUICK });
            }
            sleep_until(Deadline::now() + TICK).await;
        }
    }

    /// Proves that the receiver is off, if it is to be off and that is not known yet.
    pub(super) async fn prove_receiver_off_if_due(&self) -> Result<(), EngineError> {
        let due = lock(&self.upstream).is_none() && !self.receiver_off.load(Ordering::SeqCst);
        let running = matches!(self.process.processes(), Processes::Running { .. });
        if !due || !running {
            return Ok(());
        }
        // One proof at a time: a second pause of replay would be taken for somebody else's.
        let _proving = self.proving.lock().await;
        match tokio::time::timeout(QUICK, self.prove_receiver_off()).await {
            Ok(Err(error @ EngineError::Sql { .. })) => {
                // A server that does not take connections yet; the observation tries again.
                tracing::debug!(
                    error = crate::sentence(&error),
                    "the WAL receiver is not known to be off yet"
                );
                Ok(())
            }
            Ok(result) => result,
            Err(_) => {
                self.resume_left_over_pause().await?;
                Err(EngineError::Deadline { what: "see the WAL receiver off".to_owned(), limit: QUICK })
            }
        }
    }

    /// What an observation starts when it finds work here; it returns at once if that goes on already.
    pub(super) async fn settle_receiver(&self) {
        let result = match self.proving.try_lock() {
            Ok(_proving) => self.resume_left_over_pause().await,
            Err(_) => return,
        };
        let result = match result {
            Ok(()) => self.prove_receiver_off_if_due().await,
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            tracing::warn!(error = crate::sentence(&error), "the WAL receiver is not known to be off yet");
        }
    }

    async fn prove_receiver_off(&self) -> Result<(), EngineError> {
        let changes = self.upstream_changes.load(Ordering::SeqCst);
        let client = self.wait_for_setting("primary_conninfo", "").await?;
        self.confirm_reread(&client).await?;
        loop {
            let row = within("look for the WAL receiver", QUICK, client.query_one(RECEIVER, &[])).await?;
            let read = |source| EngineError::Sql { what: "read the server's answer".to_owned(), source };
            match row.try_get::<_, Option<i32>>(0).map_err(read)? {
                // A startup process with much to replay would only end it when it has replayed all.
                Some(pid) => process::terminate(pid, &self.paths.data),
                None if row.try_get(1).map_err(read)? => break,
                None => {}
            }
            sleep_until(Deadline::now() + TICK).await;
        }
        if self.upstream_changes.load(Ordering::SeqCst) == changes {
            self.receiver_off.store(true, Ordering::SeqCst);
            self.changed();
        }
        Ok(())
    }

    /// Waits until the startup process has surely handled its signals, or will before it does anything else.
    async fn confirm_reread(&self, client: &Client) -> Result<(), EngineError> {
        let mut paused = false;
        loop {
            match ask(client, STARTUP).await?.as_str() {
                "handled" => break,
                "busy" if !paused => {
                    // A later agent resumes if this one dies in between; lost with the machine, as the pause is.
                    fs::write(self.paths.state.join(PAUSED_BY_US), "").map_err(|source| EngineError::Io {
                        what: "note a pause of replay".into(),
                        source,
                    })?;
                    paused = true;
                    ask(client, "SELECT pg_wal_replay_pause()::text").await?;
                }
                _ => sleep_until(Deadline::now() + TICK).await,
            }
        }
        if paused { self.resume_replay(client).await } else { Ok(()) }
    }

    async fn resume_replay(&self, client: &Client) -> Result<(), EngineError> {
        ask(client, RESUME).await?;
        let marker = self.paths.state.join(PAUSED_BY_US);
        fs::remove_file(&marker)
            .map_err(|source| EngineError::Io { what: "forget a pause of replay".into(), source })
    }

    /// Ends a pause that an engine died in.
    async fn resume_left_over_pause(&self) -> Result<(), EngineError> {
        if !self.paths.state.join(PAUSED_BY_US).exists() {
            return Ok(());
        }
        let client = self.connect().await?;
        tracing::warn!("replay was left paused by an earlier agent: resuming it");
        self.resume_replay(&client).await
    }

    /// Waits until a fresh connection shows this value: from then on every process of the server has been
    /// told to read the configuration. Returns that connection.
    pub(super) async fn wait_for_setting(&self, name: &str, value: &str) -> Result<Client, EngineError> {
        let deadline = Deadline::now() + QUICK;
        let mut complained = false;
        loop {
            let client = self.connect().await?;
            let query = "SELECT setting, coalesce(sourcefile, '') FROM pg_settings WHERE name = $1";
            let row = within("read a setting", QUICK, client.query_one(query, &[&name])).await?;
            let text = |at: usize| row.try_get::<_, String>(at).unwrap_or_default();
            if text(0) == value {
                return Ok(client);
            }
            if text(1).ends_with("/postgresql.auto.conf") && !complained {
                complained = true;
                tracing::error!(
                    name,
                    "this setting was changed with ALTER SYSTEM, which breaks what antiphon promises: taking it back"
                );
                let reset = format!("ALTER SYSTEM RESET {name}");
                within("take an ALTER SYSTEM back", QUICK, client.batch_execute(&reset)).await?;
                self.process.signal(Signal::HUP);
            }
            if Deadline::now() > deadline {
                let what = format!("have the server take over its new {name} (it has {:?})", text(0));
                return Err(EngineError::Deadline { what, limit: QUICK });
            }
            sleep_until(Deadline::now() + TICK).await;
        }
    }
}

async fn ask(client: &Client, query: &str) -> Result<String, EngineError> {
    value("ask the server", QUICK, client, query, &[]).await
}

/// Exists while replay is paused by the engine.
pub(super) const PAUSED_BY_US: &str = "replay.paused";

/// A promotion ends a pause by itself.
const RESUME: &str = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_wal_replay_resume()::text ELSE '' END";

/// In each of these waits the startup process handles its signals when it wakes, before it goes on; a pause is
/// confirmed after handling them. Waits for a conflicting session are such, too: between two records.
const STARTUP: &str = "SELECT CASE WHEN NOT pg_is_in_recovery() THEN 'handled' \
     WHEN EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'startup' AND (wait_event IN \
        ('RecoveryRetrieveRetryInterval', 'RecoveryWalStream', 'RecoveryApplyDelay', 'RecoveryPause') \
        OR wait_event LIKE 'RecoveryConflict%' OR wait_event_type IN ('Lock', 'BufferPin'))) THEN 'handled' \
     WHEN pg_get_wal_replay_pause_state() = 'paused' THEN 'handled' ELSE 'busy' END";

/// The receiver's process, and whether the startup process, which asks for one only when it has nothing left to
/// replay, is past having asked.
const RECEIVER: &str = "SELECT (SELECT pid FROM pg_stat_activity WHERE backend_type = 'walreceiver' LIMIT 1), \
     NOT pg_is_in_recovery() OR EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'startup' \
        AND wait_event IS DISTINCT FROM 'RecoveryWalStream' AND wait_event IS NOT NULL) \
     OR coalesce(pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn(), false)";
