//! Other ways in: a cancel request that comes to another router, and a socket that systemd listens at.

use std::net::TcpListener;
use std::process::{Command, Stdio};

use tokio::net::TcpStream;
use tokio_postgres::NoTls;

use super::reads::ask;
use super::support::{Routed, UP_WITHIN, client_program, code, wait_until};

#[tokio::test]
async fn a_cancel_request_that_comes_to_another_router_reaches_its_client() {
    let routed = Routed::start("peers", 1, "").await;
    let others = format!("  peers: ['127.0.0.1:{}', '127.0.0.1:1']\n", routed.port);
    // Fewer threads than the client's number may name.
    let other = routed.another("peer", &format!("{others}  threads: 1\n"));
    other.wait_for_client().await;
    for _ in 0..8 {
        let client = routed.client().await;
        let token = client.cancel_token();
        let sleeps = tokio::spawn(async move {
            let told = client.batch_execute("SELECT pg_sleep(60)").await;
            (client, told)
        });
        wait_until("it is cancelled", UP_WITHIN, async || {
            let stream = TcpStream::connect(("127.0.0.1", other.port)).await.unwrap();
            token.cancel_query_raw(stream, NoTls).await.unwrap();
            sleeps.is_finished()
        })
        .await;
        let (client, told) = sleeps.await.unwrap();
        assert_eq!(code(&told.unwrap_err()), "57014");
        // Requests that were on their way may hit what comes next.
        wait_until("the session goes on", UP_WITHIN, async || client.batch_execute("SELECT 1").await.is_ok())
            .await;
    }
    // A stranger's is nobody's, and goes round no ring.
    let client = other.wait_for_client().await;
    assert_eq!(ask(&client, "SELECT 1").await, "1");
}

#[tokio::test]
async fn a_socket_that_systemd_listens_at_is_taken_over_and_outlives_the_router() {
    let routed = Routed::start("socket", 1, "").await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let file = routed.dir().join("router.yml");
    // As systemd does it: the socket is descriptor 3, and the variables name the process that it is for.
    let start = || {
        let script = "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" run \"$1\"";
        let log = std::fs::File::create(routed.dir().join("socket.log")).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", script, env!("CARGO_BIN_EXE_antiphon")]).arg(&file);
        command.stdin(Stdio::from(std::os::fd::OwnedFd::from(listener.try_clone().unwrap())));
        command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    };
    let log = || std::fs::read_to_string(routed.dir().join("socket.log")).unwrap_or_default();
    let ask = || {
        let mut command = client_program("psql", port);
        command.env("PGCONNECT_TIMEOUT", "60").args(["-AtXc", "SELECT 'served'"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut first = start();
    let told = ask().wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&told.stdout).trim(), "served", "{told:?}{}", log());
    assert!(log().contains("routing at sockets that systemd has handed over"), "{}", log());
    first.kill().unwrap();
    first.wait().unwrap();
    // Who comes while no router runs waits for the next one.
    let mut early = ask();
    let mut second = start();
    wait_until("whoever came early is served", UP_WITHIN, async || early.try_wait().unwrap().is_some()).await;
    let told = early.wait_with_output().unwrap();
    second.kill().unwrap();
    second.wait().unwrap();
    assert_eq!(String::from_utf8_lossy(&told.stdout).trim(), "served", "{told:?}{}", log());
}
