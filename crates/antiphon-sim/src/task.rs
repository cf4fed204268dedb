//! Work that takes longer than a decision, as the agent's engine does it: begun, visible in the World, ended
//! or failed; a stop interrupts anything.

use antiphon_core::ha::step::Step;
use antiphon_core::ha::world::{Failure, StopMode, SyncNames, Task};
use antiphon_core::{Epoch, Timeline};

use crate::clock::{MS, SEC};
use crate::net::{NodeId, Path};
use crate::node::{Proving, Running, server_address};
use crate::server::{Directory, Happening, Run};
use crate::wal::Point;
use crate::{Event, Sim};

/// How long a mark may wait for its acknowledgement.
const PROVE_MAX: u64 = 5 * SEC;
/// How long a start or a promotion is waited for.
const LONG: u64 = 60 * SEC;
/// How many looks at its source a clone or rewind takes.
const BUILD_LOOKS: u32 = 4;

impl Sim {
    /// Begins work.
    pub(crate) fn begin(&mut self, node: NodeId, work: Step) -> Result<(), String> {
        if matches!(work, Step::Clone { .. } | Step::Rewind { .. })
            && self.nodes[node].server.run != Run::Down
        {
            self.begin(node, Step::Stop { mode: StopMode::Fast })?;
            if let Some(agent) = &mut self.nodes[node].agent {
                agent.after_stop = Some((agent.phase, work));
            }
            return Ok(());
        }
        let task = task_of(&work);
        let Some(id) = self.take_slot(node, task)? else { return Ok(()) };
        self.wishes_begun(node, task);
        let now = self.now;
        let boot = self.nodes[node].boot;
        let end = |delay: u64, error: Option<String>| (now + delay, Event::TaskEnd { node, boot, id, error });
        match work {
            Step::Initialise => {
                let at = now + self.rng.range(300 * MS, 2 * SEC);
                self.schedule(at, Event::Initialised { node, boot, id });
            }
            Step::StartStandby { upstream } => {
                let upstream = upstream.map(|(upstream, _)| upstream);
                let fenced = self.nodes[node].fenced;
                let error = if upstream.as_ref().is_some_and(|upstream| upstream.epoch < fenced) {
                    Some("fenced against that term".to_owned())
                } else {
                    self.nodes[node].server.upstream = upstream;
                    self.start_server(node, false).err()
                };
                let (at, event) = if error.is_some() { end(5 * MS, error) } else { end(LONG, late("start")) };
                self.schedule(at, event);
            }
            Step::StartPrimary { epoch, sync } => {
                let error = self.start_primary(node, epoch, sync).err();
                let (at, event) = if error.is_some() { end(5 * MS, error) } else { end(LONG, late("start")) };
                self.schedule(at, event);
            }
            Step::Promote { epoch, timeline, sync } => {
                let error = self.promote(node, epoch, timeline, sync).err();
                let (at, event) =
                    if error.is_some() { end(5 * MS, error) } else { end(LONG, late("promotion")) };
                self.schedule(at, event);
            }
            Step::Stop { mode } => {
                if let Some(agent) = &mut self.nodes[node].agent {
                    agent.crash = None;
                }
                if self.nodes[node].server.run == Run::Down {
                    let (at, event) = end(MS, None);
                    self.schedule(at, event);
                } else {
                    self.stop_server(node, mode);
                }
            }
            Step::SetSync { sync, prove } => self.begin_set_sync(node, id, sync, prove),
            Step::Checkpoint => {
                let (at, event) = end(self.rng.range(20 * MS, 400 * MS), None);
                self.schedule(at, event);
            }
            Step::Clone { address, keep_old } => self.begin_clone(node, id, &address, keep_old),
            Step::Rewind { address } => self.begin_rewind(node, id, &address),
            other => return Err(format!("{other:?} is no work")),
        }
        Ok(())
    }

