//! A node that leaves, alive or dead, leaves the others with the same rows.

use antiphon_mesh::manage::pause;
use antiphon_mesh::setup::leave;

use crate::join::leaving;
use crate::mesh::{ALL, Mesh};
use crate::support::Server;

/// Stops a node's link from another, and waits until it has stopped.
async fn cut(mesh: &Mesh, reader: usize, source: usize) {
    pause(mesh.client(reader), Some(&format!("n{}", source + 1)), true).await.expect("a pause");
    let idle = format!(
        "SELECT NOT active FROM pg_replication_slots WHERE slot_name = 'antiphon_test_{}'",
        reader + 1
    );
    mesh.nodes[source].server.wait_for(&idle).await;
}

async fn go_on(mesh: &Mesh, reader: usize) {
    pause(mesh.client(reader), None, false).await.expect("an end of it");
}

async fn wait_until_left(server: &Server, node: usize) {
    server.wait_for(&format!("SELECT state = 'left' FROM antiphon.nodes WHERE id = {}", node + 1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_leaves_when_the_others_have_what_it_wrote() {
    let mut mesh = Mesh::of(3, "INSERT INTO item VALUES (9, 'first')").await;
    mesh.wait_until_applied().await;
    // What it writes is held up on the first node.
    let held = mesh.nodes[0].server.client().await;
    held.batch_execute("BEGIN; SELECT FROM item WHERE id = 9 FOR UPDATE").await.expect("a lock");
    mesh.run(
        2,
        "UPDATE item SET who = 'n3'; INSERT INTO item SELECT g, 'n3' FROM generate_series(100, 500) g",
    )
    .await;
    let order = leaving(&mesh.nodes[2].server, None);
    let left = tokio::spawn(async move { leave(&order).await });
    let locked = "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'item'::regclass AND mode = 'ShareRowExclusiveLock' AND granted)";
    mesh.nodes[2].server.wait_for(locked).await;
    mesh.nodes[1].server.wait_for("SELECT count(*) = 402 FROM item").await;
    assert!(!left.is_finished(), "it waits for the first node");
    held.batch_execute("COMMIT").await.expect("an end");
    assert_eq!(left.await.expect("no panic").expect("it leaves"), Vec::<String>::new());
    mesh.nodes.pop();
    wait_until_left(&mesh.nodes[0].server, 2).await;
    mesh.wait_for("SELECT concat(count(*), ' ', min(who)) FROM item", "402 n3").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_leaves_while_a_client_writes_on_it() {
    let mesh = Mesh::of(2, "").await;
    mesh.wait_until_applied().await;
    mesh.run(1, "BEGIN; INSERT INTO item VALUES (1, 'late')").await;
    let error = leave(&leaving(&mesh.nodes[1].server, None)).await.expect_err("somebody writes");
    assert!(error.to_string().contains("stop its clients"), "{error}");
    mesh.run(1, "COMMIT").await;
    mesh.run(0, "INSERT INTO item VALUES (2, 'n1')").await;
    mesh.wait_for(ALL, "(1,late,0) (2,n1,0)").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_others_are_the_same_when_a_dead_node_is_taken_out() {
    let rows = "INSERT INTO item SELECT g, 'first' FROM generate_series(1, 8) g";
    let mut mesh = Mesh::of(3, rows).await;
    mesh.wait_until_applied().await;
    cut(&mesh, 0, 2).await;
    // The second has all of it, the first nothing; and of one delete nobody knows any more.
    mesh.run(2, "UPDATE item SET who = 'n3' WHERE id <= 4; DELETE FROM item WHERE id IN (5, 6); INSERT INTO item VALUES (20, 'n3')").await;
    mesh.nodes[1].server.wait_for("SELECT count(*) = 7 FROM item").await;
    mesh.run(1, "DELETE FROM antiphon.gone_1 WHERE id = 6").await;
    // Later than what the dead node wrote, and earlier.
    mesh.run(0, "UPDATE item SET who = 'n1' WHERE id = 1").await;
    mesh.run(1, "UPDATE item SET who = 'n2' WHERE id = 2").await;
    mesh.nodes[2].work.abort();
    mesh.nodes[2].server.kill();
    let untold = leave(&leaving(&mesh.nodes[0].server, Some("n3"))).await.expect("it is taken out");
    assert_eq!(untold.len(), 1, "the dead one alone does not know: {untold:?}");
    mesh.nodes.truncate(2);
    mesh.wait_for(ALL, "(1,n1,0) (2,n2,0) (3,n3,0) (4,n3,0) (7,first,0) (8,first,0) (20,n3,0)").await;
    // With the time and node of who wrote them, so that what comes later is decided alike.
    let written = "SELECT concat(pg_xact_commit_timestamp(xmin)) FROM item WHERE id = 3";
    assert_eq!(mesh.text(0, written).await, mesh.text(1, written).await);
    mesh.run(0, "INSERT INTO item VALUES (5, 'again'), (6, 'again')").await;
    mesh.run(1, "DELETE FROM item WHERE id NOT IN (5, 6)").await;
    mesh.wait_for(ALL, "(5,again,0) (6,again,0)").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_wrote_that_left_is_a_conflict_for_those_who_had_not_seen_it() {
    let mut mesh = Mesh::of(3, "INSERT INTO item VALUES (1, 'first')").await;
    mesh.wait_until_applied().await;
    cut(&mesh, 1, 2).await;
    cut(&mesh, 0, 1).await;
    mesh.run(2, "UPDATE item SET who = 'n3' WHERE id = 1").await;
    mesh.nodes[0].server.wait_for("SELECT who = 'n3' FROM item").await;
    // The second has not seen that, and the first hears of this when the third has left.
    mesh.run(1, "UPDATE item SET who = 'n2' WHERE id = 1").await;
    go_on(&mesh, 1).await;
    mesh.nodes[1].server.wait_for("SELECT count(*) = 1 FROM antiphon.conflicts").await;
    assert_eq!(leave(&leaving(&mesh.nodes[2].server, None)).await.expect("it leaves"), Vec::<String>::new());
    mesh.nodes.pop();
    go_on(&mesh, 0).await;
    mesh.wait_for(ALL, "(1,n2,0)").await;
    let met = "SELECT string_agg(concat(kind, ' ', local_node), ',') FROM antiphon.conflicts";
    assert_eq!(mesh.text(0, met).await, "update_origin_differs 3");
}
