//! The nemesis: what goes wrong and when, drawn before the run, aimed when it happens.
//!
//! Every fault ends by itself or when all is healed. It stays within what the promises cover: at most one
//! data directory is destroyed in a run.

use std::rc::Rc;

use antiphon_core::ha::cluster::Request;
use antiphon_core::ha::world::{Reinitialise, Stored};
use antiphon_core::settings::SyncMode;

use crate::clock::{MS, SEC, Time};
use crate::net::{NodeId, Path};
use crate::rng::Rng;
use crate::server::Run;
use crate::shape::Size;
use crate::{Event, Sim};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The server's main process is killed; backends may live on.
    KillPostmaster,
    /// One backend crashes, and all sessions with it.
    BackendCrash,
    /// The agent is killed.
    KillAgent,
    /// Agent and main process are killed.
    KillBoth,
    /// The host is off, and silent.
    PowerOff,
    /// SIGSTOP to the agent.
    PauseAgent,
    /// SIGSTOP to the server.
    PauseServer,
    /// The host freezes.
    PauseHost,
    /// A host is cut off.
    CutHost,
    /// Nothing reaches a host.
    CutIn,
    /// Nothing leaves a host.
    CutOut,
    /// A host is cut from the store only.
    CutStore,
    /// Its agent is cut from the others.
    CutPeers,
    /// Its replication is cut.
    CutWal,
    /// Two hosts do not reach each other.
    CutPair,
    /// Messages of a host are slow.
    SlowNet,
    /// Its flushes are slow.
    SlowDisk,
    /// Its disk answers nothing.
    StuckDisk,
    /// Its disk is full.
    FullDisk,
    /// Its replay lags.
    SlowReplay,
    /// Its clock runs at another rate.
    ClockRate,
    /// Every host restarts.
    RestartAll,
    /// A data directory is gone.
    Wipe,
    /// An operator asks for a switchover.
    Switchover,
    /// An operator forces a failover.
    Failover,
    /// An operator changes how commits are confirmed.
    ChangeMode,
    /// An operator changes by how many.
    ChangeCount,
    /// A member joins.
    Add,
    /// A member is removed for good.
    Remove,
    /// The management is paused.
    Pause,
    /// An operator restarts a server.
    Restart,
    /// An operator builds a member anew.
    Reinit,
}

/// How often each is drawn, in parts.
const KINDS: [(Kind, u64); 32] = [
    (Kind::KillPostmaster, 12),
    (Kind::BackendCrash, 4),
    (Kind::KillAgent, 10),
    (Kind::KillBoth, 12),
    (Kind::PowerOff, 6),
    (Kind::PauseAgent, 10),
    (Kind::PauseServer, 6),
    (Kind::PauseHost, 8),
    (Kind::CutHost, 12),
    (Kind::CutIn, 5),
    (Kind::CutOut, 5),
    (Kind::CutStore, 8),
    (Kind::CutPeers, 6),
    (Kind::CutWal, 8),
    (Kind::CutPair, 8),
    (Kind::SlowNet, 5),
    (Kind::SlowDisk, 3),
    (Kind::StuckDisk, 5),
    (Kind::FullDisk, 3),
    (Kind::SlowReplay, 6),
    (Kind::ClockRate, 4),
    (Kind::RestartAll, 3),
    (Kind::Wipe, 4),
    (Kind::Switchover, 10),
    (Kind::Failover, 2),
    (Kind::ChangeMode, 5),
    (Kind::ChangeCount, 5),
    (Kind::Add, 5),
    (Kind::Remove, 2),
    (Kind::Pause, 3),
    (Kind::Restart, 3),
    (Kind::Reinit, 3),
];

/// One fault.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// When.
    pub at: Time,
    /// For how long.
    pub lasts: Time,
    /// What.
    pub kind: Kind,
    /// It hits the leader, if there is one.
    pub leader: bool,
    /// Else this one, counted round; also chooses details.
    pub aim: u64,
}

