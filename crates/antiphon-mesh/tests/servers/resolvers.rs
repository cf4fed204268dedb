//! Conflicts that are decided by something else than the later write.

use std::collections::BTreeMap;

use antiphon_mesh::manage::{pause, skip, tables};
use antiphon_mesh::name::TableName;
use antiphon_mesh::setup::{Set, Settings, SetupError, set_table};

use crate::mesh::{Mesh, Node, dsn, work};
use crate::support::Server;

const ITEM: &str = "CREATE TABLE item (id bigint PRIMARY KEY, who text, amount int NOT NULL DEFAULT 0)";
const WHO: &str = "SELECT coalesce(string_agg(who, ' ' ORDER BY id), '') FROM item";

async fn set(mesh: &Mesh, resolvers: &[&str]) -> Result<Set, SetupError> {
    let settings = Settings {
        connect: dsn(&mesh.nodes[0].server.dsn()),
        table: TableName::new("public", "item"),
        deltas: Vec::new(),
        resolvers: resolvers.iter().map(ToString::to_string).collect(),
        peers: BTreeMap::new(),
        env: BTreeMap::new(),
    };
    set_table(&settings).await
}

/// Lets both nodes write the row without having seen each other, the first one first, and puts them in touch again.
async fn both_write(mesh: &Mesh, first: &str, second: &str) {
    hold(mesh, true).await;
    mesh.run(0, first).await;
    mesh.run(1, second).await;
    hold(mesh, false).await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_resolver_lets_stand_what_it_says() {
    let mesh = Mesh::of(2, "INSERT INTO item VALUES (1, 'first')").await;
    mesh.wait_until_applied().await;
    let (one, two) = ("UPDATE item SET who = 'one'", "UPDATE item SET who = 'two'");
    for (resolver, here, there) in [
        ("last_update_wins", "two", "two"),
        ("first_update_wins", "one", "one"),
        ("origin_priority:n1", "one", "one"),
        ("origin_priority:n2,n1", "two", "two"),
        ("keep_local", "one", "two"),
        ("apply_remote", "two", "one"),
    ] {
        let set = set(&mesh, &[resolver]).await.expect("it is set");
        assert_eq!(set.doubts.is_empty(), resolver == "last_update_wins", "{resolver}");
        both_write(&mesh, one, two).await;
        mesh.wait_until_applied().await;
        assert_eq!([mesh.text(0, WHO).await, mesh.text(1, WHO).await], [here, there], "{resolver}");
        mesh.run(0, "UPDATE item SET who = 'again'").await;
        mesh.wait_for(WHO, "again").await;
        mesh.wait_until_applied().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_can_have_a_resolver_of_its_own_and_a_node_that_joins_has_it_too() {
    let mut mesh = Mesh::with(&[None], ITEM, "INSERT INTO item VALUES (1, 'first'), (2, 'first')", &[]).await;
    let rules = ["first_update_wins", "update_deleted=error"];
    set(&mesh, &rules).await.expect("it is set");
    let server = Server::start_with(None, &[]);
    let client = server.client().await;
    client.batch_execute(ITEM).await.expect("a table");
    mesh.join("n2", &server).await;
    let (work, shown) = work(&server);
    mesh.nodes.push(Node { server, client, work, shown });
    mesh.wait_until_applied().await;
    for nth in 0..2 {
        let tables = tables(mesh.client(nth)).await.expect("tables");
        assert_eq!(tables[0].resolver, r#"{"default":"first_update_wins","update_deleted":"error"}"#);
    }
    both_write(&mesh, "UPDATE item SET who = 'one' WHERE id = 1", "UPDATE item SET who = 'two' WHERE id = 1")
        .await;
    mesh.wait_for(WHO, "one first").await;
    mesh.wait_until_applied().await;
    both_write(&mesh, "DELETE FROM item WHERE id = 2", "UPDATE item SET who = 'two' WHERE id = 2").await;
    let stopped = "SELECT EXISTS (SELECT FROM antiphon.links WHERE state = 'stopped' AND message LIKE '%update_deleted%')";
    mesh.nodes[0].server.wait_for(stopped).await;
    // Somebody decides: the row is gone for good.
    skip(mesh.client(0), "n2").await.expect("a skip");
    mesh.nodes[0].server.wait_for("SELECT count(*) = 1 FROM antiphon.set_aside").await;
    mesh.run(1, "DELETE FROM item WHERE id = 2").await;
    mesh.wait_for(WHO, "one").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resolver_that_does_not_exist_is_refused_and_nothing_is_set() {
    let mesh = Mesh::of(1, "").await;
    for (bad, why) in [
        ("latest", "is no resolver"),
        ("origin_priority", "name the nodes"),
        ("origin_priority:n7", "no node n7"),
        ("update_lost=error", "no kind of conflict"),
        ("multiple_unique_conflicts=error", "no kind of conflict"),
    ] {
        let Err(SetupError::Refused(told)) = set(&mesh, &[bad]).await else { panic!("{bad} is set") };
        assert!(told.contains(bad) && told.contains(why), "{told}");
    }
    assert_eq!(tables(mesh.client(0)).await.expect("tables")[0].resolver, "last_update_wins");
}
