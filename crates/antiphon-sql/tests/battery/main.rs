//! The classifier against real servers: what it calls a read, a hot standby answers as its leader does.
//!
//! A table of statements, then sweeps over all that the server itself brings: functions that can be called with
//! plain values, operators, relations. A sweep needs no list of ours, so it finds what the lists forgot.

#![allow(clippy::unwrap_used, reason = "a failed assumption of a test is a failed test")]

mod cases;
mod support;

use antiphon_sql::{Catalogue, Why, certainly_reads, parse};
use support::{Pair, answer, run};

fn verdict(text: &str, catalogue: &Catalogue) -> Result<(), Why> {
    certainly_reads(&parse(text), catalogue)
}

#[test]
fn what_is_called_a_read_is_answered_alike() {
    run(async |pair| {
        let catalogue = pair.catalogue().await;
        assert!(!catalogue.is_empty());
        for text in cases::READS {
            assert_eq!(verdict(text, &catalogue), Ok(()), "{text}");
            let (leads, follows) = (answer(&pair.leader, text).await, answer(&pair.standby, text).await);
            // A server may have been built without XML.
            let unbuilt = text.contains("xml") && leads == Err("0A000".to_owned());
            assert!(leads.is_ok() || unbuilt, "{text}: {leads:?}");
            assert_eq!(leads, follows, "{text}");
        }
        for text in cases::HARMLESS {
            assert_eq!(verdict(text, &catalogue), Ok(()), "{text}");
            for client in [&pair.leader, &pair.standby] {
                let answered = answer(client, text).await;
                assert!(answered.is_ok(), "{text}: {answered:?}");
            }
        }
    });
}

#[test]
fn what_a_standby_refuses_or_answers_by_itself_is_no_read() {
    run(async |pair| {
        let catalogue = pair.catalogue().await;
        let has_merge = pair.version().await >= 15;
        for text in cases::REFUSED_BY_STANDBY {
            assert!(verdict(text, &catalogue).is_err(), "{text}");
            if text.starts_with("MERGE") && !has_merge {
                continue;
            }
            let refused = answer(&pair.standby, text).await.expect_err(text);
            let known = ["25006", "0A000", "55000", "XX000"].contains(&refused.as_str());
            assert!(known, "{text}: {refused}");
            answer(&pair.standby, "ROLLBACK").await.unwrap();
        }
        for text in cases::ANSWERED_WRONGLY {
            assert!(verdict(text, &catalogue).is_err(), "{text}");
        }
    });
}

#[test]
fn prepared_reads_with_parameters_are_reads() {
    run(async |pair| {
        let catalogue = pair.catalogue().await;
        let text = "SELECT count(*) FROM t WHERE a = $1 AND b LIKE $2 AND id = ANY ($3)";
        assert_eq!(verdict(text, &catalogue), Ok(()));
        let ids: Vec<i32> = (1..50).collect();
        for client in [&pair.leader, &pair.standby] {
            let row = client.query_one(text, &[&1_i32, &"row%", &ids]).await.unwrap();
            assert_eq!(row.get::<_, i64>(0), 7);
        }
    });
}

/// A value of each type that is easy to write; a function whose arguments are all of these can be called.
const VALUES: &str = "(VALUES ('oid', '1259'), ('regclass', '''app.t'''), ('text', '''x'''), ('name', '''x'''),
    ('int2', '1'), ('int4', '1'), ('int8', '1'), ('bool', 'true'), ('float8', '0.5'), ('numeric', '1.5'),
    ('bytea', '''\\x00'''), ('timestamptz', '''2026-01-01'''), ('timestamp', '''2026-01-01'''), ('date', '''2026-01-01'''),
    ('interval', '''1 day'''), ('json', '''{}'''), ('jsonb', '''{}'''), ('xid', '''3'''), ('xid8', '''3'''), ('uuid',
    '''00000000-0000-4000-8000-000000000000'''), ('inet', '''10.0.0.1'''), ('regconfig', '''english'''), ('tsvector',
    '''a'''), ('tsquery', '''a'''), ('bit', '''1'''), ('point', '''(1,2)'''), ('int4range', '''[1,2)'''),
    ('regtype', '''int4'''), ('regproc', '''now'''), ('pg_lsn', '''0/1'''), ('char', '''a'''), ('bpchar', '''a'''),
    ('time', '''10:00'''), ('money', '''1'''), ('float4', '1'), ('macaddr', '''08:00:2b:01:02:03''')) v (type, value)";

