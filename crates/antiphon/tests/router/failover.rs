//! What clients of the router feel when their leader dies or hands over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use antiphon::demo::http;
use tokio::task::JoinHandle;

use super::support::{Routed, UP_WITHIN, code, wait_until};

/// What writers have noted.
#[derive(Default)]
struct Noted {
    stop: AtomicBool,
    acknowledged: AtomicU64,
}

/// What became of one writer's rows.
#[derive(Default)]
struct Story {
    acknowledged: Vec<i64>,
    errors: Vec<(i64, String)>,
    longest: Duration,
}

/// A client that inserts numbered rows one after another, each a transaction of its own, on one connection.
async fn writer(routed: &Routed, number: i32, noted: Arc<Noted>) -> JoinHandle<Story> {
    let client = routed.client().await;
    tokio::spawn(async move {
        let mut story = Story::default();
        for row in 0.. {
            if noted.stop.load(Ordering::Relaxed) {
                break;
            }
            let began = Instant::now();
            // By turns as a simple query and with parameters.
            let done = if row % 2 == 0 {
                client.batch_execute(&format!("INSERT INTO rows VALUES ({number}, {row})")).await
            } else {
                client.execute("INSERT INTO rows VALUES ($1, $2)", &[&number, &row]).await.map(drop)
            };
            story.longest = story.longest.max(began.elapsed());
            match done {
                Ok(()) => {
                    story.acknowledged.push(row);
                    noted.acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) if client.is_closed() => {
                    story.errors.push((row, format!("closed: {error}")));
                    break;
                }
                Err(error) => story.errors.push((row, code(&error))),
            }
        }
        story
    })
}

struct Load {
    noted: Arc<Noted>,
    writers: Vec<JoinHandle<Story>>,
}

impl Load {
    async fn start(routed: &Routed, writers: i32) -> Self {
        let client = routed.client().await;
        client
            .batch_execute("CREATE TABLE rows (writer int, number bigint, PRIMARY KEY (writer, number))")
            .await
            .unwrap();
        let noted = Arc::new(Noted::default());
        let mut load = Self { noted: noted.clone(), writers: Vec::new() };
        for number in 0..writers {
            load.writers.push(writer(routed, number, noted.clone()).await);
        }
        load
    }

    async fn wait_for_more(&self, rows: u64, routed: &Routed) {
        let wanted = self.noted.acknowledged.load(Ordering::Relaxed) + rows;
        let what = format!("{rows} more rows are acknowledged");
        let until = Instant::now() + UP_WITHIN;
        wait_until(&what, UP_WITHIN, async || {
            assert!(Instant::now() < until, "{}", routed.log());
            self.noted.acknowledged.load(Ordering::Relaxed) >= wanted
        })
        .await;
    }

    /// Ends the writers; every acknowledged row must be there. Gives the errors and the longest pause.
    async fn finish(self, routed: &Routed) -> (Vec<String>, Duration) {
        self.noted.stop.store(true, Ordering::Relaxed);
        let client = routed.client().await;
        let (mut errors, mut longest) = (Vec::new(), Duration::ZERO);
        let writers = i32::try_from(self.writers.len()).unwrap();
        for (number, writer) in (0..writers).zip(self.writers) {
            let story = tokio::time::timeout(UP_WITHIN, writer).await.unwrap().unwrap();
            let rows = client.query("SELECT number FROM rows WHERE writer = $1", &[&number]).await.unwrap();
            let there: std::collections::BTreeSet<i64> = rows.iter().map(|row| row.get(0)).collect();
            let lost: Vec<_> = story.acknowledged.iter().filter(|row| !there.contains(row)).collect();
            assert!(lost.is_empty(), "acknowledged rows of writer {number} are lost: {lost:?}");
            longest = longest.max(story.longest);
            errors.extend(story.errors.into_iter().map(|(_, error)| error));
        }
        (errors, longest)
    }
}

pub async fn epoch(routed: &Routed) -> u64 {
    let mut newest = 0;
    for index in 0..routed.cluster.nodes.len() {
        if let Ok(seen) = routed.cluster.get(index, "/cluster").await {
            newest = newest.max(seen["epoch"].as_u64().unwrap_or(0));
        }
    }
    newest
}

#[tokio::test]
async fn clients_feel_a_dead_leader_as_a_pause() {
    dead_leaders(&Routed::start("killed", 3, "  pool_size: 20\n").await, 3).await;
}

#[tokio::test]
async fn clients_inside_tls_feel_a_dead_leader_as_a_pause() {
    dead_leaders(&Routed::start_secure("killed-tls", 3, "  pool_size: 20\n").await, 2).await;
}

