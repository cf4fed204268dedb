//! `/switchover` and `/failover`: an operator's wish for another leader, written to the store and watched until
//! its outcome is known.
//!
//! The wish is one key; the leader, or without one the candidate, acts on it. Nothing here decides who leads.
//! The outcome is read from the store's snapshots, in which the end of the wish and the new term appear at once.

use std::sync::Arc;
use std::time::Duration;

use antiphon_core::NodeName;
use antiphon_core::ha::cluster::{Cluster, Member, Phase, Promise, Request as Wish};
use antiphon_core::ha::election;
use antiphon_core::ha::why::Why;
use antiphon_core::settings::SyncMode;
use antiphon_store::{Expect, Snapshot, StoreError, Transaction};
use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use serde_json::{Map, Value};
use tokio::time::{Instant, timeout_at};

use super::config::store_refusal;
use super::reply::{Refusal, Reply, refuse, text};
use super::{Api, body, datetime, health, members};
use crate::agent::view::View;

const KEY: &str = "failover";
/// The agent may say that a wish cannot be met a moment after the store has changed.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Which of the two was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Switchover,
    Failover,
}

impl Action {
    fn title(self) -> &'static str {
        match self {
            Self::Switchover => "Switchover",
            Self::Failover => "Failover",
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Switchover => "switchover",
            Self::Failover => "failover",
        }
    }

    fn past(self) -> &'static str {
        match self {
            Self::Switchover => "switched",
            Self::Failover => "failed",
        }
    }
}

/// `POST /switchover` and `POST /failover`.
pub(super) async fn request(api: &Api, action: Action, request: Request<Incoming>) -> Result<Reply, Refusal> {
    let body = body::object(request).await?;
    let view = api.view.borrow().clone();
    let (action, wish) = read(&view, action, &body)?;
    if wish.scheduled_at.is_none() {
        possible(&view, action, &wish).map_err(|text| refuse(StatusCode::PRECONDITION_FAILED, text))?;
    }
    let before = write(api, &wish).await?;
    if wish.scheduled_at.is_some() {
        return Ok(text(StatusCode::ACCEPTED, format!("{} scheduled", action.title())));
    }
    Ok(outcome(api, &view, action, &wish, &before).await)
}

/// The wish of a body. A failover that names a leader is a switchover.
fn read(view: &View, action: Action, body: &Map<String, Value>) -> Result<(Action, Wish), Refusal> {
    let bad = |text: &str| Err(refuse(StatusCode::BAD_REQUEST, text));
    let known = ["leader", "candidate", "member", "scheduled_at", "accept_loss"];
    if let Some(unknown) = body.keys().find(|key| !known.contains(&key.as_str())) {
        return bad(&format!("{unknown:?} means nothing here; known are {}", known.join(", ")));
    }
    let leader = name(body, "leader")?;
    let candidate = match name(body, "candidate")? {
        Some(candidate) => Some(candidate),
        None => name(body, "member")?,
    };
    let paused = view.world.settings.pause;
    let scheduled_at = body.get("scheduled_at").filter(|at| !at.is_null());
    match action {
        Action::Failover if candidate.is_none() => {
            return bad("Failover could be performed only to a specific candidate");
        }
        Action::Switchover if leader.is_none() => {
            return bad("Switchover could be performed only from a specific leader");
        }
        Action::Failover if scheduled_at.is_some() => return bad("Failover can't be scheduled"),
        Action::Switchover if scheduled_at.is_some() && paused => {
            return bad("Can't schedule switchover in the paused state");
        }
        Action::Switchover | Action::Failover => {}
    }
    let scheduled_at = scheduled_at.map(|at| schedule(at, action.word())).transpose()?;
    if paused && candidate.is_none() {
        return bad("Switchover is possible only to a specific candidate in a paused state");
    }
    if leader == candidate {
        return bad("Switchover target and source are the same");
    }
    let accept_loss = match body.get("accept_loss") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(accept)) => *accept,
        Some(_) => return bad("accept_loss is true or false"),
    };
    if accept_loss && action == Action::Switchover {
        return bad("accept_loss belongs to a failover: a switchover loses nothing");
    }
    let action = if leader.is_some() { Action::Switchover } else { action };
    Ok((action, Wish { leader, candidate, scheduled_at, accept_loss }))
}

