//! Two servers and what carries changes from the first to the second: set up, held up, let go.
//!
//! Every system is asked in the same way: is the second server beyond this position of the first one's log, by its
//! own book of what it has applied. With a third node, that one joins and its agent is stopped: its watermark stands.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::{Instant, sleep};

use super::agent::Agent;
use super::cell::System;
use super::server::{Place, Server, Template};
use crate::cost::Cost;

/// How long setting up or holding up may take.
const SET_UP_LIMIT: Duration = Duration::from_secs(120);
/// How often the second server is asked how far it is. A question costs it a few hundredths of a millisecond.
const ASK_EVERY: Duration = Duration::from_millis(5);
/// Rows leave the second server in this way before it joins: a node that joins is empty.
const EMPTY: [&str; 1] = ["TRUNCATE bench"];

/// What pairs are made of.
pub(super) struct Kit {
    /// Where, and with which programs of PostgreSQL.
    pub(super) place: Place,
    pub(super) release: u32,
    /// Two data directories of different clusters, with the same rows.
    pub(super) templates: [Template; 2],
    /// The same of a PostgreSQL that has pglogical.
    pub(super) pglogical: Option<(Place, [Template; 2])>,
    /// The binary, where the server user can run it.
    pub(super) antiphon: PathBuf,
}

impl Kit {
    /// Whether a system can be measured here.
    pub(super) fn has(&self, system: System) -> bool {
        match system {
            System::NativeParallel => self.release >= 16,
            System::Pglogical => self.pglogical.is_some(),
            System::Native | System::NativeStreaming | System::Antiphon | System::AntiphonOneWay => true,
        }
    }
}

/// Two servers at work; more, if nodes beside them take part.
pub(super) struct Pair {
    system: System,
    pub(super) publisher: Server,
    pub(super) subscriber: Server,
    third: Option<Server>,
    /// Of the publisher and of the subscriber, while they run.
    agents: [Option<Agent>; 2],
    antiphon: PathBuf,
}

/// CPU time so far.
#[derive(Clone, Copy)]
pub(super) struct Costs {
    pub(super) publisher: Cost,
    pub(super) subscriber: Cost,
    pub(super) agents: Cost,
}

impl Pair {
    /// Two servers with the same rows, on which the system is at work; with a third that stands still if wanted.
    pub(super) async fn start(kit: &Kit, system: System, name: &str, third: bool) -> anyhow::Result<Pair> {
        let (place, templates) = match (&kit.pglogical, system) {
            (Some((place, templates)), System::Pglogical) => (place, templates),
            _ => (&kit.place, &kit.templates),
        };
        let place = |part: &str| Place { folder: place.folder.join(name).join(part), bin: place.bin.clone() };
        let settings = settings(system);
        place("").make()?;
        let [first, second] = templates;
        let publisher = first.server(&place("n1"), settings).await?;
        let subscriber = second.server(&place("n2"), settings).await?;
        let third = if third { Some(second.server(&place("n3"), settings).await?) } else { None };
        let agents = [None, None];
        let mut pair = Pair { system, publisher, subscriber, third, agents, antiphon: kit.antiphon.clone() };
        pair.set_up().await.with_context(|| format!("could not set up {}", system.name()))?;
        // The rows of a node that joined are new; nobody's vacuum shall come between measurements.
        pair.publisher.run(&["VACUUM (ANALYZE) bench"]).await?;
        pair.subscriber.run(&["VACUUM (ANALYZE) bench"]).await?;
        Ok(pair)
    }

