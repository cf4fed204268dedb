//! The laws of the catalogue in a small world of names; real servers are in the battery.

use super::*;

/// A small world of names.
const ROWS: [[&str; 6]; 32] = [
    ["function", "pg_catalog", "now", "safe", "", ""],
    ["function", "pg_catalog", "random", "volatile", "", ""],
    ["function", "pg_catalog", "nextval", "volatile", "", ""],
    ["function", "pg_catalog", "txid_current", "safe", "", ""],
    ["function", "pg_catalog", "pg_backend_pid", "safe", "", ""],
    ["function", "pg_catalog", "pg_get_viewdef", "safe", "", ""],
    ["function", "pg_catalog", "log", "safe", "", ""],
    ["function", "audit", "log", "volatile", "", ""],
    ["function", "app", "pure", "safe", "select $1 + 1", ""],
    ["function", "app", "lies", "safe", "begin return pg_catalog.nextval ('s'); end", ""],
    ["function", "app", "calls_lies", "safe", "select \"lies\"(1)", ""],
    ["function", "app", "runs_text", "safe", "begin execute $1; end", ""],
    ["function", "app", "peeks", "safe", "select count(*) from app.cache", ""],
    ["function", "app", "gen_salt", "volatile", "", ""],
    ["function", "crypt", "gen_random_bytes", "volatile", "", "pgcrypto"],
    ["field", "app", "lies", "safe", "lies(", ""],
    ["operator", "pg_catalog", "+", "safe", "", ""],
    ["operator", "app", "!!!", "safe", "lies(", ""],
    ["type", "pg_catalog", "int4", "safe", "", ""],
    ["type", "app", "even", "safe", "SELECT NULL::integer, (lies(VALUE) + 1)", ""],
    ["function", "app", "even", "safe", "", ""],
    ["relation", "app", "t", "safe", "", ""],
    ["relation", "app", "cache", "unlogged", "", ""],
    ["relation", "app", "s", "sequence", "", ""],
    ["relation", "app", "far", "foreign", "", ""],
    ["relation", "app", "v", "safe", "SELECT t.a, now() FROM t;", ""],
    ["relation", "app", "w", "safe", "SELECT * FROM v2", ""],
    ["relation", "app", "v2", "safe", "SELECT lies(t.a) FROM t", ""],
    ["relation", "app", "secured", "safe", "SELECT (lies(1)), (a)", ""],
    ["relation", "pg_catalog", "pg_locks", "system_view", "", ""],
    ["relation", "pg_catalog", "pg_tables", "system_view", "", ""],
    ["relation", "pg_catalog", "pg_largeobject", "safe", "", ""],
];

fn verdict(text: &str) -> Result<(), Why> {
    certainly_reads(&parse(text), &Catalogue::from_rows(ROWS))
}

#[test]
fn only_what_is_known_to_be_safe_is_a_read() {
    for text in [
        "SELECT 1",
        "SELECT now(), random(), a::int FROM t",
        "SELECT app.pure(1) FROM app.t",
        "SELECT pg_get_viewdef('v')",
        "SELECT * FROM v, pg_tables",
        "SELECT t.a, t.pure FROM t",
        "SELECT pg_catalog.log(1)",
        "SELECT gen_random_bytes(1)",
    ] {
        assert_eq!(verdict(text), Ok(()), "{text}");
    }
}

#[test]
fn what_is_not_says_why() {
    let cases = [
        ("SELECT nextval('s')", Why::Sequence),
        ("SELECT * FROM s", Why::Sequence),
        ("SELECT txid_current()", Why::ServerState),
        ("SELECT pg_backend_pid()", Why::ServerState),
        ("SELECT * FROM pg_locks", Why::ServerView),
        ("SELECT * FROM pg_largeobject", Why::LargeObject),
        ("SELECT * FROM cache", Why::Unlogged),
        ("SELECT * FROM far", Why::Foreign),
        ("SELECT gen_salt('bf')", Why::Volatile),
        // Of two functions of one name, which one is meant depends on the search path.
        ("SELECT log(1)", Why::Volatile),
        ("SELECT audit.log(1)", Why::Volatile),
        ("SELECT runs_text('x')", Why::Volatile),
        ("SELECT peeks()", Why::Unlogged),
        ("SELECT lies(1)", Why::Sequence),
        ("SELECT calls_lies(1)", Why::Sequence),
        ("SELECT t.lies FROM t", Why::Sequence),
        ("SELECT !!! 1", Why::Sequence),
        ("SELECT 1::app.even", Why::Sequence),
        ("SELECT even(1)", Why::Sequence),
        ("SELECT * FROM v2", Why::Sequence),
        ("SELECT * FROM w", Why::Sequence),
        ("SELECT * FROM secured", Why::Sequence),
        ("SELECT * FROM created_a_moment_ago", Why::UnknownName),
        ("SELECT other.now()", Why::UnknownName),
        ("SELECT 1 <-> 2", Why::UnknownName),
        ("SELECT 'x'::mood", Why::UnknownName),
        ("BEGIN READ ONLY", Why::TransactionControl),
        ("SHOW antiphon.token", Why::OwnSetting),
        ("DELETE FROM t", Why::Writes),
    ];
    for (text, why) in cases {
        assert_eq!(verdict(text), Err(why), "{text}");
    }
}

#[test]
fn without_a_catalogue_only_constants_are_read() {
    let none = Catalogue::default();
    assert_eq!(certainly_reads(&parse("SELECT 1"), &none), Ok(()));
    assert_eq!(certainly_reads(&parse("SELECT a FROM t"), &none), Err(Why::NoCatalogue));
}

#[test]
fn a_row_that_is_not_understood_makes_nothing_safe() {
    let catalogue = Catalogue::from_rows([
        ["relation", "app", "t", "of a future version", "", ""],
        ["planet", "app", "u", "safe", "", ""],
        ["relation", "app", "v", "safe", "SELECT FROM WHERE", ""],
    ]);
    for (text, why) in
        [("TABLE t", Why::Unclear), ("TABLE u", Why::UnknownName), ("TABLE v", Why::Unparsable)]
    {
        assert_eq!(certainly_reads(&parse(text), &catalogue), Err(why), "{text}");
    }
}
