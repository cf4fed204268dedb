//! Lag: from the moment a commit has returned on one node to the moment the other one shows it.
//!
//! Four connections update some rows of their own, 500 times a second in all. Whenever the prober is free, the next
//! commit is its probe: it asks the other node for that row, over and over, until it shows what was written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_postgres::Config;

use super::Measured;
use super::pair::Pair;
use crate::client;

/// Connections that write.
const WRITERS: u32 = 4;
/// Updates a second, all together.
const RATE: u32 = 500;
/// Rows of each writer, from -1 downwards.
const ROWS: i64 = 25;
/// Not counted: connections and caches warm up.
const WARM_UP: Duration = Duration::from_secs(1);
/// Between two probes, so that the prober does not take the machine for itself.
const PROBE_PAUSE: Duration = Duration::from_millis(20);
/// Between two questions.
const ASK_PAUSE: Duration = Duration::from_micros(50);
/// A change that is not there after this is not counted as late but as an error.
const VISIBLE_LIMIT: Duration = Duration::from_secs(30);

/// A commit that has returned.
struct Probe {
    id: i64,
    k: i32,
    returned: Instant,
}

/// Measures for this long.
pub(super) async fn lag(pair: &Pair, seconds: u64) -> anyhow::Result<Measured> {
    let wanted = Arc::new(AtomicBool::new(false));
    let commits = Arc::new(AtomicU64::new(0));
    let (sender, receiver) = mpsc::channel(1);
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let shared = (wanted.clone(), commits.clone(), sender.clone());
        writers.spawn(write(pair.publisher.config(), writer, shared));
    }
    drop(sender);
    let config = pair.subscriber.config();
    let begun = Instant::now();
    let prober = tokio::task::spawn_blocking(move || probe(&config, &wanted, receiver, seconds));
    let mut lags = tokio::select! {
        lags = prober => lags??,
        Some(ended) = writers.join_next() => ended?.and(Err(anyhow::anyhow!("a writer ended"))).context("writing")?,
    };
    let per_second = commits.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64();
    writers.shutdown().await;
    ensure!(!lags.is_empty(), "no change was probed");
    lags.sort_by(f64::total_cmp);
    let at = |share: f64| {
        lags.get((lags.len() as f64 * share) as usize).or(lags.last()).copied().unwrap_or(f64::NAN)
    };
    Ok(Measured::Lag {
        probes: lags.len(),
        per_second,
        p50_ms: at(0.5),
        p90_ms: at(0.9),
        p99_ms: at(0.99),
        max_ms: at(1.0),
    })
}

async fn write(
    config: Config,
    writer: u32,
    (wanted, commits, sender): (Arc<AtomicBool>, Arc<AtomicU64>, mpsc::Sender<Probe>),
) -> anyhow::Result<()> {
    let client = client::connect(&config).await?;
    let first = -1 - i64::from(writer) * ROWS;
    let own = format!("SELECT max(k) FROM bench WHERE id BETWEEN {} AND {first}", first - ROWS + 1);
    let mut k: i32 = client.query_one(&own, &[]).await?.try_get(0)?;
    let update = client.prepare("UPDATE bench SET k = $2, ts = clock_timestamp() WHERE id = $1").await?;
    let mut tick = interval(Duration::from_secs(1) * WRITERS / RATE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        tick.tick().await;
        k += 1;
        let id = first - i64::from(k) % ROWS;
        client.execute(&update, &[&id, &k]).await?;
        let returned = Instant::now();
        commits.fetch_add(1, Ordering::Relaxed);
        if wanted.swap(false, Ordering::AcqRel) {
            sender.send(Probe { id, k, returned }).await?;
        }
    }
}

/// Runs on a thread of its own, since it waits for less time than a timer of the runtime can.
fn probe(
    config: &Config,
    wanted: &AtomicBool,
    mut probes: mpsc::Receiver<Probe>,
    seconds: u64,
) -> anyhow::Result<Vec<f64>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = client::connect(config).await?;
        let query = client.prepare("SELECT k >= $2 FROM bench WHERE id = $1").await?;
        let begun = Instant::now();
        let mut lags = Vec::new();
        while begun.elapsed() < WARM_UP + Duration::from_secs(seconds) {
            wanted.store(true, Ordering::Release);
            let Some(Probe { id, k, returned }) = probes.recv().await else { break };
            loop {
                let visible: bool = client.query_one(&query, &[&id, &k]).await?.try_get(0)?;
                let lag = returned.elapsed();
                if visible {
                    if begun.elapsed() > WARM_UP {
                        lags.push(lag.as_secs_f64() * 1e3);
                    }
                    break;
                }
                ensure!(lag < VISIBLE_LIMIT, "a change was not visible after {VISIBLE_LIMIT:?}");
                std::thread::sleep(ASK_PAUSE);
            }
            std::thread::sleep(PROBE_PAUSE);
        }
        Ok(lags)
    })
}
