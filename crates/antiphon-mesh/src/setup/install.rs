//! What the mesh keeps in a database: its schema, and for each table its tombstones and triggers.

use antiphon_core::mesh::NodeId;
use tokio_postgres::Client;

use super::SetupError;
use crate::crdt;
use crate::members::Names;
use crate::name::{Quoted, TableName};
use crate::shape::{CATALOGUE, Shape};

const SCHEMA: &str = include_str!("../sql/schema.sql");
const TABLE: &str = include_str!("../sql/table.sql");

/// Makes the schema, or what is missing of it.
pub(super) async fn schema(client: &Client) -> Result<(), SetupError> {
    client.batch_execute(SCHEMA).await?;
    Ok(client.batch_execute(crdt::SETUP).await?)
}

/// Makes the replication origins that stand for a node here: what its link writes with, unless the node is this one,
/// and what a repair does. They are there from the first, since links learn only at their beginning who is who.
pub(super) async fn origins(
    client: &Client,
    names: &Names,
    node: NodeId,
    is_own: bool,
) -> Result<(), SetupError> {
    let link = (!is_own).then(|| names.origin(node));
    for origin in link.into_iter().chain([names.repair_origin(node)]) {
        client.execute("SELECT pg_catalog.pg_replication_origin_create($1)", &[&origin]).await?;
    }
    Ok(())
}

/// Lets a table take part here: tombstones, triggers, and an identity with which the log says all that is needed.
pub(super) async fn table(client: &Client, table: &TableName) -> Result<(), SetupError> {
    let insert = "INSERT INTO antiphon.tables (rel) VALUES ($1::text::regclass) ON CONFLICT (rel) DO NOTHING";
    client.execute(insert, &[&table.to_string()]).await?;
    let shape = shape(client, table).await?;
    client.batch_execute(&statements(&shape)).await?;
    // Large values that an update leaves alone are in the log only with the whole old row.
    let toastable = "SELECT c.relreplident <> 'f' AND EXISTS (SELECT FROM pg_catalog.pg_attribute a \
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attstorage <> 'p') \
        FROM pg_catalog.pg_class c WHERE c.oid = $1::oid";
    if client.query_one(toastable, &[&shape.oid]).await?.get(0) {
        client.batch_execute(&format!("ALTER TABLE {table} REPLICA IDENTITY FULL")).await?;
    }
    Ok(())
}

/// A table that takes part here.
pub(super) async fn shape(client: &Client, table: &TableName) -> Result<Shape, SetupError> {
    let shape = shapes(client).await?.into_iter().find(|shape| shape.table() == *table);
    shape.ok_or_else(|| {
        SetupError::Refused(format!("table {table} takes no part here, or has no primary key"))
    })
}

/// The tables that take part here.
pub(super) async fn shapes(client: &Client) -> Result<Vec<Shape>, SetupError> {
    let rows = client.query(CATALOGUE, &[]).await?;
    let read = |row: &tokio_postgres::Row| {
        let text: &str = row.get(0);
        serde_json::from_str(text).map_err(|error| {
            SetupError::Refused(format!("a table cannot be read from the catalogue ({error}): {text}"))
        })
    };
    rows.iter().map(read).collect()
}

fn statements(shape: &Shape) -> String {
    let names: Vec<String> =
        shape.key.iter().map(|at| Quoted(&shape.columns[*at].name).to_string()).collect();
    let of = |row: &str| names.iter().map(|name| format!("{row}.{name}")).collect::<Vec<_>>().join(", ");
    let types = shape.key.iter().map(|at| shape.columns[*at].type_name.clone());
    let is_key = shape.key.iter().enumerate().map(|(nth, at)| {
        let operator = shape.columns[*at].equals.as_deref().unwrap_or("OPERATOR(pg_catalog.=)");
        format!("g.{} {operator} ${}", names[nth], nth + 1)
    });
    TABLE
        .replace("{n}", &shape.id.to_string())
        .replace("{table}", &shape.table().to_string())
        .replace("{key}", &names.join(", "))
        .replace("{first}", &names[0])
        .replace("{old_key}", &of("OLD"))
        .replace("{new_key}", &of("NEW"))
        .replace("{parameters}", &types.collect::<Vec<_>>().join(", "))
        .replace("{is_key}", &is_key.collect::<Vec<_>>().join(" AND "))
}
