//! The resolved node file: what the rest of the program sees. Plain data, checked, complete.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use antiphon_core::NodeName;
use antiphon_core::settings::DynamicCommands;
use antiphon_tls::{ClientFiles, MemberFiles, ServerFiles};
use serde_json::Value;

use super::address::{Address, Listen};
use super::problem::Problem;
use super::secret::Secret;

/// All of a node file.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The name of the cluster.
    pub scope: String,
    /// Where clusters live in the store: begins with `/`, does not end with one.
    pub namespace: String,
    /// This member.
    pub name: NodeName,
    /// What is logged and how.
    pub log: LogConfig,
    /// The HTTP API.
    pub restapi: ApiConfig,
    /// How this machine's command line talks to the API.
    pub ctl: CtlConfig,
    /// Where the cluster agrees.
    pub store: StoreConfig,
    /// Direct heartbeats between members of a cluster on etcd. None with Raft, which has them on its own port.
    pub heartbeat: Option<HeartbeatConfig>,
    /// How a new cluster begins.
    pub bootstrap: BootstrapConfig,
    /// The local server; none: a witness, which votes and holds no data.
    pub postgresql: Option<PostgresConfig>,
    /// The device that resets a machine that hangs.
    pub watchdog: WatchdogConfig,
    /// What this member may become.
    pub tags: Tags,
    /// Remarks to log once at the start.
    pub warnings: Vec<Problem>,
}

impl NodeConfig {
    /// What this node's file says of cluster-wide settings that run commands here.
    pub fn dynamic_commands(&self) -> DynamicCommands {
        match &self.postgresql {
            Some(pg) if pg.allow_dynamic_commands => DynamicCommands::Allowed,
            Some(_) | None => DynamicCommands::Refused,
        }
    }
}

/// Logging.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// The least level that is logged.
    pub level: LogLevel,
    /// How a line looks.
    pub format: LogFormat,
}

/// Levels, as `tracing` names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// A human must look.
    Error,
    /// Something is odd.
    Warn,
    /// What happens.
    Info,
    /// Why it happens.
    Debug,
    /// Everything.
    Trace,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Plain,
    /// One JSON object a line.
    Json,
}

/// A user and a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The user.
    pub username: String,
    /// The password.
    pub password: Secret,
}

/// The HTTP API.
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// Where it listens.
    pub listen: Listen,
    /// Where others reach it.
    pub connect_address: Address,
    /// Who may change things; none: whoever the allowlist lets in.
    pub authentication: Option<Login>,
    /// From where things may be changed: addresses, networks (`10.0.0.0/8`) or host names; empty: anywhere.
    pub allowlist: Vec<String>,
    /// Members of the cluster are let in besides.
    pub allowlist_include_members: bool,
    /// Certificates to speak TLS with; none: the API answers in the clear.
    pub tls: Option<ServerFiles>,
}

/// The command line on this machine.
#[derive(Clone, Debug)]
pub struct CtlConfig {
    /// How it signs in; none: as `restapi.authentication` says.
    pub authentication: Option<Login>,
    /// How it speaks TLS to members that do.
    pub tls: ClientFiles,
}

/// Where the cluster agrees.
#[derive(Clone, Debug)]
pub enum StoreConfig {
    /// The members themselves.
    Raft(RaftConfig),
    /// An etcd cluster, v3.
    Etcd(EtcdConfig),
}

/// The embedded store.
#[derive(Clone, Debug)]
pub struct RaftConfig {
    /// Where others reach this member.
    pub self_addr: Address,
    /// Where it listens.
    pub bind_addr: Listen,
    /// The other members of a new cluster.
    pub partner_addrs: Vec<Address>,
    /// Where the log is kept.
    pub data_dir: PathBuf,
    /// What members prove to each other; none: anyone who reaches the port may join.
    pub password: Option<Secret>,
    /// Join a running cluster by asking the partners, instead of forming a new one with them.
    pub join: bool,
    /// Certificates for the links to other members; none: they are in the clear.
    pub tls: Option<MemberFiles>,
}

/// An etcd cluster.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// Its servers; at least one.
    pub endpoints: Vec<Address>,
    /// How to sign in.
    pub login: Option<Login>,
    /// How TLS is spoken to it; none: it is reached in the clear.
    pub tls: Option<ClientFiles>,
}

/// Direct heartbeats.
#[derive(Clone, Debug)]
pub struct HeartbeatConfig {
    /// Where they arrive.
    pub listen: Listen,
    /// Where others send them.
    pub connect_address: Address,
    /// What members prove to each other.
    pub password: Option<Secret>,
    /// Certificates for the links to other members; none: they are in the clear.
    pub tls: Option<MemberFiles>,
}

/// How a new cluster begins.
#[derive(Clone, Debug)]
pub struct BootstrapConfig {
    /// The first cluster-wide settings: a checked document, as it is stored.
    pub dcs: Value,
    /// Options of initdb: name without dashes, and value.
    pub initdb: Vec<(String, Option<String>)>,
    /// A command that runs once on the new leader, with a connection string as its last argument.
    pub post_bootstrap: Option<String>,
}

