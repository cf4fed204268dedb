//! `mesh status`, `mesh conflicts`.

use std::time::Duration;

use antiphon_mesh::manage::{self, Conflict};
use clap::Args;
use serde_json::{Value, json};

use super::{FileArgs, refused};
use crate::cli::failure::Failure;
use crate::cli::output::{Format, Rows, colour, show};
use crate::cli::table::{left, right};

/// How often `--follow` looks.
const FOLLOW_EVERY: Duration = Duration::from_millis(500);

/// `mesh status`.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    file: FileArgs,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    format: Format,
}

/// `mesh conflicts`.
#[derive(Debug, Args)]
pub(super) struct ConflictsArgs {
    #[command(flatten)]
    file: FileArgs,
    /// How to show them
    #[arg(short, long, value_enum, default_value_t)]
    format: Format,
    /// At most so many, the latest
    #[arg(short = 'n', long, default_value_t = 20, value_parser = clap::value_parser!(i64).range(1..=100_000))]
    limit: i64,
    /// Go on showing those that come, a line of JSON each
    #[arg(long)]
    follow: bool,
}

pub(super) async fn status(args: &StatusArgs) -> Result<(), Failure> {
    let client = args.file.database().await?;
    let standing = manage::standing(&client).await.map_err(refused)?;
    let mesh = client.query_one("SELECT name FROM antiphon.mesh", &[]).await;
    let mesh: String = mesh.map_err(refused)?.get(0);
    let unwell: Vec<&str> = standing
        .iter()
        .filter(|node| node.member == "active" && !matches!(node.link.as_str(), "own" | "streaming"))
        .map(|node| node.name.as_str())
        .collect();
    let rows = standing.iter().map(|node| {
        let behind =
            node.behind_seconds.filter(|_| node.member == "active").map(|behind| format!("{behind:.1}"));
        vec![
            json!(node.id.number()),
            json!(node.name),
            json!(node.member),
            json!(node.link),
            json!(behind),
            json!(node.applied),
            json!(node.conflicts),
            json!(node.message),
        ]
    });
    let rows = Rows {
        title: format!("Mesh: {mesh}"),
        columns: vec![
            right("Id"),
            left("Node"),
            left("Member"),
            left("Link"),
            right("Behind s"),
            right("Applied"),
            right("Conflicts"),
            left("Why"),
        ],
        names: vec!["id", "node", "member", "link", "behind_seconds", "applied", "conflicts", "why"],
        rows: rows.collect(),
        colour: colour(),
        constant: Some(("mesh", &mesh)),
    };
    print!("{}", show(args.format, &rows));
    if unwell.is_empty() {
        return Ok(());
    }
    Err(Failure::Refused(format!("the link from {} is not well", unwell.join(", "))))
}

pub(super) async fn conflicts(args: &ConflictsArgs) -> Result<(), Failure> {
    let client = args.file.database().await?;
    let mut last = 0;
    let found = manage::conflicts(&client, last, args.limit).await.map_err(refused)?;
    last = found.last().map_or(last, |conflict| conflict.id);
    if !args.follow {
        let rows = Rows {
            title: "Conflicts".into(),
            columns: vec![
                right("Id"),
                left("At"),
                left("Table"),
                left("Kind"),
                left("Resolution"),
                left("Key"),
                left("Local"),
                left("Local row"),
                left("Remote"),
                left("Remote row"),
            ],
            names: NAMES.to_vec(),
            rows: found.iter().map(cells).collect(),
            colour: false,
            constant: None,
        };
        print!("{}", show(args.format, &rows));
        return Ok(());
    }
    let mut found = found;
    loop {
        for conflict in &found {
            let pairs = NAMES.iter().zip(cells(conflict)).map(|(name, value)| ((*name).to_owned(), value));
            println!("{}", Value::Object(pairs.collect()));
        }
        tokio::time::sleep(FOLLOW_EVERY).await;
        found = manage::conflicts(&client, last, i64::from(u32::MAX)).await.map_err(refused)?;
        last = found.last().map_or(last, |conflict| conflict.id);
    }
}

const NAMES: [&str; 10] =
    ["id", "at", "table", "kind", "resolution", "key", "local", "local_row", "remote", "remote_row"];

fn cells(conflict: &Conflict) -> Vec<Value> {
    vec![
        json!(conflict.id),
        json!(conflict.at),
        json!(conflict.table),
        json!(conflict.kind),
        json!(conflict.resolution),
        conflict.key.clone(),
        json!(conflict.local),
        json!(conflict.local_row),
        json!(conflict.remote),
        json!(conflict.remote_row),
    ]
}
