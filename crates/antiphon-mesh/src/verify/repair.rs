//! Making the winner of every difference stand on all nodes.
//!
//! A repaired row is what it would be had the change arrived: it has the winner's time and, by an origin that stands
//! for the winner's node, its author. So no node sends it on, and later conflicts are decided as everywhere. It is
//! written only where things still are as the report says; whatever was written meanwhile is left alone, since it is
//! on its way to the others already. That origin is not the link's own, which cannot be shared, and no progress
//! of any link is touched.

use std::collections::BTreeMap;
use std::fmt;

use antiphon_core::mesh::agreement::winner;
use antiphon_core::mesh::{Choice, CommitTime, NodeId, Sight, Version};
use serde_json::Value as Json;

use super::node::{Node, content};
use super::range::Key;
use super::statements::{Reading, texts};
use super::{Difference, Options, Report, Site, TableReport, VerifyError};
use crate::name::TableName;
use crate::row::{Text, to_json};
use crate::session::{Param, Session};
use crate::shape::Shape;
use crate::wire::WireError;

/// How a report is to be acted on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Repair {
    /// Whose row is to stand.
    pub choice: Choice,
    /// Write. Else it is only said what would be written.
    pub write: bool,
}

/// What became of one row on one node.
#[derive(Clone, Debug)]
pub struct Repaired {
    /// The table.
    pub table: TableName,
    /// The row's key.
    pub key: Json,
    /// Where it is changed.
    pub node: NodeId,
    /// What is there; none: no row.
    pub before: Option<Json>,
    /// What is to be there; none: no row.
    pub after: Option<Json>,
    /// Whose node's row that is.
    pub from: NodeId,
    /// When and where it was written.
    pub version: Version,
    /// Whether it was done.
    pub outcome: Outcome,
}

/// Whether a row was repaired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It would be.
    Planned,
    /// It was.
    Done,
    /// Somebody has written it since the report, on this node or on the winner's.
    ChangedSince,
    /// The server would not have it.
    Refused(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Planned => out.write_str("would be repaired"),
            Self::Done => out.write_str("repaired"),
            Self::ChangedSince => out.write_str("left alone, since it was written meanwhile: compare again"),
            Self::Refused(why) => write!(out, "could not be repaired: {why}"),
        }
    }
}

/// What is to stand, and where it comes from.
struct Winner {
    node: NodeId,
    version: Version,
    /// The row's values in the order of the columns of the table it is for; none: a delete.
    row: Option<Vec<Text>>,
}

/// Nodes that are repaired.
struct Workshop<'a> {
    sites: &'a [Site],
    nodes: BTreeMap<NodeId, Node>,
    /// Sessions that write, by where and by whose row it is.
    writers: BTreeMap<(NodeId, NodeId), Session>,
    repair: Repair,
}

/// Repairs what a report lists, or says what it would do. Give all nodes that the report is of.
///
/// # Errors
/// If a node cannot be reached or read, or another repair is at work on it. What was repaired until then stays so.
pub async fn repair(
    sites: &[Site],
    report: &Report,
    repair: Repair,
    mut tell: impl FnMut(&Repaired),
) -> Result<Vec<Repaired>, VerifyError> {
    let mut nodes = BTreeMap::new();
    for (id, name) in &report.nodes {
        let site = sites.iter().find(|site| site.id == *id && site.name == *name);
        let site = site.ok_or(VerifyError::NotNamed(*id))?;
        nodes.insert(*id, Node::open(site, &Options::default()).await?);
    }
    let mut workshop = Workshop { sites, nodes, writers: BTreeMap::new(), repair };
    let mut all = Vec::new();
    for table in &report.tables {
        let mut jobs = jobs(table, repair.choice);
        // What was refused may be in the way of another: a unique value may be free when all else is done.
        for last in [false, true] {
            let mut refused = Vec::new();
            for job in jobs {
                let Some(repaired) = workshop.one(&job).await? else { continue };
                if !last && matches!(repaired.outcome, Outcome::Refused(_)) {
                    refused.push(job);
                    continue;
                }
                tell(&repaired);
                all.push(repaired);
            }
            jobs = refused;
        }
    }
    Ok(all)
}

