//! The members as lists show them: one row each, made from records, heartbeats and the server here.
//!
//! `/cluster`, `/topology`, the events and the metrics are all made from these rows, so they cannot disagree.

use antiphon_core::ha::cluster::{Leader, Member, Phase, Promise};
use antiphon_core::ha::why::Why;
use antiphon_core::ha::world::ServerBrief;
use antiphon_core::settings::SyncMode;
use antiphon_core::{Lsn, NodeName, Timeline};
use serde_json::{Map, Value, json};

use super::{datetime, health};
use crate::agent::brief;
use crate::agent::view::View;

/// A member.
pub(super) struct Row<'a> {
    pub(super) name: &'a NodeName,
    /// Patroni's word for its part in the cluster; `witness` besides.
    pub(super) role: &'static str,
    /// Patroni's word for its server's state; `unreachable` if it is not heard.
    pub(super) state: String,
    pub(super) member: &'a Member,
    pub(super) timeline: Option<Timeline>,
    /// All the WAL that it has.
    pub(super) received: Option<Lsn>,
    pub(super) replayed: Option<Lsn>,
    pub(super) upstream: Option<NodeName>,
    pub(super) pending_restart: bool,
    /// What an operator has to do there.
    pub(super) trouble: Option<String>,
    /// Bytes of old data directories and diverged WAL that are kept there.
    pub(super) kept_bytes: u64,
}

impl Row<'_> {
    /// Bytes of WAL that it has not replayed, if both ends are known.
    pub(super) fn lag(&self, ahead: Option<Lsn>) -> Option<u64> {
        behind(ahead, self.replayed.or(self.received))
    }
}

/// Bytes between two positions; zero if the one behind is ahead.
fn behind(ahead: Option<Lsn>, here: Option<Lsn>) -> Option<u64> {
    ahead.zip(here).map(|(ahead, here)| here.bytes_to(ahead).unwrap_or(0))
}

/// The leader in office.
pub(super) fn leader(view: &View) -> Option<&Leader> {
    view.world.store.cluster.as_ref().and_then(|cluster| cluster.value.leader())
}

/// The end of the leader's WAL, as it last told.
pub(super) fn leader_lsn(view: &View) -> Option<Lsn> {
    let name = &leader(view)?.name;
    if name == view.world.me.name() {
        return here(view).position.map(|position| position.lsn);
    }
    let brief = &view.world.peers.get(name)?.beat.as_ref()?.server;
    brief.position.map(|position| position.lsn)
}

/// All members in the order of their names.
pub(super) fn rows(view: &View) -> Vec<Row<'_>> {
    let world = &view.world;
    let members = world.store.members.values().map(|stored| &stored.value);
    members.map(|member| row(view, member)).collect()
}

fn row<'a>(view: &'a View, member: &'a Member) -> Row<'a> {
    let world = &view.world;
    let peer = world.peers.get(&member.name);
    let heard = peer.is_some_and(|peer| peer.heard_within(world.now, world.settings.failure_timeout));
    let brief = match peer.and_then(|peer| peer.beat.as_ref()) {
        _ if member.name == *world.me.name() => Some(here(view)),
        Some(beat) if heard => Some(beat.server.clone()),
        Some(_) | None => None,
    };
    let unreachable = || ServerBrief { state: "unreachable".to_owned(), ..ServerBrief::default() };
    let brief = brief.unwrap_or_else(unreachable);
    Row {
        name: &member.name,
        role: role(view, member),
        state: brief.state,
        member,
        timeline: brief.position.map(|position| position.timeline),
        received: brief.position.map(|position| position.lsn),
        replayed: brief.replayed,
        upstream: brief.upstream,
        pending_restart: brief.pending_restart,
        trouble: brief.trouble,
        kept_bytes: brief.kept_bytes,
    }
}

fn role(view: &View, member: &Member) -> &'static str {
    let listed =
        |mode: SyncMode| health::sync_set(view, mode).is_some_and(|set| set.members.contains(&member.name));
    if member.server_address.is_none() {
        "witness"
    } else if leader(view).is_some_and(|leader| leader.name == member.name) {
        "leader"
    } else if listed(SyncMode::On) {
        "sync_standby"
    } else if listed(SyncMode::Quorum) {
        "quorum_standby"
    } else {
        "replica"
    }
}

