//! Streams of changes, from every release that is here: what each kind of change becomes.
//!
//! With `UPDATE=1` the messages that came are kept for the decoder's own tests, which damage them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU32, Ordering};

use antiphon_core::Lsn;
use antiphon_mesh::pgoutput::{Decoded, Decoder, Message, Old, Tuple, Value};
use antiphon_mesh::wire::replication::{Frame, Replication, Snapshot};
use antiphon_mesh::wire::{Connection, Kind, WireError};
use bytes::Bytes;
use tokio::time::timeout;

use super::connections::dsn;
use crate::support::{PATIENCE, Server, releases};

const TABLES: &str = "
    CREATE TYPE mood AS ENUM ('glad', 'sad');
    CREATE TABLE plain (id int PRIMARY KEY, name text, mood mood, amount numeric(10,2));
    CREATE TABLE whole (id int, name text);
    ALTER TABLE whole REPLICA IDENTITY FULL;
    CREATE TABLE chosen (id int, code varchar(5) NOT NULL);
    CREATE UNIQUE INDEX chosen_code ON chosen (code);
    ALTER TABLE chosen REPLICA IDENTITY USING INDEX chosen_code;
    CREATE TABLE nothing (id int);
    ALTER TABLE nothing REPLICA IDENTITY NOTHING;
    CREATE TABLE long (id int PRIMARY KEY, words text, other int);
    ALTER TABLE long ALTER words SET STORAGE EXTERNAL;
    CREATE PUBLICATION p FOR ALL TABLES;
    SELECT pg_replication_origin_create('elsewhere');
";

/// The highest protocol of a release.
fn protocol(release: u32) -> u8 {
    match release {
        ..14 => 1,
        14 => 2,
        15 => 3,
        16.. => 4,
    }
}

/// A stream from a slot of its own.
struct Tap {
    stream: Replication,
    decoder: Decoder,
    protocol: u8,
    /// Names of tables by number.
    tables: BTreeMap<u32, String>,
    /// The position behind the last commit.
    end: Lsn,
    captured: String,
    last_form: (Option<u8>, usize),
}

impl Tap {
    async fn open(server: &Server, two_phase: bool, options: &[(&str, &str)]) -> Self {
        let mut connection = replication(server).await;
        connection.create_slot("tap", Snapshot::Nothing, two_phase, false).await.expect("a slot");
        Self::resume(connection, server.release, options).await.expect("a stream")
    }

    async fn resume(
        connection: Connection,
        release: u32,
        options: &[(&str, &str)],
    ) -> Result<Self, WireError> {
        let protocol = protocol(release);
        let version = protocol.to_string();
        let options = [&[("proto_version", version.as_str()), ("publication_names", "p")], options].concat();
        let stream = Replication::start(connection, "tap", Lsn(0), &options).await?;
        let decoder = Decoder::new(protocol);
        let (tables, captured) = (BTreeMap::new(), String::new());
        Ok(Self { stream, decoder, protocol, tables, end: Lsn(0), captured, last_form: (None, 0) })
    }

    async fn data(&mut self) -> Bytes {
        loop {
            let frame = match self.stream.buffered() {
                Some(frame) => frame,
                None => timeout(PATIENCE, self.stream.next()).await.expect("in time").expect("a frame"),
            };
            match frame {
                Frame::Data { start, end, sent_at, data } => {
                    assert!(sent_at > 0 && start <= end);
                    return data;
                }
                Frame::Keepalive { end, reply_now: true } => {
                    self.stream.confirm(self.end.min(end), 0, false).await.expect("confirmed");
                }
                Frame::Keepalive { .. } => {}
            }
        }
    }

    /// Keeps a short message that is not just like the one before it.
    fn capture(&mut self, data: &Bytes) {
        let form = (data.first().copied(), data.len());
        if data.len() < 200 && form != self.last_form {
            write!(self.captured, "{} ", self.protocol).expect("it is text");
            data.iter().for_each(|byte| write!(self.captured, "{byte:02x}").expect("it is text"));
            self.captured.push('\n');
        }
        self.last_form = form;
    }

    async fn next(&mut self) -> Decoded {
        let data = self.data().await;
        self.capture(&data);
        let decoded = self.decoder.decode(data).expect("a message");
        match &decoded.message {
            Message::Relation(relation) => {
                self.tables.insert(relation.id, relation.name.clone());
            }
            Message::Commit { end_lsn, .. } | Message::StreamCommit { end_lsn, .. } => self.end = *end_lsn,
            _ => {}
        }
        decoded
    }

