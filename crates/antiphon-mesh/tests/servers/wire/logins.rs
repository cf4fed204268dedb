//! Who is let in and who is believed: passwords, TLS, certificates, and which of several servers.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use antiphon_mesh::dsn::Dsn;
use antiphon_mesh::wire::{Connection, Kind, WireError};
use antiphon_testcerts::{Authority, Issued};
use tokio::net::TcpListener;

use super::connections::dsn;
use crate::support::{Server, releases};

const ROLES: &str = "
    CREATE ROLE by_scram LOGIN PASSWORD 'pencil';
    CREATE ROLE by_word LOGIN PASSWORD 'pencil';
    CREATE ROLE by_nothing LOGIN;
    CREATE ROLE by_badge LOGIN;
    CREATE ROLE sealed LOGIN PASSWORD 'pencil';
    CREATE ROLE bare LOGIN PASSWORD 'pencil';
    SET password_encryption = 'md5';
    CREATE ROLE by_md5 LOGIN PASSWORD 'pencil';
";

const HBA: &str = "
    local all all trust
    host all by_scram 127.0.0.1/32 scram-sha-256
    host all by_md5 127.0.0.1/32 md5
    host all by_word 127.0.0.1/32 password
    host all by_nothing 127.0.0.1/32 trust
    hostssl all by_badge 127.0.0.1/32 cert
    hostssl all sealed 127.0.0.1/32 scram-sha-256
    hostnossl all bare 127.0.0.1/32 scram-sha-256
";

/// A server for every way of logging in, inside TLS if `certificate` is there.
async fn server(release: Option<u32>, certificate: Option<(&Issued, &Path)>) -> Server {
    let mut server = Server::start(release);
    server.sql(ROLES).await;
    server.hba(HBA);
    if let Some((issued, authority)) = certificate {
        let files = [
            ("server.crt", issued.certificate.as_path()),
            ("server.key", issued.key.as_path()),
            ("root.crt", authority),
        ];
        for (name, path) in files {
            server.file(name, &fs::read(path).expect("a file"));
        }
        server.set("ssl", "on");
        server.set("ssl_ca_file", "root.crt");
    }
    server.stop();
    server.resume();
    server
}

/// Logs in over TCP, and says whether that is inside TLS, or why not.
async fn login(server: &Server, user: &str, more: &str) -> Result<bool, String> {
    let text =
        format!("host=localhost hostaddr=127.0.0.1 port={} dbname=postgres user={user} {more}", server.port);
    let mut connection =
        Connection::open(&dsn(&text), Kind::Sql, "test", &[]).await.map_err(|error| error.to_string())?;
    // The client library's connections go the same way.
    dsn(&text).control("test").await.map_err(|error| error.to_string())?;
    let rows = connection.query("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").await;
    Ok(rows.map_err(|error| error.to_string())? == [[Some("t".to_owned())]])
}

fn check(found: &Result<bool, String>, expected: Result<bool, &str>, what: &str) {
    match (found, expected) {
        (Ok(found), Ok(expected)) => assert_eq!(*found, expected, "{what}: inside TLS"),
        (Err(found), Err(expected)) => assert!(found.contains(expected), "{what}: {found}"),
        _ => panic!("{what}: {found:?}, expected {expected:?}"),
    }
}

