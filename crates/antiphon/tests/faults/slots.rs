//! Permanent slots on real clusters: they are where the settings want them, survive the loss of the leader with
//! every change in them, and go when the settings do not name them any more.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use antiphon::demo::cluster::{Cluster, Plan};
use antiphon::demo::http;
use serde_json::{Value, json};

use super::ask::{PATIENCE, connect, says, set, until, until_led_by_another};
use super::{Scratch, UP_WITHIN, plan};

/// The programs of a version, fetched if they are not here yet.
fn postgresql(major: &str) -> PathBuf {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../scripts/servers.sh");
    let output = Command::new(script).args(["postgresql", major]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8(output.stdout).unwrap().lines().last().unwrap())
}

/// Inserts numbers, each in a transaction of its own.
async fn write(cluster: &Cluster, leader: usize, numbers: std::ops::Range<i32>) {
    let client = connect(cluster, leader).await.expect("the leader takes connections");
    for number in numbers {
        client.execute("INSERT INTO t VALUES ($1)", &[&number]).await.expect("acknowledged");
    }
}

/// Reads at least `count` changes of the slot, or all there are, and adds the numbers that they insert.
async fn consume(cluster: &Cluster, leader: usize, count: Option<i32>, seen: &mut BTreeSet<i32>) {
    let client = connect(cluster, leader).await.expect("the leader takes connections");
    let query = "SELECT data FROM pg_logical_slot_get_changes('cdc', NULL, $1)";
    let changes = tokio::time::timeout(PATIENCE, client.query(query, &[&count])).await;
    for row in changes.expect("decoding goes on").expect("decoding works") {
        let change: String = row.get(0);
        if let Some(number) = change.strip_prefix("table public.t: INSERT: a[integer]:") {
            seen.insert(number.parse().expect("a number"));
        }
    }
}

async fn switch_over(cluster: &Cluster, leader: usize) -> usize {
    let body = json!({ "leader": cluster.nodes[leader].name }).to_string();
    let port = cluster.nodes[leader].api_port;
    let answer = http::post(port, "/switchover", &body, PATIENCE).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    let next = until_led_by_another(cluster, leader).await;
    cluster.wait_whole(UP_WITHIN).await.unwrap();
    next
}

fn others(leader: usize) -> Vec<usize> {
    (0..3).filter(|member| *member != leader).collect()
}

fn settings() -> Value {
    json!({
        "synchronous_mode": "quorum",
        "slots": { "cdc": { "type": "logical", "database": "postgres", "plugin": "test_decoding" } },
        "postgresql": { "parameters": { "wal_level": "logical" } },
    })
}

const MADE: &str = "SELECT count(*) = 1 FROM pg_replication_slots WHERE slot_name = 'cdc'";
const COPIED: &str = "SELECT count(*) = 1 FROM pg_replication_slots WHERE slot_name = 'cdc' AND synced \
     AND NOT temporary";

/// A copy becomes usable once the consumer is past the point where its follower began it.
async fn until_copied(cluster: &Cluster, leader: usize, seen: &mut BTreeSet<i32>) {
    let started = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(200));
    for member in others(leader) {
        while !says(cluster, member, COPIED).await {
            assert!(started.elapsed() < PATIENCE, "{} has no copy", cluster.nodes[member].name);
            let client = connect(cluster, leader).await.expect("the leader takes connections");
            client.batch_execute("SELECT pg_log_standby_snapshot()").await.expect("logged");
            consume(cluster, leader, None, seen).await;
            ticks.tick().await;
        }
    }
    eprintln!("copied to every follower after {:.1} s", started.elapsed().as_secs_f64());
}

async fn logical_slot_survives(major: &str) {
    let scratch = Scratch::new(&format!("slots{major}"));
    let plan = Plan { bin_dir: Some(postgresql(major)), ..plan(&scratch, 3, false, settings()) };
    let mut cluster = Cluster::start(&plan).unwrap();
    cluster.wait_whole(UP_WITHIN).await.unwrap();
    let first = cluster.leader().await.unwrap();
    until(&cluster, &[first], MADE).await;
    let client = connect(&cluster, first).await.unwrap();
    client.batch_execute("CREATE TABLE t (a int PRIMARY KEY)").await.unwrap();
    let mut seen = BTreeSet::new();
    write(&cluster, first, 0..50).await;
    until_copied(&cluster, first, &mut seen).await;

    // What the old leader keeps is no copy: it must not keep PostgreSQL from making one.
    let second = switch_over(&cluster, first).await;
    write(&cluster, second, 50..100).await;
    until_copied(&cluster, second, &mut seen).await;

    write(&cluster, second, 100..200).await;
    consume(&cluster, second, Some(60), &mut seen).await;
    write(&cluster, second, 200..250).await;
    let killed = Instant::now();
    cluster.kill_node(second);
    let third = until_led_by_another(&cluster, second).await;
    eprintln!("the slot's leader was replaced after {:.2} s", killed.elapsed().as_secs_f64());
    assert!(says(&cluster, third, COPIED).await, "the slot is on the new leader, and it is the copy");
    write(&cluster, third, 250..300).await;
    consume(&cluster, third, None, &mut seen).await;
    assert_eq!(seen, (0..300).collect(), "no change is missing");

    cluster.start_agent(second).unwrap();
    cluster.wait_whole(UP_WITHIN).await.unwrap();
    until_copied(&cluster, third, &mut seen).await;
    set(&cluster, third, json!({ "slots": null })).await;
    let gone = "SELECT count(*) = 0 FROM pg_replication_slots WHERE slot_name = 'cdc'";
    until(&cluster, &[third], gone).await;
    until(&cluster, &others(third), gone).await;
    until(&cluster, &others(third), "SELECT current_setting('sync_replication_slots') = 'off'").await;
}

