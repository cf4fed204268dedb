//! The events, and how one run of one of them goes: whole cluster, writers, event, recovery, heal, count.
//!
//! A run never begins on a cluster that is not whole. One that cannot be measured (the cluster did not become
//! whole again) is noted as failed and the system started anew, a bounded number of times.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::client::{self, Writers};
use crate::net::{Net, Node};
use crate::process::wait_until;
use crate::report::{Log, Outcome};
use crate::systems::{self, System};

/// A cluster that starts or heals has this long to become whole.
const WHOLE_LIMIT: Duration = Duration::from_secs(240);
/// Writes that have not come back by then never do, for this measurement.
const RECOVERY_LIMIT: Duration = Duration::from_secs(180);
/// Writes flow this long before the event.
const WARM: Duration = Duration::from_secs(3);
/// Writes flow this long after it, so that a second interruption (a proxy that flaps back) is seen.
const SETTLED: Duration = Duration::from_secs(6);
/// A gap up to this length is no interruption when it is judged whether writes flow.
const STEADY_GAP: Duration = Duration::from_millis(400);
const RESTARTS_MAX: u32 = 3;

/// What happens to the leader.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Event {
    /// kill -9 of the leader's postmaster
    PostgresKilled,
    /// kill -9 of the leader's agent and of its whole PostgreSQL; its host answers with RST
    NodeKilled,
    /// every packet from and to the leader's host is dropped
    NodeCutOff,
    /// a planned switchover to another node
    Switchover,
}

impl Event {
    /// The event in words, for tables.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Event::PostgresKilled => "PostgreSQL killed",
            Event::NodeKilled => "agent and PostgreSQL killed",
            Event::NodeCutOff => "host cut off",
            Event::Switchover => "switchover",
        }
    }

    /// The goals: median and worst outage.
    pub(crate) fn goals(self) -> (Duration, Duration) {
        let (median, worst) = match self {
            Event::PostgresKilled | Event::NodeKilled => (500, 1500),
            Event::NodeCutOff => (1600, 3000),
            Event::Switchover => (300, 600),
        };
        (Duration::from_millis(median), Duration::from_millis(worst))
    }
}

/// Runs all events on one system and stops it. An error only when the system cannot be started at all.
pub(crate) async fn run_all(
    system: &mut dyn System,
    net: &Net,
    events: &[Event],
    runs: u32,
    log: &mut Log,
) -> anyhow::Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    let mut restarts = 0;
    let ids = Arc::new(AtomicI64::new(1));
    start(system).await?;
    for event in events {
        for run in 1..=runs {
            let result = run_once(system, net, *event, &ids).await;
            let failed = result.is_err();
            let outcome = Outcome::new(system.name(), *event, run, result);
            eprintln!("{outcome}");
            log.write(&outcome)?;
            outcomes.push(outcome);
            if failed && restarts < RESTARTS_MAX {
                restarts += 1;
                stop(system, net).await;
                start(system).await?;
            }
        }
    }
    stop(system, net).await;
    Ok(outcomes)
}

async fn start(system: &mut dyn System) -> anyhow::Result<()> {
    eprintln!("starting {} ...", system.name());
    let began = Instant::now();
    system.start().await.with_context(|| format!("could not start {}", system.name()))?;
    let leader = whole(system).await?;
    client::create_table(&systems::direct(leader)?).await?;
    eprintln!("{} is whole after {:.1} s, {leader} leads", system.name(), began.elapsed().as_secs_f64());
    Ok(())
}

pub(crate) async fn stop(system: &mut dyn System, net: &Net) {
    system.stop().await;
    net.kill_everything_in_nodes().await;
    if let Err(error) = net.heal().await {
        eprintln!("{error:#}");
    }
}

/// Waits until one leads and two stream, and says who leads.
pub(crate) async fn whole(system: &dyn System) -> anyhow::Result<Node> {
    wait_until("the cluster is not whole", WHOLE_LIMIT, || async {
        systems::all_streaming().await.map(drop).map_err(|error| format!("{error:#}"))
    })
    .await
    .with_context(|| system.name().to_string())?;
    systems::leader().await
}

/// What one run showed.
pub(crate) struct Measured {
    /// Longest gap between acknowledgements; nothing when writes did not come back.
    pub(crate) outage: Option<Duration>,
    pub(crate) acked: usize,
    pub(crate) lost: usize,
    /// Errors that the four connections saw.
    pub(crate) errors: u64,
    pub(crate) from: Node,
    pub(crate) to: Node,
}

async fn run_once(
    system: &mut dyn System,
    net: &Net,
    event: Event,
    ids: &Arc<AtomicI64>,
) -> anyhow::Result<Measured> {
    let from = whole(system).await?;
    let writers = Writers::start(&systems::proxied()?, ids);
    wait_until("writes do not flow before the event", RECOVERY_LIMIT, || async {
        flows(&writers, Instant::now() - WARM).then_some(()).ok_or_else(|| "no steady writes yet".into())
    })
    .await?;
    let errors_before = writers.errors();
    let at = Instant::now();
    let happened = happen(system, net, event, from).await;
    if happened.is_ok() {
        let since = Instant::now() + SETTLED;
        let flowed = wait_until("writes do not come back", RECOVERY_LIMIT, || async {
            let settled = Instant::now() >= since && flows(&writers, Instant::now() - SETTLED);
            settled.then_some(()).ok_or_else(|| "no steady writes since the event".into())
        });
        if let Err(error) = flowed.await {
            eprintln!("{}: {error:#}", system.name());
        }
    }
    let errors = writers.errors() - errors_before;
    let acks = writers.stop().await;
    let outage = client::longest_gap(&acks, at);
    heal(system, net, event, from).await?;
    happened?;
    let to =
        whole(system).await.with_context(|| format!("after {outage:?} without writes from {from} on"))?;
    let lost = client::lost(&systems::direct(to)?, &acks).await?;
    Ok(Measured { outage, acked: acks.len(), lost, errors, from, to })
}

/// Whether acknowledgements have come steadily since then.
fn flows(writers: &Writers, since: Instant) -> bool {
    writers.steady_since(STEADY_GAP).is_some_and(|steady| steady <= since)
}

async fn happen(system: &mut dyn System, net: &Net, event: Event, leader: Node) -> anyhow::Result<()> {
    match event {
        Event::PostgresKilled => systems::kill_postgres(&system.data_folder(leader)),
        Event::NodeKilled => net.kill_processes(leader, system.outlives_the_node()).await,
        Event::NodeCutOff => net.cut(leader).await,
        Event::Switchover => {
            let candidate =
                Node::ALL.into_iter().find(|node| *node != leader).context("there is no other node")?;
            system.switchover(leader, candidate).await
        }
    }
}

async fn heal(system: &mut dyn System, net: &Net, event: Event, node: Node) -> anyhow::Result<()> {
    match event {
        Event::NodeKilled => system.start_node(node).await?,
        Event::NodeCutOff => net.heal().await?,
        Event::PostgresKilled | Event::Switchover => {}
    }
    // What the store says about a node may be as old as its last report: look only after the dust has settled.
    sleep(Duration::from_secs(2)).await;
    Ok(())
}