#[tokio::test]
async fn a_password_is_proved_and_sent_only_where_nobody_reads_along() {
    let server = server(None, None).await;
    let in_the_clear = "it asks for the password in the clear";
    let cases: [(&str, &str, Result<bool, &str>); 14] = [
        ("by_scram", "password=pencil", Ok(false)),
        (
            "by_scram",
            "password=eraser",
            Err("FATAL 28P01: password authentication failed for user \"by_scram\""),
        ),
        ("by_scram", "", Err("neither in the connection string nor in PGPASSWORD nor in the password file")),
        ("by_scram", "password=pencil require_auth=md5,password", Err("which require_auth excludes")),
        ("by_scram", "password=pencil channel_binding=require", Err("channel_binding=require")),
        ("by_scram", "password=pencil sslmode=require", Err("it speaks no TLS (ssl = off)")),
        ("by_md5", "password=pencil", Ok(false)),
        ("by_md5", "password=eraser", Err("FATAL 28P01")),
        ("by_md5", "password=pencil require_auth=!md5", Err("it asks for MD5, which require_auth excludes")),
        ("by_word", "password=pencil", Err(in_the_clear)),
        ("by_word", "password=pencil require_auth=password", Ok(false)),
        ("by_nothing", "", Ok(false)),
        ("by_nothing", "require_auth=!none", Err("it lets us in without proof of who we are")),
        ("sealed", "password=pencil", Err("FATAL 28000: no pg_hba.conf entry")),
    ];
    for (user, more, expected) in cases {
        check(&login(&server, user, more).await, expected, &format!("{user} {more}"));
    }
    // Nobody reads along on the server's own socket, and nothing needs TLS there.
    server.hba("local all by_word password\nlocal all all trust\n");
    server.reload();
    let text = server.dsn().replace("user=postgres", "user=by_word password=pencil sslmode=verify-full");
    Connection::open(&dsn(&text), Kind::Sql, "test", &[]).await.expect("a connection");
}

#[tokio::test]
async fn inside_tls_both_ends_are_who_they_say() {
    let folder = std::env::temp_dir().join(format!("am{}-certificates", std::process::id()));
    let ours = Authority::new(&folder, "ours");
    let others = Authority::new(&folder.join("others"), "others");
    let issued = ours.issue("server", &["localhost"]);
    let badge = ours.issue("by_badge", &[]);
    let forged = others.issue("by_badge", &[]);
    let elsewhere = ours.issue("elsewhere", &["elsewhere"]);
    let root = format!("sslrootcert={}", ours.file.display());
    let full = format!("sslmode=verify-full {root}");
    let identity = |issued: &Issued| {
        format!("{full} sslcert={} sslkey={}", issued.certificate.display(), issued.key.display())
    };
    let server = server(None, Some((&issued, &ours.file))).await;
    let wrong = format!("sslmode=verify-full sslrootcert={}", others.file.display());
    let unsigned = "its certificate is not signed by an authority that is trusted here";
    let secret = "password=pencil";
    let cases = [
        ("by_scram", secret.to_owned(), Ok(true)),
        ("by_scram", format!("{secret} sslmode=disable"), Ok(false)),
        ("by_scram", format!("{secret} sslmode=allow"), Ok(false)),
        ("by_scram", format!("{secret} sslmode=require channel_binding=require"), Ok(true)),
        ("by_scram", format!("{secret} sslmode=require channel_binding=disable"), Ok(true)),
        ("by_scram", format!("{secret} {full} channel_binding=require"), Ok(true)),
        ("by_scram", format!("{secret} sslmode=verify-ca {root}"), Ok(true)),
        ("by_scram", format!("{secret} {wrong}"), Err(unsigned)),
        ("by_scram", format!("{secret} sslmode=verify-full sslrootcert=system"), Err(unsigned)),
        ("by_scram", format!("{secret} sslmode=verify-full"), Err("sslrootcert")),
        ("by_scram", "password=eraser sslmode=require".to_owned(), Err("FATAL 28P01")),
        // As libpq: a file that says whom to believe is heeded, and without TLS one goes on if one may.
        ("by_scram", format!("{secret} sslrootcert={}", others.file.display()), Ok(false)),
        (
            "by_scram",
            format!("{secret} sslmode=require sslrootcert={}", others.file.display()),
            Err(unsigned),
        ),
        ("by_word", "password=pencil sslmode=require".to_owned(), Ok(true)),
        ("by_md5", "password=pencil sslmode=require".to_owned(), Ok(true)),
        ("by_badge", identity(&badge), Ok(true)),
        ("by_badge", identity(&forged), Err("it does not trust the authority")),
        ("by_badge", full.clone(), Err("FATAL 28000")),
        ("sealed", format!("{secret} sslmode=allow"), Ok(true)),
        ("sealed", "password=eraser sslmode=allow".to_owned(), Err("FATAL 28P01")),
        ("bare", secret.to_owned(), Ok(false)),
        ("bare", format!("{secret} sslmode=require"), Err("FATAL 28000: no pg_hba.conf entry")),
    ];
    for (user, more, expected) in cases {
        check(&login(&server, user, &more).await, expected, &format!("{user} {more}"));
    }
    let elsewhere = self::server(None, Some((&elsewhere, &ours.file))).await;
    let found = login(&elsewhere, "by_scram", &format!("{secret} {full}")).await;
    check(&found, Err("its certificate is not for localhost"), "another name");
    check(
        &login(&elsewhere, "by_scram", &format!("{secret} sslmode=verify-ca {root}")).await,
        Ok(true),
        "any name",
    );
    if releases().contains(&18) {
        let newest = self::server(Some(18), Some((&issued, &ours.file))).await;
        let found = login(&newest, "by_scram", &format!("{secret} {full} sslnegotiation=direct")).await;
        check(&found, Ok(true), "TLS from the first byte on");
    }
    // As files are found that nothing names.
    let home = folder.join("home");
    fs::create_dir_all(home.join(".postgresql")).expect("a folder");
    fs::copy(&ours.file, home.join(".postgresql/root.crt")).expect("a copy");
    fs::copy(&badge.certificate, home.join(".postgresql/postgresql.crt")).expect("a copy");
    fs::copy(&badge.key, home.join(".postgresql/postgresql.key")).expect("a copy");
    let env = BTreeMap::from([("HOME".to_owned(), home.to_str().expect("a path").to_owned())]);
    let text = format!("postgresql://by_badge@localhost:{}/postgres?sslmode=verify-full", server.port);
    let dsn = Dsn::parse(&text, &env).expect("a connection string");
    Connection::open(&dsn, Kind::Sql, "test", &[]).await.expect("a connection");
    fs::remove_dir_all(&folder).expect("cleared");
}

