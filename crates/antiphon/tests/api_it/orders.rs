//! Orders: switchover and failover through the store, restart, reload and reinitialise through the agent.

use std::time::Duration;

use antiphon::agent::command::Command;
use antiphon::agent::view::View;
use antiphon::cli::Client;
use antiphon_core::ha::cluster::{Cause, Phase, Promise};
use antiphon_core::ha::role::Role;
use antiphon_core::ha::world::{Local, Reinitialise, Task};
use antiphon_core::settings::SyncMode;
use serde_json::{Value, json};

use super::fixture::{EPOCH, Served, changed, led_by, name, serving, view};

async fn post(served: &Served, path: &str, body: Value) -> (u16, String) {
    let answer = served.send("POST", path, Some(body)).await;
    (answer.status, answer.text)
}

/// Does to the store what a leader does that hands over to `to`.
async fn hand_over(served: &Served, to: &str, port: u16) {
    served.wait_for("failover").await;
    served.delete("failover").await;
    let next = EPOCH.next();
    served.put("cluster", &serde_json::to_string(&led_by(to, next)).expect("JSON")).await;
    served.put_member(&serving(to, port, next)).await;
}

#[tokio::test]
async fn a_switchover_is_answered_when_the_new_leader_serves() {
    let served = Served::new(view("n1")).await;
    let asked = post(&served, "/switchover", json!({ "leader": "n1", "candidate": "n2" }));
    let (answer, ()) = tokio::join!(asked, hand_over(&served, "n2", 5002));
    assert_eq!(answer, (200, "Successfully switched over to \"n2\"".to_owned()));
    let served = Served::new(view("n1")).await;
    let asked = post(&served, "/switchover", json!({ "leader": "n1", "candidate": "n2" }));
    let (answer, ()) = tokio::join!(asked, hand_over(&served, "n3", 5003));
    assert_eq!(answer, (200, "Switched over to \"n3\" instead of \"n2\"".to_owned()));
    let served = Served::new(view("n1")).await;
    let asked = post(&served, "/failover", json!({ "member": "n3" }));
    let (answer, ()) = tokio::join!(asked, hand_over(&served, "n3", 5003));
    assert_eq!(answer, (200, "Successfully failed over to \"n3\"".to_owned()));
}

#[tokio::test]
async fn a_switchover_that_is_dropped_has_failed() {
    let served = Served::new(view("n1")).await;
    let asked = post(&served, "/switchover", json!({ "leader": "n1" }));
    let dropped = async {
        served.wait_for("failover").await;
        served.delete("failover").await;
    };
    let (answer, ()) = tokio::join!(asked, dropped);
    assert_eq!(answer, (503, "Switchover failed".to_owned()));
}

#[tokio::test]
async fn a_switchover_without_outcome_is_unknown() {
    let quick = changed(view("n1"), |world| world.settings.loop_wait = Duration::from_secs(1));
    let served = Served::new(quick).await;
    let method = "POST".parse().expect("a method");
    let body = json!({ "leader": "n1" });
    let answer =
        served.client().send(method, "/switchover", Some(&body), None, Duration::from_secs(40)).await;
    let answer = answer.expect("an answer");
    assert_eq!((answer.status, answer.text.as_str()), (503, "Switchover status unknown"));
    assert!(served.value("failover").await.is_some(), "the wish stands");
}

#[tokio::test]
async fn a_wish_that_cannot_be_met_is_refused_and_not_stored() {
    let served = Served::new(view("n1")).await;
    let past = "2020-01-01T00:00:00Z";
    let cases = [
        ("/switchover", json!({ "candidate": "n2" }), 400, "only from a specific leader"),
        ("/switchover", json!({ "leader": "n1", "candidate": "n1" }), 400, "the same"),
        ("/switchover", json!({ "leader": "n2", "candidate": "n3" }), 412, "leader name does not match"),
        ("/switchover", json!({ "leader": "n1", "candidate": "n9" }), 412, "candidate does not exists"),
        ("/switchover", json!({ "leader": "n1", "candidate": "../n2" }), 400, "not a member name"),
        ("/switchover", json!({ "leader": ["n1"] }), 400, "leader must be"),
        ("/switchover", json!({ "leader": "n1", "accept_loss": true }), 400, "belongs to a failover"),
        ("/switchover", json!({ "leader": "n1", "canidate": "n2" }), 400, "means nothing here"),
        ("/switchover", json!({ "leader": "n1", "scheduled_at": past }), 422, "in the past"),
        ("/switchover", json!({ "leader": "n1", "scheduled_at": "soon" }), 422, "Unable to parse"),
        ("/switchover", json!({ "leader": "n1", "scheduled_at": "2036-01-01T00:00" }), 400, "Timezone"),
        ("/failover", json!({}), 400, "not empty"),
        ("/failover", json!({ "leader": "n1" }), 400, "only to a specific candidate"),
        ("/failover", json!({ "candidate": "n2", "scheduled_at": past }), 400, "can't be scheduled"),
        ("/failover", json!({ "candidate": "n1" }), 412, "leads already"),
    ];
    for (path, body, status, text) in cases {
        let answer = post(&served, path, body.clone()).await;
        assert_eq!(answer.0, status, "{path} {body}: {}", answer.1);
        assert!(answer.1.contains(text), "{path} {body}: {}", answer.1);
    }
    assert_eq!(served.value("failover").await, None);
}

