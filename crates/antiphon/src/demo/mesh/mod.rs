//! `antiphon demo mesh`: three leaders in three regions, far from each other, write the same rows at once.
//!
//! Everything is real: members and nodes are this binary, the servers are the PostgreSQL that is installed here. Only the
//! distances are made: relays on loopback delay what the nodes tell each other, and can be cut.

mod counter;
mod load;
mod region;
mod relay;
mod scenes;

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use antiphon_mesh::manage::Standing;
use anyhow::Context;

use load::{Load, Noted};
use region::{NAMES, World, distance};
use scenes::{EVERYWHERE_WITHIN, Stage};

use super::Options;
use super::cluster::PASSWORD;
use super::screen::Screen;

/// How often the view is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(500);

/// Plays all scenes. True if everything was as promised.
pub(super) async fn play(
    options: &Options,
    dir: &Path,
    screen: &RefCell<Screen>,
    stays: &Cell<bool>,
) -> anyhow::Result<bool> {
    let tell = |line: &str| screen.borrow_mut().tell(line);
    let scene = |what: &str| tell(&format!("\u{25b6} {what}"));
    let binary = std::env::current_exe().context("could not find this program's own file")?;
    tell(&format!("starting a server in each of {} in {}", NAMES.join(", "), dir.display()));
    let world = World::start(dir, binary, options.bin_dir.as_deref()).await?;
    for region in &world.regions {
        region.client.batch_execute(scenes::TABLES).await?;
        region.client.batch_execute(counter::TABLES).await?;
    }
    let first = world.regions.first().context("there is a first region")?;
    first.client.batch_execute(scenes::ROWS).await?;
    first.client.batch_execute(&counter::begin()).await?;
    world.unite(tell).await?;
    world.wait_until_linked(EVERYWHERE_WITHIN).await?;
    world.part();
    tell(&format!("three leaders, far from each other: one way takes {}", ways()));

    let mut stage = Stage::new(&world, screen);
    scene("a write is seen everywhere");
    stage.distances().await?;
    scene("the same rows, written in all regions at once");
    stage.same_row().await?;
    scene("all regions write the same 200 rows, and each transaction counts one");
    let load = Load::start(&world).await?;
    watched(screen, &world, &load, stage.busy(&load)).await?;
    scene("asia is cut off from eu and us");
    watched(screen, &world, &load, stage.cut(&load)).await?;
    if screen.borrow().is_live() && !options.once {
        stays.set(true);
        stay(screen, &world, &load).await;
    }
    scene("nobody writes any more: compare");
    let noted = load.finish().await?;
    stage.compare(&noted).await?;
    draw(screen, &world, &noted.iter().map(|noted| noted.acknowledged).collect::<Vec<_>>()).await;
    let broken = stage.broken;
    report(&noted, &broken);
    Ok(broken.is_empty())
}

/// The distances, in one line.
fn ways() -> String {
    let pairs = (0..NAMES.len()).flat_map(|a| (a + 1..NAMES.len()).map(move |b| (a, b)));
    let told =
        pairs.map(|(a, b)| format!("{} ms from {} to {}", distance(a, b).as_millis(), NAMES[a], NAMES[b]));
    told.collect::<Vec<_>>().join(", ")
}

/// Draws while a scene plays.
async fn watched<T>(
    screen: &RefCell<Screen>,
    world: &World,
    load: &Load,
    playing: impl Future<Output = T>,
) -> T {
    let drawing = async {
        loop {
            draw(screen, world, &load.acknowledged()).await;
            tokio::time::sleep(DRAW_EVERY).await;
        }
    };
    tokio::select! {
        done = playing => done,
        () = drawing => unreachable!("it draws for ever"),
    }
}

/// The view: how each region stands, and how it sees the others.
async fn draw(screen: &RefCell<Screen>, world: &World, acknowledged: &[u64]) {
    if !screen.borrow().is_live() {
        return;
    }
    let mut frame = String::from("\x1b[1mAntiphon demo\x1b[0m  three leaders in three regions\n\n");
    // Writing to a String cannot fail.
    let _ = write!(frame, "  \x1b[2m{:<8}{:>13}", "region", "transactions");
    for name in NAMES {
        let _ = write!(frame, "   {:<24}", format!("from {name}"));
    }
    frame.push_str("\x1b[0m\n");
    for (region, name) in NAMES.iter().enumerate() {
        let count = acknowledged.get(region).copied().unwrap_or_default();
        let _ = write!(frame, "  {name:<8}{count:>13}");
        for node in world.standing(region).await.unwrap_or_default() {
            let _ = write!(frame, "   {}", link(&node));
        }
        frame.push('\n');
    }
    screen.borrow_mut().draw_frame(frame);
}

fn link(node: &Standing) -> String {
    let (colour, text) = match node.link.as_str() {
        "own" => ("\x1b[2m", "own".to_owned()),
        state => {
            let behind = node.behind_seconds.unwrap_or_default();
            let colour = if state == "streaming" { "\x1b[32m" } else { "\x1b[33m" };
            (colour, format!("{state}, {behind:.1} s behind"))
        }
    };
    format!("{colour}{text:<24}\x1b[0m")
}

/// Leaves the regions to the user until Ctrl-C.
async fn stay(screen: &RefCell<Screen>, world: &World, load: &Load) {
    let mut lines = vec!["the regions stay; try, in another terminal:".to_owned()];
    for region in &world.regions {
        lines.push(format!("  antiphon mesh status {}", region.file()));
        lines.push(format!(
            "  psql 'host=127.0.0.1 port={} user=postgres password={PASSWORD}'   # {}",
            region.port(),
            region.name
        ));
    }
    lines.push("Ctrl-C ends it and compares".to_owned());
    for line in lines {
        screen.borrow_mut().tell(&line);
    }
    let _ = watched(screen, world, load, tokio::signal::ctrl_c()).await;
}

fn report(noted: &[Noted], broken: &[String]) {
    println!(
        "\n{:<8}{:>14}{:>10}{:>14}{:>14}",
        "region", "acknowledged", "refused", "half within", "99 % within"
    );
    for (noted, name) in noted.iter().zip(NAMES) {
        println!(
            "{name:<8}{:>14}{:>10}{:>11.1} ms{:>11.1} ms",
            noted.acknowledged,
            noted.refused,
            noted.took(50).as_secs_f64() * 1e3,
            noted.took(99).as_secs_f64() * 1e3,
        );
    }
    if broken.is_empty() {
        println!("\nall as promised: the same rows in every region, and not one unit lost or counted twice");
    }
    for broken in broken {
        println!("\nNOT as promised: {broken}");
    }
}
