//! The settings in force: the stored document, resolved, and brought to the server.
//!
//! A document that does not resolve is not taken: the last good one stays in force, and the log says why.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use antiphon_core::settings::{DynamicCommands, PermanentSlot, Settings};
use antiphon_engine::{Change, Engine, sentence};
use serde_json::Value;

use super::certificates::Certificates;
use crate::config::{self, NodeConfig, PostgresConfig};

/// Settings that this agent acts on.
pub struct SettingsInForce {
    file: PathBuf,
    postgresql: Option<PostgresConfig>,
    resolved: Settings,
    revision: Option<u64>,
    engine: Option<Arc<dyn Engine>>,
    reloading: Option<tokio::task::JoinHandle<()>>,
    certificates: Certificates,
}

impl SettingsInForce {
    /// Those of the file's `bootstrap.dcs`, until the store's are known.
    pub fn new(
        file: PathBuf,
        config: &NodeConfig,
        engine: Option<Arc<dyn Engine>>,
        certificates: Certificates,
    ) -> Self {
        let mut settings = Self {
            file,
            postgresql: config.postgresql.clone(),
            resolved: Settings::default(),
            revision: None,
            engine,
            reloading: None,
            certificates,
        };
        if let Some(resolved) = settings.resolve(&config.bootstrap.dcs) {
            settings.resolved = resolved;
        }
        settings
    }

    /// The settings.
    pub fn resolved(&self) -> &Settings {
        &self.resolved
    }

    /// Takes over what the store has, if it is new; the server is told in the background.
    pub fn take(&mut self, stored: &(Value, u64)) {
        if stored.1 == 0 || self.revision == Some(stored.1) {
            return;
        }
        self.revision = Some(stored.1);
        let Some(resolved) = self.resolve(&stored.0) else { return };
        self.resolved = resolved;
        if let (Some(engine), Some(change)) = (self.engine.clone(), self.change()) {
            let before = self.reloading.take();
            self.reloading = Some(tokio::spawn(async move {
                if let Some(before) = before {
                    // In the order of the store: an older change must not come last. It ended either way.
                    let _ = before.await;
                }
                match engine.reload(change).await {
                    Ok(true) => tracing::info!("new settings are in force; some of them wait for a restart"),
                    Ok(false) => tracing::info!("new settings are in force"),
                    Err(error) => tracing::warn!(error = %sentence(&error), "could not reload the server"),
                }
            }));
        }
    }

    /// Reads the node file and its certificates again and reloads the server: what the file says, and the
    /// parameters that now wait for a restart.
    ///
    /// # Errors
    /// In words, if the file has mistakes or the server does not reload; the old settings stay in force.
    pub async fn reload(&mut self) -> Result<(NodeConfig, Vec<String>), String> {
        let env: BTreeMap<String, String> = std::env::vars().collect();
        let config = config::load(&self.file, &env).map_err(|errors| errors.to_string())?;
        self.certificates.reload(&config)?;
        self.postgresql = config.postgresql.clone();
        let (Some(engine), Some(change)) = (self.engine.clone(), self.change()) else {
            return Ok((config, Vec::new()));
        };
        let pending = engine.reload(change).await.map_err(|error| sentence(&error))?;
        Ok((config, if pending { engine.about().pending_restart.into_keys().collect() } else { Vec::new() }))
    }

    fn resolve(&self, document: &Value) -> Option<Settings> {
        let opted_in = self.postgresql.as_ref().is_some_and(|pg| pg.allow_dynamic_commands);
        let commands = if opted_in { DynamicCommands::Allowed } else { DynamicCommands::Refused };
        match Settings::resolve_with(document, commands) {
            Ok(mut settings) => {
                if let Some(rewind) = self.postgresql.as_ref().and_then(|pg| pg.use_pg_rewind) {
                    settings.postgresql.use_pg_rewind = rewind;
                }
                Some(settings)
            }
            Err(errors) => {
                for error in errors {
                    tracing::error!(
                        "cluster-wide settings: {}; the last good ones stay in force",
                        error.sentence()
                    );
                }
                None
            }
        }
    }

    /// What the engine is to run with: the cluster's parameters, this server's own on top.
    fn change(&self) -> Option<Change> {
        let pg = self.postgresql.as_ref()?;
        Some(change(pg, &self.resolved))
    }
}

fn is_logical(slot: &PermanentSlot) -> bool {
    matches!(slot, PermanentSlot::Logical { .. })
}

/// What the engine is to run with under these settings.
pub fn change(pg: &PostgresConfig, settings: &Settings) -> Change {
    let mut parameters = settings.postgresql.parameters.clone();
    parameters.extend(pg.parameters.clone());
    let mut extra = settings.postgresql.recovery_conf.clone();
    extra.extend(pg.recovery_conf.clone());
    parameters.extend(extra);
    let lines = |own: &[String], shared: &[String]| {
        let lines = if own.is_empty() { shared } else { own };
        (!lines.is_empty()).then(|| lines.to_vec())
    };
    Change {
        parameters,
        synchronise_slots: settings.postgresql.use_slots && settings.slots.values().any(is_logical),
        access: lines(&pg.pg_hba, &settings.postgresql.pg_hba),
        identities: lines(&pg.pg_ident, &settings.postgresql.pg_ident),
        failure_timeout: Some(settings.failure_timeout.max(std::time::Duration::from_secs(1))),
    }
}
