//! A cluster on loopback: real agents and real servers as child processes, in a directory of its own.
//!
//! Used by `antiphon demo` and by the fault tests. It starts, kills, pauses and asks; it knows nothing of how
//! the members decide.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, chown};
use serde_json::Value;

use crate::config::{Address, Sample, SampleServer, Secret, sample};

/// The password of every role in a cluster that listens on loopback only and is thrown away.
pub const PASSWORD: &str = "antiphon-demo";

/// One member.
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its node file.
    pub file: PathBuf,
    /// Its data directory; none for a witness.
    pub data_dir: Option<PathBuf>,
    /// Its server's port.
    pub server_port: u16,
    /// Its API's port.
    pub api_port: u16,
    agent: Option<Child>,
    log: PathBuf,
}

/// What a cluster is made of.
pub struct Plan {
    /// Where everything is kept; created if missing.
    pub dir: PathBuf,
    /// The binary of the agent.
    pub binary: PathBuf,
    /// Where the server's programs are; found by the agent if none.
    pub bin_dir: Option<PathBuf>,
    /// Members with data, n1, n2, …
    pub data_members: usize,
    /// Whether a witness w1 votes besides.
    pub witness: bool,
    /// Cluster-wide settings.
    pub settings: Value,
    /// The port of an etcd on loopback to agree in; the members' own Raft if none.
    pub etcd: Option<u16>,
}

/// A running cluster.
pub struct Cluster {
    /// Its members.
    pub nodes: Vec<Node>,
    binary: PathBuf,
}

impl Cluster {
    /// Writes the node files and starts every member.
    ///
    /// # Errors
    /// What could not be written or started.
    pub fn start(plan: &Plan) -> anyhow::Result<Self> {
        Self::start_with(plan, |_| String::new())
    }

    /// The same with more in each node file: what `more` says of the server with this port.
    ///
    /// # Errors
    /// What could not be written or started.
    pub fn start_with(plan: &Plan, more: impl Fn(u16) -> String) -> anyhow::Result<Self> {
        fs::create_dir_all(&plan.dir).with_context(|| format!("could not create {}", plan.dir.display()))?;
        own(&plan.dir)?;
        let total = plan.data_members + usize::from(plan.witness);
        let ports = free_ports(total * 3)?;
        let address = |port: u16| Address { host: "127.0.0.1".to_owned(), port };
        let mut nodes = Vec::new();
        for index in 0..total {
            let [raft, api, server] = [ports[index * 3], ports[index * 3 + 1], ports[index * 3 + 2]];
            let has_data = index < plan.data_members;
            let name = if has_data { format!("n{}", index + 1) } else { "w1".to_owned() };
            let dir = plan.dir.join(&name);
            let data_dir = dir.join("data");
            let mut text = sample(&Sample {
                scope: "demo".to_owned(),
                name: name.parse().context("a demo name is a member name")?,
                restapi: address(api),
                etcd: plan.etcd.map(address),
                raft: address(raft),
                partners: (0..total)
                    .filter(|other| *other != index)
                    .map(|other| address(ports[other * 3]))
                    .collect(),
                raft_dir: dir.join("raft"),
                raft_password: Secret::new(PASSWORD),
                server: has_data.then(|| SampleServer {
                    address: address(server),
                    data_dir: data_dir.clone(),
                    bin_dir: plan.bin_dir.clone(),
                    superuser_password: Secret::new(PASSWORD),
                    replication_password: Secret::new(PASSWORD),
                    pg_hba: Vec::new(),
                }),
                settings: plan.settings.clone(),
            });
            text += &more(server);
            fs::create_dir_all(&dir)?;
            own(&dir)?;
            let file = dir.join("node.yml");
            fs::write(&file, text)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
            own(&file)?;
            nodes.push(Node {
                name,
                file,
                data_dir: has_data.then_some(data_dir),
                server_port: server,
                api_port: api,
                agent: None,
                log: dir.join("agent.log"),
            });
        }
        let mut cluster = Self { nodes, binary: plan.binary.clone() };
        for index in 0..cluster.nodes.len() {
            cluster.start_agent(index)?;
        }
        Ok(cluster)
    }

    /// Starts the agent of a member, if it does not run.
    ///
    /// # Errors
    /// If the binary cannot be started.
    pub fn start_agent(&mut self, index: usize) -> anyhow::Result<()> {
        let binary = self.binary.clone();
        let node = &mut self.nodes[index];
        if node.agent.as_mut().is_some_and(|agent| matches!(agent.try_wait(), Ok(None))) {
            return Ok(());
        }
        let log = fs::OpenOptions::new().create(true).append(true).open(&node.log)?;
        let child = Command::new(&binary)
            .arg("run")
            .arg(&node.file)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C is for whoever started it, who ends it then.
            .process_group(0)
            .spawn()
            .with_context(|| format!("could not start {}", binary.display()))?;
        node.agent = Some(child);
        Ok(())
    }

