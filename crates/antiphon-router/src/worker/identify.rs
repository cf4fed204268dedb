//! Who a client is: what the rules ask of it, what its password is checked against, and the exchange that proves it.

use super::Worker;
use super::client::{Client, Phase, Wish};
use super::login::{ENCRYPTION_ASKED_MAX, malformed, random};
use crate::rules::{Certificate, Method, Visitor};
use crate::scram::{self, Binding, Exchange, NONCE_BYTES, ScramError, Verifier};
use crate::secrets::{Credentials, Secret};
use crate::settings::Secrets;
use crate::shared::{Ask, ClientId, Place, PoolKey, lock};
use crate::wire::messages::{self, Complaint};
use crate::wire::{self, Frame, HEADER_BYTES, fields};

impl Worker {
    /// Finds what a client has to prove, and begins with that.
    pub(super) fn identify(&mut self, slot: usize, wish: Wish) {
        match self.method(slot, &wish) {
            Err(complaint) => {
                tracing::info!(
                    user = wish.user,
                    database = wish.database,
                    message = complaint.message,
                    "a client is not let in"
                );
                self.dismiss(slot, &complaint);
            }
            Ok(Method::Trust | Method::Cert) => self.greet(slot, wish),
            Ok(Method::Scram) => self.look_up(slot, Wish { md5: false, ..wish }),
            // Refused before.
            Ok(Method::Md5 | Method::Reject) => self.look_up(slot, Wish { md5: true, ..wish }),
        }
    }

    /// How a client must prove who it is; its certificate has proved what it should.
    fn method(&self, slot: usize, wish: &Wish) -> Result<Method, Complaint> {
        let gone = || Complaint::fatal("08006", "the client has gone");
        let client = self.clients.get(slot).ok_or_else(gone)?;
        let from = client.socket.tcp.peer_addr().map_err(|_| gone())?.ip();
        let secure = client.socket.is_secure();
        let visitor = Visitor { from, secure, user: &wish.user, database: &wish.database };
        let of = format!(
            "host \"{from}\", user \"{}\", database \"{}\", {}",
            wish.user,
            wish.database,
            if secure { "TLS" } else { "no TLS" }
        );
        let refused = |what: &str| Complaint::fatal("28000", format!("{what} for {of}"));
        let (method, certificate) = match self.settings.authentication.rules.decide(&visitor) {
            None => return Err(refused("no rule of the router lets anybody in")),
            Some((Method::Reject, _)) => return Err(refused("a rule of the router rejects the connection")),
            Some(decided) => decided,
        };
        let certificate = if method == Method::Cert { Certificate::OfUser } else { certificate };
        let shown = || client.socket.certificate();
        let why = match certificate {
            Certificate::Any | Certificate::OfUser if shown().is_none() => {
                return Err(refused("connection requires a valid client certificate"));
            }
            Certificate::Unasked | Certificate::Any => return Ok(method),
            Certificate::OfUser => match shown().and_then(antiphon_tls::common_name) {
                Some(name) if name == wish.user => return Ok(method),
                Some(name) => format!("The client's certificate is for \"{name}\"."),
                None => "The client's certificate has no common name, or several.".to_owned(),
            },
        };
        let message = format!("certificate authentication failed for user \"{}\"", wish.user);
        Err(Complaint::fatal("28000", message).with_detail(Some(why)))
    }

    /// Finds what is kept of the client's password.
    fn look_up(&mut self, slot: usize, wish: Wish) {
        let found = match &self.settings.authentication.secrets {
            Secrets::Nothing => Some((None, true)),
            Secrets::Users(users) => Some((users.get(&wish.user).cloned(), true)),
            Secrets::Query(_) => self.shared.secret_of(&wish.user),
        };
        match found {
            Some((secret, true)) => self.ask_password(slot, wish, secret),
            Some((_, false)) | None => {
                let Some(client) = self.clients.get_mut(slot) else { return };
                let id = client.id(slot);
                let ask = Ask::User { thread: self.number, client: id, user: wish.user.clone() };
                client.phase = Phase::Lookup(Box::new(wish));
                if self.shared.control.try_send(ask).is_err() {
                    let message = "too many users are being looked up; try again";
                    self.dismiss(slot, &Complaint::fatal("53300", message));
                }
            }
        }
    }

    /// The control task has looked a user up.
    pub(super) fn looked_up(&mut self, id: ClientId, found: Result<Option<Secret>, String>) {
        let Some(client) = self.clients.get_mut(id.slot).filter(|client| client.serial == id.serial) else {
            return;
        };
        let Phase::Lookup(wish) = &mut client.phase else { return };
        let wish = std::mem::take(&mut **wish);
        match found {
            Ok(secret) => self.ask_password(id.slot, wish, secret),
            Err(why) => {
                let complaint = Complaint::fatal("57P03", "the password could not be checked");
                self.dismiss(id.slot, &complaint.with_detail(Some(why)));
            }
        }
        self.resume(id.slot);
    }

