//! Reads on followers: what goes there, that no session ever sees less than it wrote or saw, and that nobody
//! notices when a server dies under reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use super::failover::epoch;
use super::support::{Routed, UP_WITHIN, code, wait_until};

const SPLIT: &str = "  read_from: followers\n";

/// What a statement with one row of one column answers, as a text.
pub async fn ask(client: &Client, sql: &str) -> String {
    let messages = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    row.unwrap_or_default().to_owned()
}

/// Where the client's last statement went.
pub async fn route(client: &Client) -> String {
    ask(client, "SHOW antiphon.route").await
}

pub async fn wait_for_followers(routed: &Routed) {
    let client = routed.client().await;
    let until = Instant::now() + UP_WITHIN;
    wait_until("followers are read from", UP_WITHIN, async || {
        ask(&client, "SELECT count(*) FROM pg_class").await;
        let route = route(&client).await;
        assert!(Instant::now() < until, "{route}\n{}", routed.log());
        route.starts_with("follower")
    })
    .await;
}

#[tokio::test]
async fn each_statement_goes_where_it_belongs() {
    let routed = Routed::start("places", 3, SPLIT).await;
    let client = routed.client().await;
    client
        .batch_execute(
            "CREATE TABLE t (n int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100); CREATE SEQUENCE s; \
             CREATE TABLE notes (n int); \
             CREATE FUNCTION writes(n int) RETURNS int LANGUAGE sql AS 'INSERT INTO notes VALUES (n) RETURNING n'; \
             CREATE FUNCTION reads(n int) RETURNS int STABLE LANGUAGE sql AS 'SELECT n FROM t WHERE t.n = $1'",
        )
        .await
        .unwrap();
    let reader = routed.client().await;
    for read in [
        "SELECT n FROM t WHERE n = 7",
        "SELECT reads(7)",
        "WITH a AS (SELECT * FROM t) SELECT count(*) FROM a",
        "VALUES (1)",
        "SELECT now()",
        "SELECT 1; SELECT 2",
    ] {
        let what = format!("{read} goes to a follower");
        wait_until(&what, UP_WITHIN, async || {
            ask(&reader, read).await;
            route(&reader).await.starts_with("follower")
        })
        .await;
    }
    for other in [
        "SELECT writes(1)",
        "SELECT n FROM t WHERE n = 1 FOR UPDATE",
        "SELECT nextval('s')",
        "SELECT pg_advisory_xact_lock(1)",
        "SELECT pg_is_in_recovery()",
        "SELECT pg_current_xact_id()",
        "WITH a AS (INSERT INTO notes VALUES (1) RETURNING n) SELECT * FROM a",
        "SELECT 1; INSERT INTO notes VALUES (2)",
        "SELECT n INTO copied FROM t",
        "DROP TABLE copied",
        "EXPLAIN ANALYZE INSERT INTO notes VALUES (3)",
        "DO $$ BEGIN PERFORM writes(4); END $$",
        "SELECT n FROM t WHERE n = 7 /* antiphon: leader */",
    ] {
        ask(&reader, other).await;
        assert!(route(&reader).await.starts_with("leader"), "{other}: {}", route(&reader).await);
    }
    // The schema has changed, and is read again.
    wait_for_followers(&routed).await;
    levels(&routed).await;
    transactions(&routed).await;
    refused(&routed, &client).await;
    prepared(&routed).await;
}

/// What sessions ask of their reads.
async fn levels(routed: &Routed) {
    let mut config = routed.config("postgres");
    config.options("-c antiphon.consistency=strong");
    let (client, connection) = config.connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    assert_eq!(ask(&client, "SHOW antiphon.consistency").await, "strong");
    ask(&client, "SELECT n FROM t WHERE n = 7").await;
    assert_eq!(route(&client).await, "leader: strong");
    for level in ["read_your_writes", "monotonic", "bounded(60s)", "eventual"] {
        // By turns in both protocols.
        client.batch_execute(&format!("SET antiphon.consistency = '{level}'")).await.unwrap();
        client.execute(&format!("SET antiphon.consistency = '{level}'"), &[]).await.unwrap();
        let what = format!("{level} is read from followers");
        wait_until(&what, UP_WITHIN, async || {
            client.query_one("SELECT n FROM t WHERE n = 7", &[]).await.unwrap();
            route(&client).await.starts_with("follower")
        })
        .await;
    }
    let wrong = client.batch_execute("SET antiphon.consistency = weak").await.unwrap_err();
    assert_eq!(code(&wrong), "22023");
    client.batch_execute("SET antiphon.consistency TO DEFAULT").await.unwrap();
    assert_eq!(ask(&client, "SHOW antiphon.consistency").await, "strong");
}

