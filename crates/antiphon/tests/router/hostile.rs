//! Bytes that are no protocol: they end the connection they came on, with the right code, and harm nobody.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::support::{Routed, wait_until};

#[tokio::test]
async fn malformed_packets_harm_nobody() {
    let mut routed = Routed::start("hostile", 1, "  pool_size: 2\n  client_login_timeout: 2s\n").await;
    let client = routed.client().await;
    let start = |body: &[u8]| {
        let mut packet = (u32::try_from(body.len()).unwrap() + 8).to_be_bytes().to_vec();
        packet.extend(196_608u32.to_be_bytes());
        packet.extend(body);
        packet
    };
    let sound = start(b"user\0postgres\0database\0postgres\0\0");
    let openings: Vec<(Vec<u8>, &str)> = vec![
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), "08P01"),
        (vec![0; 64], "08P01"),
        (vec![0xff; 64], "08P01"),
        (start(b"user"), "08P01"),
        (start(b"\0"), "28000"),
        (start(b"user\0x\0replication\0true\0\0"), "0A000"),
        (start(b"user\0x\0options\0--\0\0"), "0A000"),
        ([&sound[..], b"Q\0\0\0\x0dselect 1\0"].concat(), "08P01"),
        ([&sound[..], b"p\0\0\0\x04"].concat(), "08P01"),
        ([&sound[..], b"p\xff\xff\xff\xff"].concat(), "08P01"),
        ([&sound[..], b"p\0\0\0\x10SCRAM-SHA-1\0"].concat(), "08P01"),
    ];
    for (bytes, code) in &openings {
        let answer = exchange(routed.port, bytes);
        let wanted = format!("C{code}\0");
        let told = answer.windows(wanted.len()).any(|part| part == wanted.as_bytes());
        assert!(told, "{bytes:?} should be answered with {code}: {}", String::from_utf8_lossy(&answer));
    }
    // Every beginning of a sound start, given up half-way; and one that never says a word.
    let silent = TcpStream::connect(("127.0.0.1", routed.port)).unwrap();
    for end in 0..sound.len() {
        let mut stream = TcpStream::connect(("127.0.0.1", routed.port)).unwrap();
        stream.write_all(&sound[..end]).unwrap();
    }
    let mut rest = Vec::new();
    silent.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    (&silent).read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "who does not log in in time is closed");
    client.query_one("SELECT 1", &[]).await.unwrap();
    assert!(routed.is_up());
}

/// Sends bytes and reads until the router closes.
fn exchange(port: u16, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    // A reset after the answer ends it as well.
    let _ = stream.read_to_end(&mut answer);
    answer
}

#[tokio::test]
async fn a_client_that_never_reads_holds_up_nobody() {
    never_reads(&mut Routed::start("unread", 1, "  pool_size: 3\n  threads: 1\n").await).await;
}

#[tokio::test]
async fn a_client_inside_tls_that_never_reads_holds_up_nobody() {
    never_reads(&mut Routed::start_secure("unread-tls", 1, "  pool_size: 3\n  threads: 1\n").await).await;
}

async fn never_reads(routed: &mut Routed) {
    // A result of 2 GB of which nothing is taken: it must wait in the server, not here.
    let mut greedy = routed
        .command("psql")
        .args([
            "-AtX",
            "-v",
            "FETCH_COUNT=1",
            "-c",
            "COPY (SELECT repeat('x', 1000) FROM generate_series(1, 2000000)) TO STDOUT",
        ])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let client = routed.client().await;
    wait_until("the result is on its way", Duration::from_secs(20), async || {
        let asked = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'ClientWrite'";
        !client.query(asked, &[]).await.unwrap().is_empty()
    })
    .await;
    for _ in 0..100 {
        client.query_one("SELECT 1", &[]).await.unwrap();
    }
    let memory = routed.memory_kib();
    assert!(memory < 200 * 1024, "the router holds {memory} KiB");
    greedy.kill().unwrap();
    greedy.wait().unwrap();
    wait_until("its link is free again", Duration::from_secs(20), async || {
        let asked = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'ClientWrite'";
        client.query(asked, &[]).await.unwrap().is_empty()
    })
    .await;
    assert!(routed.is_up());
}
