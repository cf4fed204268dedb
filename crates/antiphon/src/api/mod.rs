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
mod listen;
mod local;
mod members;
mod mesh;
mod metrics;
mod reply;
mod route;
mod router;
mod status;
mod switchover;

use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use antiphon_core::settings::DynamicCommands;
use antiphon_mesh::standing::Standing;
use antiphon_router::Handle;
use antiphon_store::Store;
use bytes::Bytes;
use hyper::Request;
use hyper::body::Incoming;
use tokio::sync::{mpsc, watch};

pub use access::Access;
pub use listen::serve;
pub use mesh::MeshApi;
pub use route::page;
pub use router::RouterApi;

use crate::agent::command::Command;
use crate::agent::routers::Routers;
use crate::agent::view::View;
use connections::{Connection, Connections};
use events::{Event, Readers};
use listen::Handler;
use local::Schedule;
use reply::Reply;

/// What the API works with. One for all of its listeners.
pub struct Api {
    view: watch::Receiver<Arc<View>>,
    commands: mpsc::Sender<Command>,
    routers: Arc<Routers>,
    store: Arc<dyn Store>,
    access: Access,
    dynamic_commands: DynamicCommands,
    rendered: RwLock<Option<Arc<Rendered>>>,
    connections: Arc<Connections>,
    readers: Readers,
    schedule: Schedule,
    beside: Beside,
}

/// What runs beside the agent.
#[derive(Default)]
pub struct Beside {
    /// A router.
    pub router: Option<Handle>,
    /// A node of a mesh, as it shows itself.
    pub mesh: Option<watch::Receiver<Arc<Standing>>>,
}

impl Api {
    /// An API over an agent's view and queue. `routers` are those that follow the agent; `dynamic_commands` is what this node's file says of settings that
    /// run commands.
    pub fn new(
        view: watch::Receiver<Arc<View>>,
        commands: mpsc::Sender<Command>,
        routers: Arc<Routers>,
        store: Arc<dyn Store>,
        access: Access,
        dynamic_commands: DynamicCommands,
        beside: Beside,
    ) -> Arc<Self> {
        Arc::new(Self {
            view,
            commands,
            routers,
            store,
            access,
            dynamic_commands,
            rendered: RwLock::default(),
            connections: Arc::new(Connections::new()),
            readers: Readers::default(),
            schedule: Schedule::default(),
            beside,
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

impl Handler for Api {
    fn connections(&self) -> &Arc<Connections> {
        &self.connections
    }

    async fn answer(self: Arc<Self>, connection: Arc<Connection>, request: Request<Incoming>) -> Reply {
        route::answer(&self, &connection, request).await
    }
}
