//! What TLS from files promises: every way in which a file can be of no use is told in one line that names the
//! setting and the file, and who may connect to whom is what the files say, over real sockets on loopback.

#![allow(clippy::unwrap_used, reason = "a failed assumption of a test is a failed test")]

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use antiphon_testcerts::{Authority, Good, Issued};
use antiphon_tls::{
    ClientFiles, ClientTls, Clients, File, Identity, MemberFiles, MemberTls, ServerFiles, ServerTls, Trust,
    days_left, explain,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const HOSTS: [&str; 2] = ["127.0.0.1", "localhost"];

/// A directory that is removed when it is dropped.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("antiphon-tls-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn identity(issued: &Issued) -> Identity {
    Identity {
        certificates: File::new("x.certfile", &issued.certificate),
        key: Some(File::new("x.keyfile", &issued.key)),
    }
}

fn authority(path: &Path) -> File {
    File::new("x.cafile", path)
}

fn server(issued: &Issued, clients: Clients) -> ServerFiles {
    ServerFiles { identity: identity(issued), clients }
}

fn client(issued: Option<&Issued>, trust: Trust) -> ClientTls {
    ClientTls::load(&ClientFiles { identity: issued.map(identity), trust }).unwrap()
}

/// The error with its cause, as it is shown.
fn refusal<T>(loaded: Result<T, antiphon_tls::TlsError>) -> String {
    let Err(error) = loaded else { panic!("these files are of use") };
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Connects once and has one byte come back: whether the client was certified, or why there is no connection.
async fn connect(server: &ServerTls, client: &ClientTls, host: &str) -> Result<bool, String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = server.clone();
    let accepting = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = server.accept(stream).await?;
        stream.write_all(&[7]).await?;
        stream.flush().await?;
        Ok::<_, std::io::Error>(stream.is_certified())
    });
    let dial = async {
        let mut stream = client.connect(host, TcpStream::connect(address).await?).await?;
        // In TLS 1.3 the server's verdict on the client comes after the client's handshake.
        stream.read_u8().await
    };
    let dialled = tokio::time::timeout(Duration::from_secs(10), dial).await.unwrap();
    match dialled {
        Ok(_) => Ok(accepting.await.unwrap().unwrap()),
        Err(error) => Err(explain(&error)),
    }
}

