//! The ways from pgbench to the servers: what stands in between, how it is set up, started and ended.
//!
//! Poolers share their connections by transaction, 20 of them; nobody logs connections or speaks TLS. All else is
//! as each comes. A way is started for one measurement and is ready when a query has gone through it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::ValueEnum;
use nix::sys::signal::Signal;
use serde::Serialize;
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tokio_postgres::SimpleQueryMessage;

use super::cell::{Cell, Proof};
use super::servers::Servers;
use super::{Host, Wanted};
use crate::client;
use crate::cost::{self, Cost};
use crate::process::{self, kill_and_reap, server_folder, start, wait_until};
use crate::systems::SCOPE;

/// Where proxies listen; one runs at a time.
const PORT: u16 = 6432;
/// Where Pgpool-II takes commands.
const COMMAND_PORT: u16 = 6433;
/// Connections to a server that poolers share.
const POOL: u32 = 20;
/// Clients that a proxy must let in.
const CLIENTS: u32 = 4000;
/// Processes of Pgpool-II, each of which serves one client at a time.
const PROCESSES: u32 = 120;
const READY_LIMIT: Duration = Duration::from_secs(20);
const STOP_LIMIT: Duration = Duration::from_secs(10);
const VERSION_LIMIT: Duration = Duration::from_secs(10);
/// How much of its log is told of a way that does not get ready.
const LOG_LINES: usize = 5;
/// The first PgBouncer that carries prepared statements from server to server.
const PREPARES_FROM: (u32, u32) = (1, 21);

/// What stands between pgbench and the servers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Way {
    /// Nothing: pgbench connects to the leader
    Direct,
    /// A relay of bytes, in this program
    Relay,
    /// HAProxy, which relays bytes, too
    Haproxy,
    /// PgBouncer, as the system has it
    Pgbouncer,
    /// The PgBouncer that --pgbouncer-newest names
    PgbouncerNewest,
    /// Pgpool-II, which sends reads to both servers
    Pgpool,
    /// Antiphon's router: all goes to the leader
    Antiphon,
    /// Antiphon's router: reads go to the follower and see what their session wrote
    AntiphonSplit,
}

impl Way {
    /// All of them, in the order of the tables.
    pub(crate) const ALL: [Way; 8] = [
        Way::Direct,
        Way::Relay,
        Way::Haproxy,
        Way::Pgbouncer,
        Way::PgbouncerNewest,
        Way::Pgpool,
        Way::Antiphon,
        Way::AntiphonSplit,
    ];

    /// Its name in tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Way::Direct => "direct",
            Way::Relay => "relay",
            Way::Haproxy => "haproxy",
            Way::Pgbouncer => "pgbouncer",
            Way::PgbouncerNewest => "pgbouncer newest",
            Way::Pgpool => "pgpool",
            Way::Antiphon => "antiphon",
            Way::AntiphonSplit => "antiphon split",
        }
    }
}

/// A PgBouncer and what it is able to do.
struct Bouncer {
    program: PathBuf,
    prepares: bool,
}

/// The programs of all ways, and what they must know to be set up.
pub(super) struct Kit {
    antiphon: PathBuf,
    relay: PathBuf,
    bouncer: Option<Bouncer>,
    newest: Option<Bouncer>,
    /// What the programs call themselves.
    versions: Vec<String>,
    leader: u16,
    follower: u16,
    verifier: String,
    starts: u32,
}