    fn ask_password(&mut self, slot: usize, wish: Wish, secret: Option<Secret>) {
        let mut bytes = Vec::new();
        let verifier = match secret {
            Some(Secret::Md5(hash)) if wish.md5 => {
                let Some(salt) = random::<4>() else {
                    return self.dismiss(slot, &malformed("no random numbers"));
                };
                messages::authentication(&mut bytes, 5, &salt);
                self.tell(slot, &bytes);
                return self.set_phase(slot, Phase::Md5(Box::new((wish, hash, salt))));
            }
            Some(Secret::Md5(_)) => {
                let why = "its password is kept as MD5; set it again, or allow the method md5";
                tracing::warn!(user = wish.user, why, "a user cannot log in through the router");
                None
            }
            Some(Secret::Scram(verifier)) => Some(verifier),
            None => None,
        };
        let verifier = verifier.unwrap_or_else(|| Verifier::impossible(&wish.user, &self.shared.secret));
        let can_be_bound = |client: &Client| client.socket.end_point().is_some();
        let mut mechanisms = Vec::new();
        if self.clients.get(slot).is_some_and(can_be_bound) {
            messages::put_text(&mut mechanisms, scram::MECHANISM_BOUND.as_bytes());
        }
        messages::put_text(&mut mechanisms, scram::MECHANISM.as_bytes());
        mechanisms.push(0);
        messages::authentication(&mut bytes, 10, &mechanisms);
        self.tell(slot, &bytes);
        self.set_phase(slot, Phase::Sasl(Box::new((wish, verifier))));
    }

    /// A client has proved who it is, by what logs in at the servers, too.
    fn proved(&self, wish: &Wish, credentials: Credentials) {
        let (user, database) = (wish.user.clone(), wish.database.clone());
        let budget = self.shared.budget(&PoolKey { user, database, place: Place::Leader });
        *lock(&budget.credentials) = Some(credentials);
    }

    /// Takes a message that shall prove who the client is.
    pub(super) fn password(&mut self, slot: usize, input: &[u8], at: &mut usize) -> Result<bool, Complaint> {
        let body = match wire::from_client(input) {
            Frame::Partial => return Ok(false),
            Frame::Message { kind: b'p', bytes } if bytes <= scram::MESSAGE_BYTES_MAX => {
                let Some(body) = input.get(HEADER_BYTES..bytes) else { return Ok(false) };
                *at += bytes;
                body
            }
            Frame::Message { .. } | Frame::Malformed => return Err(malformed("expected a password message")),
        };
        let Some(client) = self.clients.get_mut(slot) else { return Ok(false) };
        let mut bytes = Vec::new();
        match std::mem::replace(&mut client.phase, Phase::Opening(ENCRYPTION_ASKED_MAX)) {
            Phase::Sasl(asked) => {
                let (wish, verifier) = *asked;
                let first = sasl_first(body, client.socket.end_point());
                let (first, binding) = first.ok_or_else(|| malformed("malformed SASL initial response"))?;
                let nonce = random::<NONCE_BYTES>().ok_or_else(|| malformed("no random numbers"))?;
                let (exchange, answer) = Exchange::begin(verifier, first, &nonce, binding)
                    .map_err(|error| refusal(&error, &wish))?;
                messages::authentication(&mut bytes, 11, answer.as_bytes());
                client.phase = Phase::Proof(Box::new((wish, exchange)));
                self.tell(slot, &bytes);
            }
            Phase::Proof(asked) => {
                let (wish, exchange) = *asked;
                let (credentials, answer) = exchange.finish(body).map_err(|error| refusal(&error, &wish))?;
                self.proved(&wish, Credentials::Scram(credentials));
                messages::authentication(&mut bytes, 12, answer.as_bytes());
                self.tell(slot, &bytes);
                self.greet(slot, wish);
            }
            Phase::Md5(asked) => {
                let (wish, hash, salt) = *asked;
                let answer = fields::text(body).map(|(answer, _)| answer).unwrap_or_default();
                if !hash.is_proved_by(salt, answer) {
                    return Err(refusal(&ScramError::WrongPassword, &wish));
                }
                self.proved(&wish, Credentials::Md5(hash));
                self.greet(slot, wish);
            }
            phase => client.phase = phase,
        }
        Ok(true)
    }
}

/// The client's first SCRAM message, out of a SASLInitialResponse for a mechanism that was offered, and what its
/// login is bound to.
fn sasl_first<'a>(body: &'a [u8], end_point: Option<&'a [u8]>) -> Option<(&'a [u8], Binding<'a>)> {
    let (mechanism, rest) = fields::text(body)?;
    let binding = match end_point {
        Some(hash) if mechanism == scram::MECHANISM_BOUND.as_bytes() => Binding::EndPoint(hash),
        Some(_) => Binding::Declined,
        None => Binding::NotOffered,
    };
    let known = matches!(binding, Binding::EndPoint(_)) || mechanism == scram::MECHANISM.as_bytes();
    let [a, b, c, d, first @ ..] = rest else { return None };
    let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
    (known && length == first.len()).then_some((first, binding))
}

/// What a client is told whose login failed.
fn refusal(error: &ScramError, wish: &Wish) -> Complaint {
    let why = match error {
        ScramError::WrongPassword => {
            let user = &wish.user;
            return Complaint::fatal("28P01", format!("password authentication failed for user \"{user}\""));
        }
        ScramError::NotSeen => {
            "The client can bind its login to the connection and believes that the router cannot, which it offered."
        }
        ScramError::OtherConnection => {
            "The login was made for a connection to a server with another certificate."
        }
        ScramError::Malformed(_) | ScramError::NotAVerifier => return malformed(&error.to_string()),
    };
    Complaint::fatal("28000", error.to_string()).with_detail(Some(why.to_owned()))
}
