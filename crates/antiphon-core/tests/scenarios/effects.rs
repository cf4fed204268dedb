//! What a step does to the table: at once for what is quick, as a task with an end for what takes time.
//!
//! Effects are ideal unless a scenario says that one is slow or fails. Nothing is decided here.

use std::time::Duration;

use antiphon_core::ha::cluster::{Cluster, Lease, Position, Promise};
use antiphon_core::ha::step::{NewLogicalSlot, Step};
use antiphon_core::ha::world::{Failure, LogicalSlot, StopMode, Stored, SyncNames, Task};
use antiphon_core::{Lsn, NodeName, Timeline};

use crate::table::{Node, Run, TICK, Table};

/// What the shutdown's own checkpoint writes.
const SHUTDOWN_BYTES: u64 = 100;
/// How long a commit may wait while a sync set is proven.
const PROVE_MAX: Duration = Duration::from_secs(5);

impl Table {
    /// Carries a step out; whether it was.
    pub fn apply(&mut self, name: &NodeName, step: &Step) -> bool {
        match step {
            Step::ChangeCluster { cluster, expect, take_lease, lease_unchanged, consume_request } => {
                let sound = lease_unchanged.is_none_or(|at| revision(self.store.lease.as_ref()) == at)
                    && consume_request.is_none_or(|at| revision(self.store.request.as_ref()) == at);
                if !sound || !self.change(name, cluster, *expect) {
                    return false;
                }
                if consume_request.is_some() {
                    self.store.request = None;
                }
                if *take_lease {
                    self.lease(name, cluster.epoch, None);
                }
                true
            }
            Step::DropRequest { .. } => {
                self.store.request = None;
                true
            }
            Step::RenewLease { epoch, expect, end } => {
                let current = revision(self.store.cluster.as_ref()) == *expect;
                if current && self.reaches_store(&self.nodes[name]) {
                    self.lease(name, *epoch, *end);
                }
                true
            }
            Step::Publish { member } => {
                if !self.reaches_store(&self.nodes[name]) {
                    return false;
                }
                self.revision += 1;
                let stored = Stored { value: member.as_ref().clone(), revision: self.revision };
                self.store.members.insert(name.clone(), stored);
                true
            }
            Step::Fence { epoch } => {
                let node = self.node(name);
                node.fenced = node.fenced.max(*epoch);
                cut_off(node);
                true
            }
            Step::Unfollow => {
                cut_off(self.node(name));
                true
            }
            Step::Follow { upstream, .. } => {
                if let Run::Standby { upstream: set, .. } = &mut self.node(name).run {
                    *set = Some(upstream.clone());
                }
                true
            }
            Step::Slots { keep, drop, logical } => {
                let node = self.node(name);
                node.slots.retain(|slot, _| !drop.contains(slot));
                node.logical_slots.retain(|slot, _| !drop.contains(slot));
                for (slot, to) in keep {
                    let held = node.slots.get(slot).copied().flatten();
                    node.slots.insert(slot.clone(), to.or(held).or(Some(node.wal.lsn)));
                }
                node.logical_slots.extend(logical.iter().map(|new| (new.name.clone(), made(new))));
                true
            }
            long => {
                self.begin(name, long);
                true
            }
        }
    }

    fn node(&mut self, name: &NodeName) -> &mut Node {
        self.nodes.get_mut(name).expect("steps are of members")
    }

    fn change(&mut self, name: &NodeName, cluster: &Cluster, expect: u64) -> bool {
        let current = revision(self.store.cluster.as_ref());
        if current != expect || !self.reaches_store(&self.nodes[name]) {
            return false;
        }
        let phase = |cluster: &Cluster| (cluster.epoch, std::mem::discriminant(&cluster.phase));
        if self.store.cluster.as_ref().map(|stored| phase(&stored.value)) != Some(phase(cluster)) {
            self.store.phase_since = self.now;
        }
        self.revision += 1;
        self.store.cluster = Some(Stored { value: cluster.clone(), revision: self.revision });
        true
    }

    fn lease(&mut self, name: &NodeName, epoch: antiphon_core::Epoch, end: Option<Position>) {
        self.revision += 1;
        let lease = Lease { epoch, holder: name.clone(), count: self.revision, ttl_ms: 5000, end };
        self.store.lease = Some(Stored { value: lease, revision: self.revision });
        self.store.lease_since = self.now;
        let until = self.now + self.settings.ttl;
        self.node(name).lease_until = Some(until);
    }

