//! A node: its host, its clock, its server, and the agent's memory; and how the agent sees all that.
//!
//! The agent here mirrors the real one: it builds a World, has the real core decide, and carries out the
//! steps (`act.rs`). What is in `Agent` is lost when it crashes; `fenced` is on disk.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use antiphon_core::ha::cluster::{FORMAT, Member, Phase, Position, Tags};
use antiphon_core::ha::step::Step;
use antiphon_core::ha::why::Why;
use antiphon_core::ha::world::{
    Beat, Database, Failure, Knock, Link, Local, Me, Peer, PrimaryServer, Routers, Server, ServerBrief,
    Standby, StandbyServer, Stopped, StoreView, SyncNames, Task, World,
};
use antiphon_core::{Epoch, Instant, Lsn, NodeName};

use crate::clock::{Clock, MS, Time};
use crate::net::{NodeId, Path};
use crate::server::{self, Run};
use crate::store::Snapshot;
use crate::{Event, Sim};

/// A task of the agent's engine.
#[derive(Clone, Debug)]
pub struct Running {
    /// Which.
    pub task: Task,
    /// Since when, on the node's clock.
    pub since: Instant,
    /// Tells it from its successors.
    pub id: u64,
}

/// A change of `synchronous_standby_names` under way.
#[derive(Clone, Debug)]
pub struct Proving {
    /// The version of the names.
    pub version: u32,
    /// The names.
    pub names: SyncNames,
    /// A commit under them has to be acknowledged.
    pub prove: bool,
    /// Where the mark that is waited for ends.
    pub mark: Option<u64>,
    /// The task.
    pub id: u64,
}

/// What an agent has in memory.
#[derive(Debug)]
pub struct Agent {
    /// What it knows, kept up to date in place.
    pub world: World,
    /// The newest snapshot that it has seen.
    pub seen: Rc<Snapshot>,
    /// Steps that are still to be carried out.
    pub steps: VecDeque<Step>,
    /// A list of steps is being carried out.
    pub acting: bool,
    /// The write to the store that is waited for, and when it was sent on the node's clock.
    pub waits_for: Option<(u64, Instant)>,
    /// The renewal on its way, and when it was sent.
    pub renewing: Option<(u64, Instant)>,
    /// Work that begins when the server has stopped, if the term that it was decided in goes on.
    pub after_stop: Option<(Option<(Epoch, u8)>, Step)>,
    /// The engine's task.
    pub task: Option<Running>,
    /// The newest failure.
    pub failed: Option<Failure>,
    /// The names in the course of being changed.
    pub proving: Option<Proving>,
    /// The newest names under which a mark was acknowledged.
    pub proven: Option<SyncNames>,
    /// When each member was last seen streaming from here.
    pub last_streaming: BTreeMap<NodeName, Instant>,
    /// When a checkpoint was done.
    pub checkpointed: Option<Instant>,
    /// How the server ended against this agent's wish.
    pub crash: Option<String>,
    /// What the server was when it last answered.
    pub last: Option<Server>,
    /// How long after it has been asked the one router that follows it comes to rest.
    pub routers_rest_after: Duration,
    /// What it tells the others.
    pub beat: Option<Rc<Beat>>,
    /// When it looks again.
    pub look_at: Time,
    /// Epoch and kind of phase that were seen last.
    pub phase: Option<(Epoch, u8)>,
    /// The reason of its latest decision.
    pub why: Option<Why>,
    /// How often it has decided.
    pub looks: u64,
    /// An operator asked for the clone that goes on.
    pub cloning_asked: bool,
}

/// A node.
#[derive(Debug)]
pub struct Node {
    /// Its name.
    pub name: NodeName,
    /// It has no server.
    pub witness: bool,
    /// Its tags.
    pub tags: Tags,
    /// Its clock.
    pub clock: Clock,
    /// The agent, while its process lives.
    pub agent: Option<Box<Agent>>,
    /// Counted up at each start of the agent.
    pub boot: u32,
    /// The agent is stopped by SIGSTOP.
    pub agent_paused: bool,
    /// The host is frozen.
    pub host_paused: bool,
    /// When it last thawed.
    pub thawed: Time,
    /// The host is off, or gone for good.
    pub host_down: bool,
    /// Never comes back.
    pub removed: bool,
    /// Its data directory was wiped.
    pub wiped: bool,
    /// May not be started yet (a member that is added later).
    pub waits: bool,
    /// On disk: the term that it is fenced for.
    pub fenced: Epoch,
    /// The newest term that it reported a fence for.
    pub reported: Epoch,
    /// The guard's deadline, on the node's clock.
    pub guard: Option<Instant>,
    /// The guard was told to stand down because the management was paused.
    pub guard_paused: bool,
    /// The server.
    pub server: server::Server,
    /// Each flush takes this much longer.
    pub slow_disk: Time,
    /// How far replay may lag.
    pub replay_lag: Time,
    /// Events that wait for the agent or the host to go on.
    pub held: Vec<Event>,
    /// What a lost fence falls back to, if fences are not durable.
    pub before_fence: Option<(Epoch, Option<antiphon_core::ha::world::Upstream>)>,
}

