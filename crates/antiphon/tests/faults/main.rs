//! The fault suite: real servers are killed, paused and handed over under load, and lost writes are counted.
//!
//! `ANTIPHON_FAULTS` says how many faults each test does (`make faults` does 200); the seed that chose them is
//! printed and can be given back in `ANTIPHON_SEED`.

#![allow(clippy::unwrap_used, reason = "a failed assumption of a test is a failed test")]

mod agents;
mod ask;
mod disk;
mod members;
mod slots;
mod tls;

use std::path::{Path, PathBuf};
use std::time::Duration;

use antiphon::demo::cluster::{Cluster, Plan};
use antiphon::demo::load::{Load, Tally};
use antiphon::demo::scenes::{ALL, Scene};
use serde_json::{Value, json};

/// How long a cluster may take to come up on a busy machine.
const UP_WITHIN: Duration = Duration::from_secs(120);
/// Faults a test without `ANTIPHON_FAULTS`.
const FAULTS: u64 = 5;

/// A directory that is removed when the test passes and kept when it fails.
struct Scratch(PathBuf);

impl Scratch {
    fn new(test: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("antiphon-{test}-{}", std::process::id()));
        eprintln!("{test}: members and their logs in {}", dir.display());
        Self(dir)
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// Numbers from a seed: SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators").
struct Random(u64);

impl Random {
    fn new(test: &str) -> Self {
        let given = std::env::var("ANTIPHON_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| u64::from(std::process::id()));
        eprintln!("{test}: ANTIPHON_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % limit
    }
}

fn faults() -> u64 {
    std::env::var("ANTIPHON_FAULTS").ok().and_then(|count| count.parse().ok()).unwrap_or(FAULTS)
}

/// The agent under test: `ANTIPHON_BINARY`, for a long run that a new build must not disturb, or this build's.
fn binary() -> PathBuf {
    std::env::var_os("ANTIPHON_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_antiphon").into(), PathBuf::from)
}

/// `ANTIPHON_PG_BIN` chooses the server; the agent finds one otherwise.
fn plan(scratch: &Scratch, data_members: usize, witness: bool, settings: Value) -> Plan {
    Plan {
        dir: scratch.path().to_owned(),
        binary: binary(),
        bin_dir: std::env::var_os("ANTIPHON_PG_BIN").map(PathBuf::from),
        data_members,
        witness,
        settings,
        etcd: None,
    }
}

/// A real etcd in a directory of the test; ended when dropped.
struct Etcd {
    process: std::process::Child,
    port: u16,
}

impl Etcd {
    fn start(dir: &Path) -> Self {
        Self::start_with(dir, "http", &[])
    }

