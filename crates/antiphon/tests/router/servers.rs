//! A router that knows of no agents: servers say who leads, and one server needs not even be asked.

use std::time::{Duration, Instant};

use antiphon::demo::cluster::{Cluster, PASSWORD};

use super::reads::{ask, route};
use super::support::{Another, UP_WITHIN, code, dir_of, start_cluster, wait_until};

fn list(cluster: &Cluster) -> String {
    let servers: Vec<String> =
        cluster.nodes.iter().map(|node| format!("'127.0.0.1:{}'", node.server_port)).collect();
    servers.join(", ")
}

#[tokio::test]
async fn servers_without_agents_are_followed_by_what_they_say() {
    let dir = dir_of("servers");
    let mut cluster = start_cluster(&dir, 3, None).await;
    let text = format!(
        "log: {{level: debug}}\nrouter:\n  listen: LISTEN\n  servers: [{}]\n  auth_user: asks\n  auth_password: {PASSWORD}\n  \
         auth_query: SELECT * FROM public.router_lookup($1)\n  read_from: followers\n  threads: 2\n",
        list(&cluster)
    );
    prepare(&cluster).await;
    let router = Another::of_file(&dir, "servers", &text);
    let client = router.wait_for_client().await;
    client.batch_execute("CREATE TABLE t (n int PRIMARY KEY)").await.unwrap();
    let (mut acknowledged, mut unknown) = (Vec::new(), 0);
    for round in 0..3 {
        wait_until("reads go to followers", UP_WITHIN, async || {
            ask(&client, "SELECT count(*) FROM t").await;
            route(&client).await.starts_with("follower")
        })
        .await;
        let leader = cluster.leader().await.unwrap();
        let began = Instant::now();
        let mut longest = Duration::ZERO;
        for n in round * 1000..round * 1000 + 300 {
            if n % 1000 == 100 {
                cluster.kill_server(leader).unwrap();
            }
            let asked = Instant::now();
            match client.execute("INSERT INTO t VALUES ($1)", &[&n]).await {
                Ok(_) => acknowledged.push(n),
                Err(error) => {
                    assert_eq!(code(&error), "08007", "{error:?}: {}", router.log());
                    unknown += 1;
                }
            }
            longest = longest.max(asked.elapsed());
            assert!(began.elapsed() < UP_WITHIN);
        }
        eprintln!("leader killed, found by asking: the longest statement took {longest:?}");
        cluster.wait_whole(UP_WITHIN).await.unwrap();
    }
    let rows = client.query("SELECT n FROM t /* antiphon: leader */", &[]).await.unwrap();
    let there: std::collections::BTreeSet<i32> = rows.iter().map(|row| row.get(0)).collect();
    assert!(acknowledged.iter().all(|n| there.contains(n)), "an acknowledged row is lost");
    assert!(unknown <= 3, "{unknown}");
    drop(router);
    cluster.stop();
    std::fs::remove_dir_all(&dir).unwrap();
}

/// An account of the router's own that may do no more than it needs.
async fn prepare(cluster: &Cluster) {
    let leader = cluster.leader().await.unwrap();
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(cluster.nodes[leader].server_port).user("postgres").password(PASSWORD);
    let (client, connection) = config.dbname("postgres").connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let sql = format!(
        "CREATE ROLE asks LOGIN PASSWORD '{PASSWORD}' IN ROLE pg_monitor; \
         CREATE FUNCTION router_lookup(name) RETURNS TABLE (name name, verifier text) LANGUAGE sql SECURITY DEFINER \
         SET search_path = pg_catalog \
         AS 'SELECT rolname, rolpassword FROM pg_authid WHERE rolname = $1 AND rolcanlogin'; \
         REVOKE ALL ON FUNCTION router_lookup(name) FROM public; GRANT EXECUTE ON FUNCTION router_lookup(name) TO asks"
    );
    client.batch_execute(&sql).await.unwrap();
}

#[tokio::test]
async fn one_server_is_pooled_without_an_account_to_ask_it() {
    let dir = dir_of("one-server");
    let mut cluster = start_cluster(&dir, 1, None).await;
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(cluster.nodes[0].server_port).user("postgres").password(PASSWORD);
    let (direct, connection) = config.dbname("postgres").connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let row =
        direct.query_one("SELECT rolpassword FROM pg_authid WHERE rolname = 'postgres'", &[]).await.unwrap();
    let users = dir.join("users.txt");
    std::fs::write(&users, format!("\"postgres\" \"{}\"\n", row.get::<_, &str>(0))).unwrap();
    let text = format!(
        "router:\n  listen: LISTEN\n  servers: [{}]\n  auth_file: {}\n  pool_size: 3\n",
        list(&cluster),
        users.display()
    );
    let router = Another::of_file(&dir, "one", &text);
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(router.wait_for_client().await);
    }
    for client in &clients {
        client.batch_execute("SELECT 1").await.unwrap();
    }
    let count = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'postgres' AND client_port > 0 \
                 AND backend_type = 'client backend' AND application_name = '' AND pid <> pg_backend_pid()";
    assert!(direct.query_one(count, &[]).await.unwrap().get::<_, i64>(0) <= 3);
    cluster.kill_server(0).unwrap();
    for client in &clients {
        // It comes back under its agent; who asks meanwhile waits.
        wait_until("it is served", UP_WITHIN, async || client.query_one("SELECT 1", &[]).await.is_ok()).await;
    }
    drop(router);
    cluster.stop();
    std::fs::remove_dir_all(&dir).unwrap();
}
