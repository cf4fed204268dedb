//! Columns whose changes are added up: what every node adds counts, whoever wrote the row last.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use antiphon_mesh::name::TableName;
use antiphon_mesh::setup::{Settings, SetupError, set_table};
use tokio_postgres::Client;

use crate::mesh::{Mesh, Node, dsn, work};
use crate::support::{PATIENCE, Server, releases};

const STOCK: &str = "CREATE TABLE stock (id int PRIMARY KEY, name text, left_over int NOT NULL DEFAULT 0, \
                     value numeric(12,2) NOT NULL DEFAULT 0); \
                     CREATE TABLE done (client int, nth int, stock int, PRIMARY KEY (client, nth))";
const TWO: &str = "INSERT INTO stock VALUES (1, 'one', 100, 1000), (2, 'two', 100, 1000)";
const COUNT: &str = "SELECT count(*)::text FROM stock";
const ALL: &str = "SELECT coalesce(string_agg(s::text, ' ' ORDER BY id), '') FROM stock s";

fn settings(mesh: &Mesh, columns: &[&str]) -> Settings {
    Settings {
        connect: dsn(&mesh.nodes[0].server.dsn()),
        table: TableName::new("public", "stock"),
        deltas: columns.iter().map(ToString::to_string).collect(),
        resolvers: Vec::new(),
        peers: BTreeMap::new(),
        env: BTreeMap::new(),
    }
}

/// So many nodes with a table of which two columns are added up.
async fn counting(nodes: usize) -> Mesh {
    let mesh = Mesh::with(&vec![None; nodes], STOCK, "", &[]).await;
    set_table(&settings(&mesh, &["left_over", "value"])).await.expect("it is set");
    mesh
}

/// Adds, so often, now and then with a new name. Each transaction leaves a row that says that it committed.
async fn add(server: String, client: usize, count: usize) {
    let mut connection: Option<Client> = None;
    let deadline = Instant::now() + PATIENCE;
    for nth in 0..count {
        let name = if nth % 5 == client % 5 { format!(", name = '{client}-{nth}'") } else { String::new() };
        let id = 1 + nth % 2;
        let statements = format!(
            "BEGIN; UPDATE stock SET left_over = left_over + 3, value = value - 0.25{name} WHERE id = {id}; \
             INSERT INTO done VALUES ({client}, {nth}, {id}); COMMIT"
        );
        while connection.as_ref().is_none_or(Client::is_closed) {
            assert!(Instant::now() < deadline, "the server does not come back");
            connection = dsn(&server).control("add").await.ok();
            if connection.is_none() {
                wait_a_moment().await;
            }
        }
        // What a crash took may or may not have committed: its row says so.
        let _ = connection.as_ref().expect("it is there").batch_execute(&statements).await;
    }
}

async fn wait_a_moment() {
    tokio::time::sleep(Duration::from_millis(20)).await;
}

/// Adds on all nodes at once, by two clients each.
async fn all_add(mesh: &Mesh, count: usize) -> Vec<tokio::task::JoinHandle<()>> {
    let adding = mesh.nodes.iter().enumerate().flat_map(|(nth, node)| {
        let server = node.server.dsn();
        (0..2).map(move |client| tokio::spawn(add(server.clone(), nth * 2 + client, count)))
    });
    adding.collect()
}

/// Every count is what the transactions that committed have added to 100 and 1000, on all nodes.
async fn nothing_is_lost_or_twice(mesh: &Mesh) {
    mesh.wait_until_applied().await;
    let rows = mesh.same_everywhere(ALL).await;
    let wrong = "SELECT count(*)::text FROM stock s, LATERAL (SELECT count(*) AS n FROM done d WHERE d.stock = s.id) d \
                 WHERE left_over <> 100 + 3 * n OR value <> 1000 - 0.25 * n";
    let done = mesh.same_everywhere("SELECT count(*)::text FROM done").await;
    assert_eq!(mesh.same_everywhere(wrong).await, "0", "{rows} after {done}");
}

