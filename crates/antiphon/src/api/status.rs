//! `GET /patroni` and `GET /explain`: what this member is, and why.

use antiphon_core::ha::cluster::Phase;
use antiphon_core::ha::world::{Database, Local, Server};
use antiphon_core::settings::SyncMode;
use serde_json::{Map, Value, json};

use super::{health, members};
use crate::agent::view::View;

/// The version of Patroni whose interface this is; tools compare it.
pub(super) const PATRONI_VERSION: &str = "4.1.5";

/// `GET /patroni`, also the body of every health check.
pub(super) fn patroni(view: &View, scheduled_restart: Option<&Value>) -> Value {
    let mut body = Map::new();
    body.insert("state".into(), members::state(view).into());
    if let Some(started) = &view.server.started {
        body.insert("postmaster_start_time".into(), started.as_str().into());
    }
    body.insert("role".into(), members::server_role(view).into());
    if health::runs(view) {
        body.insert("server_version".into(), view.server.version.into());
        server(view, &mut body);
    }
    if view.world.settings.pause {
        body.insert("pause".into(), true.into());
    }
    if members::leader(view).is_none() {
        body.insert("cluster_unlocked".into(), true.into());
    }
    body.insert("dcs_last_seen".into(), view.store_seen.into());
    let tags = members::tags(&view.world.me.member);
    if !tags.is_empty() {
        body.insert("tags".into(), Value::Object(tags));
    }
    if let Local::Database(Database { system_identifier: Some(identifier), .. }) = &view.world.local {
        body.insert("database_system_identifier".into(), identifier.as_str().into());
    }
    if !view.server.pending_restart.is_empty() {
        body.insert("pending_restart".into(), true.into());
        body.insert("pending_restart_reason".into(), json!(view.server.pending_restart));
    }
    let name = view.world.me.name();
    body.insert("patroni".into(), json!({ "version": PATRONI_VERSION, "scope": view.scope, "name": name }));
    if let Some(scheduled) = scheduled_restart {
        body.insert("scheduled_restart".into(), scheduled.clone());
    }
    body.insert("antiphon".into(), antiphon(view));
    Value::Object(body)
}

/// What only Antiphon says of a member.
fn antiphon(view: &View) -> Value {
    let epoch = view.world.store.cluster.as_ref().map(|cluster| cluster.value.epoch);
    let mut body = Map::new();
    body.insert("version".into(), env!("CARGO_PKG_VERSION").into());
    body.insert("epoch".into(), json!(epoch));
    body.insert("why".into(), view.decision.why.to_string().into());
    if !view.server.pending_restart.is_empty() {
        body.insert("pending_restart".into(), json!(view.server.pending_restart.keys().collect::<Vec<_>>()));
    }
    if let Some(progress) = &view.progress {
        body.insert("progress".into(), progress.as_str().into());
    }
    Value::Object(body)
}

/// What the server tells when it answers.
fn server(view: &View, body: &mut Map<String, Value>) {
    let Local::Database(database) = &view.world.local else { return };
    match &database.server {
        Server::Primary(primary) => {
            body.insert("xlog".into(), json!({ "location": primary.flushed.0 }));
            body.insert("timeline".into(), primary.timeline.0.into());
        }
        Server::Standby(standby) => {
            let received = standby.position.map_or(standby.replayed, |position| position.lsn);
            let xlog = json!({
                "received_location": received.0, "replayed_location": standby.replayed.0,
                "replayed_timestamp": view.server.replayed_at, "paused": view.server.replay_paused,
            });
            body.insert("xlog".into(), xlog);
            let me = view.world.me.name();
            for (mode, key) in [(SyncMode::On, "sync_standby"), (SyncMode::Quorum, "quorum_standby")] {
                if health::sync_set(view, mode).is_some_and(|set| set.members.contains(me)) {
                    body.insert(key.into(), true.into());
                }
            }
            if let Some(position) = standby.position {
                body.insert("timeline".into(), position.timeline.0.into());
            }
            if standby.streaming {
                body.insert("replication_state".into(), "streaming".into());
            }
        }
        Server::Absent
        | Server::Refused { .. }
        | Server::Stopped(_)
        | Server::Orphans { .. }
        | Server::Starting { .. }
        | Server::Stuck { .. } => {}
    }
    if !view.server.replication.is_empty() {
        body.insert("replication".into(), Value::Array(view.server.replication.clone()));
    }
}

/// `GET /explain`: why this member is as it is.
pub(super) fn explain(view: &View) -> Value {
    let world = &view.world;
    let cluster = world.store.cluster.as_ref().map(|cluster| &cluster.value);
    let election = cluster.and_then(|cluster| match &cluster.phase {
        Phase::Electing { cause, opened_by, last } => {
            Some(json!({ "epoch": cluster.epoch, "cause": cause, "opened_by": opened_by, "last_leader": last.name }))
        }
        Phase::Bootstrapping { .. } | Phase::Led { .. } => None,
    });
    let failed = match &world.local {
        Local::Database(Database { failed: Some(failure), .. }) => Some(json!({
            "task": failure.task.to_string(), "times": failure.times, "error": failure.error,
        })),
        Local::Database(_) | Local::Witness => None,
    };
    json!({
        "name": world.me.name(), "scope": view.scope, "role": view.decision.role,
        "state": members::here(view).state, "why": view.decision.why.to_string(), "reason": view.decision.why,
        "steps": view.decision.steps, "suspects": view.decision.suspects, "fenced": world.me.fenced,
        "epoch": cluster.map(|cluster| cluster.epoch), "leader": members::leader(view).map(|leader| &leader.name),
        "election": election, "last_promotion": view.history.last(), "failed": failed, "progress": view.progress,
        "kept": view.server.kept, "store": view.raft,
    })
}

/// `GET /history`: timeline, position, reason, time and leader of each promotion.
pub(super) fn history(view: &View) -> Value {
    let lines = view
        .history
        .iter()
        .map(|entry| json!([entry.timeline, entry.lsn.0, entry.reason, entry.at, entry.leader]));
    Value::Array(lines.collect())
}

/// `GET /failsafe`: every member's API, if the mode is on.
pub(super) fn failsafe(view: &View) -> Option<Value> {
    let members = &view.world.store.members;
    let urls =
        members.iter().map(|(name, member)| (name.to_string(), members::api_url(&member.value).into()));
    view.world.settings.failsafe_mode.then(|| Value::Object(urls.collect()))
}