fn name(body: &Map<String, Value>, key: &str) -> Result<Option<NodeName>, Refusal> {
    match body.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(name)) if name.is_empty() => Ok(None),
        Some(Value::String(name)) => match name.parse() {
            Ok(name) => Ok(Some(name)),
            Err(error) => Err(refuse(StatusCode::BAD_REQUEST, format!("{key}: {error}"))),
        },
        Some(_) => Err(refuse(StatusCode::BAD_REQUEST, format!("{key} must be a member's name"))),
    }
}

/// A time that lies ahead, in seconds since 1970.
pub(super) fn schedule(at: &Value, action: &str) -> Result<u64, Refusal> {
    let at = at.as_str().map_or(Err(datetime::NotATime::Unreadable), datetime::parse);
    match at {
        Ok(at) if at < datetime::now() => {
            Err(refuse(StatusCode::UNPROCESSABLE_ENTITY, format!("Cannot schedule {action} in the past")))
        }
        Ok(at) => Ok(at),
        Err(datetime::NotATime::WithoutZone) => Err(refuse(
            StatusCode::BAD_REQUEST,
            format!("Timezone information is mandatory for the scheduled {action}"),
        )),
        Err(datetime::NotATime::Unreadable) => Err(refuse(
            StatusCode::UNPROCESSABLE_ENTITY,
            "Unable to parse scheduled timestamp. It should be in an unambiguous format, e.g. ISO 8601",
        )),
    }
}

/// Whether anyone could take over now, as far as this member knows; the leader checks again.
fn possible(view: &View, action: Action, wish: &Wish) -> Result<(), String> {
    let world = &view.world;
    let leader = members::leader(view).map(|leader| &leader.name);
    if wish.leader.is_some() && wish.leader.as_ref() != leader {
        return Err("leader name does not match".to_owned());
    }
    let able = |name: &NodeName| -> Result<(), String> {
        let Some(member) = world.store.member(name) else {
            return Err("candidate does not exists".to_owned());
        };
        if member.server_address.is_none() {
            return Err(format!("{name} is a witness and holds no data"));
        }
        if Some(name) == leader {
            return Err(format!("{name} leads already"));
        }
        if !member.tags.may_lead() {
            return Err(format!("{name} is tagged so that it may not lead"));
        }
        let heard =
            world.peers.get(name).is_some_and(|p| p.heard_within(world.now, world.settings.failure_timeout));
        if heard || name == world.me.name() {
            Ok(())
        } else {
            Err(format!("the agent of {name} is not heard"))
        }
    };
    let none =
        |why: &str| format!("{} is not possible: no good candidates have been found{why}", action.word());
    let Some(candidate) = &wish.candidate else {
        let mut others = world.store.members.keys().filter(|name| Some(*name) != leader).peekable();
        if others.peek().is_none() {
            return Err(format!(
                "{} is not possible: cluster does not have members except leader",
                action.word()
            ));
        }
        return if others.any(|name| able(name).is_ok()) { Ok(()) } else { Err(none("")) };
    };
    if world.store.member(candidate).is_none() {
        return Err("candidate does not exists".to_owned());
    }
    let synchronous = action == Action::Switchover && world.settings.synchronous_mode == SyncMode::On;
    let listed = health::sync_set(view, SyncMode::On).is_some_and(|set| set.members.contains(candidate));
    if synchronous && !listed {
        return Err("candidate name does not match with sync_standby".to_owned());
    }
    able(candidate).map_err(|why| none(&format!(" ({why})")))?;
    hopeless(view, wish).map_or(Ok(()), |why| Err(none(&format!(" ({why})"))))
}

/// Why no failover can come about that loses nothing: only who led last has what was acknowledged, and it is gone.
fn hopeless(view: &View, wish: &Wish) -> Option<Why> {
    let cluster = &view.world.store.cluster.as_ref()?.value;
    let Phase::Electing { last, .. } = &cluster.phase else { return None };
    let another = wish.candidate.as_ref() != Some(&last.name) && !wish.accept_loss;
    if !another || cluster.sync != Promise::Alone {
        return None;
    }
    election::obstacle(&view.world, cluster, last)
}

/// Stores the wish over an earlier one, and returns what the store held just before.
async fn write(api: &Api, wish: &Wish) -> Result<Arc<Snapshot>, Refusal> {
    let before = api.store.read().await.map_err(|error| store_refusal(&error))?;
    let expect = before.entries.get(KEY).map_or(Expect::Absent, |stored| Expect::At(stored.revision));
    let value = serde_json::to_string(wish).map_err(|error| {
        refuse(StatusCode::INTERNAL_SERVER_ERROR, format!("could not write the request: {error}"))
    })?;
    let puts = vec![(KEY.to_owned(), value)];
    let transaction = Transaction { expects: vec![(KEY.into(), expect)], puts, deletes: Vec::new() };
    match api.store.commit(transaction).await {
        Ok(_) => Ok(before),
        Err(error) => Err(refuse(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("failed to write failover key into DCS: {error}"),
        )),
    }
}