/// The server here, in short.
pub(super) fn here(view: &View) -> ServerBrief {
    brief::server(&view.world, &view.decision, &view.server)
}

/// Patroni's word for the state of the server here.
pub(super) fn state(view: &View) -> &'static str {
    brief::state(&view.world)
}

/// Patroni's word for the role of the server here.
pub(super) fn server_role(view: &View) -> &'static str {
    brief::role(&view.world, &view.decision)
}

/// `host:port` in two; the host without brackets.
pub(super) fn host_and_port(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    Some((host.trim_start_matches('[').trim_end_matches(']'), port.parse().ok()?))
}

/// The address of a member's API, as Patroni publishes it: with `/patroni` at the end.
pub(super) fn api_url(member: &Member) -> String {
    let url = member.api_url.trim_end_matches('/');
    if url.ends_with("/patroni") { url.to_owned() } else { format!("{url}/patroni") }
}

/// `GET /cluster`.
pub(super) fn cluster(view: &View) -> Value {
    let ahead = leader_lsn(view);
    let mut body = Map::new();
    let members = rows(view).into_iter().map(|row| listed(&row, ahead)).collect();
    body.insert("members".into(), Value::Array(members));
    if view.world.settings.pause {
        body.insert("pause".into(), true.into());
    }
    if let Some((request, at)) =
        view.scheduled.as_ref().and_then(|request| Some((request, request.scheduled_at?)))
    {
        let mut scheduled = Map::new();
        scheduled.insert("at".into(), datetime::format(at).into());
        let ends = [("from", &request.leader), ("to", &request.candidate)];
        for (key, name) in ends.into_iter().filter_map(|(key, name)| Some((key, name.as_ref()?))) {
            scheduled.insert(key.into(), name.as_str().into());
        }
        body.insert("scheduled_switchover".into(), Value::Object(scheduled));
    }
    body.insert("scope".into(), view.scope.as_str().into());
    if let Some(cluster) = view.world.store.cluster.as_ref().map(|cluster| &cluster.value) {
        if let Some(identifier) = &cluster.system_identifier {
            body.insert("system_identifier".into(), identifier.as_str().into());
        }
        body.insert("epoch".into(), cluster.epoch.0.into());
        body.insert("sync".into(), sync(&cluster.sync));
    }
    Value::Object(body)
}

fn listed(row: &Row<'_>, ahead: Option<Lsn>) -> Value {
    let mut body = Map::new();
    body.insert("name".into(), row.name.as_str().into());
    body.insert("role".into(), row.role.into());
    body.insert("state".into(), row.state.as_str().into());
    body.insert("api_url".into(), api_url(row.member).into());
    if let Some((host, port)) = row.member.server_address.as_deref().and_then(host_and_port) {
        body.insert("host".into(), host.into());
        body.insert("port".into(), port.into());
    }
    if let Some(timeline) = row.timeline {
        body.insert("timeline".into(), timeline.0.into());
    }
    if row.pending_restart {
        body.insert("pending_restart".into(), true.into());
    }
    if let Some(trouble) = &row.trouble {
        body.insert("trouble".into(), trouble.as_str().into());
    }
    if row.kept_bytes > 0 {
        body.insert("kept_bytes".into(), row.kept_bytes.into());
    }
    let tags = tags(row.member);
    if !tags.is_empty() {
        body.insert("tags".into(), Value::Object(tags));
    }
    if matches!(row.role, "leader" | "witness") {
        return Value::Object(body);
    }
    let furthest = row.received.max(row.replayed);
    for (kind, lsn) in [("receive_", row.received), ("replay_", row.replayed), ("", furthest)] {
        let lag = behind(ahead, lsn).map_or_else(|| "unknown".into(), Value::from);
        let lsn = lsn.map_or_else(|| "unknown".to_owned(), |lsn| lsn.to_string());
        body.insert(format!("{kind}lag"), lag);
        body.insert(format!("{kind}lsn"), lsn.into());
    }
    Value::Object(body)
}

/// The tags that say something; what is off is left out.
pub(super) fn tags(member: &Member) -> Map<String, Value> {
    let mut tags = match serde_json::to_value(&member.tags) {
        Ok(Value::Object(tags)) => tags,
        Ok(_) | Err(_) => Map::new(),
    };
    tags.retain(|_, value| *value != Value::Bool(false));
    tags
}

