//! The HTTP interface of a router that runs alone: its metrics, and whether it can serve.

use std::sync::Arc;

use antiphon_router::Handle;
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};

use super::connections::{Connection, Connections};
use super::listen::Handler;
use super::reply::{Reply, status, text, verdict};

/// What a router that runs alone answers.
pub struct RouterApi {
    router: Handle,
    connections: Arc<Connections>,
}

impl RouterApi {
    /// Of this router.
    pub fn new(router: Handle) -> Arc<Self> {
        Arc::new(Self { router, connections: Arc::new(Connections::new()) })
    }
}

impl Handler for RouterApi {
    fn connections(&self) -> &Arc<Connections> {
        &self.connections
    }

    async fn answer(self: Arc<Self>, _: Arc<Connection>, request: Request<Incoming>) -> Reply {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return text(
                StatusCode::METHOD_NOT_ALLOWED,
                "the router's HTTP interface only answers GET and HEAD",
            );
        }
        match request.uri().path() {
            "/metrics" => metrics(&self.router).await,
            "/health" | "/readiness" => status(verdict(self.router.has_leader())),
            "/liveness" => status(StatusCode::OK),
            _ => text(StatusCode::NOT_FOUND, "there are /metrics, /health, /readiness and /liveness"),
        }
    }
}

async fn metrics(router: &Handle) -> Reply {
    match router.metrics().await {
        Some(page) => text(StatusCode::OK, page),
        None => text(StatusCode::SERVICE_UNAVAILABLE, "the router ends"),
    }
}
