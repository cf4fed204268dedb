//! Several leaders by seed: the real decisions of `antiphon_core::mesh` on modelled servers, clocks and links.
//!
//! One thread, one queue, one generator: a seed is a run. What is real: which write wins, what is a conflict, up to
//! when a log is complete, what may be forgotten, what may be written unseen, what a newcomer gets. What is modelled:
//! servers with locks and logs, the two ways of applying, streams that break, crashes, nodes that join and leave.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::rc::Rc;

use antiphon_core::mesh::CommitTime;

pub mod absent;
pub mod agent;
pub mod applier;
pub mod careful;
pub mod command;
pub mod joining;
pub mod judge;
pub mod link;
pub mod mutation;
pub mod nemesis;
pub mod node;
pub mod server;
pub mod shape;
pub mod state;
pub mod wall;
pub mod writer;

use crate::clock::{MS, Time, US};
use crate::rng::Rng;
use crate::trace::Trace;
use joining::{Join, Leave};
use judge::Judge;
use mutation::Mutation;
use node::Node;
use server::Actor;
use shape::{NODES_MAX, Shape};
use state::{Entry, Place};

/// What can happen.
#[derive(Clone, Debug)]
pub enum Event {
    /// A client goes on.
    Write { node: usize, epoch: u64, writer: usize },
    /// A client's commit goes on.
    Commit { node: usize, epoch: u64, who: Committer, xid: u64, stage: Stage },
    /// A log is safe up to there.
    Flush { node: usize, epoch: u64, upto: Place },
    /// A log is flushed, as it is now and then.
    Flusher { node: usize, epoch: u64 },
    /// A piece of a log comes in.
    Arrive { node: usize, source: usize, session: u64, upto: Place },
    /// An applier goes on.
    Apply { node: usize, source: usize, session: u64 },
    /// A link is tried again.
    Connect { node: usize, source: usize, session: u64 },
    /// A node looks after itself.
    Tick { node: usize, boot: u64 },
    /// A node has read its clock, and now looks who is under way.
    Snapshot { node: usize, boot: u64, clock: CommitTime },
    /// A node looks who takes part.
    Members { node: usize, boot: u64 },
    /// A node forgets deletes.
    Collect { node: usize, boot: u64 },
    /// A server comes back.
    Restart { node: usize },
    /// The program beside it does.
    Boot { node: usize },
    /// Clients may come.
    Open { node: usize, epoch: u64 },
    /// A join goes on.
    Join,
    /// A leave goes on.
    Leave,
    /// A fault begins.
    Strike(usize),
    /// A server crashes, just now.
    Crash { node: usize },
    /// A cut ends.
    Mend { from: usize, to: usize },
    /// Everything is mended.
    Heal,
    /// Is it the same everywhere?
    Check,
}

/// Who commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committer {
    /// A client.
    Writer(usize),
    /// The node itself, what it says.
    Agent,
}

/// How far a commit is.
#[derive(Clone, Debug)]
pub enum Stage {
    /// It has its time.
    Timed(CommitTime),
    /// It is in the log.
    Logged(Rc<Entry>),
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
    /// Nodes at first, if they are not drawn.
    pub nodes: Option<usize>,
    /// A rule that is switched off.
    pub mutation: Option<Mutation>,
    /// Keep the trace's text.
    pub verbose: bool,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Events.
    pub events: u64,
    /// Transactions of clients.
    pub written: u64,
    /// Transactions applied.
    pub applied: u64,
    /// Of those, the fast way.
    pub fast: u64,
    /// Conflicts reported.
    pub conflicts: u64,
    /// Of those, ones whose writer had seen what it met, or is seen by it.
    pub needless: u64,
    /// Tombstones collected.
    pub collected: u64,
    /// Crashes.
    pub crashes: u64,
    /// Nodes that joined.
    pub joined: u64,
    /// Nodes that left.
    pub left: u64,
}

impl Counts {
    /// Adds what another run counted.
    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.written += other.written;
        self.applied += other.applied;
        self.fast += other.fast;
        self.conflicts += other.conflicts;
        self.needless += other.needless;
        self.collected += other.collected;
        self.crashes += other.crashes;
        self.joined += other.joined;
        self.left += other.left;
    }
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
    /// What was counted.
    pub counts: Counts,
    /// The trace's text.
    pub trace: String,
}

/// One run.
pub struct Mesh {
    pub(crate) now: Time,
    queue: BinaryHeap<Reverse<Scheduled>>,
    sequence: u64,
    pub(crate) rng: Rng,
    pub(crate) shape: Shape,
    pub(crate) mutation: Option<Mutation>,
    pub(crate) trace: Trace,
    pub(crate) nodes: Vec<Node>,
    /// How many cuts there are from one node to another.
    pub(crate) cuts: [[u8; NODES_MAX]; NODES_MAX],
    pub(crate) join: Option<Join>,
    pub(crate) leave: Option<Leave>,
    pub(crate) healed: bool,
    pub(crate) judge: Judge,
    pub(crate) counts: Counts,
    pub(crate) done: bool,
}

/// Runs a seed to its end.
pub fn run(seed: u64, options: Options) -> Outcome {
    let mut mesh = Mesh::new(seed, options);
    while let Some(Reverse(next)) = mesh.queue.pop() {
        if mesh.done || mesh.judge.violation.is_some() {
            break;
        }
        mesh.now = next.at;
        mesh.counts.events += 1;
        mesh.trace.mix(next.at ^ next.sequence.rotate_left(32));
        mesh.dispatch(next.event);
    }
    mesh.trace.mix(mesh.rng.state());
    Outcome {
        violation: mesh.judge.violation.take(),
        hash: mesh.trace.hash(),
        simulated: mesh.now,
        counts: mesh.counts,
        trace: mesh.trace.text(),
    }
}

