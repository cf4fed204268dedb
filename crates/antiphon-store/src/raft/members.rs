//! Who belongs to the cluster: how it is founded, how members come and go.
//!
//! *Founding.* A member that holds no state tells the configured members who it is. When all of them have
//! been seen without state, or after a while a majority of them, the one with the lowest address founds the
//! cluster for all: members that were not seen get a placeholder id that never votes, so that a majority of
//! the configured ones is needed from the first moment. A member that has state, or has voted in a cluster,
//! keeps everyone else from founding one.
//!
//! *Replacing.* Ids are drawn with the directory. A member that shows up empty under a member's address has
//! lost its directory, or is the one behind a placeholder: the leader puts the new id, as a learner, in the
//! place of the old one, in one step. So a wiped member never votes as the one whose votes it forgot.
//!
//! *Growing and shrinking.* A new address waits until someone asks for it. Learners that have caught up
//! become voters.

use std::collections::{BTreeMap, BTreeSet};

use ::raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState, Snapshot};
use antiphon_peer::Link;
use serde::{Deserialize, Serialize};
use tracing::{debug, info, warn};

use super::calls::{Reply, Wish};
use super::codec::hash;
use super::disk::node_id;
use super::machine::Machine;
use super::node::Node;
use super::packet::{Presence, pack_presence};
use crate::StoreError;

/// After this many ticks a majority may found the cluster without the others; each rank waits longer.
const FOUND_TICKS: u64 = 300;
/// A presence older than this many ticks says nothing about now.
const PRESENCE_TICKS: u64 = 100;
/// A learner this close behind the leader has caught up.
const CAUGHT_UP_ENTRIES: u64 = 64;
/// Addresses of strangers and of former members that are remembered.
const ROUTES_MAX: usize = 64;

/// Whom a member knows of, besides what the log says.
pub(crate) struct Members {
    own: String,
    configured: BTreeSet<String>,
    join: bool,
    seen: BTreeMap<String, (u64, Presence)>,
    routes: BTreeMap<u64, String>,
    linked: Vec<String>,
    warned: BTreeSet<String>,
}

/// What a cluster begins with.
pub(crate) struct Found {
    pub(crate) cluster: u64,
    pub(crate) snapshot: Snapshot,
}

/// Goes through the log with a change of the membership: the address of who comes.
#[derive(Serialize, Deserialize)]
struct Coming {
    node: u64,
    address: String,
}

impl Members {
    pub(crate) fn new(own: &str, configured: &[String], join: bool) -> Self {
        let configured: BTreeSet<String> = configured.iter().cloned().collect();
        Self {
            own: own.to_owned(),
            join: join || !configured.contains(own),
            configured,
            seen: BTreeMap::new(),
            routes: BTreeMap::new(),
            linked: Vec::new(),
            warned: BTreeSet::new(),
        }
    }

    /// The address of `id`, by the log or else by whom it was last heard from.
    pub(crate) fn address_of<'a>(&'a self, id: u64, logged: &'a BTreeMap<u64, String>) -> Option<&'a str> {
        logged.get(&id).or_else(|| self.routes.get(&id)).map(String::as_str)
    }

    pub(crate) fn learn_route(&mut self, id: u64, address: &str) {
        if self.routes.len() < ROUTES_MAX && !self.routes.contains_key(&id) {
            self.routes.insert(id, address.to_owned());
        }
    }

    pub(crate) fn warn_once(&mut self, from: &str, why: &str) {
        if self.warned.len() < ROUTES_MAX && self.warned.insert(format!("{from} {why}")) {
            warn!(from, why, "a member is not listened to");
        }
    }

    /// Who founds the cluster now, if it is us: all ids, placeholders for those that were not seen.
    fn founders(&self, own_id: u64, now: u64) -> Option<BTreeMap<u64, String>> {
        if self.join || self.seen.values().any(|(_, seen)| seen.cluster != 0 || !seen.empty) {
            return None;
        }
        let present = |address: &String| {
            if *address == self.own {
                Some(own_id)
            } else {
                self.seen.get(address).map(|(_, seen)| seen.node)
            }
        };
        let first = self.configured.iter().find(|address| present(address).is_some())?;
        let rank = self.configured.iter().take_while(|address| **address != self.own).count() as u64;
        let count = self.configured.iter().filter(|address| present(address).is_some()).count();
        let waited = now >= FOUND_TICKS * (rank + 1);
        let enough = count == self.configured.len() || (waited && count > self.configured.len() / 2);
        (*first == self.own && enough).then(|| {
            let id = |address: &String| present(address).unwrap_or_else(|| node_id(address, 0));
            self.configured.iter().map(|address| (id(address), address.clone())).collect()
        })
    }
}

