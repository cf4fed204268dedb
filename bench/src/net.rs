//! The network of the measurement: three nodes, a client and a bridge, each in a network namespace of its own.
//!
//! A node is cut off by dropping its packets on the bridge, both ways and silently, the client's included.
//! ARP is let through, so that what is tested is a dead host and not a stale neighbour table. Names carry the
//! process id, so two measurements do not meet; what a killed one left behind is taken down by the next.

use std::ffi::OsStr;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Command;
use tokio::time::sleep;

use crate::process::{SERVER_USER, run};

const LIMIT: Duration = Duration::from_secs(20);
const KILL_ROUNDS_MAX: usize = 100;
/// A killed process needs a moment to be gone, more of them on a busy machine.
const KILL_PAUSE: Duration = Duration::from_millis(10);
const PREFIX: &str = "afb";
/// The network of the nodes, for pg_hba.conf.
pub(crate) const NETWORK: &str = "10.77.0.0/24";
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// One of the three nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Node(u8);

impl Node {
    /// All nodes, in order.
    pub(crate) const ALL: [Node; 3] = [Node(1), Node(2), Node(3)];

    /// The node's address on the bridge.
    pub(crate) fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, 10 + self.0)
    }

    /// The node with this name.
    pub(crate) fn named(name: &str) -> Option<Node> {
        Node::ALL.into_iter().find(|node| node.to_string() == name)
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

/// The namespaces of one measurement.
#[derive(Clone)]
pub(crate) struct Net {
    prefix: String,
}

impl Net {
    /// Lays the network. Errors say which command failed; what was laid by then is taken down again.
    pub(crate) async fn create() -> anyhow::Result<Net> {
        take_down_leftovers().await?;
        let net = Net { prefix: format!("{PREFIX}{}", std::process::id()) };
        if let Err(error) = net.lay().await {
            net.destroy().await;
            return Err(
                error.context("could not lay the network: it needs ip and nft (scripts/servers.sh net)")
            );
        }
        Ok(net)
    }

    /// The network that another process has laid.
    pub(crate) fn existing(prefix: String) -> Net {
        Net { prefix }
    }

    /// What the names of the namespaces begin with.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    async fn lay(&self) -> anyhow::Result<()> {
        let switch = self.space("sw");
        ip(&["netns", "add", &switch]).await?;
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"]).await?;
        ip(&["-n", &switch, "link", "set", "br0", "up"]).await?;
        for node in Node::ALL {
            self.plug(&switch, &node.to_string(), node.address()).await?;
        }
        self.plug(&switch, "client", CLIENT).await?;
        let rules = "add table bridge faults; \
            add set bridge faults cut { type ifname; }; \
            add chain bridge faults forward { type filter hook forward priority 0; }; \
            add rule bridge faults forward ether type arp accept; \
            add rule bridge faults forward iifname @cut drop; \
            add rule bridge faults forward oifname @cut drop";
        run(self.command_in("sw", "nft", &[rules]), LIMIT).await?;
        Ok(())
    }

    /// Makes the namespace `name` and connects it to the bridge.
    async fn plug(&self, switch: &str, name: &str, address: Ipv4Addr) -> anyhow::Result<()> {
        let space = self.space(name);
        ip(&["netns", "add", &space]).await?;
        ip(&["link", "add", name, "netns", switch, "type", "veth", "peer", "name", "eth0", "netns", &space])
            .await?;
        ip(&["-n", switch, "link", "set", name, "master", "br0", "up"]).await?;
        ip(&["-n", &space, "address", "add", &format!("{address}/24"), "dev", "eth0"]).await?;
        ip(&["-n", &space, "link", "set", "eth0", "up"]).await?;
        ip(&["-n", &space, "link", "set", "lo", "up"]).await
    }

    /// Takes the network down, with every process still in it. It says what it could not do and goes on.
    pub(crate) async fn destroy(&self) {
        self.kill_everything_in_nodes().await;
        for name in ["n1", "n2", "n3", "client", "sw"] {
            if let Err(error) = ip(&["netns", "delete", &self.space(name)]).await {
                eprintln!("{error:#}");
            }
        }
    }

    /// From now on no packet reaches or leaves the node's host.
    pub(crate) async fn cut(&self, node: Node) -> anyhow::Result<()> {
        let rule = format!("add element bridge faults cut {{ \"{node}\" }}");
        run(self.command_in("sw", "nft", &[&rule]), LIMIT)
            .await
            .context("could not cut the node off")
            .map(drop)
    }

    /// All nodes reach each other again.
    pub(crate) async fn heal(&self) -> anyhow::Result<()> {
        let rule = "flush set bridge faults cut";
        run(self.command_in("sw", "nft", &[rule]), LIMIT)
            .await
            .context("could not heal the network")
            .map(drop)
    }

    /// A command on a node's host, as the server user.
    pub(crate) fn command_on(&self, node: Node, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.space(&node.to_string()), "setpriv"]);
        command.args(["--reuid", SERVER_USER, "--regid", SERVER_USER, "--init-groups", "--"]);
        command.arg(program).env("HOME", "/var/tmp").current_dir("/");
        command
    }

    /// A command on the client's host, as root.
    pub(crate) fn command_at_client(&self, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.space("client")]).arg(program);
        command
    }

    /// Kills (SIGKILL) every process on a node's host but those whose program is named in `spared`.
    pub(crate) async fn kill_processes(&self, node: Node, spared: &[&str]) -> anyhow::Result<()> {
        for _ in 0..KILL_ROUNDS_MAX {
            let pids: Vec<i32> =
                self.pids(node).await?.into_iter().filter(|pid| !is_program(*pid, spared)).collect();
            if pids.is_empty() {
                return Ok(());
            }
            for pid in pids {
                let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            sleep(KILL_PAUSE).await;
        }
        anyhow::bail!(
            "processes on {node} outlive SIGKILL: look at /proc/PID/stack of those in {}",
            self.prefix
        )
    }

    /// Kills what still runs on any node.
    pub(crate) async fn kill_everything_in_nodes(&self) {
        for node in Node::ALL {
            if let Err(error) = self.kill_processes(node, &[]).await {
                eprintln!("{error:#}");
            }
        }
    }

    /// The processes on a node's host.
    pub(crate) async fn pids(&self, node: Node) -> anyhow::Result<Vec<i32>> {
        let mut command = Command::new("ip");
        command.args(["netns", "pids", &self.space(&node.to_string())]);
        Ok(run(command, LIMIT).await?.lines().filter_map(|line| line.trim().parse().ok()).collect())
    }

    fn space(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    fn command_in(&self, name: &str, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.space(name), program]).args(args);
        command
    }
}

/// A process that is dead and only not yet reaped counts as spared: no signal reaches it.
fn is_program(pid: i32, names: &[&str]) -> bool {
    let Ok(command) = std::fs::read(format!("/proc/{pid}/cmdline")) else { return true };
    if command.is_empty() {
        return true;
    }
    let program = command.split(|byte| *byte == 0).next().unwrap_or_default();
    let program = String::from_utf8_lossy(program).into_owned();
    let name = Path::new(&program).file_name().and_then(OsStr::to_str).unwrap_or_default();
    names.contains(&name)
}

async fn ip(args: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    command.args(args);
    run(command, LIMIT).await.map(drop)
}

/// Takes down the networks of measurements whose process is no more.
async fn take_down_leftovers() -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    command.args(["netns", "list"]);
    for line in run(command, LIMIT).await?.lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let Some(pid) = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix("-sw")) else { continue };
        if pid.parse::<i32>().is_ok_and(|pid| kill(Pid::from_raw(pid), None).is_err()) {
            eprintln!("taking down the network {PREFIX}{pid} that a killed measurement left behind");
            Net::existing(format!("{PREFIX}{pid}")).destroy().await;
        }
    }
    Ok(())
}
