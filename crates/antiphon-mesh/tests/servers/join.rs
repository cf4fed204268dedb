//! A node that joins gets what decides later conflicts, not rows alone.

use std::collections::BTreeMap;

use antiphon_mesh::setup::{Creation, Leaving, create, leave, types};

use crate::mesh::{ALL, Mesh, Node, TABLE, dsn, work};
use crate::support::Server;

/// Takes a node out, as it would itself.
pub(crate) fn leaving(of: &Server, node: Option<&str>) -> Leaving {
    let connect = dsn(&of.dsn());
    Leaving {
        connect,
        node: node.map(Into::into),
        peers: BTreeMap::new(),
        env: BTreeMap::new(),
        force: false,
    }
}

/// A mesh of one whose rows are older than its server remembers.
async fn ancient() -> Mesh {
    let mut server = Server::start_with(None, &[("track_commit_timestamp", "off")]);
    server.sql(&format!("{TABLE}; INSERT INTO item VALUES (1, 'ancient')")).await;
    server.stop();
    server.set("track_commit_timestamp", "on");
    server.resume();
    let creation = Creation {
        mesh: "test".into(),
        node: "n1".into(),
        connect: dsn(&server.dsn()),
        advertise: server.dsn(),
        tables: vec!["*.*".into()],
    };
    create(&creation).await.expect("a mesh");
    let (work, shown) = work(&server);
    Mesh { nodes: vec![Node { client: server.client().await, server, work, shown }] }
}

async fn join(mesh: &mut Mesh, name: &str, server: Server) {
    mesh.join(name, &server).await;
    let (work, shown) = work(&server);
    mesh.nodes.push(Node { client: server.client().await, server, work, shown });
}

async fn with_table() -> Server {
    let server = Server::start(None);
    server.sql(TABLE).await;
    server
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_gets_rows_of_those_who_left_rows_without_a_time_and_truncations() {
    let mut mesh = ancient().await;
    join(&mut mesh, "n2", with_table().await).await;
    join(&mut mesh, "n3", with_table().await).await;
    mesh.wait_until_applied().await;
    // The first has applied everybody, and does not say up to when: all that it has counts as new.
    let forgetful = "CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.complete_to := NULL; RETURN NEW; END $$; \
        CREATE TRIGGER forget BEFORE INSERT OR UPDATE ON antiphon.links FOR EACH ROW EXECUTE FUNCTION forget(); \
        CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$; \
        CREATE TRIGGER keep BEFORE DELETE ON antiphon.truncations FOR EACH ROW EXECUTE FUNCTION keep()";
    mesh.run(0, forgetful).await;
    mesh.run(2, "INSERT INTO item VALUES (3, 'n3')").await;
    mesh.wait_until_applied().await;
    let gone = mesh.nodes.pop().expect("three");
    leave(&leaving(&gone.server, None)).await.expect("it leaves");
    drop(gone);
    // Its tables have other numbers than the first's.
    let newcomer = with_table().await;
    types(&dsn(&newcomer.dsn())).await.expect("the schema");
    newcomer.sql("ALTER SEQUENCE antiphon.tables_id_seq RESTART WITH 10").await;
    join(&mut mesh, "n4", newcomer).await;
    mesh.wait_for(ALL, "(1,ancient,0) (3,n3,0)").await;
    let written = "SELECT concat(pg_xact_commit_timestamp(xmin), ' ', roname) FROM item, \
                   LATERAL pg_xact_commit_timestamp_origin(xmin) o JOIN pg_replication_origin r ON r.roident = o.roident WHERE id = 3";
    assert_eq!(mesh.text(2, written).await, mesh.text(0, written).await);

    mesh.run(0, "TRUNCATE item").await;
    mesh.wait_for(ALL, "").await;
    let newcomer = with_table().await;
    types(&dsn(&newcomer.dsn())).await.expect("the schema");
    newcomer.sql("ALTER SEQUENCE antiphon.tables_id_seq RESTART WITH 20").await;
    join(&mut mesh, "n5", newcomer).await;
    let truncated =
        "SELECT string_agg(concat(id, ' ', pg_xact_commit_timestamp(xmin)), ',') FROM antiphon.truncations";
    let (there, here) = (mesh.text(0, truncated).await, mesh.text(3, truncated).await);
    assert_eq!(there.strip_prefix("1 "), here.strip_prefix("20 "), "{there} {here}");
}
