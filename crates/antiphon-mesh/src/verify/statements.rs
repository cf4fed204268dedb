//! The statements that read one table on one node.
//!
//! A row is hashed as text: the output of its columns' types under fixed settings, in the order of the columns'
//! names, put together by `ROW(...)::text`, which quotes values so that neither their bounds nor nulls are ambiguous.
//! `hashtextextended` with two seeds gives 128 bits of it. That hash of a text is the same on all releases and on all
//! machines with the same order of bytes; the hash of a *value* would not be, nor would it tell 1.0 from 1.00. Sums
//! of hashes do not depend on the order of rows.

use crate::name::Quoted;
use crate::session::Param;
use crate::shape::{Shape, WRITTEN};

use super::range::{Key, Range};

/// Both hashes of a text.
fn hashes(text: &str) -> [String; 2] {
    [1, 2].map(|seed| format!("pg_catalog.hashtextextended({text}, {seed})"))
}

/// A table on one node, with the columns that are compared.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    /// The table there.
    pub(super) shape: Shape,
    /// Its columns by name.
    columns: Vec<String>,
}

impl Reading {
    pub(super) fn new(shape: Shape) -> Self {
        let mut columns: Vec<String> = shape.columns.iter().map(|column| column.name.clone()).collect();
        columns.sort_unstable();
        Self { shape, columns }
    }

    /// The names of the key's columns.
    pub(super) fn key(&self) -> Vec<String> {
        self.shape.key.iter().map(|at| self.shape.columns[*at].name.clone()).collect()
    }

    /// The names of all columns, in order.
    pub(super) fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The columns of the key as `k1`, `k2`, ...
    fn key_as(&self) -> String {
        let name = |(nth, at): (usize, &usize)| {
            format!("t.{} AS k{}", Quoted(&self.shape.columns[*at].name), nth + 1)
        };
        self.shape.key.iter().enumerate().map(name).collect::<Vec<_>>().join(", ")
    }

    fn key_names(&self) -> Vec<String> {
        self.shape.key.iter().map(|at| format!("t.{}", Quoted(&self.shape.columns[*at].name))).collect()
    }

    fn keys_out(&self) -> String {
        (1..=self.shape.key.len()).map(|nth| format!("s.k{nth}")).collect::<Vec<_>>().join(", ")
    }

    /// The row as text.
    fn row(&self) -> String {
        let columns = self.columns.iter().map(|name| format!("t.{}", Quoted(name)));
        format!("ROW({})::text", columns.collect::<Vec<_>>().join(", "))
    }

    /// An operator of the key's order, made from the one for equality: `>` beside `=`.
    fn operator(&self, column: usize, sign: &str) -> String {
        let equals = self.shape.columns[column].equals.as_deref().unwrap_or("OPERATOR(pg_catalog.=)");
        format!("{}{sign})", equals.strip_suffix("=)").unwrap_or("OPERATOR(pg_catalog."))
    }

    /// The key is above (`>`) or not above (`<=`) the parameters from `first` on.
    fn compared(&self, sign: &str, first: usize) -> String {
        let names = self.key_names();
        let operator = |at: usize| self.operator(self.shape.key[at], sign);
        if (1..names.len()).all(|at| operator(at) == operator(0)) {
            let bound = (first..first + names.len()).map(|nth| format!("${nth}")).collect::<Vec<_>>();
            return format!("({}) {} ({})", names.join(", "), operator(0), bound.join(", "));
        }
        // Types whose operators are in different schemas: one by one. The index serves the first column only.
        let strict = sign.trim_end_matches('=');
        let mut text = "false".to_owned();
        for at in (0..names.len()).rev() {
            let column = self.shape.key[at];
            let (name, parameter) = (&names[at], first + at);
            let this = if at + 1 == names.len() { sign } else { strict };
            let (equal, beyond) = (self.operator(column, "="), self.operator(column, this));
            text = format!("({name} {beyond} ${parameter} OR ({name} {equal} ${parameter} AND {text}))");
        }
        let wide = self.operator(self.shape.key[0], &format!("{strict}="));
        format!("{} {wide} ${first} AND {text}", names[0])
    }

    /// `FROM` and `WHERE` for a range, and the number of the parameter behind its bounds.
    fn within(&self, range: &Range) -> (String, usize) {
        let width = self.shape.key.len();
        let mut first = 1;
        let mut parts = Vec::new();
        for (bounds, sign) in [(&range.after, ">"), (&range.to, "<=")] {
            for _ in bounds {
                parts.push(self.compared(sign, first));
                first += width;
            }
        }
        let filter = if parts.is_empty() { "true".to_owned() } else { parts.join(" AND ") };
        (format!("FROM ONLY {} t WHERE {filter}", self.shape.table()), first)
    }

    /// Counts and hashes a range. Parameters: its bounds, the most rows.
    pub(super) fn digest(&self, range: &Range) -> String {
        let (within, limit) = self.within(range);
        format!(
            "SELECT pg_catalog.count(*), {} FROM (SELECT {} AS x {within} LIMIT ${limit}) s",
            hashes("s.x").map(|hash| format!("pg_catalog.sum({hash})")).join(", "),
            self.row()
        )
    }

    /// The key so many rows into a range. Parameters: its bounds, how many rows are skipped.
    pub(super) fn bound(&self, range: &Range) -> String {
        let (within, offset) = self.within(range);
        let order = self.key_names().join(", ");
        format!("SELECT {} {within} ORDER BY {order} OFFSET ${offset} LIMIT 1", self.key_as())
    }

