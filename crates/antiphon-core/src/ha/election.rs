//! Who becomes leader. Pure: a function of the reports of those who are fenced and alive.
//!
//! A report is a promise: who gave it streams from no leader of an earlier term, so nothing can be added to
//! what it says it has. Any number of members may compute this at once; the store lets one of them win.

use std::cmp::Reverse;
use std::time::Duration;

use super::cluster::{Cause, Cluster, Leader, Position, Promise};
use super::detector;
use super::why::Why;
use super::world::{Knock, Link, Local, Peer, Server, World};
use crate::{Lsn, NodeName};

/// A candidate's report.
struct Report<'a> {
    name: &'a NodeName,
    position: Position,
    may_lead: bool,
    priority: u32,
    alive: bool,
    has_space: bool,
    delayed: bool,
}

/// Whether this member wins the election of `cluster.epoch` now; if not, why.
///
/// `last` is who led before. A win returns the position that the winner has.
pub fn win(world: &World, cluster: &Cluster, cause: &Cause, last: &Leader) -> Result<Position, Why> {
    if !world.me.tags().may_lead() {
        return Err(Why::MayNotLead);
    }
    let reports = reports(world, cluster);
    let Some(mine) = reports.iter().find(|report| report.name == world.me.name()) else {
        return Err(Why::PositionUnknown);
    };
    if let Cause::Failover { to, accept_loss: true } = cause {
        if to == world.me.name() {
            // What is lost is accepted; two servers that acknowledge at the same time are not.
            let out = old_leader_is_out(world, cluster, last);
            return if out { Ok(mine.position) } else { Err(Why::WaitingForLease) };
        }
        if alive(world, to) && !turn_has_come(world, cause, 1) {
            return Err(Why::AnotherIsBetter { name: to.clone() });
        }
    }
    let floor = floor(world, cluster, last, &reports)?;
    let wanted = wanted(cause);
    if let Some(name) = wanted.filter(|name| reports_soon(world, name, &reports)) {
        return Err(Why::AnotherIsBetter { name: name.clone() });
    }
    let mut able: Vec<&Report<'_>> =
        reports.iter().filter(|r| r.alive && r.may_lead && r.position >= floor).collect();
    // Who gave leadership up because it could not serve is the last to get it again.
    let gave_up = matches!(cause, Cause::ServerDied { .. } | Cause::CannotServe { .. });
    let fit = |name: &NodeName| !gave_up || *name != last.name;
    able.sort_by_key(|r| {
        let fit = (fit(r.name), r.has_space, !r.delayed);
        Reverse((wanted == Some(r.name), fit, r.position, r.priority, Reverse(r.name)))
    });
    match able.iter().position(|report| report.name == world.me.name()) {
        Some(rank) if rank == 0 || turn_has_come(world, cause, rank) => Ok(mine.position),
        Some(_) | None => Err(who_is_better(&able, &reports, floor)),
    }
}

/// Why a member that reported does not win.
fn who_is_better(able: &[&Report<'_>], reports: &[Report<'_>], floor: Position) -> Why {
    if let Some(best) = able.first() {
        return Why::AnotherIsBetter { name: best.name.clone() };
    }
    match reports.iter().find(|report| report.position >= floor) {
        Some(ahead) if ahead.may_lead => Why::AnotherIsBetter { name: ahead.name.clone() },
        Some(ahead) => Why::MostAdvancedMayNotLead { name: ahead.name.clone() },
        None => Why::BehindEarlierTerms,
    }
}

/// Whether those who are preferred to this member (`rank` of them) have had their time. They may be unable
/// to reach the store or to promote, and whoever reaches the floor is safe.
fn turn_has_come(world: &World, cause: &Cause, rank: usize) -> bool {
    let asked_for = wanted(cause).map_or(Duration::ZERO, |_| world.settings.retry_timeout);
    let each = world.settings.failure_timeout * 3;
    let turn = asked_for + each * u32::try_from(rank).unwrap_or(u32::MAX).min(TURNS_MAX);
    world.now.since(world.store.phase_since) >= turn
}

/// Whether the candidate that was asked for is there and has only not reported yet.
fn reports_soon(world: &World, name: &NodeName, reports: &[Report<'_>]) -> bool {
    // Counted like a turn: the old leader's stop, which comes before the report, may take its time.
    !turn_has_come(world, &Cause::Switchover { to: name.clone() }, 1)
        && alive(world, name)
        && !reports.iter().any(|report| report.name == name)
}

/// Members that are waited for one after the other.
const TURNS_MAX: u32 = 10;

/// The candidate that an operator asked for.
fn wanted(cause: &Cause) -> Option<&NodeName> {
    match cause {
        Cause::Switchover { to } | Cause::Failover { to, .. } => Some(to),
        Cause::Silent | Cause::ProcessesGone | Cause::ServerDied { .. } | Cause::CannotServe { .. } => None,
    }
}

/// The reports that were given for this election. A promise outlives the process that gave it, so those of
/// members that are gone since count; only to win takes being alive.
fn reports<'a>(world: &'a World, cluster: &Cluster) -> Vec<Report<'a>> {
    let members = world.store.members.values().map(|stored| &stored.value);
    members
        .filter_map(|member| {
            let fence = member.fence.filter(|fence| fence.epoch == cluster.epoch)?;
            Some(Report {
                name: &member.name,
                position: fence.position,
                may_lead: member.tags.may_lead(),
                priority: member.tags.priority(),
                alive: member.name == *world.me.name() || alive(world, &member.name),
                has_space: has_space(world, &member.name),
                delayed: member.delayed,
            })
        })
        .collect()
}

