//! What people ask of a node and tell it: how it stands, which conflicts there were, pause, resume, skip.
//!
//! All of it is in the node's database, so any client of that could do the same.

use antiphon_core::mesh::{NodeId, Rules};
use serde_json::Value as Json;
use tokio_postgres::Client;

use crate::members;
use crate::node::NodeError;
use crate::shape::{CATALOGUE, Shape};

/// How one other node looks from here.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Its number.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// How it is reached.
    pub connect: String,
    /// Whether it takes part: `joining`, `active`, `left`.
    pub member: String,
    /// What the link from it does; `own` for this node.
    pub link: String,
    /// Why, if it does not stream.
    pub message: Option<String>,
    /// How old the latest of its state is that is complete here, in seconds.
    pub behind_seconds: Option<f64>,
    /// Transactions applied since the node's work began.
    pub applied: Option<i64>,
    /// Conflicts in the history whose change came from it.
    pub conflicts: i64,
}

/// How everybody looks from this node.
///
/// # Errors
/// If its database fails.
pub async fn standing(client: &Client) -> Result<Vec<Standing>, NodeError> {
    let rows = "SELECT n.id, n.name, n.connect, n.state, \
        CASE WHEN n.id = m.node THEN 'own' WHEN l.paused THEN 'paused' \
             WHEN l.at < pg_catalog.clock_timestamp() - interval '10 s' THEN 'not running' \
             ELSE coalesce(l.state, 'not running') END, \
        l.message, \
        CASE WHEN n.id <> m.node THEN extract(epoch FROM pg_catalog.clock_timestamp() - l.complete_to)::float8 END, \
        l.applied, \
        (SELECT pg_catalog.count(*) FROM antiphon.conflicts c WHERE c.remote_node = n.id) \
        FROM antiphon.nodes n CROSS JOIN antiphon.mesh m LEFT JOIN antiphon.links l ON l.node = n.id ORDER BY n.id";
    let read = |row: &tokio_postgres::Row| {
        let id: i16 = row.get(0);
        Standing {
            id: u16::try_from(id).ok().and_then(NodeId::new).expect("the table has a check on it"),
            name: row.get(1),
            connect: row.get(2),
            member: row.get(3),
            link: row.get(4),
            message: row.get(5),
            behind_seconds: row.get(6),
            applied: row.get(7),
            conflicts: row.get(8),
        }
    };
    Ok(client.query(rows, &[]).await?.iter().map(read).collect())
}

/// A table that takes part.
#[derive(Clone, Debug)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// By what its conflicts are decided, as it is stored.
    pub resolver: String,
    /// Columns whose changes add up.
    pub deltas: Vec<String>,
    /// Columns whose values merge.
    pub merging: Vec<String>,
    /// What can go wrong with its resolver.
    pub doubts: Vec<&'static str>,
}

/// The tables that take part here, with what is set for them.
///
/// # Errors
/// If the node's database fails.
pub async fn tables(client: &Client) -> Result<Vec<Table>, NodeError> {
    let mut tables = Vec::new();
    for row in client.query(CATALOGUE, &[]).await? {
        let shape: Shape = serde_json::from_str(row.get(0)).map_err(|error| {
            NodeError::NotSetUp(format!("a table cannot be read from the catalogue ({error})"))
        })?;
        if shape.ledger_of.is_some() {
            continue;
        }
        let names = |at: Vec<usize>| at.into_iter().map(|at| shape.columns[at].name.clone()).collect();
        tables.push(Table {
            name: shape.table().to_string(),
            resolver: shape.resolver.as_str().map_or_else(|| shape.resolver.to_string(), ToOwned::to_owned),
            merging: names(shape.merging()),
            doubts: Rules::from_json(&shape.resolver).map(|rules| rules.doubts()).unwrap_or_default(),
            deltas: shape.deltas,
        });
    }
    Ok(tables)
}

/// A conflict of the history.
#[derive(Clone, Debug)]
pub struct Conflict {
    /// Its number here.
    pub id: i64,
    /// When it was met here.
    pub at: String,
    /// The table.
    pub table: String,
    /// Its kind.
    pub kind: String,
    /// What came of it.
    pub resolution: String,
    /// The row's key.
    pub key: Json,
    /// The row that was here.
    pub local_row: Option<Json>,
    /// Who had written it, and when.
    pub local: Option<String>,
    /// The row that arrived.
    pub remote_row: Option<Json>,
    /// Who wrote it, and when.
    pub remote: String,
}

