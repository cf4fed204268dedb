//! Replication: connections, WAL on its way, acknowledgements, and what `synchronous_standby_names` makes of
//! them, process by process.
//!
//! As in PostgreSQL, every WAL sender judges by the setting that it has read itself, and only the
//! checkpointer's word makes commits wait at all.

use std::rc::Rc;

use antiphon_core::ha::cluster::{Method, SyncSet};
use antiphon_core::ha::world::{StopMode, SyncNames};

use crate::Sim;
use crate::clock::{MS, SEC, Time, US};
use crate::net::{NodeId, Path};
use crate::server::{Happening, Receiver, Run, Sender};
use crate::wal::{Point, Stream};

/// How long a silent partner is kept (wal_sender_timeout, wal_receiver_timeout).
const PARTNER_TIMEOUT: Time = 10 * SEC;
/// How often a server looks after its connections.
const TICK: Time = 200 * MS;

impl Sim {
    /// Something happened in a server.
    pub(crate) fn happening(&mut self, node: NodeId, what: Happening) {
        let stuck = self.nodes[node].server.stuck_until;
        let needs_disk = matches!(
            what,
            Happening::Flush(_)
                | Happening::Store(..)
                | Happening::Gone(_)
                | Happening::Promoted(..)
                | Happening::Up
        );
        if needs_disk && self.now < stuck {
            self.in_server(stuck, node, what);
            return;
        }
        match what {
            Happening::Tick => self.server_tick(node),
            Happening::Flush(upto) => self.flushed(node, upto),
            Happening::Arrive(connection, point) => self.arrived(node, connection, point),
            Happening::Store(connection, point) => self.stored(node, connection, point),
            Happening::Acknowledge(connection, lsn) => self.acknowledged(node, connection, lsn),
            Happening::Adopt(version, sender) => self.adopt(node, version, sender),
            Happening::Up => self.server_up(node),
            Happening::Promoted(epoch, timeline) => self.promoted(node, epoch, timeline),
            Happening::Gone(mode) => self.server_gone(node, Some(mode)),
            Happening::ReceiverEnds(connection) => self.receiver_ends(node, connection),
        }
    }

    fn server_tick(&mut self, node: NodeId) {
        let again = self.now + TICK;
        self.in_server(again, node, Happening::Tick);
        self.drop_lost_senders(node);
        self.drop_lost_receiver(node);
        self.connect(node);
        self.pump_all(node);
        self.drained(node);
    }

    fn drop_lost_senders(&mut self, node: NodeId) {
        let now = self.now;
        let mut senders = std::mem::take(&mut self.nodes[node].server.senders);
        let before = senders.len();
        senders.retain_mut(|sender| {
            let there = &self.nodes[sender.to];
            let reached =
                self.net.joined(Path::Wal, node, sender.to) && !there.host_paused && !there.host_down;
            let other = self.nodes[sender.to].server.receiver.as_ref();
            let alive = other.is_some_and(|receiver| receiver.connection == sender.connection);
            if reached {
                sender.lost_since = None;
                return alive;
            }
            let since = *sender.lost_since.get_or_insert(now);
            now - since < PARTNER_TIMEOUT
        });
        let lost = senders.len() != before;
        self.nodes[node].server.senders = senders;
        if lost {
            self.judge_names(node);
            self.sync_progress(node);
            self.poke(node, 5 * MS);
        }
    }

    fn drop_lost_receiver(&mut self, node: NodeId) {
        let now = self.now;
        let Some(mut receiver) = self.nodes[node].server.receiver.take() else { return };
        let from = receiver.from;
        let upstream = &self.nodes[from].server;
        let alive = upstream.senders.iter().any(|sender| sender.connection == receiver.connection);
        let there = &self.nodes[from];
        let keep = if self.net.joined(Path::Wal, from, node) && !there.host_paused && !there.host_down {
            receiver.lost_since = None;
            alive
        } else {
            let since = *receiver.lost_since.get_or_insert(now);
            now - since < PARTNER_TIMEOUT
        };
        if keep {
            self.nodes[node].server.receiver = Some(receiver);
        } else {
            self.poke(node, 5 * MS);
        }
    }

