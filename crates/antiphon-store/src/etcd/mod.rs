//! The store in an etcd that runs already: version 3, by its JSON gateway.
//!
//! Transactions are etcd's own, with compares on the revision of a key's creation and last write. The
//! snapshot is kept by a watch; after a connection is lost, or the watched revision was compacted away, the
//! whole prefix is read again. A snapshot older than the one that is shown is never shown.

mod http;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use antiphon_tls::ClientTls;
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use self::http::{CallError, Client};
use crate::{Expect, Snapshot, Store, StoreError, Transaction, Versioned, space};

/// One message of a watch may be this long.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long a commit waits for its own event before it reads the prefix.
const EVENT_TIME_MAX: Duration = Duration::from_millis(200);
const RECONNECT_WAIT: Duration = Duration::from_millis(100);
const RECONNECT_WAIT_MAX: Duration = Duration::from_secs(1);

/// How an etcd is reached.
#[derive(Clone)]
pub struct EtcdSettings {
    /// `http://host:port` or `https://host:port`, tried in turn.
    pub endpoints: Vec<String>,
    /// How endpoints with `https://` are spoken to; needed if there is one.
    pub tls: Option<ClientTls>,
    /// First part of every key.
    pub namespace: String,
    /// Second part of every key: the cluster's name.
    pub scope: String,
    /// Name and password, if etcd has authentication switched on.
    pub user: Option<(String, String)>,
    /// How long a commit or a read waits.
    pub call_limit: Duration,
}

impl fmt::Debug for EtcdSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdSettings")
            .field("endpoints", &self.endpoints)
            .field("namespace", &self.namespace)
            .field("scope", &self.scope)
            .field("user", &self.user.as_ref().map(|(name, _)| name))
            .finish_non_exhaustive()
    }
}

/// A handle on the keys of one cluster in etcd. Cheap to clone; the watch ends with the last clone.
#[derive(Clone)]
pub struct EtcdStore {
    keys: Arc<Keys>,
    call_limit: Duration,
    _watcher: Arc<Watcher>,
}

struct Watcher(AbortHandle);

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The prefix of a cluster and what is known of it.
struct Keys {
    client: Client,
    prefix: String,
    shown: watch::Sender<Arc<Snapshot>>,
}

impl EtcdStore {
    /// Starts to follow etcd; it need not be reachable yet. Must be called within a Tokio runtime, which it
    /// uses. [`StoreError::Invalid`] if a setting cannot be used.
    pub fn start(settings: &EtcdSettings) -> Result<Self, StoreError> {
        let client = Client::new(settings).map_err(StoreError::Invalid)?;
        let namespace = settings.namespace.trim_matches('/');
        let prefix = match namespace {
            "" => format!("/{}/", settings.scope),
            namespace => format!("/{namespace}/{}/", settings.scope),
        };
        if settings.scope.is_empty() || settings.scope.contains('/') {
            return Err(StoreError::Invalid(format!(
                "the scope {:?} must be a name without /",
                settings.scope
            )));
        }
        let keys = Arc::new(Keys { client, prefix, shown: watch::Sender::new(Arc::default()) });
        let watcher = tokio::spawn(follow(Arc::clone(&keys))).abort_handle();
        Ok(Self { keys, call_limit: settings.call_limit, _watcher: Arc::new(Watcher(watcher)) })
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
        space::check(&transaction)?;
        match timeout(self.call_limit, self.keys.commit(&transaction)).await {
            Ok(Err(Failure::Call(error))) => Err(self.store_error(error)),
            Ok(Err(Failure::Conflict(key))) => Err(StoreError::Conflict { key }),
            Ok(Ok(revision)) => Ok(revision),
            Err(_) => Err(StoreError::Timeout(self.call_limit)),
        }
    }

    async fn read(&self) -> Result<Arc<Snapshot>, StoreError> {
        match timeout(self.call_limit, self.keys.read()).await {
            Ok(read) => read.map_err(|error| self.store_error(error)),
            Err(_) => Err(StoreError::Timeout(self.call_limit)),
        }
    }

    fn watch(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.keys.shown.subscribe()
    }

    fn voters(&self) -> Option<Vec<String>> {
        None
    }
}

