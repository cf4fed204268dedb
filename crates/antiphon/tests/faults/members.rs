//! Members in the corners, on real clusters: a follower of a follower, a follower that replays late on purpose, and
//! one whose WAL is gone.

use std::time::Duration;

use antiphon::demo::cluster::Cluster;
use antiphon::demo::http;
use antiphon::demo::load::Load;
use serde_json::json;

use super::ask::{
    PATIENCE, append, connect, says, set, until, until_led_by_another, until_listed, until_recorded,
    until_streams, write_down,
};
use super::{Scratch, UP_WITHIN, plan};

/// The leader of three members, and the others.
async fn parts(cluster: &Cluster) -> (usize, usize, usize) {
    let leader = cluster.leader().await.unwrap();
    let [one, other] = [1, 2].map(|step| (leader + step) % 3);
    (leader, one, other)
}

#[tokio::test]
async fn a_follower_of_a_follower_always_finds_someone_to_stream_from() {
    let scratch = Scratch::new("cascade");
    let plan = plan(&scratch, 3, false, json!({ "synchronous_mode": "quorum" }));
    let mut cluster = Cluster::start(&plan).unwrap();
    cluster.wait_whole(UP_WITHIN).await.unwrap();
    let (leader, between, below) = parts(&cluster).await;
    // Else it could lead: it may have all that the other one has.
    let tag = format!("tags:\n  replicatefrom: {}\n  nofailover: true\n", cluster.nodes[between].name);
    write_down(&cluster, below, &tag).await;
    until_streams(&cluster, below, between).await;
    let load = Load::start(cluster.servers(), 2, UP_WITHIN).await.unwrap();
    load.wait_for(50, UP_WITHIN).await.unwrap();

    cluster.kill_node(between);
    until_streams(&cluster, below, leader).await;
    load.wait_for(50, UP_WITHIN).await.unwrap();
    cluster.start_agent(between).unwrap();
    until_streams(&cluster, below, between).await;
    cluster.wait_whole(UP_WITHIN).await.unwrap();

    load.wait_for(50, UP_WITHIN).await.unwrap();
    cluster.kill_node(leader);
    let next = until_led_by_another(&cluster, leader).await;
    assert_eq!(next, between, "the other one may not lead");
    until_streams(&cluster, below, next).await;
    cluster.start_agent(leader).unwrap();
    cluster.wait_whole(UP_WITHIN).await.unwrap();
    load.wait_for(50, UP_WITHIN).await.unwrap();
    let timeline = cluster.get(next, "/patroni").await.unwrap()["timeline"].clone();
    for member in 0..3 {
        let timeline = |listed: &serde_json::Value| listed["timeline"] == timeline;
        until_listed(&cluster, member, "on the new timeline", timeline).await;
    }
    assert_eq!(load.finish(UP_WITHIN).await.unwrap().lost, 0);
    cluster.stop();
}

const DELAYED: &str = "SELECT now() - pg_last_xact_replay_timestamp() > '2 s' \
     AND pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn()";

#[tokio::test]
async fn a_follower_that_replays_late_neither_acknowledges_nor_leads_while_others_can() {
    let scratch = Scratch::new("delayed");
    let plan = plan(&scratch, 3, false, json!({ "synchronous_mode": "quorum" }));
    let mut cluster = Cluster::start(&plan).unwrap();
    cluster.wait_whole(UP_WITHIN).await.unwrap();
    let (leader, prompt, late) = parts(&cluster).await;
    write_down(&cluster, late, "  parameters:\n    recovery_min_apply_delay: 3s\n").await;
    until_listed(&cluster, late, "out of the sync set", |listed| listed["role"] == "replica").await;
    let load = Load::start(cluster.servers(), 2, UP_WITHIN).await.unwrap();
    until(&cluster, &[late], DELAYED).await;

    load.wait_for(50, UP_WITHIN).await.unwrap();
    cluster.kill_node(leader);
    assert_eq!(until_led_by_another(&cluster, leader).await, prompt, "another could lead");
    cluster.start_agent(leader).unwrap();
    // PostgreSQL asks for more WAL when it has replayed what it has, so within the delay.
    until_streams(&cluster, late, prompt).await;
    until(&cluster, &[late], DELAYED).await;
    cluster.wait_whole(UP_WITHIN).await.unwrap();
    assert_eq!(load.finish(UP_WITHIN).await.unwrap().lost, 0);
    cluster.stop();
}

/// `antiphon restart --pending` of the whole cluster.
fn restart_pending(cluster: &Cluster) {
    let url = format!("http://127.0.0.1:{}", cluster.nodes[0].api_port);
    let command = std::process::Command::new(super::binary())
        .args(["--url", &url, "restart", "--pending", "--force"])
        .output()
        .unwrap();
    assert!(command.status.success(), "{command:?}");
}

