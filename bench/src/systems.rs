//! The systems that are measured, and what is done to all of them in the same way.
//!
//! All of them answer GET /cluster on port 8008 with the same JSON, so who leads and whether the cluster is
//! whole is asked here, once, of the nodes and of PostgreSQL itself. What differs is a small trait.

mod antiphon;
mod patroni;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use async_trait::async_trait;
use clap::ValueEnum;
use nix::sys::signal::Signal;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_postgres::Config;

use crate::Programs;
use crate::client;
use crate::net::{Net, Node};
use crate::process::{self, server_folder};

/// The port of PostgreSQL on every node.
pub(crate) const POSTGRES_PORT: u16 = 5432;
/// The port of the REST API on every node.
pub(crate) const REST_PORT: u16 = 8008;
/// The port of the proxy beside the client.
const PROXY_PORT: u16 = 5000;
/// The name of the cluster.
pub(crate) const SCOPE: &str = "bench";
const REST_LIMIT: Duration = Duration::from_secs(3);
/// `bench:bench` as HTTP's basic authentication wants it.
const REST_LOGIN: &str = "YmVuY2g6YmVuY2g=";
const REST_ANSWER_MAX: u64 = 1 << 20;

/// What one system does in its own way.
#[async_trait]
pub(crate) trait System: Send + Sync {
    /// Its name in tables.
    fn name(&self) -> &'static str;
    /// Starts three nodes from nothing, and whatever the client connects through.
    async fn start(&mut self) -> anyhow::Result<()>;
    /// Starts a node again whose processes were killed.
    async fn start_node(&mut self, node: Node) -> anyhow::Result<()>;
    /// Hands leadership over as an operator would; returns when the command has ended.
    async fn switchover(&self, leader: Node, candidate: Node) -> anyhow::Result<()>;
    /// Where the node's data directory is.
    fn data_folder(&self, node: Node) -> PathBuf;
    /// Programs on a node that do not die with the agent and PostgreSQL.
    fn outlives_the_node(&self) -> &'static [&'static str];
    /// Kills what was started. Files stay.
    async fn stop(&mut self);
}

/// A system at certain settings.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Choice {
    /// Patroni at its defaults: ttl 30, loop_wait 10, retry_timeout 10
    Patroni,
    /// Patroni as fast as it lets itself be set: ttl 20, loop_wait 1, retry_timeout 3
    PatroniFastest,
    /// Antiphon at its defaults
    Antiphon,
}

impl Choice {
    /// Its name in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Choice::Patroni => "patroni",
            Choice::PatroniFastest => "patroni-fastest",
            Choice::Antiphon => "antiphon",
        }
    }
}

/// Whether the proxy is started that a system's clients connect through.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proxy {
    /// It is: writes are measured.
    With,
    /// It is not: its health checks would be work for an agent that is to be idle.
    Without,
}

/// Makes a system ready to be started in `folder`. Errors name the program that is missing.
pub(crate) fn make(
    choice: Choice,
    wanted: &Programs,
    net: &Net,
    folder: &Path,
    proxy: Proxy,
) -> anyhow::Result<Box<dyn System>> {
    server_folder(folder)?;
    let place =
        Place { net: net.clone(), folder: folder.to_path_buf(), postgresql: wanted.postgresql().into() };
    let timing = match choice {
        Choice::Patroni => patroni::Timing { ttl: 30, loop_wait: 10, retry_timeout: 10 },
        Choice::PatroniFastest => patroni::Timing { ttl: 20, loop_wait: 1, retry_timeout: 3 },
        Choice::Antiphon => return Ok(Box::new(antiphon::Antiphon::new(place, wanted.antiphon()?, proxy))),
    };
    let bin = wanted.patroni().context("no Patroni: name its bin directory with --patroni")?;
    Ok(Box::new(patroni::Patroni::new(choice.name(), place, bin, timing, proxy)))
}

/// Where and with what a system runs.
pub(crate) struct Place {
    net: Net,
    folder: PathBuf,
    postgresql: PathBuf,
}

impl Place {
    fn of(&self, node: Node) -> PathBuf {
        self.folder.join(node.to_string())
    }

    /// An empty folder for the node. What an earlier start left is kept beside it, for whoever asks why it failed.
    fn fresh(&self, node: Node) -> anyhow::Result<PathBuf> {
        let folder = self.of(node);
        if folder.exists() {
            let kept = (1..100).map(|n| folder.with_extension(n.to_string())).find(|kept| !kept.exists());
            let kept = kept.with_context(|| format!("{} was started a hundred times", folder.display()))?;
            std::fs::rename(&folder, kept).context("could not set an earlier node's folder aside")?;
        }
        server_folder(&folder)?;
        Ok(folder)
    }
}

