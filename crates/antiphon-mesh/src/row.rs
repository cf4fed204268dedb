//! A change of the log, brought to the columns of the table here. Pure.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value as Json};
use thiserror::Error;

use crate::pgoutput::{Old, Relation, Tuple, Value};
use crate::shape::Shape;
use crate::transaction::RowChange;

/// One value, as text; none: null.
pub type Text = Option<Bytes>;

/// What is to become of one row here. Rows have the values of all of the shape's columns; keys those of its key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// A new row.
    Insert {
        /// The row.
        row: Vec<Text>,
    },
    /// A row that takes the place of one with the same key.
    Update {
        /// The row.
        row: Vec<Text>,
        /// What it was, if the log says all of it.
        old: Option<Vec<Text>>,
    },
    /// No row.
    Delete {
        /// Which.
        key: Vec<Text>,
        /// What it was, if the log says all of it.
        old: Option<Vec<Text>>,
    },
    /// No rows at all.
    Truncate,
}

/// Why a change does not fit the table here.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Misfit {
    /// A column that this node does not have.
    #[error(
        "table {table} has no column {column} here, but on the node whose change this is: add it here, too"
    )]
    NoColumn {
        /// The table.
        table: String,
        /// The column.
        column: String,
    },
    /// The key has a column that the other node does not send.
    #[error(
        "table {table} has column {column} in its primary key here, which the other node does not send: make the primary keys the same"
    )]
    NoKey {
        /// The table.
        table: String,
        /// The column.
        column: String,
    },
    /// Too few values, too many, or a null in the key.
    #[error("a change of table {0} has not the values that its description promised")]
    Broken(String),
    /// A large value that the log left out.
    #[error(
        "a change of table {table} leaves out the unchanged large value of column {column}: run ALTER TABLE {table} REPLICA IDENTITY FULL on the node whose change this is"
    )]
    LeftOut {
        /// The table.
        table: String,
        /// The column.
        column: String,
    },
}

/// A table there and the table here.
#[derive(Debug)]
pub struct Mapping {
    /// The table here, with the columns that both have.
    pub shape: Shape,
    /// The table there.
    pub relation: Arc<Relation>,
    /// Where each column of the shape stands there.
    from: Vec<usize>,
}

impl Mapping {
    /// Matches columns by name.
    ///
    /// # Errors
    /// If this node lacks a column, or the other one a column of the key.
    pub fn new(relation: Arc<Relation>, here: &Shape) -> Result<Self, Misfit> {
        let table = || here.table().to_string();
        let there = |name: &str| relation.columns.iter().position(|column| column.name == name);
        for column in &relation.columns {
            let known = here.columns.iter().any(|ours| ours.name == column.name);
            if !known && !here.generated.contains(&column.name) {
                return Err(Misfit::NoColumn { table: table(), column: column.name.clone() });
            }
        }
        if let Some(at) = here.key.iter().find(|at| there(&here.columns[**at].name).is_none()) {
            return Err(Misfit::NoKey { table: table(), column: here.columns[*at].name.clone() });
        }
        let shape = here.only(|column| there(&column.name).is_some());
        let from = shape.columns.iter().filter_map(|column| there(&column.name)).collect();
        Ok(Self { shape, relation, from })
    }

    /// What a change means here: one step, or two if it gave the row another key.
    ///
    /// # Errors
    /// If the change does not fit its own description, or leaves out what is needed.
    pub fn ops(&self, change: &RowChange) -> Result<Vec<Op>, Misfit> {
        let full = match &change.old {
            Some(Old::Full(tuple)) => Some(self.values(tuple, None)?),
            Some(Old::Key(_)) | None => None,
        };
        let old_key =
            change.old.as_ref().map(|(Old::Full(tuple) | Old::Key(tuple))| self.key(tuple)).transpose()?;
        match (&change.new, old_key) {
            (None, Some(key)) => Ok(vec![Op::Delete { key, old: full }]),
            (None, None) => Err(self.broken()),
            (Some(new), old_key) => {
                let row = self.values(new, full.as_deref())?;
                let key = self.key(new)?;
                match old_key {
                    Some(before) if before != key => {
                        Ok(vec![Op::Delete { key: before, old: full }, Op::Insert { row }])
                    }
                    _ if change.is_update => Ok(vec![Op::Update { row, old: full }]),
                    _ => Ok(vec![Op::Insert { row }]),
                }
            }
        }
    }

    fn broken(&self) -> Misfit {
        Misfit::Broken(self.shape.table().to_string())
    }

    fn key(&self, tuple: &Tuple) -> Result<Vec<Text>, Misfit> {
        let value = |at: &usize| match tuple.0.get(self.from[*at]) {
            Some(Value::Text(text)) => Ok(Some(text.clone())),
            _ => Err(self.broken()),
        };
        self.shape.key.iter().map(value).collect()
    }

    fn values(&self, tuple: &Tuple, old: Option<&[Text]>) -> Result<Vec<Text>, Misfit> {
        if tuple.0.len() != self.relation.columns.len() {
            return Err(self.broken());
        }
        let value = |(at, from): (usize, &usize)| match (&tuple.0[*from], old) {
            (Value::Text(text), _) => Ok(Some(text.clone())),
            (Value::Null, _) => Ok(None),
            (Value::Unchanged, Some(old)) => Ok(old[at].clone()),
            (Value::Unchanged, None) => Err(Misfit::LeftOut {
                table: self.shape.table().to_string(),
                column: self.shape.columns[at].name.clone(),
            }),
            (Value::Binary(_), _) => Err(self.broken()),
        };
        self.from.iter().enumerate().map(value).collect()
    }
}

impl Op {
    /// The values of the key.
    #[must_use]
    pub fn key(&self, shape: &Shape) -> Vec<Text> {
        match self {
            Self::Insert { row } | Self::Update { row, .. } => {
                shape.key.iter().map(|at| row[*at].clone()).collect()
            }
            Self::Delete { key, .. } => key.clone(),
            Self::Truncate => Vec::new(),
        }
    }
}

/// A row, or those of its columns, as JSON for people: every value is the text that PostgreSQL gives it.
#[must_use]
pub fn to_json(shape: &Shape, columns: impl IntoIterator<Item = usize>, values: &[Text]) -> Json {
    let text = |value: &Text| match value {
        Some(bytes) => Json::String(String::from_utf8_lossy(bytes).into_owned()),
        None => Json::Null,
    };
    let pairs =
        columns.into_iter().zip(values).map(|(at, value)| (shape.columns[at].name.clone(), text(value)));
    Json::Object(pairs.collect::<Map<_, _>>())
}
