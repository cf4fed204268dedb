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
    /// Its columns whose changes are added up, in the order of the ledger's.
    #[serde(default)]
    pub deltas: Vec<String>,
    /// The table in which they are, in the schema `antiphon`; none if there are no such columns.
    #[serde(default)]
    pub ledger: Option<String>,
    /// It is such a ledger, of the table with this number.
    #[serde(default)]
    pub ledger_of: Option<i32>,
    /// Its columns that can be written: generated ones are not among them.
    pub columns: Vec<Column>,
    /// Its columns that this server computes: what others computed is passed over.
    pub generated: Vec<String>,
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
    /// It is of an array type, or a domain over one.
    pub array: bool,
    /// Two values of it merge, by `antiphon.merge`: neither takes the other's place.
    pub merges: bool,
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
    pub(crate) fn key_is(&self, alias: &str, first: usize) -> String {
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
        let set = |(nth, at): (usize, &usize)| self.set(*at, &format!("${}", nth + 1));
        settable.iter().enumerate().map(set).collect::<Vec<_>>().join(", ")
    }

    /// `column = value`, or, where values merge, both in one.
    fn set(&self, at: usize, value: &str) -> String {
        let column = &self.columns[at];
        let name = Quoted(&column.name);
        if column.merges {
            format!("{name} = antiphon.merge(t.{name}, {value}::{})", column.type_name)
        } else {
            format!("{name} = {value}")
        }
    }

    /// Whether values of any column merge.
    #[must_use]
    pub fn merges(&self) -> bool {
        self.columns.iter().any(|column| column.merges)
    }

    /// Merges values into a row and leaves the rest. Parameters: the columns that merge, the key.
    #[must_use]
    pub fn merge(&self) -> String {
        let merging = self.merging();
        let set = |(nth, at): (usize, &usize)| self.set(*at, &format!("${}", nth + 1));
        let sets = merging.iter().enumerate().map(set).collect::<Vec<_>>().join(", ");
        let key = self.key_is("t", merging.len() + 1);
        format!("UPDATE {} t SET {sets} WHERE {key}", self.table())
    }

    /// The columns whose values merge.
    #[must_use]
    pub fn merging(&self) -> Vec<usize> {
        self.settable().into_iter().filter(|at| self.columns[*at].merges).collect()
    }

    /// Writes a row that is not there. Parameters: all columns, the time up to which the change's writer had seen
    /// everybody, its origin's number here. An error if the row is there, or a tombstone that the writer had not
    /// seen once the row is written: whoever deleted it meanwhile has been waited for by then.
    #[must_use]
    pub fn insert_new(&self) -> String {
        let count = self.columns.len();
        format!(
            "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE VALUES ({}) RETURNING antiphon.alive_{}({}, ${}, ${})",
            self.table(),
            self.names(0..count),
            Self::parameters(1, count),
            self.id,
            self.names(self.key.iter().copied()),
            count + 1,
            count + 2,
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

    /// Deletes all rows that a truncation wins against. Parameters: its time, the origins whose rows it deletes whatever
    /// their time is, those whose rows it deletes that have the same.
    #[must_use]
    pub fn delete_older(&self) -> String {
        let at = "coalesce(pg_catalog.pg_xact_commit_timestamp(t.xmin), '-infinity')";
        let origin = "(pg_catalog.pg_xact_commit_timestamp_origin(t.xmin)).roident";
        format!(
            "DELETE FROM {} t WHERE {at} < $1 OR {origin} = ANY ($2::oid[]) OR ({at} = $1 AND {origin} = ANY ($3::oid[]))",
            self.table()
        )
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

    /// What keeps its tombstones. Parameters of each: the key.
    #[must_use]
    pub fn tombstone(&self) -> Graves {
        let names = self.names(self.key.iter().copied());
        let new = format!(
            "INSERT INTO {} ({names}) VALUES ({}) ON CONFLICT ({names}) DO NOTHING",
            self.tombstones(),
            Self::parameters(1, self.key.len()),
        );
        Graves { new, look: self.look_for_tombstone(), renew: self.bury() }
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

    /// Forgets a tombstone. Parameters: the key.
    #[must_use]
    pub fn unbury(&self) -> String {
        format!("DELETE FROM {} t WHERE {}", self.tombstones(), self.key_is("t", 1))
    }

    fn renew(&self) -> String {
        let key = Quoted(&self.columns[self.key[0]].name).to_string();
        format!("ON CONFLICT ({}) DO UPDATE SET {key} = excluded.{key}", self.names(self.key.iter().copied()))
    }

    /// `unnest(...) AS x(c0, c1, ...)`, of arrays of these columns' values as the parameters from the first on.
    fn unnest(&self, columns: &[usize]) -> String {
        let arrays = columns.iter().enumerate().map(|(nth, at)| {
            let column = &self.columns[*at];
            // An array of arrays would be taken apart to its elements: those go as texts.
            let element = if column.array { "text" } else { &column.type_name };
            format!("${}::{element}[]", nth + 1)
        });
        let names = columns.iter().map(|at| format!("c{at}"));
        let (arrays, names) = (arrays.collect::<Vec<_>>().join(", "), names.collect::<Vec<_>>().join(", "));
        format!("unnest({arrays}) AS x({names})")
    }

    fn unnested(&self, at: usize) -> String {
        let column = &self.columns[at];
        if column.array { format!("x.c{at}::{}", column.type_name) } else { format!("x.c{at}") }
    }

    /// `t.key = x.key AND ...`.
    fn key_is_unnested(&self) -> String {
        let equal = |at: &usize| {
            let column = &self.columns[*at];
            let operator = column.equals.as_deref().unwrap_or("OPERATOR(pg_catalog.=)");
            format!("t.{} {operator} {}", Quoted(&column.name), self.unnested(*at))
        };
        self.key.iter().map(equal).collect::<Vec<_>>().join(" AND ")
    }

    /// Writes many rows that are not there. Parameters: an array for each column.
    #[must_use]
    pub fn insert_many(&self) -> String {
        let all: Vec<usize> = (0..self.columns.len()).collect();
        let values = all.iter().map(|at| self.unnested(*at)).collect::<Vec<_>>().join(", ");
        format!(
            "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {values} FROM {}",
            self.table(),
            self.names(0..self.columns.len()),
            self.unnest(&all),
        )
    }

    /// An error if any of these rows was deleted and the change's writer had not seen that. Parameters: an array for
    /// each column of the key, then as `update_seen`.
    #[must_use]
    pub fn alive_many(&self) -> String {
        let (seen, origin) = (self.key.len() + 1, self.key.len() + 2);
        let unseen = format!("antiphon.unseen(t.xmin, ${seen}, ${origin})");
        let gone = format!(
            "SELECT FROM {} t, {} WHERE {} AND {unseen}",
            self.tombstones(),
            self.unnest(&self.key),
            self.key_is_unnested()
        );
        let truncated = format!("SELECT FROM antiphon.truncations t WHERE t.id = {} AND {unseen}", self.id);
        format!("SELECT 1 / CASE WHEN EXISTS ({gone}) OR EXISTS ({truncated}) THEN 0 ELSE 1 END")
    }

    /// Writes over many rows; an error unless every one is there and had been seen. Parameters: an array for each
    /// settable column and each of the key, then as `update_seen`, then how many rows there are.
    #[must_use]
    pub fn update_many(&self) -> String {
        let settable = self.settable();
        let columns: Vec<usize> = settable.iter().chain(&self.key).copied().collect();
        let sets = if settable.is_empty() {
            self.sets()
        } else {
            let set = |at: &usize| self.set(*at, &self.unnested(*at));
            settable.iter().map(set).collect::<Vec<_>>().join(", ")
        };
        let next = columns.len() + 1;
        format!(
            "WITH c AS (UPDATE {} t SET {sets} FROM {} WHERE {} AND {} RETURNING 1) {}",
            self.table(),
            self.unnest(&columns),
            self.key_is_unnested(),
            seen(next),
            all_rows(next + 2),
        )
    }

    /// Deletes many rows and keeps tombstones; an error unless every one is there and had been seen. Parameters: an
    /// array for each column of the key, then as `delete_seen`, then how many rows there are.
    #[must_use]
    pub fn delete_many(&self) -> String {
        let next = self.key.len() + 1;
        let returned = self.key.iter().map(|at| format!("t.{}", Quoted(&self.columns[*at].name)));
        let returned = returned.collect::<Vec<_>>().join(", ");
        let names = self.names(self.key.iter().copied());
        format!(
            "WITH d AS (DELETE FROM {} t USING {} WHERE {} AND {} RETURNING {returned}), \
             c AS (INSERT INTO {} ({names}) SELECT {names} FROM d {} RETURNING 1) {}",
            self.table(),
            self.unnest(&self.key),
            self.key_is_unnested(),
            seen(next),
            self.tombstones(),
            self.renew(),
            all_rows(next + 2),
        )
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

/// The statements that keep tombstones of one kind.
#[derive(Clone, Debug)]
pub struct Graves {
    /// Keeps one unless one is there.
    pub new: String,
    /// Locks the one that is there, and reads when and where it was written.
    pub look: String,
    /// Gives the one that is there this transaction's time.
    pub renew: String,
}

/// What keeps the record of truncations. Parameter of each: the table's number.
#[must_use]
pub fn truncation() -> Graves {
    let insert = "INSERT INTO antiphon.truncations (id) VALUES ($1) ON CONFLICT (id) DO";
    Graves {
        new: format!("{insert} NOTHING"),
        look: format!("{LOOK_FOR_TRUNCATION} FOR UPDATE"),
        renew: format!("{insert} UPDATE SET id = excluded.id"),
    }
}

/// When the table was last truncated, and where. Parameter: the table's number.
pub const LOOK_FOR_TRUNCATION: &str = "SELECT (extract(epoch FROM pg_catalog.pg_xact_commit_timestamp(t.xmin)) * 1000000 - 946684800000000)::bigint, \
     (pg_catalog.pg_xact_commit_timestamp_origin(t.xmin)).roident FROM antiphon.truncations t WHERE t.id = $1";

/// When (microseconds since 2000) and where (a replication origin's number here) a row of `t` was written.
/// No row of this transaction's own has a time yet, nor has one that is older than what the server remembers.
pub(crate) const WRITTEN: &str = "(extract(epoch FROM pg_catalog.pg_xact_commit_timestamp(t.xmin)) * 1000000 - 946684800000000)::bigint, \
     (pg_catalog.pg_xact_commit_timestamp_origin(t.xmin)).roident";

/// An error unless `c` has a row.
const ONE_ROW: &str = "SELECT 1 / pg_catalog.count(*) FROM c";

/// An error unless `c` has as many rows as this parameter says.
fn all_rows(parameter: usize) -> String {
    format!("SELECT 1 / CASE WHEN pg_catalog.count(*) = ${parameter} THEN 1 ELSE 0 END FROM c")
}

/// The row of `t` was written before a time, or by the change's own node.
fn seen(parameter: usize) -> String {
    format!(
        "(coalesce(pg_catalog.pg_xact_commit_timestamp(t.xmin), '-infinity') <= ${parameter} \
         OR (pg_catalog.pg_xact_commit_timestamp_origin(t.xmin)).roident = ${})",
        parameter + 1
    )
}
