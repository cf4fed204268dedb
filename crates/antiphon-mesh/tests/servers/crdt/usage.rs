//! The types as users write them: from any role, with literals and parameters, and what they refuse.

use tokio_postgres::Client;

use antiphon_mesh::crdt::{Crdt, SETUP};

use super::{NODE, prepared};
use crate::support::{Server, releases};

const PAGE: &str = "CREATE TABLE page (id int PRIMARY KEY, \
    views antiphon.g_counter NOT NULL DEFAULT antiphon.g_counter(), \
    score antiphon.pn_counter NOT NULL DEFAULT antiphon.pn_counter(), \
    tags antiphon.g_set NOT NULL DEFAULT antiphon.g_set(), \
    cart antiphon.or_set NOT NULL DEFAULT antiphon.or_set(), \
    title antiphon.lww_register NOT NULL DEFAULT antiphon.lww_register(), \
    body antiphon.mv_register NOT NULL DEFAULT antiphon.mv_register()); \
    INSERT INTO page (id) VALUES (1)";

/// The first column of the only row, as text.
async fn text(client: &Client, query: &str) -> String {
    let query = format!("SELECT ({query})::text");
    client.query_one(&query, &[]).await.expect(&query).get::<_, Option<String>>(0).unwrap_or_default()
}

/// A value of the page.
async fn value(client: &Client, column: &str) -> String {
    text(client, &format!("SELECT antiphon.value({column}) FROM page WHERE id = 1")).await
}

