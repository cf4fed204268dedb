//! `/config`: reading and changing the cluster-wide settings.
//!
//! A change is checked as a whole before it is stored and is stored only if nobody changed the settings since:
//! what is in the store can always be resolved by every member. `ETag` and `If-Match` carry the revision, for
//! clients that show a change before they make it.

use antiphon_core::settings::{Settings, merge};
use antiphon_store::{Expect, StoreError, Transaction, VALUE_BYTES_MAX, Versioned};
use hyper::body::Incoming;
use hyper::header::{ETAG, HeaderValue, IF_MATCH};
use hyper::{Request, StatusCode};
use serde_json::Value;

use super::reply::{Refusal, Reply, json, refuse};
use super::{Api, body};

const KEY: &str = "config";

/// `GET /config`. From the newest snapshot here, so that a change that was just made is seen.
pub(super) fn show(api: &Api) -> Result<Reply, Refusal> {
    let snapshot = api.store.watch().borrow().clone();
    let stored = snapshot.entries.get(KEY);
    let stored = stored.ok_or_else(|| refuse(StatusCode::BAD_GATEWAY, "no settings are stored yet"))?;
    Ok(answer(&document(stored)?, stored.revision))
}

/// `PATCH /config`: merges.
pub(super) async fn patch(api: &Api, request: Request<Incoming>) -> Result<Reply, Refusal> {
    let expected = expected(&request)?;
    let patch = Value::Object(body::object(request).await?);
    let stored = stored(api).await?;
    let stored = stored
        .ok_or_else(|| refuse(StatusCode::SERVICE_UNAVAILABLE, "no settings are stored yet; use PUT"))?;
    let before = document(&stored)?;
    let after = merge(&before, &patch);
    change(api, Some((&stored, before)), after, expected).await
}

/// `PUT /config`: replaces.
pub(super) async fn put(api: &Api, request: Request<Incoming>) -> Result<Reply, Refusal> {
    let expected = expected(&request)?;
    let after = Value::Object(body::object(request).await?);
    let stored = stored(api).await?;
    // What is replaced need not be readable.
    let before = stored.as_ref().map(|stored| (stored, document(stored).unwrap_or(Value::Null)));
    change(api, before, after, expected).await
}

async fn change(
    api: &Api,
    before: Option<(&Versioned, Value)>,
    after: Value,
    expected: Option<u64>,
) -> Result<Reply, Refusal> {
    let revision = before.as_ref().map_or(0, |(stored, _)| stored.revision);
    if expected.is_some_and(|expected| expected != revision) {
        return Err(refuse(
            StatusCode::CONFLICT,
            "the settings have been changed since they were read; read them again",
        ));
    }
    if let Err(errors) = Settings::resolve_with(&after, api.dynamic_commands) {
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        return Err(refuse(StatusCode::BAD_REQUEST, errors.join("\n")));
    }
    if before.as_ref().is_some_and(|(_, before)| *before == after) {
        return Ok(answer(&after, revision));
    }
    let value = after.to_string();
    if value.len() > VALUE_BYTES_MAX {
        return Err(refuse(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("settings have at most {VALUE_BYTES_MAX} bytes"),
        ));
    }
    let expect = if before.is_some() { Expect::At(revision) } else { Expect::Absent };
    let transaction = Transaction {
        expects: vec![(KEY.into(), expect)],
        puts: vec![(KEY.into(), value)],
        deletes: Vec::new(),
    };
    let revision = api.store.commit(transaction).await.map_err(|error| store_refusal(&error))?;
    Ok(answer(&after, revision))
}

fn answer(document: &Value, revision: u64) -> Reply {
    let mut reply = json(StatusCode::OK, document);
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{revision}\"")) {
        reply.headers_mut().insert(ETAG, tag);
    }
    reply
}

/// The revision that a change is to be based on, if the client names one.
fn expected(request: &Request<Incoming>) -> Result<Option<u64>, Refusal> {
    let Some(tag) = request.headers().get(IF_MATCH) else { return Ok(None) };
    let revision = tag.to_str().ok().and_then(|tag| tag.trim().trim_matches('"').parse().ok());
    revision
        .map(Some)
        .ok_or_else(|| refuse(StatusCode::BAD_REQUEST, "If-Match is not an ETag of GET /config"))
}

async fn stored(api: &Api) -> Result<Option<Versioned>, Refusal> {
    let snapshot = api.store.read().await.map_err(|error| store_refusal(&error))?;
    Ok(snapshot.entries.get(KEY).cloned())
}

fn document(stored: &Versioned) -> Result<Value, Refusal> {
    serde_json::from_str(&stored.value).map_err(|error| {
        refuse(
            StatusCode::BAD_GATEWAY,
            format!("the stored settings are not JSON ({error}); replace them with PUT"),
        )
    })
}

/// What the store's trouble means to a client.
pub(super) fn store_refusal(error: &StoreError) -> Refusal {
    let status = match error {
        StoreError::Conflict { .. } => StatusCode::CONFLICT,
        StoreError::Timeout(_) | StoreError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        StoreError::Invalid(_) => StatusCode::BAD_REQUEST,
    };
    refuse(status, error.to_string())
}
