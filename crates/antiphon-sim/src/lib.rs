//! Whole clusters by seed: the real core on a modelled world, judged after every event.
//!
//! One thread, integer time, one queue, one generator: a seed is a run, and the same run every time. The
//! decisions are those of `antiphon-core`, unchanged; servers, store, network, clocks and clients are models.
//! See `docs/reference/simulation.md` for what is modelled and what is not.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::rc::Rc;

use antiphon_core::NodeName;
use antiphon_core::ha::world::Beat;

pub mod act;
pub mod client;
pub mod clock;
pub mod judge;
pub mod link;
pub mod liveness;
pub mod mesh;
pub mod mutation;
pub mod nemesis;
pub mod net;
pub mod node;
pub mod rng;
pub mod server;
pub mod shape;
pub mod store;
pub mod stream;
pub mod task;
pub mod trace;
pub mod wal;

use clock::{Clock, SEC, Time, US};
use mutation::Mutation;
use net::{Net, NodeId};
use node::Node;
use rng::Rng;
use server::Happening;
use shape::{Mode, Shape, Size};
use store::{Snapshot, StoreModel, Transaction};
use trace::Trace;
use wal::Wal;

/// How long a healed cluster may take to be whole.
const HEALTHY_WITHIN: Time = 60 * SEC;

/// What can happen.
#[derive(Clone, Debug)]
pub enum Event {
    /// An agent looks, decides, acts.
    Look { node: NodeId, boot: u32, at: Time },
    /// An agent's heartbeat is due.
    Tick { node: NodeId, boot: u32 },
    /// An agent carries out its next step.
    Step { node: NodeId, boot: u32 },
    /// A heartbeat comes in.
    Beat { to: NodeId, boot: u32, from: NodeId, beat: Rc<Beat> },
    /// A snapshot comes in.
    Snapshot { node: NodeId, boot: u32, snapshot: Rc<Snapshot> },
    /// A transaction reaches the store.
    Request { node: NodeId, boot: u32, id: u64, until: Time, transaction: Transaction },
    /// The store's answer comes in.
    Answer { node: NodeId, boot: u32, id: u64, answer: Rc<(Transaction, bool, Rc<Snapshot>)> },
    /// An answer has taken too long.
    Deadline { node: NodeId, boot: u32, id: u64 },
    /// A task ends.
    TaskEnd { node: NodeId, boot: u32, id: u64, error: Option<String> },
    /// initdb is done.
    Initialised { node: NodeId, boot: u32, id: u64 },
    /// A clone or rewind goes on.
    Build { node: NodeId, boot: u32, id: u64, source: NodeId, generation: u32, left: u32 },
    /// Something in a server's processes.
    Server { node: NodeId, generation: u32, what: Happening },
    /// The guard's deadline.
    Guard { node: NodeId },
    /// A client writes.
    Write { node: NodeId },
    /// The agent's supervisor starts it.
    Boot { node: NodeId },
    /// A fault begins.
    Strike(usize),
    /// A fault ends.
    Mend(usize),
    /// All faults end.
    Heal,
    /// Is the cluster whole?
    Check,
}

struct Scheduled {
    at: Time,
    sequence: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

/// How to run a seed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The size, if it is not drawn.
    pub size: Option<Size>,
    /// The mode, if it is not drawn.
    pub mode: Option<Mode>,
    /// A rule that is switched off.
    pub mutation: Option<Mutation>,
    /// Keep the trace's text.
    pub verbose: bool,
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// What was broken first, if anything.
    pub violation: Option<String>,
    /// The hash of all events.
    pub hash: u64,
    /// Simulated time.
    pub simulated: Time,
    /// Events.
    pub events: u64,
    /// Acknowledged commits.
    pub acknowledged: u64,
    /// Acknowledged commits lost where that is accepted.
    pub lost: u64,
    /// Elections won.
    pub elections: u64,
    /// The cluster waits for an operator, as documented.
    pub needs_human: bool,
    /// The trace's text.
    pub trace: String,
}

