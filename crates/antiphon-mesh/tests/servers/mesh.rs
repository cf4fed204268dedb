//! Nodes of a mesh in miniature: real servers on one machine, each with the node's work as a task of the test.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use antiphon_core::mesh::{CommitTime, NodeId};
use antiphon_mesh::dsn::Dsn;
use antiphon_mesh::links::{Link, links};
use antiphon_mesh::manage::pause;
use antiphon_mesh::name::TableName;
use antiphon_mesh::node::{self, Config};
use antiphon_mesh::setup::{
    Addition, Creation, Joining, add_table, create, join, sequences, spread_sequences,
};
use antiphon_mesh::standing::Standing;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::support::{PATIENCE, Server};

pub(crate) const TABLE: &str =
    "CREATE TABLE item (id bigint PRIMARY KEY, who text, amount int NOT NULL DEFAULT 0)";
/// All rows as one text, the same on every node that has the same.
pub(crate) const ALL: &str = "SELECT coalesce(string_agg(t::text, ' ' ORDER BY id), '') FROM item t";

pub(crate) struct Node {
    pub(crate) server: Server,
    pub(crate) client: Client,
    pub(crate) work: JoinHandle<()>,
    pub(crate) shown: watch::Receiver<Arc<Standing>>,
}

pub(crate) struct Mesh {
    pub(crate) nodes: Vec<Node>,
}

pub(crate) fn dsn(text: &str) -> Dsn {
    Dsn::parse(text, &BTreeMap::new()).expect("a connection string")
}

pub(crate) fn work(server: &Server) -> (JoinHandle<()>, watch::Receiver<Arc<Standing>>) {
    let config = Config { connect: dsn(&server.dsn()), peers: BTreeMap::new(), env: BTreeMap::new() };
    let (show, shown) = watch::channel(Arc::new(Standing::default()));
    (tokio::spawn(node::run(config, show)), shown)
}

impl Mesh {
    /// So many nodes that have the table and, from the first, what these statements make.
    pub(crate) async fn of(count: usize, statements: &str) -> Self {
        Self::with(&vec![None; count], TABLE, statements, &[]).await
    }

    /// Nodes of these releases, with tables and settings of their own.
    pub(crate) async fn with(
        releases: &[Option<u32>],
        tables: &str,
        statements: &str,
        settings: &[(&str, &str)],
    ) -> Self {
        let mut mesh = Self { nodes: Vec::new() };
        for (nth, release) in releases.iter().enumerate() {
            let server = Server::start_with(*release, settings);
            let client = server.client().await;
            client.batch_execute(tables).await.expect("tables");
            let name = format!("n{}", nth + 1);
            if nth == 0 {
                client.batch_execute(statements).await.expect("what is there at first");
                let creation = Creation {
                    mesh: "test".into(),
                    node: name,
                    connect: dsn(&server.dsn()),
                    advertise: server.dsn(),
                    tables: vec!["*.*".into()],
                };
                create(&creation).await.expect("a mesh");
            } else {
                mesh.join(&name, &server).await;
            }
            let (work, shown) = work(&server);
            mesh.nodes.push(Node { server, client, work, shown });
        }
        mesh
    }

    pub(crate) async fn join(&self, name: &str, server: &Server) {
        let joining = Joining {
            node: name.into(),
            connect: dsn(&server.dsn()),
            advertise: server.dsn(),
            donor: dsn(&self.nodes[0].server.dsn()),
            peers: BTreeMap::new(),
            env: BTreeMap::new(),
        };
        join(&joining, |_| {}).await.expect("one more node");
    }

    pub(crate) fn client(&self, nth: usize) -> &Client {
        &self.nodes[nth].client
    }

    pub(crate) async fn run(&self, nth: usize, statement: &str) {
        self.client(nth).batch_execute(statement).await.expect("a statement");
    }

    pub(crate) async fn text(&self, nth: usize, query: &str) -> String {
        self.client(nth).query_one(query, &[]).await.expect("a query").get(0)
    }

