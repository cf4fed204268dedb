//! Columns whose changes are added up, wherever they were made: what is kept of them, and the statements for it.
//!
//! A table with such columns has a ledger: for each row and each node that counted in it, what the node has added in
//! all. Only that node writes the entry, so two nodes never disagree about one, and it arrives in the node's order. A
//! column's value is the sum of the entries, which is the same wherever the entries are: nothing is added twice, and
//! what a row loses of its other columns changes no entry.
//!
//! A row that is inserted begins a new epoch, with its value as the first entry. Entries of the latest epoch count, the
//! others are of rows that were there before. Entries stay when a row is deleted, for an update that brings it back, until
//! the delete is forgotten: when nobody who had not seen it can still write.

use crate::name::{Quoted, TableName};
use crate::shape::{Shape, WRITTEN};

/// What makes a table's triggers.
const TRIGGERS: &str = include_str!("sql/ledger.sql");
/// The clock, as epochs count.
const NOW: &str = "(extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::bigint";

/// A row of `t` was written by this very transaction: its own numbers are never older than the first of them, and only
/// what committed has a time.
const OWN: &str = "pg_catalog.pg_xact_commit_timestamp(t.xmin) IS NULL AND pg_catalog.age(t.xmin) <= 0";

/// When a row was written, in microseconds since 2000; zero if nobody remembers.
const MICROS: &str = "coalesce((extract(epoch FROM pg_catalog.pg_xact_commit_timestamp({row}.xmin)) * 1000000 \
                      - 946684800000000)::bigint, 0)";

impl Shape {
    /// The table's ledger; none if nothing of it is added up.
    #[must_use]
    pub fn ledger(&self) -> Option<TableName> {
        self.ledger.as_ref().map(|name| TableName::new("antiphon", name))
    }

    /// Whether its rows have to be looked at by the ledger, or it is one.
    #[must_use]
    pub fn is_counted(&self) -> bool {
        self.ledger.is_some() || self.ledger_of.is_some()
    }

    /// The columns that are added up, in the ledger's order.
    fn counted(&self) -> Vec<usize> {
        let place = |name: &String| self.columns.iter().position(|column| column.name == *name);
        self.deltas.iter().filter_map(place).collect()
    }

    /// Locks a row and reads when and where it was written, whether that was by this very transaction, and what is
    /// counted in it. Parameters: the key.
    #[must_use]
    pub fn look_at_counts(&self) -> String {
        let counted =
            self.counted().into_iter().map(|at| format!("t.{}::text", Quoted(&self.columns[at].name)));
        let counted = counted.collect::<Vec<_>>().join(", ");
        format!(
            "SELECT {WRITTEN}, ({OWN})::text, {counted} FROM {} t WHERE {} FOR UPDATE",
            self.table(),
            self.key_is("t", 1)
        )
    }

    /// What the ledger says of a row; nulls if nothing. Parameters: the key.
    #[must_use]
    pub fn totals(&self) -> String {
        format!("SELECT {} FROM ({}) s", self.each_count(|nth, _| format!("s.c{nth}::text")), self.sums())
    }

    /// Makes the counts right of a row that this transaction wrote. Parameters: the key.
    #[must_use]
    pub fn correct_own_counts(&self) -> String {
        format!(
            "UPDATE {} t SET {} FROM ({}) s WHERE {} AND {OWN} AND {}",
            self.table(),
            self.each_count(|nth, name| format!("{name} = s.c{nth}")),
            self.sums(),
            self.key_is("t", 1),
            self.counts_differ()
        )
    }

    /// An error if the counts of a row are not right. Parameters: the key.
    #[must_use]
    pub fn check_counts(&self) -> String {
        format!(
            "SELECT 1 / CASE WHEN EXISTS (SELECT FROM {} t, ({}) s WHERE {} AND {}) THEN 0 ELSE 1 END",
            self.table(),
            self.sums(),
            self.key_is("t", 1),
            self.counts_differ()
        )
    }

    fn counts_differ(&self) -> String {
        let (here, there) =
            (self.each_count(|_, name| format!("t.{name}")), self.each_count(|nth, _| format!("s.c{nth}")));
        format!("s.c1 IS NOT NULL AND ROW({here}) IS DISTINCT FROM ROW({there})")
    }

