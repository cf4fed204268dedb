//! The node's links as metrics, in Prometheus' text format.

use std::fmt::Write;
use std::time::Duration;

use antiphon_core::mesh::{CommitTime, Conflict, NodeId};

use crate::link::clock;
use crate::standing::{Standing, State};

/// The page.
#[must_use]
pub fn page(standing: &Standing) -> String {
    let links = standing.links();
    let reached = standing.reached();
    let name = |id: NodeId| links.get(&id).map(|link| link.name.as_str()).unwrap_or_default();
    let node = |id: NodeId| format!("node=\"{}\"", name(id).replace('\\', "\\\\").replace('"', "\\\""));
    let of = |value: fn(&crate::standing::Link) -> f64| {
        links.iter().map(|(id, link)| (node(*id), value(link))).collect::<Vec<_>>()
    };
    let conflicts = links.iter().flat_map(|(id, link)| {
        let count = |kind: &Conflict| link.conflicts.get(kind.name()).copied().unwrap_or(0);
        Conflict::ALL.iter().map(move |kind| (*id, *kind, count(kind))).collect::<Vec<_>>()
    });
    let conflicts =
        conflicts.map(|(id, kind, count)| (format!("{},kind=\"{kind}\"", node(id)), float(count)));
    let behind = links.keys().filter(|id| reached.of(**id) != CommitTime::UNKNOWN).map(|id| {
        let micros = reached.of(*id).micros_to(clock()).unwrap_or(0);
        (node(*id), Duration::from_micros(micros).as_secs_f64())
    });

    let mut page = String::new();
    let streaming = |link: &crate::standing::Link| float(u64::from(link.state == State::Streaming));
    family(&mut page, "link_up", "gauge", "Whether changes of the node are being received.", of(streaming));
    let help = "Transactions of the node that were applied here.";
    family(&mut page, "transactions_total", "counter", help, of(|link| float(link.transactions)));
    let help = "Rows of the node that were applied or decided here.";
    family(&mut page, "rows_total", "counter", help, of(|link| float(link.rows)));
    let help = "Conflicts, by the node whose change met one and by kind.";
    family(&mut page, "conflicts_total", "counter", help, conflicts);
    let help = "The longest that changes of the node waited for the clock here.";
    family(&mut page, "clock_wait_seconds", "gauge", help, of(|link| link.clock_wait_max.as_secs_f64()));
    let help = "Age of the latest state of the node that is complete here.";
    family(&mut page, "behind_seconds", "gauge", help, behind);
    let help =
        "Rows that are known to differ between the nodes. Only the node with the lowest number compares.";
    let diverged = standing.diverged_rows().map(|rows| (String::new(), float(rows)));
    family(&mut page, "diverged_rows", "gauge", help, diverged);
    page
}

fn family(
    page: &mut String,
    name: &str,
    kind: &str,
    help: &str,
    lines: impl IntoIterator<Item = (String, f64)>,
) {
    // Writing to a string does not fail.
    let _ = writeln!(page, "# HELP antiphon_mesh_{name} {help}\n# TYPE antiphon_mesh_{name} {kind}");
    for (labels, value) in lines {
        let labels = if labels.is_empty() { labels } else { format!("{{{labels}}}") };
        let _ = writeln!(page, "antiphon_mesh_{name}{labels} {value}");
    }
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus counts in doubles")]
fn float(count: u64) -> f64 {
    count as f64
}
