//! Writers in every region, all on the same few rows, each with the connection of its own region.
//!
//! Every transaction writes one shared row, whoever else does so elsewhere, and counts one. What was acknowledged is
//! counted here as well, so at the end there is something to compare the counter with.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use super::counter;
use super::region::{World, connect};

/// Writers in each region.
const WRITERS: u64 = 2;
/// How many rows they share.
const ROWS: u64 = 200;
/// The pause of a writer after each transaction.
const PAUSE: Duration = Duration::from_millis(100);

/// What a region's writers have noted.
#[derive(Clone, Debug, Default)]
pub struct Noted {
    /// Transactions that were acknowledged.
    pub acknowledged: u64,
    /// Transactions that the server refused, which therefore counted nothing.
    pub refused: u64,
    /// Transactions whose outcome is not known.
    pub unknown: u64,
    /// How long each acknowledged one took.
    pub took: Vec<Duration>,
}

/// Writers at work in all regions.
pub struct Load {
    noted: Vec<Arc<Mutex<Noted>>>,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<anyhow::Result<()>>>,
}

impl Load {
    /// Starts the writers.
    ///
    /// # Errors
    /// If a region's server does not answer.
    pub async fn start(world: &World) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut load = Self { noted: Vec::new(), stop: stop.clone(), tasks: Vec::new() };
        for (nth, region) in world.regions.iter().enumerate() {
            let noted = Arc::new(Mutex::new(Noted::default()));
            for writer in 0..WRITERS {
                let client = connect(region.port()).await?;
                let random = Random(nth as u64 * WRITERS + writer + 1);
                load.tasks.push(tokio::spawn(write(
                    client,
                    region.name,
                    random,
                    noted.clone(),
                    stop.clone(),
                )));
            }
            load.noted.push(noted);
        }
        Ok(load)
    }

    /// What each region has noted so far.
    pub fn noted(&self) -> Vec<Noted> {
        self.noted.iter().map(|noted| lock(noted).clone()).collect()
    }

    /// How many transactions each region had acknowledged so far.
    pub fn acknowledged(&self) -> Vec<u64> {
        self.noted.iter().map(|noted| lock(noted).acknowledged).collect()
    }

    /// Lets the writers end what they are at; gives what each region noted.
    ///
    /// # Errors
    /// If a writer's connection failed.
    pub async fn finish(mut self) -> anyhow::Result<Vec<Noted>> {
        self.stop.store(true, Ordering::Relaxed);
        for task in std::mem::take(&mut self.tasks) {
            task.await.context("a writer broke off")??;
        }
        Ok(self.noted())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Noted {
    /// The time that this share of the transactions was not above.
    pub fn took(&self, percent: usize) -> Duration {
        let mut took = self.took.clone();
        took.sort_unstable();
        let at = (took.len() * percent / 100).min(took.len().saturating_sub(1));
        took.get(at).copied().unwrap_or_default()
    }
}

fn lock(noted: &Mutex<Noted>) -> MutexGuard<'_, Noted> {
    noted.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Numbers that look random and are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

async fn write(
    client: Client,
    region: &'static str,
    mut random: Random,
    noted: Arc<Mutex<Noted>>,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<()> {
    let mut number = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let statement = any_write(&mut random, region, number);
        let begun = Instant::now();
        let outcome = client.batch_execute(&format!("{statement}; {}", counter::count_one(region))).await;
        {
            let mut noted = lock(&noted);
            match outcome {
                Ok(()) => {
                    noted.acknowledged += 1;
                    noted.took.push(begun.elapsed());
                }
                Err(error) if error.as_db_error().is_some() => noted.refused += 1,
                Err(error) => {
                    noted.unknown += 1;
                    return Err(error).with_context(|| format!("a writer in {region}"));
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Mostly an update of one of the shared rows; now and then its end, or its beginning.
fn any_write(random: &mut Random, region: &str, number: u64) -> String {
    let id = random.below(ROWS) + 1;
    let price = random.below(1000);
    match random.below(10) {
        0 => format!("DELETE FROM item WHERE id = {id}"),
        1..=3 => format!(
            "INSERT INTO item VALUES ({id}, '{region} {number}', {price}) \
             ON CONFLICT (id) DO UPDATE SET name = excluded.name, price = excluded.price"
        ),
        _ => format!("UPDATE item SET name = '{region} {number}', price = {price} WHERE id = {id}"),
    }
}
