//! Agents that end and come back on real clusters: their servers are not to notice.

use std::path::Path;

use antiphon::demo::cluster::Cluster;
use serde_json::json;

use super::{Scratch, UP_WITHIN, plan};

/// The first line of `postmaster.pid` of every member.
fn servers(cluster: &Cluster) -> Vec<String> {
    let pid = |data: &Path| {
        let text = std::fs::read_to_string(data.join("postmaster.pid")).unwrap();
        text.lines().next().unwrap().to_owned()
    };
    cluster.nodes.iter().filter_map(|node| node.data_dir.as_deref()).map(pid).collect()
}

#[tokio::test]
async fn agents_that_all_start_again_leave_every_server_running() {
    let scratch = Scratch::new("agents");
    let mut cluster =
        Cluster::start(&plan(&scratch, 3, false, json!({ "synchronous_mode": "quorum" }))).unwrap();
    cluster.wait_whole(UP_WITHIN).await.unwrap();
    // A store with a past: what it shows first after a start must not be taken for the present.
    let leader = cluster.leader().await.unwrap();
    cluster.kill_node(leader);
    cluster.start_agent(leader).unwrap();
    cluster.wait_whole(UP_WITHIN).await.unwrap();
    for _ in 0..3 {
        let before = servers(&cluster);
        for index in 0..3 {
            cluster.kill_agent(index);
        }
        for index in 0..3 {
            cluster.start_agent(index).unwrap();
        }
        cluster.wait_whole(UP_WITHIN).await.unwrap();
        assert_eq!(servers(&cluster), before);
    }
    cluster.stop();
}
