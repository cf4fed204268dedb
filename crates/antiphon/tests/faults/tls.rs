//! A cluster that gets certificates while it works: switched on as docs/tls.md says, under a load that counts;
//! then a leader is lost, and certificates are replaced.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use antiphon::cli::Client;
use antiphon::demo::cluster::Cluster;
use antiphon::demo::load::Load;
use antiphon_testcerts::Authority;
use antiphon_tls::{ClientFiles, File, Identity, Trust};
use serde_json::{Value, json};

use super::ask::{PATIENCE, connect, set, until};
use super::{Etcd, Plan, Scratch, UP_WITHIN, plan};

const EVERY_FOLLOWER_VERIFIED: &str = "SELECT count(*) = 2 FROM pg_stat_replication JOIN pg_stat_ssl USING (pid) \
                                       WHERE ssl AND state = 'streaming'";
const CONNINFO_VERIFIES: &str = "SELECT current_setting('primary_conninfo') LIKE '%sslmode=''verify-full''%'";

/// The certificates, and the members' APIs by them.
struct Https<'a> {
    cluster: &'a Cluster,
    files: ClientFiles,
}

impl<'a> Https<'a> {
    fn new(cluster: &'a Cluster, authority: &Path, admin: Identity) -> Self {
        let trust = Trust::Authorities(File::new("ctl.cacert", authority));
        Self { cluster, files: ClientFiles { identity: Some(admin), trust } }
    }

    fn client(&self, index: usize) -> Client {
        let url = format!("https://127.0.0.1:{}", self.cluster.nodes[index].api_port);
        Client::trusting(&url, None, &self.files).unwrap()
    }

    async fn leader(&self) -> Option<usize> {
        for index in 0..self.cluster.nodes.len() {
            if self.client(index).get("/primary").await.is_ok_and(|answer| answer.status == 200) {
                return Some(index);
            }
        }
        None
    }

    /// Waits until one member other than `not` leads and every member that runs streams from it.
    async fn until_whole(&self, not: Option<usize>, followers: usize) -> usize {
        let started = Instant::now();
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        loop {
            let mut seen = Value::Null;
            if let Some(leader) = self.leader().await.filter(|leader| Some(*leader) != not) {
                seen = self.client(leader).get_json("/cluster").await.unwrap_or_default();
                let members = seen["members"].as_array().cloned().unwrap_or_default();
                if members.iter().filter(|member| member["state"] == "streaming").count() == followers {
                    return leader;
                }
            }
            assert!(started.elapsed() < UP_WITHIN, "not whole: {seen}");
            ticks.tick().await;
        }
    }
}

/// Gives the files of a folder to the user that agents become when root starts them.
fn give_away(folder: &Path) {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let user = nix::unistd::User::from_name("postgres").unwrap().unwrap();
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    for path in files.chain([folder.to_owned()]) {
        nix::unistd::chown(&path, Some(user.uid), Some(user.gid)).unwrap();
    }
}

/// A new authority in this folder, and what an operator proves himself with.
fn authority(folder: &Path) -> (Authority, Identity) {
    let authority = Authority::new(folder, "ca");
    let admin = authority.issue("admin", &["admin"]);
    let admin = Identity {
        certificates: File::new("ctl.certfile", admin.certificate),
        key: Some(File::new("ctl.keyfile", admin.key)),
    };
    (authority, admin)
}

/// Writes what docs/tls.md shows into a member's file.
fn cover(cluster: &Cluster, index: usize, authority: &Authority) {
    let node = &cluster.nodes[index];
    let own = authority.issue(&node.name, &["127.0.0.1"]);
    let api = authority.issue(&format!("{}-api", node.name), &["127.0.0.1"]);
    let ca = authority.file.display();
    let (certificate, key) = (own.certificate.display(), own.key.display());
    let links = format!("  tls: {{certfile: {certificate}, keyfile: {key}, cafile: {ca}}}\n");
    let account = format!("{{sslmode: verify-full, sslrootcert: {ca}, ");
    let text = fs::read_to_string(&node.file)
        .unwrap()
        .replace(
            "restapi:\n",
            &format!(
                "restapi:\n  certfile: {}\n  keyfile: {}\n  cafile: {ca}\n  verify_client: optional\n",
                api.certificate.display(),
                api.key.display()
            ),
        )
        .replace("raft:\n", &format!("raft:\n{links}"))
        .replace("heartbeat:\n", &format!("heartbeat:\n{links}"))
        .replace(
            "etcd3:\n",
            &format!("etcd3:\n  protocol: https\n  cacert: {ca}\n  cert: {certificate}\n  key: {key}\n"),
        )
        .replace("superuser: {", &format!("superuser: {account}"))
        .replace("replication: {", &format!("replication: {account}"));
    let parameters = format!(
        "  parameters: {{ssl: on, ssl_cert_file: {certificate}, ssl_key_file: {key}, ssl_ca_file: {ca}}}\n"
    );
    fs::write(&node.file, text + &parameters).unwrap();
}