    /// The index of the member with this name.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.name == name)
    }

    /// Kills the server's main process (kill -9) and nothing else.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill_server(&self, index: usize) -> anyhow::Result<()> {
        let pid = self.postmaster(index).context("the server has no main process")?;
        kill(pid, Signal::SIGKILL).context("could not kill the server")
    }

    /// Kills the agent alone (kill -9); the server goes on.
    pub fn kill_agent(&mut self, index: usize) {
        if let Some(mut agent) = self.nodes[index].agent.take() {
            // An agent that ended by itself is as dead.
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }

    /// Tells the agent to end (SIGTERM), which hands leadership over and stops its server, and waits for that.
    ///
    /// # Errors
    /// If it does not run.
    pub async fn end_agent(&mut self, index: usize) -> anyhow::Result<()> {
        let mut agent = self.nodes[index].agent.take().context("the agent does not run")?;
        kill(pid_of(&agent), Signal::SIGTERM).context("could not tell the agent to end")?;
        let ended = tokio::task::spawn_blocking(move || agent.wait()).await;
        ended.context("the wait was broken off")?.map(drop).context("could not wait for the agent")
    }

    /// Kills every process of a member at once, as the loss of its host would.
    pub fn kill_node(&mut self, index: usize) {
        let server = self.server_processes(index);
        if let Some(agent) = &self.nodes[index].agent {
            let _ = kill(pid_of(agent), Signal::SIGKILL);
        }
        for pid in server.into_iter().chain(self.server_processes(index)) {
            let _ = kill(pid, Signal::SIGKILL);
        }
        self.kill_agent(index);
    }

    /// Stops (SIGSTOP) or continues (SIGCONT) every process of a member.
    pub fn pause_node(&self, index: usize, paused: bool) {
        let signal = if paused { Signal::SIGSTOP } else { Signal::SIGCONT };
        let agent = self.nodes[index].agent.as_ref().map(pid_of);
        // Twice: the main process may have started a child in between.
        for _ in 0..2 {
            for pid in agent.into_iter().chain(self.server_processes(index)) {
                let _ = kill(pid, signal);
            }
        }
    }

    /// The server's main process, as its pid file says.
    fn postmaster(&self, index: usize) -> Option<Pid> {
        let data_dir = self.nodes[index].data_dir.as_ref()?;
        let text = fs::read_to_string(data_dir.join("postmaster.pid")).ok()?;
        let pid = Pid::from_raw(text.lines().next()?.trim().parse().ok()?);
        self.server_processes(index).contains(&pid).then_some(pid)
    }

    /// Every process that works in the data directory.
    fn server_processes(&self, index: usize) -> Vec<Pid> {
        let Some(data_dir) = &self.nodes[index].data_dir else { return Vec::new() };
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == *data_dir))
            .map(Pid::from_raw)
            .collect()
    }

    /// `GET path` of a member's API.
    ///
    /// # Errors
    /// If it does not answer within a second, or not with JSON.
    pub async fn get(&self, index: usize, path: &str) -> anyhow::Result<Value> {
        let port = self.nodes[index].api_port;
        let answer = super::http::get(port, path, Duration::from_secs(1)).await?;
        serde_json::from_str(&answer.body).with_context(|| format!("{path} did not answer with JSON"))
    }

    /// The cluster as the first member that answers sees it (`GET /cluster`).
    pub async fn seen(&self) -> Option<Value> {
        for index in 0..self.nodes.len() {
            if let Ok(value) = self.get(index, "/cluster").await {
                return Some(value);
            }
        }
        None
    }

    /// The member that leads, by its own word: its API says so on `/primary`.
    pub async fn leader(&self) -> Option<usize> {
        for (index, node) in self.nodes.iter().enumerate() {
            let answer = super::http::get(node.api_port, "/primary", Duration::from_millis(300)).await;
            if answer.is_ok_and(|answer| answer.status == 200) {
                return Some(index);
            }
        }
        None
    }

    /// Whether one member leads and every other one with data streams.
    pub async fn is_whole(&self) -> bool {
        let Some(leader) = self.leader().await else { return false };
        let Ok(seen) = self.get(leader, "/cluster").await else { return false };
        let members = seen["members"].as_array().cloned().unwrap_or_default();
        let streaming = members.iter().filter(|m| m["state"] == "streaming").count();
        let data = self.nodes.iter().filter(|node| node.data_dir.is_some()).count();
        streaming + 1 == data && self.acknowledged(leader).await
    }

    /// Whether the leader's commits wait for somebody, where the settings ask for that.
    async fn acknowledged(&self, leader: usize) -> bool {
        let Ok(config) = self.get(leader, "/config").await else { return false };
        if config["synchronous_mode"] == Value::Bool(false) || config["synchronous_mode"] == "off" {
            return true;
        }
        let Ok(seen) = self.get(leader, "/cluster").await else { return false };
        let sync = |m: &Value| {
            m["role"].as_str().is_some_and(|role| role.starts_with("sync") || role.starts_with("quorum"))
        };
        seen["members"].as_array().is_some_and(|members| members.iter().any(sync))
    }

    /// Waits until the cluster is whole.
    ///
    /// # Errors
    /// If it is not within `limit`; says how it looks then.
    pub async fn wait_whole(&self, limit: Duration) -> anyhow::Result<Duration> {
        let started = Instant::now();
        while started.elapsed() < limit {
            if self.is_whole().await {
                return Ok(started.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let seen = self.seen().await.map_or_else(|| "no member answers".to_owned(), |seen| seen.to_string());
        bail!("the cluster is not whole after {limit:?}: {seen}")
    }

    /// The addresses of every server, in the order of the members: what libpq takes as `host=… port=…`.
    pub fn servers(&self) -> Vec<u16> {
        self.nodes.iter().filter(|node| node.data_dir.is_some()).map(|node| node.server_port).collect()
    }

    /// Ends every process.
    pub fn stop(&mut self) {
        for index in 0..self.nodes.len() {
            self.pause_node(index, false);
        }
        for index in 0..self.nodes.len() {
            self.kill_node(index);
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
    }
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("a Linux process id fits in an i32"))
}

/// Gives a path to the server's user when run as root, who may not run PostgreSQL.
fn own(path: &Path) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let user = User::from_name("postgres")?.context("there is no user postgres; install PostgreSQL first")?;
    chown(path, Some(user.uid), Some(user.gid))
        .with_context(|| format!("could not give away {}", path.display()))
}

/// Ports that were free a moment ago.
fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    let listeners: Vec<std::net::TcpListener> =
        (0..count).map(|_| std::net::TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}
