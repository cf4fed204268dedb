//! One node that is compared: a session that only reads, one statement at a time, each with a snapshot of its own.

use std::collections::{BTreeMap, HashMap};

use antiphon_core::Lsn;
use antiphon_core::mesh::{CommitTime, Content, NodeId, Sight, Version};
use bytes::Bytes;

use super::range::{Digest, Key, Range};
use super::statements::{Reading, bounds, texts};
use super::{Options, Site, VerifyError};
use crate::members::{self, Names};
use crate::name::TableName;
use crate::session::{Param, Session};
use crate::shape::{CATALOGUE, Shape};

/// What makes the text of a value the same everywhere, and keeps statements to the key's index and one process.
const SETTINGS: [(&str, &str); 17] = [
    ("search_path", ""),
    ("DateStyle", "ISO"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "1"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
    ("quote_all_identifiers", "off"),
    // A policy that hides rows from this role is to be an error, not a difference.
    ("row_security", "off"),
    ("default_transaction_isolation", "read committed"),
    ("idle_in_transaction_session_timeout", "0"),
    ("lock_timeout", "10s"),
    ("plan_cache_mode", "force_custom_plan"),
    ("enable_seqscan", "off"),
    ("enable_sort", "off"),
    ("jit", "off"),
    ("max_parallel_workers_per_gather", "0"),
];

/// A node.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) name: String,
    pub(super) session: Session,
    pub(super) names: Names,
    /// The tables that take part there.
    pub(super) shapes: BTreeMap<TableName, Shape>,
    /// Who takes part, as it is written down there.
    pub(super) members: Vec<NodeId>,
    origins: HashMap<u32, NodeId>,
}

impl Node {
    /// Connects and reads what is there.
    pub(super) async fn open(site: &Site, options: &Options) -> Result<Self, VerifyError> {
        let control = site.dsn.control("antiphon mesh verify").await?;
        control.batch_execute("SET search_path = ''").await?;
        let own = crate::node::own(&control).await?;
        if own.id != site.id {
            return Err(VerifyError::Stranger { expected: site.name.clone(), found: own.id });
        }
        let mut shapes = BTreeMap::new();
        for row in control.query(CATALOGUE, &[]).await? {
            let shape: Shape = serde_json::from_str(row.get(0))
                .map_err(|error| VerifyError::Catalogue { node: site.name.clone(), error })?;
            shapes.insert(shape.table(), shape);
        }
        let mut origins = HashMap::from([(0, own.id)]);
        let rows = "SELECT roident::bigint, roname FROM pg_catalog.pg_replication_origin";
        for row in control.query(rows, &[]).await? {
            let (number, name): (i64, String) = (row.get(0), row.get(1));
            if let (Ok(number), Some(node)) = (u32::try_from(number), own.names.node_of_origin(&name)) {
                origins.insert(number, node);
            }
        }
        let members = members::read(&control).await?;
        let members = members.iter().filter(|member| member.state == "active").map(|member| member.id);
        let timeout = options.statement_timeout.as_millis().to_string();
        let own_settings = [("statement_timeout", timeout.as_str()), ("default_transaction_read_only", "on")];
        let settings: Vec<_> = SETTINGS.iter().chain(&own_settings).copied().collect();
        Ok(Self {
            id: own.id,
            name: site.name.clone(),
            session: Session::with(&site.dsn, "antiphon mesh verify", &settings).await?,
            names: own.names,
            shapes,
            members: members.collect(),
            origins,
        })
    }

    /// The settings of a session that writes what such a one reads.
    pub(super) fn settings_to_write() -> Vec<(&'static str, &'static str)> {
        let text = SETTINGS.iter().filter(|(name, _)| !name.starts_with("enable_")).copied();
        text.chain([("session_replication_role", "replica"), ("synchronous_commit", "on")]).collect()
    }

    pub(super) async fn digest(
        &mut self,
        reading: &Reading,
        range: &Range,
        rows_max: u64,
    ) -> Result<Digest, VerifyError> {
        let mut params = bounds(range);
        params.push(long(rows_max));
        let answer = self.session.ask(&reading.digest(range), &params).await?;
        let row = answer.rows.first().map(Vec::as_slice).unwrap_or_default();
        let rows = row.first().and_then(integer).map_or(0, i64::unsigned_abs);
        let sum = |at: usize| row.get(at).map(text).unwrap_or_default();
        Ok(Digest { rows, sums: [sum(1), sum(2)] })
    }

