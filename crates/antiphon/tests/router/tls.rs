//! TLS before and behind the router: who is let in, what a login is bound to, who is believed, and that nothing in
//! the clear passes for something that was said inside.

use std::time::Duration;

use antiphon_testcerts::{Authority, Issued};
use antiphon_tls::{ClientFiles, ClientTls, Clients, File, Identity, ServerFiles, ServerTls, Stream};
use futures_util::{SinkExt, TryStreamExt, pin_mut};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::support::{Another, Certificates, Routed, UP_WITHIN, agents, dir_of, start_cluster, wait_until};

/// What the server says if the router speaks TLS to it.
const SECURE: &str = "inside TLS: true";
/// A question for TLS, and one for GSS encryption.
const TLS: [u8; 8] = [0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f];
const GSS: [u8; 8] = [0, 0, 0, 8, 4, 0xd2, 0x16, 0x30];

fn path(of: &std::path::Path) -> &str {
    of.to_str().unwrap()
}

/// Sees that `psql` with each of these variables is told what stands behind them.
async fn see(router: &Another, cases: &[(&[(&str, &str)], &str)]) {
    for (variables, wanted) in cases {
        let told = router.wait_for_psql(variables).await;
        assert!(told.contains(wanted), "{variables:?}: {told}\n{}", router.log());
    }
}

#[tokio::test]
async fn clients_are_let_in_as_the_file_says() {
    let routed = Routed::start_secure("modes", 1, "  admin_users: postgres\n").await;
    let certificates = routed.certificates();
    let (ca, servers) = (path(&certificates.authority.file), certificates.of_servers());
    let dir = dir_of("modes").join("clients");
    let (people, strangers) = (Authority::new(&dir, "people"), Authority::new(&dir, "strangers"));
    let (anna, eve) = (people.issue("anna", &["anna"]), strangers.issue("eve", &["eve"]));

    let _client = routed.client().await;
    for show in ["SHOW CLIENTS", "SHOW SERVERS"] {
        let told = routed.succeed("psql", &["-d", "pgbouncer", "-Atc", show]);
        assert!(told.contains("|TLSv1.3/TLS13_AES_"), "{show}: {told}");
    }
    let required = routed.another("required", &(certificates.of_clients("require") + &servers));
    let cases: [(&[_], _); 6] = [
        (&[("PGSSLMODE", "require")], SECURE),
        (&[("PGSSLMODE", "require"), ("PGCHANNELBINDING", "require")], SECURE),
        (&[("PGSSLMODE", "require"), ("PGCHANNELBINDING", "disable")], SECURE),
        (&[("PGSSLMODE", "verify-full"), ("PGSSLROOTCERT", ca)], SECURE),
        (&[("PGSSLMODE", "verify-full"), ("PGSSLROOTCERT", path(&people.file))], "certificate verify failed"),
        (&[("PGSSLMODE", "disable")], "FATAL:  TLS required"),
    ];
    see(&required, &cases).await;
    drop(required);

    let preferred = routed.another("preferred", &(certificates.of_clients("prefer") + &servers));
    let bound = [("PGSSLMODE", "require"), ("PGCHANNELBINDING", "require")];
    see(&preferred, &[(&bound, SECURE), (&[("PGSSLMODE", "disable")], SECURE)]).await;
    drop(preferred);

    let none = routed.another("none", &servers);
    let refused = "server does not support SSL";
    see(&none, &[(&bound, refused), (&[("PGSSLMODE", "prefer")], SECURE)]).await;
    drop(none);

    let file = format!("  client_tls_ca_file: {}\n", path(&people.file));
    let verified = routed.another("verified", &(certificates.of_clients("verify-ca") + &file + &servers));
    let with = |issued: &Issued| {
        let files = [("PGSSLCERT", &issued.certificate), ("PGSSLKEY", &issued.key)];
        let files = files.map(|(name, file)| (name, path(file).to_owned()));
        [("PGSSLMODE", "require".to_owned()), files[0].clone(), files[1].clone()]
    };
    let (anna, eve) = (with(&anna), with(&eve));
    let [anna, eve] = [&anna, &eve].map(|one| one.each_ref().map(|(name, value)| (*name, value.as_str())));
    let cases: [(&[_], _); 4] = [
        (&anna, SECURE),
        (&eve, "unknown ca"),
        (&[("PGSSLMODE", "require")], "certificate required"),
        (&[("PGSSLMODE", "disable")], "TLS required"),
    ];
    see(&verified, &cases).await;
    assert!(verified.log().contains("it gave no certificate, and one is required"), "{}", verified.log());
}