    /// What is told of everything up to now, in lines; equal ones in a row once.
    async fn told(&mut self, server: &Server) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let last = format!("last {}", COUNT.fetch_add(1, Ordering::SeqCst));
        server.sql(&format!("SELECT pg_logical_emit_message(true, '{last}', '')")).await;
        let mut lines: Vec<String> = Vec::new();
        loop {
            let decoded = self.next().await;
            if matches!(&decoded.message, Message::Logical { prefix, .. } if *prefix == last) {
                self.until(|message| matches!(message, Message::Commit { .. })).await;
                assert_eq!(lines.pop().as_deref(), Some("begin"));
                return lines.join("\n");
            }
            let line = self.line(&decoded);
            if lines.last() != Some(&line) {
                lines.push(line);
            }
        }
    }

    /// Reads up to a message.
    async fn until(&mut self, wanted: impl Fn(&Message) -> bool) -> Decoded {
        loop {
            let decoded = self.next().await;
            if wanted(&decoded.message) {
                return decoded;
            }
        }
    }

    /// A message without what differs from run to run.
    fn line(&self, decoded: &Decoded) -> String {
        let table = |id: &u32| self.tables.get(id).cloned().unwrap_or_else(|| "?".into());
        let old = |old: &Old| match old {
            Old::Key(values) => format!("key {}", row(values)),
            Old::Full(values) => format!("row {}", row(values)),
        };
        match &decoded.message {
            Message::Begin { .. } => "begin".into(),
            Message::Commit { .. } => "commit".into(),
            Message::Origin { lsn, name } => format!("origin {name} {lsn}"),
            Message::Relation(relation) => {
                let columns = relation.columns.iter();
                let columns: Vec<String> = columns
                    .map(|column| format!("{}{}", if column.key { "*" } else { "" }, column.name))
                    .collect();
                format!(
                    "table {}.{} {:?} ({})",
                    relation.schema,
                    relation.name,
                    relation.identity,
                    columns.join(", ")
                )
            }
            Message::Type { schema, name, .. } => format!("type {schema}.{name}"),
            Message::Insert { relation, new } => format!("insert {} {}", table(relation), row(new)),
            Message::Update { relation, old: None, new } => {
                format!("update {} to {}", table(relation), row(new))
            }
            Message::Update { relation, old: Some(was), new } => {
                format!("update {} from {} to {}", table(relation), old(was), row(new))
            }
            Message::Delete { relation, old: was } => format!("delete {} {}", table(relation), old(was)),
            Message::Truncate { relations, cascade, restart_identity } => {
                let tables: Vec<String> = relations.iter().map(table).collect();
                format!("truncate {} cascade={cascade} restart={restart_identity}", tables.join(", "))
            }
            Message::Logical { transactional, prefix, content, .. } => {
                format!("message {prefix} {content:?} transactional={transactional}")
            }
            Message::StreamStart { first, .. } => format!("stream first={first}"),
            Message::StreamStop => "stop".into(),
            Message::StreamCommit { .. } => "stream commit".into(),
            Message::StreamAbort { xid, subxid, aborted } => {
                let what = if xid == subxid { "all" } else { "part" };
                format!("stream abort {what} told={}", aborted.is_some())
            }
            Message::BeginPrepare(prepared) => format!("begin prepare {}", prepared.gid),
            Message::Prepare(prepared) => format!("prepare {}", prepared.gid),
            Message::StreamPrepare(prepared) => format!("stream prepare {}", prepared.gid),
            Message::CommitPrepared { gid, .. } => format!("commit prepared {gid}"),
            Message::RollbackPrepared { gid, .. } => format!("rollback prepared {gid}"),
        }
    }
}

fn row(values: &Tuple) -> String {
    let value = |value: &Value| match value {
        Value::Null => "null".to_owned(),
        Value::Unchanged => "unchanged".to_owned(),
        Value::Text(bytes) if bytes.len() > 40 => format!("{} bytes", bytes.len()),
        Value::Text(bytes) => format!("{:?}", String::from_utf8_lossy(bytes)),
        Value::Binary(bytes) => format!("{bytes:?}"),
    };
    format!("({})", values.0.iter().map(value).collect::<Vec<_>>().join(", "))
}

