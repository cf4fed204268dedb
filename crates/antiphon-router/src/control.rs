//! The control task: follows the cluster, looks users up, sends cancel requests. All that may take a while.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Mutex, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::Client;

use crate::catalogues::Keepers;
use crate::dial::{self, described, is_hopeless};
use crate::follow;
use crate::reload;
use crate::secrets::Secret;
use crate::settings::{Account, AuthQuery, Secrets};
use crate::shared::{Ask, FORWARDED, Note, Shared, Target};
use crate::wire::messages;

/// Questions that are worked on at once.
const AT_ONCE_MAX: usize = 64;
/// How long one attempt to look a user up may take.
const LOOKUP_MAX: Duration = Duration::from_secs(3);
/// The pause before another attempt.
const PAUSE: Duration = Duration::from_millis(50);
/// How often it is written down where statements went.
const ROUTES_EVERY: Duration = Duration::from_secs(10);
/// How long a server may take to deal with a cancel request.
const CANCEL_MAX: Duration = Duration::from_secs(5);

/// The router's own connection, with the server it goes to and the account it was made with.
type OwnLink = Mutex<Option<(SocketAddr, Account, Arc<Client>)>>;

/// Runs until it is aborted.
pub async fn run(shared: Arc<Shared>, mut asks: mpsc::Receiver<Ask>) {
    let (target, follows) = watch::channel(Target::default());
    let follower = tokio::spawn(follow::run(shared.clone(), target));
    let counts = tokio::spawn(log_routes(shared.clone()));
    let _end_with_us = [Ending(follower), Ending(counts)];
    let own = Arc::new(OwnLink::default());
    let places = Arc::new(Semaphore::new(AT_ONCE_MAX));
    let mut keepers = Keepers::default();
    while let Some(ask) = asks.recv().await {
        let ask = match ask {
            Ask::Catalogue(database) => {
                keepers.want(&shared, database, &follows);
                continue;
            }
            ask @ (Ask::User { .. } | Ask::Cancel { .. } | Ask::Forward { .. } | Ask::Reload(..)) => ask,
        };
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let (shared, own, follows) = (shared.clone(), own.clone(), follows.clone());
        tokio::spawn(async move {
            answer(&shared, ask, &own, follows).await;
            drop(place);
        });
    }
}

/// Writes down where statements went, as long as any go.
async fn log_routes(shared: Arc<Shared>) {
    let mut last = String::new();
    loop {
        sleep(ROUTES_EVERY).await;
        let routes = shared.routes().to_string();
        if routes != last {
            tracing::debug!(routes, "statements went so far");
            last = routes;
        }
    }
}

/// A task that ends with its owner.
struct Ending(tokio::task::JoinHandle<()>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn answer(shared: &Shared, ask: Ask, own: &OwnLink, follows: watch::Receiver<Target>) {
    match ask {
        // Kept apart from what is answered once.
        Ask::Catalogue(_) => {}
        Ask::Reload(thread, client) => {
            let done = reload::reload(shared).await;
            shared.note(thread, Note::Reloaded(client, done));
        }
        Ask::User { thread, client, user } => {
            let found = match &shared.settings().authentication.secrets {
                Secrets::Query(query) => look_up(shared, query, &user, own, follows).await,
                Secrets::Nothing | Secrets::Users(_) => Ok(None),
            };
            shared.note(thread, Note::User(client, found));
        }
        Ask::Forward { process, mut key } => {
            key.extend_from_slice(FORWARDED);
            let settings = shared.settings();
            let mut peers = JoinSet::new();
            for peer in settings.peers.clone() {
                let key = key.clone();
                peers.spawn(async move { forward(&peer, process, &key).await });
            }
            peers.join_all().await;
        }
        Ask::Cancel { thread, link, server, process, key } => {
            if timeout(CANCEL_MAX, cancel(shared, server, process, &key)).await.is_err() {
                tracing::debug!(%server, "a cancel request was not dealt with in time");
            }
            shared.note(thread, Note::Cancelled(link.0, link.1));
        }
    }
}

/// Sends a cancel request and waits until the server has dealt with it: it closes the connection then.
async fn cancel(shared: &Shared, server: SocketAddr, process: u32, key: &[u8]) {
    let send = async {
        let mut stream = dial::stream(shared, server).await?;
        stream.write_all(&messages::cancel(process, key)).await?;
        stream.flush().await?;
        match stream.read(&mut [0; 1]).await {
            // Inside TLS some servers leave without a goodbye.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
            ended => ended,
        }
    };
    if let Err(error) = send.await {
        let why = antiphon_tls::explain(&error);
        tracing::debug!(why, %server, "could not send a cancel request");
    }
}

/// Hands a cancel request on to another router.
async fn forward(peer: &str, process: u32, key: &[u8]) {
    let send = async {
        let mut stream = tokio::net::TcpStream::connect(peer).await?;
        stream.write_all(&messages::cancel(process, key)).await?;
        // It closes the connection when it has read that.
        stream.read(&mut [0; 1]).await.map(drop)
    };
    match timeout(CANCEL_MAX, send).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, peer, "a cancel request could not be handed on"),
        Err(_) => tracing::debug!(peer, "a cancel request was not taken in time"),
    }
}