/// The local server.
#[derive(Clone, Debug)]
pub struct PostgresConfig {
    /// Where it listens.
    pub listen: Listen,
    /// Where others reach it.
    pub connect_address: Address,
    /// A pooler in front of it, which is published besides.
    pub proxy_address: Option<Address>,
    /// Its data.
    pub data_dir: PathBuf,
    /// Its configuration files; the data directory if not given.
    pub config_dir: PathBuf,
    /// Its programs; none: those on the PATH.
    pub bin_dir: Option<PathBuf>,
    /// Antiphon's own files about this server. Outside of the data directory, which a clone replaces.
    pub state_dir: PathBuf,
    /// The password file that PostgreSQL's programs are given; none: one in `state_dir`.
    pub pgpass: Option<PathBuf>,
    /// A configuration file that is included instead of the server's own.
    pub custom_conf: Option<PathBuf>,
    /// Local connections use the Unix socket.
    pub use_unix_socket: bool,
    /// So do local replication connections.
    pub use_unix_socket_repl: bool,
    /// Who administers the server.
    pub superuser: Account,
    /// Who followers stream as.
    pub replication: Account,
    /// Who pg_rewind connects as; none: the superuser.
    pub rewind: Option<Account>,
    /// Commands that are told of events; by event.
    pub callbacks: BTreeMap<CallbackEvent, String>,
    /// How a replica is made: names to try in order. `basebackup` is built in.
    pub create_replica_methods: Vec<String>,
    /// The methods that are not built in, by name.
    pub replica_methods: BTreeMap<String, ReplicaMethod>,
    /// Options of pg_basebackup: name without dashes, and value.
    pub basebackup: Vec<(String, Option<String>)>,
    /// Parameters of this server only. They win over the cluster's.
    pub parameters: BTreeMap<String, String>,
    /// Recovery parameters of this server only.
    pub recovery_conf: BTreeMap<String, String>,
    /// Lines of pg_hba.conf; if there are any, they take the place of the cluster's.
    pub pg_hba: Vec<String>,
    /// Lines of pg_ident.conf; likewise.
    pub pg_ident: Vec<String>,
    /// How long a start or stop of the server may take.
    pub pg_ctl_timeout: Duration,
    /// Wins over the cluster's setting if given.
    pub use_pg_rewind: Option<bool>,
    /// A data directory that could not be rewound is replaced by a clone.
    pub remove_data_directory_on_rewind_failure: bool,
    /// A data directory that diverged and may not be rewound is replaced by a clone.
    pub remove_data_directory_on_diverged_timelines: bool,
    /// A command that must succeed before this member is promoted.
    pub pre_promote: Option<String>,
    /// A command that runs before the server is stopped.
    pub before_stop: Option<String>,
    /// The cluster's settings may hold parameters that run commands or load libraries on this node.
    pub allow_dynamic_commands: bool,
}

/// A database user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The user.
    pub username: String,
    /// The password; none: the server lets the user in without, or a password file has it.
    pub password: Option<Secret>,
    /// Further connection options (`sslmode`, `sslcert`, `channel_binding`) by name, for connections over TCP.
    pub options: BTreeMap<String, String>,
}

/// What callbacks are told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CallbackEvent {
    /// The server read its configuration again.
    Reload,
    /// It was restarted.
    Restart,
    /// It was promoted or demoted.
    RoleChange,
    /// It was started.
    Start,
    /// It was stopped.
    Stop,
}

/// A way to make a replica that is not built in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaMethod {
    /// The command.
    pub command: String,
    /// It works without a leader (from a backup).
    pub no_leader: bool,
    /// It is to find the data directory as it was.
    pub keep_data: bool,
    /// It gets no `--scope`, `--datadir` and so on.
    pub no_params: bool,
    /// Its own options: given as `--name=value`.
    pub options: BTreeMap<String, String>,
}

/// The watchdog device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchdogConfig {
    /// Whether it is used.
    pub mode: WatchdogMode,
    /// The device.
    pub device: PathBuf,
    /// How long before the lease's end it fires; none: half of the lease after its last renewal.
    pub safety_margin: Option<Duration>,
}

/// Whether a watchdog is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchdogMode {
    /// Never.
    Off,
    /// If there is one.
    Automatic,
    /// A member without one does not lead.
    Required,
}

/// What a member may become. Published to the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tags {
    /// Never the leader.
    pub nofailover: bool,
    /// Among equals the higher one wins; 0 is `nofailover`.
    pub failover_priority: u32,
    /// Not offered to readers.
    pub noloadbalance: bool,
    /// Replicas are preferably cloned from here.
    pub clonefrom: bool,
    /// Streams from this member instead of the leader.
    pub replicatefrom: Option<NodeName>,
    /// Never in the sync set.
    pub nosync: bool,
    /// Among equals the higher one is put into the sync set first; 0 is `nosync`.
    pub sync_priority: u32,
    /// Replays from the archive only.
    pub nostream: bool,
    /// Tags of the operator's own.
    pub custom: BTreeMap<String, Value>,
}
