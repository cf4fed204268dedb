//! `antiphon demo`: three members on loopback lose their leader in four ways, under a load that counts.
//! `antiphon demo mesh`, in `mesh`: three leaders in three regions.
//!
//! Everything is real: the agents are this binary, the servers are the PostgreSQL that is installed here. At
//! the end the table is compared with what was acknowledged.

pub mod cluster;
pub mod http;
pub mod load;
mod mesh;
pub mod scenes;
mod screen;

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use serde_json::json;

use cluster::{Cluster, PASSWORD, Plan};
use load::{Load, Tally};
use scenes::Outcome;
use screen::Screen;

/// Writers of the load.
const WRITERS: u32 = 4;
/// How long the cluster may take to come up.
const UP_WITHIN: Duration = Duration::from_secs(90);

/// What is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Subject {
    /// A cluster of three members loses its leader in four ways
    #[default]
    Failover,
    /// Three leaders in three regions write the same rows at once, and are cut off from each other
    Mesh,
}

/// What can be said on the command line.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What is shown.
    pub subject: Subject,
    /// End after the last scene even on a terminal.
    pub once: bool,
    /// Where the members are kept; a new directory for temporary files if none. Removed at the end if it is new.
    pub dir: Option<PathBuf>,
    /// Where the server's programs are.
    pub bin_dir: Option<PathBuf>,
}

/// Runs the demo. Exit code 0 only if nothing was lost and everybody streams at the end.
pub fn run(options: &Options) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result =
        runtime.context("could not start the runtime").and_then(|runtime| runtime.block_on(demo(options)));
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("antiphon demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn demo(options: &Options) -> anyhow::Result<bool> {
    let fresh = options.dir.is_none();
    let dir = options
        .dir
        .clone()
        .unwrap_or_else(|| std::env::temp_dir().join(format!("antiphon-demo-{}", std::process::id())));
    let mut screen = Screen::new(options.once);
    let stays = Cell::new(false);
    let playing = async {
        match options.subject {
            Subject::Failover => play(options, &dir, &mut screen, &stays).await,
            Subject::Mesh => mesh::play(options, &dir, &RefCell::new(screen), &stays).await,
        }
    };
    // What was started ends with what started it, so Ctrl-C must come to its end here.
    let sound = tokio::select! {
        sound = playing => sound,
        () = interrupted(&stays) => Err(anyhow::anyhow!("interrupted")),
    };
    if let Err(error) = &sound {
        eprintln!("antiphon demo: {error:#}");
        eprintln!("the logs are kept: {}", dir.join("**/agent.log").display());
    } else if fresh {
        std::fs::remove_dir_all(&dir).with_context(|| format!("could not remove {}", dir.display()))?;
    }
    Ok(sound.unwrap_or(false))
}

/// Waits for Ctrl-C. While a demo stays, it is what ends the stay.
async fn interrupted(stays: &Cell<bool>) {
    loop {
        let _ = tokio::signal::ctrl_c().await;
        if !stays.get() {
            return;
        }
    }
}

async fn play(
    options: &Options,
    dir: &Path,
    screen: &mut Screen,
    stays: &Cell<bool>,
) -> anyhow::Result<bool> {
    let binary = std::env::current_exe().context("could not find this program's own file")?;
    screen.tell(&format!("starting three members in {}", dir.display()));
    let plan = Plan {
        dir: dir.to_owned(),
        binary,
        bin_dir: options.bin_dir.clone(),
        data_members: 3,
        witness: false,
        settings: json!({ "synchronous_mode": "quorum" }),
        etcd: None,
    };
    let mut cluster = Cluster::start(&plan)?;
    let up = watched(screen, None, &cluster, cluster.wait_whole(UP_WITHIN)).await?;
    screen.tell(&format!(
        "up after {:.1} s: one leader, two followers, each commit on two servers",
        up.as_secs_f64()
    ));
    let load = Load::start(cluster.servers(), WRITERS, UP_WITHIN).await?;
    let mut outcomes = Vec::new();
    for scene in scenes::ALL {
        breathe(screen, &load, &cluster, Duration::from_secs(4)).await;
        let leader = cluster.leader().await.context("no member leads")?;
        let announced = scene.announce(&cluster.nodes[leader].name);
        screen.tell(&format!("\u{25b6} {announced}"));
        let outcome = play_scene(screen, &load, &mut cluster, scene).await?;
        screen.tell(&format!("  {}", told(&outcome)));
        outcomes.push((announced, outcome));
    }
    breathe(screen, &load, &cluster, Duration::from_secs(2)).await;
    if screen.is_live() && !options.once {
        stays.set(true);
        stay(screen, &load, &cluster).await;
    }
    let tally = load.finish(UP_WITHIN).await?;
    let whole = cluster.is_whole().await;
    report(&outcomes, tally, whole);
    cluster.stop();
    Ok(tally.lost == 0 && whole)
}

