//! The hot row: one row that always exists, written on both nodes at once, with an index on what is written.
//!
//! A row that moves while it is looked for can be missed, and the update is lost as if there were no such row. How
//! many were is counted where they would be applied: by a trigger that fires for what comes from elsewhere, which for
//! a subscription is every change. Antiphon decides each conflict by time, so that an older update does not count as
//! missed; missed is what it took for a row that is not there, and a row that is not the same on both nodes at the
//! end, when each has everything of the other.

use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::process::Child;

use super::Measured;
use super::load::{self, HOT_ROW};
use super::pair::Pair;
use super::server::Server;
use crate::process::{kill_and_reap, run, start};

/// Clients that write beside the changes that arrive.
const CLIENTS: u32 = 2;
/// Their updates a second. What they write has to be carried, too, where both nodes write.
const RATE: &str = "3000";
/// Writing and applying may take this long, and a few milliseconds more for each update.
const RACE_LIMIT: Duration = Duration::from_secs(120);
/// pgbench, when it is to write until it is stopped.
const FOR_LONG_SECONDS: &str = "100000";

/// Counts what is missed of so many updates.
pub(super) async fn race(pair: &Pair, own: bool, updates: u64) -> anyhow::Result<Measured> {
    let limit = RACE_LIMIT + Duration::from_millis(5 * updates);
    pair.subscriber
        .run(&[
            "CREATE INDEX bench_k ON bench (k)",
            "CREATE SEQUENCE arrived",
            "CREATE FUNCTION arrive() RETURNS trigger LANGUAGE plpgsql AS \
             $f$ BEGIN PERFORM nextval('public.arrived'); RETURN NULL; END $f$",
            "CREATE TRIGGER arrive AFTER UPDATE ON bench FOR EACH ROW EXECUTE FUNCTION arrive()",
            "ALTER TABLE bench ENABLE REPLICA TRIGGER arrive",
        ])
        .await?;
    let mut local = local_writers(&pair.subscriber)?;
    let raced = async {
        let text = format!("UPDATE bench SET k = k + 1, ts = clock_timestamp() WHERE id = {HOT_ROW};\n");
        let script = load::script(&pair.publisher, "hot", &text)?;
        let mut command = load::pgbench(&pair.publisher)?;
        command.args(["-M", "prepared", "-c", "1", "-t", &updates.to_string(), "-f"]).arg(script);
        run(command, limit).await.context("pgbench")?;
        let end = load::mark(&pair.publisher).await?;
        pair.wait_beyond(&end, limit).await
    };
    let raced = raced.await;
    ensure!(local.try_wait()?.is_none(), "the local writers ended by themselves");
    kill_and_reap(&mut local).await;
    raced?;
    let client = pair.subscriber.client().await?;
    if own {
        let end = load::mark(&pair.subscriber).await?;
        pair.wait_back(&end, limit).await.context("what was written on the second node did not come back")?;
        let decided = "SELECT count(*), count(*) FILTER (WHERE kind IN ('update_missing', 'update_deleted')) \
                       FROM antiphon.conflicts";
        let decided = client.query_one(decided, &[]).await?;
        let (conflicts, missing): (i64, i64) = (decided.try_get(0)?, decided.try_get(1)?);
        let differs = u64::from(hot(&pair.publisher).await? != hot(&pair.subscriber).await?);
        let missed = missing.unsigned_abs() + differs;
        return Ok(Measured::Race { updates, missed, conflicts: Some(conflicts.unsigned_abs()) });
    }
    // The mark behind them is one more that arrives.
    let arrived: i64 = client.query_one("SELECT last_value FROM arrived", &[]).await?.try_get(0)?;
    let missed = (updates + 1).saturating_sub(arrived.unsigned_abs());
    Ok(Measured::Race { updates, missed, conflicts: None })
}

fn local_writers(server: &Server) -> anyhow::Result<Child> {
    let text = format!("UPDATE bench SET k = k + 1 WHERE id = {HOT_ROW};\n");
    let script = load::script(server, "local", &text)?;
    let mut command = load::pgbench(server)?;
    command
        .args(["-M", "prepared", "-c", &CLIENTS.to_string(), "-R", RATE, "-T", FOR_LONG_SECONDS, "-f"])
        .arg(script);
    start(command, &server.place.folder.join("pgbench.log"))
}

async fn hot(server: &Server) -> anyhow::Result<String> {
    let row = format!("SELECT b::text FROM bench b WHERE id = {HOT_ROW}");
    Ok(server.client().await?.query_one(&row, &[]).await?.try_get(0)?)
}
