//! The tables that are exchanged, as this node's catalogue has them, and the statements that write them.
//!
//! Statements are built once a table from quoted names; values are parameters, always. Nothing relies on a search
//! path: operators are named with their schema.

use serde::Deserialize;

use crate::name::{Quoted, TableName};

/// Reads every table that takes part, with its columns in order. One JSON document a row.
pub const CATALOGUE: &str = include_str!("sql/catalogue.sql");

/// A table here.
#[derive(Clone, Debug, Deserialize)]
pub struct Shape {
    /// Its number in `antiphon.tables`.
    pub id: i32,
    /// The catalogue's number of it.
    pub oid: u32,
    /// Its schema, unquoted.
    pub schema: String,
    /// Its name, unquoted.
    pub name: String,
    /// How its conflicts are decided, as the table of tables says.
    pub resolver: serde_json::Value,
    /// Its columns that can be written: generated ones are not among them.
    pub columns: Vec<Column>,
    /// Which of `columns` are the primary key, in the key's order.
    pub key: Vec<usize>,
}

/// A column here.
#[derive(Clone, Debug, Deserialize)]
pub struct Column {
    /// Its name, unquoted.
    pub name: String,
    /// Its type, fit for a statement.
    #[serde(rename = "type")]
    pub type_name: String,
    /// It is `GENERATED ALWAYS AS IDENTITY`: an UPDATE cannot set it.
    pub identity_always: bool,
    /// What compares two of its values in the primary key's sense, fit for a statement; none outside the key.
    pub equals: Option<String>,
}

impl Shape {
    /// Its name.
    #[must_use]
    pub fn table(&self) -> TableName {
        TableName::new(&self.schema, &self.name)
    }

    /// The table of its tombstones, fit for a statement.
    #[must_use]
    pub fn tombstones(&self) -> String {
        format!("antiphon.gone_{}", self.id)
    }

    /// Whether a column belongs to the key.
    #[must_use]
    pub fn is_key(&self, column: usize) -> bool {
        self.key.contains(&column)
    }

    /// The same table with only these columns; those of the key must be among them.
    #[must_use]
    pub fn only(&self, keep: impl Fn(&Column) -> bool) -> Self {
        let kept: Vec<usize> = (0..self.columns.len()).filter(|at| keep(&self.columns[*at])).collect();
        let moved = |at: &usize| kept.iter().position(|kept| kept == at).expect("the key's columns are kept");
        Self {
            columns: kept.iter().map(|at| self.columns[*at].clone()).collect(),
            key: self.key.iter().map(moved).collect(),
            ..self.clone()
        }
    }

    /// The columns that an UPDATE sets, in the order of its first parameters.
    #[must_use]
    pub fn settable(&self) -> Vec<usize> {
        (0..self.columns.len()).filter(|at| !self.is_key(*at) && !self.columns[*at].identity_always).collect()
    }

    fn names(&self, columns: impl IntoIterator<Item = usize>) -> String {
        let quoted = columns.into_iter().map(|at| Quoted(&self.columns[at].name).to_string());
        quoted.collect::<Vec<_>>().join(", ")
    }

    /// `key = $first AND ...`, of the table called `alias`.
    fn key_is(&self, alias: &str, first: usize) -> String {
        let equal = |(nth, at): (usize, &usize)| {
            let column = &self.columns[*at];
            let operator = column.equals.as_deref().unwrap_or("OPERATOR(pg_catalog.=)");
            format!("{alias}.{} {operator} ${}", Quoted(&column.name), first + nth)
        };
        self.key.iter().enumerate().map(equal).collect::<Vec<_>>().join(" AND ")
    }

    fn parameters(first: usize, count: usize) -> String {
        (first..first + count).map(|nth| format!("${nth}")).collect::<Vec<_>>().join(", ")
    }

    fn sets(&self) -> String {
        let settable = self.settable();
        if settable.is_empty() {
            // Rewritten as it is, so that it carries the change's time.
            let key = Quoted(&self.columns[self.key[0]].name).to_string();
            return format!("{key} = t.{key}");
        }
        let set = |(nth, at): (usize, &usize)| format!("{} = ${}", Quoted(&self.columns[*at].name), nth + 1);
        settable.iter().enumerate().map(set).collect::<Vec<_>>().join(", ")
    }

    /// Writes a row that is not there. Parameters: all columns. An error if the row, or a tombstone of it, is there
    /// once the row is written: whoever deleted it meanwhile has been waited for by then.
    #[must_use]
    pub fn insert_new(&self) -> String {
        let count = self.columns.len();
        format!(
            "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE VALUES ({}) RETURNING antiphon.alive_{}({})",
            self.table(),
            self.names(0..count),
            Self::parameters(1, count),
            self.id,
            self.names(self.key.iter().copied()),
        )
    }

    /// Writes a row unless one is there. Parameters: all columns.
    #[must_use]
    pub fn insert_if_absent(&self) -> String {
        let count = self.columns.len();
        format!(
            "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE VALUES ({}) ON CONFLICT ({}) DO NOTHING",
            self.table(),
            self.names(0..count),
            Self::parameters(1, count),
            self.names(self.key.iter().copied()),
        )
    }

