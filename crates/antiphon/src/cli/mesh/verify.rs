//! `mesh verify`, `mesh repair`: whether all nodes have the same rows, and making them the same.

use antiphon_core::mesh::Choice;
use antiphon_mesh::dsn::Dsn;
use antiphon_mesh::members;
use antiphon_mesh::name::TableName;
use antiphon_mesh::verify::{self, Options, Outcome, Repair, Report, Site};
use clap::Args;

use super::{FileArgs, refused};
use crate::cli::failure::Failure;

/// Most rows of a table that are printed.
const LISTED_MAX: usize = 20;

/// `mesh verify`.
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    file: FileArgs,
    /// Only this table, as SCHEMA.TABLE; may be given more than once
    #[arg(long, value_name = "TABLE")]
    table: Vec<String>,
    /// Read at most so many rows a second on each node
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u32).range(1..))]
    rows_per_second: Option<u32>,
}

/// `mesh repair`.
#[derive(Debug, Args)]
pub(super) struct RepairArgs {
    #[command(flatten)]
    what: VerifyArgs,
    /// What this node has is to stand; without it, the latest write
    #[arg(long, value_name = "NODE")]
    winner: Option<String>,
    /// Write; without it, only say what would be written
    #[arg(long)]
    write: bool,
}

pub(super) async fn verify(args: &VerifyArgs) -> Result<(), Failure> {
    let sites = sites(&args.file).await?;
    let report = compare(args, &sites).await?;
    print(&report);
    if report.is_equal() {
        return Ok(());
    }
    Err(Failure::Refused(match report.diverged() {
        0 => "not every row could be compared".into(),
        rows => format!("{rows} rows differ; antiphon mesh repair says what would make them the same"),
    }))
}

pub(super) async fn repair(args: &RepairArgs) -> Result<(), Failure> {
    let sites = sites(&args.what.file).await?;
    let winner = |name: &String| {
        let site = sites.iter().find(|site| site.name == *name);
        site.ok_or_else(|| Failure::Usage(format!("there is no node {name} in the mesh")))
    };
    let choice = match &args.winner {
        Some(name) => Choice::Node(winner(name)?.id),
        None => Choice::Latest,
    };
    let report = compare(&args.what, &sites).await?;
    let repair = Repair { choice, write: args.write };
    let done = verify::repair(&sites, &report, repair, |row| {
        println!("{} {} on node {}: {}", row.table, row.key, name_of(&sites, row.node), row.outcome);
    });
    let done = done.await.map_err(|error| Failure::Refused(error.to_string()))?;
    let left = done.iter().filter(|row| !matches!(row.outcome, Outcome::Done | Outcome::Planned)).count();
    match (done.is_empty(), args.write, left) {
        (true, ..) => println!("no row differs"),
        (_, false, _) => println!("nothing was written; --write does it"),
        (_, true, 0) => println!("{} rows repaired", done.len()),
        (_, true, left) => return Err(Failure::Refused(format!("{left} rows could not be repaired"))),
    }
    Ok(())
}

async fn compare(args: &VerifyArgs, sites: &[Site]) -> Result<Report, Failure> {
    let table = |name: &String| {
        let (schema, name) = name.split_once('.').unwrap_or(("public", name));
        TableName::new(schema, name)
    };
    let options = Options {
        tables: args.table.iter().map(table).collect(),
        rows_per_second_max: args.rows_per_second,
        ..Options::default()
    };
    let report = verify::verify(sites, &options, |_| {}).await;
    report.map_err(|error| Failure::Refused(error.to_string()))
}

/// Every node that takes part, as this one reaches it.
async fn sites(file: &FileArgs) -> Result<Vec<Site>, Failure> {
    let own = file.read()?;
    let client = file.database().await?;
    let id = antiphon_mesh::node::own(&client).await.map_err(refused)?.id;
    let members = members::read(&client).await.map_err(refused)?;
    let site = |member: members::Member| {
        let dsn = match own.file.peers.get(&member.name) {
            _ if member.id == id => own.file.connect.clone(),
            Some(dsn) => dsn.clone(),
            None => Dsn::parse(&member.connect, &own.env)
                .map_err(|error| Failure::Usage(format!("node {}: {error}", member.name)))?,
        };
        Ok(Site { id: member.id, name: member.name, dsn })
    };
    members.into_iter().filter(members::Member::takes_part).map(site).collect()
}

fn name_of(sites: &[Site], node: antiphon_core::mesh::NodeId) -> String {
    sites.iter().find(|site| site.id == node).map_or_else(|| node.to_string(), |site| site.name.clone())
}

fn print(report: &Report) {
    for table in &report.tables {
        let name = &table.table;
        if let Some(why) = &table.incomparable {
            println!("{name} cannot be compared: {why}");
            continue;
        }
        println!("{name}: {} rows, {} differ", table.rows, table.diverged.len());
        let shown = |key: &verify::Key| format!("{} = {}", table.key.join(", "), key.join(", "));
        for row in table.diverged.iter().take(LISTED_MAX) {
            println!("  {} differs", shown(&row.key));
        }
        if table.diverged.len() > LISTED_MAX {
            println!("  and {} more", table.diverged.len() - LISTED_MAX);
        }
        for row in table.unsettled.iter().take(LISTED_MAX) {
            println!("  {} is not settled: {}", shown(&row.key), row.why);
        }
        if table.cut_short {
            println!("  there are more differences than are listed; the rest was not compared");
        }
    }
}
