//! TLS for the one connection that Antiphon itself makes to a server elsewhere: to the source of a rewind.
//!
//! Everything else over TCP (streaming, base backups, pg_rewind) is libpq's, which reads the same options. Here
//! they mean the same, but that revocation lists and channel binding are not used: nothing but a timeline is
//! asked for on this connection, and a password never crosses it in the clear (SCRAM).

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use antiphon_tls::{ClientFiles, ClientStream, ClientTls, File, Identity, TlsError, Trust};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::config::SslMode;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};

use super::settings::Credentials;

/// How a role's options have a server elsewhere spoken to.
pub(super) fn of(role: &Credentials) -> Result<(SslMode, Connector), TlsError> {
    let option = |name: &str| role.options.get(name).map(String::as_str);
    let file = |name: &str| option(name).map(|path| File::new(name, path));
    let (mode, trust) = match (option("sslmode").unwrap_or("prefer"), option("sslrootcert")) {
        ("disable", _) => (SslMode::Disable, Trust::Anyone),
        ("allow" | "prefer", _) => (SslMode::Prefer, Trust::Anyone),
        // With an authority at hand `require` verifies by it, as libpq does.
        ("require" | "verify-ca", Some(path)) if path != "system" => {
            (SslMode::Require, Trust::AnyName(File::new("sslrootcert", path)))
        }
        ("require", _) => (SslMode::Require, Trust::Anyone),
        (_, Some(path)) if path != "system" => {
            (SslMode::Require, Trust::Authorities(File::new("sslrootcert", path)))
        }
        (_, Some(_) | None) => (SslMode::Require, Trust::System),
    };
    let identity = file("sslcert").map(|certificates| Identity { certificates, key: file("sslkey") });
    let tls = ClientTls::load(&ClientFiles { identity, trust })?;
    Ok((mode, Connector { tls, host: String::new() }))
}

/// Makes TLS sessions for one host.
#[derive(Clone)]
pub(super) struct Connector {
    tls: ClientTls,
    host: String,
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
            session.map(Session).map_err(|error| io::Error::new(error.kind(), antiphon_tls::explain(&error)))
        })
    }
}

/// An encrypted connection.
pub(super) struct Session<S>(ClientStream<S>);

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
