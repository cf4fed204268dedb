//! A database server: what is on its disk, which of its processes live, and how they come and go.
//!
//! It knows nothing of agents. What is only in memory is lost when the processes end; what was flushed is
//! kept. Replication is in `stream.rs`, writing in `client.rs`.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use antiphon_core::ha::world::{StopMode, SyncNames, Upstream};
use antiphon_core::{Epoch, Lsn, Timeline};

use crate::clock::{MS, SEC, Time};
use crate::net::NodeId;
use crate::wal::Point;
use crate::{Event, Sim};

/// A data directory.
#[derive(Clone, Debug)]
pub struct Directory {
    /// The end of the WAL that is flushed.
    pub end: Point,
    /// Where the last shutdown's checkpoint begins, or an older one.
    pub checkpoint: Point,
    /// The control file says that it is a primary's.
    pub primary: bool,
    /// The control file says that it was shut down cleanly.
    pub clean: bool,
}

/// The server's processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Run {
    /// None.
    Down,
    /// Started, not answering yet.
    Starting {
        /// Since when.
        since: Time,
        /// As what.
        primary: bool,
    },
    /// In recovery.
    Standby,
    /// Accepts writes.
    Primary,
    /// The main process is gone, others live on.
    Orphans {
        /// They are a primary's.
        primary: bool,
    },
}

/// A WAL sender.
#[derive(Clone, Debug)]
pub struct Sender {
    /// To whom.
    pub to: NodeId,
    /// Which connection.
    pub connection: u64,
    /// What the standby said it has flushed.
    pub flushed: u64,
    /// It has caught up once.
    pub streaming: bool,
    /// `synchronous_standby_names` as this process knows it.
    pub names: Rc<SyncNames>,
    /// Something is on its way.
    pub busy: bool,
    /// Since when the standby has been unreachable.
    pub lost_since: Option<Time>,
}

/// A WAL receiver.
#[derive(Clone, Debug)]
pub struct Receiver {
    /// From whom.
    pub from: NodeId,
    /// Which connection.
    pub connection: u64,
    /// It has got something.
    pub streaming: bool,
    /// Since when the upstream has been unreachable.
    pub lost_since: Option<Time>,
}

/// A server.
#[derive(Debug)]
pub struct Server {
    /// Its data directory, if there is one.
    pub directory: Option<Directory>,
    /// The journal says that a clone or rewind did not end.
    pub half_built: bool,
    /// Its processes.
    pub run: Run,
    /// Counted up whenever the processes change, so that events of earlier ones are known.
    pub generation: u32,
    /// The newest term that it was promoted, started or confirmed in.
    pub term: Epoch,
    /// Stopped by SIGSTOP.
    pub paused: bool,
    /// Since when it has not answered, if it does not.
    pub silent_since: Option<Time>,
    /// Its disk answers nothing until then.
    pub stuck_until: Time,
    /// Its disk is full: it panics when it writes.
    pub full: bool,
    /// What it is set to stream from.
    pub upstream: Option<Upstream>,
    /// `synchronous_standby_names` in its file.
    pub names: Rc<SyncNames>,
    /// Counted up at each change of it.
    pub names_version: u32,
    /// The checkpointer knows that there are names: commits wait.
    pub defined: bool,
    /// How many processes have not taken the newest names over.
    pub adopting: usize,
    /// WAL senders.
    pub senders: Vec<Sender>,
    /// The WAL receiver.
    pub receiver: Option<Receiver>,
    /// The receiver has been told to end.
    pub receiver_ending: bool,
    /// All before is replayed, once `replay_at` has come up to `directory.end`.
    pub replayed: u64,
    /// When replay is done.
    pub replay_at: Time,
    /// Written and not flushed: where each record ends, and the commit that it is, if it is one.
    pub unflushed: VecDeque<(u64, Option<usize>)>,
    /// Flushed, waiting for acknowledgements, and since when.
    pub waiters: VecDeque<(u64, Option<usize>, Time)>,
    /// A flush is under way.
    pub flushing: bool,
    /// It is being stopped.
    pub stopping: Option<StopMode>,
    /// Physical slots.
    pub slots: BTreeMap<String, Option<Lsn>>,
    /// Events that wait for the processes to go on.
    pub held: Vec<Event>,
}

/// What happens in a server's processes.
#[derive(Clone, Debug)]
pub enum Happening {
    /// Look after connections.
    Tick,
    /// The WAL up to here is on disk.
    Flush(u64),
    /// WAL came in.
    Arrive(u64, Point),
    /// What came in is on disk.
    Store(u64, Point),
    /// A standby has flushed up to here.
    Acknowledge(u64, u64),
    /// A process reads the configuration: a WAL sender, or the checkpointer.
    Adopt(u32, Option<u64>),
    /// The start is done.
    Up,
    /// Recovery ended.
    Promoted(Epoch, Timeline),
    /// No process is left.
    Gone(StopMode),
    /// The receiver ends.
    ReceiverEnds(u64),
}

