//! What sessions ask of their reads: by file, user, database and connection; and the token that is told after each
//! commit, which makes another session see what was committed.

use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use antiphon::demo::cluster::PASSWORD;
use tokio_postgres::{Client, NoTls};

use super::reads::{ask, route, wait_for_followers};
use super::support::{Routed, UP_WITHIN, code, wait_until};

/// A client with these options, and the token that it was told last.
async fn client(
    routed: &Routed,
    user: &str,
    options: &str,
) -> Result<(Client, Arc<Mutex<Option<String>>>), tokio_postgres::Error> {
    let mut config = routed.config("postgres");
    config.user(user).options(options);
    let (client, mut connection) = config.connect(NoTls).await?;
    let token = Arc::new(Mutex::new(None));
    let told = token.clone();
    tokio::spawn(async move {
        let next = |cx: &mut std::task::Context<'_>| {
            let polled = connection.poll_message(cx);
            *told.lock().unwrap() = connection.parameter("antiphon.token").map(str::to_owned);
            polled
        };
        let mut next = next;
        while let Some(Ok(_)) = poll_fn(&mut next).await {}
    });
    Ok((client, token))
}

#[tokio::test]
async fn the_file_says_what_sessions_ask_that_do_not_say() {
    let settings = "  read_from: followers\n  consistency: strong\n  users:\n    anna: {consistency: eventual}\n\
                    \x20 databases:\n    postgres: {consistency: monotonic, report_token: yes}\n";
    let routed = Routed::start("levels", 2, settings).await;
    let (owner, _) = client(&routed, "postgres", "").await.unwrap();
    let role = format!("CREATE ROLE anna LOGIN PASSWORD '{PASSWORD}'");
    owner.batch_execute(&role).await.unwrap();
    owner.batch_execute("CREATE DATABASE other").await.unwrap();
    let shown = async |client: &Client| {
        (ask(client, "SHOW antiphon.consistency").await, ask(client, "SHOW antiphon.report_token").await)
    };
    let pair = |level: &str, reports: &str| (level.to_owned(), reports.to_owned());
    assert_eq!(shown(&owner).await, pair("monotonic", "on"), "the database's");
    assert_eq!(shown(&routed.connect("other").await.unwrap()).await, pair("strong", "off"), "the file's");
    let (anna, _) = client(&routed, "anna", "").await.unwrap();
    assert_eq!(shown(&anna).await, pair("eventual", "on"), "the user's before the database's");
    let options = "-c antiphon.consistency=bounded(2s) -c antiphon.report_token=off";
    let (anna, _) = client(&routed, "anna", options).await.unwrap();
    assert_eq!(shown(&anna).await, pair("bounded(2000ms)", "off"), "the connection's before all");
    anna.batch_execute("SET antiphon.consistency = strong").await.unwrap();
    anna.batch_execute("RESET antiphon.consistency").await.unwrap();
    assert_eq!(shown(&anna).await.0, "bounded(2000ms)");
    let wrong = client(&routed, "anna", "-c antiphon.report_token=maybe").await.err().unwrap();
    assert_eq!(code(&wrong), "22023");
}

#[tokio::test]
async fn a_monotonic_session_reads_on_where_it_read_and_not_behind_rows_that_it_was_given() {
    let routed = Routed::start("monotonic", 2, "  read_from: followers\n").await;
    let client = routed.client().await;
    client.batch_execute("CREATE TABLE t (n int)").await.unwrap();
    client.batch_execute("SET antiphon.consistency = monotonic").await.unwrap();
    wait_for_followers(&routed).await;
    wait_until("the table is there", UP_WITHIN, async || {
        ask(&client, "SELECT count(*) FROM t").await;
        route(&client).await.starts_with("follower")
    })
    .await;
    let leader = routed.cluster.leader().await.unwrap();
    let follower = routed.direct(1 - leader).await;
    follower.batch_execute("SELECT pg_wal_replay_pause()").await.unwrap();
    client.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
    assert_eq!(ask(&client, "SELECT count(*) FROM t").await, "0", "its own write does not bind it");
    assert!(route(&client).await.starts_with("follower"), "{}", route(&client).await);
    client.batch_execute("SET antiphon.consistency = read_your_writes").await.unwrap();
    assert_eq!(ask(&client, "SELECT count(*) FROM t").await, "1", "another level knows of it");
    client.batch_execute("SET antiphon.consistency = monotonic").await.unwrap();
    for _ in 0..5 {
        assert_eq!(ask(&client, "SELECT count(*) FROM t").await, "1", "a row that it was given binds it");
        assert_eq!(route(&client).await, "leader: none_far_enough");
    }
    follower.batch_execute("SELECT pg_wal_replay_resume()").await.unwrap();
    wait_until("it comes back to the follower", UP_WITHIN, async || {
        assert_eq!(ask(&client, "SELECT count(*) FROM t").await, "1");
        route(&client).await.starts_with("follower")
    })
    .await;
}

