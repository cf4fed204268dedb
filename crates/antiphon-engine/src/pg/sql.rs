//! SQL connections to the local server over its Unix socket, and to a remote one over TCP.
//!
//! Every wait has a deadline on this side: a server that hangs cannot be trusted to end a statement. A
//! connection is made anew after any error.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Config, NoTls, Socket, Statement};

use super::settings::Credentials;
use super::tls;
use crate::{EngineError, sentence};

/// Where the local server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) socket_dir: PathBuf,
    pub(super) port: u16,
}

fn config(role: &Credentials, port: u16) -> Config {
    let mut config = Config::new();
    config.user(&role.username).dbname("postgres").application_name("antiphon").port(port);
    if let Some(password) = &role.password {
        config.password(password);
    }
    config
}

async fn open<T>(config: &Config, tls: T) -> Result<Client, tokio_postgres::Error>
where
    T: MakeTlsConnect<Socket>,
    T::Stream: Send + 'static,
{
    let (client, connection) = config.connect(tls).await?;
    tokio::spawn(async move {
        // Whoever uses the client sees the error too, and says so.
        if let Err(error) = connection.await {
            tracing::debug!(error = sentence(&error), "a connection to the server ended");
        }
    });
    Ok(client)
}

/// Runs `work` for at most `limit`.
pub(super) async fn within<T>(
    what: &str,
    limit: Duration,
    work: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, EngineError> {
    match tokio::time::timeout(limit, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(EngineError::Sql { what: what.to_owned(), source }),
        Err(_) => Err(EngineError::Deadline { what: what.to_owned(), limit }),
    }
}

/// A fresh connection to the local server.
pub(super) async fn connect(
    target: &Target,
    role: &Credentials,
    limit: Duration,
) -> Result<Client, EngineError> {
    let mut config = config(role, target.port);
    config.host_path(&target.socket_dir);
    within("connect to the server", limit, open(&config, NoTls)).await
}

/// A fresh connection to another database of the local server.
pub(super) async fn connect_to_database(
    target: &Target,
    role: &Credentials,
    database: &str,
    limit: Duration,
) -> Result<Client, EngineError> {
    let mut config = config(role, target.port);
    config.host_path(&target.socket_dir).dbname(database);
    within(&format!("connect to the database {database}"), limit, open(&config, NoTls)).await
}

/// A fresh connection to a server elsewhere, encrypted as the role's options say.
pub(super) async fn connect_to(
    host: &str,
    port: u16,
    role: &Credentials,
    limit: Duration,
) -> Result<Client, EngineError> {
    let what = format!("connect to {host}:{port}");
    let (mode, connector) = tls::of(role)
        .map_err(|error| EngineError::Failed { what: what.clone(), reason: sentence(&error) })?;
    let mut config = config(role, port);
    config.host(host).ssl_mode(mode);
    within(&what, limit, open(&config, connector)).await
}

/// The one value that a query gives, for at most `limit`.
pub(super) async fn value<T: for<'a> tokio_postgres::types::FromSql<'a>>(
    what: &str,
    limit: Duration,
    client: &Client,
    query: &str,
    parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)],
) -> Result<T, EngineError> {
    within(what, limit, async { client.query_one(query, parameters).await?.try_get(0) }).await
}

/// A connection that is kept, with the statements prepared on it.
#[derive(Default)]
pub(super) struct Session {
    live: Option<Live>,
}

struct Live {
    target: Target,
    client: Client,
    statements: Vec<(&'static str, Statement)>,
}

impl Session {
    /// Forgets the connection.
    pub(super) fn close(&mut self) {
        self.live = None;
    }

    /// Runs a query that gives one text, on the kept connection or a new one. The caller holds the deadline;
    /// a call that was dropped half-way leaves no connection behind.
    pub(super) async fn text(
        &mut self,
        target: &Target,
        role: &Credentials,
        query: &'static str,
        limit: Duration,
    ) -> Result<String, EngineError> {
        let live = self.live.take().filter(|live| live.target == *target && !live.client.is_closed());
        let mut live = match live {
            Some(live) => live,
            None => {
                let client = connect(target, role, limit).await?;
                Live { target: target.clone(), client, statements: Vec::new() }
            }
        };
        let text = within("ask the server", limit, live.ask(query)).await?;
        self.live = Some(live);
        Ok(text)
    }
}

impl Live {
    async fn ask(&mut self, query: &'static str) -> Result<String, tokio_postgres::Error> {
        let known =
            self.statements.iter().find(|(text, _)| *text == query).map(|(_, statement)| statement.clone());
        let statement = match known {
            Some(statement) => statement,
            None => {
                let statement = self.client.prepare(query).await?;
                self.statements.push((query, statement.clone()));
                statement
            }
        };
        self.client.query_one(&statement, &[]).await?.try_get(0)
    }
}
