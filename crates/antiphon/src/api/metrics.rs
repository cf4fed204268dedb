//! `GET /metrics`: Patroni's metrics under their names, and Antiphon's own, for Prometheus.
//!
//! One list says name, kind, help and value of each; labels are escaped in one place.

use std::fmt::Write;
use std::time::Duration;

use antiphon_core::Instant;
use antiphon_core::ha::cluster::Promise;
use antiphon_core::ha::world::{Database, Local, Server};
use antiphon_core::settings::SyncMode;

use super::status::PATRONI_VERSION;
use super::{datetime, health, members};
use crate::agent::view::View;

/// The states of a server; a metric shows the place in this list.
const STATES: [&str; 15] = [
    "initializing new cluster",
    "initdb failed",
    "running custom bootstrap script",
    "custom bootstrap failed",
    "creating replica",
    "running",
    "starting",
    "starting after custom bootstrap",
    "start failed",
    "restarting",
    "restart failed",
    "stopping",
    "stopped",
    "stop failed",
    "crashed",
];

/// One metric without labels of its own.
struct Metric {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    value: f64,
}

const fn gauge(name: &'static str, help: &'static str, value: f64) -> Metric {
    Metric { name, kind: "gauge", help, value }
}

const fn counter(name: &'static str, help: &'static str, value: f64) -> Metric {
    Metric { name, kind: "counter", help, value }
}

const fn flag(name: &'static str, help: &'static str, value: bool) -> Metric {
    gauge(name, help, if value { 1.0 } else { 0.0 })
}

/// The page.
pub(super) fn page(view: &View, now: Instant, connections: usize) -> String {
    let labels =
        format!("scope=\"{}\",name=\"{}\"", escaped(&view.scope), escaped(view.world.me.name().as_str()));
    let mut page = String::with_capacity(8 * 1024);
    let mut metrics = patroni(view);
    metrics.extend(antiphon(view, now, connections));
    for metric in metrics {
        head(&mut page, &metric);
        // Writing to a String cannot fail.
        let _ = writeln!(page, "{}{{{labels}}} {}", metric.name, number(&metric));
    }
    lags(view, &labels, &mut page);
    page
}

fn head(page: &mut String, metric: &Metric) {
    let _ = writeln!(page, "# HELP {} {}\n# TYPE {} {}", metric.name, metric.help, metric.name, metric.kind);
}

fn number(metric: &Metric) -> String {
    // Two digits for each part, as Patroni pads its version.
    if metric.name == "patroni_version" { format!("{:06}", metric.value) } else { metric.value.to_string() }
}

fn patroni(view: &View) -> Vec<Metric> {
    let version = PATRONI_VERSION.split('.').filter_map(|part| part.parse::<f64>().ok());
    let version = version.fold(0.0, |number, part| number * 100.0 + part);
    let state = members::state(view);
    let role = members::server_role(view);
    let brief = members::here(view);
    let lsn = brief.position.map_or(0.0, |position| position.lsn.0 as f64);
    let standby = health::standby(view);
    let listed = |mode: SyncMode| {
        let set = health::sync_set(view, mode);
        standby.is_some() && set.is_some_and(|set| set.members.contains(view.world.me.name()))
    };
    let time = |text: &Option<String>| {
        text.as_deref().and_then(|text| datetime::parse(text).ok()).unwrap_or(0) as f64
    };
    let place = STATES.iter().position(|known| *known == state);
    let settings = &view.world.settings;
    vec![
        gauge("patroni_version", "Version of Patroni whose interface this is, without periods.", version),
        flag("patroni_postgres_running", "1 if the server answers.", health::runs(view)),
        gauge(
            "patroni_postmaster_start_time",
            "Seconds since 1970 at which the server started.",
            time(&view.server.started),
        ),
        flag("patroni_primary", "1 if the server here is a primary.", role == "primary"),
        counter(
            "patroni_xlog_location",
            "End of WAL on a primary.",
            if role == "primary" { lsn } else { 0.0 },
        ),
        flag("patroni_standby_leader", "1 if this member leads a standby cluster.", false),
        flag("patroni_replica", "1 if the server here is a replica.", role == "replica"),
        flag("patroni_sync_standby", "1 if this member is a synchronous standby.", listed(SyncMode::On)),
        flag("patroni_quorum_standby", "1 if this member is a quorum standby.", listed(SyncMode::Quorum)),
        counter(
            "patroni_xlog_received_location",
            "End of received WAL on a replica.",
            if standby.is_some() { lsn } else { 0.0 },
        ),
        counter(
            "patroni_xlog_replayed_location",
            "End of replayed WAL on a replica.",
            standby.map_or(0.0, |standby| standby.replayed.0 as f64),
        ),
        gauge(
            "patroni_xlog_replayed_timestamp",
            "Seconds since 1970 of the last replayed transaction.",
            time(&view.server.replayed_at),
        ),
        flag("patroni_xlog_paused", "1 if replay is paused.", view.server.replay_paused),
        flag(
            "patroni_postgres_streaming",
            "1 if the server streams.",
            standby.is_some_and(|standby| standby.streaming),
        ),
        flag("patroni_postgres_in_archive_recovery", "1 if the server replays from an archive only.", false),
        gauge(
            "patroni_postgres_server_version",
            "Version of the server, 0 if not known.",
            view.server.version.into(),
        ),
        flag("patroni_cluster_unlocked", "1 if nobody leads.", members::leader(view).is_none()),
        flag("patroni_failsafe_mode_is_active", "1 if the leader goes on without the store.", false),
        flag("patroni_failsafe_mode_enabled", "1 if failsafe_mode is set.", settings.failsafe_mode),
        gauge(
            "patroni_failover_priority",
            "Preference of this member in an election; 0 means never.",
            if view.world.me.tags().may_lead() { view.world.me.tags().priority().into() } else { 0.0 },
        ),
        gauge(
            "patroni_postgres_timeline",
            "Timeline of the server, 0 if not known.",
            brief.position.map_or(0.0, |p| p.timeline.0.into()),
        ),
        gauge(
            "patroni_dcs_last_seen",
            "Seconds since 1970 when the store was last heard.",
            view.store_seen as f64,
        ),
        flag("patroni_pending_restart", "1 if settings wait for a restart.", brief.pending_restart),
        flag("patroni_is_paused", "1 if the management is paused.", settings.pause),
        gauge(
            "patroni_postgres_state",
            "State of the server as a number, -1 if not known.",
            place.map_or(-1.0, |place| place as f64),
        ),
    ]
}

