//! Results that the router gives itself, in the format of texts.

use super::messages::{put, put_text};

/// The type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `text`
    Text,
    /// `integer`
    Int,
    /// `bigint`
    Big,
}

impl Kind {
    /// Its number in `pg_type`, and its size there.
    fn oid_and_size(self) -> (u32, i16) {
        match self {
            Self::Text => (25, -1),
            Self::Int => (23, 4),
            Self::Big => (20, 8),
        }
    }
}

/// Appends a RowDescription.
pub fn describe(columns: &[(&str, Kind)], out: &mut Vec<u8>) {
    put(out, b'T', |body| {
        body.extend(u16::try_from(columns.len()).unwrap_or(0).to_be_bytes());
        for (name, kind) in columns {
            let (oid, size) = kind.oid_and_size();
            put_text(body, name.as_bytes());
            // Of no table and no column of one.
            body.extend([0; 6]);
            body.extend(oid.to_be_bytes());
            body.extend(size.to_be_bytes());
            body.extend((-1i32).to_be_bytes());
            // As text.
            body.extend([0; 2]);
        }
    });
}

/// Appends a DataRow; nothing is NULL.
pub fn row<'a>(values: impl ExactSizeIterator<Item = Option<&'a str>>, out: &mut Vec<u8>) {
    put(out, b'D', |body| {
        body.extend(u16::try_from(values.len()).unwrap_or(0).to_be_bytes());
        for value in values {
            let Some(value) = value else {
                body.extend((-1i32).to_be_bytes());
                continue;
            };
            body.extend(u32::try_from(value.len()).unwrap_or(0).to_be_bytes());
            body.extend(value.as_bytes());
        }
    });
}

/// Appends a CommandComplete.
pub fn complete(tag: &str, out: &mut Vec<u8>) {
    put(out, b'C', |body| put_text(body, tag.as_bytes()));
}
