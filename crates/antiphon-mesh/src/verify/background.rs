//! Comparing all the time, a little of each table at a time, at a bounded cost.
//!
//! Every turn compares one range of one table, the tables in turn, each from where it was left. A row that was found
//! to differ is looked at again with every turn of its table, so that the count falls when it is repaired.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::compare::Comparison;
use super::range::Key;
use super::{Options, Site, VerifyError};
use crate::name::TableName;
use crate::standing::Standing;

/// How long between two turns, at least: what a mesh of small tables costs.
const TURN_EVERY: Duration = Duration::from_secs(1);
/// How often it connects anew and reads which tables there are.
const LOOK_AROUND_EVERY: Duration = Duration::from_secs(300);
/// How long after a failure it connects again.
const RETRY_AFTER: Duration = Duration::from_secs(30);
/// Most known differences of a table that are looked at again in a turn.
const AGAIN_MAX: usize = 100;

/// Comparing, step by step. What is kept between the steps is small and survives a loss of all connections.
#[derive(Debug)]
pub struct Background {
    sites: Vec<Site>,
    options: Options,
    comparison: Option<(Comparison, Instant)>,
    tables: BTreeMap<TableName, Cursor>,
    last: Option<TableName>,
}

/// How far a table is.
#[derive(Debug, Default)]
struct Cursor {
    /// Compared up to here; none: from the beginning.
    after: Option<Key>,
    /// How often it was compared whole.
    passes: u64,
    /// Keys of rows that differ.
    known: BTreeSet<Key>,
    /// Of those, up to which they were looked at again.
    again: Option<Key>,
}

impl Background {
    /// Begins with the first table's beginning.
    #[must_use]
    pub fn new(sites: Vec<Site>, options: Options) -> Self {
        Self { sites, options, comparison: None, tables: BTreeMap::new(), last: None }
    }

    /// Rows that are known to differ.
    #[must_use]
    pub fn diverged_rows(&self) -> u64 {
        self.tables.values().map(|cursor| cursor.known.len() as u64).sum()
    }

    /// How often every table has been compared whole.
    #[must_use]
    pub fn passes(&self) -> u64 {
        self.tables.values().map(|cursor| cursor.passes).min().unwrap_or(0)
    }

    /// Compares the next part of the next table.
    ///
    /// # Errors
    /// If a node cannot be reached or read; the next turn connects anew and goes on from where it was.
    pub async fn turn(&mut self) -> Result<(), VerifyError> {
        let (mut comparison, since) = match self.comparison.take() {
            Some(open) if open.1.elapsed() < LOOK_AROUND_EVERY => open,
            _ => (self.look_around().await?, Instant::now()),
        };
        if let Some(name) = self.next_table()
            && let Ok(table) = comparison.table(&name)
        {
            let cursor = self.tables.entry(name).or_default();
            let (part, next) = comparison.part(&table, cursor.after.clone()).await?;
            let again = cursor.again_now();
            let suspects = part.suspects.into_iter().chain(again.iter().cloned()).collect();
            let mut settled = part.settled;
            settled.add(comparison.settle(&table, suspects).await?);
            let unsettled: BTreeSet<_> = settled.unsettled.iter().map(|row| &row.key).collect();
            // What could not be told now is what it was.
            cursor.known.retain(|key| !again.contains(key) || unsettled.contains(key));
            let room = self.options.differences_max.saturating_sub(cursor.known.len());
            cursor.known.extend(settled.diverged.into_iter().map(|row| row.key).take(room));
            cursor.passes += u64::from(next.is_none());
            cursor.after = next;
        }
        self.comparison = Some((comparison, since));
        Ok(())
    }

    /// Connects, and reads which tables there are.
    async fn look_around(&mut self) -> Result<Comparison, VerifyError> {
        let comparison = Comparison::open(&self.sites, &self.options).await?;
        let wanted =
            |table: &TableName| self.options.tables.is_empty() || self.options.tables.contains(table);
        let there: BTreeSet<_> = comparison.tables().into_iter().filter(wanted).collect();
        self.tables.retain(|table, _| there.contains(table));
        for table in there {
            self.tables.entry(table).or_default();
        }
        Ok(comparison)
    }

    fn next_table(&mut self) -> Option<TableName> {
        let behind = self.last.take().map_or(Bound::Unbounded, Bound::Excluded);
        let mut following = self.tables.range((behind, Bound::Unbounded)).map(|(table, _)| table);
        self.last = following.next().or_else(|| self.tables.keys().next()).cloned();
        self.last.clone()
    }
}

impl Cursor {
    /// Which of the known differences to look at again now: some more than last time.
    fn again_now(&mut self) -> BTreeSet<Key> {
        let behind = self.again.take().map_or(Bound::Unbounded, Bound::Excluded);
        let some: BTreeSet<Key> =
            self.known.range((behind, Bound::Unbounded)).take(AGAIN_MAX).cloned().collect();
        if some.len() == AGAIN_MAX {
            self.again = some.last().cloned();
        }
        some
    }
}

/// Compares until the task is dropped, and shows in `standing` how many rows are known to differ.
pub async fn run(sites: Vec<Site>, standing: Arc<Standing>) {
    let mut background = Background::new(sites, Options::default());
    let (mut before, mut failed) = (0, String::new());
    loop {
        // Not at once: whoever has just begun has changes to catch up with.
        tokio::time::sleep(if failed.is_empty() { TURN_EVERY } else { RETRY_AFTER }).await;
        let error = background.turn().await.err().map(|error| error.to_string()).unwrap_or_default();
        if error != failed && !error.is_empty() {
            tracing::info!(error, "rows cannot be compared just now");
        }
        failed = error;
        let rows = background.diverged_rows();
        standing.set_diverged_rows(Some(rows));
        if rows > before {
            tracing::warn!(
                rows,
                "rows differ between nodes: run `antiphon mesh verify`, then `antiphon mesh repair`"
            );
        }
        before = rows;
    }
}