    fn each_count(&self, text: impl Fn(usize, &str) -> String) -> String {
        let names = self.counted().into_iter().map(|at| Quoted(&self.columns[at].name).to_string());
        names.enumerate().map(|(nth, name)| text(nth + 1, &name)).collect::<Vec<_>>().join(", ")
    }

    /// What the ledger says of a row as `c1`, `c2`, ...
    fn sums(&self) -> String {
        let sum = |(nth, at): (usize, usize)| {
            format!("pg_catalog.sum(l.d{})::{} AS c{0}", nth + 1, self.columns[at].type_name)
        };
        let sums = self.counted().into_iter().enumerate().map(sum).collect::<Vec<_>>().join(", ");
        format!(
            "SELECT {sums} FROM (SELECT l.*, pg_catalog.rank() OVER (ORDER BY l.epoch DESC, l.epoch_node DESC) AS age \
             FROM {} l WHERE {}) l WHERE l.age = 1",
            self.ledger_name(),
            self.ledger_key_is("l", |nth| format!("${}", nth + 1))
        )
    }

    /// Writes what is counted in a row. Parameters: the values, the key.
    #[must_use]
    pub fn set_counts(&self) -> String {
        let counted = self.counted();
        let set = |(nth, at): (usize, &usize)| {
            let column = &self.columns[*at];
            format!("{} = ${}::{}", Quoted(&column.name), nth + 1, column.type_name)
        };
        let sets = counted.iter().enumerate().map(set).collect::<Vec<_>>().join(", ");
        format!("UPDATE {} t SET {sets} WHERE {}", self.table(), self.key_is("t", counted.len() + 1))
    }

    /// Forgets deletes that are older than a time, and what had been counted in those rows unless they are back.
    /// Parameter: the time.
    #[must_use]
    pub fn forget_deleted(&self) -> String {
        let old = |row: &str| format!("{} <= $1", MICROS.replace("{row}", row));
        let keys = self.of("t", self.key.iter().copied());
        let of_key =
            self.ledger_key_is("l", |nth| format!("g.{}", Quoted(&self.columns[self.key[nth]].name)));
        format!(
            "WITH g AS (DELETE FROM {} t WHERE {} RETURNING {keys}) DELETE FROM {} l USING g \
             WHERE {of_key} AND {} AND {}",
            self.tombstones(),
            old("t"),
            self.ledger_name(),
            old("l"),
            self.no_row_of_entry(&self.table().to_string())
        )
    }

    /// The same for what was truncated before a time. Parameter: the time.
    #[must_use]
    pub fn forget_truncated(&self) -> String {
        let old = |row: &str| format!("{} <= $1", MICROS.replace("{row}", row));
        format!(
            "DELETE FROM {} l WHERE EXISTS (SELECT FROM antiphon.truncations c WHERE c.id = {} AND {}) AND {} AND {} AND {}",
            self.ledger_name(),
            self.id,
            old("c"),
            old("l"),
            self.no_row_of_entry(&self.tombstones()),
            self.no_row_of_entry(&self.table().to_string())
        )
    }

    fn no_row_of_entry(&self, table: &str) -> String {
        let same = self.ledger_key_is("l", |nth| format!("t.{}", Quoted(&self.columns[self.key[nth]].name)));
        format!("NOT EXISTS (SELECT FROM {table} t WHERE {same})")
    }

    fn ledger_name(&self) -> String {
        self.ledger().map(|ledger| ledger.to_string()).unwrap_or_default()
    }

    /// The ledger's entries are of the key with these values.
    fn ledger_key_is(&self, alias: &str, value: impl Fn(usize) -> String) -> String {
        let equal = |(nth, at): (usize, &usize)| {
            let operator = self.columns[*at].equals.as_deref().unwrap_or("OPERATOR(pg_catalog.=)");
            format!("{alias}.k{} {operator} {}", nth + 1, value(nth))
        };
        self.key.iter().enumerate().map(equal).collect::<Vec<_>>().join(" AND ")
    }

