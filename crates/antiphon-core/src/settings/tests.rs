//! What a settings document may say, and what it is told when it may not.

use serde_json::json;

use super::*;

fn errors(document: &Value) -> Vec<String> {
    Settings::resolve(document).expect_err("mistakes").iter().map(ToString::to_string).collect()
}

#[test]
fn an_empty_document_is_the_defaults_and_loses_nothing() {
    let settings = Settings::resolve(&json!({})).expect("no mistakes");
    assert_eq!(settings, Settings::default());
    assert_eq!((settings.synchronous_mode, settings.synchronous_node_count), (SyncMode::Quorum, 1));
}

#[test]
fn a_document_as_patroni_writes_it_resolves() {
    let settings = Settings::resolve(&json!({
        "ttl": 30, "loop_wait": 10, "retry_timeout": 10, "maximum_lag_on_failover": 1048576,
        "master_start_timeout": 0, "synchronous_mode": true, "check_timeline": true,
        "member_slots_ttl": "30min", "maximum_lag_on_syncnode": -1,
        "permanent_slots": {"cdc": {"type": "logical", "database": "app", "plugin": "pgoutput"}, "dr": {}},
        "ignore_slots": [{"name": "x", "type": "physical"}],
        "postgresql": {
            "use_pg_rewind": true, "use_slots": true,
            "parameters": {"wal_level": "hot_standby", "hot_standby": "on", "max_connections": 100,
                           "wal_log_hints": "on", "work_mem": "8MB", "Jit": false},
            "pg_hba": ["host all all 127.0.0.1/32 scram-sha-256"],
            "recovery_conf": null
        }
    }))
    .expect("no mistakes");
    assert_eq!(settings.ttl, Duration::from_secs(30));
    assert_eq!(settings.primary_start_timeout, Duration::ZERO);
    assert_eq!(settings.synchronous_mode, SyncMode::On);
    assert_eq!(settings.slots.get("dr"), Some(&PermanentSlot::Physical));
    assert_eq!(settings.postgresql.parameters.get("jit").map(String::as_str), Some("off"));
    assert!(settings.ignore_slots.iter().any(|m| m.matches("x", SlotKind::Physical, None, None)));
}

#[test]
fn durations_and_sizes_take_numbers_and_units() {
    for (value, millis) in [
        (json!(1), 1000),
        (json!(1.5), 1500),
        (json!("2"), 2000),
        (json!("500ms"), 500),
        (json!("1 min"), 60_000),
        (json!("2h"), 7_200_000),
    ] {
        assert_eq!(span(&value), Some(Duration::from_millis(millis)), "{value}");
    }
    for bad in [
        json!(-1),
        json!("1e9"),
        json!("s"),
        json!("1 fortnight"),
        json!("99999d"),
        json!(true),
        json!("nan"),
        json!("--1"),
    ] {
        assert_eq!(span(&bad), None, "{bad}");
    }
    assert_eq!(bytes(&json!("1MB")), Some(1 << 20));
    assert_eq!(bytes(&json!("16kB")), Some(16 << 10));
    assert_eq!(bytes(&json!("1.5kB")), Some(1536));
    assert_eq!(bytes(&json!("1e99")), None);
    assert_eq!(bytes(&json!("99999999TB")), None);
}

