//! A planned hand-over, from the leader's side: checked, prepared while writes go on, then committed.
//!
//! The checkpoint comes first so that the shutdown's own is short; the election is opened only when the
//! candidate is level, so that writes stop for no longer than the last bytes need.

use std::time::Duration;

use super::cluster::{Cause, Cluster, Leader, Phase, Request};
use super::decide::Decision;
use super::role::Role;
use super::step::Step;
use super::why::Why;
use super::world::{Database, PrimaryServer, Stored, Task, World};
use crate::NodeName;

/// How far behind the candidate may be when writes are stopped, in bytes.
const LEVEL_BYTES: u64 = 1024 * 1024;
/// How old the preparing checkpoint may be.
const CHECKPOINT_AGE_MAX: Duration = Duration::from_secs(10);

/// The next step of what an operator asked for, if anything is asked.
pub(super) fn prepare(
    world: &World,
    cluster: &Stored<Cluster>,
    leader: &Leader,
    db: &Database,
    primary: &PrimaryServer,
) -> Option<Decision> {
    let request = world.store.request.as_ref()?;
    let role = Role::Leader { epoch: leader.epoch };
    let able = candidate(world, leader, &request.value, primary);
    let to = match able.and_then(|to| checkpoint_failed(world, db).map_or(Ok(to), Err)) {
        Ok(to) => to,
        Err(reason) => {
            let step = Step::DropRequest { revision: request.revision };
            return Some(Decision::step(role, Why::RequestRefused { reason }, step));
        }
    };
    let why = Why::SwitchingOver { to: to.clone() };
    if primary.checkpointed.is_none_or(|at| world.now.since(at) > CHECKPOINT_AGE_MAX) {
        return Some(Decision::step(role, why, Step::Checkpoint));
    }
    let level = primary.standbys.iter().any(|standby| {
        standby.name == to && standby.flushed.bytes_to(primary.flushed).is_none_or(|lag| lag <= LEVEL_BYTES)
    });
    if !level {
        return Some(Decision::rest(role, why).waking(world.now + Duration::from_millis(50)));
    }
    let phase = Phase::Electing {
        cause: Cause::Switchover { to },
        opened_by: world.me.name().clone(),
        last: leader.clone(),
    };
    let step = Step::ChangeCluster {
        cluster: Box::new(Cluster { epoch: cluster.value.epoch.next(), phase, ..cluster.value.clone() }),
        expect: cluster.revision,
        take_lease: false,
        lease_unchanged: None,
        consume_request: Some(request.revision),
    };
    Some(Decision::step(role, why, step))
}

/// What was said if the checkpoint for this hand-over failed: a shutdown would fail on it, too.
fn checkpoint_failed(world: &World, db: &Database) -> Option<String> {
    let failed = db.failed.as_ref().filter(|failed| failed.task == Task::Checkpoint)?;
    let lately = world.now.since(failed.at) <= CHECKPOINT_AGE_MAX;
    lately.then(|| format!("the checkpoint before it failed: {}", failed.error))
}

/// Who shall lead next, or why nobody can.
pub fn candidate(
    world: &World,
    leader: &Leader,
    request: &Request,
    primary: &PrimaryServer,
) -> Result<NodeName, String> {
    if let Some(seen) = request.leader.as_ref().filter(|seen| **seen != leader.name) {
        return Err(format!("{seen} is not the leader any more, {} is", leader.name));
    }
    let able = |name: &NodeName| -> Result<(), String> {
        let Some(member) = world.store.member(name) else { return Err(format!("there is no member {name}")) };
        if *name == leader.name {
            return Err(format!("{name} leads already"));
        }
        if !member.tags.may_lead() {
            return Err(format!("{name} is tagged so that it may not lead"));
        }
        let streaming = primary.standbys.iter().any(|standby| standby.name == *name && standby.streaming);
        if !streaming {
            return Err(format!("{name} does not stream from the leader"));
        }
        let heard =
            world.peers.get(name).is_some_and(|p| p.heard_within(world.now, world.settings.failure_timeout));
        if heard { Ok(()) } else { Err(format!("the agent of {name} is not heard")) }
    };
    match &request.candidate {
        Some(name) => able(name).map(|()| name.clone()),
        None => {
            let best = primary.standbys.iter().filter(|standby| able(&standby.name).is_ok());
            let priority = |name: &NodeName| world.store.member(name).map_or(0, |m| m.tags.priority());
            let best = best.max_by_key(|s| (priority(&s.name), s.flushed, std::cmp::Reverse(s.name.clone())));
            best.map(|standby| standby.name.clone())
                .ok_or_else(|| "no follower is able to lead now".to_owned())
        }
    }
}
