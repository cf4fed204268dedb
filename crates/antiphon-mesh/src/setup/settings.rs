//! What is set for a table, on every node alike: by what its conflicts are decided, and columns whose changes are added
//! up.
//!
//! For those, first everybody has the ledger, then everybody publishes it, then everybody enters what is counted, and last the
//! rows that are there already are entered by one node, from where they reach the others.

use std::collections::BTreeMap;
use std::time::Duration;

use antiphon_core::mesh::{Conflict, Resolver, Rules};
use serde_json::Value as Json;
use tokio_postgres::Client;

use super::add::everybody;
use super::preflight::finding;
use super::{Finding, SetupError, install};
use crate::dsn::Dsn;
use crate::manage;
use crate::members::{self, Member, Names};
use crate::name::{Quoted, TableName};
use crate::node;
use crate::shape::Shape;

/// Settings of a table.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A node's database.
    pub connect: Dsn,
    /// The table, which takes part.
    pub table: TableName,
    /// Columns whose changes are to be added up from now on; none: as it is.
    pub deltas: Vec<String>,
    /// What decides its conflicts from now on, as [`rule`] reads it, one after the other; none: as it is.
    pub resolvers: Vec<String>,
    /// How to reach others, where that differs from what is written down; by name.
    pub peers: BTreeMap<String, Dsn>,
    /// The environment, for passwords.
    pub env: BTreeMap<String, String>,
}

/// How long the others may take to apply what is entered of the rows that are there.
const FILL_PATIENCE: Duration = Duration::from_secs(30);

/// What came of setting them.
#[derive(Clone, Debug, Default)]
pub struct Set {
    /// What can go wrong with how conflicts are decided now.
    pub doubts: Vec<&'static str>,
    /// Nodes that have not applied yet what is entered of the rows that are there: nobody should count there before they
    /// have.
    pub late: Vec<String>,
}

/// Sets them on all nodes.
///
/// # Errors
/// What has to be put right first, on which node; or what a server refuses. It can be repeated then.
pub async fn set_table(settings: &Settings) -> Result<Set, SetupError> {
    let client = settings.connect.control("antiphon mesh set-table").await?;
    client.batch_execute("SET search_path = ''; SET lock_timeout = '10s'").await?;
    let own = node::own(&client).await?;
    let nodes = everybody(&client, own.id, &settings.connect, &settings.peers, &settings.env).await?;
    let mut set = Set::default();
    if !settings.resolvers.is_empty() {
        set.doubts = decide(&client, &nodes, settings).await?;
    }
    if !settings.deltas.is_empty() {
        set.late = count(&client, &nodes, &own.names, settings).await?;
    }
    Ok(set)
}

/// Lets conflicts be decided otherwise from now on; gives what can go wrong with that.
async fn decide(
    own: &Client,
    nodes: &[(String, Client)],
    settings: &Settings,
) -> Result<Vec<&'static str>, SetupError> {
    let members = members::read(own).await?;
    let mut rules = Rules::default();
    for text in &settings.resolvers {
        let (kind, resolver) = rule(text, &members)?;
        rules.set(kind, resolver);
    }
    let mut shapes = Vec::new();
    for (_, client) in nodes {
        shapes.push(install::shape(client, &settings.table).await?);
    }
    for ((_, client), shape) in nodes.iter().zip(shapes) {
        set_rules(client, &shape, &rules.to_json()).await?;
        begin_links_anew(client).await?;
    }
    Ok(rules.doubts())
}

async fn set_rules(client: &Client, shape: &Shape, rules: &Json) -> Result<(), SetupError> {
    let set = "UPDATE antiphon.tables SET resolver = $2::text::jsonb WHERE id = $1";
    client.execute(set, &[&shape.id, &rules.to_string()]).await?;
    Ok(())
}