impl Node {
    fn presence(&self) -> Presence {
        let store = self.raw.store();
        Presence { node: self.id, cluster: store.cluster(), empty: store.applied().0 == 0 }
    }

    /// Someone said who it is.
    pub(super) fn meet(&mut self, from: &str, presence: Presence) {
        if self.members.seen.len() >= ROUTES_MAX && !self.members.seen.contains_key(from) {
            return;
        }
        self.members.seen.insert(from.to_owned(), (self.now, presence));
        if presence.empty {
            self.link();
            if !self.presence().empty {
                self.send_presence(from, pack_presence(self.presence()));
            }
        }
    }

    /// Called every few ticks. Returns what to found the cluster with when it is up to this member.
    pub(super) fn care_for_members(&mut self) -> Option<Found> {
        let now = self.now;
        self.members.seen.retain(|_, (at, _)| now.saturating_sub(*at) <= PRESENCE_TICKS);
        self.link();
        if self.presence().empty {
            let said = pack_presence(self.presence());
            for address in &self.members.configured {
                self.send_presence(address, said.clone());
            }
            let fresh = self.raw.store().cluster() == 0;
            let founders = fresh.then(|| self.members.founders(self.id, now)).flatten();
            return founders.map(|members| found(&members));
        }
        if self.is_leader() && !self.raw.raft.has_pending_conf() {
            self.replace_returned();
            self.promote_learner();
        }
        self.care_for_changes();
        None
    }

    /// Dials everyone who matters: members, whoever waits to become one, and those that may know the cluster.
    fn link(&mut self) {
        let members = self.raw.store().machine.members.values();
        let mut wanted: BTreeSet<String> = members.chain(self.members.seen.keys()).cloned().collect();
        if self.presence().empty {
            wanted.extend(self.members.configured.iter().cloned());
        }
        let wanted: Vec<String> = wanted.into_iter().collect();
        if wanted != self.members.linked {
            self.peers.set_peers(wanted.clone());
            self.members.linked = wanted;
        }
    }

    /// Those that wait without state, by address. One that has voted elsewhere is left out.
    fn waiting(&self) -> Vec<(String, u64)> {
        let cluster = self.raw.store().cluster();
        let fits = |seen: &Presence| seen.empty && (seen.cluster == 0 || seen.cluster == cluster);
        let seen = self.members.seen.iter().filter(|(_, (_, seen))| fits(seen));
        seen.map(|(address, (_, seen))| (address.clone(), seen.node)).collect()
    }

    /// A member's address with an id that is no member: its directory is new. One step exchanges the two.
    fn replace_returned(&mut self) {
        for (address, node) in self.waiting() {
            let Some(old) = self.id_of(&address) else { continue };
            if old == node || old == self.id {
                continue;
            }
            info!(%address, "a member came back without its state; giving it a new vote for the old one");
            let changes =
                vec![single(ConfChangeType::RemoveNode, old), single(ConfChangeType::AddLearnerNode, node)];
            return self.propose_change(changes, Some(Coming { node, address }));
        }
    }

    fn promote_learner(&mut self) {
        let last = self.raw.raft.raft_log.last_index();
        let caught_up = |id: &u64| {
            let progress = self.raw.raft.prs().get(*id);
            progress.is_some_and(|of| of.recent_active && of.matched + CAUGHT_UP_ENTRIES >= last)
        };
        let learner = self.raw.store().conf().learners.iter().find(|id| caught_up(id)).copied();
        if let Some(node) = learner {
            self.propose_change(vec![single(ConfChangeType::AddNode, node)], None);
        }
    }

    /// Answers the wishes that have come true and works on the others.
    pub(super) fn care_for_changes(&mut self) {
        let changes = std::mem::take(&mut self.calls.changes);
        for change in changes {
            match self.fulfil(&change.wish) {
                Fulfilled::Yes => answer(change.reply, Ok(())),
                Fulfilled::Never(why) => answer(change.reply, Err(StoreError::Invalid(why))),
                Fulfilled::NotYet => self.calls.changes.push(change),
            }
        }
    }

