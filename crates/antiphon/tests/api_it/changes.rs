//! Who may change things, and changes of the cluster-wide settings.

use std::time::Duration;

use antiphon::api::Access;
use antiphon::cli::{Answer, Client};
use serde_json::{Value, json};

use super::fixture::{Served, secret, view};
use super::hostile::exchange;

const UNSAFE: [(&str, &str); 10] = [
    ("PATCH", "/config"),
    ("PUT", "/config"),
    ("POST", "/switchover"),
    ("DELETE", "/switchover"),
    ("POST", "/failover"),
    ("POST", "/restart"),
    ("DELETE", "/restart"),
    ("POST", "/reload"),
    ("POST", "/reinitialize"),
    ("DELETE", "/members/n3"),
];

async fn patch(served: &Served, body: Value) -> Answer {
    served.send("PATCH", "/config", Some(body)).await
}

#[tokio::test]
async fn nothing_is_changed_without_the_password() {
    let served = Served::protected(view("n1"), Access { login: Some(secret()), ..Access::default() }).await;
    let before = served.value("config").await;
    for (method, path) in UNSAFE {
        assert_eq!(
            served.send(method, path, Some(json!({ "ttl": 20 }))).await.status,
            401,
            "{method} {path}"
        );
    }
    for given in ["Basic YWRtaW46d3Jvbmc=", "Basic ???", "Basic", "Bearer s3cr:t", "Basic YWRtaW4="] {
        let request = format!(
            "PATCH /config HTTP/1.1\r\nHost: x\r\nAuthorization: {given}\r\nContent-Length: 10\r\n\r\n{{\"ttl\":20}}"
        );
        let answer = exchange(&served, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 401"), "{given}: {answer}");
        assert!(answer.to_lowercase().contains("www-authenticate: basic realm="), "{answer}");
    }
    assert_eq!(served.value("config").await, before);
    let client = Client::new(&served.url(), Some(&secret())).expect("a URL");
    let body = json!({ "ttl": 20 });
    let wait = Duration::from_secs(10);
    let answer = client.send("PATCH".parse().expect("a method"), "/config", Some(&body), None, wait).await;
    assert_eq!(answer.expect("an answer").status, 200);
    // Looking needs no password.
    assert_eq!(served.get("/cluster").await.status, 200);
}

#[tokio::test]
async fn an_address_that_is_not_listed_changes_nothing() {
    let strange = Access { allowlist: vec!["10.0.0.0/8".to_owned()], ..Access::default() };
    let served = Served::protected(view("n1"), strange).await;
    for (method, path) in UNSAFE {
        assert_eq!(
            served.send(method, path, Some(json!({ "ttl": 20 }))).await.status,
            403,
            "{method} {path}"
        );
    }
    let named = Access { allowlist: vec!["localhost".to_owned()], ..Access::default() };
    let served = Served::protected(view("n1"), named).await;
    assert_eq!(patch(&served, json!({ "ttl": 20 })).await.status, 200);
    let members = Access { include_members: true, ..Access::default() };
    let served = Served::protected(view("n1"), members).await;
    assert_eq!(patch(&served, json!({ "ttl": 20 })).await.status, 200);
}

#[tokio::test]
async fn a_page_of_another_site_changes_nothing() {
    let served = Served::new(view("n1")).await;
    let port = served.address.port();
    let host = served.address.to_string();
    let attempt = |host: &str, header: &str| {
        format!(
            "PATCH /config HTTP/1.1\r\nHost: {host}\r\n{header}\r\nContent-Type: text/plain\r\nContent-Length: \
             10\r\n\r\n{{\"ttl\":20}}"
        )
    };
    let evil = [
        attempt(&host, "Origin: http://evil.example"),
        attempt(&host, "Origin: null"),
        attempt(&host, "Sec-Fetch-Site: cross-site"),
        attempt(&host, "Sec-Fetch-Site: same-site"),
        // A name that resolves to this host for the attacker's page.
        attempt(&format!("evil.example:{port}"), &format!("Origin: http://evil.example:{port}")),
    ];
    for request in evil {
        let answer = exchange(&served, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{request}\n{answer}");
    }
    let own = attempt(&host, &format!("Origin: http://{host}\r\nSec-Fetch-Site: same-origin"));
    assert!(exchange(&served, own.as_bytes()).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn settings_are_merged_replaced_and_checked() {
    let served = Served::new(view("n1")).await;
    let answer = patch(
        &served,
        json!({ "ttl": 20, "synchronous_mode": null, "postgresql": { "parameters": { "work_mem": "8MB" } } }),
    )
    .await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let expected = json!({ "ttl": 20, "postgresql": { "parameters": { "work_mem": "8MB" } } });
    assert_eq!(serde_json::from_str::<Value>(&answer.text).expect("JSON"), expected);
    assert_eq!(served.value("config").await, Some(expected.clone()));
    let revision = served.revision("config").await;
    assert_eq!(patch(&served, json!({ "ttl": 20 })).await.status, 200);
    assert_eq!(served.revision("config").await, revision, "an unchanged document is not written again");
    assert_eq!(served.send("PUT", "/config", Some(json!({ "ttl": 25 }))).await.status, 200);
    assert_eq!(served.value("config").await, Some(json!({ "ttl": 25 })));
    served.delete("config").await;
    assert_eq!(patch(&served, json!({ "ttl": 20 })).await.status, 503);
    assert_eq!(served.send("PUT", "/config", Some(json!({ "ttl": 25 }))).await.status, 200);
    served.put("config", "{broken").await;
    assert_eq!(patch(&served, json!({ "ttl": 20 })).await.status, 502);
    assert_eq!(served.send("PUT", "/config", Some(json!({ "ttl": 25 }))).await.status, 200);
}

#[tokio::test]
async fn settings_that_would_do_harm_are_refused_with_their_key() {
    let served = Served::new(view("n1")).await;
    let before = served.value("config").await;
    let bad = [
        (json!({ "postgresql": { "parameters": { "archive_command": "rm -rf /" } } }), "archive_command"),
        (json!({ "postgresql": { "recovery_conf": { "restore_command": "x" } } }), "restore_command"),
        (json!({ "ttl": 0 }), "ttl"),
        (json!({ "ttl": -1 }), "ttl"),
        (json!({ "ttl": "forever" }), "ttl"),
        (json!({ "tll": 30 }), "did you mean ttl"),
        (json!({ "pause": { "x": 1 } }), "pause"),
    ];
    for (body, named) in bad {
        let answer = patch(&served, body.clone()).await;
        assert_eq!(answer.status, 400, "{body}");
        assert!(answer.text.contains(named), "{body}: {}", answer.text);
    }
    assert_eq!(served.value("config").await, before);
}

#[tokio::test]
async fn a_change_based_on_old_settings_is_refused() {
    let served = Served::new(view("n1")).await;
    let tag = served.get("/config").await.etag.expect("a revision");
    assert_eq!(patch(&served, json!({ "ttl": 20 })).await.status, 200);
    for method in ["PATCH", "PUT"] {
        let (method, body) = (method.parse().expect("a method"), json!({ "ttl": 40 }));
        let wait = Duration::from_secs(10);
        let answer = served.client().send(method, "/config", Some(&body), Some(tag.clone()), wait).await;
        assert_eq!(answer.expect("an answer").status, 409);
    }
    assert_eq!(served.value("config").await.expect("settings")["ttl"], 20);
}

#[tokio::test]
async fn of_changes_at_the_same_time_none_is_lost() {
    let served = Served::new(view("n1")).await;
    let parameters =
        ["work_mem", "maintenance_work_mem", "temp_buffers", "random_page_cost", "seq_page_cost"];
    let requests = parameters.map(|name| {
        let body = json!({ "postgresql": { "parameters": { name: 8 } } });
        patch(&served, body)
    });
    let answers = futures_util::future::join_all(requests).await;
    let stored = served.value("config").await.expect("settings");
    for (name, answer) in parameters.into_iter().zip(answers) {
        let kept = stored["postgresql"]["parameters"].get(name).is_some();
        assert_eq!(answer.status, if kept { 200 } else { 409 }, "{name}: {}", answer.text);
    }
}
