//! The network: who reaches whom, one way at a time, and how long it takes.
//!
//! A cut is counted, so that two faults that overlap end one by one. Agents, replication and the store have
//! cuts of their own, because real faults (a firewall rule, a full queue) hit them apart.

use crate::clock::{MS, Time, US};
use crate::rng::Rng;

/// A node's number.
pub type NodeId = usize;

/// What a cut concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Between agents; the embedded store goes the same way.
    Peer,
    /// From a server to its standby and back.
    Wal,
}

/// The state of the network.
#[derive(Debug)]
pub struct Net {
    size: usize,
    peer: Vec<u8>,
    wal: Vec<u8>,
    store: Vec<u8>,
    slow: Vec<u8>,
}

impl Net {
    /// A network of `size` nodes that reach one another.
    pub fn new(size: usize) -> Self {
        Self {
            size,
            peer: vec![0; size * size],
            wal: vec![0; size * size],
            store: vec![0; size],
            slow: vec![0; size],
        }
    }

    fn table(&mut self, path: Path) -> &mut Vec<u8> {
        match path {
            Path::Peer => &mut self.peer,
            Path::Wal => &mut self.wal,
        }
    }

    /// Cuts one way, or mends it again.
    pub fn cut(&mut self, path: Path, from: NodeId, to: NodeId, cut: bool) {
        let at = from * self.size + to;
        let count = &mut self.table(path)[at];
        *count = if cut { count.saturating_add(1) } else { count.saturating_sub(1) };
    }

    /// Cuts a node from the store only, or mends it again.
    pub fn cut_store(&mut self, node: NodeId, cut: bool) {
        let count = &mut self.store[node];
        *count = if cut { count.saturating_add(1) } else { count.saturating_sub(1) };
    }

    /// Makes a node's messages slow, or normal again.
    pub fn slow(&mut self, node: NodeId, slow: bool) {
        let count = &mut self.slow[node];
        *count = if slow { count.saturating_add(1) } else { count.saturating_sub(1) };
    }

    /// Whether messages go this way.
    pub fn passes(&self, path: Path, from: NodeId, to: NodeId) -> bool {
        let table = match path {
            Path::Peer => &self.peer,
            Path::Wal => &self.wal,
        };
        table[from * self.size + to] == 0
    }

    /// Whether messages go both ways.
    pub fn joined(&self, path: Path, a: NodeId, b: NodeId) -> bool {
        self.passes(path, a, b) && self.passes(path, b, a)
    }

    /// Whether a node is cut from the store only.
    pub fn store_is_cut(&self, node: NodeId) -> bool {
        self.store[node] > 0
    }

    /// How long a message takes.
    pub fn delay(&self, rng: &mut Rng, from: NodeId, to: NodeId) -> Time {
        let usual = rng.range(50 * US, 600 * US);
        let slow = if self.slow[from] > 0 || self.slow[to] > 0 { rng.range(5 * MS, 250 * MS) } else { 0 };
        if rng.chance(4) { usual + slow + rng.range(MS, 60 * MS) } else { usual + slow }
    }
}
