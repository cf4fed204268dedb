//! `explain` and `version`: what members say of themselves.

use clap::Args;
use serde_json::Value;

use super::failure::Failure;
use super::output::Format;
use super::table::harmless;
use super::target::TargetArgs;
use super::yaml;

/// `explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The member; the one that is asked if not given
    member: Option<String>,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    format: Format,
}

/// `version`.
#[derive(Debug, Args)]
pub struct VersionArgs {
    /// Also those of the members
    #[arg(long)]
    members: bool,
}

pub(super) async fn explain(target: &TargetArgs, args: &ExplainArgs) -> Result<(), Failure> {
    let target = target.resolve()?;
    let client = match &args.member {
        Some(name) => {
            let (_, cluster) = target.cluster().await?;
            target.client(cluster.member(name)?)?
        }
        None => target.entry().await?,
    };
    let body = client.get_json("/explain").await?;
    match args.format {
        Format::Json => println!("{body}"),
        Format::Yaml => print!("{}", yaml::write(&body)),
        Format::Pretty | Format::Tsv => print!("{}", explained(&body)),
    }
    Ok(())
}

/// The explanation as sentences.
pub(super) fn explained(body: &Value) -> String {
    let text = |value: &Value| value.as_str().map(harmless).unwrap_or_default();
    let mut lines = vec![format!(
        "{} is {} (server {}): {}",
        text(&body["name"]),
        text(&body["role"]["role"]),
        text(&body["state"]),
        text(&body["why"])
    )];
    let steps =
        body["steps"].as_array().into_iter().flatten().map(|step| text(&step["step"]).replace('_', " "));
    let steps: Vec<String> = steps.collect();
    if !steps.is_empty() {
        lines.push(format!("does now: {}", steps.join(", ")));
    }
    if let Some(progress) = body["progress"].as_str() {
        lines.push(format!("progress: {}", harmless(progress)));
    }
    if let Some(error) = body["failed"]["error"].as_str() {
        let (task, times) = (text(&body["failed"]["task"]), &body["failed"]["times"]);
        lines.push(format!("{task} has failed {times} times in a row: {}", harmless(error)));
    }
    if body["suspects"].is_u64() {
        lines.push(format!("suspects the leader of term {} to be dead", body["suspects"]));
    }
    let election = &body["election"];
    if election.is_object() {
        let cause = text(&election["cause"]["kind"]).replace('_', " ");
        let by = text(&election["opened_by"]);
        lines
            .push(format!("term {} has no leader yet; {by} opened the election: {cause}", election["epoch"]));
    } else if let Some(leader) = body["leader"].as_str() {
        lines.push(format!("{} leads in term {}", harmless(leader), body["epoch"]));
    }
    let last = &body["last_promotion"];
    if last.is_object() {
        lines.push(format!(
            "last promotion: {} in term {} at {}, from timeline {} at {}: {}",
            text(&last["leader"]),
            last["epoch"],
            text(&last["at"]),
            last["timeline"],
            text(&last["lsn"]),
            text(&last["reason"])
        ));
    }
    for kept in body["kept"].as_array().into_iter().flatten() {
        let megabytes = kept["bytes"].as_u64().unwrap_or(0).div_ceil(1024 * 1024);
        let path = text(&kept["path"]);
        lines.push(format!("keeps {megabytes} MB in {path}: remove it when nobody misses a write in it"));
    }
    lines.join("\n") + "\n"
}

pub(super) async fn version(target: &TargetArgs, args: &VersionArgs) -> Result<(), Failure> {
    println!("antiphon {}", env!("CARGO_PKG_VERSION"));
    if !args.members {
        return Ok(());
    }
    let target = target.resolve()?;
    let (_, cluster) = target.cluster().await?;
    for member in &cluster.members {
        let status = match target.client(member) {
            Ok(client) => client.get_json("/patroni").await,
            Err(failure) => Err(failure),
        };
        match status {
            Ok(status) => {
                let version = status["antiphon"]["version"].as_str().map(harmless).unwrap_or_default();
                println!(
                    "{}: antiphon {version}, PostgreSQL {}",
                    member.name,
                    server(&status["server_version"])
                );
            }
            Err(failure) => println!("{}: {failure}", member.name),
        }
    }
    Ok(())
}

/// 150002 as 15.2.
fn server(version: &Value) -> String {
    version.as_u64().map_or_else(|| "not running".to_owned(), |n| format!("{}.{}", n / 10_000, n % 10_000))
}
