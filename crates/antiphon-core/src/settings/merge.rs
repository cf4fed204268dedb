//! Changing a document: JSON merge patch (RFC 7396), and what a change changes.

use std::fmt;

use serde_json::{Map, Value};

use super::error::KeyPath;

/// The document with a patch applied: maps are merged, `null` deletes, anything else replaces.
pub fn merge(document: &Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else { return patch.clone() };
    let mut merged = document.as_object().cloned().unwrap_or_default();
    for (key, change) in patch {
        if change.is_null() {
            merged.shift_remove(key);
        } else {
            let before = merged.get(key).unwrap_or(&Value::Null);
            let after = merge(before, change);
            merged.insert(key.clone(), after);
        }
    }
    Value::Object(merged)
}

/// One key that differs between two documents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where.
    pub path: KeyPath,
    /// The value before; none if the key is new.
    pub before: Option<Value>,
    /// The value after; none if the key is gone.
    pub after: Option<Value>,
}

impl fmt::Display for Change {
    /// Lines as a diff shows them: `- ttl: 5` and `+ ttl: 10`, parted by a line feed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.before, &self.after) {
            (Some(before), Some(after)) => {
                write!(f, "- {}: {before}\n+ {}: {after}", self.path, self.path)
            }
            (Some(before), None) => write!(f, "- {}: {before}", self.path),
            (None, Some(after)) => write!(f, "+ {}: {after}", self.path),
            (None, None) => Ok(()),
        }
    }
}

/// What differs between two documents, key by key, in the order of the keys.
pub fn diff(before: &Value, after: &Value) -> Vec<Change> {
    let mut changes = Vec::new();
    compare(&KeyPath::default(), Some(before), Some(after), &mut changes);
    changes.sort_by(|a, b| a.path.cmp(&b.path));
    changes
}

fn compare(path: &KeyPath, before: Option<&Value>, after: Option<&Value>, changes: &mut Vec<Change>) {
    if before == after {
        return;
    }
    let none = Map::new();
    let maps = match (before, after) {
        (Some(Value::Object(before)), Some(Value::Object(after))) => Some((before, after)),
        (Some(Value::Object(before)), None) if !before.is_empty() => Some((before, &none)),
        (None, Some(Value::Object(after))) if !after.is_empty() => Some((&none, after)),
        _ => None,
    };
    let Some((before, after)) = maps else {
        changes.push(Change { path: path.clone(), before: before.cloned(), after: after.cloned() });
        return;
    };
    for key in before.keys().chain(after.keys().filter(|key| !before.contains_key(*key))) {
        compare(&path.join(key), before.get(key), after.get(key), changes);
    }
}
