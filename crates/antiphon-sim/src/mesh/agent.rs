//! The program beside a server: who takes part, what is announced, what is confirmed, what is forgotten.

use std::rc::Rc;

use antiphon_core::mesh::{CommitTime, Version};

use super::mutation::Mutation;
use super::node::Member;
use super::server::Resource;
use super::state::{Announcement, Effect, Entry, Gone, Place, id};
use super::{Committer, Event, Mesh};
use crate::clock::{MS, US};

/// Ticks after which something is announced even if nothing happened.
const QUIET_TICKS: u64 = 5;

/// An announcement under way.
#[derive(Clone, Debug)]
pub struct Saying {
    xid: u64,
    says: Announcement,
    applied: Vec<(usize, Place)>,
}

impl Mesh {
    pub(crate) fn tick(&mut self, node: usize) {
        self.confirm(node);
        let boot = self.nodes[node].boot;
        // The clock first: whoever is not in the snapshot that follows commits later than that.
        let clock = self.nodes[node].wall.read(self.now);
        let between = self.rng.below(50) * US;
        self.after(between, Event::Snapshot { node, boot, clock });
        let pause = self.rng.around(self.shape.tick);
        self.after(pause, Event::Tick { node, boot });
    }

    pub(crate) fn announce(&mut self, node: usize, clock: CommitTime) {
        let quiet = QUIET_TICKS * self.shape.tick;
        let here = &self.nodes[node];
        let (oldest, next) = (here.server.oldest(), here.server.next_xid);
        let mut complete_to = self.nodes[node].completeness.observe(clock, oldest, next);
        match self.mutation {
            Some(Mutation::CompleteByClock) => complete_to = CommitTime(clock.0 - 1),
            Some(Mutation::CompleteInclusive) => complete_to = CommitTime(complete_to.0.saturating_add(1)),
            _ => {}
        }
        let here = &self.nodes[node];
        let (place, transactions, at) = here.announced;
        let news = here.server.log.len() > place + 1 || here.transactions > transactions;
        if here.saying.is_some() || !(news || self.now >= at + quiet) {
            return;
        }
        let links = here.links.iter().enumerate();
        let applied: Vec<(usize, Place)> =
            links.filter_map(|(at, link)| link.as_ref().map(|link| (at, link.applied))).collect();
        let says = Announcement { complete_to, applied: here.reached.clone() };
        let here = &mut self.nodes[node];
        let xid = here.server.begin();
        for (source, applied) in &applied {
            let complete = says.applied.of(id(*source));
            let effects = [Effect::Complete(*source, complete), Effect::Progress(*source, *applied)];
            here.server.tx(xid).effects.extend(effects);
        }
        here.saying = Some(Saying { xid, says, applied });
        self.time_commit(node, Committer::Agent, xid);
    }

    /// What is announced gets into the log; nothing if whoever wanted it has died meanwhile.
    pub(crate) fn write_announcement(&mut self, node: usize, xid: u64, at: CommitTime) -> Option<Rc<Entry>> {
        let here = &mut self.nodes[node];
        let Some(saying) = here.saying.clone().filter(|saying| saying.xid == xid && here.agent_up) else {
            here.server.end(xid, None);
            return None;
        };
        let effects = std::mem::take(&mut here.server.tx(xid).effects);
        let entry = Entry { at, origin: None, steps: Vec::new(), effects, says: Some(saying.says) };
        let entry = Rc::new(entry);
        here.server.log.push(entry.clone());
        Some(entry)
    }

    /// It is through: what was applied before it is safe, too.
    pub(crate) fn announced(&mut self, node: usize, xid: u64) {
        let now = self.now;
        let here = &mut self.nodes[node];
        let Some(saying) = here.saying.take_if(|saying| saying.xid == xid) else { return };
        for (source, applied) in saying.applied {
            if let Some(link) = here.links[source].as_mut() {
                link.safe = link.safe.max(applied);
            }
        }
        here.announced = (here.server.log.len(), here.transactions, now);
    }

