//! The table: members with their servers, the store between them, and what each one sees of the others.
//!
//! All share one clock. Time moves in ticks; in each, work ends, WAL streams, heartbeats arrive, and every
//! agent that is up decides once. `effects` says what a step does to the table.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use antiphon_core::ha::cluster::{FORMAT, Member, Position, Tags};
use antiphon_core::ha::decide::{Decision, decide};
use antiphon_core::ha::role::Role;
use antiphon_core::ha::step::Step;
use antiphon_core::ha::why::Why;
use antiphon_core::ha::world::{
    Beat, Database, Failure, Knock, Link, Local, LogicalSlot, Me, Peer, PrimaryServer, Reinitialise, Routers,
    Server, ServerBrief, Standby, StandbyServer, Stopped, StoreView, SyncNames, Task, Upstream, World,
};
use antiphon_core::settings::Settings;
use antiphon_core::{Epoch, Instant, Lsn, NodeName};

use crate::show;

/// The length of a tick.
pub const TICK: Duration = Duration::from_millis(50);

/// What a member's server does.
#[derive(Clone, Debug)]
pub enum Run {
    Absent,
    Stopped { crash: Option<String>, clean: bool, primary: bool, restored: bool, checkpoint: Position },
    Orphans { how: String },
    Standby { upstream: Option<Upstream>, streaming: bool },
    Primary { sync: SyncNames, proven: Option<SyncNames>, checkpointed: Option<Instant> },
    Stuck { since: Instant, why: String },
}

/// A member: its agent, its server, and what happens to both.
#[derive(Clone, Debug)]
pub struct Node {
    pub name: NodeName,
    pub tags: Tags,
    pub delayed: bool,
    pub witness: bool,
    pub agent_up: bool,
    pub host_up: bool,
    pub store_cut: bool,
    /// Peers whose messages and WAL do not arrive here.
    pub deaf_to: BTreeSet<NodeName>,
    /// Its receiver finds no connection although it is set to stream.
    pub detached: bool,
    pub started: Instant,
    pub fenced: Epoch,
    pub lease_until: Option<Instant>,
    pub may_reinitialise: bool,
    pub reinitialise_requested: Option<Reinitialise>,
    pub restart_requested: bool,
    pub identifier: Option<String>,
    pub run: Run,
    pub wal: Position,
    /// Where the WAL begins that is still here.
    pub oldest_wal: Lsn,
    pub starved_since: Option<Instant>,
    pub history: Vec<Position>,
    pub half_built: bool,
    pub disk_full: bool,
    pub slots: BTreeMap<String, Option<Lsn>>,
    pub logical_slots: BTreeMap<String, LogicalSlot>,
    pub task: Option<(Task, Instant, Step)>,
    pub failed: Option<Failure>,
    /// How long the next works of a kind take, and whether they fail, by the name that a scenario gives them.
    pub slow: BTreeMap<String, Duration>,
    pub failing: BTreeMap<String, String>,
    pub last_streaming: BTreeMap<NodeName, Instant>,
    pub waiting_since: Option<Instant>,
    pub routers: Routers,
    pub seen: StoreView,
    pub heard: BTreeMap<NodeName, (Instant, Beat)>,
    pub said: Option<String>,
    pub repeats: u32,
    pub beat: Option<Beat>,
}

impl Node {
    pub fn new(name: NodeName, now: Instant) -> Self {
        Self {
            name,
            tags: Tags::default(),
            delayed: false,
            witness: false,
            agent_up: true,
            host_up: true,
            store_cut: false,
            deaf_to: BTreeSet::new(),
            detached: false,
            started: now,
            fenced: Epoch(0),
            lease_until: None,
            may_reinitialise: false,
            reinitialise_requested: None,
            restart_requested: false,
            identifier: None,
            run: Run::Absent,
            wal: Position::default(),
            oldest_wal: Lsn(0),
            starved_since: None,
            history: Vec::new(),
            half_built: false,
            disk_full: false,
            slots: BTreeMap::new(),
            logical_slots: BTreeMap::new(),
            task: None,
            failed: None,
            slow: BTreeMap::new(),
            failing: BTreeMap::new(),
            last_streaming: BTreeMap::new(),
            waiting_since: None,
            routers: Routers::default(),
            seen: StoreView::default(),
            heard: BTreeMap::new(),
            said: None,
            repeats: 0,
            beat: None,
        }
    }

