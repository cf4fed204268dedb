//! Which follower reads go to: zones first, weights, and nobody who is too far behind.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::reads::{ask, route, wait_for_followers};
use super::support::{Routed, UP_WITHIN, wait_until};

/// Where some reads of a client went.
async fn routes(client: &Client, reads: u32) -> BTreeMap<String, u32> {
    let mut routes = BTreeMap::new();
    for _ in 0..reads {
        ask(client, "SELECT count(*) FROM t").await;
        *routes.entry(route(client).await).or_default() += 1;
    }
    routes
}

/// Gives a member tags, by its node file.
async fn tag(routed: &Routed, index: usize, tags: &str) {
    let file = routed.cluster.nodes[index].file.clone();
    let text = std::fs::read_to_string(&file).unwrap();
    let kept: Vec<&str> = text.lines().filter(|line| !line.starts_with("tags:")).collect();
    std::fs::write(&file, format!("{}\ntags: {tags}\n", kept.join("\n"))).unwrap();
    let api = routed.cluster.nodes[index].api_port;
    let told = antiphon::demo::http::post(api, "/reload", "", UP_WITHIN).await.unwrap();
    assert_eq!(told.status, 202, "{}", told.body);
}

#[tokio::test]
async fn reads_go_where_zones_weights_and_bounds_of_lag_say() {
    let settings = "  read_from: followers\n  slow_start: 0\n  zone: here\n  lag_bytes_max: 64kB\n";
    let routed = Routed::start("balance", 3, settings).await;
    let client = routed.client().await;
    client.batch_execute("CREATE TABLE t (n int)").await.unwrap();
    client.batch_execute("SET antiphon.consistency = eventual").await.unwrap();
    wait_for_followers(&routed).await;
    let leader = routed.cluster.leader().await.unwrap();
    let followers: Vec<usize> = (0..3).filter(|index| *index != leader).collect();
    let name = |at: usize| format!("follower: {}", routed.cluster.nodes[followers[at]].name);
    let all_at = async |at: usize| {
        let told = routes(&client, 20).await;
        told.len() == 1 && told.contains_key(&name(at))
    };
    wait_until("both are read from", UP_WITHIN, async || routes(&client, 40).await.len() == 2).await;

    tag(&routed, followers[0], "{zone: here, read_weight: 1}").await;
    wait_until("the own zone is read from", UP_WITHIN, async || all_at(0).await).await;
    tag(&routed, followers[0], "{zone: here, read_weight: 0}").await;
    wait_until("who has no weight is left alone", UP_WITHIN, async || all_at(1).await).await;
    tag(&routed, followers[0], "{zone: here}").await;
    wait_until("the own zone is read from again", UP_WITHIN, async || all_at(0).await).await;

    let behind = routed.direct(followers[0]).await;
    behind.batch_execute("SELECT pg_wal_replay_pause()").await.unwrap();
    client.batch_execute("INSERT INTO t SELECT generate_series(1, 5000)").await.unwrap();
    wait_until("who is too far behind is not", UP_WITHIN, async || all_at(1).await).await;
    let other = routed.direct(followers[1]).await;
    other.batch_execute("SELECT pg_wal_replay_pause()").await.unwrap();
    client.batch_execute("INSERT INTO t SELECT generate_series(1, 5000)").await.unwrap();
    wait_until("the leader is if all are", UP_WITHIN, async || {
        routes(&client, 5).await.contains_key("leader: lagging")
    })
    .await;
    for follower in [behind, other] {
        follower.batch_execute("SELECT pg_wal_replay_resume()").await.unwrap();
    }
    wait_until("and they come back", UP_WITHIN, async || all_at(0).await).await;
}
