//! The way from an agent to the store and back: reachable only with a majority of the voters, late, and with
//! answers that can be lost after the change was made.

use std::rc::Rc;

use crate::clock::{MS, SEC, Time};
use crate::net::{NodeId, Path};
use crate::store::{Snapshot, Transaction};
use crate::{Event, Sim};

/// How long a request lives in the store's queues when there is no majority.
const REQUEST_LIFE: Time = 2 * SEC;

impl Sim {
    /// Sends a transaction; its number tells the answer.
    pub(crate) fn request(&mut self, node: NodeId, transaction: Transaction) -> u64 {
        self.request_ids += 1;
        let id = self.request_ids;
        let boot = self.nodes[node].boot;
        let delay = self.store_delay(node);
        let until = self.now + REQUEST_LIFE;
        self.schedule(self.now + delay, Event::Request { node, boot, id, until, transaction });
        id
    }

    fn store_delay(&mut self, node: NodeId) -> Time {
        let leader = self.store.leader;
        let way = self.net.delay(&mut self.rng, node, leader);
        // A log write on two hosts.
        way + self.rng.range(MS, 4 * MS)
    }

    /// Whether a node reaches the store: a majority of the voters, and these have a leader.
    pub(crate) fn reaches_store(&self, node: NodeId) -> bool {
        let voters = self.nodes.iter().enumerate().filter(|(_, there)| !there.removed && !there.waits);
        let reached = voters.filter(|(other, there)| {
            there.agent_lives()
                && !self.net.store_is_cut(*other)
                && (*other == node || self.net.joined(Path::Peer, node, *other))
        });
        let majority = reached.count() * 2 > self.store.current.voters;
        majority
            && self.now >= self.store.silent_until
            && !self.net.store_is_cut(node)
            && !self.nodes[node].host_down
    }

    /// A transaction arrives.
    pub(crate) fn requested(
        &mut self,
        node: NodeId,
        boot: u32,
        id: u64,
        until: Time,
        transaction: Transaction,
    ) {
        if !self.reaches_store(node) {
            if self.now < until {
                let again = self.now + 40 * MS;
                self.schedule(again, Event::Request { node, boot, id, until, transaction });
            }
            return;
        }
        let name = self.nodes[node].name.clone();
        let before = self.store.current.clone();
        let ok = self.store.apply(&name, &transaction).is_some();
        self.trace.mix(self.store.current.revision);
        if ok {
            self.judge_commit(node, &before, &transaction);
            self.push();
        }
        if !self.healed && self.rng.chance(self.shape.answers_lost) {
            return;
        }
        let late = !self.healed && self.rng.chance(self.shape.answers_late);
        let late = if late { self.rng.range(50 * MS, 950 * MS) } else { 0 };
        let delay = self.net.delay(&mut self.rng, self.store.leader, node) + late;
        let answer = Rc::new((transaction, ok, self.store.current.clone()));
        self.schedule(self.now + delay, Event::Answer { node, boot, id, answer });
    }

    /// Pushes the newest snapshot to every agent that the store reaches.
    pub(crate) fn push(&mut self) {
        for node in 0..self.nodes.len() {
            if self.nodes[node].agent.is_some() && self.reaches_store(node) {
                self.push_to(node);
            }
        }
    }

    fn push_to(&mut self, node: NodeId) {
        let delay = self.net.delay(&mut self.rng, self.store.leader, node);
        let late = if self.rng.chance(5) { self.rng.range(20 * MS, 300 * MS) } else { 0 };
        let (boot, snapshot) = (self.nodes[node].boot, self.store.current.clone());
        self.schedule(self.now + delay + late, Event::Snapshot { node, boot, snapshot });
    }

    /// A member that was cut off learns what it missed.
    pub(crate) fn catch_up(&mut self, node: NodeId) {
        let Some(agent) = &self.nodes[node].agent else { return };
        if agent.seen.revision < self.store.current.revision && self.reaches_store(node) {
            self.push_to(node);
        }
    }

    /// An operator changes something in the store.
    pub(crate) fn operate(&mut self, change: impl FnOnce(&mut Snapshot, u64)) {
        self.store.write(change);
        self.push();
    }
}
