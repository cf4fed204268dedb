//! Whether all nodes have the same rows, while everybody goes on writing; and how to make them the same if not.
//!
//! Tables are compared by ranges of their keys, each by one statement on every node that counts and hashes it. Where
//! that differs, the range is narrowed down to rows; and since rows differ all the time by what is on its way, those
//! are looked at again once everybody has applied whatever had been committed by then. What is the same as before
//! and still differs is a difference; what was written meanwhile is looked at again, and in the end called unsettled.
//! Nothing is locked, no snapshot outlives a statement, and at most one statement runs on a node at a time.

mod background;
mod compare;
mod node;
mod range;
mod repair;
mod statements;

use std::fmt;
use std::time::Duration;

use antiphon_core::mesh::{NodeId, Sights};
use thiserror::Error;

use crate::dsn::Dsn;
use crate::name::TableName;
use crate::node::{NodeError, explain};
use crate::wire::WireError;

use compare::{Comparison, Settled};

pub use background::{Background, run as run_in_background};
pub use range::Key;
pub use repair::{Outcome, Repair, Repaired, repair};

/// A node that is to be compared.
#[derive(Clone, Debug)]
pub struct Site {
    /// Its number.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Its database.
    pub dsn: Dsn,
}

/// What it may cost, and when to give up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Only these tables; none: all that take part.
    pub tables: Vec<TableName>,
    /// Rows that one statement reads. It holds a snapshot for as long as that takes.
    pub range_rows: u32,
    /// A range with no more rows is compared row by row.
    pub leaf_rows: u32,
    /// Most rows that are read on a node in a second; none: as many as it can.
    pub rows_per_second_max: Option<u32>,
    /// The longest that one statement may take.
    pub statement_timeout: Duration,
    /// How often rows that differ are looked at again.
    pub rounds_max: u32,
    /// How long to wait for the nodes to apply what there is, each time.
    pub catch_up_patience: Duration,
    /// Nodes whose logs nobody can read any more: nobody is waited for that has less of them than another.
    pub lost: Vec<NodeId>,
    /// Most different rows of a table that are listed. With more, the rest of the table is not looked at.
    pub differences_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tables: Vec::new(),
            lost: Vec::new(),
            range_rows: 10_000,
            leaf_rows: 200,
            rows_per_second_max: None,
            statement_timeout: Duration::from_secs(30),
            rounds_max: 5,
            catch_up_patience: Duration::from_secs(30),
            differences_max: 10_000,
        }
    }
}

/// What all tables gave.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Who was compared.
    pub nodes: Vec<(NodeId, String)>,
    /// Each table.
    pub tables: Vec<TableReport>,
}

impl Report {
    /// Rows that differ.
    #[must_use]
    pub fn diverged(&self) -> usize {
        self.tables.iter().map(|table| table.diverged.len()).sum()
    }

    /// Whether every table was compared whole and every row of it found the same.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.tables.iter().all(|table| {
            table.diverged.is_empty()
                && table.unsettled.is_empty()
                && table.incomparable.is_none()
                && !table.cut_short
        })
    }
}

/// What one table gave.
#[derive(Clone, Debug)]
pub struct TableReport {
    /// The table.
    pub table: TableName,
    /// The columns of its key.
    pub key: Vec<String>,
    /// About how many rows were compared: those of the node that has most, range by range.
    pub rows: u64,
    /// Rows that differ, and will go on to.
    pub diverged: Vec<Difference>,
    /// Rows that differed whenever they were looked at, but were written all the time.
    pub unsettled: Vec<Unsettled>,
    /// Why it could not be compared at all.
    pub incomparable: Option<String>,
    /// It has more differences than may be listed, and its rest was not looked at.
    pub cut_short: bool,
}

/// A row that is not the same on all nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its key, as text, in the key's order.
    pub key: Key,
    /// What each node has.
    pub sights: Sights,
}

/// A row of which it could not be said whether it differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsettled {
    /// Its key.
    pub key: Key,
    /// Why not.
    pub why: Why,
}

/// Why a row is not settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// It was written between any two looks.
    Changing,
    /// Not everybody has applied what there is.
    Behind {
        /// Who has not.
        reader: String,
        /// Whose changes.
        source: String,
    },
}