/// The part of patroni.yml below `postgresql` that is the same for all: where, as whom, who may connect.
fn postgresql_section(place: &Place, node: Node) -> String {
    let folder = place.of(node);
    format!(
        "postgresql:\n  listen: {address}:{POSTGRES_PORT}\n  connect_address: {address}:{POSTGRES_PORT}\n  \
         data_dir: {folder}/data\n  bin_dir: {bin}\n  pgpass: {folder}/pgpass\n  authentication:\n    \
         superuser: {{username: postgres, password: bench}}\n    \
         replication: {{username: replicator, password: bench}}\n    \
         rewind: {{username: rewinder, password: bench}}\n  \
         parameters:\n    unix_socket_directories: {folder}\n  pg_hba:\n  - local all all trust\n  \
         - host all all {network} trust\n  - host replication all {network} trust\n",
        address = node.address(),
        folder = folder.display(),
        bin = place.postgresql.display(),
        network = crate::net::NETWORK,
    )
}

/// A connection straight to a node's PostgreSQL.
pub(crate) fn direct(node: Node) -> anyhow::Result<Config> {
    let text = format!("host={} port={POSTGRES_PORT} user=postgres dbname=postgres", node.address());
    let mut config: Config = text.parse()?;
    config.connect_timeout(REST_LIMIT);
    Ok(config)
}

/// A connection through the proxy beside the client.
pub(crate) fn proxied() -> anyhow::Result<Config> {
    Ok(format!("host=127.0.0.1 port={PROXY_PORT} user=postgres dbname=postgres").parse()?)
}

/// Kills (SIGKILL) the postmaster of a data directory, and nothing but it.
pub(crate) fn kill_postgres(data: &Path) -> anyhow::Result<()> {
    let file = data.join("postmaster.pid");
    let text =
        std::fs::read_to_string(&file).with_context(|| format!("could not read {}", file.display()))?;
    let pid = text.lines().next().and_then(|line| line.trim().parse().ok());
    let pid: u32 = pid.with_context(|| format!("{} names no process", file.display()))?;
    process::send(Some(pid), Signal::SIGKILL);
    Ok(())
}

#[derive(Deserialize)]
struct Cluster {
    members: Vec<Member>,
}

#[derive(Deserialize)]
struct Member {
    name: String,
    role: String,
    state: String,
}

/// The node that leads, as the nodes say.
pub(crate) async fn leader() -> anyhow::Result<Node> {
    let cluster = cluster().await?;
    let leader = cluster.members.iter().find(|member| member.role == "leader").context("no node leads")?;
    Node::named(&leader.name).with_context(|| format!("{} leads and is no node of ours", leader.name))
}

/// An error that says why, unless one node leads and the two others stream from it as its sync set.
pub(crate) async fn all_streaming() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let leader = leader().await?;
    let followers = cluster.members.iter().filter(|member| member.role != "leader");
    let whole = followers.filter(|member| member.state == "streaming" && member.role.ends_with("_standby"));
    if whole.count() != 2 {
        let shown = cluster.members.iter().map(|m| format!("{} {} {}", m.name, m.role, m.state));
        bail!("members: {}", shown.collect::<Vec<_>>().join(", "));
    }
    // What the store says may be old; PostgreSQL knows.
    let client = client::connect(&direct(leader)?).await?;
    let query = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' \
                 AND sync_state IN ('quorum', 'sync') AND NOT pg_is_in_recovery() \
                 AND pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn) < 65536";
    let streaming: i64 = timeout(REST_LIMIT, client.query_one(query, &[])).await??.get(0);
    if streaming != 2 {
        bail!("{streaming} of 2 followers stream from {leader} as its sync set");
    }
    Ok(())
}

/// The cluster as the first node that answers describes it.
async fn cluster() -> anyhow::Result<Cluster> {
    let mut why = Vec::new();
    for node in Node::ALL {
        match request(node, "GET", "/cluster", "", REST_LIMIT).await {
            Ok(body) => return serde_json::from_slice(&body).context("GET /cluster: not the JSON expected"),
            Err(error) => why.push(format!("{node}: {error:#}")),
        }
    }
    bail!("no node answers GET /cluster: {}", why.join("; "))
}

/// One HTTP/1.0 request; the answer's body when it is 200, else an error that holds it.
async fn request(
    node: Node,
    method: &str,
    path: &str,
    body: &str,
    limit: Duration,
) -> anyhow::Result<Vec<u8>> {
    timeout(limit, async {
        let mut stream = TcpStream::connect((node.address(), REST_PORT)).await?;
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: {node}\r\nContent-Type: application/json\r\n\
             Authorization: Basic {REST_LOGIN}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + body).as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(REST_ANSWER_MAX).read_to_end(&mut answer).await?;
        let head = answer.windows(4).position(|window| window == b"\r\n\r\n").context("no HTTP answer")?;
        let body = answer.split_off(head + 4);
        let status = answer.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
        if status != b"200" {
            bail!("status {}: {}", String::from_utf8_lossy(status), String::from_utf8_lossy(&body));
        }
        Ok(body)
    })
    .await
    .with_context(|| format!("no answer within {limit:?}"))?
}