/// Reads `RESOLVER` or `KIND=RESOLVER`, where the resolver may be `origin_priority:NODE,NODE`.
fn rule(text: &str, members: &[Member]) -> Result<(Option<Conflict>, Resolver), SetupError> {
    let refused = |why: String| SetupError::Refused(format!("--resolver {text}: {why}"));
    let (kind, resolver) = match text.split_once('=') {
        None => (None, text),
        Some((kind, resolver)) => {
            let decided = Conflict::ALL.into_iter().filter(|kind| *kind != Conflict::MultipleUniqueConflicts);
            let names = decided.clone().map(Conflict::name).collect::<Vec<_>>().join(", ");
            let known = decided.into_iter().find(|known| known.name() == kind);
            (
                Some(known.ok_or_else(|| refused(format!("{kind} is no kind of conflict: use {names}")))?),
                resolver,
            )
        }
    };
    let (name, listed) = resolver.split_once(':').unwrap_or((resolver, ""));
    let mut nodes = Vec::new();
    for name in listed.split(',').filter(|name| !name.is_empty()) {
        let member = members.iter().find(|member| member.name == name && member.takes_part());
        nodes.push(member.ok_or_else(|| refused(format!("there is no node {name} in the mesh")))?.id);
    }
    if name == "origin_priority" && nodes.is_empty() {
        return Err(refused("name the nodes whose writes come first, as origin_priority:db1,db2".into()));
    }
    let resolver = Resolver::named(name, nodes).map_err(|error| refused(error.to_string()))?;
    Ok((kind, resolver))
}

/// Lets changes of columns add up from now on.
async fn count(
    own: &Client,
    nodes: &[(String, Client)],
    names: &Names,
    settings: &Settings,
) -> Result<Vec<String>, SetupError> {
    let (table, columns) = (&settings.table, &settings.deltas);
    let mut findings = Vec::new();
    for (name, client) in nodes {
        for mut finding in check_columns(client, table, columns).await? {
            finding.what = format!("node {name}: {}", finding.what);
            findings.push(finding);
        }
    }
    if !findings.is_empty() {
        return Err(SetupError::NotReady { findings });
    }
    let is_new = install::shape(own, table).await?.ledger.is_none();
    let mut ledgers = Vec::new();
    for (_, client) in nodes {
        ledgers.push(make_ledger(client, table, columns).await?);
        begin_links_anew(client).await?;
    }
    for ((_, client), ledger) in nodes.iter().zip(&ledgers) {
        publish(client, names, ledger).await?;
    }
    for (_, client) in nodes {
        client.batch_execute(&install::shape(client, table).await?.count_here()).await?;
    }
    let fill = install::shape(own, table).await?.fill_ledger(is_new);
    own.batch_execute(&format!("BEGIN; LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE")).await?;
    let filled = own.execute(&fill, &[]).await?;
    own.batch_execute("COMMIT").await?;
    let mut late = Vec::new();
    for (name, client) in nodes {
        if filled > 0 && !manage::wait(client, FILL_PATIENCE).await?.is_empty() {
            late.push(name.clone());
        }
    }
    Ok(late)
}

/// Makes a table's ledger, and lets it take part. Gives its name, which is the same on every node.
async fn make_ledger(
    client: &Client,
    table: &TableName,
    columns: &[String],
) -> Result<TableName, SetupError> {
    let name = "SELECT 'ledger_' || pg_catalog.left(pg_catalog.md5($1), 16)";
    let name: String = client.query_one(name, &[&table.to_string()]).await?.get(0);
    let ledger = TableName::new("antiphon", name);
    let shape = install::shape(client, table).await?;
    if shape.ledger.is_some() {
        return Ok(ledger);
    }
    client.batch_execute("BEGIN").await?;
    client.batch_execute(&shape.make_ledger(&ledger, columns.len())).await?;
    install::table(client, &ledger).await?;
    let of = "UPDATE antiphon.tables SET ledger_of = $2 WHERE rel = $1::text::regclass";
    client.execute(of, &[&ledger.to_string(), &shape.id]).await?;
    let set = "UPDATE antiphon.tables SET deltas = $2 WHERE id = $1";
    client.execute(set, &[&shape.id, &columns]).await?;
    client.batch_execute("COMMIT").await?;
    Ok(ledger)
}