    async fn set_up(&mut self) -> anyhow::Result<()> {
        let (publisher, subscriber) = (&self.publisher, &self.subscriber);
        match self.system {
            System::Native | System::NativeStreaming | System::NativeParallel => {
                let streaming = match self.system {
                    System::NativeStreaming => "on",
                    System::NativeParallel => "parallel",
                    _ => "off",
                };
                publisher
                    .run(&[
                        "CREATE PUBLICATION bench FOR TABLE bench",
                        "SELECT pg_create_logical_replication_slot('bench', 'pgoutput')",
                    ])
                    .await?;
                let subscription = format!(
                    "CREATE SUBSCRIPTION bench CONNECTION '{}' PUBLICATION bench WITH (enabled = false, \
                     create_slot = false, slot_name = 'bench', copy_data = false, streaming = {streaming})",
                    publisher.address()
                );
                subscriber.run(&[&subscription]).await?;
            }
            System::Pglogical => {
                let node = |server: &Server, name: &str| {
                    format!("SELECT pglogical.create_node('{name}', '{}')", server.address())
                };
                let extension = "CREATE EXTENSION pglogical";
                permit_plugin(publisher).await?;
                publisher
                    .run(&[
                        extension,
                        &node(publisher, "n1"),
                        "SELECT pglogical.replication_set_add_table('default', 'bench')",
                    ])
                    .await?;
                let subscription = format!(
                    "SELECT pglogical.create_subscription('bench', '{}', synchronize_structure := false, \
                     synchronize_data := false, forward_origins := '{{}}')",
                    publisher.address()
                );
                subscriber.run(&[extension, &node(subscriber, "n2"), &subscription]).await?;
            }
            System::Antiphon | System::AntiphonOneWay => self.set_up_mesh().await?,
        }
        if !matches!(self.system, System::Antiphon | System::AntiphonOneWay | System::Pglogical) {
            self.release().await?;
        }
        let marked = super::load::mark(&self.publisher).await?;
        self.wait_beyond(&marked, SET_UP_LIMIT).await.context("changes do not flow")
    }

    async fn set_up_mesh(&mut self) -> anyhow::Result<()> {
        Agent::create(&self.antiphon, &self.publisher).await?;
        self.agents[0] = Some(Agent::start(&self.antiphon, &self.publisher)?);
        let donor = self.publisher.address();
        for server in [Some(&self.subscriber), self.third.as_ref()].into_iter().flatten() {
            server.run(&EMPTY).await?;
            Agent::join(&self.antiphon, server, &donor).await?;
            let agent = Agent::start(&self.antiphon, server)?;
            if self.agents[1].is_none() {
                self.agents[1] = Some(agent);
            } else {
                // Everybody hears of it once; then it falls silent.
                let seen =
                    "SELECT EXISTS (SELECT FROM antiphon.links WHERE node = 3 AND complete_to IS NOT NULL)";
                wait_for(&self.subscriber, seen, SET_UP_LIMIT)
                    .await
                    .context("the third node is not heard")?;
                agent.stop().await;
            }
        }
        Ok(())
    }

    /// Stops applying on the second server; returns once nobody reads the first one's log.
    pub(super) async fn hold(&mut self) -> anyhow::Result<()> {
        match self.system {
            System::Native | System::NativeStreaming | System::NativeParallel => {
                self.subscriber.run(&["ALTER SUBSCRIPTION bench DISABLE"]).await?;
            }
            System::Pglogical => {
                self.subscriber.run(&["SELECT pglogical.alter_subscription_disable('bench', true)"]).await?;
            }
            System::Antiphon | System::AntiphonOneWay => {
                if let Some(agent) = self.agents[1].take() {
                    agent.stop().await;
                }
            }
        }
        let quiet = "SELECT NOT EXISTS (SELECT FROM pg_replication_slots WHERE active)";
        wait_for(&self.publisher, quiet, SET_UP_LIMIT)
            .await
            .context("the first server's log is still read")?;
        if self.system == System::AntiphonOneWay
            && let Some(agent) = self.agents[0].take()
        {
            agent.stop().await;
        }
        Ok(())
    }

    /// Applies again.
    pub(super) async fn release(&mut self) -> anyhow::Result<()> {
        match self.system {
            System::Native | System::NativeStreaming | System::NativeParallel => {
                self.subscriber.run(&["ALTER SUBSCRIPTION bench ENABLE"]).await
            }
            System::Pglogical => {
                self.subscriber.run(&["SELECT pglogical.alter_subscription_enable('bench', true)"]).await
            }
            System::Antiphon | System::AntiphonOneWay => {
                self.agents[1] = Some(Agent::start(&self.antiphon, &self.subscriber)?);
                Ok(())
            }
        }
    }

