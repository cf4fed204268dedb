//! What texts say by themselves, and that none of them does harm.

use super::*;
use crate::names::Kind;

fn refused(text: &str) -> Why {
    match parse(text).content {
        Content::Refused(why) => why,
        other => panic!("{text}: {other:?}"),
    }
}

/// The names a query depends on, as `kind schema.name`.
fn names(text: &str) -> Vec<String> {
    match parse(text).content {
        Content::Query(names) => names.iter().map(said).collect(),
        other => panic!("{text}: {other:?}"),
    }
}

fn said(name: &Name) -> String {
    let kind = match name.kind {
        Kind::Function => "f",
        Kind::Operator => "o",
        Kind::Relation => "r",
        Kind::Type => "t",
        Kind::Field => "x",
    };
    name.schema
        .as_ref()
        .map_or_else(|| format!("{kind} {}", name.name), |schema| format!("{kind} {schema}.{}", name.name))
}

#[test]
fn what_is_no_read_says_why() {
    let cases = [
        ("INSERT INTO t VALUES (1)", Why::Writes),
        ("/* x */ (delete from t)", Why::Writes),
        ("WITH a AS (SELECT 1) INSERT INTO t SELECT * FROM a", Why::Writes),
        ("WITH a AS (DELETE FROM t RETURNING *) SELECT * FROM a", Why::WritesInWith),
        ("SELECT * FROM (WITH a AS (UPDATE t SET a = 1 RETURNING a) SELECT * FROM a) b", Why::WritesInWith),
        ("SELECT 1 INTO x", Why::Into),
        ("SELECT * FROM t FOR UPDATE", Why::Locks),
        ("SELECT * FROM (SELECT * FROM t FOR NO KEY UPDATE) s", Why::Locks),
        ("SELECT 1 UNION ALL (SELECT a FROM t FOR SHARE)", Why::Locks),
        ("WITH a AS (SELECT * FROM t FOR KEY SHARE) SELECT * FROM a", Why::Locks),
        ("COPY t FROM STDIN", Why::Writes),
        ("COPY t TO '/tmp/x'", Why::Utility),
        ("COPY t TO PROGRAM 'cat'", Why::Utility),
        ("COPY (DELETE FROM t RETURNING *) TO STDOUT", Why::Writes),
        ("DO $$ begin end $$", Why::Utility),
        ("CALL p()", Why::Utility),
        ("EXPLAIN SELECT 1", Why::Utility),
        ("SHOW work_mem", Why::Utility),
        ("SET work_mem = 1", Why::Utility),
        ("RESET ALL", Why::Utility),
        ("PREPARE p AS SELECT 1", Why::Utility),
        ("SELECT 1; INSERT INTO t VALUES (1)", Why::Writes),
        ("SELECT 1; SELECT 1 FROM t FOR UPDATE", Why::Locks),
        ("BEGIN; SELECT 1; COMMIT", Why::TransactionControl),
        ("SELECT 1; SET antiphon.route = leader", Why::OwnSetting),
        ("SELECT FROM WHERE", Why::Unparsable),
        ("SELECT 'open", Why::Unparsable),
        ("SELECT 1 \0", Why::Unparsable),
        ("@", Why::Unparsable),
        ("SELECT * FROM pg_temp.t", Why::Temporary),
        ("SELECT pg_temp_3.f()", Why::Temporary),
    ];
    for (text, why) in cases {
        assert_eq!(refused(text), why, "{text}");
    }
    assert_eq!(refused(&format!("SELECT '{}'", "x".repeat(TEXT_MAX))), Why::TooLong);
}

#[test]
fn a_query_depends_on_all_its_names() {
    let cases: [(&str, &[&str]); 16] = [
        ("", &[]),
        (" ; ; -- nothing", &[]),
        ("SELECT 1, 'x', $1, current_timestamp", &[]),
        ("TABLE s.t", &["r s.t"]),
        ("VALUES (f(1)), (2)", &["f f"]),
        ("SELECT a + 1 FROM t WHERE b = ANY ($1)", &["o +", "o =", "r t"]),
        ("SELECT x::s.mine, 'a'::int FROM T", &["r t", "t pg_catalog.int4", "t s.mine"]),
        ("SELECT t.a, (t.b).c, t.d.e FROM t", &["r t", "x a", "x b", "x c", "x d", "x e"]),
        ("SELECT extract(year FROM now())", &["f now", "f pg_catalog.extract"]),
        ("SELECT a OPERATOR(s.@@) b FROM \"My T\"", &["o s.@@", "r My T"]),
        ("SELECT * FROM t JOIN u USING (a)", &["o =", "r t", "r u"]),
        ("SELECT a IN (SELECT b FROM u) FROM t ORDER BY f(a)", &["f f", "o =", "r t", "r u"]),
        (
            "SELECT count(*) FILTER (WHERE g(a)) OVER (PARTITION BY h(a)) FROM t",
            &["f count", "f g", "f h", "r t"],
        ),
        ("SELECT * FROM f(1) WITH ORDINALITY, LATERAL g() AS x(a s.mine)", &["f f", "f g", "t s.mine"]),
        ("SELECT 1 LIMIT f()", &["f f"]),
        ("SELECT 1; SELECT f()", &["f f"]),
    ];
    for (text, expected) in cases {
        assert_eq!(names(text), expected, "{text}");
    }
}