    /// Makes the ledger `name` for these columns.
    #[must_use]
    pub fn make_ledger(&self, name: &TableName, columns: usize) -> String {
        let keys = self.key.iter().enumerate();
        let keys = keys.map(|(nth, at)| format!("{} AS k{}", Quoted(&self.columns[*at].name), nth + 1));
        let keys = keys.collect::<Vec<_>>().join(", ");
        let counted = (1..=columns).map(|nth| format!("0::numeric AS d{nth}")).collect::<Vec<_>>().join(", ");
        let (names, table) = (self.ledger_keys(), self.table());
        format!(
            "CREATE TABLE {name} AS SELECT {keys}, 0::smallint AS node, 0::bigint AS epoch, 0::smallint AS epoch_node, \
             {counted} FROM {table} WITH NO DATA; ALTER TABLE {name} ADD PRIMARY KEY ({names}, node)"
        )
    }

    /// Enters the rows that are there, as this node's: all of them, or those of which nothing is entered.
    #[must_use]
    pub fn fill_ledger(&self, all: bool) -> String {
        let (ledger, keys, counted) = (self.ledger_name(), self.ledger_keys(), self.ledger_counts());
        let same = self.ledger_key_is("l", |nth| format!("t.{}", Quoted(&self.columns[self.key[nth]].name)));
        let only =
            if all { "true".into() } else { format!("NOT EXISTS (SELECT FROM {ledger} l WHERE {same})") };
        let replaced = (1..=self.deltas.len()).map(|nth| format!("d{nth} = excluded.d{nth}"));
        format!(
            "INSERT INTO {ledger} ({keys}, node, epoch, epoch_node, {counted}) \
             SELECT {}, m.node, greatest({NOW}, (SELECT pg_catalog.max(epoch) + 1 FROM {ledger})), m.node, {} \
             FROM {} t, antiphon.mesh m WHERE {only} \
             ON CONFLICT ({keys}, node) DO UPDATE SET epoch = excluded.epoch, epoch_node = excluded.epoch_node, {}",
            self.of("t", self.key.iter().copied()),
            self.of("t", self.counted()),
            self.table(),
            replaced.collect::<Vec<_>>().join(", ")
        )
    }

    /// Makes the triggers that enter what is counted here.
    #[must_use]
    pub fn count_here(&self) -> String {
        let each = |text: fn(usize, &str) -> String| self.each_count(text);
        let is_new_key =
            self.ledger_key_is("l", |nth| format!("NEW.{}", Quoted(&self.columns[self.key[nth]].name)));
        let same_epoch = "(l.epoch, l.epoch_node) = (excluded.epoch, excluded.epoch_node)";
        let added =
            each(|nth, _| format!("d{nth} = excluded.d{nth} + CASE WHEN {{same}} THEN l.d{nth} ELSE 0 END"));
        TRIGGERS
            .replace("{is_new_key}", &is_new_key)
            .replace("{now}", NOW)
            .replace("{replaced}", &each(|nth, _| format!("d{nth} = excluded.d{nth}")))
            .replace("{added}", &added.replace("{same}", same_epoch))
            .replace("{differences}", &each(|_, name| format!("NEW.{name}::numeric - OLD.{name}")))
            .replace("{new_d}", &self.of("NEW", self.counted()))
            .replace("{old_d}", &self.of("OLD", self.counted()))
            .replace("{new_key}", &self.of("NEW", self.key.iter().copied()))
            .replace("{old_key}", &self.of("OLD", self.key.iter().copied()))
            .replace("{k}", &self.ledger_keys())
            .replace("{d}", &self.ledger_counts())
            .replace("{ledger}", &self.ledger_name())
            .replace("{table}", &self.table().to_string())
            .replace("{n}", &self.id.to_string())
    }

    fn ledger_keys(&self) -> String {
        (1..=self.key.len()).map(|nth| format!("k{nth}")).collect::<Vec<_>>().join(", ")
    }

    fn ledger_counts(&self) -> String {
        (1..=self.deltas.len()).map(|nth| format!("d{nth}")).collect::<Vec<_>>().join(", ")
    }

    fn of(&self, row: &str, columns: impl IntoIterator<Item = usize>) -> String {
        let names = columns.into_iter().map(|at| format!("{row}.{}", Quoted(&self.columns[at].name)));
        names.collect::<Vec<_>>().join(", ")
    }
}
