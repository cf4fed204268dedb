//! The HTTP API: what this member is, to load balancers, tools and people; and orders from operators.
//!
//! It reads the agent's [`View`] and nothing else of it, so a slow client can hold up no decision. What concerns
//! the whole cluster is written to the store; what concerns this member goes to the agent's bounded queue. Health
//! checks are answered from the newest view without asking the server. Nothing here decides who leads.

mod access;
mod body;
mod config;
mod connections;
pub mod datetime;
mod events;
mod health;
mod local;
mod members;
mod metrics;
mod reply;
mod route;
mod status;
mod switchover;

use std::convert::Infallible;
use std::future::Future;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use antiphon_core::settings::DynamicCommands;
use antiphon_store::Store;
use antiphon_tls::{ServerTls, Stream, explain};
use bytes::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tracing::{debug, warn};

pub use access::Access;
pub use route::page;

use crate::agent::command::Command;
use crate::agent::view::View;
use connections::{Admitted, Connection, Connections, Doing, Watched};
use events::{Event, Readers};
use local::Schedule;

/// Largest head of a request.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Silent connections are looked for this often.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// The pause after a connection that could not be accepted, as when no file descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the API works with. One for all of its listeners.
pub struct Api {
    view: watch::Receiver<Arc<View>>,
    commands: mpsc::Sender<Command>,
    store: Arc<dyn Store>,
    access: Access,
    dynamic_commands: DynamicCommands,
    rendered: RwLock<Option<Arc<Rendered>>>,
    connections: Arc<Connections>,
    readers: Readers,
    schedule: Schedule,
}

impl Api {
    /// An API over an agent's view and queue. `dynamic_commands` is what this node's file says of settings that
    /// run commands.
    pub fn new(
        view: watch::Receiver<Arc<View>>,
        commands: mpsc::Sender<Command>,
        store: Arc<dyn Store>,
        access: Access,
        dynamic_commands: DynamicCommands,
    ) -> Arc<Self> {
        Arc::new(Self {
            view,
            commands,
            store,
            access,
            dynamic_commands,
            rendered: RwLock::default(),
            connections: Arc::new(Connections::new()),
            readers: Readers::default(),
            schedule: Schedule::default(),
        })
    }

    /// The newest view with what has been made from it so far.
    fn rendered(&self) -> Arc<Rendered> {
        let view = self.view.borrow().clone();
        let known = self.rendered.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(known) = known.filter(|known| Arc::ptr_eq(&known.view, &view)) {
            return known;
        }
        let fresh = Arc::new(Rendered::new(view, self.schedule.shown()));
        *self.rendered.write().unwrap_or_else(PoisonError::into_inner) = Some(fresh.clone());
        fresh
    }

    /// What was made from the view is made anew: something beside the view has changed.
    fn forget_rendered(&self) {
        *self.rendered.write().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// A view and the answers made from it, each at most once.
struct Rendered {
    view: Arc<View>,
    restart: Option<serde_json::Value>,
    status: OnceLock<Bytes>,
    cluster: OnceLock<Bytes>,
    event: OnceLock<Event>,
}

impl Rendered {
    fn new(view: Arc<View>, restart: Option<serde_json::Value>) -> Self {
        Self { view, restart, status: OnceLock::new(), cluster: OnceLock::new(), event: OnceLock::new() }
    }

    fn status(&self) -> Bytes {
        let make = || status::patroni(&self.view, self.restart.as_ref()).to_string().into();
        self.status.get_or_init(make).clone()
    }

    fn cluster(&self) -> Bytes {
        self.cluster.get_or_init(|| members::cluster(&self.view).to_string().into()).clone()
    }

    fn event(&self) -> &Event {
        self.event.get_or_init(|| Event::of(&self.view))
    }
}

/// Serves the API on one listener, inside TLS if there are certificates, until `shutdown` ends. Requests at work
/// by then are still answered.
pub async fn serve(
    listener: TcpListener,
    tls: Option<ServerTls>,
    api: Arc<Api>,
    shutdown: impl Future<Output = ()> + Send,
) {
    let mut shutdown = std::pin::pin!(shutdown);
    let mut sweep = tokio::time::interval(SWEEP_EVERY);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            _ = sweep.tick() => api.connections.sweep(),
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => match api.connections.admit(peer) {
                    Some(admitted) => drop(tokio::spawn(connection(stream, tls.clone(), api.clone(), admitted))),
                    None => debug!(%peer, "too many connections are at work; one was not taken"),
                },
                Err(error) => {
                    warn!(%error, "could not accept a connection to the API");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
    api.connections.close_idle();
}

async fn connection(stream: TcpStream, tls: Option<ServerTls>, api: Arc<Api>, admitted: Admitted) {
    // Answers are small: waiting for more to send would only delay them.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "could not set TCP_NODELAY");
    }
    let connection = admitted.connection.clone();
    tokio::select! {
        () = converse(stream, tls, api, &connection) => {}
        // Deadlines are the sweep's, which tells an idle connection from a slow head. A handshake is part of a head.
        () = connection.closed() => debug!(peer = %connection.peer, "a silent connection was closed"),
    }
}

async fn converse(stream: TcpStream, tls: Option<ServerTls>, api: Arc<Api>, connection: &Arc<Connection>) {
    let stream = match tls {
        None => Stream::Plain(stream),
        Some(tls) => match tls.accept(stream).await {
            Ok(stream) => stream,
            Err(error) => {
                return debug!(peer = %connection.peer, why = explain(&error), "no TLS connection to the API");
            }
        },
    };
    if stream.is_certified() {
        connection.certify();
    }
    let service = service_fn(|request| {
        let (api, connection) = (api.clone(), connection.clone());
        async move {
            connection.begin(Doing::Request);
            let reply = route::answer(&api, &connection, request).await;
            connection.begin(Doing::Idle);
            Ok::<_, Infallible>(reply)
        }
    });
    let io = TokioIo::new(Watched::new(stream, connection.clone()));
    let mut http = http1::Builder::new();
    http.header_read_timeout(None).max_buf_size(HEAD_BYTES_MAX);
    if let Err(error) = http.serve_connection(io, service).await {
        debug!(peer = %connection.peer, %error, "a connection to the API ended");
    }
}
