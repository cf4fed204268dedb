//! Upkeep: what follows from a decision and decides nothing: the history of promotions, counters, who is
//! dialled, and members that ask to join the embedded store.

use std::collections::BTreeSet;
use std::sync::Arc;

use antiphon_core::ha::cluster::{Cause, Phase, Promise};
use antiphon_core::ha::world::{Local, Server, World};
use antiphon_core::{Epoch, NodeName};
use antiphon_peer::Peers;
use antiphon_store::RaftStore;
use antiphon_store::{Expect, Store, StoreError, Transaction};
use serde_json::{Value, json};

use super::clock;
use super::records::{HISTORY, Records};
use super::view::{HistoryEntry, SemiSync};

/// Promotions that are remembered if `max_timelines_history` does not say otherwise.
const HISTORY_MAX: usize = 1000;

/// The agent's background duties.
pub struct Upkeep {
    store: Arc<dyn Store>,
    raft: Option<RaftStore>,
    me: NodeName,
    first_peers: BTreeSet<String>,
    dialled: BTreeSet<String>,
    cause: Option<(Epoch, Cause)>,
    recorded: Option<Epoch>,
    semi_sync: SemiSync,
    promise: Option<Promise>,
    recorded_once: BTreeSet<String>,
    changing: Option<tokio::task::JoinHandle<()>>,
}

impl Upkeep {
    /// Duties of the member `me`; `first_peers` are the addresses of the file.
    pub fn new(
        store: Arc<dyn Store>,
        raft: Option<RaftStore>,
        me: NodeName,
        first_peers: BTreeSet<String>,
    ) -> Self {
        Self {
            store,
            raft,
            me,
            dialled: first_peers.clone(),
            first_peers,
            cause: None,
            recorded: None,
            semi_sync: SemiSync::default(),
            promise: None,
            recorded_once: BTreeSet::new(),
            changing: None,
        }
    }

    /// The counters of semi-sync.
    pub fn semi_sync(&self) -> SemiSync {
        self.semi_sync.clone()
    }

    /// The embedded store's state, for display.
    pub fn raft(&self) -> Option<Value> {
        let status = self.raft.as_ref()?.status();
        Some(json!({
            "leader": status.leader,
            "term": status.term,
            "commit_index": status.commit_index,
            "applied_index": status.applied_index,
            "members": status.members.iter().map(|m| json!({ "address": m.address, "votes": m.votes })).collect::<Vec<_>>(),
        }))
    }

    /// Dials every member that the file or the store names; with the embedded store, that one decides.
    pub fn know_peers(&mut self, peers: &Peers, stored: impl Iterator<Item = String>) {
        if self.raft.is_some() {
            return;
        }
        let wanted: BTreeSet<String> = self.first_peers.iter().cloned().chain(stored).collect();
        if wanted != self.dialled {
            peers.set_peers(wanted.iter().cloned().collect());
            self.dialled = wanted;
        }
    }

    /// Does what is due. `heard` are the peer addresses that heartbeats came from lately.
    pub async fn turn(&mut self, world: &World, records: &Records, heard: &BTreeSet<String>) {
        self.count(world);
        self.membership(world, heard);
        let Some(cluster) = &world.store.cluster else { return };
        match &cluster.value.phase {
            Phase::Electing { cause, .. } => self.cause = Some((cluster.value.epoch, cause.clone())),
            Phase::Led { leader } if leader.name == self.me && self.recorded != Some(leader.epoch) => {
                if let Err(error) = self.record(world, records).await {
                    tracing::info!(%error, "the history of promotions was not written; it is tried again");
                }
            }
            Phase::Led { .. } | Phase::Bootstrapping { .. } => {}
        }
    }

