//! Where the cluster agrees: a small linearizable key-value space that pushes its changes.
//!
//! One trait, [`Store`], and one contract test that every implementation passes: embedded Raft (the
//! default), etcd v3 (for those who run it) and memory (for tests). Everything that must be decided once in
//! a cluster goes through [`Store::commit`]; everything else is derived from what it returned.

mod etcd;
mod memory;
mod raft;
mod space;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use thiserror::Error;
use tokio::sync::watch;

pub use crate::etcd::{EtcdSettings, EtcdStore};
pub use crate::memory::MemoryStore;
pub use crate::raft::{DiskError, RaftError, RaftMember, RaftSettings, RaftStatus, RaftStore, RaftTimings};

/// What a transaction expects of a key before anything is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The key does not exist.
    Absent,
    /// The key's last write was at this revision.
    At(u64),
}

/// Writes that happen together, or not at all if one expectation fails.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// Every key here must be as expected. One without puts and deletes only compares.
    pub expects: Vec<(String, Expect)>,
    /// Keys to write. Values are UTF-8 text (JSON); at most [`VALUE_BYTES_MAX`] bytes each.
    pub puts: Vec<(String, String)>,
    /// Keys to remove; absent ones are no error.
    pub deletes: Vec<String>,
}

/// The longest value that a store takes, in bytes.
pub const VALUE_BYTES_MAX: usize = 512 * 1024;
/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 512;
/// All keys and values of one transaction together, in bytes.
pub const TRANSACTION_BYTES_MAX: usize = 1024 * 1024;
/// Expectations, and writes, that one transaction may have (etcd's own bound by default).
pub const OPERATIONS_MAX: usize = 128;

/// A value and the revision of its last write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The value as it was put.
    pub value: String,
    /// The store's revision when it was put.
    pub revision: u64,
}

/// The whole key space at one revision. Small by design: a few keys a member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Grows with every transaction that wrote something.
    pub revision: u64,
    /// Keys below the cluster's prefix, the prefix taken off.
    pub entries: BTreeMap<String, Versioned>,
}

/// Why a store did not do as asked.
#[derive(Debug, Error)]
pub enum StoreError {
    /// Nothing was written: `key` was not as expected. Look at the newest snapshot and decide anew.
    #[error("another member changed {key:?} first")]
    Conflict {
        /// The first key that was not as expected.
        key: String,
    },
    /// No answer in time. The write may have happened, or may yet; a later snapshot will tell.
    #[error("no majority of the store answered within {0:?}")]
    Timeout(Duration),
    /// The store cannot be used at all by this member, and why.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// The transaction itself is not acceptable (too large, a key twice).
    #[error("the store refused the transaction: {0}")]
    Invalid(String),
}

/// A linearizable key-value space shared by the members of one cluster.
#[async_trait]
pub trait Store: Send + Sync {
    /// Commits `transaction` and returns the revision it was committed at. When this returns `Ok`, the
    /// snapshot of [`Store::watch`] on this member is at least that new.
    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError>;

    /// Waits until this member's snapshot is at least as new as everything committed anywhere before the
    /// call, and returns it.
    async fn read(&self) -> Result<Arc<Snapshot>, StoreError>;

    /// The newest snapshot that this member knows, pushed on every change. It may be stale when the member
    /// is cut off; it never goes back.
    fn watch(&self) -> watch::Receiver<Arc<Snapshot>>;

    /// How many members vote in this store, and which peer addresses they have, if the store's voters are
    /// the cluster's members (embedded Raft); none if the store votes elsewhere (etcd).
    fn voters(&self) -> Option<Vec<String>>;
}
