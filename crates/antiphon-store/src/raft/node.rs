//! One member of the Raft cluster, as a machine that is stepped: messages, calls and ticks go in, messages
//! and answers come out. It has no thread and no clock of its own; it does write and flush the log, because
//! what must be durable before a message leaves is decided here.
//!
//! The order in [`Node::settle`] is what safety rests on: votes and acknowledgements are sent after the
//! flush.

use std::collections::BTreeMap;
use std::sync::Arc;

use ::raft::eraftpb::{ConfChangeV2, Entry, EntryType, Message, MessageType};
use ::raft::{Config, RawNode, SnapshotStatus, StateRole};
use antiphon_peer::{Channel, Down, Envelope, Link, Peers};
use bytes::Bytes;
use protobuf::Message as _;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::calls::{Calls, Change, Commit, Leadership, Read, Reply, Waits, take_if};
use super::disk::Home;
use super::machine::Command;
use super::members::{Found, Members};
use super::packet::{self, Packet};
use super::storage::Storage;
use super::{Call, RaftError, RaftMember, RaftSettings, RaftStatus, RaftTimings, bridge};
use crate::{Snapshot, StoreError};

/// How long a candidate of rank n waits after the leader's proven death, in ticks times n, so that not all
/// campaign at once and split the vote.
const CAMPAIGN_TICKS_PER_RANK: u64 = 3;
/// A call that was not heard of for this many ticks is sent again.
const RESEND_TICKS: u64 = 20;
/// A snapshot that was not acknowledged in this many ticks is taken for lost.
const SNAPSHOT_TICKS: u64 = 200;
/// Membership is looked after every so many ticks.
const CARE_TICKS: u64 = 10;
const MESSAGE_BYTES_MAX: u64 = 1024 * 1024;
const UNCOMMITTED_BYTES_MAX: u64 = 32 * 1024 * 1024;
const IN_FLIGHT_MESSAGES_MAX: usize = 64;

/// Where a member shows what it knows.
pub(crate) struct Windows {
    pub(crate) space: watch::Sender<Arc<Snapshot>>,
    pub(crate) status: watch::Sender<RaftStatus>,
}

/// A proof that the leader is dead, and when to act on it.
struct Proof {
    leadership: Leadership,
    campaign_at: u64,
}

/// One member.
pub(crate) struct Node {
    pub(super) raw: RawNode<Storage>,
    pub(super) peers: Peers,
    pub(super) id: u64,
    pub(super) members: Members,
    pub(super) calls: Calls,
    /// Ticks since the start.
    pub(super) now: u64,
    timings: RaftTimings,
    next_request: u64,
    next_read: u64,
    proof: Option<Proof>,
    links: Arc<BTreeMap<String, Link>>,
    snapshots_sent: BTreeMap<u64, u64>,
    windows: Windows,
    // Unlocked when the member is dropped, after everything else in it.
    _home: Home,
}

impl Node {
    pub(crate) fn open(settings: &RaftSettings, windows: Windows) -> Result<Self, RaftError> {
        let home = Home::open(&settings.data_dir, &settings.address)?;
        let storage = Storage::open(&settings.data_dir)?;
        let RaftTimings { heartbeat_ticks, election_ticks, .. } = settings.timings;
        let config = Config {
            id: home.node,
            election_tick: election_ticks,
            heartbeat_tick: heartbeat_ticks,
            applied: storage.applied().0,
            max_size_per_msg: MESSAGE_BYTES_MAX,
            max_inflight_msgs: IN_FLIGHT_MESSAGES_MAX,
            max_uncommitted_size: UNCOMMITTED_BYTES_MAX,
            pre_vote: true,
            ..Config::default()
        };
        windows.space.send_replace(Arc::clone(&storage.machine.space));
        let raw = RawNode::new(&config, storage, &bridge::logger()).map_err(RaftError::Raft)?;
        let mut node = Self {
            raw,
            peers: settings.peers.clone(),
            id: home.node,
            members: Members::new(&settings.address, &settings.members, settings.join),
            calls: Calls::default(),
            now: 0,
            timings: settings.timings,
            next_request: u64::from(home.session) << 32,
            next_read: 0,
            proof: None,
            links: Arc::default(),
            snapshots_sent: BTreeMap::new(),
            windows,
            _home: home,
        };
        node.care()?;
        node.turn()?;
        Ok(node)
    }

