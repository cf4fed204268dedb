//! The cells of the tables, the systems that have their turn in them, and what Antiphon may cost at most.

use clap::ValueEnum;
use serde::Serialize;

/// What is asked of a system.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Cell {
    /// A backlog of transactions of one row each: 60 % updates, 30 % inserts, 10 % deletes
    Small,
    /// One INSERT of as many rows as there are
    Insert,
    /// One UPDATE of as many
    Update,
    /// Transactions of one row where a third node's watermark stands still, so that they may not be joined
    Unjoined,
    /// From the commit on one node to its being visible on the other, at 500 updates a second
    Lag,
    /// One row that both nodes write at once: updates that are lost
    Race,
    /// What local writers lose by taking part, with updates
    WritersUpdate,
    /// The same with a delete and an insert in each transaction
    WritersReplace,
}

impl Cell {
    /// All of them, in the order of the tables.
    pub(crate) const ALL: [Cell; 8] = [
        Cell::Small,
        Cell::Insert,
        Cell::Update,
        Cell::Unjoined,
        Cell::Lag,
        Cell::Race,
        Cell::WritersUpdate,
        Cell::WritersReplace,
    ];

    /// The cell in words.
    pub(super) fn words(self) -> &'static str {
        match self {
            Cell::Small => "small",
            Cell::Insert => "one insert",
            Cell::Update => "one update",
            Cell::Unjoined => "small, not joined",
            Cell::Lag => "lag",
            Cell::Race => "hot row",
            Cell::WritersUpdate => "writers, update",
            Cell::WritersReplace => "writers, delete and insert",
        }
    }

    /// Whether it is measured on servers that have gone through other cells.
    pub(super) fn shares_servers(self) -> bool {
        matches!(self, Cell::Small | Cell::Insert | Cell::Update | Cell::Lag | Cell::Race)
    }

    /// Whether a backlog is drained in it.
    pub(super) fn drains(self) -> bool {
        self.goal().is_some()
    }

    /// The cell that peers are measured in, to be held against.
    pub(super) fn of_peers(self) -> Cell {
        if self == Cell::Unjoined { Cell::Small } else { self }
    }

    /// How many times the rate of the best native setting is wanted, and at most how many times its CPU time.
    pub(super) fn goal(self) -> Option<(f64, Option<f64>)> {
        match self {
            Cell::Small => Some((1.3, None)),
            Cell::Unjoined => Some((1.0, None)),
            Cell::Insert | Cell::Update => Some((2.0, Some(0.6))),
            Cell::Lag | Cell::Race | Cell::WritersUpdate | Cell::WritersReplace => None,
        }
    }

    /// Whether a system has a turn in it.
    pub(super) fn is_for(self, system: System) -> bool {
        match self {
            Cell::Small | Cell::Insert | Cell::Update => true,
            Cell::Lag | Cell::Race => system != System::AntiphonOneWay,
            Cell::Unjoined | Cell::WritersUpdate | Cell::WritersReplace => system == System::Antiphon,
        }
    }
}

/// What carries changes from one server to the other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum System {
    /// A subscription of PostgreSQL's own, streaming off
    Native,
    /// The same, streaming on
    NativeStreaming,
    /// The same, streaming in parallel (PostgreSQL 16 and newer)
    NativeParallel,
    /// pglogical
    Pglogical,
    /// Antiphon, both nodes at work, so that each also reads what the other applied
    Antiphon,
    /// Antiphon with only the node at work that applies: what a subscription does, too
    AntiphonOneWay,
}

impl System {
    /// All of them.
    pub(crate) const ALL: [System; 6] = [
        System::Native,
        System::NativeStreaming,
        System::NativeParallel,
        System::Pglogical,
        System::Antiphon,
        System::AntiphonOneWay,
    ];
    /// Native settings, of which the best counts.
    pub(super) const NATIVE: [System; 3] = [System::Native, System::NativeStreaming, System::NativeParallel];
    /// What is judged.
    pub(super) const OWN: [System; 2] = [System::Antiphon, System::AntiphonOneWay];

    /// As it is called in tables and in the file of measurements.
    pub(super) fn name(self) -> &'static str {
        match self {
            System::Native => "native",
            System::NativeStreaming => "native-streaming",
            System::NativeParallel => "native-parallel",
            System::Pglogical => "pglogical",
            System::Antiphon => "antiphon",
            System::AntiphonOneWay => "antiphon-one-way",
        }
    }

    /// Whether it is Antiphon in one of its set-ups.
    pub(super) fn is_own(self) -> bool {
        System::OWN.contains(&self)
    }
}
