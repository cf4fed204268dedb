//! Every link of a mesh as both of its ends see it: what it does, and how far behind it is in time and in bytes.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use crate::dsn::Dsn;
use crate::manage;
use crate::members::{self, Member};
use crate::node::{NodeError, own};

/// What one node reads of another.
#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    /// Whose log is read.
    pub from: String,
    /// Who reads it.
    pub to: String,
    /// What it does, as its reader says: `streaming`, `paused`, ...; `unreachable` if the reader cannot be asked.
    pub state: String,
    /// How old the latest of the writer's state is that is complete at the reader, in seconds.
    pub behind_seconds: Option<f64>,
    /// How much of the writer's log its reader has not confirmed; none if the writer cannot be asked.
    pub behind_bytes: Option<i64>,
    /// Why it does not stream.
    pub message: Option<String>,
}

/// What a node says of the links that end or begin there.
struct Side {
    incoming: BTreeMap<String, manage::Standing>,
    outgoing: BTreeMap<String, i64>,
}

/// All links between the nodes that take part, as seen by all that can be reached. `client` is of this node's database.
///
/// # Errors
/// If this node's database fails.
pub async fn links(
    client: &Client,
    connect: &Dsn,
    peers: &BTreeMap<String, Dsn>,
    env: &BTreeMap<String, String>,
) -> Result<Vec<Link>, NodeError> {
    let here = own(client).await?;
    let members: Vec<Member> =
        members::read(client).await?.into_iter().filter(|member| member.state == "active").collect();
    let mut sides = BTreeMap::new();
    for member in &members {
        let dsn = match peers.get(&member.name) {
            _ if member.id == here.id => Ok(connect.clone()),
            Some(dsn) => Ok(dsn.clone()),
            None => Dsn::parse(&member.connect, env).map_err(|error| error.to_string()),
        };
        let side = match dsn {
            Ok(dsn) => ask(&dsn, &members).await.map_err(|error| error.to_string()),
            Err(why) => Err(why),
        };
        sides.insert(member.name.clone(), side);
    }
    let pairs = members.iter().flat_map(|from| members.iter().map(move |to| (from, to)));
    Ok(pairs
        .filter(|(from, to)| from.id != to.id)
        .map(|(from, to)| {
            let (writer, reader) = (&sides[&from.name], &sides[&to.name]);
            let standing = reader.as_ref().ok().and_then(|side| side.incoming.get(&from.name));
            Link {
                from: from.name.clone(),
                to: to.name.clone(),
                state: standing.map_or("unreachable", |standing| &standing.link).to_owned(),
                behind_seconds: standing.and_then(|standing| standing.behind_seconds),
                behind_bytes: writer.as_ref().ok().and_then(|side| side.outgoing.get(&to.name)).copied(),
                message: match reader {
                    Ok(_) => standing.and_then(|standing| standing.message.clone()),
                    Err(why) => Some(why.clone()),
                },
            }
        })
        .collect())
}

async fn ask(dsn: &Dsn, members: &[Member]) -> Result<Side, NodeError> {
    let client = dsn.control("antiphon").await?;
    client.batch_execute("SET search_path = ''").await?;
    let names = own(&client).await?.names;
    let incoming = manage::standing(&client).await?;
    let incoming = incoming.into_iter().map(|standing| (standing.name.clone(), standing)).collect();
    let mut outgoing = BTreeMap::new();
    for member in members {
        let behind = "SELECT pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), confirmed_flush_lsn)::bigint \
                      FROM pg_catalog.pg_replication_slots WHERE slot_name = $1";
        if let Some(row) = client.query_opt(behind, &[&names.slot(member.id)]).await? {
            outgoing.extend(row.get::<_, Option<i64>>(0).map(|bytes| (member.name.clone(), bytes)));
        }
    }
    Ok(Side { incoming, outgoing })
}

/// Who reads whom, a line for each writer and a column for each reader, with what each link does.
#[must_use]
pub fn drawn(links: &[Link]) -> String {
    let mut names: Vec<&str> = links.iter().flat_map(|link| [link.from.as_str(), link.to.as_str()]).collect();
    names.sort_unstable();
    names.dedup();
    let cell = |from: &str, to: &str| {
        let link = links.iter().find(|link| link.from == from && link.to == to);
        match link.map(|link| link.state.as_str()) {
            None => "·".to_owned(),
            Some("streaming") => "──►".to_owned(),
            Some(state) => format!("─✗─ {state}"),
        }
    };
    let wide = |column: &str| {
        let cells = names.iter().map(|from| cell(from, column).chars().count());
        cells.chain([column.chars().count()]).max().unwrap_or(0)
    };
    let first = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max(4);
    let mut text = format!("{:first$}", "");
    for to in &names {
        text += &format!("  {to:<width$}", width = wide(to));
    }
    for from in &names {
        text.truncate(text.trim_end().len());
        text += &format!("\n{from:<first$}");
        for to in &names {
            text += &format!("  {:<width$}", cell(from, to), width = wide(to));
        }
    }
    text.truncate(text.trim_end().len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_link_is_drawn_with_what_it_does() {
        let link = |from: &str, to: &str, state: &str| Link {
            from: from.into(),
            to: to.into(),
            state: state.into(),
            behind_seconds: None,
            behind_bytes: None,
            message: None,
        };
        let links = [link("db1", "db2", "streaming"), link("db2", "db1", "paused")];
        assert_eq!(drawn(&links), "      db1         db2\ndb1   ·           ──►\ndb2   ─✗─ paused  ·");
    }
}