#[test]
fn every_built_in_function_that_is_called_safe_answers_alike() {
    run(async |pair| {
        let catalogue = pair.catalogue().await;
        let calls = format!(
            "SELECT format('SELECT to_jsonb(x) FROM pg_catalog.%I(%s) x', p.proname, (
                 SELECT string_agg(format('%s::pg_catalog.%I', v.value, v.type), ', ' ORDER BY a.n)
                 FROM unnest(p.proargtypes) WITH ORDINALITY a (type, n) JOIN pg_type t ON t.oid = a.type JOIN {VALUES}
                     ON v.type = t.typname))
             FROM pg_proc p
             WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f' AND p.provariadic = 0
                 AND p.prorettype NOT IN (SELECT oid FROM pg_type WHERE typtype = 'p'
                     AND typname NOT IN ('record', 'void', 'any', 'anyelement', 'cstring'))
                 AND NOT EXISTS (SELECT FROM unnest(p.proargtypes) a (type) WHERE a.type NOT IN (
                     SELECT t.oid FROM pg_type t JOIN {VALUES} ON v.type = t.typname
                     WHERE t.typnamespace = 'pg_catalog'::regnamespace))
             ORDER BY p.oid"
        );
        let calls = answer(&pair.leader, &calls).await.unwrap();
        let mut compared = 0;
        let mut unlike = Vec::new();
        for call in calls.iter().filter(|call| verdict(call, &catalogue).is_ok()) {
            let own_answer = ["random", "uuid", "clock_timestamp", "timeofday", "now(", "_timestamp("];
            if own_answer.iter().any(|name| call.contains(name)) || call.contains("pg_sleep") {
                continue;
            }
            let (leads, follows) = (answer(&pair.leader, call).await, answer(&pair.standby, call).await);
            compared += 1;
            if leads != follows {
                unlike.push(format!("{call}: {leads:?} but {follows:?}"));
            }
        }
        assert!(unlike.is_empty(), "{}", unlike.join("\n"));
        assert!(compared > 800, "only {compared} of {} calls were compared", calls.len());
    });
}

#[test]
fn every_relation_that_is_called_safe_reads_alike() {
    run(async |pair| {
        let catalogue = pair.catalogue().await;
        let relations = "SELECT format('SELECT to_jsonb(x) FROM (SELECT * FROM %s) x ORDER BY 1', c.oid::regclass)
            FROM pg_class c WHERE c.relkind IN ('r', 'v', 'm', 'S', 'f', 'p') AND c.relnamespace <> 'pg_toast'::regnamespace";
        let reads = answer(&pair.leader, relations).await.unwrap();
        pair.wait_replayed().await;
        let mut compared = 0;
        for read in reads.iter().filter(|read| verdict(read, &catalogue).is_ok()) {
            assert_eq!(answer(&pair.leader, read).await, answer(&pair.standby, read).await, "{read}");
            compared += 1;
        }
        assert!(compared > 100, "only {compared} of {} were compared", reads.len());
    });
}

#[test]
fn every_operator_and_type_of_the_server_is_safe() {
    run(async |pair: Pair| {
        let catalogue = pair.catalogue().await;
        let operators = "SELECT DISTINCT format('SELECT a OPERATOR(pg_catalog.%s) b FROM app.t', oprname) FROM pg_operator
            WHERE oprnamespace = 'pg_catalog'::regnamespace";
        let types = "SELECT format('SELECT a::pg_catalog.%I FROM app.t', typname) FROM pg_type
            WHERE typnamespace = 'pg_catalog'::regnamespace AND typtype IN ('b', 'r', 'm') AND typcategory <> 'A'";
        for texts in [operators, types] {
            for text in answer(&pair.leader, texts).await.unwrap() {
                assert_eq!(verdict(&text, &catalogue), Ok(()), "{text}");
            }
        }
    });
}