    /// Begins work that takes time; a stop puts an end to any other.
    fn begin(&mut self, name: &NodeName, step: &Step) {
        let now = self.now;
        let node = self.node(name);
        let (task, _) = kind(step);
        if node.task.is_some() && !matches!(task, Task::Stop(_)) {
            return;
        }
        match step {
            Step::Clone { .. } => {
                node.half_built = true;
                node.run = Run::Absent;
                node.reinitialise_requested = None;
            }
            Step::Stop { .. } => node.restart_requested = false,
            _ => {}
        }
        node.task = Some((task, now, step.clone()));
    }

    /// Work whose time has come ends.
    pub fn end_tasks(&mut self) {
        for name in self.nodes.keys().cloned().collect::<Vec<_>>() {
            let Some((task, since, step)) = self.nodes[&name].task.clone() else { continue };
            let word = kind(&step).1;
            let length = self.nodes[&name].slow.get(word).copied().unwrap_or(TICK);
            let spent = self.now.since(since);
            if spent < length {
                continue;
            }
            let refused = self.nodes[&name].failing.get(word).cloned();
            let outcome = match refused {
                Some(error) => Err(error),
                None => match self.finish(&name, &step, spent) {
                    None => continue,
                    Some(outcome) => outcome,
                },
            };
            let now = self.now;
            let node = self.node(&name);
            node.task = None;
            let times = node.failed.as_ref().filter(|failed| failed.task == task).map_or(0, |f| f.times);
            node.failed = outcome.err().map(|error| Failure { task, at: now, times: times + 1, error });
        }
    }

    /// The effect of work that ends; none if it goes on.
    fn finish(&mut self, name: &NodeName, step: &Step, spent: Duration) -> Option<Result<(), String>> {
        let now = self.now;
        match step {
            Step::Initialise => {
                let node = self.node(name);
                node.identifier = Some("7001".to_owned());
                node.wal = Position { timeline: Timeline(1), lsn: Lsn(1000) };
                node.run = primary(SyncNames::Nobody);
            }
            Step::StartPrimary { sync, .. } => self.node(name).run = primary(sync.clone()),
            Step::StartStandby { upstream } => {
                let upstream = upstream.as_ref().map(|(upstream, _)| upstream.clone());
                self.node(name).run = Run::Standby { upstream, streaming: false };
            }
            Step::Promote { timeline, sync, .. } => {
                let acknowledged = self.acknowledged;
                let node = self.node(name);
                node.history.push(node.wal);
                node.wal.timeline = *timeline;
                node.run = primary(sync.clone());
                if node.history.last().is_some_and(|left| *left < acknowledged) {
                    self.say("        LOST acknowledged writes".to_owned());
                }
            }
            Step::Stop { mode } => self.stop(name, *mode),
            Step::Clone { address, .. } | Step::Rewind { address } => {
                let source = self.nodes.values().find(|node| node.address() == *address).cloned();
                let Some(source) = source.filter(|s| s.host_up && !matches!(s.run, Run::Absent)) else {
                    return Some(Err(format!("could not connect to {address}")));
                };
                self.copy(name, &source, matches!(step, Step::Clone { .. }));
            }
            Step::SetSync { sync, prove } => return self.set_sync(name, sync, *prove, spent),
            Step::Checkpoint => {
                if let Run::Primary { checkpointed, .. } = &mut self.node(name).run {
                    *checkpointed = Some(now);
                }
            }
            quick => unreachable!("{quick:?} is no work that takes time"),
        }
        Some(Ok(()))
    }

    fn copy(&mut self, name: &NodeName, source: &Node, all: bool) {
        let node = self.node(name);
        node.half_built = false;
        node.logical_slots.clear();
        node.identifier = source.identifier.clone();
        if all {
            (node.wal, node.history) = (source.wal, source.history.clone());
        } else {
            let left = source.history.iter().find(|left| left.timeline == node.wal.timeline);
            node.wal = left.map_or(source.wal, |left| node.wal.min(*left));
        }
        let checkpoint = node.wal;
        node.run = Run::Stopped { crash: None, clean: true, primary: false, restored: true, checkpoint };
    }

