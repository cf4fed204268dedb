//! A table of the source, the table here, and the statements that bring one to the other.

use std::sync::Arc;

use antiphon_core::mesh::Rules;

use super::{Applier, ApplyError};
use crate::name::TableName;
use crate::pgoutput::Relation;
use crate::row::Mapping;
use crate::session::Statement;

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
    pub(super) rules: Rules,
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
        let rules = Rules::from_json(&shape.resolver)
            .map_err(|error| ApplyError::NoRules { table: shape.table().to_string(), error })?;
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
            rules,
            mapping,
        });
        self.targets.insert(relation.id, target.clone());
        Ok(target)
    }
}