#[tokio::test]
async fn a_candidate_that_may_not_lead_is_refused() {
    let refused = async |view: View, body: Value, text: &str| {
        let served = Served::new(view).await;
        let answer = post(&served, "/switchover", body).await;
        assert!(answer.0 == 412 && answer.1.contains(text), "{answer:?}");
    };
    let sync = changed(view("n1"), |world| world.settings.synchronous_mode = SyncMode::On);
    let to_n3 = json!({ "leader": "n1", "candidate": "n3" });
    refused(sync, to_n3.clone(), "candidate name does not match with sync_standby").await;
    let tagged = changed(view("n1"), |world| {
        world.store.members.get_mut(&name("n3")).expect("n3").value.tags.nofailover = true;
    });
    refused(tagged, to_n3.clone(), "no good candidates have been found (n3 is tagged").await;
    let silent = changed(view("n1"), |world| world.peers.clear());
    refused(silent.clone(), to_n3, "the agent of n3 is not heard").await;
    refused(silent, json!({ "leader": "n1" }), "no good candidates have been found").await;
    let alone = changed(view("n1"), |world| world.store.members.retain(|member, _| member.as_str() == "n1"));
    refused(alone, json!({ "leader": "n1" }), "does not have members except leader").await;
}

#[tokio::test]
async fn a_switchover_can_wait_for_its_time_and_be_taken_back() {
    let served = Served::new(view("n1")).await;
    assert_eq!(served.send("DELETE", "/switchover", None).await.status, 404);
    let body = json!({ "leader": "n1", "candidate": "n2", "scheduled_at": "2036-01-01T02:00:00+02:00" });
    assert_eq!(post(&served, "/switchover", body.clone()).await, (202, "Switchover scheduled".to_owned()));
    assert_eq!(served.value("failover").await.expect("a wish")["scheduled_at"], 2_082_758_400_u64);
    let answer = served.send("DELETE", "/switchover", None).await;
    assert_eq!((answer.status, answer.text.as_str()), (200, "scheduled switchover deleted"));
    assert_eq!(served.value("failover").await, None);
    let paused = Served::new(changed(view("n1"), |world| world.settings.pause = true)).await;
    assert_eq!(post(&paused, "/switchover", body).await.0, 400);
    assert_eq!(post(&paused, "/switchover", json!({ "leader": "n1" })).await.0, 400);
}

#[tokio::test]
async fn the_agent_is_told_and_its_answer_is_given() {
    let mut served = Served::new(view("n2")).await;
    let client = served.client();
    let agent = tokio::spawn(async move {
        while let Some(command) = served.commands.recv().await {
            match command {
                Command::Restart { done } => done.send(Ok(())).expect("someone waits"),
                Command::Reload { done } => {
                    done.send(Ok(vec!["max_connections".to_owned()])).expect("someone waits");
                }
                Command::Reinitialise { how, done } => {
                    done.send(Err(format!("{how:?}"))).expect("someone waits");
                }
            }
        }
    });
    let post = async |path: &str, body: Value| {
        let answer = client
            .send("POST".parse().expect("a method"), path, Some(&body), None, Duration::from_secs(10))
            .await;
        let answer = answer.expect("an answer");
        (answer.status, answer.text)
    };
    assert_eq!(post("/restart", json!({})).await, (200, "restarted successfully".to_owned()));
    assert_eq!(post("/restart", json!({ "role": "replica", "postgres_version": "15.19" })).await.0, 200);
    let unmet = [
        json!({ "role": "primary" }),
        json!({ "restart_pending": true }),
        json!({ "postgres_version": "15.2" }),
    ];
    for terms in unmet {
        assert_eq!(post("/restart", terms).await, (503, "restart conditions are not satisfied".to_owned()));
    }
    for wrong in [
        json!({ "role": "x" }),
        json!({ "timeout": 0 }),
        json!({ "postgres_version": "new" }),
        json!({ "x": 1 }),
    ] {
        assert_eq!(post("/restart", wrong).await.0, 400);
    }
    let reloaded = post("/reload", json!({})).await;
    assert!(
        reloaded.0 == 202
            && reloaded.1.starts_with("reload scheduled")
            && reloaded.1.contains("max_connections")
    );
    for key in ["from-leader", "from_leader"] {
        let (status, text) = post("/reinitialize", json!({ "force": true, key: true })).await;
        assert!(status == 503 && text.contains("from_leader: true, force: true"), "{text}");
    }
    for wrong in [json!({ "force": 1 }), json!({ "from": "n1" })] {
        assert_eq!(post("/reinitialize", wrong).await.0, 400);
    }
    agent.abort();
}

