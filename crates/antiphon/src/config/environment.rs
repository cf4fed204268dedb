//! Environment variables that override the node file: `PATRONI_RESTAPI_LISTEN`, `ANTIPHON_NAME`.
//!
//! A variable becomes a value at its key's place before the file is read by its sections, so that both are
//! checked by the same rules. `ANTIPHON_` wins over `PATRONI_`. The environment is handed in: this module must
//! not look at the process's own.

use std::collections::BTreeMap;

use antiphon_core::settings::nearest;

use super::postgres::ACCOUNT_OPTIONS;
use super::problem::{Findings, Place};
use super::yaml::{Content, Entry, Node};

/// Prefixes, the stronger one last.
const PREFIXES: [&str; 2] = ["PATRONI_", "ANTIPHON_"];

/// The whole configuration as text.
pub(super) const WHOLE_FILE: &str = "PATRONI_CONFIGURATION";

/// Names without prefix, and the keys they set.
const VARIABLES: &[(&str, &[&str])] = &[
    ("NAME", &["name"]),
    ("SCOPE", &["scope"]),
    ("NAMESPACE", &["namespace"]),
    ("LOG_LEVEL", &["log", "level"]),
    ("LOG_TYPE", &["log", "type"]),
    ("RESTAPI_LISTEN", &["restapi", "listen"]),
    ("RESTAPI_CONNECT_ADDRESS", &["restapi", "connect_address"]),
    ("RESTAPI_USERNAME", &["restapi", "authentication", "username"]),
    ("RESTAPI_PASSWORD", &["restapi", "authentication", "password"]),
    ("RESTAPI_ALLOWLIST", &["restapi", "allowlist"]),
    ("RESTAPI_ALLOWLIST_INCLUDE_MEMBERS", &["restapi", "allowlist_include_members"]),
    ("RESTAPI_CERTFILE", &["restapi", "certfile"]),
    ("RESTAPI_KEYFILE", &["restapi", "keyfile"]),
    ("RESTAPI_CAFILE", &["restapi", "cafile"]),
    ("RESTAPI_VERIFY_CLIENT", &["restapi", "verify_client"]),
    ("RESTAPI_KEYFILE_PASSWORD", &["restapi", "keyfile_password"]),
    ("RESTAPI_CIPHERS", &["restapi", "ciphers"]),
    ("CTL_USERNAME", &["ctl", "authentication", "username"]),
    ("CTL_PASSWORD", &["ctl", "authentication", "password"]),
    ("CTL_INSECURE", &["ctl", "insecure"]),
    ("CTL_CACERT", &["ctl", "cacert"]),
    ("CTL_CERTFILE", &["ctl", "certfile"]),
    ("CTL_KEYFILE", &["ctl", "keyfile"]),
    ("CTL_KEYFILE_PASSWORD", &["ctl", "keyfile_password"]),
    ("ETCD3_HOST", &["etcd3", "host"]),
    ("ETCD3_HOSTS", &["etcd3", "hosts"]),
    ("ETCD3_URL", &["etcd3", "url"]),
    ("ETCD3_PROXY", &["etcd3", "proxy"]),
    ("ETCD3_SRV", &["etcd3", "srv"]),
    ("ETCD3_PROTOCOL", &["etcd3", "protocol"]),
    ("ETCD3_USERNAME", &["etcd3", "username"]),
    ("ETCD3_PASSWORD", &["etcd3", "password"]),
    ("ETCD3_CACERT", &["etcd3", "cacert"]),
    ("ETCD3_CERT", &["etcd3", "cert"]),
    ("ETCD3_KEY", &["etcd3", "key"]),
    ("ETCD_HOST", &["etcd", "host"]),
    ("ETCD_HOSTS", &["etcd", "hosts"]),
    ("ETCD_URL", &["etcd", "url"]),
    ("CONSUL_HOST", &["consul", "host"]),
    ("CONSUL_URL", &["consul", "url"]),
    ("ZOOKEEPER_HOSTS", &["zookeeper", "hosts"]),
    ("EXHIBITOR_HOSTS", &["exhibitor", "hosts"]),
    ("KUBERNETES_LABELS", &["kubernetes", "labels"]),
    ("KUBERNETES_NAMESPACE", &["kubernetes", "namespace"]),
    ("CITUS_GROUP", &["citus", "group"]),
    ("CITUS_DATABASE", &["citus", "database"]),
    ("RAFT_SELF_ADDR", &["raft", "self_addr"]),
    ("RAFT_BIND_ADDR", &["raft", "bind_addr"]),
    ("RAFT_PARTNER_ADDRS", &["raft", "partner_addrs"]),
    ("RAFT_DATA_DIR", &["raft", "data_dir"]),
    ("RAFT_PASSWORD", &["raft", "password"]),
    ("RAFT_JOIN", &["raft", "join"]),
    ("RAFT_TLS_CERTFILE", &["raft", "tls", "certfile"]),
    ("RAFT_TLS_KEYFILE", &["raft", "tls", "keyfile"]),
    ("RAFT_TLS_CAFILE", &["raft", "tls", "cafile"]),
    ("HEARTBEAT_LISTEN", &["heartbeat", "listen"]),
    ("HEARTBEAT_CONNECT_ADDRESS", &["heartbeat", "connect_address"]),
    ("HEARTBEAT_PASSWORD", &["heartbeat", "password"]),
    ("HEARTBEAT_TLS_CERTFILE", &["heartbeat", "tls", "certfile"]),
    ("HEARTBEAT_TLS_KEYFILE", &["heartbeat", "tls", "keyfile"]),
    ("HEARTBEAT_TLS_CAFILE", &["heartbeat", "tls", "cafile"]),
    ("POSTGRESQL_LISTEN", &["postgresql", "listen"]),
    ("POSTGRESQL_CONNECT_ADDRESS", &["postgresql", "connect_address"]),
    ("POSTGRESQL_PROXY_ADDRESS", &["postgresql", "proxy_address"]),
    ("POSTGRESQL_DATA_DIR", &["postgresql", "data_dir"]),
    ("POSTGRESQL_CONFIG_DIR", &["postgresql", "config_dir"]),
    ("POSTGRESQL_BIN_DIR", &["postgresql", "bin_dir"]),
    ("POSTGRESQL_PGPASS", &["postgresql", "pgpass"]),
    ("POSTGRESQL_STATE_DIR", &["postgresql", "state_dir"]),
    ("SUPERUSER_USERNAME", &["postgresql", "authentication", "superuser", "username"]),
    ("SUPERUSER_PASSWORD", &["postgresql", "authentication", "superuser", "password"]),
    ("REPLICATION_USERNAME", &["postgresql", "authentication", "replication", "username"]),
    ("REPLICATION_PASSWORD", &["postgresql", "authentication", "replication", "password"]),
    ("REWIND_USERNAME", &["postgresql", "authentication", "rewind", "username"]),
    ("REWIND_PASSWORD", &["postgresql", "authentication", "rewind", "password"]),
];

