//! `mesh create`, `mesh join`, `mesh leave`.

use std::io::{IsTerminal, Write};
use std::time::Instant;

use antiphon_mesh::dsn::Dsn;
use antiphon_mesh::name::TableName;
use antiphon_mesh::setup::{self, Addition, Creation, Joining, Leaving, Progress, Settings};
use clap::Args;

use super::{FileArgs, Own, not_set_up, refused, unreachable};
use crate::cli::failure::Failure;

/// `mesh create`.
#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    #[command(flatten)]
    file: FileArgs,
    /// The mesh's name: lower-case letters, digits and _
    #[arg(long, value_name = "NAME")]
    name: String,
    /// Tables that take part, as SCHEMA.TABLE, with * for any; may be given more than once
    #[arg(long, value_name = "PATTERN", default_value = "public.*")]
    table: Vec<String>,
}

/// `mesh join`.
#[derive(Debug, Args)]
pub(super) struct JoinArgs {
    #[command(flatten)]
    file: FileArgs,
    /// A connection string of a node that takes part already; the rows come from it
    #[arg(long, value_name = "CONNECTION")]
    from: String,
}

/// `mesh add-table`.
#[derive(Debug, Args)]
pub(super) struct AddTableArgs {
    #[command(flatten)]
    file: FileArgs,
    /// The table, as SCHEMA.TABLE
    #[arg(long, value_name = "TABLE")]
    table: String,
}

/// `mesh set-table`.
#[derive(Debug, Args)]
pub(super) struct SetTableArgs {
    #[command(flatten)]
    file: FileArgs,
    /// The table, as SCHEMA.TABLE
    #[arg(long, value_name = "TABLE")]
    table: String,
    /// A column whose changes on all nodes are added up from now on; may be given more than once
    #[arg(long, value_name = "COLUMN", required_unless_present = "resolver")]
    delta: Vec<String>,
    /// What decides its conflicts from now on: last_update_wins, first_update_wins, origin_priority:NODE,NODE, keep_local,
    /// apply_remote or error; or KIND=RESOLVER for one kind of conflict; may be given more than once
    #[arg(long, value_name = "RESOLVER")]
    resolver: Vec<String>,
}

/// `mesh types`.
#[derive(Debug, Args)]
pub(super) struct TypesArgs {
    #[command(flatten)]
    file: FileArgs,
}

/// `mesh sequences`.
#[derive(Debug, Args)]
pub(super) struct SequencesArgs {
    #[command(flatten)]
    file: FileArgs,
    /// Run the statements
    #[arg(long)]
    write: bool,
}

/// `mesh leave`.
#[derive(Debug, Args)]
pub(super) struct LeaveArgs {
    #[command(flatten)]
    file: FileArgs,
    /// Another node that leaves, for one that is gone for good
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Do not wait until the others have what it wrote, nor make them the same: what only some have stays different
    #[arg(long)]
    force: bool,
}

pub(super) async fn create(args: CreateArgs) -> Result<(), Failure> {
    let own = args.file.read()?;
    let creation = Creation {
        mesh: args.name.clone(),
        node: own.file.node.clone(),
        connect: own.file.connect.clone(),
        advertise: own.file.advertise.clone(),
        tables: args.table,
    };
    let tables = setup::create(&creation).await.map_err(|error| not_set_up(&own, error))?;
    println!("mesh {} has its first node, {}; its tables:", args.name, own.file.node);
    for table in tables {
        println!("  {table}");
    }
    note_sequences(&own).await?;
    println!("next: antiphon run {}", args.file.file.display());
    Ok(())
}

/// Sequences are every node's own: where two nodes give out the same number, one of two new rows is lost.
async fn note_sequences(own: &Own) -> Result<(), Failure> {
    let client = own.file.connect.control("antiphon").await.map_err(|error| unreachable(own, &error))?;
    client.batch_execute("SET search_path = ''").await.map_err(refused)?;
    let statements = setup::sequences(&client).await.map_err(|error| not_set_up(own, error))?;
    if statements.is_empty() {
        return Ok(());
    }
    println!(
        "note: sequences are not exchanged. Where two nodes give out the same number, one of the two rows is lost, so"
    );
    println!(
        "let each give out every {}th, beginning with its own; here, before anybody writes, `antiphon mesh sequences \
         --write`:",
        setup::STEP
    );
    for statement in statements {
        println!("  {statement};");
    }
    Ok(())
}

pub(super) async fn sequences(args: SequencesArgs) -> Result<(), Failure> {
    let own = args.file.read()?;
    let client = args.file.database().await?;
    let statements = match args.write {
        true => setup::spread_sequences(&client).await,
        false => setup::sequences(&client).await,
    };
    let statements = statements.map_err(|error| not_set_up(&own, error))?;
    for statement in &statements {
        println!("{statement};");
    }
    if args.write || statements.is_empty() {
        println!("no sequence here gives out a number that another node's of the same kind does");
        return Ok(());
    }
    Err(Failure::Refused(
        "these sequences can give out numbers that other nodes give out, too: run this with --write, on every node".into(),
    ))
}

