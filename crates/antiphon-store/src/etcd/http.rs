//! One JSON call to etcd's gateway: which endpoint, within which time, and what a failure means.
//!
//! A call whose request may have arrived is never sent a second time unless it only reads: a write that was
//! done twice would answer a conflict with itself.

use std::future::Future;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use antiphon_tls::{ClientTls, Stream, explain, rejection};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::debug;

use super::EtcdSettings;

/// An answer may be this long: the whole key space of a cluster, in base64.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
const CONNECT_TIME_MAX: Duration = Duration::from_millis(700);
/// A server that answers on TCP and not in TLS is frozen, as one that does not answer a request.
const TLS_TIME_MAX: Duration = Duration::from_millis(1500);
/// Calls that are at work at a time, the watch aside; more wait. Each has a connection, and with TLS a handshake.
const CALLS_AT_ONCE_MAX: usize = 8;
/// A connection whose bytes are not acknowledged, or that is silent for this long with keepalives, is dead.
const SILENCE_MILLIS_MAX: u32 = 3000;
/// The gateway's codes, which are gRPC's.
const INVALID_ARGUMENT: i64 = 3;
const RESOURCE_EXHAUSTED: i64 = 8;
const UNAUTHENTICATED: i64 = 16;

/// Why a call failed.
#[derive(Debug, Error)]
pub(super) enum CallError {
    /// No endpoint was reached: nothing was sent.
    #[error("no etcd endpoint can be reached; the last one: {0}")]
    Unreachable(String),
    /// Sent, and no usable answer came: it may have been done.
    #[error("etcd did not answer: {0}")]
    Unknown(String),
    /// etcd refuses the request as such.
    #[error("etcd refused: {0}")]
    Invalid(String),
    /// etcd does not know us, or not any more.
    #[error("etcd does not accept this user: {0}")]
    Unauthenticated(String),
}

/// One server.
struct Endpoint {
    /// `host:port`.
    authority: String,
    /// What it is spoken to with, if not in the clear.
    tls: Option<ClientTls>,
}

/// The endpoints, and the token if a user is set.
pub(super) struct Client {
    endpoints: Vec<Endpoint>,
    preferred: AtomicUsize,
    user: Option<(String, String)>,
    token: Mutex<Option<String>>,
    turns: Semaphore,
}

impl Client {
    /// `Err` says which endpoint cannot be used and why.
    pub(super) fn new(settings: &EtcdSettings) -> Result<Self, String> {
        let endpoint = |url: &String| Endpoint::of(url, settings.tls.as_ref());
        let endpoints: Result<Vec<Endpoint>, String> = settings.endpoints.iter().map(endpoint).collect();
        let endpoints = endpoints?;
        if endpoints.is_empty() {
            return Err("no etcd endpoint is set".to_owned());
        }
        let user = settings.user.clone();
        let turns = Semaphore::new(CALLS_AT_ONCE_MAX);
        Ok(Self { endpoints, preferred: AtomicUsize::new(0), user, token: Mutex::default(), turns })
    }

    /// A call that only reads: tried at every endpoint in turn.
    pub(super) async fn read(&self, path: &str, body: &Value) -> Result<Value, CallError> {
        let mut last = CallError::Unreachable("none was tried".to_owned());
        for _ in 0..self.endpoints.len() {
            match self.write(path, body).await {
                Err(CallError::Unknown(why)) => last = CallError::Unknown(why),
                outcome => return outcome,
            }
        }
        Err(last)
    }

    /// A call that writes: sent to the first endpoint that can be reached, once.
    pub(super) async fn write(&self, path: &str, body: &Value) -> Result<Value, CallError> {
        // Never closed; the caller holds the deadline.
        let _turn = self.turns.acquire().await;
        let response = self.open(path, body).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| self.rotate(&error.to_string()))?.to_bytes();
        let value: Value = serde_json::from_slice(&body)
            .map_err(|_| self.rotate(&format!("the answer ({status}) is not JSON")))?;
        if status.is_success() { Ok(value) } else { Err(self.refusal(&value)) }
    }

    /// Sends a request, logged in if a user is set, and returns the answer as it begins.
    pub(super) async fn open(&self, path: &str, body: &Value) -> Result<Response<Incoming>, CallError> {
        let Some((name, password)) = &self.user else { return self.send(path, body, None).await };
        for _ in 0..2 {
            let token = self.token.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let token = match token {
                Some(token) => token,
                None => self.log_in(name, password).await?,
            };
            let response = self.send(path, body, Some(&token)).await?;
            if response.status() != hyper::StatusCode::UNAUTHORIZED {
                return Ok(response);
            }
            // Tokens run out: one new one, then it is the user that is wrong.
            *self.token.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        Err(CallError::Unauthenticated(format!("{name:?} was refused twice; check its password and role")))
    }

    async fn log_in(&self, name: &str, password: &str) -> Result<String, CallError> {
        let body = json!({ "name": name, "password": password });
        let response = self.send("/v3/auth/authenticate", &body, None).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| self.rotate(&error.to_string()))?.to_bytes();
        let value: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        match value.get("token").and_then(Value::as_str) {
            Some(token) if status.is_success() => {
                *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token.to_owned());
                Ok(token.to_owned())
            }
            _ => Err(CallError::Unauthenticated(message(&value))),
        }
    }

    async fn send(
        &self,
        path: &str,
        body: &Value,
        token: Option<&str>,
    ) -> Result<Response<Incoming>, CallError> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut last = "no etcd endpoint is set".to_owned();
        for step in 0..self.endpoints.len() {
            let position = (first + step) % self.endpoints.len();
            let Some(endpoint) = self.endpoints.get(position) else { continue };
            let authority = &endpoint.authority;
            let stream = match endpoint.connect().await {
                Ok(stream) => stream,
                Err(error) => {
                    last = format!("{authority}: {}", explain(&error));
                    continue;
                }
            };
            self.preferred.store(position, Ordering::Relaxed);
            return match exchange(stream, authority, path, body, token).await {
                Ok(answer) => Ok(answer),
                Err(error) => match rejection(error.as_ref()) {
                    // In TLS 1.3 the verdict on a certificate comes after the request was written; nobody read that.
                    Some(why) => {
                        last = format!("{authority}: {why}");
                        continue;
                    }
                    None => Err(self.rotate(&format!("{authority}: {error}"))),
                },
            };
        }
        Err(CallError::Unreachable(last))
    }

    /// Prefers another endpoint from now on: this one failed after it had the request.
    pub(super) fn rotate(&self, why: &str) -> CallError {
        let next = (self.preferred.load(Ordering::Relaxed) + 1) % self.endpoints.len().max(1);
        self.preferred.store(next, Ordering::Relaxed);
        debug!(why, "an etcd endpoint failed; preferring the next");
        CallError::Unknown(why.to_owned())
    }

    fn refusal(&self, answer: &Value) -> CallError {
        let message = message(answer);
        match answer.get("code").and_then(Value::as_i64) {
            Some(INVALID_ARGUMENT) => CallError::Invalid(message),
            Some(RESOURCE_EXHAUSTED) => CallError::Invalid(format!(
                "{message} (an etcd out of space needs compaction and defragmentation)"
            )),
            Some(UNAUTHENTICATED) => CallError::Unauthenticated(message),
            _ => self.rotate(&message),
        }
    }
}

