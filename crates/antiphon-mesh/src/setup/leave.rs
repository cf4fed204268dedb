//! A node that leaves, or is parted after its death: the others forget it, and what was kept for it goes.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::SetupError;
use crate::dsn::Dsn;
use crate::manage::id;
use crate::members::{self, Member, Names};
use crate::name::{Literal, Quoted};
use crate::node;

/// A node to be taken out.
#[derive(Clone, Debug)]
pub struct Leaving {
    /// A node's database; not that of the one that leaves, if that is dead.
    pub connect: Dsn,
    /// Who leaves; the node itself if none is named.
    pub node: Option<String>,
    /// How to reach others, where that differs from what is written down; by name.
    pub peers: BTreeMap<String, Dsn>,
    /// The environment, for passwords.
    pub env: BTreeMap<String, String>,
}

/// Takes a node out; gives what could not be told, one sentence each: to be repeated when they can be reached.
///
/// # Errors
/// If there is no such node, or the database at hand fails.
pub async fn leave(leaving: &Leaving) -> Result<Vec<String>, SetupError> {
    let client = leaving.connect.control("antiphon mesh leave").await?;
    client.batch_execute("SET search_path = ''").await?;
    let own = node::own(&client).await?;
    let members = members::read(&client).await?;
    let goes = members.iter().find(|member| match &leaving.node {
        Some(name) => *name == member.name,
        None => member.id == own.id,
    });
    let goes = goes.ok_or_else(|| {
        let names: Vec<_> = members.iter().map(|member| member.name.as_str()).collect();
        SetupError::Refused(format!("there is no such node; there are {}", names.join(", ")))
    })?;
    let mut untold = Vec::new();
    for member in members.iter().filter(|member| member.takes_part() || member.id == goes.id) {
        let told = match member.id == own.id {
            true => tell(&client, member, goes, &own.names).await,
            false => tell_other(leaving, member, goes, &own.names).await,
        };
        if let Err(error) = told {
            untold.push(format!("node {} does not know of it yet: {error}", member.name));
        }
    }
    Ok(untold)
}

async fn tell_other(
    leaving: &Leaving,
    member: &Member,
    goes: &Member,
    names: &Names,
) -> Result<(), SetupError> {
    let dsn = match leaving.peers.get(&member.name) {
        Some(dsn) => dsn.clone(),
        None => Dsn::parse(&member.connect, &leaving.env)
            .map_err(|error| SetupError::Refused(error.to_string()))?,
    };
    let client = dsn.control("antiphon mesh leave").await?;
    client.batch_execute("SET search_path = ''").await?;
    tell(&client, member, goes, names).await
}

async fn tell(client: &Client, member: &Member, goes: &Member, names: &Names) -> Result<(), SetupError> {
    if member.id == goes.id {
        return dismantle(client, names).await;
    }
    let left = "UPDATE antiphon.nodes SET state = 'left' WHERE id = $1";
    client.execute(left, &[&id(goes.id)]).await?;
    client.execute("DELETE FROM antiphon.links WHERE node = $1", &[&id(goes.id)]).await?;
    drop_slot(client, &names.slot(goes.id)).await
}

/// Drops a slot; whoever reads from it is sent away first.
async fn drop_slot(client: &Client, slot: &str) -> Result<(), SetupError> {
    let end = "SELECT pg_catalog.pg_terminate_backend(active_pid, 5000) FROM pg_catalog.pg_replication_slots \
               WHERE slot_name = $1 AND active_pid IS NOT NULL";
    client.execute(end, &[&slot]).await?;
    let drop = "SELECT pg_catalog.pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots \
                WHERE slot_name = $1";
    client.execute(drop, &[&slot]).await?;
    Ok(())
}

/// Takes away what the mesh made in a database, but for its data types: columns may be of them.
async fn dismantle(client: &Client, names: &Names) -> Result<(), SetupError> {
    for member in members::read(client).await? {
        drop_slot(client, &names.slot(member.id)).await?;
        for origin in [names.origin(member.id), names.repair_origin(member.id)] {
            let drop = format!(
                "SELECT pg_catalog.pg_replication_origin_drop(roname) FROM pg_catalog.pg_replication_origin \
                 WHERE roname = {}",
                Literal(&origin)
            );
            client.batch_execute(&drop).await?;
        }
    }
    let mut statements = format!("DROP PUBLICATION IF EXISTS {};", Quoted(&names.publication()));
    let tables = "SELECT id, CASE WHEN ledger_of IS NOT NULL THEN rel::text END FROM antiphon.tables";
    for row in client.query(tables, &[]).await? {
        let (table, ledger): (i32, Option<String>) = (row.get(0), row.get(1));
        if let Some(ledger) = ledger {
            statements += &format!("DROP TABLE IF EXISTS {ledger} CASCADE;");
        }
        for function in ["bury", "move", "empty", "alive", "count"] {
            statements += &format!("DROP FUNCTION IF EXISTS antiphon.{function}_{table} CASCADE;");
        }
        statements += &format!("DROP TABLE IF EXISTS antiphon.gone_{table};");
    }
    for table in ["set_aside", "conflicts", "links", "progress", "truncations", "tables", "nodes", "mesh"] {
        statements += &format!("DROP TABLE IF EXISTS antiphon.{table};");
    }
    Ok(client.batch_execute(&statements).await?)
}