    /// The key of the last of the first so many rows of a range; none if there are not so many.
    pub(super) async fn bound(
        &mut self,
        reading: &Reading,
        range: &Range,
        rows: u64,
    ) -> Result<Option<Key>, VerifyError> {
        let mut params = bounds(range);
        params.push(long(rows.saturating_sub(1)));
        let answer = self.session.ask(&reading.bound(range), &params).await?;
        Ok(answer.rows.first().map(|row| key(row)))
    }

    pub(super) async fn cuts(
        &mut self,
        reading: &Reading,
        range: &Range,
        rows_max: u64,
        every: u64,
    ) -> Result<Vec<Key>, VerifyError> {
        let mut params = bounds(range);
        params.extend([long(rows_max), long(every)]);
        let answer = self.session.ask(&reading.cuts(range), &params).await?;
        Ok(answer.rows.iter().map(|row| key(row)).collect())
    }

    pub(super) async fn rows(
        &mut self,
        reading: &Reading,
        range: &Range,
        rows_max: u64,
    ) -> Result<BTreeMap<Key, Content>, VerifyError> {
        let mut params = bounds(range);
        params.push(long(rows_max));
        let answer = self.session.ask(&reading.rows(range), &params).await?;
        Ok(answer.rows.iter().map(|row| (key(&row[2..]), content(row))).collect())
    }

    /// What is under these keys, in their order.
    pub(super) async fn look(&mut self, reading: &Reading, keys: &[Key]) -> Result<Vec<Sight>, VerifyError> {
        let answer = self.session.ask_each(&reading.look(), keys.iter().map(texts)).await?;
        let sight = |row: &Vec<Option<Bytes>>| match row[2] {
            Some(_) => Sight::Row { version: self.version(row), content: content(&row[2..]) },
            None => {
                let deletes = [&row[4..], &row[6..]].into_iter().filter(|row| row[1].is_some());
                let latest = deletes.map(|row| self.version(row)).max();
                latest.map_or(Sight::Absent, Sight::Gone)
            }
        };
        Ok(answer.rows.iter().map(sight).collect())
    }

    /// How far its own log is written, and how far each other's is applied there.
    pub(super) async fn positions(&mut self) -> Result<BTreeMap<NodeId, Lsn>, VerifyError> {
        let positions = "SELECT node, lsn FROM antiphon.progress UNION ALL \
                         SELECT node, pg_catalog.pg_current_wal_insert_lsn() FROM antiphon.mesh";
        let answer = self.session.ask(positions, &[]).await?;
        let position = |row: &Vec<Option<Bytes>>| {
            let node = integer(&row[0]).and_then(|node| NodeId::new(u16::try_from(node).ok()?))?;
            Some((node, text(&row[1]).parse().ok()?))
        };
        Ok(answer.rows.iter().filter_map(position).collect())
    }

    /// Leaves a message in the log that is for nobody: where nothing happens, others hear late how far it goes, and the
    /// node's own work takes its time to say what it has applied.
    pub(super) async fn nudge(&mut self) -> Result<(), VerifyError> {
        self.session
            .ask("SELECT pg_catalog.pg_logical_emit_message(true, 'antiphon.verify', '')", &[])
            .await?;
        Ok(())
    }

    /// When and where something was written, from the two values that say so. What came by an origin that stands for
    /// no node counts as written where it is.
    pub(super) fn version(&self, row: &[Option<Bytes>]) -> Version {
        let at = integer(&row[0]).map_or(CommitTime::UNKNOWN, CommitTime);
        let origin = integer(&row[1]).and_then(|origin| u32::try_from(origin).ok());
        let node = origin.and_then(|origin| self.origins.get(&origin)).copied();
        Version { at, node: node.unwrap_or(self.id) }
    }
}

fn long(value: u64) -> Param<'static> {
    Param::Long(i64::try_from(value).unwrap_or(i64::MAX))
}

fn text(value: &Option<Bytes>) -> String {
    value.as_ref().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default()
}

fn integer(value: &Option<Bytes>) -> Option<i64> {
    std::str::from_utf8(value.as_ref()?).ok()?.parse().ok()
}

fn key(row: &[Option<Bytes>]) -> Key {
    row.iter().map(text).collect()
}

/// A content, from its two hashes.
pub(super) fn content(row: &[Option<Bytes>]) -> Content {
    let hash = |at: usize| integer(&row[at]).unwrap_or_default();
    Content(hash(0), hash(1))
}