impl Kit {
    /// The programs of the ways that are wanted, which lead to these servers.
    ///
    /// # Errors
    /// When one of them is missing, whose name is told.
    pub(super) async fn new(
        host: &Host,
        wanted: &Wanted,
        antiphon: PathBuf,
        servers: &Servers,
    ) -> anyhow::Result<Kit> {
        let mut kit = Kit {
            antiphon,
            relay: host.copy(&std::env::current_exe()?, "relay")?,
            bouncer: None,
            newest: None,
            versions: Vec::new(),
            leader: servers.leader,
            follower: servers.follower,
            verifier: servers.verifier.clone(),
            starts: 0,
        };
        kit.ask_version(host, &host.postgresql.join("postgres"), "--version").await?;
        if wanted.ways.contains(&Way::Haproxy) {
            kit.ask_version(host, Path::new("haproxy"), "-v").await?;
        }
        if wanted.ways.contains(&Way::Pgbouncer) {
            kit.bouncer = Some(kit.bouncer_at(host, PathBuf::from("pgbouncer")).await?);
        }
        if let Some(folder) = &wanted.pgbouncer_newest {
            kit.newest = Some(kit.bouncer_at(host, folder.join("pgbouncer")).await?);
        }
        if wanted.ways.contains(&Way::Pgpool) {
            kit.ask_version(host, Path::new("pgpool"), "--version").await?;
        }
        Ok(kit)
    }

    async fn bouncer_at(&mut self, host: &Host, program: PathBuf) -> anyhow::Result<Bouncer> {
        let said = self.ask_version(host, &program, "--version").await?;
        let prepares = version(&said).is_some_and(|version| version >= PREPARES_FROM);
        Ok(Bouncer { program, prepares })
    }

    /// What a program says of its version; the first line is kept.
    async fn ask_version(&mut self, host: &Host, program: &Path, flag: &str) -> anyhow::Result<String> {
        let mut command = host.command(program);
        command.arg(flag).stdin(Stdio::null()).kill_on_drop(true);
        let output = timeout(VERSION_LIMIT, command.output()).await;
        let output = output.with_context(|| format!("{} {flag} does not end", program.display()))??;
        // Pgpool-II says it on its standard error.
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        if !output.status.success() {
            bail!("no {} (scripts/servers.sh gets it): {}", program.display(), said.trim());
        }
        self.versions.extend(said.lines().next().map(str::to_string));
        Ok(said)
    }

    /// What the programs call themselves.
    pub(super) fn versions(&self) -> String {
        self.versions.join("; ")
    }

    /// Whether a way can be gone at all.
    pub(super) fn has(&self, way: Way) -> bool {
        way != Way::PgbouncerNewest || self.newest.is_some()
    }

    /// Whether a way has this cell. Memory is the poolers' that serve clients in one process.
    pub(super) fn can(&self, way: Way, cell: Cell) -> bool {
        let bouncer = |bouncer: &Option<Bouncer>| {
            bouncer.as_ref().is_some_and(|bouncer| bouncer.prepares || !cell.prepares())
        };
        match way {
            Way::Direct | Way::Relay | Way::Haproxy => cell != Cell::Idle,
            Way::Pgbouncer => bouncer(&self.bouncer),
            Way::PgbouncerNewest => bouncer(&self.newest),
            // Its own list of passwords is encrypted with a key of its own: a set-up that nobody else needs.
            Way::Pgpool => !matches!(cell, Cell::Idle | Cell::Logins),
            Way::Antiphon | Way::AntiphonSplit => true,
        }
    }

    /// Starts a way and waits until a query has gone through it.
    pub(super) async fn start(&mut self, host: &Host, way: Way, proof: Proof) -> anyhow::Result<Running> {
        self.starts += 1;
        let folder = host.folder.join(format!("{}-{}", way.name().replace(' ', "-"), self.starts));
        server_folder(&folder)?;
        let log = folder.join("log");
        let child =
            self.command(host, way, proof, &folder)?.map(|command| start(command, &log)).transpose()?;
        let port = if child.is_some() { PORT } else { self.leader };
        let running = Running { child, port };
        let ready = wait_until(way.name(), READY_LIMIT, || async {
            is_ready(port, way, proof).await.map_err(|error| format!("{error:#}"))
        });
        if let Err(error) = ready.await {
            running.stop().await;
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let last = text.lines().skip(text.lines().count().saturating_sub(LOG_LINES));
            return Err(error.context(last.collect::<Vec<_>>().join("; ")));
        }
        Ok(running)
    }