    fn fulfil(&mut self, wish: &Wish) -> Fulfilled {
        let conf = self.raw.store().conf();
        if !conf.voters_outgoing.is_empty() {
            return Fulfilled::NotYet;
        }
        match wish {
            Wish::Add(address) => match self.id_of(address) {
                Some(id) if conf.voters.contains(&id) => return Fulfilled::Yes,
                Some(_) => {}
                None => {
                    let waiting = self.waiting();
                    if let Some((address, node)) = waiting.into_iter().find(|(waits, _)| waits == address) {
                        let learner = single(ConfChangeType::AddLearnerNode, node);
                        self.propose_change(vec![learner], Some(Coming { node, address }));
                    }
                }
            },
            Wish::Remove(address) => {
                let Some(node) = self.id_of(address) else { return Fulfilled::Yes };
                if conf.voters == [node] {
                    return Fulfilled::Never("the last voter cannot be removed".to_owned());
                }
                if self.leadership().0 == node {
                    self.move_leadership_from(node);
                } else {
                    self.propose_change(vec![single(ConfChangeType::RemoveNode, node)], None);
                }
            }
        }
        Fulfilled::NotYet
    }

    /// A leader that is to go first hands over: to whom it is linked, or to the voter that asks. That one asks for
    /// itself alone, because a message in the name of a third member is not taken.
    fn move_leadership_from(&mut self, leader: u64) {
        let links = self.peers.links();
        let links = links.borrow();
        let store = self.raw.store();
        let linked = |id: &u64| {
            let address = store.machine.members.get(id);
            address.is_some_and(|address| matches!(links.get(address), Some(Link::Up { .. })))
        };
        let mut voters = store.conf().voters.iter();
        let heir = if leader == self.id {
            voters.find(|id| **id != leader && linked(id)).copied()
        } else {
            voters.find(|id| **id == self.id).copied()
        };
        if let Some(heir) = heir {
            self.raw.transfer_leader(heir);
        }
    }

    fn propose_change(&mut self, changes: Vec<ConfChangeSingle>, coming: Option<Coming>) {
        let mut change = ConfChangeV2::default();
        change.set_changes(changes.into());
        if let Some(coming) = coming {
            // A map of a number and a text always has a JSON form.
            change.context = serde_json::to_vec(&coming).unwrap_or_default().into();
        }
        if let Err(error) = self.raw.propose_conf_change(Vec::new(), change) {
            debug!(%error, "a change of the membership was not taken; it will be proposed again");
        }
    }

    /// A change of the membership is committed: notes who is who from now on.
    pub(super) fn adopt_conf(&mut self, conf: ConfState, context: &[u8]) {
        let coming: Option<Coming> = serde_json::from_slice(context).ok();
        let all = [&conf.voters, &conf.learners, &conf.voters_outgoing, &conf.learners_next];
        let stays: BTreeSet<u64> = all.into_iter().flatten().copied().collect();
        let machine = &mut self.raw.mut_store().machine;
        if let Some(Coming { node, address }) = coming {
            // The old id of a replaced member keeps its vote until the joint step is over, not its name.
            machine.members.retain(|_, other| *other != address);
            machine.members.insert(node, address);
        }
        machine.retain(|id| stays.contains(&id));
        let addresses: Vec<&String> = machine.members.values().collect();
        info!(members = ?addresses, voters = conf.voters.len(), "the membership of the store changed");
        self.raw.mut_store().set_conf(conf);
        self.link();
    }
}

/// Whether a wish has come true.
enum Fulfilled {
    Yes,
    NotYet,
    Never(String),
}

fn answer(reply: Reply<()>, with: Result<(), StoreError>) {
    // Who asked may have gone.
    let _ = reply.send(with);
}

fn single(kind: ConfChangeType, node: u64) -> ConfChangeSingle {
    let mut change = ConfChangeSingle { node_id: node, ..ConfChangeSingle::default() };
    change.set_change_type(kind);
    change
}

fn found(members: &BTreeMap<u64, String>) -> Found {
    let named =
        members.iter().flat_map(|(id, address)| [id.to_be_bytes().to_vec(), address.as_bytes().to_vec()]);
    let named: Vec<Vec<u8>> = named.collect();
    let parts: Vec<&[u8]> = named.iter().map(Vec::as_slice).collect();
    let cluster = hash(&parts);
    let data = Machine::founded(cluster, members.clone()).encode().into();
    let mut snapshot = Snapshot { data, ..Snapshot::default() };
    let meta = snapshot.mut_metadata();
    meta.index = 1;
    meta.term = 1;
    meta.mut_conf_state().set_voters(members.keys().copied().collect());
    Found { cluster, snapshot }
}