impl EtcdStore {
    fn store_error(&self, error: CallError) -> StoreError {
        match error {
            CallError::Invalid(why) => StoreError::Invalid(why),
            CallError::Unknown(why) => {
                warn!(why, "the outcome of a call to etcd is not known");
                StoreError::Timeout(self.call_limit)
            }
            CallError::Unreachable(_) | CallError::Unauthenticated(_) => {
                StoreError::Unavailable(error.to_string())
            }
        }
    }
}

enum Failure {
    Call(CallError),
    Conflict(String),
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

impl Keys {
    async fn commit(&self, transaction: &Transaction) -> Result<u64, Failure> {
        let answer = self.client.write("/v3/kv/txn", &self.request(transaction)).await?;
        if answer.get("succeeded").and_then(Value::as_bool) != Some(true) {
            return Err(Failure::Conflict(conflict(transaction, &answer)));
        }
        let revision = header_revision(&answer);
        // Committed: from here on nothing may fail for longer than the watch takes to come back.
        let mut shown = self.shown.subscribe();
        let event = timeout(EVENT_TIME_MAX, shown.wait_for(|shown| shown.revision >= revision));
        let wrote = !transaction.puts.is_empty() || !transaction.deletes.is_empty();
        if !wrote || event.await.is_err() {
            self.read().await.map_err(|error| CallError::Unknown(error.to_string()))?;
        }
        Ok(revision)
    }

    fn request(&self, transaction: &Transaction) -> Value {
        let key = |key: &str| STANDARD.encode(format!("{}{key}", self.prefix));
        let compare = |(name, expect): &(String, Expect)| match expect {
            Expect::Absent => {
                json!({ "key": key(name), "target": "CREATE", "result": "EQUAL", "create_revision": "0" })
            }
            Expect::At(revision) => json!({
                "key": key(name), "target": "MOD", "result": "EQUAL", "mod_revision": revision.to_string(),
            }),
        };
        let deletes =
            transaction.deletes.iter().map(|name| json!({ "request_delete_range": { "key": key(name) } }));
        let puts = transaction.puts.iter().map(
            |(name, value)| json!({ "request_put": { "key": key(name), "value": STANDARD.encode(value) } }),
        );
        let looks = transaction
            .expects
            .iter()
            .map(|(name, _)| json!({ "request_range": { "key": key(name), "keys_only": true } }));
        json!({
            "compare": transaction.expects.iter().map(compare).collect::<Vec<_>>(),
            "success": deletes.chain(puts).collect::<Vec<_>>(),
            "failure": looks.collect::<Vec<_>>(),
        })
    }

    /// Reads the whole prefix, linearizably, and shows it if it is newer than what is shown.
    async fn read(&self) -> Result<Arc<Snapshot>, CallError> {
        let answer = self.client.read("/v3/kv/range", &self.range()).await?;
        let mut snapshot = Snapshot { revision: header_revision(&answer), entries: BTreeMap::new() };
        for stored in list(&answer, "kvs") {
            if let Some((key, versioned)) = self.entry(stored) {
                snapshot.entries.insert(key, versioned);
            }
        }
        self.show(snapshot)
    }

    /// Shows `snapshot` unless a newer one is shown; returns what is shown then.
    fn show(&self, snapshot: Snapshot) -> Result<Arc<Snapshot>, CallError> {
        let revision = snapshot.revision;
        self.shown.send_if_modified(|shown| {
            let newer = snapshot.revision > shown.revision;
            if newer {
                *shown = Arc::new(snapshot);
            }
            newer
        });
        let shown = Arc::clone(&self.shown.borrow());
        if revision == 0 {
            return Err(CallError::Unknown("the answer names no revision".to_owned()));
        }
        Ok(shown)
    }

    fn range(&self) -> Value {
        // All keys that begin with the prefix: up to the prefix with its last byte, a slash, one higher.
        let end = format!("{}0", self.prefix.trim_end_matches('/'));
        json!({ "key": STANDARD.encode(&self.prefix), "range_end": STANDARD.encode(end) })
    }

