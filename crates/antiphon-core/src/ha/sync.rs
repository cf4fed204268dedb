//! The sync set: who must flush a commit before it is acknowledged, and how that changes without a gap.
//!
//! PostgreSQL acknowledges by the names it runs with; an election relies on the promise in the store. The two
//! cannot change together, so each change goes through steps of which every one, with a crash after it, keeps
//! this law: every set of acknowledgements that the server accepts, and every commit acknowledged before,
//! meets every set of fenced members that an election accepts. `covers` states the law, `next` finds the step.

use std::collections::BTreeSet;

use super::cluster::{Cluster, Method, Promise, SyncSet};
use super::world::{PrimaryServer, Standby, SyncNames, World};
use crate::NodeName;
use crate::settings::SyncMode;

impl SyncSet {
    /// How many members must be fenced so that no `k` are left to acknowledge: `n - k + 1`.
    pub fn fences_needed(&self) -> usize {
        self.members.len() + 1 - self.k
    }

    fn has(&self, name: &NodeName) -> bool {
        self.members.contains(name)
    }

    fn common(&self, other: &Self) -> usize {
        self.members.iter().filter(|name| other.has(name)).count()
    }
}

impl Promise {
    /// The names that PostgreSQL runs with under this promise.
    pub fn names(&self) -> SyncNames {
        match self {
            Self::Asynchronous | Self::Alone => SyncNames::Nobody,
            Self::Quorum(set) => SyncNames::Set(set.clone()),
        }
    }
}

/// Whether every commit that a server running with `names` acknowledges is one that `promise` speaks for.
pub fn covers(promise: &Promise, names: &SyncNames) -> bool {
    match (promise, names) {
        (Promise::Asynchronous | Promise::Alone, _) => true,
        (Promise::Quorum(_), SyncNames::Nobody | SyncNames::Foreign(_)) => false,
        (Promise::Quorum(promised), SyncNames::Set(acks)) => {
            // The most acknowledgements that can avoid a smallest accepted set of fenced members.
            let common = acks.common(promised);
            let outside = acks.members.len() - common;
            acks.k > outside + common.min(promised.k - 1)
        }
    }
}

/// Whether every commit that `old` speaks for, `new` speaks for too.
fn widens(old: &Promise, new: &Promise) -> bool {
    match (old, new) {
        (_, Promise::Alone | Promise::Asynchronous) => true,
        (Promise::Asynchronous | Promise::Alone, Promise::Quorum(_)) => false,
        (Promise::Quorum(old), Promise::Quorum(new)) => {
            let added = new.members.len() - new.common(old);
            new.fences_needed() >= old.fences_needed() + added
        }
    }
}

/// One step of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyncChange {
    /// Have PostgreSQL run with these names; with `prove`, until a commit was acknowledged under them.
    Names {
        /// The names.
        names: SyncNames,
        /// Wait for a commit under them.
        prove: bool,
    },
    /// Have the store promise this.
    Promise(Promise),
}

/// The next step from what the server runs with and the store promises towards `target`; none when there.
///
/// `proven` are the newest names under which a commit was acknowledged: from then on all earlier WAL is where
/// those names say.
pub fn next(
    names: &SyncNames,
    proven: Option<&SyncNames>,
    promise: &Promise,
    target: &Promise,
) -> Option<SyncChange> {
    if !covers(promise, names) {
        return Some(SyncChange::Names { names: promise.names(), prove: false });
    }
    if same(promise, target) {
        let wanted = target.names();
        return (*names != wanted).then_some(SyncChange::Names { names: wanted, prove: false });
    }
    if covers(target, names) && (widens(promise, target) || proven == Some(names)) {
        return Some(SyncChange::Promise(target.clone()));
    }
    if let Some(between) = union(promise, target).filter(|between| !same(between, promise)) {
        return Some(SyncChange::Promise(between));
    }
    Some(SyncChange::Names { names: target.names(), prove: true })
}

/// A promise that speaks for all that `old` does and lets the server go over to `target`'s names.
fn union(old: &Promise, target: &Promise) -> Option<Promise> {
    let (Promise::Quorum(old), Promise::Quorum(target)) = (old, target) else { return None };
    let added = target.members.iter().filter(|name| !old.has(name));
    let members = old.members.iter().chain(added).cloned().collect();
    Some(Promise::Quorum(SyncSet { method: old.method, k: old.k.min(target.k), members }))
}

/// Whether two promises speak for the same commits; the order of the members and the method do not matter.
fn same(a: &Promise, b: &Promise) -> bool {
    match (a, b) {
        (Promise::Quorum(a), Promise::Quorum(b)) => {
            let members = |set: &SyncSet| set.members.iter().cloned().collect::<BTreeSet<_>>();
            a.k == b.k && members(a) == members(b)
        }
        (a, b) => a == b,
    }
}