    pub fn address(&self) -> String {
        format!("{}:5432", self.name)
    }

    fn runs(&self) -> bool {
        matches!(self.run, Run::Standby { .. } | Run::Primary { .. } | Run::Stuck { .. })
    }
}

/// All of it.
pub struct Table {
    pub now: Instant,
    pub nodes: BTreeMap<NodeName, Node>,
    pub store: StoreView,
    pub revision: u64,
    pub settings: Settings,
    /// The store votes elsewhere, so it is there as long as a member is not cut from it.
    pub external_store: bool,
    /// The furthest commit that was acknowledged under a promise.
    pub acknowledged: Position,
    pub transcript: Vec<String>,
    pub quiet: bool,
    ticks: u64,
}

impl Table {
    pub fn new() -> Self {
        Self {
            now: Instant(1_000_000_000_000),
            nodes: BTreeMap::new(),
            store: StoreView::default(),
            revision: 0,
            settings: Settings::default(),
            external_store: false,
            acknowledged: Position::default(),
            transcript: Vec::new(),
            quiet: false,
            ticks: 0,
        }
    }

    pub fn say(&mut self, line: String) {
        if !self.quiet {
            self.transcript.push(line);
        }
    }

    /// Lets time pass.
    pub fn run(&mut self, span: Duration) {
        let start = self.now;
        while self.now.since(start) < span {
            self.now = self.now + TICK;
            self.ticks += 1;
            self.end_tasks();
            self.stream();
            self.hear();
            for name in self.nodes.keys().cloned().collect::<Vec<_>>() {
                self.turn(&name, start);
            }
        }
        for name in self.nodes.keys().cloned().collect::<Vec<_>>() {
            self.note_repeats(&name);
        }
    }

    /// Whether this member reaches a majority of the store.
    pub fn reaches_store(&self, node: &Node) -> bool {
        let sound = |node: &Node| node.host_up && node.agent_up && !node.store_cut;
        let voters = self.nodes.values().filter(|node| sound(node)).count();
        sound(node) && (self.external_store || voters * 2 > self.nodes.len())
    }

    /// One agent observes, decides and acts.
    fn turn(&mut self, name: &NodeName, start: Instant) {
        let node = &self.nodes[name];
        if !node.agent_up || !node.host_up {
            return;
        }
        if self.reaches_store(node) {
            let voters = if self.external_store { self.nodes.len() - 1 } else { self.nodes.len() };
            let seen = StoreView { voters, ..self.store.clone() };
            self.nodes.get_mut(name).expect("its own name").seen = seen;
        }
        let decision = decide(&self.world(name));
        self.tell(name, &decision, start);
        for step in &decision.steps {
            if !self.apply(name, step) {
                break;
            }
        }
        let beat = self.beat(name, &decision);
        let node = self.nodes.get_mut(name).expect("its own name");
        node.beat = Some(beat);
        let asked = matches!(decision.why, Why::HandingOver { .. });
        node.routers.asked = asked.then(|| node.routers.asked.unwrap_or(self.now));
    }

    fn tell(&mut self, name: &NodeName, decision: &Decision, start: Instant) {
        let line = show::decision(decision);
        let node = self.nodes.get_mut(name).expect("its own name");
        if node.said.as_ref() == Some(&line) {
            node.repeats += u32::from(show::acts(decision));
            return;
        }
        node.said = Some(line.clone());
        self.note_repeats(name);
        let at = self.now.since(start).as_millis();
        self.say(format!("{:>3}.{:03} {name}  {line}", at / 1000, at % 1000));
    }

    /// Says of a step that is asked for again and again that it is.
    fn note_repeats(&mut self, name: &NodeName) {
        let node = self.nodes.get_mut(name).expect("its own name");
        let repeats = std::mem::take(&mut node.repeats);
        if repeats >= 3 {
            self.say(format!("        {name}  … the same for {repeats} more looks"));
        }
    }