    /// Writes over a row. Parameters: the settable columns, the key.
    #[must_use]
    pub fn update(&self) -> String {
        let key = self.key_is("t", self.settable().len() + 1);
        format!("UPDATE {} t SET {} WHERE {key}", self.table(), self.sets())
    }

    /// The same if the change's writer had seen the row that is here; else an error. Parameters: the settable
    /// columns, the key, the time up to which it had seen everybody, its origin's number here.
    #[must_use]
    pub fn update_seen(&self) -> String {
        let next = self.settable().len() + self.key.len() + 1;
        format!("WITH c AS ({} AND {} RETURNING 1) {ONE_ROW}", self.update(), seen(next))
    }

    /// Deletes a row. Parameters: the key.
    #[must_use]
    pub fn delete(&self) -> String {
        format!("DELETE FROM {} t WHERE {}", self.table(), self.key_is("t", 1))
    }

    /// Deletes all rows that were written before a time. Parameter: the time.
    #[must_use]
    pub fn delete_older(&self) -> String {
        let older = "coalesce(pg_catalog.pg_xact_commit_timestamp(t.xmin), '-infinity') < $1";
        format!("DELETE FROM {} t WHERE {older}", self.table())
    }

    /// Deletes a row and keeps a tombstone, if the change's writer had seen the row that is here; else an error.
    /// Parameters: the key, the time up to which it had seen everybody, its origin's number here.
    #[must_use]
    pub fn delete_seen(&self) -> String {
        let next = self.key.len() + 1;
        let returned = self.key.iter().map(|at| format!("t.{}", Quoted(&self.columns[*at].name)));
        let returned = returned.collect::<Vec<_>>().join(", ");
        let names = self.names(self.key.iter().copied());
        format!(
            "WITH d AS ({} AND {} RETURNING {returned}), c AS (INSERT INTO {} ({names}) SELECT {names} FROM d {} \
             RETURNING 1) {ONE_ROW}",
            self.delete(),
            seen(next),
            self.tombstones(),
            self.renew(),
        )
    }

    /// Keeps a tombstone, or gives the one that is there this transaction's time. Parameters: the key.
    #[must_use]
    pub fn bury(&self) -> String {
        format!(
            "INSERT INTO {} ({}) VALUES ({}) {}",
            self.tombstones(),
            self.names(self.key.iter().copied()),
            Self::parameters(1, self.key.len()),
            self.renew(),
        )
    }

    fn renew(&self) -> String {
        let key = Quoted(&self.columns[self.key[0]].name).to_string();
        format!("ON CONFLICT ({}) DO UPDATE SET {key} = excluded.{key}", self.names(self.key.iter().copied()))
    }

    /// Locks a row and reads when and where it was written, and all its columns as text. Parameters: the key.
    #[must_use]
    pub fn look(&self) -> String {
        let key = self.key_is("t", 1);
        let columns = self.columns.iter().map(|column| format!("t.{}::text", Quoted(&column.name)));
        let columns = columns.collect::<Vec<_>>().join(", ");
        format!("SELECT {WRITTEN}, {columns} FROM {} t WHERE {key} FOR UPDATE", self.table())
    }

    /// The same of its tombstone, without the row.
    #[must_use]
    pub fn look_for_tombstone(&self) -> String {
        let key = self.key_is("t", 1);
        format!("SELECT {WRITTEN} FROM {} t WHERE {key} FOR UPDATE", self.tombstones())
    }
}

/// When the table was last truncated, and where. Parameter: the table's number.
pub const LOOK_FOR_TRUNCATION: &str = "SELECT (extract(epoch FROM pg_catalog.pg_xact_commit_timestamp(t.xmin)) * 1000000 - 946684800000000)::bigint, \
     (pg_catalog.pg_xact_commit_timestamp_origin(t.xmin)).roident FROM antiphon.truncations t WHERE t.id = $1";

/// When (microseconds since 2000) and where (a replication origin's number here) a row of `t` was written.
/// No row of this transaction's own has a time yet, nor has one that is older than what the server remembers.
const WRITTEN: &str = "(extract(epoch FROM pg_catalog.pg_xact_commit_timestamp(t.xmin)) * 1000000 - 946684800000000)::bigint, \
     (pg_catalog.pg_xact_commit_timestamp_origin(t.xmin)).roident";

/// An error unless `c` has a row.
const ONE_ROW: &str = "SELECT 1 / pg_catalog.count(*) FROM c";

/// The row of `t` was written before a time, or by the change's own node.
fn seen(parameter: usize) -> String {
    format!(
        "(coalesce(pg_catalog.pg_xact_commit_timestamp(t.xmin), '-infinity') <= ${parameter} \
         OR (pg_catalog.pg_xact_commit_timestamp_origin(t.xmin)).roident = ${})",
        parameter + 1
    )
}
