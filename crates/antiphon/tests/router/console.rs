//! The console: what it shows is what there is, and what it closes stays closed until it is opened again.

use std::collections::HashMap;
use std::time::Duration;

use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use super::support::{Routed, code, wait_until};

const WITHIN: Duration = Duration::from_secs(20);

pub type Row = HashMap<String, String>;

pub async fn console(routed: &Routed) -> Client {
    routed.connect("pgbouncer").await.unwrap()
}

/// The rows that a command of the console gives, by column.
pub async fn rows(console: &Client, command: &str) -> Vec<Row> {
    let messages = console.simple_query(command).await.unwrap();
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    rows.map(|row| {
        let columns = row.columns().iter().map(|column| column.name().to_owned());
        columns.enumerate().map(|(at, name)| (name, row.get(at).unwrap_or_default().to_owned())).collect()
    })
    .collect()
}

pub async fn count(console: &Client, command: &str, column: &str) -> u64 {
    rows(console, command).await.iter().map(|row| row[column].parse::<u64>().unwrap()).sum()
}

async fn refused(console: &Client, command: &str) -> String {
    code(&console.simple_query(command).await.unwrap_err())
}

#[tokio::test]
async fn the_console_shows_pools_clients_links_and_counts_in_pgbouncers_columns() {
    let settings = "  pool_size: 4\n  admin_users: postgres\n";
    let routed = Routed::start("console", 2, &format!("{settings}  read_from: followers\n")).await;
    let console = console(&routed).await;
    let told = rows(&console, "SHOW VERSION;").await;
    assert!(told[0]["version"].starts_with("Antiphon "), "{told:?}");
    columns(&console).await;

    let before = count(&console, "SHOW STATS", "total_query_count").await;
    routed.succeed("pgbench", &["-i", "-q", "postgres"]);
    routed.succeed("pgbench", &["-n", "-c", "4", "-t", "100", "-S", "postgres"]);
    routed.succeed("pgbench", &["-n", "-c", "4", "-t", "100", "-S", "-M", "prepared", "postgres"]);
    let queries = count(&console, "SHOW STATS_TOTALS", "total_query_count").await - before;
    assert!((800..1200).contains(&queries), "{queries} queries counted of 800 and what surrounds them");
    for column in ["total_received", "total_sent", "total_query_time", "total_xact_time", "avg_query_count"] {
        assert!(count(&console, "SHOW STATS", column).await > 0, "{column}");
    }
    assert_eq!(count(&console, "SHOW STATS", "total_bind_count").await, 400);
    assert!(
        count(&console, "SHOW STATS", "total_server_parse_count").await < 100,
        "a text is prepared once a link"
    );

    let listens = routed.client().await;
    listens.batch_execute("SET application_name = 'ear'; LISTEN news").await.unwrap();
    let clients = rows(&console, "SHOW CLIENTS").await;
    let ear = clients.iter().find(|row| row["application_name"] == "ear").expect("the client that listens");
    assert_eq!(
        (ear["pinned"].as_str(), ear["state"].as_str(), ear["type"].as_str()),
        ("listen", "active", "C")
    );
    let servers = rows(&console, "SHOW SERVERS").await;
    let its = servers.iter().find(|row| row["ptr"] == ear["link"]).expect("its link");
    let process = listens.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get::<_, i32>(0);
    assert_eq!(its["remote_pid"], process.to_string());

    let pools = rows(&console, "SHOW POOLS").await;
    let pool = pools.iter().find(|row| row["user"] == "postgres" && row["database"] == "postgres").unwrap();
    assert_eq!((pool["sv_active"].as_str(), pool["cl_waiting"].as_str()), ("1", "0"), "{pool:?}");
    let followers = rows(&console, "SHOW FOLLOWERS").await;
    assert_eq!(followers.len(), 1, "{followers:?}");
    // As soon as what names mean is known again, after pgbench has made its tables.
    let reader = routed.client().await;
    wait_until("a read on a follower is counted", WITHIN, async || {
        reader.simple_query("SELECT count(*) FROM pg_class").await.unwrap();
        let routes = rows(&console, "SHOW ROUTES").await;
        routes.iter().any(|row| row["reason"] == "follower" && row["count"] != "0")
    })
    .await;
}

/// What exporters for PgBouncer read.
async fn columns(console: &Client) {
    let wanted: [(&str, &[&str]); 6] = [
        (
            "POOLS",
            &[
                "database",
                "user",
                "cl_active",
                "cl_waiting",
                "sv_active",
                "sv_idle",
                "sv_used",
                "sv_tested",
                "sv_login",
                "maxwait",
                "maxwait_us",
                "pool_mode",
            ],
        ),
        (
            "STATS",
            &[
                "database",
                "total_xact_count",
                "total_query_count",
                "total_received",
                "total_sent",
                "total_xact_time",
                "total_query_time",
                "total_wait_time",
                "avg_xact_count",
                "avg_query_count",
                "avg_recv",
                "avg_sent",
                "avg_xact_time",
                "avg_query_time",
                "avg_wait_time",
            ],
        ),
        (
            "DATABASES",
            &[
                "name",
                "host",
                "port",
                "database",
                "force_user",
                "pool_size",
                "pool_mode",
                "max_connections",
                "current_connections",
                "paused",
                "disabled",
            ],
        ),
        ("LISTS", &["list", "items"]),
        ("CONFIG", &["key", "value", "default", "changeable"]),
        ("USERS", &["name", "pool_mode"]),
    ];
    for (show, names) in wanted {
        let rows = rows(console, &format!("SHOW {show}")).await;
        let first = rows.first().unwrap_or_else(|| panic!("SHOW {show} is empty"));
        for name in names {
            assert!(first.contains_key(*name), "SHOW {show} has no {name}: {first:?}");
        }
    }
    for show in ["CLIENTS", "SERVERS", "STATE", "TOTALS", "STATS_AVERAGES", "HELP"] {
        console.simple_query(&format!("SHOW {show}")).await.unwrap();
    }
}