    /// Streaming followers get what their upstream has.
    pub fn stream(&mut self) {
        for _ in 0..self.nodes.len() {
            for name in self.nodes.keys().cloned().collect::<Vec<_>>() {
                let source = self.source_of(&name);
                let node = self.nodes.get_mut(&name).expect("its own name");
                let Run::Standby { streaming, .. } = &mut node.run else { continue };
                *streaming = source.is_some();
                node.starved_since = if *streaming { None } else { node.starved_since.or(Some(self.now)) };
                if let Some((wal, history)) = source {
                    (node.wal, node.history) = (wal, history);
                }
            }
        }
        for name in self.nodes.keys().cloned().collect::<Vec<_>>() {
            let followers = self.followers(&name);
            let now = self.now;
            let node = self.nodes.get_mut(&name).expect("its own name");
            for follower in followers {
                node.last_streaming.insert(follower, now);
            }
        }
    }

    fn source_of(&self, name: &NodeName) -> Option<(Position, Vec<Position>)> {
        let node = &self.nodes[name];
        let Run::Standby { upstream: Some(upstream), .. } = &node.run else { return None };
        let source = self.nodes.get(&upstream.name)?;
        let serves = match &source.run {
            Run::Primary { .. } => true,
            Run::Standby { streaming, .. } => *streaming,
            Run::Absent | Run::Stopped { .. } | Run::Orphans { .. } | Run::Stuck { .. } => false,
        };
        let connected = node.host_up
            && source.host_up
            && !node.detached
            && !node.deaf_to.contains(&source.name)
            && !source.deaf_to.contains(name);
        let has_what_follows = node.wal.lsn >= source.oldest_wal;
        (serves && connected && has_what_follows && node.wal <= source.wal)
            .then(|| (source.wal, source.history.clone()))
    }

    pub fn followers(&self, name: &NodeName) -> Vec<NodeName> {
        let follows = |node: &&Node| matches!(&node.run, Run::Standby { upstream: Some(upstream), streaming: true } if upstream.name == *name);
        self.nodes.values().filter(follows).map(|node| node.name.clone()).collect()
    }

    /// Heartbeats every second tick.
    fn hear(&mut self) {
        if !self.ticks.is_multiple_of(2) {
            return;
        }
        let speaking = |node: &&Node| node.agent_up && node.host_up && node.beat.is_some();
        let spoken: Vec<(NodeName, Beat)> = self
            .nodes
            .values()
            .filter(speaking)
            .map(|node| (node.name.clone(), node.beat.clone().expect("filtered")))
            .collect();
        for node in self.nodes.values_mut().filter(|node| node.agent_up && node.host_up) {
            for (from, beat) in spoken.iter().filter(|(from, _)| *from != node.name) {
                if !node.deaf_to.contains(from) {
                    node.heard.insert(from.clone(), (self.now, beat.clone()));
                }
            }
        }
    }

    fn world(&self, name: &NodeName) -> World {
        let node = &self.nodes[name];
        World {
            now: self.now,
            me: self.me(node),
            settings: self.settings.clone(),
            store: node.seen.clone(),
            peers: self
                .nodes
                .values()
                .filter(|other| other.name != *name)
                .map(|other| (other.name.clone(), peer(node, other)))
                .collect(),
            local: if node.witness { Local::Witness } else { Local::Database(self.database(node)) },
            routers: node.routers,
        }
    }

    fn me(&self, node: &Node) -> Me {
        let published = node.seen.member(&node.name);
        Me {
            member: Member {
                format: FORMAT,
                name: node.name.clone(),
                peer_address: format!("{}:7432", node.name),
                server_address: (!node.witness).then(|| node.address()),
                api_url: format!("http://{}:8008", node.name),
                tags: node.tags.clone(),
                delayed: node.delayed,
                fence: published.and_then(|member| member.fence),
                release: published.and_then(|member| member.release),
                serving: None,
                slots: published.map(|member| member.slots.clone()).unwrap_or_default(),
            },
            started: node.started,
            fenced: node.fenced,
            lease_until: node.lease_until,
            may_bootstrap: true,
            may_reinitialise: node.may_reinitialise,
            reinitialise_requested: node.reinitialise_requested,
            restart_requested: node.restart_requested,
        }
    }

