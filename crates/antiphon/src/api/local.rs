//! What an operator can ask of this member: restart, reload, reinitialise, and removing a member that is gone.
//!
//! Orders go to the agent through its bounded queue and are waited for with a deadline. A restart that waits for
//! its time is kept here, in memory: it ends with the agent, as in Patroni.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use antiphon_core::NodeName;
use antiphon_core::ha::world::{Database, Local, Reinitialise, Task};
use antiphon_core::settings::span;
use antiphon_store::{Expect, Transaction};
use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tracing::{info, warn};

use super::config::store_refusal;
use super::reply::{Refusal, Reply, refuse, text};
use super::switchover::schedule;
use super::{Api, body, datetime, members};
use crate::agent::command::Command;
use crate::agent::view::View;

/// How long the agent may take to begin or to do something short.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// How long a restart may take if the request does not say.
const RESTART_MAX: Duration = Duration::from_secs(300);

/// A restart that waits for its time.
#[derive(Default)]
pub(super) struct Schedule(Mutex<Option<Waiting>>);

struct Waiting {
    shown: Value,
    task: AbortHandle,
}

impl Schedule {
    /// As `GET /patroni` shows it.
    pub(super) fn shown(&self) -> Option<Value> {
        self.lock().as_ref().map(|waiting| waiting.shown.clone())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When a restart is to be made, and under which conditions.
#[derive(Clone, Debug, Default)]
struct Terms {
    at: Option<u64>,
    role: Option<String>,
    below_version: Option<u32>,
    only_pending: bool,
    timeout: Option<Duration>,
}

/// `POST /restart`.
pub(super) async fn restart(api: &Arc<Api>, request: Request<Incoming>) -> Result<Reply, Refusal> {
    let body = body::object_or_nothing(request).await?;
    if body.contains_key("schedule") && api.view.borrow().world.settings.pause {
        return Err(refuse(StatusCode::INTERNAL_SERVER_ERROR, "Can't schedule restart in the paused state"));
    }
    let terms = terms(&body)?;
    match terms.at {
        None => restart_now(api, &terms).await.map(|done| text(StatusCode::OK, done)),
        Some(at) => restart_at(api, at, terms, &body),
    }
}

fn terms(body: &Map<String, Value>) -> Result<Terms, Refusal> {
    let bad = |text: &str| Err(refuse(StatusCode::BAD_REQUEST, text));
    let mut terms = Terms::default();
    for (key, value) in body {
        match key.as_str() {
            "schedule" => terms.at = Some(schedule(value, "restart")?),
            "role" => match value.as_str() {
                Some(role @ ("primary" | "replica" | "standby_leader")) => terms.role = Some(role.to_owned()),
                _ => return bad("PostgreSQL role should be either primary, standby_leader, or replica"),
            },
            "postgres_version" => match value.as_str().and_then(version) {
                Some(version) => terms.below_version = Some(version),
                None => return bad("postgres_version should be a version like 15.2"),
            },
            "timeout" => match span(value).filter(|span| !span.is_zero()) {
                Some(span) => terms.timeout = Some(span),
                None => return bad("Timeout should be a positive number of seconds"),
            },
            "restart_pending" => terms.only_pending = true,
            other => return bad(&format!("Unknown filter for the scheduled restart: {other}")),
        }
    }
    Ok(terms)
}

/// `15.2` as PostgreSQL numbers it: 150002.
fn version(text: &str) -> Option<u32> {
    let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
    major.parse::<u32>().ok()?.checked_mul(10_000)?.checked_add(minor.parse().ok()?)
}

async fn restart_now(api: &Api, terms: &Terms) -> Result<String, Refusal> {
    if !terms_hold(&api.view.borrow(), terms) {
        return Err(refuse(StatusCode::SERVICE_UNAVAILABLE, "restart conditions are not satisfied"));
    }
    let limit = terms.timeout.unwrap_or(RESTART_MAX);
    match ask(api, limit, |done| Command::Restart { done }).await? {
        Ok(()) => Ok("restarted successfully".to_owned()),
        Err(error) => Err(refuse(StatusCode::SERVICE_UNAVAILABLE, format!("restart failed: {error}"))),
    }
}

fn terms_hold(view: &View, terms: &Terms) -> bool {
    let role = terms.role.as_deref().is_none_or(|role| role == members::server_role(view));
    let version = terms.below_version.is_none_or(|limit| view.server.version < limit);
    let pending = !terms.only_pending || !view.server.pending_restart.is_empty();
    role && version && pending
}

fn restart_at(api: &Arc<Api>, at: u64, terms: Terms, body: &Map<String, Value>) -> Result<Reply, Refusal> {
    let mut waiting = api.schedule.lock();
    if waiting.is_some() {
        return Err(refuse(StatusCode::CONFLICT, "Another restart is already scheduled"));
    }
    let mut shown = body.clone();
    shown.insert("schedule".into(), datetime::format(at).into());
    // Counted on a monotonic clock from here on.
    let pause = Duration::from_secs(at.saturating_sub(datetime::now()));
    let begin = tokio::time::Instant::now() + pause;
    // Weak: a restart that waits must not keep the API alive.
    let server = Arc::downgrade(api);
    let task = tokio::spawn(async move {
        tokio::time::sleep_until(begin).await;
        let Some(api) = server.upgrade() else { return };
        api.schedule.lock().take();
        api.forget_rendered();
        match restart_now(&api, &terms).await {
            Ok(done) => info!("scheduled restart: {done}"),
            Err(refusal) => warn!("scheduled restart: {}", refusal.text),
        }
    });
    *waiting = Some(Waiting { shown: Value::Object(shown), task: task.abort_handle() });
    drop(waiting);
    api.forget_rendered();
    Ok(text(StatusCode::ACCEPTED, "Restart scheduled"))
}

/// `DELETE /restart`.
pub(super) fn cancel_restart(api: &Api) -> Result<Reply, Refusal> {
    let waiting = api.schedule.lock().take();
    let waiting = waiting.ok_or_else(|| refuse(StatusCode::NOT_FOUND, "no restarts are scheduled"))?;
    waiting.task.abort();
    api.forget_rendered();
    Ok(text(StatusCode::OK, "scheduled restart deleted"))
}

/// `POST /reload`.
pub(super) async fn reload(api: &Api) -> Result<Reply, Refusal> {
    let mut done = ask(api, ANSWER_MAX, |done| Command::Reload { done }).await?;
    if let (Ok(pending), Some(router)) = (&mut done, &api.beside.router) {
        match router.reload().await {
            Ok(waits) => pending.extend(waits.into_iter().map(str::to_owned)),
            Err(why) => done = Err(why),
        }
    }
    match done {
        Ok(pending) if pending.is_empty() => Ok(text(StatusCode::ACCEPTED, "reload scheduled")),
        Ok(pending) => {
            let done = format!("reload scheduled; a restart is needed for {}", pending.join(", "));
            Ok(text(StatusCode::ACCEPTED, done))
        }
        Err(error) => Err(refuse(StatusCode::SERVICE_UNAVAILABLE, format!("reload failed: {error}"))),
    }
}

/// `POST /reinitialize`. The source is chosen by the agent, which also ends work that goes on.
pub(super) async fn reinitialise(api: &Api, request: Request<Incoming>) -> Result<Reply, Refusal> {
    let body = body::object_or_nothing(request).await?;
    let how = wish(&body)?;
    let view = api.view.borrow().clone();
    let refused = |text: &str| Err(refuse(StatusCode::SERVICE_UNAVAILABLE, text));
    match members::leader(&view) {
        None => return refused("Cluster has no leader, can not reinitialize"),
        Some(leader) if leader.name == *view.world.me.name() => {
            return refused("I am the leader, can not reinitialize");
        }
        Some(_) => {}
    }
    let task = match &view.world.local {
        Local::Database(Database { task: Some((task @ (Task::Clone | Task::Rewind), _)), .. }) => Some(task),
        Local::Database(_) | Local::Witness => None,
    };
    if let Some(task) = task.filter(|_| !how.force) {
        return refused(&format!("{task} already in progress; force breaks it off"));
    }
    match ask(api, ANSWER_MAX, |done| Command::Reinitialise { how, done }).await? {
        Ok(()) => Ok(text(StatusCode::OK, "reinitialize started")),
        Err(error) => refused(&error),
    }
}

/// How a member is to be built anew. Patroni's documentation writes `from-leader` and its code `from_leader`.
fn wish(body: &Map<String, Value>) -> Result<Reinitialise, Refusal> {
    let mut how = Reinitialise::default();
    for (key, value) in body {
        let flag = match key.as_str() {
            "force" => &mut how.force,
            "from-leader" | "from_leader" => &mut how.from_leader,
            unknown => {
                let text = format!("{unknown:?} means nothing here; known are force, from-leader");
                return Err(refuse(StatusCode::BAD_REQUEST, text));
            }
        };
        let bad = || refuse(StatusCode::BAD_REQUEST, format!("{key} is true or false"));
        *flag = value.as_bool().ok_or_else(bad)?;
    }
    Ok(how)
}

/// Gives the agent an order and waits for its answer.
async fn ask<T>(
    api: &Api,
    limit: Duration,
    order: impl FnOnce(oneshot::Sender<T>) -> Command,
) -> Result<T, Refusal> {
    let (done, answer) = oneshot::channel();
    if api.commands.try_send(order(done)).is_err() {
        return Err(refuse(StatusCode::SERVICE_UNAVAILABLE, "the agent takes no orders now; try again"));
    }
    let unknown = |text: String| refuse(StatusCode::SERVICE_UNAVAILABLE, text);
    match tokio::time::timeout(limit, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err(unknown("the agent dropped the order; it may be stopping".to_owned())),
        Err(_) => Err(unknown(format!("no outcome within {limit:?}; the order may still be carried out"))),
    }
}

/// `DELETE /members/NAME`: forgets a member that is gone for good.
pub(super) async fn remove(api: &Api, name: &str) -> Result<Reply, Refusal> {
    let name: NodeName = match body::decoded(name).parse() {
        Ok(name) => name,
        Err(error) => return Err(refuse(StatusCode::BAD_REQUEST, format!("{error}"))),
    };
    let view = api.view.borrow().clone();
    let conflict = |text: String| Err(refuse(StatusCode::CONFLICT, text));
    let leads = members::leader(&view).is_some_and(|leader| leader.name == name);
    if leads {
        return conflict(format!("{name} leads; switch over to another member first"));
    }
    let world = &view.world;
    let heard =
        world.peers.get(&name).is_some_and(|p| p.heard_within(world.now, world.settings.failure_timeout));
    if heard || name == *world.me.name() {
        return conflict(format!("the agent of {name} runs and would come back at once; stop it first"));
    }
    let snapshot = api.store.read().await.map_err(|error| store_refusal(&error))?;
    let key = format!("members/{name}");
    let Some(stored) = snapshot.entries.get(&key) else {
        return Err(refuse(StatusCode::NOT_FOUND, format!("there is no member {name}")));
    };
    let expects = vec![(key.clone(), Expect::At(stored.revision))];
    let transaction = Transaction { expects, puts: Vec::new(), deletes: vec![key] };
    api.store.commit(transaction).await.map_err(|error| store_refusal(&error))?;
    Ok(super::reply::json(StatusCode::OK, &json!({ "removed": name })))
}