impl Default for Server {
    fn default() -> Self {
        Self {
            directory: None,
            half_built: false,
            run: Run::Down,
            generation: 0,
            term: Epoch(0),
            paused: false,
            silent_since: None,
            stuck_until: 0,
            full: false,
            upstream: None,
            names: Rc::new(SyncNames::Nobody),
            names_version: 0,
            defined: false,
            adopting: 0,
            senders: Vec::new(),
            receiver: None,
            receiver_ending: false,
            replayed: 0,
            replay_at: 0,
            unflushed: VecDeque::new(),
            waiters: VecDeque::new(),
            flushing: false,
            stopping: None,
            slots: BTreeMap::new(),
            held: Vec::new(),
        }
    }
}

impl Server {
    /// Commits can happen here now.
    pub fn writes(&self) -> bool {
        let alive = matches!(self.run, Run::Primary | Run::Orphans { primary: true });
        alive && !self.paused && self.stopping.is_none()
    }

    /// The end of its flushed WAL.
    pub fn end(&self) -> Option<Point> {
        self.directory.as_ref().map(|directory| directory.end)
    }

    /// The end of what it has written.
    pub fn written(&self) -> u64 {
        let flushed = self.end().map_or(0, |end| end.lsn);
        self.unflushed.back().map_or(flushed, |(lsn, _)| flushed.max(*lsn))
    }
}

impl Sim {
    /// Schedules something in a server's present processes.
    pub(crate) fn in_server(&mut self, at: Time, node: NodeId, what: Happening) {
        let generation = self.nodes[node].server.generation;
        self.schedule(at, Event::Server { node, generation, what });
    }

    /// Starts the processes.
    pub(crate) fn start_server(&mut self, node: NodeId, primary: bool) -> Result<(), String> {
        let now = self.now;
        let mutated = self.starts_half_built();
        let server = &mut self.nodes[node].server;
        if server.run != Run::Down {
            return Err("it runs already".to_owned());
        }
        if server.half_built && !mutated {
            return Err("its data directory is half-built".to_owned());
        }
        let half_built = server.half_built;
        let Some(directory) = &mut server.directory else {
            return Err("there is no data directory".to_owned());
        };
        if server.full {
            return Err("no space left on device".to_owned());
        }
        let crashed = !directory.clean;
        directory.primary = primary;
        server.generation += 1;
        server.run = Run::Starting { since: now, primary };
        server.stopping = None;
        server.silent_since = None;
        if half_built {
            self.violation(format!("I7: {} starts a half-built directory", self.name(node)));
        }
        let base =
            if crashed { self.rng.range(200 * MS, 2 * SEC) } else { self.rng.range(50 * MS, 300 * MS) };
        self.in_server(now + base, node, Happening::Up);
        Ok(())
    }

    /// The start is done: recovery has read all WAL that is here.
    pub(crate) fn server_up(&mut self, node: NodeId) {
        let Run::Starting { primary, .. } = self.nodes[node].server.run else { return };
        let Some(end) = self.nodes[node].server.end() else { return };
        let server = &mut self.nodes[node].server;
        server.defined = *server.names != SyncNames::Nobody;
        server.adopting = 0;
        server.replayed = end.lsn;
        server.replay_at = self.now;
        if primary {
            self.own_branch(node, end);
            self.nodes[node].server.run = Run::Primary;
            self.accepts_writes(node);
        } else {
            server.run = Run::Standby;
        }
        if let Some(directory) = &mut self.nodes[node].server.directory {
            directory.clean = false;
        }
        self.note(|sim| format!("{}: server is up, {:?}", sim.name(node), sim.nodes[node].server.run));
        let soon = self.now + self.rng.range(MS, 20 * MS);
        self.in_server(soon, node, Happening::Tick);
        self.start_ended(node);
    }

    /// A primary that goes on in a branch that another server writes begins one of its own, unnoticed.
    fn own_branch(&mut self, node: NodeId, end: Point) {
        let branch = &self.wal.branches[end.branch];
        if branch.owner != node {
            let timeline = branch.timeline;
            let own = self.wal.branch(timeline, Some(end), node);
            if let Some(directory) = &mut self.nodes[node].server.directory {
                directory.end.branch = own;
            }
        }
    }

    /// Recovery ends; the server takes the timeline and accepts writes.
    pub(crate) fn promoted(&mut self, node: NodeId, epoch: Epoch, timeline: Timeline) {
        let server = &mut self.nodes[node].server;
        if server.run != Run::Standby || server.stopping.is_some() {
            return;
        }
        let Some(end) = server.end() else { return };
        let branch = self.wal.branch(timeline.0, Some(end), node);
        let server = &mut self.nodes[node].server;
        server.receiver = None;
        server.receiver_ending = false;
        if let Some(directory) = &mut server.directory {
            directory.end.branch = branch;
            directory.primary = true;
        }
        server.run = Run::Primary;
        server.term = epoch;
        // On a new timeline each sender begins anew, and so reads the setting that came before.
        for sender in &mut server.senders {
            sender.names = server.names.clone();
        }
        server.adopting = 0;
        self.note(|sim| format!("{}: promoted onto timeline {timeline} at {:X}", sim.name(node), end.lsn));
        self.accepts_writes(node);
        self.promotion_ended(node);
    }