impl fmt::Display for Why {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changing => out.write_str("it is written all the time: compare it again when it is not"),
            Self::Behind { reader, source } => write!(
                out,
                "node {reader} has not applied what there is of node {source}: see `antiphon mesh status`, then compare again"
            ),
        }
    }
}

/// Why nodes could not be compared.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// A server cannot be reached, or refused a statement.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The client library's connection failed.
    #[error("{}", explain(.0))]
    Control(#[from] tokio_postgres::Error),
    /// A database is not what it should be.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// A connection string leads to another node.
    #[error("the connection string of node {expected} leads to the node with number {found}: correct it")]
    Stranger {
        /// Who was meant.
        expected: String,
        /// Who is there.
        found: NodeId,
    },
    /// Two nodes of two meshes.
    #[error("nodes {one} and {other} belong to different meshes: compare nodes of one")]
    OtherMesh {
        /// One.
        one: String,
        /// The other.
        other: String,
    },
    /// The catalogue says what cannot be.
    #[error("a table of node {node} cannot be read from the catalogue: {error}")]
    Catalogue {
        /// The node.
        node: String,
        /// What is wrong.
        error: serde_json::Error,
    },
    /// There is no such table.
    #[error("table {0} takes part on no node")]
    NoTable(TableName),
    /// A repair has to reach who is to be changed.
    #[error("node {0} is in the report, and was not named to be repaired: name all nodes of the report")]
    NotNamed(NodeId),
}

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The table.
    pub table: TableName,
    /// The how many-eth of all.
    pub nth: usize,
    /// How many there are.
    pub of: usize,
    /// Rows of it so far.
    pub rows: u64,
}

/// Compares the tables of these nodes. Other nodes of the mesh may be there; what they wrote counts as soon as one of
/// these has applied it.
///
/// # Errors
/// If a node cannot be reached or read.
pub async fn verify(
    sites: &[Site],
    options: &Options,
    mut tell: impl FnMut(Progress),
) -> Result<Report, VerifyError> {
    let mut comparison = Comparison::open(sites, options).await?;
    let all = comparison.tables();
    if let Some(missing) = options.tables.iter().find(|table| !all.contains(table)) {
        return Err(VerifyError::NoTable(missing.clone()));
    }
    let wanted = |table: &TableName| options.tables.is_empty() || options.tables.contains(table);
    let tables: Vec<_> = all.into_iter().filter(wanted).collect();
    let mut report = Report::default();
    report.nodes.extend(sites.iter().map(|site| (site.id, site.name.clone())));
    for (nth, name) in tables.iter().enumerate() {
        let tell = |rows| tell(Progress { table: name.clone(), nth: nth + 1, of: tables.len(), rows });
        report.tables.push(one(&mut comparison, name, options, tell).await?);
    }
    Ok(report)
}

async fn one(
    comparison: &mut Comparison,
    name: &TableName,
    options: &Options,
    mut tell: impl FnMut(u64),
) -> Result<TableReport, VerifyError> {
    let mut report = TableReport {
        table: name.clone(),
        key: Vec::new(),
        rows: 0,
        diverged: Vec::new(),
        unsettled: Vec::new(),
        incomparable: None,
        cut_short: false,
    };
    let table = match comparison.table(name) {
        Ok(table) => table,
        Err(why) => {
            report.incomparable = Some(why);
            return Ok(report);
        }
    };
    report.key = table.first().map(|reading| reading.key()).unwrap_or_default();
    let (mut suspects, mut settled) = (Vec::new(), Settled::default());
    let mut after = None;
    loop {
        let (part, next) = comparison.part(&table, after).await?;
        report.rows += part.rows;
        report.cut_short |= part.cut_short;
        suspects.extend(part.suspects);
        settled.add(part.settled);
        tell(report.rows);
        // Waiting until rows are settled takes a while, so it is done for many of them at a time.
        if next.is_none() || report.cut_short || suspects.len() >= options.differences_max {
            settled.add(comparison.settle(&table, std::mem::take(&mut suspects)).await?);
        }
        report.cut_short |= next.is_some() && settled.diverged.len() >= options.differences_max;
        after = next;
        if after.is_none() || report.cut_short {
            (report.diverged, report.unsettled) = (settled.diverged, settled.unsettled);
            return Ok(report);
        }
    }
}
