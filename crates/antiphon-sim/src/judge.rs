//! The judge: what must hold, looked at whenever something happens that could break it.
//!
//! It sees the whole model, which no member does, and states the laws in its own words: it never asks the
//! core what the core thinks. Docs: `docs/reference/simulation.md`.

use std::collections::BTreeMap;

use antiphon_core::Epoch;
use antiphon_core::ha::cluster::{Cause, Cluster, Phase, Position, Promise};
use antiphon_core::ha::world::SyncNames;

use crate::Sim;
use crate::clock::{MS, SEC, Time};
use crate::net::NodeId;
use crate::server::Run;
use crate::store::{Snapshot, Transaction};
use crate::wal::Point;

/// A server that has accepted writes in a term.
#[derive(Clone, Copy, Debug)]
pub struct Reign {
    /// The term.
    pub epoch: Epoch,
    /// Whose.
    pub node: NodeId,
    /// Its WAL when it began to accept writes.
    pub start: Point,
    /// When.
    pub since: Time,
    /// It was elected under a promise that accepts loss.
    pub lossy: bool,
    /// An operator accepted the loss, whatever the old leader still does.
    pub forced: bool,
}

/// What the judge remembers.
#[derive(Debug, Default)]
pub struct Judge {
    /// Who was given each term by the store.
    given: BTreeMap<Epoch, NodeId>,
    /// Terms won where loss is accepted.
    lossy: BTreeMap<Epoch, Time>,
    /// Those of them where an operator accepted it.
    forced: BTreeMap<Epoch, Time>,
    /// Reigns, in the order they began.
    pub reigns: Vec<Reign>,
    /// When each node last said that it suspects a term's leader.
    suspected: BTreeMap<(NodeId, Epoch), Time>,
    /// When a member last joined.
    pub joined: Option<Time>,
    /// When the lease was last written.
    renewed: Time,
    /// Acknowledged commits.
    pub acknowledged: u64,
    /// Acknowledged commits whose loss was accepted.
    pub lost: u64,
    /// Elections that were won.
    pub elections: u64,
    /// The newest acknowledgement.
    pub last_acknowledged: Time,
    /// What was broken first.
    pub violation: Option<String>,
}

impl Sim {
    /// Something that must hold does not.
    pub(crate) fn violation(&mut self, mut what: String) {
        if self.judge.violation.is_some() {
            return;
        }
        self.note(|_| format!("VIOLATION {what}"));
        what.push_str(&format!(" (at {:.3} s)", self.now as f64 / SEC as f64));
        self.judge.violation = Some(what);
    }

    /// A member says by heartbeat whom it suspects.
    pub(crate) fn judge_suspicion(&mut self, node: NodeId, suspects: Option<Epoch>) {
        if let Some(epoch) = suspects {
            self.judge.suspected.insert((node, epoch), self.now);
        }
    }

    /// The store took a transaction.
    pub(crate) fn judge_commit(&mut self, by: NodeId, before: &Snapshot, transaction: &Transaction) {
        if before.lease.as_ref().map(|lease| lease.revision)
            != self.store.current.lease.as_ref().map(|l| l.revision)
        {
            self.judge.renewed = self.now;
        }
        let Transaction::Cluster { cluster, lease_unchanged, .. } = transaction else { return };
        let old = before.cluster.as_ref().map(|stored| &stored.value);
        self.note(|sim| {
            format!(
                "store: {} commits epoch {} {:?} {:?}",
                sim.name(by),
                cluster.epoch,
                cluster.phase,
                cluster.sync
            )
        });
        if let Some(old) = old
            && cluster.epoch < old.epoch
        {
            self.violation(format!("I1: the epoch goes back from {} to {}", old.epoch, cluster.epoch));
        }
        match &cluster.phase {
            Phase::Led { leader } => {
                let Some(node) = self.node_named(&leader.name) else { return };
                let given = *self.judge.given.entry(leader.epoch).or_insert(node);
                if given != node || leader.epoch != cluster.epoch {
                    let (one, two) = (self.name(given), self.name(node));
                    self.violation(format!("I1: epoch {} has two leaders, {one} and {two}", leader.epoch));
                }
                if let Some(old) = old
                    && matches!(old.phase, Phase::Electing { .. })
                {
                    let said = before.lease.as_ref().and_then(|lease| lease.value.end);
                    self.judge_win(node, old, leader.epoch, said);
                }
            }
            Phase::Electing { cause, .. } => {
                self.judge_opening(before, cause, lease_unchanged.is_some(), old);
            }
            Phase::Bootstrapping { .. } => {}
        }
        for node in 0..self.nodes.len() {
            self.judge_names(node);
        }
    }

