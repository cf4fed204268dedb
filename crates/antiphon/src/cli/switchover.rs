//! `switchover` and `failover`: asking for another leader, and waiting until it serves.

use std::time::Duration;

use clap::Args;
use hyper::Method;
use serde_json::{Map, Value};

use super::ask::confirm;
use super::failure::Failure;
use super::target::{TargetArgs, order};

/// Longer than a member waits for the outcome itself, which grows with `loop_wait`.
const OUTCOME_MAX: Duration = Duration::from_secs(180);

/// `switchover`.
#[derive(Debug, Args)]
pub struct SwitchoverArgs {
    /// The cluster's name, to be sure
    cluster: Option<String>,
    /// The present leader; it is looked up if not given
    #[arg(long, visible_alias = "primary", value_name = "MEMBER")]
    leader: Option<String>,
    /// Who shall lead; the best one if not given
    #[arg(long, value_name = "MEMBER")]
    candidate: Option<String>,
    /// When, as 2026-11-24T10:00:00+00:00; now if not given
    #[arg(long, value_name = "TIME")]
    scheduled: Option<String>,
    /// Do not ask
    #[arg(long)]
    force: bool,
}

/// `failover`.
#[derive(Debug, Args)]
pub struct FailoverArgs {
    /// The cluster's name, to be sure
    cluster: Option<String>,
    /// Who shall lead
    #[arg(long, value_name = "MEMBER")]
    candidate: String,
    /// Even if it cannot be shown to hold every acknowledged write
    #[arg(long)]
    accept_loss: bool,
    /// Do not ask
    #[arg(long)]
    force: bool,
}

pub(super) async fn switchover(target: &TargetArgs, args: SwitchoverArgs) -> Result<(), Failure> {
    let (client, cluster) = target.resolve()?.cluster().await?;
    cluster.check_name(args.cluster.as_deref())?;
    let leader = match args.leader {
        Some(leader) => leader,
        None => match cluster.leader() {
            Some(leader) => leader.name.clone(),
            None => return Err(Failure::Refused("nobody leads; use failover".to_owned())),
        },
    };
    let scheduled = args.scheduled.filter(|at| at != "now");
    let to = args.candidate.as_ref().map(|name| format!(" to {name}")).unwrap_or_default();
    let at = scheduled.as_ref().map(|at| format!(" at {at}")).unwrap_or_default();
    confirm(&format!("Switch {} over from {leader}{to}{at}?", cluster.scope), args.force)?;
    let mut body = Map::new();
    body.insert("leader".into(), leader.into());
    for (key, value) in [("candidate", args.candidate), ("scheduled_at", scheduled)] {
        if let Some(value) = value {
            body.insert(key.into(), value.into());
        }
    }
    let answer = order(&client, Method::POST, "/switchover", Some(&Value::Object(body)), OUTCOME_MAX).await?;
    println!("{}", answer.text);
    Ok(())
}

pub(super) async fn failover(target: &TargetArgs, args: FailoverArgs) -> Result<(), Failure> {
    let (client, cluster) = target.resolve()?.cluster().await?;
    cluster.check_name(args.cluster.as_deref())?;
    let loss = if args.accept_loss { ", ACCEPTING THE LOSS OF ACKNOWLEDGED WRITES" } else { "" };
    confirm(&format!("Make {} the leader of {}{loss}?", args.candidate, cluster.scope), args.force)?;
    let mut body = Map::new();
    body.insert("candidate".into(), args.candidate.into());
    if args.accept_loss {
        body.insert("accept_loss".into(), true.into());
    }
    let answer = order(&client, Method::POST, "/failover", Some(&Value::Object(body)), OUTCOME_MAX).await?;
    println!("{}", answer.text);
    Ok(())
}
