//! What many changes come to: one for each row, whatever was done to it in between. Pure.
//!
//! One statement cannot write a row twice, and need not: nobody sees what is in between.

use std::collections::HashMap;
use std::hash::Hash;

use crate::row::{Op, Text};

/// What becomes of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Net<'a> {
    /// It is not there and shall be.
    Insert(&'a [Text]),
    /// It is there and shall be so.
    Update(&'a [Text]),
    /// It is there and shall not be.
    Delete,
    /// It is not there, was for a while, as this row at last, and leaves a tombstone.
    Bury(&'a [Text]),
}

const TRUNCATION: &str = "a truncation is of no row, and goes the careful way";

/// Nets the changes of tables `T`. Rows in the order in which they were touched first.
#[must_use]
pub fn net<'a, T: Copy + Eq + Hash>(
    changes: impl IntoIterator<Item = (T, Vec<Text>, &'a Op)>,
) -> Vec<(T, Vec<Text>, Net<'a>)> {
    let mut at: HashMap<(T, Vec<Text>), usize> = HashMap::new();
    let mut rows: Vec<(T, Vec<Text>, Net<'a>)> = Vec::new();
    for (table, key, op) in changes {
        let next = rows.len();
        let place = *at.entry((table, key.clone())).or_insert(next);
        if place == next {
            let first = match op {
                Op::Insert { row } => Net::Insert(row),
                Op::Update { row, .. } => Net::Update(row),
                Op::Delete { .. } => Net::Delete,
                Op::Truncate => unreachable!("{TRUNCATION}"),
            };
            rows.push((table, key, first));
            continue;
        }
        let was_there = matches!(rows[place].2, Net::Update(_) | Net::Delete);
        rows[place].2 = match (was_there, op) {
            (true, Op::Insert { row } | Op::Update { row, .. }) => Net::Update(row),
            (false, Op::Insert { row } | Op::Update { row, .. }) => Net::Insert(row),
            (true, Op::Delete { .. }) => Net::Delete,
            (false, Op::Delete { .. }) => match rows[place].2 {
                Net::Insert(row) | Net::Bury(row) => Net::Bury(row),
                Net::Update(_) | Net::Delete => unreachable!("it was there"),
            },
            (_, Op::Truncate) => unreachable!("{TRUNCATION}"),
        };
    }
    rows
}

/// Puts a value into the text of a one-dimensional array, whose brace has been opened.
pub fn push_element(array: &mut Vec<u8>, value: Option<&[u8]>) {
    if array.len() > 1 {
        array.push(b',');
    }
    let Some(value) = value else {
        array.extend_from_slice(b"NULL");
        return;
    };
    array.push(b'"');
    for byte in value {
        if matches!(byte, b'"' | b'\\') {
            array.push(b'\\');
        }
        array.push(*byte);
    }
    array.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &'static str) -> Vec<Text> {
        vec![Some(text.into())]
    }

    #[test]
    fn many_changes_of_a_row_come_to_one() {
        let insert = |row| Op::Insert { row: text(row) };
        let update = |row| Op::Update { row: text(row), old: None };
        let delete = || Op::Delete { key: text("k"), old: None };
        let (a, b) = (text("a"), text("b"));
        for (ops, expected) in [
            (vec![insert("a"), update("b")], Net::Insert(&b)),
            (vec![insert("a"), update("b"), delete()], Net::Bury(&b)),
            (vec![insert("a"), delete(), insert("b")], Net::Insert(&b)),
            (vec![update("a"), update("b")], Net::Update(&b)),
            (vec![update("a"), delete()], Net::Delete),
            (vec![delete(), insert("b")], Net::Update(&b)),
            (vec![delete(), insert("b"), delete()], Net::Delete),
            (vec![insert("a")], Net::Insert(&a)),
        ] {
            let netted = net(ops.iter().map(|op| (1, text("k"), op)));
            assert_eq!(netted, vec![(1, text("k"), expected)], "{ops:?}");
        }
    }

    #[test]
    fn an_element_of_an_array_keeps_every_character() {
        let mut array = b"{".to_vec();
        for value in [Some(&b"a\"b\\c"[..]), None, Some(b""), Some(b"NULL"), Some(b"{1,2}")] {
            push_element(&mut array, value);
        }
        array.push(b'}');
        assert_eq!(String::from_utf8(array).expect("text"), r#"{"a\"b\\c",NULL,"","NULL","{1,2}"}"#);
    }
}
