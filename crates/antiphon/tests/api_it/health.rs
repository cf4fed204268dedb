//! Health checks: every row of the table, and what is stricter than Patroni.

use std::time::Duration;

use antiphon::agent::view::View;
use antiphon_core::ha::cluster::{Phase, Promise};
use antiphon_core::ha::role::Role;
use antiphon_core::ha::world::{Local, Server, Stopped, Task};
use antiphon_core::settings::SyncMode;
use serde_json::json;

use super::fixture::{EPOCH, Served, changed, name, now, standby, view, with_role, with_server};

/// Asks for every path by GET, HEAD and OPTIONS.
async fn check(what: &str, view: View, good: &[&str], bad: &[&str]) {
    let served = Served::new(view).await;
    let expected = good.iter().map(|path| (path, 200)).chain(bad.iter().map(|path| (path, 503)));
    for (path, status) in expected {
        let answer = served.get(path).await;
        assert_eq!(answer.status, status, "{what}: GET {path}");
        let body: serde_json::Value = serde_json::from_str(&answer.text).expect("the status as JSON");
        assert_eq!(body["patroni"]["scope"], "demo");
        for method in ["HEAD", "OPTIONS"] {
            let answer = served.send(method, path, None).await;
            assert_eq!((answer.status, answer.text.as_str()), (status, ""), "{what}: {method} {path}");
        }
    }
}

const LEADER: [&str; 9] = [
    "/",
    "/primary",
    "/master",
    "/read-write",
    "/leader",
    "/read-only",
    "/read-only-quorum",
    "/read-only-sync",
    "/health",
];

#[tokio::test]
async fn a_leader_is_sent_writes() {
    let bad = [
        "/replica",
        "/standby-leader",
        "/standby_leader",
        "/sync",
        "/quorum",
        "/async",
        "/asynchronous",
        "/nonsense",
        "/../x",
        "/%2e%2e",
        "//",
    ];
    check("leader", view("n1"), &LEADER, &bad).await;
    // Tags are not asked of a leader; paths are matched by what they contain.
    check(
        "leader",
        view("n1"),
        &["/primary?tag_zone=x", "/x/primary/y", "/healthz"],
        &["/health?tag_zone=x"],
    )
    .await;
}

#[tokio::test]
async fn a_quorum_standby_is_sent_reads() {
    let good = ["/replica", "/read-only", "/quorum", "/read-only-quorum", "/health"];
    let bad = ["/", "/primary", "/leader", "/sync", "/synchronous", "/read-only-sync", "/async", "/nonsense"];
    check("quorum standby", view("n2"), &good, &bad).await;
}

#[tokio::test]
async fn a_sync_standby_is_sent_reads() {
    let view = changed(view("n2"), |world| world.settings.synchronous_mode = SyncMode::On);
    let good = ["/replica", "/sync", "/synchronous", "/read-only-sync", "/read-only-synchronous"];
    check("sync standby", view, &good, &["/quorum", "/read-only-quorum", "/async", "/primary"]).await;
}

#[tokio::test]
async fn a_replica_that_does_not_acknowledge_is_asynchronous() {
    let good = ["/replica", "/async", "/asynchronous", "/read-only"];
    let bad = ["/sync", "/quorum", "/read-only-sync", "/read-only-quorum", "/primary"];
    check("async", view("n3"), &good, &bad).await;
    let off = changed(view("n2"), |world| {
        world.settings.synchronous_mode = SyncMode::Off;
        world.store.cluster.as_mut().expect("a cluster").value.sync = Promise::Asynchronous;
    });
    check("mode off", off, &["/async"], &["/sync", "/quorum"]).await;
}

#[tokio::test]
async fn a_replica_that_lags_or_is_kept_out_is_not_sent_reads() {
    let behind = with_server(view("n3"), standby(100_000));
    let good = [
        "/replica",
        "/replica?lag=100000",
        "/replica?lag=100kB",
        "/async?lag=1MB",
        "/replica?lag=",
        "/replica?x=1",
    ];
    let bad = [
        "/replica?lag=99999",
        "/replica?lag=16kB",
        "/async?lag=0",
        "/replica?lag=-1",
        "/replica?lag=1e9GB",
        "/replica?lag=nonsense",
        "/read-only?lag=5",
    ];
    check("behind", behind, &good, &bad).await;
    let hidden = changed(view("n3"), |world| world.me.member.tags.noloadbalance = true);
    check("noloadbalance", hidden, &["/health"], &["/replica", "/read-only", "/async"]).await;
    let diverged = with_role(view("n3"), Role::Rejoining);
    check("rejoining", diverged, &["/health"], &["/replica", "/read-only", "/async"]).await;
}

