//! Server-sent events: the state at once, a push on every change, and no reader that holds anyone up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use antiphon_core::ha::role::Role;
use antiphon_core::{Lsn, ha::world::Local};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;

use super::fixture::{Served, changed, name, view, with_role};

type Stream = Lines<BufReader<TcpStream>>;

async fn follow(served: &Served) -> Stream {
    let mut stream = TcpStream::connect(served.address).await.expect("a connection");
    stream
        .write_all(b"GET /events HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n")
        .await
        .expect("a write");
    let mut lines = BufReader::new(stream).lines();
    let mut head = String::new();
    while let Some(line) = lines.next_line().await.expect("a line") {
        if line.is_empty() {
            break;
        }
        head.push_str(&line.to_lowercase());
        head.push('\n');
    }
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert!(
        head.contains("content-type: text/event-stream\n") && head.contains("cache-control: no-store\n"),
        "{head}"
    );
    lines
}

/// The next event's data; comments and chunk sizes are passed over.
async fn next(stream: &mut Stream, limit: Duration) -> Option<Value> {
    let data = async {
        loop {
            let line = stream.next_line().await.expect("a line")?;
            if let Some(data) = line.strip_prefix("data: ") {
                return Some(serde_json::from_str(data).expect("JSON"));
            }
        }
    };
    tokio::time::timeout(limit, data).await.unwrap_or(None)
}

#[tokio::test]
async fn a_change_is_pushed_at_once_and_carries_the_whole_state() {
    let served = Served::new(view("n1")).await;
    let mut stream = follow(&served).await;
    let wait = Duration::from_secs(5);
    let first = next(&mut stream, wait).await.expect("the state");
    assert_eq!((&first["epoch"], &first["phase"]), (&3.into(), &"led".into()));
    let leader = serde_json::json!({ "name": "n1", "host": "127.0.0.1", "port": 5001, "epoch": 3, "timeline": 3, "serving": true });
    assert_eq!(first["leader"], leader);
    assert_eq!(first["members"][1]["role"], "quorum_standby");
    assert_eq!((&first["members"][1]["lag_bytes"], &first["members"][1]["timeline"]), (&0.into(), &3.into()));
    assert_eq!(first["sync"]["k"], 1);
    let at = Instant::now();
    let electing = changed(view("n1"), |world| {
        let cluster = &mut world.store.cluster.as_mut().expect("a cluster").value;
        let last = cluster.leader().cloned().expect("a leader");
        cluster.epoch = cluster.epoch.next();
        cluster.phase = antiphon_core::ha::cluster::Phase::Electing {
            cause: antiphon_core::ha::cluster::Cause::Silent,
            opened_by: name("n2"),
            last,
        };
    });
    served.view.send_replace(Arc::new(electing));
    let second = next(&mut stream, wait).await.expect("the change");
    assert_eq!(
        (&second["epoch"], &second["phase"], &second["leader"]),
        (&4.into(), &"electing".into(), &Value::Null)
    );
    assert!(at.elapsed() < Duration::from_secs(1), "it took {:?}", at.elapsed());
}

#[tokio::test]
async fn what_is_no_change_is_not_pushed_and_lag_alone_once_a_second() {
    let served = Served::new(view("n1")).await;
    let mut stream = follow(&served).await;
    next(&mut stream, Duration::from_secs(5)).await.expect("the state");
    served.view.send_replace(Arc::new(with_role(view("n1"), Role::Leader { epoch: super::fixture::EPOCH })));
    assert_eq!(next(&mut stream, Duration::from_millis(300)).await, None);
    let at = Instant::now();
    for step in 1..=20_u64 {
        let ahead = changed(view("n1"), |world| {
            if let Local::Database(database) = &mut world.local
                && let antiphon_core::ha::world::Server::Primary(primary) = &mut database.server
            {
                primary.flushed = Lsn(super::fixture::END.0 + step);
            }
        });
        served.view.send_replace(Arc::new(ahead));
        tokio::task::yield_now().await;
    }
    let pushed = next(&mut stream, Duration::from_secs(5)).await.expect("the newest lag");
    assert_eq!(pushed["members"][1]["lag_bytes"], 20);
    assert!(at.elapsed() < Duration::from_secs(3));
    assert_eq!(next(&mut stream, Duration::from_millis(300)).await, None);
}

#[tokio::test]
async fn a_silent_stream_is_kept_alive() {
    let served = Served::new(view("n1")).await;
    let mut stream = follow(&served).await;
    next(&mut stream, Duration::from_secs(5)).await.expect("the state");
    let comment = async {
        while let Some(line) = stream.next_line().await.expect("a line") {
            if line.starts_with(':') {
                return true;
            }
        }
        false
    };
    assert!(tokio::time::timeout(Duration::from_secs(14), comment).await.expect("in time"));
}

#[tokio::test]
async fn a_reader_that_takes_nothing_holds_nobody_up() {
    let served = Served::new(view("n1")).await;
    let mut deaf = TcpStream::connect(served.address).await.expect("a connection");
    deaf.write_all(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("a write");
    let mut stream = follow(&served).await;
    let wait = Duration::from_secs(5);
    next(&mut stream, wait).await.expect("the state");
    // More than the socket's buffers hold, were it queued.
    for round in 0..30_u32 {
        let noisy = changed(view("n1"), |world| {
            let tags = &mut world.store.members.get_mut(&name("n3")).expect("n3").value.tags;
            tags.custom.insert("noise".to_owned(), Value::from(format!("{round}{}", "x".repeat(500_000))));
        });
        served.view.send_replace(Arc::new(noisy));
        next(&mut stream, wait).await.expect("the change");
    }
    assert_eq!(served.get("/primary").await.status, 200);
    // The sweep closes it; what was in the socket's buffers can still be read.
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(50), async {
        let mut quiet = tokio::time::interval(Duration::from_secs(32));
        quiet.tick().await;
        quiet.tick().await;
        deaf.read_to_end(&mut rest).await
    });
    let closed = closed.await.expect("the connection is closed in time");
    assert!(closed.is_err() || rest.len() < 30 * 500_000, "{} bytes were kept for it", rest.len());
}
