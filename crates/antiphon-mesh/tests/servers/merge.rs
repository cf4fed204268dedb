//! Columns whose values merge: what every leader did to them counts, whoever wrote last.

use std::fmt::Write;

use antiphon_mesh::manage::pause;

use crate::mesh::{Mesh, dsn};

/// Made where the types are there already: the first node's set-up makes them.
const PAGE: &str = "CREATE TABLE page (id int PRIMARY KEY, title text, views antiphon.pn_counter NOT NULL \
                    DEFAULT antiphon.pn_counter(), tags antiphon.or_set NOT NULL DEFAULT antiphon.or_set())";

const ALL: &str = "SELECT coalesce(string_agg(p::text, ' ' ORDER BY id), '') FROM page p";

/// Counts up, so often, now and then with a new title.
async fn count_up(server: String, client: usize, count: usize) {
    let connection = dsn(&server).control("count").await.expect("a connection");
    for nth in 0..count {
        let mut statement =
            format!("UPDATE page SET views = antiphon.increment(views) WHERE id = {};", 1 + nth % 2);
        if nth % 10 == client {
            let _ = write!(statement, "UPDATE page SET title = '{client}-{nth}' WHERE id = 1;");
        }
        connection.batch_execute(&statement).await.expect("an update");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_count_counts_wherever_it_was_counted() {
    let mesh = Mesh::of(3, "").await;
    mesh.add_table(PAGE, "public.page").await;
    mesh.run(0, "INSERT INTO page (id, title) VALUES (1, 'one'), (2, 'two')").await;
    mesh.wait_for("SELECT count(*)::text FROM page", "2").await;
    let counts = mesh.nodes.iter().enumerate().flat_map(|(nth, node)| {
        let server = node.server.dsn();
        (0..2).map(move |client| tokio::spawn(count_up(server.clone(), nth * 2 + client, 150)))
    });
    for count in counts.collect::<Vec<_>>() {
        count.await.expect("all were counted");
    }
    // The same key on two nodes at once: both counts stay.
    for (nth, by) in [(1, 5), (2, 7)] {
        let insert =
            format!("INSERT INTO page VALUES (3, 'n{nth}', antiphon.increment(antiphon.pn_counter(), {by}))");
        mesh.run(nth, &insert).await;
    }
    mesh.wait_until_applied().await;
    mesh.same_everywhere(ALL).await;
    let views = "SELECT string_agg(antiphon.value(views)::text, ',' ORDER BY id) FROM page";
    assert_eq!(mesh.same_everywhere(views).await, "450,450,12");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_counted_before_a_row_was_deleted_is_not_in_the_one_that_is_inserted_anew() {
    let mesh = Mesh::of(2, "").await;
    mesh.add_table(PAGE, "public.page").await;
    let count = "UPDATE page SET views = antiphon.increment(views, 5) WHERE id = 1";
    for anew in [
        "DELETE FROM page WHERE id = 1; INSERT INTO page VALUES (1, 'anew', antiphon.increment(antiphon.pn_counter(), 3))",
        "BEGIN; DELETE FROM page WHERE id = 1; \
         INSERT INTO page VALUES (1, 'again', antiphon.increment(antiphon.pn_counter(), 3)); COMMIT",
        "TRUNCATE page; INSERT INTO page VALUES (1, 'last', antiphon.increment(antiphon.pn_counter(), 3))",
    ] {
        mesh.run(0, "INSERT INTO page (id) VALUES (1) ON CONFLICT (id) DO UPDATE SET views = antiphon.increment(page.views, 7)").await;
        mesh.wait_until_applied().await;
        hold(&mesh, true).await;
        mesh.run(1, count).await;
        mesh.run(0, anew).await;
        hold(&mesh, false).await;
        mesh.wait_until_applied().await;
        let views = "SELECT string_agg(antiphon.value(views)::text, ',') FROM page";
        assert_eq!(mesh.same_everywhere(views).await, "3", "{anew}");
        mesh.same_everywhere(ALL).await;
    }
}

/// Parts two nodes, or puts them in touch.
async fn hold(mesh: &Mesh, held: bool) {
    for (here, from) in [(0, 1), (1, 0)] {
        pause(mesh.client(here), None, held).await.expect("a pause");
        let slot = format!(
            "SELECT active <> {held} FROM pg_replication_slots WHERE slot_name = 'antiphon_test_{}'",
            here + 1
        );
        mesh.nodes[from].server.wait_for(&slot).await;
    }
}