    /// An election was won. The last leader `said` with its lease how far its WAL reaches.
    fn judge_win(&mut self, node: NodeId, old: &Cluster, epoch: Epoch, said: Option<Position>) {
        self.judge.elections += 1;
        let Phase::Electing { cause, .. } = &old.phase else { return };
        let accepted = matches!(cause, Cause::Failover { accept_loss: true, .. });
        if old.sync == Promise::Asynchronous || accepted {
            self.judge.lossy.insert(epoch, self.now);
            if accepted {
                self.judge.forced.insert(epoch, self.now);
            }
            self.forgive(node, said.filter(|_| !accepted));
        }
        if self.nodes[node].server.run == Run::Primary {
            // It succeeds itself: the server goes on in the new term.
            self.nodes[node].server.term = epoch;
            self.accepts_writes(node);
        }
    }

    /// Loss is accepted: what the winner lacks is not asked for any more, if it is little enough by what the last
    /// leader `said` of its WAL.
    fn forgive(&mut self, node: NodeId, said: Option<Position>) {
        let Some(end) = self.nodes[node].server.end() else { return };
        let limit = self.store.current.settings.maximum_lag_on_failover;
        for branch in 0..self.wal.branches.len() {
            let left = self.wal.branches[branch].parent.map_or(0, |left| left.lsn);
            let kept = self.wal.shared(end, branch).unwrap_or(left);
            let protected = self.wal.branches[branch].protected;
            if protected <= kept {
                continue;
            }
            let lost = |at: Point| at.branch == branch && at.lsn > kept && at.lsn <= protected;
            let lost = self.wal.commits.iter().filter(|commit| lost(commit.at));
            self.judge.lost += lost.filter(|commit| commit.acknowledged.is_some()).count() as u64;
            self.wal.branches[branch].protected = self.wal.shared(end, branch).unwrap_or(0);
            let said = said.filter(|said| said.timeline.0 == self.wal.branches[branch].timeline);
            let lacks = said.map_or(0, |said| said.lsn.0.saturating_sub(kept));
            if lacks > limit {
                self.violation(format!("I4: {lacks} bytes lost, more than maximum_lag_on_failover"));
            }
        }
    }

    /// An election was opened: by a majority's suspicion, by anyone after the lease has run out, by the leader
    /// itself, or by an operator.
    fn judge_opening(&mut self, before: &Snapshot, cause: &Cause, by_lease: bool, old: Option<&Cluster>) {
        let Some(leader) = old.and_then(Cluster::leader) else { return };
        if !matches!(cause, Cause::Silent | Cause::ProcessesGone) {
            return;
        }
        let ttl = u64::try_from(self.store.current.settings.ttl.as_nanos()).unwrap_or(u64::MAX);
        if by_lease && self.now - self.judge.renewed >= ttl {
            return;
        }
        let recent = |at: &Time| self.now - at < 3 * SEC + 1500 * MS;
        let suspecting = (0..self.nodes.len())
            .filter(|node| self.judge.suspected.get(&(*node, leader.epoch)).is_some_and(recent))
            .count();
        // A member that joined just now did not count yet when this was decided.
        let joined = self.judge.joined.is_some_and(|at| self.now - at < 5 * SEC);
        if suspecting * 2 <= before.voters - usize::from(joined) {
            self.violation(format!("S2: {suspecting} of {} voters depose a leader", before.voters));
        }
    }

