//! The API inside TLS: who may look and who may change by `verify_client`, the command line with certificates,
//! and new certificates while a client is connected.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use antiphon::api::Access;
use antiphon::cli::{Answer, Cli, Client, Command, Failure, TargetArgs, carry_out};
use antiphon_core::ha::role::Role;
use antiphon_testcerts::{Authority, Issued};
use antiphon_tls::{ClientFiles, Clients, File, Identity, ServerFiles, ServerTls, Trust};
use clap::Parser;
use http_body_util::BodyExt;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::fixture::{Served, member, name, secret, view, with_role};

/// A directory of certificates that is removed when it is dropped.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Self(std::env::temp_dir().join(format!("antiphon-api-tls-{}-{number}", std::process::id())))
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn identity(issued: &Issued) -> Identity {
    Identity {
        certificates: File::new("restapi.certfile", &issued.certificate),
        key: Some(File::new("restapi.keyfile", &issued.key)),
    }
}

fn server(authority: &Authority, clients: Clients) -> ServerTls {
    let identity = identity(&authority.issue("n1", &["127.0.0.1"]));
    ServerTls::load(&ServerFiles { identity, clients }).expect("files of use")
}

fn authorities(path: &Path) -> File {
    File::new("restapi.cafile", path)
}

/// A client that trusts this authority.
fn client(served: &Served, authority: &Authority, issued: Option<&Issued>, signs_in: bool) -> Client {
    let trust = Trust::Authorities(authorities(&authority.file));
    let files = ClientFiles { identity: issued.map(identity), trust };
    let login = signs_in.then(secret);
    Client::trusting(&format!("https://{}", served.address), login.as_ref(), &files).expect("a client")
}

async fn change(client: &Client) -> Result<Answer, Failure> {
    let method = "PATCH".parse().expect("a method");
    client.send(method, "/config", Some(&json!({ "ttl": 40 })), None, Duration::from_secs(20)).await
}

fn asking(certificates: bool, login: bool) -> Access {
    Access { certificates, login: login.then(secret), ..Access::default() }
}

#[tokio::test]
async fn with_a_certificate_the_api_is_https_and_nothing_else() {
    let dir = Dir::new();
    let (ours, theirs) = (Authority::new(&dir.0, "ours"), Authority::new(&dir.0, "theirs"));
    let tls = server(&ours, Clients::NotAsked);
    let served = Served::covered(view("n1"), asking(false, false), Some(tls)).await;
    let trusting = client(&served, &ours, None, false);
    assert_eq!(trusting.get("/primary").await.expect("an answer").status, 200);
    assert_eq!(change(&trusting).await.expect("an answer").status, 200);
    let plain = Client::new(&format!("http://{}", served.address), None).expect("a URL");
    assert!(matches!(plain.get("/primary").await, Err(Failure::Unreachable { .. })));
    let doubting =
        client(&served, &theirs, None, false).get("/primary").await.expect_err("another authority");
    assert!(doubting.to_string().contains("not signed by an authority that is trusted here"), "{doubting}");
}

#[tokio::test]
async fn with_verify_client_optional_a_certificate_is_needed_to_change_and_not_to_look() {
    let dir = Dir::new();
    let ours = Authority::new(&dir.0, "ours");
    let admin = ours.issue("admin", &["admin"]);
    let tls = || Some(server(&ours, Clients::Optional(authorities(&ours.file))));
    let served = Served::covered(view("n1"), asking(true, false), tls()).await;
    let anyone = client(&served, &ours, None, false);
    for path in ["/primary", "/patroni", "/cluster", "/metrics", "/config"] {
        assert_eq!(anyone.get(path).await.expect("an answer").status, 200, "{path}");
    }
    let refused = change(&anyone).await.expect("an answer");
    assert_eq!((refused.status, refused.text.as_str()), (403, "client certificate required"));
    assert_eq!(change(&client(&served, &ours, Some(&admin), false)).await.expect("an answer").status, 200);

    // A certificate does not stand for the password.
    let served = Served::covered(view("n1"), asking(true, true), tls()).await;
    let certified = |signs_in| client(&served, &ours, Some(&admin), signs_in);
    assert_eq!(change(&certified(false)).await.expect("an answer").status, 401);
    assert_eq!(change(&certified(true)).await.expect("an answer").status, 200);
    assert_eq!(change(&client(&served, &ours, None, true)).await.expect("an answer").status, 403);
}

#[tokio::test]
async fn with_verify_client_required_nobody_gets_in_without_a_good_certificate() {
    let dir = Dir::new();
    let (ours, theirs) = (Authority::new(&dir.0, "ours"), Authority::new(&dir.0, "theirs"));
    let (admin, stranger) = (ours.issue("admin", &["admin"]), theirs.issue("stranger", &["stranger"]));
    let tls = server(&ours, Clients::Required(authorities(&ours.file)));
    let served = Served::covered(view("n1"), asking(true, false), Some(tls)).await;
    assert_eq!(
        client(&served, &ours, Some(&admin), false).get("/primary").await.expect("an answer").status,
        200
    );
    assert_eq!(change(&client(&served, &ours, Some(&admin), false)).await.expect("an answer").status, 200);
    let nobody = client(&served, &ours, None, false);
    let failure = nobody.get("/primary").await.expect_err("no certificate");
    assert!(failure.to_string().contains("wants a certificate"), "{failure}");
    // Known not to have been carried out: not an outcome that is unknown.
    assert_eq!(change(&nobody).await.expect_err("no certificate").code(), 3);
    let failure = change(&client(&served, &ours, Some(&stranger), false)).await.expect_err("a stranger");
    assert_eq!(failure.code(), 3, "{failure}");
    assert!(failure.to_string().contains("does not trust the authority"), "{failure}");
}

