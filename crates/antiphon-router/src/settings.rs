//! What the router is told: addresses, bounds and who may log in. Checked by whoever reads the file.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::scram::Verifier;

/// All that a router needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where clients connect to; every thread listens at each.
    pub listen: Vec<SocketAddr>,
    /// The members' APIs, as `host:port`; their events say who leads.
    pub agents: Vec<String>,
    /// The name of the cluster whose events count.
    pub scope: Option<String>,
    /// Threads that carry traffic, 1 to 64.
    pub threads: u16,
    /// Links to the leader for each user and database, over all threads.
    pub pool_size: u32,
    /// Clients at a time.
    pub clients_max: usize,
    /// How long a client waits for a leader or for a free link.
    pub failover_hold: Duration,
    /// How long a login may take.
    pub login_timeout: Duration,
    /// How clients prove who they are.
    pub authentication: Authentication,
}

/// How clients prove who they are.
#[derive(Clone)]
pub enum Authentication {
    /// They do not.
    Trust,
    /// By SCRAM-SHA-256, against verifiers that the leader is asked for.
    Query(AuthQuery),
    /// By SCRAM-SHA-256, against verifiers by user.
    Users(HashMap<String, Verifier>),
}

/// Where verifiers are asked for.
#[derive(Clone)]
pub struct AuthQuery {
    /// The router's own account.
    pub user: String,
    /// Its password.
    pub password: Option<String>,
    /// The database in which it asks.
    pub database: String,
    /// A query with the user as `$1`, that gives the user's name and verifier.
    pub query: String,
}

impl std::fmt::Debug for Authentication {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Trust => f.write_str("Trust"),
            Self::Query(query) => write!(f, "Query by {}", query.user),
            Self::Users(users) => write!(f, "{} users", users.len()),
        }
    }
}
