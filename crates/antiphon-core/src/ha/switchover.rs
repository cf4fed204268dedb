//! A planned hand-over, from the leader's side: checked, prepared while writes go on, then committed.
//!
//! An operator asks for one, or the disk under the leader is full and a follower's is not.
//!
//! The checkpoint comes first so that the shutdown's own is short; the election is opened only when the
//! candidate is level, so that writes stop for no longer than the last bytes need; and when every router holds back what
//! begins and nothing of its clients is under way, so that they see no error.

use std::time::Duration;

use super::cluster::{Cause, Cluster, Leader, Request};
use super::decide::{Decision, open_election};
use super::role::Role;
use super::step::Step;
use super::why::Why;
use super::world::{Database, PrimaryServer, Stored, Task, World};
use crate::NodeName;

/// How far behind the candidate may be when writes are stopped, in bytes.
const LEVEL_BYTES: u64 = 1024 * 1024;
/// How old the preparing checkpoint may be.
const CHECKPOINT_AGE_MAX: Duration = Duration::from_secs(10);
/// How long routers are waited for until nothing of theirs is under way: whoever has not ended then sees an error, and
/// everybody else has waited long enough.
const PATIENCE: Duration = Duration::from_secs(2);

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
    let lately = |at| world.now.since(at) <= CHECKPOINT_AGE_MAX;
    if !primary.checkpointed.is_some_and(lately) {
        return Some(Decision::step(role, why, Step::Checkpoint));
    }
    if !level(primary, &to) {
        return Some(Decision::rest(role, why).waking(world.now + Duration::from_millis(50)));
    }
    let patient_until = world.routers.asked.unwrap_or(world.now) + PATIENCE;
    if world.routers.awaited > 0 && world.now < patient_until {
        return Some(Decision::rest(role, Why::HandingOver { to }).waking(patient_until));
    }
    // Announced to the end: routers that heard otherwise would send what they hold into the election.
    let why = Why::HandingOver { to: to.clone() };
    let mut step = open_election(world, cluster, leader, Cause::Switchover { to });
    if let Step::ChangeCluster { consume_request, .. } = &mut step {
        *consume_request = Some(request.revision);
    }
    Some(Decision::step(role, why, step))
}

/// The hand-over by which a leader whose disk is full saves itself, if a follower has space. Without the
/// checkpoint before it, which would need space, too.
pub(super) fn leave_full_disk(
    world: &World,
    cluster: &Stored<Cluster>,
    leader: &Leader,
    db: &Database,
    primary: &PrimaryServer,
) -> Option<Decision> {
    if !db.disk_full || world.settings.pause {
        return None;
    }
    let anyone = Request { leader: None, candidate: None, scheduled_at: None, accept_loss: false };
    let to = candidate(world, leader, &anyone, primary).ok().filter(|to| level(primary, to))?;
    let step = open_election(world, cluster, leader, Cause::Switchover { to: to.clone() });
    Some(Decision::step(Role::Leader { epoch: leader.epoch }, Why::DiskFull { to: Some(to) }, step))
}

/// Whether a follower has all but the last bytes.
fn level(primary: &PrimaryServer, to: &NodeName) -> bool {
    primary.standbys.iter().any(|standby| {
        standby.name == *to && standby.flushed.bytes_to(primary.flushed).is_none_or(|lag| lag <= LEVEL_BYTES)
    })
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
        let peer = world.peers.get(name);
        match peer.filter(|peer| peer.heard_within(world.now, world.settings.failure_timeout)) {
            Some(peer) if peer.has_space() => Ok(()),
            Some(_) => Err(format!("the disk of {name} is full")),
            None => Err(format!("the agent of {name} is not heard")),
        }
    };
    match &request.candidate {
        Some(name) => able(name).map(|()| name.clone()),
        None => {
            let best = primary.standbys.iter().filter(|standby| able(&standby.name).is_ok());
            let priority = |name: &NodeName| {
                world.store.member(name).map_or((false, 0), |m| (!m.delayed, m.tags.priority()))
            };
            let best = best.max_by_key(|s| (priority(&s.name), s.flushed, std::cmp::Reverse(s.name.clone())));
            best.map(|standby| standby.name.clone())
                .ok_or_else(|| "no follower is able to lead now".to_owned())
        }
    }
}
