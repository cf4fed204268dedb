//! Making the columns that are added up what the ledger says, once a transaction's changes are in.
//!
//! The fast way sends what corrects a row behind what writes it; it fails if a row would have to be corrected that was
//! not written.
//!
//! A row that the transaction wrote is corrected in it. One that it did not write, because another version stands, must
//! keep that one's time and node: it is corrected by a detour, and looked at again under its lock when the
//! transaction is repeated. Entries and what was corrected for them so commit in either order, and a crash in
//! between is found when the transaction comes again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use antiphon_core::mesh::Version;

use super::careful::{refused_row, texts};
use super::merge::Detour;
use super::target::Counting;
use super::{Applier, ApplyError, Target};
use crate::row::{Op, Text, to_json};
use crate::session::Session;
use crate::shape::Shape;
use crate::wire::WireError;

/// A row whose counts are not what the ledger will say.
#[derive(Clone, Debug)]
pub struct Recount {
    shape: Arc<Shape>,
    key: Vec<Text>,
    /// What stands here.
    pub(super) version: Version,
    found: Vec<Text>,
    totals: Vec<Text>,
}

/// The key of the row that a change counts in; an entry's is the row's, then the node.
fn key_counted(target: &Target, op: &Op) -> Option<Vec<Text>> {
    let shape = &target.mapping.shape;
    let mut key = op.key(shape);
    key.truncate(key.len() - usize::from(shape.ledger_of.is_some() && !key.is_empty()));
    (shape.is_counted() && *op != Op::Truncate).then_some(key)
}

impl Recount {
    /// Others write the row all the time.
    pub(super) fn restless(&self) -> ApplyError {
        let key = to_json(&self.shape, self.shape.key.iter().copied(), &self.key).to_string();
        ApplyError::Restless { table: self.shape.table().to_string(), key }
    }
}

impl Applier {
    /// Corrects what these changes, which were just made, counted.
    pub(super) async fn settle(&mut self, ops: &[(Arc<Target>, Op)]) -> Result<(), ApplyError> {
        let mut settled = HashSet::new();
        let mut recounts = Vec::new();
        for (target, op) in ops {
            let Some((shape, key)) = self.row_counted(target, op) else { continue };
            if settled.insert((shape.id, key.clone())) {
                let settled = self.settle_row(&shape, &key).await;
                recounts.extend(settled.map_err(|error| refused_row(error, &shape, &key, self.at))?);
            }
        }
        if recounts.is_empty() { Ok(()) } else { Err(ApplyError::Detour(Box::new(Detour::Count(recounts)))) }
    }

    /// The table in which counts change with this one: itself, or the one whose ledger it is.
    pub(super) fn counted(&self, shape: &Shape) -> Option<&Arc<Shape>> {
        let table = shape.ledger_of.or_else(|| shape.ledger.as_ref().map(|_| shape.id))?;
        self.tables.values().find(|shape| shape.id == table)
    }

    /// The row that a change counts in, or an entry of its ledger.
    fn row_counted(&self, target: &Target, op: &Op) -> Option<(Arc<Shape>, Vec<Text>)> {
        let counted = self.counted(&target.mapping.shape)?;
        Some((counted.clone(), key_counted(target, op)?))
    }

    /// Puts what corrects the counts behind these changes, which are put already, each of which fails unless it is made.
    pub(super) fn put_counts(&mut self, ops: &[(Arc<Target>, Op)]) -> Result<(), WireError> {
        let mut rows: HashMap<(i32, Vec<Text>), (Counting, bool)> = HashMap::new();
        for (target, op) in ops {
            let (Some(counting), Some(key)) = (target.counting, key_counted(target, op)) else { continue };
            let is_row = target.mapping.shape.ledger_of.is_none();
            let (_, written) = rows.entry((counting.table, key)).or_insert((counting, false));
            *written |= is_row;
        }
        for ((_, key), (counting, written)) in rows {
            let key = texts(&key);
            if !written {
                self.session.put(counting.lock, &key)?;
            }
            self.session.put(counting.correct, &key)?;
            if !written {
                self.session.put(counting.check, &key)?;
            }
        }
        Ok(())
    }

    /// Corrects a row that this transaction wrote; gives what is to be done to one that it did not.
    async fn settle_row(&mut self, shape: &Arc<Shape>, key: &[Text]) -> Result<Option<Recount>, ApplyError> {
        let found = self.session.ask(&shape.look_at_counts(), &texts(key)).await?;
        let Some(row) = found.rows.first() else { return Ok(None) };
        // Only now, under the row's lock: whoever counted before has committed, and whoever counts next waits.
        let totals = self.session.ask(&shape.totals(), &texts(key)).await?;
        let totals = totals.rows.into_iter().next().unwrap_or_default();
        if totals == row[3..] || totals.iter().any(Option::is_none) {
            return Ok(None);
        }
        if row[2].as_deref() == Some(b"true") {
            let values = [&totals[..], key].concat();
            self.session.ask(&shape.set_counts(), &texts(&values)).await?;
            return Ok(None);
        }
        let version = self.version(row[0].as_ref(), row[1].as_ref());
        let (shape, key, found) = (shape.clone(), key.to_vec(), row[3..].to_vec());
        Ok(Some(Recount { shape, key, version, found, totals }))
    }

    /// Corrects a row in the name of who wrote it, if it still is what was looked at; if not, it is looked at again
    /// anyhow.
    pub(super) async fn recount(&self, session: &mut Session, recount: &Recount) -> Result<bool, ApplyError> {
        let (shape, key) = (&recount.shape, &recount.key);
        let row = session.ask(&shape.look_at_counts(), &texts(key)).await?;
        let Some(row) = row.rows.first() else { return Ok(false) };
        if self.version(row[0].as_ref(), row[1].as_ref()) != recount.version || row[3..] != recount.found {
            return Ok(false);
        }
        let values = [&recount.totals[..], key].concat();
        let set = session.ask(&shape.set_counts(), &texts(&values)).await.map_err(ApplyError::from);
        set.map_err(|error| refused_row(error, shape, key, self.at))?;
        Ok(true)
    }
}
