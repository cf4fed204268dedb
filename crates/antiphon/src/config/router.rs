//! The `router` section: a proxy in front of the cluster, beside a member or in a file of its own.
//!
//! Read by itself, not with the rest of a node file: a file that has nothing but it (and `scope` and `log`) makes
//! no member. The userlist is read here, too, so that a mistake in it is told with its line like any other.

use std::collections::HashMap;
use std::time::Duration;

use antiphon_router::balance::Balance;
use antiphon_router::{PoolMode, Wants};
use antiphon_tls::{ClientFiles, Clients};

use super::address::{Address, Listen};
use super::model::LogConfig;
use super::problem::Findings;
use super::resolve;
use super::secret;
use super::section::Section;
use super::tls::{self, RouterClientsTls, RouterServersTls};
use super::yaml::{Entry, Node};

mod auth;

pub use auth::{RouterAuthentication, RouterSecrets};

const ROUTER_PORT: u16 = 6432;
const API_PORT: u16 = 8008;
const SERVER_PORT: u16 = 5432;
/// As the exporter for PgBouncer has it.
const HTTP_PORT: u16 = 9127;
/// How long links may be unused, and live, as PgBouncer has it.
const SERVER_IDLE_TIMEOUT: Duration = Duration::from_secs(600);
const SERVER_LIFETIME: Duration = Duration::from_secs(3600);
/// How long a read waits for a follower.
const CAUSAL_WAIT: Duration = Duration::from_millis(20);
/// Most agents that are followed.
const AGENTS_MAX: usize = 32;
const NO_TOKENS: &str = "needs read_from: followers; without it the router knows no positions";
/// Sections of a member: with any of them, the file is a node file.
pub(super) const OF_A_MEMBER: [&str; 8] =
    ["name", "restapi", "raft", "etcd", "etcd3", "postgresql", "bootstrap", "heartbeat"];
/// A router and the file that it stands in.
#[derive(Clone, Debug)]
pub struct RouterFile {
    /// The router.
    pub router: RouterConfig,
    /// Nothing else is run by this file.
    pub alone: bool,
    /// The cluster whose leader it follows, if the file names it.
    pub scope: Option<String>,
    /// What is logged and how.
    pub log: LogConfig,
}

/// A router.
#[derive(Clone, Debug)]
pub struct RouterConfig {
    /// Where clients connect to.
    pub listen: Listen,
    /// The members' APIs, whose events say who leads.
    pub agents: Vec<Address>,
    /// The servers themselves, if no agents say who of them leads.
    pub servers: Vec<Address>,
    /// Other routers of the cluster.
    pub peers: Vec<Address>,
    /// Threads that carry traffic; none: one for every two processors.
    pub threads: Option<u16>,
    /// How long a session keeps a link.
    pub pool_mode: PoolMode,
    /// Links to the leader for each user and database.
    pub pool_size: u32,
    /// How long a link may be unused; zero: for ever.
    pub server_idle_timeout: Duration,
    /// How old a link may get; zero: as old as it likes.
    pub server_lifetime: Duration,
    /// Clients at a time.
    pub clients_max: usize,
    /// How long a client waits for a leader or a free link.
    pub failover_hold: Duration,
    /// How many wait at a time because nobody leads.
    pub failover_hold_max: usize,
    /// How long a login may take.
    pub login_timeout: Duration,
    /// How clients prove who they are.
    pub authentication: RouterAuthentication,
    /// The router's own account, if it has one.
    pub account: Option<RouterAccount>,
    /// How reads go to followers; none if all goes to the leader.
    pub reads: Option<RouterReads>,
    /// Where its metrics are asked for, if it runs alone.
    pub http: Option<Listen>,
    /// Users who may do everything at the console.
    pub admin_users: Vec<String>,
    /// Users who may look at it.
    pub stats_users: Vec<String>,
    /// How clients speak TLS; none: in the clear only.
    pub clients_tls: Option<RouterClientsTls>,
    /// How servers are spoken to.
    pub servers_tls: RouterServersTls,
    /// How the members' APIs are spoken to; none: in the clear.
    pub agents_tls: Option<ClientFiles>,
}

/// An account at the servers.
#[derive(Clone, Debug)]
pub struct RouterAccount {
    /// Its name.
    pub user: String,
    /// Its password.
    pub password: Option<secret::Secret>,
    /// The database that it goes to.
    pub database: String,
}

/// How reads go to followers (`read_from: followers`).
#[derive(Clone, Debug)]
pub struct RouterReads {
    /// What sessions ask unless they say.
    pub sessions: Wants,
    /// What those of these users ask unless they say.
    pub users: HashMap<String, Wants>,
    /// What those of these databases ask unless they or their user say.
    pub databases: HashMap<String, Wants>,
    /// How long a read waits for a follower before it goes to the leader.
    pub causal_wait: Duration,
    /// How reads are spread over followers.
    pub balance: Balance,
}

