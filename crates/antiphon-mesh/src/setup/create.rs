//! The first node of a mesh.

use antiphon_core::mesh::NodeId;
use tokio_postgres::Client;

use super::{SetupError, check, install};
use crate::dsn::Dsn;
use crate::members::Names;
use crate::name::{Quoted, TableName};

/// A mesh to be made.
#[derive(Clone, Debug)]
pub struct Creation {
    /// Its name.
    pub mesh: String,
    /// What its first node is called.
    pub node: String,
    /// The node's database.
    pub connect: Dsn,
    /// How others reach it.
    pub advertise: String,
    /// Patterns of its tables, as psql has them: `public.*`, `orders`.
    pub tables: Vec<String>,
}

/// Makes a database the first node of a mesh. Gives the tables that take part.
///
/// # Errors
/// What has to be put right first; or a server's refusal, after which nothing is left behind.
pub async fn create(creation: &Creation) -> Result<Vec<TableName>, SetupError> {
    Names::new(&creation.mesh, "").map_err(SetupError::Refused)?;
    check_name(&creation.node)?;
    let client = creation.connect.control("antiphon mesh create").await?;
    client.batch_execute("SET search_path = ''; SET lock_timeout = '10s'").await?;
    if let Ok(own) = crate::node::own(&client).await {
        return Err(SetupError::Refused(format!(
            "this database is a node of mesh {} already",
            own.names.mesh
        )));
    }
    let tables = matching(&client, &creation.tables).await?;
    let findings = check(&client, &tables).await?;
    if !findings.is_empty() {
        return Err(SetupError::NotReady { findings });
    }
    client.batch_execute("BEGIN").await?;
    install::schema(&client).await?;
    let first = NodeId::new(1).expect("one is not zero");
    let insert = "INSERT INTO antiphon.mesh (name, id, node, system_id) \
        SELECT $1, pg_catalog.gen_random_uuid(), 1, system_identifier::text FROM pg_catalog.pg_control_system()";
    client.execute(insert, &[&creation.mesh]).await?;
    let insert = "INSERT INTO antiphon.nodes (id, name, connect, state) VALUES (1, $1, $2, 'active')";
    client.execute(insert, &[&creation.node, &creation.advertise]).await?;
    let names = Names::new(&creation.mesh, "").map_err(SetupError::Refused)?;
    install::origins(&client, &names, first, true).await?;
    take_in(&client, &names, &tables).await?;
    client.batch_execute("COMMIT").await?;
    tracing::info!(mesh = creation.mesh, node = creation.node, %first, tables = tables.len(), "created");
    Ok(tables)
}

/// Lets tables take part here, and publishes them.
pub(super) async fn take_in(client: &Client, names: &Names, tables: &[TableName]) -> Result<(), SetupError> {
    for table in tables {
        install::table(client, table).await?;
    }
    let listed = tables.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let of = if tables.is_empty() { String::new() } else { format!(" FOR TABLE {listed}") };
    let release = "SELECT pg_catalog.current_setting('server_version_num')::int";
    let release: i32 = client.query_one(release, &[]).await?.get(0);
    // From 18 on a table whose identity is the whole row cannot be updated unless all of that is published.
    let with = if release >= 180_000 { " WITH (publish_generated_columns = stored)" } else { "" };
    let publish = format!("CREATE PUBLICATION {}{of}{with}", Quoted(&names.publication()));
    Ok(client.batch_execute(&publish).await?)
}

/// Refuses names that nobody could type.
pub(super) fn check_name(node: &str) -> Result<(), SetupError> {
    let sound = (1..=63).contains(&node.len()) && !node.chars().any(|c| c.is_control() || c.is_whitespace());
    if sound {
        return Ok(());
    }
    Err(SetupError::Refused(format!("{node:?} cannot be a node's name: use 1 to 63 bytes without blanks")))
}

/// The tables that these patterns name.
async fn matching(client: &Client, patterns: &[String]) -> Result<Vec<TableName>, SetupError> {
    let all = "SELECT n.nspname, c.relname FROM pg_catalog.pg_class c \
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
        WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' \
        AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'antiphon') ORDER BY 1, 2";
    let rows = client.query(all, &[]).await?;
    let all: Vec<TableName> =
        rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect();
    let mut chosen = Vec::new();
    for pattern in patterns {
        let (schema, name) = pattern.split_once('.').unwrap_or(("public", pattern));
        let fits = |table: &&TableName| wildcard(schema, &table.schema) && wildcard(name, &table.name);
        let found: Vec<_> = all.iter().filter(fits).cloned().collect();
        if found.is_empty() {
            return Err(SetupError::Refused(format!(
                "there is no table {pattern}: name tables as SCHEMA.TABLE, with * for any"
            )));
        }
        chosen.extend(found);
    }
    chosen.sort();
    chosen.dedup();
    Ok(chosen)
}

/// Whether a text fits a pattern, in which `*` stands for anything.
fn wildcard(pattern: &str, text: &str) -> bool {
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut pieces = pieces.peekable();
    if pieces.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(piece) = pieces.next() {
        if pieces.peek().is_none() {
            return rest.ends_with(piece);
        }
        let Some(at) = rest.find(piece) else { return false };
        rest = &rest[at + piece.len()..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::wildcard;

    #[test]
    fn a_star_stands_for_anything_and_nothing_else_does() {
        for (pattern, text, fits) in [
            ("*", "anything", true),
            ("orders", "orders", true),
            ("orders", "orders2", false),
            ("ord*", "orders", true),
            ("*ers", "orders", true),
            ("o*d*s", "orders", true),
            ("o*x*s", "orders", false),
            ("a_c", "abc", false),
        ] {
            assert_eq!(wildcard(pattern, text), fits, "{pattern} {text}");
        }
    }
}
