//! TLS from certificate files: one place that reads them, checks them and says what is wrong with them.
//!
//! Everything that speaks TLS here (the API, the command line, the links between members, the connections to
//! etcd and to a server elsewhere) gets a [`ServerTls`], a [`ClientTls`] or both ([`MemberTls`]) and a
//! [`Stream`] that is plain or encrypted; the router, whose threads move bytes themselves, a [`Connection`]. The files are read when these are loaded: with a file that is missing,
//! a key of another certificate or a certificate that is out of date nothing starts. New files take the place of
//! the old ones with `replace`: connections go on as they are, new ones use the new files.
//!
//! TLS 1.2 and 1.3 with forward secrecy only. It must not decide who may do what: it says who is at the other
//! end, or that nobody knows.

mod binding;
mod explain;
mod files;
mod name;
mod postgres;
mod stream;
mod verify;

use std::fmt;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    ClientConfig, ClientConnection, ConfigBuilder, ConfigSide, ServerConfig, ServerConnection, WantsVerifier,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

pub use crate::explain::{explain, reason, rejection};
pub use crate::files::{File, Identity, TlsError, days_left};
pub use crate::name::common_name;
pub use crate::postgres::{Connector, PROTOCOL, Session};
pub use crate::stream::{Stream, farewell};
pub use rustls::Connection;
pub use tokio_rustls::client::TlsStream as ClientStream;

use crate::verify::{Lenient, Named};

/// The files of a side that accepts connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFiles {
    /// What it proves itself with.
    pub identity: Identity,
    /// What it asks of clients.
    pub clients: Clients,
}

/// Whether clients are asked for certificates, and whose are good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clients {
    /// They are not asked.
    NotAsked,
    /// They are asked; one without a certificate is let in, one with a bad certificate is not.
    Optional(File),
    /// Nobody is let in without one.
    Required(File),
}

/// The files of a side that makes connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFiles {
    /// What it proves itself with, if it is asked.
    pub identity: Option<Identity>,
    /// Whom it believes.
    pub trust: Trust,
}

/// Whom a client believes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Servers whose certificate these authorities signed, or one of them is, for the name that is connected to.
    Authorities(File),
    /// The same, whatever name it is for.
    AnyName(File),
    /// Servers whose certificate an authority signed that this machine trusts, for the name connected to.
    System,
    /// Anyone: the connection is encrypted, and nobody knows with whom.
    Anyone,
}

/// The files of a member, which both accepts and makes connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberFiles {
    /// What it proves itself with, on both ends.
    pub identity: Identity,
    /// Who signed the certificates of all members.
    pub authorities: File,
}

/// A value that can be replaced while others use it.
struct Live<T>(Arc<RwLock<Arc<T>>>);

impl<T> Live<T> {
    fn new(value: T) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(value))))
    }

    fn get(&self) -> Arc<T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, other: &Self) {
        let value = other.get();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = value;
    }
}

impl<T> Clone for Live<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// What a side that accepts connections has loaded.
struct Accepting {
    config: Arc<ServerConfig>,
    /// What a login can bind itself to.
    end_point: Option<Vec<u8>>,
}

/// How connections are accepted. Cheap to clone; all clones see a replacement.
#[derive(Clone)]
pub struct ServerTls(Live<Accepting>);

/// How connections are made. Cheap to clone; all clones see a replacement.
#[derive(Clone)]
pub struct ClientTls(Live<ClientConfig>);

/// How members connect to each other: both ends prove themselves. Cheap to clone.
#[derive(Clone, Debug)]
pub struct MemberTls {
    /// The accepting end.
    pub server: ServerTls,
    /// The dialling end.
    pub client: ClientTls,
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").finish_non_exhaustive()
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").finish_non_exhaustive()
    }
}

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// Which file cannot be used, and why.
    pub fn load(files: &ServerFiles) -> Result<Self, TlsError> {
        let (certificates, key) = files::identity(&files.identity)?;
        let end_point = certificates.first().and_then(|certificate| binding::end_point(certificate));
        let builder = protocol(ServerConfig::builder_with_provider(provider()));
        let builder = match &files.clients {
            Clients::NotAsked => builder.with_no_client_auth(),
            Clients::Optional(file) => builder.with_client_cert_verifier(client_verifier(file, true)?),
            Clients::Required(file) => builder.with_client_cert_verifier(client_verifier(file, false)?),
        };
        let config = builder
            .with_single_cert(certificates, key)
            .map_err(|error| TlsError::unusable(&files.identity.certificates, &error.to_string()))?;
        Ok(Self(Live::new(Accepting { config: Arc::new(config), end_point })))
    }

    /// Uses what `other` has loaded for connections from now on.
    pub fn replace(&self, other: &Self) {
        self.0.replace(&other.0);
    }

    /// The same for clients of PostgreSQL: the protocol is named as they name it, and nothing is kept for the next
    /// connection of a client, as PostgreSQL keeps nothing. A replacement of the files is not seen.
    pub fn for_postgresql(&self) -> Self {
        let loaded = self.0.get();
        let mut config = ServerConfig::clone(&loaded.config);
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Self(Live::new(Accepting { config: Arc::new(config), end_point: loaded.end_point.clone() }))
    }

    /// The hash of the certificate that a login binds itself to (`tls-server-end-point`, RFC 5929); none if its
    /// signature names no hash.
    pub fn end_point(&self) -> Option<Vec<u8>> {
        self.0.get().end_point.clone()
    }

    /// A session for whoever moves the bytes of a connection itself.
    ///
    /// # Errors
    /// If the library cannot begin one.
    pub fn session(&self) -> io::Result<Connection> {
        let session = ServerConnection::new(self.0.get().config.clone()).map_err(io::Error::other)?;
        Ok(session.into())
    }

    /// Does the handshake on an accepted connection. The caller holds the deadline.
    ///
    /// # Errors
    /// Why there is no connection; [`explain`] puts it into words.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<Stream> {
        match TlsAcceptor::from(self.0.get().config.clone()).accept(stream).into_fallible().await {
            Ok(accepted) => Ok(Stream::Tls(Box::new(accepted.into()))),
            Err((error, mut stream)) => {
                // The library has sent the reason.
                farewell(&mut stream).await;
                Err(error)
            }
        }
    }
}