/// Transactions that only read go to a follower whole, and to the leader where they must.
async fn transactions(routed: &Routed) {
    let client = routed.client().await;
    let begin = async || {
        wait_until("a transaction is begun on a follower", UP_WITHIN, async || {
            client.batch_execute("BEGIN READ ONLY").await.unwrap();
            let there = route(&client).await.starts_with("follower");
            if !there {
                client.batch_execute("COMMIT").await.unwrap();
            }
            there
        })
        .await;
    };
    begin().await;
    assert_eq!(ask(&client, "SELECT pg_is_in_recovery()").await, "f", "its first statement moved it");
    client.batch_execute("COMMIT").await.unwrap();
    begin().await;
    assert_eq!(ask(&client, "SELECT n FROM t WHERE n = 5").await, "5");
    assert_eq!(ask(&client, "SELECT pg_is_in_recovery()").await, "t");
    let refused = client.batch_execute("LISTEN news").await.unwrap_err();
    assert_eq!(code(&refused), "0A000");
    assert_eq!(code(&client.batch_execute("SELECT 1").await.unwrap_err()), "25P02");
    client.batch_execute("ROLLBACK").await.unwrap();
    client.batch_execute("BEGIN").await.unwrap();
    assert_eq!(ask(&client, "SELECT pg_is_in_recovery()").await, "f");
    client.batch_execute("COMMIT").await.unwrap();
}

/// What a follower refuses the leader answers, and the text is remembered.
async fn refused(routed: &Routed, other: &Client) {
    let client = routed.client().await;
    client.batch_execute("SET antiphon.consistency = eventual").await.unwrap();
    for number in [11, 12] {
        // Texts that differ in literals only are one.
        let text = format!("SELECT writes(10) + {number} - 10 AS n{number} /* antiphon: follower */");
        assert_eq!(ask(&client, &text).await, number.to_string());
        assert_eq!(route(&client).await, "leader: refused");
        assert_eq!(ask(&client, &text).await, number.to_string());
        assert_eq!(route(&client).await, "leader: not_a_read");
    }
    let row = client.query_one("SELECT writes($1) /* antiphon: follower */", &[&13]).await.unwrap();
    assert_eq!(row.get::<_, i32>(0), 13);
    other.batch_execute("SET antiphon.consistency = strong").await.unwrap();
    let rows = other.query_one("SELECT count(*) FROM notes WHERE n IN (10, 13)", &[]).await.unwrap();
    assert_eq!(rows.get::<_, i64>(0), 5, "each once");
}

/// Statements of the protocol are known wherever they are used.
async fn prepared(routed: &Routed) {
    let client = routed.client().await;
    let read = client.prepare("SELECT n FROM t WHERE n = $1").await.unwrap();
    let write = client.prepare("INSERT INTO notes VALUES ($1)").await.unwrap();
    let mut followers = 0;
    for round in 1..=100i32 {
        if round % 20 == 0 {
            client.execute(&write, &[&round]).await.unwrap();
        }
        let row = client.query_one(&read, &[&round]).await.unwrap();
        assert_eq!(row.get::<_, i32>(0), round);
        followers += u32::from(route(&client).await.starts_with("follower"));
    }
    assert!(followers > 50, "{followers} of 100 reads on followers: {}", routed.log());
    // A pipeline in which something writes goes to the leader whole.
    let (number, none): ([&(dyn ToSql + Sync); 1], [&(dyn ToSql + Sync); 1]) = ([&7i32], [&0i32]);
    let (a, b, c) = tokio::join!(
        client.query_one(&read, &number),
        client.execute(&write, &none),
        client.query_one(&read, &number)
    );
    assert_eq!((a.unwrap().get::<_, i32>(0), b.unwrap(), c.unwrap().get::<_, i32>(0)), (7, 1, 7));
}