    /// A standby without a receiver tries to get one.
    pub(crate) fn connect(&mut self, node: NodeId) {
        let server = &self.nodes[node].server;
        if server.run != Run::Standby || server.receiver.is_some() || server.stopping.is_some() {
            return;
        }
        let Some(upstream) = server.upstream.clone() else { return };
        let Some(from) = self.node_named(&upstream.name) else { return };
        let source = &self.nodes[from].server;
        let serves =
            matches!(source.run, Run::Primary | Run::Standby) && !source.paused && source.stopping.is_none();
        if from == node || !serves || !self.net.joined(Path::Wal, from, node) || self.nodes[from].host_paused
        {
            return;
        }
        let (Some(down), Some(up)) = (server.end(), source.end()) else { return };
        match self.wal.streamable(down, up) {
            Stream::Sound => {}
            Stream::Ahead | Stream::Foreign => return,
            Stream::AcrossFork => {
                let (here, there) = (self.name(node), self.name(from));
                self.violation(format!(
                    "I2: {here} streams from {there} across a fork: same timeline, other WAL"
                ));
                return;
            }
        }
        self.connections += 1;
        let connection = self.connections;
        let names = self.nodes[from].server.names.clone();
        self.nodes[from].server.senders.retain(|sender| sender.to != node);
        self.nodes[from].server.senders.push(Sender {
            to: node,
            connection,
            flushed: 0,
            streaming: false,
            names,
            busy: false,
            lost_since: None,
        });
        self.nodes[node].server.receiver =
            Some(Receiver { from, connection, streaming: false, lost_since: None });
        self.judge_names(from);
        self.pump(from, connection);
    }

    /// Sends to every standby what it lacks.
    pub(crate) fn pump_all(&mut self, node: NodeId) {
        for at in 0..self.nodes[node].server.senders.len() {
            let connection = self.nodes[node].server.senders[at].connection;
            self.pump(node, connection);
        }
    }

    fn pump(&mut self, node: NodeId, connection: u64) {
        let server = &self.nodes[node].server;
        let Some(end) = server.end() else { return };
        let Some(sender) = server.senders.iter().find(|s| s.connection == connection) else { return };
        if sender.busy || (sender.streaming && sender.flushed >= end.lsn) || server.paused {
            return;
        }
        let to = sender.to;
        let delay = self.net.delay(&mut self.rng, node, to);
        if let Some(sender) = self.nodes[node].server.senders.iter_mut().find(|s| s.connection == connection)
        {
            sender.busy = true;
        }
        self.in_server(self.now + delay, to, Happening::Arrive(connection, end));
    }

    fn arrived(&mut self, node: NodeId, connection: u64, point: Point) {
        let Some(receiver) = self.nodes[node].server.receiver.as_mut() else { return };
        if receiver.connection != connection {
            return;
        }
        let from = receiver.from;
        if !self.net.passes(Path::Wal, from, node) {
            // TCP sends it again.
            self.in_server(self.now + 200 * MS, node, Happening::Arrive(connection, point));
            return;
        }
        receiver.streaming = true;
        let disk = self.rng.around(400 * US) + self.nodes[node].slow_disk;
        self.in_server(self.now + disk, node, Happening::Store(connection, point));
    }

    fn stored(&mut self, node: NodeId, connection: u64, point: Point) {
        let Some(end) = self.nodes[node].server.end() else { return };
        let sound = matches!(self.wal.streamable(end, point), Stream::Sound);
        let known = self.nodes[node].server.receiver.as_ref().is_some_and(|r| r.connection == connection);
        if !sound || !known || self.nodes[node].server.run != Run::Standby {
            return;
        }
        if self.nodes[node].server.full && end != point {
            self.server_gone(node, None);
            return;
        }
        let from = self.nodes[node].server.receiver.as_ref().map_or(node, |receiver| receiver.from);
        if end != point {
            self.judge_fence(node, from);
            let lag = self.nodes[node].replay_lag;
            let replay = self.now + self.rng.range(0, MS) + if lag > 0 { self.rng.below(lag) } else { 0 };
            let now = self.now;
            let server = &mut self.nodes[node].server;
            if now >= server.replay_at {
                server.replayed = end.lsn;
            }
            server.replay_at = server.replay_at.max(replay);
            if let Some(directory) = &mut server.directory {
                directory.end = point;
            }
            self.pump_all(node);
        }
        let delay = self.net.delay(&mut self.rng, node, from);
        self.in_server(self.now + delay, from, Happening::Acknowledge(connection, point.lsn));
    }