    /// One tick of time has passed.
    pub(crate) fn tick(&mut self) -> Result<(), RaftError> {
        self.now += 1;
        self.raw.tick();
        let RaftTimings { call_limit, change_limit, .. } = self.timings;
        self.calls.expire(self.now, call_limit, change_limit);
        for (to, _) in take_if(&mut self.snapshots_sent, |at| *at <= self.now) {
            // Ignored by Raft if the snapshot was acknowledged meanwhile.
            self.raw.report_snapshot(to, SnapshotStatus::Failure);
        }
        if self.now.is_multiple_of(CARE_TICKS) { self.care() } else { Ok(()) }
    }

    /// How many ticks may pass before one of them does something, if nothing comes in. While something waits, or
    /// nobody leads, that is one. It is never more than half of the shortest election timeout, so that a pause
    /// which falls into a rest leaves the leader time to be heard.
    pub(crate) fn rest(&self) -> u64 {
        let raft = &self.raw.raft;
        let waits = !self.calls.is_empty() || !self.snapshots_sent.is_empty() || self.proof.is_some();
        if waits || raft.leader_id == ::raft::INVALID_ID {
            return 1;
        }
        let due = if self.is_leader() {
            raft.heartbeat_timeout().saturating_sub(raft.heartbeat_elapsed())
        } else {
            raft.randomized_election_timeout().saturating_sub(raft.election_elapsed)
        };
        due.min(self.timings.election_ticks / 2).max(1) as u64
    }

    /// Looks after the membership: finds or founds the cluster, and brings about what is wished for.
    fn care(&mut self) -> Result<(), RaftError> {
        if let Some(Found { cluster, snapshot }) = self.care_for_members() {
            info!(cluster, "founding the cluster");
            self.raw.raft.become_follower(1, ::raft::INVALID_ID);
            self.raw.raft.restore(snapshot);
            self.settle()?;
            self.campaign();
        }
        Ok(())
    }