/// The conflicts after this one, oldest first; the latest ones if there are more than `most`.
///
/// # Errors
/// If the node's database fails.
pub async fn conflicts(client: &Client, after: i64, most: i64) -> Result<Vec<Conflict>, NodeError> {
    let rows = "SELECT * FROM (SELECT c.id, c.at::text, c.rel::text, c.kind, c.resolution, c.key::text, c.local_row::text, \
            ln.name || ' ' || c.local_at, c.remote_row::text, rn.name || ' ' || c.remote_at \
        FROM antiphon.conflicts c LEFT JOIN antiphon.nodes ln ON ln.id = c.local_node \
        JOIN antiphon.nodes rn ON rn.id = c.remote_node \
        WHERE c.id > $1 ORDER BY c.id DESC LIMIT $2) l ORDER BY l.id";
    let json = |text: Option<String>| text.and_then(|text| serde_json::from_str(&text).ok());
    let read = |row: &tokio_postgres::Row| Conflict {
        id: row.get(0),
        at: row.get(1),
        table: row.get(2),
        kind: row.get(3),
        resolution: row.get(4),
        key: json(row.get(5)).unwrap_or_default(),
        local_row: json(row.get(6)),
        local: row.get(7),
        remote_row: json(row.get(8)),
        remote: row.get(9),
    };
    Ok(client.query(rows, &[&after, &most]).await?.iter().map(read).collect())
}

/// Stops applying what a node sends, or goes on; of every node if none is named. Its log is kept meanwhile.
///
/// # Errors
/// If there is no such node, or the database fails.
pub async fn pause(client: &Client, node: Option<&str>, paused: bool) -> Result<Vec<String>, NodeError> {
    let own: i16 = client.query_one("SELECT node FROM antiphon.mesh", &[]).await?.get(0);
    let members = members::read(client).await?.into_iter().filter(|member| {
        member.takes_part()
            && i32::from(member.id.number()) != i32::from(own)
            && node.is_none_or(|node| node == member.name)
    });
    let mut names = Vec::new();
    for member in members {
        let set = "INSERT INTO antiphon.links (node, state, paused) VALUES ($1, 'connecting', $2) \
                   ON CONFLICT (node) DO UPDATE SET paused = excluded.paused";
        client.execute(set, &[&id(member.id), &paused]).await?;
        names.push(member.name);
    }
    match (names.is_empty(), node) {
        (true, Some(node)) => Err(NodeError::NotSetUp(format!("there is no other node {node} in the mesh"))),
        _ => Ok(names),
    }
}

/// How often a wait looks.
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_millis(50);

/// Waits until everything that was committed anywhere before now is applied here; gives the nodes of which it is not
/// after this long.
///
/// # Errors
/// If the node's database fails.
pub async fn wait(client: &Client, patience: std::time::Duration) -> Result<Vec<String>, NodeError> {
    let now: String = client.query_one("SELECT pg_catalog.clock_timestamp()::text", &[]).await?.get(0);
    let late = "SELECT n.name FROM antiphon.nodes n CROSS JOIN antiphon.mesh m LEFT JOIN antiphon.links l ON l.node = n.id \
        WHERE n.state = 'active' AND n.id <> m.node \
        AND coalesce(l.complete_to, '-infinity') < $1::text::timestamptz ORDER BY n.id";
    let deadline = std::time::Instant::now() + patience;
    loop {
        let rows = client.query(late, &[&now]).await?;
        if rows.is_empty() || std::time::Instant::now() >= deadline {
            return Ok(rows.iter().map(|row| row.get(0)).collect());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Sets aside the transaction of a node that cannot be applied: its rows go to `antiphon.set_aside`. Gives where in
/// the node's log it ends.
///
/// # Errors
/// If the link does not stand still on one, or the database fails.
pub async fn skip(client: &Client, node: &str) -> Result<String, NodeError> {
    let set = "UPDATE antiphon.links l SET skip = l.failed FROM antiphon.nodes n \
               WHERE n.id = l.node AND n.name = $1 AND l.failed IS NOT NULL RETURNING l.skip::text";
    let row = client.query_opt(set, &[&node]).await?;
    row.map(|row| row.get(0)).ok_or_else(|| {
        NodeError::NotSetUp(format!(
            "no transaction of node {node} fails to be applied here: there is nothing to skip"
        ))
    })
}

pub(crate) fn id(node: NodeId) -> i16 {
    i16::try_from(node.number()).expect("numbers are smallint")
}