#[tokio::test]
async fn a_session_that_asks_is_told_its_token_with_each_commit() {
    let routed = Routed::start("reported", 2, "  read_from: followers\n").await;
    let (writer, token) = client(&routed, "postgres", "-c antiphon.report_token=on").await.unwrap();
    writer.batch_execute("CREATE TABLE t (n int)").await.unwrap();
    wait_for_followers(&routed).await;
    let (reader, none) = client(&routed, "postgres", "-c antiphon.consistency=monotonic").await.unwrap();
    let leader = routed.cluster.leader().await.unwrap();
    let follower = routed.direct(1 - leader).await;
    follower.batch_execute("SELECT pg_wal_replay_pause()").await.unwrap();
    let mut last = String::new();
    let began = Instant::now();
    for n in 0..50i32 {
        match n % 4 {
            0 => drop(writer.execute("INSERT INTO t VALUES ($1)", &[&n]).await.unwrap()),
            1 => writer.batch_execute(&format!("INSERT INTO t VALUES ({n})")).await.unwrap(),
            2 => writer.batch_execute(&format!("BEGIN; INSERT INTO t VALUES ({n}); COMMIT")).await.unwrap(),
            // Pinned from the first time on: it keeps its connection.
            _ => writer
                .batch_execute(&format!("CREATE TEMP TABLE t{n} (n int); INSERT INTO t VALUES ({n})"))
                .await
                .unwrap(),
        }
        let now = token.lock().unwrap().clone().expect("a token with the commit");
        assert_ne!(now, last, "a new one with each commit");
        last.clone_from(&now);
        reader.batch_execute(&format!("SET antiphon.token = '{now}'")).await.unwrap();
        let seen = ask(&reader, &format!("SELECT count(*) FROM t WHERE n = {n}")).await;
        assert_eq!(seen, "1", "{n}: {}", route(&reader).await);
    }
    eprintln!("50 commits with their tokens: {:?}", began.elapsed());
    follower.batch_execute("SELECT pg_wal_replay_resume()").await.unwrap();
    assert_eq!(*none.lock().unwrap(), None, "nobody else is told");
    writer.batch_execute("SET antiphon.report_token = off").await.unwrap();
    writer.batch_execute("INSERT INTO t VALUES (100)").await.unwrap();
    assert_eq!(token.lock().unwrap().clone().unwrap(), last);
    commits_are_not_held_up(&routed).await;
}

/// Many at once; none waits for long.
async fn commits_are_not_held_up(routed: &Routed) {
    let mut sessions = Vec::new();
    for number in 0..8i32 {
        let (writer, token) = client(routed, "postgres", "-c antiphon.report_token=on").await.unwrap();
        sessions.push(tokio::spawn(async move {
            let mut longest = Duration::ZERO;
            for n in 0..100i32 {
                let began = Instant::now();
                writer.execute("INSERT INTO t VALUES ($1 * 1000 + $2)", &[&number, &n]).await.unwrap();
                longest = longest.max(began.elapsed());
            }
            assert!(token.lock().unwrap().is_some());
            longest
        }));
    }
    let mut longest = Duration::ZERO;
    for session in sessions {
        longest = longest.max(session.await.unwrap());
    }
    eprintln!("800 commits of 8 sessions with their tokens: the longest took {longest:?}");
    assert!(longest < Duration::from_secs(1), "a token was not known in time: {}", routed.log());
}
