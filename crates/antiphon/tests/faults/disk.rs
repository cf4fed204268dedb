//! A disk that fills up under the leader, for real: each member's is a small one in memory. Mounting takes root,
//! which the suite has where servers are tested as they are deployed; without it these tests say that they saw
//! nothing.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use antiphon::demo::cluster::Cluster;
use antiphon::demo::load::Load;
use nix::unistd::{User, geteuid};
use serde_json::json;

use super::ask::until_led_by_another;
use super::{Scratch, UP_WITHIN, plan};

/// A disk of its own; given back when dropped.
struct Disk(PathBuf);

impl Disk {
    fn mount(place: PathBuf) -> Self {
        std::fs::create_dir_all(&place).unwrap();
        let owner = User::from_name("postgres").unwrap().expect("the servers run as postgres");
        let options = format!("size=512m,mode=700,uid={},gid={}", owner.uid, owner.gid);
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&place).status();
        assert!(mounted.unwrap().success(), "could not mount {}", place.display());
        Self(place)
    }

    /// Leaves no byte. PostgreSQL's tools take no file of this name along.
    fn fill(&self) {
        let mut file = File::create(self.ballast()).unwrap();
        let chunk = vec![b'.'; 1024 * 1024];
        while file.write_all(&chunk).is_ok() {}
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("pgsql_tmp_ballast")
    }

    fn empty(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Three disks at `part` of each member's folder; none without root.
fn disks(dir: &Path, part: &str) -> Option<Vec<Disk>> {
    if !geteuid().is_root() {
        eprintln!("not root: no disk was filled and nothing is shown");
        return None;
    }
    Some(["n1", "n2", "n3"].map(|name| Disk::mount(dir.join(name).join(part))).into())
}

#[tokio::test]
async fn a_leader_whose_disk_is_full_hands_over_to_one_that_has_space() {
    let scratch = Scratch::new("full-disk");
    let Some(disks) = disks(scratch.path(), "data") else { return };
    let plan = plan(&scratch, 3, false, json!({ "synchronous_mode": "quorum" }));
    let mut cluster = Cluster::start(&plan).unwrap();
    cluster.wait_whole(UP_WITHIN).await.unwrap();
    let load = Load::start(cluster.servers(), 2, UP_WITHIN).await.unwrap();
    load.wait_for(50, UP_WITHIN).await.unwrap();

    let leader = cluster.leader().await.unwrap();
    disks[leader].fill();
    until_led_by_another(&cluster, leader).await;
    load.wait_for(100, UP_WITHIN).await.unwrap();
    disks[leader].empty();
    cluster.wait_whole(UP_WITHIN).await.unwrap();
    assert_eq!(load.finish(UP_WITHIN).await.unwrap().lost, 0);
    cluster.stop();
}

#[tokio::test]
async fn a_leader_whose_disk_is_full_under_server_and_store_gives_way() {
    let scratch = Scratch::new("full-disk-store");
    let Some(disks) = disks(scratch.path(), "") else { return };
    let plan = plan(&scratch, 3, false, json!({ "synchronous_mode": "quorum" }));
    let mut cluster = Cluster::start(&plan).unwrap();
    cluster.wait_whole(UP_WITHIN).await.unwrap();
    let load = Load::start(cluster.servers(), 2, UP_WITHIN).await.unwrap();
    load.wait_for(50, UP_WITHIN).await.unwrap();

    let leader = cluster.leader().await.unwrap();
    disks[leader].fill();
    until_led_by_another(&cluster, leader).await;
    load.wait_for(100, UP_WITHIN).await.unwrap();
    disks[leader].empty();
    // A member of the store that cannot write its log ends, and systemd starts it again.
    cluster.start_agent(leader).unwrap();
    cluster.wait_whole(UP_WITHIN).await.unwrap();
    assert_eq!(load.finish(UP_WITHIN).await.unwrap().lost, 0);
    cluster.stop();
}
