//! Opening connections, and statements on them.

use std::collections::BTreeMap;

use antiphon_mesh::dsn::Dsn;
use antiphon_mesh::wire::{BINARY, Connection, Kind, ServerError};
use postgres_protocol::message::backend::Message;

use crate::support::{Server, releases};

pub(super) fn dsn(text: &str) -> Dsn {
    Dsn::parse(text, &BTreeMap::new()).expect(text)
}

#[tokio::test]
async fn a_connection_runs_statements_on_every_release() {
    for release in releases() {
        let server = Server::start(Some(release));
        let mut connection =
            Connection::open(&dsn(&server.dsn()), Kind::Sql, "reader", &[("search_path", "pg_catalog")])
                .await
                .expect("a connection");
        assert_eq!(connection.server_version() / 10_000, release);
        let sql = "SELECT current_setting('search_path'), NULL, application_name, pid = pg_backend_pid() \
                   FROM pg_stat_activity WHERE pid = pg_backend_pid(); SELECT 'two'";
        let rows = connection.query(sql).await.expect("rows");
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(rows, [vec![text("pg_catalog"), None, text("reader"), text("t")], vec![text("two")]]);
        let error = connection.query("SELECT 1; SELECT 1/0; SELECT 2").await.expect_err("an error");
        assert_eq!(error.code(), Some("22012"));
        let rows = connection.query("SELECT 'on it goes'").await.expect("rows");
        assert_eq!(rows, [[text("on it goes")]]);
    }
}

#[tokio::test]
async fn settings_count_from_the_start_and_may_be_empty() {
    let server = Server::start(None);
    let settings = [("search_path", ""), ("session_replication_role", "replica"), ("DateStyle", "ISO")];
    let text = format!("{} options='-c work_mem=77kB -c DateStyle=German'", server.dsn());
    for kind in [Kind::Sql, Kind::Replication] {
        let mut connection = Connection::open(&dsn(&text), kind, "w", &settings).await.expect("a connection");
        assert_eq!(connection.query("SHOW search_path").await.expect("a row"), [[Some(String::new())]]);
        let rows = connection.query("SHOW session_replication_role").await.expect("a row");
        assert_eq!(rows, [[Some("replica".to_owned())]]);
        assert_eq!(connection.query("SHOW work_mem").await.expect("a row"), [[Some("77kB".to_owned())]]);
        let style = connection.parameter("DateStyle").map(str::to_owned);
        assert!(style.as_deref().is_some_and(|style| style.starts_with("ISO")), "{style:?}");
        connection.query("SET DateStyle = 'SQL'").await.expect("set");
        assert!(connection.parameter("DateStyle").is_some_and(|style| style.starts_with("SQL")));
        connection.query("DO $$ BEGIN RAISE WARNING 'passed over'; END $$").await.expect("done");
    }
    let wrong = Connection::open(&dsn(&text), Kind::Sql, "w", &[("no_such_setting", "1")]).await;
    assert_eq!(wrong.expect_err("there is none").code(), Some("42704"));
}

#[tokio::test]
async fn statements_are_pipelined_and_an_error_ends_its_batch_only() {
    let server = Server::start(None);
    server.sql("CREATE TABLE t (id int PRIMARY KEY, name text NOT NULL)").await;
    let connection = Connection::open(&dsn(&server.dsn()), Kind::Sql, "w", &[]).await.expect("a connection");
    let (mut reader, mut writer) = connection.split();
    writer.parse("insert", "INSERT INTO t VALUES ($1, $2)", &[23, 0]).expect("a statement");
    for id in [1_i32, 2, 2, 3] {
        let bytes = id.to_be_bytes();
        let values = [Some(&bytes[..]), Some(b"x".as_slice())];
        writer.bind("insert", &[BINARY, 0], values).expect("values");
        writer.execute();
        writer.sync();
    }
    writer.bind("insert", &[BINARY], [Some(&9_i32.to_be_bytes()[..]), None]).expect("values");
    writer.execute();
    writer.sync();
    assert!(!writer.is_empty());
    writer.flush().await.expect("sent");
    assert_eq!(writer.len(), 0);
    let (mut tags, mut errors, mut ready) = (Vec::new(), Vec::new(), 0);
    while ready < 5 {
        match reader.next().await.expect("a message") {
            Message::CommandComplete(body) => tags.push(body.tag().expect("a tag").to_owned()),
            Message::ErrorResponse(body) => errors.push(ServerError::from(&body)),
            Message::ReadyForQuery(_) => ready += 1,
            _ => {}
        }
    }
    assert_eq!(tags, ["INSERT 0 1"; 3]);
    let [twice, null] = &errors[..] else { panic!("{errors:?}") };
    assert_eq!((twice.code.as_str(), twice.constraint.as_deref()), ("23505", Some("t_pkey")));
    assert_eq!(
        (null.code.as_str(), null.column.as_deref(), null.table.as_deref()),
        ("23502", Some("name"), Some("t"))
    );
    assert_eq!(
        twice.to_string(),
        "ERROR 23505: duplicate key value violates unique constraint \"t_pkey\" (Key (id)=(2) already exists.)"
    );
}

#[tokio::test]
async fn a_notice_is_passed_on() {
    let server = Server::start(None);
    let connection = Connection::open(&dsn(&server.dsn()), Kind::Sql, "w", &[]).await.expect("a connection");
    let (mut reader, mut writer) = connection.split();
    writer.query("DO $$ BEGIN RAISE WARNING 'look' USING HINT = 'there'; END $$").expect("a statement");
    writer.flush().await.expect("sent");
    let Ok(Message::NoticeResponse(body)) = reader.next().await else { panic!("another message") };
    let notice = ServerError::from(&body);
    assert_eq!(notice.to_string(), "WARNING 01000: look");
    assert_eq!(notice.hint.as_deref(), Some("there"));
}

#[tokio::test]
async fn a_control_connection_is_the_client_librarys_own() {
    let server = Server::start(None);
    let client = dsn(&server.dsn()).control("control").await.expect("a connection");
    let row = client.query_one("SELECT $1::int + 1, current_setting('application_name')", &[&41]).await;
    let row = row.expect("a row");
    assert_eq!((row.get::<_, i32>(0), row.get::<_, &str>(1)), (42, "control"));
}
