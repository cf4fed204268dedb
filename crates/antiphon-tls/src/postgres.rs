//! TLS for connections that the client library of PostgreSQL makes, and what that protocol is called inside TLS.
//!
//! The library asks the server for TLS and hands the stream over; whom to believe is what the files say. No login
//! is bound to the connection here: a password never crosses it in the clear, and the server proves itself by SCRAM.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};

use crate::{ClientStream, ClientTls, explain};

/// What PostgreSQL's protocol is called where a connection says what it will carry (ALPN).
pub const PROTOCOL: &[u8] = b"postgresql";

/// Makes TLS sessions for the client library. [`ClientTls::connector`] gives one.
#[derive(Clone, Debug)]
pub struct Connector {
    tls: ClientTls,
    host: String,
}

impl Connector {
    pub(crate) fn new(tls: ClientTls) -> Self {
        Self { tls, host: String::new() }
    }
}

impl<S> MakeTlsConnect<S> for Connector
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Session<S>;
    type TlsConnect = Self;
    type Error = io::Error;

    fn make_tls_connect(&mut self, host: &str) -> io::Result<Self> {
        Ok(Self { tls: self.tls.clone(), host: host.to_owned() })
    }
}

impl<S> TlsConnect<S> for Connector
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Session<S>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Session<S>>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        Box::pin(async move {
            let session = self.tls.connect_over(&self.host, stream).await;
            session.map(Session).map_err(|error| io::Error::new(error.kind(), explain(&error)))
        })
    }
}

/// An encrypted connection.
#[derive(Debug)]
pub struct Session<S>(ClientStream<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Session<S> {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Session<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Session<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
