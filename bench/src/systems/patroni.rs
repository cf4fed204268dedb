//! Patroni with etcd on its three nodes, and HAProxy beside the client, set up as their documentation says.
//!
//! Patroni runs in quorum mode, so that it makes the same promise as Antiphon. etcd shares the nodes' hosts and
//! is left alive when agent and PostgreSQL are killed: that is the kinder case for Patroni.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use tokio::process::{Child, Command};

use super::{POSTGRES_PORT, PROXY_PORT, Place, Proxy, REST_PORT, SCOPE, System, postgresql_section};
use crate::net::Node;
use crate::process::{kill_and_reap, run, start};

const SWITCHOVER_LIMIT: Duration = Duration::from_secs(120);

/// Patroni's three intervals, in seconds.
pub(crate) struct Timing {
    pub(crate) ttl: u32,
    pub(crate) loop_wait: u32,
    pub(crate) retry_timeout: u32,
}

/// Patroni, etcd and HAProxy.
pub(crate) struct Patroni {
    name: &'static str,
    place: Place,
    bin: PathBuf,
    timing: Timing,
    proxy: Proxy,
    processes: Vec<Child>,
}

impl Patroni {
    /// Patroni from this bin directory, not started yet.
    pub(crate) fn new(name: &'static str, place: Place, bin: &Path, timing: Timing, proxy: Proxy) -> Patroni {
        Patroni { name, place, bin: bin.to_path_buf(), timing, proxy, processes: Vec::new() }
    }

    fn file(&self, node: Node) -> PathBuf {
        self.place.of(node).join("patroni.yml")
    }

    fn settings(&self, node: Node) -> String {
        let Timing { ttl, loop_wait, retry_timeout } = self.timing;
        let address = node.address();
        let stores = Node::ALL.map(|node| format!("{}:2379", node.address())).join(",");
        format!(
            "scope: {SCOPE}\nname: {node}\n\
             restapi:\n  listen: {address}:{REST_PORT}\n  connect_address: {address}:{REST_PORT}\n\
             etcd3:\n  hosts: {stores}\n\
             bootstrap:\n  dcs:\n    ttl: {ttl}\n    loop_wait: {loop_wait}\n    retry_timeout: {retry_timeout}\n    \
             maximum_lag_on_failover: 1048576\n    synchronous_mode: quorum\n    postgresql:\n      \
             use_pg_rewind: true\n      use_slots: true\n  initdb:\n  - encoding: UTF8\n  - data-checksums\n\
             watchdog:\n  mode: 'off'\n{}",
            postgresql_section(&self.place, node)
        )
    }

    fn start_etcd(&mut self, node: Node) -> anyhow::Result<()> {
        let folder = self.place.of(node);
        let address = node.address();
        let members = Node::ALL.map(|node| format!("{node}=http://{}:2380", node.address())).join(",");
        let mut command = self.place.net.command_on(node, Path::new("etcd"));
        command.args(["--name", &node.to_string(), "--initial-cluster", &members, "--data-dir"]);
        command.arg(folder.join("etcd"));
        for (option, port) in [("peer", 2380), ("client", 2379)] {
            command.args([format!("--listen-{option}-urls"), format!("http://{address}:{port}")]);
        }
        command.args(["--initial-advertise-peer-urls", &format!("http://{address}:2380")]);
        command.args(["--advertise-client-urls", &format!("http://{address}:2379")]);
        self.processes.push(start(command, &folder.join("etcd.log"))?);
        Ok(())
    }

    fn start_patroni(&mut self, node: Node) -> anyhow::Result<()> {
        let mut command = self.place.net.command_on(node, &self.bin.join("patroni"));
        command.arg(self.file(node));
        self.processes.push(start(command, &self.place.of(node).join("patroni.log"))?);
        Ok(())
    }

    fn start_proxy(&mut self) -> anyhow::Result<()> {
        let mut settings = format!(
            "global\n  maxconn 1000\ndefaults\n  mode tcp\n  retries 2\n  timeout client 30m\n  \
             timeout connect 4s\n  timeout server 30m\n  timeout check 5s\nlisten primary\n  \
             bind 127.0.0.1:{PROXY_PORT}\n  option httpchk OPTIONS /primary\n  http-check expect status 200\n  \
             default-server inter 3s fall 3 rise 2 on-marked-down shutdown-sessions\n"
        );
        for node in Node::ALL {
            let address = node.address();
            let line =
                format!("  server {node} {address}:{POSTGRES_PORT} maxconn 100 check port {REST_PORT}\n");
            settings.write_str(&line)?;
        }
        let file = self.place.folder.join("haproxy.cfg");
        std::fs::write(&file, settings)?;
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(&file);
        self.processes.push(start(command, &self.place.folder.join("haproxy.log"))?);
        Ok(())
    }
}

#[async_trait]
impl System for Patroni {
    fn name(&self) -> &'static str {
        self.name
    }

    async fn start(&mut self) -> anyhow::Result<()> {
        for node in Node::ALL {
            self.place.fresh(node)?;
            std::fs::write(self.file(node), self.settings(node))?;
            self.start_etcd(node)?;
        }
        for node in Node::ALL {
            self.start_patroni(node)?;
        }
        match self.proxy {
            Proxy::With => self.start_proxy(),
            Proxy::Without => Ok(()),
        }
    }

    async fn start_node(&mut self, node: Node) -> anyhow::Result<()> {
        self.start_patroni(node)
    }

    async fn switchover(&self, leader: Node, candidate: Node) -> anyhow::Result<()> {
        let mut command = Command::new(self.bin.join("patronictl"));
        command.arg("-c").arg(self.file(leader)).args(["switchover", SCOPE, "--force"]);
        command.args(["--leader", &leader.to_string(), "--candidate", &candidate.to_string()]);
        let said = run(command, SWITCHOVER_LIMIT).await?;
        anyhow::ensure!(said.contains("Successfully switched over"), "patronictl says: {}", said.trim());
        Ok(())
    }

    fn data_folder(&self, node: Node) -> PathBuf {
        self.place.of(node).join("data")
    }

    fn outlives_the_node(&self) -> &'static [&'static str] {
        &["etcd"]
    }

    async fn stop(&mut self) {
        for mut process in self.processes.drain(..) {
            kill_and_reap(&mut process).await;
        }
    }
}