    /// Gives the slot to a task; none if the same stop goes on in it.
    fn take_slot(&mut self, node: NodeId, task: Task) -> Result<Option<u64>, String> {
        self.task_ids += 1;
        let id = self.task_ids;
        let since = self.nodes[node].clock.local(self.now);
        let Some(agent) = &mut self.nodes[node].agent else { return Err("no agent".to_owned()) };
        match (agent.task.as_ref().map(|running| running.task), task) {
            (None, _) => {}
            (Some(Task::Stop(now)), Task::Stop(asked)) if now == asked => return Ok(None),
            (Some(Task::Stop(now)), Task::Stop(asked)) if now < asked => {}
            (Some(Task::Stop(_)), _) => return Err("a stop goes on".to_owned()),
            (Some(_), Task::Stop(_)) => agent.proving = None,
            (Some(running), _) => return Err(format!("{running} goes on")),
        }
        agent.task = Some(Running { task, since, id });
        Ok(Some(id))
    }

    /// A task has ended.
    pub(crate) fn task_ended(&mut self, node: NodeId, id: u64, error: Option<&str>) {
        let now = self.nodes[node].clock.local(self.now);
        let Some(agent) = &mut self.nodes[node].agent else { return };
        let Some(running) = agent.task.take_if(|running| running.id == id) else { return };
        let task = running.task;
        agent.proving = None;
        match &error {
            None => {
                agent.failed = None;
                if task == Task::Checkpoint {
                    agent.checkpointed = Some(now);
                }
            }
            Some(error) => {
                let times = agent.failed.as_ref().filter(|f| f.task == task).map_or(0, |f| f.times) + 1;
                agent.failed = Some(Failure { task, at: now, times, error: (*error).to_owned() });
            }
        }
        self.note(|sim| format!("{}: {task} ended, {error:?}", sim.name(node)));
        self.poke(node, MS);
    }

    fn running_id(&self, node: NodeId, wanted: impl Fn(Task) -> bool) -> Option<u64> {
        let agent = self.nodes[node].agent.as_ref()?;
        agent.task.as_ref().filter(|running| wanted(running.task)).map(|running| running.id)
    }

    /// The server answers after a start.
    pub(crate) fn start_ended(&mut self, node: NodeId) {
        if let Some(agent) = &mut self.nodes[node].agent {
            agent.crash = None;
        }
        if let Some(id) = self.running_id(node, |task| task == Task::Start) {
            self.task_ended(node, id, None);
        }
        self.poke(node, 20 * MS);
    }

    /// The server was promoted.
    pub(crate) fn promotion_ended(&mut self, node: NodeId) {
        if let Some(agent) = &mut self.nodes[node].agent {
            agent.proven = None;
            agent.checkpointed = None;
        }
        if let Some(id) = self.running_id(node, |task| task == Task::Promote) {
            self.task_ended(node, id, None);
        }
        self.poke(node, 5 * MS);
    }

    /// The server's processes are gone: `how` if something stopped them.
    pub(crate) fn server_ended(&mut self, node: NodeId, how: Option<StopMode>) {
        let stopping = self.running_id(node, |task| matches!(task, Task::Stop(_)));
        if let Some(agent) = &mut self.nodes[node].agent {
            agent.proven = None;
            agent.proving = None;
            agent.checkpointed = None;
            agent.crash = stopping.is_none().then(|| format!("ended by itself, {how:?}"));
        }
        match (
            stopping,
            self.running_id(node, |task| matches!(task, Task::Start | Task::Promote | Task::SetSync)),
        ) {
            (Some(id), _) => self.task_ended(node, id, None),
            (None, Some(id)) => self.task_ended(node, id, Some("the server ended")),
            (None, None) => {}
        }
        self.poke(node, 10 * MS);
    }

    /// Every session was ended: what a task asked for in one has failed.
    pub(crate) fn sessions_ended(&mut self, node: NodeId) {
        if let Some(id) = self.running_id(node, |task| matches!(task, Task::Promote | Task::SetSync)) {
            self.task_ended(node, id, Some("the connection was lost"));
        }
    }