async fn dead_leaders(routed: &Routed, rounds: i32) {
    let idle = routed.client().await;
    let statement = idle.prepare("SELECT $1::int").await.unwrap();
    let in_transaction = routed.client().await;
    let listening = routed.client().await;
    listening.batch_execute("LISTEN news").await.unwrap();
    let load = Load::start(routed, 8).await;
    for round in 0..rounds {
        load.wait_for_more(200, routed).await;
        in_transaction.batch_execute("BEGIN; INSERT INTO rows VALUES (100, 1)").await.unwrap();
        let before = epoch(routed).await;
        let leader = routed.cluster.leader().await.unwrap();
        routed.cluster.kill_server(leader).unwrap();
        wait_until("another leader", UP_WITHIN, async || epoch(routed).await > before).await;
        // A transaction that was open is told, and stays failed until its client ends it.
        let told = in_transaction.batch_execute("INSERT INTO rows VALUES (100, 2)").await.unwrap_err();
        assert_eq!(code(&told), "57P01", "{told:?}");
        let told = in_transaction.batch_execute("INSERT INTO rows VALUES (100, 3)").await.unwrap_err();
        assert_eq!(code(&told), "25P02", "{told:?}");
        in_transaction.batch_execute("ROLLBACK").await.unwrap();
        // Whoever was idle feels nothing, its prepared statement included.
        assert_eq!(idle.query_one(&statement, &[&round]).await.unwrap().get::<_, i32>(0), round);
        load.wait_for_more(200, routed).await;
        routed.cluster.wait_whole(UP_WITHIN).await.unwrap();
    }
    wait_until("who listened is told", UP_WITHIN, async || listening.is_closed()).await;
    let rows = idle.query("SELECT 1 FROM rows WHERE writer = 100", &[]).await.unwrap();
    assert!(rows.is_empty(), "nothing of a lost transaction is kept");
    let (errors, longest) = load.finish(routed).await;
    eprintln!("{rounds} leaders killed: {} errors, longest pause {longest:?}", errors.len());
    assert!(errors.iter().all(|error| error == "08007"), "{errors:?}\n{}", routed.log());
    let most = 8 * usize::try_from(rounds).unwrap();
    assert!(errors.len() <= most, "more errors than statements were in flight: {}", errors.len());
}