/// Reads the section; none if there is none, or a problem has been noted.
pub(super) fn resolve(root: &Node, findings: &Findings) -> Option<RouterFile> {
    let top = Section::of(root, String::new(), findings);
    if !top.has("router") {
        return None;
    }
    let Some(section) = top.section("router") else {
        top.problem("router", "is empty; give it listen, agents and an account, or remove it");
        return None;
    };
    let alone = !OF_A_MEMBER.iter().any(|name| top.has(name));
    let log = resolve::log(&top);
    let scope = top.text("scope");
    let router = router(&section, &top);
    if router.as_ref().is_some_and(|router| router.http.is_some()) && !alone {
        let message = "is for a router alone; beside a member, its metrics are with the member's";
        top.problem("router.http_listen", message);
    }
    if alone {
        // Read by itself.
        top.has("mesh");
        top.without_effect(&["namespace"], "the router asks the members");
        top.finish();
    }
    Some(RouterFile { router: router?, alone, scope, log })
}

fn router(section: &Section<'_>, top: &Section<'_>) -> Option<RouterConfig> {
    let listen = match section.get("listen") {
        Some(_) => section.listen("listen", Some(ROUTER_PORT)),
        None => {
            section
                .problem("listen", format!("is missing: where clients connect to, as 0.0.0.0:{ROUTER_PORT}"));
            None
        }
    };
    let servers = servers(section);
    let agents = if section.has("servers") { Vec::new() } else { agents(section, top) };
    let peers = addresses(section, "peers", ROUTER_PORT);
    let threads = section.count("threads", 1, 64).and_then(|count| u16::try_from(count).ok());
    let modes = [("transaction", PoolMode::Transaction), ("session", PoolMode::Session)];
    let pool_mode = section.choice("pool_mode", &modes).unwrap_or_default();
    let pool_size = section.count("pool_size", 1, 100_000).unwrap_or(20);
    let server_idle_timeout = section.span("server_idle_timeout").unwrap_or(SERVER_IDLE_TIMEOUT);
    let server_lifetime = section.span("server_lifetime").unwrap_or(SERVER_LIFETIME);
    let clients_max = section.count("max_client_conn", 1, 1_000_000).unwrap_or(10_000);
    let failover_hold = section.span("failover_hold").unwrap_or(Duration::from_secs(30));
    let failover_hold_max = section.count("failover_hold_max", 0, 1_000_000).unwrap_or(10_000);
    let login_timeout = section.span("client_login_timeout").unwrap_or(Duration::from_secs(60));
    if login_timeout.is_zero() {
        section.problem("client_login_timeout", "must be more than nothing");
    }
    let reads = reads(section);
    if pool_mode == PoolMode::Session && reads.is_some() {
        let message =
            "is session: such a session stays with the leader; remove read_from, or use transaction";
        section.problem("pool_mode", message);
    }
    let http = section.get("http_listen").and_then(|_| section.listen("http_listen", Some(HTTP_PORT)));
    let admin_users = section.texts("admin_users", true);
    let stats_users = section.texts("stats_users", true);
    let account = auth::account(section);
    let more = reads.is_some() || !servers.is_empty();
    let authentication = auth::authentication(section, account.is_some(), more);
    let asks = authentication.as_ref().is_some_and(|how| how.rules.ask_certificates());
    let clients_tls = tls::router_clients(section, asks);
    let certificates = clients_tls.as_ref().is_some_and(|tls| tls.files.clients != Clients::NotAsked);
    if asks && !certificates {
        let message = "asks clients for certificates; set client_tls_sslmode, and client_tls_ca_file to the authority that signed theirs";
        section.problem(if section.has("auth_type") { "auth_type" } else { "hba" }, message);
    }
    let servers_tls = tls::router_servers(section);
    let agents_tls = tls::router_agents(section, top);
    section.without_effect(
        &["client_tls_protocols", "client_tls_ciphers", "client_tls_ecdhcurve", "client_tls_dheparams"],
        tls::NOTHING_WEAKER,
    );
    section.without_effect(&["server_tls_protocols", "server_tls_ciphers"], tls::NOTHING_WEAKER);
    section.finish();
    Some(RouterConfig {
        listen: listen?,
        agents,
        servers,
        peers,
        threads,
        pool_mode,
        pool_size,
        server_idle_timeout,
        server_lifetime,
        clients_max: usize::try_from(clients_max).unwrap_or(usize::MAX),
        failover_hold,
        failover_hold_max: usize::try_from(failover_hold_max).unwrap_or(usize::MAX),
        login_timeout,
        authentication: authentication?,
        account,
        reads,
        http,
        admin_users,
        stats_users,
        clients_tls,
        servers_tls,
        agents_tls,
    })
}