/// What sessions have done.
#[derive(Default)]
struct Pairs {
    stop: AtomicBool,
    pairs: AtomicU64,
    reads: AtomicU64,
    stale: AtomicU64,
    backward: AtomicU64,
    /// Reads whose session had not written for a while, and how many of them followers answered.
    settled: AtomicU64,
    by_followers: AtomicU64,
}

/// Reads after a write of a session, but after each tenth one as many as fit into this time.
const READS_A_WRITE: usize = 5;
const READS_FOR: Duration = Duration::from_millis(400);
/// A write that ended longer ago is no recent one.
const RECENT: Duration = Duration::from_millis(100);

/// Writes and reads on one session until told to stop.
async fn session(client: Client, number: i32, pairs: Arc<Pairs>) {
    let read =
        client.prepare("SELECT (SELECT n FROM counts WHERE id = $1), (SELECT n FROM counts WHERE id = 0)");
    let (read, mut own, mut shared) = (read.await.unwrap(), 0i64, 0i64);
    while !pairs.stop.load(Ordering::Relaxed) {
        own += 1;
        let write = format!(
            "UPDATE counts SET n = {own} WHERE id = {number}; UPDATE counts SET n = n + 1 WHERE id = 0"
        );
        // In a failover nobody knows whether it was done, and the first read tells.
        let mut unknown = match client.batch_execute(&write).await {
            Ok(()) => false,
            Err(error) if code(&error) == "08007" => true,
            Err(error) => panic!("{error:?}"),
        };
        let written = Instant::now();
        let mut count = 0;
        while count < READS_A_WRITE || own % 10 == 0 && written.elapsed() < READS_FOR {
            count += 1;
            let settled = written.elapsed() > RECENT;
            let row = client.query_one(&read, &[&number]).await.unwrap();
            let (mine, all): (i64, i64) = (row.get(0), row.get(1));
            if std::mem::take(&mut unknown) && mine + 1 == own {
                own = mine;
            }
            pairs.stale.fetch_add(u64::from(mine != own), Ordering::Relaxed);
            pairs.backward.fetch_add(u64::from(all < shared), Ordering::Relaxed);
            shared = all.max(shared);
            pairs.reads.fetch_add(1, Ordering::Relaxed);
            if settled {
                pairs.settled.fetch_add(1, Ordering::Relaxed);
                let follower = route(&client).await.starts_with("follower");
                pairs.by_followers.fetch_add(u64::from(follower), Ordering::Relaxed);
            }
        }
        pairs.pairs.fetch_add(1, Ordering::Relaxed);
    }
}

/// Six sessions before a cluster that is read from.
async fn sessions(routed: &Routed, pairs: &Arc<Pairs>) -> Vec<JoinHandle<()>> {
    let client = routed.client().await;
    client
        .batch_execute("CREATE TABLE counts (id int PRIMARY KEY, n bigint); INSERT INTO counts SELECT i, 0 FROM generate_series(0, 9) i")
        .await
        .unwrap();
    wait_for_followers(routed).await;
    let mut sessions = Vec::new();
    for number in 1..=6 {
        sessions.push(tokio::spawn(session(routed.client().await, number, pairs.clone())));
    }
    sessions
}

#[tokio::test]
async fn no_session_sees_less_than_it_wrote_before_a_failover() {
    let routed = Routed::start("floors-failover", 3, SPLIT).await;
    let pairs = Arc::new(Pairs::default());
    let sessions = sessions(&routed, &pairs).await;
    for _ in 0..3 {
        let wanted = pairs.pairs.load(Ordering::Relaxed) + 60;
        let leader = routed.cluster.leader().await.unwrap();
        let before = epoch(&routed).await;
        wait_until("sessions go on", UP_WITHIN, async || pairs.pairs.load(Ordering::Relaxed) >= wanted).await;
        routed.cluster.kill_server(leader).unwrap();
        wait_until("another leader", UP_WITHIN, async || epoch(&routed).await > before).await;
        routed.cluster.wait_whole(UP_WITHIN).await.unwrap();
    }
    pairs.stop.store(true, Ordering::Relaxed);
    for session in sessions {
        session.await.unwrap();
    }
    let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
    eprintln!(
        "3 failovers, {} writes, {} reads: {} stale, {} backward",
        count(&pairs.pairs),
        count(&pairs.reads),
        count(&pairs.stale),
        count(&pairs.backward)
    );
    assert_eq!(count(&pairs.stale), 0, "{}", routed.log());
}

