//! What passes through the router as if it were not there, and what it keeps apart.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt, TryStreamExt, pin_mut};

use super::support::{Routed, code, wait_until};

#[tokio::test]
async fn programs_of_postgresql_run_through_it() {
    programs(&Routed::start("programs", 1, "  pool_size: 8\n").await).await;
}

#[tokio::test]
async fn programs_of_postgresql_run_inside_tls() {
    programs(&Routed::start_secure("programs-tls", 1, "  pool_size: 8\n").await).await;
}

#[tokio::test]
async fn programs_of_postgresql_run_with_their_reads_on_followers() {
    programs(&Routed::start("programs-split", 3, "  pool_size: 8\n  read_from: followers\n").await).await;
}

async fn programs(routed: &Routed) {
    let shown = routed.succeed("psql", &["-Atc", "SHOW application_name", "-c", "SELECT 6 * 7"]);
    assert_eq!(shown, "psql\n42\n");
    routed.succeed("pgbench", &["-i", "-q", "postgres"]);
    for mode in ["simple", "extended", "prepared"] {
        for script in [&["-S"][..], &["-N"], &[]] {
            let mut arguments = vec!["-c", "8", "-j", "2", "-t", "50", "-M", mode];
            arguments.extend(script);
            arguments.push("postgres");
            let told = routed.succeed("pgbench", &arguments);
            assert!(told.contains("transactions actually processed: 400/400"), "{told}");
        }
    }
    // More clients than links, and each transaction on a connection of its own.
    let told = routed.succeed("pgbench", &["-c", "40", "-j", "2", "-t", "20", "-S", "postgres"]);
    assert!(told.contains("actually processed: 800/800"), "{told}");
    let told = routed.succeed("pgbench", &["-c", "4", "-j", "2", "-t", "10", "-S", "-C", "postgres"]);
    assert!(told.contains("actually processed: 40/40"), "{told}");
    let dump = routed.succeed("pg_dump", &["-t", "pgbench_branches", "postgres"]);
    assert!(dump.contains("COPY public.pgbench_branches"), "{dump}");
    let links = routed.succeed("psql", &["-Atc", "SELECT count(*) FROM pg_stat_activity WHERE usename = 'postgres' AND backend_type = 'client backend' AND application_name !~ 'antiphon'"]);
    let links: u32 = links.trim().parse().unwrap();
    assert!((1..=8).contains(&links), "{links} links, at most pool_size");
}

#[tokio::test]
async fn sessions_share_links_and_nothing_else() {
    sessions(&Routed::start("sessions", 1, "  pool_size: 2\n  threads: 1\n").await).await;
}

#[tokio::test]
async fn sessions_share_links_inside_tls_and_nothing_else() {
    sessions(&Routed::start_secure("sessions-tls", 1, "  pool_size: 2\n  threads: 1\n").await).await;
}

#[tokio::test]
async fn sessions_share_links_to_followers_and_nothing_else() {
    let split = "  pool_size: 2\n  threads: 1\n  read_from: followers\n";
    sessions(&Routed::start("sessions-split", 3, split).await).await;
}

async fn sessions(routed: &Routed) {
    let (a, b) = (routed.client().await, routed.client().await);
    let c = routed.client().await;
    statements(&[&a, &b, &c]).await;
    settings(&a, &b).await;
    asked_for(routed).await;
    terminated(&b).await;
    copies(&a).await;
    pinned(routed, &a).await;
    cancelled(routed).await;
    refused(routed).await;
}

/// Every client's prepared statements work on every link.
async fn statements(clients: &[&tokio_postgres::Client]) {
    let mut prepared = Vec::new();
    for (number, client) in clients.iter().enumerate() {
        prepared.push(client.prepare(&format!("SELECT $1::int + {number}")).await.unwrap());
    }
    for round in 0..20 {
        let answers = clients.iter().zip(&prepared).map(|(client, statement)| async move {
            client.query_one(statement, &[&round]).await.unwrap().get::<_, i32>(0)
        });
        let answers = futures_util::future::join_all(answers).await;
        assert_eq!(answers, [round, round + 1, round + 2]);
    }
    // A pipeline with a failure in the middle: the others are answered all the same.
    let [a, ..] = clients else { panic!("a client") };
    let texts = ["SELECT 1", "SELECT 1/0", "SELECT 3"];
    let results = futures_util::future::join_all(texts.map(|text| a.query(text, &[]))).await;
    let sound: Vec<bool> = results.iter().map(Result::is_ok).collect();
    assert_eq!(sound, [true, false, true]);
    assert_eq!(a.query_one(&prepared[0], &[&5]).await.unwrap().get::<_, i32>(0), 5);
}