/// One run.
pub struct Sim {
    pub(crate) now: Time,
    queue: BinaryHeap<Reverse<Scheduled>>,
    sequence: u64,
    pub(crate) rng: Rng,
    pub(crate) shape: Shape,
    pub(crate) mutation: Option<Mutation>,
    pub(crate) trace: Trace,
    pub(crate) net: Net,
    pub(crate) store: StoreModel,
    pub(crate) wal: Wal,
    pub(crate) nodes: Vec<Node>,
    pub(crate) judge: judge::Judge,
    pub(crate) struck: Vec<Option<NodeId>>,
    pub(crate) healed: bool,
    pub(crate) destroyed: bool,
    pub(crate) connections: u64,
    pub(crate) task_ids: u64,
    pub(crate) request_ids: u64,
    pub(crate) done: bool,
    pub(crate) needs_human: bool,
}

/// Runs a seed to its end.
pub fn run(seed: u64, options: Options) -> Outcome {
    let mut sim = Sim::new(seed, options);
    let mut events = 0;
    while let Some(Reverse(next)) = sim.queue.pop() {
        if sim.done || sim.judge.violation.is_some() {
            break;
        }
        sim.now = next.at;
        events += 1;
        sim.trace.mix(next.at ^ next.sequence.rotate_left(32));
        sim.dispatch(next.event);
    }
    sim.trace.mix(sim.rng.state());
    Outcome {
        violation: sim.judge.violation.take(),
        hash: sim.trace.hash(),
        simulated: sim.now,
        events,
        acknowledged: sim.judge.acknowledged,
        lost: sim.judge.lost,
        elections: sim.judge.elections,
        needs_human: sim.needs_human,
        trace: sim.trace.text(),
    }
}

/// The name of a node.
pub(crate) fn name_of(node: usize) -> String {
    format!("n{node}")
}

impl Sim {
    fn new(seed: u64, options: Options) -> Self {
        let mut rng = Rng::new(seed);
        let shape = Shape::of(&mut rng, options.size, options.mode);
        let size = shape.tags.len();
        let nodes: Vec<Node> = (0..size).map(|node| new_node(&mut rng, &shape, node)).collect();
        let voters = nodes.iter().filter(|node| !node.waits).count();
        let mut sim = Self {
            now: 0,
            queue: BinaryHeap::new(),
            sequence: 0,
            rng,
            mutation: options.mutation,
            trace: Trace::new(options.verbose),
            net: Net::new(size),
            store: StoreModel::new(shape.settings.clone(), voters),
            wal: Wal::default(),
            nodes,
            judge: judge::Judge::default(),
            struck: vec![None; shape.faults.len()],
            healed: false,
            destroyed: false,
            connections: 0,
            task_ids: 0,
            request_ids: 0,
            done: false,
            needs_human: false,
            shape,
        };
        sim.note(|sim| {
            format!("seed {seed}: {:?} {:?}, {:?}", sim.shape.size, sim.shape.mode, sim.shape.settings)
        });
        for node in 0..size {
            let at = sim.rng.below(SEC / 2);
            sim.schedule(at, Event::Boot { node });
            if !sim.nodes[node].witness {
                sim.schedule(at, Event::Write { node });
            }
        }
        for index in 0..sim.shape.faults.len() {
            sim.schedule(sim.shape.faults[index].at, Event::Strike(index));
        }
        let heal_at = sim.shape.heal_at;
        sim.schedule(heal_at, Event::Heal);
        sim
    }

    pub(crate) fn schedule(&mut self, at: Time, event: Event) {
        self.sequence += 1;
        let scheduled = Scheduled { at: at.max(self.now), sequence: self.sequence, event };
        self.queue.push(Reverse(scheduled));
    }

    pub(crate) fn note(&mut self, line: impl FnOnce(&Self) -> String) {
        if self.trace.is_verbose() {
            let line = line(self);
            self.trace.note(self.now, || line);
        }
    }

    pub(crate) fn name(&self, node: NodeId) -> String {
        self.nodes[node].name.to_string()
    }

    pub(crate) fn node_named(&self, name: &NodeName) -> Option<NodeId> {
        self.nodes.iter().position(|node| node.name == *name)
    }

    /// The agent that an event is for lives; an event for one that is stopped is kept for later.
    fn agent_takes(&mut self, node: NodeId, boot: u32, event: &Event) -> bool {
        let here = &mut self.nodes[node];
        if here.agent.is_none() || here.boot != boot {
            return false;
        }
        if here.agent_paused || here.host_paused {
            here.held.push(event.clone());
            return false;
        }
        true
    }

