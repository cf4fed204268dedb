//! A node that leaves, or is parted after its death: the others forget it, and what was kept for it goes.
//!
//! Nobody is let go before everybody has what it wrote. A node that lives is written to by nobody any more, and is
//! waited for until the others have its log. Of one that is dead the others level up to the one that has most.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use antiphon_core::Lsn;
use antiphon_core::mesh::NodeId;
use tokio_postgres::Client;

use super::level::{self, Survivor};
use super::{SetupError, install};
use crate::dsn::Dsn;
use crate::manage::{id, pause};
use crate::members::{self, Member, Names};
use crate::name::{Literal, Quoted};
use crate::node::{self, Own};

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
    /// Do not wait until the others have what it wrote, and do not level them.
    pub force: bool,
}

/// How long the others may take to apply the log of the one that leaves.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

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
    let others: Vec<&Member> =
        members.iter().filter(|member| member.state == "active" && member.id != goes.id).collect();
    let mut held = None;
    if goes.state == "active" && !others.is_empty() && !leaving.force {
        match reach(leaving, goes, own.id).await {
            Ok(living) => held = Some(wait_until_safe(living, &others, &own.names, &goes.name).await?),
            Err(_) => level::level(&survivors(leaving, &others, own.id).await?, goes, &own.names).await?,
        }
    }
    let mut untold = Vec::new();
    for member in members.iter().filter(|member| member.takes_part() || member.id == goes.id) {
        if held.is_some() && member.id == goes.id {
            continue;
        }
        let told = match member.id == own.id {
            true => tell(&client, member, goes, &own.names).await,
            false => tell_other(leaving, member, goes, &own).await,
        };
        if let Err(error) = told {
            untold.push(format!("node {} does not know of it yet: {error}", member.name));
        }
    }
    if let Some(held) = held {
        dismantle(&held, &own.names).await?;
        held.batch_execute("COMMIT").await?;
    }
    Ok(untold)
}

/// How a node is reached from here.
fn dsn_of(leaving: &Leaving, member: &Member, own: NodeId) -> Result<Dsn, SetupError> {
    match leaving.peers.get(&member.name) {
        _ if member.id == own => Ok(leaving.connect.clone()),
        Some(dsn) => Ok(dsn.clone()),
        None => Dsn::parse(&member.connect, &leaving.env)
            .map_err(|error| SetupError::Refused(format!("node {}: {error}", member.name))),
    }
}

/// Connects to a node, if it is still one.
async fn reach(leaving: &Leaving, member: &Member, own: NodeId) -> Result<Client, SetupError> {
    let client = dsn_of(leaving, member, own)?.control("antiphon mesh leave").await?;
    client.batch_execute("SET search_path = ''").await?;
    match node::own(&client).await?.id == member.id {
        true => Ok(client),
        false => Err(SetupError::Refused(format!("another node answers for {}", member.name))),
    }
}

/// Those who stay, all of them: one that cannot be asked may have most of what a dead node wrote.
async fn survivors(leaving: &Leaving, others: &[&Member], own: NodeId) -> Result<Vec<Survivor>, SetupError> {
    let mut survivors = Vec::new();
    for member in others {
        let client = reach(leaving, member, own).await.map_err(|error| {
            SetupError::Refused(format!(
                "node {} cannot be reached, and may have more of what the one that is gone wrote than all others: {error}; \
                 repeat this when it can, or say --force to leave nodes different",
                member.name
            ))
        })?;
        let dsn = dsn_of(leaving, member, own)?;
        survivors.push(Survivor { id: member.id, name: member.name.clone(), dsn, client });
    }
    Ok(survivors)
}

/// Waits until the others have all that a node wrote, and keeps anybody from writing more: the session that is given
/// back holds all tables until its transaction ends.
async fn wait_until_safe(
    client: Client,
    others: &[&Member],
    names: &Names,
    name: &str,
) -> Result<Client, SetupError> {
    pause(&client, None, true).await?;
    let safe = async {
        for other in others {
            level::wait_until_free(&client, &names.origin(other.id)).await?;
        }
        lock(&client, name).await?;
        let message = "SELECT pg_catalog.pg_logical_emit_message(false, 'antiphon.leave', '')::text";
        let end: String = client.query_one(message, &[]).await?.get(0);
        let end = end.parse().map_err(|error| SetupError::Refused(format!("{error}")))?;
        wait_for_readers(&client, others, names, name, end).await
    };
    if let Err(error) = safe.await {
        client.batch_execute("ROLLBACK").await?;
        pause(&client, None, false).await?;
        return Err(error);
    }
    Ok(client)
}

/// Locks all tables against writers.
async fn lock(client: &Client, name: &str) -> Result<(), SetupError> {
    let tables = install::shapes(client).await?;
    let tables = tables.iter().map(|shape| shape.table().to_string()).collect::<Vec<_>>().join(", ");
    client.batch_execute("BEGIN; SET LOCAL lock_timeout = '10s'").await?;
    if tables.is_empty() {
        return Ok(());
    }
    let lock = format!("LOCK TABLE {tables} IN SHARE ROW EXCLUSIVE MODE");
    let locked = client.batch_execute(&format!("{lock}; SET LOCAL lock_timeout = 0")).await;
    locked.map_err(|error| match error.code().map(|code| code.code()) {
        Some("55P03" | "40P01") => SetupError::Refused(format!(
            "somebody is writing on node {name}: stop its clients and repeat this, or say --force to lose what the \
             others have not applied yet"
        )),
        _ => error.into(),
    })
}

async fn wait_for_readers(
    client: &Client,
    others: &[&Member],
    names: &Names,
    name: &str,
    end: Lsn,
) -> Result<(), SetupError> {
    let deadline = Instant::now() + PATIENCE;
    for other in others {
        let reached = "SELECT confirmed_flush_lsn >= $2::text::pg_lsn, confirmed_flush_lsn::text \
                       FROM pg_catalog.pg_replication_slots WHERE slot_name = $1";
        loop {
            let slot = names.slot(other.id);
            let row = client.query_opt(reached, &[&slot, &end.to_string()]).await?;
            let (has, at) = row.map_or((false, None), |row| {
                (row.get::<_, Option<bool>>(0).unwrap_or_default(), row.get::<_, Option<String>>(1))
            });
            if has {
                break;
            }
            if Instant::now() > deadline {
                let at = at.unwrap_or_else(|| "nothing".into());
                return Err(SetupError::Refused(format!(
                    "node {} has safely applied of node {name} what stands before {at} in its log, and not yet what stands \
                     before {end}: see `antiphon mesh status` there and repeat this, or say --force to lose the rest",
                    other.name
                )));
            }
            tokio::time::sleep(POLL).await;
        }
    }
    Ok(())
}

async fn tell_other(leaving: &Leaving, member: &Member, goes: &Member, own: &Own) -> Result<(), SetupError> {
    let client = dsn_of(leaving, member, own.id)?.control("antiphon mesh leave").await?;
    client.batch_execute("SET search_path = ''").await?;
    tell(&client, member, goes, &own.names).await
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