#[tokio::test]
async fn no_session_sees_less_than_it_wrote_or_saw() {
    let routed = Routed::start("floors", 3, SPLIT).await;
    let pairs = Arc::new(Pairs::default());
    let sessions = sessions(&routed, &pairs).await;
    let leader = routed.cluster.leader().await.unwrap();
    let mut followers = Vec::new();
    for index in (0..3).filter(|index| *index != leader) {
        followers.push(routed.direct(index).await);
    }
    // By turns, each follower stops replaying for a while and then has to catch up.
    for round in 0..30 {
        let follower = &followers[round % 2];
        let until = async |more: u64| {
            let wanted = pairs.pairs.load(Ordering::Relaxed) + more;
            wait_until("sessions go on", UP_WITHIN, async || pairs.pairs.load(Ordering::Relaxed) >= wanted)
                .await;
        };
        follower.batch_execute("SELECT pg_wal_replay_pause()").await.unwrap();
        until(10 + round as u64 % 7 * 10).await;
        follower.batch_execute("SELECT pg_wal_replay_resume()").await.unwrap();
        until(10).await;
    }
    pairs.stop.store(true, Ordering::Relaxed);
    for session in sessions {
        session.await.unwrap();
    }
    let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
    let (settled, by_followers) = (count(&pairs.settled), count(&pairs.by_followers));
    eprintln!(
        "{} writes, {} reads: {} stale, {} backward; {by_followers} of {settled} settled reads on followers",
        count(&pairs.pairs),
        count(&pairs.reads),
        count(&pairs.stale),
        count(&pairs.backward)
    );
    assert_eq!((count(&pairs.stale), count(&pairs.backward)), (0, 0));
    assert!(by_followers * 10 >= settled * 8, "{by_followers} of {settled}: {}", routed.log());
}

/// What readers have seen.
#[derive(Default)]
struct Readers {
    stop: AtomicBool,
    reads: AtomicU64,
    each: [AtomicU64; 8],
    longest_us: AtomicU64,
}

/// Reads until told to stop, each twice: by text and prepared. Gives the errors.
async fn reader(client: Client, number: usize, readers: Arc<Readers>) -> Vec<String> {
    let prepared = client.prepare("SELECT count(*) FROM t WHERE n < $1").await.unwrap();
    let mut errors = Vec::new();
    while !readers.stop.load(Ordering::Relaxed) && !client.is_closed() {
        let began = Instant::now();
        let done = match readers.reads.fetch_add(1, Ordering::Relaxed) % 2 {
            0 => client.query_one(&prepared, &[&50]).await.map(drop),
            _ => client.simple_query("SELECT sum(n) FROM t").await.map(drop),
        };
        errors.extend(done.err().map(|error| format!("{} {error}", code(&error))));
        let took = u64::try_from(began.elapsed().as_micros()).unwrap();
        readers.longest_us.fetch_max(took, Ordering::Relaxed);
        readers.each[number].fetch_add(1, Ordering::Relaxed);
    }
    errors
}

