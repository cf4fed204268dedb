//! Logging in: the exchange between the first message of a connection and the moment when it can be used.
//!
//! The password itself is sent only where nobody can read along, unless `require_auth` asks for it by name. With
//! SCRAM the server proves that it knows the password's verifier, and inside TLS both ends prove that they see the
//! same certificate, if the server can.

use std::sync::Arc;

use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;

use super::socket::Socket;
use super::{Connection, Kind, Reader, WireError, Writer};
use crate::dsn::{Binding, Dsn, Host};

/// Who logs in, and for what.
pub(super) struct Login<'a> {
    pub(super) dsn: &'a Dsn,
    pub(super) kind: Kind,
    pub(super) application_name: &'a str,
    pub(super) settings: &'a [(&'a str, &'a str)],
}

/// Logs in on a connection on which nothing has been said.
pub(super) async fn login(socket: Socket, host: &Host, login: &Login<'_>) -> Result<Connection, WireError> {
    let server: Arc<str> = host.to_string().into();
    let (is_private, end_point) = (socket.is_private(), socket.end_point());
    let (read_half, write_half) = tokio::io::split(socket);
    let mut exchange = Exchange {
        dsn: login.dsn,
        password: login.dsn.password(host),
        is_private,
        end_point,
        reader: Reader::new(read_half, server.clone()),
        writer: Writer::new(write_half, server),
    };
    exchange.start(login).await?;
    exchange.authenticate().await?;
    exchange.ready().await
}

struct Exchange<'a> {
    dsn: &'a Dsn,
    password: Option<String>,
    is_private: bool,
    /// What the login can be bound to.
    end_point: Option<Vec<u8>>,
    reader: Reader,
    writer: Writer,
}

