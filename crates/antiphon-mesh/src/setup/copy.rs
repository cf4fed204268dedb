//! The rows of a node that joins: what everybody has had for long as one copy, the rest with its own times.
//!
//! A row's time decides every later conflict, and a transaction has one time. What is older than anything that can
//! still arrive may have any such time; what is newer is copied in one transaction for each time and node.

use std::collections::HashMap;
use std::pin::pin;

use antiphon_core::Lsn;
use antiphon_core::mesh::joining::Horizon;
use antiphon_core::mesh::{CommitTime, NodeId, Version};
use futures_util::{SinkExt, StreamExt};
use tokio_postgres::Client;

use super::SetupError;
use super::join::Progress;
use crate::members::Names;
use crate::name::{Literal, Quoted};
use crate::shape::Shape;

/// A copy under way.
pub(super) struct Copy<'a> {
    pub(super) donor: &'a Client,
    pub(super) donor_id: NodeId,
    pub(super) target: &'a Client,
    pub(super) names: &'a Names,
    pub(super) horizon: Horizon,
    /// Where the newcomer begins to read the donor.
    pub(super) begin: Lsn,
}

/// A time of the donor's rows as microseconds since 2000.
const MICROS: &str =
    "(extract(epoch FROM pg_catalog.pg_xact_commit_timestamp(t.xmin)) * 1000000 - 946684800000000)::bigint";

