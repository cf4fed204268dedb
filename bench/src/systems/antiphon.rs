//! Antiphon on three nodes: its own store, and its own router beside the client.
//!
//! It is set up by the same kind of file as Patroni, at its defaults, in quorum mode.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use tokio::process::{Child, Command};

use super::{PROXY_PORT, Place, Proxy, REST_PORT, SCOPE, System, postgresql_section, request};
use crate::net::Node;
use crate::process::{kill_and_reap, start};

const RAFT_PORT: u16 = 2222;
const SWITCHOVER_LIMIT: Duration = Duration::from_secs(120);

/// Three nodes of Antiphon.
pub(crate) struct Antiphon {
    place: Place,
    program: PathBuf,
    proxy: Proxy,
    processes: Vec<Child>,
}

impl Antiphon {
    /// Antiphon from this binary, not started yet.
    pub(crate) fn new(place: Place, program: PathBuf, proxy: Proxy) -> Antiphon {
        Antiphon { place, program, proxy, processes: Vec::new() }
    }

    /// The binary as the server user can run it: the checkout may lie where that user cannot look.
    fn copy_of_program(&self) -> PathBuf {
        self.place.folder.join("antiphon")
    }

    fn file(&self, node: Node) -> PathBuf {
        self.place.of(node).join("antiphon.yml")
    }

    fn settings(&self, node: Node) -> String {
        let address = node.address();
        let partners = Node::ALL.into_iter().filter(|other| *other != node);
        let partners: Vec<String> =
            partners.map(|other| format!("'{}:{RAFT_PORT}'", other.address())).collect();
        format!(
            "scope: {SCOPE}\nname: {node}\n\
             restapi:\n  listen: {address}:{REST_PORT}\n  connect_address: {address}:{REST_PORT}\n  \
             authentication: {{username: bench, password: bench}}\n\
             raft:\n  self_addr: '{address}:{RAFT_PORT}'\n  bind_addr: '{address}:{RAFT_PORT}'\n  \
             partner_addrs: [{partners}]\n  data_dir: {folder}/raft\n  password: bench\n\
             bootstrap:\n  dcs:\n    synchronous_mode: quorum\n    postgresql:\n      use_pg_rewind: true\n  \
             initdb:\n  - encoding: UTF8\n  - data-checksums\n{postgresql}",
            partners = partners.join(", "),
            folder = self.place.of(node).display(),
            postgresql = postgresql_section(&self.place, node)
        )
    }

    fn start_router(&mut self) -> anyhow::Result<()> {
        let agents = Node::ALL.map(|node| format!("'{}:{REST_PORT}'", node.address())).join(", ");
        let settings = format!(
            "scope: {SCOPE}\nrouter:\n  listen: 127.0.0.1:{PROXY_PORT}\n  agents: [{agents}]\n  auth_type: trust\n"
        );
        let file = self.place.folder.join("router.yml");
        std::fs::write(&file, settings)?;
        let mut command = Command::new(self.copy_of_program());
        command.arg("run").arg(&file);
        self.processes.push(start(command, &self.place.folder.join("router.log"))?);
        Ok(())
    }
}

#[async_trait]
impl System for Antiphon {
    fn name(&self) -> &'static str {
        "antiphon"
    }

    async fn start(&mut self) -> anyhow::Result<()> {
        std::fs::copy(&self.program, self.copy_of_program())
            .with_context(|| format!("could not copy {}", self.program.display()))?;
        for node in Node::ALL {
            self.place.fresh(node)?;
            std::fs::write(self.file(node), self.settings(node))?;
            self.start_node(node).await?;
        }
        match self.proxy {
            Proxy::With => self.start_router(),
            Proxy::Without => Ok(()),
        }
    }

    async fn start_node(&mut self, node: Node) -> anyhow::Result<()> {
        let mut command = self.place.net.command_on(node, &self.copy_of_program());
        command.arg("run").arg(self.file(node));
        self.processes.push(start(command, &self.place.of(node).join("antiphon.log"))?);
        Ok(())
    }

    async fn switchover(&self, leader: Node, candidate: Node) -> anyhow::Result<()> {
        // What `antiphon switchover` sends.
        let body = format!("{{\"leader\": \"{leader}\", \"candidate\": \"{candidate}\"}}");
        request(leader, "POST", "/switchover", &body, SWITCHOVER_LIMIT).await.map(drop)
    }

    fn data_folder(&self, node: Node) -> PathBuf {
        self.place.of(node).join("data")
    }

    fn outlives_the_node(&self) -> &'static [&'static str] {
        &[]
    }

    async fn stop(&mut self) {
        for mut process in self.processes.drain(..) {
            kill_and_reap(&mut process).await;
        }
    }
}