    /// A message came in.
    pub(crate) fn receive(&mut self, envelope: &Envelope) -> Result<(), RaftError> {
        let from = &envelope.from;
        match packet::unpack(&envelope.body) {
            None => warn!(%from, "dropped a message that cannot be read"),
            Some(Packet::Presence(presence)) => self.meet(from, presence),
            Some(Packet::Raft { cluster, message }) => {
                if self.is_for_us(from, cluster, &message)? {
                    self.members.learn_route(message.from, from);
                    let kind = message.get_msg_type();
                    if let Err(error) = self.raw.step(*message) {
                        debug!(%from, ?kind, %error, "a message had no effect");
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether a Raft message is meant for this incarnation of this member, and from one that may send it.
    fn is_for_us(&mut self, from: &str, cluster: u64, message: &Message) -> Result<bool, RaftError> {
        let known = self.raw.store().machine.members.get(&message.from);
        if message.to != self.id || known.is_some_and(|address| address != from) {
            return Ok(false);
        }
        let own = self.raw.store().cluster();
        if own == 0 {
            // Written before the first answer: a member speaks in one cluster for ever.
            self.raw.mut_store().join_cluster(cluster)?;
        } else if own != cluster {
            self.members
                .warn_once(from, "it belongs to another cluster; remove the directory of one of the two");
            return Ok(false);
        }
        Ok(!self.is_strangers_vote(message))
    }

    /// A vote for one that is no voter here: removed, unless its log is ahead of ours, so that we may be the
    /// one that has not heard of it. A removed member must not disturb those that remain.
    fn is_strangers_vote(&self, message: &Message) -> bool {
        let votes = [MessageType::MsgRequestVote, MessageType::MsgRequestPreVote];
        let conf = self.raw.store().conf();
        let is_voter = conf.voters.contains(&message.from) || conf.voters_outgoing.contains(&message.from);
        let (index, term) = self.raw.store().last();
        votes.contains(&message.get_msg_type())
            && !conf.voters.is_empty()
            && !is_voter
            && (message.log_term, message.index) <= (term, index)
    }

    /// Someone asks for something.
    pub(crate) fn call(&mut self, call: Call) {
        let deadline = self.now + self.timings.call_ticks();
        match call {
            Call::Commit(transaction, reply) => {
                if self.calls.commits.len() >= super::calls::CALLS_MAX {
                    return refuse(reply);
                }
                self.next_request += 1;
                let command = Command { node: self.id, request: self.next_request, transaction };
                let data = command.encode();
                let commit =
                    Commit { data, transaction: command.transaction, reply, waits: Waits::until(deadline) };
                self.calls.commits.insert(command.request, commit);
            }
            Call::Read(reply) => {
                if self.calls.reads.len() >= super::calls::CALLS_MAX {
                    return refuse(reply);
                }
                self.next_read += 1;
                let read = Read { index: None, reply, waits: Waits::until(deadline) };
                self.calls.reads.insert(self.next_read, read);
            }
            Call::Change(wish, reply) => {
                if self.calls.changes.len() >= super::calls::CALLS_MAX {
                    return refuse(reply);
                }
                let deadline = self.now + self.timings.change_ticks();
                self.calls.changes.push(Change { wish, reply, deadline });
                self.care_for_changes();
            }
        }
    }

    /// What the links to peers show: a refused leader is a dead one.
    pub(crate) fn see_links(&mut self, links: &Arc<BTreeMap<String, Link>>) {
        let before = std::mem::replace(&mut self.links, Arc::clone(links));
        for (address, link) in links.iter() {
            let Link::Down { reason, .. } = link else { continue };
            if before.get(address) == Some(link) {
                continue;
            }
            if let Some(id) = self.id_of(address) {
                self.raw.report_unreachable(id);
            }
            if *reason == Down::Refused {
                self.leader_died(address);
            }
        }
    }

    /// The member at `address` is dead. If it leads, one of us must: at once, in the order of addresses.
    fn leader_died(&mut self, address: &str) {
        let leadership = self.leadership();
        let leader = self.members.address_of(leadership.0, &self.raw.store().machine.members);
        let concerns_us = match leader {
            Some(leader) => leader == address,
            None => leadership.0 == ::raft::INVALID_ID,
        };
        if !concerns_us || !self.raw.raft.promotable() || self.proof.is_some() {
            return;
        }
        let conf = self.raw.store().conf();
        let members = &self.raw.store().machine.members;
        let own = self.peers.address();
        let ahead = members
            .iter()
            .filter(|(id, other)| conf.voters.contains(id) && *other != address && other.as_str() < own)
            .filter(|(_, other)| matches!(self.links.get(*other), Some(Link::Up { .. })))
            .count() as u64;
        self.proof = Some(Proof { leadership, campaign_at: self.now + ahead * CAMPAIGN_TICKS_PER_RANK });
    }

    fn act_on_proof(&mut self) {
        let leadership = self.leadership();
        match &self.proof {
            // An election has begun, or ended: no need of another.
            Some(proof) if proof.leadership != leadership => self.proof = None,
            Some(proof) if proof.campaign_at <= self.now => {
                self.proof = None;
                debug!(term = leadership.1, "the store's leader is dead; campaigning");
                self.campaign();
            }
            Some(_) | None => {}
        }
    }

    fn campaign(&mut self) {
        if let Err(error) = self.raw.campaign() {
            debug!(%error, "could not campaign");
        }
    }

    /// Sends what is due, makes durable what must be, applies what is committed, answers who waits.
    pub(crate) fn turn(&mut self) -> Result<(), RaftError> {
        self.act_on_proof();
        self.send_calls();
        self.settle()?;
        // A leader that was just found is given at once what waited for it.
        self.send_calls();
        self.settle()?;
        self.raw.mut_store().compact()?;
        self.show();
        Ok(())
    }

    fn send_calls(&mut self) {
        let leadership = self.leadership();
        if leadership.0 == ::raft::INVALID_ID {
            return;
        }
        for commit in self.calls.commits.values_mut() {
            if commit.waits.is_due(self.now, leadership, RESEND_TICKS) {
                commit.waits.mark_sent(self.now, leadership);
                if let Err(error) = self.raw.propose(Vec::new(), commit.data.clone()) {
                    debug!(%error, "a proposal was not taken; it will be sent again");
                }
            }
        }
        let mut again = Vec::new();
        for (number, read) in &mut self.calls.reads {
            if read.index.is_none() && read.waits.is_due(self.now, leadership, RESEND_TICKS) {
                read.waits.mark_sent(self.now, leadership);
                again.push(*number);
            }
        }
        for number in again {
            self.raw.read_index([self.id.to_be_bytes(), number.to_be_bytes()].concat());
        }
    }

    /// Does all that Raft has ready, in the order that safety asks for.
    fn settle(&mut self) -> Result<(), RaftError> {
        while self.raw.has_ready() {
            let conf = self.raw.store().conf().clone();
            let mut ready = self.raw.ready();
            self.send(ready.take_messages());
            if !ready.snapshot().is_empty() {
                self.raw.mut_store().restore(ready.snapshot(), ready.hs())?;
                self.resolve_restored();
            }
            self.apply(ready.take_committed_entries())?;
            for state in ready.take_read_states() {
                self.grant_read(&state.request_ctx, state.index);
            }
            if ready.must_sync() && (!ready.entries().is_empty() || ready.snapshot().is_empty()) {
                self.raw.mut_store().append(ready.entries(), ready.hs())?;
            } else if let Some(hard) = ready.hs() {
                self.raw.mut_store().note_commit(hard.commit);
            }
            // What was promised is durable now: it may be said.
            self.send(ready.take_persisted_messages());
            let mut light = self.raw.advance(ready);
            if let Some(commit) = light.commit_index() {
                self.raw.mut_store().note_commit(commit);
            }
            self.send(light.take_messages());
            self.apply(light.take_committed_entries())?;
            self.raw.advance_apply();
            if *self.raw.store().conf() != conf {
                // A member that forgot who votes would, when all start again, ask the wrong ones for a majority.
                self.raw.mut_store().keep_commit()?;
            }
        }
        Ok(())
    }

    fn send(&mut self, messages: Vec<Message>) {
        let cluster = self.raw.store().cluster();
        for message in messages {
            let members = &self.raw.store().machine.members;
            let Some(address) = self.members.address_of(message.to, members) else { continue };
            let Some(bytes) = packet::pack_raft(cluster, &message) else { continue };
            if message.get_msg_type() == MessageType::MsgSnapshot {
                self.snapshots_sent.insert(message.to, self.now + SNAPSHOT_TICKS);
            }
            // A dropped message is one that the network lost: Raft sends it again.
            if !self.peers.send(address, Channel::Raft, bytes) {
                debug!(to = address, kind = ?message.get_msg_type(), "a message was dropped");
            }
        }
    }

    fn apply(&mut self, entries: Vec<Entry>) -> Result<(), RaftError> {
        let before = self.raw.store().machine.space.revision;
        let mut resolved = Vec::new();
        for entry in entries {
            match entry.get_entry_type() {
                EntryType::EntryNormal => {
                    // Empty: a new leader's first entry.
                    if !entry.data.is_empty() {
                        let command = Command::decode(&entry.data).ok_or(RaftError::Entry(entry.index))?;
                        let applied = self.raw.mut_store().machine.apply(&command);
                        if let (Some(applied), true) = (applied, command.node == self.id) {
                            resolved.push((command.request, applied));
                        }
                    }
                }
                EntryType::EntryConfChange => return Err(RaftError::Entry(entry.index)),
                EntryType::EntryConfChangeV2 => self.apply_change(&entry)?,
            }
            self.raw.mut_store().set_applied(&entry);
        }
        // Shown before anyone is told: an answered commit is in the answered caller's watch.
        if self.raw.store().machine.space.revision != before {
            self.windows.space.send_replace(Arc::clone(&self.raw.store().machine.space));
        }
        for (request, applied) in resolved {
            self.calls.resolve(request, applied);
        }
        let store = self.raw.store();
        self.calls.serve_reads(store.applied().0, &store.machine.space);
        Ok(())
    }

    fn apply_change(&mut self, entry: &Entry) -> Result<(), RaftError> {
        let change =
            ConfChangeV2::parse_from_bytes(&entry.data).map_err(|_| RaftError::Entry(entry.index))?;
        match self.raw.apply_conf_change(&change) {
            Ok(conf) => self.adopt_conf(conf, &change.context),
            // Every member comes to the same verdict, so it changes nothing anywhere.
            Err(error) => warn!(%error, index = entry.index, "a change of the membership was not possible"),
        }
        Ok(())
    }

    /// A snapshot came in: what was asked for before it may be done in it.
    fn resolve_restored(&mut self) {
        let machine = &self.raw.store().machine;
        self.windows.space.send_replace(Arc::clone(&machine.space));
        let requests: Vec<u64> = self.calls.commits.keys().copied().collect();
        let done: Vec<_> = requests
            .iter()
            .filter_map(|request| Some((*request, machine.outcome(self.id, *request)?)))
            .collect();
        for (request, applied) in done {
            self.calls.resolve(request, applied);
        }
        let store = self.raw.store();
        self.calls.serve_reads(store.applied().0, &store.machine.space);
    }

    fn grant_read(&mut self, context: &[u8], index: u64) {
        let number = context.last_chunk::<8>().map(|number| u64::from_be_bytes(*number));
        if let Some(read) = number.and_then(|number| self.calls.reads.get_mut(&number)) {
            read.index.get_or_insert(index);
        }
        let store = self.raw.store();
        self.calls.serve_reads(store.applied().0, &store.machine.space);
    }

    /// Who leads, and in which term, as far as this member knows.
    pub(super) fn leadership(&self) -> Leadership {
        (self.raw.raft.leader_id, self.raw.raft.term)
    }

    pub(super) fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    pub(super) fn id_of(&self, address: &str) -> Option<u64> {
        let mut members = self.raw.store().machine.members.iter();
        members.find(|(_, other)| *other == address).map(|(id, _)| *id)
    }

    pub(super) fn send_presence(&self, to: &str, body: Bytes) {
        self.peers.send(to, Channel::Raft, body);
    }

    fn show(&self) {
        let store = self.raw.store();
        let (leader, term) = self.leadership();
        let votes = |id: &u64| store.conf().voters.contains(id);
        let member = |(id, address): (&u64, &String)| RaftMember {
            id: *id,
            address: address.clone(),
            votes: votes(id),
        };
        let mut members: Vec<RaftMember> = store.machine.members.iter().map(member).collect();
        members.sort_by(|a, b| a.address.cmp(&b.address));
        let status = RaftStatus {
            node: self.id,
            leader: self.members.address_of(leader, &store.machine.members).map(str::to_owned),
            term,
            commit_index: self.raw.raft.raft_log.committed,
            applied_index: store.applied().0,
            members,
        };
        self.windows.status.send_if_modified(|shown| {
            let changed = *shown != status;
            *shown = status;
            changed
        });
    }
}

fn refuse<T>(reply: Reply<T>) {
    let why = "too many calls wait for a majority".to_owned();
    let _ = reply.send(Err(StoreError::Unavailable(why)));
}