/// Variables that the command line and the log read.
const ELSEWHERE: [&str; 6] = [
    "ANTIPHON_CONFIG_FILE",
    "ANTIPHON_URL",
    "ANTIPHON_LOG",
    "ANTIPHON_CACERT",
    "ANTIPHON_CERT",
    "ANTIPHON_KEY",
];

/// Lays the variables over the file's tree.
pub(super) fn overlay(root: &mut Node, env: &BTreeMap<String, String>, findings: &Findings) {
    for prefix in PREFIXES {
        for (variable, value) in env {
            let ours = variable != WHOLE_FILE && !ELSEWHERE.contains(&variable.as_str());
            let Some(name) = variable.strip_prefix(prefix).filter(|_| ours) else { continue };
            // As in Patroni, an empty variable is one that is not set: containers cannot always unset them.
            if value.is_empty() {
                continue;
            }
            let place = Place::Variable(variable.as_str().into());
            let option = account_option(name);
            let path = VARIABLES.iter().find(|(known, _)| *known == name).map(|(_, path)| *path);
            match path.or(option.as_ref().map(<[&str; 4]>::as_slice)) {
                Some(path) => {
                    let content = Content::Scalar { text: value.clone(), plain: true };
                    set(root, path, Node { place, content });
                }
                None => {
                    let nearest = close_variable(name);
                    let hint =
                        nearest.map(|name| format!("; did you mean {prefix}{name}?")).unwrap_or_default();
                    findings.warning(&place, "", format!("is not a variable that is read{hint}"));
                }
            }
        }
    }
}

/// The path of `SUPERUSER_SSLMODE` and its like.
fn account_option(name: &str) -> Option<[&'static str; 4]> {
    let (user, option) = name.split_once('_')?;
    let user =
        ["superuser", "replication", "rewind"].into_iter().find(|known| known.eq_ignore_ascii_case(user))?;
    let option = ACCOUNT_OPTIONS.into_iter().find(|known| known.eq_ignore_ascii_case(option))?;
    Some(["postgresql", "authentication", user, option])
}

fn close_variable(name: &str) -> Option<&'static str> {
    let lower = name.to_ascii_lowercase();
    let known: Vec<String> = VARIABLES.iter().map(|(known, _)| known.to_ascii_lowercase()).collect();
    let found = nearest(&lower, known.iter().map(String::as_str))?;
    VARIABLES.iter().map(|(known, _)| *known).find(|known| known.eq_ignore_ascii_case(found))
}

/// Sets a value deep in a tree; what stood in the way and is not a map gives way.
fn set(node: &mut Node, path: &[&str], value: Node) {
    let Some((first, rest)) = path.split_first() else {
        *node = value;
        return;
    };
    if !matches!(node.content, Content::Map(_)) {
        *node = Node { place: value.place.clone(), content: Content::Map(Vec::new()) };
    }
    let Content::Map(entries) = &mut node.content else { return };
    match entries.iter_mut().find(|entry| entry.key == *first) {
        Some(entry) => {
            if rest.is_empty() {
                entry.place = value.place.clone();
            }
            set(&mut entry.node, rest, value);
        }
        None => {
            let place = value.place.clone();
            let mut below = Node { place: place.clone(), content: Content::Null };
            set(&mut below, rest, value);
            entries.push(Entry { key: (*first).to_owned(), place, node: below });
        }
    }
}
