//! Streams of changes, from every release that is here.

use antiphon_core::Lsn;
use antiphon_mesh::pgoutput::{Decoder, Message, Tuple, Value};
use antiphon_mesh::wire::replication::{Frame, Replication, Snapshot};
use antiphon_mesh::wire::{Connection, Kind};

use super::connections::dsn;
use crate::support::{Server, releases};

/// The highest protocol of a release.
fn protocol(release: u32) -> u8 {
    match release {
        ..14 => 1,
        14 => 2,
        15 => 3,
        16.. => 4,
    }
}

#[tokio::test]
async fn changes_are_read_confirmed_and_not_sent_again() {
    for release in releases() {
        let server = Server::start(Some(release));
        server
            .sql("CREATE TABLE t (id int PRIMARY KEY, name text); CREATE PUBLICATION p FOR ALL TABLES")
            .await;
        let dsn = dsn(&server.dsn());
        let mut connection = Connection::open(&dsn, Kind::Replication, "r", &[]).await.expect("a connection");
        let system = connection.identify_system().await.expect("a system");
        assert_eq!(system.dbname.as_deref(), Some("postgres"));
        let slot = connection.create_slot("s", Snapshot::Export, false, release >= 17).await.expect("a slot");
        assert!(slot.snapshot.is_some() && slot.lsn >= system.xlogpos);
        server.sql("INSERT INTO t VALUES (1, 'one'), (2, NULL)").await;
        let version = protocol(release).to_string();
        let options = [("proto_version", version.as_str()), ("publication_names", "p")];
        let mut stream = Replication::start(connection, "s", Lsn(0), &options).await.expect("a stream");
        let (messages, end) = transaction(&mut stream, protocol(release)).await;
        let row = |values: &[Option<&str>]| {
            let value =
                |value: &Option<&str>| value.map_or(Value::Null, |text| Value::Text(text.to_owned().into()));
            Tuple(values.iter().map(value).collect())
        };
        let rows: Vec<Tuple> = messages
            .into_iter()
            .filter_map(|message| match message {
                Message::Insert { new, .. } => Some(new),
                _ => None,
            })
            .collect();
        assert_eq!(rows, [row(&[Some("1"), Some("one")]), row(&[Some("2"), None])]);
        stream.confirm(end, 0, false).await.expect("confirmed");
        server
            .wait_for(&format!(
                "SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name = 's'"
            ))
            .await;
        drop(stream);
        server.sql("INSERT INTO t VALUES (3, 'three')").await;
        server.wait_for("SELECT NOT active FROM pg_replication_slots").await;
        let connection = Connection::open(&dsn, Kind::Replication, "r", &[]).await.expect("a connection");
        let mut stream = Replication::start(connection, "s", Lsn(0), &options).await.expect("a stream");
        let (messages, _) = transaction(&mut stream, protocol(release)).await;
        assert!(messages.iter().any(|message| *message
            == Message::Insert { relation: relation(&messages), new: row(&[Some("3"), Some("three")]) }));
        drop(stream);
        let mut connection = Connection::open(&dsn, Kind::Replication, "r", &[]).await.expect("a connection");
        connection.drop_slot("s", true).await.expect("dropped");
        let error = connection.drop_slot("s", false).await.expect_err("gone");
        assert_eq!(error.code(), Some("42704"));
    }
}

fn relation(messages: &[Message]) -> u32 {
    let found = messages.iter().find_map(|message| match message {
        Message::Relation(relation) => Some(relation.id),
        _ => None,
    });
    found.expect("a table")
}

/// The messages of the next transaction that is not empty, and where it ends.
async fn transaction(stream: &mut Replication, protocol: u8) -> (Vec<Message>, Lsn) {
    let mut decoder = Decoder::new(protocol);
    let mut messages = Vec::new();
    loop {
        let frame = match stream.buffered() {
            Some(frame) => frame,
            None => stream.next().await.expect("a message"),
        };
        let Frame::Data { data, .. } = frame else { continue };
        match decoder.decode(data).expect("a message").message {
            Message::Begin { .. } => messages.clear(),
            Message::Commit { end_lsn, .. } if !messages.is_empty() => return (messages, end_lsn),
            Message::Commit { .. } => {}
            message => messages.push(message),
        }
    }
}