    fn stop(&mut self, name: &NodeName, mode: StopMode) {
        let followers = self.followers(name);
        let node = self.node(name);
        let was_primary = match &node.run {
            Run::Primary { .. } | Run::Stuck { .. } | Run::Orphans { .. } => true,
            Run::Stopped { primary, .. } => *primary,
            Run::Standby { .. } | Run::Absent => false,
        };
        let clean = mode == StopMode::Fast;
        let checkpoint = node.wal;
        if clean && was_primary {
            node.wal.lsn.0 += SHUTDOWN_BYTES;
        }
        let (wal, history) = (node.wal, node.history.clone());
        if !matches!(node.run, Run::Absent) {
            let crash = match &node.run {
                Run::Orphans { how } => Some(how.clone()),
                _ => None,
            };
            node.run = Run::Stopped { crash, clean, primary: was_primary, restored: false, checkpoint };
        }
        if clean {
            for follower in followers {
                let follower = self.node(&follower);
                (follower.wal, follower.history) = (wal, history.clone());
            }
        }
    }

    fn set_sync(
        &mut self,
        name: &NodeName,
        wanted: &SyncNames,
        prove: bool,
        spent: Duration,
    ) -> Option<Result<(), String>> {
        let followers = self.followers(name);
        let acknowledged = match wanted {
            SyncNames::Set(set) => set.members.iter().filter(|m| followers.contains(m)).count() >= set.k,
            SyncNames::Nobody | SyncNames::Foreign(_) => true,
        };
        let Run::Primary { sync, proven, .. } = &mut self.node(name).run else {
            return Some(Err("the server is no primary any more".to_owned()));
        };
        if sync != wanted {
            *proven = None;
        }
        *sync = wanted.clone();
        if !prove {
            return Some(Ok(()));
        }
        if acknowledged {
            *proven = Some(wanted.clone());
            return Some(Ok(()));
        }
        (spent >= PROVE_MAX).then(|| Err("no commit was acknowledged under it".to_owned()))
    }

    /// Writes on a primary; what is acknowledged must never be lost.
    pub fn write(&mut self, name: &NodeName, bytes: u64) {
        let followers = self.followers(name);
        let now = self.now;
        let node = self.node(name);
        let Run::Primary { sync, .. } = &node.run else {
            return self.say(format!("        {name} takes no writes"));
        };
        let acknowledged = match sync {
            SyncNames::Set(set) => set.members.iter().filter(|m| followers.contains(m)).count() >= set.k,
            SyncNames::Nobody | SyncNames::Foreign(_) => true,
        };
        node.wal.lsn.0 += bytes;
        node.waiting_since = (!acknowledged).then_some(now);
        let wal = node.wal;
        self.stream();
        let promise = self.store.cluster.as_ref().map(|stored| &stored.value.sync);
        if !acknowledged {
            self.say(format!("        a write on {name} waits"));
        } else if promise.is_some_and(|promise| *promise != Promise::Asynchronous) {
            self.acknowledged = self.acknowledged.max(wal);
        }
    }
}

fn revision<T>(stored: Option<&Stored<T>>) -> u64 {
    stored.map_or(0, |stored| stored.revision)
}

fn cut_off(node: &mut Node) {
    if let Run::Standby { upstream, streaming } = &mut node.run {
        *upstream = None;
        *streaming = false;
    }
}

fn primary(sync: SyncNames) -> Run {
    Run::Primary { sync, proven: None, checkpointed: None }
}

/// The kind of work that a step is, and the word that scenarios have for it.
fn kind(step: &Step) -> (Task, &'static str) {
    match step {
        Step::Initialise => (Task::Initialise, "initdb"),
        Step::Clone { .. } => (Task::Clone, "clone"),
        Step::Rewind { .. } => (Task::Rewind, "rewind"),
        Step::StartStandby { .. } | Step::StartPrimary { .. } => (Task::Start, "start"),
        Step::Promote { .. } => (Task::Promote, "promote"),
        Step::Stop { mode: StopMode::Fast } => (Task::Stop(StopMode::Fast), "fast-stop"),
        Step::Stop { mode: StopMode::Immediate } => (Task::Stop(StopMode::Immediate), "immediate-stop"),
        Step::Stop { mode: StopMode::Kill } => (Task::Stop(StopMode::Kill), "kill"),
        Step::SetSync { .. } => (Task::SetSync, "set-sync"),
        Step::Checkpoint => (Task::Checkpoint, "checkpoint"),
        quick => unreachable!("{quick:?} is no work that takes time"),
    }
}

/// A logical slot right after it was created.
fn made(new: &NewLogicalSlot) -> LogicalSlot {
    let (database, plugin) = (new.database.clone(), new.plugin.clone());
    LogicalSlot { database, plugin, synced: false, active: false }
}