fn alive(world: &World, name: &NodeName) -> bool {
    world.peers.get(name).is_some_and(|peer| peer.heard_within(world.now, world.settings.failure_timeout))
}

/// Whether a member's disk has space, as far as is known here.
fn has_space(world: &World, name: &NodeName) -> bool {
    match &world.local {
        Local::Database(db) if name == world.me.name() => !db.disk_full,
        Local::Database(_) | Local::Witness => world.peers.get(name).is_none_or(Peer::has_space),
    }
}

/// What keeps everyone from winning, whoever it is; none if a candidate may.
pub fn obstacle(world: &World, cluster: &Cluster, last: &Leader) -> Option<Why> {
    let reports = reports(world, cluster);
    let nobody = || reports.is_empty().then(|| Why::OnlyLastLeaderMayWin { last: last.name.clone() });
    floor(world, cluster, last, &reports).err().or_else(nobody)
}

/// The position that the winner must have; an error while it is not known.
fn floor(world: &World, cluster: &Cluster, last: &Leader, reports: &[Report<'_>]) -> Result<Position, Why> {
    match &cluster.sync {
        Promise::Alone => match released_end(world, cluster, last) {
            Some(end) => Ok(end),
            None => Err(Why::OnlyLastLeaderMayWin { last: last.name.clone() }),
        },
        Promise::Quorum(set) => {
            let end = released_end(world, cluster, last);
            let reached = |end: Position| reports.iter().any(|report| report.position >= end);
            // Nobody may have the last bytes of a leader that is gone for good; the set has what counts.
            if let Some(end) = end.filter(|end| reached(*end) || alive(world, &last.name)) {
                return Ok(end);
            }
            let fenced: Vec<_> = reports.iter().filter(|report| set.members.contains(report.name)).collect();
            if fenced.len() < set.fences_needed() {
                return Err(Why::WaitingForFences { have: fenced.len(), need: set.fences_needed() });
            }
            Ok(fenced.iter().map(|report| report.position).fold(cluster.base, Position::max))
        }
        Promise::Asynchronous => asynchronous_floor(world, cluster, last, reports),
    }
}

/// After a clean shutdown the last leader's WAL ends here: who has that has everything.
pub fn released_end(world: &World, cluster: &Cluster, last: &Leader) -> Option<Position> {
    let release = world.store.member(&last.name)?.release?;
    (release.epoch == cluster.epoch).then_some(release.end).flatten()
}

fn asynchronous_floor(
    world: &World,
    cluster: &Cluster,
    last: &Leader,
    reports: &[Report<'_>],
) -> Result<Position, Why> {
    if !old_leader_is_out(world, cluster, last) {
        return Err(Why::WaitingForLease);
    }
    let expected = world.store.members.values().filter(|stored| {
        let member = &stored.value;
        member.server_address.is_some() && member.name != last.name && alive(world, &member.name)
    });
    let missing = expected.filter(|stored| !reports.iter().any(|r| *r.name == stored.value.name)).count();
    if missing > 0 && world.now.since(world.store.phase_since) < world.settings.failure_timeout / 2 {
        return Err(Why::WaitingForFences { have: reports.len(), need: reports.len() + missing });
    }
    let best = reports.iter().filter(|r| r.may_lead && r.alive).map(|r| r.position).max().unwrap_or_default();
    // One that may not lead can have heard more of the last leader's WAL than this member has.
    let ends = reports.iter().filter(|r| r.position.timeline == last.timeline).map(|r| r.position.lsn);
    let end = ends.chain(last_known_end(world, last)).max();
    let lag_bytes = end.and_then(|end| best.lsn.bytes_to(end)).unwrap_or(0);
    if lag_bytes > world.settings.maximum_lag_on_failover {
        return Err(Why::TooFarBehind { lag_bytes });
    }
    Ok(best)
}

/// Where the last leader's WAL ended when it last spoke, or last renewed its lease.
fn last_known_end(world: &World, last: &Leader) -> Option<Lsn> {
    let beat = world.peers.get(&last.name).and_then(|peer| peer.beat.as_ref());
    let said = beat.and_then(|beat| beat.server.position);
    let renewed = world.store.lease.as_ref().and_then(|lease| lease.value.end);
    let of_its_timeline = |position: &Position| position.timeline == last.timeline;
    said.into_iter().chain(renewed).filter(of_its_timeline).map(|position| position.lsn).max()
}

/// Asynchronous mode: the old leader has released the lease, its lease has run out, or it was proven dead.
pub fn old_leader_is_out(world: &World, cluster: &Cluster, last: &Leader) -> bool {
    if last.name == *world.me.name() {
        return !matches!(&world.local, Local::Database(db) if matches!(db.server, Server::Primary(_)));
    }
    let released =
        world.store.member(&last.name).and_then(|m| m.release).is_some_and(|r| r.epoch == cluster.epoch);
    let gone =
        world.peers.get(&last.name).is_some_and(|p| p.link == Link::Refused && p.knock == Knock::Refused);
    released || gone || detector::lease_ran_out(world)
}
