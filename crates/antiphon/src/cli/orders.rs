//! `restart`, `reload`, `reinit`, `flush`, `remove`: orders to single members.
//!
//! Each chosen member is told on its own; one that fails does not keep the others from being told, and the exit
//! code is that of the first failure.

use std::time::Duration;

use clap::{Args, ValueEnum};
use hyper::Method;
use serde_json::{Map, Value, json};

use super::ask::confirm;
use super::failure::Failure;
use super::table::harmless;
use super::target::{Cluster, Member, Target, TargetArgs, order};

/// How long a member may take for an order that is not a restart.
const ORDER_MAX: Duration = Duration::from_secs(30);
/// How long a member may take to restart its server.
const RESTART_MAX: Duration = Duration::from_secs(330);

/// Whom an order is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Part {
    /// The leader
    #[value(aliases = ["leader", "master"])]
    Primary,
    /// The replicas
    Replica,
    /// All
    #[default]
    Any,
}

/// `restart`.
#[derive(Debug, Args)]
pub struct RestartArgs {
    /// The members; all if none are given. The cluster's name may stand first
    members: Vec<String>,
    /// Only members in this part
    #[arg(short, long, value_enum, default_value_t)]
    role: Part,
    /// Only servers whose settings wait for a restart
    #[arg(long)]
    pending: bool,
    /// Only servers below this version, as 16.3
    #[arg(long, value_name = "VERSION")]
    pg_version: Option<String>,
    /// When, as 2026-11-24T10:00:00+00:00; now if not given
    #[arg(long, value_name = "TIME")]
    scheduled: Option<String>,
    /// How long a restart may take, as 60s
    #[arg(long, value_name = "DURATION")]
    timeout: Option<String>,
    /// Do not ask
    #[arg(long)]
    force: bool,
}

/// `reload`.
#[derive(Debug, Args)]
pub struct ReloadArgs {
    /// The members; all if none are given. The cluster's name may stand first
    members: Vec<String>,
    /// Only members in this part
    #[arg(short, long, value_enum, default_value_t)]
    role: Part,
    /// Do not ask
    #[arg(long)]
    force: bool,
}

/// `reinit`.
#[derive(Debug, Args)]
pub struct ReinitArgs {
    /// The members. The cluster's name may stand first
    #[arg(required = true)]
    members: Vec<String>,
    /// Copy the leader's data, also if another member is tagged `clonefrom`
    #[arg(long)]
    from_leader: bool,
    /// Do not ask, and break off a base backup or rewind that goes on
    #[arg(long)]
    force: bool,
}

/// What can be taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Planned {
    /// The scheduled switchover
    Switchover,
    /// Scheduled restarts
    Restart,
}

/// `flush`.
#[derive(Debug, Args)]
pub struct FlushArgs {
    /// What to take back; may stand after the cluster's name
    #[arg(required = true, num_args = 1..)]
    what: Vec<String>,
}

/// `remove`.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// The member
    member: String,
    /// Do not ask
    #[arg(long)]
    force: bool,
}

/// The members that an order is for.
fn chosen<'a>(cluster: &'a Cluster, names: &[String], role: Part) -> Result<Vec<&'a Member>, Failure> {
    let named = cluster.chosen(names)?;
    let members: Vec<&Member> = if named.is_empty() { cluster.members.iter().collect() } else { named };
    let fits = |member: &&Member| match role {
        Part::Any => true,
        Part::Primary => member.leads(),
        Part::Replica => !member.leads() && member.role != "witness",
    };
    let members: Vec<&Member> = members.into_iter().filter(fits).collect();
    if members.is_empty() {
        Err(Failure::Refused("no member fits what was asked for".to_owned()))
    } else {
        Ok(members)
    }
}