fn antiphon(view: &View, now: Instant, connections: usize) -> Vec<Metric> {
    let cluster = view.world.store.cluster.as_ref().map(|cluster| &cluster.value);
    let promise = cluster.map(|cluster| &cluster.sync);
    let sync_members = match promise {
        Some(Promise::Quorum(set)) => set.members.len(),
        Some(Promise::Asynchronous | Promise::Alone) | None => 0,
    };
    let leads = health::leads(view, now);
    let lease = if leads { health::lease_end(view).since(now) } else { Duration::ZERO };
    let semi_sync = &view.server.semi_sync;
    let waits = match &view.world.local {
        Local::Database(Database { server: Server::Primary(primary), .. }) => primary.waiting_since,
        Local::Database(_) | Local::Witness => None,
    };
    vec![
        gauge("antiphon_epoch", "Term of leadership.", cluster.map_or(0.0, |cluster| cluster.epoch.0 as f64)),
        flag("antiphon_leads", "1 if this member leads, accepts writes and holds a running lease.", leads),
        gauge("antiphon_lease_seconds_left", "What is left of this leader's lease.", lease.as_secs_f64()),
        gauge("antiphon_sync_set_members", "Members that may acknowledge commits.", sync_members as f64),
        flag(
            "antiphon_degraded",
            "1 if commits are acknowledged by the leader alone although the mode is synchronous.",
            promise == Some(&Promise::Alone),
        ),
        flag("antiphon_semi_sync_active", "1 if commits wait for an acknowledgement.", semi_sync.active),
        counter(
            "antiphon_semi_sync_timeouts_total",
            "Times that nobody acknowledged in time.",
            semi_sync.timeouts as f64,
        ),
        counter(
            "antiphon_semi_sync_resumptions_total",
            "Times that acknowledging was taken up again.",
            semi_sync.resumptions as f64,
        ),
        gauge(
            "antiphon_commit_waiting_seconds",
            "How long a commit has been waiting for an acknowledgement.",
            waits.map_or(0.0, |since| view.world.now.since(since).as_secs_f64()),
        ),
        counter(
            "antiphon_elections_total",
            "Promotions in the history of this cluster.",
            view.history.len() as f64,
        ),
        gauge(
            "antiphon_decision_age_seconds",
            "How long ago the agent last looked.",
            now.since(view.world.now).as_secs_f64(),
        ),
        flag(
            "antiphon_needs_operator",
            "1 if this member waits for somebody to do what its reason says.",
            view.decision.why.needs_operator(),
        ),
        gauge(
            "antiphon_kept_bytes",
            "Bytes of old data directories and diverged WAL that are kept here.",
            view.server.kept.iter().map(|kept| kept.bytes).sum::<u64>() as f64,
        ),
        gauge("antiphon_http_connections", "Open connections to this API.", connections as f64),
    ]
}

/// How far each follower is behind, seen from here.
fn lags(view: &View, labels: &str, page: &mut String) {
    let lag = gauge("antiphon_member_lag_bytes", "Bytes of WAL that a member has not replayed.", 0.0);
    head(page, &lag);
    let ahead = members::leader_lsn(view);
    for row in members::rows(view) {
        if let Some(bytes) = row.lag(ahead).filter(|_| row.role != "leader") {
            let _ =
                writeln!(page, "{}{{{labels},member=\"{}\"}} {bytes}", lag.name, escaped(row.name.as_str()));
        }
    }
}

/// A label's value with what would end it escaped.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_cannot_leave_its_quotes() {
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
