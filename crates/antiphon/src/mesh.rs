//! Running a node of a mesh: beside a member, or alone when its file has nothing else.
//!
//! Its work has threads of its own, so that applying never holds up a member's agent. It keeps nothing on disk:
//! what it knows is in the database.

use std::collections::BTreeMap;
use std::sync::Arc;

use antiphon_mesh::node::{self, Config};
use antiphon_mesh::standing::Standing;
use anyhow::Context;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::api::{self, MeshApi};
use crate::config::MeshFile;
use crate::router::addresses;
use crate::systemd::notify;

/// A node at work. It ends when this is dropped.
pub struct Mesh {
    runtime: Option<Runtime>,
    shown: watch::Receiver<Arc<Standing>>,
}

impl Mesh {
    /// How its links stand.
    pub fn shown(&self) -> watch::Receiver<Arc<Standing>> {
        self.shown.clone()
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // What is under way and not committed comes again.
            runtime.shutdown_background();
        }
    }
}

/// Starts the node's work.
///
/// # Errors
/// If threads cannot be started.
pub fn start(file: &MeshFile, env: BTreeMap<String, String>) -> anyhow::Result<Mesh> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("mesh")
        .enable_all()
        .build()
        .context("could not start the runtime")?;
    let config = Config { connect: file.connect.clone(), peers: file.peers.clone(), env };
    let (show, shown) = watch::channel(Arc::new(Standing::default()));
    runtime.spawn(node::run(config, show));
    tracing::info!(node = file.node, database = %file.connect, "exchanging writes");
    Ok(Mesh { runtime: Some(runtime), shown })
}

/// Runs a node that is all that its file describes, until it is told to end.
///
/// # Errors
/// If it cannot be started.
pub fn alone(file: &MeshFile, env: BTreeMap<String, String>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("could not start the runtime")?.block_on(async {
        let mut term = signal(SignalKind::terminate()).context("signals cannot be received")?;
        let mut int = signal(SignalKind::interrupt()).context("signals cannot be received")?;
        let mesh = start(file, env)?;
        if let Some(listen) = &file.http {
            let api = MeshApi::new(mesh.shown());
            for address in addresses(listen, "mesh.http_listen")? {
                let listener = TcpListener::bind(address).await;
                let listener =
                    listener.with_context(|| format!("could not listen at {address} (mesh.http_listen)"))?;
                tokio::spawn(api::serve(listener, None, api.clone(), std::future::pending()));
            }
        }
        notify("READY=1");
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        notify("STOPPING=1");
        Ok(())
    })
}
