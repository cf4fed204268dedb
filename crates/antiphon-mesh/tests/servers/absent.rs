//! Deletes that meet a row which nobody can see yet: it is being inserted by somebody with an earlier time.

use crate::mesh::{ALL, Mesh};
use crate::support::Server;

/// A client's insert has its time and is not seen yet.
const HANGS: &str = "SELECT EXISTS (SELECT FROM pg_stat_activity \
                     WHERE query LIKE 'INSERT INTO item%' AND wait_event = 'SyncRep')";

/// A link waits for a row that a client has locked.
async fn wait_until_held_up(server: &Server) {
    let held = "SELECT EXISTS (SELECT FROM pg_stat_activity \
                WHERE application_name = 'antiphon mesh apply' AND wait_event_type = 'Lock')";
    server.wait_for(held).await;
}

/// Commits of this server that wait for a standby hang from now on: they have their time, and nobody sees them.
async fn hold_commits(server: &Server) {
    server.sql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await;
    server.reload();
    let hangs = "SELECT EXISTS (SELECT FROM pg_stat_activity \
                 WHERE application_name = 'antiphon mesh node' AND wait_event = 'SyncRep')";
    server.wait_for(hangs).await;
}

/// They go on.
async fn let_commits_go(server: &Server) {
    server.sql("ALTER SYSTEM RESET synchronous_standby_names").await;
    server.reload();
}

/// A client's statement that is not waited for.
async fn begin(server: &Server, statement: &'static str) -> tokio::task::JoinHandle<()> {
    let client = server.client().await;
    tokio::spawn(async move { client.batch_execute(statement).await.expect(statement) })
}

