//! The rows of a node that joins: what everybody has had for long as one copy, the rest with its own times.
//!
//! A row's time decides every later conflict, and a transaction has one time. What is older than anything that can
//! still arrive may have any such time; what is newer is copied in one transaction for each time and node.

use std::collections::HashMap;
use std::pin::pin;

use antiphon_core::Lsn;
use antiphon_core::mesh::NodeId;
use futures_util::{SinkExt, StreamExt};
use tokio_postgres::Client;

use super::SetupError;
use super::join::Progress;
use crate::members::Names;
use crate::name::{Literal, Quoted};
use crate::shape::Shape;

/// Up to when the donor had seen everybody, in microseconds since 2000.
#[derive(Clone, Copy, Debug)]
pub(super) struct Horizon {
    /// No change that is older can arrive any more.
    pub(super) seen_to: i64,
    /// The time that rows get which are older than that.
    pub(super) stamp: i64,
}

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
        let seen_to = self.horizon.seen_to;
        let time = format!("coalesce({MICROS}, {})", i64::MIN + 1);
        if old_ones {
            let old = format!("SELECT {columns} FROM {from} t WHERE {time} <= {seen_to}");
            rows += self.copy(&old, to, columns, self.donor_id, self.horizon.stamp, bytes).await?;
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
            rows += self.copy(&recent, to, columns, node.unwrap_or(self.donor_id), at, bytes).await?;
        }
        Ok(rows)
    }

    async fn copy(
        &self,
        rows: &str,
        to: &str,
        columns: &str,
        node: NodeId,
        at: i64,
        bytes: &mut u64,
    ) -> Result<u64, SetupError> {
        let origin = Literal(&self.names.origin(node)).to_string();
        let begin = format!(
            "SELECT pg_catalog.pg_replication_origin_session_reset() \
                 WHERE pg_catalog.pg_replication_origin_session_is_setup(); \
             SELECT pg_catalog.pg_replication_origin_session_setup({origin}); BEGIN"
        );
        self.target.batch_execute(&begin).await?;
        let out = self.donor.copy_out(&format!("COPY ({rows}) TO STDOUT")).await?;
        let into = self.target.copy_in(&format!("COPY {to} ({columns}) FROM STDIN")).await?;
        let (mut out, mut into) = (pin!(out), pin!(into));
        while let Some(piece) = out.next().await {
            let piece = piece?;
            *bytes += piece.len() as u64;
            into.send(piece).await?;
        }
        let rows = into.finish().await?;
        let setup = format!(
            "SELECT pg_catalog.pg_replication_origin_xact_setup('{}', \
             timestamptz '2000-01-01 00:00:00+00' + {at} * interval '1 microsecond'); COMMIT",
            self.begin
        );
        self.target.batch_execute(&setup).await?;
        Ok(rows)
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