    /// The leader lets into the embedded store who joins with the right secret, and takes out whose record was
    /// removed; one change at a time.
    fn membership(&mut self, world: &World, heard: &BTreeSet<String>) {
        let Some(raft) = self.raft.clone() else { return };
        let leads =
            world.store.cluster.as_ref().and_then(|c| c.value.leader()).is_some_and(|l| l.name == self.me);
        if !leads || self.changing.as_ref().is_some_and(|change| !change.is_finished()) {
            return;
        }
        let recorded: BTreeSet<String> =
            world.store.members.values().map(|stored| stored.value.peer_address.clone()).collect();
        let members: BTreeSet<String> = raft.members().into_iter().map(|member| member.address).collect();
        let joins = heard.iter().find(|address| !members.contains(*address)).cloned();
        // Only whom this agent has seen recorded: a member that has not come up yet has no record either.
        let left = members.iter().find(|address| {
            self.recorded_once.contains(*address) && !recorded.contains(*address) && !heard.contains(*address)
        });
        let left = left.cloned();
        self.recorded_once.extend(recorded);
        self.changing = match (joins, left) {
            (Some(address), _) => Some(tokio::spawn(async move {
                tracing::info!(%address, "a new member joins");
                if let Err(error) = raft.add_member(&address).await {
                    tracing::warn!(%address, %error, "the new member was not let in; it is tried again");
                }
            })),
            (None, Some(address)) => {
                self.recorded_once.remove(&address);
                Some(tokio::spawn(async move {
                    tracing::info!(%address, "a member was removed: it votes no more");
                    if let Err(error) = raft.remove_member(&address).await {
                        tracing::warn!(%address, %error, "the member could not be taken out of the store");
                    }
                }))
            }
            (None, None) => None,
        };
    }

    /// Writes this term's promotion down, once its server accepts writes on a timeline of its own.
    async fn record(&mut self, world: &World, records: &Records) -> Result<(), StoreError> {
        let Local::Database(db) = &world.local else { return Ok(()) };
        let Server::Primary(primary) = &db.server else { return Ok(()) };
        let Some(cluster) = &world.store.cluster else { return Ok(()) };
        let epoch = cluster.value.epoch;
        let known = records.history.iter().any(|entry| entry.epoch >= epoch.0);
        let Some(left) = primary.history.last().filter(|_| !known) else {
            self.recorded = Some(epoch);
            return Ok(());
        };
        let reason = self.cause.as_ref().filter(|(of, _)| *of == epoch).map_or_else(
            || "the cause was not seen by this member".to_owned(),
            |(_, cause)| cause_sentence(cause),
        );
        let entry = HistoryEntry {
            timeline: left.timeline.0,
            lsn: left.lsn,
            reason,
            at: clock::rfc3339(clock::unix_seconds()),
            leader: self.me.to_string(),
            epoch: epoch.0,
        };
        let limit = match world.settings.max_timelines_history {
            0 => HISTORY_MAX,
            limit => limit as usize,
        };
        let mut history = records.history.clone();
        history.push(entry);
        let surplus = history.len().saturating_sub(limit);
        history.drain(..surplus);
        let expected = match records.history_revision {
            0 => Expect::Absent,
            revision => Expect::At(revision),
        };
        let text = serde_json::to_string(&history).map_err(|error| StoreError::Invalid(error.to_string()))?;
        let write = Transaction {
            expects: vec![(HISTORY.to_owned(), expected)],
            puts: vec![(HISTORY.to_owned(), text)],
            deletes: Vec::new(),
        };
        let (store, recorded) = (self.store.clone(), epoch);
        tokio::time::timeout(std::time::Duration::from_secs(1), store.commit(write))
            .await
            .map_err(|_| StoreError::Timeout(std::time::Duration::from_secs(1)))??;
        self.recorded = Some(recorded);
        Ok(())
    }

    /// Counts how often the sync set was emptied and filled.
    fn count(&mut self, world: &World) {
        let promise = world.store.cluster.as_ref().map(|cluster| cluster.value.sync.clone());
        let waits = |promise: &Option<Promise>| matches!(promise, Some(Promise::Quorum(_)));
        let (before, after) = (waits(&self.promise), waits(&promise));
        if before && promise == Some(Promise::Alone) {
            self.semi_sync.timeouts += 1;
        }
        if self.promise == Some(Promise::Alone) && after {
            self.semi_sync.resumptions += 1;
        }
        self.semi_sync.active = after;
        self.promise = promise;
    }
}

/// The cause of an election as a sentence.
pub fn cause_sentence(cause: &Cause) -> String {
    match cause {
        Cause::Silent => "the leader was not heard for failure_timeout".to_owned(),
        Cause::ProcessesGone => "the leader's host refused connections: its processes were gone".to_owned(),
        Cause::ServerDied { how } => format!("the leader's server died ({how})"),
        Cause::CannotServe { why } => format!("the leader could not serve: {why}"),
        Cause::Switchover { to } => format!("switchover to {to}"),
        Cause::Failover { to, accept_loss: false } => format!("failover to {to}, by an operator"),
        Cause::Failover { to, accept_loss: true } => {
            format!("failover to {to}, by an operator who accepted loss")
        }
    }
}