async fn conflicts(mesh: &Mesh, nth: usize) -> String {
    mesh.text(nth, "SELECT count(*)::text FROM antiphon.conflicts").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_every_node_adds_counts_whoever_wrote_last() {
    let all = releases();
    let releases = [None, all.first().copied(), all.last().copied()];
    let mesh = Mesh::with(&releases, STOCK, "", &[]).await;
    set_table(&settings(&mesh, &["left_over", "value"])).await.expect("it is set");
    mesh.run(0, TWO).await;
    mesh.wait_for(COUNT, "2").await;
    for adding in all_add(&mesh, 60).await {
        adding.await.expect("all was added");
    }
    nothing_is_lost_or_twice(&mesh).await;
    let sums = "SELECT string_agg(left_over || ' ' || value, ', ' ORDER BY id) FROM stock";
    assert_eq!(mesh.same_everywhere(sums).await, "640 955.00, 640 955.00");
    assert_ne!(conflicts(&mesh, 0).await, "0", "rows that all write conflict");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_added_counts_once_through_crashes() {
    let mut mesh = counting(3).await;
    mesh.run(0, TWO).await;
    mesh.wait_for(COUNT, "2").await;
    let adding = all_add(&mesh, 60).await;
    for nth in 0..3 {
        wait_a_moment().await;
        mesh.crash(nth).await;
    }
    for adding in adding {
        adding.await.expect("all was tried");
    }
    nothing_is_lost_or_twice(&mesh).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_lost_nothing_but_a_count_keeps_who_wrote_it_and_when() {
    let mesh = counting(2).await;
    mesh.run(0, TWO).await;
    mesh.wait_until_applied().await;
    let written = "SELECT pg_xact_commit_timestamp(xmin)::text FROM stock WHERE id = 1";
    let early = mesh.nodes[0].server.client().await;
    early
        .batch_execute("BEGIN; UPDATE stock SET left_over = left_over + 1 WHERE id = 1")
        .await
        .expect("an update");
    hold(&mesh, 1, 0, true).await;
    early.batch_execute("COMMIT").await.expect("a commit");
    mesh.run(1, "UPDATE stock SET name = 'later', left_over = left_over + 10 WHERE id = 1").await;
    let at = mesh.text(1, written).await;
    hold(&mesh, 1, 0, false).await;
    mesh.wait_for(ALL, "(1,later,111,1000.00) (2,two,100,1000.00)").await;
    mesh.wait_until_applied().await;
    assert_eq!(mesh.same_everywhere(written).await, at, "the later write's time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_that_arrive_before_the_row_do_not_count_twice() {
    let mesh = counting(3).await;
    hold(&mesh, 2, 0, true).await;
    mesh.run(0, TWO).await;
    mesh.nodes[1].server.wait_for("SELECT count(*) = 2 FROM stock").await;
    mesh.run(0, "UPDATE stock SET left_over = left_over - 7 WHERE id = 1").await;
    mesh.nodes[1].server.wait_for("SELECT left_over = 93 FROM stock WHERE id = 1").await;
    mesh.run(1, "UPDATE stock SET left_over = left_over + 1").await;
    mesh.nodes[2].server.wait_for("SELECT count(*) = 2 FROM stock").await;
    mesh.run(2, "UPDATE stock SET left_over = left_over + 100").await;
    hold(&mesh, 2, 0, false).await;
    mesh.wait_for(ALL, "(1,one,194,1000.00) (2,two,201,1000.00)").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_end_alike_whoever_deletes_inserts_and_counts() {
    let mesh = counting(3).await;
    let mut storms = Vec::new();
    for (nth, node) in mesh.nodes.iter().enumerate() {
        storms.push(tokio::spawn(storm(node.server.dsn(), nth as u64 + 1, 150)));
    }
    for storm in storms {
        storm.await.expect("a storm ends");
    }
    mesh.wait_until_applied().await;
    assert_ne!(mesh.same_everywhere(ALL).await, "");
    // What comes now is the same as ever: nobody counts in rows that were there before.
    mesh.run(0, "DELETE FROM stock").await;
    mesh.wait_for(COUNT, "0").await;
    mesh.run(1, TWO).await;
    mesh.wait_for(COUNT, "2").await;
    for nth in 0..3 {
        mesh.run(nth, "UPDATE stock SET left_over = left_over + 1").await;
    }
    mesh.wait_for(ALL, "(1,one,103,1000.00) (2,two,103,1000.00)").await;
}

/// Inserts, counts, deletes and gives rows other keys at random.
async fn storm(server: String, seed: u64, count: u32) {
    let client = dsn(&server).control("storm").await.expect("a connection");
    let mut random = seed;
    let mut next = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    for nth in 0..count {
        let (id, by) = (next(6), next(9));
        let statement = match next(10) {
            0 => format!("DELETE FROM stock WHERE id = {id}"),
            1..=2 => format!(
                "INSERT INTO stock VALUES ({id}, '{seed}-{nth}', {by}) ON CONFLICT (id) DO UPDATE SET left_over = stock.left_over + 1"
            ),
            3 => format!("UPDATE stock SET id = {} WHERE id = {id}", next(6)),
            4 => "UPDATE stock SET value = value + 1, left_over = left_over - 2".to_owned(),
            5 => format!(
                "BEGIN; DELETE FROM stock WHERE id = {id}; INSERT INTO stock VALUES ({id}, 'anew', {by}); COMMIT"
            ),
            _ => format!(
                "UPDATE stock SET left_over = left_over + {by}, name = '{seed}.{nth}' WHERE id = {id}"
            ),
        };
        // Two that give a row the same new key, or take each other's locks, are this application's own business.
        if client.batch_execute(&statement).await.is_err() {
            let _ = client.batch_execute("ROLLBACK").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_were_there_before_and_nodes_that_join_count_too() {
    let mut mesh = Mesh::with(&[None], STOCK, TWO, &[]).await;
    set_table(&settings(&mesh, &["left_over", "value"])).await.expect("it is set");
    mesh.run(0, "UPDATE stock SET left_over = left_over + 1").await;
    for name in ["n2", "n3"] {
        let server = Server::start_with(None, &[]);
        let client = server.client().await;
        client.batch_execute(STOCK).await.expect("tables");
        mesh.join(name, &server).await;
        let (work, shown) = work(&server);
        mesh.nodes.push(Node { server, client, work, shown });
        mesh.wait_for(COUNT, "2").await;
    }
    for adding in all_add(&mesh, 20).await {
        adding.await.expect("all was added");
    }
    mesh.wait_until_applied().await;
    let sums = "SELECT string_agg(left_over || ' ' || value, ', ' ORDER BY id) FROM stock";
    assert_eq!(mesh.same_everywhere(sums).await, "281 985.00, 281 985.00");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_counted_in_rows_that_are_gone_is_forgotten_everywhere_and_nothing_else() {
    let mesh = counting(3).await;
    mesh.run(0, "INSERT INTO stock SELECT g, 'x', 5 FROM generate_series(1, 30) g").await;
    mesh.wait_for(COUNT, "30").await;
    for nth in 0..3 {
        mesh.run(nth, "UPDATE stock SET left_over = left_over + 1").await;
    }
    mesh.wait_until_applied().await;
    mesh.run(1, "DELETE FROM stock WHERE id > 20").await;
    mesh.run(2, "DELETE FROM stock WHERE id = 1; INSERT INTO stock VALUES (1, 'back', 7)").await;
    let ledger = "SELECT rel::text FROM antiphon.tables WHERE ledger_of IS NOT NULL";
    let ledger = mesh.text(0, ledger).await;
    let gone = format!("SELECT count(*)::text FROM {ledger} WHERE k1 > 20");
    mesh.wait_for(&gone, "0").await;
    mesh.run(0, "UPDATE stock SET left_over = left_over + 1").await;
    let sums = "SELECT string_agg(DISTINCT left_over::text, ' ') FROM stock WHERE id > 1";
    mesh.wait_for(sums, "9").await;
    mesh.wait_for("SELECT left_over::text FROM stock WHERE id = 1", "8").await;
    mesh.run(1, "TRUNCATE stock").await;
    mesh.wait_for(&format!("SELECT count(*)::text FROM {ledger}"), "0").await;
    let tombstones = format!(
        "SELECT count(*)::text FROM antiphon.gone_{}",
        mesh.text(0, "SELECT max(id)::text FROM antiphon.tables").await
    );
    assert_eq!(mesh.text(0, &tombstones).await, "0", "nobody's ledger is told");
    mesh.run(2, TWO).await;
    mesh.wait_for(COUNT, "2").await;
    for nth in 0..3 {
        mesh.run(nth, "UPDATE stock SET left_over = left_over + 1").await;
    }
    mesh.wait_for(ALL, "(1,one,103,1000.00) (2,two,103,1000.00)").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_transaction_counts_beside_others() {
    let mesh = counting(2).await;
    mesh.run(0, "INSERT INTO stock SELECT g, repeat(md5(g::text), 200) FROM generate_series(1, 1500) g")
        .await;
    mesh.wait_for(COUNT, "1500").await;
    let large = "UPDATE stock SET left_over = left_over + 1, name = repeat(md5(name), 200)";
    let others = tokio::spawn({
        let client = mesh.nodes[1].server.client().await;
        async move {
            for id in 1..100 {
                let add = format!("UPDATE stock SET left_over = left_over + 10 WHERE id = {}", id * 15);
                client.batch_execute(&add).await.expect("an update");
            }
        }
    });
    mesh.run(0, large).await;
    others.await.expect("all was added");
    mesh.wait_until_applied().await;
    mesh.same_everywhere("SELECT md5(string_agg(s::text, ' ' ORDER BY id)) FROM stock s").await;
    assert_eq!(mesh.same_everywhere("SELECT sum(left_over)::text FROM stock").await, "2490");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bound_that_counts_break_together_is_reported_and_nothing_is_lost() {
    let mesh = counting(2).await;
    for nth in 0..2 {
        mesh.run(nth, "ALTER TABLE stock ADD CHECK (left_over >= 0)").await;
    }
    mesh.run(0, "INSERT INTO stock VALUES (1, 'last', 1)").await;
    mesh.wait_for(COUNT, "1").await;
    hold(&mesh, 0, 1, true).await;
    hold(&mesh, 1, 0, true).await;
    for nth in 0..2 {
        mesh.run(nth, "UPDATE stock SET left_over = left_over - 1").await;
    }
    hold(&mesh, 0, 1, false).await;
    hold(&mesh, 1, 0, false).await;
    for nth in 0..2 {
        let refused = "SELECT EXISTS (SELECT FROM antiphon.links WHERE state = 'stopped' AND message LIKE '%stock%check constraint%')";
        mesh.nodes[nth].server.wait_for(refused).await;
    }
    // Both say what they have, and it is on the others' way as soon as the bound lets it.
    for nth in 0..2 {
        mesh.run(nth, "ALTER TABLE stock DROP CONSTRAINT stock_left_over_check").await;
    }
    mesh.wait_for("SELECT left_over::text FROM stock", "-1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_that_cannot_be_added_up_is_refused_with_the_remedy() {
    let mesh = Mesh::with(
        &[None],
        STOCK,
        "ALTER TABLE stock ADD rough float NOT NULL DEFAULT 0, ADD maybe int",
        &[],
    )
    .await;
    for (column, remedy) in
        [("rough", "numeric"), ("maybe", "SET NOT NULL"), ("id", "another"), ("none", "another")]
    {
        let Err(SetupError::NotReady { findings }) = set_table(&settings(&mesh, &[column])).await else {
            panic!("{column} is added up");
        };
        assert!(findings.len() == 1 && findings[0].remedy.contains(remedy), "{findings:?}");
    }
}

/// Holds up, or lets go, what one node applies of another.
async fn hold(mesh: &Mesh, here: usize, from: usize, held: bool) {
    let name = format!("n{}", from + 1);
    antiphon_mesh::manage::pause(mesh.client(here), Some(&name), held).await.expect("a pause");
    let slot = format!(
        "SELECT active <> {held} FROM pg_replication_slots WHERE slot_name = 'antiphon_test_{}'",
        here + 1
    );
    mesh.nodes[from].server.wait_for(&slot).await;
}
