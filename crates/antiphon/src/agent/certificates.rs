//! The certificates in use: read at the start, and read again on request while connections live.
//!
//! All files are read before any of them is put to use, so that a mistake in one leaves everything as it was.
//! Whether something speaks TLS at all changes with a restart only. One that is about to expire is told of at the
//! start, at a reload and every day.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use antiphon_engine::sentence;
use antiphon_tls::{ClientTls, Identity, MemberFiles, MemberTls, ServerTls, days_left};
use anyhow::{Context, bail};

use crate::config::{NodeConfig, PostgresConfig, StoreConfig};

/// A certificate with fewer days left is told of.
const WARN_DAYS: u32 = 30;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What each part of this process speaks TLS with; none: in the clear. Clones see a replacement.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// The HTTP API.
    pub api: Option<ServerTls>,
    /// The links to other members.
    pub links: Option<MemberTls>,
    /// The connections to etcd.
    pub etcd: Option<ClientTls>,
    /// The files of all of these, whose dates are watched.
    watched: Arc<Mutex<Vec<Identity>>>,
}

impl Certificates {
    /// Reads the files that a node file names.
    ///
    /// # Errors
    /// Which one cannot be used, by which key, and why.
    pub fn load(config: &NodeConfig) -> anyhow::Result<Self> {
        if let Some(pg) = &config.postgresql {
            check_accounts(pg)?;
        }
        let etcd = match &config.store {
            StoreConfig::Etcd(etcd) => etcd.tls.as_ref(),
            StoreConfig::Raft(_) => None,
        };
        let watched = identities(config);
        let loaded = Self {
            api: config.restapi.tls.as_ref().map(ServerTls::load).transpose()?,
            links: link_files(config).map(MemberTls::load).transpose()?,
            etcd: etcd.map(ClientTls::load).transpose()?,
            watched: Arc::new(Mutex::new(watched.clone())),
        };
        watched.iter().for_each(tell_if_it_expires);
        Ok(loaded)
    }

    /// Reads the files again and uses them for connections from now on.
    ///
    /// # Errors
    /// In words, if one cannot be used or TLS was switched on or off; the old ones stay in use.
    pub fn reload(&self, config: &NodeConfig) -> Result<(), String> {
        let new = Self::load(config).map_err(|error| sentence(error.as_ref()))?;
        for (what, before, after) in [
            ("restapi", self.api.is_some(), new.api.is_some()),
            ("the links between members", self.links.is_some(), new.links.is_some()),
            ("etcd3", self.etcd.is_some(), new.etcd.is_some()),
        ] {
            if before != after {
                return Err(format!(
                    "TLS of {what} was switched on or off, which a restart of antiphon does"
                ));
            }
        }
        let watched = std::mem::take(&mut *lock(&new.watched));
        *lock(&self.watched) = watched;
        if let (Some(old), Some(new)) = (&self.api, &new.api) {
            old.replace(new);
        }
        if let (Some(old), Some(new)) = (&self.links, &new.links) {
            old.replace(new);
        }
        if let (Some(old), Some(new)) = (&self.etcd, &new.etcd) {
            old.replace(new);
        }
        Ok(())
    }

    /// Tells every day of certificates that are about to expire, for as long as it is polled.
    pub async fn watch_dates(self) {
        let mut days = tokio::time::interval(DAY);
        // The first tick is now, when the files have just been read.
        days.tick().await;
        loop {
            days.tick().await;
            let watched = lock(&self.watched).clone();
            watched.iter().for_each(tell_if_it_expires);
        }
    }
}

fn lock(watched: &Mutex<Vec<Identity>>) -> MutexGuard<'_, Vec<Identity>> {
    watched.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Everything that this member proves itself with.
fn identities(config: &NodeConfig) -> Vec<Identity> {
    let etcd = match &config.store {
        StoreConfig::Etcd(etcd) => etcd.tls.as_ref().and_then(|tls| tls.identity.as_ref()),
        StoreConfig::Raft(_) => None,
    };
    let api = config.restapi.tls.as_ref().map(|tls| &tls.identity);
    let links = link_files(config).map(|tls| &tls.identity);
    [api, links, etcd].into_iter().flatten().cloned().collect()
}

fn tell_if_it_expires(identity: &Identity) {
    match days_left(identity) {
        Ok(days) if days < WARN_DAYS => {
            tracing::warn!(file = %identity.certificates, days, "a certificate expires soon; put a new one there and reload");
        }
        Ok(_) => {}
        Err(error) => tracing::error!("{}", sentence(&error)),
    }
}

fn link_files(config: &NodeConfig) -> Option<&MemberFiles> {
    match (&config.store, &config.heartbeat) {
        (StoreConfig::Raft(raft), _) => raft.tls.as_ref(),
        (StoreConfig::Etcd(_), heartbeat) => heartbeat.as_ref()?.tls.as_ref(),
    }
}

/// The files of connections to PostgreSQL are libpq's to read, which would tell of a missing one in the server's
/// log only, when a follower is to stream.
fn check_accounts(pg: &PostgresConfig) -> anyhow::Result<()> {
    let accounts = [
        ("superuser", Some(&pg.superuser)),
        ("replication", Some(&pg.replication)),
        ("rewind", pg.rewind.as_ref()),
    ];
    for (name, account) in accounts {
        for option in ["sslcert", "sslkey", "sslrootcert", "sslcrl", "sslcrldir"] {
            let Some(path) = account.and_then(|account| account.options.get(option)) else { continue };
            let path = Path::new(path);
            // `system` stands for the authorities of the machine.
            if path.is_relative() {
                continue;
            }
            let what =
                || format!("postgresql.authentication.{name}.{option}: {} could not be read", path.display());
            let found = fs::metadata(path).with_context(what)?;
            if found.is_dir() != (option == "sslcrldir") {
                bail!(
                    "postgresql.authentication.{name}.{option}: {} is the wrong kind of file",
                    path.display()
                );
            }
            if !found.is_dir() {
                fs::File::open(path).with_context(what)?;
            }
        }
    }
    Ok(())
}