pub(super) async fn join(args: JoinArgs) -> Result<(), Failure> {
    let own = args.file.read()?;
    let donor =
        Dsn::parse(&args.from, &own.env).map_err(|error| Failure::Usage(format!("--from: {error}")))?;
    let joining = Joining {
        node: own.file.node.clone(),
        connect: own.file.connect.clone(),
        advertise: own.file.advertise.clone(),
        donor,
        peers: own.file.peers.clone(),
        env: own.env.clone(),
    };
    let mut bar = Bar { began: Instant::now(), drawn: false };
    let id = setup::join(&joining, |progress| bar.show(&progress)).await;
    let id = id.map_err(|error| not_set_up(&own, error))?;
    println!("node {} takes part, as number {id}", own.file.node);
    note_sequences(&own).await?;
    println!("next: antiphon run {}", args.file.file.display());
    Ok(())
}

/// What a join tells while it lasts: one line a table, and on a terminal how far it is.
struct Bar {
    began: Instant,
    drawn: bool,
}

impl Bar {
    fn show(&mut self, progress: &Progress) {
        let terminal = std::io::stderr().is_terminal();
        if self.drawn {
            eprint!("\r\u{1b}[K");
        }
        match progress {
            Progress::Levelling => eprintln!("waiting until the node to copy from has what the others wrote"),
            Progress::Copying { table, nth, of, bytes, bytes_about } => {
                let share =
                    bytes.checked_mul(100).and_then(|bytes| bytes.checked_div(*bytes_about)).unwrap_or(0);
                let left = match share {
                    1..=99 => {
                        let seconds = self.began.elapsed().as_secs() * (100 - share) / share;
                        format!(", about {seconds} s left")
                    }
                    _ => String::new(),
                };
                eprint!("copying {table} ({nth} of {of}, {} MB{left})", bytes / 1_000_000);
                if !terminal {
                    eprintln!();
                }
                let _ = std::io::stderr().flush();
            }
            Progress::Done { rows } => {
                eprintln!("copied {rows} rows in {:.1} s", self.began.elapsed().as_secs_f64());
            }
        }
        self.drawn = terminal && matches!(progress, Progress::Copying { .. });
    }
}

pub(super) async fn add_table(args: AddTableArgs) -> Result<(), Failure> {
    let own = args.file.read()?;
    let addition = Addition {
        connect: own.file.connect.clone(),
        table: table_name(&args.table),
        peers: own.file.peers.clone(),
        env: own.env.clone(),
    };
    setup::add_table(&addition).await.map_err(|error| not_set_up(&own, error))?;
    println!("{} takes part on every node", addition.table);
    Ok(())
}

fn table_name(text: &str) -> TableName {
    let (schema, name) = text.split_once('.').unwrap_or(("public", text));
    TableName::new(schema, name)
}

pub(super) async fn set_table(args: SetTableArgs) -> Result<(), Failure> {
    let own = args.file.read()?;
    let settings = Settings {
        connect: own.file.connect.clone(),
        table: table_name(&args.table),
        deltas: args.delta,
        resolvers: args.resolver,
        peers: own.file.peers.clone(),
        env: own.env.clone(),
    };
    let set = setup::set_table(&settings).await.map_err(|error| not_set_up(&own, error))?;
    if !settings.resolvers.is_empty() {
        println!("conflicts of {} are decided by {}", settings.table, settings.resolvers.join(", "));
    }
    for doubt in set.doubts {
        eprintln!("antiphon: {doubt}");
    }
    if !settings.deltas.is_empty() {
        println!("changes of {} of {} add up on every node", settings.deltas.join(", "), settings.table);
    }
    if set.late.is_empty() {
        return Ok(());
    }
    Err(Failure::Refused(format!(
        "not all rows that were there have arrived on {}: let nobody count there until `antiphon mesh wait` there is \
         through",
        set.late.join(", ")
    )))
}

pub(super) async fn types(args: TypesArgs) -> Result<(), Failure> {
    let own = args.file.read()?;
    setup::types(&own.file.connect).await.map_err(|error| not_set_up(&own, error))?;
    println!("the types are there, in schema antiphon");
    Ok(())
}

pub(super) async fn leave(args: LeaveArgs) -> Result<(), Failure> {
    let own = args.file.read()?;
    let leaving = Leaving {
        connect: own.file.connect.clone(),
        node: args.node.clone(),
        peers: own.file.peers.clone(),
        env: own.env.clone(),
        force: args.force,
    };
    let untold = setup::leave(&leaving).await.map_err(|error| not_set_up(&own, error))?;
    let name = args.node.as_ref().unwrap_or(&own.file.node);
    println!("node {name} has left");
    if untold.is_empty() {
        return Ok(());
    }
    Err(Failure::Refused(format!("{}; repeat this when they can be reached", untold.join("; "))))
}
