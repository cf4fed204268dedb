//! A store in memory: for tests and for a demonstration that needs no disk.
//!
//! Clones share one space, as the members of a cluster do. Nothing survives the last clone, so it must never
//! be what a real cluster agrees with.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;

use crate::space::{self, Applied};
use crate::{Snapshot, Store, StoreError, Transaction};

/// A key space in this process's memory.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    space: Arc<watch::Sender<Arc<Snapshot>>>,
}

impl MemoryStore {
    /// An empty space. Clone it for every member that shall share it.
    pub fn new() -> Self {
        Self { space: Arc::new(watch::Sender::new(Arc::default())) }
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
        space::check(&transaction)?;
        let mut applied = Applied::Full;
        // The closure runs under the channel's lock: that is what makes the transaction atomic.
        self.space.send_if_modified(|now| {
            let before = now.revision;
            applied = space::apply(now, &transaction);
            now.revision != before
        });
        applied.answer(&transaction)
    }

    async fn read(&self) -> Result<Arc<Snapshot>, StoreError> {
        Ok(Arc::clone(&self.space.borrow()))
    }

    fn watch(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.space.subscribe()
    }

    fn voters(&self) -> Option<Vec<String>> {
        None
    }
}