/// What the server reports follows its session; a transaction keeps its link.
async fn settings(a: &tokio_postgres::Client, b: &tokio_postgres::Client) {
    a.batch_execute("SET TimeZone = 'Asia/Tokyo'").await.unwrap();
    b.batch_execute("SET TimeZone = 'America/Lima'").await.unwrap();
    for _ in 0..10 {
        for (client, zone) in [(a, "Asia/Tokyo"), (b, "America/Lima")] {
            let row = client.query_one("SELECT current_setting('TimeZone')", &[]).await.unwrap();
            assert_eq!(row.get::<_, &str>(0), zone);
        }
    }
    a.batch_execute("BEGIN; SET LOCAL work_mem = '7MB'").await.unwrap();
    let row = b.query_one("SELECT current_setting('work_mem')", &[]).await.unwrap();
    assert_ne!(row.get::<_, &str>(0), "7MB");
    let row = a.query_one("SELECT current_setting('work_mem')", &[]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), "7MB");
    a.batch_execute("COMMIT").await.unwrap();
}

/// What a client asks for when it connects goes with it, reported by the server or not.
async fn asked_for(routed: &Routed) {
    let mut clients = Vec::new();
    for name in ["a", "b"] {
        let mut config = routed.config("postgres");
        config.options(format!("-c search_path={name} -c work_mem=3MB")).application_name(name);
        let (client, connection) = config.connect(routed.connector()).await.unwrap();
        tokio::spawn(connection);
        clients.push((name, client));
    }
    for _ in 0..5 {
        for (name, client) in &clients {
            let asked = "SELECT current_setting('search_path'), current_setting('work_mem'), current_setting('application_name')";
            let row = client.query_one(asked, &[]).await.unwrap();
            let shown: Vec<&str> = (0..3).map(|column| row.get(column)).collect();
            assert_eq!(shown, [*name, "3MB", *name]);
        }
    }
}

/// A statement that somebody ends on a server that leads is not begun again.
async fn terminated(client: &tokio_postgres::Client) {
    let told = client.batch_execute("SELECT pg_terminate_backend(pg_backend_pid())").await.unwrap_err();
    assert_eq!(code(&told), "08007", "{told:?}");
    client.query_one("SELECT 1", &[]).await.unwrap();
}

async fn copies(client: &tokio_postgres::Client) {
    client.batch_execute("CREATE TABLE copied (n int, t text)").await.unwrap();
    let sink = client.copy_in::<_, bytes::Bytes>("COPY copied FROM STDIN").await.unwrap();
    pin_mut!(sink);
    let mut rows = String::new();
    for number in 0..50_000 {
        rows.push_str(&format!("{number}\t{}\n", "x".repeat(number % 40)));
    }
    sink.send(bytes::Bytes::from(rows.clone())).await.unwrap();
    assert_eq!(sink.finish().await.unwrap(), 50_000);
    let stream = client.copy_out("COPY (SELECT * FROM copied ORDER BY n) TO STDOUT").await.unwrap();
    let read: Vec<bytes::Bytes> = stream.try_collect().await.unwrap();
    assert_eq!(read.concat().len(), rows.len());
    // One that fails in the middle leaves the session usable.
    let sink = client.copy_in::<_, bytes::Bytes>("COPY copied FROM STDIN").await.unwrap();
    pin_mut!(sink);
    let _ = sink.send(bytes::Bytes::from("not a number\tx\n")).await;
    assert_eq!(code(&sink.finish().await.unwrap_err()), "22P02");
    client.query("SELECT 1", &[]).await.unwrap();
}

