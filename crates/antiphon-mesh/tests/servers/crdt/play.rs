//! Random writes on two to four replicas of a row, merged at random, also late, twice and out of order, while nodes leave
//! and are compacted. After every step the touched replica must show what the model shows.
//!
//! All cases of a type advance together, one step of each at a time, in statements that take every case at once.

use antiphon_mesh::crdt::Crdt;
use serde_json::{Value, json};
use tokio_postgres::Client;

use super::model::{Heads, History, PALETTE, Write};
use super::{Random, given, prepared};
use crate::support::{Server, releases};

/// The replicas' node numbers, with more than one digit: an order of texts is none of numbers.
const NODES: [usize; 4] = [1, 2, 10, 137];
const CASES: u64 = 15;
const STEPS: usize = 45;
/// States on their way that may be delivered later.
const SLOTS: usize = 3;
/// States of a case between which the laws are tried.
const SAMPLES: usize = 4;

/// What happens to a replica.
enum Op {
    Write(Write),
    /// It merges another's state, as the first or the second argument.
    Merge {
        from: usize,
        first: bool,
    },
    /// Its state is put on its way.
    Keep {
        slot: usize,
    },
    /// A state that is on its way reaches it.
    Deliver {
        slot: usize,
    },
    Compact(Vec<usize>),
    Forget(Vec<usize>),
}

struct Step {
    replica: usize,
    op: Op,
}

/// One row's story.
struct Case {
    seed: u64,
    replicas: usize,
    steps: Vec<Step>,
    /// From this step on, what was compacted may be forgotten: older states must not come back.
    settled: usize,
}

impl Case {
    fn new(crdt: Crdt, seed: u64) -> Self {
        let mut random = Random(seed);
        let replicas = 2 + random.below(NODES.len() - 1);
        let mut case = Self { seed, replicas, steps: Vec::new(), settled: usize::MAX };
        let mut filled = Vec::new();
        let mut gone = Vec::new();
        // In some cases most nodes leave, and are compacted here one and there another.
        let many_leave = random.chance(40);
        while case.steps.len() < STEPS {
            let replica = random.below(replicas);
            let lot = if many_leave && random.chance(35) { 92 + random.below(7) } else { random.below(100) };
            match lot {
                0..45 if !gone.contains(&replica) => {
                    let write = random_write(crdt, &mut random);
                    case.steps.push(Step { replica, op: Op::Write(write) });
                }
                0..70 => case.merge(replica, random.below(replicas), &mut random),
                70..80 => {
                    let slot = random.below(SLOTS);
                    filled.push(slot);
                    case.steps.push(Step { replica, op: Op::Keep { slot } });
                }
                80..92 if !filled.is_empty() => {
                    let slot = *random.pick(&filled);
                    case.steps.push(Step { replica, op: Op::Deliver { slot } });
                }
                92..95 if gone.len() + 1 < replicas && !gone.contains(&replica) => {
                    // It leaves once everybody has all that it did, and writes no more.
                    (0..replicas).for_each(|other| case.merge(other, replica, &mut random));
                    gone.push(replica);
                }
                95..99 if !gone.is_empty() => {
                    let some = gone.iter().copied().filter(|_| random.chance(50)).collect();
                    case.steps.push(Step { replica, op: Op::Compact(some) });
                }
                99 if !gone.is_empty() && case.settled == usize::MAX => {
                    case.settle(&gone, &mut random);
                    filled.clear();
                }
                _ => {}
            }
        }
        (0..replicas * 3)
            .for_each(|_| case.merge(random.below(replicas), random.below(replicas), &mut random));
        case.level(&mut random);
        case
    }

    fn merge(&mut self, replica: usize, from: usize, random: &mut Random) {
        let op = Op::Merge { from, first: random.chance(50) };
        self.steps.push(Step { replica, op });
    }

    /// Everybody has everything.
    fn level(&mut self, random: &mut Random) {
        (1..self.replicas).for_each(|other| self.merge(0, other, random));
        (1..self.replicas).for_each(|other| self.merge(other, 0, random));
    }

    /// What forgetting needs: all have the compacted state, and nothing older is on its way.
    fn settle(&mut self, gone: &[usize], random: &mut Random) {
        self.settled = self.steps.len();
        self.steps.push(Step { replica: 0, op: Op::Compact(gone.to_vec()) });
        self.level(random);
        for replica in 0..self.replicas {
            if random.chance(70) {
                self.steps.push(Step { replica, op: Op::Forget(gone.to_vec()) });
            }
        }
    }
}

