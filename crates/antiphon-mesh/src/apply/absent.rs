//! Deletes of what is not there, and truncations, which delete all that is not there.
//!
//! There is no row to lock, and whoever writes one just now cannot be seen: a client whose commit has its time already,
//! or another link, which writes with the times of others. So such a delete becomes known first, by a tombstone in a
//! transaction of its own that has the delete's time; then all who were writing into the table are waited for, with
//! nothing locked; and then the delete's transaction begins anew and looks again. Whoever began to write later finds
//! the tombstone, and whoever began before has ended: the row is here by now, or it is later than the delete.
//!
//! A tombstone that is known too early takes nothing from anybody but what its delete wins against, so a crash in
//! between repeats it and changes nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use antiphon_core::mesh::truncation::supersedes;
use antiphon_core::mesh::{Local, NodeId, Version};

use super::careful::{ATTEMPTS_MAX, LOOKS_MAX, key_text_of, texts};
use super::{Applier, ApplyError, Target};
use crate::row::Text;
use crate::session::Param;
use crate::shape;

/// How often it is looked whether those who were writing have ended: at first, and later.
const LOOK_AFTER: Duration = Duration::from_millis(1);
const LOOK_AFTER_MAX: Duration = Duration::from_millis(50);
/// How long they may take before the log says who is in the way.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most deletes of a transaction that are made known at a time.
pub(super) const DUE_MAX: usize = 100_000;

/// The deletes of the transaction at hand that find no row.
#[derive(Debug, Default)]
pub(super) struct Absent {
    /// They are not known yet.
    due: Vec<(Arc<Target>, Vec<Text>)>,
    /// They are, with what stood here before.
    known: HashMap<(u32, Vec<Text>), Local>,
}

impl Absent {
    /// The transaction begins anew.
    pub(super) fn begin(&mut self) {
        self.due.clear();
    }

    /// A delete of this key has to be known first.
    pub(super) fn push(&mut self, target: &Arc<Target>, key: Vec<Text>) {
        self.due.push((target.clone(), key));
    }

    /// How many have to be known first.
    pub(super) fn due(&self) -> usize {
        self.due.len()
    }

    /// What stood under a key before its delete was known; none if it is not.
    pub(super) fn before(&self, target: &Target, key: &[Text]) -> Option<Local> {
        self.known.get(&(target.mapping.relation.id, key.to_vec())).copied()
    }

    /// What was found under a key whose delete has to be known.
    pub(super) fn found(&mut self, target: &Target, key: &[Text], local: Local) {
        self.known.insert((target.mapping.relation.id, key.to_vec()), local);
    }

    /// The transaction is through.
    pub(super) fn clear(&mut self) {
        self.due.clear();
        self.known.clear();
    }
}

/// Who is writing into these tables, and what time it is. Parameter: the tables.
const WRITERS: &str = "SELECT coalesce(pg_catalog.array_agg(DISTINCT l.virtualtransaction), '{}')::text, \
     pg_catalog.clock_timestamp()::text FROM pg_catalog.pg_locks l \
     WHERE l.locktype = 'relation' AND l.relation = ANY ($1::oid[]) AND l.mode = 'RowExclusiveLock' AND l.granted \
     AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())";

/// Who of them may still have an earlier time than that. A transaction keeps its lock until everybody sees what it wrote.
/// But a client that has been idle since then, or began another statement, has not begun to commit before, nor has a
/// prepared transaction that nobody was ending then. Parameters: the tables, who they were, the time.
const STILL: &str = "SELECT DISTINCT l.virtualtransaction, coalesce(l.pid, 0)::text FROM pg_catalog.pg_locks l \
     LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid \
     WHERE l.locktype = 'relation' AND l.relation = ANY ($1::oid[]) AND l.mode = 'RowExclusiveLock' AND l.granted \
     AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()) \
     AND l.virtualtransaction = ANY ($2::text[]) \
     AND NOT coalesce(a.application_name NOT LIKE 'antiphon mesh %' \
         AND (a.state LIKE 'idle in transaction%' OR a.query_start > $3::timestamptz), false) \
     AND NOT (l.pid IS NULL AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_activity p \
         WHERE p.pid <> pg_catalog.pg_backend_pid() AND p.datname = pg_catalog.current_database() \
         AND coalesce(p.state, '') NOT LIKE 'idle%' AND NOT coalesce(p.query_start > $3::timestamptz, false) \
         AND coalesce(p.query, '') ~* 'prepared|privilege|^$'))";

