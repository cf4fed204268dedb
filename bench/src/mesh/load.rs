//! The table, what is written to it, and how two copies of it are compared.
//!
//! Rows from 1 up are there to be drawn; row 0 is written last in every backlog, as its end; rows below that are
//! for single questions and never drawn.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::process::Command;
use tokio_postgres::Client;

use super::cell::Cell;
use super::server::Server;
use crate::process::run;

/// Clients and threads of pgbench when it builds a backlog.
const CLIENTS: u64 = 4;
/// How long a backlog may take to build.
const BUILD_LIMIT: Duration = Duration::from_secs(1800);
/// The row that both nodes write at once.
pub(super) const HOT_ROW: i64 = -1000;
/// Rows below zero.
pub(super) const APART: i64 = 1000;

const COLUMNS: &str = "n, n % 1000, repeat(md5(n::text), 2), timestamptz '2026-01-01 00:00:00+00'";

/// Makes the table with so many rows.
pub(super) async fn fill(client: &Client, rows: u64) -> anyhow::Result<()> {
    let statements = [
        "CREATE TABLE bench (id bigint PRIMARY KEY, k int NOT NULL, v varchar(64) NOT NULL, ts timestamptz NOT NULL)".to_string(),
        format!("INSERT INTO bench SELECT {COLUMNS} FROM generate_series(-{APART}, {rows}) n"),
        format!("CREATE SEQUENCE fresh START {}", fresh(rows)),
        "VACUUM (ANALYZE) bench".to_string(),
        "CHECKPOINT".to_string(),
    ];
    for statement in statements {
        client.batch_execute(&statement).await?;
    }
    Ok(())
}

/// The first id of what small transactions insert; the one large INSERT goes below it.
fn fresh(rows: u64) -> u64 {
    10 * rows + 1_000_000
}

/// How much is written.
#[derive(Clone, Copy)]
pub(super) struct Extent {
    pub(super) rows: u64,
    pub(super) transactions: u64,
}

/// Writes a cell's backlog. Gives how many rows or, if it has one each, transactions that is.
pub(super) async fn build(server: &Server, cell: Cell, extent: Extent) -> anyhow::Result<u64> {
    let Extent { rows, transactions } = extent;
    let (first, last) = (2 * rows + 1, 3 * rows);
    let absent = format!("INSERT INTO bench SELECT {COLUMNS} FROM generate_series({first}, {last}) n");
    match cell {
        Cell::Small | Cell::Unjoined => return small(server, rows, transactions).await,
        Cell::Insert => server.run(&[&absent]).await?,
        // Of rows that all are there, whatever was deleted before.
        Cell::Update => {
            let update = format!(
                "UPDATE bench SET k = k + 1, v = repeat(md5(v), 2), ts = clock_timestamp() WHERE id BETWEEN {first} AND {last}"
            );
            server.run(&[&update]).await?;
        }
        Cell::Lag | Cell::Race | Cell::WritersUpdate | Cell::WritersReplace => {
            bail!("{} has no backlog", cell.words())
        }
    }
    Ok(rows)
}

/// The rows of the large UPDATE, as far as the large INSERT has not made them.
pub(super) async fn prepare(server: &Server, extent: Extent) -> anyhow::Result<()> {
    let (first, last) = (2 * extent.rows + 1, 3 * extent.rows);
    let insert = format!(
        "INSERT INTO bench SELECT {COLUMNS} FROM generate_series({first}, {last}) n \
         WHERE NOT EXISTS (SELECT FROM bench WHERE id = {first})"
    );
    server.run(&[&insert]).await
}

async fn small(server: &Server, rows: u64, transactions: u64) -> anyhow::Result<u64> {
    let draw = format!("\\set id random(1, {rows})\n");
    let scripts = [
        ("update", 60, format!("{draw}UPDATE bench SET k = k + 1, ts = clock_timestamp() WHERE id = :id;\n")),
        (
            "insert",
            30,
            "INSERT INTO bench VALUES (nextval('fresh'), 1, repeat(md5(random()::text), 2), clock_timestamp());\n"
                .to_string(),
        ),
        ("delete", 10, format!("{draw}DELETE FROM bench WHERE id = :id;\n")),
    ];
    let each = transactions.div_ceil(CLIENTS);
    let mut command = pgbench(server)?;
    command.args(["-M", "prepared", "-j", "2", "--random-seed=1"]);
    command.args(["-c", &CLIENTS.to_string(), "-t", &each.to_string()]);
    for (name, weight, text) in scripts {
        let script = script(server, name, &text)?;
        command.arg("-f").arg(format!("{}@{weight}", script.display()));
    }
    run(command, BUILD_LIMIT).await.context("pgbench")?;
    Ok(each * CLIENTS)
}

/// A script for pgbench, beside the server.
pub(super) fn script(server: &Server, name: &str, text: &str) -> anyhow::Result<PathBuf> {
    let path = server.place.folder.join(format!("{name}.sql"));
    std::fs::write(&path, text).with_context(|| format!("could not write {}", path.display()))?;
    Ok(path)
}

/// pgbench at this server, whose commits do not wait for the disk: what is measured comes later.
pub(super) fn pgbench(server: &Server) -> anyhow::Result<Command> {
    let mut command = server.place.command(&server.place.bin.join("pgbench"))?;
    command.arg("-h").arg(&server.place.folder).args([
        "-p",
        &server.port.to_string(),
        "-U",
        "postgres",
        "-n",
    ]);
    command.env("PGOPTIONS", "-c synchronous_commit=off").env("PGDATABASE", "postgres");
    Ok(command)
}

/// Writes the row that ends a backlog. Whoever is beyond the position that this gives has all of it.
pub(super) async fn mark(server: &Server) -> anyhow::Result<String> {
    let client = server.client().await?;
    let position = "SELECT pg_current_wal_insert_lsn()::text";
    let position = client.query_one(position, &[]).await?.try_get(0)?;
    client.execute("UPDATE bench SET ts = clock_timestamp() WHERE id = 0", &[]).await?;
    Ok(position)
}

/// What a table holds, in a form that two of them can be compared in.
pub(super) async fn content(server: &Server) -> anyhow::Result<String> {
    let query = "SELECT format('%s rows, ids %s, k %s, hash %s', count(*), sum(id), sum(k), \
                 sum(hashtextextended(b::text, 0)::numeric)) FROM bench b";
    Ok(server.client().await?.query_one(query, &[]).await?.try_get(0)?)
}
