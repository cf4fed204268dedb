//! The store's keys and what is under them, read and written.
//!
//! A record that cannot be read is never guessed at: the cluster's makes the agent stop deciding, a member's
//! is left out, and both are said once in the log.

use std::collections::BTreeMap;

use antiphon_core::NodeName;
use antiphon_core::ha::cluster::{Cluster, FORMAT, Lease, Member, Promise, Request};
use antiphon_core::ha::world::Stored;
use antiphon_store::{Snapshot, Versioned};
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use super::view::HistoryEntry;

/// Leadership.
pub const CLUSTER: &str = "cluster";
/// The leader's lease.
pub const LEASE: &str = "lease";
/// Members' records, one a name.
pub const MEMBERS: &str = "members/";
/// What an operator asked for.
pub const REQUEST: &str = "failover";
/// Cluster-wide settings.
pub const CONFIG: &str = "config";
/// Past promotions.
pub const HISTORY: &str = "history";

/// A record that this version cannot read.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "the store's record {key:?} cannot be read ({reason}); was it written by a newer version, or by hand?"
)]
pub struct Unreadable {
    key: String,
    reason: String,
}

/// The store's records, typed.
#[derive(Debug, Default)]
pub struct Records {
    /// Under [`CLUSTER`].
    pub cluster: Option<Stored<Cluster>>,
    /// Under [`LEASE`].
    pub lease: Option<Stored<Lease>>,
    /// Under [`MEMBERS`], those that can be read.
    pub members: BTreeMap<NodeName, Stored<Member>>,
    /// Under [`REQUEST`].
    pub request: Option<Stored<Request>>,
    /// Under [`CONFIG`], with its revision; `null` at revision 0 if there is none.
    pub config: (Value, u64),
    /// Under [`HISTORY`].
    pub history: Vec<HistoryEntry>,
    /// Revision of [`HISTORY`]; 0 if there is none.
    pub history_revision: u64,
    /// Members' records that could not be read.
    pub unreadable: Vec<Unreadable>,
}

/// Reads a snapshot.
///
/// # Errors
/// If a record that decides (leadership, lease) cannot be read.
pub fn read(snapshot: &Snapshot) -> Result<Records, Unreadable> {
    let mut records = Records {
        cluster: decode(snapshot, CLUSTER)?,
        lease: decode(snapshot, LEASE)?,
        config: (Value::Null, 0),
        ..Records::default()
    };
    match &records.cluster {
        Some(cluster) => check(&cluster.value)?,
        None if snapshot.entries.contains_key("initialize") => {
            let reason =
                "it is Patroni's: this scope belongs to a Patroni cluster, give Antiphon another one";
            return Err(unreadable("initialize", reason));
        }
        None => {}
    }
    for (key, versioned) in &snapshot.entries {
        let Some(name) = key.strip_prefix(MEMBERS) else { continue };
        match parse::<Member>(key, versioned) {
            Ok(member) if member.value.name.as_str() == name && member.value.format <= FORMAT => {
                records.members.insert(member.value.name.clone(), member);
            }
            Ok(_) => {
                records.unreadable.push(unreadable(key, "it names another member, or has a newer format"));
            }
            Err(error) => records.unreadable.push(error),
        }
    }
    match decode(snapshot, REQUEST) {
        Ok(request) => records.request = request,
        Err(error) => records.unreadable.push(error),
    }
    match decode::<Value>(snapshot, CONFIG) {
        Ok(Some(stored)) => records.config = (stored.value, stored.revision),
        Ok(None) => {}
        // The last good ones stay in force.
        Err(error) => records.unreadable.push(error),
    }
    match decode::<Vec<HistoryEntry>>(snapshot, HISTORY) {
        Ok(Some(stored)) => (records.history, records.history_revision) = (stored.value, stored.revision),
        Ok(None) => {}
        Err(error) => records.unreadable.push(error),
    }
    Ok(records)
}

fn check(cluster: &Cluster) -> Result<(), Unreadable> {
    if cluster.format > FORMAT {
        return Err(unreadable(CLUSTER, "it has a newer format"));
    }
    if u32::try_from(cluster.epoch.0).is_err() || cluster.epoch.0 == 0 {
        return Err(unreadable(CLUSTER, "its epoch is out of range"));
    }
    match &cluster.sync {
        Promise::Quorum(set) if set.k == 0 || set.k > set.members.len() => {
            Err(unreadable(CLUSTER, "its sync set asks for more members than it has"))
        }
        _ => Ok(()),
    }
}

fn unreadable(key: &str, reason: &str) -> Unreadable {
    Unreadable { key: key.to_owned(), reason: reason.to_owned() }
}

fn decode<T: DeserializeOwned>(snapshot: &Snapshot, key: &str) -> Result<Option<Stored<T>>, Unreadable> {
    snapshot.entries.get(key).map(|versioned| parse(key, versioned)).transpose()
}

fn parse<T: DeserializeOwned>(key: &str, versioned: &Versioned) -> Result<Stored<T>, Unreadable> {
    let value =
        serde_json::from_str(&versioned.value).map_err(|error| unreadable(key, &error.to_string()))?;
    Ok(Stored { value, revision: versioned.revision })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(key: &str, value: &str) -> Snapshot {
        let entry = Versioned { value: value.to_owned(), revision: 7 };
        Snapshot { revision: 7, entries: BTreeMap::from([(key.to_owned(), entry)]) }
    }

    #[test]
    fn a_record_of_leadership_that_cannot_be_read_stops_the_agent() {
        let base = r#""format":1,"system_identifier":null,"epoch":3,"phase":"bootstrapping","by":"a","base":{"timeline":1,"lsn":"0/0"}"#;
        let asks_too_much = r#""sync":{"promise":"quorum","method":"any","k":2,"members":["a"]}"#;
        for bad in ["", "[]", "{}", &format!("{{{base},{asks_too_much}}}")] {
            assert!(read(&snapshot(CLUSTER, bad)).is_err(), "{bad} was taken");
        }
        let good = format!("{{{base},\"sync\":{{\"promise\":\"alone\"}}}}");
        assert!(read(&snapshot(CLUSTER, &good)).is_ok());
    }

    #[test]
    fn settings_that_cannot_be_read_stop_nobody() {
        let records = read(&snapshot(CONFIG, "ttl: 30")).expect("the last good ones stay in force");
        assert_eq!(records.config, (Value::Null, 0));
        assert_eq!(records.unreadable.len(), 1);
    }

    #[test]
    fn a_member_that_cannot_be_read_is_left_out() {
        let records = read(&snapshot("members/a", "garbage")).expect("members decide nothing alone");
        assert!(records.members.is_empty());
        assert_eq!(records.unreadable.len(), 1);
    }
}