#[test]
fn a_with_query_hides_a_table_only_where_it_is_in_sight() {
    assert_eq!(names("WITH t AS (SELECT 1) SELECT * FROM t"), [""; 0]);
    assert_eq!(names("WITH t AS (SELECT * FROM t) SELECT * FROM t"), ["r t"]);
    assert_eq!(names("WITH RECURSIVE t AS (SELECT * FROM t) SELECT * FROM t"), [""; 0]);
    assert_eq!(names("WITH a AS (SELECT * FROM b), b AS (SELECT 1) SELECT * FROM b"), ["r b"]);
    assert_eq!(names("SELECT * FROM (WITH t AS (SELECT 1) SELECT * FROM t) x, t"), ["r t"]);
    assert_eq!(names("WITH t AS (SELECT 1) SELECT * FROM s.t"), ["r s.t"]);
}

#[test]
fn transactions_are_told_by_what_they_say_of_themselves() {
    let modes = |access, isolation| Modes { access, isolation };
    let read_only = modes(Some(Access::ReadOnly), None);
    let cases = [
        ("BEGIN", Transaction::Begin(Modes::default())),
        ("/* x */ begin work;", Transaction::Begin(Modes::default())),
        ("START TRANSACTION READ ONLY", Transaction::Begin(read_only)),
        ("BEGIN READ WRITE, READ ONLY", Transaction::Begin(read_only)),
        (
            "BEGIN ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE",
            Transaction::Begin(modes(Some(Access::ReadOnly), Some(Isolation::Serializable))),
        ),
        (
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ WRITE",
            Transaction::Begin(modes(Some(Access::ReadWrite), Some(Isolation::RepeatableRead))),
        ),
        ("SET TRANSACTION READ ONLY", Transaction::Set(read_only)),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", Transaction::SetSession(read_only)),
        ("COMMIT", Transaction::Commit { chain: false }),
        ("END AND CHAIN", Transaction::Commit { chain: true }),
        ("ABORT", Transaction::Rollback { chain: false }),
        ("ROLLBACK TO a", Transaction::Savepoint),
        ("SAVEPOINT a", Transaction::Savepoint),
        ("RELEASE a", Transaction::Savepoint),
        ("PREPARE TRANSACTION 'x'", Transaction::TwoPhase),
        ("COMMIT PREPARED 'x'", Transaction::TwoPhase),
    ];
    for (text, expected) in cases {
        assert_eq!(parse(text).content, Content::Transaction(expected), "{text}");
    }
    assert_eq!(refused("SET TRANSACTION SNAPSHOT '1'"), Why::Utility);
}

#[test]
fn settings_of_ours_are_seen_in_every_form() {
    let set = |value: &str, local| Setting::Set { name: "route".into(), value: value.into(), local };
    let cases = [
        ("SET antiphon.route = leader", set("leader", false)),
        ("SET antiphon.route TO 'leader'", set("leader", false)),
        ("set session Antiphon.Route = \"Leader\"", set("Leader", false)),
        ("SET LOCAL antiphon.route = 'a', 2", set("a, 2", true)),
        ("SET antiphon.route = -1.5", set("-1.5", false)),
        ("SET antiphon.route = on;", set("on", false)),
        ("RESET antiphon.route", Setting::Reset { name: "route".into() }),
        ("SET antiphon.route TO DEFAULT", Setting::Reset { name: "route".into() }),
        ("SHOW antiphon.route", Setting::Show { name: "route".into() }),
        ("show \"antiphon\".\"token\"", Setting::Show { name: "token".into() }),
    ];
    for (text, expected) in cases {
        assert_eq!(parse(text).content, Content::Setting(expected), "{text}");
    }
}