impl Node {
    /// The agent's process runs and is not stopped.
    pub fn agent_lives(&self) -> bool {
        self.agent.is_some() && !self.agent_paused && !self.host_paused && !self.host_down
    }
}

/// `host:port` of a node's server.
pub(crate) fn server_address(name: &NodeName) -> String {
    format!("{name}:5432")
}

impl Sim {
    /// The agent's process starts.
    pub(crate) fn start_agent(&mut self, node: NodeId) {
        let seen = Rc::new(Snapshot::default());
        let here = &mut self.nodes[node];
        if here.agent.is_some() || here.removed || here.host_down || here.waits {
            return;
        }
        here.boot += 1;
        // At once, in a while, or not while anybody waits for it.
        let routers_rest_after = Duration::from_millis(900) * ((here.boot + node as u32) % 4);
        let started = here.clock.local(self.now);
        let member = Member {
            format: FORMAT,
            name: here.name.clone(),
            peer_address: format!("{}:7000", here.name),
            server_address: (!here.witness).then(|| server_address(&here.name)),
            api_url: String::new(),
            tags: here.tags.clone(),
            delayed: false,
            fence: None,
            release: None,
            serving: None,
            slots: BTreeSet::new(),
        };
        let me = Me {
            member,
            started,
            fenced: here.fenced,
            lease_until: None,
            may_bootstrap: true,
            may_reinitialise: true,
            reinitialise_requested: None,
            restart_requested: false,
        };
        let world = World {
            now: started,
            me,
            settings: (*self.store.current.settings).clone(),
            store: StoreView::default(),
            peers: BTreeMap::new(),
            local: Local::Witness,
            routers: Routers::default(),
        };
        here.agent = Some(Box::new(Agent {
            world,
            seen,
            steps: VecDeque::new(),
            acting: false,
            waits_for: None,
            renewing: None,
            after_stop: None,
            task: None,
            failed: None,
            proving: None,
            proven: None,
            last_streaming: BTreeMap::new(),
            checkpointed: None,
            crash: None,
            last: None,
            routers_rest_after,
            beat: None,
            look_at: Time::MAX,
            phase: None,
            why: None,
            looks: 0,
            cloning_asked: false,
        }));
        let boot = here.boot;
        self.note(|sim| format!("{}: agent starts", sim.name(node)));
        let first = self.now + self.rng.range(MS, 100 * MS);
        self.schedule(first, Event::Tick { node, boot });
    }

    /// The agent's process is gone, and its memory with it.
    pub(crate) fn crash_agent(&mut self, node: NodeId) {
        if self.nodes[node].agent.take().is_none() {
            return;
        }
        let here = &mut self.nodes[node];
        here.agent_paused = false;
        here.held
            .retain(|event| !matches!(event, Event::Look { .. } | Event::Tick { .. } | Event::Beat { .. }));
        self.lose_fence(node);
        self.note(|sim| format!("{}: agent is gone", sim.name(node)));
        if self.store.leader == node {
            let gap = self.rng.range(150 * MS, 900 * MS);
            self.store.silent_until = self.now + gap;
            self.store.leader = (node + 1) % self.nodes.len();
        }
    }