#[tokio::test]
async fn a_base_backup_that_goes_on_is_broken_off_only_by_force() {
    let copying = changed(view("n2"), |world| {
        if let Local::Database(database) = &mut world.local {
            database.task = Some((Task::Clone, world.now));
        }
    });
    let mut served = Served::new(copying).await;
    let answer = post(&served, "/reinitialize", json!({})).await;
    assert!(answer.0 == 503 && answer.1.contains("base backup already in progress"), "{answer:?}");
    let agent = async {
        let Some(Command::Reinitialise { how, done }) = served.commands.recv().await else {
            panic!("no order came");
        };
        done.send(Ok(())).expect("someone waits");
        how
    };
    let address = served.address;
    let asked = async {
        let client = Client::new(&format!("http://{address}"), None).expect("a client");
        let method = "POST".parse().expect("a method");
        let body = json!({ "force": true });
        client.send(method, "/reinitialize", Some(&body), None, Duration::from_secs(10)).await
    };
    let (how, answer) = tokio::join!(agent, asked);
    assert_eq!(how, Reinitialise { from_leader: false, force: true });
    assert_eq!(answer.expect("an answer").text, "reinitialize started");
}

#[tokio::test]
async fn a_failover_that_only_the_last_leader_could_win_is_refused_at_once() {
    let alone = changed(view("n2"), |world| {
        let cluster = &mut world.store.cluster.as_mut().expect("a record").value;
        let last = cluster.leader().expect("a leader").clone();
        cluster.sync = Promise::Alone;
        cluster.epoch = cluster.epoch.next();
        cluster.phase = Phase::Electing { cause: Cause::Silent, opened_by: name("n2"), last };
        world.peers.remove(&name("n1"));
    });
    let served = Served::new(alone).await;
    let answer = post(&served, "/failover", json!({ "candidate": "n2" })).await;
    assert!(answer.0 == 412 && answer.1.contains("only n1 is known to hold every"), "{answer:?}");
    assert_eq!(served.value("failover").await, None, "nothing is left for the next look");
}

#[tokio::test]
async fn a_leader_is_not_built_anew() {
    let served = Served::new(view("n1")).await;
    let answer = post(&served, "/reinitialize", json!({})).await;
    assert_eq!(answer, (503, "I am the leader, can not reinitialize".to_owned()));
}

#[tokio::test]
async fn a_restart_can_wait_for_its_time_and_be_taken_back() {
    let mut served = Served::new(view("n2")).await;
    let restart = json!({ "schedule": "2036-01-01T00:00:00Z" });
    assert_eq!(post(&served, "/restart", restart.clone()).await, (202, "Restart scheduled".to_owned()));
    assert_eq!(post(&served, "/restart", restart.clone()).await.0, 409);
    let status: Value = serde_json::from_str(&served.get("/patroni").await.text).expect("JSON");
    assert_eq!(status["scheduled_restart"], json!({ "schedule": "2036-01-01T00:00:00+00:00" }));
    assert_eq!(served.send("DELETE", "/restart", None).await.status, 200);
    assert_eq!(served.send("DELETE", "/restart", None).await.status, 404);
    let soon = antiphon::api::datetime::format(antiphon::api::datetime::now() + 1);
    assert_eq!(post(&served, "/restart", json!({ "schedule": soon })).await.0, 202);
    let told = tokio::time::timeout(Duration::from_secs(10), served.commands.recv()).await.expect("in time");
    assert!(matches!(told, Some(Command::Restart { .. })), "{told:?}");
    served.view.send_replace(std::sync::Arc::new(changed(view("n2"), |world| world.settings.pause = true)));
    assert_eq!(post(&served, "/restart", restart).await.0, 500);
}

#[tokio::test]
async fn only_a_member_that_is_gone_is_forgotten() {
    let gone = changed(view("n1"), |world| drop(world.peers.remove(&name("n3"))));
    let served = Served::new(gone).await;
    served.put_member(&super::fixture::member("n3", 5003)).await;
    for (member, status) in
        [("n1", 409), ("n2", 409), ("n9", 404), ("%2e%2e%2fx", 400), ("", 400), ("n3", 200)]
    {
        let answer = served.send("DELETE", &format!("/members/{member}"), None).await;
        assert_eq!(answer.status, status, "{member}: {}", answer.text);
    }
    assert_eq!(served.value("members/n3").await, None);
    assert!(matches!(view("n1").decision.role, Role::Leader { .. }));
}
