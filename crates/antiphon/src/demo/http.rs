//! The smallest HTTP client that can ask an agent on loopback: one request, one connection, one deadline.

use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The longest answer that is read.
const ANSWER_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// An answer.
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: String,
}

/// `GET path` at a port of loopback.
///
/// # Errors
/// If there is no sound answer within `limit`.
pub async fn get(port: u16, path: &str, limit: Duration) -> anyhow::Result<Answer> {
    request(port, &format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n"), limit).await
}

/// `POST path` with a JSON body.
///
/// # Errors
/// If there is no sound answer within `limit`.
pub async fn post(port: u16, path: &str, body: &str, limit: Duration) -> anyhow::Result<Answer> {
    send(port, "POST", path, body, limit).await
}

/// `PATCH path` with a JSON body.
///
/// # Errors
/// If there is no sound answer within `limit`.
pub async fn patch(port: u16, path: &str, body: &str, limit: Duration) -> anyhow::Result<Answer> {
    send(port, "PATCH", path, body, limit).await
}

async fn send(port: u16, method: &str, path: &str, body: &str, limit: Duration) -> anyhow::Result<Answer> {
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    request(port, &format!("{head}{body}"), limit).await
}

async fn request(port: u16, text: &str, limit: Duration) -> anyhow::Result<Answer> {
    tokio::time::timeout(limit, async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(text.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").context("the answer has no end of headers")?;
        let status =
            head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("the answer has no status")?;
        Ok(Answer { status, body: body.to_owned() })
    })
    .await
    .with_context(|| format!("no answer from port {port} within {limit:?}"))?
}
