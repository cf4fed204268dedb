//! A table of the source, the table here, and the statements that bring one to the other.

use std::sync::Arc;

use antiphon_core::mesh::Resolver;

use super::{Applier, ApplyError};
use crate::name::TableName;
use crate::pgoutput::Relation;
use crate::row::Mapping;
use crate::session::Statement;
use crate::shape::Shape;

/// Where changes of a table go.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) mapping: Mapping,
    /// The order in which an UPDATE takes the values of a row.
    pub(super) update_order: Vec<usize>,
    pub(super) one: Statements,
    pub(super) many: Statements,
    /// Looks whether many rows that were inserted had been deleted.
    pub(super) alive_many: Statement,
    /// What makes counts right, if the table's or those of the table whose ledger it is.
    pub(super) counting: Option<Counting>,
    pub(super) resolver: Resolver,
}

/// The statements that make the counts of a row what the ledger says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counting {
    /// The number of the table with the rows.
    pub(super) table: i32,
    pub(super) lock: Statement,
    pub(super) correct: Statement,
    pub(super) check: Statement,
}

/// The statements of the fast way, for one row or for many.
#[derive(Clone, Copy, Debug)]
pub(super) struct Statements {
    pub(super) insert: Statement,
    pub(super) update: Statement,
    pub(super) delete: Statement,
}

impl Applier {
    /// Where changes of this table go. What is in flight is waited for if it is new.
    pub(super) async fn target(&mut self, relation: &Arc<Relation>) -> Result<Arc<Target>, ApplyError> {
        if let Some(known) = self.targets.get(&relation.id)
            && Arc::ptr_eq(&known.mapping.relation, relation)
        {
            return Ok(known.clone());
        }
        let name = TableName::new(&relation.schema, &relation.name);
        let shape = self.tables.get(&name).ok_or(ApplyError::Stranger(name))?;
        let mapping = Mapping::new(relation.clone(), shape);
        let mapping = mapping.map_err(|misfit| ApplyError::Misfit { end: self.at, misfit })?;
        let shape = &mapping.shape;
        let counted = self.counted(shape).cloned();
        let session = &mut self.session;
        let counting = match counted {
            Some(rows) => Some(Counting {
                table: rows.id,
                lock: session.prepare(&rows.look_at_counts()).await?,
                correct: session.prepare(&rows.correct_own_counts()).await?,
                check: session.prepare(&rows.check_counts()).await?,
            }),
            None => None,
        };
        let target = Arc::new(Target {
            update_order: shape.settable().into_iter().chain(shape.key.iter().copied()).collect(),
            one: Statements {
                insert: session.prepare(&shape.insert_new()).await?,
                update: session.prepare(&shape.update_seen()).await?,
                delete: session.prepare(&shape.delete_seen()).await?,
            },
            many: Statements {
                insert: session.prepare(&shape.insert_many()).await?,
                update: session.prepare(&shape.update_many()).await?,
                delete: session.prepare(&shape.delete_many()).await?,
            },
            alive_many: session.prepare(&shape.alive_many()).await?,
            counting,
            resolver: resolver_of(shape),
            mapping,
        });
        self.targets.insert(relation.id, target.clone());
        Ok(target)
    }
}

/// The resolver that a table's entry asks for.
fn resolver_of(shape: &Shape) -> Resolver {
    match shape.resolver.as_str() {
        Some("first_update_wins") => Resolver::FirstUpdateWins,
        Some("keep_local") => Resolver::KeepLocal,
        Some("apply_remote") => Resolver::ApplyRemote,
        Some("error") => Resolver::Error,
        _ => Resolver::LastUpdateWins,
    }
}
