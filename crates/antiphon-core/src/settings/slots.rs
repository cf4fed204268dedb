//! Permanent replication slots and the slots that are left alone.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::{KeyPath, SettingsError};
use super::nearest::nearest;

/// Longest name of a slot, in bytes.
const SLOT_NAME_BYTES_MAX: usize = 63;

/// Whether a slot keeps WAL for a follower or for a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SlotKind {
    /// For streaming replication.
    Physical,
    /// For logical decoding.
    Logical,
}

/// A slot that exists on every leader.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum PermanentSlot {
    /// For streaming replication.
    Physical,
    /// For logical decoding.
    Logical {
        /// The database it decodes.
        database: String,
        /// The output plugin (`pgoutput`).
        plugin: String,
    },
}

/// Which slots are left alone: all given properties must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotMatcher {
    /// The slot's name.
    pub name: Option<String>,
    /// Its type.
    pub kind: Option<SlotKind>,
    /// Its database.
    pub database: Option<String>,
    /// Its plugin.
    pub plugin: Option<String>,
}

impl SlotMatcher {
    /// Whether a slot with these properties is to be left alone.
    pub fn matches(&self, name: &str, kind: SlotKind, database: Option<&str>, plugin: Option<&str>) -> bool {
        let same = |wanted: &Option<String>, actual: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| actual == Some(wanted))
        };
        same(&self.name, Some(name))
            && self.kind.is_none_or(|wanted| wanted == kind)
            && same(&self.database, database)
            && same(&self.plugin, plugin)
    }
}

const SLOT_KEYS: [&str; 4] = ["type", "database", "plugin", "cluster_type"];
const MATCHER_KEYS: [&str; 4] = ["name", "type", "database", "plugin"];

/// Reads one entry of `slots`.
pub(crate) fn read_slot(
    path: &KeyPath,
    name: &str,
    value: &Value,
    errors: &mut Vec<SettingsError>,
) -> Option<PermanentSlot> {
    let name_allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    if name.is_empty() || name.len() > SLOT_NAME_BYTES_MAX || !name.bytes().all(name_allowed) {
        let reason = "is not a slot name: use 1 to 63 lower-case letters, digits or '_'";
        errors.push(SettingsError::refused(path.clone(), reason.to_owned()));
        return None;
    }
    let Some(map) = value.as_object() else {
        errors.push(SettingsError::invalid(
            path.clone(),
            value,
            "a map with type, and for a logical slot database and plugin",
        ));
        return None;
    };
    unknown_keys(path, map, &SLOT_KEYS, errors);
    if map.get("cluster_type").and_then(Value::as_str).is_some_and(|kind| kind != "primary") {
        let reason = "is not supported yet: standby clusters are not; remove it or set it to primary";
        errors.push(SettingsError::refused(path.join("cluster_type"), reason.to_owned()));
    }
    let database = text(path, map, "database", errors);
    let plugin = text(path, map, "plugin", errors);
    // As Patroni: a slot without a type is logical when it names what only a logical slot has.
    let kind = match map.get("type") {
        None if database.is_some() || plugin.is_some() => Some(SlotKind::Logical),
        None => Some(SlotKind::Physical),
        Some(kind) => read_kind(path, kind, errors),
    };
    match (kind?, database, plugin) {
        (SlotKind::Physical, None, None) => Some(PermanentSlot::Physical),
        (SlotKind::Logical, Some(database), Some(plugin)) => {
            Some(PermanentSlot::Logical { database, plugin })
        }
        (SlotKind::Physical, _, _) => {
            let reason =
                "has a database or plugin, which only a logical slot has; remove them or set type: logical";
            errors.push(SettingsError::refused(path.clone(), reason.to_owned()));
            None
        }
        (SlotKind::Logical, _, _) => {
            let reason = "is logical and needs both database and plugin";
            errors.push(SettingsError::refused(path.clone(), reason.to_owned()));
            None
        }
    }
}

/// Reads one entry of `ignore_slots`.
pub(crate) fn read_matcher(
    path: &KeyPath,
    value: &Value,
    errors: &mut Vec<SettingsError>,
) -> Option<SlotMatcher> {
    let Some(map) = value.as_object().filter(|map| !map.is_empty()) else {
        errors.push(SettingsError::invalid(
            path.clone(),
            value,
            "a map with at least one of name, type, database, plugin",
        ));
        return None;
    };
    unknown_keys(path, map, &MATCHER_KEYS, errors);
    Some(SlotMatcher {
        name: text(path, map, "name", errors),
        kind: map.get("type").and_then(|kind| read_kind(path, kind, errors)),
        database: text(path, map, "database", errors),
        plugin: text(path, map, "plugin", errors),
    })
}

fn read_kind(path: &KeyPath, value: &Value, errors: &mut Vec<SettingsError>) -> Option<SlotKind> {
    match value.as_str() {
        Some("physical") => Some(SlotKind::Physical),
        Some("logical") => Some(SlotKind::Logical),
        _ => {
            errors.push(SettingsError::invalid(path.join("type"), value, "physical or logical"));
            None
        }
    }
}

/// A name inside a slot's entry. It reaches SQL, so control characters are refused here.
fn text(
    path: &KeyPath,
    map: &Map<String, Value>,
    key: &str,
    errors: &mut Vec<SettingsError>,
) -> Option<String> {
    let value = map.get(key).filter(|value| !value.is_null())?;
    let sound = value
        .as_str()
        .filter(|s| !s.is_empty() && s.len() <= SLOT_NAME_BYTES_MAX && !s.contains(char::is_control));
    if sound.is_none() {
        errors.push(SettingsError::invalid(path.join(key), value, "a name of 1 to 63 bytes"));
    }
    sound.map(str::to_owned)
}

fn unknown_keys(path: &KeyPath, map: &Map<String, Value>, known: &[&str], errors: &mut Vec<SettingsError>) {
    for key in map.keys().filter(|key| !known.contains(&key.as_str())) {
        let nearest = nearest(key, known.iter().copied()).map(str::to_owned);
        errors.push(SettingsError::Unknown { path: path.join(key), nearest });
    }
}