#[tokio::test]
async fn of_several_servers_the_first_of_the_kind_is_taken() {
    let primary = Server::start(None);
    let mut standby = Server::start(None);
    standby.stop();
    standby.file("standby.signal", b"");
    standby.resume();
    let read_only = Server::start_with(None, &[("default_transaction_read_only", "on")]);
    // Nobody listens there once it is closed.
    let gone =
        TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("its number").port();
    let text = |wanted: &str, servers: &[u16]| {
        let ports: Vec<String> = servers.iter().map(u16::to_string).collect();
        let hosts = vec!["127.0.0.1"; servers.len()].join(",");
        format!("host={hosts} port={} user=postgres target_session_attrs={wanted}", ports.join(","))
    };
    let all = [gone, standby.port, read_only.port, primary.port];
    let cases = [
        ("any", &all[..], Some(standby.port)),
        ("standby", &all, Some(standby.port)),
        ("read-only", &all, Some(standby.port)),
        ("primary", &all, Some(read_only.port)),
        ("read-write", &all, Some(primary.port)),
        ("prefer-standby", &[primary.port, standby.port], Some(standby.port)),
        ("prefer-standby", &[gone, primary.port], Some(primary.port)),
        ("primary", &[gone, standby.port], None),
        ("read-write", &[read_only.port], None),
    ];
    for (wanted, servers, expected) in cases {
        let text = text(wanted, servers);
        let found = match Connection::open(&dsn(&text), Kind::Sql, "test", &[]).await {
            Ok(mut connection) => {
                let rows = connection.query("SHOW port").await.expect("a port");
                rows[0][0].as_deref().and_then(|port| port.parse().ok())
            }
            Err(_) => None,
        };
        assert_eq!(found, expected, "{text}");
    }
    let text = text("primary", &[gone, standby.port]);
    let error = Connection::open(&dsn(&text), Kind::Sql, "test", &[]).await.expect_err("none will do");
    assert_eq!(
        error.to_string(),
        format!(
            "none of 2 servers will do: could not connect to 127.0.0.1:{gone}: Connection refused (os error 111); \
             127.0.0.1:{} is a standby, and target_session_attrs asks for another",
            standby.port
        )
    );
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = silent.local_addr().expect("its number").port();
    let text = format!("host=127.0.0.1 port={port} user=u connect_timeout=1");
    let error = Connection::open(&dsn(&text), Kind::Sql, "test", &[]).await.expect_err("no answer");
    assert!(matches!(error, WireError::Timeout { .. }), "{error}");
    assert_eq!(error.to_string(), format!("127.0.0.1:{port} did not let us in within 1s"));
}
