//! The cells of the tables: what is asked of each way, and what it may cost at most.

use clap::ValueEnum;
use serde::Serialize;

use super::pgbench::{Load, Mode, Script};

/// What is asked of a way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Cell {
    /// A row by its key, as a simple query; 8 clients
    Simple,
    /// The same by the extended protocol
    Extended,
    /// The same by a prepared statement
    Prepared,
    /// The same with 100 clients
    PreparedMany,
    /// The same ten times in a pipeline, by the extended protocol; 8 clients
    Pipeline,
    /// 1,000 rows, 110 kB, as a simple query; 8 clients
    Rows,
    /// A row by its key, each time on a connection of its own; 8 clients
    Connections,
    /// The same with a password, by SCRAM-SHA-256
    Logins,
    /// Memory for 1,000 clients that have asked once and keep their connection
    Idle,
}

/// How clients prove who they are, which is also who they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Proof {
    /// They do not.
    Trust,
    /// By SCRAM-SHA-256, to the proxy if it can, else to the server.
    Scram,
}

impl Proof {
    /// The role that asks.
    pub(super) fn user(self) -> &'static str {
        match self {
            Proof::Trust => "app",
            Proof::Scram => "prover",
        }
    }

    /// Its password, if it needs one.
    pub(super) fn password(self) -> Option<&'static str> {
        match self {
            Proof::Trust => None,
            Proof::Scram => Some("bench"),
        }
    }
}

impl Cell {
    /// All of them, in the order of the tables.
    pub(crate) const ALL: [Cell; 9] = [
        Cell::Simple,
        Cell::Extended,
        Cell::Prepared,
        Cell::PreparedMany,
        Cell::Pipeline,
        Cell::Rows,
        Cell::Connections,
        Cell::Logins,
        Cell::Idle,
    ];

    /// The cell in words, for the heads of tables.
    pub(super) fn words(self) -> &'static str {
        match self {
            Cell::Simple => "simple 8",
            Cell::Extended => "extended 8",
            Cell::Prepared => "prepared 8",
            Cell::PreparedMany => "prepared 100",
            Cell::Pipeline => "pipeline of 10",
            Cell::Rows => "1,000 rows",
            Cell::Connections => "connections",
            Cell::Logins => "logins",
            Cell::Idle => "idle KiB",
        }
    }

    /// How clients of this cell prove who they are.
    pub(super) fn proof(self) -> Proof {
        match self {
            Cell::Logins => Proof::Scram,
            Cell::Simple
            | Cell::Extended
            | Cell::Prepared
            | Cell::PreparedMany
            | Cell::Pipeline
            | Cell::Rows
            | Cell::Connections
            | Cell::Idle => Proof::Trust,
        }
    }

    /// The load; nothing for clients that do nothing.
    pub(super) fn load(self) -> Option<Load> {
        let load = Load {
            mode: Mode::Simple,
            clients: 8,
            script: Script::Row,
            reconnects: false,
            queries_each: 1,
            proof: self.proof(),
        };
        Some(match self {
            Cell::Simple => load,
            Cell::Extended => Load { mode: Mode::Extended, ..load },
            Cell::Prepared => Load { mode: Mode::Prepared, ..load },
            Cell::PreparedMany => Load { mode: Mode::Prepared, clients: 100, ..load },
            Cell::Pipeline => Load {
                mode: Mode::Extended,
                script: Script::Pipeline,
                queries_each: Script::PIPELINED,
                ..load
            },
            Cell::Rows => Load { script: Script::Rows, ..load },
            Cell::Connections | Cell::Logins => Load { reconnects: true, ..load },
            Cell::Idle => return None,
        })
    }

    /// Whether statements are prepared by name, which not every pooler can carry from server to server.
    pub(super) fn prepares(self) -> bool {
        matches!(self, Cell::Prepared | Cell::PreparedMany)
    }

    /// The most CPU time that a query may cost the router whatever its peers do, in microseconds, or the most
    /// memory that an idle client may, in KiB.
    pub(super) fn most(self) -> Option<f64> {
        match self {
            Cell::Pipeline => Some(2.0),
            Cell::Rows => Some(80.0),
            Cell::Connections => Some(65.0),
            Cell::Logins => Some(200.0),
            Cell::Idle => Some(1.5),
            Cell::Simple | Cell::Extended | Cell::Prepared | Cell::PreparedMany => None,
        }
    }
}