#[tokio::test]
async fn a_logical_slot_loses_no_change_with_its_leader_on_18() {
    logical_slot_survives("18").await;
}

#[tokio::test]
async fn a_logical_slot_loses_no_change_with_its_leader_on_17() {
    logical_slot_survives("17").await;
}

#[tokio::test]
async fn copying_from_a_leader_that_hangs_does_not_delay_the_next_one() {
    let scratch = Scratch::new("slots-hang");
    let plan = Plan { bin_dir: Some(postgresql("18")), ..plan(&scratch, 3, false, settings()) };
    let cluster = Cluster::start(&plan).unwrap();
    cluster.wait_whole(UP_WITHIN).await.unwrap();
    let first = cluster.leader().await.unwrap();
    until(&cluster, &[first], MADE).await;
    let copying = "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'slotsync worker'";
    until(&cluster, &others(first), copying).await;
    let mut leader = first;
    for _ in 0..3 {
        let frozen = Instant::now();
        cluster.pause_node(leader, true);
        let next = until_led_by_another(&cluster, leader).await;
        let took = frozen.elapsed();
        cluster.pause_node(leader, false);
        eprintln!("a frozen leader was replaced after {:.2} s", took.as_secs_f64());
        assert!(took < Duration::from_secs(10), "replaced after {took:?}");
        leader = next;
        // The one that was frozen is back, too.
        until(&cluster, &others(leader), copying).await;
    }
}

/// The server that the agent finds by itself may be of any version; this holds before 17.
#[tokio::test]
async fn a_logical_slot_is_made_anew_before_17_and_the_loss_is_said() {
    let scratch = Scratch::new("slots-anew");
    let plan = plan(&scratch, 3, false, settings());
    let cluster = Cluster::start(&plan).unwrap();
    cluster.wait_whole(UP_WITHIN).await.unwrap();
    let first = cluster.leader().await.unwrap();
    if says(&cluster, first, "SELECT current_setting('server_version_num')::int >= 170000").await {
        return eprintln!("skipped: the server here copies slots");
    }
    until(&cluster, &[first], MADE).await;
    let second = switch_over(&cluster, first).await;
    until(&cluster, &[second], MADE).await;
    // The old leader's would hold back WAL for nobody.
    let none = "SELECT count(*) = 0 FROM pg_replication_slots WHERE slot_name = 'cdc'";
    until(&cluster, &others(second), none).await;
    let log = scratch.path().join(&cluster.nodes[second].name).join("agent.log");
    let said = std::fs::read_to_string(log).unwrap();
    assert!(said.contains("the logical slot was made anew on this leader"), "{said}");
}

#[tokio::test]
async fn a_physical_slot_is_on_every_member_moves_with_the_leaders_and_goes_with_its_setting() {
    let scratch = Scratch::new("slots-physical");
    let settings = json!({
        "synchronous_mode": "quorum",
        "slots": { "dr": {}, "theirs": {} },
        "ignore_slots": [{ "name": "theirs" }],
    });
    let plan = plan(&scratch, 3, false, settings);
    let cluster = Cluster::start(&plan).unwrap();
    cluster.wait_whole(UP_WITHIN).await.unwrap();
    let leader = cluster.leader().await.unwrap();
    let all = [0, 1, 2];
    until(&cluster, &all, "SELECT count(*) = 1 FROM pg_replication_slots WHERE slot_name = 'dr'").await;
    let client = connect(&cluster, leader).await.unwrap();
    client.batch_execute("SELECT pg_create_physical_replication_slot('mine', true)").await.unwrap();
    client.batch_execute("SELECT pg_logical_emit_message(false, 'x', repeat('x', 4000000))").await.unwrap();
    let moved = "SELECT end_lsn::text FROM pg_replication_slot_advance('dr', pg_current_wal_flush_lsn())";
    let to: String = client.query_one(moved, &[]).await.unwrap().get(0);
    let near = format!(
        "SELECT restart_lsn > '{to}'::pg_lsn - 1048576 AND restart_lsn <= '{to}'::pg_lsn \
         FROM pg_replication_slots WHERE slot_name = 'dr'"
    );
    until(&cluster, &all, &near).await;

    let next = switch_over(&cluster, leader).await;
    until(&cluster, &all, "SELECT count(*) = 1 FROM pg_replication_slots WHERE slot_name = 'dr'").await;
    set(&cluster, next, json!({ "slots": null })).await;
    until(&cluster, &all, "SELECT count(*) = 0 FROM pg_replication_slots WHERE slot_name = 'dr'").await;
    let left = "SELECT count(*) = 1 FROM pg_replication_slots WHERE slot_name = 'mine'";
    assert!(says(&cluster, leader, left).await, "a slot of somebody else is left alone");
    let made = "SELECT count(*) = 0 FROM pg_replication_slots WHERE slot_name = 'theirs'";
    for member in all {
        assert!(says(&cluster, member, made).await, "a slot that is to be ignored is not made");
    }
}