/// Sets on a node that has no rows yet what is set on the others.
pub(super) async fn set_from_the_first(
    client: &Client,
    names: &Names,
    there: &Shape,
) -> Result<(), SetupError> {
    let table = there.table();
    set_rules(client, &install::shape(client, &table).await?, &there.resolver).await?;
    if there.ledger.is_none() {
        return Ok(());
    }
    let ledger = make_ledger(client, &table, &there.deltas).await?;
    publish(client, names, &ledger).await?;
    Ok(client.batch_execute(&install::shape(client, &table).await?.count_here()).await?)
}

async fn publish(client: &Client, names: &Names, table: &TableName) -> Result<(), SetupError> {
    let published = "SELECT FROM pg_catalog.pg_publication_tables WHERE pubname = $1 AND schemaname = $2 AND tablename = $3";
    let publication = names.publication();
    if client.query_opt(published, &[&publication, &table.schema, &table.name]).await?.is_none() {
        let add = format!("ALTER PUBLICATION {} ADD TABLE {table}", Quoted(&publication));
        client.batch_execute(&add).await?;
    }
    Ok(())
}

/// Ends what applies changes by the settings as they were. It connects again within a second and reads them anew.
async fn begin_links_anew(client: &Client) -> Result<(), SetupError> {
    let end = "SELECT pg_catalog.pg_terminate_backend(pid, 5000) FROM pg_catalog.pg_stat_activity \
               WHERE application_name = 'antiphon mesh apply' AND datname = pg_catalog.current_database()";
    client.execute(end, &[]).await?;
    Ok(())
}

/// What keeps these columns from being added up.
async fn check_columns(
    client: &Client,
    table: &TableName,
    columns: &[String],
) -> Result<Vec<Finding>, SetupError> {
    let shape = install::shape(client, table).await?;
    let mut findings = Vec::new();
    if shape.ledger.is_some() && shape.deltas != columns {
        findings.push(finding(
            format!("changes of {} of {table} are added up already", shape.deltas.join(", ")),
            "name just these, in this order: what is added up cannot be changed",
        ));
    }
    for column in columns {
        findings.extend(check_column(client, &shape, column).await?);
    }
    Ok(findings)
}

async fn check_column(client: &Client, shape: &Shape, column: &str) -> Result<Option<Finding>, SetupError> {
    let table = shape.table();
    let Some(at) = shape.columns.iter().position(|known| known.name == column) else {
        return Ok(Some(finding(
            format!("{table} has no column {column} that can be written"),
            "name another",
        )));
    };
    let exact = "SELECT a.attnotnull, y.typname IN ('int2', 'int4', 'int8') OR y.typname = 'numeric' AND a.atttypmod >= 0 \
        FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type y ON y.oid = a.atttypid \
        WHERE a.attrelid = $1::oid AND a.attname = $2 AND y.typnamespace = 'pg_catalog'::regnamespace";
    let row = client.query_opt(exact, &[&shape.oid, &column]).await?;
    let (not_null, exact) = row.map_or((true, false), |row| (row.get(0), row.get(1)));
    let quoted = Quoted(column);
    if shape.is_key(at) {
        return Ok(Some(finding(
            format!("column {column} of {table} is part of the primary key"),
            "name another",
        )));
    }
    if !exact {
        return Ok(Some(finding(
            format!(
                "column {column} of {table} is {}: sums of it depend on their order, or on how it is written",
                shape.columns[at].type_name
            ),
            "make it smallint, integer, bigint or numeric with a scale, as numeric(12,2)",
        )));
    }
    Ok((!not_null).then(|| {
        finding(
            format!("column {column} of {table} may be null, to which nothing can be added"),
            format!("ALTER TABLE {table} ALTER COLUMN {quoted} SET NOT NULL, after making nulls zero"),
        )
    }))
}
