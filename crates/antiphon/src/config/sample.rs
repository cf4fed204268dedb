//! Writing a node file: what `antiphon demo` gives each of its members.
//!
//! Every text is written in double quotes with JSON's escapes, which YAML reads the same, so that no name or
//! password can change the shape of the file.

use std::path::PathBuf;

use antiphon_core::NodeName;
use serde_json::Value;

use super::address::Address;
use super::secret::Secret;

/// What a member of a small cluster needs to be told.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The cluster's name.
    pub scope: String,
    /// The member's name.
    pub name: NodeName,
    /// Where its API is.
    pub restapi: Address,
    /// The etcd that the cluster agrees in; none: its own Raft.
    pub etcd: Option<Address>,
    /// Where its agent hears the others (Raft or heartbeats).
    pub raft: Address,
    /// The others' raft.
    pub partners: Vec<Address>,
    /// Where its raft keeps its log.
    pub raft_dir: PathBuf,
    /// What members prove to each other.
    pub raft_password: Secret,
    /// The server; none: a witness.
    pub server: Option<SampleServer>,
    /// The first cluster-wide settings: a map.
    pub settings: Value,
}

/// The server of a member.
#[derive(Clone, Debug)]
pub struct SampleServer {
    /// Where it is.
    pub address: Address,
    /// Its data.
    pub data_dir: PathBuf,
    /// Its programs; none: those on the PATH.
    pub bin_dir: Option<PathBuf>,
    /// The password of the user `postgres`.
    pub superuser_password: Secret,
    /// The password of the user `replicator`.
    pub replication_password: Secret,
    /// Lines of pg_hba.conf.
    pub pg_hba: Vec<String>,
}

/// The node file as text. It holds passwords: write it with mode 0600.
pub fn sample(node: &Sample) -> String {
    let mut file = format!(
        "scope: {}\nname: {}\n\nrestapi:\n  listen: {}\n\n{}\nbootstrap:\n  dcs: {}\n  initdb:\n    - data-checksums\n    \
         - encoding: UTF8\n",
        text(&node.scope),
        text(node.name.as_str()),
        text(&node.restapi.to_string()),
        store(node),
        node.settings,
    );
    if let Some(server) = &node.server {
        file.push_str(&section(server));
    }
    file
}

fn store(node: &Sample) -> String {
    let (address, password) = (text(&node.raft.to_string()), text(node.raft_password.expose()));
    if let Some(etcd) = &node.etcd {
        let host = text(&etcd.to_string());
        return format!("etcd3:\n  host: {host}\nheartbeat:\n  listen: {address}\n  password: {password}\n");
    }
    let partners = node.partners.iter().map(|partner| text(&partner.to_string())).collect();
    format!(
        "raft:\n  self_addr: {address}\n  partner_addrs: {}\n  data_dir: {}\n  password: {password}\n",
        Value::Array(partners),
        text(&node.raft_dir.to_string_lossy()),
    )
}

fn section(server: &SampleServer) -> String {
    let bin_dir = match &server.bin_dir {
        Some(folder) => format!("  bin_dir: {}\n", text(&folder.to_string_lossy())),
        None => String::new(),
    };
    let pg_hba: Vec<Value> = server.pg_hba.iter().map(|line| text(line)).collect();
    format!(
        "\npostgresql:\n  listen: {}\n  data_dir: {}\n{bin_dir}  authentication:\n    superuser: {{username: postgres, password: \
         {}}}\n    replication: {{username: replicator, password: {}}}\n  pg_hba: {}\n",
        text(&server.address.to_string()),
        text(&server.data_dir.to_string_lossy()),
        text(server.superuser_password.expose()),
        text(server.replication_password.expose()),
        Value::Array(pg_hba),
    )
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}
