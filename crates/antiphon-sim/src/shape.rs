//! Shapes: how large a cluster is, how it confirms commits, and how rough its world is, by seed.
//!
//! A test can hold the size and the mode fixed and let the seed choose the rest.

use antiphon_core::ha::cluster::Tags;
use antiphon_core::settings::{Settings, SyncMode};

use crate::clock::{MS, SEC, Time};
use crate::nemesis::{Fault, faults};
use crate::rng::Rng;

/// Which members there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Two with data, one that only votes.
    TwoAndWitness,
    /// Three with data.
    Three,
    /// Five with data.
    Five,
}

/// How commits are confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By nobody.
    Asynchronous,
    /// By the first k of the list.
    First,
    /// By any k.
    Any,
    /// By any k, and writes wait if there are too few.
    Strict,
    /// By any k, and the sync set is emptied after a while without an answer.
    SemiSync,
}

/// All sizes.
pub const SIZES: [Size; 3] = [Size::TwoAndWitness, Size::Three, Size::Five];
/// All modes.
pub const MODES: [Mode; 5] = [Mode::Asynchronous, Mode::First, Mode::Any, Mode::Strict, Mode::SemiSync];

/// What a seed stands for.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Which members.
    pub size: Size,
    /// How commits are confirmed at first.
    pub mode: Mode,
    /// Each member's tags.
    pub tags: Vec<Tags>,
    /// The last member is there from the start.
    pub all_at_once: bool,
    /// The settings at first.
    pub settings: Settings,
    /// A client writes about this often at each server.
    pub write_every: Time,
    /// Crashes in ten thousand steps.
    pub crash_per_step: u64,
    /// Answers of the store that are lost, in a thousand.
    pub answers_lost: u64,
    /// Answers of the store that are late, up to almost a second, in a thousand.
    pub answers_late: u64,
    /// What goes wrong, and when.
    pub faults: Vec<Fault>,
    /// When all is healed.
    pub heal_at: Time,
}

impl Shape {
    /// The shape of a seed; size and mode are drawn unless given.
    pub fn of(rng: &mut Rng, size: Option<Size>, mode: Option<Mode>) -> Self {
        let drawn = SIZES[rng.index(SIZES.len())];
        let size = size.unwrap_or(drawn);
        let drawn = MODES[rng.index(MODES.len())];
        let mode = mode.unwrap_or(drawn);
        let nodes = match size {
            Size::TwoAndWitness | Size::Three => 3,
            Size::Five => 5,
        };
        let all_at_once = size == Size::TwoAndWitness || rng.chance(800);
        let tags = (0..nodes).map(|node| tags(rng, node, nodes, size)).collect();
        let settings = settings(rng, mode, nodes);
        let begin = 6 * SEC;
        let window = rng.range(8, 40) * SEC;
        let faults = faults(rng, begin, window);
        let write_every = [4 * MS, 15 * MS, 40 * MS, 300 * MS][rng.index(4)];
        let crash_per_step = [0, 0, 20, 150][rng.index(4)];
        let answers_lost = [0, 0, 5, 60][rng.index(4)];
        let answers_late = [0, 0, 20, 250][rng.index(4)];
        Self {
            size,
            mode,
            tags,
            all_at_once,
            settings,
            write_every,
            crash_per_step,
            answers_lost,
            answers_late,
            faults,
            heal_at: begin + window + 2 * SEC,
        }
    }
}

fn tags(rng: &mut Rng, node: usize, nodes: usize, size: Size) -> Tags {
    let mut tags = Tags::default();
    if node == 0 || size == Size::TwoAndWitness {
        return tags;
    }
    tags.nofailover = rng.chance(60);
    tags.nosync = rng.chance(60);
    tags.clonefrom = rng.chance(100);
    if rng.chance(150) {
        tags.failover_priority = Some(u32::try_from(rng.below(4)).unwrap_or(1));
    }
    if rng.chance(if nodes > 3 { 200 } else { 80 }) {
        let upstream = (node + 1 + rng.index(nodes - 1)) % nodes;
        tags.replicatefrom = crate::name_of(upstream).parse().ok();
    }
    tags
}

fn settings(rng: &mut Rng, mode: Mode, nodes: usize) -> Settings {
    let mut settings = Settings {
        synchronous_mode: match mode {
            Mode::Asynchronous => SyncMode::Off,
            Mode::First => SyncMode::On,
            Mode::Any | Mode::Strict | Mode::SemiSync => SyncMode::Quorum,
        },
        synchronous_mode_strict: mode == Mode::Strict,
        ..Settings::default()
    };
    if mode == Mode::SemiSync {
        settings.sync_timeout = Some(std::time::Duration::from_millis(rng.range(500, 4000)));
    }
    let followers = nodes as u64 - 1;
    let count = if rng.chance(650) { 1 } else { rng.range(1, followers + 1) };
    settings.synchronous_node_count = u32::try_from(count).unwrap_or(1);
    if rng.chance(300) {
        settings.primary_start_timeout = std::time::Duration::ZERO;
    }
    settings.postgresql.use_slots = rng.chance(300);
    settings
}
