//! Logging in to a server as one of its users, with what that user proved to the router.
//!
//! Pure: messages in, bytes out. It ends with what the server says of itself, which clients are then told.

use crate::scram::{self, Login, NONCE_BYTES};
use crate::secrets::Credentials;
use crate::session::Farewell;
use crate::wire::{fields, messages};

/// Settings and other texts that a server may send at a login.
const GREETING_MAX: usize = 256;

/// What a server said of itself at a login.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Greeting {
    /// The settings that it reports, by name.
    pub parameters: Vec<(String, String)>,
    /// Its process.
    pub process: u32,
    /// What a cancel request has to know.
    pub key: Vec<u8>,
}

/// A login under way.
#[derive(Debug)]
pub struct ServerLogin {
    credentials: Option<Credentials>,
    nonce: [u8; NONCE_BYTES],
    exchange: Option<Login>,
    proved: bool,
    greeting: Greeting,
}

impl ServerLogin {
    /// One that proves the user by these credentials, if the server asks.
    pub fn new(credentials: Option<Credentials>, nonce: [u8; NONCE_BYTES]) -> Self {
        Self { credentials, nonce, exchange: None, proved: false, greeting: Greeting::default() }
    }

    /// Takes a message of the server: the greeting when the login has ended, and bytes to send meanwhile.
    ///
    /// # Errors
    /// Why it failed, in the server's words if it said so.
    pub fn message(
        &mut self,
        kind: u8,
        body: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<Greeting>, Farewell> {
        match kind {
            b'R' => self.authenticate(body, out)?,
            b'S' => {
                if let Some((name, value)) = fields::parameter(body) {
                    self.greeting.parameters.push((name.to_owned(), value.to_owned()));
                }
                if self.greeting.parameters.len() > GREETING_MAX {
                    return Err(failure("08P01", "the server reports too many settings"));
                }
            }
            b'K' => {
                let [a, b, c, d, key @ ..] = body else {
                    return Err(failure("08P01", "the server's key is cut off"));
                };
                self.greeting.process = u32::from_be_bytes([*a, *b, *c, *d]);
                self.greeting.key = key.to_vec();
            }
            b'Z' => return Ok(Some(std::mem::take(&mut self.greeting))),
            b'N' | b'v' => {}
            b'E' => {
                let report = fields::report(body).unwrap_or_default();
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                return Err(Farewell { code: text(report.code), message: text(report.message) });
            }
            _ => return Err(failure("08P01", "the server does not keep to the protocol")),
        }
        Ok(None)
    }

    fn authenticate(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<(), Farewell> {
        let [a, b, c, d, data @ ..] = body else {
            return Err(failure("08P01", "an authentication request is cut off"));
        };
        let scram = |error: scram::ScramError| failure("28P01", error.to_string());
        match u32::from_be_bytes([*a, *b, *c, *d]) {
            0 if self.exchange.is_some() && !self.proved => {
                Err(failure("28000", "the server did not prove that it knows the password"))
            }
            0 => Ok(()),
            10 => {
                if !data.split(|byte| *byte == 0).any(|name| name == scram::MECHANISM.as_bytes()) {
                    return Err(failure("28000", "the server does not offer SCRAM-SHA-256"));
                }
                let credentials = match self.credentials.take() {
                    Some(Credentials::Scram(credentials)) => credentials,
                    Some(Credentials::Md5(_)) => {
                        let why = "the server asks for SCRAM-SHA-256, and an MD5 hash is known of this user's password";
                        return Err(failure("28000", why));
                    }
                    None => return Err(no_password()),
                };
                let (exchange, first) = Login::begin(credentials, &self.nonce);
                self.exchange = Some(exchange);
                messages::sasl_initial(out, scram::MECHANISM, first.as_bytes());
                Ok(())
            }
            11 => {
                let exchange = self.exchange.as_mut().ok_or_else(|| failure("08P01", "SASL out of order"))?;
                let last = exchange.prove(data).map_err(scram)?;
                messages::sasl_response(out, last.as_bytes());
                Ok(())
            }
            12 => {
                let exchange = self.exchange.as_ref().ok_or_else(|| failure("08P01", "SASL out of order"))?;
                exchange.check(data).map_err(scram)?;
                self.proved = true;
                Ok(())
            }
            5 => {
                let salt = data.try_into().map_err(|_| failure("08P01", "a salt has four bytes"))?;
                match self.credentials.take() {
                    Some(Credentials::Md5(hash)) => {
                        messages::put(out, b'p', |body| {
                            messages::put_text(body, hash.proof(salt).as_bytes());
                        });
                        Ok(())
                    }
                    Some(Credentials::Scram(_)) => {
                        let why =
                            "the server asks for MD5, and this user has proved its password by SCRAM-SHA-256";
                        Err(failure("28000", why))
                    }
                    None => Err(no_password()),
                }
            }
            3 => Err(failure(
                "28000",
                "the server asks for a password in the clear, which the router does not send",
            )),
            other => Err(failure("28000", format!("the server asks for authentication {other}"))),
        }
    }
}

fn no_password() -> Farewell {
    failure("28000", "the server asks for a password, and this client proved none")
}

/// A failure in the router's words.
pub fn failure(code: &str, message: impl Into<String>) -> Farewell {
    Farewell { code: code.to_owned(), message: message.into() }
}