impl Copy<'_> {
    /// Copies these tables and their tombstones; gives how many rows.
    pub(super) async fn all(
        &self,
        from: &[Shape],
        to: &[Shape],
        tell: &mut impl FnMut(Progress),
    ) -> Result<u64, SetupError> {
        self.target.batch_execute("SET session_replication_role = replica").await?;
        let origins = self.origins().await?;
        let size = "SELECT coalesce(sum(pg_catalog.pg_table_size(rel)), 0)::bigint FROM antiphon.tables";
        let bytes_about: i64 = self.donor.query_one(size, &[]).await?.get(0);
        let (mut rows, mut bytes) = (0, 0);
        for (nth, shape) in from.iter().enumerate() {
            let table = shape.table();
            let told = Progress::Copying {
                table: table.to_string(),
                nth: nth + 1,
                of: from.len(),
                bytes,
                bytes_about: bytes_about.unsigned_abs(),
            };
            tell(told);
            let here = to.iter().find(|here| here.table() == table);
            let here = here.ok_or_else(|| SetupError::Refused(format!("there is no table {table} here")))?;
            let columns = columns(shape);
            rows += self
                .one(&table.to_string(), &table.to_string(), &columns, &origins, &mut bytes, true)
                .await?;
            let key = key_columns(shape);
            self.one(&shape.tombstones(), &here.tombstones(), &key, &origins, &mut bytes, false).await?;
            self.truncation(shape, here, &origins).await?;
        }
        self.target.batch_execute("SELECT pg_catalog.pg_replication_origin_session_reset()").await.or_else(
            |error| {
                // Nothing was copied, so none was set.
                if error.code().is_some_and(|code| code.code() == "55000") { Ok(()) } else { Err(error) }
            },
        )?;
        self.target.batch_execute("RESET session_replication_role").await?;
        Ok(rows)
    }

    /// The node that each replication origin of the donor stands for.
    async fn origins(&self) -> Result<HashMap<u32, NodeId>, SetupError> {
        let rows = "SELECT roident::bigint, roname FROM pg_catalog.pg_replication_origin";
        let mut origins = HashMap::from([(0, self.donor_id)]);
        for row in self.donor.query(rows, &[]).await? {
            let (number, name): (i64, String) = (row.get(0), row.get(1));
            if let (Ok(number), Some(node)) = (u32::try_from(number), self.names.node_of_origin(&name)) {
                origins.insert(number, node);
            }
        }
        Ok(origins)
    }

    async fn one(
        &self,
        from: &str,
        to: &str,
        columns: &str,
        origins: &HashMap<u32, NodeId>,
        bytes: &mut u64,
        old_ones: bool,
    ) -> Result<u64, SetupError> {
        let mut rows = 0;
        // One more, since the least number has no text that is read as one.
        let (seen_to, time) = (self.horizon.seen_to.0.max(i64::MIN + 1), MICROS);
        if old_ones {
            // What has no time is older than everything that has.
            let old = format!("SELECT {columns} FROM {from} t WHERE {time} IS NULL OR {time} <= {seen_to}");
            rows += self.copy(&old, to, columns, self.horizon.stamp, bytes).await?;
        }
        let groups = format!(
            "SELECT DISTINCT {time}, (pg_catalog.pg_xact_commit_timestamp_origin(t.xmin)).roident::bigint \
             FROM {from} t WHERE {time} > {seen_to} ORDER BY 1"
        );
        for group in self.donor.query(&groups, &[]).await? {
            let (at, origin): (i64, i64) = (group.get(0), group.get(1));
            let node = u32::try_from(origin).ok().and_then(|origin| origins.get(&origin)).copied();
            let recent = format!(
                "SELECT {columns} FROM {from} t WHERE {time} = {at} \
                 AND (pg_catalog.pg_xact_commit_timestamp_origin(t.xmin)).roident = {origin}"
            );
            let version = Version { at: CommitTime(at), node: node.unwrap_or(self.donor_id) };
            rows += self.copy(&recent, to, columns, version, bytes).await?;
        }
        Ok(rows)
    }

    async fn copy(
        &self,
        rows: &str,
        to: &str,
        columns: &str,
        version: Version,
        bytes: &mut u64,
    ) -> Result<u64, SetupError> {
        self.begin(version.node).await?;
        let out = self.donor.copy_out(&format!("COPY ({rows}) TO STDOUT")).await?;
        let into = self.target.copy_in(&format!("COPY {to} ({columns}) FROM STDIN")).await?;
        let (mut out, mut into) = (pin!(out), pin!(into));
        while let Some(piece) = out.next().await {
            let piece = piece?;
            *bytes += piece.len() as u64;
            into.send(piece).await?;
        }
        let rows = into.finish().await?;
        self.commit(version.at).await?;
        Ok(rows)
    }

    /// The table's last truncation, if anything older can still arrive. Tables have other numbers here than there.
    async fn truncation(
        &self,
        there: &Shape,
        here: &Shape,
        origins: &HashMap<u32, NodeId>,
    ) -> Result<(), SetupError> {
        let last = format!(
            "SELECT {MICROS}, (pg_catalog.pg_xact_commit_timestamp_origin(t.xmin)).roident::bigint \
             FROM antiphon.truncations t WHERE t.id = $1"
        );
        let Some(row) = self.donor.query_opt(&last, &[&there.id]).await? else { return Ok(()) };
        let (at, origin): (Option<i64>, Option<i64>) = (row.get(0), row.get(1));
        let node = origin.and_then(|origin| origins.get(&u32::try_from(origin).ok()?)).copied();
        let at = at.map_or(CommitTime::UNKNOWN, CommitTime);
        let version = Version { at, node: node.unwrap_or(self.donor_id) };
        if self.horizon.needs(version) && at != CommitTime::UNKNOWN {
            self.begin(version.node).await?;
            self.target.execute("INSERT INTO antiphon.truncations (id) VALUES ($1)", &[&here.id]).await?;
            self.commit(version.at).await?;
        }
        Ok(())
    }

    /// Begins to write in the name of a node.
    async fn begin(&self, node: NodeId) -> Result<(), SetupError> {
        let origin = Literal(&self.names.origin(node)).to_string();
        let begin = format!(
            "SELECT pg_catalog.pg_replication_origin_session_reset() \
                 WHERE pg_catalog.pg_replication_origin_session_is_setup(); \
             SELECT pg_catalog.pg_replication_origin_session_setup({origin}); BEGIN"
        );
        Ok(self.target.batch_execute(&begin).await?)
    }

    /// Ends that with a time. What has none gets the first that there is.
    async fn commit(&self, at: CommitTime) -> Result<(), SetupError> {
        let at = at.0.max(1);
        let setup = format!(
            "SELECT pg_catalog.pg_replication_origin_xact_setup('{}', \
             timestamptz '2000-01-01 00:00:00+00' + {at} * interval '1 microsecond'); COMMIT",
            self.begin
        );
        Ok(self.target.batch_execute(&setup).await?)
    }
}

fn columns(shape: &Shape) -> String {
    listed(shape, 0..shape.columns.len())
}

fn key_columns(shape: &Shape) -> String {
    listed(shape, shape.key.iter().copied())
}

fn listed(shape: &Shape, columns: impl IntoIterator<Item = usize>) -> String {
    let quoted = columns.into_iter().map(|at| Quoted(&shape.columns[at].name).to_string());
    quoted.collect::<Vec<_>>().join(", ")
}
