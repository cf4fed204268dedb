//! Commands as people and exporters type them, and what they are told when nothing such exists.

use super::*;

fn told(sql: &str) -> String {
    parse(sql.as_bytes()).expect_err(sql).message
}

#[test]
fn commands_are_read_as_pgbouncer_reads_them() {
    let database = || Some("app".to_owned());
    for (sql, command) in [
        ("SHOW POOLS;", Command::Show(Show::Pools)),
        ("  show  stats_totals ", Command::Show(Show::StatsTotals)),
        ("", Command::Nothing),
        (";", Command::Nothing),
        ("PAUSE", Command::Pause(None)),
        ("pause app;", Command::Pause(database())),
        ("RESUME \"app\"", Command::Resume(database())),
        ("RECONNECT\tapp", Command::Reconnect(database())),
        ("KILL \"a\"\"b c\"", Command::Kill(Some("a\"b c".to_owned()))),
        ("KILL_CLIENT 77;", Command::KillClient(77)),
        ("DISABLE app", Command::Disable("app".to_owned())),
        ("reload;", Command::Reload),
        ("ENABLE app", Command::Enable("app".to_owned())),
    ] {
        assert_eq!(parse(sql.as_bytes()), Ok(command), "{sql}");
    }
}

#[test]
fn what_cannot_be_read_is_told_with_what_can() {
    assert!(told("SELECT 1").contains("SHOW HELP"));
    assert!(told("SHOW THINGS").contains("SHOW HELP"));
    assert!(told("DISABLE").contains("a database is required"));
    assert!(told("PAUSE pgbouncer").contains("the console itself"));
    assert!(told("SET pool_size = 5").contains("RELOAD"));
    assert!(told("RELOAD now").contains("SHOW HELP"));
    assert!(told("KILL_CLIENT x").contains("SHOW CLIENTS"));
    for name in ["a b", "\"a", "\"a\"b\"", "'a'", "\"\""] {
        assert!(told(&format!("PAUSE {name}")).contains("double quotes"), "{name}");
    }
    assert!(parse(b"PAUSE \xff").is_err());
}

#[test]
fn only_looking_changes_nothing() {
    assert!(parse(b"SHOW CLIENTS").is_ok_and(|command| command.only_looks()));
    assert!(parse(b"RESUME").is_ok_and(|command| !command.only_looks()));
}

#[test]
fn help_names_everything_that_can_be_shown() {
    let mut out = Vec::new();
    help(&mut out);
    let text = String::from_utf8_lossy(&out);
    for (name, _) in SHOWS {
        assert!(text.contains(name), "{name}: {text}");
    }
}