/// The promise that the settings ask for, given who streams from the primary now.
pub fn target(world: &World, cluster: &Cluster, primary: &PrimaryServer) -> Promise {
    let stored = match &cluster.sync {
        Promise::Quorum(set) => set.members.as_slice(),
        Promise::Asynchronous | Promise::Alone => &[],
    };
    let streaming = |name: &NodeName| primary.standbys.iter().any(|s| s.name == *name && s.streaming);
    // As long as enough others acknowledge, a member that went away is given time to come back. The names in
    // effect say who does: between the steps of a change the promise is wider than they are. With FIRST k
    // a member that is named and gone stands in the way of another.
    let spare = world.settings.synchronous_mode == SyncMode::Quorum;
    let held = |set: &SyncSet| set.members.iter().filter(|name| streaming(name)).count();
    let patience = match &primary.sync {
        SyncNames::Set(set) if spare && held(set) >= set.k => world.settings.ttl,
        _ => world.settings.sync_timeout.unwrap_or(world.settings.failure_timeout),
    };
    // A leader that has just been elected cannot have seen anyone stream from it yet.
    let elected = world.store.phase_since + world.settings.failure_timeout * 2;
    let kept = |name: &NodeName| {
        let seen = primary.last_streaming.get(name).copied().unwrap_or_default().max(elected);
        stored.contains(name) && world.now.since(seen) < patience
    };
    let late = late(world, primary);
    let waited_too_long = world
        .settings
        .sync_timeout
        .is_some_and(|limit| primary.waiting_since.is_some_and(|since| world.now.since(since) >= limit));
    let eligible = acknowledgers(world)
        .into_iter()
        .filter(|name| !waited_too_long && !late.contains(name) && (streaming(name) || kept(name)))
        .collect::<Vec<_>>();
    promise_for(world, stored, &eligible)
}

/// Followers that stream further behind the best one than `maximum_lag_on_syncnode`. Behind the best follower and
/// not the leader: that one of two is slow is a reason for the other, that all are is none to wait for nobody.
fn late(world: &World, primary: &PrimaryServer) -> BTreeSet<NodeName> {
    let Some(most) = world.settings.maximum_lag_on_syncnode else { return BTreeSet::new() };
    let may = acknowledgers(world);
    let streaming = || primary.standbys.iter().filter(|s| s.streaming && may.contains(&s.name));
    let Some(best) = streaming().map(|standby| standby.flushed).max() else { return BTreeSet::new() };
    let is_late = |standby: &&Standby| standby.flushed.bytes_to(best).is_some_and(|lag| lag > most);
    streaming().filter(is_late).map(|standby| standby.name.clone()).collect()
}

/// The promise of a member that has just won: those who can follow it acknowledge its commits.
pub fn promise_of_winner(world: &World, cluster: &Cluster) -> Promise {
    let stored = match &cluster.sync {
        Promise::Quorum(set) => set.members.as_slice(),
        Promise::Asynchronous | Promise::Alone => &[],
    };
    let alive = |name: &NodeName| {
        let peer = world.peers.get(name);
        let replays = peer.and_then(|p| p.beat.as_ref()).is_some_and(|beat| beat.server.replayed.is_some());
        replays && peer.is_some_and(|p| p.heard_within(world.now, world.settings.failure_timeout))
    };
    let eligible: Vec<NodeName> = acknowledgers(world).into_iter().filter(alive).collect();
    promise_for(world, stored, &eligible)
}

/// Every other member that may acknowledge commits.
fn acknowledgers(world: &World) -> Vec<NodeName> {
    let members = world.store.members.values().map(|stored| &stored.value);
    members
        .filter(|m| m.name != *world.me.name() && m.server_address.is_some() && m.may_acknowledge())
        .map(|m| m.name.clone())
        .collect()
}

fn promise_for(world: &World, stored: &[NodeName], eligible: &[NodeName]) -> Promise {
    let wanted = world.settings.synchronous_node_count as usize;
    let method = match world.settings.synchronous_mode {
        SyncMode::Off => return Promise::Asynchronous,
        SyncMode::On => Method::First,
        SyncMode::Quorum => Method::Any,
    };
    let strict = world.settings.synchronous_mode_strict;
    let mut members: Vec<NodeName> = stored.iter().filter(|name| eligible.contains(name)).cloned().collect();
    members.extend(eligible.iter().filter(|name| !stored.contains(name)).cloned());
    if strict && members.len() < wanted {
        // Strict: writes wait for as many as were asked for, so the missing ones stay listed.
        let missing = stored.iter().cloned().chain(acknowledgers(world));
        let missing: BTreeSet<NodeName> =
            missing.filter(|name| *name != *world.me.name() && !members.contains(name)).collect();
        let short = wanted - members.len();
        members.extend(missing.into_iter().take(short));
    }
    if members.is_empty() {
        return Promise::Alone;
    }
    let k = wanted.clamp(1, members.len());
    if method == Method::First {
        members.truncate(k);
    }
    Promise::Quorum(SyncSet { method, k, members })
}
