//! The layer between TCP and the handshake: TLS if this member's links have it.
//!
//! Of two members either both have it or the link is refused, with the same reason in both logs: the first byte
//! tells a client of TLS from a plain one, so that neither side waits for what the other will never say. Nothing
//! is ever sent in the clear by a member that has TLS, but that refusal.

use std::io;

use antiphon_tls::{MemberTls, Stream, farewell};
use tokio::net::TcpStream;

use crate::handshake::{self, HandshakeError};

/// The first byte of TLS: a record of the handshake.
const TLS_HANDSHAKE: u8 = 0x16;

const ONE_LACKS: &str = "one of the two members has TLS on its links and the other has not: give all of them the `tls` keys, or none";

/// Covers a connection that was dialled to `address`.
pub(crate) async fn dial(stream: TcpStream, tls: Option<&MemberTls>, address: &str) -> io::Result<Stream> {
    let Some(tls) = tls else { return Ok(Stream::Plain(stream)) };
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    tls.client.connect(host.trim_start_matches('[').trim_end_matches(']'), stream).await
}

/// Covers a connection that was accepted.
pub(crate) async fn accept(mut stream: TcpStream, tls: Option<&MemberTls>) -> Result<Stream, HandshakeError> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Err(HandshakeError::Io(io::ErrorKind::UnexpectedEof.into()));
    }
    match (tls, first == [TLS_HANDSHAKE]) {
        (None, false) => Ok(Stream::Plain(stream)),
        (Some(tls), true) => Ok(tls.server.accept(stream).await?),
        (None, true) | (Some(_), false) => {
            let refused = handshake::refuse(&mut stream, ONE_LACKS.to_owned()).await;
            farewell(&mut stream).await;
            refused
        }
    }
}
