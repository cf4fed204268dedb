//! The shape of a run, drawn from the seed: how many nodes, how they write, how wrong their clocks are, what breaks.

use crate::clock::{MS, SEC, Time, US};
use crate::rng::Rng;

/// Most nodes that one run ever has, those that join and leave included.
pub const NODES_MAX: usize = 8;

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A server crashes and comes back.
    Crash,
    /// A server crashes and another takes its place, with a clock of its own.
    Failover,
    /// The program beside the server is killed and started again.
    Agent,
    /// One node cannot read another's log for a while.
    Cut,
    /// Nobody can read this node's log, and it nobody's.
    Isolate,
    /// A clock is set forward.
    Forward,
    /// A clock is set back. Only where every row has one writing node.
    Back,
    /// Changes of one node to another take long.
    Slow,
    /// A transaction's commit hangs between its log record and its end, as when a standby does not answer.
    Hang,
    /// A node joins.
    Join,
    /// A node leaves.
    Leave,
}

/// How a run is made.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Nodes at first.
    pub nodes: usize,
    /// Keys.
    pub keys: usize,
    /// Different values of a row: with few, two writers often write the same.
    pub values: u64,
    /// Writers on each node.
    pub writers: usize,
    /// Time between two transactions of a writer.
    pub think: Time,
    /// The log has the whole old row.
    pub full_rows: bool,
    /// Every key is written on one node only, and clocks may be set back.
    pub homes: bool,
    /// Clocks are off by up to so many microseconds.
    pub skew: i64,
    /// Clocks go on in steps of so many microseconds.
    pub grain: i64,
    /// Delay of a link, about.
    pub delay: Time,
    /// Transactions of a thousand that wait for their log record to be safe.
    pub sync_per_mille: u64,
    /// Statements of a thousand that truncate.
    pub truncate_per_mille: u64,
    /// Transactions of a thousand that take long between their commit time and their log record.
    pub late_per_mille: u64,
    /// How often the log is flushed anyway.
    pub flush_every: Time,
    /// How often a node looks after itself.
    pub tick: Time,
    /// How often it looks who takes part.
    pub members_every: Time,
    /// How often tombstones are collected.
    pub collect_every: Time,
    /// Most transactions of a batch.
    pub batch_max: usize,
    /// What breaks, and when.
    pub faults: Vec<(Time, Fault)>,
    /// When everything is mended and nobody writes any more.
    pub heal_at: Time,
}

impl Shape {
    /// The shape of a seed.
    pub fn of(rng: &mut Rng, nodes: Option<usize>) -> Self {
        let drawn = 2 + rng.index(4);
        let homes = rng.chance(150);
        let heal_at = rng.range(400, 900) * MS;
        let mut shape = Self {
            nodes: nodes.unwrap_or(drawn),
            keys: rng.range(2, 8) as usize,
            values: if rng.chance(300) { 3 } else { 1_000_000 },
            writers: rng.range(1, 3) as usize,
            think: rng.range(2, 12) * MS,
            full_rows: rng.chance(500),
            homes,
            skew: if rng.chance(300) { 0 } else { rng.range(100, 60_000) as i64 },
            grain: if rng.chance(300) { rng.range(1_000, 10_000) as i64 } else { 1 },
            delay: rng.range(200, 20_000) * US,
            sync_per_mille: rng.range(0, 1001),
            truncate_per_mille: if rng.chance(400) { rng.range(5, 60) } else { 0 },
            late_per_mille: rng.range(0, 200),
            flush_every: rng.range(2, 60) * MS,
            tick: rng.range(5, 40) * MS,
            members_every: if rng.chance(300) { rng.range(80, 400) } else { rng.range(20, 80) } * MS,
            collect_every: rng.range(15, 80) * MS,
            batch_max: rng.range(1, 24) as usize,
            faults: Vec::new(),
            heal_at,
        };
        shape.truncate_per_mille = if homes { 0 } else { shape.truncate_per_mille };
        for _ in 0..rng.below(6) {
            let at = rng.range(20 * MS, heal_at.saturating_sub(20 * MS));
            let fault = shape.fault(rng);
            shape.faults.push((at, fault));
        }
        shape
    }

    fn fault(&self, rng: &mut Rng) -> Fault {
        let all = [
            Fault::Crash,
            Fault::Crash,
            Fault::Failover,
            Fault::Agent,
            Fault::Cut,
            Fault::Isolate,
            Fault::Slow,
            Fault::Hang,
            Fault::Hang,
            Fault::Forward,
            Fault::Join,
            Fault::Join,
            Fault::Leave,
        ];
        let fault = all[rng.index(all.len())];
        match fault {
            Fault::Join | Fault::Leave | Fault::Forward if self.homes => Fault::Back,
            other => other,
        }
    }
}

/// How long a healed mesh may take to be the same everywhere and to have forgotten its deletes.
pub const SETTLED_WITHIN: Time = 20 * SEC;