    /// Takes a snapshot over if it is newer; notes when what others count from was first seen.
    pub(crate) fn see(&mut self, node: NodeId, snapshot: &Rc<Snapshot>) {
        let here = &mut self.nodes[node];
        let now = here.clock.local(self.now);
        let Some(agent) = &mut here.agent else { return };
        if snapshot.revision <= agent.seen.revision {
            return;
        }
        let phase = snapshot.cluster.as_ref().map(|stored| {
            let kind = match stored.value.phase {
                Phase::Bootstrapping { .. } => 0,
                Phase::Led { .. } => 1,
                Phase::Electing { .. } => 2,
            };
            (stored.value.epoch, kind)
        });
        let view = &mut agent.world.store;
        if phase != agent.phase {
            agent.phase = phase;
            view.phase_since = now;
        }
        let lease =
            |lease: &Option<antiphon_core::ha::world::Stored<_>>| lease.as_ref().map_or(0, |l| l.revision);
        if lease(&snapshot.lease) != lease(&view.lease) {
            view.lease_since = now;
            view.lease = snapshot.lease.clone();
        }
        if view.cluster.as_ref().map(|c| c.revision) != snapshot.cluster.as_ref().map(|c| c.revision) {
            view.cluster = snapshot.cluster.clone();
        }
        view.members = snapshot.members.clone();
        view.request = snapshot.request.clone();
        view.voters = snapshot.voters;
        if !Rc::ptr_eq(&snapshot.settings, &agent.seen.settings) {
            agent.world.settings = (*snapshot.settings).clone();
        }
        let stored = snapshot.members.get(&here.name).map(|stored| &stored.value);
        agent.world.me.member.fence = stored.and_then(|member| member.fence);
        agent.world.me.member.release = stored.and_then(|member| member.release);
        for name in snapshot.members.keys().filter(|name| **name != here.name) {
            agent.world.peers.entry(name.clone()).or_insert_with(unheard);
        }
        let (heard, members) = (&mut agent.world.peers, &snapshot.members);
        heard.retain(|name, peer| peer.heard.is_some() || members.contains_key(name));
        agent.seen = snapshot.clone();
        self.poke(node, MS);
    }

    /// Brings the World of a node's agent up to this moment.
    pub(crate) fn observe(&mut self, node: NodeId) {
        let local =
            if self.nodes[node].witness { Local::Witness } else { Local::Database(self.database(node)) };
        let here = &mut self.nodes[node];
        let now = here.clock.local(self.now);
        let Some(agent) = &mut here.agent else { return };
        agent.world.now = now;
        let routers = &mut agent.world.routers;
        let at_rest = routers.asked.is_some_and(|asked| now.since(asked) >= agent.routers_rest_after);
        routers.awaited = usize::from(!at_rest);
        agent.world.me.fenced = here.fenced;
        agent.world.local = local;
    }

    fn database(&mut self, node: NodeId) -> Database {
        let server = self.observed_server(node);
        let here = &mut self.nodes[node];
        let now = here.clock.local(self.now);
        let system = here.server.directory.is_some().then(|| "7000".to_owned());
        let (half_built, slots) = (here.server.half_built, here.server.slots.clone());
        let (task, failed) = match &mut here.agent {
            Some(agent) => {
                if let Server::Primary(primary) = &server {
                    for standby in primary.standbys.iter().filter(|standby| standby.streaming) {
                        agent.last_streaming.insert(standby.name.clone(), now);
                    }
                }
                agent.last = Some(server.clone());
                (agent.task.as_ref().map(|running| (running.task, running.since)), agent.failed.clone())
            }
            None => (None, None),
        };
        let logical_slots = BTreeMap::new();
        let disk_full = here.server.full;
        Database {
            system_identifier: system,
            server,
            task,
            failed,
            half_built,
            disk_full,
            slots,
            logical_slots,
        }
    }

    fn observed_server(&self, node: NodeId) -> Server {
        let here = &self.nodes[node];
        let (server, agent) = (&here.server, here.agent.as_ref());
        let local = |at: Time| here.clock.local(at);
        let stopping =
            agent.is_some_and(|a| a.task.as_ref().is_some_and(|t| matches!(t.task, Task::Stop(_))));
        if stopping && matches!(server.run, Run::Primary | Run::Standby) {
            // It takes no connections any more: what it was last is what it is until it is gone.
            if let Some(last) = agent.and_then(|agent| agent.last.clone()) {
                return last;
            }
        }
        if let Some(since) = server.silent_since
            && matches!(server.run, Run::Primary | Run::Standby)
            && local(self.now).since(local(since)) >= self.store.current.settings.failure_timeout
        {
            let primary = server.run == Run::Primary;
            return Server::Stuck { since: local(since), why: "it does not answer".to_owned(), primary };
        }
        match &server.run {
            Run::Down => match &server.directory {
                None => Server::Absent,
                Some(directory) => Server::Stopped(Stopped {
                    restored: false,
                    crash: agent.and_then(|agent| agent.crash.clone()),
                    clean: directory.clean,
                    primary: directory.primary,
                    checkpoint: self.wal.position(directory.checkpoint),
                }),
            },
            Run::Starting { since, primary } => Server::Starting { since: local(*since), primary: *primary },
            Run::Orphans { .. } => Server::Orphans { how: "killed by signal 9".to_owned() },
            Run::Standby => Server::Standby(self.observed_standby(node)),
            Run::Primary => Server::Primary(self.observed_primary(node)),
        }
    }