/// Draws a run's faults.
pub(crate) fn faults(rng: &mut Rng, begin: Time, window: Time) -> Vec<Fault> {
    let count = rng.range(1, 3 + window / (3 * SEC));
    let total: u64 = KINDS.iter().map(|(_, weight)| weight).sum();
    let mut faults: Vec<Fault> = Vec::new();
    for _ in 0..count {
        let mut draw = rng.below(total);
        let drawn = KINDS.iter().find(|(_, weight)| {
            let hit = draw < *weight;
            draw = draw.saturating_sub(*weight);
            hit
        });
        let kind = drawn.map_or(Kind::KillBoth, |(kind, _)| *kind);
        let lasts = if rng.chance(250) { rng.range(5 * SEC, 30 * SEC) } else { rng.range(50 * MS, 6 * SEC) };
        let alone =
            Fault { at: begin + rng.below(window), lasts, kind, leader: rng.chance(500), aim: rng.draw() };
        // One fault in four strikes where the one before it has just ended, or is about to.
        let fault = match faults.last() {
            Some(before) if rng.chance(250) => {
                let at = before.at + before.lasts.saturating_sub(SEC) + rng.below(2500 * MS);
                let at = at.min(begin + window);
                Fault { at, leader: before.leader, aim: before.aim, ..alone }
            }
            _ => alone,
        };
        faults.push(fault);
    }
    faults.sort_by_key(|fault| fault.at);
    faults
}

impl Sim {
    fn aim(&self, fault: &Fault) -> NodeId {
        let leader = self.store.current.cluster.as_ref().and_then(|stored| stored.value.leader());
        let leader = leader.and_then(|leader| self.node_named(&leader.name));
        let other = usize::try_from(fault.aim % self.nodes.len() as u64).unwrap_or(0);
        leader.filter(|_| fault.leader).unwrap_or(other)
    }

    /// A fault begins.
    pub(crate) fn strike(&mut self, index: usize) {
        if self.healed {
            return;
        }
        let fault = self.shape.faults[index];
        let node = self.aim(&fault);
        if self.nodes[node].removed || self.nodes[node].waits && fault.kind != Kind::Add {
            return;
        }
        self.note(|sim| {
            format!("NEMESIS {:?} on {} for {} ms", fault.kind, sim.name(node), fault.lasts / MS)
        });
        self.struck[index] = Some(node);
        self.schedule(self.now + fault.lasts, Event::Mend(index));
        match fault.kind {
            Kind::KillPostmaster => self.kill_postmaster(node),
            Kind::BackendCrash => self.backend_crash(node),
            Kind::KillAgent => self.crash_agent(node),
            Kind::KillBoth => self.kill_both(node),
            Kind::PowerOff => {
                self.kill_host(node);
                self.nodes[node].host_down = true;
            }
            Kind::RestartAll => {
                for node in 0..self.nodes.len() {
                    self.kill_host(node);
                    let at = self.now + self.rng.range(100 * MS, 5 * SEC);
                    self.schedule(at, Event::Boot { node });
                }
            }
            Kind::Wipe => self.wipe(node),
            Kind::Add | Kind::Remove => self.change_members(node, fault.kind),
            Kind::PauseAgent | Kind::PauseServer | Kind::PauseHost => self.pause(node, fault.kind),
            Kind::SlowDisk => self.nodes[node].slow_disk = 20 * MS,
            Kind::StuckDisk => {
                self.nodes[node].server.stuck_until = self.now + fault.lasts;
                self.nodes[node].server.silent_since = Some(self.now);
            }
            Kind::FullDisk => self.nodes[node].server.full = true,
            Kind::SlowReplay => self.nodes[node].replay_lag = 3 * SEC,
            Kind::ClockRate => {
                let rate = self.rng.range(990_000, 1_010_001);
                self.nodes[node].clock.set_rate(self.now, rate);
                self.set_guard(node);
            }
            Kind::Switchover | Kind::Failover => self.ask_for_leader(&fault),
            Kind::ChangeMode | Kind::ChangeCount | Kind::Pause => self.change_settings(&fault),
            Kind::Restart | Kind::Reinit => self.ask_agent(node, fault.kind),
            Kind::CutHost | Kind::CutIn | Kind::CutOut | Kind::CutStore | Kind::CutPeers => {
                self.cut(node, fault.kind, fault.aim, true);
            }
            Kind::CutWal | Kind::CutPair | Kind::SlowNet => self.cut(node, fault.kind, fault.aim, true),
        }
    }