    /// A key of ours in etcd's form. Values that are not text are shown with replacement characters.
    fn entry(&self, stored: &Value) -> Option<(String, Versioned)> {
        let key = decode(stored.get("key")?)?;
        let key = String::from_utf8(key).ok()?.strip_prefix(&self.prefix)?.to_owned();
        let value = stored.get("value").and_then(decode).unwrap_or_default();
        let value = String::from_utf8_lossy(&value).into_owned();
        Some((key, Versioned { value, revision: number(stored.get("mod_revision")) }))
    }

    /// Applies one message of the watch; false if the watch is over and the prefix must be read again.
    fn apply(&self, message: &Value) -> bool {
        let Some(result) = message.get("result") else { return false };
        if result.get("canceled").and_then(Value::as_bool) == Some(true) {
            return false;
        }
        self.shown.send_if_modified(|shown| {
            let before = shown.revision;
            for event in list(result, "events") {
                let Some((key, versioned)) = event.get("kv").and_then(|stored| self.entry(stored)) else {
                    continue;
                };
                // What a read has shown already. Events of one revision come in one message.
                if versioned.revision <= before {
                    continue;
                }
                let next = Arc::make_mut(shown);
                next.revision = next.revision.max(versioned.revision);
                if event.get("type").and_then(Value::as_str) == Some("DELETE") {
                    next.entries.remove(&key);
                } else {
                    next.entries.insert(key, versioned);
                }
            }
            shown.revision != before
        });
        true
    }

    /// Reads the prefix and follows it until the watch ends; returns why it did.
    async fn follow_once(&self) -> Result<(), CallError> {
        let revision = self.read().await?.revision;
        let mut request = self.range();
        if let Some(request) = request.as_object_mut() {
            request.insert("start_revision".to_owned(), json!((revision + 1).to_string()));
        }
        let response = self.client.open("/v3/watch", &json!({ "create_request": request })).await?;
        let mut body = response.into_body();
        let mut buffer: Vec<u8> = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.client.rotate(&error.to_string()))?;
            let Some(data) = frame.data_ref() else { continue };
            buffer.extend_from_slice(data);
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                let message: Value = serde_json::from_slice(&line).unwrap_or(Value::Null);
                if !self.apply(&message) {
                    return Ok(());
                }
            }
            if buffer.len() > MESSAGE_BYTES_MAX {
                return Err(self.client.rotate("a message of the watch is too long"));
            }
        }
        Err(self.client.rotate("the watch ended"))
    }
}

/// Follows etcd for as long as the task lives.
async fn follow(keys: Arc<Keys>) {
    let mut wait = RECONNECT_WAIT;
    let mut failing = false;
    loop {
        let before = keys.shown.borrow().revision;
        let outcome = keys.follow_once().await;
        if keys.shown.borrow().revision > before {
            wait = RECONNECT_WAIT;
            failing = false;
        }
        match outcome {
            Ok(()) => info!("etcd ended the watch; reading all keys again"),
            Err(error) if failing => tracing::debug!(%error, "still no watch on etcd"),
            Err(error) => {
                warn!(%error, "lost the watch on etcd; trying again");
                failing = true;
            }
        }
        sleep(wait).await;
        wait = (wait * 2).min(RECONNECT_WAIT_MAX);
    }
}

/// The first key that was not as expected, found by what the same transaction read.
fn conflict(transaction: &Transaction, answer: &Value) -> String {
    let responses = list(answer, "responses");
    for (position, (key, expect)) in transaction.expects.iter().enumerate() {
        let range = responses.get(position).and_then(|response| response.get("response_range"));
        let stored = range.and_then(|range| list(range, "kvs").first());
        let holds = match (expect, stored) {
            (Expect::Absent, stored) => stored.is_none(),
            (Expect::At(revision), Some(stored)) => number(stored.get("mod_revision")) == *revision,
            (Expect::At(_), None) => false,
        };
        if !holds {
            return key.clone();
        }
    }
    String::new()
}

fn header_revision(answer: &Value) -> u64 {
    number(answer.get("header").and_then(|header| header.get("revision")))
}

/// A 64-bit number, which the gateway writes as text; 0 if there is none.
fn number(value: Option<&Value>) -> u64 {
    let parse = |value: &Value| value.as_u64().or_else(|| value.as_str()?.parse().ok());
    value.and_then(parse).unwrap_or(0)
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn decode(value: &Value) -> Option<Vec<u8>> {
    STANDARD.decode(value.as_str()?).ok()
}