impl Endpoint {
    fn of(url: &str, tls: Option<&ClientTls>) -> Result<Self, String> {
        let encrypted = url.starts_with("https://");
        let authority = authority(url)?;
        match tls {
            None if encrypted => Err(format!("{url}: no certificates to speak TLS with are given")),
            tls => Ok(Self { authority, tls: tls.filter(|_| encrypted).cloned() }),
        }
    }

    async fn connect(&self) -> std::io::Result<Stream> {
        let stream = within(CONNECT_TIME_MAX, TcpStream::connect(&self.authority)).await?;
        stream.set_nodelay(true)?;
        setsockopt(&stream, sockopt::TcpUserTimeout, &SILENCE_MILLIS_MAX)?;
        setsockopt(&stream, sockopt::KeepAlive, &true)?;
        setsockopt(&stream, sockopt::TcpKeepIdle, &1)?;
        setsockopt(&stream, sockopt::TcpKeepInterval, &1)?;
        let Some(tls) = &self.tls else { return Ok(Stream::Plain(stream)) };
        let host = self.authority.rsplit_once(':').map_or("", |(host, _)| host);
        within(TLS_TIME_MAX, tls.connect(host.trim_start_matches('[').trim_end_matches(']'), stream)).await
    }
}

async fn within<T>(limit: Duration, what: impl Future<Output = std::io::Result<T>>) -> std::io::Result<T> {
    let late = || std::io::Error::new(std::io::ErrorKind::TimedOut, format!("no connection in {limit:?}"));
    timeout(limit, what).await.unwrap_or_else(|_| Err(late()))
}

async fn exchange(
    stream: Stream,
    authority: &str,
    path: &str,
    body: &Value,
    token: Option<&str>,
) -> Result<Response<Incoming>, Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the response's body, or when that is dropped.
    tokio::spawn(connection);
    let mut request = Request::post(path).header(HOST, authority).header(CONTENT_TYPE, "application/json");
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, token);
    }
    let request = request.body(Full::new(Bytes::from(body.to_string())))?;
    Ok(sender.send_request(request).await?)
}

/// `host:port` of an address.
fn authority(url: &str) -> Result<String, String> {
    let authority = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://")).unwrap_or(url);
    let authority = authority.trim_end_matches('/');
    let port = authority.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then_some(port));
    match port.map(str::parse::<u16>) {
        Some(Ok(_)) if !authority.contains('/') => Ok(authority.to_owned()),
        _ => Err(format!("{url:?} is not an etcd endpoint; write http://host:port or https://host:port")),
    }
}

fn message(answer: &Value) -> String {
    let text = answer.get("message").or_else(|| answer.get("error")).and_then(Value::as_str);
    text.unwrap_or("no reason given").chars().filter(|c| !c.is_control()).take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_that_cannot_be_used_are_refused_with_the_reason() {
        assert_eq!(authority("http://127.0.0.1:2379").as_deref(), Ok("127.0.0.1:2379"));
        assert_eq!(authority("etcd.example:2379/").as_deref(), Ok("etcd.example:2379"));
        assert_eq!(authority("https://[::1]:2379").as_deref(), Ok("[::1]:2379"));
        assert!(
            Endpoint::of("https://127.0.0.1:2379", None).is_err(),
            "nothing is sent in the clear instead"
        );
        for wrong in ["", "http://", "http://host", "host:port", ":2379", "http://host:1/path"] {
            assert!(authority(wrong).is_err(), "{wrong}");
        }
    }
}