#[tokio::test]
async fn readers_do_not_notice_the_death_of_a_server() {
    let mut routed = Routed::start("deaths", 3, SPLIT).await;
    let client = routed.client().await;
    client
        .batch_execute("CREATE TABLE t (n int); INSERT INTO t SELECT generate_series(1, 100)")
        .await
        .unwrap();
    wait_for_followers(&routed).await;
    let readers = Arc::new(Readers::default());
    let mut tasks = Vec::new();
    for number in 0..readers.each.len() {
        tasks.push(tokio::spawn(reader(routed.client().await, number, readers.clone())));
    }
    let more = async |count: u64| {
        let wanted = readers.reads.load(Ordering::Relaxed) + count;
        wait_until("readers go on", UP_WITHIN, async || readers.reads.load(Ordering::Relaxed) >= wanted)
            .await;
    };
    let longest = || Duration::from_micros(readers.longest_us.swap(0, Ordering::Relaxed));
    for round in 0..4 {
        more(500).await;
        longest();
        let leader = routed.cluster.leader().await.unwrap();
        let victim = (0..3).filter(|index| *index != leader).nth(round % 2).unwrap();
        if round < 2 {
            routed.cluster.kill_server(victim).unwrap();
        } else {
            routed.cluster.kill_node(victim);
        }
        more(500).await;
        eprintln!("follower killed: the longest read took {:?}", longest());
        routed.cluster.start_agent(victim).unwrap();
        routed.cluster.wait_whole(UP_WITHIN).await.unwrap();
    }
    // One that is silent, as if its host were gone: nobody stays with it.
    let leader = routed.cluster.leader().await.unwrap();
    let victim = (0..3).find(|index| *index != leader).unwrap();
    longest();
    routed.cluster.pause_node(victim, true);
    let before: Vec<u64> = readers.each.iter().map(|each| each.load(Ordering::Relaxed)).collect();
    wait_until("every reader goes on", UP_WITHIN, async || {
        let pairs = readers.each.iter().zip(&before);
        pairs.map(|(each, before)| each.load(Ordering::Relaxed) - before).all(|more| more >= 50)
    })
    .await;
    eprintln!("follower silent: the longest read took {:?}", longest());
    routed.cluster.pause_node(victim, false);
    routed.cluster.wait_whole(UP_WITHIN).await.unwrap();
    for _ in 0..2 {
        wait_for_followers(&routed).await;
        more(500).await;
        longest();
        let (before, leader) = (epoch(&routed).await, routed.cluster.leader().await.unwrap());
        let at = readers.reads.load(Ordering::Relaxed);
        routed.cluster.kill_server(leader).unwrap();
        wait_until("another leader", UP_WITHIN, async || epoch(&routed).await > before).await;
        let meanwhile = readers.reads.load(Ordering::Relaxed) - at;
        more(500).await;
        eprintln!("leader killed: {meanwhile} reads until an election; the longest took {:?}", longest());
        routed.cluster.wait_whole(UP_WITHIN).await.unwrap();
    }
    readers.stop.store(true, Ordering::Relaxed);
    let mut errors = Vec::new();
    for task in tasks {
        errors.extend(task.await.unwrap());
    }
    assert!(errors.is_empty(), "{errors:?}\n{}", routed.log());
}

#[tokio::test]
async fn what_one_session_wrote_another_one_sees_that_was_handed_its_token() {
    let routed = Routed::start("tokens", 2, SPLIT).await;
    let writer = routed.client().await;
    writer.batch_execute("CREATE TABLE t (n int); INSERT INTO t VALUES (0)").await.unwrap();
    wait_for_followers(&routed).await;
    let leader = routed.cluster.leader().await.unwrap();
    let follower = routed.direct(1 - leader).await;
    for round in 1..=20 {
        follower.batch_execute("SELECT pg_wal_replay_pause()").await.unwrap();
        writer.batch_execute(&format!("UPDATE t SET n = {round}")).await.unwrap();
        let token = ask(&writer, "SHOW antiphon.token").await;
        let handed = routed.client().await;
        // By turns in both protocols.
        match round % 2 {
            0 => handed.batch_execute(&format!("SET antiphon.token = '{token}'")).await.unwrap(),
            _ => drop(handed.execute(&format!("SET antiphon.token = '{token}'"), &[]).await.unwrap()),
        }
        assert_eq!(ask(&handed, "SELECT n FROM t").await, round.to_string());
        assert!(route(&handed).await.starts_with("leader"), "{}", route(&handed).await);
        follower.batch_execute("SELECT pg_wal_replay_resume()").await.unwrap();
        let other = routed.client().await;
        let shown = other.query_one("SHOW antiphon.token", &[]).await.unwrap();
        assert_eq!(shown.get::<_, &str>(0), "0/0/0", "a session that has seen nothing");
        other.batch_execute(&format!("SET antiphon.token TO '{token}'")).await.unwrap();
        wait_until("the follower has what the token is of", UP_WITHIN, async || {
            assert_eq!(ask(&other, "SELECT n FROM t").await, round.to_string());
            route(&other).await.starts_with("follower")
        })
        .await;
    }
    let wrong = writer.batch_execute("SET antiphon.token = 'yesterday'").await.unwrap_err();
    assert_eq!(code(&wrong), "22023");
}
