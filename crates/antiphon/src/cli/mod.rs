//! The command line: patronictl's verbs and a few of our own, over the HTTP API.
//!
//! A verb is a file or a small family of them. Nothing here reads the store or touches a server: what the
//! command line can do, any HTTP client can. `run` and `demo` are not verbs of a running cluster; the program
//! takes them itself. Exit codes are part of the interface, see [`Failure`].

mod ask;
mod client;
mod config;
mod events;
mod failure;
mod import;
mod list;
mod mesh;
mod orders;
mod output;
mod show;
mod switchover;
mod table;
mod target;
mod yaml;

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

pub use client::{Answer, Client};
pub use failure::Failure;
pub use output::Format;
pub use target::TargetArgs;

use crate::demo::Subject;

/// One binary that makes stock PostgreSQL servers one replicated, self-healing system.
#[derive(Debug, Parser)]
#[command(name = "antiphon", version, propagate_version = true, disable_help_subcommand = true)]
pub struct Cli {
    /// Which cluster is meant.
    #[command(flatten)]
    pub target: TargetArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the node that a file describes
    Run(RunArgs),
    /// Show on this machine what happens when a leader dies, or when there are several
    Demo(DemoArgs),
    /// Stop the server when the leader's lease has run out; started by the agent
    #[command(hide = true)]
    Guard(GuardArgs),
    /// Everything that talks to a running cluster
    #[command(flatten)]
    Client(ClientCommand),
}

/// `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The node file, or a directory of *.yml files
    pub file: PathBuf,
}

/// `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// What is shown
    #[arg(value_enum, default_value_t)]
    pub subject: Subject,
    /// End after the last scene, even on a terminal
    #[arg(long)]
    pub once: bool,
    /// Keep the members in this directory instead of a temporary one
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Where PostgreSQL's programs are
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
}

/// `guard`, as the agent starts it.
#[derive(Debug, Args)]
pub struct GuardArgs {
    /// Where the agent tells it of renewals
    #[arg(long)]
    pub socket: PathBuf,
    /// The server's data
    #[arg(long)]
    pub data_dir: PathBuf,
    /// When the lease ends, on the boot-time clock
    #[arg(long)]
    pub deadline: u64,
}

/// The verbs that talk to a running cluster.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// List the members
    List(list::ListArgs),
    /// List the members as a tree: who streams from whom
    Topology(list::ListArgs),
    /// Say in a few lines whether the cluster is well; exit code 1 if not
    Status(list::StatusArgs),
    /// Hand leadership over to another member, without losing a write
    Switchover(switchover::SwitchoverArgs),
    /// Make a member the leader when there is none
    Failover(switchover::FailoverArgs),
    /// Restart servers
    Restart(orders::RestartArgs),
    /// Read node files again and reload servers
    Reload(orders::ReloadArgs),
    /// Build the data directories of members anew
    Reinit(orders::ReinitArgs),
    /// Take back a scheduled switchover or restart
    Flush(orders::FlushArgs),
    /// Stop automatic failover, restart and rejoin
    Pause(config::PauseArgs),
    /// End a pause
    Resume(config::PauseArgs),
    /// List past promotions
    History(list::HistoryArgs),
    /// Show the cluster-wide settings
    ShowConfig(config::ShowArgs),
    /// Change the cluster-wide settings
    EditConfig(config::EditArgs),
    /// Forget a member that is gone for good
    Remove(orders::RemoveArgs),
    /// Say why a member is as it is
    Explain(show::ExplainArgs),
    /// Follow the cluster's changes
    Events(events::EventsArgs),
    /// Several leaders: create, join, leave, look, steer
    Mesh(mesh::MeshArgs),
    /// Print a router's file that does what a pgbouncer.ini says
    Import(import::ImportArgs),
    /// Show versions
    Version(show::VersionArgs),
    /// Print completions for a shell
    Completion(CompletionArgs),
}

/// `completion`.
#[derive(Debug, Args)]
pub struct CompletionArgs {
    /// The shell
    shell: Shell,
}

/// Carries out a verb. Errors go to standard error; the exit code says their kind.
pub fn run(target: &TargetArgs, command: ClientCommand) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(carry_out(target, command)),
        Err(error) => Err(Failure::Refused(format!("could not start the runtime: {error}"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("antiphon: {failure}");
            failure.exit_code()
        }
    }
}

