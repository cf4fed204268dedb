//! Connections to servers that are slow, lie, or are none.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use antiphon_core::Lsn;
use bytes::{BufMut, Bytes, BytesMut};
use postgres_protocol::message::backend::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::replication::{Frame, Replication};
use super::{Connection, Kind, TEXT, WireError, version_number};
use crate::dsn::Dsn;

#[test]
fn a_release_has_the_number_that_the_server_gives_it() {
    let cases =
        [("15.20 (Debian 15.20-0+deb12u1)", 150_020), ("18beta2", 180_000), ("16.2", 160_002), ("?", 0)];
    for (text, number) in cases {
        assert_eq!(version_number(text), number, "{text}");
    }
}

/// A place where a made-up server listens.
struct Place {
    folder: PathBuf,
    listener: UnixListener,
}

impl Place {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::SeqCst);
        let folder = std::env::temp_dir().join(format!("aw{}-{count}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("a folder");
        let listener = UnixListener::bind(folder.join(".s.PGSQL.1")).expect("a socket");
        Self { folder, listener }
    }

    fn dsn(&self, more: &str) -> Dsn {
        let text = format!("host={} port=1 user=u {more}", self.folder.display());
        Dsn::parse(&text, &BTreeMap::new()).expect("a connection string")
    }

    /// The other end of the next connection, which has begun to log in.
    async fn accept(&self) -> UnixStream {
        let (mut stream, _) = self.listener.accept().await.expect("a connection");
        let length = stream.read_u32().await.expect("a length");
        let mut start = vec![0; usize::try_from(length).expect("short") - 4];
        stream.read_exact(&mut start).await.expect("a start");
        stream
    }

    /// A connection and its other end.
    async fn connection(&self, kind: Kind) -> (Connection, UnixStream) {
        let dsn = self.dsn("");
        let (connection, server) = tokio::join!(Connection::open(&dsn, kind, "test", &[]), async {
            let mut server = self.accept().await;
            let welcome = [message(b'R', &[0; 4]), message(b'S', b"a\0b\0"), message(b'Z', b"I")].concat();
            server.write_all(&welcome).await.expect("sent");
            server
        });
        (connection.expect("a connection"), server)
    }

    /// How a login ends whose server answers so.
    async fn login(&self, more: &str, answers: &[Bytes]) -> Result<Connection, WireError> {
        let dsn = self.dsn(more);
        let (connection, ()) = tokio::join!(Connection::open(&dsn, Kind::Sql, "test", &[]), async {
            let mut server = self.accept().await;
            for (index, answer) in answers.iter().enumerate() {
                if index > 0 && server.read(&mut [0; 1024]).await.is_ok_and(|count| count == 0) {
                    return;
                }
                if server.write_all(answer).await.is_err() {
                    return;
                }
            }
        });
        connection
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn message(kind: u8, content: &[u8]) -> Bytes {
    let mut message = BytesMut::new();
    message.put_u8(kind);
    message.put_u32(u32::try_from(content.len()).expect("short") + 4);
    message.put_slice(content);
    message.freeze()
}

#[tokio::test]
async fn a_read_that_is_given_up_loses_nothing() {
    let place = Place::new();
    let (connection, mut server) = place.connection(Kind::Sql).await;
    let (mut reader, _writer) = connection.split();
    let count = 200_u32;
    let sent = async {
        for number in 0..count {
            let row = [&[0, 1, 0, 0, 0, 4][..], &number.to_be_bytes()].concat();
            for byte in [message(b'S', b"a\0c\0"), message(b'D', &row)].concat() {
                server.write_all(&[byte]).await.expect("sent");
                tokio::task::yield_now().await;
            }
        }
    };
    let mut abandoned = 0;
    let received = async {
        let mut rows = Vec::new();
        while rows.len() < usize::try_from(count).expect("few") {
            tokio::select! {
                biased;
                next = reader.next() => match next.expect("a message") {
                    Message::DataRow(row) => rows.push(Bytes::copy_from_slice(&row.buffer()[4..])),
                    _ => panic!("another message"),
                },
                () = tokio::task::yield_now() => abandoned += 1,
            }
        }
        rows
    };
    let (rows, ()) = tokio::join!(received, sent);
    assert!(rows.iter().zip(0..count).all(|(row, number)| row[..] == number.to_be_bytes()));
    assert_eq!(reader.parameter("a"), Some("c"));
    assert!(abandoned > count, "{abandoned} reads were given up");
}

#[tokio::test]
async fn a_flush_that_is_given_up_sends_everything_once() {
    let place = Place::new();
    let (connection, mut server) = place.connection(Kind::Sql).await;
    let (_reader, mut writer) = connection.split();
    let value = vec![b'v'; 3_000_000];
    writer.bind("s", &[TEXT], [Some(&value[..])]).expect("values");
    writer.execute();
    writer.sync();
    let (length, mut abandoned) = (writer.len(), 0);
    let flushed = async {
        loop {
            tokio::select! {
                biased;
                done = writer.flush() => return done.expect("sent"),
                () = tokio::task::yield_now() => abandoned += 1,
            }
        }
    };
    let received = async {
        let mut bytes = vec![0; length];
        server.read_exact(&mut bytes).await.expect("all of it");
        bytes
    };
    let (bytes, ()) = tokio::join!(received, flushed);
    let value_at = bytes.len() - 2 - 10 - 5 - value.len();
    assert_eq!(bytes[value_at..value_at + value.len()], value[..]);
    assert_eq!(bytes[bytes.len() - 5..], message(b'S', b"")[..]);
    assert!(abandoned > 0 && writer.is_empty());
}

#[tokio::test]
async fn what_cannot_be_said_is_not_half_said() {
    let place = Place::new();
    let (connection, _server) = place.connection(Kind::Sql).await;
    let (_reader, mut writer) = connection.split();
    writer.sync();
    let before = writer.len();
    let complaints = [
        writer.parse("s\0", "SELECT", &[]).expect_err("a zero byte").to_string(),
        writer.parse("s", "SELECT \0", &[]).expect_err("a zero byte").to_string(),
        writer.query("SELECT \0").expect_err("a zero byte").to_string(),
        writer.bind("s", &[], std::iter::repeat_n(None, 65_536)).expect_err("too many").to_string(),
    ];
    assert!(complaints.iter().all(|text| text.starts_with("this cannot be sent to a server: ")));
    assert_eq!(writer.len(), before);
}

#[tokio::test]
async fn a_server_that_breaks_the_protocol_is_told_so_and_reserves_nothing() {
    let cases: [(&[u8], &str); 5] = [
        (b"D\0\0\0\x03", "broke the protocol: a message 'D' of 3 bytes"),
        (b"D\x7f\xff\xff\xff", "broke the protocol: a message 'D' of 2147483647 bytes"),
        (b"?\0\0\0\x04", "broke the protocol: unknown message tag `63`"),
        (b"D\x3f\xff\xff\xff\0", "ended the connection"),
        (b"", "ended the connection"),
    ];
    for (bytes, complaint) in cases {
        let place = Place::new();
        let (connection, mut server) = place.connection(Kind::Sql).await;
        let (mut reader, _writer) = connection.split();
        server.write_all(bytes).await.expect("sent");
        drop(server);
        let Err(error) = reader.next().await else { panic!("{bytes:?} is a message") };
        assert_eq!(error.to_string(), format!("{}:1 {complaint}", place.folder.display()));
        assert!(reader.input.capacity() < 1024 * 1024, "{} bytes are reserved", reader.input.capacity());
    }
}

#[tokio::test]
async fn a_long_message_comes_whole_and_its_room_is_given_back() {
    let place = Place::new();
    let (connection, mut server) = place.connection(Kind::Sql).await;
    let (mut reader, _writer) = connection.split();
    let row: Vec<u8> = std::iter::repeat_n(0..=250, 40_000).flatten().collect();
    let sent = async {
        server.write_all(&message(b'd', &row)).await.expect("sent");
        for _ in 0..20_000 {
            server.write_all(&message(b'1', b"")).await.expect("sent");
        }
    };
    let received = async {
        let Ok(Message::CopyData(body)) = reader.next().await else { panic!("another message") };
        assert!(body.data() == row);
        for _ in 0..20_000 {
            assert!(matches!(reader.next().await, Ok(Message::ParseComplete)));
        }
    };
    tokio::join!(sent, received);
    assert!(reader.input.capacity() < 1024 * 1024, "{} bytes are reserved", reader.input.capacity());
}

#[tokio::test]
async fn a_login_is_only_with_a_server_that_keeps_to_its_order() {
    let place = Place::new();
    let scram = message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0");
    let ok = message(b'R', &[0; 4]);
    let cases: [(&str, &[Bytes], &str); 9] = [
        ("password=p", &[scram.clone(), ok.clone()], "it sent something else while we logged in"),
        ("", std::slice::from_ref(&scram), "it asks for a password and there is none"),
        (
            "password=p",
            &[message(b'R', b"\0\0\0\x0aSCRAM-X\0\0")],
            "it offers no way of logging in that is known",
        ),
        (
            "password=p",
            &[scram.clone(), message(b'R', b"\0\0\0\x0br=other,s=AAAA,i=4096")],
            "SCRAM: invalid nonce",
        ),
        (
            "password=p require_auth=md5",
            std::slice::from_ref(&scram),
            "it asks for SCRAM, which require_auth excludes",
        ),
        (
            "require_auth=scram-sha-256",
            std::slice::from_ref(&ok),
            "it lets us in without proof of who we are",
        ),
        ("channel_binding=require", std::slice::from_ref(&ok), "it did not bind the login to the connection"),
        ("", &[message(b'R', b"\0\0\0\x07")], "it asks for Kerberos"),
        ("", &[message(b'E', b"SFATAL\0VFATAL\0C28000\0Mgo away\0\0")], "FATAL 28000: go away"),
    ];
    for (more, answers, complaint) in cases {
        let error = place.login(more, answers).await.expect_err(complaint).to_string();
        assert!(error.contains(complaint), "{more} {answers:?}: {error}");
    }
}

/// A stream of changes and its other end.
async fn stream(place: &Place) -> (Replication, UnixStream) {
    let (connection, mut server) = place.connection(Kind::Replication).await;
    let started = async {
        let options = [("proto_version", "1"), ("publication_names", "it's \"p\\\"")];
        Replication::start(connection, "a slot", Lsn(0x1_0000_00AB), &options).await
    };
    let (stream, ()) = tokio::join!(started, async {
        let command = "START_REPLICATION SLOT \"a slot\" LOGICAL 1/AB (\"proto_version\" '1', \
                       \"publication_names\" 'it''s \"p\\\"')\0";
        let mut bytes = vec![0; command.len() + 5];
        server.read_exact(&mut bytes).await.expect("a command");
        assert_eq!(bytes, message(b'Q', command.as_bytes()));
        server.write_all(&message(b'N', b"SNOTICE\0\0")).await.expect("sent");
        server.write_all(&message(b'W', &[0, 0, 0])).await.expect("sent");
    });
    (stream.expect("a stream"), server)
}

fn data(content: &[u8]) -> Bytes {
    let head = [7_u64, 9, 0].map(u64::to_be_bytes).concat();
    message(b'd', &[b"w", &head[..], content].concat())
}

#[tokio::test]
async fn frames_that_have_come_are_taken_without_waiting_and_the_rest_is_left() {
    let place = Place::new();
    let (mut stream, mut server) = stream(&place).await;
    let keepalive = message(b'd', &[b"k", &[0; 16][..], &[1]].concat());
    let all = [data(b"one"), data(b""), keepalive, message(b'E', b"C57P01\0\0")].concat();
    server.write_all(&all).await.expect("sent");
    let frame = |content: &'static [u8]| Frame::Data {
        start: Lsn(7),
        end: Lsn(9),
        sent_at: 0,
        data: Bytes::from_static(content),
    };
    assert_eq!(stream.next().await.expect("a frame"), frame(b"one"));
    assert_eq!(stream.buffered(), Some(frame(b"")));
    assert_eq!(stream.buffered(), Some(Frame::Keepalive { end: Lsn(0), reply_now: true }));
    assert_eq!(stream.buffered(), None);
    assert_eq!(stream.next().await.expect_err("the end").code(), Some("57P01"));
}

#[tokio::test]
async fn a_confirmation_tells_one_position_three_times() {
    let place = Place::new();
    let (mut stream, mut server) = stream(&place).await;
    stream.confirm(Lsn(0x0102), 3, true).await.expect("sent");
    let mut bytes = [0; 39];
    server.read_exact(&mut bytes).await.expect("a confirmation");
    let lsn = [0, 0, 0, 0, 0, 0, 1, 2];
    assert_eq!(
        bytes[..],
        message(b'd', &[b"r", &lsn[..], &lsn, &lsn, &[0, 0, 0, 0, 0, 0, 0, 3], &[1]].concat())
    );
}

#[tokio::test]
async fn what_is_no_frame_ends_a_stream() {
    let cases = [
        (message(b'd', b""), "broke the protocol: a piece of the stream of another form"),
        (message(b'd', b"w\0"), "broke the protocol: a piece of the stream of another form"),
        (message(b'd', &[b'k'; 19]), "broke the protocol: a piece of the stream of another form"),
        (message(b'1', b""), "broke the protocol: a message that no stream of changes has"),
        (message(b'c', b""), "ended the stream of changes"),
    ];
    for (bytes, complaint) in cases {
        let place = Place::new();
        let (mut stream, mut server) = stream(&place).await;
        server.write_all(&data(b"x")).await.expect("sent");
        server.write_all(&bytes).await.expect("sent");
        stream.next().await.expect("a frame");
        assert_eq!(stream.buffered(), None, "{bytes:?}");
        let error = stream.next().await.expect_err("no frame").to_string();
        assert!(error.ends_with(complaint), "{bytes:?}: {error}");
    }
}
