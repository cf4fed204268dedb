//! One task at a time: begun, visible, interrupted by a stop, and its failure kept.
//!
//! The slot knows nothing of what the work is. A stop interrupts anything, a harder stop a softer one;
//! everything else waits its turn by being refused.

use std::sync::{Mutex, MutexGuard, PoisonError};

use antiphon_core::Instant;
use antiphon_core::ha::world::{Failure, Task};
use tokio::task::AbortHandle;

use super::clock::now;
use crate::{EngineError, sentence};

#[derive(Default)]
struct State {
    running: Option<Running>,
    failed: Option<Failure>,
    /// Tells a task that was replaced from its successor.
    count: u64,
}

struct Running {
    id: u64,
    task: Task,
    since: Instant,
    abort: AbortHandle,
}

/// The slot.
#[derive(Default)]
pub(super) struct Tasks {
    state: Mutex<State>,
}

impl Tasks {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves plain values behind, each of them valid.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What runs, and since when.
    pub(super) fn running(&self) -> Option<(Task, Instant)> {
        self.lock().running.as_ref().map(|running| (running.task, running.since))
    }

    /// The latest failure that no success followed.
    pub(super) fn failed(&self) -> Option<Failure> {
        self.lock().failed.clone()
    }

    /// Starts `task` by `spawn`, which is given the number to end it with. Asking again for the stop that
    /// runs is no error and changes nothing.
    pub(super) fn begin(
        &self,
        task: Task,
        spawn: impl FnOnce(u64) -> AbortHandle,
    ) -> Result<(), EngineError> {
        let mut state = self.lock();
        if let Some(running) = &state.running {
            match (running.task, task) {
                (Task::Stop(now), Task::Stop(asked)) if now == asked => return Ok(()),
                (Task::Stop(now), Task::Stop(asked)) if now < asked => running.abort.abort(),
                (Task::Stop(_), _) => return Err(EngineError::Busy { running: running.task, asked: task }),
                (_, Task::Stop(_)) => running.abort.abort(),
                (running, asked) => return Err(EngineError::Busy { running, asked }),
            }
        }
        state.count += 1;
        let id = state.count;
        // Ending waits for the lock that is held here, so a task cannot end before it is noted.
        state.running = Some(Running { id, task, since: now(), abort: spawn(id) });
        Ok(())
    }

    /// Notes the end of task `id`, unless it was replaced.
    pub(super) fn end(&self, id: u64, result: &Result<(), EngineError>) {
        let mut state = self.lock();
        let Some(running) = state.running.take_if(|running| running.id == id) else { return };
        let took = now().since(running.since);
        match result {
            Ok(()) => {
                tracing::info!(task = ?running.task, ?took, "done");
                state.failed = None;
            }
            Err(error) => {
                let unreachable = matches!(error, EngineError::Unreachable { .. });
                let error = sentence(error);
                tracing::warn!(task = ?running.task, ?took, error, "failed");
                let before = state.failed.as_ref().filter(|failure| failure.task == running.task);
                let counts = u32::from(!unreachable);
                let times = before.map_or(1, |failure| failure.times.saturating_add(counts));
                state.failed = Some(Failure { task: running.task, at: now(), times, error });
            }
        }
    }
}