/// What stays in a session keeps its link, and is gone with it.
async fn pinned(routed: &Routed, other: &tokio_postgres::Client) {
    let (client, mut connection) = routed.config("postgres").connect(routed.connector()).await.unwrap();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut messages = futures_util::stream::poll_fn(move |context| connection.poll_message(context));
        while let Some(Ok(message)) = messages.next().await {
            if let tokio_postgres::AsyncMessage::Notification(news) = message {
                let _ = tell.send(news.payload().to_owned());
            }
        }
    });
    client.batch_execute("CREATE TEMP TABLE kept (n int); LISTEN news; SET work_mem = '7MB'").await.unwrap();
    for _ in 0..3 {
        client.batch_execute("INSERT INTO kept VALUES (1)").await.unwrap();
        other.query("SELECT 1", &[]).await.unwrap();
    }
    other.batch_execute("NOTIFY news, 'hello'").await.unwrap();
    let news = tokio::time::timeout(Duration::from_secs(10), told.recv()).await.unwrap();
    assert_eq!(news.as_deref(), Some("hello"));
    drop(client);
    wait_until("what a session kept is gone", Duration::from_secs(10), async || {
        let rows = other.query("SELECT 1 FROM pg_class WHERE relname = 'kept'", &[]).await.unwrap();
        rows.is_empty()
    })
    .await;
    for _ in 0..5 {
        let row = other.query_one("SELECT current_setting('work_mem')", &[]).await.unwrap();
        assert_ne!(row.get::<_, &str>(0), "7MB");
    }
}

async fn cancelled(routed: &Routed) {
    let client = routed.client().await;
    let token = client.cancel_token();
    let sleeping = tokio::spawn(async move { client.batch_execute("SELECT pg_sleep(60)").await });
    let other = routed.client().await;
    wait_until("the statement runs", Duration::from_secs(10), async || {
        let asked = "SELECT 1 FROM pg_stat_activity WHERE query ~ 'pg_sleep.60' AND state = 'active' AND pid <> pg_backend_pid()";
        !other.query(asked, &[]).await.unwrap().is_empty()
    })
    .await;
    token.cancel_query(routed.connector()).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(10), sleeping).await.unwrap().unwrap();
    assert_eq!(code(&ended.unwrap_err()), "57014");
}

async fn refused(routed: &Routed) {
    let refusal = async |config: &tokio_postgres::Config| match config.connect(routed.connector()).await {
        Ok(_) => "let in".to_owned(),
        Err(error) => code(&error),
    };
    let mut wrong = routed.config("postgres");
    assert_eq!(refusal(wrong.password("wrong")).await, "28P01");
    let mut stranger = routed.config("postgres");
    assert_eq!(refusal(stranger.user("nobody")).await, "28P01");
    assert_eq!(refusal(&routed.config("no_such_database")).await, "28000");
}

#[tokio::test]
async fn in_session_mode_a_session_keeps_its_link_to_its_end() {
    let routed = Routed::start("session-mode", 1, "  pool_mode: session\n  threads: 1\n").await;
    let (a, b) = (routed.client().await, routed.client().await);
    let process = async |client: &tokio_postgres::Client| {
        client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get::<_, i32>(0)
    };
    let (first, other) = (process(&a).await, process(&b).await);
    assert_ne!(first, other);
    for _ in 0..5 {
        assert_eq!((process(&a).await, process(&b).await), (first, other));
    }
    // Even what nobody could see it leave behind.
    a.batch_execute("DO $$ BEGIN PERFORM set_config('app.tenant', '7', false); END $$").await.unwrap();
    let tenant = a.query_one("SELECT current_setting('app.tenant')", &[]).await.unwrap();
    assert_eq!(tenant.get::<_, &str>(0), "7");
    drop(a);
    let mut seen = Vec::new();
    wait_until("its link is clean and another's", Duration::from_secs(20), async || {
        let next = routed.client().await;
        seen.push(process(&next).await);
        let left = next.query_one("SELECT current_setting('app.tenant', true)", &[]).await.unwrap();
        assert!(
            left.get::<_, Option<&str>>(0).is_none_or(str::is_empty),
            "nothing is left of the first session"
        );
        seen.contains(&first)
    })
    .await;
}

