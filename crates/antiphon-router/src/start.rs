//! Starting a router: its sockets, its threads, its control task; and ending it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mio::net::TcpListener;
use mio::{Poll, Waker};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::control;
use crate::settings::Settings;
use crate::shared::{Inbox, Note, Shared};
use crate::worker::{WAKE, Worker};

/// Connections that wait to be accepted, for each thread.
const BACKLOG: i32 = 1024;
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

struct SharedRouter(Arc<Shared>);

impl std::fmt::Debug for SharedRouter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} threads", self.0.threads.len())
    }
}

impl Router {
    /// Starts the threads, and the control task on the runtime at hand.
    ///
    /// # Errors
    /// If an address cannot be listened at or the kernel has no thread left.
    pub fn start(settings: Settings) -> Result<Self, StartError> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)
            .map_err(|error| StartError::Thread(io::Error::other(error.to_string())))?;
        let (ask, asks) = mpsc::channel(ASKS_MAX);
        let (mut polls, mut inboxes) = (Vec::new(), Vec::new());
        for _ in 0..settings.threads.clamp(1, 64) {
            let poll = Poll::new().map_err(StartError::Thread)?;
            let waker = Waker::new(poll.registry(), WAKE).map_err(StartError::Thread)?;
            let listeners: Result<Vec<_>, _> =
                settings.listen.iter().map(|address| listen(*address)).collect();
            polls.push((poll, listeners?));
            inboxes.push(Inbox::new(waker));
        }
        let shared = Arc::new(Shared::new(settings, inboxes, ask, secret));
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
