//! Starting a router: its sockets, its threads, its control task; and ending it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mio::net::TcpListener;
use mio::{Poll, Waker};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::orders::What;
use crate::settings::{Settings, Source};
use crate::shared::{Inbox, Note, Shared};
use crate::worker::{WAKE, Worker};
use crate::{control, metrics, reload};

/// Connections that wait to be accepted, for each thread.
const BACKLOG: i32 = 1024;
/// How long all threads may take to tell of themselves.
const TOLD_WITHIN: Duration = Duration::from_secs(5);
/// Questions that wait for the control task.
const ASKS_MAX: usize = 4096;

/// Why a router could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened at.
    #[error("could not listen at {address} (router.listen)")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel gave no event loop, thread or random numbers.
    #[error("could not start a thread of the router")]
    Thread(#[source] io::Error),
}

/// A running router; it ends when this is dropped.
#[derive(Debug)]
pub struct Router {
    shared: SharedRouter,
    threads: Vec<std::thread::JoinHandle<()>>,
    control: JoinHandle<()>,
}

#[derive(Clone)]
struct SharedRouter(Arc<Shared>);

/// What asks a running router. Once the router has ended it has nothing to tell.
#[derive(Clone, Debug)]
pub struct Handle(SharedRouter);

impl Handle {
    /// The page of metrics; none if the router ends.
    pub async fn metrics(&self) -> Option<String> {
        let shared = &self.0.0;
        let told = timeout(TOLD_WITHIN, shared.ask(What::Tell)).await.ok()?.ok()?;
        let ((target, reading), routes) = (shared.target(), shared.routes());
        let (held, now_ms) = (shared.held.load(Ordering::SeqCst), shared.clock_ms());
        let facts = metrics::Facts { target, reading: &reading, routes: &routes, held, now_ms };
        Some(metrics::page(&told, &facts))
    }

    /// Reads the file again: what of it waits for a restart. It is written down, too.
    ///
    /// # Errors
    /// What is wrong with the file; nothing has changed then.
    pub async fn reload(&self) -> Result<Vec<&'static str>, String> {
        reload::reload(&self.0.0).await
    }

    /// Whether a leader is known that serves.
    pub fn has_leader(&self) -> bool {
        self.0.0.target().0.leader.is_some()
    }
}

impl std::fmt::Debug for SharedRouter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} threads", self.0.threads.len())
    }
}

impl Router {
    /// Lets nobody in any more, and closes each client when its transaction has ended. Returns when all have gone,
    /// or after `within`. Another router that listens at the same addresses gets who comes from now on.
    pub async fn drain(&self, within: Duration) {
        let shared = &self.shared.0;
        shared.drains.store(true, Ordering::SeqCst);
        shared.tell_all(|| Note::Drain);
        let all_gone = async {
            while shared.clients.load(Ordering::SeqCst) > 0 {
                // A call that came before this is kept.
                shared.emptied.notified().await;
            }
        };
        if timeout(within, all_gone).await.is_err() {
            let left = shared.clients.load(Ordering::SeqCst);
            tracing::info!(left, "clients were not done within {within:?}; they are closed");
        }
    }

    /// What asks it.
    pub fn handle(&self) -> Handle {
        Handle(self.shared.clone())
    }

    /// Starts the threads, and the control task on the runtime at hand. `source` gives the settings of later.
    /// `inherited`: sockets that listen already, in place of `settings.listen`.
    ///
    /// # Errors
    /// If an address cannot be listened at or the kernel has no thread left.
    pub fn start(
        settings: Settings,
        source: Source,
        inherited: &[std::net::TcpListener],
    ) -> Result<Self, StartError> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)
            .map_err(|error| StartError::Thread(io::Error::other(error.to_string())))?;
        let (ask, asks) = mpsc::channel(ASKS_MAX);
        let (mut polls, mut inboxes) = (Vec::new(), Vec::new());
        for _ in 0..settings.threads.clamp(1, 64) {
            let poll = Poll::new().map_err(StartError::Thread)?;
            let waker = Waker::new(poll.registry(), WAKE).map_err(StartError::Thread)?;
            let listeners: Result<Vec<_>, _> = match inherited {
                [] => settings.listen.iter().map(|address| listen(*address)).collect(),
                inherited => inherited.iter().map(shared_with).collect(),
            };
            polls.push((poll, listeners?));
            inboxes.push(Inbox::new(waker));
        }
        let shared = Arc::new(Shared::new(settings, source, inboxes, ask, secret));
        let mut threads = Vec::new();
        for (number, (poll, listeners)) in (0..).zip(polls) {
            let worker = Worker::new(number, shared.clone(), poll, listeners).map_err(StartError::Thread)?;
            let builder = std::thread::Builder::new().name(format!("router-{number}"));
            threads.push(builder.spawn(move || worker.run()).map_err(StartError::Thread)?);
        }
        let control = tokio::spawn(control::run(shared.clone(), asks));
        Ok(Self { shared: SharedRouter(shared), threads, control })
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        let shared = &self.shared.0;
        shared.ends.store(true, Ordering::Relaxed);
        shared.threads.iter().for_each(|inbox| inbox.put(Note::Target));
        self.control.abort();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the router had ended because of a defect");
            }
        }
    }
}

/// A listener that all threads have: each of them is told of a client, and one of them gets it.
fn shared_with(listener: &std::net::TcpListener) -> Result<TcpListener, StartError> {
    let mine = listener.try_clone().and_then(|mine| mine.set_nonblocking(true).map(|()| mine));
    mine.map(TcpListener::from_std).map_err(StartError::Thread)
}

/// A listener of one thread; the kernel spreads clients over those of all threads.
fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    let open = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(TcpListener::from_std(socket.into()))
    };
    open().map_err(|source| StartError::Listen { address, source })
}
