//! `mesh status`, `mesh conflicts`.

use std::time::Duration;

use antiphon_mesh::links;
use antiphon_mesh::manage::{self, Conflict, Standing};
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

/// `mesh topology`.
#[derive(Debug, Args)]
pub(super) struct TopologyArgs {
    #[command(flatten)]
    file: FileArgs,
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
    let unwell: Vec<String> = standing
        .iter()
        .filter(|node| node.member == "active" && !matches!(node.link.as_str(), "own" | "streaming"))
        .map(|node| unwell(node, &args.file))
        .collect();
    let rows = standing.iter().map(|node| {
        let behind = node.behind_seconds.filter(|_| node.member == "active");
        let behind = behind.map(|behind| (behind * 10.0).round() / 10.0);
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
    let mut rows = Rows {
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
    if args.format == Format::Pretty {
        // Sentences make no columns: they follow.
        rows.columns.pop();
        rows.rows.iter_mut().for_each(|row| row.truncate(rows.columns.len()));
    }
    print!("{}", show(args.format, &rows));
    if unwell.is_empty() {
        return Ok(());
    }
    Err(Failure::Refused(unwell.join("\nantiphon: ")))
}

/// Every link, how far it is behind.
pub(super) async fn lag(args: &StatusArgs) -> Result<(), Failure> {
    let links = all_links(&args.file).await?;
    let rows = links.iter().map(|link| {
        let seconds = link.behind_seconds.map(|behind| (behind * 10.0).round() / 10.0);
        vec![
            json!(link.from),
            json!(link.to),
            json!(link.state),
            json!(seconds),
            json!(link.behind_bytes),
            json!(link.message),
        ]
    });
    let rows = Rows {
        title: "Links".into(),
        columns: vec![
            left("From"),
            left("To"),
            left("Link"),
            right("Behind s"),
            right("Behind bytes"),
            left("Why"),
        ],
        names: vec!["from", "to", "link", "behind_seconds", "behind_bytes", "why"],
        rows: rows.collect(),
        colour: colour(),
        constant: None,
    };
    print!("{}", show(args.format, &rows));
    Ok(())
}

/// Who reads whom.
pub(super) async fn topology(args: &TopologyArgs) -> Result<(), Failure> {
    let links = all_links(&args.file).await?;
    println!("{}", links::drawn(&links));
    let broken: Vec<String> = links
        .iter()
        .filter(|link| link.state != "streaming")
        .map(|link| {
            let why = link.message.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
            format!("what {} writes does not reach {} ({}){why}", link.from, link.to, link.state)
        })
        .collect();
    if broken.is_empty() { Ok(()) } else { Err(Failure::Refused(broken.join("\nantiphon: "))) }
}

async fn all_links(file: &FileArgs) -> Result<Vec<links::Link>, Failure> {
    let (client, own) = (file.database().await?, file.read()?);
    links::links(&client, &own.file.connect, &own.file.peers, &own.env).await.map_err(refused)
}

/// What is set for each table.
pub(super) async fn tables(args: &StatusArgs) -> Result<(), Failure> {
    let client = args.file.database().await?;
    let tables = manage::tables(&client).await.map_err(refused)?;
    let rows = tables.iter().map(|table| {
        let listed = |names: &[String]| json!(names.join(", "));
        vec![json!(table.name), json!(table.resolver), listed(&table.deltas), listed(&table.merging)]
    });
    let rows = Rows {
        title: "Tables".into(),
        columns: vec![left("Table"), left("Resolver"), left("Add up"), left("Merge")],
        names: vec!["table", "resolver", "add_up", "merge"],
        rows: rows.collect(),
        colour: colour(),
        constant: None,
    };
    print!("{}", show(args.format, &rows));
    for (table, doubt) in tables.iter().flat_map(|table| table.doubts.iter().map(move |doubt| (table, doubt)))
    {
        eprintln!("antiphon: {}: {doubt}", table.name);
    }
    Ok(())
}

/// What is wrong with a link, and what to do.
fn unwell(node: &Standing, file: &FileArgs) -> String {
    let (name, file) = (&node.name, file.file.display());
    let why = node.message.as_deref().unwrap_or("no reason is known yet");
    match node.link.as_str() {
        "not running" => format!("nothing of {name} is applied here: start `antiphon run {file}`"),
        "paused" => {
            format!("nothing of {name} is applied here until `antiphon mesh resume --node {name} {file}`")
        }
        "stopped" => format!(
            "the link from {name} is stopped: {why}. Put right what is in its way, or set the transaction aside with \
             `antiphon mesh skip --node {name} {file}`"
        ),
        state => format!("the link from {name} is {state}: {why}"),
    }
}

pub(super) async fn conflicts(args: &ConflictsArgs) -> Result<(), Failure> {
    let client = args.file.database().await?;
    let mut last = 0;
    let found = manage::conflicts(&client, last, args.limit).await.map_err(refused)?;
    last = found.last().map_or(last, |conflict| conflict.id);
    if !args.follow {
        let pretty = args.format == Format::Pretty;
        let rows = Rows {
            title: "Conflicts".into(),
            columns: vec![
                right("Id"),
                left("At"),
                left("Table"),
                left("Key"),
                left("Kind"),
                left("Stands"),
                left("Given up"),
            ],
            names: NAMES.to_vec(),
            rows: found.iter().map(if pretty { in_short } else { cells }).collect(),
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

/// A conflict for people: what stands, what was given up, and of both only where they differ.
fn in_short(conflict: &Conflict) -> Vec<Value> {
    let node = |text: &str| text.split(' ').next().unwrap_or_default().to_owned();
    let (local, remote) = (&conflict.local_row, &conflict.remote_row);
    let local_node = conflict.local.as_deref().map_or_else(|| "nobody".to_owned(), node);
    let sides = [
        format!("{local_node}: {}", differing(local.as_ref(), remote.as_ref())),
        format!("{}: {}", node(&conflict.remote), differing(remote.as_ref(), local.as_ref())),
    ];
    let [local, remote] = sides;
    let (stands, given_up) =
        if conflict.resolution == "apply_remote" { (remote, local) } else { (local, remote) };
    let to_millis = conflict.at.get(..23).unwrap_or(&conflict.at);
    vec![
        json!(conflict.id),
        json!(to_millis),
        json!(conflict.table),
        conflict.key.clone(),
        json!(conflict.kind),
        json!(stands),
        json!(given_up),
    ]
}

/// The values of a row that another one has not.
fn differing(row: Option<&Value>, other: Option<&Value>) -> String {
    let Some(Value::Object(row)) = row else { return "no row".to_owned() };
    let other = other.and_then(Value::as_object);
    let own = row.iter().filter(|(column, value)| other.and_then(|other| other.get(*column)) != Some(value));
    Value::Object(own.map(|(column, value)| (column.clone(), value.clone())).collect()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_see_who_won_and_what_differs() {
        let conflict = Conflict {
            id: 7,
            at: "2026-01-02 03:04:05.678901+00".into(),
            table: "public.item".into(),
            kind: "update_origin_differs".into(),
            resolution: "keep_local".into(),
            key: json!({"id": "1"}),
            local_row: Some(json!({"id": "1", "price": "2", "name": "a"})),
            local: Some("eu 2026-01-02 03:04:05+00".into()),
            remote_row: Some(json!({"id": "1", "price": "3", "name": "a"})),
            remote: "us 2026-01-02 03:04:04+00".into(),
        };
        let short = in_short(&conflict);
        assert_eq!(short[1], "2026-01-02 03:04:05.678");
        assert_eq!(short[5], r#"eu: {"price":"2"}"#);
        assert_eq!(short[6], r#"us: {"price":"3"}"#);
        let gone = Conflict { local_row: None, resolution: "apply_remote".into(), ..conflict };
        assert_eq!(in_short(&gone)[6], "eu: no row");
    }
}
