//! Connecting to servers as the router itself, with an account of its own or to cancel a statement; and to agents.
//!
//! Inside TLS as the file says (`server_tls_sslmode`). A server's certificate must be for the name by which the
//! members speak of it, not for the address that the name has.

use std::io;
use std::net::SocketAddr;

use antiphon_tls::{ClientTls, Connector, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_postgres::Config;
use tokio_postgres::config::SslMode;

use crate::settings::{Account, Encryption};
use crate::shared::Shared;
use crate::wire::messages;

/// How an account connects to a server.
pub fn config(shared: &Shared, account: &Account, server: SocketAddr) -> (Config, Connector) {
    let settings = shared.settings();
    let servers = &settings.servers_tls;
    let mut config = account.config(server, &shared.host(server));
    config.ssl_mode(match servers.encryption {
        Encryption::Off => SslMode::Disable,
        Encryption::Preferred => SslMode::Prefer,
        Encryption::Required => SslMode::Require,
    });
    (config, servers.tls.connector())
}

/// A connection to a server on which nothing has been said but what TLS needs.
pub async fn stream(shared: &Shared, server: SocketAddr) -> io::Result<Stream> {
    let settings = shared.settings();
    let servers = &settings.servers_tls;
    let mut tcp = TcpStream::connect(server).await?;
    if servers.encryption == Encryption::Off {
        return Ok(Stream::Plain(tcp));
    }
    tcp.write_all(&messages::tls_request()).await?;
    match tcp.read_u8().await? {
        b'S' => servers.tls.connect(&shared.host(server), tcp).await,
        b'N' if servers.encryption == Encryption::Preferred => Ok(Stream::Plain(tcp)),
        _ => Err(io::Error::other("it speaks no TLS")),
    }
}

/// A connection to an agent.
pub async fn agent(agent: &str, tls: Option<&ClientTls>) -> io::Result<Stream> {
    let stream = TcpStream::connect(agent).await?;
    match tls {
        None => Ok(Stream::Plain(stream)),
        Some(tls) => {
            let host = agent.rsplit_once(':').map_or(agent, |(host, _)| host);
            tls.connect(host.trim_start_matches('[').trim_end_matches(']'), stream).await
        }
    }
}

/// An error with its cause, which has what the server said.
pub fn described(error: &tokio_postgres::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Whether there is no TLS with a server and another attempt would fail alike: it speaks none, or one of the two
/// is not believed.
pub fn is_hopeless(error: &tokio_postgres::Error) -> bool {
    let Some(cause) = std::error::Error::source(error) else { return false };
    match cause.downcast_ref::<io::Error>() {
        Some(cause) => cause.kind() == io::ErrorKind::InvalidData,
        // The library says no more than this of a server that speaks none.
        None => cause.to_string() == "server does not support TLS",
    }
}