#[tokio::test]
async fn a_cluster_gets_certificates_under_load_and_keeps_every_write_through_a_failover() {
    let scratch = Scratch::new("tls");
    let mut cluster =
        Cluster::start(&plan(&scratch, 3, false, json!({ "synchronous_mode": "quorum" }))).unwrap();
    cluster.wait_whole(UP_WITHIN).await.unwrap();
    let load = Load::start(cluster.servers(), 4, UP_WITHIN).await.unwrap();
    load.wait_for(100, UP_WITHIN).await.unwrap();

    let folder = scratch.path().join("certificates");
    let (authority, admin) = authority(&folder);
    let leader = cluster.leader().await.unwrap();
    let began = Instant::now();
    set(&cluster, leader, json!({ "pause": true })).await;
    for index in 0..3 {
        cover(&cluster, index, &authority);
    }
    give_away(&folder);
    for index in 0..3 {
        cluster.kill_agent(index);
        cluster.start_agent(index).unwrap();
    }
    let leader_now = Https::new(&cluster, &authority.file, admin.clone()).until_whole(None, 2).await;
    assert_eq!(leader_now, leader, "nobody else was needed");
    let patch = "PATCH".parse().unwrap();
    let https = Https::new(&cluster, &authority.file, admin.clone());
    let resume = json!({ "pause": null });
    let resumed = https.client(leader).send(patch, "/config", Some(&resume), None, PATIENCE).await.unwrap();
    assert_eq!(resumed.status, 200, "{}", resumed.text);
    load.wait_for(100, UP_WITHIN).await.unwrap();
    eprintln!("tls: switched on with at most {:?} between two acknowledgements", load.longest_gap(began));
    assert_eq!(load.counts().1, 0, "no client noticed");

    let followers: Vec<usize> = (0..3).filter(|index| *index != leader).collect();
    until(&cluster, &followers, CONNINFO_VERIFIES).await;
    until(&cluster, &[leader], EVERY_FOLLOWER_VERIFIED).await;

    let killed = Instant::now();
    cluster.kill_node(leader);
    let https = Https::new(&cluster, &authority.file, admin.clone());
    let next = https.until_whole(Some(leader), 1).await;
    load.wait_for(100, UP_WITHIN).await.unwrap();
    eprintln!("tls: a lost leader cost {:?} without writes", load.longest_gap(killed));
    cluster.start_agent(leader).unwrap();
    let https = Https::new(&cluster, &authority.file, admin.clone());
    assert_eq!(https.until_whole(Some(leader), 2).await, next);
    until(&cluster, &[next], EVERY_FOLLOWER_VERIFIED).await;

    replace_certificates(&cluster, &https, &authority, next, admin).await;
    assert_eq!(load.finish(UP_WITHIN).await.unwrap().lost, 0);
    cluster.stop();
}

#[tokio::test]
async fn a_cluster_on_an_etcd_that_wants_certificates_outlives_its_leader() {
    let scratch = Scratch::new("tls-etcd");
    let folder = scratch.path().join("certificates");
    let (authority, admin) = authority(&folder);
    let own = authority.issue("etcd", &["127.0.0.1"]);
    let arguments: Vec<&OsStr> = vec![
        "--client-cert-auth".as_ref(),
        "--cert-file".as_ref(),
        own.certificate.as_ref(),
        "--key-file".as_ref(),
        own.key.as_ref(),
        "--trusted-ca-file".as_ref(),
        authority.file.as_ref(),
    ];
    let etcd = Etcd::start_with(scratch.path(), "https", &arguments);
    let settings = json!({ "synchronous_mode": "quorum" });
    let plan = Plan { etcd: Some(etcd.port), ..plan(&scratch, 3, false, settings) };
    // They come up in the clear, where nobody answers them, and get their certificates then.
    let mut cluster = Cluster::start(&plan).unwrap();
    for index in 0..3 {
        cluster.kill_agent(index);
        cover(&cluster, index, &authority);
    }
    give_away(&folder);
    for index in 0..3 {
        cluster.start_agent(index).unwrap();
    }
    let leader = Https::new(&cluster, &authority.file, admin.clone()).until_whole(None, 2).await;
    let load = Load::start(cluster.servers(), 4, UP_WITHIN).await.unwrap();
    load.wait_for(100, UP_WITHIN).await.unwrap();
    let killed = Instant::now();
    cluster.kill_node(leader);
    let https = Https::new(&cluster, &authority.file, admin);
    let next = https.until_whole(Some(leader), 1).await;
    load.wait_for(100, UP_WITHIN).await.unwrap();
    eprintln!("tls-etcd: a lost leader cost {:?} without writes", load.longest_gap(killed));
    assert_ne!(next, leader);
    assert_eq!(load.finish(UP_WITHIN).await.unwrap().lost, 0);
    cluster.stop();
}

/// A bad file changes nothing; a good one is used at once.
async fn replace_certificates(
    cluster: &Cluster,
    https: &Https<'_>,
    authority: &Authority,
    index: usize,
    admin: Identity,
) {
    let folder = authority.file.parent().unwrap();
    let name = format!("{}-api", cluster.nodes[index].name);
    let reload = async |client: Client| {
        client.send("POST".parse().unwrap(), "/reload", None, None, PATIENCE).await.unwrap()
    };
    let path = folder.join(format!("{name}.crt"));
    let good = fs::read(&path).unwrap();
    fs::write(&path, "not a certificate").unwrap();
    let answer = reload(https.client(index)).await;
    assert!(answer.status != 202 && answer.text.contains("restapi.certfile"), "{answer:?}");
    fs::write(&path, good).unwrap();

    let other = Authority::new(&folder.join("other"), "other");
    let issued = other.issue(&name, &["127.0.0.1"]);
    fs::copy(&issued.certificate, &path).unwrap();
    fs::copy(&issued.key, folder.join(format!("{name}.key"))).unwrap();
    let answer = reload(https.client(index)).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
    let renewed = Https::new(cluster, &other.file, admin);
    assert_eq!(renewed.client(index).get("/primary").await.unwrap().status, 200);
    assert!(https.client(index).get("/primary").await.is_err(), "the old certificate is gone");
    assert!(connect(cluster, index).await.is_some(), "the server goes on");
}
