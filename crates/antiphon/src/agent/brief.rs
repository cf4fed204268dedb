//! Brief: the server in the words that lists, metrics, heartbeats and the HTTP API use, which are Patroni's.
//!
//! The only place that has them: what a member tells the others of itself and what its own API says are the same.

use antiphon_core::ha::decide::Decision;
use antiphon_core::ha::role::Role;
use antiphon_core::ha::world::{Database, Local, Server, ServerBrief, Task, World};
use antiphon_core::ha::{cluster::Position, world::StandbyServer};
use antiphon_engine::Engine;

use super::view::{Kept, SemiSync, ServerFacts};

/// What this member tells of its server.
pub fn server(world: &World, decision: &Decision, facts: &ServerFacts) -> ServerBrief {
    let mut brief = ServerBrief {
        state: state(world).to_owned(),
        role: role(world, decision).to_owned(),
        trouble: decision.why.needs_operator().then(|| decision.why.to_string()),
        ..ServerBrief::default()
    };
    let Local::Database(db) = &world.local else { return brief };
    match &db.server {
        Server::Primary(primary) => {
            brief.position = Some(Position { timeline: primary.timeline, lsn: primary.flushed });
        }
        Server::Standby(standby) => {
            brief.position = standby.position;
            brief.replayed = Some(standby.replayed);
            if standby.streaming && brief.state == "running" {
                brief.state = "streaming".to_owned();
            }
        }
        // A stopped server still has its data: a member without any must not take the cluster for a new one.
        Server::Stopped(stopped) => brief.position = Some(stopped.checkpoint),
        Server::Absent
        | Server::Refused { .. }
        | Server::Orphans { .. }
        | Server::Starting { .. }
        | Server::Stuck { .. } => {}
    }
    brief.upstream = upstream(&db.server);
    brief.pending_restart = !facts.pending_restart.is_empty();
    brief.disk_full = db.disk_full;
    brief.oldest_wal = facts.oldest_wal;
    brief.kept_bytes = facts.kept.iter().map(|kept| kept.bytes).sum();
    brief
}

/// The member that a standby is set to stream from.
fn upstream(server: &Server) -> Option<antiphon_core::NodeName> {
    match server {
        Server::Standby(StandbyServer { upstream: Some(upstream), .. }) => Some(upstream.name.clone()),
        _ => None,
    }
}

/// Patroni's word for the state of the server here.
pub fn state(world: &World) -> &'static str {
    let db = match &world.local {
        Local::Database(db) => db,
        Local::Witness => return "running",
    };
    let restarting = world.me.restart_requested;
    match (&db.server, db.task.map(|(task, _)| task)) {
        (_, Some(Task::Initialise)) => "initializing new cluster",
        (_, Some(Task::Clone | Task::Rewind)) => "creating replica",
        (Server::Stopped(_) | Server::Starting { .. }, _) if restarting => "restarting",
        (_, Some(Task::Stop(_))) => "stopping",
        (Server::Starting { .. }, _) | (Server::Stopped(_), Some(Task::Start)) => "starting",
        (Server::Primary(_) | Server::Standby(_), _) => "running",
        (Server::Stopped(stopped), _) => stopped_state(stopped.crash.is_some(), db),
        (Server::Absent, _) if failed(db) == Some(Task::Initialise) => "initdb failed",
        (Server::Absent | Server::Refused { .. }, _) => "stopped",
        (Server::Orphans { .. }, _) => "crashed",
        (Server::Stuck { .. }, _) => "unknown",
    }
}

fn stopped_state(crashed: bool, db: &Database) -> &'static str {
    match failed(db) {
        Some(Task::Start) => "start failed",
        Some(_) | None if crashed => "crashed",
        Some(_) | None => "stopped",
    }
}

/// The task that failed last.
fn failed(db: &Database) -> Option<Task> {
    db.failed.as_ref().map(|failure| failure.task)
}

/// Patroni's word for the role of the server here.
pub fn role(world: &World, decision: &Decision) -> &'static str {
    let Local::Database(db) = &world.local else { return "witness" };
    match &db.server {
        Server::Primary(_) => "primary",
        // A directory that is refused has data, and nobody may begin a cluster beside it.
        Server::Standby(_) | Server::Refused { .. } => "replica",
        Server::Absent => "uninitialized",
        Server::Stopped(_) | Server::Orphans { .. } | Server::Starting { .. } | Server::Stuck { .. } => {
            match decision.role {
                Role::Leader { .. } | Role::Promoting { .. } | Role::Bootstrapping => "primary",
                Role::Demoting => "demoted",
                Role::Witness
                | Role::Waiting
                | Role::Follower { .. }
                | Role::Fenced { .. }
                | Role::Rejoining => "replica",
            }
        }
    }
}

/// Figures for display.
pub fn facts(engine: Option<&dyn Engine>, semi_sync: SemiSync, kept: Vec<Kept>) -> ServerFacts {
    let about = engine.map(Engine::about).unwrap_or_default();
    ServerFacts {
        version: about.version.unwrap_or(0),
        started: about.started,
        pending_restart: about.pending_restart,
        replication: about.replication,
        replayed_at: about.replayed_at,
        replay_paused: about.replay_paused,
        oldest_wal: about.oldest_wal,
        semi_sync,
        kept,
    }
}