#[tokio::test]
async fn the_command_line_speaks_tls_to_every_member_that_it_is_told_of() {
    let dir = Dir::new();
    let (ours, theirs) = (Authority::new(&dir.0, "ours"), Authority::new(&dir.0, "theirs"));
    let admin = ours.issue("admin", &["admin"]);
    let tls = server(&ours, Clients::Required(authorities(&ours.file)));
    let served = Served::covered(view("n1"), asking(true, false), Some(tls)).await;
    let url = format!("https://{}", served.address);
    let mut told = view("n1");
    let mut world = (*told.world).clone();
    for (who, port) in [("n1", 5001), ("n2", 5002)] {
        let record = world.store.members.get_mut(&name(who)).expect("a member");
        record.value = member(who, port);
        record.value.api_url = format!("{url}/patroni");
    }
    told.world = Arc::new(world);
    served.view.send_replace(Arc::new(told));
    let target = |authority: &Authority, issued: Option<&Issued>| TargetArgs {
        url: Some(url.clone()),
        cacert: Some(authority.file.clone()),
        cert: issued.map(|issued| issued.certificate.clone()),
        key: issued.map(|issued| issued.key.clone()),
        ..TargetArgs::default()
    };
    let run = async |target: TargetArgs, words: &[&str]| {
        let parsed = Cli::try_parse_from(["antiphon"].iter().chain(words)).expect("a command");
        let Command::Client(command) = parsed.command else { panic!("a verb") };
        carry_out(&target, command).await
    };
    run(target(&ours, Some(&admin)), &["list"]).await.expect("a list");
    // Asks the member itself, by the address that the first one told.
    run(target(&ours, Some(&admin)), &["explain", "n2"]).await.expect("an explanation");
    assert_eq!(run(target(&ours, None), &["list"]).await.expect_err("no certificate").code(), 3);
    assert_eq!(run(target(&theirs, Some(&admin)), &["list"]).await.expect_err("a doubt").code(), 3);
    let insecure = TargetArgs { insecure: true, ..target(&theirs, Some(&admin)) };
    run(insecure, &["list"]).await.expect("a list, whoever gave it");
    let missing = TargetArgs { cacert: Some(dir.0.join("absent.crt")), ..target(&ours, Some(&admin)) };
    let failure = run(missing, &["list"]).await.expect_err("no such file");
    assert_eq!(failure.code(), 2);
    assert!(
        failure.to_string().contains("--cacert: ") && failure.to_string().contains("absent.crt"),
        "{failure}"
    );
}

#[tokio::test]
async fn new_certificates_are_shown_to_new_clients_while_old_ones_stay_connected() {
    let dir = Dir::new();
    let (before, after) = (Authority::new(&dir.0, "before"), Authority::new(&dir.0, "after"));
    let tls = server(&before, Clients::NotAsked);
    let served = Served::covered(view("n1"), asking(false, false), Some(tls.clone())).await;
    let mut events = client(&served, &before, None, false).open("/events").await.expect("events").into_body();
    let first = tokio::time::timeout(Duration::from_secs(10), events.frame()).await.expect("in time");
    assert!(first.is_some());

    tls.replace(&server(&after, Clients::NotAsked));
    assert_eq!(client(&served, &after, None, false).get("/primary").await.expect("an answer").status, 200);
    assert!(client(&served, &before, None, false).get("/primary").await.is_err());
    served.view.send_replace(Arc::new(with_role(view("n1"), Role::Follower { upstream: name("n2") })));
    let changed = super::fixture::changed(view("n1"), |world| world.settings.pause = true);
    served.view.send_replace(Arc::new(changed));
    let pushed = tokio::time::timeout(Duration::from_secs(10), events.frame()).await.expect("in time");
    assert!(pushed.is_some_and(|frame| frame.is_ok()), "the old connection goes on");
}

#[tokio::test]
async fn a_client_that_never_ends_its_handshake_is_closed() {
    let dir = Dir::new();
    let ours = Authority::new(&dir.0, "ours");
    let tls = server(&ours, Clients::NotAsked);
    let served = Served::covered(view("n1"), asking(false, false), Some(tls)).await;
    let mut silent = TcpStream::connect(served.address).await.expect("a connection");
    let mut buffer = [0; 64];
    let closed = tokio::time::timeout(Duration::from_secs(15), silent.read(&mut buffer)).await;
    assert!(matches!(closed.expect("closed in time"), Ok(0) | Err(_)));
}