#[test]
fn every_mistake_is_reported_at_once_with_its_key_value_and_remedy() {
    let found = errors(&json!({
        "ttl": 0, "lop_wait": 10, "synchronous_node_count": 0, "pause": "maybe",
        "postgresql": {"parametrs": {}, "pg_hba": ["a\nb"], "data_dir": "/x", "parameters": {"a b": 1, "max_connections": 5}},
        "standby_cluster": {"host": "x"}
    }));
    let expected = [
        "ttl: 0 is not a duration of at least 1s, like 10s",
        "lop_wait: unknown setting; did you mean loop_wait?",
        "synchronous_node_count: 0 is not a whole number from 1 to 100",
        "pause: \"maybe\" is not true or false",
        "postgresql.parametrs: unknown setting; did you mean postgresql.parameters?",
        "postgresql.pg_hba.0: \"a\\nb\" is not a text of one line",
        "postgresql.data_dir: belongs to a node, not to the cluster; set it in the node file",
        "postgresql.parameters.a b: is not the name of a parameter: use letters, digits, '_' and '.'",
        "postgresql.parameters.max_connections: is \"5\" and must be a whole number of at least 25",
        "standby_cluster: is not supported yet: this cluster would lead instead of following another one; remove it, \
         or keep Patroni for this cluster",
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_document_cannot_run_a_program_unless_the_node_opted_in() {
    for name in [
        "archive_command",
        "RESTORE_COMMAND",
        "shared_preload_libraries",
        "archive_library",
        "ssl_passphrase_command",
    ] {
        for section in ["parameters", "recovery_conf"] {
            let document = json!({"postgresql": {section: {name: "x"}}});
            assert!(errors(&document).concat().contains("allow_dynamic_commands"), "{name}");
            Settings::resolve_with(&document, DynamicCommands::Allowed).expect("the node opted in");
        }
    }
}

#[test]
fn what_the_manager_controls_cannot_be_set_even_with_the_opt_in() {
    for name in [
        "primary_conninfo",
        "synchronous_standby_names",
        "listen_addresses",
        "port",
        "recovery_target_lsn",
        "hot_standby",
    ] {
        let document = json!({"postgresql": {"parameters": {name: "off"}}});
        assert!(Settings::resolve_with(&document, DynamicCommands::Allowed).is_err(), "{name}");
    }
}

#[test]
fn settings_that_cannot_work_together_are_refused() {
    assert!(errors(&json!({"ttl": 1, "failure_timeout": "600ms"})).concat().contains("raise ttl"));
    let lowered = json!({"postgresql": {"parameters": {"synchronous_commit": false}}});
    assert!(errors(&lowered).concat().contains("no follower has"));
    Settings::resolve(&merge(&lowered, &json!({"synchronous_mode": "off"}))).expect("asynchronous mode may");
    assert!(
        errors(&json!({"master_start_timeout": 1, "primary_start_timeout": 2}))
            .concat()
            .contains("remove one")
    );
}

#[test]
fn hostile_documents_are_mistakes_and_not_panics() {
    let mut deep = json!(1);
    for _ in 0..100 {
        deep = json!({"x": deep});
    }
    for document in [
        json!(null),
        json!([]),
        json!("x"),
        json!(1),
        json!({"": 1}),
        json!({"postgresql": []}),
        json!({"ttl": deep}),
        json!({"ttl": 1e300}),
        json!({"slots": {"A b": {}}}),
        json!({"slots": {"x": 1}}),
        json!({"ignore_slots": [{}]}),
        json!({"slots": {"x": {"type": "logical"}}}),
        json!({"postgresql.use_slots": true}),
        json!({"postgresql": {"parameters": {"x": [1]}}}),
        json!({"slots": {"x": {"cluster_type": "standby"}}}),
        json!({"postgresql": {"parameters": {"x": "a\u{0}b"}}}),
        json!({"x".repeat(10_000): 1}),
        json!({"maximum_lag_on_syncnode": -2}),
        json!({"maximum_lag_on_failover": -1}),
    ] {
        assert!(Settings::resolve(&document).is_err(), "taken: {document}");
    }
}

#[test]
fn a_patch_merges_maps_deletes_by_null_and_replaces_the_rest() {
    let document = json!({"ttl": 5, "postgresql": {"parameters": {"a": 1, "b": 2}, "pg_hba": ["x"]}});
    let patch = json!({"ttl": null, "postgresql": {"parameters": {"a": null, "c": 3}, "pg_hba": ["y"]}});
    let merged = merge(&document, &patch);
    assert_eq!(merged, json!({"postgresql": {"parameters": {"b": 2, "c": 3}, "pg_hba": ["y"]}}));
    let lines: Vec<String> = diff(&document, &merged).iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "- postgresql.parameters.a: 1",
            "+ postgresql.parameters.c: 3",
            "- postgresql.pg_hba: [\"x\"]\n+ postgresql.pg_hba: [\"y\"]",
            "- ttl: 5",
        ]
    );
    assert!(diff(&document, &document).is_empty());
}

#[test]
fn resolved_settings_survive_a_journal() {
    let settings = Settings::resolve(&json!({"slots": {"a": {"type": "physical"}}, "sync_timeout": "3s"}))
        .expect("sound");
    let text = serde_json::to_string(&settings).expect("it serialises");
    assert_eq!(serde_json::from_str::<Settings>(&text).expect("it reads back"), settings);
}
