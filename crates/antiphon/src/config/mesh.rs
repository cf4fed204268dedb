//! The `mesh` section: this database as one of several leaders, beside a member or in a file of its own.
//!
//! Read by itself, as the router's is. It says how to reach databases and nothing else: who takes part, and with
//! which tables, stands in the databases.

use std::collections::BTreeMap;

use antiphon_mesh::dsn::{Dsn, without_password};

use super::address::Listen;
use super::model::LogConfig;
use super::problem::Findings;
use super::resolve;
use super::router::OF_A_MEMBER;
use super::section::Section;
use super::yaml::Node;

/// As the router's, one further.
const HTTP_PORT: u16 = 9128;

/// A node of a mesh and the file that it stands in.
#[derive(Clone, Debug)]
pub struct MeshFile {
    /// What the node is called.
    pub node: String,
    /// Its database.
    pub connect: Dsn,
    /// How others reach that, without a password.
    pub advertise: String,
    /// How this node reaches others, where that is not what they advertise; by name.
    pub peers: BTreeMap<String, Dsn>,
    /// Where metrics are, for a node alone.
    pub http: Option<Listen>,
    /// Nothing else is run by this file.
    pub alone: bool,
    /// What is logged and how.
    pub log: LogConfig,
}

/// Reads the section; none if there is none, or a problem has been noted.
pub(super) fn resolve(root: &Node, env: &BTreeMap<String, String>, findings: &Findings) -> Option<MeshFile> {
    let top = Section::of(root, String::new(), findings);
    if !top.has("mesh") {
        return None;
    }
    let Some(section) = top.section("mesh") else {
        top.problem("mesh", "is empty; give it node and connect, or remove it");
        return None;
    };
    let alone = !OF_A_MEMBER.iter().any(|name| top.has(name));
    if alone && top.has("router") {
        top.problem("mesh", "cannot share a file with a router alone; give it a file of its own");
    }
    let log = resolve::log(&top);
    let read = |text: &str| Dsn::parse(text, env).map_err(|error| error.to_string());
    let node = section.required("node", "what this node is called in the mesh");
    let connect = section.parsed("connect", read);
    if connect.is_none() && !section.has("connect") {
        section.problem(
            "connect",
            "is missing: a connection string of this node's database, as host=db1 dbname=shop",
        );
    }
    let told = |text: &str| without_password(text).map_err(|error| error.to_string());
    let advertise = section.parsed("advertise", |text| read(text).and_then(|_| told(text)));
    let own = section.parsed("connect", told);
    let mut peers = BTreeMap::new();
    if let Some(listed) = section.section("peers") {
        for entry in listed.rest() {
            if let Some(dsn) = listed.parsed(&entry.key, read) {
                peers.insert(entry.key.clone(), dsn);
            }
        }
    }
    let http = section.get("http_listen").and_then(|_| section.listen("http_listen", Some(HTTP_PORT)));
    if http.is_some() && !alone {
        section.problem(
            "http_listen",
            "is for a node alone; beside a member, its metrics are with the member's",
        );
    }
    section.finish();
    if alone {
        top.finish();
    }
    Some(MeshFile { node: node?, connect: connect?, advertise: advertise.or(own)?, peers, http, alone, log })
}
