//! `list`, `topology`, `status`, `history`: what the cluster looks like.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::failure::Failure;
use super::output::{Format, Rows, colour, show};
use super::table::{harmless, left, right};
use super::target::{Cluster, Member, TargetArgs};
use super::yaml;
use crate::api::datetime;

/// `list` and `topology`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// The cluster's name, to be sure
    cluster: Option<String>,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    format: Format,
    /// Show restarts that are needed and tags, also where there are none
    #[arg(short, long)]
    extended: bool,
    /// Print the time above
    #[arg(short, long)]
    timestamp: bool,
    /// Show it again every SECONDS (2)
    #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = clap::value_parser!(u64).range(1..=3600))]
    watch: Option<u64>,
    /// The same, every 2 seconds
    #[arg(short = 'W', conflicts_with = "watch")]
    watch2: bool,
}

/// `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    format: Format,
}

/// `history`.
#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// The cluster's name, to be sure
    cluster: Option<String>,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    format: Format,
}

pub(super) async fn list(target: &TargetArgs, args: &ListArgs) -> Result<(), Failure> {
    watched(args, async || {
        let (_, cluster) = target.resolve()?.cluster().await?;
        cluster.check_name(args.cluster.as_deref())?;
        let members: Vec<(usize, &Member)> = cluster.members.iter().map(|member| (0, member)).collect();
        Ok(members_text(&cluster, &members, args.format, args.extended, colour()))
    })
    .await
}

pub(super) async fn topology(target: &TargetArgs, args: &ListArgs) -> Result<(), Failure> {
    watched(args, async || {
        let target = target.resolve()?;
        let (client, cluster) = target.cluster().await?;
        cluster.check_name(args.cluster.as_deref())?;
        let tree = client.get_json("/topology").await?;
        let tree = serde_json::from_value::<Cluster>(tree);
        let tree =
            tree.map_err(|error| Failure::Refused(format!("{} has no topology: {error}", client.url())))?;
        let mut members = Vec::new();
        flatten(&tree.members, 0, &mut members);
        Ok(members_text(&cluster, &members, args.format, args.extended, colour()))
    })
    .await
}

/// A tree's members, each with its depth; a leader comes before its siblings.
fn flatten<'a>(members: &'a [Member], depth: usize, flat: &mut Vec<(usize, &'a Member)>) {
    let (first, rest): (Vec<&Member>, Vec<&Member>) = members.iter().partition(|member| member.leads());
    for member in first.into_iter().chain(rest) {
        flat.push((depth, member));
        flatten(&member.followers, depth + 1, flat);
    }
}

/// Prints a text once, or again and again over itself.
async fn watched(args: &ListArgs, text: impl AsyncFn() -> Result<String, Failure>) -> Result<(), Failure> {
    let every = args.watch.or(args.watch2.then_some(2));
    loop {
        let text = text().await;
        let now = if args.timestamp { datetime::format(datetime::now()) + "\n" } else { String::new() };
        let Some(every) = every else {
            print!("{now}{}", text?);
            return Ok(());
        };
        // A member that does not answer now may do so at the next look.
        let text = text.unwrap_or_else(|failure| format!("{failure}\n"));
        print!("\u{1b}[H\u{1b}[2J{now}{text}");
        tokio::time::sleep(Duration::from_secs(every)).await;
    }
}