/// What acknowledged commits can be relied on to have reached.
fn sync(promise: &Promise) -> Value {
    match promise {
        Promise::Asynchronous => json!({ "promise": "asynchronous" }),
        Promise::Alone => json!({ "promise": "alone" }),
        Promise::Quorum(set) => {
            json!({ "promise": "quorum", "method": set.method, "k": set.k, "members": set.members })
        }
    }
}

/// The `cluster` event: all that routers and displays need to follow a cluster.
pub(super) fn event(view: &View, with_lag: bool) -> Value {
    let cluster = view.world.store.cluster.as_ref().map(|cluster| &cluster.value);
    let phase = cluster.map_or("none", |cluster| match cluster.phase {
        Phase::Bootstrapping { .. } => "bootstrapping",
        Phase::Led { .. } => "led",
        Phase::Electing { .. } => "electing",
    });
    let ahead = leader_lsn(view);
    let rows = rows(view);
    let leader = leader(view).map(|leader| {
        let member = view.world.store.member(&leader.name);
        let address = member.and_then(|member| host_and_port(member.server_address.as_deref()?));
        let serving = member.and_then(|member| member.serving.as_ref());
        json!({
            "name": leader.name, "host": address.map(|(host, _)| host), "port": address.map(|(_, port)| port),
            "epoch": leader.epoch, "timeline": leader.timeline,
            "serving": serving.is_some_and(|serving| serving.epoch == leader.epoch),
        })
    });
    let members = rows.iter().map(|row| {
        let address = row.member.server_address.as_deref().and_then(host_and_port);
        let lag = if with_lag && row.role != "leader" { row.lag(ahead) } else { None };
        json!({
            "name": row.name, "host": address.map(|(host, _)| host), "port": address.map(|(_, port)| port),
            "role": row.role, "state": row.state, "timeline": row.timeline, "lag_bytes": lag, "tags": tags(row.member),
        })
    });
    // Only the leader's own agent knows.
    let handing_over_to = match &view.decision.why {
        Why::HandingOver { to } => Some(to),
        _ => None,
    };
    json!({
        "scope": view.scope, "epoch": cluster.map(|cluster| cluster.epoch), "phase": phase, "leader": leader,
        "members": members.collect::<Vec<_>>(), "sync": cluster.map(|cluster| sync(&cluster.sync)),
        "pause": view.world.settings.pause, "handing_over_to": handing_over_to,
    })
}

/// `GET /topology`: the members as a tree, each below the one that it streams from.
pub(super) fn topology(view: &View) -> Value {
    let rows = rows(view);
    let ahead = leader_lsn(view);
    let is_known = |name: &NodeName| rows.iter().any(|row| row.name == name);
    let above = |row: &Row<'_>| row.upstream.clone().filter(|name| row.role != "leader" && is_known(name));
    let mut placed: Vec<&NodeName> = Vec::new();
    let mut roots: Vec<Value> = Vec::new();
    for root in rows.iter().filter(|row| above(row).is_none()) {
        roots.push(branch(&rows, root, &above, ahead, &mut placed));
    }
    // Members that stream from each other in a ring, for a moment: shown side by side.
    for row in &rows {
        if !placed.contains(&row.name) {
            roots.push(branch(&rows, row, &above, ahead, &mut placed));
        }
    }
    json!({ "scope": view.scope, "members": roots })
}

fn branch<'a>(
    rows: &'a [Row<'a>],
    row: &'a Row<'a>,
    above: &impl Fn(&Row<'_>) -> Option<NodeName>,
    ahead: Option<Lsn>,
    placed: &mut Vec<&'a NodeName>,
) -> Value {
    placed.push(row.name);
    let mut followers = Vec::new();
    for below in rows.iter().filter(|below| above(below).as_ref() == Some(row.name)) {
        if !placed.contains(&below.name) {
            followers.push(branch(rows, below, above, ahead, placed));
        }
    }
    let mut body = listed(row, ahead);
    if let Value::Object(body) = &mut body {
        body.insert("followers".into(), Value::Array(followers));
    }
    body
}
