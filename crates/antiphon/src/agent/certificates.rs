//! The certificates in use: read at the start, and read again on request while connections live.
//!
//! All files are read before any of them is put to use, so that a mistake in one leaves everything as it was.
//! Whether something speaks TLS at all changes with a restart only.

use std::fs;
use std::path::Path;

use antiphon_engine::sentence;
use antiphon_tls::{ClientTls, MemberFiles, MemberTls, ServerTls};
use anyhow::{Context, bail};

use crate::config::{NodeConfig, PostgresConfig, StoreConfig};

/// What each part of this process speaks TLS with; none: in the clear. Clones see a replacement.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// The HTTP API.
    pub api: Option<ServerTls>,
    /// The links to other members.
    pub links: Option<MemberTls>,
    /// The connections to etcd.
    pub etcd: Option<ClientTls>,
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
        Ok(Self {
            api: config.restapi.tls.as_ref().map(ServerTls::load).transpose()?,
            links: link_files(config).map(MemberTls::load).transpose()?,
            etcd: etcd.map(ClientTls::load).transpose()?,
        })
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
