//! The store: one linearizable key space, as `antiphon-store` promises it, typed.
//!
//! Every transaction is applied at one moment, in one order, if its expectations hold. That the answer may be
//! late or lost, and a snapshot stale, is the network's doing (`link.rs`), not the store's.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use antiphon_core::ha::cluster::{Cluster, Lease, Member, Position, Request};
use antiphon_core::ha::world::Stored;
use antiphon_core::settings::Settings;
use antiphon_core::{Epoch, NodeName};

use crate::clock::Time;

/// All that the store holds at one revision.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Grows with each transaction that wrote something.
    pub revision: u64,
    /// Under `cluster`.
    pub cluster: Option<Stored<Cluster>>,
    /// Under `lease`.
    pub lease: Option<Stored<Lease>>,
    /// Under `members/`.
    pub members: BTreeMap<NodeName, Stored<Member>>,
    /// Under `failover`.
    pub request: Option<Stored<Request>>,
    /// Under `config`, resolved.
    pub settings: Rc<Settings>,
    /// How many members vote.
    pub voters: usize,
}

/// A transaction, as the agent puts it together from a step.
#[derive(Clone, Debug)]
pub enum Transaction {
    /// `Step::ChangeCluster`.
    Cluster {
        /// The new record.
        cluster: Box<Cluster>,
        /// Its revision before; 0: absent.
        expect: u64,
        /// Put the lease too, to last this long.
        take_lease: Option<Duration>,
        /// Revision that the lease must have.
        lease_unchanged: Option<u64>,
        /// Revision that the request must have; it is removed.
        consume_request: Option<u64>,
    },
    /// `Step::DropRequest`.
    DropRequest {
        /// Its revision.
        revision: u64,
    },
    /// `Step::RenewLease`.
    Renew {
        /// The term.
        epoch: Epoch,
        /// Revision of the record of leadership.
        expect: u64,
        /// Counted up by the holder.
        count: u64,
        /// How long it lasts.
        ttl: Duration,
        /// How far the holder's WAL reaches.
        end: Option<Position>,
    },
    /// `Step::Publish`.
    Publish {
        /// The record.
        member: Box<Member>,
    },
}

/// The store's state.
#[derive(Debug)]
pub struct StoreModel {
    /// The newest snapshot.
    pub current: Rc<Snapshot>,
    /// Elections of its own make it wait until then.
    pub silent_until: Time,
    /// The node that leads the store; its loss starts an election there.
    pub leader: usize,
}

impl StoreModel {
    /// An empty store with these settings.
    pub fn new(settings: Settings, voters: usize) -> Self {
        let snapshot = Snapshot { settings: Rc::new(settings), voters, ..Snapshot::default() };
        Self { current: Rc::new(snapshot), silent_until: 0, leader: 0 }
    }

    /// Applies a transaction of `by`; none if an expectation failed.
    pub fn apply(&mut self, by: &NodeName, transaction: &Transaction) -> Option<u64> {
        let now = &*self.current;
        let revision_of = |stored: Option<u64>, wanted: Option<u64>| wanted.is_none() || stored == wanted;
        let cluster_at = now.cluster.as_ref().map_or(0, |c| c.revision);
        let lease_at = now.lease.as_ref().map(|l| l.revision);
        let request_at = now.request.as_ref().map(|r| r.revision);
        let holds = match transaction {
            Transaction::Cluster { expect, lease_unchanged, consume_request, .. } => {
                *expect == cluster_at
                    && revision_of(lease_at, *lease_unchanged)
                    && revision_of(request_at, *consume_request)
            }
            Transaction::DropRequest { revision } => request_at == Some(*revision),
            Transaction::Renew { expect, .. } => *expect == cluster_at,
            Transaction::Publish { .. } => true,
        };
        holds.then(|| self.write(|next, revision| put(next, revision, by, transaction)))
    }

    /// Writes something at the next revision.
    pub fn write(&mut self, change: impl FnOnce(&mut Snapshot, u64)) -> u64 {
        let mut next = (*self.current).clone();
        next.revision += 1;
        let revision = next.revision;
        change(&mut next, revision);
        self.current = Rc::new(next);
        revision
    }
}

fn put(next: &mut Snapshot, revision: u64, by: &NodeName, transaction: &Transaction) {
    match transaction {
        Transaction::Cluster { cluster, take_lease, consume_request, .. } => {
            next.cluster = Some(Stored { value: (**cluster).clone(), revision });
            if let Some(ttl) = take_lease {
                let ttl_ms = ttl.as_millis() as u64;
                let lease = Lease { epoch: cluster.epoch, holder: by.clone(), count: 1, ttl_ms, end: None };
                next.lease = Some(Stored { value: lease, revision });
            }
            if consume_request.is_some() {
                next.request = None;
            }
        }
        Transaction::DropRequest { .. } => next.request = None,
        Transaction::Renew { epoch, count, ttl, end, .. } => {
            let ttl_ms = ttl.as_millis() as u64;
            let lease = Lease { epoch: *epoch, holder: by.clone(), count: *count, ttl_ms, end: *end };
            next.lease = Some(Stored { value: lease, revision });
        }
        Transaction::Publish { member } => {
            next.members.insert(member.name.clone(), Stored { value: (**member).clone(), revision });
        }
    }
}