#[tokio::test]
async fn a_setting_that_followers_must_match_is_raised_and_lowered_by_one_command() {
    let scratch = Scratch::new("lowered");
    let mut cluster = Cluster::start(&plan(&scratch, 2, true, json!({ "synchronous_mode": true }))).unwrap();
    cluster.wait_whole(UP_WITHIN).await.unwrap();
    for wanted in [150, 60] {
        let leader = cluster.leader().await.unwrap();
        set(&cluster, leader, json!({ "postgresql": { "parameters": { "max_connections": wanted } } })).await;
        for member in 0..2 {
            until_listed(&cluster, member, "pending", |listed| listed["pending_restart"] == true).await;
        }
        restart_pending(&cluster);
        cluster.wait_whole(UP_WITHIN).await.unwrap();
        let query = format!("SELECT current_setting('max_connections') = '{wanted}'");
        until(&cluster, &[0, 1], &query).await;
    }
    // In any other order a follower starts with what its leader has, and goes on waiting.
    let leader = cluster.leader().await.unwrap();
    let follower = 1 - leader;
    set(&cluster, leader, json!({ "postgresql": { "parameters": { "max_connections": 40 } } })).await;
    until_listed(&cluster, follower, "pending", |listed| listed["pending_restart"] == true).await;
    let port = cluster.nodes[follower].api_port;
    let answer = http::post(port, "/restart", "{}", PATIENCE).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(says(&cluster, follower, "SELECT current_setting('max_connections') = '60'").await);
    until_listed(&cluster, follower, "pending still", |listed| listed["pending_restart"] == true).await;
    restart_pending(&cluster);
    until(&cluster, &[0, 1], "SELECT current_setting('max_connections') = '40'").await;
    cluster.stop();
}

/// Has the leader throw away the WAL that a follower that is gone still needs, its slot's limit notwithstanding.
async fn drop_wal(cluster: &Cluster, leader: usize, follower: usize) {
    let client = connect(cluster, leader).await.expect("the leader takes connections");
    for _ in 0..6 {
        client.batch_execute("SELECT pg_logical_emit_message(true, 'x', 'y')").await.expect("written");
        client.batch_execute("SELECT pg_switch_wal()").await.expect("switched");
    }
    let slot = &cluster.nodes[follower].name;
    let lost = format!("SELECT wal_status = 'lost' FROM pg_replication_slots WHERE slot_name = '{slot}'");
    let begun = std::time::Instant::now();
    while !says(cluster, leader, &lost).await {
        assert!(begun.elapsed() < PATIENCE, "the slot was never given up");
        client.batch_execute("SELECT pg_switch_wal()").await.expect("switched");
        client.batch_execute("CHECKPOINT").await.expect("a checkpoint");
    }
}

#[tokio::test]
async fn a_follower_whose_wal_is_gone_says_so_and_is_built_anew_where_that_is_allowed() {
    let scratch = Scratch::new("gap");
    let parameters = json!({
        "max_slot_wal_keep_size": "16MB", "wal_keep_size": "0", "max_wal_size": "32MB", "min_wal_size": "32MB",
    });
    let settings = json!({ "synchronous_mode": "off", "postgresql": { "parameters": parameters } });
    let mut cluster = Cluster::start(&plan(&scratch, 2, true, settings)).unwrap();
    cluster.wait_whole(UP_WITHIN).await.unwrap();
    let leader = cluster.leader().await.unwrap();
    let follower = 1 - leader;

    cluster.kill_node(follower);
    drop_wal(&cluster, leader, follower).await;
    cluster.start_agent(follower).unwrap();
    let told = |listed: &serde_json::Value| listed["trouble"].as_str().is_some_and(|t| t.contains("reinit"));
    until_listed(&cluster, follower, "told to be built anew", told).await;
    let port = cluster.nodes[follower].api_port;
    let metrics = http::get(port, "/metrics", Duration::from_secs(5)).await.unwrap().body;
    assert!(
        metrics.lines().any(|line| line.starts_with("antiphon_needs_operator{") && line.ends_with(" 1")),
        "{metrics}"
    );
    let answer = http::post(port, "/reinitialize", r#"{"from-leader":true}"#, PATIENCE).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    cluster.wait_whole(UP_WITHIN).await.unwrap();
    until_listed(&cluster, follower, "without trouble", |listed| listed["trouble"].is_null()).await;

    cluster.kill_node(follower);
    append(&cluster, follower, "  remove_data_directory_on_diverged_timelines: true\n");
    drop_wal(&cluster, leader, follower).await;
    cluster.start_agent(follower).unwrap();
    until(&cluster, &[leader], "SELECT bool_and(active AND wal_status <> 'lost') FROM pg_replication_slots")
        .await;
    cluster.wait_whole(UP_WITHIN).await.unwrap();
    cluster.stop();
}

#[tokio::test]
async fn an_agent_that_is_told_to_end_hands_over_although_a_switchover_waits_for_its_time() {
    let scratch = Scratch::new("scheduled");
    let mut cluster = Cluster::start(&plan(&scratch, 2, true, json!({ "synchronous_mode": true }))).unwrap();
    cluster.wait_whole(UP_WITHIN).await.unwrap();
    let leader = cluster.leader().await.unwrap();
    let load = Load::start(cluster.servers(), 2, UP_WITHIN).await.unwrap();
    load.wait_for(50, UP_WITHIN).await.unwrap();
    let wish = json!({ "leader": cluster.nodes[leader].name, "scheduled_at": "2036-01-01T00:00:00Z" });
    let port = cluster.nodes[leader].api_port;
    let answer = http::post(port, "/switchover", &wish.to_string(), PATIENCE).await.unwrap();
    assert_eq!(answer.status, 202, "{}", answer.body);

    let begun = std::time::Instant::now();
    cluster.end_agent(leader).await.unwrap();
    assert_eq!(until_led_by_another(&cluster, leader).await, 1 - leader);
    // A server that is stopped before anybody takes over costs the time until it is missed.
    assert!(load.longest_gap(begun) < Duration::from_secs(10), "{:?}", load.longest_gap(begun));
    let history = until_recorded(&cluster, 1 - leader).await;
    assert!(history.contains("switchover"), "{history}");
    assert_eq!(load.finish(UP_WITHIN).await.unwrap().lost, 0);
    cluster.stop();
}
