//! Health checks: who is to be sent which traffic. Pure: a view, a path, a query and the time.
//!
//! Paths are matched as Patroni matches them, by what they contain, so that load balancers set up for it keep
//! working. One thing is stricter: what asks for a leader is answered 503 from the moment that the server here
//! does not accept writes or its lease is not running, even if the agent has not looked again since. Nothing
//! here asks the server or allocates more than the decoded query.

use antiphon_core::ha::cluster::{Promise, SyncSet};
use antiphon_core::ha::role::Role;
use antiphon_core::ha::world::{Database, Local, Server, StandbyServer, Task};
use antiphon_core::settings::{SyncMode, bytes};
use antiphon_core::{Instant, Lsn};
use serde_json::Value;

use super::body::{parameter, query};
use super::members::leader_lsn;
use crate::agent::view::View;

/// Whether the member passes the check that a path stands for.
pub(super) fn passes(view: &View, path: &str, text: Option<&str>, now: Instant) -> bool {
    let path = if path == "/" { "/primary" } else { path };
    let has = |word: &str| path.contains(word);
    if has("standby_leader") || has("standby-leader") {
        // Clusters that follow another cluster do not exist here.
        return false;
    }
    if has("leader") || has("master") || has("primary") || has("read-write") {
        return leads(view, now);
    }
    let replica = || is_replica(view, text);
    let listed =
        |mode: SyncMode| sync_set(view, mode).is_some_and(|set| set.members.contains(view.world.me.name()));
    let passes = if has("replica") {
        replica()
    } else if has("read-only") && !has("sync") && !has("quorum") {
        leads(view, now) || replica()
    } else if has("health") {
        runs(view)
    } else {
        match path {
            "/sync" | "/synchronous" => listed(SyncMode::On) && replica(),
            "/quorum" => listed(SyncMode::Quorum) && replica(),
            "/async" | "/asynchronous" => !listed(SyncMode::On) && !listed(SyncMode::Quorum) && replica(),
            "/read-only-quorum" => leads(view, now) || (listed(SyncMode::Quorum) && replica()),
            "/read-only-sync" | "/read-only-synchronous" => {
                leads(view, now) || (listed(SyncMode::On) && replica())
            }
            _ => false,
        }
    };
    passes && has_tags(view, text)
}

/// Whether this member leads in the current term, its server accepts writes and its lease is running.
pub(super) fn leads(view: &View, now: Instant) -> bool {
    let world = &view.world;
    let Role::Leader { epoch } = view.decision.role else { return false };
    let Local::Database(Database { server: Server::Primary(_), task, .. }) = &world.local else {
        return false;
    };
    let stopping = matches!(task, Some((Task::Stop(_), _)));
    let leader = world.store.cluster.as_ref().and_then(|cluster| cluster.value.leader());
    let in_office = leader.is_some_and(|leader| leader.name == *world.me.name() && leader.epoch == epoch);
    in_office && !stopping && world.me.fenced <= epoch && lease_runs(view, now)
}

/// When the lease of this member ends. An agent that has just started counts from its start, as the decision
/// does: its predecessor may have renewed up to then.
pub(super) fn lease_end(view: &View) -> Instant {
    let me = &view.world.me;
    me.lease_until.unwrap_or(me.started + view.world.settings.ttl)
}

fn lease_runs(view: &View, now: Instant) -> bool {
    let settings = &view.world.settings;
    // Paused, or with every member answering it, a leader may outlive its lease, as long as its agent lives.
    let excused = settings.pause || settings.failsafe_mode;
    now < lease_end(view) || (excused && now < view.world.now + settings.ttl)
}

/// The server here, if it is a standby that answers.
pub(super) fn standby(view: &View) -> Option<&StandbyServer> {
    match &view.world.local {
        Local::Database(Database { server: Server::Standby(standby), .. }) => Some(standby),
        Local::Database(_) | Local::Witness => None,
    }
}

/// Whether the server here answers.
pub(super) fn runs(view: &View) -> bool {
    match &view.world.local {
        Local::Database(database) => matches!(database.server, Server::Primary(_) | Server::Standby(_)),
        Local::Witness => false,
    }
}

