//! One more table: on every node at the same time, while it is empty.
//!
//! First everybody can apply its changes, then everybody publishes them. A row that somebody inserts in between is
//! seen under a lock, and the table is refused there rather than begun with different rows.

use std::collections::BTreeMap;

use antiphon_core::mesh::NodeId;
use tokio_postgres::Client;

use super::{SetupError, check, install};
use crate::dsn::Dsn;
use crate::members;
use crate::name::{Quoted, TableName};
use crate::node;

/// A table that is to take part.
#[derive(Clone, Debug)]
pub struct Addition {
    /// A node's database.
    pub connect: Dsn,
    /// The table, which is on every node, the same and empty.
    pub table: TableName,
    /// How to reach others, where that differs from what is written down; by name.
    pub peers: BTreeMap<String, Dsn>,
    /// The environment, for passwords.
    pub env: BTreeMap<String, String>,
}

/// Makes the data types whose values merge, and nothing else, so that tables can have columns of them before their
/// database is a node.
///
/// # Errors
/// What the server refuses.
pub async fn types(connect: &Dsn) -> Result<(), SetupError> {
    let client = connect.control("antiphon mesh types").await?;
    client.batch_execute("SET search_path = ''").await?;
    install::schema(&client).await
}

/// Lets a table take part on all nodes.
///
/// # Errors
/// What has to be put right first, on which node; or what a server refuses. It can be repeated then.
pub async fn add_table(addition: &Addition) -> Result<(), SetupError> {
    let client = addition.connect.control("antiphon mesh add-table").await?;
    client.batch_execute("SET search_path = ''").await?;
    let own = node::own(&client).await?;
    let nodes = everybody(&client, own.id, &addition.connect, &addition.peers, &addition.env).await?;
    let mut findings = Vec::new();
    for (name, client) in &nodes {
        for mut finding in check(client, std::slice::from_ref(&addition.table)).await? {
            finding.what = format!("node {name}: {}", finding.what);
            findings.push(finding);
        }
    }
    if !findings.is_empty() {
        return Err(SetupError::NotReady { findings });
    }
    for (_, client) in &nodes {
        install::table(client, &addition.table).await?;
    }
    for (name, client) in &nodes {
        publish(client, name, &addition.table, &own.names.publication()).await?;
    }
    Ok(())
}

/// Connects to all nodes that take part; this one, whose database `client` is of, among them.
pub(super) async fn everybody(
    client: &Client,
    own: NodeId,
    connect: &Dsn,
    peers: &BTreeMap<String, Dsn>,
    env: &BTreeMap<String, String>,
) -> Result<Vec<(String, Client)>, SetupError> {
    let mut nodes = Vec::new();
    for member in members::read(client).await?.into_iter().filter(members::Member::takes_part) {
        let dsn = match peers.get(&member.name) {
            _ if member.id == own => connect.clone(),
            Some(dsn) => dsn.clone(),
            None => Dsn::parse(&member.connect, env)
                .map_err(|error| SetupError::Refused(format!("node {}: {error}", member.name)))?,
        };
        let client = dsn.control("antiphon mesh set-up").await.map_err(|error| {
            SetupError::Refused(format!(
                "node {} cannot be reached, and every node must agree about its tables: {error}",
                member.name
            ))
        })?;
        client.batch_execute("SET search_path = ''; SET lock_timeout = '10s'").await?;
        nodes.push((member.name, client));
    }
    Ok(nodes)
}

async fn publish(
    client: &Client,
    node: &str,
    table: &TableName,
    publication: &str,
) -> Result<(), SetupError> {
    let published = "SELECT FROM pg_catalog.pg_publication_tables WHERE pubname = $1 AND schemaname = $2 AND tablename = $3";
    if client.query_opt(published, &[&publication, &table.schema, &table.name]).await?.is_some() {
        return Ok(());
    }
    client.batch_execute(&format!("BEGIN; LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE")).await?;
    let any = client.query_one(&format!("SELECT EXISTS (SELECT FROM {table})"), &[]).await?;
    if any.get::<_, bool>(0) {
        client.batch_execute("ROLLBACK").await?;
        return Err(SetupError::Refused(format!(
            "{table} has rows on node {node}: empty it there and repeat this; insert rows when it takes part"
        )));
    }
    let add = format!("ALTER PUBLICATION {} ADD TABLE {table}; COMMIT", Quoted(publication));
    Ok(client.batch_execute(&add).await?)
}
