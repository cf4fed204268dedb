//! Three regions: in each a member with its own server, a node of the mesh, and the ways to the other two.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use antiphon_mesh::manage::{self, Standing};
use anyhow::{Context, bail};
use serde_json::json;
use tokio_postgres::{Client, NoTls};

use super::relay::Relay;
use crate::demo::cluster::{Cluster, PASSWORD, Plan};

/// The regions, in the order in which they join.
pub const NAMES: [&str; 3] = ["eu", "us", "asia"];
/// How long a byte takes from one to another: pairs of indices into `NAMES`.
const DISTANCES: [(usize, usize, Duration); 3] = [
    (0, 1, Duration::from_millis(45)),
    (1, 2, Duration::from_millis(75)),
    (0, 2, Duration::from_millis(110)),
];
/// The mesh's name.
const MESH: &str = "demo";
/// How long the servers may take to come up.
const UP_WITHIN: Duration = Duration::from_secs(90);

/// One region.
pub struct Region {
    /// Its name, and its node's.
    pub name: &'static str,
    /// A connection of somebody who lives there.
    pub client: Client,
    cluster: Cluster,
}

/// All of them.
pub struct World {
    /// In the order of `NAMES`.
    pub regions: Vec<Region>,
    /// The way from one region to another.
    ways: Vec<Way>,
    binary: PathBuf,
}

struct Way {
    from: usize,
    to: usize,
    relay: Relay,
}

impl World {
    /// Starts a member in each region; nobody knows of the others yet, and nothing is delayed.
    ///
    /// # Errors
    /// What could not be started.
    pub async fn start(dir: &Path, binary: PathBuf, bin_dir: Option<&Path>) -> anyhow::Result<Self> {
        let mut ways = Vec::new();
        for from in 0..NAMES.len() {
            for to in (0..NAMES.len()).filter(|to| *to != from) {
                ways.push(Way { from, to, relay: Relay::listen().await? });
            }
        }
        let mut clusters = Vec::new();
        for (index, name) in NAMES.iter().enumerate() {
            let plan = Plan {
                dir: dir.join(name),
                binary: binary.clone(),
                bin_dir: bin_dir.map(Path::to_owned),
                data_members: 1,
                witness: false,
                settings: json!({
                    "synchronous_mode": "quorum",
                    "postgresql": { "parameters": { "wal_level": "logical", "track_commit_timestamp": "on" } },
                }),
                etcd: None,
            };
            let cluster = Cluster::start_with(&plan, |port| section(index, port, &ways))?;
            for way in ways.iter().filter(|way| way.to == index) {
                way.relay.lead_to(cluster.nodes[0].server_port);
            }
            clusters.push(cluster);
        }
        let mut regions = Vec::new();
        for (name, cluster) in NAMES.into_iter().zip(clusters) {
            wait_for_leader(&cluster).await.with_context(|| format!("region {name}"))?;
            let client = connect(cluster.nodes[0].server_port).await?;
            regions.push(Region { name, client, cluster });
        }
        Ok(Self { regions, ways, binary })
    }

    /// Makes the mesh as an operator would: `antiphon mesh create`, then `join` twice.
    ///
    /// # Errors
    /// What a command said.
    pub async fn unite(&self, mut tell: impl FnMut(&str)) -> anyhow::Result<()> {
        let [first, others @ ..] = &self.regions[..] else { bail!("there are no regions") };
        tell(&format!("$ antiphon mesh create --name {MESH} {}.yml", first.name));
        self.command(&["mesh", "create", "--name", MESH, &first.file()]).await?;
        for (index, region) in others.iter().enumerate() {
            tell(&format!(
                "$ antiphon mesh join --from 'host={} dbname=postgres' {}.yml",
                first.name, region.name
            ));
            let way = self.ways.iter().find(|way| way.from == index + 1 && way.to == 0);
            let donor = dsn(way.context("there is a way between any two")?.relay.port);
            self.command(&["mesh", "join", "--from", &donor, &region.file()]).await?;
        }
        Ok(())
    }

