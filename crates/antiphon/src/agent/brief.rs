//! Brief: the server in the words that lists, metrics and heartbeats use, which are Patroni's.

use antiphon_core::ha::decide::Decision;
use antiphon_core::ha::role::Role;
use antiphon_core::ha::world::{Database, Local, Server, ServerBrief, Task, World};
use antiphon_core::ha::{cluster::Position, world::StandbyServer};
use antiphon_engine::Engine;

use super::view::{SemiSync, ServerFacts};

/// What this member tells the others of its server; `pending_restart`: settings wait for one.
pub fn server(world: &World, decision: &Decision, pending_restart: bool) -> ServerBrief {
    let Local::Database(db) = &world.local else {
        return ServerBrief {
            state: "running".to_owned(),
            role: "witness".to_owned(),
            position: None,
            replayed: None,
            upstream: None,
            pending_restart: false,
            disk_full: false,
        };
    };
    let (position, replayed) = match &db.server {
        Server::Primary(primary) => {
            (Some(Position { timeline: primary.timeline, lsn: primary.flushed }), None)
        }
        Server::Standby(standby) => (standby.position, Some(standby.replayed)),
        // A stopped server still has its data: a member without any must not take the cluster for a new one.
        Server::Stopped(stopped) => (Some(stopped.checkpoint), None),
        Server::Absent
        | Server::Refused { .. }
        | Server::Orphans { .. }
        | Server::Starting { .. }
        | Server::Stuck { .. } => (None, None),
    };
    ServerBrief {
        state: state(db).to_owned(),
        role: role(db, decision).to_owned(),
        position,
        replayed,
        upstream: upstream(&db.server),
        pending_restart,
        disk_full: db.disk_full,
    }
}

/// The member that a standby is set to stream from.
fn upstream(server: &Server) -> Option<antiphon_core::NodeName> {
    match server {
        Server::Standby(StandbyServer { upstream: Some(upstream), .. }) => Some(upstream.name.clone()),
        _ => None,
    }
}

/// Patroni's word for the state of a server; a standby that streams is `streaming`.
fn state(db: &Database) -> &'static str {
    if let Some((task, _)) = db.task {
        match task {
            Task::Initialise => return "initializing new cluster",
            Task::Clone => return "creating replica",
            Task::Rewind => return "running pg_rewind",
            Task::Start => return "starting",
            Task::Stop(_) => return "stopping",
            Task::Promote | Task::SetSync | Task::Checkpoint => {}
        }
    }
    let failed = db.failed.as_ref().map(|failure| failure.task);
    match &db.server {
        Server::Primary(_) => "running",
        Server::Standby(standby) if standby.streaming => "streaming",
        Server::Standby(_) => "running",
        Server::Starting { .. } => "starting",
        Server::Orphans { .. } | Server::Stuck { .. } => "crashed",
        Server::Stopped(_) if failed == Some(Task::Start) => "start failed",
        Server::Stopped(stopped) if stopped.crash.is_some() => "crashed",
        Server::Stopped(_) => "stopped",
        Server::Absent if failed == Some(Task::Initialise) => "initdb failed",
        Server::Absent => "uninitialized",
        Server::Refused { .. } => "start failed",
    }
}

fn role(db: &Database, decision: &Decision) -> &'static str {
    match (&db.server, &decision.role) {
        (Server::Primary(_), Role::Leader { .. } | Role::Bootstrapping) => "primary",
        (Server::Primary(_), _) => "demoted",
        (Server::Absent, _) => "uninitialized",
        // Also a directory that is refused: it has data, and nobody may begin a cluster beside it.
        _ => "replica",
    }
}

/// Figures for display.
pub fn facts(engine: Option<&dyn Engine>, semi_sync: SemiSync) -> ServerFacts {
    let about = engine.map(Engine::about).unwrap_or_default();
    ServerFacts {
        version: about.version.unwrap_or(0),
        started: about.started,
        pending_restart: about.pending_restart,
        replication: about.replication,
        replayed_at: about.replayed_at,
        replay_paused: about.replay_paused,
        semi_sync,
    }
}