/// The members that acknowledge commits, if the cluster is in this mode and has any.
pub(super) fn sync_set(view: &View, mode: SyncMode) -> Option<&SyncSet> {
    let cluster = view.world.store.cluster.as_ref()?;
    match &cluster.value.sync {
        Promise::Quorum(set) if view.world.settings.synchronous_mode == mode => Some(set),
        Promise::Quorum(_) | Promise::Alone | Promise::Asynchronous => None,
    }
}

/// A standby that answers, may be sent reads, and is not further behind than the query allows. One whose
/// history has left the leader's is not sent any.
fn is_replica(view: &View, text: Option<&str>) -> bool {
    let follows = match view.decision.role {
        Role::Follower { .. } | Role::Fenced { .. } | Role::Promoting { .. } => true,
        Role::Witness
        | Role::Waiting
        | Role::Bootstrapping
        | Role::Leader { .. }
        | Role::Demoting
        | Role::Rejoining => false,
    };
    let Some(standby) = standby(view).filter(|_| follows && !view.world.me.tags().noloadbalance) else {
        return false;
    };
    match parameter(text, "lag") {
        None => true,
        Some(limit) => size(&limit).is_some_and(|limit| is_within(leader_lsn(view), standby.replayed, limit)),
    }
}

/// A size as Patroni takes it: bytes, or a number with a unit. None if it cannot be read: the check then fails,
/// because what was asked for is not known.
fn size(text: &str) -> Option<i64> {
    bytes(&Value::String(text.to_owned()))
}

fn is_within(ahead: Option<Lsn>, here: Lsn, limit: i64) -> bool {
    // As Patroni has it: no lag is known before the leader has been heard.
    ahead.is_none_or(|ahead| i128::from(ahead.0) <= i128::from(here.0) + i128::from(limit))
}

/// Every `tag_NAME=VALUE` of the query is a tag here.
fn has_tags(view: &View, text: Option<&str>) -> bool {
    query(text).all(|(name, wanted)| match name.strip_prefix("tag_") {
        Some(name) => tag(view, name).is_some_and(|value| value == *wanted),
        None => true,
    })
}

/// A tag as text: lower case unless it was a text.
fn tag(view: &View, name: &str) -> Option<String> {
    let tags = view.world.me.tags();
    let switch = |on: bool| on.then(|| "true".to_owned());
    match name {
        "nofailover" => switch(tags.nofailover),
        "noloadbalance" => switch(tags.noloadbalance),
        "clonefrom" => switch(tags.clonefrom),
        "nosync" => switch(tags.nosync),
        "failover_priority" => tags.failover_priority.map(|priority| priority.to_string()),
        "replicatefrom" => tags.replicatefrom.as_ref().map(ToString::to_string),
        _ => tags.custom.get(name).map(|value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string().to_lowercase(),
        }),
    }
}

/// Whether the agent has looked lately: within `ttl` on a primary, twice that elsewhere.
pub(super) fn is_alive(view: &View, now: Instant) -> bool {
    let ttl = view.world.settings.ttl;
    let primary = matches!(&view.world.local, Local::Database(Database { server: Server::Primary(_), .. }));
    view.world.settings.pause || now.since(view.world.now) < if primary { ttl } else { ttl * 2 }
}

/// Whether the member serves: it leads, or it streams and is close enough to the leader.
pub(super) fn is_ready(view: &View, text: Option<&str>, now: Instant) -> bool {
    if leads(view, now) {
        return true;
    }
    let Some((standby, ahead)) = standby(view).filter(|standby| standby.streaming).zip(leader_lsn(view))
    else {
        return false;
    };
    let written = parameter(text, "mode").is_some_and(|mode| mode == "write");
    let here = match standby.position {
        Some(position) if written => position.lsn,
        Some(_) | None => standby.replayed,
    };
    let limit = match parameter(text, "lag") {
        Some(limit) => size(&limit),
        None => Some(i64::try_from(view.world.settings.maximum_lag_on_failover).unwrap_or(i64::MAX)),
    };
    limit.is_some_and(|limit| is_within(Some(ahead), here, limit))
}
