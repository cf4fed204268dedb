//! Memory for clients that keep their connection and do nothing: each has asked once, as clients of a pool have.

use std::time::Duration;

use anyhow::Context;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_postgres::Client;

use super::cell::{Cell, Proof};
use super::pgbench::{self, Extent};
use super::way::Running;
use super::{Host, Measured};
use crate::client;

/// Clients that are counted; enough that a page more or less does not matter.
const CLIENTS: usize = 1000;
/// Clients that connect at a time.
const AT_A_TIME: usize = 20;
/// What is given back late is given back by then.
const SETTLE: Duration = Duration::from_secs(1);

/// What each of 1,000 clients more costs a way in memory.
pub(super) async fn idle(host: &Host, running: &Running) -> anyhow::Result<Measured> {
    // What traffic needs once, whoever it is for, is not the clients'.
    for load in [Cell::Simple, Cell::Extended, Cell::Rows].into_iter().filter_map(Cell::load) {
        pgbench::put(host, running.port(), &load, Extent::WarmUp).await?;
    }
    sleep(SETTLE).await;
    let before = running.cost().context("it has no process")?.rss_bytes();
    let clients = connected(running.port()).await?;
    sleep(SETTLE).await;
    let after = running.cost().context("it has no process")?.rss_bytes();
    drop(clients);
    let bytes = after.saturating_sub(before) as f64;
    Ok(Measured::Idle { kib_per_client: bytes / 1024.0 / CLIENTS as f64 })
}

/// Clients that have all been answered once.
async fn connected(port: u16) -> anyhow::Result<Vec<Client>> {
    let mut tasks = JoinSet::new();
    let mut clients = Vec::new();
    let mut started = 0;
    while clients.len() < CLIENTS {
        while started < CLIENTS && tasks.len() < AT_A_TIME {
            tasks.spawn(asked_once(port));
            started += 1;
        }
        let client = tasks.join_next().await.context("no client is left to wait for")??;
        clients.push(client.with_context(|| format!("client {} of {CLIENTS}", clients.len() + 1))?);
    }
    Ok(clients)
}

async fn asked_once(port: u16) -> anyhow::Result<Client> {
    let client = client::connect(&Host::config(port, Proof::Trust)).await?;
    client.simple_query("SELECT abalance FROM pgbench_accounts WHERE aid = 1").await?;
    Ok(client)
}