    /// Begins the work that waited for the server to stop; true if it did.
    pub(crate) fn go_on_after_stop(&mut self, node: NodeId) -> bool {
        if self.nodes[node].server.run != Run::Down {
            return false;
        }
        let Some(agent) = &mut self.nodes[node].agent else { return false };
        if agent.task.is_some() {
            return false;
        }
        let Some((phase, work)) = agent.after_stop.take() else { return false };
        phase == agent.phase && self.begin(node, work).is_ok()
    }

    /// initdb is done, and the first start.
    pub(crate) fn initialised(&mut self, node: NodeId, id: u64) {
        if self.running_id(node, |task| task == Task::Initialise) != Some(id) {
            return;
        }
        let branch = self.wal.branch(1, None, node);
        let end = Point { branch, lsn: 0x0100_0000 };
        let server = &mut self.nodes[node].server;
        server.directory = Some(Directory { end, checkpoint: end, primary: true, clean: true });
        server.half_built = false;
        server.term = Epoch(1);
        self.nodes[node].server.names = std::rc::Rc::new(SyncNames::Nobody);
        let error = self.start_server(node, true).err();
        if error.is_some() {
            self.task_ended(node, id, error.as_deref());
        } else if let Some(agent) = &mut self.nodes[node].agent
            && let Some(running) = &mut agent.task
        {
            running.task = Task::Start;
        }
    }

    fn start_primary(&mut self, node: NodeId, epoch: Epoch, sync: SyncNames) -> Result<(), String> {
        let here = &mut self.nodes[node];
        if epoch < here.fenced {
            return Err("fenced against that term".to_owned());
        }
        here.server.upstream = None;
        here.server.term = epoch;
        here.server.names = std::rc::Rc::new(sync);
        self.start_server(node, true)
    }

    fn promote(
        &mut self,
        node: NodeId,
        epoch: Epoch,
        timeline: Timeline,
        sync: SyncNames,
    ) -> Result<(), String> {
        let here = &mut self.nodes[node];
        if epoch < here.fenced {
            return Err("fenced against that term".to_owned());
        }
        let Some(end) = here.server.end().filter(|_| here.server.run == Run::Standby) else {
            return Err("it is not in recovery".to_owned());
        };
        if self.wal.branches[end.branch].timeline >= timeline.0 {
            return Err("that timeline is taken".to_owned());
        }
        here.server.upstream = None;
        here.server.names = std::rc::Rc::new(sync);
        here.server.names_version += 1;
        here.server.defined = *here.server.names != SyncNames::Nobody;
        self.end_receiver(node);
        let replay = self.nodes[node].server.replay_at.max(self.now);
        let slow = if self.rng.chance(20) { 4 * SEC } else { 200 * MS };
        let at = replay + self.rng.range(50 * MS, 50 * MS + slow);
        self.in_server(at, node, Happening::Promoted(epoch, timeline));
        Ok(())
    }

    fn begin_set_sync(&mut self, node: NodeId, id: u64, names: SyncNames, prove: bool) {
        let prove = prove && !self.proof_is_skipped();
        self.set_names(node, &names);
        let version = self.nodes[node].server.names_version;
        if let Some(agent) = &mut self.nodes[node].agent {
            agent.proven = None;
            agent.proving = Some(Proving { version, names, prove, mark: None, id });
        }
        let boot = self.nodes[node].boot;
        self.schedule(self.now + PROVE_MAX, Event::TaskEnd { node, boot, id, error: late("proof") });
    }

    /// Looks whether every process has taken the names over; then has a mark acknowledged, or is done.
    pub(crate) fn sync_progress(&mut self, node: NodeId) {
        let server = &self.nodes[node].server;
        let Some(proving) = self.nodes[node].agent.as_ref().and_then(|agent| agent.proving.clone()) else {
            return;
        };
        if proving.version != server.names_version || server.adopting > 0 || proving.mark.is_some() {
            return;
        }
        if proving.prove {
            let mark = self.append(node, None).map(|point| point.lsn);
            if let Some(agent) = &mut self.nodes[node].agent
                && let Some(proving) = &mut agent.proving
            {
                proving.mark = mark;
            }
        } else {
            if self.proof_is_skipped()
                && let Some(agent) = &mut self.nodes[node].agent
            {
                agent.proven = Some(proving.names.clone());
            }
            self.task_ended(node, proving.id, None);
        }
    }

