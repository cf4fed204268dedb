//! `mesh pause`, `mesh resume`, `mesh skip`.

use std::time::Duration;

use antiphon_mesh::manage;
use clap::Args;

use super::{FileArgs, refused};
use crate::cli::failure::Failure;

/// `mesh pause` and `mesh resume`.
#[derive(Debug, Args)]
pub(super) struct PauseArgs {
    #[command(flatten)]
    file: FileArgs,
    /// Only what this node writes
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
}

/// `mesh wait`.
#[derive(Debug, Args)]
pub(super) struct WaitArgs {
    #[command(flatten)]
    file: FileArgs,
    /// For at most so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
}

/// `mesh skip`.
#[derive(Debug, Args)]
pub(super) struct SkipArgs {
    #[command(flatten)]
    file: FileArgs,
    /// The node whose transaction it is
    #[arg(long, value_name = "NAME")]
    node: String,
}

pub(super) async fn pause(args: &PauseArgs, paused: bool) -> Result<(), Failure> {
    let client = args.file.database().await?;
    let names = manage::pause(&client, args.node.as_deref(), paused).await.map_err(refused)?;
    if names.is_empty() {
        println!("nobody else takes part: there is nothing to pause or resume");
        return Ok(());
    }
    let names = names.join(", ");
    if paused {
        println!(
            "within a second, nothing of {names} is applied here; their servers keep it until this is resumed"
        );
    } else {
        println!("within a second, what {names} wrote is applied here again");
    }
    Ok(())
}

pub(super) async fn wait(args: &WaitArgs) -> Result<(), Failure> {
    let client = args.file.database().await?;
    let late = manage::wait(&client, Duration::from_secs(args.timeout)).await.map_err(refused)?;
    if late.is_empty() {
        println!("everything that was committed before is applied here");
        return Ok(());
    }
    Err(Failure::Refused(format!("what {} had committed is not all applied here yet", late.join(", "))))
}

pub(super) async fn skip(args: &SkipArgs) -> Result<(), Failure> {
    let client = args.file.database().await?;
    let end = manage::skip(&client, &args.node).await.map_err(refused)?;
    println!(
        "the transaction of {} that ends at {end} is set aside in antiphon.set_aside when it is met next",
        args.node
    );
    Ok(())
}
