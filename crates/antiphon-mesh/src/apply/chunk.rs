//! Changes as statements of the fast way: few as one statement each, many as one statement a table and kind.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Applier, Target};
use crate::net::{Net, net, push_element};
use crate::row::{Op, Text};
use crate::session::{Param, Statement};
use crate::wire::WireError;

/// From so many on, statements for many rows are cheaper than as many statements.
const MANY: usize = 8;

impl Applier {
    /// Puts these changes behind what is to be sent. Their writers had seen everybody up to `seen`.
    pub(super) fn put_changes(&mut self, ops: &[(Arc<Target>, Op)], seen: i64) -> Result<(), WireError> {
        if ops.len() < MANY {
            ops.iter().try_for_each(|(target, op)| self.put_one(target, op, seen))?;
            return self.put_counts(ops);
        }
        // What merges keeps what every single change brings, and a row that was deleted in between begins anew.
        let (merging, plain): (Vec<_>, Vec<_>) =
            ops.iter().partition(|(target, _)| target.mapping.shape.merges());
        merging.iter().try_for_each(|(target, op)| self.put_one(target, op, seen))?;
        let mut targets: HashMap<u32, &Arc<Target>> = HashMap::new();
        let changes = plain.iter().map(|(target, op)| {
            let id = target.mapping.relation.id;
            targets.insert(id, target);
            (id, op.key(&target.mapping.shape), op)
        });
        let rows = net(changes);
        for (id, target) in targets {
            let of_table = || rows.iter().filter(move |(table, ..)| *table == id);
            let deleted: Vec<&[Text]> =
                of_table().filter(|(.., net)| *net == Net::Delete).map(|(_, key, _)| &key[..]).collect();
            let rows_of = |pick: fn(&Net<'_>) -> bool| {
                of_table().filter_map(move |(_, key, net)| match net {
                    Net::Insert(row) | Net::Update(row) | Net::Bury(row) if pick(net) => {
                        Some((&key[..], *row))
                    }
                    _ => None,
                })
            };
            let updated = rows_of(|net| matches!(net, Net::Update(_))).map(|(_, row)| row);
            let inserted = rows_of(|net| matches!(net, Net::Insert(_))).map(|(_, row)| row);
            let (dead, fleeting): (Vec<&[Text]>, Vec<&[Text]>) =
                rows_of(|net| matches!(net, Net::Bury(_))).unzip();
            // In this order a unique value that one row gives up is free for another.
            self.put_deletes(target, &deleted, seen)?;
            self.put_updates(target, &updated.collect::<Vec<_>>(), seen)?;
            // Only a row that is there keeps others from inserting it, until its tombstone is seen.
            self.put_inserts(target, &fleeting, seen)?;
            self.put_deletes(target, &dead, seen)?;
            self.put_inserts(target, &inserted.collect::<Vec<_>>(), seen)?;
        }
        self.put_counts(ops)
    }

    fn put_one(&mut self, target: &Target, op: &Op, seen: i64) -> Result<(), WireError> {
        match op {
            Op::Insert { row } => self.put_insert(target, row, seen),
            Op::Update { row, .. } => self.put_update(target, row, seen),
            Op::Delete { key, .. } => self.put_delete(target, key, seen),
            Op::Truncate => unreachable!("a truncation goes the careful way"),
        }
    }

    fn put_insert(&mut self, target: &Target, row: &[Text], seen: i64) -> Result<(), WireError> {
        let values = row.iter().map(|value| Param::Text(value.as_deref()));
        let params: Vec<_> = values.chain(self.seen(seen)).collect();
        self.session.put(target.one.insert, &params)
    }

    fn put_update(&mut self, target: &Target, row: &[Text], seen: i64) -> Result<(), WireError> {
        let values = target.update_order.iter().map(|at| Param::Text(row[*at].as_deref()));
        let params: Vec<_> = values.chain(self.seen(seen)).collect();
        self.session.put(target.one.update, &params)
    }

    fn put_delete(&mut self, target: &Target, key: &[Text], seen: i64) -> Result<(), WireError> {
        let values = key.iter().map(|value| Param::Text(value.as_deref()));
        let params: Vec<_> = values.chain(self.seen(seen)).collect();
        self.session.put(target.one.delete, &params)
    }

    fn put_inserts(&mut self, target: &Target, rows: &[&[Text]], seen: i64) -> Result<(), WireError> {
        if rows.len() < MANY {
            return rows.iter().try_for_each(|row| self.put_insert(target, row, seen));
        }
        let all: Vec<usize> = (0..target.mapping.shape.columns.len()).collect();
        self.put_arrays(target.many.insert, rows, &all, &[])?;
        self.put_arrays(target.alive_many, rows, &target.mapping.shape.key, &self.seen(seen))
    }

    fn put_updates(&mut self, target: &Target, rows: &[&[Text]], seen: i64) -> Result<(), WireError> {
        if rows.len() < MANY {
            return rows.iter().try_for_each(|row| self.put_update(target, row, seen));
        }
        let [seen, origin] = self.seen(seen);
        self.put_arrays(target.many.update, rows, &target.update_order, &[seen, origin, count(rows.len())])
    }

    fn put_deletes(&mut self, target: &Target, keys: &[&[Text]], seen: i64) -> Result<(), WireError> {
        if keys.len() < MANY {
            return keys.iter().try_for_each(|key| self.put_delete(target, key, seen));
        }
        let [seen, origin] = self.seen(seen);
        let all: Vec<usize> = (0..target.mapping.shape.key.len()).collect();
        self.put_arrays(target.many.delete, keys, &all, &[seen, origin, count(keys.len())])
    }

    /// The two parameters of which what is overwritten must satisfy one.
    fn seen(&self, seen: i64) -> [Param<'static>; 2] {
        [Param::Long(seen), Param::Number(self.identity.origin)]
    }

    /// Puts a statement that takes these columns of these rows as arrays, and some more parameters.
    fn put_arrays(
        &mut self,
        statement: Statement,
        rows: &[&[Text]],
        columns: &[usize],
        more: &[Param<'_>],
    ) -> Result<(), WireError> {
        let array = |at: &usize| {
            let bytes: usize =
                rows.iter().map(|row| row[*at].as_ref().map_or(4, |value| value.len() + 2)).sum();
            let mut array = Vec::with_capacity(bytes + rows.len() + 2);
            array.push(b'{');
            for row in rows {
                push_element(&mut array, row[*at].as_deref());
            }
            array.push(b'}');
            array
        };
        let arrays: Vec<Vec<u8>> = columns.iter().map(array).collect();
        let arrays = arrays.iter().map(|array| Param::Text(Some(&array[..])));
        let params: Vec<_> = arrays.chain(more.iter().copied()).collect();
        self.session.put(statement, &params)
    }
}

fn count(rows: usize) -> Param<'static> {
    Param::Long(i64::try_from(rows).expect("a chunk has few rows"))
}
