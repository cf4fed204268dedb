//! Asking a list of servers who of them leads (`router.servers`), where no agents say so.
//!
//! Each has a connection of the router's own, over which it is asked a few times a second. What follows from the
//! answers is decided elsewhere (`plain`). A single server that cannot be asked, for want of an account, leads.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;

use crate::dial::{self, described};
use crate::plain::{Odd, Plain, Said, Server};
use crate::settings::{Account, Servers};
use crate::shared::Shared;
use crate::topology::Seen;

/// How often a server is asked.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// How long an answer, or a connection, may take.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Answers that wait to be looked at.
const ANSWERS_MAX: usize = 64;

/// A follower's timeline is the one that it receives; while it receives nothing, the one that it was on last.
const QUESTION: &str = "SELECT pg_catalog.pg_is_in_recovery(), \
    (SELECT system_identifier FROM pg_catalog.pg_control_system()), \
    CASE WHEN pg_catalog.pg_is_in_recovery() \
    THEN COALESCE((SELECT received_tli FROM pg_catalog.pg_stat_wal_receiver), \
                  (SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()))::pg_catalog.int8 \
    ELSE ('x' || pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8))\
         ::pg_catalog.bit(32)::pg_catalog.int8 END";

/// Asks servers for ever and tells what was seen whenever that has changed. Nobody goes below this timeline.
pub async fn follow(shared: Arc<Shared>, servers: Servers, timeline: u64, tell: impl AsyncFn(Seen) -> bool) {
    let scope = shared.settings().scope.clone().unwrap_or_default();
    let mut plain = Plain::new(servers.list.clone(), timeline);
    let (answer, mut answers) = mpsc::channel(ANSWERS_MAX);
    let mut asked = JoinSet::new();
    match &servers.account {
        Some(account) => {
            for (number, server) in servers.list.iter().cloned().enumerate() {
                asked.spawn(ask(shared.clone(), account.clone(), server, number, answer.clone()));
            }
        }
        // Only a single server needs no account.
        None => plain.heard(0, Some(Said { follows: false, timeline: timeline.max(1), system: 0 })),
    }
    let mut last: (Option<Seen>, Vec<Odd>) = (None, Vec::new());
    loop {
        let (seen, odd) = plain.look(&scope);
        for new in odd.iter().filter(|new| !last.1.contains(new)) {
            tracing::warn!("{new}");
        }
        if last.0.as_ref() != Some(&seen) && !tell(seen.clone()).await {
            return;
        }
        last = (Some(seen), odd);
        let Some((server, said)) = answers.recv().await else { return };
        plain.heard(server, said);
    }
}

/// Asks one server for ever.
async fn ask(
    shared: Arc<Shared>,
    account: Account,
    server: Server,
    number: usize,
    answer: mpsc::Sender<(usize, Option<Said>)>,
) {
    let mut told = false;
    loop {
        let why = match questions(&shared, &account, &server, number, &answer).await {
            Ok(()) => return,
            Err(why) => why,
        };
        let server = server.name();
        if std::mem::replace(&mut told, true) {
            tracing::debug!(server, why, "a server does not say whether it leads");
        } else {
            tracing::info!(server, why, "a server does not say whether it leads; it is asked again");
        }
        if answer.send((number, None)).await.is_err() {
            return;
        }
        sleep(ASK_EVERY).await;
    }
}

/// Asks over one connection, until that breaks or nobody wants to know any more.
async fn questions(
    shared: &Shared,
    account: &Account,
    server: &Server,
    number: usize,
    answer: &mpsc::Sender<(usize, Option<Said>)>,
) -> Result<(), String> {
    let found = timeout(ANSWER_MAX, tokio::net::lookup_host((server.host.as_str(), server.port))).await;
    let addresses =
        found.map_err(|_| "its host was not found in time")?.map_err(|error| error.to_string())?;
    let addresses: Vec<_> = addresses.collect();
    let address = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first());
    let address = *address.ok_or("its host has no address")?;
    shared.set_host(address, &server.host);
    let (config, connector) = dial::config(shared, account, address);
    let connected = timeout(ANSWER_MAX, config.connect(connector)).await;
    let (client, connection) =
        connected.map_err(|_| "it did not answer".to_owned())?.map_err(|error| described(&error))?;
    let asks = async {
        loop {
            let said = timeout(ANSWER_MAX, said(&client)).await.map_err(|_| "it did not answer")??;
            if answer.send((number, Some(said))).await.is_err() {
                return Ok(());
            }
            sleep(ASK_EVERY).await;
        }
    };
    tokio::select! {
        ended = asks => ended,
        _ = connection => Err("it closed the connection".to_owned()),
    }
}

async fn said(client: &Client) -> Result<Said, String> {
    let row = client.query_one(QUESTION, &[]).await.map_err(|error| described(&error))?;
    let number = |at: usize| -> Result<u64, String> {
        let number: i64 = row.try_get(at).map_err(|error| described(&error))?;
        Ok(u64::from_ne_bytes(number.to_ne_bytes()))
    };
    let follows = row.try_get(0).map_err(|error| described(&error))?;
    Ok(Said { follows, system: number(1)?, timeline: number(2)? })
}
