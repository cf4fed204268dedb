//! A knock at a server's port: is a PostgreSQL process there, is the host up without one, or is it silent?
//!
//! A pure client. It needs no role and no password and leaves no line in the server's log: it asks for TLS,
//! reads the one byte of the answer and goes.

use std::io;
use std::time::Duration;

use antiphon_core::ha::world::Knock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// SSLRequest: length 8, code 80877103.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xD2, 0x16, 0x2F];

/// Knocks at `address` (`host:port`); at most `deadline`.
pub async fn server_knock(address: &str, deadline: Duration) -> Knock {
    match tokio::time::timeout(deadline, ask(address)).await {
        Ok(Ok(b'N' | b'S' | b'E')) => Knock::Answers,
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Knock::Refused,
        Ok(Ok(_) | Err(_)) | Err(_) => Knock::Silent,
    }
}

async fn ask(address: &str) -> io::Result<u8> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(&SSL_REQUEST).await?;
    stream.read_u8().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    const SOON: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn a_host_without_a_server_refuses() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        drop(listener);
        assert_eq!(server_knock(&address, SOON).await, Knock::Refused);
    }

    #[tokio::test]
    async fn a_port_that_says_nothing_is_silent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        assert_eq!(server_knock(&address, SOON).await, Knock::Silent);
    }
}