/// The same within a runtime, with the reason of a failure.
///
/// # Errors
/// Why the verb was not carried out.
pub async fn carry_out(target: &TargetArgs, command: ClientCommand) -> Result<(), Failure> {
    match command {
        ClientCommand::List(args) => list::list(target, &args).await,
        ClientCommand::Topology(args) => list::topology(target, &args).await,
        ClientCommand::Status(args) => list::status(target, &args).await,
        ClientCommand::Switchover(args) => switchover::switchover(target, args).await,
        ClientCommand::Failover(args) => switchover::failover(target, args).await,
        ClientCommand::Restart(args) => orders::restart(target, args).await,
        ClientCommand::Reload(args) => orders::reload(target, args).await,
        ClientCommand::Reinit(args) => orders::reinit(target, args).await,
        ClientCommand::Flush(args) => orders::flush(target, args).await,
        ClientCommand::Pause(args) => config::pause(target, &args, true).await,
        ClientCommand::Resume(args) => config::pause(target, &args, false).await,
        ClientCommand::History(args) => list::history(target, &args).await,
        ClientCommand::ShowConfig(args) => config::show(target, &args).await,
        ClientCommand::EditConfig(args) => config::edit(target, &args).await,
        ClientCommand::Remove(args) => orders::remove(target, &args).await,
        ClientCommand::Explain(args) => show::explain(target, &args).await,
        ClientCommand::Events(args) => events::events(target, &args).await,
        ClientCommand::Mesh(args) => mesh::mesh(args).await,
        ClientCommand::Import(args) => import::import(&args),
        ClientCommand::Version(args) => show::version(target, &args).await,
        ClientCommand::Completion(args) => {
            clap_complete::generate(args.shell, &mut Cli::command(), "antiphon", &mut std::io::stdout());
            Ok(())
        }
    }
}

const HEAD: &str = "\
# Command line

`antiphon VERB` does what `patronictl VERB` does where that has the verb, with the same options; the cluster's
name may be given where patronictl wants it. Verbs talk to the HTTP API of one member, which knows the others.

Which member: `-c FILE` (its `restapi.connect_address` and the user and password of `ctl.authentication` or
`restapi.authentication`), or `--url`. The variables `ANTIPHON_CONFIG_FILE`, `PATRONICTL_CONFIG_FILE` and
`ANTIPHON_URL` stand for them; with `--url`, `ANTIPHON_API_USER` and `ANTIPHON_API_PASSWORD` sign in. Passwords are
never taken from the command line.

Members that speak TLS are verified by `--cacert`, else the file's `ctl.cacert`, else its `restapi.cafile`, else the
authorities of this machine; `--cert` and `--key`, else `ctl.certfile` and `ctl.keyfile`, are shown to those that want
a certificate.

| exit code | meaning |
| --- | --- |
| 0 | done |
| 1 | refused or failed; for `status`: the cluster is not well |
| 2 | the command line or a file is wrong |
| 3 | a member could not be reached |
| 4 | no answer in time: the outcome is unknown, look before trying again |

Colours are shown on a terminal only, and not if `NO_COLOR` is set.

This page is generated from `crates/antiphon/src/cli/`.
";

/// The reference page as Markdown.
pub fn page() -> String {
    let mut page = HEAD.to_owned();
    let mut program = Cli::command().term_width(100);
    program.build();
    let mut section = |title: &str, command: clap::Command| {
        let help = command.term_width(100).render_long_help().to_string();
        let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
        // Writing to a String cannot fail.
        let _ = write!(page, "\n## {title}\n```text\n{}\n```\n", lines.join("\n").trim_end());
    };
    let common = TargetArgs::augment_args(clap::Command::new("antiphon")).help_template("{options}");
    section("Options of every verb", common.disable_help_flag(true));
    for verb in program.get_subcommands_mut().filter(|verb| !verb.is_hide_set()) {
        // Said once, above.
        let own = verb.clone().mut_args(|arg| if arg.is_global_set() { arg.hide(true) } else { arg });
        section(verb.get_name(), own);
    }
    page
}

#[cfg(test)]
mod tests;