async fn replication(server: &Server) -> Connection {
    Connection::open(&dsn(&server.dsn()), Kind::Replication, "tap", &[]).await.expect("a connection")
}

/// Keeps what was captured for the tests of the decoder.
fn keep(name: &str, captured: &str) {
    if std::env::var_os("UPDATE").is_some() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/pgoutput/captured");
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join(format!("{name}.txt")), captured).expect("captured");
    }
}

#[tokio::test]
async fn every_kind_of_change_is_told() {
    for release in releases() {
        let server = Server::start(Some(release));
        server.sql(TABLES).await;
        let mut tap = Tap::open(&server, false, &[("messages", "true")]).await;
        server.sql("INSERT INTO plain VALUES (1, 'one', 'glad', 1.50), (2, NULL, NULL, NULL)").await;
        server.sql("UPDATE plain SET name = 'eins' WHERE id = 1; UPDATE plain SET id = 3 WHERE id = 1; DELETE FROM plain WHERE id = 3").await;
        server
            .sql("INSERT INTO whole VALUES (1, 'w'); UPDATE whole SET name = NULL; DELETE FROM whole")
            .await;
        server
            .sql("INSERT INTO chosen VALUES (1, 'c'); UPDATE chosen SET code = 'd'; DELETE FROM chosen")
            .await;
        server.sql("INSERT INTO nothing VALUES (1)").await;
        server.sql("INSERT INTO long VALUES (1, repeat('long ', 2000), 1); UPDATE long SET other = 2").await;
        server.sql("TRUNCATE plain, whole RESTART IDENTITY; TRUNCATE long CASCADE").await;
        server.sql("BEGIN; SELECT pg_logical_emit_message(true, 'in', 'it'); INSERT INTO nothing VALUES (2); COMMIT").await;
        server
            .sql("SELECT pg_replication_origin_session_setup('elsewhere'); BEGIN; SELECT pg_replication_origin_xact_setup('0/AB', '2020-01-01'); INSERT INTO nothing VALUES (3); COMMIT")
            .await;
        let expected = r#"begin
type public.mood
table public.plain Default (*id, name, mood, amount)
insert plain ("1", "one", "glad", "1.50")
insert plain ("2", null, null, null)
commit
begin
update plain to ("1", "eins", "glad", "1.50")
update plain from key ("1", null, null, null) to ("3", "eins", "glad", "1.50")
delete plain key ("3", null, null, null)
commit
begin
table public.whole Full (*id, *name)
insert whole ("1", "w")
update whole from row ("1", "w") to ("1", null)
delete whole row ("1", null)
commit
begin
table public.chosen Index (id, *code)
insert chosen ("1", "c")
update chosen from key (null, "c") to ("1", "d")
delete chosen key (null, "d")
commit
begin
table public.nothing Nothing (id)
insert nothing ("1")
commit
begin
table public.long Default (*id, words, other)
insert long ("1", 10000 bytes, "1")
update long to ("1", unchanged, "2")
commit
begin
type public.mood
table public.plain Default (*id, name, mood, amount)
table public.whole Full (*id, *name)
truncate plain, whole cascade=false restart=true
table public.long Default (*id, words, other)
truncate long cascade=true restart=false
commit
begin
message in b"it" transactional=true
insert nothing ("2")
commit
begin
origin elsewhere 0/AB
insert nothing ("3")
commit"#;
        let told = tap.told(&server).await;
        assert_eq!(told, expected, "PostgreSQL {release}:\n{told}");
        keep(&format!("changes-{release}"), &tap.captured);
    }
}