fn random_write(crdt: Crdt, random: &mut Random) -> Write {
    let by = i64::try_from(random.below(2000)).expect("it is small") - 300;
    match crdt {
        Crdt::GCounter => Write::Count(by.abs()),
        Crdt::PnCounter => Write::Count(by),
        Crdt::GSet => Write::Add(random.below(PALETTE.len())),
        // Few elements, so that they meet.
        Crdt::OrSet if random.chance(35) => Write::Remove(random.below(PALETTE.len()) / 3 * 3),
        Crdt::OrSet => Write::Add(random.below(PALETTE.len()) / 3 * 3),
        Crdt::LwwRegister | Crdt::MvRegister => Write::Assign(random.below(PALETTE.len())),
    }
}

/// A step as a row of the table of steps.
fn row(case: usize, at: usize, step: &Step) -> Value {
    let numbers = |replicas: &[usize]| replicas.iter().map(|replica| NODES[*replica]).collect::<Vec<_>>();
    let palette = |at: usize| serde_json::from_str::<Value>(PALETTE[at]).expect("the palette is JSON");
    let (op, arg) = match &step.op {
        Op::Write(Write::Count(by)) if *by < 0 => ("decrement", json!(-by)),
        Op::Write(Write::Count(by)) => ("increment", json!(by)),
        Op::Write(Write::Add(element)) => ("add", palette(*element)),
        Op::Write(Write::Remove(element)) => ("remove", palette(*element)),
        Op::Write(Write::Assign(value)) => ("assign", palette(*value)),
        Op::Merge { from, first: true } => ("merge first", json!(NODES[*from])),
        Op::Merge { from, first: false } => ("merge second", json!(NODES[*from])),
        Op::Keep { slot } => ("keep", json!(slot)),
        Op::Deliver { slot } => ("deliver", json!(slot)),
        Op::Compact(gone) => ("compact", json!(numbers(gone))),
        Op::Forget(gone) => ("forget", json!(numbers(gone))),
    };
    json!({"step": at, "c": case, "id": NODES[step.replica], "op": op, "arg": arg})
}