    /// From now on, distances are what they are.
    pub fn part(&self) {
        for way in &self.ways {
            way.relay.take(distance(way.from, way.to));
        }
    }

    /// Cuts a region off from all others, or ends that.
    pub fn cut(&self, region: usize, cut: bool) {
        for way in self.ways.iter().filter(|way| way.from == region || way.to == region) {
            way.relay.cut(cut);
        }
    }

    /// How a region sees everybody.
    ///
    /// # Errors
    /// If its database fails.
    pub async fn standing(&self, region: usize) -> anyhow::Result<Vec<Standing>> {
        Ok(manage::standing(&self.regions[region].client).await?)
    }

    /// Waits until every region has the changes of all others.
    ///
    /// # Errors
    /// If one has not within `limit`; says how its links stand.
    pub async fn wait_until_linked(&self, limit: Duration) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let mut unwell = None;
            for (nth, region) in self.regions.iter().enumerate() {
                let standing = self.standing(nth).await?;
                let well = |node: &&Standing| matches!(node.link.as_str(), "own" | "streaming");
                if let Some(node) = standing.iter().find(|node| !well(node)) {
                    let why = node.message.clone().unwrap_or_default();
                    unwell = Some(format!(
                        "the link from {} to {} is {}: {why}",
                        node.name, region.name, node.link
                    ));
                }
            }
            match unwell {
                None => return Ok(()),
                Some(unwell) if begun.elapsed() > limit => bail!("{unwell}"),
                Some(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Runs the binary, as a person would; its words are for whoever asks why it failed.
    async fn command(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let output = tokio::process::Command::new(&self.binary).args(arguments).output().await?;
        if output.status.success() {
            return Ok(());
        }
        bail!("antiphon {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim())
    }
}

impl Region {
    /// Its node's file.
    pub fn file(&self) -> String {
        self.cluster.nodes[0].file.display().to_string()
    }

    /// Its server's port.
    pub fn port(&self) -> u16 {
        self.cluster.nodes[0].server_port
    }

    /// The one value of a query, as text.
    ///
    /// # Errors
    /// If the server fails.
    pub async fn text(&self, query: &str) -> anyhow::Result<String> {
        Ok(self.client.query_one(query, &[]).await?.get(0))
    }
}

/// Waits until a region's member takes writes.
async fn wait_for_leader(cluster: &Cluster) -> anyhow::Result<()> {
    let begun = Instant::now();
    while cluster.leader().await.is_none() {
        anyhow::ensure!(begun.elapsed() < UP_WITHIN, "no server took writes within {UP_WITHIN:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// How long a byte takes from one region to another.
pub fn distance(from: usize, to: usize) -> Duration {
    let pair = (from.min(to), from.max(to));
    let found = DISTANCES.iter().find(|(a, b, _)| (*a, *b) == pair);
    found.map_or(Duration::ZERO, |(_, _, distance)| *distance)
}

/// A connection from within a region.
///
/// # Errors
/// If its server does not answer.
pub async fn connect(port: u16) -> anyhow::Result<Client> {
    let (client, connection) =
        tokio_postgres::connect(&dsn(port), NoTls).await.context("could not connect to a region's server")?;
    tokio::spawn(connection);
    Ok(client)
}

fn dsn(port: u16) -> String {
    format!("host=127.0.0.1 port={port} user=postgres password={PASSWORD} dbname=postgres")
}

/// What makes a member's file a node's as well.
fn section(region: usize, port: u16, ways: &[Way]) -> String {
    let mut text = format!("\nmesh:\n  node: {}\n  connect: {}\n  peers:\n", NAMES[region], dsn(port));
    for way in ways.iter().filter(|way| way.from == region) {
        text += &format!("    {}: {}\n", NAMES[way.to], dsn(way.relay.port));
    }
    text
}
