//! A column takes exactly the states that the functions make: what is well-formed is said here a second time, and states
//! that are bent at random must be judged alike.

use antiphon_mesh::crdt::Crdt;
use serde_json::{Map, Value, json};
use tokio_postgres::Client;

use super::model::PALETTE;
use super::{Random, given, prepared};
use crate::support::{Server, releases};

const CASES: u64 = 600;

/// Judges states without ending the statement.
const TRY: &str = "CREATE OR REPLACE FUNCTION accepts(kind text, state text) RETURNS boolean LANGUAGE plpgsql AS $$ \
    BEGIN EXECUTE format('SELECT %L::antiphon.%I', state, kind); RETURN true; \
    EXCEPTION WHEN OTHERS THEN RETURN false; END $$";

fn good(crdt: Crdt) -> Vec<Value> {
    match crdt {
        Crdt::GCounter => vec![
            json!({"g_counter": {}}),
            json!({"g_counter": {"1": 5, "20": 0, "999999999": i64::MAX}}),
            json!({"g_counter": {"0": 7, "1": 5, "3": true}}),
        ],
        Crdt::PnCounter => vec![
            json!({"pn_counter": {}}),
            json!({"pn_counter": {"1": 5, "-1": 3, "-20": 8}}),
            json!({"pn_counter": {"0": 7, "-0": 2, "1": 5, "3": true, "-3": true}}),
        ],
        Crdt::GSet => vec![json!({"g_set": {}}), json!({"g_set": {"10": null, "\"a\"": null, "[]": null}})],
        Crdt::OrSet => vec![
            json!({"or_set": {}, "seen": {}}),
            json!({"or_set": {"9": {"1": 3}, "\"a\"": {"1": 4, "2": 1}}, "seen": {"1": 4, "2": 1, "7": 9}}),
            json!({"or_set": {"null": {"3": 9}}, "seen": {"1": 4, "3": true}}),
        ],
        Crdt::LwwRegister => vec![
            json!({"lww_register": []}),
            json!({"lww_register": [1_790_000_000_000_000_i64, 2, {"any": [1.5]}]}),
        ],
        Crdt::MvRegister => vec![
            json!({"mv_register": {}, "seen": {}}),
            json!({"mv_register": {"1": [4, "x"], "2": [1, null]}, "seen": {"1": 4, "2": 1, "7": 9}}),
            json!({"mv_register": {"3": [9, []]}, "seen": {"3": true}}),
        ],
    }
}

fn is_well_formed(crdt: Crdt, state: &Value) -> bool {
    let Some(state) = state.as_object() else { return false };
    let main = state.get(crdt.name());
    let seen = state.get("seen").and_then(Value::as_object);
    let keys = if matches!(crdt, Crdt::OrSet | Crdt::MvRegister) { 2 } else { 1 };
    if state.len() != keys || keys == 2 && !seen.is_some_and(|seen| seen.iter().all(is_seen)) {
        return false;
    }
    let entries = main.and_then(Value::as_object);
    let all = |holds: &dyn Fn(&str, &Value) -> bool| {
        entries.is_some_and(|entries| entries.iter().all(|(key, value)| holds(key, value)))
    };
    let is_seen_dot = |node: &str, dot: Option<&Value>| {
        let upper = seen.and_then(|seen| seen.get(node));
        dot.and_then(count).is_some_and(|dot| {
            dot >= 1
                && upper.is_some_and(|upper| {
                    *upper == json!(true) || count(upper).is_some_and(|upper| dot <= upper)
                })
        })
    };
    match crdt {
        Crdt::GCounter => all(&is_count),
        Crdt::PnCounter => all(&|key, value| is_count(key.strip_prefix('-').unwrap_or(key), value)),
        Crdt::GSet => all(&|key, value| is_element(key) && value.is_null()),
        Crdt::OrSet => all(&|key, dots| {
            let dots = dots.as_object().filter(|dots| !dots.is_empty());
            is_element(key)
                && dots.is_some_and(|dots| dots.iter().all(|(node, dot)| is_seen_dot(node, Some(dot))))
        }),
        Crdt::LwwRegister => {
            main.and_then(Value::as_array).is_some_and(|register| match register.as_slice() {
                [] => true,
                [time, node, _] => count(time).is_some_and(|time| time >= 1) && is_node(&node.to_string()),
                _ => false,
            })
        }
        Crdt::MvRegister => all(&|node, dot| {
            dot.as_array().is_some_and(|dot| dot.len() == 2 && is_seen_dot(node, dot.first()))
        }),
    }
}

/// A number that is written as an integer, from 0 to the greatest bigint.
fn count(value: &Value) -> Option<i64> {
    value.as_i64().filter(|count| *count >= 0)
}

fn is_node(key: &str) -> bool {
    let digits = key.len() <= 9 && key.bytes().all(|byte| byte.is_ascii_digit());
    digits && !key.is_empty() && !key.starts_with('0')
}

fn is_count(key: &str, value: &Value) -> bool {
    (key == "0" || is_node(key)) && count(value).is_some() || is_node(key) && *value == json!(true)
}