fn told(outcome: &Outcome) -> String {
    format!(
        "{:.2} s without writes; {} leads: {}; all whole after {:.1} s",
        outcome.gap.as_secs_f64(),
        outcome.after,
        outcome.reason,
        outcome.whole.as_secs_f64()
    )
}

/// Plays a scene while the view is drawn from what the cluster says of itself.
async fn play_scene(
    screen: &mut Screen,
    load: &Load,
    cluster: &mut Cluster,
    scene: scenes::Scene,
) -> anyhow::Result<Outcome> {
    let ports: Vec<u16> = cluster.nodes.iter().map(|node| node.api_port).collect();
    let playing = scene.play(cluster, load);
    tokio::pin!(playing);
    loop {
        tokio::select! {
            outcome = &mut playing => return outcome,
            seen = look(&ports) => screen.draw(seen.as_ref(), Some(load)),
        }
    }
}

/// Draws while something is waited for.
async fn watched<T>(
    screen: &mut Screen,
    load: Option<&Load>,
    cluster: &Cluster,
    waiting: impl Future<Output = T>,
) -> T {
    let ports: Vec<u16> = cluster.nodes.iter().map(|node| node.api_port).collect();
    tokio::pin!(waiting);
    loop {
        tokio::select! {
            done = &mut waiting => return done,
            seen = look(&ports) => screen.draw(seen.as_ref(), load),
        }
    }
}

async fn breathe(screen: &mut Screen, load: &Load, cluster: &Cluster, span: Duration) {
    watched(screen, Some(load), cluster, tokio::time::sleep(span)).await;
}

/// A moment later, the cluster as the first member that answers sees it.
async fn look(ports: &[u16]) -> Option<serde_json::Value> {
    tokio::time::sleep(Duration::from_millis(250)).await;
    for port in ports {
        if let Ok(answer) = http::get(*port, "/cluster", Duration::from_millis(200)).await
            && let Ok(seen) = serde_json::from_str(&answer.body)
        {
            return Some(seen);
        }
    }
    None
}

/// Leaves the cluster to the user until Ctrl-C.
async fn stay(screen: &mut Screen, load: &Load, cluster: &Cluster) {
    let api: Vec<String> =
        cluster.nodes.iter().map(|node| format!("http://127.0.0.1:{}", node.api_port)).collect();
    let hosts: Vec<String> = cluster.servers().iter().map(|_| "127.0.0.1".to_owned()).collect();
    let ports: Vec<String> = cluster.servers().iter().map(ToString::to_string).collect();
    screen.tell("the cluster stays up; try, in another terminal:");
    screen.tell(&format!("  antiphon --url {} list", api.first().map_or("", String::as_str)));
    screen.tell(&format!(
        "  psql 'host={} port={} user=postgres password={PASSWORD} target_session_attrs=read-write'",
        hosts.join(","),
        ports.join(",")
    ));
    screen.tell("Ctrl-C ends it and counts");
    let _ = watched(screen, Some(load), cluster, tokio::signal::ctrl_c()).await;
}

fn report(outcomes: &[(String, Outcome)], tally: Tally, whole: bool) {
    println!("\n{:<42} {:>15} {:>12}  new leader", "event", "without writes", "whole after");
    for (announced, outcome) in outcomes {
        println!(
            "{announced:<42} {:>13.2} s {:>10.1} s  {}",
            outcome.gap.as_secs_f64(),
            outcome.whole.as_secs_f64(),
            outcome.after
        );
    }
    println!(
        "\n{} acknowledged writes, {} lost; {} with an unknown outcome are in the table; {}",
        tally.acknowledged,
        tally.lost,
        tally.unknown_present,
        if whole { "all members stream" } else { "NOT all members stream" }
    );
}
