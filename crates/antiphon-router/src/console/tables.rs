//! What the console shows: what the threads told, added up and put into PgBouncer's columns.
//!
//! Columns keep PgBouncer's names and order, so that its exporters and dashboards read them; ours come last.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Show, Table};
use crate::gates::Gates;
use crate::orders::{PoolTold, Socket, Told};
use crate::plain::Server;
use crate::positions::{Follower, Reading};
use crate::routes::Routes;
use crate::settings::Settings;
use crate::shared::Target;
use crate::stats::Counts;
use crate::wire::rows::Kind::{self, Big, Int, Text};

/// What else is known when something is shown.
#[derive(Debug)]
pub struct Facts<'a> {
    /// What the router was told.
    pub settings: &'a Settings,
    /// Who leads.
    pub target: Target,
    /// Who is read from.
    pub reading: &'a Reading,
    /// What is closed.
    pub gates: &'a Gates,
    /// Where statements went.
    pub routes: Routes,
    /// Seconds since 1970.
    pub wall: u64,
    /// The router's clock in milliseconds.
    pub now_ms: u64,
}

/// What is to be shown. Help is no table: it has no rows.
pub fn table(show: Show, told: &[Told], facts: &Facts<'_>) -> Table {
    match show {
        Show::Clients => sockets("C", told.iter().flat_map(|told| &told.clients), facts),
        Show::Servers => sockets("S", told.iter().flat_map(|told| &told.links), facts),
        Show::Config => config(facts.settings),
        Show::Databases => databases(told, facts),
        Show::Followers => followers(facts),
        Show::Help => Table::default(),
        Show::Lists => lists(told, facts),
        Show::Pools => pools(told, facts),
        Show::Routes => routes(&facts.routes),
        Show::State => state(facts),
        Show::Stats => stats(told, true, true),
        Show::StatsAverages => stats(told, false, true),
        Show::StatsTotals => stats(told, true, false),
        Show::Totals => totals(told),
        Show::Users => users(told),
        Show::Version => version(),
    }
}

#[allow(clippy::needless_pass_by_value, reason = "numbers are given by value")]
fn text(value: impl ToString) -> Option<String> {
    Some(value.to_string())
}

