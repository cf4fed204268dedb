//! The HTTP interface of a node of a mesh that runs alone: its metrics, and whether all its links are up.

use std::sync::Arc;

use antiphon_mesh::metrics;
use antiphon_mesh::standing::{Standing, State};
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use tokio::sync::watch;

use super::connections::{Connection, Connections};
use super::listen::Handler;
use super::reply::{Reply, status, text, verdict};

/// What a node that runs alone answers.
pub struct MeshApi {
    shown: watch::Receiver<Arc<Standing>>,
    connections: Arc<Connections>,
}

impl MeshApi {
    /// Of the node that shows this.
    pub fn new(shown: watch::Receiver<Arc<Standing>>) -> Arc<Self> {
        Arc::new(Self { shown, connections: Arc::new(Connections::new()) })
    }
}

impl Handler for MeshApi {
    fn connections(&self) -> &Arc<Connections> {
        &self.connections
    }

    async fn answer(self: Arc<Self>, _: Arc<Connection>, request: Request<Incoming>) -> Reply {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return text(
                StatusCode::METHOD_NOT_ALLOWED,
                "the node's HTTP interface only answers GET and HEAD",
            );
        }
        let standing = self.shown.borrow().clone();
        match request.uri().path() {
            "/metrics" => text(StatusCode::OK, metrics::page(&standing)),
            "/health" | "/readiness" => {
                status(verdict(standing.links().values().all(|link| link.state == State::Streaming)))
            }
            "/liveness" => status(StatusCode::OK),
            _ => text(StatusCode::NOT_FOUND, "there are /metrics, /health, /readiness and /liveness"),
        }
    }
}
