//! Act: carries out a decision's steps, in order, and stops at the first that fails.
//!
//! What it does is exactly what the step says; whether it is still wise is for the next decision. Each write
//! to the store has a deadline well below the lease, so that a store that is cut off cannot hold the agent up.

use std::sync::Arc;
use std::time::Duration;

use antiphon_core::ha::cluster::{Cluster, Lease};
use antiphon_core::ha::step::Step;
use antiphon_core::ha::world::{Server, StopMode};
use antiphon_core::{Epoch, Instant, NodeName};
use antiphon_engine::{Engine, EngineError, Work, sentence};
use antiphon_store::{Expect, Store, StoreError, Transaction};
use serde::Serialize;
use thiserror::Error;
use tokio::sync::mpsc;

use super::clock;
use super::records::{self, CLUSTER, CONFIG, LEASE, MEMBERS, REQUEST};

/// How long a write to the store may hold up the agent.
const COMMIT_DEADLINE: Duration = Duration::from_millis(1000);

/// Why a step was not carried out.
#[derive(Debug, Error)]
pub enum ActError {
    /// The store did not take it.
    #[error("the store did not take the change")]
    Store(#[source] StoreError),
    /// The engine did not do it.
    #[error("the server was not brought to it")]
    Engine(#[source] EngineError),
}

/// A renewal that ended: the lease it is for and until when it holds.
#[derive(Debug)]
pub struct Renewed {
    /// The term.
    pub epoch: Epoch,
    /// The end of the lease, counted from before the renewal was sent; none if it failed.
    pub until: Option<Instant>,
}

/// The hands of one agent.
pub struct Hands {
    /// Where the cluster agrees.
    pub store: Arc<dyn Store>,
    /// The server here; none on a witness.
    pub engine: Option<Arc<dyn Engine>>,
    /// This member.
    pub name: NodeName,
    /// Where renewals report.
    pub renewals: mpsc::Sender<Renewed>,
    /// A renewal is on its way.
    pub renewing: bool,
    /// Work that begins when the server has stopped.
    pub after_stop: Option<Work>,
    /// Cluster-wide settings of the file, written once by the member that creates the cluster.
    pub first_config: String,
}

/// What a list of steps led to.
#[derive(Debug, Default)]
pub struct Done {
    /// A lease was taken with a win: its end.
    pub lease_until: Option<Instant>,
}

impl Hands {
    /// Carries out the steps. `records` is what they were decided on, `ttl` the length of a lease.
    ///
    /// # Errors
    /// The first step that failed; those before it were done, those after it were not.
    pub async fn carry_out(
        &mut self,
        steps: &[Step],
        records: &records::Records,
        server: Option<&Server>,
        ttl: Duration,
    ) -> Result<Done, ActError> {
        let mut done = Done::default();
        for step in steps {
            match step {
                Step::ChangeCluster { .. } => {
                    let started = clock::now();
                    let taken = self.change_cluster(step, records, ttl).await.map_err(ActError::Store)?;
                    if taken {
                        done.lease_until = Some(started + ttl);
                    }
                }
                Step::DropRequest { revision } => {
                    let drop = Transaction {
                        expects: vec![(REQUEST.to_owned(), Expect::At(*revision))],
                        deletes: vec![REQUEST.to_owned()],
                        ..Transaction::default()
                    };
                    self.commit(drop).await.map_err(ActError::Store)?;
                }
                Step::RenewLease { epoch, expect, end } => {
                    let count = records.lease.as_ref().map_or(0, |lease| lease.value.count).wrapping_add(1);
                    let (holder, ttl_ms) = (self.name.clone(), milliseconds(ttl));
                    self.renew_lease(
                        &Lease { epoch: *epoch, holder, count, ttl_ms, end: *end },
                        *expect,
                        ttl,
                    );
                }
                Step::Publish { member } => {
                    let put = (format!("{MEMBERS}{}", member.name), json(member.as_ref()));
                    let publish = Transaction { puts: vec![put], ..Transaction::default() };
                    self.commit(publish).await.map_err(ActError::Store)?;
                }
                other => self.on_server(other, server).await.map_err(ActError::Engine)?,
            }
        }
        Ok(done)
    }

    async fn change_cluster(
        &self,
        step: &Step,
        records: &records::Records,
        ttl: Duration,
    ) -> Result<bool, StoreError> {
        let Step::ChangeCluster { cluster, expect, take_lease, lease_unchanged, consume_request } = step
        else {
            unreachable!("called for ChangeCluster alone")
        };
        let expected = if *expect == 0 { Expect::Absent } else { Expect::At(*expect) };
        let mut change = Transaction {
            expects: vec![(CLUSTER.to_owned(), expected)],
            puts: vec![(CLUSTER.to_owned(), json::<Cluster>(cluster))],
            deletes: Vec::new(),
        };
        if *expect == 0 && records.config.1 == 0 {
            change.puts.push((CONFIG.to_owned(), self.first_config.clone()));
        }
        if *take_lease {
            let lease = Lease {
                epoch: cluster.epoch,
                holder: self.name.clone(),
                count: 1,
                ttl_ms: milliseconds(ttl),
                end: None,
            };
            change.puts.push((LEASE.to_owned(), json(&lease)));
        }
        if let Some(revision) = lease_unchanged {
            change.expects.push((LEASE.to_owned(), Expect::At(*revision)));
        }
        if let Some(revision) = consume_request {
            change.expects.push((REQUEST.to_owned(), Expect::At(*revision)));
            change.deletes.push(REQUEST.to_owned());
        }
        self.commit(change).await?;
        Ok(*take_lease)
    }

    /// Sends a renewal and does not wait for it; one at a time.
    fn renew_lease(&mut self, lease: &Lease, expect: u64, ttl: Duration) {
        if self.renewing {
            return;
        }
        self.renewing = true;
        let epoch = lease.epoch;
        let renewal = Transaction {
            expects: vec![(CLUSTER.to_owned(), Expect::At(expect))],
            puts: vec![(LEASE.to_owned(), json(lease))],
            deletes: Vec::new(),
        };
        let (store, renewals) = (self.store.clone(), self.renewals.clone());
        tokio::spawn(async move {
            let sent = clock::now();
            let answer = tokio::time::timeout(COMMIT_DEADLINE, store.commit(renewal)).await;
            let until = matches!(answer, Ok(Ok(_))).then(|| sent + ttl);
            // The agent is gone if nobody listens; so is the need to tell it.
            let _ = renewals.send(Renewed { epoch, until }).await;
        });
    }

    async fn on_server(&mut self, step: &Step, server: Option<&Server>) -> Result<(), EngineError> {
        let Some(engine) = self.engine.clone() else {
            unreachable!("a witness is given no step on a server")
        };
        let work = match step {
            Step::Fence { epoch } => return engine.fence(*epoch).await,
            Step::Follow { upstream, address } => return engine.follow(upstream.clone(), address).await,
            Step::Unfollow => return engine.unfollow().await,
            Step::Slots { keep, drop, logical } => return engine.slots(keep, drop, logical).await,
            Step::Initialise => Work::Initialise,
            Step::Clone { address, keep_old } => {
                Work::Clone { address: address.clone(), keep_old: *keep_old }
            }
            Step::Rewind { address } => Work::Rewind { address: address.clone() },
            Step::StartStandby { upstream } => Work::StartStandby { upstream: upstream.clone() },
            Step::StartPrimary { epoch, sync } => Work::StartPrimary { epoch: *epoch, sync: sync.clone() },
            Step::Promote { epoch, timeline, sync } => {
                Work::Promote { epoch: *epoch, timeline: *timeline, sync: sync.clone() }
            }
            Step::Stop { mode } => Work::Stop { mode: *mode },
            Step::SetSync { sync, prove } => Work::SetSync { sync: sync.clone(), prove: *prove },
            Step::Checkpoint => Work::Checkpoint,
            Step::ChangeCluster { .. }
            | Step::DropRequest { .. }
            | Step::RenewLease { .. }
            | Step::Publish { .. } => unreachable!("steps on the store are carried out by carry_out"),
        };
        let needs_rest = matches!(work, Work::Clone { .. } | Work::Rewind { .. });
        let at_rest = matches!(server, None | Some(Server::Stopped(_) | Server::Absent));
        if needs_rest && !at_rest {
            engine.begin(Work::Stop { mode: StopMode::Fast })?;
            self.after_stop = Some(work);
            return Ok(());
        }
        engine.begin(work)
    }

    /// Begins the work that waited for the server to stop.
    pub fn go_on_after_stop(&mut self, server: &Server, task_running: bool) {
        if task_running || !matches!(server, Server::Stopped(_) | Server::Absent) {
            return;
        }
        let (Some(engine), Some(work)) = (&self.engine, self.after_stop.take()) else { return };
        if let Err(error) = engine.begin(work) {
            tracing::warn!(error = %sentence(&error), "could not go on after the stop; it is decided anew");
        }
    }

    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
        match tokio::time::timeout(COMMIT_DEADLINE, self.store.commit(transaction)).await {
            Ok(result) => result,
            Err(_) => Err(StoreError::Timeout(COMMIT_DEADLINE)),
        }
    }
}

fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn json<T: Serialize>(record: &T) -> String {
    serde_json::to_string(record).expect("records have string keys and no floats: they always serialise")
}
