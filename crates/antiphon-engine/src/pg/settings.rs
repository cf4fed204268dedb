//! What the engine is told about its server: plain data, resolved and checked by the agent.
//!
//! Nothing here is read from a file or the environment. Passwords stay inside [`Credentials`], whose debug
//! form hides them; they reach the server through a password file and the wire, never a command line.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use antiphon_core::NodeName;

/// A role's name, its password, and how servers elsewhere are spoken to as this role.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Role name.
    pub username: String,
    /// Its password; none for peer authentication (or trust).
    pub password: Option<String>,
    /// Options of libpq for connections over TCP: `sslmode`, `sslrootcert`, `channel_binding` and their like.
    pub options: BTreeMap<String, String>,
}

impl Credentials {
    /// A role with a password and no options.
    pub fn new(username: &str, password: &str) -> Self {
        Self { username: username.to_owned(), password: Some(password.to_owned()), options: BTreeMap::new() }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let password = self.password.as_ref().map(|_| "…");
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .field("password", &password)
            .finish_non_exhaustive()
    }
}

/// Scripts called as `SCRIPT ACTION ROLE SCOPE`, as Patroni calls them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Callbacks {
    /// After a start.
    pub on_start: Option<String>,
    /// After a stop.
    pub on_stop: Option<String>,
    /// After a start that follows a stop by this engine.
    pub on_restart: Option<String>,
    /// After the role changed.
    pub on_role_change: Option<String>,
    /// After a reload of the configuration.
    pub on_reload: Option<String>,
}

/// How a copy of another member is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicaMethod {
    /// By pg_basebackup from that member.
    BaseBackup,
    /// By a command of the user's, from a backup for example.
    Command(ReplicaCommand),
}

/// A command that fills the data directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaCommand {
    /// What it is called in the node file.
    pub name: String,
    /// The command line.
    pub command: String,
    /// It is to find the data directory as it was, unless that must be kept aside.
    pub keep_data: bool,
    /// It is not given `--scope`, `--role`, `--datadir`, `--connstring` and `options`.
    pub no_params: bool,
    /// Its own options: given as `--name=value`.
    pub options: BTreeMap<String, String>,
}

/// All that the engine knows about the server it looks after.
#[derive(Clone, Debug)]
pub struct PgSettings {
    /// This member: `application_name` of its receiver and, as a slot name, its slot.
    pub name: NodeName,
    /// The cluster's name.
    pub scope: String,
    /// The data directory.
    pub data_dir: PathBuf,
    /// Where the user's `postgresql.conf` is, if not in the data directory.
    pub config_dir: Option<PathBuf>,
    /// Where the programs are; searched for if none.
    pub bin_dir: Option<PathBuf>,
    /// The engine's own files; beside the data directory, never in it.
    pub state_dir: PathBuf,
    /// `listen_addresses`.
    pub listen_addresses: String,
    /// Port to listen at.
    pub port: u16,
    /// Another folder for the Unix socket, beside the engine's own.
    pub socket_dir: Option<PathBuf>,
    /// The role that the engine itself uses.
    pub superuser: Credentials,
    /// The role that followers stream with.
    pub replication: Credentials,
    /// The role that `pg_rewind` reads the leader with; the superuser if none.
    pub rewind: Option<Credentials>,
    /// The user's parameters.
    pub parameters: BTreeMap<String, String>,
    /// Followers copy the logical slots of the leader (PostgreSQL 17 and newer; others cannot).
    pub synchronise_slots: bool,
    /// Lines of `pg_hba`; the default ones if none.
    pub pg_hba: Option<Vec<String>>,
    /// Lines of `pg_ident`; the data directory's if none.
    pub pg_ident: Option<Vec<String>>,
    /// Further arguments of `initdb`.
    pub initdb: Vec<String>,
    /// How copies are made: the first way that succeeds, at least one.
    pub replica_methods: Vec<ReplicaMethod>,
    /// Further arguments of `pg_basebackup`.
    pub basebackup: Vec<String>,
    /// How long a start may take before its task counts as failed (the server goes on starting).
    pub start_timeout: Duration,
    /// How long a server or its storage may fail to answer before it counts as stuck.
    pub failure_timeout: Duration,
    /// Command called after the bootstrap with a connection URL as its last argument.
    pub post_bootstrap: Option<String>,
    /// Command that must succeed before a promotion.
    pub pre_promote: Option<String>,
    /// Command that runs to its end before the server is stopped, unless it must stop at once.
    pub before_stop: Option<String>,
    /// Scripts to call.
    pub callbacks: Callbacks,
}

impl PgSettings {
    /// Settings with the defaults for everything that has one.
    pub fn new(
        name: NodeName,
        scope: &str,
        data_dir: impl Into<PathBuf>,
        port: u16,
        superuser: Credentials,
        replication: Credentials,
    ) -> Self {
        let data_dir = data_dir.into();
        let mut state_dir = data_dir.clone().into_os_string();
        state_dir.push(".antiphon");
        Self {
            name,
            scope: scope.to_owned(),
            data_dir,
            config_dir: None,
            bin_dir: None,
            state_dir: state_dir.into(),
            listen_addresses: "*".to_owned(),
            port,
            socket_dir: None,
            superuser,
            replication,
            rewind: None,
            parameters: BTreeMap::new(),
            synchronise_slots: false,
            pg_hba: None,
            pg_ident: None,
            initdb: Vec::new(),
            replica_methods: vec![ReplicaMethod::BaseBackup],
            basebackup: Vec::new(),
            start_timeout: Duration::from_secs(60),
            failure_timeout: Duration::from_secs(1),
            post_bootstrap: None,
            pre_promote: None,
            before_stop: None,
            callbacks: Callbacks::default(),
        }
    }

    /// The role that `pg_rewind` uses.
    pub fn rewind_role(&self) -> &Credentials {
        self.rewind.as_ref().unwrap_or(&self.superuser)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_not_printed() {
        let role = Credentials::new("postgres", "secret-word");
        assert!(!format!("{role:?}").contains("secret-word"));
    }
}