    /// A fault ends.
    pub(crate) fn mend(&mut self, index: usize) {
        let Some(node) = self.struck.get_mut(index).and_then(Option::take) else { return };
        let fault = self.shape.faults[index];
        match fault.kind {
            Kind::KillAgent | Kind::KillBoth | Kind::RestartAll | Kind::Wipe => self.start_agent(node),
            Kind::PowerOff => {
                self.nodes[node].host_down = false;
                self.start_agent(node);
            }
            Kind::PauseAgent | Kind::PauseServer | Kind::PauseHost => self.resume(node, fault.kind),
            Kind::SlowDisk => self.nodes[node].slow_disk = 0,
            Kind::StuckDisk => {
                self.nodes[node].server.stuck_until = 0;
                if !self.nodes[node].server.paused {
                    self.nodes[node].server.silent_since = None;
                }
            }
            Kind::FullDisk => self.nodes[node].server.full = false,
            Kind::SlowReplay => self.nodes[node].replay_lag = 0,
            Kind::Pause => self.operate(|next, _| Rc::make_mut(&mut next.settings).pause = false),
            Kind::CutHost | Kind::CutIn | Kind::CutOut | Kind::CutStore | Kind::CutPeers => {
                self.cut(node, fault.kind, fault.aim, false);
            }
            Kind::CutWal | Kind::CutPair | Kind::SlowNet => self.cut(node, fault.kind, fault.aim, false),
            Kind::KillPostmaster
            | Kind::BackendCrash
            | Kind::ClockRate
            | Kind::Switchover
            | Kind::Failover
            | Kind::ChangeMode
            | Kind::ChangeCount
            | Kind::Add
            | Kind::Remove
            | Kind::Restart
            | Kind::Reinit => {}
        }
    }

    /// All faults end; whatever is down comes back.
    pub(crate) fn heal(&mut self) {
        self.note(|_| "ALL IS HEALED".to_owned());
        for index in 0..self.struck.len() {
            self.mend(index);
        }
        self.healed = true;
        for node in 0..self.nodes.len() {
            self.start_agent(node);
        }
    }

    /// Agent and server are killed; backends may live on for a while, and the guard does.
    fn kill_both(&mut self, node: NodeId) {
        self.crash_agent(node);
        self.kill_postmaster(node);
    }

    /// Every process of a host is gone.
    pub(crate) fn kill_host(&mut self, node: NodeId) {
        self.crash_agent(node);
        self.server_gone(node, None);
        self.nodes[node].guard = None;
    }

    fn wipe(&mut self, node: NodeId) {
        if self.destroyed || self.nodes[node].witness {
            return;
        }
        self.destroyed = true;
        self.server_gone(node, None);
        let here = &mut self.nodes[node];
        here.wiped = true;
        here.server.directory = None;
        here.server.half_built = false;
    }

    fn change_members(&mut self, node: NodeId, kind: Kind) {
        if kind == Kind::Add {
            let Some(waits) = self.nodes.iter().position(|there| there.waits) else { return };
            self.nodes[waits].waits = false;
            self.operate(|next, _| next.voters += 1);
            self.judge.joined = Some(self.now);
            self.start_agent(waits);
            return;
        }
        if self.destroyed || self.shape.size != Size::Five {
            return;
        }
        self.destroyed = true;
        self.kill_host(node);
        self.nodes[node].removed = true;
        self.nodes[node].host_down = true;
        let name = self.nodes[node].name.clone();
        self.operate(|next, _| {
            next.members.remove(&name);
            next.voters -= 1;
        });
    }

