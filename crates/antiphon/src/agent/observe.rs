//! Observe: the World, put together from the store's snapshot, the heartbeats and the engine.
//!
//! Nothing is decided here. The only memory is when things that others count from were first seen.

use std::collections::BTreeMap;

use antiphon_core::ha::cluster::{Member, Phase, Request};
use antiphon_core::ha::world::{Database, Link, Local, Me, Peer, Reinitialise, StoreView, Stored, World};
use antiphon_core::settings::Settings;
use antiphon_core::{Epoch, Instant, NodeName};
use antiphon_peer::Peers;

use super::beats::Beats;
use super::clock;
use super::records::Records;
use super::routers::Routers;

/// When the store's records were first seen as they are now, on this member's clock.
#[derive(Debug, Default)]
pub struct Firsts {
    phase: Option<(Epoch, u8)>,
    phase_since: Instant,
    lease_revision: u64,
    lease_since: Instant,
}

impl Firsts {
    /// Takes note of what a snapshot says.
    pub fn see(&mut self, records: &Records) {
        let now = clock::now();
        let phase = records.cluster.as_ref().map(|stored| {
            let kind = match stored.value.phase {
                Phase::Bootstrapping { .. } => 0,
                Phase::Led { .. } => 1,
                Phase::Electing { .. } => 2,
            };
            (stored.value.epoch, kind)
        });
        if phase != self.phase {
            self.phase = phase;
            self.phase_since = now;
        }
        let revision = records.lease.as_ref().map_or(0, |lease| lease.revision);
        if revision != self.lease_revision {
            self.lease_revision = revision;
            self.lease_since = now;
        }
    }
}

/// What does not change while the agent runs, and what only it itself knows.
#[derive(Clone, Debug)]
pub struct Own {
    /// This member's record as its file describes it; promises come from the stored one.
    pub described: Member,
    /// When the agent started.
    pub started: Instant,
    /// Until when the lease lets this member serve.
    pub lease_until: Option<Instant>,
    /// The file lets this member create the cluster.
    pub may_bootstrap: bool,
    /// The file lets a directory that cannot be rewound be replaced.
    pub may_reinitialise: bool,
    /// Asked for by an operator.
    pub reinitialise_requested: Option<Reinitialise>,
    /// Asked for by an operator.
    pub restart_requested: bool,
}

/// What this member sees of the store and of the others.
pub struct Outside<'a> {
    /// The store's records.
    pub records: &'a Records,
    /// Since when the records have been what they are.
    pub firsts: &'a Firsts,
    /// How many members vote in the store; none if it does not say.
    pub voters: Option<usize>,
    /// The links.
    pub peers: &'a Peers,
    /// What was heard.
    pub beats: &'a Beats,
    /// The routers that follow.
    pub routers: &'a Routers,
}

/// Builds the World of this moment.
pub fn world(own: &Own, fenced: Epoch, settings: &Settings, local: Local, outside: &Outside<'_>) -> World {
    let Outside { records, firsts, voters, peers, beats, routers } = *outside;
    let name = &own.described.name;
    let stored = records.members.get(name).map(|stored| &stored.value);
    let member = Member {
        fence: stored.and_then(|member| member.fence),
        release: stored.and_then(|member| member.release),
        slots: stored.map(|member| member.slots.clone()).unwrap_or_default(),
        ..own.described.clone()
    };
    let others = records.members.keys().filter(|other| *other != name).count();
    World {
        now: clock::now(),
        me: Me {
            member,
            started: own.started,
            fenced,
            lease_until: own.lease_until,
            may_bootstrap: own.may_bootstrap,
            may_reinitialise: own.may_reinitialise,
            reinitialise_requested: own.reinitialise_requested,
            restart_requested: own.restart_requested,
        },
        settings: settings.clone(),
        store: StoreView {
            cluster: records.cluster.clone(),
            phase_since: firsts.phase_since,
            lease: records.lease.clone(),
            lease_since: firsts.lease_since,
            members: records.members.clone(),
            request: due(records.request.as_ref()),
            voters: voters.unwrap_or(others.max(1)),
        },
        peers: peer_views(name, records, peers, beats),
        local,
        routers: routers.seen(),
    }
}

/// The operator's request, once its time has come.
fn due(request: Option<&Stored<Request>>) -> Option<Stored<Request>> {
    let is_due =
        |stored: &&Stored<Request>| stored.value.scheduled_at.is_none_or(|at| clock::unix_seconds() >= at);
    request.filter(is_due).cloned()
}

/// Every member that has a record or was heard, but not this one.
fn peer_views(me: &NodeName, records: &Records, peers: &Peers, beats: &Beats) -> BTreeMap<NodeName, Peer> {
    let links = peers.links().borrow().clone();
    let heard = beats.heard();
    let names = records.members.keys().chain(heard.keys()).filter(|name| *name != me);
    names
        .map(|name| {
            let said = heard.get(name);
            let address = said
                .map(|heard| heard.address.as_str())
                .or_else(|| records.members.get(name).map(|stored| stored.value.peer_address.as_str()));
            let link = address.and_then(|address| links.get(address)).map_or(Link::Down, link_of);
            let peer = Peer {
                heard: said.map(|heard| heard.at),
                beat: said.map(|heard| heard.beat.clone()),
                link,
                knock: beats.knock(name),
            };
            (name.clone(), peer)
        })
        .collect()
}

fn link_of(link: &antiphon_peer::Link) -> Link {
    match link {
        antiphon_peer::Link::Up { .. } => Link::Up,
        antiphon_peer::Link::Down { reason: antiphon_peer::Down::Refused, .. } => Link::Refused,
        antiphon_peer::Link::Down { .. } => Link::Down,
    }
}

/// A database member's view of its server, or that there is none.
pub fn local(database: Option<Database>) -> Local {
    database.map_or(Local::Witness, Local::Database)
}
