//! What is only looked at: shapes as Patroni has them.

use std::time::Duration;

use antiphon_core::ha::cluster::Request;
use serde_json::{Value, json};

use super::fixture::{Served, changed, name, standby, view, with_server};

async fn json_of(served: &Served, path: &str) -> Value {
    let answer = served.get(path).await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.text);
    serde_json::from_str(&answer.text).expect("JSON")
}

#[tokio::test]
async fn the_status_has_patronis_fields() {
    let served = Served::new(view("n1")).await;
    let status = json_of(&served, "/patroni").await;
    assert_eq!(status["state"], "running");
    assert_eq!(status["role"], "primary");
    assert_eq!(status["server_version"], 150_018);
    assert_eq!(status["xlog"], json!({ "location": 0x300_0000 }));
    assert_eq!(status["timeline"], 3);
    assert_eq!(status["dcs_last_seen"], 1_795_409_000_u64);
    assert_eq!(status["database_system_identifier"], "7412345678901234567");
    assert_eq!(status["patroni"], json!({ "version": "4.1.5", "scope": "demo", "name": "n1" }));
    assert_eq!(status["antiphon"]["why"], "leading");
    assert!(status.get("cluster_unlocked").is_none() && status.get("pause").is_none());
    let replica = Served::new(with_server(view("n2"), standby(16))).await;
    let status = json_of(&replica, "/patroni").await;
    assert_eq!((&status["role"], &status["replication_state"]), (&json!("replica"), &json!("streaming")));
    assert_eq!(status["quorum_standby"], true);
    assert_eq!(status["xlog"]["received_location"], 0x300_0000 - 16);
    assert_eq!(status["xlog"]["paused"], false);
}

#[tokio::test]
async fn the_cluster_has_patronis_shape() {
    let mut view = changed(view("n1"), |world| {
        world.settings.pause = true;
        world.store.members.get_mut(&name("n3")).expect("n3").value.tags.nofailover = true;
        world.peers.get_mut(&name("n3")).expect("n3").heard = Some(world.now - Duration::from_secs(60));
    });
    view.scheduled = Some(Request {
        leader: Some(name("n1")),
        candidate: Some(name("n2")),
        scheduled_at: Some(1_795_514_400),
        accept_loss: false,
    });
    let served = Served::new(view).await;
    let cluster = json_of(&served, "/cluster").await;
    let n1 = json!({
        "name": "n1", "role": "leader", "state": "running", "api_url": "http://127.0.0.1:7001/patroni",
        "host": "127.0.0.1", "port": 5001, "timeline": 3,
    });
    let n2 = json!({
        "name": "n2", "role": "quorum_standby", "state": "streaming", "api_url": "http://127.0.0.1:7002/patroni",
        "host": "127.0.0.1", "port": 5002, "timeline": 3, "receive_lag": 0, "receive_lsn": "0/3000000",
        "replay_lag": 0, "replay_lsn": "0/3000000", "lag": 0, "lsn": "0/3000000",
    });
    let n3 = json!({
        "name": "n3", "role": "replica", "state": "unreachable", "api_url": "http://127.0.0.1:7003/patroni",
        "host": "127.0.0.1", "port": 5003, "tags": { "nofailover": true }, "receive_lag": "unknown",
        "receive_lsn": "unknown", "replay_lag": "unknown", "replay_lsn": "unknown", "lag": "unknown", "lsn": "unknown",
    });
    assert_eq!(cluster["members"], json!([n1, n2, n3]));
    assert_eq!((&cluster["pause"], &cluster["scope"]), (&json!(true), &json!("demo")));
    let scheduled = json!({ "at": "2026-11-24T10:00:00+00:00", "from": "n1", "to": "n2" });
    assert_eq!(cluster["scheduled_switchover"], scheduled);
}

#[tokio::test]
async fn the_rest_is_there() {
    let served = Served::new(view("n1")).await;
    let history = json!([[1, 0x200_0000, "no recovery target specified", "2026-11-23T05:00:00Z", "n1"]]);
    assert_eq!(json_of(&served, "/history").await, history);
    assert_eq!(json_of(&served, "/config").await, json!({ "ttl": 30, "synchronous_mode": "quorum" }));
    let topology = json_of(&served, "/topology").await;
    assert_eq!(topology["members"][0]["name"], "n1");
    assert_eq!(topology["members"][0]["followers"][1]["name"], "n3");
    assert_eq!(json_of(&served, "/explain").await["reason"], json!({ "code": "leading" }));
    assert_eq!(served.get("/failsafe").await.status, 502);
    served.delete("config").await;
    assert_eq!(served.get("/config").await.status, 502);
    let failsafe = Served::new(changed(view("n1"), |world| world.settings.failsafe_mode = true)).await;
    assert_eq!(json_of(&failsafe, "/failsafe").await["n2"], "http://127.0.0.1:7002/patroni");
}

#[tokio::test]
async fn members_that_stream_in_a_ring_are_all_shown() {
    let ring = changed(view("n1"), |world| {
        for (one, other) in [("n2", "n3"), ("n3", "n2")] {
            let beat = world.peers.get_mut(&name(one)).and_then(|peer| peer.beat.as_mut()).expect("a beat");
            beat.server.upstream = Some(name(other));
        }
    });
    let topology = Served::new(ring).await.get("/topology").await.text;
    for name in ["n1", "n2", "n3"] {
        assert_eq!(topology.matches(&format!("\"name\":\"{name}\"")).count(), 1, "{topology}");
    }
}

#[tokio::test]
async fn metrics_have_patronis_names() {
    let served = Served::new(view("n1")).await;
    let page = served.get("/metrics").await.text;
    let labels = r#"{scope="demo",name="n1"}"#;
    let known = [
        ("patroni_version", "040105"),
        ("patroni_postgres_running", "1"),
        ("patroni_postmaster_start_time", "1795406400"),
        ("patroni_primary", "1"),
        ("patroni_xlog_location", "50331648"),
        ("patroni_standby_leader", "0"),
        ("patroni_replica", "0"),
        ("patroni_sync_standby", "0"),
        ("patroni_quorum_standby", "0"),
        ("patroni_xlog_received_location", "0"),
        ("patroni_xlog_replayed_location", "0"),
        ("patroni_xlog_replayed_timestamp", "0"),
        ("patroni_xlog_paused", "0"),
        ("patroni_postgres_streaming", "0"),
        ("patroni_postgres_in_archive_recovery", "0"),
        ("patroni_postgres_server_version", "150018"),
        ("patroni_cluster_unlocked", "0"),
        ("patroni_failsafe_mode_is_active", "0"),
        ("patroni_postgres_timeline", "3"),
        ("patroni_dcs_last_seen", "1795409000"),
        ("patroni_pending_restart", "0"),
        ("patroni_is_paused", "0"),
        ("patroni_postgres_state", "5"),
        ("antiphon_epoch", "3"),
        ("antiphon_leads", "1"),
        ("antiphon_sync_set_members", "1"),
        ("antiphon_degraded", "0"),
    ];
    for (name, value) in known {
        assert!(page.contains(&format!("\n{name}{labels} {value}\n")), "{name}: {page}");
        assert!(page.contains(&format!("# TYPE {name} ")), "{name}");
    }
    assert!(
        page.contains("antiphon_member_lag_bytes{scope=\"demo\",name=\"n1\",member=\"n2\"} 0\n"),
        "{page}"
    );
}