    fn pause(&mut self, node: NodeId, kind: Kind) {
        let here = &mut self.nodes[node];
        match kind {
            Kind::PauseAgent => here.agent_paused = here.agent.is_some(),
            Kind::PauseServer if here.server.run != Run::Down => {
                here.server.paused = true;
                here.server.silent_since = Some(self.now);
            }
            Kind::PauseHost => here.host_paused = true,
            _ => {}
        }
    }

    fn resume(&mut self, node: NodeId, kind: Kind) {
        match kind {
            Kind::PauseServer => {
                if self.nodes[node].server.paused {
                    self.resume_server(node);
                }
            }
            Kind::PauseAgent => self.nodes[node].agent_paused = false,
            _ => {
                self.nodes[node].host_paused = false;
                self.nodes[node].thawed = self.now;
            }
        }
        // Heartbeats that queued up are old news: an agent that was stalled waits for fresh ones.
        let held = std::mem::take(&mut self.nodes[node].held);
        let held = held.into_iter().filter(|event| !matches!(event, Event::Beat { .. }));
        for (place, event) in held.enumerate() {
            self.schedule(self.now + 10_000 * place as u64, event);
        }
    }

    fn cut(&mut self, node: NodeId, kind: Kind, aim: u64, cut: bool) {
        let others: Vec<NodeId> = (0..self.nodes.len()).filter(|other| *other != node).collect();
        let one = others[usize::try_from(aim % others.len() as u64).unwrap_or(0)];
        match kind {
            Kind::CutStore => self.net.cut_store(node, cut),
            Kind::SlowNet => self.net.slow(node, cut),
            Kind::CutPair => {
                for path in [Path::Peer, Path::Wal] {
                    self.net.cut(path, node, one, cut);
                    self.net.cut(path, one, node, cut);
                }
            }
            _ => {
                for other in others {
                    let (peer, wal) = (kind != Kind::CutWal, kind != Kind::CutPeers);
                    let (into, out) = (kind != Kind::CutOut, kind != Kind::CutIn);
                    for path in
                        [(peer, Path::Peer), (wal, Path::Wal)].into_iter().filter(|p| p.0).map(|p| p.1)
                    {
                        if into {
                            self.net.cut(path, other, node, cut);
                        }
                        if out {
                            self.net.cut(path, node, other, cut);
                        }
                    }
                }
            }
        }
    }

    fn ask_for_leader(&mut self, fault: &Fault) {
        let Some(cluster) = &self.store.current.cluster else { return };
        let leader = cluster.value.leader().map(|leader| leader.name.clone());
        let to = usize::try_from(fault.aim / 7 % self.nodes.len() as u64).unwrap_or(0);
        let accept_loss = fault.kind == Kind::Failover;
        let named = accept_loss || !fault.aim.is_multiple_of(3);
        let candidate = named.then(|| self.nodes[to].name.clone());
        let request = Request { leader, candidate, scheduled_at: None, accept_loss };
        self.operate(|next, revision| next.request = Some(Stored { value: request, revision }));
    }

    fn change_settings(&mut self, fault: &Fault) {
        let aim = fault.aim;
        let kind = fault.kind;
        self.operate(|next, _| {
            let settings = Rc::make_mut(&mut next.settings);
            match kind {
                Kind::ChangeMode => {
                    settings.synchronous_mode = match aim % 3 {
                        0 => SyncMode::Off,
                        1 => SyncMode::On,
                        _ => SyncMode::Quorum,
                    };
                }
                Kind::ChangeCount => {
                    settings.synchronous_node_count = if aim.is_multiple_of(2) { 1 } else { 2 }
                }
                _ => settings.pause = true,
            }
        });
    }

    fn ask_agent(&mut self, node: NodeId, kind: Kind) {
        let leads = self.leading() == Some(node);
        let Some(agent) = &mut self.nodes[node].agent else { return };
        match kind {
            Kind::Restart => agent.world.me.restart_requested = true,
            // It destroys a copy, as a wipe does.
            _ if !leads && !self.destroyed => {
                self.destroyed = true;
                agent.world.me.reinitialise_requested = Some(Reinitialise::default());
            }
            _ => {}
        }
        self.poke(node, MS);
    }
}