/// One row on one node.
struct Job<'a> {
    table: &'a TableName,
    difference: &'a Difference,
    node: NodeId,
    /// What the node had.
    seen: Sight,
    /// Who has what is to stand.
    holder: NodeId,
    /// What that is.
    stands: Sight,
}

/// What is to be done in a table, deletes first: they make room in other unique keys.
fn jobs(table: &TableReport, choice: Choice) -> Vec<Job<'_>> {
    let mut jobs = Vec::new();
    for difference in &table.diverged {
        let Some((holder, stands)) = winner(&difference.sights, choice) else { continue };
        for (node, seen) in &difference.sights {
            if seen.content() != stands.content() {
                let (table, node, seen) = (&table.table, *node, *seen);
                jobs.push(Job { table, difference, node, seen, holder, stands });
            }
        }
    }
    jobs.sort_by_key(|job| job.stands.content().is_some());
    jobs
}

impl Workshop<'_> {
    /// Repairs one row on one node; none if it takes no part on either any more.
    async fn one(&mut self, job: &Job<'_>) -> Result<Option<Repaired>, VerifyError> {
        let shapes = (self.shape(job.holder, job.table), self.shape(job.node, job.table));
        let (Some(there), Some(here)) = shapes else { return Ok(None) };
        let (there, here) = (Reading::new(there), Reading::new(here));
        if let Some(won) = self.fetch(&there, &here.shape, job).await? {
            return Ok(Some(self.bring(&here, job, &won).await?));
        }
        let version = job.stands.version();
        let version = version.unwrap_or(Version { at: CommitTime::UNKNOWN, node: job.holder });
        let won = Winner { node: job.holder, version, row: None };
        Ok(Some(said(&here.shape, job, &won, None, Outcome::ChangedSince)))
    }

    fn shape(&self, node: NodeId, table: &TableName) -> Option<Shape> {
        self.nodes.get(&node)?.shapes.get(table).cloned()
    }

    /// The winner as it is now; none if it is not what the report says any more.
    async fn fetch(
        &mut self,
        there: &Reading,
        here: &Shape,
        job: &Job<'_>,
    ) -> Result<Option<Winner>, VerifyError> {
        let (difference, holder, sight) = (job.difference, job.holder, job.stands);
        let Some(node) = self.nodes.get_mut(&holder) else { return Ok(None) };
        let now = node.look(there, std::slice::from_ref(&difference.key)).await?;
        if now.first().is_none_or(|now| !sight.still(*now)) {
            return Ok(None);
        }
        let Sight::Row { version, content: expected } = sight else {
            let version = match sight.version() {
                Some(version) => version,
                // Somebody chose a node that has no row. The row is deleted as late as it was written, and no later: what
                // is on its way here and later than the row stands on that node as well.
                None => job.seen.version().unwrap_or(Version { at: CommitTime::UNKNOWN, node: holder }),
            };
            return Ok(Some(Winner { node: holder, version, row: None }));
        };
        let columns = here.columns.iter().map(|column| column.name.as_str());
        let rows = node.session.ask(&there.whole(columns, false), &texts(&difference.key)).await?.rows;
        let row = rows.into_iter().next().filter(|row| content(&row[2..]) == expected);
        Ok(row.map(|row| Winner { node: holder, version, row: Some(row[4..].to_vec()) }))
    }

    /// Makes the winner stand on one node, or says what that would do.
    async fn bring(&mut self, here: &Reading, job: &Job<'_>, won: &Winner) -> Result<Repaired, VerifyError> {
        if here.shape.merges() {
            let why = "it has columns that merge, of which no node's need be whole: update the row as it is on every \
                       node (SET column = column), which merges them";
            return Ok(said(&here.shape, job, won, None, Outcome::Refused(why.into())));
        }
        let (difference, node) = (job.difference, job.node);
        let columns = || here.shape.columns.iter().map(|column| column.name.as_str());
        let key = texts(&difference.key);
        if !self.repair.write {
            let reader = self.nodes.get_mut(&node).ok_or(VerifyError::NotNamed(node))?;
            let found = reader.session.ask(&here.whole(columns(), false), &key).await?.rows;
            let before = found.first().map(|row| &row[4..]);
            return Ok(said(&here.shape, job, won, before, Outcome::Planned));
        }
        let mut writer = match self.writers.remove(&(node, won.version.node)) {
            Some(writer) => writer,
            None => self.writer(node, won.version.node).await?,
        };
        let reader = &self.nodes[&node];
        let mut before = None;
        let done = write(&mut writer, reader, here, job, won, &mut before).await;
        let outcome = match done {
            Ok(outcome) => outcome,
            Err(WireError::Server(error)) => Outcome::Refused(error.to_string()),
            Err(error) => return Err(error.into()),
        };
        if outcome != Outcome::Done {
            writer.ask("ROLLBACK", &[]).await?;
        }
        self.writers.insert((node, won.version.node), writer);
        Ok(said(&here.shape, job, won, before.as_deref(), outcome))
    }

    /// A session on a node that writes what another one had written.
    async fn writer(&self, node: NodeId, author: NodeId) -> Result<Session, VerifyError> {
        let site = self.sites.iter().find(|site| site.id == node).ok_or(VerifyError::NotNamed(node))?;
        let names = &self.nodes[&node].names;
        let mut writer = Session::with(&site.dsn, "antiphon mesh repair", &Node::settings_to_write()).await?;
        writer.write_as(&names.repair_origin(author)).await?;
        Ok(writer)
    }
}

