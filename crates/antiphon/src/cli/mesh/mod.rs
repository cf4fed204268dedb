//! `mesh`: several leaders. These verbs talk to the node's database, which its file names, and to no API: what the
//! mesh knows is in the databases.

mod setup;
mod show;
mod steer;
mod verify;

use std::collections::BTreeMap;
use std::path::PathBuf;

use antiphon_mesh::node::NodeError;
use antiphon_mesh::setup::SetupError;
use clap::{Args, Subcommand};
use tokio_postgres::Client;

use super::failure::Failure;
use crate::config::{self, MeshFile};

/// `mesh`.
#[derive(Debug, Args)]
pub struct MeshArgs {
    #[command(subcommand)]
    verb: Verb,
}

/// What can be done with a mesh.
#[derive(Debug, Subcommand)]
enum Verb {
    /// Make this node's database the first node of a new mesh
    Create(setup::CreateArgs),
    /// Let this node's database, whose tables are empty, join a mesh
    Join(setup::JoinArgs),
    /// Let one more table take part, which is on every node, the same and empty
    AddTable(setup::AddTableArgs),
    /// Set for a table, on every node, by what its conflicts are decided, and which columns add up
    SetTable(setup::SetTableArgs),
    /// Make the data types whose values merge, so that tables can have them before their database joins
    Types(setup::TypesArgs),
    /// Show what keeps this node's sequences from giving out numbers of other nodes, or do it; exit code 1 if there is any
    Sequences(setup::SequencesArgs),
    /// Take this node out, or another one that is gone
    Leave(setup::LeaveArgs),
    /// Show how every node looks from this one; exit code 1 if a link is not well
    Status(show::StatusArgs),
    /// Show how far every link of the mesh is behind, in time and in bytes, as all nodes say
    Lag(show::StatusArgs),
    /// Draw who reads whom; exit code 1 if a link does not stream
    Topology(show::TopologyArgs),
    /// Show the tables that take part, and what is set for each
    Tables(show::StatusArgs),
    /// Show the conflicts that were met here
    Conflicts(show::ConflictsArgs),
    /// Wait until everything that was committed anywhere before now is applied here
    Wait(steer::WaitArgs),
    /// Compare the rows of all nodes while everybody goes on writing; exit code 1 if they are not the same
    Verify(verify::VerifyArgs),
    /// Make rows that differ the same on all nodes, with the time and node of who wrote them
    Repair(verify::RepairArgs),
    /// Stop applying what other nodes write; their logs are kept
    Pause(steer::PauseArgs),
    /// Apply again what other nodes write
    Resume(steer::PauseArgs),
    /// Set aside the transaction of a node that cannot be applied, and go on behind it
    Skip(steer::SkipArgs),
}

/// Whose file.
#[derive(Debug, Args)]
struct FileArgs {
    /// The node file, with a section mesh
    #[arg(value_name = "FILE", env = "ANTIPHON_CONFIG_FILE")]
    file: PathBuf,
}

pub(super) async fn mesh(args: MeshArgs) -> Result<(), Failure> {
    match args.verb {
        Verb::Create(args) => setup::create(args).await,
        Verb::Join(args) => setup::join(args).await,
        Verb::AddTable(args) => setup::add_table(args).await,
        Verb::SetTable(args) => setup::set_table(args).await,
        Verb::Types(args) => setup::types(args).await,
        Verb::Sequences(args) => setup::sequences(args).await,
        Verb::Leave(args) => setup::leave(args).await,
        Verb::Status(args) => show::status(&args).await,
        Verb::Lag(args) => show::lag(&args).await,
        Verb::Topology(args) => show::topology(&args).await,
        Verb::Tables(args) => show::tables(&args).await,
        Verb::Conflicts(args) => show::conflicts(&args).await,
        Verb::Wait(args) => steer::wait(&args).await,
        Verb::Verify(args) => verify::verify(&args).await,
        Verb::Repair(args) => verify::repair(&args).await,
        Verb::Pause(args) => steer::pause(&args, true).await,
        Verb::Resume(args) => steer::pause(&args, false).await,
        Verb::Skip(args) => steer::skip(&args).await,
    }
}

/// A node's file and the environment that it is read with.
struct Own {
    file: MeshFile,
    env: BTreeMap<String, String>,
}

impl FileArgs {
    fn read(&self) -> Result<Own, Failure> {
        let env: BTreeMap<String, String> = std::env::vars().collect();
        let read =
            config::load_mesh(&self.file, &env).map_err(|errors| Failure::Usage(errors.to_string()))?;
        let (file, warnings) =
            read.ok_or_else(|| Failure::Usage(format!("{} has no section mesh", self.file.display())))?;
        for warning in &warnings {
            eprintln!("antiphon: {warning}");
        }
        Ok(Own { file, env })
    }

    /// A connection to the node's database.
    async fn database(&self) -> Result<Client, Failure> {
        let own = self.read()?;
        let client = own.file.connect.control("antiphon").await.map_err(|error| unreachable(&own, &error))?;
        client.batch_execute("SET search_path = ''").await.map_err(refused)?;
        antiphon_mesh::node::own(&client).await.map_err(refused)?;
        Ok(client)
    }
}

fn unreachable(own: &Own, error: &dyn std::error::Error) -> Failure {
    Failure::Unreachable { url: own.file.connect.to_string(), why: error.to_string() }
}

fn refused(error: impl Into<NodeError>) -> Failure {
    Failure::Refused(error.into().to_string())
}

fn not_set_up(own: &Own, error: SetupError) -> Failure {
    match error {
        SetupError::Wire(error) => unreachable(own, &error),
        other => Failure::Refused(other.to_string()),
    }
}