#[tokio::test]
async fn a_pause_lets_transactions_end_and_holds_what_begins_until_it_is_resumed() {
    let routed = Routed::start("pause", 1, "  admin_users: [postgres]\n  failover_hold: 2s\n").await;
    let (console, watcher) = (console(&routed).await, console(&routed).await);
    let (busy, idle) = (routed.client().await, routed.client().await);
    busy.batch_execute("CREATE TABLE t (n int); BEGIN; INSERT INTO t VALUES (1)").await.unwrap();
    let mut pause = tokio::spawn(async move {
        console.simple_query("PAUSE postgres").await.unwrap();
        console
    });
    wait_until("the database is paused", WITHIN, async || {
        rows(&watcher, "SHOW DATABASES")
            .await
            .iter()
            .any(|row| row["name"] == "postgres" && row["paused"] == "1")
    })
    .await;
    let held = tokio::spawn(async move { idle.query_one("SELECT count(*) FROM t", &[]).await });
    wait_until("a client waits", WITHIN, async || count(&watcher, "SHOW POOLS", "cl_waiting").await == 1)
        .await;
    assert!(!pause.is_finished(), "a transaction is open");
    busy.batch_execute("INSERT INTO t VALUES (2); COMMIT").await.unwrap();
    let console = (&mut pause).await.unwrap();
    // Longer than anybody would be held otherwise.
    wait_until("it waited for longer than failover_hold", WITHIN, async || {
        let pools = rows(&watcher, "SHOW POOLS").await;
        pools.iter().any(|row| row["maxwait"].parse::<u64>().unwrap() >= 3)
    })
    .await;
    assert!(!held.is_finished());
    console.simple_query("RESUME postgres").await.unwrap();
    assert_eq!(held.await.unwrap().unwrap().get::<_, i64>(0), 2);
    assert_eq!(refused(&console, "RESUME postgres").await, "55000");
    console.simple_query("PAUSE").await.unwrap();
    assert_eq!(rows(&watcher, "SHOW STATE").await[1]["value"], "yes");
    console.simple_query("RESUME").await.unwrap();
    busy.batch_execute("SELECT 1").await.unwrap();
}

#[tokio::test]
async fn clients_links_and_databases_are_closed_one_by_one_and_together() {
    let routed = Routed::start("kill", 1, "  admin_users: postgres\n").await;
    let console = console(&routed).await;
    let (a, b) = (routed.client().await, routed.client().await);
    let process = async |client: &Client| {
        client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get::<_, i32>(0)
    };
    let before = process(&a).await;
    console.simple_query("RECONNECT").await.unwrap();
    assert_ne!(process(&a).await, before, "links are made anew");

    a.batch_execute("SET application_name = 'a'").await.unwrap();
    let clients = rows(&console, "SHOW CLIENTS").await;
    let id = &clients.iter().find(|row| row["application_name"] == "a").unwrap()["id"];
    console.simple_query(&format!("KILL_CLIENT {id}")).await.unwrap();
    wait_until("the client is gone", WITHIN, async || a.is_closed()).await;
    assert_eq!(refused(&console, &format!("KILL_CLIENT {id}")).await, "42704");
    process(&b).await;

    console.simple_query("DISABLE postgres").await.unwrap();
    assert_eq!(code(&routed.connect("postgres").await.err().unwrap()), "57P03");
    process(&b).await;
    console.simple_query("ENABLE postgres").await.unwrap();

    console.simple_query("KILL postgres").await.unwrap();
    wait_until("all clients are gone", WITHIN, async || b.is_closed()).await;
    assert_eq!(count(&console, "SHOW DATABASES", "current_connections").await, 0);
    console.simple_query("RESUME postgres").await.unwrap();
    process(&routed.client().await).await;
}

#[tokio::test]
async fn only_those_named_see_the_console_and_only_admins_steer() {
    let routed = Routed::start("console-users", 1, "  admin_users: postgres\n  stats_users: watch\n").await;
    let admin = routed.client().await;
    admin
        .batch_execute("CREATE ROLE watch LOGIN PASSWORD 'w'; CREATE ROLE other LOGIN PASSWORD 'o'")
        .await
        .unwrap();
    let connect = async |user: &str, password: &str| {
        let mut config = routed.config("antiphon");
        config.user(user).password(password);
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok::<_, tokio_postgres::Error>(client)
    };
    assert_eq!(code(&connect("other", "o").await.err().unwrap()), "42501");
    assert_eq!(code(&connect("watch", "wrong").await.err().unwrap()), "28P01");
    let watch = connect("watch", "w").await.unwrap();
    assert!(!rows(&watch, "SHOW POOLS").await.is_empty());
    assert_eq!(refused(&watch, "PAUSE").await, "42501");
    assert_eq!(refused(&watch, "SHOW NONSENSE").await, "42704");
    assert_eq!(code(&watch.query("SHOW POOLS", &[]).await.unwrap_err()), "0A000", "no extended protocol");
    assert!(!rows(&watch, "SHOW LISTS").await.is_empty(), "and the connection goes on");
}
