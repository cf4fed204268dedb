//! The agent's loop and its hands: look, decide by the real core, carry out the steps in order, stop at the
//! first that fails.
//!
//! A crash can come before and after every step. Writes to the store are waited for, at most a second;
//! renewals are not; long work goes on in the background (`task.rs`).

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use antiphon_core::Instant;
use antiphon_core::ha::cluster::{Position, Promise};
use antiphon_core::ha::decide::decide;
use antiphon_core::ha::role::Role;
use antiphon_core::ha::step::Step;
use antiphon_core::ha::why::Why;
use antiphon_core::ha::world::{Beat, StopMode, Task};

use crate::clock::{MS, SEC, Time, US};
use crate::net::{NodeId, Path};
use crate::node::unheard;
use crate::server::Run;
use crate::store::{Snapshot, Transaction};
use crate::{Event, Sim};

/// How long a write to the store is waited for.
pub(crate) const COMMIT_DEADLINE: Time = SEC;
/// How often an agent speaks.
const HEARTBEAT: Time = 100 * MS;
/// How soon it looks again after it acted, if nothing happens before.
const BRISK: Time = 15 * MS;
/// How often it looks at least.
const CALM: Time = 500 * MS;
/// A run with more decisions a second than this, for long, is a busy loop.
const LOOKS_PER_SECOND_MAX: u64 = 120;

/// What came of a step at once.
enum Outcome {
    Done,
    Failed(String),
    Waits,
}

impl Sim {
    /// Has a node's agent look again after at most `delay`.
    pub(crate) fn poke(&mut self, node: NodeId, delay: Time) {
        let at = self.now + self.rng.range(20 * US, delay.max(30 * US));
        self.look_at(node, at);
    }

    fn look_at(&mut self, node: NodeId, at: Time) {
        let boot = self.nodes[node].boot;
        let Some(agent) = &mut self.nodes[node].agent else { return };
        if at < agent.look_at || agent.look_at < self.now {
            agent.look_at = at;
            self.schedule(at, Event::Look { node, boot, at });
        }
    }

    /// A heartbeat: this agent's word to the others, and a look at the links.
    pub(crate) fn tick(&mut self, node: NodeId) {
        let boot = self.nodes[node].boot;
        self.schedule(self.now + HEARTBEAT, Event::Tick { node, boot });
        self.look_at_links(node);
        self.catch_up(node);
        self.look_at(node, self.now + CALM);
        let beat = self.nodes[node].agent.as_ref().and_then(|agent| agent.beat.clone());
        let Some(beat) = beat else {
            self.poke(node, MS);
            return;
        };
        for to in 0..self.nodes.len() {
            if to != node && self.nodes[to].agent.is_some() && self.net.passes(Path::Peer, node, to) {
                let delay = self.net.delay(&mut self.rng, node, to);
                let boot = self.nodes[to].boot;
                self.schedule(self.now + delay, Event::Beat { to, boot, from: node, beat: beat.clone() });
            }
        }
    }

    /// A heartbeat comes in.
    pub(crate) fn heard(&mut self, to: NodeId, from: NodeId, beat: &Beat) {
        let now = self.nodes[to].clock.local(self.now);
        let name = self.nodes[from].name.clone();
        let Some(agent) = &mut self.nodes[to].agent else { return };
        let peer = agent.world.peers.entry(name).or_insert_with(unheard);
        peer.heard = Some(now);
        if peer.beat.as_ref() != Some(beat) {
            peer.beat = Some(beat.clone());
            self.poke(to, MS);
        }
    }