/// The servers that are asked themselves.
fn servers(section: &Section<'_>) -> Vec<Address> {
    if !section.has("servers") {
        return Vec::new();
    }
    let servers = addresses(section, "servers", SERVER_PORT);
    if section.has("agents") {
        section.problem("servers", "is given beside agents; keep one of them, agents if there are any");
    }
    if servers.is_empty() {
        section.problem("servers", "is empty: the servers, as [10.0.0.1:5432, 10.0.0.2:5432]");
    }
    if servers.len() > 1 && !section.has("auth_user") {
        section.problem(
            "servers",
            "has several, and needs auth_user: the account with which the router asks them who leads",
        );
    }
    servers
}

/// Addresses in a list, so many at most.
fn addresses(section: &Section<'_>, name: &str, port: u16) -> Vec<Address> {
    let mut addresses = Vec::new();
    for text in section.texts(name, true) {
        match Address::parse(&text, Some(port)) {
            Ok(address) => addresses.push(address),
            Err(wrong) => section.problem(name, format!("{text:?} {wrong}")),
        }
    }
    if addresses.len() > AGENTS_MAX {
        section.problem(name, format!("has {} members, at most {AGENTS_MAX}", addresses.len()));
    }
    addresses
}

/// The agents that are named, or else the one beside which the router runs.
fn agents(section: &Section<'_>, top: &Section<'_>) -> Vec<Address> {
    let mut agents = addresses(section, "agents", API_PORT);
    if !section.has("agents") {
        let api = top.section("restapi");
        let own = api.and_then(|api| {
            resolve::reached_at(&api, api.listen("listen", Some(API_PORT)).as_ref(), API_PORT)
        });
        agents.extend(own);
    }
    if agents.is_empty() {
        section.problem(
            "agents",
            "is missing: the members' APIs, as [10.0.0.1:8008, 10.0.0.2:8008]; or give servers",
        );
    }
    agents
}

/// How reads go to followers, if they do.
fn reads(section: &Section<'_>) -> Option<RouterReads> {
    let followers = section.choice("read_from", &[("leader", false), ("followers", true)]).unwrap_or(false);
    let sessions = wants(section);
    let [users, databases] = ["users", "databases"].map(|name| wants_of(section, name, followers));
    if sessions.report_token == Some(true) && !followers {
        section.problem("report_token", NO_TOKENS);
    }
    let causal_wait = section.span("causal_wait").unwrap_or(CAUSAL_WAIT);
    if followers && !section.has("auth_user") {
        section.problem(
            "read_from",
            "is followers, and needs auth_user: the account with which the router asks servers how far they are",
        );
    }
    let balance = balance(section);
    followers.then_some(RouterReads { sessions, users, databases, causal_wait, balance })
}

/// How reads are spread over followers.
fn balance(section: &Section<'_>) -> Balance {
    let standard = Balance::default();
    let bytes = |text: &str| {
        let value = serde_json::Value::String(text.to_owned());
        let bytes = antiphon_core::settings::bytes(&value).and_then(|bytes| u64::try_from(bytes).ok());
        bytes.ok_or_else(|| "is not a number of bytes like 16MB".to_owned())
    };
    Balance {
        zone: section.text("zone"),
        zone_busy_max: section.count("zone_busy_max", 0, 1_000_000).unwrap_or(standard.zone_busy_max),
        lag_max: section.span("lag_max"),
        lag_bytes_max: section.parsed("lag_bytes_max", bytes),
        slow_start: section.span("slow_start").unwrap_or(standard.slow_start),
    }
}

/// What sessions ask unless they say.
fn wants(section: &Section<'_>) -> Wants {
    Wants {
        consistency: section.parsed("consistency", str::parse),
        report_token: section.switch("report_token"),
    }
}

/// The same by user or database.
fn wants_of(section: &Section<'_>, name: &str, followers: bool) -> HashMap<String, Wants> {
    let Some(names) = section.section(name) else { return HashMap::new() };
    let of = |entry: &Entry| {
        let section = Section::of(&entry.node, names.path_of(&entry.key), names.findings());
        let wants = wants(&section);
        if wants.report_token == Some(true) && !followers {
            section.problem("report_token", NO_TOKENS);
        }
        section.finish();
        (entry.key.clone(), wants)
    };
    names.rest().into_iter().map(of).collect()
}

#[cfg(test)]
mod tests;
