//! What people read, as files: testdata/cli/*.txt. UPDATE=1 writes them.

use std::path::Path;

use serde_json::{Value, json};

use super::list::{history_text, members_text, status_text, troubles};
use super::orders::lowers;
use super::output::Format;
use super::target::Cluster;
use super::{config, events, show};

fn check(file: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/cli").join(file);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, text).expect("the file");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "{} differs: look, then run with UPDATE=1", path.display());
}

fn cluster() -> Value {
    let replica = |name: &str, role: &str, state: &str, lag: u64, port: u16| {
        json!({
            "name": name, "role": role, "state": state, "api_url": format!("http://10.0.0.{port}:8008/patroni"),
            "host": "10.0.0.1", "port": port, "timeline": 3, "receive_lag": lag, "receive_lsn": "0/3000000",
            "replay_lag": lag * 2, "replay_lsn": "0/2000000", "lag": lag, "lsn": "0/3000000",
        })
    };
    let mut lagging = replica("n3", "replica", "streaming", 5_000_000, 5003);
    lagging["tags"] = json!({ "nofailover": true, "zone": "b\u{1b}[2J" });
    lagging["pending_restart"] = true.into();
    lagging["trouble"] = "the WAL here ends at 0/1".into();
    lagging["kept_bytes"] = 5_000_000.into();
    let mut gone = replica("n4", "replica", "unreachable", 0, 5004);
    for key in ["receive_lag", "receive_lsn", "replay_lag", "replay_lsn", "lag", "lsn"] {
        gone[key] = "unknown".into();
    }
    json!({
        "members": [
            { "name": "n1", "role": "leader", "state": "running", "api_url": "http://10.0.0.1:8008/patroni",
              "host": "10.0.0.1", "port": 5001, "timeline": 3 },
            replica("n2", "quorum_standby", "streaming", 0, 5002), lagging, gone,
        ],
        "scope": "demo", "system_identifier": "7412345678901234567", "epoch": 3, "pause": true,
        "sync": { "promise": "quorum", "method": "any", "k": 1, "members": ["n2", "n3"] },
        "scheduled_switchover": { "at": "2026-11-24T10:00:00+00:00", "from": "n1", "to": "n2" },
    })
}

fn parsed(cluster: Value) -> Cluster {
    serde_json::from_value(cluster).expect("a cluster")
}

#[test]
fn lists_look_as_they_did() {
    let cluster = parsed(cluster());
    let members: Vec<_> = cluster.members.iter().map(|member| (0, member)).collect();
    let tree: Vec<_> =
        cluster.members.iter().enumerate().map(|(index, member)| (index.min(2), member)).collect();
    for (format, file) in [
        (Format::Pretty, "list.txt"),
        (Format::Json, "list.json.txt"),
        (Format::Yaml, "list.yaml.txt"),
        (Format::Tsv, "list.tsv.txt"),
    ] {
        check(file, &members_text(&cluster, &members, format, false, false));
    }
    check("topology.txt", &members_text(&cluster, &tree, Format::Pretty, false, false));
    check("list-colour.txt", &members_text(&cluster, &members, Format::Pretty, false, true));
}

#[test]
fn an_empty_cluster_has_a_table_too() {
    let cluster = parsed(json!({ "members": [], "scope": "demo" }));
    check("list-empty.txt", &members_text(&cluster, &[], Format::Pretty, true, false));
}

#[test]
fn the_status_names_every_trouble() {
    let sick = parsed(cluster());
    let well = parsed(
        json!({ "members": [cluster()["members"][0], cluster()["members"][1]], "scope": "demo", "epoch": 3,
        "sync": { "promise": "quorum", "k": 1, "members": ["n2"] } }),
    );
    assert!(troubles(&well).is_empty());
    let text = [sick, well].map(|cluster| status_text(&cluster, &troubles(&cluster))).join("\n");
    check("status.txt", &text);
}

#[test]
fn a_history_looks_as_it_did() {
    let lines = json!([
        [1, 33_554_432, "no recovery target specified", "2026-11-23T05:00:00Z", "n1"],
        [2, 50_331_648, "switchover", "2026-11-23T06:00:00Z", "n2"]
    ]);
    check("history.txt", &history_text(&lines, Format::Pretty));
    check("history.yaml.txt", &history_text(&lines, Format::Yaml));
}

#[test]
fn an_explanation_reads_as_sentences() {
    let body = json!({
        "name": "n2", "role": { "role": "fenced", "epoch": 4 }, "state": "running", "why": "fenced for term 4",
        "steps": [{ "step": "fence" }, { "step": "change_cluster" }], "progress": null, "suspects": 3, "epoch": 4,
        "failed": { "task": "pg_rewind", "times": 2, "error": "no route" }, "leader": null,
        "election": { "epoch": 4, "cause": { "kind": "processes_gone" }, "opened_by": "n3", "last_leader": "n1" },
        "kept": [{ "path": "/data/n2.old-1795408900", "bytes": 312_000_000 }],
        "last_promotion": { "timeline": 1, "lsn": "0/2000000", "reason": "silent", "at": "2026-11-23T05:00:00Z",
            "leader": "n1", "epoch": 3 },
    });
    check("explain.txt", &show::explained(&body));
}

#[test]
fn what_is_lowered_is_lowered_on_the_leader_first() {
    let change = |name: &str, old: &str, new: &str| json!({ name: { "old_value": old, "new_value": new } });
    assert!(lowers(&change("max_connections", "100", "90")));
    assert!(!lowers(&change("max_connections", "90", "100")));
    assert!(!lowers(&change("shared_buffers", "100", "90")), "a follower may have less of it");
    let mut both = change("max_connections", "100", "90");
    both["max_wal_senders"] = json!({ "old_value": "10", "new_value": "20" });
    assert!(!lowers(&both), "what is raised is raised on the followers first");
    assert!(!lowers(&Value::Null));
}

#[test]
fn a_change_of_settings_reads_as_a_difference() {
    let before = json!({ "ttl": 30, "pause": true, "postgresql": { "parameters": { "a.b": 1 } } });
    let mut after = before.clone();
    for (assignment, section) in [("ttl=20", &[][..]), ("pause=", &[]), ("postgresql.parameters.a.b=2", &[])]
    {
        after = antiphon_core::settings::merge(
            &after,
            &config::patch(assignment, section).expect("an assignment"),
        );
    }
    let parameter =
        config::patch("shared_preload_libraries=x", &["postgresql", "parameters"]).expect("an assignment");
    after = antiphon_core::settings::merge(&after, &parameter);
    check("edit-config.txt", &config::difference(&before, &after, false));
    assert_eq!(config::difference(&before, &before, true), "");
}

#[test]
fn events_are_cut_out_of_a_stream_and_shown_in_a_line() {
    let event = json!({ "epoch": 3, "phase": "led", "leader": { "name": "n1", "serving": true }, "pause": false,
        "members": [{ "name": "n1", "role": "leader", "state": "running" }] });
    let mut buffer = format!(": hello\n\nevent: cluster\ndata: {event}\n\nevent: clu").into_bytes();
    let taken = events::next_event(&mut buffer).expect("an event");
    assert_eq!(taken, event);
    assert_eq!(events::next_event(&mut buffer), None);
    assert_eq!(buffer, b"event: clu");
    assert_eq!(events::line(&taken), "term 3 n1 leads: n1=leader/running");
}
