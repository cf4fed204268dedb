//! What a server holds: rows and tombstones with their versions, and what stands in its log.
//!
//! Beside what a real server has, everything carries what really happened ([`Truth`]), for the judge only.

use std::rc::Rc;

use antiphon_core::mesh::{CommitTime, NodeId, Reached, Version};

use super::shape::NODES_MAX;
use crate::clock::Time;

/// A row's key.
pub type Key = usize;
/// A row's content.
pub type Value = u64;
/// A position in a log: how many transactions stand before it.
pub type Place = usize;
/// For each node, up to where its log was applied.
pub type Knew = [u32; NODES_MAX];

/// Which write this really is, and what its writer had seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truth {
    /// Where it was written.
    pub node: usize,
    /// Where it stands in that node's log.
    pub place: Place,
    /// What was applied there.
    pub knew: Knew,
}

/// A row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// What is in it.
    pub value: Value,
    /// When and where it was written, as the server says.
    pub version: Version,
    /// Its version was given by a node that joined.
    pub copied: bool,
    /// The truth.
    pub truth: Truth,
}

/// A tombstone, or a truncation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone {
    /// When and where it was deleted, as the server says.
    pub version: Version,
    /// True time since when it is kept here.
    pub since: Time,
    /// The truth.
    pub truth: Truth,
}

/// One change of what is stored.
#[derive(Clone, Copy, Debug)]
pub enum Effect {
    /// A row, or none.
    Row(Key, Option<Row>),
    /// A tombstone, or none.
    Gone(Key, Option<Gone>),
    /// The table's truncation, or none.
    Truncated(Option<Gone>),
    /// The progress row of a node.
    Progress(usize, Place),
    /// Up to when a node's log is applied, as it is written down.
    Complete(usize, CommitTime),
    /// The truth about what is applied of a node.
    Applied(usize, Place),
}

/// What a transaction did, as its log says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A new row.
    Insert(Key, Value),
    /// Another content, instead of this one.
    Update(Key, Value, Value),
    /// No row any more, instead of this one.
    Delete(Key, Value),
    /// No rows any more.
    Truncate,
}

impl Op {
    /// The row that it is about.
    pub fn key(self) -> Option<Key> {
        match self {
            Self::Insert(key, _) | Self::Update(key, _, _) | Self::Delete(key, _) => Some(key),
            Self::Truncate => None,
        }
    }
}

/// What a node says in its own log.
#[derive(Clone, Debug)]
pub struct Announcement {
    /// Its log has everything up to this time.
    pub complete_to: CommitTime,
    /// What it had applied of the others.
    pub applied: Reached,
}

/// A committed transaction.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its commit time, as the server has it.
    pub at: CommitTime,
    /// The node it came from, if it was applied.
    pub origin: Option<usize>,
    /// What it did, each with what its writer had seen.
    pub steps: Vec<(Op, Knew)>,
    /// What it changed here.
    pub effects: Vec<Effect>,
    /// What it says.
    pub says: Option<Announcement>,
}

impl Entry {
    /// Whether others apply something of it.
    pub fn is_for_others(&self) -> bool {
        self.origin.is_none() && !self.steps.is_empty()
    }
}

/// A piece of a log, on its way or received.
pub type Sent = (Place, Rc<Entry>);

/// All that is stored.
#[derive(Clone, Debug)]
pub struct State {
    /// Rows by key.
    pub rows: Vec<Option<Row>>,
    /// Tombstones by key.
    pub gone: Vec<Option<Gone>>,
    /// The table's last truncation.
    pub truncated: Option<Gone>,
    /// How far each node is applied, as the progress rows say.
    pub progress: [Place; NODES_MAX],
    /// How far in time each node is applied, as it is written down.
    pub complete: [CommitTime; NODES_MAX],
    /// How far each node is really applied.
    pub applied: [Place; NODES_MAX],
}

impl State {
    /// Nothing, with room for so many keys.
    pub fn new(keys: usize) -> Self {
        Self {
            rows: vec![None; keys],
            gone: vec![None; keys],
            truncated: None,
            progress: [0; NODES_MAX],
            complete: [CommitTime::UNKNOWN; NODES_MAX],
            applied: [0; NODES_MAX],
        }
    }

    /// Makes one change.
    pub fn apply(&mut self, effect: &Effect) {
        match *effect {
            Effect::Row(key, row) => self.rows[key] = row,
            Effect::Gone(key, gone) => self.gone[key] = gone,
            Effect::Truncated(gone) => self.truncated = gone,
            Effect::Progress(node, place) => self.progress[node] = self.progress[node].max(place),
            Effect::Complete(node, at) => self.complete[node] = self.complete[node].max(at),
            Effect::Applied(node, place) => self.applied[node] = place,
        }
    }

    /// What a writer sees of the others.
    pub fn knew(&self) -> Knew {
        self.applied.map(|place| u32::try_from(place).expect("a short log"))
    }

    /// How many tombstones there are, truncations included.
    pub fn tombstones(&self) -> usize {
        self.gone.iter().flatten().count() + usize::from(self.truncated.is_some())
    }
}

/// The number of a node, by its place in the list.
pub fn id(node: usize) -> NodeId {
    u16::try_from(node + 1).ok().and_then(NodeId::new).expect("few nodes")
}

/// The place of a node in the list, by its number.
pub fn index(id: NodeId) -> usize {
    usize::from(id.number()) - 1
}