    /// The agent looks, decides, and begins to act.
    pub(crate) fn look(&mut self, node: NodeId) {
        let acting = self.nodes[node].agent.as_ref().is_none_or(|agent| agent.acting);
        if acting {
            return;
        }
        self.observe(node);
        if self.go_on_after_stop(node) {
            self.observe(node);
        }
        let Some(agent) = &mut self.nodes[node].agent else { return };
        agent.looks += 1;
        let up = self.now / SEC + 20;
        if agent.looks > up * LOOKS_PER_SECOND_MAX {
            let why = agent.why.clone();
            self.violation(format!("{} decides without end: {why:?}", self.name(node)));
            return;
        }
        let mut world = None;
        if self.mutation.is_some() {
            let mut tampered = agent.world.clone();
            self.tamper_world(node, &mut tampered);
            world = Some(tampered);
        }
        let Some(agent) = &mut self.nodes[node].agent else { return };
        let world = world.as_ref().unwrap_or(&agent.world);
        let mut decision = decide(world);
        self.tamper_steps(node, &mut decision.steps);
        let Some(agent) = &mut self.nodes[node].agent else { return };
        let changed = agent.why.as_ref() != Some(&decision.why);
        agent.why = Some(decision.why.clone());
        let routers = &mut agent.world.routers;
        let hands_over = matches!(decision.why, Why::HandingOver { .. });
        routers.asked = hands_over.then(|| routers.asked.unwrap_or(agent.world.now));
        let wake_at = decision.wake_at;
        let leads = match decision.role {
            Role::Leader { epoch } => Some(epoch),
            _ => None,
        };
        let moving = !matches!(
            decision.role,
            Role::Leader { .. } | Role::Follower { .. } | Role::Witness | Role::Waiting
        );
        agent.steps = decision.steps.into();
        agent.acting = !agent.steps.is_empty();
        self.tell(node, decision.suspects, leads);
        let renews_only = |agent: &crate::node::Agent| {
            agent.steps.iter().all(|step| matches!(step, Step::RenewLease { .. }))
        };
        if changed || self.nodes[node].agent.as_ref().is_some_and(|agent| !renews_only(agent)) {
            self.note(|sim| sim.describe(node, &decision.why));
        }
        self.tell_guard(node);
        if self.nodes[node].agent.as_ref().is_some_and(|agent| agent.acting) {
            self.next_step(node);
        } else {
            let calm = if moving { 50 * MS } else { CALM };
            let clock = self.nodes[node].clock;
            let wake = wake_at.map_or(Time::MAX, |at| clock.real(at)).max(self.now + 2 * MS);
            self.look_at(node, wake.min(self.now + calm));
        }
    }

    fn describe(&self, node: NodeId, why: &Why) -> String {
        let steps: Vec<String> =
            self.nodes[node].agent.iter().flat_map(|a| a.steps.iter().map(short)).collect();
        format!("{}: {why} {}", self.name(node), steps.join(", "))
    }

    fn tell(
        &mut self,
        node: NodeId,
        suspects: Option<antiphon_core::Epoch>,
        leads: Option<antiphon_core::Epoch>,
    ) {
        self.judge_suspicion(node, suspects);
        let Some(agent) = &self.nodes[node].agent else { return };
        let server = self.brief(&agent.world);
        let beat =
            Beat { name: self.nodes[node].name.clone(), suspects, leads, server, slots: BTreeMap::new() };
        let Some(agent) = &mut self.nodes[node].agent else { return };
        if agent.beat.as_deref() != Some(&beat) {
            agent.beat = Some(Rc::new(beat));
        }
    }

    /// Tells the guard until when the server may serve: in asynchronous mode alone.
    fn tell_guard(&mut self, node: NodeId) {
        let here = &mut self.nodes[node];
        let Some(agent) = &here.agent else { return };
        let world = &agent.world;
        let Some(cluster) = &world.store.cluster else { return };
        let wanted = world.settings.synchronous_mode == antiphon_core::settings::SyncMode::Off;
        let asynchronous = wanted || cluster.value.sync == Promise::Asynchronous;
        let rests =
            matches!(here.server.run, Run::Down | Run::Standby | Run::Starting { primary: false, .. });
        // From before the promotion on: an agent that dies during it leaves a primary behind.
        let leads = cluster.value.leader().is_some_and(|leader| leader.name == here.name);
        let deadline = match world.me.lease_until {
            _ if !asynchronous || world.settings.pause || rests && !leads => None,
            Some(until) => Some(until),
            // An agent that has just started leaves standing what the one before it said.
            None => here.guard,
        };
        here.guard_paused = world.settings.pause || here.guard_paused && deadline.is_none();
        if deadline != here.guard {
            here.guard = deadline;
            self.set_guard(node);
        }
    }

    /// Sets the guard's alarm.
    pub(crate) fn set_guard(&mut self, node: NodeId) {
        if let Some(deadline) = self.nodes[node].guard {
            let at = self.nodes[node].clock.real(deadline);
            self.schedule(at, Event::Guard { node });
        }
    }

    /// The guard's deadline may have come.
    pub(crate) fn guard_looks(&mut self, node: NodeId) {
        if self.lease_is_ignored() {
            return;
        }
        let here = &self.nodes[node];
        let Some(deadline) = here.guard else { return };
        if here.clock.local(self.now) < deadline {
            // The clock's rate has changed since.
            let at = here.clock.real(deadline).max(self.now + 1);
            self.schedule(at, Event::Guard { node });
            return;
        }
        self.nodes[node].guard = None;
        if self.nodes[node].server.run != Run::Down {
            self.note(|sim| format!("{}: the guard kills the server", sim.name(node)));
            self.stop_server(node, StopMode::Kill);
        }
    }