    /// Begins and ends links as nodes come and go.
    pub(crate) fn look_who_takes_part(&mut self, node: usize) {
        let here = &mut self.nodes[node];
        if here.view == here.members {
            return;
        }
        let before = here.view;
        here.view = here.members;
        let view = here.view;
        for (other, member) in view.into_iter().enumerate().filter(|(other, _)| *other != node) {
            match member {
                Member::Unknown => continue,
                Member::Joining | Member::Active => {
                    self.nodes[node].reached.advance(id(other), CommitTime::UNKNOWN);
                }
                Member::Left => {
                    self.nodes[node].reached.release(id(other));
                    self.drop_link(node, other);
                }
            }
            // What a link knows of its writers depends on who takes part.
            let stale = before[other] != Member::Unknown;
            if member == Member::Active && (stale || self.nodes[node].link(other).is_none()) {
                self.drop_link(node, other);
                self.begin_link(node, other);
            }
        }
    }

    /// Forgets deletes that no change can meet any more.
    pub(crate) fn collect(&mut self, node: usize) {
        let boot = self.nodes[node].boot;
        let pause = self.rng.around(self.shape.collect_every);
        self.after(pause, Event::Collect { node, boot });
        let mut horizon = self.nodes[node].reached.of_all_but(&[]);
        if !self.is(Mutation::CollectBeforeAdmitting) {
            // Whoever joined meanwhile may still have something older.
            self.look_who_takes_part(node);
            horizon = horizon.min(self.nodes[node].reached.of_all_but(&[]));
        }
        if self.is(Mutation::CollectEarly) {
            let latest = self.nodes[node].reached.iter().map(|(_, at)| at).max();
            horizon = latest.unwrap_or(horizon);
        }
        if horizon == CommitTime::UNKNOWN {
            return;
        }
        let at = self.nodes[node].wall.read(self.now);
        let server = &mut self.nodes[node].server;
        let old = |gone: &Option<Gone>| gone.is_some_and(|gone| gone.version.at <= horizon);
        let mut effects = Vec::new();
        for key in 0..server.state.gone.len() {
            if old(&server.state.gone[key]) && server.is_free(Resource::Gone(key)) {
                effects.push(Effect::Gone(key, None));
            }
        }
        if old(&server.state.truncated) && server.is_free(Resource::Truncation) {
            effects.push(Effect::Truncated(None));
        }
        if !effects.is_empty() {
            self.counts.collected += effects.len() as u64;
            let xid = server.begin();
            server.tx(xid).effects = effects;
            let entry = server.write_commit(node, xid, at, None);
            server.end(xid, Some(&entry));
            self.note(|_| format!("n{} forgets deletes up to {}: {:?}", id(node), horizon.0, entry.effects));
        }
        self.few_tombstones(node);
    }

    /// A server that was started may take writes only when its clock is past everything in its log: it may be another
    /// machine's.
    pub(crate) fn clock_is_past_the_log(&self, node: usize) -> bool {
        let here = &self.nodes[node];
        let latest = here.server.log.iter().map(|entry| entry.at).max();
        let clock = here.wall.read(self.now);
        latest.is_none_or(|latest| clock.wait_until_past(latest).is_none())
            || self.shape.homes
            || self.is(Mutation::OpenAtOnce)
    }

    /// The greatest version that a node holds.
    pub(crate) fn latest_version(&self, node: usize) -> Option<Version> {
        let state = &self.nodes[node].server.durable;
        let rows = state.rows.iter().flatten().map(|row| row.version);
        let gone = state.gone.iter().chain([&state.truncated]).flatten().map(|gone| gone.version);
        rows.chain(gone).max()
    }

    /// How long a join or leave waits before it looks again.
    pub(crate) fn look_again(&mut self, event: Event) {
        let pause = self.rng.range(MS, 5 * MS);
        self.after(pause, event);
    }
}
