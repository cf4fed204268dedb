//! The rules of the key space, the same for every store: what a transaction may hold, and what it does.
//!
//! Pure, so that every member of a Raft cluster that applies the same transactions has the same space. It
//! never looks at anything but its arguments.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::{
    Expect, KEY_BYTES_MAX, OPERATIONS_MAX, Snapshot, StoreError, TRANSACTION_BYTES_MAX, Transaction,
    VALUE_BYTES_MAX, Versioned,
};

/// All keys and values together, in bytes: a snapshot of the space must fit one message between members.
pub(crate) const SPACE_BYTES_MAX: usize = 6 * 1024 * 1024;
/// What a key costs besides its bytes: revision and lengths.
const ENTRY_BYTES: usize = 16;

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Applied {
    /// All expectations held; the space is at this revision now.
    Committed(u64),
    /// The expectation at this position did not hold; nothing was written.
    Conflict(u16),
    /// The space would have become larger than [`SPACE_BYTES_MAX`]; nothing was written.
    Full,
}

impl Applied {
    /// The answer to who asked for `transaction`.
    pub(crate) fn answer(self, transaction: &Transaction) -> Result<u64, StoreError> {
        match self {
            Self::Committed(revision) => Ok(revision),
            Self::Conflict(position) => {
                let expect = transaction.expects.get(usize::from(position));
                Err(StoreError::Conflict { key: expect.map(|(key, _)| key.clone()).unwrap_or_default() })
            }
            Self::Full => {
                let mib = SPACE_BYTES_MAX / 1024 / 1024;
                Err(StoreError::Invalid(format!("the key space is full ({mib} MiB); delete keys first")))
            }
        }
    }
}

/// Refuses what no store may take.
pub(crate) fn check(transaction: &Transaction) -> Result<(), StoreError> {
    let refuse = |why: String| Err(StoreError::Invalid(why));
    let Transaction { expects, puts, deletes } = transaction;
    if expects.len() > OPERATIONS_MAX || puts.len() + deletes.len() > OPERATIONS_MAX {
        return refuse(format!("more than {OPERATIONS_MAX} operations"));
    }
    let written = puts.iter().map(|(key, _)| key).chain(deletes);
    for key in written.clone().chain(expects.iter().map(|(key, _)| key)) {
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return refuse(format!("a key of {} bytes; 1 to {KEY_BYTES_MAX} are allowed", key.len()));
        }
    }
    let mut seen = BTreeSet::new();
    for key in written {
        if !seen.insert(key) {
            return refuse(format!("the key {key:?} is written twice"));
        }
    }
    if let Some((key, value)) = puts.iter().find(|(_, value)| value.len() > VALUE_BYTES_MAX) {
        let bytes = value.len();
        return refuse(format!(
            "the value of {key:?} has {bytes} bytes; at most {VALUE_BYTES_MAX} are allowed"
        ));
    }
    let bytes: usize = puts.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > TRANSACTION_BYTES_MAX {
        return refuse(format!("{bytes} bytes together; at most {TRANSACTION_BYTES_MAX} are allowed"));
    }
    Ok(())
}

/// Does `transaction` to `space`, or nothing if an expectation does not hold. The revision grows by one if
/// something was written or removed.
/// Copies the space only if it is shared and something changes.
pub(crate) fn apply(space: &mut Arc<Snapshot>, transaction: &Transaction) -> Applied {
    for (position, (key, expect)) in transaction.expects.iter().enumerate() {
        let holds = match (space.entries.get(key), expect) {
            (None, Expect::Absent) => true,
            (Some(stored), Expect::At(revision)) => stored.revision == *revision,
            (None, Expect::At(_)) | (Some(_), Expect::Absent) => false,
        };
        if !holds {
            return Applied::Conflict(u16::try_from(position).unwrap_or(u16::MAX));
        }
    }
    if bytes_after(space, transaction) > SPACE_BYTES_MAX {
        return Applied::Full;
    }
    let removes = transaction.deletes.iter().any(|key| space.entries.contains_key(key));
    if transaction.puts.is_empty() && !removes {
        return Applied::Committed(space.revision);
    }
    let space = Arc::make_mut(space);
    let revision = space.revision.saturating_add(1);
    for key in &transaction.deletes {
        space.entries.remove(key);
    }
    for (key, value) in &transaction.puts {
        space.entries.insert(key.clone(), Versioned { value: value.clone(), revision });
    }
    space.revision = revision;
    Applied::Committed(revision)
}

/// The size of the space once `transaction` is done; a transaction that only removes is never too much.
fn bytes_after(space: &Snapshot, transaction: &Transaction) -> usize {
    if transaction.puts.is_empty() {
        return 0;
    }
    let goes = |key: &String| {
        transaction.deletes.contains(key) || transaction.puts.iter().any(|(put, _)| put == key)
    };
    let cost = |key: &String, value: &String| key.len() + value.len() + ENTRY_BYTES;
    let stay =
        space.entries.iter().filter(|(key, _)| !goes(key)).map(|(key, stored)| cost(key, &stored.value));
    stay.chain(transaction.puts.iter().map(|(key, value)| cost(key, value))).sum()
}
