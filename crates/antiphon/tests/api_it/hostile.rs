//! Requests that no honest client sends, over a plain socket: refused with a status, and everybody else is
//! served meanwhile.

use std::time::Duration;

use antiphon_core::ha::role::Role;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::fixture::{Served, view};

/// Sends bytes and reads until the answer is whole or the connection ends. The end of sending is not the end
/// of the connection; an answer must come within 15 s.
pub(crate) async fn exchange(served: &Served, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(served.address).await.expect("a connection");
    // The other side may hang up on what it does not want to read to its end.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let read = tokio::time::timeout(Duration::from_secs(15), stream.read(&mut buffer)).await;
        match read.expect("an answer in time") {
            Ok(0) | Err(_) => break,
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
        }
        let text = String::from_utf8_lossy(&answer).to_lowercase();
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body.len());
        let length = text.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
        if body.is_some() && (body >= length || length.is_none()) {
            break;
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
}

#[tokio::test]
async fn bodies_that_contradict_or_overrun_are_refused() {
    let served = Served::new(view("n1")).await;
    let before = served.value("config").await;
    let deep = "[".repeat(100_000);
    let with_length = |body: &str| {
        format!("PATCH /config HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    let cases: Vec<(&str, String, &[u16])> = vec![
        ("no length", "PATCH /config HTTP/1.1\r\nHost: x\r\n\r\n".into(), &[411]),
        ("empty", with_length(""), &[400]),
        ("no object", with_length("[1]"), &[400]),
        ("cut", with_length("{\"ttl\":"), &[400]),
        ("deep", with_length(&deep), &[400]),
        ("huge number", with_length("{\"ttl\":1e999}"), &[400]),
        ("twice", with_length("{\"ttl\":20,\"ttl\":30}"), &[400]),
        ("announced 100 MB", "PATCH /config HTTP/1.1\r\nHost: x\r\nContent-Length: 104857600\r\n\r\n".into(), &[413]),
        ("announced 2^64", "PATCH /config HTTP/1.1\r\nHost: x\r\nContent-Length: 18446744073709551616\r\n\r\n".into(), &[400]),
        ("length and chunks", "PATCH /config HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nTransfer-Encoding: chunked\r\n\r\na\r\n{\"ttl\":20}\r\n0\r\n\r\n".into(), &[400, 411]),
        ("two lengths", "PATCH /config HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nContent-Length: 11\r\n\r\n{\"ttl\":20}".into(), &[400]),
        ("huge chunk", "POST /restart HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n".into(), &[411]),
    ];
    for (what, request, statuses) in cases {
        let answer = exchange(&served, request.as_bytes()).await;
        assert!(statuses.contains(&status(&answer)), "{what}: {answer}");
        assert_eq!(served.get("/primary").await.status, 200, "{what}");
    }
    let mut large = format!("PUT /config HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", 1024 * 1024 + 1);
    large.push_str(&"x".repeat(1024 * 1024 + 1));
    let answer = exchange(&served, large.as_bytes()).await;
    assert!([0, 413].contains(&status(&answer)), "{answer}");
    assert_eq!(served.value("config").await, before);
}

#[tokio::test]
async fn heads_that_make_no_sense_are_refused() {
    let served = Served::new(view("n1")).await;
    let many: String = (0..10_000).map(|n| format!("a{n}: b\r\n")).collect();
    let cases: Vec<(&str, Vec<u8>, &[u16])> = vec![
        ("1 MB header", format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "x".repeat(1 << 20)).into(), &[0, 431]),
        ("10k headers", format!("GET / HTTP/1.1\r\n{many}\r\n").into(), &[0, 431]),
        ("1 MB method", format!("{} / HTTP/1.1\r\n\r\n", "G".repeat(1 << 20)).into(), &[0, 400, 431, 414]),
        ("1 MB path", format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20)).into(), &[0, 414, 431, 400]),
        ("NUL", b"GET /pri\0mary HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), &[400]),
        ("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(), &[0, 400]),
        ("other verb", b"BREW /primary HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), &[501]),
        ("TRACE", b"TRACE / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), &[501]),
        ("wrong verb", b"POST /cluster HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".to_vec(), &[501]),
        ("nobody's path", b"POST /sigterm HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".to_vec(), &[501]),
        ("no path", b"DELETE / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), &[501]),
        ("dots", b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), &[503]),
        ("old", b"GET /primary HTTP/1.0\r\n\r\n".to_vec(), &[200]),
        ("very old", b"GET /primary\r\n\r\n".to_vec(), &[0, 400]),
    ];
    for (what, request, statuses) in cases {
        let answer = exchange(&served, &request).await;
        assert!(statuses.contains(&status(&answer)), "{what}: {answer}");
        assert_eq!(served.get("/primary").await.status, 200, "{what}");
    }
}

#[tokio::test]
async fn a_head_that_does_not_end_is_given_up() {
    let served = Served::new(view("n1")).await;
    let mut stream = TcpStream::connect(served.address).await.expect("a connection");
    stream.write_all(b"GET /primary HTTP/1.1\r\nHost:").await.expect("a write");
    let mut buffer = [0; 16];
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read(&mut buffer)).await;
    assert!(matches!(read, Ok(Ok(0) | Err(_))), "{read:?}");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_given_up() {
    let served = Served::new(view("n1")).await;
    let request = "PATCH /config HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{\"ttl\"";
    assert_eq!(status(&exchange(&served, request.as_bytes()).await), 408);
}

#[tokio::test]
async fn one_connection_serves_many_checks_and_sees_each_change() {
    let served = Served::new(view("n1")).await;
    let mut stream = TcpStream::connect(served.address).await.expect("a connection");
    let mut buffer = vec![0; 65_536];
    for round in 0..50 {
        let leads = round % 2 == 0;
        let view = if leads { view("n1") } else { super::fixture::with_role(view("n1"), Role::Demoting) };
        served.view.send_replace(std::sync::Arc::new(view));
        stream.write_all(b"HEAD /primary HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("a write");
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut buffer)).await;
        let answer = String::from_utf8_lossy(&buffer[..read.expect("in time").expect("a read")]).into_owned();
        assert_eq!(status(&answer), if leads { 200 } else { 503 }, "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_idle_connections_keep_nobody_waiting() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(20_000), hard).expect("more files");
    let served = Served::new(view("n1")).await;
    let mut idle = Vec::new();
    for _ in 0..2000 {
        idle.push(TcpStream::connect(served.address).await.expect("a connection"));
    }
    let mut stream = TcpStream::connect(served.address).await.expect("a connection");
    let mut buffer = vec![0; 65_536];
    let began = std::time::Instant::now();
    let mut slowest = Duration::ZERO;
    let count = 2000;
    for _ in 0..count {
        let at = std::time::Instant::now();
        stream.write_all(b"HEAD /primary HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("a write");
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut buffer)).await;
        let answer = String::from_utf8_lossy(&buffer[..read.expect("in time").expect("a read")]).into_owned();
        assert_eq!(status(&answer), 200);
        slowest = slowest.max(at.elapsed());
    }
    let rate = f64::from(count) / began.elapsed().as_secs_f64();
    println!(
        "one connection beside 2,000 idle ones: {rate:.0} checks a second, the slowest took {slowest:?}"
    );
    let page = served.get("/metrics").await.text;
    let open = page.lines().find_map(|line| {
        line.strip_prefix("antiphon_http_connections{")?.split(' ').nth(1)?.parse::<u32>().ok()
    });
    assert!(open.is_some_and(|open| open >= 2001), "{open:?}");
}
