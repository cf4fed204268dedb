//! The agent of a node of a mesh: its file, the orders that set it up, its process.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::Signal;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::server::Server;
use crate::process::{kill_and_reap, run, send, start};

/// How long an order may take; one that joins copies all rows.
const ORDER_LIMIT: Duration = Duration::from_secs(1800);
/// How long an agent may take to end.
const END_LIMIT: Duration = Duration::from_secs(10);

/// A running agent. It ends with this.
pub(super) struct Agent {
    process: Child,
}

impl Agent {
    /// Makes a server the first node of a mesh.
    pub(super) async fn create(program: &Path, server: &Server) -> anyhow::Result<()> {
        let mut command = command(program, server)?;
        command.args(["mesh", "create"]).arg(file(server)?).args([
            "--name",
            "bench",
            "--table",
            "public.bench",
        ]);
        run(command, ORDER_LIMIT).await.map(drop)
    }

    /// Lets a server join, with the rows of another.
    pub(super) async fn join(program: &Path, server: &Server, donor: &str) -> anyhow::Result<()> {
        let mut command = command(program, server)?;
        command.args(["mesh", "join"]).arg(file(server)?).args(["--from", donor]);
        run(command, ORDER_LIMIT).await.map(drop)
    }

    /// Starts the agent of a node.
    pub(super) fn start(program: &Path, server: &Server) -> anyhow::Result<Agent> {
        let mut command = command(program, server)?;
        command.arg("run").arg(file(server)?);
        Ok(Agent { process: start(command, &server.place.folder.join("antiphon.log"))? })
    }

    /// Its process.
    pub(super) fn pid(&self) -> Option<i32> {
        i32::try_from(self.process.id()?).ok()
    }

    /// Tells it to end and waits until it has.
    pub(super) async fn stop(mut self) {
        send(self.process.id(), Signal::SIGTERM);
        if timeout(END_LIMIT, self.process.wait()).await.is_err() {
            kill_and_reap(&mut self.process).await;
        }
    }
}

fn command(program: &Path, server: &Server) -> anyhow::Result<Command> {
    server.place.command(program)
}

/// The node's file, called after the folder of its server.
fn file(server: &Server) -> anyhow::Result<PathBuf> {
    let folder = &server.place.folder;
    let node = folder.file_name().context("a server's folder has a name")?.to_string_lossy();
    let path = folder.join("antiphon.yml");
    let text = format!(
        "mesh:\n  node: {node}\n  connect: \"{}\"\n  advertise: \"{}\"\n",
        server.socket(),
        server.address()
    );
    std::fs::write(&path, text).with_context(|| format!("could not write {}", path.display()))?;
    Ok(path)
}
