//! The client: four connections that insert numbered rows, one acknowledged autocommit insert after the other.
//!
//! It is the same program for every system, and has one address: that of the system's proxy. It notes when each
//! acknowledgement came and never repeats an insert whose outcome it does not know: an id is written once.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::{Client, Config, NoTls};

const WRITERS: u8 = 4;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const STATEMENT_DEADLINE: Duration = Duration::from_secs(5);
const RECONNECT_PAUSE: Duration = Duration::from_millis(20);
/// Unanswered packets end a connection after this: a client that waits for the kernel's 15 minutes measures
/// its own patience and not the system.
const TCP_USER_TIMEOUT: Duration = Duration::from_millis(500);
/// Between two inserts of one connection: some 1000 writes a second in all, the machine left half idle.
const WRITE_PAUSE: Duration = Duration::from_millis(2);
/// How long the writers may take to end once they are told to.
const STOP_LIMIT: Duration = Duration::from_secs(6);
const TABLE: &str = "failover_bench";

/// Connects once to one address. An error when it is not there within the connect timeout.
pub(crate) async fn connect(config: &Config) -> anyhow::Result<Client> {
    let (client, connection) = timeout(CONNECT_TIMEOUT, config.connect(NoTls)).await??;
    tokio::spawn(async move {
        // Its error reaches the client's next statement too, which is where it is handled.
        let _ended = connection.await;
    });
    Ok(client)
}

/// Makes the table that the writers fill.
pub(crate) async fn create_table(config: &Config) -> anyhow::Result<()> {
    let statement = format!(
        "CREATE TABLE IF NOT EXISTS {TABLE} (id bigint PRIMARY KEY, writer int NOT NULL, sequence bigint NOT NULL, \
         written_at timestamptz NOT NULL)"
    );
    connect(config).await?.batch_execute(&statement).await.context("could not make the table of the bench")
}

/// The acknowledged ids that the server does not have.
pub(crate) async fn lost(config: &Config, acked: &[Ack]) -> anyhow::Result<usize> {
    let Some(first) = acked.iter().map(|ack| ack.id).min() else { return Ok(0) };
    let client = connect(config).await?;
    let query = format!("SELECT id FROM {TABLE} WHERE id >= $1");
    let rows = client.query(&query, &[&first]).await.context("could not read the ids back")?;
    let present: BTreeSet<i64> = rows.iter().map(|row| row.get(0)).collect();
    Ok(acked.iter().filter(|ack| !present.contains(&ack.id)).count())
}

/// One acknowledged insert.
#[derive(Clone, Copy)]
pub(crate) struct Ack {
    pub(crate) id: i64,
    pub(crate) at: Instant,
}

#[derive(Default)]
struct Seen {
    acks: Mutex<Vec<Ack>>,
    errors: AtomicU64,
    stop: AtomicBool,
}

/// The writers at work.
pub(crate) struct Writers {
    seen: Arc<Seen>,
    tasks: JoinSet<()>,
}

impl Writers {
    /// Starts the writers; `next_id` numbers the rows across all runs of a system.
    pub(crate) fn start(address: &Config, next_id: &Arc<AtomicI64>) -> Writers {
        let mut address = address.clone();
        address.connect_timeout(CONNECT_TIMEOUT).tcp_user_timeout(TCP_USER_TIMEOUT);
        address.keepalives_idle(Duration::from_secs(1)).application_name("antiphon-bench");
        let seen = Arc::new(Seen::default());
        let mut tasks = JoinSet::new();
        for writer in 0..WRITERS {
            tasks.spawn(write(i32::from(writer), address.clone(), Arc::clone(next_id), Arc::clone(&seen)));
        }
        Writers { seen, tasks }
    }

    /// The acknowledgements so far, in order of time.
    pub(crate) fn acks(&self) -> Vec<Ack> {
        let mut acks = self.seen.acks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        acks.sort_by_key(|ack| ack.at);
        acks
    }

    /// Errors that a connection or statement ended with; failed attempts to connect do not count.
    pub(crate) fn errors(&self) -> u64 {
        self.seen.errors.load(Ordering::Relaxed)
    }

    /// Since when acknowledgements have come with no gap longer than `gap`, if they do now.
    pub(crate) fn steady_since(&self, gap: Duration) -> Option<Instant> {
        let acks = self.acks();
        let mut next = Instant::now();
        for ack in acks.iter().rev() {
            if next.saturating_duration_since(ack.at) > gap {
                break;
            }
            next = ack.at;
        }
        acks.last().filter(|last| last.at >= next).map(|_| next)
    }

    /// Ends the writers, letting statements under way come to their end, and returns the acknowledgements.
    pub(crate) async fn stop(mut self) -> Vec<Ack> {
        self.seen.stop.store(true, Ordering::Relaxed);
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(STOP_LIMIT, ended).await.is_err() {
            self.tasks.shutdown().await;
        }
        self.acks()
    }
}

/// The longest time without an acknowledgement from just before `event` to the last one.
pub(crate) fn longest_gap(acks: &[Ack], event: Instant) -> Option<Duration> {
    let pairs = acks.iter().zip(acks.iter().skip(1)).filter(|(_, later)| later.at >= event);
    pairs.map(|(earlier, later)| later.at.saturating_duration_since(earlier.at)).max()
}

/// One writer: connects, inserts until an error, connects again, until it is told to stop.
async fn write(writer: i32, address: Config, next_id: Arc<AtomicI64>, seen: Arc<Seen>) {
    let mut sequence = 0;
    while !seen.stop.load(Ordering::Relaxed) {
        let Some(client) = dial(&address, &seen).await else { return };
        if insert_until_error(&client, writer, &mut sequence, &next_id, &seen).await.is_err() {
            seen.errors.fetch_add(1, Ordering::Relaxed);
            sleep(RECONNECT_PAUSE).await;
        }
    }
}

async fn insert_until_error(
    client: &Client,
    writer: i32,
    sequence: &mut i64,
    next_id: &AtomicI64,
    seen: &Seen,
) -> anyhow::Result<()> {
    let statement = format!("INSERT INTO {TABLE} VALUES ($1, $2, $3, now())");
    let statement = timeout(STATEMENT_DEADLINE, client.prepare(&statement)).await??;
    while !seen.stop.load(Ordering::Relaxed) {
        let id = next_id.fetch_add(1, Ordering::Relaxed);
        *sequence += 1;
        timeout(STATEMENT_DEADLINE, client.execute(&statement, &[&id, &writer, &*sequence])).await??;
        let ack = Ack { id, at: Instant::now() };
        seen.acks.lock().unwrap_or_else(PoisonError::into_inner).push(ack);
        sleep(WRITE_PAUSE).await;
    }
    Ok(())
}

/// Dials again and again until it is let in; nothing when told to stop.
async fn dial(address: &Config, seen: &Seen) -> Option<Client> {
    while !seen.stop.load(Ordering::Relaxed) {
        if let Ok(client) = connect(address).await {
            return Some(client);
        }
        sleep(RECONNECT_PAUSE).await;
    }
    None
}

#[cfg(test)]
mod tests;