    fn database(&self, node: &Node) -> Database {
        Database {
            system_identifier: node.identifier.clone(),
            server: self.server(node),
            task: node.task.as_ref().map(|(task, since, _)| (*task, *since)),
            failed: node.failed.clone(),
            half_built: node.half_built,
            disk_full: node.disk_full,
            slots: node.slots.clone(),
            logical_slots: node.logical_slots.clone(),
        }
    }

    fn server(&self, node: &Node) -> Server {
        if let Some((Task::Start, since, step)) = &node.task {
            let primary = matches!(step, Step::StartPrimary { .. });
            return Server::Starting { since: *since, primary };
        }
        match node.run.clone() {
            Run::Absent => Server::Absent,
            Run::Stopped { crash, clean, primary, restored, checkpoint } => {
                Server::Stopped(Stopped { crash, clean, primary, restored, checkpoint })
            }
            Run::Orphans { how } => Server::Orphans { how },
            Run::Stuck { since, why } => Server::Stuck { since, why, primary: true },
            Run::Standby { upstream, streaming } => Server::Standby(StandbyServer {
                receiving: streaming,
                upstream,
                streaming,
                position: Some(node.wal),
                replayed: node.wal.lsn,
                starved_since: node.starved_since.filter(|_| !streaming),
            }),
            Run::Primary { sync, proven, checkpointed } => {
                let followers = self.followers(&node.name).into_iter();
                let flushed = node.wal.lsn;
                Server::Primary(PrimaryServer {
                    timeline: node.wal.timeline,
                    flushed,
                    history: node.history.clone(),
                    sync,
                    proven,
                    standbys: followers.map(|name| Standby { name, streaming: true, flushed }).collect(),
                    last_streaming: node.last_streaming.clone(),
                    waiting_since: node.waiting_since,
                    checkpointed,
                })
            }
        }
    }

    fn beat(&self, name: &NodeName, decision: &Decision) -> Beat {
        let node = &self.nodes[name];
        let (state, role) = match &node.run {
            _ if node.witness => ("running", "witness"),
            Run::Primary { .. } => ("running", "primary"),
            Run::Standby { streaming: true, .. } => ("streaming", "replica"),
            Run::Standby { .. } => ("running", "replica"),
            Run::Absent => ("uninitialized", "uninitialized"),
            Run::Stopped { .. } | Run::Orphans { .. } | Run::Stuck { .. } => ("stopped", "replica"),
        };
        let has_data = !node.witness && !matches!(node.run, Run::Absent);
        let upstream = match &node.run {
            Run::Standby { upstream, .. } => upstream.as_ref().map(|upstream| upstream.name.clone()),
            _ => None,
        };
        Beat {
            name: name.clone(),
            suspects: decision.suspects,
            leads: match &decision.role {
                Role::Leader { epoch } => Some(*epoch),
                _ => None,
            },
            server: ServerBrief {
                state: state.to_owned(),
                role: role.to_owned(),
                position: has_data.then_some(node.wal),
                replayed: matches!(node.run, Run::Standby { .. }).then_some(node.wal.lsn),
                upstream,
                pending_restart: false,
                disk_full: node.disk_full,
                oldest_wal: has_data.then_some(node.oldest_wal),
                ..ServerBrief::default()
            },
            slots: BTreeMap::new(),
        }
    }
}

/// What `node` sees of `other`.
fn peer(node: &Node, other: &Node) -> Peer {
    let cut = node.deaf_to.contains(&other.name) || !other.host_up;
    let said = node.heard.get(&other.name);
    Peer {
        heard: said.map(|(at, _)| *at),
        beat: said.map(|(_, beat)| beat.clone()),
        link: match (cut, other.agent_up) {
            (true, _) => Link::Down,
            (false, true) => Link::Up,
            (false, false) => Link::Refused,
        },
        knock: match (cut, other.runs()) {
            (true, _) => Knock::Silent,
            (false, true) => Knock::Answers,
            (false, false) => Knock::Refused,
        },
    }
}
