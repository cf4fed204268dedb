//! The file is read again: what can change does, nobody loses a connection, and a mistake changes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use antiphon_testcerts::Authority;
use nix::sys::signal::Signal;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use super::console::{console, count, rows};
use super::support::{Routed, code, wait_until};

const WITHIN: Duration = Duration::from_secs(30);

/// Clients that never stop to ask, of whom none may see an error.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    async fn start(routed: &Routed) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut clients = Vec::new();
        for number in 0..3_i64 {
            let (client, stop, done) = (routed.client().await, stop.clone(), done.clone());
            clients.push(tokio::spawn(async move {
                let statement =
                    client.prepare("SELECT $1::bigint + count(*) FROM pg_class WHERE false").await;
                let statement = statement.unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let row = client.query_one(&statement, &[&number]).await.unwrap();
                    assert_eq!(row.get::<_, i64>(0), number);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        Self { stop, done, clients }
    }

    async fn finish(self) {
        let before = self.done.load(Ordering::Relaxed);
        wait_until("all go on", WITHIN, async || self.done.load(Ordering::Relaxed) > before + 30).await;
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
    }
}

async fn shown(client: &Client, setting: &str) -> String {
    client.query_one(&format!("SHOW antiphon.{setting}"), &[]).await.unwrap().get(0)
}

async fn reload(console: &Client) {
    console.simple_query("RELOAD").await.unwrap();
}

async fn configured(console: &Client, key: &str) -> String {
    let rows = rows(console, "SHOW CONFIG").await;
    rows.into_iter().find(|row| row["key"] == key).unwrap()["value"].clone()
}

#[tokio::test]
async fn a_reload_changes_settings_and_nobody_loses_a_connection() {
    let routed = Routed::start("reload", 2, "  pool_size: 2\n  admin_users: postgres\n").await;
    let console = console(&routed).await;
    let old = routed.client().await;
    old.batch_execute("CREATE TABLE t (n int)").await.unwrap();
    pools_grow_and_shrink(&routed, &console, &old).await;
    let load = Load::start(&routed).await;
    reads_go_to_followers_and_back(&routed, &console, &old).await;

    // Others may look at the console, and agents are other ones.
    routed.change_file("  admin_users: postgres\n", "  stats_users: postgres\n");
    let agents = super::support::agents(&routed.cluster);
    let (_, last) = agents.rsplit_once(", ").unwrap();
    routed.change_file(&agents, last);
    routed.signal(Signal::SIGHUP);
    wait_until("an admin is one no more", WITHIN, async || {
        let new = super::console::console(&routed).await;
        new.simple_query("RELOAD").await.is_err_and(|error| code(&error) == "42501")
    })
    .await;
    assert_eq!(configured(&console, "agents").await, last.trim_matches('"'));
    load.finish().await;
    old.batch_execute("INSERT INTO t VALUES (2)").await.unwrap();
}

async fn pools_grow_and_shrink(routed: &Routed, console: &Client, first: &Client) {
    let (second, third) = (routed.client().await, routed.client().await);
    first.batch_execute("BEGIN; INSERT INTO t VALUES (1)").await.unwrap();
    second.batch_execute("BEGIN").await.unwrap();
    let third = tokio::spawn(async move {
        third.batch_execute("BEGIN; SELECT 1").await.unwrap();
        third
    });
    wait_until("the third waits", WITHIN, async || count(console, "SHOW POOLS", "cl_waiting").await == 1)
        .await;
    routed.change_file("pool_size: 2", "pool_size: 3");
    reload(console).await;
    let third = third.await.unwrap();
    routed.change_file("pool_size: 3", "pool_size: 1");
    reload(console).await;
    for client in [first, &second, &third] {
        client.batch_execute("COMMIT").await.unwrap();
    }
    let links = async || {
        count(console, "SHOW POOLS", "sv_idle").await + count(console, "SHOW POOLS", "sv_active").await
    };
    wait_until("one link is left", WITHIN, async || links().await == 1).await;
}

async fn reads_go_to_followers_and_back(routed: &Routed, console: &Client, old: &Client) {
    routed
        .change_file("  pool_size: 1\n", "  pool_size: 5\n  read_from: followers\n  consistency: eventual\n");
    routed.signal(Signal::SIGHUP);
    wait_until("a session of before reads from a follower", WITHIN, async || {
        old.query("SELECT n FROM t", &[]).await.unwrap();
        shown(old, "route").await.starts_with("follower")
    })
    .await;
    assert_eq!(shown(old, "consistency").await, "read_your_writes", "its promise stays");
    assert_eq!(shown(&routed.client().await, "consistency").await, "eventual");
    routed.change_file("read_from: followers", "read_from: leader");
    reload(console).await;
    old.query("SELECT n FROM t", &[]).await.unwrap();
    assert_eq!(shown(old, "route").await, "leader: off");
    routed.change_file("read_from: leader", "read_from: followers");
    reload(console).await;
    // Of what was written meanwhile nothing is missed.
    for n in 0..50 {
        old.execute("INSERT INTO t VALUES ($1)", &[&(1000 + n)]).await.unwrap();
        let rows = old.query("SELECT n FROM t WHERE n = $1", &[&(1000 + n)]).await.unwrap();
        assert_eq!(rows.len(), 1, "{n} in {}", shown(old, "route").await);
    }
    wait_until("reads go to followers again", WITHIN, async || {
        old.query("SELECT n FROM t", &[]).await.unwrap();
        shown(old, "route").await.starts_with("follower")
    })
    .await;
}

#[tokio::test]
async fn new_certificates_are_taken_over_and_old_connections_stay() {
    let routed = Routed::start_secure("reload-tls", 1, "").await;
    let old = routed.client().await;
    let authority = Authority::new(&routed.dir().join("new"), "other");
    let new = authority.issue("routers", &["127.0.0.1"]);
    let ask = || {
        let mut command = routed.command("psql");
        command.env("PGSSLROOTCERT", &authority.file).args(["-Atc", "SELECT 1"]);
        command.output().unwrap()
    };
    let told = String::from_utf8_lossy(&ask().stderr).into_owned();
    assert!(told.contains("certificate verify failed"), "{told}");
    let before = routed.certificates().of_clients("require");
    let (certificate, key) = (new.certificate.display(), new.key.display());
    let after = format!(
        "  client_tls_sslmode: require\n  client_tls_cert_file: {certificate}\n  client_tls_key_file: {key}\n"
    );
    routed.change_file(&before, &after);
    routed.signal(Signal::SIGHUP);
    wait_until("who believes the new authority is let in", WITHIN, async || ask().status.success()).await;
    old.batch_execute("SELECT 1").await.unwrap();
    routed.change_file(&certificate.to_string(), "/nowhere/router.crt");
    routed.signal(Signal::SIGHUP);
    wait_until("the log names the file", WITHIN, async || routed.log().contains("/nowhere/router.crt")).await;
    assert!(ask().status.success());
}

#[tokio::test]
async fn a_file_with_a_mistake_changes_nothing_and_what_needs_a_restart_is_named() {
    let routed = Routed::start("reload-wrong", 1, "  pool_size: 2\n  admin_users: postgres\n").await;
    let console = console(&routed).await;
    routed.change_file("pool_size: 2", "pool_sise: 7\n  max_client_conn: 5");
    let told = console.simple_query("RELOAD").await.unwrap_err();
    let told = told.as_db_error().unwrap();
    assert_eq!(told.code().code(), "F0000");
    assert!(told.detail().unwrap().contains("router.yml:"), "{told:?}");
    assert!(told.detail().unwrap().contains("unknown key; did you mean pool_size?"), "{told:?}");
    assert_eq!(configured(&console, "default_pool_size").await, "2");
    assert_eq!(configured(&console, "max_client_conn").await, "10000");
    routed.signal(Signal::SIGHUP);
    wait_until("the log says so", WITHIN, async || {
        routed.log().matches("the router's file was not taken over").count() == 2
    })
    .await;

    routed.change_file("pool_sise: 7", "pool_size: 7");
    routed.change_file("threads: 2", "threads: 3");
    routed.change_file("level: debug", "level: warn");
    reload(&console).await;
    let wanted = "these have changed and wait for a restart restart=\"router.threads\"";
    wait_until("the log names it", WITHIN, async || routed.log().contains(wanted)).await;
    assert_eq!(configured(&console, "threads").await, "2");
    assert_eq!(configured(&console, "default_pool_size").await, "7");
    let lines = routed.log().lines().count();
    drop(routed.client().await);
    assert_eq!(routed.log().lines().count(), lines, "less is logged: {}", routed.log());
}
