//! Draining a backlog: how long, and at what cost of CPU time on both servers and beside them.
//!
//! The backlog is there before the clock runs, and both servers have written everything to disk. The time is from
//! the order to apply until the second server's own book says that it is beyond the backlog's end. A drain whose
//! outcome is not the same table on both servers counts as not measured.

use std::time::Duration;

use anyhow::ensure;
use tokio::time::Instant;

use super::Measured;
use super::cell::Cell;
use super::load::{self, Extent};
use super::pair::Pair;

/// A drain may take this long, and a millisecond more for each row or transaction.
const DRAIN_LIMIT: Duration = Duration::from_secs(120);

/// Builds a cell's backlog and lets the pair drain it.
pub(super) async fn drain(pair: &mut Pair, cell: Cell, extent: Extent) -> anyhow::Result<Measured> {
    let limit = DRAIN_LIMIT + Duration::from_millis(extent.rows.max(extent.transactions));
    if cell == Cell::Update {
        load::prepare(&pair.publisher, extent).await?;
        let prepared = load::mark(&pair.publisher).await?;
        pair.wait_beyond(&prepared, limit).await?;
    }
    pair.hold().await?;
    let amount = load::build(&pair.publisher, cell, extent).await?;
    let end = load::mark(&pair.publisher).await?;
    pair.publisher.run(&["CHECKPOINT"]).await?;
    pair.subscriber.run(&["CHECKPOINT"]).await?;

    let before = pair.costs();
    let begun = Instant::now();
    pair.release().await?;
    pair.wait_beyond(&end, limit).await?;
    let seconds = begun.elapsed().as_secs_f64();
    let after = pair.costs();
    let rss = pair.peak_rss();

    let (written, applied) = (load::content(&pair.publisher).await?, load::content(&pair.subscriber).await?);
    ensure!(written == applied, "the tables differ after {seconds:.2} s: {written} here, {applied} there");
    Ok(Measured::Drain {
        amount,
        seconds,
        per_second: amount as f64 / seconds,
        publisher_cpu_s: after.publisher.cpu_since(&before.publisher).as_secs_f64(),
        subscriber_cpu_s: after.subscriber.cpu_since(&before.subscriber).as_secs_f64(),
        agents_cpu_s: pair.has_agents().then(|| after.agents.cpu_since(&before.agents).as_secs_f64()),
        agent_rss_mb: rss.map(|bytes| bytes as f64 / 1e6),
    })
}