#[test]
fn every_file_of_no_use_is_named_with_its_setting_and_the_reason() {
    let dir = Dir::new();
    let (ours, theirs) = (Authority::new(&dir.0, "ours"), Authority::new(&dir.0, "theirs"));
    let (good, other) = (ours.issue("good", &HOSTS), ours.issue("other", &HOSTS));
    let load = |issued: &Issued| refusal(ServerTls::load(&server(issued, Clients::NotAsked)));

    let absent = Issued { certificate: dir.0.join("absent.crt"), key: good.key.clone() };
    let why = load(&absent);
    assert!(
        why.contains("x.certfile: ") && why.contains("absent.crt") && why.contains("No such file"),
        "{why}"
    );

    let mixed = Issued { certificate: good.certificate.clone(), key: other.key };
    let why = load(&mixed);
    assert!(why.contains("x.keyfile: ") && why.contains("other.key is not the private key"), "{why}");

    let why = load(&ours.issue_good("old", &HOSTS, Good::Before));
    assert!(why.contains("x.certfile: ") && why.contains("old.crt") && why.contains("has expired"), "{why}");

    let swapped = Issued { certificate: good.key.clone(), key: good.certificate.clone() };
    assert!(load(&swapped).contains("holds no certificate"));
    let keyless = Issued { certificate: good.certificate.clone(), key: good.certificate.clone() };
    assert!(load(&keyless).contains("holds no private key"));
    let locked = dir.0.join("locked.key");
    fs::write(&locked, "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")
        .unwrap();
    let why = load(&Issued { certificate: good.certificate.clone(), key: locked });
    assert!(why.contains("encrypted with a password") && why.contains("openssl pkey"), "{why}");
    let broken = dir.0.join("broken.crt");
    fs::write(&broken, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    assert!(
        load(&Issued { certificate: broken.clone(), key: good.key.clone() })
            .contains("broken.crt cannot be used")
    );

    let member = |issued: &Issued, file: &Path| {
        MemberTls::load(&MemberFiles { identity: identity(issued), authorities: authority(file) })
    };
    assert!(member(&good, &ours.file).is_ok());
    let why = refusal(member(&good, &theirs.file));
    assert!(why.contains("good.crt is not signed by the authority in x.cafile: "), "{why}");
    let why = refusal(member(&ours.issue_good("half", &HOSTS, Good::ForServers), &ours.file));
    assert!(why.contains("half.crt") && why.contains("clientAuth"), "{why}");
    assert!(refusal(member(&good, &broken)).contains("broken.crt"));
    let why = refusal(member(&ours.issue_good("itself", &HOSTS, Good::AsAuthority), &ours.file));
    assert!(why.contains("itself.crt") && why.contains("is an authority's own"), "{why}");
    let bundle = dir.0.join("both.pem");
    let text = [fs::read(&good.key).unwrap(), fs::read(&good.certificate).unwrap()].concat();
    fs::write(&bundle, text).unwrap();
    let one_file = Identity { certificates: File::new("x.certfile", &bundle), key: None };
    assert!(ServerTls::load(&ServerFiles { identity: one_file, clients: Clients::NotAsked }).is_ok());
}

#[test]
fn the_days_that_a_certificate_has_left_are_counted() {
    let dir = Dir::new();
    let ours = Authority::new(&dir.0, "ours");
    let days = |good| days_left(&identity(&ours.issue_good("n1", &HOSTS, good)));
    assert!(refusal(days(Good::Before)).contains("has expired"));
    assert_eq!(days(Good::ForCenturies).unwrap(), 36_500, "more is not told apart");
    let until = std::time::Duration::from_secs(10 * 24 * 3600 + 60);
    assert_eq!(days_left(&identity(&ours.issue_for("n2", &HOSTS, until))).unwrap(), 10);
}

#[tokio::test]
async fn a_client_connects_to_nobody_that_its_authorities_did_not_name() {
    let dir = Dir::new();
    let (ours, theirs) = (Authority::new(&dir.0, "ours"), Authority::new(&dir.0, "theirs"));
    let tls = ServerTls::load(&server(&ours.issue("n1", &["127.0.0.1"]), Clients::NotAsked)).unwrap();
    let trusting = |trust| client(None, trust);
    let by = |file: &Path| Trust::Authorities(authority(file));
    assert_eq!(connect(&tls, &trusting(by(&ours.file)), "127.0.0.1").await, Ok(false));
    let why = connect(&tls, &trusting(by(&theirs.file)), "127.0.0.1").await.unwrap_err();
    assert!(why.contains("not signed by an authority"), "{why}");
    let why = connect(&tls, &trusting(by(&ours.file)), "localhost").await.unwrap_err();
    assert!(why.contains("is not for localhost") && why.contains("127.0.0.1"), "{why}");
    let any_name = Trust::AnyName(authority(&ours.file));
    assert_eq!(connect(&tls, &trusting(any_name), "localhost").await, Ok(false));
    let wrong = Trust::AnyName(authority(&theirs.file));
    assert!(connect(&tls, &trusting(wrong), "localhost").await.is_err());
    assert_eq!(connect(&tls, &trusting(Trust::Anyone), "elsewhere.example").await, Ok(false));
}

#[tokio::test]
async fn a_self_signed_certificate_is_believed_by_who_was_given_it_and_by_nobody_else() {
    let dir = Dir::new();
    let own = Authority::self_signed(&dir.0, "own", &["127.0.0.1"]);
    let other = Authority::self_signed(&dir.0, "other", &["127.0.0.1"]);
    let tls = ServerTls::load(&server(&own, Clients::NotAsked)).unwrap();
    let given = |issued: &Issued| client(None, Trust::Authorities(authority(&issued.certificate)));
    assert_eq!(connect(&tls, &given(&own), "127.0.0.1").await, Ok(false));
    assert!(connect(&tls, &given(&other), "127.0.0.1").await.is_err());
    let why = connect(&tls, &given(&own), "localhost").await.unwrap_err();
    assert!(why.contains("is not for localhost"), "{why}");
}

#[tokio::test]
async fn clients_without_a_good_certificate_get_as_far_as_the_server_lets_them() {
    let dir = Dir::new();
    let (ours, theirs) = (Authority::new(&dir.0, "ours"), Authority::new(&dir.0, "theirs"));
    let (own, good, foreign) =
        (ours.issue("n1", &HOSTS), ours.issue("good", &HOSTS), theirs.issue("foreign", &HOSTS));
    let trust = || Trust::Authorities(authority(&ours.file));
    let (nobody, known, stranger) =
        (client(None, trust()), client(Some(&good), trust()), client(Some(&foreign), trust()));
    let optional = ServerTls::load(&server(&own, Clients::Optional(authority(&ours.file)))).unwrap();
    let required = ServerTls::load(&server(&own, Clients::Required(authority(&ours.file)))).unwrap();
    assert_eq!(connect(&optional, &nobody, "localhost").await, Ok(false));
    assert_eq!(connect(&optional, &known, "localhost").await, Ok(true));
    assert_eq!(connect(&required, &known, "localhost").await, Ok(true));
    let why = connect(&required, &nobody, "localhost").await.unwrap_err();
    assert!(why.contains("wants a certificate"), "{why}");
    for server in [&optional, &required] {
        let why = connect(server, &stranger, "localhost").await.unwrap_err();
        assert!(why.contains("does not trust the authority"), "{why}");
    }
}

#[tokio::test]
async fn new_files_are_used_by_new_connections_and_old_connections_live_on() {
    let dir = Dir::new();
    let (before, after) = (Authority::new(&dir.0, "before"), Authority::new(&dir.0, "after"));
    let tls = ServerTls::load(&server(&before.issue("n1", &HOSTS), Clients::NotAsked)).unwrap();
    let by = |file: &Path| client(None, Trust::Authorities(authority(file)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepting = tls.clone();
    let accepted = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        accepting.accept(stream).await.unwrap()
    });
    let mut old =
        by(&before.file).connect("localhost", TcpStream::connect(address).await.unwrap()).await.unwrap();
    let mut far = accepted.await.unwrap();

    tls.replace(&ServerTls::load(&server(&after.issue("n1", &HOSTS), Clients::NotAsked)).unwrap());
    assert_eq!(connect(&tls, &by(&after.file), "localhost").await, Ok(false));
    assert!(connect(&tls, &by(&before.file), "localhost").await.is_err());
    far.write_all(b"still here").await.unwrap();
    far.flush().await.unwrap();
    let mut heard = [0; 10];
    tokio::time::timeout(Duration::from_secs(10), old.read_exact(&mut heard)).await.unwrap().unwrap();
    assert_eq!(&heard, b"still here");
}

#[tokio::test]
async fn someone_who_speaks_no_tls_is_told_apart() {
    let dir = Dir::new();
    let ours = Authority::new(&dir.0, "ours");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let plain = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        stream
    });
    let tls = client(None, Trust::Authorities(authority(&ours.file)));
    let error = tls.connect("localhost", TcpStream::connect(address).await.unwrap()).await.unwrap_err();
    assert_eq!(explain(&error), "it does not speak TLS");
    drop(plain.await.unwrap());
}