    /// Every so many-eth key of a range. Parameters: its bounds, the most rows, how many.
    pub(super) fn cuts(&self, range: &Range) -> String {
        let (within, limit) = self.within(range);
        let (keys, order) = (self.key_as(), self.key_names().join(", "));
        format!(
            "SELECT {} FROM (SELECT {keys}, pg_catalog.row_number() OVER (ORDER BY {order}) AS nth {within} \
             ORDER BY {order} LIMIT ${limit}) s WHERE s.nth % ${} = 0 ORDER BY s.nth",
            self.keys_out(),
            limit + 1
        )
    }

    /// The rows of a range: hashes and keys. Parameters: its bounds, the most rows.
    pub(super) fn rows(&self, range: &Range) -> String {
        let (within, limit) = self.within(range);
        format!(
            "SELECT {}, {} FROM (SELECT {}, {} AS x {within} LIMIT ${limit}) s",
            hashes("s.x").join(", "),
            self.keys_out(),
            self.key_as(),
            self.row()
        )
    }

    /// One row, however little is there: when and where the row of a key was written and its hashes, then when and where
    /// its tombstone was, then its table's truncation. Parameters: the key.
    pub(super) fn look(&self) -> String {
        let shape = &self.shape;
        let (table, key) = (shape.table(), shape.key_is("t", 1));
        let id = shape.id;
        let [first, second] = hashes(&self.row());
        let columns = ["r", "g", "c"].map(|from| format!("{from}.at, {from}.origin"));
        let written = WRITTEN.replacen(", ", " AS at, ", 1) + " AS origin";
        format!(
            "SELECT {}, r.h1, r.h2, {}, {} FROM (SELECT 1) one \
             LEFT JOIN (SELECT {written}, {first} AS h1, {second} AS h2 FROM ONLY {table} t WHERE {key}) r ON true \
             LEFT JOIN (SELECT {written} FROM {gone} t WHERE {key}) g ON true \
             LEFT JOIN (SELECT {written} FROM antiphon.truncations t WHERE t.id = {id}) c ON true",
            columns[0],
            columns[1],
            columns[2],
            gone = shape.tombstones(),
        )
    }

    /// A row as a repair needs it: when and where it was written, its hashes, these columns. Parameters: the key.
    pub(super) fn whole<'a>(&self, columns: impl Iterator<Item = &'a str>, lock: bool) -> String {
        let columns = columns.map(|name| format!("t.{}", Quoted(name))).collect::<Vec<_>>().join(", ");
        let (hashes, key) = (hashes(&self.row()).join(", "), self.shape.key_is("t", 1));
        let lock = if lock { " FOR UPDATE" } else { "" };
        format!("SELECT {WRITTEN}, {hashes}, {columns} FROM ONLY {} t WHERE {key}{lock}", self.shape.table())
    }
}

/// A range's bounds as parameters.
pub(super) fn bounds(range: &Range) -> Vec<Param<'_>> {
    range.after.iter().chain(&range.to).flat_map(texts).collect()
}

/// A key as parameters.
pub(super) fn texts(key: &Key) -> Vec<Param<'_>> {
    key.iter().map(|value| Param::Text(Some(value.as_bytes()))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reading(equals: [&str; 2]) -> Reading {
        let column = |name: &str, equals: Option<&str>| {
            json!({
                "name": name, "type": "text", "array": false, "merges": false, "identity_always": false,
                "equals": equals,
            })
        };
        let shape = json!({
            "id": 7, "oid": 1, "schema": "s", "name": "t\"x", "resolver": "last_update_wins",
            "columns": [column("z", Some(equals[0])), column("a", None), column("b", Some(equals[1]))],
            "generated": [], "key": [0, 2],
        });
        Reading::new(serde_json::from_value(shape).expect("a shape"))
    }

    #[test]
    fn a_key_of_several_columns_is_compared_as_one_row() {
        let reading = reading(["OPERATOR(pg_catalog.=)"; 2]);
        let bound = |a: &str, b: &str| vec![vec![a.to_owned(), b.to_owned()]];
        let all = Range { after: bound("1", "2"), to: bound("3", "4") };
        assert_eq!(
            reading.digest(&all),
            "SELECT pg_catalog.count(*), pg_catalog.sum(pg_catalog.hashtextextended(s.x, 1)), \
             pg_catalog.sum(pg_catalog.hashtextextended(s.x, 2)) FROM \
             (SELECT ROW(t.\"a\", t.\"b\", t.\"z\")::text AS x FROM ONLY \"s\".\"t\"\"x\" t \
             WHERE (t.\"z\", t.\"b\") OPERATOR(pg_catalog.>) ($1, $2) \
             AND (t.\"z\", t.\"b\") OPERATOR(pg_catalog.<=) ($3, $4) LIMIT $5) s"
        );
    }

    #[test]
    fn operators_of_several_schemas_are_compared_one_by_one() {
        let reading = reading(["OPERATOR(pg_catalog.=)", "OPERATOR(public.=)"]);
        assert_eq!(
            reading.compared("<=", 3),
            "t.\"z\" OPERATOR(pg_catalog.<=) $3 AND (t.\"z\" OPERATOR(pg_catalog.<) $3 OR \
             (t.\"z\" OPERATOR(pg_catalog.=) $3 AND (t.\"b\" OPERATOR(public.<=) $4 OR \
             (t.\"b\" OPERATOR(public.=) $4 AND false))))"
        );
    }
}