    /// Waits until this query gives this text on every node.
    pub(crate) async fn wait_for(&self, query: &str, expected: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut seen = Vec::new();
            for nth in 0..self.nodes.len() {
                seen.push(self.text(nth, query).await);
            }
            if seen.iter().all(|text| text == expected) {
                return;
            }
            assert!(Instant::now() < deadline, "{seen:?} instead of {expected}; links {:?}", self.links());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until everybody has applied what everybody wrote, and has told the others so: whatever is written from
    /// here on counts as written by somebody who had seen it.
    pub(crate) async fn wait_until_applied(&self) {
        let deadline = Instant::now() + PATIENCE;
        let mut marks = Vec::new();
        for nth in 0..self.nodes.len() {
            let clock =
                "SELECT (extract(epoch FROM clock_timestamp()) * 1000000 - 946684800000000)::bigint::text";
            marks.push(CommitTime(self.text(nth, clock).await.parse().expect("a number")));
        }
        while !self.all_know(&marks) {
            assert!(Instant::now() < deadline, "not settled; links {:?}", self.links());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Every node has applied of each other what was written there before its mark, and the other has heard so.
    fn all_know(&self, marks: &[CommitTime]) -> bool {
        let id = |nth| NodeId::new(u16::try_from(nth + 1).expect("few")).expect("not zero");
        marks.iter().enumerate().all(|(nth, mark)| {
            let links = self.nodes[nth].shown.borrow().links();
            self.nodes.iter().enumerate().filter(|(other, _)| *other != nth).all(|(other, node)| {
                let heard = links.get(&id(other)).is_some_and(|link| link.seen.of(id(nth)) >= *mark);
                heard && node.shown.borrow().reached().of(id(nth)) >= *mark
            })
        })
    }

    /// The same, and that everybody has the same items then.
    pub(crate) async fn wait_until_settled(&self) -> String {
        self.wait_until_applied().await;
        self.same_everywhere(ALL).await
    }

    /// What this query gives, which is the same everywhere.
    pub(crate) async fn same_everywhere(&self, query: &str) -> String {
        let first = self.text(0, query).await;
        for nth in 1..self.nodes.len() {
            assert_eq!(self.text(nth, query).await, first, "node {} differs from the first", nth + 1);
        }
        first
    }

    /// Makes a table on every node and lets it take part.
    pub(crate) async fn add_table(&self, statement: &str, table: &str) {
        for nth in 0..self.nodes.len() {
            self.run(nth, statement).await;
        }
        let (schema, name) = table.split_once('.').expect("a schema and a name");
        let addition = Addition {
            connect: dsn(&self.nodes[0].server.dsn()),
            table: TableName::new(schema, name),
            peers: BTreeMap::new(),
            env: BTreeMap::new(),
        };
        add_table(&addition).await.expect("one more table");
    }

    /// Kills a server and starts it again.
    pub(crate) async fn crash(&mut self, nth: usize) {
        let node = &mut self.nodes[nth];
        node.server.kill();
        node.server.resume();
        node.client = node.server.client().await;
    }

    pub(crate) fn links(&self) -> Vec<String> {
        self.nodes.iter().map(|node| format!("{:?}", node.shown.borrow().links())).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.work.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_on_any_node_is_soon_on_all() {
    let mesh = Mesh::of(3, "INSERT INTO item VALUES (1, 'before', 1), (2, 'before', 2)").await;
    mesh.wait_for(ALL, "(1,before,1) (2,before,2)").await;
    mesh.run(0, "INSERT INTO item VALUES (10, 'n1', 1)").await;
    mesh.run(1, "INSERT INTO item VALUES (20, 'n2', 1 + 1) ON CONFLICT DO NOTHING").await;
    mesh.run(2, "UPDATE item SET who = 'n3' WHERE id = 1").await;
    mesh.run(0, "DELETE FROM item WHERE id = 2").await;
    mesh.wait_for(ALL, "(1,n3,1) (10,n1,1) (20,n2,2)").await;
    mesh.run(1, "UPDATE item SET id = 11 WHERE id = 10").await;
    mesh.wait_for(ALL, "(1,n3,1) (11,n1,1) (20,n2,2)").await;
    mesh.run(2, "TRUNCATE item").await;
    mesh.wait_for(ALL, "").await;
    mesh.run(0, "INSERT INTO item VALUES (1, 'after', 1)").await;
    mesh.wait_for(ALL, "(1,after,1)").await;
}

/// Writes at random to few rows on one node, so often, as an application would.
pub(crate) async fn storm(server: String, seed: u64, count: u32) {
    let client = dsn(&server).control("storm").await.expect("a connection");
    let mut random = seed;
    let mut next = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    for nth in 0..count {
        let key = next(20);
        let statement = match next(10) {
            0..=1 => format!("DELETE FROM item WHERE id = {key}"),
            2..=4 => format!(
                "INSERT INTO item VALUES ({key}, '{seed}-{nth}') ON CONFLICT (id) DO UPDATE SET who = excluded.who"
            ),
            5 => format!("UPDATE item SET who = '{seed}:{nth}' WHERE id IN ({key}, {})", next(20)),
            6 => format!(
                "UPDATE item SET id = {} WHERE id = {key} AND NOT EXISTS (SELECT FROM item WHERE id = {0})",
                next(20)
            ),
            _ => format!("UPDATE item SET amount = amount + 1, who = '{seed}.{nth}' WHERE id = {key}"),
        };
        // Two that give a row the same new key, or take each other's locks, are this application's own business.
        let _ = client.batch_execute(&statement).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_end_with_the_same_rows_whoever_wrote_what_when() {
    let mesh = Mesh::of(3, "").await;
    let mut storms = Vec::new();
    for (nth, node) in mesh.nodes.iter().enumerate() {
        for client in 0..2 {
            storms.push(tokio::spawn(storm(node.server.dsn(), (nth * 2 + client) as u64 + 1, 300)));
        }
    }
    for storm in storms {
        storm.await.expect("a storm ends");
    }
    let rows = mesh.wait_until_settled().await;
    assert!(!rows.is_empty());
    let conflicts = mesh.text(0, "SELECT count(*)::text FROM antiphon.conflicts").await;
    assert_ne!(conflicts, "0", "a storm on twenty rows has conflicts");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_is_older_than_a_node_knows_the_rows_of_that_node() {
    let mesh = Mesh::of(3, "INSERT INTO item VALUES (1, 'first'), (2, 'first')").await;
    // The first node's link from the second began before the third joined. It is held up at row 1.
    let held = mesh.nodes[0].server.client().await;
    held.batch_execute("BEGIN; SELECT FROM item WHERE id = 1 FOR UPDATE").await.expect("a lock");
    mesh.run(1, "UPDATE item SET who = 'n2' WHERE id = 1").await;
    mesh.run(1, "UPDATE item SET who = 'older' WHERE id = 2").await;
    mesh.run(2, "UPDATE item SET who = 'newer' WHERE id = 2").await;
    mesh.nodes[0].server.wait_for("SELECT who = 'newer' FROM item WHERE id = 2").await;
    held.batch_execute("COMMIT").await.expect("an end");
    mesh.wait_for(ALL, "(1,n2,0) (2,newer,0)").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_writes_its_own_rows_again_is_applied_without_a_second_look() {
    let mesh = Mesh::of(2, "").await;
    mesh.run(0, "INSERT INTO item VALUES (1, 'first', 0)").await;
    for _ in 0..100 {
        mesh.run(0, "UPDATE item SET amount = amount + 1").await;
    }
    mesh.run(0, "DELETE FROM item; INSERT INTO item VALUES (1, 'again', 7)").await;
    mesh.wait_for(ALL, "(1,again,7)").await;
    // What fails of the fast way stands in the server's log.
    let log = mesh.nodes[1].server.log();
    assert!(!log.contains("division by zero") && !log.contains("duplicate key"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_that_nodes_give_out_are_never_the_same() {
    let tables = "CREATE TABLE \"Bill\" (id serial PRIMARY KEY, who text); \
                  CREATE TABLE flake (id bigint PRIMARY KEY, who text)";
    let rows = "INSERT INTO \"Bill\" (who) SELECT 'before' FROM generate_series(1, 40)";
    let mesh = Mesh::with(&[None; 3], tables, rows, &[]).await;
    for nth in 0..3 {
        mesh.run(nth, "SET search_path = ''").await;
        let done = spread_sequences(mesh.client(nth)).await.expect("they are spread");
        assert!(done.len() == 1 && done[0].contains("public.\"Bill_id_seq\""), "{done:?}");
        assert_eq!(sequences(mesh.client(nth)).await.expect("a look"), Vec::<String>::new());
        mesh.run(nth, "RESET search_path; ALTER TABLE flake ALTER id SET DEFAULT antiphon.snowflake()").await;
    }
    for nth in 0..3 {
        let insert = format!(
            "INSERT INTO \"Bill\" (who) SELECT 'n{nth}' FROM generate_series(1, 50); \
             INSERT INTO flake (who) SELECT 'n{nth}' FROM generate_series(1, 3000)"
        );
        mesh.run(nth, &insert).await;
    }
    mesh.wait_for(
        "SELECT (SELECT count(*) FROM \"Bill\") || ' ' || (SELECT count(*) FROM flake)",
        "190 9000",
    )
    .await;
    let conflicts = "SELECT count(*)::text FROM antiphon.conflicts";
    assert_eq!(mesh.same_everywhere(conflicts).await, "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_link_is_seen_from_every_node_and_so_is_one_that_is_broken() {
    let mut mesh = Mesh::of(3, "").await;
    mesh.wait_until_applied().await;
    let connect = dsn(&mesh.nodes[0].server.dsn());
    let none = (BTreeMap::new(), BTreeMap::new());
    let look = async |mesh: &Mesh| links(mesh.client(0), &connect, &none.0, &none.1).await.expect("links");
    let state = |links: &[Link], from: &str, to: &str| {
        links.iter().find(|link| link.from == from && link.to == to).expect("a link").clone()
    };
    let seen = look(&mesh).await;
    assert_eq!(seen.len(), 6);
    let complete = |link: &Link| link.behind_bytes.is_some() && link.behind_seconds.is_some();
    assert!(seen.iter().all(|link| link.state == "streaming" && complete(link)), "{seen:?}");
    pause(mesh.client(1), Some("n3"), true).await.expect("a pause");
    let parted = "SELECT NOT active FROM pg_replication_slots WHERE slot_name = 'antiphon_test_2'";
    mesh.nodes[2].server.wait_for(parted).await;
    mesh.run(2, "INSERT INTO item SELECT g, repeat('x', 1000) FROM generate_series(1, 300) g").await;
    mesh.nodes[0].server.wait_for("SELECT count(*) = 300 FROM item").await;
    let held = state(&look(&mesh).await, "n3", "n2");
    assert!(held.state == "paused" && held.behind_bytes > Some(300_000), "{held:?}");
    mesh.nodes[2].server.kill();
    let lost = look(&mesh).await;
    assert_eq!(state(&lost, "n1", "n3").state, "unreachable");
    assert_eq!(state(&lost, "n3", "n1").behind_bytes, None);
    mesh.nodes[2].server.resume();
}
