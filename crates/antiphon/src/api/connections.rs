//! The open connections: how many there may be, and which ones have been silent for too long.
//!
//! One sweep a second over all of them takes the place of a timer for each. A connection is closed by telling
//! its task; nothing here waits for one. Half of the process's file descriptors stay free of connections, so
//! that a flood of clients cannot take those that the agent needs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use antiphon_tls::Stream;
use nix::sys::resource::{Resource, getrlimit};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

/// Most connections at a time; fewer if the process may open fewer than twice as many files.
const CONNECTIONS_MAX: usize = 10_000;
/// A connection without a request is closed after this.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// The head of a request must be complete within this.
const HEAD_MAX: Duration = Duration::from_secs(10);
/// A stream of events whose client takes nothing for this long is closed. Something is due every 10 s.
const STALLED_MAX: Duration = Duration::from_secs(30);

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Doing {
    /// Waits for a request, or sends the rest of an answer.
    Idle = 0,
    /// Has received part of a request's head.
    Head = 1,
    /// The request is being worked on, which has deadlines of its own.
    Request = 2,
    /// Receives events without an end.
    Events = 3,
}

/// One connection.
pub struct Connection {
    /// The client.
    pub(super) peer: SocketAddr,
    doing: AtomicU8,
    /// Milliseconds after `began` of the newest change or, for events, of the newest byte taken.
    since: AtomicU64,
    began: Instant,
    close: Notify,
    certified: AtomicBool,
}

impl Connection {
    /// Notes that the client has proven itself with a certificate.
    pub(super) fn certify(&self) {
        self.certified.store(true, Ordering::Relaxed);
    }

    /// Whether it has.
    pub(super) fn is_certified(&self) -> bool {
        self.certified.load(Ordering::Relaxed)
    }

    /// Notes what the connection does from now on.
    pub(super) fn begin(&self, doing: Doing) {
        self.doing.store(doing as u8, Ordering::Relaxed);
        self.touch();
    }

    fn touch(&self) {
        let elapsed = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.since.store(elapsed, Ordering::Relaxed);
    }

    fn is(&self, doing: Doing) -> bool {
        self.doing.load(Ordering::Relaxed) == doing as u8
    }

    fn lasted(&self) -> Duration {
        self.began.elapsed().saturating_sub(Duration::from_millis(self.since.load(Ordering::Relaxed)))
    }

    fn is_overdue(&self) -> bool {
        let limits = [(Doing::Idle, IDLE_MAX), (Doing::Head, HEAD_MAX), (Doing::Events, STALLED_MAX)];
        limits.iter().any(|(doing, limit)| self.is(*doing) && self.lasted() > *limit)
    }

    /// Ends when the connection is to be closed.
    pub(super) async fn closed(&self) {
        self.close.notified().await;
    }
}

/// All of them.
pub struct Connections {
    open: Mutex<Open>,
    max: usize,
}

#[derive(Default)]
struct Open {
    next: u64,
    by_number: BTreeMap<u64, Arc<Connection>>,
}

impl Connections {
    /// None yet.
    pub(super) fn new() -> Self {
        let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        let max = usize::try_from(files / 2).unwrap_or(CONNECTIONS_MAX).min(CONNECTIONS_MAX);
        Self { open: Mutex::default(), max }
    }

    /// Takes in a connection. When there are too many, the one that has been idle for longest is closed; if all
    /// are at work, the new one is not taken.
    pub(super) fn admit(self: &Arc<Self>, peer: SocketAddr) -> Option<Admitted> {
        let mut open = self.lock();
        if open.by_number.len() >= self.max {
            let idle = open.by_number.iter().filter(|(_, c)| c.is(Doing::Idle) || c.is(Doing::Head));
            let oldest = idle.max_by_key(|(_, connection)| connection.lasted()).map(|(number, _)| *number)?;
            if let Some(connection) = open.by_number.remove(&oldest) {
                connection.close.notify_one();
            }
        }
        let connection = Arc::new(Connection {
            peer,
            doing: AtomicU8::new(Doing::Head as u8),
            since: AtomicU64::new(0),
            began: Instant::now(),
            close: Notify::new(),
            certified: AtomicBool::new(false),
        });
        let number = open.next;
        open.next += 1;
        open.by_number.insert(number, connection.clone());
        Some(Admitted { all: self.clone(), number, connection })
    }

    /// Closes those that have been silent for too long.
    pub(super) fn sweep(&self) {
        for connection in self.lock().by_number.values().filter(|connection| connection.is_overdue()) {
            connection.close.notify_one();
        }
    }

    /// Closes those that wait for a request or for events. Requests at work are answered.
    pub(super) fn close_idle(&self) {
        let open = self.lock();
        for connection in open.by_number.values().filter(|connection| !connection.is(Doing::Request)) {
            connection.close.notify_one();
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.lock().by_number.len()
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place among the others; dropping it gives the place back.
pub(super) struct Admitted {
    all: Arc<Connections>,
    number: u64,
    /// The connection.
    pub(super) connection: Arc<Connection>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.all.lock().by_number.remove(&self.number);
    }
}

/// A client's stream that notes when a request begins to arrive and when events are taken.
pub(super) struct Watched {
    stream: Stream,
    connection: Arc<Connection>,
}

impl Watched {
    pub(super) fn new(stream: Stream, connection: Arc<Connection>) -> Self {
        Self { stream, connection }
    }

    fn taken(&self, result: &Poll<std::io::Result<usize>>) {
        if matches!(result, Poll::Ready(Ok(1..))) && self.connection.is(Doing::Events) {
            self.connection.touch();
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before && self.connection.is(Doing::Idle) {
            self.connection.begin(Doing::Head);
        }
        result
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.taken(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.taken(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