fn names(members: &[&Member]) -> String {
    members.iter().map(|member| member.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// Tells every member, and says what came of it.
async fn tell(
    target: &Target,
    members: &[&Member],
    what: &str,
    (method, path): (Method, &str),
    body: Option<&Value>,
    limit: Duration,
) -> Result<(), Failure> {
    let mut first = None;
    for member in members {
        let told = match target.client(member) {
            Ok(client) => order(&client, method.clone(), path, body, limit).await,
            Err(failure) => Err(failure),
        };
        match told {
            Ok(answer) => {
                println!("Success: {what} for member {}: {}", member.name, harmless(answer.text.trim()));
            }
            Err(failure) => {
                eprintln!("Failed: {what} for member {}: {failure}", member.name);
                first = first.or(Some(failure));
            }
        }
    }
    first.map_or(Ok(()), Err)
}

pub(super) async fn restart(target: &TargetArgs, args: RestartArgs) -> Result<(), Failure> {
    let target = target.resolve()?;
    let (_, cluster) = target.cluster().await?;
    let mut members = chosen(&cluster, &args.members, args.role)?;
    members.retain(|member| member.role != "witness" && (!args.pending || member.pending_restart));
    if members.is_empty() {
        println!("no server waits for a restart");
        return Ok(());
    }
    // The leader last: its restart interrupts writes, and followers that fail to restart are seen before. But a
    // follower may not have less of some settings than its leader has: what is lowered is lowered there first.
    let first = leader_first(&target, &cluster).await;
    members.sort_by_key(|member| member.leads() != first);
    let scheduled = args.scheduled.filter(|at| at != "now");
    let at = scheduled.as_ref().map(|at| format!(" at {at}")).unwrap_or_default();
    confirm(&format!("Restart the servers of {}{at}?", names(&members)), args.force)?;
    let mut body = Map::new();
    let given = [("schedule", scheduled), ("postgres_version", args.pg_version), ("timeout", args.timeout)];
    for (key, value) in given {
        if let Some(value) = value {
            body.insert(key.into(), value.into());
        }
    }
    if args.pending {
        body.insert("restart_pending".into(), true.into());
    }
    let body = Value::Object(body);
    let order = async |members: &[&Member]| {
        tell(&target, members, "restart", (Method::POST, "/restart"), Some(&body), RESTART_MAX).await
    };
    let before = usize::from(first && at.is_empty() && members.first().is_some_and(|member| member.leads()));
    let (leader, others) = members.split_at(before);
    if !leader.is_empty() {
        order(leader).await?;
        until_streaming(&target, others).await;
    }
    order(others).await
}

/// Waits until followers have heard from a leader that was just restarted what it runs with now. One that has not
/// starts with the old values and goes on waiting for a restart.
async fn until_streaming(target: &Target, members: &[&Member]) {
    let deadline = tokio::time::Instant::now() + ORDER_MAX;
    while tokio::time::Instant::now() < deadline {
        if let Ok((_, cluster)) = target.cluster().await
            && members.iter().all(|m| cluster.member(&m.name).is_ok_and(|m| m.state == "streaming"))
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Settings of which a follower must have at least as much as its leader.
const NOT_BELOW_LEADERS: [&str; 5] = [
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
];

/// Whether the leader must be restarted before its followers: a setting is lowered and none is raised.
async fn leader_first(target: &Target, cluster: &Cluster) -> bool {
    let Some(Ok(leader)) = cluster.leader().map(|leader| target.client(leader)) else { return false };
    leader.get_json("/patroni").await.is_ok_and(|status| lowers(&status["pending_restart_reason"]))
}

/// Whether what waits for a restart lowers a setting that followers must have as much of, and raises none.
pub(super) fn lowers(pending: &Value) -> bool {
    let number = |name: &str, which: &str| pending[name][which].as_str()?.parse::<u64>().ok();
    let change = |name: &str| Some((number(name, "old_value")?, number(name, "new_value")?));
    let changes: Vec<(u64, u64)> = NOT_BELOW_LEADERS.iter().filter_map(|name| change(name)).collect();
    changes.iter().any(|(old, new)| new < old) && changes.iter().all(|(old, new)| new <= old)
}

pub(super) async fn reload(target: &TargetArgs, args: ReloadArgs) -> Result<(), Failure> {
    let target = target.resolve()?;
    let (_, cluster) = target.cluster().await?;
    let members = chosen(&cluster, &args.members, args.role)?;
    confirm(&format!("Reload {}?", names(&members)), args.force)?;
    tell(&target, &members, "reload", (Method::POST, "/reload"), None, ORDER_MAX).await
}

pub(super) async fn reinit(target: &TargetArgs, args: ReinitArgs) -> Result<(), Failure> {
    let target = target.resolve()?;
    let (_, cluster) = target.cluster().await?;
    let members = cluster.chosen(&args.members)?;
    if members.is_empty() {
        return Err(Failure::Usage("name the members to build anew".to_owned()));
    }
    confirm(&format!("Replace the data of {} by a copy of another member's?", names(&members)), args.force)?;
    let body = json!({ "force": args.force, "from-leader": args.from_leader });
    tell(&target, &members, "reinitialize", (Method::POST, "/reinitialize"), Some(&body), ORDER_MAX).await
}

pub(super) async fn flush(target: &TargetArgs, args: FlushArgs) -> Result<(), Failure> {
    let target = target.resolve()?;
    let (client, cluster) = target.cluster().await?;
    let words = match args.what.split_first() {
        Some((first, rest)) if *first == cluster.scope && !rest.is_empty() => rest,
        Some(_) | None => args.what.as_slice(),
    };
    let (what, members) = words.split_first().map_or(("", words), |(what, members)| (what.as_str(), members));
    match Planned::from_str(what, true) {
        Ok(Planned::Switchover) => {
            let answer = order(&client, Method::DELETE, "/switchover", None, ORDER_MAX).await?;
            println!("{}", answer.text);
            Ok(())
        }
        Ok(Planned::Restart) => {
            let members = chosen(&cluster, members, Part::Any)?;
            tell(&target, &members, "flush restart", (Method::DELETE, "/restart"), None, ORDER_MAX).await
        }
        Err(_) => Err(Failure::Usage(format!("{what:?} cannot be taken back: say switchover or restart"))),
    }
}

pub(super) async fn remove(target: &TargetArgs, args: &RemoveArgs) -> Result<(), Failure> {
    let (client, cluster) = target.resolve()?.cluster().await?;
    let member = cluster.member(&args.member)?;
    confirm(&format!("Forget {} as a member of {}?", member.name, cluster.scope), args.force)?;
    order(&client, Method::DELETE, &format!("/members/{}", member.name), None, ORDER_MAX).await?;
    println!("{} is forgotten", member.name);
    Ok(())
}
