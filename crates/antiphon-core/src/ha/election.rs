//! Who becomes leader. Pure: a function of the reports of those who are fenced and alive.
//!
//! A report is a promise: who gave it streams from no leader of an earlier term, so nothing can be added to
//! what it says it has. Any number of members may compute this at once; the store lets one of them win.

use std::cmp::Reverse;

use super::cluster::{Cause, Cluster, Leader, Position, Promise};
use super::detector;
use super::why::Why;
use super::world::{Knock, Link, Local, Server, World};
use crate::{Lsn, NodeName};

/// A candidate's report.
struct Report<'a> {
    name: &'a NodeName,
    position: Position,
    may_lead: bool,
    priority: u32,
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
        return if to == world.me.name() {
            Ok(mine.position)
        } else {
            Err(Why::AnotherIsBetter { name: to.clone() })
        };
    }
    let floor = floor(world, cluster, last, &reports)?;
    if let Some(wanted) = wanted(cause)
        && wanted != world.me.name()
        && reports.iter().any(|r| r.name == wanted && r.may_lead && r.position >= floor)
    {
        return Err(Why::AnotherIsBetter { name: wanted.clone() });
    }
    let preferred = wanted(cause) == Some(world.me.name());
    let best = reports
        .iter()
        .filter(|report| report.may_lead)
        .max_by_key(|report| (report.position, report.priority, Reverse(report.name)));
    let Some(best) = best else { return Err(Why::MayNotLead) };
    if best.position < floor {
        let ahead = reports.iter().find(|r| r.position >= floor);
        return Err(
            ahead.map_or(Why::BehindEarlierTerms, |r| Why::MostAdvancedMayNotLead { name: r.name.clone() })
        );
    }
    if mine.position >= floor && (preferred || best.name == mine.name) {
        return Ok(mine.position);
    }
    Err(Why::AnotherIsBetter { name: best.name.clone() })
}

/// The candidate that an operator asked for.
fn wanted(cause: &Cause) -> Option<&NodeName> {
    match cause {
        Cause::Switchover { to } | Cause::Failover { to, .. } => Some(to),
        Cause::Silent | Cause::ProcessesGone | Cause::ServerDied { .. } | Cause::CannotServe { .. } => None,
    }
}

/// The reports that were given for this election by members that are alive.
fn reports<'a>(world: &'a World, cluster: &Cluster) -> Vec<Report<'a>> {
    let members = world.store.members.values().map(|stored| &stored.value);
    members
        .filter(|member| member.name == *world.me.name() || alive(world, &member.name))
        .filter_map(|member| {
            let fence = member.fence.filter(|fence| fence.epoch == cluster.epoch)?;
            Some(Report {
                name: &member.name,
                position: fence.position,
                may_lead: member.tags.may_lead(),
                priority: member.tags.priority(),
            })
        })
        .collect()
}

fn alive(world: &World, name: &NodeName) -> bool {
    world.peers.get(name).is_some_and(|peer| peer.heard_within(world.now, world.settings.failure_timeout))
}

/// The position that the winner must have; an error while it is not known.
fn floor(world: &World, cluster: &Cluster, last: &Leader, reports: &[Report<'_>]) -> Result<Position, Why> {
    match &cluster.sync {
        Promise::Alone => match released_end(world, cluster, last) {
            Some(end) => Ok(end),
            None => Err(Why::OnlyLastLeaderMayWin { last: last.name.clone() }),
        },
        Promise::Quorum(set) => {
            if let Some(end) = released_end(world, cluster, last) {
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
    let best = reports.iter().filter(|r| r.may_lead).map(|r| r.position).max().unwrap_or_default();
    let lag_bytes = last_known_end(world, last).and_then(|end| best.lsn.bytes_to(end)).unwrap_or(0);
    if lag_bytes > world.settings.maximum_lag_on_failover {
        return Err(Why::TooFarBehind { lag_bytes });
    }
    Ok(best)
}

/// Where the last leader's WAL ended when it last spoke.
fn last_known_end(world: &World, last: &Leader) -> Option<Lsn> {
    let position = world.peers.get(&last.name)?.beat.as_ref()?.server.position?;
    (position.timeline == last.timeline).then_some(position.lsn)
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