impl Exchange<'_> {
    async fn start(&mut self, login: &Login<'_>) -> Result<(), WireError> {
        let mut parameters = vec![
            ("user", self.dsn.user()),
            ("database", self.dsn.database()),
            ("application_name", login.application_name),
            ("client_encoding", "UTF8"),
        ];
        if let Some(options) = &self.dsn.options {
            parameters.push(("options", options));
        }
        if login.kind == Kind::Replication {
            parameters.push(("replication", "database"));
        }
        parameters.extend(login.settings);
        self.writer
            .put("the start of a connection", |output| frontend::startup_message(parameters, output))?;
        self.writer.flush().await
    }

    async fn authenticate(&mut self) -> Result<(), WireError> {
        let methods = self.dsn.methods;
        let (mut is_asked, mut is_bound) = (false, false);
        loop {
            match self.reader.next().await? {
                Message::AuthenticationOk => break,
                Message::AuthenticationCleartextPassword => {
                    if !methods.password {
                        return Err(
                            self.refused("it asks for the password itself, which require_auth excludes")
                        );
                    }
                    if !self.is_private && !methods.named {
                        return Err(self.refused(
                            "it asks for the password in the clear; encrypt the connection (sslmode=require), or \
                             allow it with require_auth=password",
                        ));
                    }
                    let password = self.password()?;
                    self.send(|output| frontend::password_message(password.as_bytes(), output)).await?;
                }
                Message::AuthenticationMd5Password(body) => {
                    if !methods.md5 {
                        return Err(self.refused("it asks for MD5, which require_auth excludes"));
                    }
                    let password = self.password()?;
                    let answer = md5_hash(self.dsn.user().as_bytes(), password.as_bytes(), body.salt());
                    self.send(|output| frontend::password_message(answer.as_bytes(), output)).await?;
                }
                Message::AuthenticationSasl(body) => {
                    if !methods.scram {
                        return Err(self.refused("it asks for SCRAM, which require_auth excludes"));
                    }
                    is_bound = self.scram(&body).await?;
                }
                Message::ErrorResponse(body) => return Err(body.into()),
                Message::NoticeResponse(_) => continue,
                Message::AuthenticationGss
                | Message::AuthenticationKerberosV5
                | Message::AuthenticationSspi => {
                    return Err(self.refused("it asks for Kerberos, which is not supported"));
                }
                _ => return Err(self.reader.broken("it sent something else while we logged in")),
            }
            is_asked = true;
        }
        if !is_asked && !methods.nothing {
            return Err(
                self.refused("it lets us in without proof of who we are, which require_auth excludes")
            );
        }
        if !is_bound && self.dsn.binding == Binding::Require {
            return Err(
                self.refused("it did not bind the login to the connection, and channel_binding=require")
            );
        }
        Ok(())
    }

    /// SCRAM, to the server's own proof. Whether the login is bound to the connection.
    async fn scram(&mut self, body: &AuthenticationSaslBody) -> Result<bool, WireError> {
        let (mut is_offered, mut can_be_bound) = (false, false);
        let mut mechanisms = body.mechanisms();
        while let Some(mechanism) =
            mechanisms.next().map_err(|error| self.reader.broken(error.to_string()))?
        {
            is_offered |= mechanism == SCRAM_SHA_256;
            can_be_bound |= mechanism == SCRAM_SHA_256_PLUS;
        }
        let end_point = self.end_point.take().filter(|_| self.dsn.binding != Binding::Disable);
        let (mechanism, binding) = match end_point {
            Some(end_point) if can_be_bound => {
                (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(end_point))
            }
            _ if !is_offered => return Err(self.refused("it offers no way of logging in that is known here")),
            // We could: if the server could too, somebody between us took its offer away, and it will notice.
            Some(_) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
            None => (SCRAM_SHA_256, ChannelBinding::unsupported()),
        };
        let password = self.password()?;
        let mut scram = ScramSha256::new(password.as_bytes(), binding);
        self.send(|output| frontend::sasl_initial_response(mechanism, scram.message(), output)).await?;
        let first = self.reader.next().await?;
        let Message::AuthenticationSaslContinue(first) = first else { return Err(self.unexpected(first)) };
        scram.update(first.data()).map_err(|error| self.refused(format!("SCRAM: {error}")))?;
        self.send(|output| frontend::sasl_response(scram.message(), output)).await?;
        let last = self.reader.next().await?;
        let Message::AuthenticationSaslFinal(last) = last else { return Err(self.unexpected(last)) };
        let checked = scram.finish(last.data());
        checked
            .map_err(|_| self.refused("it does not know the password's verifier; it is not the server"))?;
        Ok(mechanism == SCRAM_SHA_256_PLUS)
    }

    /// From the login to the moment when the server waits for us.
    async fn ready(mut self) -> Result<Connection, WireError> {
        let (mut process, mut secret) = (0, 0);
        loop {
            match self.reader.next().await? {
                Message::BackendKeyData(body) => {
                    process = body.process_id().cast_unsigned();
                    secret = body.secret_key().cast_unsigned();
                }
                Message::NoticeResponse(_) => {}
                Message::ReadyForQuery(_) => break,
                other => return Err(self.unexpected(other)),
            }
        }
        Ok(Connection { reader: self.reader, writer: self.writer, process, secret })
    }

    fn password(&self) -> Result<String, WireError> {
        self.password.clone().ok_or_else(|| {
            self.refused(
                "it asks for a password and there is none: neither in the connection string nor in PGPASSWORD nor in \
                 the password file",
            )
        })
    }

    async fn send(
        &mut self,
        message: impl FnOnce(&mut bytes::BytesMut) -> std::io::Result<()>,
    ) -> Result<(), WireError> {
        self.writer.put("a login", message)?;
        self.writer.flush().await
    }

    fn unexpected(&self, message: Message) -> WireError {
        match message {
            Message::ErrorResponse(body) => body.into(),
            _ => self.reader.broken("it sent something else while we logged in"),
        }
    }

    fn refused(&self, why: impl Into<String>) -> WireError {
        WireError::Login { server: self.reader.server.clone(), why: why.into() }
    }
}