    fn next_step(&mut self, node: NodeId) {
        let boot = self.nodes[node].boot;
        let pause = if self.rng.chance(10) { 40 * MS } else { 500 * US };
        let at = self.now + self.rng.range(10 * US, pause);
        self.schedule(at, Event::Step { node, boot });
    }

    /// Carries out the next step of the list.
    pub(crate) fn step(&mut self, node: NodeId) {
        let Some(agent) = &mut self.nodes[node].agent else { return };
        let Some(step) = agent.steps.pop_front() else {
            agent.acting = false;
            self.look_at(node, self.now + BRISK);
            return;
        };
        if self.crashes_here(node) {
            return;
        }
        match self.perform(node, step) {
            Outcome::Done => {
                if !self.crashes_here(node) {
                    self.next_step(node);
                }
            }
            Outcome::Failed(why) => self.step_failed(node, &why),
            Outcome::Waits => {}
        }
    }

    /// A step that was waited for has ended.
    pub(crate) fn step_ended(&mut self, node: NodeId, done: bool) {
        if done {
            if !self.crashes_here(node) {
                self.next_step(node);
            }
        } else {
            self.step_failed(node, "the store did not take it");
        }
    }

    fn step_failed(&mut self, node: NodeId, why: &str) {
        self.note(|sim| format!("{}: step failed: {why}", sim.name(node)));
        let again = self.now + BRISK;
        if let Some(agent) = &mut self.nodes[node].agent {
            agent.steps.clear();
            agent.acting = false;
            agent.look_at = Time::MAX;
        }
        self.look_at(node, again);
    }

    fn perform(&mut self, node: NodeId, step: Step) -> Outcome {
        match step {
            Step::ChangeCluster { cluster, expect, take_lease, lease_unchanged, consume_request } => {
                let ttl = self.nodes[node].agent.as_ref().map(|agent| agent.world.settings.ttl);
                let take_lease = ttl.filter(|_| take_lease);
                let change =
                    Transaction::Cluster { cluster, expect, take_lease, lease_unchanged, consume_request };
                self.send(node, change)
            }
            Step::DropRequest { revision } => self.send(node, Transaction::DropRequest { revision }),
            Step::Publish { member } => {
                if let Some(fence) = &member.fence {
                    let reported = &mut self.nodes[node].reported;
                    *reported = (*reported).max(fence.epoch);
                }
                self.send(node, Transaction::Publish { member })
            }
            Step::RenewLease { epoch, expect, end } => {
                self.renew(node, epoch, expect, end);
                Outcome::Done
            }
            Step::Fence { epoch } => self.fence(node, epoch),
            Step::Follow { upstream, .. } => {
                let here = &mut self.nodes[node];
                if upstream.epoch < here.fenced {
                    return Outcome::Failed("fenced against that term".to_owned());
                }
                if here.server.upstream.as_ref() != Some(&upstream) {
                    here.server.upstream = Some(upstream);
                    self.turn_receiver(node);
                }
                Outcome::Done
            }
            Step::Unfollow => {
                self.nodes[node].server.upstream = None;
                self.end_receiver(node);
                Outcome::Done
            }
            Step::Slots { keep, drop, logical: _ } => {
                let slots = &mut self.nodes[node].server.slots;
                for (name, to) in keep {
                    let held = slots.entry(name).or_default();
                    *held = to.or(*held);
                }
                slots.retain(|name, _| !drop.contains(name));
                Outcome::Done
            }
            work => match self.begin(node, work) {
                Ok(()) => Outcome::Done,
                Err(why) => Outcome::Failed(why),
            },
        }
    }

    /// The receiver of another upstream ends, or one begins.
    fn turn_receiver(&mut self, node: NodeId) {
        if self.nodes[node].server.receiver.is_some() {
            self.end_receiver(node);
        } else {
            self.connect(node);
        }
    }

    fn fence(&mut self, node: NodeId, epoch: antiphon_core::Epoch) -> Outcome {
        if self.fence_is_skipped() {
            return Outcome::Done;
        }
        let here = &mut self.nodes[node];
        if epoch < here.fenced {
            return Outcome::Failed("fenced for a later term already".to_owned());
        }
        if here.before_fence.is_none() {
            here.before_fence = Some((here.fenced, here.server.upstream.clone()));
        }
        here.fenced = epoch;
        // The promise is on disk; the receiver is not told yet.
        if self.crashes_here(node) {
            return Outcome::Waits;
        }
        let server = &mut self.nodes[node].server;
        if server.upstream.as_ref().is_some_and(|upstream| upstream.epoch < epoch) {
            server.upstream = None;
            self.end_receiver(node);
        } else if server.upstream.is_none() {
            self.end_receiver(node);
        }
        Outcome::Done
    }

