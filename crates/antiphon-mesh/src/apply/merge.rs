//! Merging what a change brings into a row that it loses against.
//!
//! The row stays as late as it was: it is written in a transaction of its own that has its time and its node, before
//! the change's transaction goes on. Merging is idempotent, so a crash in between repeats it and changes nothing.

use std::time::Duration;

use antiphon_core::mesh::Version;

use super::{Applier, ApplyError, Target};
use crate::dsn::Dsn;
use crate::members::Names;
use crate::row::Op;
use crate::session::{Param, SETTINGS, Session};

/// How often an origin is asked for that another link of this node has for a moment.
const ATTEMPTS_MAX: u32 = 1000;
const AGAIN_AFTER: Duration = Duration::from_millis(2);

/// What writes in other nodes' names.
#[derive(Debug)]
pub struct Merger {
    local: Dsn,
    names: Names,
    session: Option<Session>,
}

/// What has to be done first.
#[derive(Debug)]
pub enum Detour {
    /// A merge.
    Merge(Merge),
    /// Deletes of what is not here have to be known.
    Bury,
}

/// A merge that has to be done first.
#[derive(Debug)]
pub struct Merge {
    pub(super) target: std::sync::Arc<Target>,
    pub(super) op: Op,
    /// What stands here.
    pub(super) version: Version,
}

impl Merger {
    /// For this database.
    #[must_use]
    pub fn new(local: Dsn, names: Names) -> Self {
        Self { local, names, session: None }
    }
}

impl Applier {
    /// Merges in the name of the row's writer.
    pub(super) async fn merge(&mut self, merge: &Merge) -> Result<(), ApplyError> {
        let mut session = match self.merger.session.take() {
            Some(session) => session,
            None => Session::with(&self.merger.local, "antiphon mesh merge", &SETTINGS).await?,
        };
        let origin = self.merger.names.repair_origin(merge.version.node);
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
        let written = self.merge_in(&mut session, merge).await?;
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
        // The origin stands for no stream, so its position means nothing.
        let stamp = "SELECT pg_catalog.pg_replication_origin_xact_setup('0/1', $1)";
        session.ask(stamp, &[Param::Long(merge.version.at.0)]).await?;
        Ok(true)
    }
}
