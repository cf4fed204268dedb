//! `show-config`, `edit-config`, `pause`, `resume`: the cluster-wide settings.
//!
//! A change is shown as a difference, checked here, asked for, and stored only if nobody changed the settings
//! meanwhile.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use antiphon_core::settings::{DynamicCommands, Settings, diff, merge, without_effect};
use clap::Args;
use hyper::Method;
use hyper::header::HeaderValue;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::ask::confirm;
use super::client::Client;
use super::failure::Failure;
use super::output::{Format, colour};
use super::table::harmless;
use super::target::{Cluster, Target, TargetArgs, order, refusal};
use super::yaml;

/// How long a change may take to be stored.
const CHANGE_MAX: Duration = Duration::from_secs(30);
/// How long members may take to see a pause.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// How often they are asked.
const PAUSE_LOOK: Duration = Duration::from_millis(500);
/// Largest file of settings.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// `show-config`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The cluster's name, to be sure
    cluster: Option<String>,
    /// How to show it
    #[arg(short, long, value_enum, default_value = "yaml")]
    format: Format,
}

/// `edit-config`. Without an option the settings are opened in $EDITOR.
#[derive(Debug, Args)]
pub struct EditArgs {
    /// The cluster's name, to be sure
    cluster: Option<String>,
    /// Set KEY to VALUE, as ttl=20; null removes it
    #[arg(short, long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Set a parameter of PostgreSQL, as work_mem=16MB; null removes it
    #[arg(short, long, value_name = "KEY=VALUE")]
    pg: Vec<String>,
    /// Merge a YAML or JSON file into the settings; - for standard input
    #[arg(long, value_name = "FILE")]
    apply: Option<PathBuf>,
    /// Replace the settings by a YAML or JSON file; - for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "apply")]
    replace: Option<PathBuf>,
    /// Do not show what changes
    #[arg(short, long)]
    quiet: bool,
    /// Do not ask
    #[arg(long)]
    force: bool,
}

/// `pause` and `resume`.
#[derive(Debug, Args)]
pub struct PauseArgs {
    /// The cluster's name, to be sure
    cluster: Option<String>,
    /// Return when every member has taken it over
    #[arg(long)]
    wait: bool,
}

pub(super) async fn show(target: &TargetArgs, args: &ShowArgs) -> Result<(), Failure> {
    let (client, cluster) = target.resolve()?.cluster().await?;
    cluster.check_name(args.cluster.as_deref())?;
    let (settings, _) = settings(&client).await?;
    match args.format {
        Format::Json => println!("{settings}"),
        Format::Pretty | Format::Yaml | Format::Tsv => print!("{}", yaml::write(&settings)),
    }
    Ok(())
}

/// The settings with their revision.
async fn settings(client: &Client) -> Result<(Value, Option<HeaderValue>), Failure> {
    let answer = client.get("/config").await?;
    if answer.status != 200 {
        return Err(refusal(&answer));
    }
    let settings = serde_json::from_str(&answer.text).map_err(|error| {
        Failure::Refused(format!("{} answered GET /config with no JSON: {error}", client.url()))
    })?;
    Ok((settings, answer.etag))
}

pub(super) async fn edit(target: &TargetArgs, args: &EditArgs) -> Result<(), Failure> {
    let (client, cluster) = target.resolve()?.cluster().await?;
    cluster.check_name(args.cluster.as_deref())?;
    let (before, revision) = settings(&client).await?;
    let mut after = match (&args.replace, &args.apply) {
        (Some(file), _) => read_file(file)?,
        (None, Some(file)) => merge(&before, &read_file(file)?),
        (None, None) if args.set.is_empty() && args.pg.is_empty() => edited(&before)?,
        (None, None) => before.clone(),
    };
    for assignment in &args.set {
        after = merge(&after, &patch(assignment, &[])?);
    }
    for assignment in &args.pg {
        after = merge(&after, &patch(assignment, &["postgresql", "parameters"])?);
    }
    let changes = difference(&before, &after, colour());
    if changes.is_empty() {
        println!("Not changed");
        return Ok(());
    }
    if !args.quiet {
        print!("{changes}");
    }
    // Whether a node allows settings that run commands is for the member to say.
    if let Err(errors) = Settings::resolve_with(&after, DynamicCommands::Allowed) {
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        return Err(Failure::Usage(errors.join("\n")));
    }
    for (key, reason) in without_effect(&after) {
        eprintln!("{key} has no effect: {reason}");
    }
    confirm("Apply these changes?", args.force)?;
    let answer = client.send(Method::PUT, "/config", Some(&after), revision, CHANGE_MAX).await?;
    if answer.status != 200 {
        return Err(refusal(&answer));
    }
    println!("Configuration changed");
    Ok(())
}

/// What changes, a line each.
pub(super) fn difference(before: &Value, after: &Value, colour: bool) -> String {
    let changes = diff(before, after);
    let lines =
        changes.iter().flat_map(|change| change.to_string().lines().map(harmless).collect::<Vec<_>>());
    let painted = lines.map(|line| match line.chars().next() {
        Some('-') if colour => format!("\u{1b}[31m{line}\u{1b}[0m\n"),
        Some('+') if colour => format!("\u{1b}[32m{line}\u{1b}[0m\n"),
        Some(_) | None => line + "\n",
    });
    painted.collect()
}