#[tokio::test]
async fn tags_are_compared_as_texts() {
    let tagged = changed(view("n3"), |world| {
        let tags = &mut world.me.member.tags;
        tags.clonefrom = true;
        tags.custom.insert("zone".to_owned(), json!("A b"));
        tags.custom.insert("ssd".to_owned(), json!(true));
        tags.custom.insert("rack".to_owned(), json!(7));
    });
    let good = [
        "/replica?tag_zone=A%20b&tag_ssd=true&tag_rack=7",
        "/replica?tag_clonefrom=true",
        "/replica?tag_=",
        "/replica?zone=x",
    ];
    let bad =
        ["/replica?tag_zone=a+b", "/replica?tag_ssd=True", "/replica?tag_none=1", "/replica?tag_zone=(a*)*b"];
    check("tags", tagged, &good, &bad).await;
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_sent_nothing() {
    let stopped = Stopped {
        crash: Some("signal 9".to_owned()),
        clean: false,
        primary: true,
        checkpoint: Default::default(),
        restored: false,
    };
    let dead = with_server(view("n1"), Server::Stopped(stopped));
    check("dead primary", dead, &[], &LEADER).await;
    let since = now();
    check("starting", with_server(view("n1"), Server::Starting { since, primary: true }), &[], &LEADER).await;
    let stuck = Server::Stuck { since, why: "disk".to_owned(), primary: true };
    check("stuck", with_server(view("n1"), stuck), &[], &LEADER).await;
    let restarting = changed(view("n1"), |world| {
        if let Local::Database(database) = &mut world.local {
            database.task = Some((Task::Stop(antiphon_core::ha::world::StopMode::Fast), since));
        }
    });
    check("stopping", restarting, &["/health"], &["/", "/primary", "/leader", "/read-only"]).await;
}

#[tokio::test]
async fn only_a_leader_of_the_current_term_is_sent_writes() {
    let bad = ["/", "/primary", "/leader", "/read-only"];
    check("demoting", with_role(view("n1"), Role::Demoting), &["/health"], &bad).await;
    check("promoting", with_role(view("n1"), Role::Promoting { epoch: EPOCH }), &["/health"], &bad).await;
    let deposed = changed(view("n1"), |world| {
        let cluster = &mut world.store.cluster.as_mut().expect("a cluster").value;
        let last = cluster.leader().cloned().expect("a leader");
        cluster.epoch = EPOCH.next();
        cluster.phase =
            Phase::Electing { cause: antiphon_core::ha::cluster::Cause::Silent, opened_by: name("n2"), last };
    });
    check("deposed", deposed, &["/health"], &bad).await;
}

#[tokio::test]
async fn a_leader_is_sent_no_writes_once_its_lease_has_run_out_even_if_its_agent_hangs() {
    let ending = changed(view("n1"), |world| world.me.lease_until = Some(now() + Duration::from_millis(500)));
    let served = Served::new(ending).await;
    assert_eq!(served.get("/primary").await.status, 200);
    // No new view comes: the same one must stop passing.
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    while served.get("/primary").await.status == 200 {
        assert!(std::time::Instant::now() < deadline, "the check passes for ever");
    }
    let paused = changed(view("n1"), |world| {
        world.me.lease_until = Some(world.now - Duration::from_secs(1));
        world.settings.pause = true;
    });
    check("paused", paused, &["/primary"], &[]).await;
    let stale = changed(view("n1"), |world| {
        world.now = world.now - Duration::from_secs(3600);
        world.me.lease_until = Some(world.now);
        world.settings.failsafe_mode = true;
    });
    check("failsafe with a dead agent", stale, &[], &["/primary"]).await;
}

/// Asks for paths that answer with a status only.
async fn statuses(what: &str, view: View, expected: &[(&str, u16)]) {
    let served = Served::new(view).await;
    for (path, status) in expected {
        let answer = served.get(path).await;
        assert_eq!((answer.status, answer.text.as_str()), (*status, ""), "{what}: {path}");
    }
}

#[tokio::test]
async fn liveness_is_of_the_agent_and_readiness_of_the_server() {
    statuses("leader", view("n1"), &[("/liveness", 200), ("/readiness", 200), ("/readiness?lag=0", 200)])
        .await;
    let old = |me: &str, ttls: u32| {
        changed(view(me), |world| world.now = world.now - world.settings.ttl * ttls - Duration::from_secs(1))
    };
    statuses("hung leader", old("n1", 1), &[("/liveness", 503)]).await;
    statuses("slow replica", old("n2", 1), &[("/liveness", 200)]).await;
    statuses("hung replica", old("n2", 2), &[("/liveness", 503)]).await;
    let paused = changed(old("n2", 2), |world| world.settings.pause = true);
    statuses("paused", paused, &[("/liveness", 200)]).await;
    let behind = with_server(view("n2"), standby(2 << 20));
    let ready = [
        ("/readiness", 503),
        ("/readiness?lag=4MB", 200),
        ("/readiness?lag=1MB&mode=write", 503),
        ("/readiness?lag=x", 503),
    ];
    statuses("behind", behind, &ready).await;
    let cut_off = changed(view("n2"), |world| world.peers.clear());
    statuses("nobody heard", cut_off, &[("/readiness", 503)]).await;
}