/// The members as rows, with what else there is to say of the cluster below.
pub(super) fn members_text(
    cluster: &Cluster,
    members: &[(usize, &Member)],
    format: Format,
    extended: bool,
    colour: bool,
) -> String {
    let ports = members.iter().any(|(_, member)| member.port.is_some_and(|port| port != 5432));
    let hosts: BTreeSet<&str> = members.iter().map(|(_, member)| member.host.as_str()).collect();
    let with_port = ports || hosts.len() < members.len();
    let pending = extended || members.iter().any(|(_, member)| member.pending_restart);
    let tagged = extended || members.iter().any(|(_, member)| !member.tags.is_empty());
    let rows = members.iter().map(|(depth, member)| row(*depth, member, with_port, pending, tagged));
    let mut columns = vec![left("Member"), left("Host"), left("Role"), left("State"), right("TL")];
    columns.extend([right("Receive LSN"), right("Lag"), right("Replay LSN"), right("Lag")]);
    let mut names = vec!["Member", "Host", "Role", "State", "TL"];
    names.extend(["Receive LSN", "Receive Lag", "Replay LSN", "Replay Lag"]);
    for (name, _) in
        [("Pending restart", pending), ("Tags", tagged)].into_iter().filter(|(_, wanted)| *wanted)
    {
        columns.push(left(name));
        names.push(name);
    }
    let identifier = cluster.system_identifier.as_deref().unwrap_or("uninitialized");
    let rows = Rows {
        title: format!("Cluster: {} ({identifier})", cluster.scope),
        columns,
        names,
        rows: rows.collect(),
        colour,
        constant: Some(("Cluster", &cluster.scope)),
    };
    let mut text = show(format, &rows);
    if format == Format::Pretty {
        text.push_str(&notes(cluster));
    }
    text
}

fn row(depth: usize, member: &Member, with_port: bool, pending: bool, tagged: bool) -> Vec<Value> {
    let indent = if depth == 0 { String::new() } else { format!("{}+ ", "  ".repeat(depth - 1)) };
    let host = match member.port {
        Some(port) if with_port && member.host.contains(':') => format!("[{}]:{port}", member.host),
        Some(port) if with_port => format!("{}:{port}", member.host),
        Some(_) | None => member.host.clone(),
    };
    let lsn = |lsn: &Option<String>| lsn.as_deref().map_or(Value::Null, Value::from);
    let mut row: Vec<Value> = vec![
        format!("{indent}{}", member.name).into(),
        host.into(),
        title(&member.role).into(),
        member.state.as_str().into(),
        member.timeline.map_or(Value::Null, Value::from),
        lsn(&member.receive_lsn),
        megabytes(member.receive_lag.as_ref()),
        lsn(&member.replay_lsn),
        megabytes(member.replay_lag.as_ref()),
    ];
    if pending {
        row.push(if member.pending_restart { "*".into() } else { Value::Null });
    }
    if tagged {
        row.push(Value::Object(member.tags.clone()));
    }
    row
}

/// `sync_standby` as `Sync Standby`.
fn title(role: &str) -> String {
    let word = |word: &str| {
        let mut letters = word.chars();
        letters
            .next()
            .map(|first| first.to_uppercase().chain(letters).collect::<String>())
            .unwrap_or_default()
    };
    role.split('_').map(word).collect::<Vec<_>>().join(" ")
}

/// Bytes as whole megabytes, rounded; nothing if not known.
fn megabytes(lag: Option<&Value>) -> Value {
    const MEGABYTE: u64 = 1024 * 1024;
    let bytes = lag.and_then(Value::as_u64);
    bytes.map_or(Value::Null, |bytes| (bytes.saturating_add(MEGABYTE / 2) / MEGABYTE).into())
}

/// What stands below the table.
fn notes(cluster: &Cluster) -> String {
    let mut notes = String::new();
    if cluster.pause {
        notes.push_str(" Maintenance mode: on\n");
    }
    for member in &cluster.members {
        if let Some(trouble) = &member.trouble {
            notes.push_str(&format!(" {}: {}\n", harmless(&member.name), harmless(trouble)));
        }
        if member.kept_bytes > 0 {
            let megabytes = member.kept_bytes.div_ceil(1024 * 1024);
            let name = harmless(&member.name);
            notes.push_str(&format!(
                " {name} keeps {megabytes} MB of old data: see `antiphon explain {name}`\n"
            ));
        }
    }
    if let Some(scheduled) = &cluster.scheduled_switchover {
        let part = |key: &str| scheduled.get(key).and_then(Value::as_str).map(harmless);
        notes.push_str(&format!(" Switchover scheduled at: {}\n", part("at").unwrap_or_default()));
        for (key, name) in [("from", part("from")), ("to", part("to"))] {
            notes.push_str(
                &name.map(|name| format!("                    {key:>4}: {name}\n")).unwrap_or_default(),
            );
        }
    }
    notes
}