#[tokio::test]
async fn servers_are_believed_as_the_file_says() {
    let routed = Routed::start_secure("believed", 1, "").await;
    let others = Authority::new(&dir_of("believed").join("others"), "others");
    let wrong = format!("  server_tls_sslmode: verify-ca\n  server_tls_ca_file: {}\n", path(&others.file));
    let refused = "its certificate is not signed by an authority that is trusted here";
    for (name, more, wanted) in [
        ("unasked", String::new(), SECURE),
        ("disabled", "  server_tls_sslmode: disable\n".to_owned(), "inside TLS: false"),
        ("unverified", "  server_tls_sslmode: require\n".to_owned(), SECURE),
        ("by-name", routed.certificates().of_servers(), SECURE),
        ("doubted", wrong.clone(), refused),
        // Here it is not the question for the verifier that fails.
        ("doubted-later", format!("  auth_type: trust\n{wrong}"), refused),
    ] {
        see(&routed.another(name, &more), &[(&[("PGSSLMODE", "disable")], wanted)]).await;
    }
    // With reads on followers, the router's own connections are many.
    let client = routed.client().await;
    let reads = format!("  read_from: followers\n{}", routed.certificates().of_servers());
    let reads = routed.another("reads", &reads);
    let count = async |how: &str| {
        let asked = format!(
            "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'antiphon router' AND {how}"
        );
        client.query_one(&asked, &[]).await.unwrap().get::<_, i64>(0)
    };
    see(&reads, &[(&[("PGSSLMODE", "disable")], SECURE)]).await;
    wait_until("servers are sampled inside TLS only", UP_WITHIN, async || {
        count("ssl").await > 2 && count("NOT ssl").await == 0
    })
    .await;
}

#[tokio::test]
async fn a_server_without_tls_is_spoken_to_in_the_clear_unless_that_is_forbidden() {
    let routed = Routed::start("clear", 1, "").await;
    let disable = &[("PGSSLMODE", "disable")][..];
    see(&routed.another("asked", ""), &[(disable, "inside TLS: false")]).await;
    let strict = "  server_tls_sslmode: require\n";
    see(&routed.another("strict", strict), &[(disable, "server does not support TLS")]).await;
    let trusting = format!("  auth_type: trust\n{strict}");
    see(&routed.another("trusting", &trusting), &[(disable, "it speaks no TLS")]).await;
}

