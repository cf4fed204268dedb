//! Listening for HTTP: connections are taken in, bounded, swept and closed here; what a request means is its handler's.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use antiphon_tls::{ServerTls, Stream, explain};
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, warn};

use super::connections::{Admitted, Connection, Connections, Doing, Watched};
use super::reply::Reply;

/// Largest head of a request.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Silent connections are looked for this often.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// The pause after a connection that could not be accepted, as when no file descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What requests are answered by.
pub trait Handler: Send + Sync + 'static {
    /// The connections it has.
    fn connections(&self) -> &Arc<Connections>;

    /// Answers a request.
    fn answer(
        self: Arc<Self>,
        connection: Arc<Connection>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Reply> + Send;
}

/// Serves on one listener, inside TLS if there are certificates, until `shutdown` ends. Requests at work by then
/// are still answered.
pub async fn serve(
    listener: TcpListener,
    tls: Option<ServerTls>,
    api: Arc<impl Handler>,
    shutdown: impl Future<Output = ()> + Send,
) {
    let mut shutdown = std::pin::pin!(shutdown);
    let mut sweep = tokio::time::interval(SWEEP_EVERY);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            _ = sweep.tick() => api.connections().sweep(),
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => match api.connections().admit(peer) {
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
    api.connections().close_idle();
}

async fn connection(stream: TcpStream, tls: Option<ServerTls>, api: Arc<impl Handler>, admitted: Admitted) {
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

async fn converse(
    stream: TcpStream,
    tls: Option<ServerTls>,
    api: Arc<impl Handler>,
    connection: &Arc<Connection>,
) {
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
            let reply = api.answer(connection.clone(), request).await;
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
