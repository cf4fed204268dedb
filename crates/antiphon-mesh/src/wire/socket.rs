//! What carries a connection: a Unix socket, or TCP with or without TLS. Decides nothing.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use antiphon_tls::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

#[derive(Debug)]
pub(super) enum Socket {
    Unix(UnixStream),
    Network(Stream),
}

impl Socket {
    /// Whether nobody between the two ends can read along.
    pub(super) fn is_private(&self) -> bool {
        match self {
            Self::Unix(_) | Self::Network(Stream::Tls(_)) => true,
            Self::Network(Stream::Plain(_)) => false,
        }
    }

    /// What a login can be bound to: the hash of the server's certificate.
    pub(super) fn end_point(&self) -> Option<Vec<u8>> {
        match self {
            Self::Unix(_) => None,
            Self::Network(stream) => stream.end_point(),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Network(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Network(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_flush(context),
            Self::Network(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Network(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