/// The tables of a type and the function that plays all steps. `arg` is JSON `null` for the palette's `null` too.
const STAGE: &str = "
DROP TABLE IF EXISTS replica, kept, op, shown, sample;
CREATE TABLE replica (c int, id int, state antiphon.{crdt} NOT NULL DEFAULT antiphon.{crdt}(), PRIMARY KEY (c, id));
CREATE TABLE kept (c int, slot int, state antiphon.{crdt}, PRIMARY KEY (c, slot));
CREATE TABLE op (step int, c int, id int, op text, arg jsonb, PRIMARY KEY (step, c));
CREATE TABLE shown (step int, c int, id int, value text, state antiphon.{crdt}, PRIMARY KEY (step, c));
CREATE TABLE sample (c int, nth int, state antiphon.{crdt}, PRIMARY KEY (c, nth));
CREATE OR REPLACE FUNCTION play(steps int, nodes int[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  node int;
BEGIN
  FOR s IN 0 .. steps - 1 LOOP
    FOREACH node IN ARRAY nodes LOOP
      PERFORM set_config('test.node', node::text, false);
      UPDATE replica r SET state = {write} FROM op o
        WHERE o.step = s AND o.id = node AND r.c = o.c AND r.id = o.id
        AND o.op IN ('increment', 'decrement', 'add', 'remove', 'assign');
    END LOOP;
    UPDATE replica r SET state = CASE o.op WHEN 'merge first' THEN antiphon.merge(r.state, f.state)
        ELSE antiphon.merge(f.state, r.state) END
      FROM op o JOIN replica f ON f.c = o.c AND o.op LIKE 'merge %' AND f.id = o.arg::int
      WHERE o.step = s AND r.c = o.c AND r.id = o.id;
    UPDATE replica r SET state = antiphon.merge(r.state, k.state)
      FROM op o JOIN kept k ON k.c = o.c AND o.op = 'deliver' AND k.slot = o.arg::int
      WHERE o.step = s AND r.c = o.c AND r.id = o.id;
    INSERT INTO kept SELECT r.c, o.arg::int, r.state FROM op o JOIN replica r ON r.c = o.c AND r.id = o.id
      WHERE o.step = s AND o.op = 'keep' ON CONFLICT (c, slot) DO UPDATE SET state = excluded.state;
    UPDATE replica r SET state = CASE o.op
        WHEN 'compact' THEN antiphon.compact(r.state, ARRAY(SELECT jsonb_array_elements(o.arg)::int))
        ELSE antiphon.forget(r.state, ARRAY(SELECT jsonb_array_elements(o.arg)::int)) END
      FROM op o WHERE o.step = s AND o.op IN ('compact', 'forget') AND r.c = o.c AND r.id = o.id;
    INSERT INTO shown SELECT s, r.c, r.id, coalesce(antiphon.value(r.state)::text, ''), r.state
      FROM op o JOIN replica r ON r.c = o.c AND r.id = o.id WHERE o.step = s;
  END LOOP;
END $$;";

fn write_of(crdt: Crdt) -> &'static str {
    match crdt {
        Crdt::GCounter | Crdt::PnCounter => {
            "CASE o.op WHEN 'increment' THEN antiphon.increment(r.state, o.arg::bigint) \
             ELSE antiphon.decrement(r.state, o.arg::bigint) END"
        }
        Crdt::GSet | Crdt::OrSet => {
            "CASE o.op WHEN 'add' THEN antiphon.add(r.state, o.arg) ELSE antiphon.remove(r.state, o.arg) END"
        }
        Crdt::LwwRegister | Crdt::MvRegister => "antiphon.assign(r.state, o.arg)",
    }
}

/// Plays these cases on the server.
pub async fn play(client: &Client, crdt: Crdt, seeds: std::ops::Range<u64>) {
    let cases: Vec<Case> = seeds.map(|seed| Case::new(crdt, seed)).collect();
    let stage = STAGE.replace("{crdt}", crdt.name()).replace("{write}", write_of(crdt));
    client.batch_execute(&stage).await.expect("the tables");
    let replicas = cases.iter().enumerate().flat_map(|(nth, case)| {
        NODES.iter().take(case.replicas).map(move |node| json!({"c": nth, "id": node}))
    });
    let replicas = Value::Array(replicas.collect()).to_string();
    let insert = "INSERT INTO replica (c, id) SELECT c, id FROM jsonb_to_recordset($1::text::jsonb) AS r(c int, id int)";
    client.execute(insert, &[&replicas]).await.expect("replicas");
    let steps = cases
        .iter()
        .enumerate()
        .flat_map(|(nth, case)| case.steps.iter().enumerate().map(move |(at, step)| row(nth, at, step)));
    let steps = Value::Array(steps.collect()).to_string();
    let insert = "INSERT INTO op SELECT * FROM jsonb_to_recordset($1::text::jsonb) \
        AS o(step int, c int, id int, op text, arg jsonb)";
    client.execute(insert, &[&steps]).await.expect("steps");
    let null = "UPDATE op SET arg = 'null' WHERE arg IS NULL";
    client.batch_execute(null).await.expect("a null is one of the values");
    let longest = cases.iter().map(|case| case.steps.len()).max().unwrap_or_default();
    let longest = i32::try_from(longest).expect("it is small");
    let nodes: Vec<i32> = NODES.iter().map(|node| i32::try_from(*node).expect("it is small")).collect();
    client.execute("SELECT play($1, $2)", &[&longest, &nodes]).await.expect("the play");
    for (nth, case) in cases.iter().enumerate() {
        check(client, crdt, nth, case).await;
    }
    hold_to_the_laws(client, crdt, &cases).await;
    check_contains(client, crdt).await;
}

/// Compares every step with the model.
async fn check(client: &Client, crdt: Crdt, nth: usize, case: &Case) {
    let nth = i32::try_from(nth).expect("it is small");
    let select = "SELECT value, state::text, coalesce((state::jsonb->'lww_register'->>0)::bigint, 0), \
        coalesce((state::jsonb->'lww_register'->>1)::bigint, 0) FROM shown WHERE c = $1 ORDER BY step";
    let rows = client.query(select, &[&nth]).await.expect("what was shown");
    assert_eq!(rows.len(), case.steps.len());
    let mut history = History::default();
    let mut replicas = vec![Heads::new(); case.replicas];
    let mut kept = vec![Heads::new(); SLOTS];
    let mut states = vec![String::new(); case.replicas];
    for (at, (step, row)) in case.steps.iter().zip(&rows).enumerate() {
        let (value, state): (&str, &str) = (row.get(0), row.get(1));
        match &step.op {
            Op::Write(write) => {
                let number = history.write(&mut replicas[step.replica], write.clone());
                if crdt == Crdt::LwwRegister {
                    history.stamp(number, (row.get(2), row.get(3)));
                }
            }
            Op::Merge { from, .. } => {
                let other = replicas[*from].clone();
                replicas[step.replica].extend(other);
            }
            Op::Keep { slot } => kept[*slot] = replicas[step.replica].clone(),
            Op::Deliver { slot } => replicas[step.replica].extend(&kept[*slot]),
            Op::Compact(_) | Op::Forget(_) => {}
        }
        let wanted = history.value(crdt, &replicas[step.replica]);
        assert_eq!(value, wanted, "{} seed {} step {at}: {state}", crdt.name(), case.seed);
        state.clone_into(&mut states[step.replica]);
    }
    // What was forgotten by some and not by others is no difference in value.
    if case.settled == usize::MAX {
        assert!(
            states.iter().all(|state| *state == states[0]),
            "{} seed {}: {states:?}",
            crdt.name(),
            case.seed
        );
    }
}

/// Merges states that replicas were in, in all ways.
async fn hold_to_the_laws(client: &Client, crdt: Crdt, cases: &[Case]) {
    let mut samples = Vec::new();
    for (nth, case) in cases.iter().enumerate() {
        let mut random = Random(case.seed);
        let steps = case.settled.min(case.steps.len());
        for sample in 0..SAMPLES.min(steps) {
            samples.push(json!({"c": nth, "nth": sample, "step": random.below(steps)}));
        }
    }
    let samples = Value::Array(samples).to_string();
    let insert = "INSERT INTO sample SELECT c, nth, state FROM \
        jsonb_to_recordset($1::text::jsonb) AS s(c int, nth int, step int) JOIN shown USING (c, step)";
    client.execute(insert, &[&samples]).await.expect("samples");
    let broken =
        |law: &str, from: &str| format!("SELECT concat_ws(' | ', c, {from}) FROM ({law}) AS broken LIMIT 3");
    let pairs =
        "SELECT c, x.state AS x, y.state AS y FROM sample x JOIN sample y USING (c) WHERE x.nth <= y.nth";
    let of_two = [
        ("commutative", "antiphon.merge(x, y)::text <> antiphon.merge(y, x)::text"),
        ("idempotent", "antiphon.merge(x, x)::text <> x::text"),
        ("absorbing", "antiphon.merge(antiphon.merge(x, y), x)::text <> antiphon.merge(x, y)::text"),
    ];
    for (law, is_broken) in of_two {
        let law_query = broken(&format!("SELECT * FROM ({pairs}) AS pairs WHERE {is_broken}"), "x, y");
        let found = client.query(&law_query, &[]).await.expect(&law_query);
        let found: Vec<&str> = found.iter().map(|row| row.get(0)).collect();
        assert!(found.is_empty(), "{} from seed {} is not {law}: {found:#?}", crdt.name(), cases[0].seed);
    }
    let triples = "SELECT c, x.state AS x, y.state AS y, z.state AS z \
        FROM sample x JOIN sample y USING (c) JOIN sample z USING (c) WHERE x.nth < y.nth AND y.nth < z.nth";
    let is_broken = "antiphon.merge(antiphon.merge(x, y), z)::text <> antiphon.merge(x, antiphon.merge(y, z))::text \
        OR antiphon.merge(antiphon.merge(y, x), z)::text <> antiphon.merge(y, antiphon.merge(x, z))::text";
    let law_query = broken(&format!("SELECT * FROM ({triples}) AS triples WHERE {is_broken}"), "x, y, z");
    let found = client.query(&law_query, &[]).await.expect(&law_query);
    let found: Vec<&str> = found.iter().map(|row| row.get(0)).collect();
    assert!(found.is_empty(), "{} from seed {} is not associative: {found:#?}", crdt.name(), cases[0].seed);
}

/// A set contains what it shows, and nothing else.
async fn check_contains(client: &Client, crdt: Crdt) {
    if !matches!(crdt, Crdt::GSet | Crdt::OrSet) {
        return;
    }
    let palette = format!("[{}]", PALETTE.join(", "));
    let differ = "SELECT count(*) FROM replica, jsonb_array_elements($1::text::jsonb) AS palette(element) \
        WHERE antiphon.contains(state, element) <> EXISTS \
            (SELECT FROM jsonb_array_elements(antiphon.value(state)) AS v(shown) WHERE shown = element)";
    let differ: i64 = client.query_one(differ, &[&palette]).await.expect("a count").get(0);
    assert_eq!(differ, 0, "{}", crdt.name());
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_show_what_the_model_shows_and_merge_by_the_laws() {
    let first = given("ANTIPHON_SEED", 1);
    let cases = given("ANTIPHON_CASES", CASES);
    for (nth, release) in (0_u64..).zip(releases()) {
        let server = Server::start(Some(release));
        let client = prepared(&server).await;
        let first = first + nth * cases;
        for crdt in Crdt::ALL {
            play(&client, crdt, first..first + cases).await;
        }
    }
}
