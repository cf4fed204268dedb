//! From a connection string to a connection: which server, by what way, inside TLS or not.
//!
//! Servers are tried in the order in which they are named, addresses of a name in that of the resolver. Every
//! attempt at a server has the same deadline, from its first packet to its last of the login.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use antiphon_tls::{ClientTls, Stream, explain};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::timeout;

use super::login::{Login, login};
use super::socket::Socket;
use super::{Connection, Kind, WireError};
use crate::dsn::{Dsn, Host, Keepalive, Place, SslMode, Target};

/// What a client sends to ask for TLS: its length and a code that is no version.
const TLS_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
/// The code of "nobody may log in like this": `pg_hba.conf` has no line for it.
const NOT_LIKE_THIS: &str = "28000";

/// How a connection is begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Plain,
    /// Inside TLS if the server speaks it.
    Offered,
    Tls,
}

pub(super) async fn open(
    dsn: &Dsn,
    kind: Kind,
    application_name: &str,
    settings: &[(&str, &str)],
) -> Result<Connection, WireError> {
    let tls = dsn.tls()?;
    let login = Login { dsn, kind, application_name, settings };
    let mut tried = Vec::new();
    let wanted: &[Target] = match &dsn.target {
        Target::PreferStandby => &[Target::Standby, Target::Any],
        target => std::slice::from_ref(target),
    };
    for target in wanted {
        tried.clear();
        for host in &dsn.hosts {
            let attempt = timeout(dsn.connect_time, at_host(host, tls.as_ref(), &login)).await;
            let attempt = attempt.unwrap_or_else(|_| {
                Err(WireError::Timeout { server: host.to_string().into(), time: dsn.connect_time })
            });
            match attempt.and_then(|connection| fitting(connection, *target)) {
                Ok(connection) => return Ok(connection),
                Err(error) => tried.push(error),
            }
        }
    }
    match tried.len() {
        1 => Err(tried.remove(0)),
        _ => Err(WireError::Nowhere { tried }),
    }
}

/// A connection to a server, by the ways that `sslmode` allows, in its order.
async fn at_host(host: &Host, tls: Option<&ClientTls>, who: &Login<'_>) -> Result<Connection, WireError> {
    let ways: &[Way] = match (&host.place, who.dsn.ssl_mode) {
        (Place::Folder(_), _) | (_, SslMode::Disable) => &[Way::Plain],
        (_, SslMode::Allow) => &[Way::Plain, Way::Tls],
        (_, SslMode::Prefer) => &[Way::Offered, Way::Plain],
        (_, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => &[Way::Tls],
    };
    let mut refused = None;
    for way in ways {
        let attempt = match socket(host, *way, tls, who.dsn).await {
            Ok(socket) => login(socket, host, who).await,
            Err(error) => Err(error),
        };
        match attempt {
            Ok(connection) => return Ok(connection),
            // Another way may do. If it does not either, the first says more.
            Err(error) if matches!(error, WireError::Tls { .. }) || error.code() == Some(NOT_LIKE_THIS) => {
                refused = refused.or(Some(error));
            }
            Err(error) => return Err(error),
        }
    }
    Err(refused.expect("there is a way, and it was refused"))
}

async fn socket(host: &Host, way: Way, tls: Option<&ClientTls>, dsn: &Dsn) -> Result<Socket, WireError> {
    let server: Arc<str> = host.to_string().into();
    let failed = |error| WireError::Connect { server: server.clone(), error };
    let (name, tcp) = match &host.place {
        Place::Folder(folder) => {
            let path = folder.join(format!(".s.PGSQL.{}", host.port));
            return UnixStream::connect(path).await.map(Socket::Unix).map_err(failed);
        }
        Place::Network { name, address: Some(address) } => {
            (name, TcpStream::connect((*address, host.port)).await.map_err(failed)?)
        }
        Place::Network { name, address: None } => (name, by_name(name, host.port).await.map_err(failed)?),
    };
    prepare(&tcp, dsn.keepalive).map_err(failed)?;
    let (Way::Offered | Way::Tls, Some(tls)) = (way, tls) else {
        return Ok(Socket::Network(Stream::Plain(tcp)));
    };
    encrypted(tcp, name, way, tls, dsn.direct, &server).await.map(Socket::Network)
}

async fn encrypted(
    mut tcp: TcpStream,
    name: &str,
    way: Way,
    tls: &ClientTls,
    direct: bool,
    server: &Arc<str>,
) -> Result<Stream, WireError> {
    let failed = |why: String| WireError::Tls { server: server.clone(), why };
    if !direct {
        let broken = |error| WireError::Io { server: server.clone(), doing: "asking for TLS", error };
        tcp.write_all(&TLS_REQUEST).await.map_err(broken)?;
        // One byte and no more: whatever follows it in the clear must not be taken for encrypted.
        match tcp.read_u8().await.map_err(broken)? {
            b'S' => {}
            b'N' if way == Way::Offered => return Ok(Stream::Plain(tcp)),
            _ => return Err(failed("it speaks no TLS (ssl = off), and sslmode asks for it".to_owned())),
        }
    }
    tls.connect(name, tcp).await.map_err(|error| failed(explain(&error)))
}

async fn by_name(name: &str, port: u16) -> io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> = lookup_host((name, port)).await?.collect();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Sets the timers that find out that the other end is gone.
fn prepare(tcp: &TcpStream, keepalive: Keepalive) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let socket = SockRef::from(tcp);
    if keepalive.probes {
        let timers = TcpKeepalive::new().with_time(keepalive.idle);
        socket.set_tcp_keepalive(&match keepalive.interval {
            Some(interval) => timers.with_interval(interval),
            None => timers,
        })?;
    }
    socket.set_tcp_user_timeout(keepalive.user_timeout)
}

/// The connection, if its server is of the kind that is looked for. Servers since 14 say so while one logs in.
fn fitting(connection: Connection, target: Target) -> Result<Connection, WireError> {
    let is_on = |name| connection.parameter(name) == Some("on");
    let is_standby = is_on("in_hot_standby");
    let is_read_only = is_standby || is_on("default_transaction_read_only");
    let (is_wanted, why) = match target {
        Target::Any | Target::PreferStandby => (true, ""),
        Target::ReadWrite => (!is_read_only, "takes no writes"),
        Target::ReadOnly => (is_read_only, "takes writes"),
        Target::Primary => (!is_standby, "is a standby"),
        Target::Standby => (is_standby, "is not a standby"),
    };
    if is_wanted {
        return Ok(connection);
    }
    Err(WireError::Unwanted { server: connection.server().clone(), why })
}