/// Asks the leader for a user's verifier. While there is none, what was known before is used.
async fn look_up(
    shared: &Shared,
    query: &AuthQuery,
    user: &str,
    own: &OwnLink,
    mut follows: watch::Receiver<Target>,
) -> Result<Option<Secret>, String> {
    let known = shared.secret_of(user).map(|(verifier, _)| verifier);
    let until = Instant::now() + shared.settings().failover_hold;
    let mut why = "the cluster has no leader".to_owned();
    while Instant::now() < until {
        let leader = follows.borrow_and_update().leader;
        if let Some(leader) = leader {
            match timeout(LOOKUP_MAX, ask(shared, query, user, leader, own)).await {
                Ok(Ok(verifier)) => {
                    shared.set_secret(user, verifier.clone());
                    return Ok(verifier);
                }
                Ok(Err(failed)) if failed.for_good && known.is_none() => return Err(failed.why),
                Ok(Err(failed)) => why = failed.why,
                Err(_) => why = format!("{leader} did not answer the auth_query within {LOOKUP_MAX:?}"),
            }
            *own.lock().await = None;
        }
        if let Some(known) = known {
            return Ok(known);
        }
        tracing::debug!(user, why, "a user could not be looked up yet");
        tokio::select! {
            () = sleep(PAUSE), if leader.is_some() => {}
            changed = timeout(until.saturating_duration_since(Instant::now()), follows.changed()) => {
                if !matches!(changed, Ok(Ok(()))) {
                    break;
                }
            }
        }
    }
    Err(why)
}

/// A question to a server that has no answer.
struct Failed {
    why: String,
    /// Another attempt would fail alike.
    for_good: bool,
}

impl From<tokio_postgres::Error> for Failed {
    fn from(error: tokio_postgres::Error) -> Self {
        Self { why: described(&error), for_good: is_hopeless(&error) }
    }
}

async fn ask(
    shared: &Shared,
    query: &AuthQuery,
    user: &str,
    leader: SocketAddr,
    own: &OwnLink,
) -> Result<Option<Secret>, Failed> {
    let client = connected(shared, query, leader, own).await?;
    let row = client.query_opt(&query.query, &[&user]).await?;
    let Some(row) = row else { return Ok(None) };
    let stored: Option<&str> = row.try_get(1)?;
    match stored.map(Secret::parse) {
        Some(Ok(verifier)) => Ok(Some(verifier)),
        Some(Err(error)) => {
            tracing::warn!(user, %error, "a user cannot log in through the router");
            Ok(None)
        }
        None => Ok(None),
    }
}

async fn connected(
    shared: &Shared,
    query: &AuthQuery,
    leader: SocketAddr,
    own: &OwnLink,
) -> Result<Arc<Client>, tokio_postgres::Error> {
    let mut own = own.lock().await;
    if let Some((server, account, client)) = own.as_ref()
        && *server == leader
        && *account == query.account
        && !client.is_closed()
    {
        return Ok(client.clone());
    }
    let (mut config, connector) = dial::config(shared, &query.account, leader);
    config.connect_timeout(LOOKUP_MAX);
    let (client, connection) = config.connect(connector).await?;
    tokio::spawn(connection);
    let client = Arc::new(client);
    *own = Some((leader, query.account.clone(), client.clone()));
    Ok(client)
}