#[test]
fn hints_are_found_in_comments_and_nowhere_else() {
    let cases = [
        ("/* antiphon: leader */ SELECT 1", Some(Hint::Leader)),
        ("SELECT 1 /*antiphon=follower*/", Some(Hint::Follower)),
        ("SELECT 1 /*route='/x',antiphon='Follower',a='b'*/", Some(Hint::Follower)),
        ("SELECT 1 -- Antiphon: leader\n, 2", Some(Hint::Leader)),
        ("/* antiphon: follower */ SELECT 1 /* antiphon: leader */", Some(Hint::Leader)),
        ("/* antiphon: follower */ INSERT INTO t VALUES (1)", Some(Hint::Follower)),
        ("/* antiphon: perhaps */ SELECT 1", None),
        ("SELECT '/* antiphon: leader */'", None),
        ("SELECT $$ -- antiphon: leader $$", None),
        ("SELECT \"/* antiphon: leader */\" FROM t", None),
    ];
    for (text, expected) in cases {
        assert_eq!(parse(text).hint, expected, "{text}");
    }
}

#[test]
fn the_parser_leaves_standard_error_alone() {
    // Built otherwise, it puts a pipe in the place of standard error during each call, for all threads, and hands
    // back what was written there as warnings. This text gets one.
    let parsed = pg_query::parse(r"SELECT '\\'", ParserOptions::DEFAULT).unwrap();
    assert_eq!(parsed.warnings, [""; 0], "libpg_query was built without the flag of .cargo/config.toml");
}

#[test]
fn no_depth_overflows_the_stack_of_a_thread() {
    let deep = [
        ("(", ")"),
        ("(SELECT ", ")"),
        ("NOT ", ""),
        ("- ", ""),
        ("f(", ")"),
        ("CASE WHEN a THEN ", " END"),
        ("ARRAY[", "]"),
        ("a.b + ", ""),
        ("1 = ", ""),
        ("(SELECT 1 FROM (SELECT ", ") x)"),
        ("SELECT 1 UNION ", "SELECT 1"),
        ("WITH a AS (SELECT ", ") SELECT 1"),
        ("x IN (SELECT ", ")"),
        ("ROW(", ")"),
        ("COALESCE(1, ", ")"),
    ];
    let texts = deep.map(|(open, close)| {
        [1, 10, 100, 1_000, 10_000].map(|depth| {
            let text = format!("SELECT {}1{}", open.repeat(depth), close.repeat(depth));
            let from = format!("SELECT * FROM {}t{}", "(".repeat(depth), " JOIN u ON true)".repeat(depth));
            let typed = format!("SELECT 1{}", "::int".repeat(depth));
            let field = format!("SELECT {}a{} FROM t", "(".repeat(depth), ").b".repeat(depth));
            [text, from, typed, field]
        })
    });
    let check = move || {
        for text in texts.as_flattened().as_flattened() {
            parse(text);
        }
    };
    std::thread::Builder::new().stack_size(2 * 1024 * 1024).spawn(check).unwrap().join().unwrap();
}

#[test]
fn threads_do_not_disturb_each_other() {
    let texts =
        ["SELECT a FROM t WHERE b = f(1)", "SELECT FROM WHERE", "BEGIN", "SELECT 'open", "SELECT 1 INTO x"];
    let expected = texts.map(parse);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..500 {
                    assert_eq!(texts.map(parse), expected);
                }
            });
        }
    });
}

#[test]
fn no_mutation_of_a_text_makes_it_panic() {
    let seeds = [
        "WITH a AS (SELECT * FROM t WHERE b = $1) SELECT a.x::int, f(a) FROM a JOIN u USING (c) ORDER BY 1 LIMIT 2",
        "BEGIN ISOLATION LEVEL SERIALIZABLE, READ ONLY; SELECT E'\\n', $$x$$, U&\"a\" FOR UPDATE; COMMIT",
        "SET LOCAL antiphon.route = 'a', 2; SHOW \"antiphon\".x; /* antiphon: leader */ COPY t TO STDOUT",
        "SELECT JSON_OBJECT('a': 1), xmlelement(name b), count(*) FILTER (WHERE c) OVER w FROM t WINDOW w AS ()",
    ];
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = move |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random % below as u64).unwrap()
    };
    let mut shape = Vec::new();
    for _ in 0..20_000 {
        let mut text = seeds[next(seeds.len())].as_bytes().to_vec();
        for _ in 0..=next(6) {
            let (from, to) = (next(text.len()), next(text.len()));
            match next(4) {
                0 => text[from] = b"'\"$();.,:*/-E\\&\x01\x00 "[next(18)],
                1 => drop(text.drain(from.min(to)..from.max(to))),
                2 => text.extend_from_within(from.min(to)..from.max(to)),
                _ => text.swap(from, to),
            }
            text.push(b' ');
        }
        let text = String::from_utf8_lossy(&text);
        parse(&text);
        crate::shape(&text, &mut shape);
    }
}