/// Has the leader hand over, and waits until another one leads.
async fn switch_over(routed: &Routed) {
    let before = epoch(routed).await;
    let leader = routed.cluster.leader().await.unwrap();
    let node = &routed.cluster.nodes[leader];
    let body = format!(r#"{{"leader": "{}"}}"#, node.name);
    let asked = http::post(node.api_port, "/switchover", &body, UP_WITHIN).await.unwrap();
    assert_eq!(asked.status, 200, "{}", asked.body);
    wait_until("another leader", UP_WITHIN, async || epoch(routed).await > before).await;
}

/// What became of a worker's transactions.
#[derive(Default)]
struct Work {
    done: i64,
    errors: Vec<String>,
    longest: Duration,
}

/// Where a pause takes longer than this, the machine is too busy for notices to come in time, or for transactions to
/// end in it: then errors are those of a failover, and else there is none.
const BUSY: Duration = Duration::from_millis(2500);

/// What a switchover may do to clients of which none was held up for longer than this.
fn see_errors(errors: &[String], longest: Duration, log: &str) {
    if longest <= BUSY {
        assert!(errors.is_empty(), "{errors:?}, the longest pause took {longest:?}: {log}");
    }
    assert!(errors.iter().all(|error| error == "08007" || error == "57P01"), "{errors:?}: {log}");
}

/// A client that never stops, with transactions of a kind that cannot be done again.
async fn worker(routed: &Routed, kind: i32, noted: Arc<Noted>) -> JoinHandle<Work> {
    let client = routed.client().await;
    tokio::spawn(async move {
        let mut work = Work::default();
        for number in 0i64.. {
            if noted.stop.load(Ordering::Relaxed) {
                break;
            }
            let began = Instant::now();
            let done = transaction(&client, kind, number).await;
            work.longest = work.longest.max(began.elapsed());
            match done {
                Ok(()) => work.done += 1,
                Err(error) => {
                    work.errors.push(code(&error));
                    client.batch_execute("ROLLBACK").await.unwrap();
                }
            }
            noted.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        work
    })
}

/// Two rows with this number, in one transaction.
async fn transaction(
    client: &tokio_postgres::Client,
    kind: i32,
    number: i64,
) -> Result<(), tokio_postgres::Error> {
    let row = |which: i64| format!("INSERT INTO rows VALUES ({kind}, {})", 2 * number + which);
    let (first, second) = (row(0), row(1));
    match kind % 4 {
        // Statement by statement, with a pause in which it holds the transaction open.
        0 => {
            client.batch_execute("BEGIN").await?;
            client.batch_execute(&first).await?;
            client.batch_execute("SELECT pg_sleep(0.1)").await?;
            client.execute("INSERT INTO rows VALUES ($1, $2)", &[&kind, &(2 * number + 1)]).await?;
            client.batch_execute("COMMIT").await
        }
        1 => client.batch_execute(&format!("{first}; SELECT pg_sleep(0.2); {second}")).await,
        2 => {
            let block = format!("DO $$ BEGIN {first}; PERFORM pg_sleep(0.15); {second}; END $$");
            client.batch_execute(&block).await
        }
        _ => client.batch_execute(&format!("{first}; {second}")).await,
    }
}

#[tokio::test]
async fn a_switchover_waits_for_what_is_under_way_and_gives_no_error() {
    let routed = Routed::start("under-way", 3, "  pool_size: 20\n").await;
    let client = routed.client().await;
    let table = "CREATE TABLE rows (writer int, number bigint, PRIMARY KEY (writer, number))";
    client.batch_execute(table).await.unwrap();
    let noted = Arc::new(Noted::default());
    let mut workers = Vec::new();
    for kind in 0..12 {
        workers.push(worker(&routed, kind, noted.clone()).await);
    }
    let more = async || {
        let wanted = noted.acknowledged.load(Ordering::Relaxed) + 100;
        wait_until("all go on", UP_WITHIN, async || noted.acknowledged.load(Ordering::Relaxed) >= wanted)
            .await;
    };
    for _ in 0..5 {
        more().await;
        switch_over(&routed).await;
        more().await;
        routed.cluster.wait_whole(UP_WITHIN).await.unwrap();
    }
    noted.stop.store(true, Ordering::Relaxed);
    let (mut longest, mut errors, mut done) = (Duration::ZERO, Vec::new(), 0);
    for (kind, worker) in (0i32..).zip(workers) {
        let work = worker.await.unwrap();
        let row = client.query_one("SELECT count(*) FROM rows WHERE writer = $1", &[&kind]).await.unwrap();
        let (rows, unknown): (i64, i64) = (row.get(0), work.errors.len().try_into().unwrap());
        assert!((2 * work.done..=2 * (work.done + unknown)).contains(&rows), "{rows} rows of {}", work.done);
        longest = longest.max(work.longest);
        done += work.done;
        errors.extend(work.errors);
    }
    let count = errors.len();
    eprintln!("5 switchovers, {done} transactions: {count} errors, the longest took {longest:?}");
    see_errors(&errors, longest, &routed.log());
}

#[tokio::test]
async fn a_switchover_is_no_error_between_statements() {
    let routed = Routed::start("switchover", 3, "  pool_size: 20\n").await;
    let mut idle = Vec::new();
    for _ in 0..10 {
        let client = routed.client().await;
        let statement = client.prepare("SELECT $1::bigint").await.unwrap();
        idle.push((client, statement));
    }
    let load = Load::start(&routed, 8).await;
    for round in 0..3i64 {
        load.wait_for_more(200, &routed).await;
        switch_over(&routed).await;
        for (client, statement) in &idle {
            let row = client.query_one(statement, &[&round]).await;
            assert_eq!(row.unwrap().get::<_, i64>(0), round);
        }
        load.wait_for_more(200, &routed).await;
        routed.cluster.wait_whole(UP_WITHIN).await.unwrap();
    }
    let (errors, longest) = load.finish(&routed).await;
    eprintln!("3 switchovers: {} errors, longest pause {longest:?}", errors.len());
    see_errors(&errors, longest, &routed.log());
}

#[tokio::test]
async fn no_more_clients_than_may_wait_for_a_leader_and_the_others_hear_it_at_once() {
    let mut routed = Routed::start("held", 1, "  failover_hold_max: 3\n").await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(routed.client().await);
    }
    routed.cluster.kill_node(0);
    let mut asked = Vec::new();
    for client in clients {
        asked.push(tokio::spawn(async move {
            loop {
                let answer = client.simple_query("SELECT 1").await.map(drop);
                // It reached the server while that died.
                if !answer.as_ref().is_err_and(|error| code(error) == "08007") {
                    return (client, answer);
                }
            }
        }));
    }
    let refused = || asked.iter().filter(|asked| asked.is_finished()).count();
    wait_until("two are refused", UP_WITHIN, async || refused() == 2).await;
    routed.cluster.start_agent(0).unwrap();
    let mut told = 0;
    for asked in asked {
        let (client, answer) = asked.await.unwrap();
        if let Err(error) = answer {
            assert_eq!(code(&error), "57P03", "{error:?}");
            told += 1;
        }
        // Each kept its connection, and is served when there is a leader.
        wait_until("it is served", UP_WITHIN, async || client.query_one("SELECT 1", &[]).await.is_ok()).await;
    }
    assert_eq!(told, 2, "{}", routed.log());
}