    /// A server begins to accept writes.
    pub(crate) fn accepts_writes(&mut self, node: NodeId) {
        let (epoch, name) = (self.nodes[node].server.term, self.name(node));
        let Some(start) = self.nodes[node].server.end() else { return };
        let bootstraps = self.store.current.cluster.as_ref().is_none_or(|stored| {
            matches!(&stored.value.phase, Phase::Bootstrapping { by } if *by == self.nodes[node].name)
        });
        if !bootstraps && self.judge.given.get(&epoch) != Some(&node) {
            self.violation(format!(
                "I3: {name} accepts writes in epoch {epoch}, which the store did not give it"
            ));
        }
        // An old leader that comes up late is not a later one; what it acknowledges is looked at then.
        let late = self.judge.given.keys().any(|given| *given > epoch);
        let branches = if late { 0 } else { self.wal.branches.len() };
        for branch in 0..branches {
            let protected = self.wal.branches[branch].protected;
            if protected > 0 && !self.wal.contains(start, Point { branch, lsn: protected }) {
                let timeline = self.wal.branches[branch].timeline;
                self.violation(format!(
                    "I2: {name} leads in epoch {epoch} without acknowledged writes up to {protected:X} of timeline \
                     {timeline}; it has {start:?}"
                ));
            }
        }
        let lossy = self.judge.lossy.contains_key(&epoch);
        let forced = self.judge.forced.contains_key(&epoch);
        self.judge.reigns.push(Reign { epoch, node, start, since: self.now, lossy, forced });
        self.judge_names(node);
    }

    /// A commit is acknowledged to its client.
    pub(crate) fn acknowledge(&mut self, node: NodeId, commit: usize) {
        let at = self.wal.commits[commit].at;
        let term = self.nodes[node].server.term;
        self.wal.commits[commit].acknowledged = Some(self.now);
        self.judge.acknowledged += 1;
        self.judge.last_acknowledged = self.now;
        let later: Vec<Reign> = self
            .judge
            .reigns
            .iter()
            .rev()
            .take_while(|r| r.epoch > term)
            .filter(|r| r.node != node)
            .copied()
            .collect();
        let mut forgiven = false;
        for reign in &later {
            // An operator who overrode the leader accepted that it is not known to be gone, for good.
            let overridden = later.iter().any(|other| other.forced && other.epoch <= reign.epoch);
            if self.wal.contains(reign.start, at) {
                continue;
            }
            if !reign.lossy && !self.judge.lossy.keys().any(|epoch| *epoch > term) {
                let (name, other) = (self.name(node), self.name(reign.node));
                self.violation(format!(
                    "I2: {name} acknowledges commit {commit} in epoch {term}, and {other} leads without it since epoch {}",
                    reign.epoch
                ));
            } else if !overridden && !self.within_guard(node, reign.epoch) {
                let (name, other) = (self.name(node), self.name(reign.node));
                self.violation(format!(
                    "I4: {name} acknowledges in epoch {term} although {other} leads in epoch {}",
                    reign.epoch
                ));
            }
            forgiven = true;
        }
        if self.judge.lossy.keys().any(|epoch| *epoch > term) {
            forgiven = true;
        }
        if forgiven {
            self.judge.lost += 1;
        } else {
            let protected = &mut self.wal.branches[at.branch].protected;
            *protected = (*protected).max(at.lsn);
        }
    }

    /// What asynchronous mode allows: backends that outlive a main process proven dead, and the moment after a
    /// frozen host thaws, until the guard has acted.
    fn within_guard(&self, node: NodeId, later: Epoch) -> bool {
        let here = &self.nodes[node];
        let record = self.store.current.members.get(&here.name).and_then(|stored| stored.value.release);
        let released = record.is_some_and(|release| release.epoch == later);
        let orphans = matches!(here.server.run, Run::Orphans { .. }) && !released;
        let guarded = here.guard.is_some_and(|until| here.clock.local(self.now) <= until);
        let killing = here.server.stopping.is_some();
        let thawing = self.now - here.thawed < 200 * MS && here.thawed > 0;
        (orphans && (guarded || killing)) || thawing || here.guard_paused
    }