    fn dispatch(&mut self, event: Event) {
        if let Some((node, boot)) = agent_of(&event)
            && !self.agent_takes(node, boot, &event)
        {
            return;
        }
        match event {
            Event::Look { node, at, .. } => {
                let due = self.nodes[node].agent.as_mut().is_some_and(|agent| {
                    let due = agent.look_at == at;
                    if due {
                        agent.look_at = Time::MAX;
                    }
                    due
                });
                if due {
                    self.look(node);
                }
            }
            Event::Tick { node, .. } => self.tick(node),
            Event::Step { node, .. } => self.step(node),
            Event::Beat { to, from, beat, .. } => self.heard(to, from, &beat),
            Event::Snapshot { node, snapshot, .. } => self.see(node, &snapshot),
            Event::Request { node, boot, id, until, transaction } => {
                self.requested(node, boot, id, until, transaction);
            }
            Event::Answer { node, id, answer, .. } => self.answered(node, id, Some(&answer)),
            Event::Deadline { node, id, .. } => self.answered(node, id, None),
            Event::TaskEnd { node, id, error, .. } => self.task_ended(node, id, error.as_deref()),
            Event::Initialised { node, id, .. } => self.initialised(node, id),
            Event::Build { node, id, source, generation, left, .. } => {
                self.build(node, id, source, generation, left);
            }
            Event::Server { node, generation, what } => self.server_event(node, generation, what),
            Event::Guard { node } => {
                if self.nodes[node].host_paused {
                    self.nodes[node].held.push(Event::Guard { node });
                } else {
                    self.guard_looks(node);
                }
            }
            Event::Write { node } => self.client_writes(node),
            Event::Boot { node } => self.start_agent(node),
            Event::Strike(index) => self.strike(index),
            Event::Mend(index) => self.mend(index),
            Event::Heal => {
                self.heal();
                self.schedule(self.now + SEC, Event::Check);
            }
            Event::Check => self.check_health(HEALTHY_WITHIN),
        }
    }

    fn server_event(&mut self, node: NodeId, generation: u32, what: Happening) {
        let here = &mut self.nodes[node];
        if here.server.generation != generation {
            return;
        }
        let kills = matches!(what, Happening::Gone(antiphon_core::ha::world::StopMode::Kill));
        if here.host_paused {
            here.held.push(Event::Server { node, generation, what });
        } else if here.server.paused && !kills {
            here.server.held.push(Event::Server { node, generation, what });
        } else {
            self.happening(node, what);
        }
    }
}

/// The agent that an event is for.
fn agent_of(event: &Event) -> Option<(NodeId, u32)> {
    match event {
        Event::Look { node, boot, .. }
        | Event::Tick { node, boot }
        | Event::Step { node, boot }
        | Event::Beat { to: node, boot, .. }
        | Event::Snapshot { node, boot, .. }
        | Event::Answer { node, boot, .. }
        | Event::Deadline { node, boot, .. }
        | Event::TaskEnd { node, boot, .. }
        | Event::Initialised { node, boot, .. }
        | Event::Build { node, boot, .. } => Some((*node, *boot)),
        Event::Request { .. }
        | Event::Server { .. }
        | Event::Guard { .. }
        | Event::Write { .. }
        | Event::Boot { .. }
        | Event::Strike(_)
        | Event::Mend(_)
        | Event::Heal
        | Event::Check => None,
    }
}

fn new_node(rng: &mut Rng, shape: &Shape, node: usize) -> Node {
    let name = name_of(node).parse().expect("n and a number make a member's name");
    let rate = rng.range(990_000, 1_010_001);
    Node {
        name,
        witness: shape.size == Size::TwoAndWitness && node == 2,
        tags: shape.tags[node].clone(),
        clock: Clock::new(rng.range(SEC, 100_000 * SEC), if rng.chance(500) { 1_000_000 } else { rate }),
        agent: None,
        boot: 0,
        agent_paused: false,
        host_paused: false,
        thawed: 0,
        host_down: false,
        removed: false,
        wiped: false,
        waits: !shape.all_at_once && node + 1 == shape.tags.len(),
        fenced: antiphon_core::Epoch(0),
        reported: antiphon_core::Epoch(0),
        guard: None,
        guard_paused: false,
        server: server::Server::default(),
        slow_disk: 0,
        replay_lag: 50 * US,
        held: Vec::new(),
        before_fence: None,
    }
}