    /// A mark was acknowledged.
    pub(crate) fn mark_confirmed(&mut self, node: NodeId, lsn: u64) {
        let Some(agent) = &mut self.nodes[node].agent else { return };
        let Some(proving) = agent.proving.clone().filter(|proving| proving.mark == Some(lsn)) else { return };
        agent.proven = Some(proving.names);
        self.task_ended(node, proving.id, None);
    }

    fn begin_clone(&mut self, node: NodeId, id: u64, address: &str, keep_old: bool) {
        self.judge_clone(node, keep_old);
        let server = &mut self.nodes[node].server;
        server.half_built = true;
        server.directory = None;
        server.slots.clear();
        self.look_at_source(node, id, address, BUILD_LOOKS);
    }

    fn begin_rewind(&mut self, node: NodeId, id: u64, address: &str) {
        self.judge_rewind(node);
        let server = &mut self.nodes[node].server;
        server.half_built = true;
        // Its own recovery shuts the directory down cleanly.
        if let Some(directory) = &mut server.directory {
            directory.clean = true;
            directory.checkpoint = directory.end;
        }
        self.look_at_source(node, id, address, BUILD_LOOKS);
    }

    fn look_at_source(&mut self, node: NodeId, id: u64, address: &str, left: u32) {
        let boot = self.nodes[node].boot;
        let Some(source) = self.nodes.iter().position(|n| server_address(&n.name) == address) else { return };
        let generation = self.nodes[source].server.generation;
        let at = self.now + self.rng.range(50 * MS, 700 * MS);
        self.schedule(at, Event::Build { node, boot, id, source, generation, left });
    }

    /// A clone or rewind goes on, or ends.
    pub(crate) fn build(&mut self, node: NodeId, id: u64, source: NodeId, generation: u32, left: u32) {
        let clone = self.running_id(node, |task| task == Task::Clone) == Some(id);
        let rewind = self.running_id(node, |task| task == Task::Rewind) == Some(id);
        if !clone && !rewind {
            return;
        }
        if self.crashes_in_build(node) {
            return;
        }
        let from = &self.nodes[source];
        let reached = self.net.joined(Path::Wal, source, node) && !from.host_paused && !from.server.paused;
        let runs = match from.server.run {
            Run::Primary => true,
            Run::Standby => clone,
            Run::Down | Run::Starting { .. } | Run::Orphans { .. } => false,
        };
        if !reached || !runs || from.server.generation != generation || from.server.half_built {
            self.task_ended(node, id, Some("the source went away"));
            return;
        }
        if left > 0 {
            let address = server_address(&from.name);
            self.look_at_source(node, id, &address, left - 1);
            return;
        }
        let Some(end) = from.server.end() else { return };
        let server = &mut self.nodes[node].server;
        let kept = server.directory.as_ref().map(|directory| directory.end);
        // Timelines are all that pg_rewind compares: of the same one, nothing needs to be done.
        let same = kept.filter(|kept| {
            rewind && self.wal.branches[kept.branch].timeline == self.wal.branches[end.branch].timeline
        });
        let end = same.unwrap_or(end);
        server.directory = Some(Directory { end, checkpoint: end, primary: false, clean: true });
        server.half_built = false;
        server.slots.clear();
        server.upstream = None;
        self.task_ended(node, id, None);
    }
}

fn late(what: &str) -> Option<String> {
    Some(format!("the {what} was not done in time"))
}

fn task_of(work: &Step) -> Task {
    match work {
        Step::Initialise => Task::Initialise,
        Step::Clone { .. } => Task::Clone,
        Step::Rewind { .. } => Task::Rewind,
        Step::StartStandby { .. } | Step::StartPrimary { .. } => Task::Start,
        Step::Promote { .. } => Task::Promote,
        Step::Stop { mode } => Task::Stop(*mode),
        Step::SetSync { .. } => Task::SetSync,
        _ => Task::Checkpoint,
    }
}
