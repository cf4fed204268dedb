//! Reading the file again while the router runs. Nobody loses a connection by it.
//!
//! All of it counts or nothing does: a file with a mistake leaves everything as it was. What stands in it then holds
//! for whatever begins afterwards: a session keeps the level and the mode that it began with, a connection its
//! TLS. A pool that has become smaller gives up connections as they become free.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::orders::What;
use crate::settings::Settings;
use crate::shared::Shared;

/// How long all threads may take to take it over.
const TAKEN_WITHIN: Duration = Duration::from_secs(5);

/// Reads the file again: what of it waits for a restart.
///
/// # Errors
/// What is wrong with the file; nothing has changed then.
pub async fn reload(shared: &Shared) -> Result<Vec<&'static str>, String> {
    let _one_at_a_time = shared.reloads.lock().await;
    let source = shared.source.clone();
    let read = tokio::task::spawn_blocking(move || source()).await;
    let read = read.unwrap_or_else(|_| Err("reading it ended because of a defect".to_owned()));
    let (next, mut waits) = read.inspect_err(|why| {
        tracing::error!(why, "the router's file was not taken over; all is as it was before");
    })?;
    waits.extend(fixed(&shared.settings(), &next));
    let now = shared.settings();
    let (agents, servers) = match now.servers.is_some() == next.servers.is_some() {
        true => (next.agents.clone(), next.servers.clone()),
        // Epochs of a cluster and timelines of servers are not to be compared.
        false => (now.agents.clone(), now.servers.clone()),
    };
    let (listen, threads, scope) = (now.listen.clone(), now.threads, now.scope.clone());
    let next = Settings { listen, threads, scope, agents, servers, ..next };
    shared.set_settings(Arc::new(next));
    if timeout(TAKEN_WITHIN, shared.ask(What::Settings)).await.is_err() {
        tracing::warn!("a thread of the router is slow to take new settings over");
    }
    if waits.is_empty() {
        tracing::info!("the router's file was read again");
    } else {
        let restart = waits.join(", ");
        tracing::warn!(
            restart,
            "the router's file was read again; these have changed and wait for a restart"
        );
    }
    Ok(waits)
}

/// What differs that cannot change while the router runs.
fn fixed(now: &Settings, next: &Settings) -> Vec<&'static str> {
    let changed = [
        ("router.listen", now.listen != next.listen),
        ("router.threads", now.threads != next.threads),
        ("scope", now.scope != next.scope),
        ("router.servers", now.servers.is_some() != next.servers.is_some()),
    ];
    changed.into_iter().filter(|(_, changed)| *changed).map(|(name, _)| name).collect()
}