fn is_seen((key, value): (&String, &Value)) -> bool {
    is_node(key) && (*value == json!(true) || count(value).is_some_and(|count| count >= 1))
}

/// The JSON text of an element, as jsonb writes it and without zeros at the end.
fn is_element(key: &str) -> bool {
    let number = key.strip_prefix('-').unwrap_or(key);
    let integer = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    PALETTE.contains(&key) || integer && !number.starts_with('0') || key == "0"
}

/// Values and keys that a state must not have everywhere.
fn odd_values() -> Vec<Value> {
    vec![
        json!(null),
        json!(true),
        json!(false),
        json!(0),
        json!(1),
        json!(4),
        json!(-1),
        json!(1.0),
        json!(2.5),
        json!(i64::MAX),
        json!(9_223_372_036_854_775_808_u64),
        json!(1e20),
        json!("1"),
        json!("true"),
        json!([]),
        json!({}),
        json!([1]),
        json!([1, "x"]),
        json!([1, 2, 3]),
        json!({"1": 1}),
    ]
}

const ODD_KEYS: [&str; 30] = [
    "",
    "0",
    "-0",
    "1",
    "2",
    "7",
    "10",
    "-1",
    "-2",
    "--1",
    "01",
    "-01",
    "1.0",
    "1 ",
    "x",
    "999999999",
    "1000000000",
    "true",
    "null",
    "seen",
    "or_set",
    "g_set",
    "\"b",
    "'b'",
    "[1,2]",
    "[1, 2.]",
    "{\"bb\": 1, \"a\": 2}",
    "\"\\u0061\"",
    "1e2",
    "\"a\"",
];

/// Changes one place of a tree.
fn bend(value: &mut Value, random: &mut Random) {
    let deeper = random.chance(70);
    match value {
        Value::Object(map) if deeper && !map.is_empty() => {
            let at = random.below(map.len());
            bend(map.values_mut().nth(at).expect("it is there"), random);
        }
        Value::Array(items) if deeper && !items.is_empty() => {
            let at = random.below(items.len());
            bend(&mut items[at], random);
        }
        Value::Object(map) if random.chance(80) => bend_object(map, random),
        Value::Array(items) if !items.is_empty() && random.chance(30) => {
            items.pop();
        }
        Value::Array(items) if random.chance(40) => items.push(random.pick(&odd_values()).clone()),
        other => *other = random.pick(&odd_values()).clone(),
    }
}

fn bend_object(map: &mut Map<String, Value>, random: &mut Random) {
    let key = match random.chance(30) {
        true => (*random.pick(&PALETTE)).to_owned(),
        false => (*random.pick(&ODD_KEYS)).to_owned(),
    };
    let old = map.keys().nth(random.below(map.len().max(1))).cloned();
    match (random.below(3), old) {
        (0, Some(old)) => {
            map.remove(&old);
        }
        // Renamed.
        (1, Some(old)) => {
            let value = map.remove(&old).expect("it is there");
            map.insert(key, value);
        }
        _ => {
            map.insert(key, random.pick(&odd_values()).clone());
        }
    }
}

/// Whether these are accepted, each with its type.
async fn judged(client: &Client, states: &[(Crdt, Value)]) -> Vec<bool> {
    let states = states.iter().map(|(crdt, state)| json!([crdt.name(), state.to_string()]));
    let states = Value::Array(states.collect()).to_string();
    let select = "SELECT accepts(s->>0, s->>1) FROM jsonb_array_elements($1::text::jsonb) WITH ORDINALITY AS j(s, n) \
        ORDER BY n";
    let rows = client.query(select, &[&states]).await.expect("a judgement");
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_takes_what_its_functions_make_and_nothing_else() {
    let seed = given("ANTIPHON_SEED", 1);
    for release in releases() {
        let server = Server::start(Some(release));
        let client = prepared(&server).await;
        client.batch_execute(TRY).await.expect("a function");
        let mut random = Random(seed + u64::from(release));
        let mut states = Vec::new();
        for crdt in Crdt::ALL {
            let good = good(crdt);
            states.extend(good.iter().map(|state| (crdt, state.clone())));
            for other in Crdt::ALL {
                states.extend(good.iter().map(|state| (other, state.clone())));
            }
            for _ in 0..given("ANTIPHON_CASES", CASES) {
                let mut state = random.pick(&good).clone();
                (0..=random.below(3)).for_each(|_| bend(&mut state, &mut random));
                states.push((crdt, state));
            }
        }
        let judged = judged(&client, &states).await;
        let mut accepted = 0;
        for ((crdt, state), judgement) in states.iter().zip(judged) {
            accepted += usize::from(judgement);
            assert_eq!(
                judgement,
                is_well_formed(*crdt, state),
                "PostgreSQL {release}, {}: {state}",
                crdt.name()
            );
        }
        assert!(
            accepted > states.len() / 20 && accepted < states.len() / 2,
            "{accepted} of {}",
            states.len()
        );
    }
}