/// There is a tombstone, or what else the query names, that came from another node.
async fn wait_until_heard(server: &Server, table: &str) {
    let heard =
        "SELECT coalesce(bool_or((pg_xact_commit_timestamp_origin(g.xmin)).roident <> 0), false) FROM";
    server.wait_for(&format!("{heard} antiphon.{table} g")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_takes_a_row_whose_insert_is_older_and_not_seen_yet() {
    let mesh = Mesh::of(2, "INSERT INTO item VALUES (1, 'first')").await;
    let (a, b) = (&mesh.nodes[0].server, &mesh.nodes[1].server);
    mesh.wait_until_applied().await;
    // The second does not hear of the first's delete before it deletes the row itself.
    mesh.run(1, "BEGIN; SELECT FROM item WHERE id = 1 FOR UPDATE").await;
    mesh.run(0, "DELETE FROM item WHERE id = 1").await;
    hold_commits(a).await;
    let insert = begin(a, "INSERT INTO item VALUES (1, 'again')").await;
    a.wait_for(HANGS).await;
    mesh.run(1, "DELETE FROM item WHERE id = 1; COMMIT").await;
    wait_until_heard(a, "gone_1").await;
    let_commits_go(a).await;
    insert.await.expect("it commits");
    assert_eq!(mesh.wait_until_settled().await, "");
    assert_eq!(b.client().await.query("SELECT FROM item", &[]).await.expect("rows").len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_takes_a_row_that_another_link_is_inserting() {
    let mesh = Mesh::of(3, "INSERT INTO item VALUES (9, 'held')").await;
    let a = &mesh.nodes[0].server;
    let held = a.client().await;
    held.batch_execute("BEGIN; SELECT FROM item WHERE id = 9 FOR UPDATE").await.expect("a lock");
    // On the first node this is held up behind its first row.
    mesh.run(1, "BEGIN; INSERT INTO item VALUES (1, 'n2'); UPDATE item SET who = 'n2' WHERE id = 9; COMMIT")
        .await;
    wait_until_held_up(a).await;
    mesh.nodes[2].server.wait_for("SELECT EXISTS (SELECT FROM item WHERE id = 1)").await;
    mesh.run(2, "DELETE FROM item WHERE id = 1").await;
    wait_until_heard(a, "gone_1").await;
    held.batch_execute("COMMIT").await.expect("an end");
    assert_eq!(mesh.wait_until_settled().await, "(9,n2,0)");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_of_what_is_not_here_waits_for_no_idle_client_and_is_told() {
    let mesh = Mesh::of(2, "INSERT INTO item VALUES (1, 'first'), (2, 'first')").await;
    let idle = mesh.nodes[0].server.client().await;
    idle.batch_execute("BEGIN; INSERT INTO item VALUES (7, 'idle')").await.expect("an insert");
    mesh.run(1, "BEGIN; SELECT FROM item WHERE id < 3 FOR UPDATE").await;
    mesh.run(0, "DELETE FROM item WHERE id < 3").await;
    mesh.run(1, "DELETE FROM item WHERE id < 3; COMMIT").await;
    let told = "SELECT coalesce(string_agg(kind, ','), '') = 'delete_missing,delete_missing' FROM antiphon.conflicts";
    mesh.nodes[0].server.wait_for(told).await;
    idle.batch_execute("COMMIT").await.expect("an end");
    assert_eq!(mesh.wait_until_settled().await, "(7,idle,0)");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_lived_within_one_transaction_leave_tombstones_and_nothing_else() {
    let mesh = Mesh::of(2, "").await;
    mesh.run(
        0,
        "BEGIN; INSERT INTO item SELECT g, 'fleeting' FROM generate_series(1, 30) g; \
         UPDATE item SET who = 'changed' WHERE id < 10; DELETE FROM item WHERE id <= 20; COMMIT",
    )
    .await;
    mesh.wait_for("SELECT concat(count(*), ' ', min(id)) FROM item", "10 21").await;
    assert_eq!(mesh.text(1, "SELECT count(*)::text FROM antiphon.gone_1").await, "20");
    assert!(!mesh.nodes[1].server.log().contains("duplicate key"));
    mesh.run(0, "DELETE FROM item").await;
    mesh.wait_for(ALL, "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncation_takes_rows_whose_inserts_are_older_and_not_seen_yet() {
    let mesh = Mesh::of(3, "INSERT INTO item VALUES (1, 'first'), (9, 'held')").await;
    let a = &mesh.nodes[0].server;
    mesh.wait_until_applied().await;
    // A client's insert, which has its time, and another link's, which is held up behind it.
    let held = a.client().await;
    held.batch_execute("BEGIN; SELECT FROM item WHERE id = 9 FOR UPDATE").await.expect("a lock");
    mesh.run(1, "BEGIN; INSERT INTO item VALUES (2, 'n2'); UPDATE item SET who = 'n2' WHERE id = 9; COMMIT")
        .await;
    wait_until_held_up(a).await;
    hold_commits(a).await;
    let insert = begin(a, "INSERT INTO item VALUES (3, 'n1')").await;
    a.wait_for(HANGS).await;
    mesh.nodes[2].server.wait_for("SELECT EXISTS (SELECT FROM item WHERE id = 2)").await;
    mesh.run(2, "BEGIN; TRUNCATE item; INSERT INTO item VALUES (4, 'n3'); COMMIT").await;
    wait_until_heard(a, "truncations").await;
    let_commits_go(a).await;
    insert.await.expect("it commits");
    held.batch_execute("COMMIT").await.expect("an end");
    assert_eq!(mesh.wait_until_settled().await, "(4,n3,0)");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_clock_was_set_back_inserts_again_what_it_deleted() {
    let mesh = Mesh::of(2, "INSERT INTO item VALUES (1, 'first')").await;
    mesh.wait_until_applied().await;
    // As if the second had deleted it while its clock was ahead.
    let deleted = "BEGIN; UPDATE antiphon.gone_1 SET id = id; \
                   SELECT pg_replication_origin_xact_setup('0/1', clock_timestamp() + interval '1 hour'); COMMIT";
    mesh.run(0, "DELETE FROM item WHERE id = 1").await;
    mesh.run(0, "SELECT pg_replication_origin_session_setup('antiphon_test_2_repair')").await;
    mesh.run(0, deleted).await;
    mesh.run(0, "SELECT pg_replication_origin_session_reset()").await;
    mesh.nodes[1].server.wait_for("SELECT NOT EXISTS (SELECT FROM item)").await;
    mesh.run(1, "INSERT INTO item VALUES (1, 'again')").await;
    mesh.wait_for(ALL, "(1,again,0)").await;
}