    /// How a way is started, its files written; nothing where nothing is in between.
    fn command(&self, host: &Host, way: Way, proof: Proof, folder: &Path) -> anyhow::Result<Option<Command>> {
        let write = |name: &str, text: &str| {
            let file = folder.join(name);
            std::fs::write(&file, text).with_context(|| format!("could not write {}", file.display()))?;
            anyhow::Ok(file)
        };
        let bouncer = |bouncer: &Option<Bouncer>| {
            let bouncer = bouncer.as_ref().context("there is no such PgBouncer")?;
            let users = write("users.txt", &self.users())?;
            let settings = self.bouncer_settings(bouncer, proof, &users);
            let mut command = host.command(&bouncer.program);
            command.arg(write("pgbouncer.ini", &settings)?);
            anyhow::Ok(command)
        };
        Ok(Some(match way {
            Way::Direct => return Ok(None),
            Way::Relay => {
                let mut command = host.command(&self.relay);
                command.args(["relay", "--listen", &format!("0.0.0.0:{PORT}")]);
                command.args(["--to", &format!("127.0.0.1:{}", self.leader)]);
                command
            }
            Way::Haproxy => {
                let mut command = host.command(Path::new("haproxy"));
                command.arg("-db").arg("-f").arg(write("haproxy.cfg", &self.haproxy_settings())?);
                command
            }
            Way::Pgbouncer => bouncer(&self.bouncer)?,
            Way::PgbouncerNewest => bouncer(&self.newest)?,
            Way::Pgpool => {
                let mut command = host.command(Path::new("pgpool"));
                command.arg("-n").arg("-F").arg(write("pcp.conf", "")?);
                command.arg("-f").arg(write("pgpool.conf", &self.pgpool_settings(folder))?);
                command
            }
            Way::Antiphon | Way::AntiphonSplit => {
                let mut command = host.command(&self.antiphon);
                let settings = antiphon_settings(proof, way == Way::AntiphonSplit);
                command.arg("run").arg(write("router.yml", &settings)?);
                command
            }
        }))
    }

    /// The roles as PgBouncer wants them.
    fn users(&self) -> String {
        let (app, prover) = (Proof::Trust.user(), Proof::Scram.user());
        format!("\"{app}\" \"\"\n\"{prover}\" \"{}\"\n", self.verifier)
    }

    fn bouncer_settings(&self, bouncer: &Bouncer, proof: Proof, users: &Path) -> String {
        let auth_type = match proof {
            Proof::Trust => "trust",
            Proof::Scram => "scram-sha-256",
        };
        let mut settings = format!(
            "[databases]\npostgres = host=127.0.0.1 port={leader}\n[pgbouncer]\nlisten_addr = 0.0.0.0\n\
             listen_port = {PORT}\nunix_socket_dir =\nauth_type = {auth_type}\nauth_file = {users}\n\
             pool_mode = transaction\ndefault_pool_size = {POOL}\nmax_client_conn = {CLIENTS}\n\
             log_connections = 0\nlog_disconnections = 0\n",
            leader = self.leader,
            users = users.display(),
        );
        if bouncer.prepares {
            settings.push_str("max_prepared_statements = 200\n");
        }
        settings
    }

    fn haproxy_settings(&self) -> String {
        format!(
            "global\n  maxconn {CLIENTS}\ndefaults\n  mode tcp\n  timeout client 30m\n  timeout connect 4s\n  \
             timeout server 30m\nlisten leader\n  bind 0.0.0.0:{PORT}\n  server leader 127.0.0.1:{}\n",
            self.leader
        )
    }

