//! Setting a transaction aside: it is kept with all that it was to do, and the log goes on behind it.

use serde_json::{Value as Json, json};

use super::{Applier, ApplyError, PROGRESS};
use crate::pgoutput::{Old, Relation, Tuple, Value};
use crate::session::Param;
use crate::transaction::{Nonsense, Step, Transaction};

impl Applier {
    /// Keeps a transaction in `antiphon.set_aside` instead of applying it.
    pub(super) async fn set_aside(&mut self, transaction: &mut Transaction) -> Result<(), ApplyError> {
        let mut decoder = self.steps.decoder(transaction.streamed);
        let mut changes = Vec::new();
        for message in transaction.body.read().map_err(Nonsense::Disk)? {
            let message = message.map_err(Nonsense::Disk)?;
            let step = self.steps.read(&mut decoder, &transaction.body.undone, message)?;
            changes.extend(step.as_ref().and_then(change));
        }
        let changes = Json::Array(changes).to_string();
        let source = self.identity.source.number().to_string();
        let source = Param::Text(Some(source.as_bytes()));
        let (end, at) =
            (Param::Long(transaction.end.0.cast_signed()), Param::Long(transaction.committed_at.0));
        self.session.ask("BEGIN", &[]).await?;
        let insert =
            "INSERT INTO antiphon.set_aside (node, lsn, committed_at, changes) VALUES ($1, $2, $3, $4)";
        self.session.ask(insert, &[source, end, at, Param::Text(Some(changes.as_bytes()))]).await?;
        self.session
            .ask("UPDATE antiphon.links SET skip = NULL, failed = NULL WHERE node = $1", &[source])
            .await?;
        self.session.ask(PROGRESS, &[end, at, source]).await?;
        self.session.ask("COMMIT", &[]).await?;
        tracing::warn!(end = %transaction.end, "a transaction was set aside");
        Ok(())
    }
}

fn change(step: &Step) -> Option<Json> {
    match step {
        Step::Row(row) => {
            let kind = match (&row.new, row.is_update) {
                (None, _) => "delete",
                (Some(_), true) => "update",
                (Some(_), false) => "insert",
            };
            let old =
                row.old.as_ref().map(|(Old::Key(tuple) | Old::Full(tuple))| tuple_json(&row.relation, tuple));
            let new = row.new.as_ref().map(|tuple| tuple_json(&row.relation, tuple));
            Some(json!({"kind": kind, "table": table(&row.relation), "old": old, "new": new}))
        }
        Step::Truncate(relations) => {
            let tables: Vec<String> = relations.iter().map(|relation| table(relation)).collect();
            Some(json!({"kind": "truncate", "tables": tables}))
        }
        Step::Message { .. } => None,
    }
}

fn table(relation: &Relation) -> String {
    format!("{}.{}", relation.schema, relation.name)
}

/// The values that the log has; what it leaves out is left out.
fn tuple_json(relation: &Relation, tuple: &Tuple) -> Json {
    let pairs = relation.columns.iter().zip(&tuple.0).filter_map(|(column, value)| {
        let value = match value {
            Value::Null => Json::Null,
            Value::Text(text) | Value::Binary(text) => {
                Json::String(String::from_utf8_lossy(text).into_owned())
            }
            Value::Unchanged => return None,
        };
        Some((column.name.clone(), value))
    });
    Json::Object(pairs.collect())
}