    fn acknowledged(&mut self, node: NodeId, connection: u64, lsn: u64) {
        let Some(end) = self.nodes[node].server.end() else { return };
        let Some(at) = self.nodes[node].server.senders.iter().position(|s| s.connection == connection) else {
            return;
        };
        let to = self.nodes[node].server.senders[at].to;
        if !self.net.passes(Path::Wal, to, node) {
            self.in_server(self.now + 200 * MS, node, Happening::Acknowledge(connection, lsn));
            return;
        }
        let sender = &mut self.nodes[node].server.senders[at];
        sender.busy = false;
        sender.flushed = sender.flushed.max(lsn);
        let caught_up = !sender.streaming && lsn + 4096 >= end.lsn;
        if caught_up {
            sender.streaming = true;
            self.poke(node, 20 * MS);
        }
        let names = self.nodes[node].server.senders[at].names.clone();
        self.release(node, &names);
        self.pump(node, connection);
        self.drained(node);
    }

    /// Ends the waits that these names allow to end now.
    fn release(&mut self, node: NodeId, names: &SyncNames) {
        let SyncNames::Set(set) = names else { return };
        let Some(upto) = self.acknowledged_up_to(node, set) else { return };
        while let Some((lsn, commit, _)) = self.nodes[node].server.waiters.front().copied() {
            if lsn > upto {
                break;
            }
            self.nodes[node].server.waiters.pop_front();
            self.confirm(node, lsn, commit);
        }
    }

    fn acknowledged_up_to(&self, node: NodeId, set: &SyncSet) -> Option<u64> {
        let senders = &self.nodes[node].server.senders;
        let listed = set.members.iter().filter_map(|name| {
            let sender = senders.iter().find(|sender| self.nodes[sender.to].name == *name)?;
            sender.streaming.then_some(sender.flushed)
        });
        let mut positions: Vec<u64> = match set.method {
            Method::Any => listed.collect(),
            Method::First => listed.take(set.k).collect(),
        };
        positions.sort_unstable_by(|a, b| b.cmp(a));
        positions.get(set.k.checked_sub(1)?).copied()
    }

    /// A process reads the configuration.
    fn adopt(&mut self, node: NodeId, version: u32, sender: Option<u64>) {
        let server = &mut self.nodes[node].server;
        if version != server.names_version {
            return;
        }
        server.adopting = server.adopting.saturating_sub(1);
        let names = server.names.clone();
        match sender {
            Some(connection) => {
                if let Some(sender) = server.senders.iter_mut().find(|s| s.connection == connection) {
                    sender.names = names.clone();
                    self.release(node, &names);
                }
            }
            None => {
                server.defined = *names != SyncNames::Nobody;
                if !server.defined {
                    let waiters = std::mem::take(&mut server.waiters);
                    for (lsn, commit, _) in waiters {
                        self.confirm(node, lsn, commit);
                    }
                }
            }
        }
        self.judge_names(node);
        self.sync_progress(node);
    }

    /// Writes `synchronous_standby_names` and has every process read it, each in its own time.
    pub(crate) fn set_names(&mut self, node: NodeId, names: &SyncNames) {
        let server = &mut self.nodes[node].server;
        server.names = Rc::new(names.clone());
        server.names_version += 1;
        let version = server.names_version;
        let senders: Vec<u64> = server.senders.iter().map(|sender| sender.connection).collect();
        server.adopting = senders.len() + 1;
        for process in senders.into_iter().map(Some).chain([None]) {
            let slow = if self.rng.chance(50) { 400 * MS } else { 30 * MS };
            let at = self.now + self.rng.range(MS, slow);
            self.in_server(at, node, Happening::Adopt(version, process));
        }
    }

    /// The receiver is told to end: what it wrote is flushed first.
    pub(crate) fn end_receiver(&mut self, node: NodeId) {
        let server = &mut self.nodes[node].server;
        let Some(receiver) = &server.receiver else { return };
        let connection = receiver.connection;
        server.receiver_ending = true;
        let at = self.now + self.rng.range(MS, 40 * MS);
        self.in_server(at, node, Happening::ReceiverEnds(connection));
    }

    fn receiver_ends(&mut self, node: NodeId, connection: u64) {
        let server = &mut self.nodes[node].server;
        if server.receiver.as_ref().is_some_and(|receiver| receiver.connection == connection) {
            server.receiver = None;
            server.receiver_ending = false;
            self.connect(node);
            self.poke(node, MS);
        }
    }

    /// The server goes on after SIGSTOP.
    pub(crate) fn resume_server(&mut self, node: NodeId) {
        let server = &mut self.nodes[node].server;
        server.paused = false;
        server.silent_since = None;
        let stopping = server.stopping == Some(StopMode::Fast) && server.run == Run::Primary;
        let held = std::mem::take(&mut server.held);
        for event in held {
            let at = self.now + self.rng.range(0, 2 * MS);
            self.schedule(at, event);
        }
        if stopping {
            self.shutdown_checkpoint(node);
        }
        self.poke(node, 20 * MS);
    }
}
