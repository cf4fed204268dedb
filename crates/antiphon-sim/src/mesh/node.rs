//! A node: its server, its clock, the program beside it, and who it believes takes part.

use antiphon_core::mesh::{Completeness, Reached};

use super::agent::Saying;
use super::link::Link;
use super::server::Server;
use super::shape::NODES_MAX;
use super::state::{Place, id};
use super::wall::Wall;
use super::writer::Writer;
use super::{Event, Mesh};
use crate::clock::{MS, Time};

/// Whether somebody takes part, as a node has it written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Member {
    /// Nobody of that number was ever heard of.
    Unknown,
    /// It will.
    Joining,
    /// It does.
    Active,
    /// It did.
    Left,
}

/// A node.
#[derive(Debug)]
pub struct Node {
    /// Its server.
    pub server: Server,
    /// The server's clock.
    pub wall: Wall,
    /// The program beside the server runs.
    pub agent_up: bool,
    /// How often it was started.
    pub boot: u64,
    /// Who takes part, as the database has it.
    pub members: [Member; NODES_MAX],
    /// The same, as the program last read it.
    pub view: [Member; NODES_MAX],
    /// How far each other node is applied.
    pub reached: Reached,
    /// Up to when the own log is complete.
    pub completeness: Completeness,
    /// The links from the others.
    pub links: Vec<Option<Link>>,
    /// From where each reader's slot still has the log.
    pub slots: [Option<Place>; NODES_MAX],
    /// Clients.
    pub writers: Vec<Writer>,
    /// Clients may begin.
    pub open: bool,
    /// What is being announced.
    pub saying: Option<Saying>,
    /// Commits that wait for a standby end only then.
    pub hang_until: Time,
    /// The log when it was last announced, what was applied, and when.
    pub announced: (Place, u64, Time),
    /// Transactions that were applied since the program was started.
    pub transactions: u64,
}

impl Node {
    /// The link from a node.
    pub fn link(&self, source: usize) -> Option<&Link> {
        self.links.get(source).and_then(Option::as_ref)
    }

    /// The same, to be changed.
    pub fn link_mut(&mut self, source: usize) -> &mut Link {
        self.links[source].as_mut().expect("it is there as long as its events are")
    }

    /// It takes part and is not about to leave.
    pub fn is_active(&self, own: usize) -> bool {
        self.members[own] == Member::Active
    }
}

impl Mesh {
    /// Makes one of the first nodes, or one that will join.
    pub(crate) fn found(&mut self, number: usize) {
        let skew = self.shape.skew;
        let ahead = self.rng.range(0, 2 * skew as u64 + 1) as i64 - skew;
        let drift = self.rng.range(0, 401) as i64 - 200;
        let writers = if self.rng.chance(100) { 0 } else { self.shape.writers };
        let mut members = [Member::Unknown; NODES_MAX];
        let mut slots = [None; NODES_MAX];
        for first in 0..self.shape.nodes {
            members[first] = Member::Active;
            slots[first] = (first != number).then_some(0);
        }
        let node = Node {
            server: Server::new(self.shape.keys),
            wall: Wall::new(ahead + 1_000_000_000, drift, self.shape.grain),
            agent_up: false,
            boot: 0,
            members,
            view: [Member::Unknown; NODES_MAX],
            reached: Reached::default(),
            completeness: Completeness::default(),
            links: (0..NODES_MAX).map(|_| None).collect(),
            slots,
            writers: (0..writers).map(|_| Writer::default()).collect(),
            open: false,
            saying: None,
            hang_until: 0,
            announced: (0, 0, 0),
            transactions: 0,
        };
        assert_eq!(self.nodes.len(), number, "nodes are numbered in order");
        self.nodes.push(node);
    }

    /// Starts the program beside a server: it remembers nothing.
    pub(crate) fn boot(&mut self, node: usize) {
        if !self.nodes[node].server.up || self.nodes[node].agent_up {
            return;
        }
        let here = &mut self.nodes[node];
        here.agent_up = true;
        here.boot += 1;
        here.view = [Member::Unknown; NODES_MAX];
        here.reached = Reached::default();
        here.completeness = Completeness::default();
        here.announced = (0, 0, 0);
        here.transactions = 0;
        let boot = here.boot;
        self.note(|_| format!("n{} works", id(node)));
        self.look_who_takes_part(node);
        for (event, within) in [
            (Event::Tick { node, boot }, self.shape.tick),
            (Event::Members { node, boot }, self.shape.members_every),
            (Event::Collect { node, boot }, self.shape.collect_every),
        ] {
            let pause = self.rng.range(MS / 10, within);
            self.after(pause, event);
        }
    }

    /// Stops it: its sessions end, and what they had open is rolled back.
    pub(crate) fn stop_agent(&mut self, node: usize) {
        self.nodes[node].agent_up = false;
        self.nodes[node].saying = None;
        for source in 0..NODES_MAX {
            self.drop_link(node, source);
        }
    }

    /// Clients may come, if nobody minds.
    pub(crate) fn open(&mut self, node: usize) {
        let leaves = self.leave.as_ref().is_some_and(|leave| leave.node == node);
        if self.healed || leaves || !self.nodes[node].is_active(node) {
            return;
        }
        let epoch = self.nodes[node].server.epoch;
        if !self.clock_is_past_the_log(node) {
            self.after(MS, Event::Open { node, epoch });
            return;
        }
        self.nodes[node].open = true;
        for writer in 0..self.nodes[node].writers.len() {
            self.nodes[node].writers[writer] = Writer::default();
            let pause = self.rng.below(self.shape.think);
            self.after(pause, Event::Write { node, epoch, writer });
        }
    }
}