/// A member's API inside TLS, which calls every server by another name.
async fn relay(tls: ServerTls, api_port: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tls = tls.clone();
            tokio::spawn(async move {
                let Ok(stream) = tls.accept(stream).await else { return };
                let (mut asks, mut told) = tokio::io::split(stream);
                let Ok(api) = TcpStream::connect(("127.0.0.1", api_port)).await else { return };
                let (says, mut asked) = api.into_split();
                tokio::spawn(async move { tokio::io::copy(&mut asks, &mut asked).await });
                let mut lines = BufReader::new(says).split(b'\n');
                while let Ok(Some(line)) = lines.next_segment().await {
                    let line =
                        String::from_utf8_lossy(&line).replace("\"127.0.0.1\"", "\"localhost\"") + "\n";
                    if told.write_all(line.as_bytes()).await.is_err() || told.flush().await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

// The relay goes on while a program of PostgreSQL is waited for.
#[tokio::test(flavor = "multi_thread")]
async fn agents_are_followed_inside_tls_and_servers_known_by_the_name_they_are_told_by() {
    let dir = dir_of("agents");
    let certificates = Certificates::new(&dir, &["localhost"]);
    let cluster = start_cluster(&dir, 1, Some(&certificates)).await;
    let api = certificates.authority.issue("api", &["127.0.0.1"]);
    let identity = Identity {
        certificates: File::new("certfile", &api.certificate),
        key: Some(File::new("keyfile", &api.key)),
    };
    let tls = ServerTls::load(&ServerFiles { identity, clients: Clients::NotAsked }).unwrap();
    let relayed = format!("\"127.0.0.1:{}\"", relay(tls, cluster.nodes[0].api_port).await);
    let ca = certificates.authority.file.display();
    let trusting = format!("  agents_tls: {{cacert: {ca}}}\n{}", certificates.of_servers());
    let disable = &[("PGSSLMODE", "disable")][..];

    let named = Another::start(&dir, "named", &relayed, &trusting);
    see(&named, &[(disable, SECURE)]).await;
    let unnamed = Another::start(&dir, "unnamed", &agents(&cluster), &certificates.of_servers());
    see(&unnamed, &[(disable, "its certificate is not for 127.0.0.1")]).await;

    let others = Authority::new(&dir.join("others"), "others");
    let doubting = format!("  agents_tls: {{cacert: {}}}\n", others.file.display());
    for (name, more, wanted) in [
        ("doubting", doubting.as_str(), "its certificate is not signed by an authority that is trusted here"),
        ("clear", "", "it speaks TLS, and is asked in the clear"),
    ] {
        let router = Another::start(&dir, name, &relayed, more);
        wait_until("its log says why it follows nobody", UP_WITHIN, async || router.log().contains(wanted))
            .await;
    }
    drop(cluster);
    std::fs::remove_dir_all(dir).unwrap();
}

/// A packet that asks for a session.
fn start_packet() -> Vec<u8> {
    let body = b"\0\x03\0\0user\0postgres\0database\0postgres\0\0";
    let mut packet = (u32::try_from(body.len()).unwrap() + 4).to_be_bytes().to_vec();
    packet.extend(body);
    packet
}

/// Everything that comes until the router closes.
async fn rest(mut stream: impl AsyncReadExt + Unpin) -> String {
    let mut answer = Vec::new();
    // A reset after the answer ends it as well.
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await;
    assert!(read.is_ok(), "the router does not close: {}", String::from_utf8_lossy(&answer));
    String::from_utf8_lossy(&answer).into_owned()
}

async fn connect(router: &Another) -> TcpStream {
    let mut stream = None;
    wait_until("the router listens", UP_WITHIN, async || {
        stream = TcpStream::connect(("127.0.0.1", router.port)).await.ok();
        stream.is_some()
    })
    .await;
    stream.unwrap()
}

/// A connection inside TLS; `asked`: TLS was asked for first.
async fn inside(router: &Another, tls: &ClientTls, asked: bool) -> Stream {
    let mut stream = connect(router).await;
    if asked {
        stream.write_all(&TLS).await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'S');
    }
    tls.connect("127.0.0.1", stream).await.unwrap()
}

#[tokio::test]
async fn nothing_in_the_clear_passes_for_something_said_inside_tls() {
    let dir = dir_of("injected");
    let certificates = Certificates::new(&dir, &["127.0.0.1"]);
    // Nobody is there to follow: all of this happens before anybody is needed.
    let section = certificates.of_clients("require");
    let router = Another::start(&dir, "router", "\"127.0.0.1:9\"", &section);
    let files = ClientFiles { identity: None, trust: certificates.trust() };
    let plain = ClientTls::load(&files).unwrap();

    // Behind the question, in the same packet.
    for behind in [start_packet(), vec![0x16, 3, 1, 0, 5], vec![b'x']] {
        let mut stream = connect(&router).await;
        stream.write_all(&[&TLS[..], &behind].concat()).await.unwrap();
        let told = rest(stream).await;
        assert!(told.starts_with('E') && told.contains("C08P01\0"), "{told}");
        assert!(told.contains("received unencrypted data after the request for TLS"), "{told}");
    }
    // Behind the answer: it is no TLS.
    let mut stream = connect(&router).await;
    stream.write_all(&[&GSS[..], &TLS[..]].concat()).await.unwrap();
    let mut answers = [0; 2];
    stream.read_exact(&mut answers).await.unwrap();
    assert_eq!(&answers, b"NS");
    stream.write_all(&start_packet()).await.unwrap();
    assert!(!rest(stream).await.contains("postgres"));
    // Without TLS, and asking for it inside.
    let mut stream = connect(&router).await;
    stream.write_all(&start_packet()).await.unwrap();
    assert!(rest(stream).await.contains("C28000\0MTLS required\0"));
    let mut stream = inside(&router, &plain, true).await;
    stream.write_all(&TLS).await.unwrap();
    stream.flush().await.unwrap();
    assert!(rest(stream).await.contains("C08P01\0"));
    // TLS that begins by itself has to say what it carries.
    let mut stream = inside(&router, &plain, false).await;
    stream.write_all(&start_packet()).await.unwrap();
    stream.flush().await.unwrap();
    let told = rest(stream).await;
    assert!(told.contains("C08P01\0") && told.contains("ALPN"), "{told}");
    // Cut off in the middle of anything, it harms nobody.
    for bytes in [&TLS[..3], &TLS[..], &[0x16][..], &[0x16, 3, 1, 2, 0, 1][..], &[0x16; 4096][..]] {
        connect(&router).await.write_all(bytes).await.unwrap();
    }
    connect(&router).await;
    drop(router);
    std::fs::remove_dir_all(dir).unwrap();
}

/// Reads one message: its kind and its body.
async fn message(stream: &mut Stream) -> (u8, Vec<u8>) {
    let kind = stream.read_u8().await.unwrap();
    let length = stream.read_u32().await.unwrap() as usize;
    let mut body = vec![0; length - 4];
    stream.read_exact(&mut body).await.unwrap();
    (kind, body)
}

#[tokio::test]
async fn tls_may_begin_by_itself_and_no_offer_to_bind_a_login_to_it_is_taken_away() {
    let routed = Routed::start_secure("direct", 1, "").await;
    let certificates = routed.certificates();
    let section = certificates.of_clients("require") + &certificates.of_servers();
    let router = routed.another("more", &section);
    let files = ClientFiles { identity: None, trust: certificates.trust() };
    let tls = ClientTls::load(&files).unwrap().for_postgresql();
    for (asked, mechanism, first, wanted) in [
        // The client believes that nothing was offered: somebody has changed the offer.
        (false, "SCRAM-SHA-256", "y,,n=,r=abc", "C28000\0MSCRAM channel binding negotiation error\0"),
        (true, "SCRAM-SHA-256", "p=tls-server-end-point,,n=,r=abc", "C08P01\0"),
        (true, "SCRAM-SHA-256-PLUS", "n,,n=,r=abc", "C08P01\0"),
        (false, "SCRAM-SHA-1", "n,,n=,r=abc", "C08P01\0"),
    ] {
        let mut stream = inside(&router, &tls, asked).await;
        stream.write_all(&start_packet()).await.unwrap();
        stream.flush().await.unwrap();
        let (kind, body) = message(&mut stream).await;
        assert_eq!((kind, &body[4..]), (b'R', &b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"[..]));
        let mut body = [mechanism.as_bytes(), b"\0"].concat();
        body.extend(u32::try_from(first.len()).unwrap().to_be_bytes());
        body.extend(first.as_bytes());
        let length = u32::try_from(body.len()).unwrap() + 4;
        let answer = [&b"p"[..], &length.to_be_bytes(), &body].concat();
        stream.write_all(&answer).await.unwrap();
        stream.flush().await.unwrap();
        let told = rest(stream).await;
        assert!(told.contains(wanted), "{mechanism} {first}: {told}");
    }
}

#[tokio::test]
async fn fifty_megabytes_pass_both_ways_inside_tls_and_wait_where_they_come_from() {
    const MOST_KIB: u64 = 30 * 1024;
    let routed = Routed::start_secure("bulk", 1, "  threads: 1\n").await;
    let (client, other) = (routed.client().await, routed.client().await);
    client
        .batch_execute(
            "CREATE TABLE bulk (n int, t text);
             CREATE FUNCTION waits() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN IF NEW.n = 100 THEN PERFORM pg_sleep(2); END IF; RETURN NEW; END $$;
             CREATE TRIGGER waits BEFORE INSERT ON bulk FOR EACH ROW EXECUTE FUNCTION waits()",
        )
        .await
        .unwrap();
    let row = |n: u32| {
        let letters = (0..1000).map(|at| char::from(b'a' + ((n + at * 7) % 26) as u8));
        format!("{n}\t{}\n", letters.collect::<String>())
    };
    let rows: String = (0..50_000).map(row).collect();
    let before = routed.memory_kib();
    // Into a server that does not take it for a while.
    let sink = client.copy_in::<_, bytes::Bytes>("COPY bulk FROM STDIN").await.unwrap();
    let all = bytes::Bytes::from(rows);
    let parts = all.clone();
    let sending = tokio::spawn(async move {
        pin_mut!(sink);
        for at in (0..parts.len()).step_by(100_000) {
            sink.feed(parts.slice(at..parts.len().min(at + 100_000))).await.unwrap();
        }
        sink.finish().await.unwrap()
    });
    let mut most = 0;
    wait_until("all of it is there", UP_WITHIN, async || {
        most = most.max(routed.memory_kib());
        sending.is_finished()
    })
    .await;
    assert_eq!(sending.await.unwrap(), 50_000);
    assert!(most < before + MOST_KIB, "{before} KiB before, {most} KiB meanwhile");
    // To a client that does not take it for a while.
    let stream = client.copy_out("COPY bulk TO STDOUT").await.unwrap();
    wait_until("the server waits", UP_WITHIN, async || {
        let asked = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'ClientWrite'";
        !other.query(asked, &[]).await.unwrap().is_empty()
    })
    .await;
    let held = routed.memory_kib();
    assert!(held < before + MOST_KIB, "{before} KiB before, {held} KiB meanwhile");
    let read: Vec<bytes::Bytes> = stream.try_collect().await.unwrap();
    assert!(read.concat() == all, "{} bytes in {} parts came back", read.concat().len(), read.len());
}

#[tokio::test]
async fn an_idle_client_inside_tls_costs_no_more_than_20_kib() {
    const CLIENTS: u64 = 300;
    let routed = Routed::start_secure("idle", 1, "").await;
    let mut clients = Vec::new();
    let mut before = 0;
    for number in 0..CLIENTS + 50 {
        let client = routed.client().await;
        client.query_one("SELECT repeat('x', 20000)", &[]).await.unwrap();
        clients.push(client);
        if number == 49 {
            before = routed.memory_kib();
        }
    }
    let each = routed.memory_kib().saturating_sub(before) * 1024 / CLIENTS;
    eprintln!("an idle client inside TLS costs {each} bytes");
    assert!(each <= 20 * 1024, "an idle client inside TLS costs {each} bytes");
}
