//! The command line against a served API: what it asks for, and how its exit codes tell outcomes apart.

use std::time::Duration;

use antiphon::agent::command::Command as Order;
use antiphon::cli::{Cli, Command, Failure, TargetArgs, carry_out};
use antiphon_core::ha::cluster::Member;
use clap::Parser;
use serde_json::json;

use super::fixture::{EPOCH, Served, changed, led_by, name, serving, view};

async fn run(url: &str, words: &[&str]) -> Result<(), Failure> {
    let cli = Cli::try_parse_from([&["antiphon"], words].concat()).expect("a sound command line");
    let Command::Client(command) = cli.command else { panic!("not a verb of a cluster") };
    let target = TargetArgs { url: Some(url.to_owned()), ..TargetArgs::default() };
    tokio::time::timeout(Duration::from_secs(30), carry_out(&target, command)).await.expect("an end")
}

async fn code(served: &Served, words: &[&str]) -> u8 {
    match run(&served.url(), words).await {
        Ok(()) => 0,
        Err(failure) => {
            eprintln!("{words:?}: {failure}");
            failure.code()
        }
    }
}

/// A served API that its own record in the view points to, so that orders to members arrive there.
async fn served_as(me: &str) -> Served {
    let served = Served::new(view(me)).await;
    let url = served.url();
    let own = changed(view(me), |world| {
        let record: &mut Member = &mut world.store.members.get_mut(&name(me)).expect("a record").value;
        record.api_url = url;
    });
    served.view.send_replace(std::sync::Arc::new(own));
    served
}

#[tokio::test]
async fn looking_works_in_every_format() {
    let served = served_as("n1").await;
    for verb in ["list", "topology", "history", "show-config", "explain", "status"] {
        for format in ["pretty", "json", "yaml", "tsv"] {
            assert_eq!(code(&served, &[verb, "--format", format]).await, 0, "{verb} {format}");
        }
    }
    assert_eq!(code(&served, &["list", "demo", "-e", "-t"]).await, 0);
    assert_eq!(code(&served, &["explain", "n1"]).await, 0);
    assert_eq!(code(&served, &["version", "--members"]).await, 0);
    assert_eq!(code(&served, &["events", "--count", "1"]).await, 0);
}

#[tokio::test]
async fn exit_codes_tell_outcomes_apart() {
    let served = served_as("n1").await;
    assert_eq!(code(&served, &["list", "other"]).await, 2);
    assert_eq!(code(&served, &["explain", "n9"]).await, 2);
    assert_eq!(code(&served, &["explain", "n2"]).await, 3, "n2 is not served here");
    assert_eq!(code(&served, &["switchover"]).await, 2, "nobody can be asked");
    assert_eq!(code(&served, &["switchover", "--candidate", "n1", "--force"]).await, 1);
    assert_eq!(code(&served, &["resume"]).await, 1);
    assert_eq!(run("http://127.0.0.1:1", &["list"]).await.expect_err("nobody listens").code(), 3);
    assert_eq!(run("ftp://127.0.0.1:1", &["list"]).await.expect_err("not HTTP").code(), 2);
    let both = format!("http://127.0.0.1:1,{}", served.url());
    run(&both, &["list"]).await.expect("the second one answers");
}

#[tokio::test]
async fn an_order_whose_answer_is_lost_is_unknown() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("its address"));
    let cut = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut buffer = [0; 1024];
        let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut buffer).await;
    });
    let client = antiphon::cli::Client::new(&url, None).expect("a URL");
    let sent =
        client.send("POST".parse().expect("a method"), "/restart", None, None, Duration::from_secs(5)).await;
    assert_eq!(sent.expect_err("no answer came").code(), 4);
    cut.await.expect("the other side");
}

#[tokio::test]
async fn a_switchover_is_asked_for_and_awaited() {
    let served = served_as("n1").await;
    let handed = async {
        served.wait_for("failover").await;
        assert_eq!(served.value("failover").await.expect("a wish")["candidate"], "n2");
        served.delete("failover").await;
        let next = EPOCH.next();
        served.put("cluster", &serde_json::to_string(&led_by("n2", next)).expect("JSON")).await;
        served.put_member(&serving("n2", 5002, next)).await;
    };
    let (code, ()) =
        tokio::join!(code(&served, &["switchover", "demo", "--candidate", "n2", "--force"]), handed);
    assert_eq!(code, 0);
}

#[tokio::test]
async fn settings_are_edited_as_asked() {
    let served = served_as("n1").await;
    let edit =
        ["edit-config", "-s", "ttl=40", "-s", "synchronous_mode=null", "-p", "work_mem=8MB", "-q", "--force"];
    assert_eq!(code(&served, &edit).await, 0);
    let expected = json!({ "ttl": 40, "postgresql": { "parameters": { "work_mem": "8MB" } } });
    assert_eq!(served.value("config").await, Some(expected));
    assert_eq!(code(&served, &["edit-config", "-s", "tll=40", "--force"]).await, 2);
    assert_eq!(code(&served, &["edit-config", "-s", "ttl", "--force"]).await, 2);
    assert_eq!(code(&served, &["edit-config", "-s", "ttl=50"]).await, 2, "nobody can be asked");
    let file = std::env::temp_dir().join(format!("antiphon-api-it-{}.yml", std::process::id()));
    let path = file.to_str().expect("a path");
    std::fs::write(&file, "ttl: 50\npostgresql:\n  parameters: {work_mem: null}\n").expect("a file");
    assert_eq!(code(&served, &["edit-config", "--apply", path, "--force"]).await, 0);
    assert_eq!(served.value("config").await.expect("settings")["ttl"], 50);
    std::fs::write(&file, "ttl: 60\n").expect("a file");
    assert_eq!(code(&served, &["edit-config", "--replace", path, "--force"]).await, 0);
    assert_eq!(served.value("config").await, Some(json!({ "ttl": 60 })));
    std::fs::remove_file(&file).expect("the file");
    assert_eq!(code(&served, &["pause"]).await, 0);
    assert_eq!(served.value("config").await.expect("settings")["pause"], true);
}

#[tokio::test]
async fn orders_go_to_the_members_that_were_named() {
    let mut served = served_as("n1").await;
    let url = served.url();
    let (orders, told) = tokio::join!(
        async {
            run(&url, &["restart", "demo", "n1", "--force"]).await.expect("a restart");
            run(&url, &["reload", "n1", "--force"]).await.expect("a reload");
            run(&url, &["reinit", "n1", "--force"]).await
        },
        async {
            let mut told = Vec::new();
            while let Some(order) =
                tokio::time::timeout(Duration::from_secs(5), served.commands.recv()).await.ok().flatten()
            {
                told.push(format!("{order:?}").chars().take(7).collect::<String>());
                match order {
                    Order::Restart { done } | Order::Reinitialise { done, .. } => {
                        done.send(Ok(())).expect("someone waits");
                    }
                    Order::Reload { done } => done.send(Ok(Vec::new())).expect("someone waits"),
                }
                if told.len() == 2 {
                    break;
                }
            }
            told
        }
    );
    assert_eq!(told, ["Restart", "Reload "]);
    assert_eq!(orders.expect_err("a leader is not built anew").code(), 1);
}
