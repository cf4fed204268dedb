//! What is applied is what was written: every type, every size, and through every crash.

use std::time::Duration;

use crate::mesh::{Mesh, storm};
use crate::support::releases;

/// Types and names that break what is careless about text, quotes, arrays and generated values.
const ODD: &str = r#"
    CREATE SCHEMA "odd ""one""";
    CREATE TYPE mood AS ENUM ('sad', 'o"k', 'it''s, {fine}');
    CREATE DOMAIN numbers AS int[];
    CREATE TABLE "odd ""one"""."tab;le" (
        "ke""y" numeric, b text COLLATE "C", flag boolean, data bytea, doc jsonb, list text[], nested numbers,
        at timestamptz, day date, span interval, pair point, m mood, fixed char(5), f float8, u uuid,
        double_flag int GENERATED ALWAYS AS (CASE WHEN flag THEN 2 ELSE 0 END) STORED,
        n bigint GENERATED ALWAYS AS IDENTITY, large text, PRIMARY KEY (b, "ke""y"));
"#;

fn odd_rows(from: u32, to: u32) -> String {
    format!(
        r#"INSERT INTO "odd ""one"""."tab;le" ("ke""y", b, flag, data, doc, list, nested, at, day, span, pair, m, fixed, f, u, large)
        SELECT g * 1.10, E'b\\ "{{,}}'' ü NULL' || g, g % 2 = 0, decode(md5(g::text), 'hex'), jsonb_build_object('a"b', g, 'n', null),
            ARRAY['x,"y', NULL, '{{}}', g::text, ''], ARRAY[[1, g], [NULL, 4]]::int[], timestamptz '2020-02-29 12:00:00.123456+03' + g * interval '1 s',
            'infinity'::date, '1 mon -2 days 00:00:01.5', point(0.1 * g, -1e-300), (ARRAY['sad', 'o"k', 'it''s, {{fine}}']::mood[])[1 + g % 3],
            'ab', CASE g % 4 WHEN 0 THEN 'NaN' WHEN 1 THEN '-Infinity' ELSE 0.1 + g END::float8, md5(g::text)::uuid,
            CASE WHEN g % 5 = 0 THEN (SELECT string_agg(md5(g::text || i), '') FROM generate_series(1, 300) i) END
        FROM generate_series({from}, {to}) g"#
    )
}

/// All of it as text, the key's order aside.
const ODD_ALL: &str =
    r#"SELECT md5(string_agg(t::text, '|' ORDER BY b, "ke""y")) FROM "odd ""one"""."tab;le" t"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_type_and_name_arrives_as_it_was_written_between_any_releases() {
    let releases = releases();
    let (oldest, newest) = (releases.first().copied(), releases.last().copied());
    let mesh = Mesh::with(&[oldest, newest], ODD, &odd_rows(1, 30), &[]).await;
    mesh.run(0, &odd_rows(31, 33)).await;
    mesh.run(1, &odd_rows(100, 300)).await;
    mesh.run(0, r#"UPDATE "odd ""one"""."tab;le" SET flag = NOT flag, doc = NULL WHERE "ke""y" < 50"#).await;
    mesh.wait_until_applied().await;
    mesh.run(1, r#"UPDATE "odd ""one"""."tab;le" SET list = array_append(list, NULL), nested = '{{5}}' WHERE "ke""y" > 20"#).await;
    mesh.run(
        1,
        r#"UPDATE "odd ""one"""."tab;le" SET "ke""y" = "ke""y" + 1000 WHERE "ke""y" BETWEEN 120 AND 140"#,
    )
    .await;
    mesh.run(1, r#"DELETE FROM "odd ""one"""."tab;le" WHERE "ke""y" BETWEEN 150 AND 170"#).await;
    mesh.wait_until_applied().await;
    mesh.run(0, r#"UPDATE "odd ""one"""."tab;le" SET b = b || 'x' WHERE "ke""y" BETWEEN 10 AND 14"#).await;
    mesh.wait_until_applied().await;
    mesh.same_everywhere(ODD_ALL).await;
    assert_eq!(mesh.same_everywhere("SELECT count(*)::text FROM antiphon.conflicts").await, "0");
    assert_eq!(mesh.text(1, r#"SELECT count(*)::text FROM "odd ""one"""."tab;le""#).await, "216");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_larger_than_memory_is_applied_whole_also_where_a_row_of_it_conflicts() {
    let settings = [("logical_decoding_work_mem", "64kB"), ("max_wal_size", "4GB")];
    let rows = "INSERT INTO item SELECT g, 'old ' || g, g FROM generate_series(1, 1000) g";
    let table = "CREATE TABLE item (id bigint PRIMARY KEY, who text, amount int)";
    let mesh = Mesh::with(&[None, None], table, rows, &settings).await;
    let large = "BEGIN; INSERT INTO item SELECT g, repeat('n', 40) || g, g FROM generate_series(1001, 120000) g; \
        SAVEPOINT a; INSERT INTO item SELECT g, 'undone', g FROM generate_series(200001, 230000) g; ROLLBACK TO a; \
        UPDATE item SET who = 'large' WHERE id <= 50000; DELETE FROM item WHERE id BETWEEN 60001 AND 70000";
    mesh.run(0, large).await;
    // Written while the large one is under way, and later than it will be: the large one wins all but this.
    mesh.run(1, "UPDATE item SET who = 'n2' WHERE id = 7").await;
    mesh.run(0, "UPDATE item SET amount = -1 WHERE id = 100").await;
    mesh.run(0, "COMMIT").await;
    mesh.wait_until_applied().await;
    let counts = "SELECT count(*) || ' ' || sum(amount) || ' ' || count(*) FILTER (WHERE who = 'large') || ' ' \
                  || md5(string_agg(t::text, '|' ORDER BY id)) FROM item t";
    let all = mesh.same_everywhere(counts).await;
    assert!(all.starts_with("110000 "), "{all}");
    assert_eq!(mesh.text(1, "SELECT who FROM item WHERE id = 7").await, "large");
    assert_eq!(
        mesh.text(1, "SELECT string_agg(kind, ',') FROM antiphon.conflicts").await,
        "update_origin_differs"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_of_servers_lose_nothing_and_repeat_nothing() {
    let mut mesh = Mesh::of(3, "").await;
    for round in 0..3 {
        let mut storms = Vec::new();
        for (nth, node) in mesh.nodes.iter().enumerate() {
            storms.push(tokio::spawn(storm(node.server.dsn(), (round * 3 + nth) as u64 + 100, 200)));
        }
        mesh.crash(round).await;
        for storm in storms {
            // Whoever was connected to the server that went had to end.
            let _ = tokio::time::timeout(Duration::from_secs(30), storm).await;
        }
    }
    mesh.wait_until_settled().await;
}
