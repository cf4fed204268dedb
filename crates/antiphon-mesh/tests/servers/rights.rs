//! A node whose role is no superuser: with exactly these rights it can do everything, and without one it is told which.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use antiphon_mesh::dsn::Dsn;
use antiphon_mesh::name::TableName;
use antiphon_mesh::node::{self, Config};
use antiphon_mesh::setup::{
    Creation, Joining, Leaving, Settings, SetupError, create, join, leave, set_table,
};
use antiphon_mesh::standing::Standing;
use tokio::sync::watch;

use crate::mesh::dsn;
use crate::support::{PATIENCE, Server, releases};

/// Everything that the role needs, one statement each, as docs/mesh.md and the example list it.
const RIGHTS: [&str; 5] = [
    "ALTER ROLE plain REPLICATION",
    "GRANT EXECUTE ON FUNCTION pg_replication_origin_create(text), pg_replication_origin_drop(text), \
     pg_replication_origin_session_setup(text), pg_replication_origin_session_reset(), \
     pg_replication_origin_session_is_setup(), pg_replication_origin_xact_setup(pg_lsn, timestamptz) TO plain",
    "GRANT SET ON PARAMETER session_replication_role TO plain",
    "GRANT CREATE ON DATABASE postgres TO plain",
    "GRANT owner TO plain",
];

/// A server with a role that has no rights yet, and a table of somebody else's.
async fn server(release: u32) -> Server {
    let server = Server::start(Some(release));
    server
        .sql(
            "CREATE ROLE owner; CREATE ROLE plain LOGIN; \
              CREATE TABLE item (id int PRIMARY KEY, name text, n int NOT NULL DEFAULT 0); ALTER TABLE item OWNER TO owner",
        )
        .await;
    server
}

fn plain(server: &Server) -> Dsn {
    dsn(&server.dsn().replace("user=postgres", "user=plain"))
}

fn creation(server: &Server) -> Creation {
    Creation {
        mesh: "test".into(),
        node: "n1".into(),
        connect: plain(server),
        advertise: server.dsn().replace("user=postgres", "user=plain"),
        tables: vec!["public.*".into()],
    }
}

async fn wait_for_name(server: &Server, id: i32, name: &str) {
    let (client, begun) = (server.client().await, Instant::now());
    let query = "SELECT coalesce((SELECT name FROM item WHERE id = $1), 'none')";
    while client.query_one(query, &[&id]).await.expect("a query").get::<_, String>(0) != name {
        assert!(begun.elapsed() < PATIENCE, "row {id} is not {name}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_role_with_these_rights_can_do_everything() {
    for release in releases().into_iter().filter(|release| *release >= 15) {
        let servers = [server(release).await, server(release).await];
        for server in &servers {
            for right in RIGHTS {
                server.sql(right).await;
            }
        }
        create(&creation(&servers[0])).await.expect("a mesh");
        let joining = Joining {
            node: "n2".into(),
            connect: plain(&servers[1]),
            advertise: servers[1].dsn().replace("user=postgres", "user=plain"),
            donor: plain(&servers[0]),
            peers: BTreeMap::new(),
            env: BTreeMap::new(),
        };
        servers[0].sql("INSERT INTO item VALUES (1, 'copied')").await;
        // It works while the other one joins, as it does beside a member.
        let work = servers.each_ref().map(|server| {
            let config = Config { connect: plain(server), peers: BTreeMap::new(), env: BTreeMap::new() };
            let (show, _) = watch::channel(Arc::new(Standing::default()));
            tokio::spawn(node::run(config, show))
        });
        join(&joining, |_| {}).await.expect("one more node");
        wait_for_name(&servers[1], 1, "copied").await;
        servers[1]
            .sql("INSERT INTO item VALUES (2, 'there'); UPDATE item SET name = 'changed' WHERE id = 1")
            .await;
        wait_for_name(&servers[0], 2, "there").await;
        wait_for_name(&servers[0], 1, "changed").await;
        servers[0].sql("DELETE FROM item WHERE id = 2").await;
        wait_for_name(&servers[1], 2, "none").await;
        let settings = Settings {
            connect: plain(&servers[0]),
            table: TableName::new("public", "item"),
            deltas: vec!["n".into()],
            resolvers: Vec::new(),
            peers: BTreeMap::new(),
            env: BTreeMap::new(),
        };
        set_table(&settings).await.expect("it is set");
        for server in &servers {
            server.sql("UPDATE item SET n = n + 1, name = (n + 1)::text").await;
        }
        for server in &servers {
            server.wait_for("SELECT n = 2 FROM item").await;
        }
        let (peers, env) = (BTreeMap::new(), BTreeMap::new());
        let leaving = Leaving { connect: plain(&servers[1]), node: None, peers, env, force: false };
        assert_eq!(leave(&leaving).await.expect("it may go"), Vec::<String>::new());
        work.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_is_told_each_right_that_it_lacks() {
    let newest = *releases().last().expect("a release");
    let server = server(newest).await;
    let Err(SetupError::NotReady { findings }) = create(&creation(&server)).await else {
        panic!("a role without rights made a mesh");
    };
    assert_eq!(findings.len(), RIGHTS.len(), "{findings:#?}");
    // What a remedy says is done to the letter; who owns the table has to be known.
    for finding in &findings {
        if let Some(statement) = finding.remedy.strip_prefix("as superuser: ") {
            server.sql(statement).await;
        }
    }
    server.sql("GRANT owner TO plain").await;
    create(&creation(&server)).await.expect("a mesh");
}