/// A table of names and values.
fn pairs(columns: [(&'static str, Kind); 2], rows: Vec<(String, String)>) -> Table {
    let rows = rows.into_iter().map(|(name, value)| vec![Some(name), Some(value)]).collect();
    Table { columns: columns.to_vec(), rows }
}

fn version() -> Table {
    let version = concat!("Antiphon ", env!("CARGO_PKG_VERSION"));
    Table { columns: vec![("version", Text)], rows: vec![vec![text(version)]] }
}

fn state(facts: &Facts<'_>) -> Table {
    let word = |holds: bool| if holds { "yes" } else { "no" }.to_owned();
    let paused = facts.gates.all.is_paused();
    let rows = [("active", !paused), ("paused", paused), ("suspended", false)];
    let rows = rows.into_iter().map(|(key, holds)| (key.to_owned(), word(holds))).collect();
    pairs([("key", Text), ("value", Text)], rows)
}

fn routes(routes: &Routes) -> Table {
    let rows = routes.counts().map(|(reason, count)| (reason.word().to_owned(), count.to_string()));
    pairs([("reason", Text), ("count", Big)], rows.collect())
}

/// What of each pool, whatever its place and thread, belongs to one user and database.
fn by_user_and_database(told: &[Told]) -> BTreeMap<(&str, &str), Vec<&PoolTold>> {
    let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for pool in told.iter().flat_map(|told| &told.pools) {
        groups.entry((pool.key.database.as_str(), pool.key.user.as_str())).or_default().push(pool);
    }
    groups
}

fn by_database(told: &[Told]) -> BTreeMap<&str, Vec<&PoolTold>> {
    let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for pool in told.iter().flat_map(|told| &told.pools) {
        groups.entry(pool.key.database.as_str()).or_default().push(pool);
    }
    groups
}

fn sum(pools: &[&PoolTold], of: impl Fn(&PoolTold) -> usize) -> usize {
    pools.iter().map(|pool| of(pool)).sum()
}

fn links(pool: &PoolTold) -> usize {
    pool.active + pool.idle + pool.tested + pool.login
}

fn pools(told: &[Told], facts: &Facts<'_>) -> Table {
    type Of = fn(&PoolTold) -> usize;
    let counted: [(&str, Of); 11] = [
        ("cl_active", |pool| pool.clients_active),
        ("cl_waiting", |pool| pool.clients_waiting),
        ("cl_active_cancel_req", |_| 0),
        ("cl_waiting_cancel_req", |_| 0),
        ("sv_active", |pool| pool.active - pool.being_canceled),
        ("sv_active_cancel", |_| 0),
        ("sv_being_canceled", |pool| pool.being_canceled),
        ("sv_idle", |pool| pool.idle),
        ("sv_used", |_| 0),
        ("sv_tested", |pool| pool.tested),
        ("sv_login", |pool| pool.login),
    ];
    let mut columns = vec![("database", Text), ("user", Text)];
    columns.extend(counted.iter().map(|(name, _)| (*name, Int)));
    columns.extend([
        ("maxwait", Int),
        ("maxwait_us", Int),
        ("pool_mode", Text),
        ("load_balance_hosts", Text),
    ]);
    let mode = facts.settings.pool_mode.word();
    let row = |((database, user), pools): ((&str, &str), Vec<&PoolTold>)| {
        let waits = pools.iter().map(|pool| pool.waits).max().unwrap_or_default();
        let mut row = vec![text(database), text(user)];
        row.extend(counted.iter().map(|(_, of)| text(sum(&pools, of))));
        row.extend([text(waits.as_secs()), text(waits.subsec_micros()), text(mode), None]);
        row
    };
    Table { columns, rows: by_user_and_database(told).into_iter().map(row).collect() }
}

fn databases(told: &[Told], facts: &Facts<'_>) -> Table {
    let columns = vec![
        ("name", Text),
        ("host", Text),
        ("port", Int),
        ("database", Text),
        ("force_user", Text),
        ("pool_size", Int),
        ("min_pool_size", Int),
        ("reserve_pool_size", Int),
        ("server_lifetime", Int),
        ("pool_mode", Text),
        ("load_balance_hosts", Text),
        ("max_connections", Int),
        ("current_connections", Int),
        ("max_client_connections", Int),
        ("current_client_connections", Int),
        ("paused", Int),
        ("disabled", Int),
    ];
    let leader = facts.target.leader;
    let row = |(database, pools): (&str, Vec<&PoolTold>)| {
        let gate = facts.gates.of(database);
        vec![
            text(database),
            leader.map(|leader| leader.ip().to_string()),
            leader.map(|leader| leader.port().to_string()),
            text(database),
            None,
            text(facts.settings.pool_size),
            text(0),
            text(0),
            text(facts.settings.server_lifetime.as_secs()),
            text(facts.settings.pool_mode.word()),
            None,
            text(0),
            text(sum(&pools, links)),
            text(0),
            text(sum(&pools, |pool| pool.clients_active + pool.clients_waiting)),
            text(u8::from(gate.is_paused())),
            text(u8::from(gate.is_disabled())),
        ]
    };
    Table { columns, rows: by_database(told).into_iter().map(row).collect() }
}

fn users(told: &[Told]) -> Table {
    let columns = vec![
        ("name", Text),
        ("pool_size", Text),
        ("reserve_pool_size", Text),
        ("pool_mode", Text),
        ("max_user_connections", Int),
        ("current_connections", Int),
        ("max_user_client_connections", Int),
        ("current_client_connections", Int),
    ];
    let mut groups: BTreeMap<&str, Vec<&PoolTold>> = BTreeMap::new();
    for pool in told.iter().flat_map(|told| &told.pools) {
        groups.entry(&pool.key.user).or_default().push(pool);
    }
    let row = |(user, pools): (&str, Vec<&PoolTold>)| {
        let clients = sum(&pools, |pool| pool.clients_active + pool.clients_waiting);
        vec![text(user), None, None, None, text(0), text(sum(&pools, links)), text(0), text(clients)]
    };
    Table { columns, rows: groups.into_iter().map(row).collect() }
}

fn lists(told: &[Told], facts: &Facts<'_>) -> Table {
    let pools = by_user_and_database(told);
    let all: Vec<&PoolTold> = told.iter().flat_map(|told| &told.pools).collect();
    let users: BTreeSet<&str> = pools.keys().map(|(_, user)| *user).collect();
    let clients = sum(&all, |pool| pool.clients_active + pool.clients_waiting);
    let logging_in = told.iter().map(|told| told.logging_in).sum::<usize>();
    let rows = [
        ("databases", by_database(told).len()),
        ("users", users.len()),
        ("peers", 0),
        ("pools", pools.len()),
        ("peer_pools", 0),
        ("free_clients", facts.settings.clients_max.saturating_sub(clients + logging_in)),
        ("used_clients", clients),
        ("login_clients", logging_in),
        ("free_servers", 0),
        ("used_servers", sum(&all, links)),
        ("dns_names", 0),
        ("dns_zones", 0),
        ("dns_queries", 0),
        ("dns_pending", 0),
    ];
    let rows = rows.into_iter().map(|(list, items)| (list.to_owned(), items.to_string())).collect();
    pairs([("list", Text), ("items", Int)], rows)
}

/// What is counted: PgBouncer's name for it, for the average in a second, and where it is.
type Counted = (&'static str, &'static str, fn(&Counts) -> u64);

const COUNTED: [Counted; 11] = [
    ("total_server_assignment_count", "avg_server_assignment_count", |counts| counts.assignments),
    ("total_xact_count", "avg_xact_count", |counts| counts.transactions),
    ("total_query_count", "avg_query_count", |counts| counts.queries),
    ("total_received", "avg_recv", |counts| counts.received),
    ("total_sent", "avg_sent", |counts| counts.sent),
    ("total_xact_time", "avg_xact_time", |counts| counts.transaction_us),
    ("total_query_time", "avg_query_time", |counts| counts.query_us),
    ("total_wait_time", "avg_wait_time", |counts| counts.wait_us),
    ("total_client_parse_count", "avg_client_parse_count", |counts| counts.parses),
    ("total_server_parse_count", "avg_server_parse_count", |counts| counts.server_parses),
    ("total_bind_count", "avg_bind_count", |counts| counts.binds),
];

/// An average: a time for each thing that took it, all else in a second.
fn average(counted: &Counted, recent: &Counts, time: Duration) -> u64 {
    let value = counted.2(recent);
    let of = match counted.1 {
        "avg_xact_time" => recent.transactions,
        "avg_query_time" | "avg_wait_time" => recent.queries,
        _ => {
            let ms = time.as_millis().max(1);
            return u64::try_from(u128::from(value) * 1000 / ms).unwrap_or(u64::MAX);
        }
    };
    value.checked_div(of).unwrap_or(0)
}

/// The counts of some pools, and those of late with the time that they took.
fn together(pools: &[&PoolTold]) -> (Counts, Counts, Duration) {
    pools.iter().fold((Counts::default(), Counts::default(), Duration::ZERO), |(all, recent, time), pool| {
        (all.plus(&pool.counts), recent.plus(&pool.recent.0), time.max(pool.recent.1))
    })
}

fn stats(told: &[Told], totals: bool, averages: bool) -> Table {
    let mut columns = vec![("database", Text)];
    columns.extend(COUNTED.iter().filter(|_| totals).map(|counted| (counted.0, Big)));
    columns.extend(COUNTED.iter().filter(|_| averages).map(|counted| (counted.1, Big)));
    let row = |(database, pools): (&str, Vec<&PoolTold>)| {
        let (all, recent, time) = together(&pools);
        let mut row = vec![text(database)];
        row.extend(COUNTED.iter().filter(|_| totals).map(|counted| text(counted.2(&all))));
        row.extend(COUNTED.iter().filter(|_| averages).map(|counted| text(average(counted, &recent, time))));
        row
    };
    Table { columns, rows: by_database(told).into_iter().map(row).collect() }
}

fn totals(told: &[Told]) -> Table {
    let all: Vec<&PoolTold> = told.iter().flat_map(|told| &told.pools).collect();
    let (counts, recent, time) = together(&all);
    let totals = COUNTED.iter().map(|counted| (counted.0.to_owned(), counted.2(&counts).to_string()));
    let averages =
        COUNTED.iter().map(|counted| (counted.1.to_owned(), average(counted, &recent, time).to_string()));
    pairs([("name", Text), ("value", Big)], totals.chain(averages).collect())
}

fn sockets<'a>(kind: &str, sockets: impl Iterator<Item = &'a Socket>, facts: &Facts<'_>) -> Table {
    let columns = vec![
        ("type", Text),
        ("user", Text),
        ("database", Text),
        ("replication", Text),
        ("state", Text),
        ("addr", Text),
        ("port", Int),
        ("local_addr", Text),
        ("local_port", Int),
        ("connect_time", Text),
        ("request_time", Text),
        ("wait", Int),
        ("wait_us", Int),
        ("close_needed", Int),
        ("ptr", Text),
        ("link", Text),
        ("remote_pid", Int),
        ("tls", Text),
        ("application_name", Text),
        ("prepared_statements", Int),
        ("id", Big),
        ("pinned", Text),
    ];
    let clock = |ago: Duration| (facts.settings.show_time)(facts.wall.saturating_sub(ago.as_secs()));
    let ip = |address: Option<SocketAddr>| address.map(|address| address.ip().to_string());
    let port = |address: Option<SocketAddr>| text(address.map_or(0, |address| address.port()));
    let row = |socket: &Socket| {
        vec![
            text(kind),
            text(&socket.user),
            text(&socket.database),
            text("none"),
            text(socket.state),
            ip(socket.peer),
            port(socket.peer),
            ip(socket.local),
            port(socket.local),
            text(clock(socket.age)),
            text(clock(socket.asked.unwrap_or(socket.age))),
            text(socket.waits.as_secs()),
            text(socket.waits.subsec_micros()),
            text(u8::from(socket.close_needed)),
            text(format!("{:#x}", socket.id)),
            text(socket.other.map_or_else(String::new, |other| format!("{other:#x}"))),
            text(socket.process),
            text(&socket.tls),
            text(&socket.application_name),
            text(socket.prepared),
            text(socket.id),
            socket.pinned.map(|pin| pin.word().to_owned()),
        ]
    };
    Table { columns, rows: sockets.map(row).collect() }
}

fn followers(facts: &Facts<'_>) -> Table {
    let columns = vec![
        ("name", Text),
        ("host", Text),
        ("port", Int),
        ("usable", Text),
        ("reads", Int),
        ("replay_lsn", Text),
        ("zone", Text),
        ("weight", Int),
    ];
    let row = |follower: &Arc<Follower>| {
        let lsn = follower.feed.lsn();
        vec![
            text(&follower.name),
            text(follower.address.ip()),
            text(follower.address.port()),
            text(if follower.is_well(facts.now_ms) { "yes" } else { "no" }),
            text(follower.busy.load(Ordering::Relaxed)),
            text(format!("{:X}/{:X}", lsn >> 32, lsn & 0xffff_ffff)),
            follower.zone.as_deref().map(str::to_owned),
            text(follower.weight),
        ]
    };
    Table { columns, rows: facts.reading.followers.iter().map(row).collect() }
}

fn config(settings: &Settings) -> Table {
    let reads = settings.reads.as_ref();
    let seconds = |time: Duration| time.as_secs_f64().to_string();
    let listen: Vec<String> = settings.listen.iter().map(ToString::to_string).collect();
    let servers = settings.servers.iter().flat_map(|servers| &servers.list);
    let servers: Vec<String> = servers.map(Server::name).collect();
    let rows = [
        ("listen", listen.join(","), ""),
        ("agents", settings.agents.join(","), ""),
        ("servers", servers.join(","), ""),
        ("peers", settings.peers.join(","), ""),
        ("scope", settings.scope.clone().unwrap_or_default(), ""),
        ("threads", settings.threads.to_string(), ""),
        ("pool_mode", settings.pool_mode.word().to_owned(), "transaction"),
        ("default_pool_size", settings.pool_size.to_string(), "20"),
        ("max_client_conn", settings.clients_max.to_string(), "10000"),
        ("query_wait_timeout", seconds(settings.failover_hold), "30"),
        ("failover_hold_max", settings.failover_hold_max.to_string(), "10000"),
        ("server_idle_timeout", seconds(settings.server_idle_timeout), "600"),
        ("server_lifetime", seconds(settings.server_lifetime), "3600"),
        ("client_login_timeout", seconds(settings.login_timeout), "60"),
        ("read_from", if reads.is_some() { "followers" } else { "leader" }.to_owned(), "leader"),
        (
            "consistency",
            reads
                .map_or_else(String::new, |reads| reads.sessions.consistency.unwrap_or_default().to_string()),
            "read_your_writes",
        ),
        ("causal_wait", reads.map_or_else(String::new, |reads| seconds(reads.causal_wait)), "0.02"),
    ];
    let row = |(key, value, standard): (&str, String, &str)| {
        let fixed = ["listen", "scope", "threads"].contains(&key);
        vec![text(key), Some(value), text(standard), text(if fixed { "no" } else { "yes" })]
    };
    let columns = vec![("key", Text), ("value", Text), ("default", Text), ("changeable", Text)];
    Table { columns, rows: rows.into_iter().map(row).collect() }
}