    fn pgpool_settings(&self, folder: &Path) -> String {
        let mut settings = format!(
            "backend_clustering_mode = 'streaming_replication'\nlisten_addresses = '*'\nport = {PORT}\n\
             socket_dir = '{folder}'\npcp_port = {COMMAND_PORT}\npcp_socket_dir = '{folder}'\n\
             pid_file_name = '{folder}/pgpool.pid'\nlogdir = '{folder}'\nnum_init_children = {PROCESSES}\n\
             max_pool = 1\nload_balance_mode = on\nenable_pool_hba = off\nsr_check_user = '{app}'\n\
             sr_check_database = 'postgres'\n",
            folder = folder.display(),
            app = Proof::Trust.user(),
        );
        for (number, port) in [self.leader, self.follower].into_iter().enumerate() {
            // Writing to a String cannot fail.
            let _always_ok = writeln!(
                settings,
                "backend_hostname{number} = '127.0.0.1'\nbackend_port{number} = {port}\nbackend_weight{number} = 1"
            );
        }
        settings
    }
}

/// The file of a router. Its account asks for verifiers, and how far servers are.
fn antiphon_settings(proof: Proof, split: bool) -> String {
    let auth_type = match proof {
        Proof::Trust => "trust",
        Proof::Scram => "scram-sha-256",
    };
    let reads = if split { "  read_from: followers\n  consistency: read_your_writes\n" } else { "" };
    format!(
        "scope: {SCOPE}\nrouter:\n  listen: 0.0.0.0:{PORT}\n  agents: [{apis}]\n  auth_type: {auth_type}\n  \
         auth_user: postgres\n  pool_size: {POOL}\n  max_client_conn: {CLIENTS}\n{reads}",
        apis = Servers::apis(),
    )
}

/// The first two numbers of a version such as `PgBouncer 1.18.0`.
fn version(said: &str) -> Option<(u32, u32)> {
    let mut numbers = said.split_whitespace().nth(1)?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// An error that says why unless a query goes through, and to the follower where it should.
async fn is_ready(port: u16, way: Way, proof: Proof) -> anyhow::Result<()> {
    let client = client::connect(&Host::config(port, proof)).await?;
    client.simple_query("SELECT abalance FROM pgbench_accounts WHERE aid = 1").await?;
    if way == Way::AntiphonSplit {
        let answer = client.simple_query("SHOW antiphon.route").await?;
        let route = answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        anyhow::ensure!(route.is_some_and(|route| route.starts_with("follower")), "a read went to {route:?}");
    }
    Ok(())
}

/// A way that is ready.
pub(super) struct Running {
    child: Option<Child>,
    port: u16,
}

impl Running {
    /// Where pgbench connects to.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// What its processes have cost so far; nothing where there is none.
    pub(super) fn cost(&self) -> Option<Cost> {
        let pid = i32::try_from(self.child.as_ref()?.id()?).ok()?;
        Some(cost::sum(&cost::family(pid)))
    }

    /// Ends it, gently first: Pgpool-II has memory of the system's to give back.
    pub(super) async fn stop(self) {
        let Some(mut child) = self.child else { return };
        let family = child.id().and_then(|pid| i32::try_from(pid).ok()).map(cost::family).unwrap_or_default();
        process::send(child.id(), Signal::SIGTERM);
        if timeout(STOP_LIMIT, child.wait()).await.is_err() {
            kill_and_reap(&mut child).await;
            for pid in family {
                process::send(u32::try_from(pid).ok(), Signal::SIGKILL);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_tells_who_carries_prepared_statements() {
        assert_eq!(version("PgBouncer 1.18.0\nlibevent 2.1.12-stable\n"), Some((1, 18)));
        assert!(version("PgBouncer 1.18.0").unwrap() < PREPARES_FROM);
        assert!(version("PgBouncer 1.25.1").unwrap() >= PREPARES_FROM);
        assert_eq!(version("PgBouncer"), None);
    }

    #[test]
    fn only_the_split_sends_reads_to_followers() {
        assert!(antiphon_settings(Proof::Trust, true).contains("read_from: followers"));
        assert!(!antiphon_settings(Proof::Scram, false).contains("read_from"));
    }
}
