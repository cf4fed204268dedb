//! A load that counts: numbered rows, written over a list of servers, each acknowledgement noted.
//!
//! Every number is sent once. What was acknowledged must be in the table at the end; what failed with an
//! unknown outcome may be there or not, and is counted by itself.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, NoTls};

use super::cluster::PASSWORD;

/// How long connecting to one server may take.
const CONNECT_DEADLINE: Duration = Duration::from_millis(500);
/// How long a statement may take before its outcome is called unknown.
const STATEMENT_DEADLINE: Duration = Duration::from_secs(2);
/// The pause after an attempt that failed.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// What the writers have noted.
#[derive(Debug, Default)]
pub struct Noted {
    /// When each acknowledged row was acknowledged: writer, number, moment.
    pub acknowledged: Vec<(u32, u64, Instant)>,
    /// Rows whose outcome is unknown to the client.
    pub unknown: u64,
}

/// Writers at work.
pub struct Load {
    servers: Vec<u16>,
    noted: Arc<Mutex<Noted>>,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
    first: Arc<AtomicUsize>,
}

/// What became of the acknowledged rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Acknowledged.
    pub acknowledged: usize,
    /// Acknowledged and not in the table.
    pub lost: usize,
    /// In the table although their outcome was unknown to the client.
    pub unknown_present: usize,
}

impl Load {
    /// Creates the table and starts the writers.
    ///
    /// # Errors
    /// If no server takes writes within `limit`.
    pub async fn start(servers: Vec<u16>, writers: u32, limit: Duration) -> anyhow::Result<Self> {
        let first = Arc::new(AtomicUsize::new(0));
        let client = writable(&servers, &first, limit).await?;
        client
            .batch_execute(
                "CREATE TABLE IF NOT EXISTS load (writer int NOT NULL, number bigint NOT NULL, \
                 written timestamptz NOT NULL DEFAULT clock_timestamp(), PRIMARY KEY (writer, number))",
            )
            .await
            .context("could not create the table of the load")?;
        let noted = Arc::new(Mutex::new(Noted::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let tasks = (0..writers)
            .map(|writer| {
                tokio::spawn(write(writer, servers.clone(), noted.clone(), stop.clone(), first.clone()))
            })
            .collect();
        Ok(Self { servers, noted, stop, tasks, first })
    }

    /// How many rows were acknowledged, and how many outcomes are unknown.
    pub fn counts(&self) -> (usize, u64) {
        let noted = self.lock();
        (noted.acknowledged.len(), noted.unknown)
    }

    /// Waits until `more` rows have been acknowledged from now on.
    ///
    /// # Errors
    /// If they are not within `limit`.
    pub async fn wait_for(&self, more: usize, limit: Duration) -> anyhow::Result<()> {
        let (before, _) = self.counts();
        let started = Instant::now();
        while self.counts().0 < before + more {
            anyhow::ensure!(started.elapsed() < limit, "no {more} rows were acknowledged within {limit:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// The longest time without an acknowledgement from `since` on.
    pub fn longest_gap(&self, since: Instant) -> Duration {
        let noted = self.lock();
        let mut last = since;
        let mut longest = Duration::ZERO;
        for (_, _, at) in noted.acknowledged.iter().filter(|(_, _, at)| *at >= since) {
            longest = longest.max(at.saturating_duration_since(last));
            last = last.max(*at);
        }
        longest.max(last.elapsed())
    }

    /// Acknowledgements in each slice of `width` over the last `slices` slices, oldest first.
    pub fn rates(&self, width: Duration, slices: usize) -> Vec<usize> {
        let now = Instant::now();
        let mut counts = vec![0; slices];
        let noted = self.lock();
        for (_, _, at) in noted.acknowledged.iter().rev() {
            let age =
                usize::try_from(now.saturating_duration_since(*at).as_nanos() / width.as_nanos().max(1));
            match age {
                Ok(age) if age < slices => counts[slices - 1 - age] += 1,
                _ => break,
            }
        }
        counts
    }

    /// Ends the writers and compares what was acknowledged with what the leader has.
    ///
    /// # Errors
    /// If no server takes writes within `limit`, or the table cannot be read.
    pub async fn finish(self, limit: Duration) -> anyhow::Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            let _ = tokio::time::timeout(STATEMENT_DEADLINE * 3, task).await;
        }
        let client = writable(&self.servers, &self.first, limit).await?;
        let rows =
            client.query("SELECT writer, number FROM load", &[]).await.context("could not read the table")?;
        let present: std::collections::HashSet<(i32, i64)> =
            rows.iter().map(|row| (row.get::<_, i32>(0), row.get::<_, i64>(1))).collect();
        let noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        let key = |writer: u32, number: u64| (writer.cast_signed(), number.cast_signed());
        let lost = noted.acknowledged.iter().filter(|(w, n, _)| !present.contains(&key(*w, *n))).count();
        let acknowledged = noted.acknowledged.len();
        Ok(Tally { acknowledged, lost, unknown_present: (present.len() + lost).saturating_sub(acknowledged) })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One writer: numbers in order, each sent once, over whichever server takes writes.
async fn write(
    writer: u32,
    servers: Vec<u16>,
    noted: Arc<Mutex<Noted>>,
    stop: Arc<AtomicBool>,
    first: Arc<AtomicUsize>,
) {
    let mut client: Option<Client> = None;
    let mut number = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        let Some(connected) = &client else {
            client = connect_any(&servers, &first).await;
            if client.is_none() {
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            continue;
        };
        number += 1;
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 2] =
            [&writer.cast_signed(), &number.cast_signed()];
        let insert = connected.execute("INSERT INTO load (writer, number) VALUES ($1, $2)", &values);
        let outcome = tokio::time::timeout(STATEMENT_DEADLINE, insert).await;
        let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(Ok(_)) = outcome {
            noted.acknowledged.push((writer, number, Instant::now()));
        } else {
            noted.unknown += 1;
            client = None;
        }
    }
}

/// A connection to the first server that takes writes, beginning with the one that did last.
async fn connect_any(servers: &[u16], first: &AtomicUsize) -> Option<Client> {
    let start = first.load(Ordering::Relaxed);
    for offset in 0..servers.len() {
        let index = (start + offset) % servers.len();
        if let Ok(Some(client)) = tokio::time::timeout(CONNECT_DEADLINE, connect(servers[index])).await {
            first.store(index, Ordering::Relaxed);
            return Some(client);
        }
    }
    None
}

async fn connect(port: u16) -> Option<Client> {
    let mut config = Config::new();
    config.host("127.0.0.1").port(port).user("postgres").password(PASSWORD).dbname("postgres");
    config
        .application_name("load")
        .target_session_attrs(tokio_postgres::config::TargetSessionAttrs::ReadWrite);
    let (client, connection) = config.connect(NoTls).await.ok()?;
    tokio::spawn(connection);
    Some(client)
}

async fn writable(servers: &[u16], first: &AtomicUsize, limit: Duration) -> anyhow::Result<Client> {
    let started = Instant::now();
    while started.elapsed() < limit {
        if let Some(client) = connect_any(servers, first).await {
            return Ok(client);
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
    anyhow::bail!("no server of {servers:?} took writes within {limit:?}")
}