/// `a.b=VALUE` as a patch, below a section.
pub(super) fn patch(assignment: &str, section: &[&str]) -> Result<Value, Failure> {
    let (key, value) = assignment
        .split_once('=')
        .filter(|(key, _)| !key.trim().is_empty())
        .ok_or_else(|| Failure::Usage(format!("{assignment:?} is not KEY=VALUE")))?;
    let value = value.trim();
    let value =
        if value.is_empty() { Value::Null } else { yaml::read(value).unwrap_or_else(|_| value.into()) };
    let mut path: Vec<&str> = section.to_vec();
    // A parameter of PostgreSQL may have a dot in its name.
    match section {
        [] => path.extend(key.trim().split('.')),
        [_, ..] => path.push(key.trim()),
    }
    if let ["postgresql", "parameters", first, rest @ ..] = path.as_slice() {
        let name = [&[*first], rest].concat().join(".");
        return Ok(json!({ "postgresql": { "parameters": { name: value } } }));
    }
    let nest = |inner: Value, key: &&str| Value::Object(Map::from_iter([((*key).to_owned(), inner)]));
    Ok(path.iter().rev().fold(value, nest))
}

fn read_file(file: &Path) -> Result<Value, Failure> {
    let wrong = |why: String| Failure::Usage(format!("{}: {why}", file.display()));
    let mut text = String::new();
    let read = if file.as_os_str() == "-" {
        std::io::stdin().take(FILE_BYTES_MAX).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|opened| opened.take(FILE_BYTES_MAX).read_to_string(&mut text))
    };
    read.map_err(|error| wrong(format!("could not be read: {error}")))?;
    document(&text).map_err(wrong)
}

/// A map of settings from YAML or JSON.
fn document(text: &str) -> Result<Value, String> {
    match yaml::read(text)? {
        Value::Object(map) => Ok(Value::Object(map)),
        Value::Null => Ok(Value::Object(Map::new())),
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Err("is not a map of settings".to_owned())
        }
    }
}

/// The settings as $EDITOR leaves them. The file is the user's alone while it exists.
fn edited(before: &Value) -> Result<Value, Failure> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let editor = ["EDITOR", "VISUAL"].iter().find_map(|name| std::env::var(name).ok());
    let editor = editor
        .ok_or_else(|| Failure::Usage("set EDITOR, or use --set, --pg, --apply or --replace".to_owned()))?;
    let file = std::env::temp_dir().join(format!("antiphon-config-{}.yaml", std::process::id()));
    let failed = |error: std::io::Error| Failure::Usage(format!("{}: {error}", file.display()));
    let mut options = std::fs::OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(0o600).open(&file);
    let result = opened
        .and_then(|mut opened| opened.write_all(yaml::write(before).as_bytes()))
        .map_err(failed)
        .and_then(|()| {
            // The variable may hold options, as in "code --wait".
            let mut words = editor.split_whitespace();
            let program = words.next().unwrap_or("vi");
            let ended = Command::new(program).args(words).arg(&file).status().map_err(failed)?;
            if ended.success() {
                read_file(&file)
            } else {
                Err(Failure::Refused(format!("{program} ended with {ended}")))
            }
        });
    if let Err(error) = std::fs::remove_file(&file) {
        eprintln!("could not remove {}: {error}", file.display());
    }
    result
}

pub(super) async fn pause(target: &TargetArgs, args: &PauseArgs, pause: bool) -> Result<(), Failure> {
    let target = target.resolve()?;
    let (client, cluster) = target.cluster().await?;
    cluster.check_name(args.cluster.as_deref())?;
    let already = if pause { "already paused" } else { "not paused" };
    if cluster.pause == pause {
        return Err(Failure::Refused(format!("{} is {already}", cluster.scope)));
    }
    let patch = json!({ "pause": if pause { Value::Bool(true) } else { Value::Null } });
    order(&client, Method::PATCH, "/config", Some(&patch), CHANGE_MAX).await?;
    if args.wait {
        wait_until_seen(&target, &cluster, pause).await?;
    }
    println!("Success: cluster management is {}", if pause { "paused" } else { "resumed" });
    Ok(())
}

/// Waits until every member that answers shows it.
async fn wait_until_seen(target: &Target, cluster: &Cluster, pause: bool) -> Result<(), Failure> {
    let deadline = Instant::now() + PAUSE_MAX;
    for member in cluster.members.iter().filter(|member| member.state != "unreachable") {
        let client = target.client(member)?;
        loop {
            let status = client.get_json("/patroni").await;
            let seen = status.is_ok_and(|status| status["pause"].as_bool().unwrap_or(false) == pause);
            if seen {
                break;
            }
            if Instant::now() >= deadline {
                let text = format!("stored, but {} has not taken it over within {PAUSE_MAX:?}", member.name);
                return Err(Failure::Unknown(text));
            }
            tokio::time::sleep(PAUSE_LOOK).await;
        }
    }
    Ok(())
}
