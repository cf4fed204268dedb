//! What local writers lose by taking part: the same load on a server with the mesh's triggers, identity and commit
//! times, and on one without, a slice on one and a slice on the other in turns, so that the machine's moods meet both.
//!
//! No agent runs, and nothing is sent: what is measured is what every commit pays. Commits do not wait for the disk,
//! which would hide it.

use std::time::Duration;

use anyhow::Context;

use super::Measured;
use super::agent::Agent;
use super::cell::{Cell, System};
use super::load;
use super::pair::{Kit, settings};
use super::server::{Place, Server};
use crate::process::run;
use crate::report::median;

/// Slices on each of the two servers.
const SLICES: u32 = 5;
/// Clients. Each has rows of its own: it is not their conflicts that are measured.
const CLIENTS: u32 = 2;
/// pgbench ends by itself; it is given this much longer.
const GRACE: Duration = Duration::from_secs(60);

/// Compares both for slices of this length.
pub(super) async fn writers(
    kit: &Kit,
    cell: Cell,
    name: &str,
    rows: u64,
    seconds: u64,
) -> anyhow::Result<Measured> {
    let place =
        |part: &str| Place { folder: kit.place.folder.join(name).join(part), bin: kit.place.bin.clone() };
    place("").make()?;
    let [first, second] = &kit.templates;
    let plain = first.server(&place("plain"), settings(System::Native)).await?;
    let mesh = second.server(&place("n1"), settings(System::Antiphon)).await?;
    Agent::create(&kit.antiphon, &mesh).await?;
    let half = rows / u64::from(CLIENTS);
    let draw = format!("\\set id {CLIENTS} * random(1, {half}) - :client_id\n");
    let text = match cell {
        Cell::WritersReplace => {
            "BEGIN;\nDELETE FROM bench WHERE id = :id;\n\
             INSERT INTO bench VALUES (:id, 1, repeat(md5(random()::text), 2), clock_timestamp());\nCOMMIT;\n"
        }
        _ => "UPDATE bench SET k = k + 1, ts = clock_timestamp() WHERE id = :id;\n",
    };
    let text = draw + text;
    let (mut rates, mut costs) = (Vec::new(), Vec::new());
    let (mut plain_rates, mut mesh_rates) = (Vec::new(), Vec::new());
    for slice in 0..SLICES {
        // Each is first in its turn, since the one before has filled the disk's queue.
        let (without, with) = if slice % 2 == 0 {
            let without = one_slice(&plain, &text, seconds).await?;
            (without, one_slice(&mesh, &text, seconds).await?)
        } else {
            let with = one_slice(&mesh, &text, seconds).await?;
            (one_slice(&plain, &text, seconds).await?, with)
        };
        rates.push(with.0 / without.0);
        costs.push(with.1 / without.1);
        plain_rates.push(without.0);
        mesh_rates.push(with.0);
    }
    plain.stop().await;
    mesh.stop().await;
    let middle = |figures| median(figures).unwrap_or(f64::NAN);
    Ok(Measured::Writers {
        without_per_second: middle(plain_rates),
        with_per_second: middle(mesh_rates),
        rate_ratio: middle(rates),
        cpu_ratio: middle(costs),
    })
}

/// Transactions a second, and CPU time of the server for each.
async fn one_slice(server: &Server, text: &str, seconds: u64) -> anyhow::Result<(f64, f64)> {
    let script = load::script(server, "writers", text)?;
    let mut command = load::pgbench(server)?;
    command.args(["-M", "prepared", "-c", &CLIENTS.to_string(), "-j", "1"]);
    command.args(["-T", &seconds.to_string(), "-f"]).arg(script);
    server.run(&["CHECKPOINT"]).await?;
    let before = server.cost();
    let said = run(command, GRACE + Duration::from_secs(seconds)).await.context("pgbench")?;
    let cpu = server.cost().cpu_since(&before).as_secs_f64();
    let number = |name: &str| -> Option<f64> {
        said.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
    };
    let rate = number("tps = ").context("pgbench says no rate")?;
    let transactions = number("number of transactions actually processed: ").context("nor how many")?;
    Ok((rate, cpu / transactions))
}
