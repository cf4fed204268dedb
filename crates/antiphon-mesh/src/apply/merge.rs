//! Merging what a change brings into a row that it loses against.
//!
//! The row stays as late as it was: it is written in a transaction of its own that has its time and its node, before
//! the change's transaction goes on. Merging is idempotent, so a crash in between repeats it and changes nothing.

use std::sync::Arc;
use std::time::Duration;

use antiphon_core::mesh::{CommitTime, Version};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::count::Recount;
use super::{Applier, ApplyError, Target};
use crate::dsn::Dsn;
use crate::members::Names;
use crate::row::Op;
use crate::session::{Param, SETTINGS, Session};

/// How often an origin is asked for that another link of this node has for a moment.
const ATTEMPTS_MAX: u32 = 1000;
/// How often a transaction corrects what it counts in rows that others write meanwhile.
const ROUNDS_MAX: u32 = 100;
const AGAIN_AFTER: Duration = Duration::from_millis(2);

/// What writes in other nodes' names.
#[derive(Debug)]
pub struct Merger {
    local: Dsn,
    names: Names,
    session: Option<Session>,
    /// Of all links of this node, one corrects counts at a time: two could undo each other's work without end.
    turn: Arc<Mutex<()>>,
}

/// Something that has to be done first.
#[derive(Debug)]
pub enum Detour {
    /// A merge of what loses into what stands.
    Merge(Merge),
    /// These rows get what was counted.
    Count(Vec<Recount>),
    /// Deletes of what is not here have to be known.
    Bury,
}

/// A merge that has to be done first.
#[derive(Debug)]
pub struct Merge {
    pub(super) target: Arc<Target>,
    pub(super) op: Op,
    /// What stands here.
    pub(super) version: Version,
}

/// A link's turn to correct counts.
#[derive(Debug)]
pub(super) struct Turn {
    _guard: OwnedMutexGuard<()>,
    rounds: u32,
}

impl Turn {
    fn round(&mut self) -> u32 {
        self.rounds += 1;
        self.rounds
    }
}

/// What is written in somebody else's name.
enum Work<'a> {
    Merge(&'a Merge),
    Count(&'a Recount),
}

impl Merger {
    /// For this database. All links of a node have the same `turn`.
    #[must_use]
    pub fn new(local: Dsn, names: Names, turn: Arc<Mutex<()>>) -> Self {
        Self { local, names, session: None, turn }
    }
}

impl Applier {
    /// Makes a detour, after which the transaction, which must not be open, begins anew.
    pub(super) async fn make(&mut self, detour: Detour, transaction: Version) -> Result<(), ApplyError> {
        match detour {
            Detour::Bury => self.make_known(transaction).await?,
            Detour::Merge(merge) => {
                self.write_as(merge.version, Work::Merge(&merge)).await?;
                self.merged.insert((merge.target.mapping.relation.id, merge.op));
            }
            Detour::Count(recounts) => {
                if self.turn.is_none() {
                    let guard = self.merger.turn.clone().lock_owned().await;
                    self.turn = Some(Turn { _guard: guard, rounds: 0 });
                }
                let rounds = self.turn.as_mut().map_or(0, Turn::round);
                for recount in &recounts {
                    if rounds > ROUNDS_MAX {
                        return Err(recount.restless());
                    }
                    self.write_as(recount.version, Work::Count(recount)).await?;
                }
            }
        }
        Ok(())
    }

    /// Writes with the time and the node of what stands.
    async fn write_as(&mut self, version: Version, work: Work<'_>) -> Result<(), ApplyError> {
        let mut session = match self.merger.session.take() {
            Some(session) => session,
            None => Session::with(&self.merger.local, "antiphon mesh merge", &SETTINGS).await?,
        };
        let origin = self.merger.names.repair_origin(version.node);
        let mut attempt = 1;
        while let Err(error) = session.write_as(&origin).await {
            // Another link of this node merges in the same name.
            if error.code() != Some("55006") || attempt == ATTEMPTS_MAX {
                return Err(error.into());
            }
            attempt += 1;
            tokio::time::sleep(AGAIN_AFTER).await;
        }
        session.ask("BEGIN", &[]).await?;
        let written = match work {
            Work::Merge(merge) => self.merge_in(&mut session, merge).await?,
            Work::Count(recount) => self.recount(&mut session, recount).await?,
        };
        if written {
            // The origin stands for no stream, so its position means nothing. A time that nobody remembers is before
            // all others, and zero is none.
            let stamp = "SELECT pg_catalog.pg_replication_origin_xact_setup('0/1', $1)";
            session.ask(stamp, &[Param::Long(version.at.max(CommitTime(1)).0)]).await?;
        }
        session.ask(if written { "COMMIT" } else { "ROLLBACK" }, &[]).await?;
        session.ask("SELECT pg_catalog.pg_replication_origin_session_reset()", &[]).await?;
        self.merger.session = Some(session);
        Ok(())
    }

    /// Merges, if the row is still what was looked at; if not, it is looked at again anyhow.
    async fn merge_in(&self, session: &mut Session, merge: &Merge) -> Result<bool, ApplyError> {
        let shape = &merge.target.mapping.shape;
        let (Op::Insert { row } | Op::Update { row, .. }) = &merge.op else { return Ok(false) };
        let key = merge.op.key(shape);
        let key: Vec<_> = key.iter().map(|value| Param::Text(value.as_deref())).collect();
        let found = session.ask(&shape.look(), &key).await?;
        let Some(found) = found.rows.first() else { return Ok(false) };
        if self.version(found[0].as_ref(), found[1].as_ref()) != merge.version {
            return Ok(false);
        }
        let values = shape.merging().into_iter().map(|at| Param::Text(row[at].as_deref()));
        let values: Vec<_> = values.chain(key.iter().copied()).collect();
        session.ask(&shape.merge(), &values).await?;
        Ok(true)
    }
}