    /// Waits until the second server has everything of the first one up to this position.
    pub(super) async fn wait_beyond(&self, position: &str, limit: Duration) -> anyhow::Result<()> {
        let query = if self.system.is_own() {
            format!("SELECT lsn > '{position}' FROM antiphon.progress WHERE node = 1")
        } else {
            format!(
                "SELECT coalesce(bool_or(remote_lsn > '{position}'), false) FROM pg_replication_origin_status"
            )
        };
        wait_for(&self.subscriber, &query, limit).await
    }

    /// Waits until the first server has everything of the second one up to this position.
    pub(super) async fn wait_back(&self, position: &str, limit: Duration) -> anyhow::Result<()> {
        let query = format!("SELECT lsn > '{position}' FROM antiphon.progress WHERE node = 2");
        wait_for(&self.publisher, &query, limit).await
    }

    /// What everything has cost so far.
    pub(super) fn costs(&self) -> Costs {
        let agents: Vec<i32> = self.agents.iter().flatten().filter_map(Agent::pid).collect();
        Costs {
            publisher: self.publisher.cost(),
            subscriber: self.subscriber.cost(),
            agents: crate::cost::sum(&agents),
        }
    }

    /// Whether anything is at work beside the servers.
    pub(super) fn has_agents(&self) -> bool {
        self.agents.iter().any(Option::is_some)
    }

    /// The most memory that the second server's agent ever had, in bytes.
    pub(super) fn peak_rss(&self) -> Option<u64> {
        self.agents[1].as_ref()?.pid().and_then(crate::cost::peak_rss)
    }

    /// Ends it all.
    pub(super) async fn stop(self) {
        for agent in self.agents.into_iter().flatten() {
            agent.stop().await;
        }
        // The reader before what it reads.
        self.subscriber.stop().await;
        self.publisher.stop().await;
        if let Some(third) = self.third {
            third.stop().await;
        }
    }
}

/// What a system's servers need. Commit times are kept where conflicts are decided by them; they cost a little, and
/// who lets every change that arrives win can do without.
pub(super) fn settings(system: System) -> &'static [(&'static str, &'static str)] {
    match system {
        System::Native | System::NativeStreaming | System::NativeParallel => {
            &[("track_commit_timestamp", "off")]
        }
        System::Pglogical => &[
            ("track_commit_timestamp", "off"),
            ("shared_preload_libraries", "pglogical"),
            ("pglogical.conflict_resolution", "apply_remote"),
        ],
        System::Antiphon | System::AntiphonOneWay => &[("track_commit_timestamp", "on")],
    }
}

/// The newest releases load only output plugins that are listed.
async fn permit_plugin(server: &Server) -> anyhow::Result<()> {
    let client = server.client().await?;
    let listed = "SELECT setting FROM pg_settings WHERE name = 'output_plugin_libraries'";
    let Some(row) = client.query_opt(listed, &[]).await? else { return Ok(()) };
    let listed: String = row.try_get(0)?;
    let more =
        if listed.is_empty() { "pglogical_output".into() } else { format!("{listed}, pglogical_output") };
    let names: Vec<String> = more.split(',').map(|name| format!("'{}'", name.trim())).collect();
    let set = format!("ALTER SYSTEM SET output_plugin_libraries = {}", names.join(", "));
    server.run(&[&set, "SELECT pg_reload_conf()"]).await
}

/// Asks until the answer is yes.
async fn wait_for(server: &Server, query: &str, limit: Duration) -> anyhow::Result<()> {
    let client = server.client().await?;
    let statement = client.prepare(query).await?;
    let deadline = Instant::now() + limit;
    loop {
        let answer = client.query_opt(&statement, &[]).await?;
        if answer.is_some_and(|row| row.get(0)) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("not within {limit:?}: {query}");
        }
        sleep(ASK_EVERY).await;
    }
}