/// Writes the winner, if all is as it was seen. Whatever this gives but `Done` is to be rolled back.
async fn write(
    writer: &mut Session,
    reader: &Node,
    here: &Reading,
    job: &Job<'_>,
    won: &Winner,
    before: &mut Option<Vec<Text>>,
) -> Result<Outcome, WireError> {
    let (shape, difference) = (&here.shape, job.difference);
    let key = texts(&difference.key);
    writer.ask("BEGIN", &[]).await?;
    let columns = shape.columns.iter().map(|column| column.name.as_str());
    let found = writer.ask(&here.whole(columns, true), &key).await?.rows.into_iter().next();
    let deleted = deleted(writer, reader, here, &difference.key).await?;
    let now = match &found {
        Some(row) => Sight::Row { version: reader.version(row), content: content(&row[2..]) },
        None => deleted.map_or(Sight::Absent, Sight::Gone),
    };
    *before = found.map(|row| row[4..].to_vec());
    if !job.seen.still(now) {
        return Ok(Outcome::ChangedSince);
    }
    match &won.row {
        None => {
            writer.ask(&shape.delete(), &key).await?;
            writer.ask(&shape.bury(), &key).await?;
        }
        Some(row) => {
            if !put(writer, shape, row, before.as_deref(), &difference.key).await? {
                return Ok(Outcome::ChangedSince);
            }
            // Whoever deleted it since has been waited for by now.
            if self::deleted(writer, reader, here, &difference.key).await? > deleted {
                return Ok(Outcome::ChangedSince);
            }
            writer.ask(&shape.unbury(), &key).await?;
        }
    }
    record(writer, shape, difference, now, won, before.as_deref()).await?;
    // Last, since an error after it would count as progress of the origin.
    let stamp = "SELECT pg_catalog.pg_replication_origin_xact_setup(coalesce((SELECT lsn FROM antiphon.progress \
                 WHERE node = $1), pg_catalog.pg_current_wal_insert_lsn()), $2)";
    let author = won.version.node.number().to_string();
    // A time that nobody remembers is before all others, and zero is none.
    let at = won.version.at.max(CommitTime(1)).0;
    writer.ask(stamp, &[Param::Text(Some(author.as_bytes())), Param::Long(at)]).await?;
    writer.ask("COMMIT", &[]).await?;
    Ok(Outcome::Done)
}