    /// I6: whatever acknowledgements each process accepts, they meet whatever fences an election accepts.
    pub(crate) fn judge_names(&mut self, node: NodeId) {
        let server = &self.nodes[node].server;
        if !matches!(server.run, Run::Primary | Run::Orphans { primary: true })
            || self.judge.violation.is_some()
        {
            return;
        }
        let Some(stored) = &self.store.current.cluster else { return };
        let leads = match &stored.value.phase {
            Phase::Led { leader } => leader.name == self.nodes[node].name && leader.epoch == server.term,
            Phase::Electing { last, .. } => last.name == self.nodes[node].name && last.epoch == server.term,
            Phase::Bootstrapping { .. } => false,
        };
        let Promise::Quorum(promised) = &stored.value.sync else { return };
        if !leads {
            return;
        }
        if !server.defined {
            let what = format!("I6: {} acknowledges alone, the store promises {promised:?}", self.name(node));
            self.violation(what);
            return;
        }
        let bits = |members: &[antiphon_core::NodeName]| {
            let positions = members.iter().filter_map(|name| self.node_named(name));
            positions.fold(0_u32, |set, node| set | 1 << node)
        };
        let fenceable = bits(&promised.members);
        let needed = promised.members.len() + 1 - promised.k;
        for sender in &server.senders {
            let SyncNames::Set(names) = &*sender.names else { continue };
            if !meet(bits(&names.members), names.k, fenceable, needed) {
                let what = format!(
                    "I6: {} accepts acknowledgements of {names:?}, the store promises {promised:?}",
                    self.name(node)
                );
                self.violation(what);
                return;
            }
        }
    }

    /// I5: WAL comes in from a server of a term that this member has promised not to follow.
    pub(crate) fn judge_fence(&mut self, node: NodeId, from: NodeId) {
        let mut root = from;
        for _ in 0..self.nodes.len() {
            match &self.nodes[root].server.receiver {
                Some(receiver) => root = receiver.from,
                None => break,
            }
        }
        let source = &self.nodes[root].server;
        if source.run == Run::Primary && source.term < self.nodes[node].reported {
            let (name, reported, term) = (self.name(node), self.nodes[node].reported, source.term);
            self.violation(format!(
                "I5: {name} is fenced for epoch {reported} and takes WAL of epoch {term}"
            ));
        }
    }

    /// I7: a base backup replaces a directory.
    pub(crate) fn judge_clone(&mut self, node: NodeId, keep_old: bool) {
        let here = &self.nodes[node];
        let asked = here.wiped || here.agent.as_ref().is_some_and(|agent| agent.cloning_asked);
        let Some(directory) = here.server.directory.as_ref().filter(|_| !here.server.half_built) else {
            return;
        };
        let leader = self.leading();
        let unique = leader.and_then(|leader| self.nodes[leader].server.end());
        let unique = unique.is_some_and(|end| !self.wal.contains(end, directory.end));
        if !asked && !unique {
            self.violation(format!("I7: {} throws a sound directory away", self.name(node)));
        } else if unique && !keep_old && !asked {
            self.violation(format!("I7: {} throws WAL away that nobody else has", self.name(node)));
        }
    }

    /// I7: a rewind needs a history that has left the leader's, or a directory that needs recovery.
    pub(crate) fn judge_rewind(&mut self, node: NodeId) {
        let server = &self.nodes[node].server;
        let Some(directory) = server.directory.as_ref() else { return };
        let Some(end) = self.leading().and_then(|leader| self.nodes[leader].server.end()) else { return };
        let shared = self.wal.contains(end, directory.end) && end.lsn >= directory.end.lsn;
        if shared && directory.clean && !server.half_built {
            self.violation(format!("I7: {} rewinds a directory that needs no rewind", self.name(node)));
        }
    }

    /// The node that the store names as leader, if its server accepts writes.
    pub(crate) fn leading(&self) -> Option<NodeId> {
        let leader = self.store.current.cluster.as_ref()?.value.leader()?;
        let node = self.node_named(&leader.name)?;
        (self.nodes[node].server.run == Run::Primary && self.nodes[node].server.term == leader.epoch)
            .then_some(node)
    }
}

/// Whether every `k` of `acks` have a member in common with every `needed` of `fences`.
fn meet(acks: u32, k: usize, fences: u32, needed: usize) -> bool {
    let subsets =
        |set: u32, size: usize| (0..=set).filter(move |s| s & !set == 0 && s.count_ones() as usize == size);
    subsets(acks, k).all(|a| subsets(fences, needed).all(|f| a & f != 0))
}

#[cfg(test)]
mod tests {
    use super::meet;

    #[test]
    fn acknowledgements_meet_fences_only_where_they_must() {
        assert!(meet(0b110, 1, 0b110, 2), "one of two acknowledges, both are fenced");
        assert!(!meet(0b110, 1, 0b110, 1), "one of two acknowledges, the other is fenced");
        assert!(meet(0b110, 2, 0b110, 1), "both acknowledge, any is fenced");
        assert!(!meet(0b1110, 1, 0b0110, 2), "one outside the promise acknowledges");
    }
}