/// The record of leadership in a snapshot.
fn cluster(snapshot: &Snapshot) -> Option<Cluster> {
    serde_json::from_str(&snapshot.entries.get("cluster")?.value).ok()
}

/// Waits until another member leads and serves, or the wish has ended otherwise.
async fn outcome(api: &Api, view: &View, action: Action, wish: &Wish, before: &Snapshot) -> Reply {
    let old = cluster(before);
    let old_leader = old.as_ref().and_then(Cluster::leader).map(|leader| &leader.name);
    let wait = view.world.settings.loop_wait.max(Duration::from_secs(10)) * 2;
    let deadline = Instant::now() + wait;
    let mut snapshots = api.store.watch();
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        let now = cluster(&snapshot);
        if let Some(leader) = now.as_ref().and_then(Cluster::leader) {
            let new = Some(&leader.name) != old_leader;
            if new && serves(&snapshot, &leader.name, leader.epoch.0) {
                return text(StatusCode::OK, done(action, wish, &leader.name));
            }
            if !new && !snapshot.entries.contains_key(KEY) {
                return text(
                    StatusCode::SERVICE_UNAVAILABLE,
                    format!("{} failed{}", action.title(), reason(api)),
                );
            }
        }
        let view = api.view.borrow().clone();
        if let Some(why) = hopeless(&view, wish) {
            return text(StatusCode::SERVICE_UNAVAILABLE, format!("{} failed: {why}", action.title()));
        }
        match timeout_at(deadline.min(Instant::now() + LOOK_AGAIN), snapshots.changed()).await {
            Ok(Ok(())) => {}
            Err(_) if Instant::now() < deadline => {}
            Ok(Err(_)) | Err(_) => {
                return text(StatusCode::SERVICE_UNAVAILABLE, format!("{} status unknown", action.title()));
            }
        }
    }
}

/// Whether a member has said that its server accepts writes in this term.
fn serves(snapshot: &Snapshot, name: &NodeName, epoch: u64) -> bool {
    let record = snapshot.entries.get(&format!("members/{name}"));
    let member = record.and_then(|record| serde_json::from_str::<Member>(&record.value).ok());
    member.and_then(|member| member.serving).is_some_and(|serving| serving.epoch.0 == epoch)
}

fn done(action: Action, wish: &Wish, leader: &NodeName) -> String {
    match &wish.candidate {
        Some(candidate) if candidate != leader => {
            let title = match action {
                Action::Switchover => "Switched",
                Action::Failover => "Failed",
            };
            format!("{title} over to \"{leader}\" instead of \"{candidate}\"")
        }
        Some(_) | None => format!("Successfully {} over to \"{leader}\"", action.past()),
    }
}

/// Why the leader dropped a wish, if it is the member that was asked.
fn reason(api: &Api) -> String {
    match &api.view.borrow().decision.why {
        Why::RequestRefused { reason } => format!(": {reason}"),
        _ => String::new(),
    }
}

/// `DELETE /switchover`: takes back one that waits for its time.
pub(super) async fn cancel(api: &Api) -> Result<Reply, Refusal> {
    let snapshot = api.store.read().await.map_err(|error| store_refusal(&error))?;
    let stored = snapshot.entries.get(KEY);
    let scheduled = stored.filter(|stored| {
        let wish = serde_json::from_str::<Wish>(&stored.value);
        wish.is_ok_and(|wish| wish.scheduled_at.is_some())
    });
    let Some(scheduled) = scheduled else {
        return Err(refuse(StatusCode::NOT_FOUND, "no switchover is scheduled"));
    };
    let expects = vec![(KEY.to_owned(), Expect::At(scheduled.revision))];
    let transaction = Transaction { expects, puts: Vec::new(), deletes: vec![KEY.into()] };
    match api.store.commit(transaction).await {
        Ok(_) => Ok(text(StatusCode::OK, "scheduled switchover deleted")),
        Err(StoreError::Conflict { .. }) => {
            Err(refuse(StatusCode::CONFLICT, "the switchover was changed meanwhile; look at it again"))
        }
        Err(error) => Err(store_refusal(&error)),
    }
}