#[tokio::test]
async fn a_router_that_is_told_to_end_lets_transactions_end_and_another_at_its_address_goes_on() {
    let mut routed = Routed::start("succession", 1, "  pool_size: 4\n").await;
    let (busy, idle) = (routed.client().await, routed.client().await);
    busy.batch_execute("CREATE TABLE t (n int); BEGIN; INSERT INTO t VALUES (1)").await.unwrap();
    let mut first = routed.succeed_router();
    let listens =
        || std::fs::read_to_string(routed.dir().join("second.log")).unwrap_or_default().contains("routing");
    wait_until("the second router listens", Duration::from_secs(20), async || listens()).await;
    let end = std::process::Command::new("kill").arg(first.id().to_string()).status().unwrap();
    assert!(end.success());
    wait_until("who is idle is told to connect again", Duration::from_secs(20), async || idle.is_closed())
        .await;
    // Whoever comes now is served, by the second one.
    for _ in 0..50 {
        let client = routed.client().await;
        assert_eq!(client.query_one("SELECT 1", &[]).await.unwrap().get::<_, i32>(0), 1);
    }
    assert!(matches!(first.try_wait(), Ok(None)), "a transaction is open");
    busy.batch_execute("INSERT INTO t VALUES (2); COMMIT").await.unwrap();
    wait_until(
        "the first one has ended",
        Duration::from_secs(5),
        async || matches!(first.try_wait(), Ok(Some(status)) if status.success()),
    )
    .await;
    let rows = routed.client().await.query_one("SELECT count(*) FROM t", &[]).await.unwrap();
    assert_eq!(rows.get::<_, i64>(0), 2);
}

#[tokio::test]
async fn links_that_nobody_uses_are_closed_and_none_lives_for_ever() {
    let settings = "  threads: 1\n  server_idle_timeout: 2s\n  server_lifetime: 4s\n";
    let routed = Routed::start("lifetimes", 1, settings).await;
    let client = routed.client().await;
    let process = async || client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get::<_, i32>(0);
    let first = process().await;
    assert_eq!(process().await, first, "it is used again meanwhile");
    let direct = routed.direct(0).await;
    let gone = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)";
    wait_until("the unused link is closed", Duration::from_secs(20), async || {
        direct.query_one(gone, &[&first]).await.unwrap().get::<_, bool>(0)
    })
    .await;
    let second = process().await;
    wait_until("a link that is used all the time is replaced", Duration::from_secs(20), async || {
        process().await != second
    })
    .await;
}

#[tokio::test]
async fn a_statement_is_prepared_anew_for_who_prepares_it_after_the_schema_has_changed() {
    let routed = Routed::start("schemas", 1, "  threads: 1\n  pool_size: 1\n").await;
    let (a, b) = (routed.client().await, routed.client().await);
    a.batch_execute("CREATE TABLE t (v int); INSERT INTO t VALUES (7)").await.unwrap();
    let before = a.prepare("SELECT v FROM t").await.unwrap();
    assert_eq!(a.query_one(&before, &[]).await.unwrap().get::<_, i32>(0), 7);
    b.batch_execute("ALTER TABLE t ALTER v TYPE text USING v::text").await.unwrap();
    let after = b.prepare("SELECT v FROM t").await.unwrap();
    assert_eq!(b.query_one(&after, &[]).await.unwrap().get::<_, &str>(0), "7");
    // As a connection of its own would be told.
    assert_eq!(code(&a.query_one(&before, &[]).await.unwrap_err()), "0A000");
    let again = a.prepare("SELECT v FROM t").await.unwrap();
    assert_eq!(a.query_one(&again, &[]).await.unwrap().get::<_, &str>(0), "7");
    // Changed by a function, which nobody sees: the server's refusal tells.
    b.batch_execute("DO $$ BEGIN EXECUTE 'ALTER TABLE t ALTER v TYPE int USING v::int'; END $$")
        .await
        .unwrap();
    assert_eq!(code(&a.query_one(&again, &[]).await.unwrap_err()), "0A000");
    let third = a.prepare("SELECT v FROM t").await.unwrap();
    assert_eq!(a.query_one(&third, &[]).await.unwrap().get::<_, i32>(0), 7);
}
