//! Sequences are every node's own: where two nodes give out the same number, one of two new rows is lost. So each gives
//! out every so-many-eth number, beginning with its own.

use tokio_postgres::Client;

use super::SetupError;

/// How far apart the numbers are that one node gives out: as many nodes can have numbers of their own.
pub const STEP: i64 = 32;

/// Unique columns that get their values from a sequence which gives out every number: the sequence, its last number, this
/// node's, and a query for the greatest value that is there.
const CLOSE: &str = "SELECT s.oid::regclass::text, coalesce(pg_catalog.pg_sequence_last_value(s.oid), 0), m.node::bigint, \
    pg_catalog.format('SELECT coalesce(max(%I), 0)::bigint FROM %s', a.attname, a.attrelid::regclass) \
    FROM antiphon.mesh m, antiphon.tables t JOIN pg_catalog.pg_attribute a ON a.attrelid = t.rel AND NOT a.attisdropped \
    JOIN pg_catalog.pg_depend d ON d.refobjid = a.attrelid AND d.refobjsubid = a.attnum AND d.deptype IN ('a', 'i') \
    JOIN pg_catalog.pg_class s ON s.oid = d.objid AND s.relkind = 'S' \
    JOIN pg_catalog.pg_sequence q ON q.seqrelid = s.oid WHERE q.seqincrement = 1 \
    AND EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = t.rel AND i.indisunique AND i.indkey[0] = a.attnum) \
    ORDER BY 1";

/// What lets this node's sequences give out numbers that no other node gives out: a statement for each that does not yet.
/// The search path of `client` must be empty.
///
/// # Errors
/// If the server cannot be asked.
pub async fn sequences(client: &Client) -> Result<Vec<String>, SetupError> {
    let mut statements = Vec::new();
    for row in client.query(CLOSE, &[]).await? {
        let (sequence, last, node, greatest): (String, i64, i64, String) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        let greatest: i64 = client.query_one(&greatest, &[]).await?.get(0);
        let next = (last.max(greatest) / STEP + 1) * STEP + node;
        statements.push(format!("ALTER SEQUENCE {sequence} INCREMENT BY {STEP} RESTART WITH {next}"));
    }
    Ok(statements)
}

/// Runs what [`sequences`] gives, and gives it.
///
/// # Errors
/// What the server refuses. What was run until then stays so.
pub async fn spread_sequences(client: &Client) -> Result<Vec<String>, SetupError> {
    let statements = sequences(client).await?;
    for statement in &statements {
        client.batch_execute(statement).await?;
    }
    Ok(statements)
}