impl ClientTls {
    /// Reads the files.
    ///
    /// # Errors
    /// Which file cannot be used, and why.
    pub fn load(files: &ClientFiles) -> Result<Self, TlsError> {
        let builder = protocol(ClientConfig::builder_with_provider(provider()));
        let builder = match &files.trust {
            Trust::Authorities(file) => {
                let roots = Arc::new(files::authorities(file)?);
                let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider()).build();
                let verifier = verifier.map_err(|error| TlsError::unusable(file, &error.to_string()))?;
                let verifier = Named::new(verifier, files::certificates(file)?);
                builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
            }
            Trust::System => builder.with_root_certificates(files::system_authorities()?),
            Trust::AnyName(file) => {
                let verifier = Lenient::signed_by(files::authorities(file)?, &provider());
                builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
            }
            Trust::Anyone => {
                let verifier = Lenient::anyone(&provider());
                builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
            }
        };
        let config = match &files.identity {
            Some(identity) => {
                let (certificates, key) = files::identity(identity)?;
                builder
                    .with_client_auth_cert(certificates, key)
                    .map_err(|error| TlsError::unusable(&identity.certificates, &error.to_string()))?
            }
            None => builder.with_no_client_auth(),
        };
        Ok(Self(Live::new(config)))
    }

    /// Uses what `other` has loaded for connections from now on.
    pub fn replace(&self, other: &Self) {
        self.0.replace(&other.0);
    }

    /// Does the handshake on a connection to `host`, a name or an IP address. The caller holds the deadline.
    ///
    /// # Errors
    /// Why there is no connection; [`explain`] puts it into words.
    pub async fn connect(&self, host: &str, stream: TcpStream) -> io::Result<Stream> {
        let connected = self.connect_over(host, stream).await?;
        Ok(Stream::Tls(Box::new(connected.into())))
    }

    /// [`ClientTls::connect`] over any stream.
    ///
    /// # Errors
    /// The same.
    pub async fn connect_over<S>(&self, host: &str, stream: S) -> io::Result<ClientStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        TlsConnector::from(self.0.get()).connect(server_name(host)?, stream).await
    }

    /// The same for servers of PostgreSQL: the protocol is named as they name it, and nothing is kept for the next
    /// connection, which old releases of it cannot take up. A replacement of the files is not seen.
    pub fn for_postgresql(&self) -> Self {
        let mut config = ClientConfig::clone(&self.0.get());
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        config.resumption = Resumption::disabled();
        Self(Live::new(config))
    }

    /// A session with `host`, a name or an IP address, for whoever moves the bytes of a connection itself.
    ///
    /// # Errors
    /// If `host` is neither, or the library cannot begin one.
    pub fn session(&self, host: &str) -> io::Result<Connection> {
        let session = ClientConnection::new(self.0.get(), server_name(host)?).map_err(io::Error::other)?;
        Ok(session.into())
    }

    /// How the client library of PostgreSQL makes its connections by these files.
    pub fn connector(&self) -> Connector {
        Connector::new(self.clone())
    }
}

fn server_name(host: &str) -> io::Result<ServerName<'static>> {
    ServerName::try_from(host.to_owned())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("{host:?} is not a host name")))
}

impl MemberTls {
    /// Reads the files and sees that the other members will accept this one's certificate.
    ///
    /// # Errors
    /// Which file cannot be used, and why.
    pub fn load(files: &MemberFiles) -> Result<Self, TlsError> {
        let (certificates, _) = files::identity(&files.identity)?;
        let verifier = client_verifier(&files.authorities, false)?;
        verify::own_certificate(files, &certificates, &*verifier)?;
        let server = ServerTls::load(&ServerFiles {
            identity: files.identity.clone(),
            clients: Clients::Required(files.authorities.clone()),
        })?;
        let client = ClientTls::load(&ClientFiles {
            identity: Some(files.identity.clone()),
            trust: Trust::Authorities(files.authorities.clone()),
        })?;
        Ok(Self { server, client })
    }

    /// Uses what `other` has loaded for connections from now on.
    pub fn replace(&self, other: &Self) {
        self.server.replace(&other.server);
        self.client.replace(&other.client);
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn protocol<S: ConfigSide>(
    builder: ConfigBuilder<S, rustls::WantsVersions>,
) -> ConfigBuilder<S, WantsVerifier> {
    builder.with_safe_default_protocol_versions().expect("ring's cipher suites serve TLS 1.2 and 1.3")
}

fn client_verifier(file: &File, optional: bool) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let roots = Arc::new(files::authorities(file)?);
    let builder = WebPkiClientVerifier::builder_with_provider(roots, provider());
    let builder = if optional { builder.allow_unauthenticated() } else { builder };
    builder.build().map_err(|error| TlsError::unusable(file, &error.to_string()))
}
