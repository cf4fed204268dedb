//! The scenes of the demo: what is done to the cluster, and what came of it.

use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::Value;

use super::cluster::Cluster;
use super::http;
use super::load::Load;

/// How long a cluster may take to be whole again after a scene.
const WHOLE_WITHIN: Duration = Duration::from_secs(90);
/// How long a member is frozen.
const FREEZE: Duration = Duration::from_secs(5);

/// Something that is done to the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scene {
    /// kill -9 of the server's main process, under a live agent.
    KillServer,
    /// kill -9 of every process of the member; it comes back later.
    KillNode,
    /// SIGSTOP of every process of the member for some seconds.
    Freeze,
    /// A planned hand-over.
    Switchover,
}

/// All scenes, in the order of the demo.
pub const ALL: [Scene; 4] = [Scene::KillServer, Scene::KillNode, Scene::Freeze, Scene::Switchover];

/// What came of a scene.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Who led before.
    pub before: String,
    /// Who led after.
    pub after: String,
    /// The longest time without an acknowledged write.
    pub gap: Duration,
    /// From the blow until everybody streamed again.
    pub whole: Duration,
    /// Why leadership changed, in the cluster's own words.
    pub reason: String,
}

impl Scene {
    /// What is about to happen to this member, for people.
    pub fn announce(self, leader: &str) -> String {
        match self {
            Self::KillServer => format!("kill -9 of {leader}'s PostgreSQL"),
            Self::KillNode => format!("kill -9 of every process of {leader}"),
            Self::Freeze => format!("{leader} frozen for {} s (SIGSTOP)", FREEZE.as_secs()),
            Self::Switchover => format!("planned switchover away from {leader}"),
        }
    }

    /// Plays the scene on the present leader and waits until the cluster is whole again.
    ///
    /// # Errors
    /// If there is no leader, or the cluster does not heal.
    pub async fn play(self, cluster: &mut Cluster, load: &Load) -> anyhow::Result<Outcome> {
        let leader = cluster.leader().await.context("no member leads")?;
        let before = cluster.nodes[leader].name.clone();
        let term = term(cluster).await.context("no member knows the term")?;
        let began = Instant::now();
        match self {
            Self::KillServer => cluster.kill_server(leader)?,
            Self::KillNode => {
                cluster.kill_node(leader);
                successor(cluster, leader, WHOLE_WITHIN).await?;
                cluster.start_agent(leader)?;
            }
            Self::Freeze => {
                cluster.pause_node(leader, true);
                tokio::time::sleep(FREEZE).await;
                cluster.pause_node(leader, false);
            }
            Self::Switchover => switchover(cluster, leader).await?,
        }
        next_term(cluster, term, WHOLE_WITHIN).await?;
        cluster.wait_whole(WHOLE_WITHIN).await?;
        let whole = began.elapsed();
        let after =
            cluster.leader().await.map_or_else(|| "nobody".to_owned(), |i| cluster.nodes[i].name.clone());
        let reason = if after == before {
            format!("{before} went on leading")
        } else {
            last_reason(cluster).await.unwrap_or_else(|| "the history has no entry".to_owned())
        };
        Ok(Outcome { before, after, gap: load.longest_gap(began), whole, reason })
    }
}

/// Waits until another member than `gone` leads.
async fn successor(cluster: &Cluster, gone: usize, limit: Duration) -> anyhow::Result<usize> {
    let started = Instant::now();
    while started.elapsed() < limit {
        match cluster.leader().await {
            Some(leader) if leader != gone => return Ok(leader),
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    anyhow::bail!("nobody took over from {} within {limit:?}", cluster.nodes[gone].name)
}

/// The newest term that any member knows.
async fn term(cluster: &Cluster) -> Option<u64> {
    let mut newest = None;
    for index in 0..cluster.nodes.len() {
        if let Ok(seen) = cluster.get(index, "/cluster").await {
            newest = newest.max(seen["epoch"].as_u64());
        }
    }
    newest
}

/// Waits until a term after `old` has begun: before, a member may still believe in the old leader.
async fn next_term(cluster: &Cluster, old: u64, limit: Duration) -> anyhow::Result<()> {
    let started = Instant::now();
    while started.elapsed() < limit {
        if term(cluster).await.is_some_and(|term| term > old) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    anyhow::bail!("no election was opened within {limit:?}")
}

/// Asks the leader to hand over, as `antiphon switchover` does.
async fn switchover(cluster: &Cluster, leader: usize) -> anyhow::Result<()> {
    let node = &cluster.nodes[leader];
    let body = serde_json::json!({ "leader": node.name }).to_string();
    let answer = http::post(node.api_port, "/switchover", &body, Duration::from_secs(30)).await?;
    anyhow::ensure!(
        answer.status == 200,
        "the switchover was answered with {}: {}",
        answer.status,
        answer.body
    );
    Ok(())
}

/// The reason of the newest promotion.
async fn last_reason(cluster: &Cluster) -> Option<String> {
    let leader = cluster.leader().await?;
    let history = cluster.get(leader, "/history").await.ok()?;
    let entry = history.as_array()?.last()?.as_array()?.clone();
    entry.get(2).and_then(Value::as_str).map(str::to_owned)
}