/// Writes a row; false if somebody else came first.
async fn put(
    writer: &mut Session,
    shape: &Shape,
    row: &[Text],
    before: Option<&[Text]>,
    key: &Key,
) -> Result<bool, WireError> {
    let value = |at: usize| Param::Text(row[at].as_deref());
    let fixed = (0..shape.columns.len()).filter(|at| {
        // Neither a key nor such an identity can be changed in place.
        shape.is_key(*at) || shape.columns[*at].identity_always
    });
    if before.is_some_and(|before| fixed.into_iter().all(|at| before[at] == row[at])) {
        let order = shape.settable().into_iter().chain(shape.key.iter().copied());
        let values: Vec<_> = order.map(value).collect();
        return Ok(writer.ask(&shape.update(), &values).await?.affected == 1);
    }
    if before.is_some() {
        writer.ask(&shape.delete(), &texts(key)).await?;
    }
    let values: Vec<_> = (0..row.len()).map(value).collect();
    Ok(writer.ask(&shape.insert_if_absent(), &values).await?.affected == 1)
}

/// The latest delete of a key that is remembered.
async fn deleted(
    writer: &mut Session,
    reader: &Node,
    here: &Reading,
    key: &Key,
) -> Result<Option<Version>, WireError> {
    let rows = writer.ask(&here.look(), &texts(key)).await?.rows;
    let row = rows.first().map(Vec::as_slice).unwrap_or_default();
    let deletes = [row.get(4..), row.get(6..)].into_iter().flatten();
    Ok(deletes.filter(|row| row[1].is_some()).map(|row| reader.version(row)).max())
}

/// Writes what was done into the node's history of conflicts.
async fn record(
    writer: &mut Session,
    shape: &Shape,
    difference: &Difference,
    was: Sight,
    won: &Winner,
    before: Option<&[Text]>,
) -> Result<(), WireError> {
    let whole = |row: &[Text]| to_json(shape, 0..shape.columns.len(), row).to_string();
    let (before, after) = (before.map(whole), won.row.as_deref().map(whole));
    let key = key_json(shape, &difference.key).to_string();
    let table = shape.oid.to_string();
    let was = was.version();
    let was_node = was.map(|version| version.node.number().to_string());
    let node = won.version.node.number().to_string();
    let optional = |text: &'_ Option<String>| text.clone().map(String::into_bytes);
    let (before, after, was_node) = (optional(&before), optional(&after), optional(&was_node));
    let insert = "INSERT INTO antiphon.conflicts (rel, kind, resolution, key, local_row, local_node, local_at, \
                  remote_row, remote_node, remote_at, remote_lsn) \
                  VALUES ($1::oid, 'repaired', 'apply_remote', $2, $3, $4, $5, $6, $7, $8, '0/0')";
    let params = [
        Param::Text(Some(table.as_bytes())),
        Param::Text(Some(key.as_bytes())),
        Param::Text(before.as_deref()),
        Param::Text(was_node.as_deref()),
        was.map_or(Param::Text(None), |version| Param::Long(version.at.0)),
        Param::Text(after.as_deref()),
        Param::Text(Some(node.as_bytes())),
        Param::Long(won.version.at.0),
    ];
    writer.ask(insert, &params).await?;
    Ok(())
}

fn key_json(shape: &Shape, key: &Key) -> Json {
    let values: Vec<Text> = key.iter().map(|value| Some(value.clone().into())).collect();
    to_json(shape, shape.key.iter().copied(), &values)
}

fn said(shape: &Shape, job: &Job<'_>, won: &Winner, before: Option<&[Text]>, outcome: Outcome) -> Repaired {
    let whole = |row: &[Text]| to_json(shape, 0..shape.columns.len(), row);
    Repaired {
        table: shape.table(),
        key: key_json(shape, &job.difference.key),
        node: job.node,
        before: before.map(whole),
        after: won.row.as_deref().map(whole),
        from: won.node,
        version: won.version,
        outcome,
    }
}
