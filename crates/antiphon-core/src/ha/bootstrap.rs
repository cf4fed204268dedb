//! How a cluster comes to be: from nothing, or from a server that already runs.
//!
//! The record of leadership is created before any data directory is, so two empty members cannot create two
//! clusters; an existing primary is adopted at its timeline, so that terms and timelines stay in step.

use super::cluster::{Cluster, FORMAT, Leader, Phase, Position, Promise};
use super::decide::{Decision, busy, with_record};
use super::elect::stop;
use super::role::Role;
use super::step::Step;
use super::why::Why;
use super::world::{Database, Local, Server, StopMode, Stored, Task, World};
use crate::{Epoch, NodeName, Timeline};

/// No record yet: create it, or wait for the member that should.
pub(super) fn create(world: &World) -> Decision {
    let waiting = Decision::rest(Role::Waiting, Why::WaitingForBootstrap);
    let look_again = world.now + world.settings.failure_timeout;
    let Local::Database(db) = &world.local else { return with_record(world, None, waiting) };
    if let Server::Refused { reason } = &db.server {
        return Decision::rest(Role::Waiting, Why::DataDirectoryRefused { reason: reason.clone() });
    }
    // Those who have data must have had the time to say so.
    let heard_out = world.now.since(world.me.started) >= world.settings.failure_timeout;
    if let (Some(identifier), Some(end)) = (&db.system_identifier, primary_end(&db.server)) {
        if !heard_out || another_is_newer(world, &db.server, end) {
            return with_record(world, None, waiting).waking(look_again);
        }
        let timeline = end.timeline;
        let leader = Leader { name: world.me.name().clone(), epoch: epoch_of(timeline), timeline };
        let cluster = record(Some(identifier.clone()), leader.epoch, Phase::Led { leader });
        return Decision::step(Role::Bootstrapping, Why::Adopting, change(cluster, 0, true));
    }
    let others_have_data =
        world.peers.values().any(|peer| peer.beat.as_ref().is_some_and(|beat| beat.server.holds_data()));
    if !matches!(db.server, Server::Absent) || !world.me.may_bootstrap || others_have_data || !heard_out {
        return with_record(world, None, waiting).waking(look_again);
    }
    let phase = Phase::Bootstrapping { by: world.me.name().clone() };
    Decision::step(Role::Bootstrapping, Why::Bootstrapping, change(record(None, Epoch(1), phase), 0, false))
}

/// The record exists and names the member that creates the first data directory.
pub(super) fn proceed(world: &World, cluster: &Stored<Cluster>, by: &NodeName, db: &Database) -> Decision {
    let waiting = Decision::rest(Role::Waiting, Why::WaitingForBootstrap);
    if by != world.me.name() {
        let gone =
            world.peers.get(by).is_none_or(|peer| !peer.heard_within(world.now, world.settings.ttl * 2));
        let patient = world.now.since(world.store.phase_since) < world.settings.ttl * 4;
        if gone && !patient && world.me.may_bootstrap && matches!(db.server, Server::Absent) {
            let phase = Phase::Bootstrapping { by: world.me.name().clone() };
            let cluster_new = Cluster { phase, ..cluster.value.clone() };
            let step = change(cluster_new, cluster.revision, false);
            return Decision::step(Role::Bootstrapping, Why::Bootstrapping, step);
        }
        return with_record(world, None, waiting).waking(world.now + world.settings.ttl);
    }
    let role = Role::Bootstrapping;
    if let Some((why, at)) = busy(world, db, &[Task::Initialise, Task::Start]) {
        let decision = Decision::rest(role, why);
        return match at {
            Some(at) => decision.waking(at),
            None => decision,
        };
    }
    match (&db.server, &db.system_identifier, primary_end(&db.server)) {
        (Server::Orphans { .. } | Server::Stuck { .. }, ..) => {
            stop(world, db, role, Why::Bootstrapping, StopMode::Kill)
        }
        (Server::Primary(_), ..) if db.half_built => {
            stop(world, db, role, Why::Bootstrapping, StopMode::Fast)
        }
        (Server::Absent, ..) => Decision::step(role, Why::Bootstrapping, Step::Initialise),
        (Server::Stopped(_), ..) if db.half_built => {
            Decision::step(role, Why::Bootstrapping, Step::Initialise)
        }
        // Led before it is started: a server that ended between its first start and here is the leader's care.
        (_, Some(identifier), Some(end)) => {
            let epoch = cluster.value.epoch;
            let leader = Leader { name: by.clone(), epoch, timeline: end.timeline };
            let led = record(Some(identifier.clone()), epoch, Phase::Led { leader });
            Decision::step(role, Why::Bootstrapping, change(led, cluster.revision, true))
        }
        _ => Decision::rest(role, Why::Starting).waking(world.now + world.settings.failure_timeout),
    }
}

/// Where the WAL of a primary, running or stopped, ends as far as is known.
fn primary_end(server: &Server) -> Option<Position> {
    match server {
        Server::Primary(primary) => Some(Position { timeline: primary.timeline, lsn: primary.flushed }),
        Server::Stopped(stopped) if stopped.primary => Some(stopped.checkpoint),
        _ => None,
    }
}

/// Another member has a later history than the primary here: a deposed leader's directory must not become
/// the cluster's because its agent came first.
fn another_is_newer(world: &World, server: &Server, end: Position) -> bool {
    let running = matches!(server, Server::Primary(_));
    world.peers.iter().any(|(name, peer)| {
        let theirs = peer.beat.as_ref().and_then(|beat| beat.server.position);
        theirs.is_some_and(|theirs| {
            // A follower may be seen a moment later than the primary here, so on one timeline it proves nothing.
            theirs.timeline > end.timeline
                || (!running && (theirs > end || (theirs == end && name < world.me.name())))
        })
    })
}

fn epoch_of(timeline: Timeline) -> Epoch {
    Epoch(u64::from(timeline.0).max(1))
}

fn record(system_identifier: Option<String>, epoch: Epoch, phase: Phase) -> Cluster {
    // Until a sync set is proven, only the first leader has what it acknowledged.
    Cluster {
        format: FORMAT,
        system_identifier,
        epoch,
        phase,
        sync: Promise::Alone,
        base: Position::default(),
    }
}

fn change(cluster: Cluster, expect: u64, take_lease: bool) -> Step {
    Step::ChangeCluster {
        cluster: Box::new(cluster),
        expect,
        take_lease,
        lease_unchanged: None,
        consume_request: None,
    }
}
