//! What a connection string says, in both of its forms, and what it is refused for.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::{Dsn, DsnError, Host, Place, SslMode, Target};

fn parse(text: &str) -> Result<Dsn, DsnError> {
    Dsn::parse(text, &BTreeMap::new())
}

fn with_env(text: &str, env: &[(&str, &str)]) -> Dsn {
    let env = env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Dsn::parse(text, &env).expect(text)
}

fn network(name: &str, port: u16) -> Host {
    Host { place: Place::Network { name: name.into(), address: None }, port }
}

#[test]
fn both_forms_say_the_same() {
    let pairs = [
        ("host=a user=u", "postgresql://u@a"),
        ("host=a,b port=1,2 user=u dbname=d", "postgres://u@a:1,b:2/d"),
        ("host='a' port = 77 user=u password='it\\'s \\\\'", "postgresql://u:it%27s%20%5C@a:77"),
        ("host=::1 port=5 user=u sslmode=require", "postgresql://u@[::1]:5/?ssl=true"),
        ("host=/tmp/x user=u dbname=d", "postgresql:///d?host=/tmp/x&user=u"),
        ("host=/tmp/x user=u", "postgresql://u@%2Ftmp%2Fx"),
        ("host=a user=u\\ v application_name='any thing'", "postgresql://u%20v@a?application_name=x"),
        (
            "host=a user=u sslmode=verify-full sslrootcert=/r",
            "postgresql://u@a?sslmode=verify-full&sslrootcert=/r",
        ),
    ];
    for (keywords, uri) in pairs {
        assert_eq!(parse(keywords).expect(keywords), parse(uri).expect(uri), "{uri}");
    }
    let dsn = parse("host=a,/s,c port=,7,8 user=u").expect("sound");
    assert_eq!(
        dsn.hosts,
        [network("a", 5432), Host { place: Place::Folder(PathBuf::from("/s")), port: 7 }, network("c", 8)]
    );
    assert_eq!(dsn.to_string(), "postgresql://u@a:5432,/s:7,c:8/u");
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let cases = [
        ("host=a user", "the connection string is malformed: there is no \"=\" after \"user\""),
        (
            "host=a user='u",
            "the connection string is malformed: the quote that begins the value of \"user\" does not end",
        ),
        ("user=u", "the connection string names no host; add host=…"),
        ("host=a", "the connection string names no user; add user=…"),
        ("host=a, user=u", "the connection string names no host; add host=…"),
        ("host=a user=u port=0", "the connection string has port=0: expected a number from 1 to 65535"),
        (
            "host=a user=u port=1,2",
            "the connection string has port=1,2: expected one, or as many as there are hosts",
        ),
        ("host=a user=u hostaddr=b", "the connection string has hostaddr=b: expected an IP address"),
        (
            "host=a user=u sslcrl=/x",
            "the connection string has the key sslcrl, which is not supported; leave it out",
        ),
        (
            "host=a user=u sslmode=require sslrootcert=system",
            "the connection string has sslmode=require: sslrootcert=system needs verify-full",
        ),
        (
            "host=a user=u sslnegotiation=direct",
            "the connection string has sslnegotiation=direct: it needs sslmode=require or a stricter one",
        ),
        (
            "host=a user=u require_auth=md5,!password",
            "the connection string has require_auth=md5,!password: expected methods all with ! before them or none",
        ),
        (
            "postgresql://u@[::1/d",
            "the connection string is malformed: \"[::1\" is no address in brackets with a port behind",
        ),
        (
            "postgresql://u@a/d%0",
            "the connection string is malformed: a \"%\" is not followed by two hexadecimal digits of a byte",
        ),
    ];
    for (text, complaint) in cases {
        assert_eq!(parse(text).expect_err(text).to_string(), complaint, "{text}");
    }
}

#[test]
fn every_value_can_be_said_in_both_forms() {
    let mut state = 1_u32;
    let mut random = |limit: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % limit
    };
    for _ in 0..2_000 {
        let characters = ['a', '\'', '\\', ' ', '=', '%', '@', ':', '/', '?', '&', ',', 'é', '\n'];
        let value: String = (0..=random(8)).map(|_| characters[random(14) as usize]).collect();
        let quoted: String = value.chars().flat_map(|c| ['\\', c]).collect();
        let encoded: String = value.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let keywords =
            parse(&format!("host=a user='{quoted}' password={quoted} dbname={quoted}")).expect(&value);
        let uri = parse(&format!("postgres://{encoded}:{encoded}@a/{encoded}")).expect(&value);
        assert_eq!(keywords, uri, "{value:?}");
        assert_eq!((keywords.user(), keywords.database()), (&value[..], &value[..]));
        // Anything else is refused or read, and nothing more.
        let _ = parse(&value);
        let _ = parse(&format!("postgres://{value}"));
    }
}

#[test]
fn the_environment_says_what_the_string_does_not() {
    let env = [
        ("PGHOST", "h"),
        ("PGUSER", "u"),
        ("PGDATABASE", "d"),
        ("PGPASSWORD", "p"),
        ("PGSSLMODE", "disable"),
        ("PGTARGETSESSIONATTRS", "primary"),
    ];
    let dsn = with_env("user=v", &env);
    assert_eq!((dsn.user(), dsn.database(), &dsn.hosts[..]), ("v", "d", &[network("h", 5432)][..]));
    assert_eq!((dsn.ssl_mode, dsn.target), (SslMode::Disable, Target::Primary));
    assert_eq!(dsn.password(&dsn.hosts[0]).as_deref(), Some("p"));
    assert_eq!(with_env("password=q", &env).password(&dsn.hosts[0]).as_deref(), Some("q"));
    assert_eq!(dsn.with_database("e").database(), "e");
}

#[test]
fn no_password_is_shown() {
    for text in ["host=a user=u password=hush", "postgresql://u:hush@a/d"] {
        let dsn = parse(text).expect(text);
        assert!(!format!("{dsn} {dsn:?} {dsn:#?}").contains("hush"));
    }
}

#[test]
fn the_first_line_of_a_password_file_that_fits_counts_if_nobody_else_may_read_it() {
    let folder = std::env::temp_dir().join(format!("antiphon-passfile-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join(".pgpass");
    let lines = "# a:5432:d:u:comment\na:5433:*:u:other port\n*:*:d:someone:other user\na:5432:d:u:a\\:b\\\\c:d\n\
                 \\*:*:*:*:asterisk\nlocalhost:*:*:u:local\nshort:line\n/s:*:*:*:socket\n::*:*:u:v6\n";
    fs::write(&file, lines).expect("a file");
    let home = folder.to_str().expect("a path");
    let password = |text: &str| {
        let dsn = with_env(text, &[("HOME", home)]);
        dsn.password(&dsn.hosts[0])
    };
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("a mode");
    assert_eq!(password("host=a dbname=d user=u"), None);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("a mode");
    assert_eq!(password("host=a dbname=d user=u").as_deref(), Some("a:b\\c:d"));
    assert_eq!(password("host=a dbname=d user=u password=said").as_deref(), Some("said"));
    assert_eq!(password("host=b dbname=d user=u"), None);
    assert_eq!(password("host=/tmp dbname=d user=u").as_deref(), Some("local"));
    assert_eq!(password("host=/s dbname=d user=u").as_deref(), Some("socket"));
    let named = format!("host=a dbname=d user=u passfile={}", folder.join("none").display());
    assert_eq!(password(&named), None);
    fs::remove_dir_all(&folder).expect("cleared");
}
