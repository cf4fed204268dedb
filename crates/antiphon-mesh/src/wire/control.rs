//! A connection of the client library, on one that was opened here.
//!
//! Thus there is one way to connect, log in and trust. The library begins with a login of its own: it talks to
//! [`Opened`], which keeps that from the server and answers what the server answered before.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::{Client, Config, NoTls};

use super::socket::Socket;
use super::{Connection, Kind, WireError};
use crate::dsn::Dsn;

impl Dsn {
    /// Connects and logs in for ordinary statements.
    ///
    /// # Errors
    /// Why no server will do.
    pub async fn control(&self, application_name: &str) -> Result<Client, WireError> {
        let connection = Connection::open(self, Kind::Sql, application_name, &[]).await?;
        let server = connection.server().clone();
        let mut config = Config::new();
        // As whom, the server knows.
        config.user("").ssl_mode(tokio_postgres::config::SslMode::Disable);
        let connected = config.connect_raw(Opened::new(connection), NoTls).await;
        let (client, connection) = connected
            .map_err(|error| WireError::Protocol { server: server.clone(), what: error.to_string() })?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("the connection to {server} ended: {error}");
            }
        });
        Ok(client)
    }
}

/// A connection on which somebody is logged in, as it is towards one who begins to log in.
struct Opened {
    socket: Socket,
    /// Of the first message, what has yet to be kept from the server: its length, then so many bytes.
    length: Vec<u8>,
    unsent: Option<usize>,
    /// What the server is still to have answered.
    answer: Bytes,
}

impl Opened {
    fn new(connection: Connection) -> Self {
        let Connection { reader, writer, process, secret } = connection;
        let mut answer = BytesMut::new();
        answer.put_slice(&[b'R', 0, 0, 0, 8, 0, 0, 0, 0]);
        for (name, value) in &reader.parameters {
            let length = u32::try_from(4 + name.len() + value.len() + 2);
            answer.put_u8(b'S');
            answer.put_u32(length.expect("it came as one message, whose length has 32 bits"));
            for text in [name, value] {
                answer.put_slice(text.as_bytes());
                answer.put_u8(0);
            }
        }
        answer.put_slice(&[b'K', 0, 0, 0, 12]);
        answer.put_u32(process);
        answer.put_u32(secret);
        answer.put_slice(&[b'Z', 0, 0, 0, 5, b'I']);
        answer.put_slice(&reader.input);
        let socket = reader.half.unsplit(writer.half);
        Self { socket, length: Vec::with_capacity(4), unsent: None, answer: answer.freeze() }
    }

    /// How many of these bytes belong to the first message.
    fn kept_back(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while self.length.len() < 4 {
            let Some(byte) = bytes.get(taken) else { return taken };
            self.length.push(*byte);
            taken += 1;
        }
        let whole = self.length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        let unsent = self.unsent.unwrap_or(whole.saturating_sub(4));
        let more = unsent.min(bytes.len() - taken);
        self.unsent = Some(unsent - more);
        taken + more
    }
}

impl AsyncRead for Opened {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.answer.is_empty() {
            return Pin::new(&mut this.socket).poll_read(context, buffer);
        }
        let count = buffer.remaining().min(this.answer.len());
        buffer.put_slice(&this.answer[..count]);
        this.answer.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Opened {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match this.unsent {
            Some(0) => Pin::new(&mut this.socket).poll_write(context, bytes),
            Some(_) | None => Poll::Ready(Ok(this.kept_back(bytes))),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(context)
    }
}