    fn send(&mut self, node: NodeId, transaction: Transaction) -> Outcome {
        let sent = self.nodes[node].clock.local(self.now);
        let id = self.request(node, transaction);
        let boot = self.nodes[node].boot;
        self.schedule(self.now + COMMIT_DEADLINE, Event::Deadline { node, boot, id });
        if let Some(agent) = &mut self.nodes[node].agent {
            agent.waits_for = Some((id, sent));
        }
        Outcome::Waits
    }

    fn renew(&mut self, node: NodeId, epoch: antiphon_core::Epoch, expect: u64, end: Option<Position>) {
        let sent = self.nodes[node].clock.local(self.now);
        let Some(agent) = &self.nodes[node].agent else { return };
        if agent.renewing.is_some() {
            return;
        }
        let count = agent.world.store.lease.as_ref().map_or(0, |lease| lease.value.count) + 1;
        let ttl = agent.world.settings.ttl;
        let id = self.request(node, Transaction::Renew { epoch, expect, count, ttl, end });
        let boot = self.nodes[node].boot;
        self.schedule(self.now + COMMIT_DEADLINE, Event::Deadline { node, boot, id });
        if let Some(agent) = &mut self.nodes[node].agent {
            agent.renewing = Some((id, sent));
        }
    }

    /// The store's answer, or the end of the time it had.
    pub(crate) fn answered(
        &mut self,
        node: NodeId,
        id: u64,
        answer: Option<&(Transaction, bool, Rc<Snapshot>)>,
    ) {
        let Some(agent) = &mut self.nodes[node].agent else { return };
        let ok = answer.is_some_and(|(_, ok, _)| *ok);
        let ttl = match answer {
            Some((
                Transaction::Cluster { take_lease: Some(ttl), .. } | Transaction::Renew { ttl, .. },
                true,
                _,
            )) => Some(*ttl),
            _ => None,
        };
        if agent.renewing.is_some_and(|(waited, _)| waited == id) {
            let sent = agent.renewing.take().map_or(Instant(0), |(_, sent)| sent);
            if let Some(ttl) = ttl {
                let sent = self.lease_counts_from(node, sent);
                self.take_lease(node, sent, ttl);
            }
            self.poke(node, MS);
            return;
        }
        let Some((_, sent)) = agent.waits_for.filter(|(waited, _)| *waited == id) else { return };
        agent.waits_for = None;
        if let Some((_, true, snapshot)) = answer {
            let snapshot = snapshot.clone();
            self.see(node, &snapshot);
        }
        if let Some(ttl) = ttl {
            let sent = self.lease_counts_from(node, sent);
            self.take_lease(node, sent, ttl);
        }
        self.step_ended(node, ok);
    }

    fn take_lease(&mut self, node: NodeId, sent: Instant, ttl: Duration) {
        let Some(agent) = &mut self.nodes[node].agent else { return };
        let until = sent + ttl;
        let me = &mut agent.world.me;
        me.lease_until = Some(until);
        self.tell_guard(node);
    }

    /// The agent's process may die here, alone or with its host.
    fn crashes_here(&mut self, node: NodeId) -> bool {
        let rate = self.shape.crash_per_step;
        if self.healed || rate == 0 || self.rng.below(10_000) >= rate {
            return false;
        }
        self.note(|sim| format!("{}: crash between two steps", sim.name(node)));
        if self.rng.chance(300) {
            self.kill_host(node);
        } else {
            self.crash_agent(node);
        }
        let at = self.now + self.rng.range(50 * MS, 4 * SEC);
        self.schedule(at, Event::Boot { node });
        true
    }

    /// The same while a directory is being built, where a crash leaves half of it.
    pub(crate) fn crashes_in_build(&mut self, node: NodeId) -> bool {
        self.crashes_here(node)
    }

    /// Whether an operator's wish has begun to be carried out.
    pub(crate) fn wishes_begun(&mut self, node: NodeId, task: Task) {
        let Some(agent) = &mut self.nodes[node].agent else { return };
        let me = &mut agent.world.me;
        match task {
            Task::Stop(_) => me.restart_requested = false,
            Task::Clone => {
                agent.cloning_asked = me.reinitialise_requested.is_some();
                me.reinitialise_requested = None;
            }
            _ => {}
        }
    }
}

/// A step in few words.
fn short(step: &Step) -> String {
    match step {
        Step::ChangeCluster { cluster, take_lease, .. } => {
            let lease = if *take_lease { " with lease" } else { "" };
            format!("[epoch {} {:?} {:?}{lease}]", cluster.epoch, cluster.phase, cluster.sync)
        }
        Step::Publish { member } => {
            let (fence, release) = (member.fence, member.release);
            format!("[publish fence {fence:?} release {release:?} serving {:?}]", member.serving)
        }
        other => format!("[{other:?}]"),
    }
}