pub(super) async fn status(target: &TargetArgs, args: &StatusArgs) -> Result<(), Failure> {
    let (_, cluster) = target.resolve()?.cluster().await?;
    let troubles = troubles(&cluster);
    let leader = cluster.leader().map(|leader| leader.name.as_str());
    let summary = json!({
        "cluster": cluster.scope, "leader": leader, "epoch": cluster.epoch, "members": cluster.members.len(),
        "sync": cluster.sync, "pause": cluster.pause, "troubles": troubles,
    });
    match args.format {
        Format::Json => println!("{summary}"),
        Format::Yaml => print!("{}", yaml::write(&summary)),
        Format::Pretty | Format::Tsv => print!("{}", status_text(&cluster, &troubles)),
    }
    if troubles.is_empty() { Ok(()) } else { Err(Failure::Refused(format!("{} is not well", cluster.scope))) }
}

/// The cluster in a few lines.
pub(super) fn status_text(cluster: &Cluster, troubles: &[String]) -> String {
    let epoch = cluster.epoch.map(|epoch| format!(" in term {epoch}")).unwrap_or_default();
    let leader = match cluster.leader() {
        Some(leader) => format!("{} leads{epoch}", leader.name),
        None => "nobody leads".to_owned(),
    };
    let mut text = format!("{}: {leader}; {} members\n", cluster.scope, cluster.members.len());
    if let Some(sync) = &cluster.sync {
        let names = sync["members"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let names: Vec<&str> = names.collect();
        text.push_str(&match sync["promise"].as_str() {
            Some("quorum") => format!("commits wait for {} of {}\n", sync["k"], names.join(", ")),
            Some("alone") => "commits are acknowledged by the leader alone\n".to_owned(),
            _ => "commits wait for nobody\n".to_owned(),
        });
    }
    for trouble in troubles {
        text.push_str(&format!("! {trouble}\n"));
    }
    harmless_lines(&text)
}

fn harmless_lines(text: &str) -> String {
    text.lines().map(|line| harmless(line) + "\n").collect()
}

/// What is not as it should be, one sentence each.
pub(super) fn troubles(cluster: &Cluster) -> Vec<String> {
    let mut troubles = Vec::new();
    if cluster.leader().is_none() {
        troubles.push("nobody leads: no writes are taken; see `antiphon explain`".to_owned());
    }
    for member in cluster.members.iter().filter(|member| !member.leads() && member.role != "witness") {
        if let Some(trouble) = &member.trouble {
            troubles.push(format!("{}: {trouble}", member.name));
        } else if member.state != "streaming" {
            troubles.push(format!("{} is {}", member.name, member.state));
        }
    }
    if cluster.sync.as_ref().is_some_and(|sync| sync["promise"] == "alone") {
        troubles.push("no follower acknowledges commits: a failover would need --accept-loss".to_owned());
    }
    for member in cluster.members.iter().filter(|member| member.pending_restart) {
        troubles.push(format!("{} needs a restart for changed settings", member.name));
    }
    if cluster.pause {
        troubles.push("paused: nothing is repaired; `antiphon resume` ends it".to_owned());
    }
    troubles
}

pub(super) async fn history(target: &TargetArgs, args: &HistoryArgs) -> Result<(), Failure> {
    let target = target.resolve()?;
    let (client, cluster) = target.cluster().await?;
    cluster.check_name(args.cluster.as_deref())?;
    let lines = client.get_json("/history").await?;
    print!("{}", history_text(&lines, args.format));
    Ok(())
}

/// Past promotions as rows.
pub(super) fn history_text(lines: &Value, format: Format) -> String {
    let names = ["TL", "LSN", "Reason", "Timestamp", "New Leader"];
    let row = |line: &Value| {
        let cells = (0..names.len()).map(|index| line.get(index).cloned().unwrap_or(Value::Null));
        cells.collect::<Vec<Value>>()
    };
    let rows = Rows {
        title: String::new(),
        columns: vec![right(names[0]), right(names[1]), left(names[2]), left(names[3]), left(names[4])],
        names: names.to_vec(),
        rows: lines.as_array().into_iter().flatten().map(row).collect(),
        colour: false,
        constant: None,
    };
    show(format, &rows)
}
