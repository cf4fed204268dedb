//! A PostgreSQL server of the bench: a copy of a data directory that was made once, with the table full.
//!
//! It runs as the server user if the bench runs as root, on a port of its own, and ends with the value that stands
//! for it. Nothing of the system's own servers is touched.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::Signal;
use nix::unistd::{User, geteuid};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tokio_postgres::{Client, Config};

use super::load;
use crate::process::{SERVER_USER, kill_and_reap, run, send, server_folder, start, wait_until};
use crate::{client, cost};

/// How long a server may take to start or to stop.
const TURN_LIMIT: Duration = Duration::from_secs(120);
/// How long making or copying a data directory may take.
const COPY_LIMIT: Duration = Duration::from_secs(600);

/// What every server is started with. Nothing begins by itself in the middle of a measurement: neither vacuum nor
/// a checkpoint. What is written is safe on disk as it is by default.
const SETTINGS: [(&str, &str); 13] = [
    ("wal_level", "logical"),
    ("listen_addresses", "127.0.0.1"),
    ("shared_buffers", "512MB"),
    ("max_wal_size", "32GB"),
    ("checkpoint_timeout", "1h"),
    ("autovacuum", "off"),
    ("max_connections", "100"),
    ("max_wal_senders", "10"),
    ("max_replication_slots", "10"),
    ("max_worker_processes", "16"),
    ("wal_retrieve_retry_interval", "100ms"),
    ("timezone", "UTC"),
    ("min_wal_size", "80MB"),
];

/// Where servers are made, and from which programs.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) folder: PathBuf,
    pub(super) bin: PathBuf,
}

impl Place {
    /// A command as the server user.
    pub(super) fn command(&self, program: &Path) -> anyhow::Result<Command> {
        let mut command = Command::new(program);
        command.env("HOME", &self.folder).env("PGGSSENCMODE", "disable").current_dir(&self.folder);
        if geteuid().is_root() {
            let user = User::from_name(SERVER_USER)?;
            let user = user.with_context(|| format!("there is no user {SERVER_USER}"))?;
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        Ok(command)
    }

    /// The release of the programs: 15.
    pub(super) async fn release(&self) -> anyhow::Result<u32> {
        let mut command = self.command(&self.bin.join("postgres"))?;
        command.arg("--version");
        let said = run(command, TURN_LIMIT).await?;
        let number =
            said.split_whitespace().nth(2).and_then(|version| version.split(['.', 'b', 'r', 'd']).next());
        number.and_then(|number| number.parse().ok()).with_context(|| format!("no release in {said:?}"))
    }

    /// Makes a folder that the server user owns.
    pub(super) fn make(&self) -> anyhow::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        if geteuid().is_root() { server_folder(&self.folder) } else { Ok(()) }
    }
}

/// A data directory that servers are copied from.
pub(super) struct Template {
    data: PathBuf,
}

impl Template {
    /// Makes one with so many rows.
    pub(super) async fn make(place: &Place, name: &str, rows: u64) -> anyhow::Result<Template> {
        let place = Place { folder: place.folder.join(name), bin: place.bin.clone() };
        place.make()?;
        let data = place.folder.join("data");
        let mut command = place.command(&place.bin.join("initdb"))?;
        command.args([
            "--no-sync",
            "--auth=trust",
            "--username=postgres",
            "--encoding=UTF8",
            "--locale=C",
            "-D",
        ]);
        command.arg(&data);
        run(command, COPY_LIMIT).await?;
        let server = Server::start(&place, &[("track_commit_timestamp", "on")]).await?;
        load::fill(&server.client().await?, rows).await.context("could not fill the table of the bench")?;
        server.stop().await;
        Ok(Template { data })
    }

    /// A server that is a copy, running.
    pub(super) async fn server(&self, place: &Place, settings: &[(&str, &str)]) -> anyhow::Result<Server> {
        place.make()?;
        let mut command = Command::new("cp");
        command.args(["-a", "--reflink=auto"]).arg(&self.data).arg(place.folder.join("data"));
        run(command, COPY_LIMIT).await?;
        Server::start(place, settings).await
    }
}

/// A server at work.
pub(super) struct Server {
    pub(super) place: Place,
    pub(super) port: u16,
    process: Child,
}

impl Server {
    async fn start(place: &Place, settings: &[(&str, &str)]) -> anyhow::Result<Server> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = place.command(&place.bin.join("postgres"))?;
        command.arg("-D").arg(place.folder.join("data")).arg("-k").arg(&place.folder);
        command.args(["-p", &port.to_string()]);
        for (name, value) in SETTINGS.iter().chain(settings) {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        let log = place.folder.join("log");
        let server = Server { place: place.clone(), port, process: start(command, &log)? };
        wait_until("the server does not answer", TURN_LIMIT, || async {
            server.client().await.map(drop).map_err(|error| format!("{error:#} (see {})", log.display()))
        })
        .await?;
        Ok(server)
    }

    /// How it is reached over its socket.
    pub(super) fn socket(&self) -> String {
        format!("host={} port={} user=postgres dbname=postgres", self.place.folder.display(), self.port)
    }

    /// How others reach it.
    pub(super) fn address(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname=postgres", self.port)
    }

    /// The same for this program.
    pub(super) fn config(&self) -> Config {
        let mut config = Config::new();
        config.host_path(&self.place.folder).port(self.port).user("postgres").dbname("postgres");
        config
    }

    /// A connection.
    pub(super) async fn client(&self) -> anyhow::Result<Client> {
        client::connect(&self.config()).await
    }

    /// Runs statements, each in a transaction of its own.
    pub(super) async fn run(&self, statements: &[&str]) -> anyhow::Result<()> {
        let client = self.client().await?;
        for statement in statements {
            client.batch_execute(statement).await.with_context(|| (*statement).to_string())?;
        }
        Ok(())
    }

    /// CPU time of all its processes so far, those that have ended included.
    pub(super) fn cost(&self) -> cost::Cost {
        let pid = self.process.id().and_then(|pid| i32::try_from(pid).ok());
        cost::sum(&pid.map(cost::family).unwrap_or_default())
    }

    /// Stops it in order.
    pub(super) async fn stop(mut self) {
        send(self.process.id(), Signal::SIGINT);
        if timeout(TURN_LIMIT, self.process.wait()).await.is_err() {
            kill_and_reap(&mut self.process).await;
        }
    }
}