impl Applier {
    /// Makes deletes known that find nothing here, and waits until the rest of the node has heard of them. No
    /// transaction is open.
    pub(super) async fn make_known(&mut self, version: Version) -> Result<(), ApplyError> {
        let due = std::mem::take(&mut self.absent.due);
        let mut attempt = 1;
        while let Err(error) = self.bury_all(&due, version).await {
            if error.is_lost() {
                return Err(error);
            }
            self.session.ask("ROLLBACK", &[]).await?;
            if !error.is_transient() || attempt == ATTEMPTS_MAX {
                return Err(error);
            }
            attempt += 1;
        }
        let mut tables: Vec<u32> = due.iter().map(|(target, _)| target.mapping.shape.oid).collect();
        tables.sort_unstable();
        tables.dedup();
        self.wait_for_writers(&tables).await
    }

    async fn bury_all(
        &mut self,
        due: &[(Arc<Target>, Vec<Text>)],
        version: Version,
    ) -> Result<(), ApplyError> {
        self.session.ask("BEGIN", &[]).await?;
        for (target, key) in due {
            self.bury(target, key, version).await?;
        }
        // It stands for no place in the log, so how far the origin is stays as it is.
        let stamp = "SELECT pg_catalog.pg_replication_origin_xact_setup('0/1', $1)";
        self.session.ask(stamp, &[Param::Long(version.at.0)]).await?;
        self.session.ask("COMMIT", &[]).await?;
        Ok(())
    }

    /// Keeps a tombstone of the transaction that is open, or, without a key, its truncation, unless a later one stands.
    pub(super) async fn bury(
        &mut self,
        target: &Target,
        key: &[Text],
        version: Version,
    ) -> Result<(), ApplyError> {
        let shape = &target.mapping.shape;
        let table = shape.id.to_string();
        let (statements, params) = if key.is_empty() {
            (shape::truncation(), vec![Param::Text(Some(table.as_bytes()))])
        } else {
            (shape.tombstone(), texts(key))
        };
        for _ in 0..LOOKS_MAX {
            if self.session.ask(&statements.new, &params).await?.affected == 1 {
                return Ok(());
            }
            let stands = self.session.ask(&statements.look, &params).await?;
            let Some(stands) = stands.rows.first() else { continue };
            if supersedes(version, Some(self.version(stands[0].as_ref(), stands[1].as_ref()))) {
                self.session.ask(&statements.renew, &params).await?;
            }
            return Ok(());
        }
        Err(ApplyError::Restless { table: shape.table().to_string(), key: key_text_of(target, key) })
    }

    /// Deletes what a truncation wins against. It has to be known first.
    pub(super) async fn truncate(
        &mut self,
        target: &Arc<Target>,
        version: Version,
    ) -> Result<(), ApplyError> {
        let shape = &target.mapping.shape;
        if self.absent.before(target, &[]).is_none() {
            self.absent.found(target, &[], Local::Absent);
            self.absent.push(target, Vec::new());
            return self.detour_if_due(0);
        }
        // It is locked, or renewed where somebody's earlier one took its place meanwhile.
        self.bury(target, &[], version).await?;
        let listed = |pick: &dyn Fn(NodeId) -> bool| {
            let origins = self.identity.nodes.iter().filter(|(_, node)| pick(**node));
            let origins: Vec<String> = origins.map(|(origin, _)| origin.to_string()).collect();
            format!("{{{}}}", origins.join(","))
        };
        // Whose rows it deletes whatever their time is, and whose at the same time.
        let own = listed(&|node| node == version.node);
        let lesser = listed(&|node| node < version.node);
        let [own, lesser] = [own, lesser].map(String::into_bytes);
        let params = [Param::Long(version.at.0), Param::Text(Some(&own)), Param::Text(Some(&lesser))];
        self.session.ask(&shape.delete_older(), &params).await?;
        Ok(())
    }

    /// Waits until all who are writing into these tables, and may have an earlier time than now, have ended.
    async fn wait_for_writers(&mut self, tables: &[u32]) -> Result<(), ApplyError> {
        let listed = tables.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let tables = format!("{{{listed}}}");
        let tables = Param::Text(Some(tables.as_bytes()));
        let answer = self.session.ask(WRITERS, &[tables]).await?;
        let Some([Some(writers), Some(now)]) = answer.rows.first().map(Vec::as_slice) else { return Ok(()) };
        let (begun, mut told, mut pause) = (Instant::now(), false, LOOK_AFTER);
        loop {
            let params = [tables, Param::Text(Some(writers)), Param::Text(Some(now))];
            let still = self.session.ask(STILL, &params).await?;
            let Some(one) = still.rows.first() else { return Ok(()) };
            if !told && begun.elapsed() > PATIENCE {
                let pid = one[1].as_ref().map(|pid| String::from_utf8_lossy(pid).into_owned());
                tracing::warn!(
                    ?pid,
                    "a delete of a row that is not here waits for whoever may be inserting it: end that transaction"
                );
                told = true;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK_AFTER_MAX);
        }
    }
}
