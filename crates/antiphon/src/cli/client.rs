//! A small HTTP client for one member's API: one request a connection, every step with a deadline.
//!
//! It tells "nothing was done" from "the outcome is unknown": the difference matters to whoever would try again.

use std::time::Duration;

use antiphon_engine::sentence;
use antiphon_tls::{ClientFiles, ClientTls, Stream, Trust, explain, rejection};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, ETAG, HOST, HeaderValue, IF_MATCH};
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::failure::Failure;
use crate::config::Login;

/// How long a connection may take.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// How long an answer to a question may take.
const LOOK_MAX: Duration = Duration::from_secs(10);
/// The longest answer that is read.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// One member's API.
#[derive(Clone, Debug)]
pub struct Client {
    host: String,
    port: u16,
    /// None: in the clear.
    tls: Option<ClientTls>,
    sign_in: Option<HeaderValue>,
}

/// What a member answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body as text.
    pub text: String,
    /// The revision of what was shown, if it has one.
    pub etag: Option<HeaderValue>,
}

impl Client {
    /// A client for `http://host:port`, or `https://host:port` by the authorities of this machine.
    ///
    /// # Errors
    /// As [`Client::trusting`].
    pub fn new(url: &str, login: Option<&Login>) -> Result<Self, Failure> {
        Self::trusting(url, login, &ClientFiles { identity: None, trust: Trust::System })
    }

    /// A client for `http://host:port`, or `https://host:port` with these files; a path is ignored.
    ///
    /// # Errors
    /// [`Failure::Usage`] if the URL is not such a one, or a file cannot be used.
    pub fn trusting(url: &str, login: Option<&Login>, files: &ClientFiles) -> Result<Self, Failure> {
        let wrong = || {
            Failure::Usage(format!(
                "{url:?} is not an address of the API: write http://HOST:PORT or https://HOST:PORT"
            ))
        };
        let whole = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let uri: Uri = whole.parse().map_err(|_| wrong())?;
        let tls = match uri.scheme_str() {
            Some("http") => None,
            Some("https") => Some(ClientTls::load(files).map_err(|error| Failure::Usage(sentence(&error)))?),
            Some(_) | None => return Err(wrong()),
        };
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(wrong)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let sign_in = login.and_then(|login| {
            let text = STANDARD.encode(format!("{}:{}", login.username, login.password.expose()));
            let mut value = HeaderValue::from_str(&format!("Basic {text}")).ok()?;
            value.set_sensitive(true);
            Some(value)
        });
        Ok(Self { host, port: uri.port_u16().unwrap_or(8008), tls, sign_in })
    }

    /// Where this client connects to.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.tls.is_some() { "https" } else { "http" }, self.authority())
    }

    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Asks.
    ///
    /// # Errors
    /// [`Failure::Unreachable`] if no answer comes in time.
    pub async fn get(&self, path: &str) -> Result<Answer, Failure> {
        let request = self.request(Method::GET, path, None)?;
        let deadline = Instant::now() + LOOK_MAX;
        let answer = async { read(self.exchange(request, deadline).await?).await };
        match timeout_at(deadline, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(Trouble::Before(why) | Trouble::After(why))) => Err(self.unreachable(why)),
            Err(_) => Err(self.unreachable(format!("no answer within {LOOK_MAX:?}"))),
        }
    }

    /// Asks for JSON.
    ///
    /// # Errors
    /// [`Failure::Unreachable`] as [`Client::get`]; [`Failure::Refused`] if the answer is not 200 with JSON.
    pub async fn get_json(&self, path: &str) -> Result<Value, Failure> {
        let answer = self.get(path).await?;
        if answer.status != 200 {
            return Err(Failure::Refused(format!(
                "{} answered {} to GET {path}: {}",
                self.url(),
                answer.status,
                answer.text
            )));
        }
        serde_json::from_str(&answer.text).map_err(|error| {
            Failure::Refused(format!("{} answered GET {path} with no JSON: {error}", self.url()))
        })
    }

    /// Orders something, with a JSON body if given, only at the revision `if_match` if given. The answer may take
    /// `limit`.
    ///
    /// # Errors
    /// [`Failure::Unreachable`] if nothing was sent, [`Failure::Unknown`] if no answer came to what was sent.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        if_match: Option<HeaderValue>,
        limit: Duration,
    ) -> Result<Answer, Failure> {
        let what = format!("{method} {path}");
        let mut request = self.request(method, path, body)?;
        if let Some(tag) = if_match {
            request.headers_mut().insert(IF_MATCH, tag);
        }
        let deadline = Instant::now() + limit;
        let answer = async { read(self.exchange(request, deadline).await?).await };
        let unknown = |why: String| {
            Failure::Unknown(format!("outcome unknown: {what} was sent to {}: {why}", self.url()))
        };
        match timeout_at(deadline, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(Trouble::Before(why))) => Err(self.unreachable(why)),
            Ok(Err(Trouble::After(why))) => Err(unknown(why)),
            Err(_) => Err(unknown(format!("no answer within {limit:?}"))),
        }
    }

    /// Opens an answer without an end, as events are.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn open(&self, path: &str) -> Result<Response<Incoming>, Failure> {
        let request = self.request(Method::GET, path, None)?;
        let deadline = Instant::now() + LOOK_MAX;
        match timeout_at(deadline, self.exchange(request, deadline)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(Trouble::Before(why) | Trouble::After(why))) => Err(self.unreachable(why)),
            Err(_) => Err(self.unreachable(format!("no answer within {LOOK_MAX:?}"))),
        }
    }

    fn unreachable(&self, why: String) -> Failure {
        Failure::Unreachable { url: self.url(), why }
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Request<Full<Bytes>>, Failure> {
        let body = body.map_or_else(Bytes::new, |body| body.to_string().into());
        let mut request = Request::builder().method(method).uri(path).header(HOST, self.authority());
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some(sign_in) = &self.sign_in {
            request = request.header(AUTHORIZATION, sign_in.clone());
        }
        request
            .body(Full::new(body))
            .map_err(|error| Failure::Usage(format!("could not write the request: {error}")))
    }

    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
        deadline: Instant,
    ) -> Result<Response<Incoming>, Trouble> {
        let before = |error: &dyn std::fmt::Display| Trouble::Before(error.to_string());
        let stream = timeout_at(deadline.min(Instant::now() + CONNECT_MAX), self.connect()).await;
        let stream = stream.map_err(|_| Trouble::Before(format!("no connection within {CONNECT_MAX:?}")))?;
        let stream = stream.map_err(|error| Trouble::Before(explain(&error)))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| before(&error))?;
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(|error| match rejection(&error) {
            // In TLS 1.3 the verdict on a certificate comes after the request was written, and nobody read that.
            Some(why) => Trouble::Before(why),
            None => Trouble::After(error.to_string()),
        })
    }

    async fn connect(&self) -> std::io::Result<Stream> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        match &self.tls {
            Some(tls) => tls.connect(&self.host, stream).await,
            None => Ok(Stream::Plain(stream)),
        }
    }
}

/// Where an exchange failed.
enum Trouble {
    /// Before anything was sent.
    Before(String),
    /// After that.
    After(String),
}

async fn read(response: Response<Incoming>) -> Result<Answer, Trouble> {
    let status = response.status().as_u16();
    let etag = response.headers().get(ETAG).cloned();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|error| Trouble::After(error.to_string()))?.to_bytes();
    Ok(Answer { status, text: String::from_utf8_lossy(&body).into_owned(), etag })
}