    fn observed_standby(&self, node: NodeId) -> StandbyServer {
        let server = &self.nodes[node].server;
        let end = server.end().map(|end| self.wal.position(end)).unwrap_or_default();
        let replayed = if self.now >= server.replay_at { end.lsn.0 } else { server.replayed.min(end.lsn.0) };
        let known = server.receiver.is_some() || self.now >= server.replay_at;
        StandbyServer {
            upstream: server.upstream.clone(),
            receiving: server.receiver.is_some(),
            streaming: server.receiver.as_ref().is_some_and(|receiver| receiver.streaming),
            position: known.then_some(end),
            replayed: Lsn(replayed),
            starved_since: None,
        }
    }

    fn observed_primary(&self, node: NodeId) -> PrimaryServer {
        let here = &self.nodes[node];
        let (server, agent) = (&here.server, here.agent.as_ref());
        let end = server.end();
        let standbys = server.senders.iter().map(|sender| Standby {
            name: self.nodes[sender.to].name.clone(),
            streaming: sender.streaming,
            flushed: Lsn(sender.flushed),
        });
        let position = end.map_or_else(Position::default, |end| self.wal.position(end));
        PrimaryServer {
            timeline: position.timeline,
            flushed: position.lsn,
            history: end.map_or_else(Vec::new, |end| self.wal.history(end.branch)),
            sync: (*server.names).clone(),
            proven: agent.and_then(|agent| agent.proven.clone()),
            standbys: standbys.collect(),
            last_streaming: agent.map(|agent| agent.last_streaming.clone()).unwrap_or_default(),
            waiting_since: self.waiting_since(node).map(|at| here.clock.local(at)),
            checkpointed: agent.and_then(|agent| agent.checkpointed),
        }
    }

    /// Looks at the links to the other agents and, if the leader is silent, knocks at its server.
    pub(crate) fn look_at_links(&mut self, node: NodeId) {
        let leader = self.store.current.cluster.as_ref().and_then(|cluster| match &cluster.value.phase {
            Phase::Led { leader } | Phase::Electing { last: leader, .. } => Some(leader.name.clone()),
            Phase::Bootstrapping { .. } => None,
        });
        for other in 0..self.nodes.len() {
            if other == node {
                continue;
            }
            let there = &self.nodes[other];
            let answers = self.net.joined(Path::Peer, node, other) && !there.host_down && !there.host_paused;
            let link = match (answers, there.agent.is_some()) {
                (true, true) => Some(Link::Up),
                (true, false) => Some(Link::Refused),
                (false, _) => None,
            };
            let reached = self.net.joined(Path::Wal, node, other) && !there.host_down && !there.host_paused;
            let knock = match (reached, &there.server.run, there.server.paused) {
                (true, Run::Down | Run::Orphans { .. }, _) => Knock::Refused,
                (true, _, false) => Knock::Answers,
                (true, _, true) | (false, _, _) => Knock::Silent,
            };
            let (name, now) = (there.name.clone(), self.nodes[node].clock.local(self.now));
            let Some(agent) = &mut self.nodes[node].agent else { return };
            let patience = agent.world.settings.failure_timeout;
            let Some(peer) = agent.world.peers.get_mut(&name) else { continue };
            let silent = peer.heard.is_none_or(|at| now.since(at).as_millis() > 250);
            let link = link.unwrap_or(if peer.heard_within(now, patience) { peer.link } else { Link::Down });
            let knock = if leader.as_ref() == Some(&name) && silent { knock } else { Knock::Unknown };
            if (link, knock) != (peer.link, peer.knock) {
                (peer.link, peer.knock) = (link, knock);
                self.poke(node, 2 * MS);
            }
        }
    }

    /// What a server is called in lists, for the heartbeat.
    pub(crate) fn brief(&self, world: &World) -> ServerBrief {
        let mut brief = ServerBrief {
            state: "stopped".to_owned(),
            role: "uninitialized".to_owned(),
            position: None,
            replayed: None,
            upstream: None,
            pending_restart: false,
            disk_full: matches!(&world.local, Local::Database(db) if db.disk_full),
            ..ServerBrief::default()
        };
        let Local::Database(db) = &world.local else { return brief };
        match &db.server {
            Server::Primary(primary) => {
                brief.state = "running".to_owned();
                brief.role = "primary".to_owned();
                brief.position = Some(Position { timeline: primary.timeline, lsn: primary.flushed });
            }
            Server::Standby(standby) => {
                brief.state = if standby.streaming { "streaming" } else { "running" }.to_owned();
                brief.role = "replica".to_owned();
                brief.position = standby.position;
                brief.replayed = Some(standby.replayed);
                brief.upstream = standby.upstream.as_ref().map(|upstream| upstream.name.clone());
            }
            _ => {}
        }
        brief
    }
}

/// A peer of which nothing is known yet.
pub(crate) fn unheard() -> Peer {
    Peer { heard: None, beat: None, link: Link::Down, knock: Knock::Unknown }
}
