//! What it costs to look at a statement: `cargo run --release -p antiphon-sql --example measure`.
//!
//! Medians of many rounds, in nanoseconds a call. The catalogue is made up, as large as that of a small database.

use std::time::Instant;

use antiphon_sql::{Catalogue, certainly_reads, parse, shape};

const TEXTS: [(&str, &str); 6] = [
    ("by key", "SELECT abalance FROM pgbench_accounts WHERE aid = 4711"),
    (
        "join",
        "SELECT o.id, c.name, sum(l.price * l.count) AS total FROM orders o JOIN customers c ON c.id = o.customer \
         JOIN lines l ON l.order_id = o.id WHERE o.at >= now() - interval '7 days' AND c.country IN ('DE', 'FR') \
         GROUP BY o.id, c.name HAVING sum(l.price) > 100 ORDER BY total DESC LIMIT 20",
    ),
    (
        "with",
        "WITH recent AS (SELECT * FROM orders WHERE at > $1), best AS (SELECT customer, count(*) AS n FROM recent \
         GROUP BY 1) SELECT c.*, b.n, rank() OVER (ORDER BY b.n DESC) FROM best b JOIN customers c ON c.id = b.customer",
    ),
    ("no function", "SELECT a.id, a.name, a.mail, a.created FROM accounts a WHERE a.id = $1 AND a.active"),
    ("update", "UPDATE pgbench_accounts SET abalance = abalance + -17 WHERE aid = 4711"),
    ("begin", "BEGIN"),
];
const ROUNDS: usize = 200;
const CALLS: u32 = 200;

fn main() {
    let made_up: Vec<String> = (0..3_000).map(|number| format!("name_{number}")).collect();
    let used = [
        ("function", "pg_catalog", ["now", "sum", "count", "rank"].as_slice()),
        ("operator", "pg_catalog", &["=", "+", "-", "*", ">", ">="]),
        ("type", "pg_catalog", &["interval"]),
        ("relation", "public", &["pgbench_accounts", "orders", "customers", "lines", "accounts"]),
    ];
    let used = used
        .iter()
        .flat_map(|(kind, schema, names)| names.iter().map(|name| [*kind, *schema, *name, "safe", "", ""]));
    let more = made_up.iter().map(|name| ["function", "pg_catalog", name.as_str(), "safe", "", ""]);
    let catalogue = Catalogue::from_rows(used.chain(more));

    println!(
        "| statement | parse ns | certainly_reads ns | shape ns | read |\n| --- | --- | --- | --- | --- |"
    );
    for (name, text) in TEXTS {
        let statement = parse(text);
        let mut buffer = Vec::new();
        let parsing = median(|| drop(std::hint::black_box(parse(text))));
        let judging = median(|| {
            let _ = std::hint::black_box(certainly_reads(&statement, &catalogue));
        });
        let shaping = median(|| shape(std::hint::black_box(text), &mut buffer));
        let reads =
            certainly_reads(&statement, &catalogue).map_or_else(|why| why.to_string(), |()| "yes".into());
        println!("| {name} | {parsing} | {judging} | {shaping} | {reads} |");
    }
}

/// Nanoseconds a call.
fn median(mut call: impl FnMut()) -> u128 {
    let mut rounds: Vec<u128> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..CALLS {
                call();
            }
            start.elapsed().as_nanos() / u128::from(CALLS)
        })
        .collect();
    rounds.sort_unstable();
    rounds.get(ROUNDS / 2).copied().unwrap_or_default()
}