impl Mesh {
    fn new(seed: u64, options: Options) -> Self {
        let mut rng = Rng::new(seed);
        let shape = Shape::of(&mut rng, options.nodes);
        let mut mesh = Self {
            now: 0,
            queue: BinaryHeap::new(),
            sequence: 0,
            rng,
            mutation: options.mutation,
            trace: Trace::new(options.verbose),
            nodes: Vec::new(),
            cuts: [[0; NODES_MAX]; NODES_MAX],
            join: None,
            leave: None,
            healed: false,
            judge: Judge::default(),
            counts: Counts::default(),
            done: false,
            shape,
        };
        mesh.note(|mesh| format!("seed {seed}: {:?}", mesh.shape));
        for node in 0..mesh.shape.nodes {
            mesh.found(node);
        }
        for node in 0..mesh.shape.nodes {
            mesh.boot(node);
            let epoch = mesh.nodes[node].server.epoch;
            mesh.schedule(MS, Event::Open { node, epoch });
            mesh.schedule(MS, Event::Flusher { node, epoch });
        }
        for index in 0..mesh.shape.faults.len() {
            mesh.schedule(mesh.shape.faults[index].0, Event::Strike(index));
        }
        mesh.schedule(mesh.shape.heal_at, Event::Heal);
        mesh
    }

    pub(crate) fn schedule(&mut self, at: Time, event: Event) {
        self.sequence += 1;
        let scheduled = Scheduled { at: at.max(self.now), sequence: self.sequence, event };
        self.queue.push(Reverse(scheduled));
    }

    pub(crate) fn after(&mut self, delay: Time, event: Event) {
        self.schedule(self.now + delay, event);
    }

    pub(crate) fn note(&mut self, line: impl FnOnce(&Self) -> String) {
        if self.trace.is_verbose() {
            let line = line(self);
            let line = format!("{:03} {line}", self.now / US % 1000);
            self.trace.note(self.now, || line);
        }
    }

    /// A few statements' time.
    pub(crate) fn moment(&mut self) -> Time {
        if self.rng.chance(20) { self.rng.range(MS, 15 * MS) } else { self.rng.range(5, 120) * US }
    }

    /// Wakes those who waited for a transaction.
    pub(crate) fn wake(&mut self, node: usize, actors: Vec<Actor>) {
        for actor in actors {
            match actor {
                Actor::Writer(writer) => {
                    let epoch = self.nodes[node].server.epoch;
                    self.after(US, Event::Write { node, epoch, writer });
                }
                Actor::Applier(source) => {
                    if let Some(session) = self.nodes[node].link(source).map(|link| link.session) {
                        self.after(US, Event::Apply { node, source, session });
                    }
                }
            }
        }
    }

    fn dispatch(&mut self, event: Event) {
        match event {
            Event::Write { node, epoch, writer } if self.runs(node, epoch) => self.write(node, writer),
            Event::Commit { node, epoch, who, xid, stage } if self.runs(node, epoch) => {
                self.commit(node, who, xid, stage);
            }
            Event::Flush { node, epoch, upto } if self.runs(node, epoch) => self.flush(node, upto),
            Event::Flusher { node, epoch } if self.runs(node, epoch) => {
                let end = self.nodes[node].server.log.len();
                self.flush(node, end);
                let pause = self.rng.around(self.shape.flush_every);
                self.after(pause, Event::Flusher { node, epoch });
            }
            Event::Open { node, epoch } if self.runs(node, epoch) => self.open(node),
            Event::Arrive { node, source, session, upto } if self.flows(node, source, session) => {
                self.arrive(node, source, upto);
            }
            Event::Apply { node, source, session } if self.flows(node, source, session) => {
                self.apply(node, source);
            }
            Event::Connect { node, source, session } => self.connect(node, source, session),
            Event::Tick { node, boot } if self.works(node, boot) => self.tick(node),
            Event::Snapshot { node, boot, clock } if self.works(node, boot) => self.announce(node, clock),
            Event::Members { node, boot } if self.works(node, boot) => {
                self.look_who_takes_part(node);
                let pause = self.rng.around(self.shape.members_every);
                self.after(pause, Event::Members { node, boot });
            }
            Event::Collect { node, boot } if self.works(node, boot) => self.collect(node),
            Event::Restart { node } => self.restart(node),
            Event::Boot { node } => self.boot(node),
            Event::Join => self.join_goes_on(),
            Event::Leave => self.leave_goes_on(),
            Event::Strike(index) => self.strike(index),
            Event::Crash { node } => self.crash(node, false, 10 * MS),
            Event::Mend { from, to } => self.mend(from, to),
            Event::Heal => self.heal(),
            Event::Check => self.check(),
            // Whom these were for is no more.
            Event::Write { .. }
            | Event::Commit { .. }
            | Event::Flush { .. }
            | Event::Flusher { .. }
            | Event::Open { .. }
            | Event::Arrive { .. }
            | Event::Apply { .. }
            | Event::Tick { .. }
            | Event::Snapshot { .. }
            | Event::Members { .. }
            | Event::Collect { .. } => {}
        }
    }

    fn runs(&self, node: usize, epoch: u64) -> bool {
        self.nodes[node].server.up && self.nodes[node].server.epoch == epoch
    }

    fn works(&self, node: usize, boot: u64) -> bool {
        let node = &self.nodes[node];
        node.server.up && node.agent_up && node.boot == boot
    }

    fn flows(&self, node: usize, source: usize, session: u64) -> bool {
        self.nodes[node].link(source).is_some_and(|link| link.connected && link.session == session)
    }
}