#[tokio::test]
async fn values_come_in_binary_if_they_are_asked_for_so() {
    for release in releases() {
        let server = Server::start(Some(release));
        server.sql(TABLES).await;
        let mut tap = Tap::open(&server, false, &[("messages", "true"), ("binary", "true")]).await;
        server.sql("INSERT INTO plain VALUES (1, 'one', 'sad', NULL)").await;
        let told = tap.told(&server).await;
        let inserted = told.lines().find(|line| line.starts_with("insert")).expect("a row");
        assert_eq!(inserted, r#"insert plain (b"\0\0\0\x01", b"one", b"sad", null)"#, "PostgreSQL {release}");
    }
}

/// So much that it is sent before it ends.
const MUCH: &str = "INSERT INTO whole SELECT n, 'much' FROM generate_series(1, 3000) n";

#[tokio::test]
async fn a_transaction_in_progress_is_told_with_its_parts_that_are_undone() {
    for release in releases() {
        let server = Server::start_with(Some(release), &[("logical_decoding_work_mem", "64kB")]);
        server.sql(TABLES).await;
        let (how, is_told) = if release >= 16 { ("parallel", true) } else { ("on", false) };
        let mut tap = Tap::open(&server, false, &[("messages", "true"), ("streaming", how)]).await;
        let client = server.client().await;
        let run = async |sql: &str| client.batch_execute(sql).await.expect(sql);
        // What has not committed is read once something else makes the server write its log out.
        let flush = "INSERT INTO nothing VALUES (0)";

        run(&format!("BEGIN; {MUCH}")).await;
        server.sql(flush).await;
        let start = tap.until(|message| matches!(message, Message::StreamStart { .. })).await;
        let Message::StreamStart { xid: top, first: true } = start.message else { panic!("{start:?}") };
        let insert = tap.until(|message| matches!(message, Message::Insert { .. })).await;
        assert_eq!(insert.xid, Some(top));
        tap.until(|message| *message == Message::StreamStop).await;
        run(&format!("SAVEPOINT s; {MUCH}")).await;
        server.sql(flush).await;
        // Changes of the subtransaction, which has a number of its own.
        let mut whose = Some(top);
        while whose.is_none_or(|xid| xid == top) {
            whose = tap.until(|message| matches!(message, Message::Insert { .. })).await.xid;
        }
        let part = whose;
        run("ROLLBACK TO s").await;
        server.sql(flush).await;
        let abort = tap.until(|message| matches!(message, Message::StreamAbort { .. })).await;
        assert_eq!(tap.line(&abort), format!("stream abort part told={is_told}"));
        assert!(
            matches!(abort.message, Message::StreamAbort { xid, subxid, .. } if xid == top && Some(subxid) == part)
        );
        run("COMMIT").await;
        let commit = tap.until(|message| matches!(message, Message::StreamCommit { .. })).await;
        let Message::StreamCommit { xid, lsn, end_lsn, committed_at } = commit.message else {
            panic!("{commit:?}")
        };
        assert!(xid == top && lsn < end_lsn && committed_at > 0);

        run(&format!("BEGIN; {MUCH}")).await;
        server.sql(flush).await;
        tap.until(|message| *message == Message::StreamStop).await;
        run("ROLLBACK").await;
        server.sql(flush).await;
        let abort = tap.until(|message| matches!(message, Message::StreamAbort { .. })).await;
        assert_eq!(tap.line(&abort), format!("stream abort all told={is_told}"));
        keep(&format!("stream-{release}"), &tap.captured);
    }
}

#[tokio::test]
async fn a_prepared_transaction_is_told_before_it_commits() {
    for release in releases().into_iter().filter(|release| *release >= 15) {
        let server = Server::start_with(Some(release), &[("logical_decoding_work_mem", "64kB")]);
        server.sql(TABLES).await;
        let options = [("messages", "true"), ("two_phase", "on"), ("streaming", "on")];
        let mut tap = Tap::open(&server, true, &options).await;
        server.sql("BEGIN; INSERT INTO nothing VALUES (1); PREPARE TRANSACTION 'one'").await;
        let told = tap.told(&server).await;
        let expected =
            "begin prepare one\ntable public.nothing Nothing (id)\ninsert nothing (\"1\")\nprepare one";
        assert_eq!(told, expected, "PostgreSQL {release}");
        server.sql("COMMIT PREPARED 'one'").await;
        assert_eq!(tap.told(&server).await, "commit prepared one");
        server.sql("BEGIN; INSERT INTO nothing VALUES (2); PREPARE TRANSACTION 'two'").await;
        server.sql("ROLLBACK PREPARED 'two'").await;
        assert!(tap.told(&server).await.ends_with("prepare two\nrollback prepared two"));
        server.sql(&format!("BEGIN; {MUCH}; PREPARE TRANSACTION 'much'")).await;
        let told = tap.told(&server).await;
        assert!(told.starts_with("stream first=true") && told.ends_with("stream prepare much"), "{told}");
        server.sql("COMMIT PREPARED 'much'").await;
        assert_eq!(tap.told(&server).await, "commit prepared much");
        keep(&format!("prepared-{release}"), &tap.captured);
    }
}

#[tokio::test]
async fn what_was_confirmed_is_not_sent_again_and_what_was_not_is() {
    for release in releases() {
        let server = Server::start(Some(release));
        server.sql(TABLES).await;
        let messages = [("messages", "true")];
        let mut tap = Tap::open(&server, false, &messages).await;
        let busy = Tap::resume(replication(&server).await, release, &messages).await;
        assert_eq!(busy.err().expect("another reads").code(), Some("55006"));
        server.sql("INSERT INTO nothing VALUES (1)").await;
        assert!(tap.told(&server).await.contains("insert nothing (\"1\")"));
        tap.stream.confirm(tap.end, 0, true).await.expect("confirmed");
        let end = tap.end;
        // It was asked for an answer.
        while !matches!(tap.stream.next().await.expect("a frame"), Frame::Keepalive { .. }) {}
        server.wait_for(&format!("SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots")).await;
        server.sql("INSERT INTO nothing VALUES (2)").await;
        assert!(tap.told(&server).await.contains("insert nothing (\"2\")"));
        drop(tap);
        server.wait_for("SELECT NOT active FROM pg_replication_slots").await;
        let mut tap = Tap::resume(replication(&server).await, release, &messages).await.expect("a stream");
        let told = tap.told(&server).await;
        assert!(told.contains("insert nothing (\"2\")") && !told.contains("(\"1\")"), "{told}");
    }
}

#[tokio::test]
async fn a_stream_ends_with_what_the_server_says() {
    let mut server = Server::start(None);
    server.sql(TABLES).await;
    let mut tap = Tap::open(&server, false, &[]).await;
    server.sql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots").await;
    assert_eq!(ending(&mut tap.stream).await.code(), Some("57P01"));
    drop(tap);
    server.wait_for("SELECT NOT active FROM pg_replication_slots").await;
    let mut tap = Tap::resume(replication(&server).await, server.release, &[]).await.expect("a stream");
    // A server that stops waits until everything is confirmed, then says that it is through.
    let stopping = tokio::task::spawn_blocking(move || {
        server.stop();
        server
    });
    let ended = loop {
        match timeout(PATIENCE, tap.stream.next()).await.expect("in time") {
            // The server may be gone.
            Ok(Frame::Keepalive { end, .. }) => drop(tap.stream.confirm(end, 0, false).await),
            Ok(Frame::Data { .. }) => {}
            Err(error) => break error,
        }
    };
    drop(stopping.await.expect("it stops"));
    assert!(matches!(ended, WireError::Closed { .. }), "{ended}");
}

async fn ending(stream: &mut Replication) -> WireError {
    loop {
        if let Err(error) = timeout(PATIENCE, stream.next()).await.expect("in time") {
            return error;
        }
    }
}

#[tokio::test]
async fn slots_are_made_and_dropped_on_every_release() {
    for release in releases() {
        let server = Server::start(Some(release));
        let mut connection = replication(&server).await;
        let system = connection.identify_system().await.expect("a system");
        assert_eq!((system.dbname.as_deref(), system.timeline), (Some("postgres"), 1));
        let identifier: i64 = server
            .client()
            .await
            .query_one("SELECT system_identifier FROM pg_control_system()", &[])
            .await
            .expect("it")
            .get(0);
        assert_eq!(system.system_id, identifier.cast_unsigned().to_string());
        let slot = connection
            .create_slot("s", Snapshot::Export, release >= 15, release >= 17)
            .await
            .expect("a slot");
        assert!(slot.lsn >= system.xlogpos);
        let snapshot = slot.snapshot.expect("a snapshot");
        server
            .sql(&format!(
                "BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '{snapshot}'; COMMIT"
            ))
            .await;
        let twice =
            connection.create_slot("s", Snapshot::Nothing, false, false).await.expect_err("it is there");
        assert_eq!(twice.code(), Some("42710"));
        connection.query("BEGIN READ ONLY ISOLATION LEVEL REPEATABLE READ").await.expect("a transaction");
        let used = connection.create_slot("u", Snapshot::Use, false, false).await.expect("a slot");
        assert_eq!(used.snapshot, None);
        connection.query("COMMIT").await.expect("ended");
        for name in ["s", "u"] {
            connection.drop_slot(name, true).await.expect("dropped");
        }
        assert_eq!(connection.drop_slot("s", false).await.expect_err("gone").code(), Some("42704"));
    }
}