    /// Asks the server to stop.
    pub(crate) fn stop_server(&mut self, node: NodeId, mode: StopMode) {
        let server = &mut self.nodes[node].server;
        if server.run == Run::Down {
            return;
        }
        // Nobody is left to shut it down in order.
        let mode = if matches!(server.run, Run::Orphans { .. }) { StopMode::Kill } else { mode };
        if server.stopping.is_some_and(|running| running >= mode) {
            return;
        }
        server.stopping = Some(mode);
        match mode {
            // Sessions end without an answer to their waiting commits.
            StopMode::Fast => {
                let primary = server.run == Run::Primary;
                server.waiters.clear();
                server.unflushed.clear();
                if primary && !server.paused {
                    self.shutdown_checkpoint(node);
                } else if !primary {
                    let at = self.now + self.rng.range(10 * MS, 150 * MS);
                    self.in_server(at, node, Happening::Gone(mode));
                }
            }
            StopMode::Immediate => {
                let at = self.now + self.rng.range(5 * MS, 60 * MS);
                self.in_server(at, node, Happening::Gone(mode));
            }
            StopMode::Kill => {
                let at = self.now + self.rng.range(MS, 10 * MS);
                self.in_server(at, node, Happening::Gone(mode));
            }
        }
    }

    /// The last record of a clean shutdown; the processes end when every connected standby has it.
    pub(crate) fn shutdown_checkpoint(&mut self, node: NodeId) {
        let server = &mut self.nodes[node].server;
        server.unflushed.clear();
        server.waiters.clear();
        if let Some(directory) = &mut server.directory {
            directory.checkpoint = directory.end;
            directory.end.lsn += 120;
        }
        self.pump_all(node);
        self.drained(node);
    }

    /// Ends a fast shutdown when nobody has to be waited for any more.
    pub(crate) fn drained(&mut self, node: NodeId) {
        let server = &self.nodes[node].server;
        if server.stopping != Some(StopMode::Fast) || server.run != Run::Primary {
            return;
        }
        let Some(end) = server.end() else { return };
        if server.senders.iter().all(|sender| sender.flushed >= end.lsn) {
            let at = self.now + self.rng.range(2 * MS, 30 * MS);
            self.in_server(at, node, Happening::Gone(StopMode::Fast));
        }
    }

    /// The processes are gone.
    pub(crate) fn server_gone(&mut self, node: NodeId, how: Option<StopMode>) {
        let server = &mut self.nodes[node].server;
        if server.run == Run::Down {
            return;
        }
        let clean = how == Some(StopMode::Fast) && !matches!(server.run, Run::Starting { .. });
        if let Some(directory) = &mut server.directory {
            if clean {
                directory.clean = true;
                if !directory.primary {
                    directory.checkpoint = directory.end;
                }
            } else {
                directory.clean = false;
            }
        }
        server.run = Run::Down;
        server.generation += 1;
        server.stopping = None;
        server.paused = false;
        server.silent_since = None;
        server.senders.clear();
        server.receiver = None;
        server.receiver_ending = false;
        server.unflushed.clear();
        server.waiters.clear();
        server.flushing = false;
        server.adopting = 0;
        server.held.clear();
        self.note(|sim| format!("{}: server is gone ({how:?})", sim.name(node)));
        self.server_ended(node, how);
    }

    /// The main process is killed; others may live on for a while.
    pub(crate) fn kill_postmaster(&mut self, node: NodeId) {
        let busy = self.rng.chance(500);
        let lives = self.rng.range(50 * MS, 6 * SEC);
        let server = &mut self.nodes[node].server;
        let primary = match server.run {
            Run::Down | Run::Orphans { .. } => return,
            Run::Primary => true,
            Run::Standby | Run::Starting { .. } => false,
        };
        if !busy || !primary {
            self.server_gone(node, None);
            return;
        }
        server.run = Run::Orphans { primary };
        self.note(|sim| format!("{}: main process killed, backends live on", sim.name(node)));
        let at = self.now + lives;
        self.in_server(at, node, Happening::Gone(StopMode::Kill));
        self.poke(node, MS);
    }

    /// One backend crashes: all sessions end, the main process recovers and goes on in its role.
    pub(crate) fn backend_crash(&mut self, node: NodeId) {
        let server = &mut self.nodes[node].server;
        let primary = match server.run {
            Run::Primary => true,
            Run::Standby => false,
            Run::Down | Run::Orphans { .. } | Run::Starting { .. } => return,
        };
        if server.stopping.is_some() || server.paused {
            return;
        }
        server.generation += 1;
        server.run = Run::Starting { since: self.now, primary };
        server.senders.clear();
        server.receiver = None;
        server.unflushed.clear();
        server.waiters.clear();
        server.flushing = false;
        server.adopting = 0;
        let at = self.now + self.rng.range(100 * MS, 2 * SEC);
        self.in_server(at, node, Happening::Up);
        self.sessions_ended(node);
        self.poke(node, MS);
    }
}