/// The message of a statement's error.
async fn refusal(client: &Client, statement: &str) -> String {
    let error = client.batch_execute(statement).await.expect_err(statement);
    error.as_db_error().expect(statement).message().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_role_writes_and_reads_them_as_it_would_expect() {
    for release in releases() {
        let server = Server::start(Some(release));
        let client = prepared(&server).await;
        // Nobody gets a right by default, as careful administrators have it.
        let role =
            "CREATE ROLE app; GRANT CREATE ON SCHEMA public TO app; SET ROLE app; SET search_path = public";
        client.batch_execute(role).await.expect("a role");
        client.batch_execute(PAGE).await.expect("a table");
        let writes = "UPDATE page SET views = antiphon.increment(views) WHERE id = 1; \
            UPDATE page SET views = antiphon.increment(views, 40), score = antiphon.decrement(score, '3'); \
            UPDATE page SET score = antiphon.increment(antiphon.decrement(score), -5); \
            UPDATE page SET tags = antiphon.add(antiphon.add(antiphon.add(tags, 'news'), 7), 7.0); \
            UPDATE page SET cart = antiphon.add(cart, 'apple'); \
            UPDATE page SET cart = antiphon.add(cart, '{\"id\": 5}'::jsonb); \
            UPDATE page SET cart = antiphon.remove(cart, 'apple'); \
            UPDATE page SET title = antiphon.assign(title, 'first'), body = antiphon.assign(body, now()); \
            UPDATE page SET title = antiphon.assign(title, 'second'), body = antiphon.assign(body, ARRAY[1, 2]); \
            INSERT INTO page (id, views) VALUES (1, antiphon.increment(antiphon.g_counter())) \
                ON CONFLICT (id) DO UPDATE SET views = antiphon.increment(page.views)";
        client.batch_execute(writes).await.expect("writes");
        let with_parameters = "UPDATE page SET score = antiphon.increment(score, $1), cart = antiphon.add(cart, $2), \
            title = antiphon.assign(title, $3), tags = antiphon.add(tags, $2) WHERE antiphon.contains(tags, $2) IS NOT NULL";
        client.execute(with_parameters, &[&2_i64, &"pear", &"third"]).await.expect("parameters");
        for (column, wanted) in [
            ("views", "42"),
            ("score", "-7"),
            ("tags", r#"[7, "news", "pear"]"#),
            ("cart", r#"["pear", {"id": 5}]"#),
            ("title", r#""third""#),
            ("body", "[[1, 2]]"),
        ] {
            assert_eq!(value(&client, column).await, wanted, "PostgreSQL {release}: {column}");
        }
        let typed = "SELECT pg_typeof(antiphon.increment(views, 1)) || ' ' || pg_typeof(antiphon.value(views)) || ' ' \
            || pg_typeof(antiphon.add(cart, 'x')) || ' ' || pg_typeof(antiphon.value(cart)) || ' ' \
            || pg_typeof(antiphon.merge(title, NULL)) FROM page";
        let wanted = "antiphon.g_counter bigint antiphon.or_set jsonb antiphon.lww_register";
        assert_eq!(text(&client, typed).await, wanted);
        let merges = Crdt::ALL
            .map(|crdt| crdt.merged(&format!("antiphon.{}()", crdt.name()), "NULL") + " IS NOT NULL");
        assert_eq!(text(&client, &format!("SELECT {}", merges.join(" AND "))).await, "true");
        client
            .batch_execute("UPDATE page SET title = antiphon.assign(title, NULL::text)")
            .await
            .expect("no title");
        assert_eq!(value(&client, "title").await, "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_installs_them_twice_and_no_search_path_bends_them() {
    for release in releases() {
        let server = Server::start(Some(release));
        let client = server.client().await;
        client.batch_execute("CREATE ROLE keeper LOGIN CREATEDB; SET ROLE keeper").await.expect("a role");
        client.batch_execute("CREATE DATABASE kept").await.expect("a database");
        let client = server.client_of("kept").await;
        let strict = "ALTER DEFAULT PRIVILEGES FOR ROLE keeper REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC; \
            CREATE ROLE app; GRANT CREATE ON DATABASE kept TO app; SET ROLE keeper; SET search_path = nowhere";
        client.batch_execute(strict).await.expect("rights");
        client.batch_execute(SETUP).await.expect("the types");
        assert_eq!(text(&client, "SELECT current_setting('search_path')").await, "nowhere");
        client.batch_execute(NODE).await.expect("a number");
        client
            .batch_execute("GRANT EXECUTE ON FUNCTION antiphon.node_id() TO PUBLIC")
            .await
            .expect("for everybody");
        client.batch_execute(SETUP).await.expect("the types once more");
        let shadows = ["jsonb_set(jsonb, text[], jsonb)", "to_jsonb(anyelement)", "starts_with(text, text)"]
            .map(|name| {
                format!(
                    "CREATE FUNCTION evil.{name} RETURNS jsonb LANGUAGE plpgsql AS \
                     $$ BEGIN RAISE EXCEPTION 'called'; END $$;"
                )
            })
            .join("");
        client.batch_execute("SET ROLE app; CREATE SCHEMA evil").await.expect("a schema");
        client.batch_execute(&shadows).await.expect("functions that would be found first");
        client.batch_execute("SET search_path = evil, pg_catalog; SET test.node = 1").await.expect("a path");
        let page = PAGE.replace(" page ", " evil.page ");
        client.batch_execute(&page).await.expect("a table");
        client
            .batch_execute(
                "UPDATE evil.page SET views = antiphon.increment(views), score = antiphon.decrement(score), \
                 tags = antiphon.add(tags, 1.5), cart = antiphon.remove(antiphon.add(cart, 'x'), 'x'), \
                 title = antiphon.assign(title, 1), body = antiphon.assign(body, 'y'); \
                 UPDATE evil.page SET views = antiphon.merge(views, '{\"g_counter\": {\"2\": 4}}')",
            )
            .await
            .expect("writes");
        assert_eq!(value(&client, "views").await, "5", "PostgreSQL {release}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_right_is_refused_with_the_reason() {
    let server = Server::start(None);
    let client = prepared(&server).await;
    client.batch_execute(PAGE).await.expect("a table");
    for (write, reason) in [
        ("views = antiphon.decrement(views)", "a g_counter only grows"),
        ("views = antiphon.increment(views, -1)", "a g_counter only grows"),
        ("views = antiphon.increment(views, NULL)", "a counter cannot count by NULL"),
        ("score = antiphon.decrement(score, NULL)", "a counter cannot count by NULL"),
        ("views = antiphon.increment(antiphon.increment(views), 9223372036854775807)", "bigint out of range"),
        ("score = antiphon.decrement(score, -9223372036854775808)", "bigint out of range"),
        ("tags = antiphon.remove(tags, 'x')", "a g_set only grows"),
        ("tags = antiphon.add(tags, NULL)", "NULL cannot be an element"),
        ("cart = antiphon.remove(cart, NULL)", "NULL cannot be an element"),
        ("cart = antiphon.increment(cart)", "only a g_counter or a pn_counter counts"),
        ("cart = antiphon.assign(cart, 'x')", "antiphon.assign takes a lww_register or a mv_register"),
        ("views = antiphon.add(views, 'x')", "antiphon.add takes a g_set or an or_set"),
        ("title = antiphon.remove(title, 'x')", "antiphon.remove takes an or_set"),
        ("id = antiphon.contains(views, 'x')::int", "antiphon.contains takes a g_set or an or_set"),
        (
            "views = score",
            "value for domain antiphon.g_counter violates check constraint \"g_counter_is_well_formed\"",
        ),
        (
            "views = antiphon.merge(views, score)",
            "function antiphon.merge(antiphon.g_counter, antiphon.pn_counter) does not exist",
        ),
        ("views = antiphon.merge(views::jsonb, score::jsonb)", "only two states of one kind merge"),
        ("views = antiphon.compact(views, '{0}')", "no node has the number 0"),
    ] {
        assert_eq!(refusal(&client, &format!("UPDATE page SET {write}")).await, reason, "{write}");
    }
    client.batch_execute("SET test.node = ''").await.expect("no number");
    let reason = refusal(&client, "UPDATE page SET views = antiphon.increment(views)").await;
    assert_eq!(reason, "this server has no number of a node yet");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_compacted_away_cannot_write_under_its_number() {
    let server = Server::start(None);
    let client = prepared(&server).await;
    client.batch_execute(PAGE).await.expect("a table");
    let write = "UPDATE page SET views = antiphon.increment(views, 3), score = antiphon.decrement(score), \
        cart = antiphon.add(cart, 'x'), body = antiphon.assign(body, 'x')";
    client.batch_execute(write).await.expect("writes");
    let compact = "UPDATE page SET views = antiphon.compact(views, '{1}'), score = antiphon.compact(score, '{1}'), \
        cart = antiphon.compact(cart, '{1}'), body = antiphon.compact(body, '{1}')";
    client.batch_execute(compact).await.expect("compacted");
    for write in [
        "views = antiphon.increment(views)",
        "cart = antiphon.add(cart, 'y')",
        "body = antiphon.assign(body, 'y')",
    ] {
        let reason = refusal(&client, &format!("UPDATE page SET {write}")).await;
        assert_eq!(reason, "node 1 has left for good: its entry in this row is compacted", "{write}");
    }
    client.batch_execute("SET test.node = 2").await.expect("another node");
    client.batch_execute(write).await.expect("it writes");
    client
        .batch_execute("UPDATE page SET cart = antiphon.remove(cart, 'x')")
        .await
        .expect("also what is not its own");
    let forget = compact.replace("compact(", "forget(");
    client.batch_execute(&forget).await.expect("forgotten");
    let states = "SELECT concat_ws(' ', views, score, cart, body, antiphon.value(views), antiphon.value(score)) FROM page";
    let wanted = "{\"g_counter\": {\"0\": 3, \"2\": 3}} {\"pn_counter\": {\"-0\": 1, \"-2\": 1}} \
        {\"seen\": {\"2\": 1}, \"or_set\": {}} {\"seen\": {\"2\": 1}, \"mv_register\": {\"2\": [1, \"x\"]}} 6 -2";
    assert_eq!(text(&client, states).await, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_different_nodes_compacted_meets_without_loss() {
    let server = Server::start(None);
    let client = prepared(&server).await;
    // Both left: 3 with 5, 10 with 9. One state has 3 compacted and is late; the other has 10 compacted.
    let late = "'{\"pn_counter\": {\"0\": 5, \"3\": true, \"10\": 7}}'::antiphon.pn_counter";
    let other = "'{\"pn_counter\": {\"0\": 9, \"3\": 5, \"10\": true}}'::antiphon.pn_counter";
    for (a, b) in [(late, other), (other, late)] {
        let merged = text(&client, &format!("SELECT antiphon.merge({a}, {b})")).await;
        assert_eq!(merged, "{\"pn_counter\": {\"0\": 14, \"3\": true, \"10\": true}}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_did_not_see_each_other_end_as_documented() {
    let server = Server::start(None);
    let client = prepared(&server).await;
    client.batch_execute(PAGE).await.expect("a table");
    let first = "UPDATE page SET cart = antiphon.add(cart, 'apple'), title = antiphon.assign(title, 'old'), \
        body = antiphon.assign(body, 'old')";
    client.batch_execute(first).await.expect("a first state");
    client
        .batch_execute("INSERT INTO page SELECT 2, views, score, tags, cart, title, body FROM page")
        .await
        .expect("a peer");
    let here = "UPDATE page SET views = antiphon.increment(views), cart = antiphon.remove(cart, 'apple'), \
        title = antiphon.assign(title, 'here'), body = antiphon.assign(body, 'here') WHERE id = 1";
    let there = "SET test.node = 2; UPDATE page SET views = antiphon.increment(views, 2), \
        cart = antiphon.add(cart, 'apple'), title = antiphon.assign(title, 'there'), \
        body = antiphon.assign(body, 'there') WHERE id = 2";
    client.batch_execute(here).await.expect("writes here");
    client.batch_execute(there).await.expect("writes there");
    let merge = "UPDATE page p SET views = antiphon.merge(p.views, o.views), cart = antiphon.merge(p.cart, o.cart), \
        title = antiphon.merge(p.title, o.title), body = antiphon.merge(p.body, o.body) FROM page o WHERE o.id <> p.id";
    client.batch_execute(merge).await.expect("both merge");
    for (column, wanted) in
        [("views", "3"), ("cart", "[\"apple\"]"), ("title", "\"there\""), ("body", "[\"here\", \"there\"]")]
    {
        assert_eq!(value(&client, column).await, wanted, "{column}");
    }
    let same = "SELECT count(DISTINCT (views, score, tags, cart, title, body)::text) FROM page";
    assert_eq!(text(&client, same).await, "1");
    let seen = "UPDATE page SET cart = antiphon.remove(cart, 'apple'), body = antiphon.assign(body, 'one') WHERE id = 1";
    client.batch_execute(seen).await.expect("a write that has seen all");
    client.batch_execute(merge).await.expect("both merge");
    assert_eq!(value(&client, "cart").await, "[]");
    assert_eq!(value(&client, "body").await, "[\"one\"]");
    let twice = "SET test.node = 1; UPDATE page SET cart = antiphon.add(cart, 'pear') WHERE id = 1; \
        SET test.node = 2; UPDATE page SET cart = antiphon.add(cart, 'pear') WHERE id = 1";
    client.batch_execute(twice).await.expect("adds");
    // One dot stands for all adds that its node has seen.
    let elements = "SELECT cart::jsonb->'or_set' FROM page WHERE id = 1";
    assert_eq!(text(&client, elements).await, "{\"\\\"pear\\\"\": {\"2\": 2}}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_register_that_is_ahead_of_this_clock_is_overwritten_all_the_same() {
    let server = Server::start(None);
    let client = prepared(&server).await;
    client.batch_execute(PAGE).await.expect("a table");
    let ahead = "UPDATE page SET title = '{\"lww_register\": [9000000000000000000, 2, \"theirs\"]}'; \
        UPDATE page SET title = antiphon.merge(title, antiphon.assign(title, 'ours'))";
    client.batch_execute(ahead).await.expect("writes");
    let wanted = "{\"lww_register\": [9000000000000000001, 1, \"ours\"]}";
    assert_eq!(text(&client, "SELECT title FROM page").await, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_one_node_count_a_row_one_after_the_other() {
    const SESSIONS: usize = 4;
    const TIMES: i64 = 100;
    let server = Server::start(None);
    let client = prepared(&server).await;
    client.batch_execute(PAGE).await.expect("a table");
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        let client = server.client().await;
        sessions.push(tokio::spawn(async move {
            client.batch_execute("SET test.node = 1").await.expect("a number");
            for _ in 0..TIMES {
                let write =
                    "UPDATE page SET views = antiphon.increment(views), cart = antiphon.add(cart, 'x')";
                client.batch_execute(write).await.expect(write);
            }
        }));
    }
    for session in sessions {
        session.await.expect("its end");
    }
    assert_eq!(value(&client, "views").await, "400");
    assert_eq!(
        text(&client, "SELECT cart FROM page").await,
        "{\"seen\": {\"1\": 400}, \"or_set\": {\"\\\"x\\\"\": {\"1\": 400}}}"
    );
}