    /// With further arguments, for clients that use this scheme.
    fn start_with(dir: &Path, scheme: &str, arguments: &[&std::ffi::OsStr]) -> Self {
        let listeners: Vec<_> = (0..2).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let [port, peer_port] = [0, 1].map(|i: usize| listeners[i].local_addr().unwrap().port());
        drop(listeners);
        std::fs::create_dir_all(dir).unwrap();
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let client = format!("{scheme}://127.0.0.1:{port}");
        let log = std::fs::File::create(dir.join("etcd.log")).unwrap();
        let process = std::process::Command::new("etcd")
            .args(["--name", "e1", "--data-dir"])
            .arg(dir.join("etcd"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &url(peer_port), "--initial-advertise-peer-urls", &url(peer_port)])
            .args(["--initial-cluster", &format!("e1={}", url(peer_port))])
            .args(arguments)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("etcd is installed (apt-get install etcd-server)");
        Self { process, port }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn a_cluster_that_agrees_in_etcd_loses_nothing() {
    let scratch = Scratch::new("etcd");
    let etcd = Etcd::start(scratch.path());
    let plan =
        Plan { etcd: Some(etcd.port), ..plan(&scratch, 3, false, json!({ "synchronous_mode": "quorum" })) };
    let scenes = [Scene::KillServer, Scene::KillNode, Scene::Switchover];
    assert_eq!(torment("etcd", &plan, &scenes).await.lost, 0);
}

/// Plays faults at random moments of a load and counts.
async fn torment(test: &str, plan: &Plan, scenes: &[Scene]) -> Tally {
    let mut random = Random::new(test);
    let mut cluster = Cluster::start(plan).unwrap();
    cluster.wait_whole(UP_WITHIN).await.unwrap();
    let load = Load::start(cluster.servers(), 4, UP_WITHIN).await.unwrap();
    let mut gaps = Vec::new();
    for number in 1..=faults() {
        load.wait_for(50 + usize::try_from(random.below(400)).unwrap(), UP_WITHIN).await.unwrap();
        let scene = scenes[usize::try_from(random.below(scenes.len() as u64)).unwrap()];
        let outcome = scene.play(&mut cluster, &load).await.unwrap();
        eprintln!(
            "{test} {number}: {scene:?} of {}: {:.2} s without writes, {} leads ({}), whole after {:.1} s",
            outcome.before,
            outcome.gap.as_secs_f64(),
            outcome.after,
            outcome.reason,
            outcome.whole.as_secs_f64()
        );
        gaps.push(outcome.gap);
    }
    gaps.sort();
    let tally = load.finish(UP_WITHIN).await.unwrap();
    assert!(tally.acknowledged > 0, "a run in which nothing was acknowledged proves nothing");
    eprintln!(
        "{test}: {} faults, median {:.2} s and worst {:.2} s without writes, {tally:?}",
        gaps.len(),
        gaps[gaps.len() / 2].as_secs_f64(),
        gaps[gaps.len() - 1].as_secs_f64()
    );
    cluster.wait_whole(UP_WITHIN).await.unwrap();
    tally
}

#[tokio::test]
async fn no_acknowledged_write_is_lost_in_quorum_mode() {
    let scratch = Scratch::new("quorum");
    let plan = plan(&scratch, 3, false, json!({ "synchronous_mode": "quorum" }));
    assert_eq!(torment("quorum", &plan, &ALL).await.lost, 0);
}

#[tokio::test]
async fn two_members_and_a_witness_lose_nothing_and_go_on_alone() {
    let scratch = Scratch::new("witness");
    let plan = plan(&scratch, 2, true, json!({ "synchronous_mode": true }));
    assert_eq!(torment("witness", &plan, &[Scene::KillServer, Scene::KillNode]).await.lost, 0);
}

#[tokio::test]
async fn asynchronous_mode_loses_no_more_than_was_on_its_way() {
    let scratch = Scratch::new("asynchronous");
    let plan = plan(&scratch, 3, false, json!({ "synchronous_mode": "off", "ttl": 3 }));
    let tally =
        torment("asynchronous", &plan, &[Scene::KillServer, Scene::KillNode, Scene::Switchover]).await;
    // Each fault may lose what the leader had acknowledged and no follower had received: here far less than a
    // second of writes.
    let bound = usize::try_from(faults()).unwrap() * 500;
    assert!(tally.lost <= bound, "{} writes were lost, more than {bound}", tally.lost);
}

#[tokio::test]
async fn killing_the_agent_alone_costs_nothing() {
    let scratch = Scratch::new("agent");
    let plan = plan(&scratch, 3, false, json!({ "synchronous_mode": "quorum" }));
    let mut cluster = Cluster::start(&plan).unwrap();
    cluster.wait_whole(UP_WITHIN).await.unwrap();
    let load = Load::start(cluster.servers(), 4, UP_WITHIN).await.unwrap();
    let leader = cluster.leader().await.unwrap();
    let epoch = cluster.get(leader, "/cluster").await.unwrap()["epoch"].clone();
    load.wait_for(100, UP_WITHIN).await.unwrap();
    cluster.kill_agent(leader);
    load.wait_for(200, UP_WITHIN).await.unwrap();
    cluster.start_agent(leader).unwrap();
    cluster.wait_whole(UP_WITHIN).await.unwrap();
    assert_eq!(cluster.leader().await, Some(leader), "the agent that came back adopts its server");
    assert_eq!(cluster.get(leader, "/cluster").await.unwrap()["epoch"], epoch, "no election was needed");
    assert_eq!(load.finish(UP_WITHIN).await.unwrap().lost, 0);
}
