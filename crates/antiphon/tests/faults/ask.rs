//! What every test here asks of a running cluster: a connection, a query that must come true, another leader, other
//! settings. Everything is waited for with a deadline.

use std::time::{Duration, Instant};

use antiphon::demo::cluster::{Cluster, PASSWORD};
use antiphon::demo::http;
use serde_json::Value;
use tokio_postgres::{Client, Config, NoTls};

/// How long anything but the start of a cluster may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn connect(cluster: &Cluster, index: usize) -> Option<Client> {
    let mut config = Config::new();
    config.host("127.0.0.1").port(cluster.nodes[index].server_port).user("postgres").password(PASSWORD);
    config.dbname("postgres").connect_timeout(Duration::from_secs(1));
    let (client, connection) = config.connect(NoTls).await.ok()?;
    tokio::spawn(connection);
    Some(client)
}

/// Whether a query says true on this member; no answer is no.
pub(super) async fn says(cluster: &Cluster, index: usize, query: &str) -> bool {
    let Some(client) = connect(cluster, index).await else { return false };
    client.query_one(query, &[]).await.is_ok_and(|row| row.try_get(0).unwrap_or(false))
}

/// Waits until a query says true on each of these members.
pub(super) async fn until(cluster: &Cluster, members: &[usize], query: &str) {
    let started = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    for member in members {
        while !says(cluster, *member, query).await {
            let name = &cluster.nodes[*member].name;
            assert!(started.elapsed() < PATIENCE, "{name} never said yes to {query}");
            ticks.tick().await;
        }
    }
}

pub(super) async fn until_led_by_another(cluster: &Cluster, before: usize) -> usize {
    let started = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    loop {
        match cluster.leader().await {
            Some(leader) if leader != before => return leader,
            _ => assert!(started.elapsed() < PATIENCE, "nobody took over"),
        }
        ticks.tick().await;
    }
}

/// What a member tells of past promotions once there is one: a new leader writes it down after it leads.
pub(super) async fn until_recorded(cluster: &Cluster, member: usize) -> String {
    let started = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    loop {
        let history = cluster.get(member, "/history").await.unwrap();
        if history.as_array().is_some_and(|entries| !entries.is_empty()) {
            return history.to_string();
        }
        assert!(started.elapsed() < PATIENCE, "no promotion was written down");
        ticks.tick().await;
    }
}

pub(super) async fn set(cluster: &Cluster, leader: usize, change: Value) {
    let port = cluster.nodes[leader].api_port;
    let answer = http::patch(port, "/config", &change.to_string(), PATIENCE).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
}

/// Appends lines to a member's node file and has its agent read it again. The file ends within the section
/// `postgresql`, so an indented line belongs to that.
pub(super) async fn write_down(cluster: &Cluster, index: usize, lines: &str) {
    append(cluster, index, lines);
    let answer = http::post(cluster.nodes[index].api_port, "/reload", "", PATIENCE).await.unwrap();
    assert_eq!(answer.status, 202, "{}", answer.body);
}

/// Appends lines to a member's node file.
pub(super) fn append(cluster: &Cluster, index: usize, lines: &str) {
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new().append(true).open(&cluster.nodes[index].file).unwrap();
    file.write_all(lines.as_bytes()).unwrap();
}

/// Waits until this member, as `GET /cluster` lists it, is as wanted.
pub(super) async fn until_listed(
    cluster: &Cluster,
    index: usize,
    what: &str,
    wanted: impl Fn(&Value) -> bool,
) {
    let started = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    let name = &cluster.nodes[index].name;
    loop {
        let seen = cluster.seen().await.unwrap_or_default();
        let listed = seen["members"].as_array().into_iter().flatten().find(|member| member["name"] == **name);
        if listed.is_some_and(&wanted) {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "{name} is not {what}: {seen}");
        ticks.tick().await;
    }
}

/// Waits until `follower` streams from `upstream`, as that one's server sees it.
pub(super) async fn until_streams(cluster: &Cluster, follower: usize, upstream: usize) {
    let name = &cluster.nodes[follower].name;
    let query = format!(
        "SELECT count(*) = 1 FROM pg_stat_replication WHERE application_name = '{name}' AND state = 'streaming'"
    );
    until(cluster, &[upstream], &query).await;
}
