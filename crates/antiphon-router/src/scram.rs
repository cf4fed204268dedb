//! SCRAM-SHA-256 (RFC 5802, RFC 7677) on both sides, without a password on either.
//!
//! A client proves that it knows the password against the verifier that the server keeps. Its proof gives away
//! the client key, with which the router logs in to the server as that client. Nothing is hashed 4,096 times:
//! a login costs a few HMACs. Pure; randomness is handed in.

use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

/// The mechanism's name.
pub const MECHANISM: &str = "SCRAM-SHA-256";
/// Its name where the login is bound to the connection on which it is made.
pub const MECHANISM_BOUND: &str = "SCRAM-SHA-256-PLUS";
/// How a client begins that binds its login to the server's certificate.
const BINDS: &str = "p=tls-server-end-point";
/// Random bytes in a nonce.
pub const NONCE_BYTES: usize = 18;
/// Longest message of an exchange, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 2048;

const KEY_BYTES: usize = 32;
type Key = [u8; KEY_BYTES];

/// Why an exchange failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// The other side does not speak the mechanism.
    #[error("malformed SCRAM message: {0}")]
    Malformed(&'static str),
    /// The proof is not that of the password.
    #[error("password authentication failed")]
    WrongPassword,
    /// The client would bind its login to the connection, and believes that this was not offered.
    #[error("SCRAM channel binding negotiation error")]
    NotSeen,
    /// The login is bound to another connection.
    #[error("SCRAM channel binding check failed")]
    OtherConnection,
    /// What stands where a verifier should.
    #[error("not a SCRAM-SHA-256 verifier; set password_encryption = 'scram-sha-256' and the password again")]
    NotAVerifier,
}

/// What a server keeps of a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    iterations: u32,
    salt: Vec<u8>,
    stored_key: Key,
    server_key: Key,
}

/// What logs in as a user: the client key and the keys of the verifier that it goes with.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    client_key: Key,
    stored_key: Key,
    server_key: Key,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier")
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials")
    }
}

impl Verifier {
    /// Reads `SCRAM-SHA-256$iterations:salt$stored key:server key`, as `pg_authid.rolpassword` has it.
    ///
    /// # Errors
    /// If it is something else, for example an MD5 hash.
    pub fn parse(text: &str) -> Result<Self, ScramError> {
        let read = || {
            let (head, keys) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
            let (iterations, salt) = head.split_once(':')?;
            let (stored, server) = keys.split_once(':')?;
            Some(Self {
                iterations: iterations.parse().ok().filter(|count| *count > 0)?,
                salt: BASE64.decode(salt).ok()?,
                stored_key: BASE64.decode(stored).ok()?.try_into().ok()?,
                server_key: BASE64.decode(server).ok()?.try_into().ok()?,
            })
        };
        read().ok_or(ScramError::NotAVerifier)
    }

    /// One that no password fits, the same each time for a user, so that a stranger cannot tell who exists.
    pub fn impossible(user: &str, secret: &[u8]) -> Self {
        let salt = hmac(secret, user.as_bytes());
        let key = |purpose: &[u8]| hmac(secret, &[user.as_bytes(), purpose].concat());
        let salt = salt.get(..16).map(<[u8]>::to_vec).unwrap_or_default();
        Self { iterations: 4096, salt, stored_key: key(b"\0stored"), server_key: key(b"\0server") }
    }
}

/// Whether a login is bound to the connection on which it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding<'a> {
    /// It cannot be.
    NotOffered,
    /// It could be, and the client chose otherwise.
    Declined,
    /// To a server with a certificate of this hash.
    EndPoint(&'a [u8]),
}

/// The server's side, between its first message and the client's last one.
#[derive(Clone, Debug)]
pub struct Exchange {
    verifier: Verifier,
    binding: String,
    nonce: String,
    /// The client's first message without its head, and ours.
    said: String,
}

impl Exchange {
    /// Reads the client's first message and gives ours.
    ///
    /// # Errors
    /// If the message is malformed or asks for what was not offered.
    pub fn begin(
        verifier: Verifier,
        first: &[u8],
        random: &[u8; NONCE_BYTES],
        binding: Binding<'_>,
    ) -> Result<(Self, String), ScramError> {
        let first = std::str::from_utf8(first).map_err(|_| ScramError::Malformed("not UTF-8"))?;
        let mut parts = first.splitn(3, ',');
        let (flag, name, bare) = (parts.next(), parts.next(), parts.next());
        let (Some(flag), Some(name), Some(bare)) = (flag, name, bare) else {
            return Err(ScramError::Malformed("it is cut off"));
        };
        let bound_to: &[u8] = match (flag, binding) {
            ("n", Binding::NotOffered | Binding::Declined) | ("y", Binding::NotOffered) => &[],
            // Somebody in between may have taken the offer away.
            ("y", Binding::Declined) => return Err(ScramError::NotSeen),
            (BINDS, Binding::EndPoint(hash)) => hash,
            (_, Binding::EndPoint(_)) => {
                return Err(ScramError::Malformed("only tls-server-end-point binds to this connection"));
            }
            (_, Binding::NotOffered | Binding::Declined) => {
                return Err(ScramError::Malformed("this mechanism has no channel binding"));
            }
        };
        let theirs = attribute(bare, "r").filter(|nonce| (1..=256).contains(&nonce.len()));
        let theirs = theirs.ok_or(ScramError::Malformed("no nonce"))?;
        if bare.starts_with("m=") {
            return Err(ScramError::Malformed("an extension that is not known"));
        }
        let nonce = format!("{theirs}{}", BASE64.encode(random));
        let ours = format!("r={nonce},s={},i={}", BASE64.encode(&verifier.salt), verifier.iterations);
        let exchange = Self {
            verifier,
            binding: BASE64.encode([flag.as_bytes(), b",", name.as_bytes(), b",", bound_to].concat()),
            nonce,
            said: format!("{bare},{ours}"),
        };
        Ok((exchange, ours))
    }

    /// Reads the client's last message: what it can be logged in with elsewhere, and our last message.
    ///
    /// # Errors
    /// If the password is wrong or the message malformed.
    pub fn finish(&self, last: &[u8]) -> Result<(Credentials, String), ScramError> {
        let last = std::str::from_utf8(last).map_err(|_| ScramError::Malformed("not UTF-8"))?;
        let (unproved, proof) = last.rsplit_once(",p=").ok_or(ScramError::Malformed("no proof"))?;
        if attribute(unproved, "c") != Some(&self.binding) {
            return Err(ScramError::OtherConnection);
        }
        if attribute(unproved, "r") != Some(&self.nonce) {
            return Err(ScramError::Malformed("the nonce differs"));
        }
        let proof: Key = BASE64
            .decode(proof)
            .ok()
            .and_then(|proof| proof.try_into().ok())
            .ok_or(ScramError::Malformed("the proof is not 32 bytes in base64"))?;
        let said = format!("{},{unproved}", self.said);
        let client_key = xor(proof, hmac(&self.verifier.stored_key, said.as_bytes()));
        if !same(&sha256(&client_key), &self.verifier.stored_key) {
            return Err(ScramError::WrongPassword);
        }
        let ours = format!("v={}", BASE64.encode(hmac(&self.verifier.server_key, said.as_bytes())));
        let (stored_key, server_key) = (self.verifier.stored_key, self.verifier.server_key);
        Ok((Credentials { client_key, stored_key, server_key }, ours))
    }
}

/// The client's side, towards a server.
#[derive(Clone, Debug)]
pub struct Login {
    credentials: Credentials,
    nonce: String,
    said: String,
}

impl Login {
    /// Our first message.
    pub fn begin(credentials: Credentials, random: &[u8; NONCE_BYTES]) -> (Self, String) {
        let nonce = BASE64.encode(random);
        let first = format!("n,,n=,r={nonce}");
        (Self { credentials, nonce, said: String::new() }, first)
    }

    /// Reads the server's first message and gives our last one.
    ///
    /// # Errors
    /// If the message is malformed.
    pub fn prove(&mut self, first: &[u8]) -> Result<String, ScramError> {
        let first = std::str::from_utf8(first).map_err(|_| ScramError::Malformed("not UTF-8"))?;
        let nonce = attribute(first, "r").filter(|nonce| nonce.starts_with(&self.nonce));
        let nonce = nonce.ok_or(ScramError::Malformed("the server's nonce is not ours continued"))?;
        let unproved = format!("c=biws,r={nonce}");
        self.said = format!("n=,r={},{first},{unproved}", self.nonce);
        let signature = hmac(&self.credentials.stored_key, self.said.as_bytes());
        Ok(format!("{unproved},p={}", BASE64.encode(xor(self.credentials.client_key, signature))))
    }

    /// Checks the server's last message: only who keeps the verifier can write it.
    ///
    /// # Errors
    /// If the server does not know the password's verifier.
    pub fn check(&self, last: &[u8]) -> Result<(), ScramError> {
        let signature = hmac(&self.credentials.server_key, self.said.as_bytes());
        let theirs = std::str::from_utf8(last).ok().and_then(|last| attribute(last, "v"));
        let theirs = theirs.and_then(|theirs| BASE64.decode(theirs).ok()).unwrap_or_default();
        if same(&theirs, &signature) { Ok(()) } else { Err(ScramError::WrongPassword) }
    }
}

/// The value of an attribute in a list like `r=…,s=…`.
fn attribute<'a>(list: &'a str, name: &str) -> Option<&'a str> {
    list.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
}

fn hmac(key: &[u8], data: &[u8]) -> Key {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of every length");
    mac.update(data);
    mac.finalize().into_bytes().into()
}

fn sha256(data: &[u8]) -> Key {
    Sha256::digest(data).into()
}

fn xor(mut a: Key, b: Key) -> Key {
    a.iter_mut().zip(b).for_each(|(a, b)| *a ^= b);
    a
}

/// Compares in the same time wherever the difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |seen, (a, b)| seen | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a server stores for "pencil" with this salt, and the client key that goes with it (RFC 7677, §3).
    fn known() -> (Verifier, Key) {
        let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let mut block = hmac(b"pencil", &[&salt[..], &[0, 0, 0, 1]].concat());
        let mut salted = block;
        for _ in 1..4096 {
            block = hmac(b"pencil", &block);
            salted = xor(salted, block);
        }
        let client_key = hmac(&salted, b"Client Key");
        let text = format!(
            "SCRAM-SHA-256$4096:{}${}:{}",
            BASE64.encode(salt),
            BASE64.encode(sha256(&client_key)),
            BASE64.encode(hmac(&salted, b"Server Key"))
        );
        (Verifier::parse(&text).unwrap(), client_key)
    }

    #[test]
    fn the_proof_of_the_standard_gives_the_client_key() {
        let (verifier, client_key) = known();
        let first = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
        let (mut exchange, _) =
            Exchange::begin(verifier, first, &[0; NONCE_BYTES], Binding::NotOffered).unwrap();
        // The server's nonce of the standard is not base64, so it is put in by hand.
        exchange.nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0".into();
        exchange.said =
            format!("n=user,r=rOprNGfwEbeRWgbNEkqO,r={},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096", exchange.nonce);
        let last = format!("c=biws,r={},p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=", exchange.nonce);
        let (credentials, ours) = exchange.finish(last.as_bytes()).unwrap();
        assert_eq!(credentials.client_key, client_key);
        assert_eq!(ours, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    #[test]
    fn what_a_client_proved_logs_in_and_another_key_does_not() {
        let (verifier, client_key) = known();
        for (key, fits) in [(client_key, true), ([7; 32], false)] {
            let (stored_key, server_key) = (verifier.stored_key, verifier.server_key);
            let credentials = Credentials { client_key: key, stored_key, server_key };
            let (mut login, first) = Login::begin(credentials.clone(), &[1; NONCE_BYTES]);
            let (exchange, answer) =
                Exchange::begin(verifier.clone(), first.as_bytes(), &[2; 18], Binding::Declined).unwrap();
            let last = login.prove(answer.as_bytes()).unwrap();
            match exchange.finish(last.as_bytes()) {
                Ok((proved, ours)) => {
                    assert!(fits && proved == credentials);
                    assert_eq!(login.check(ours.as_bytes()), Ok(()));
                    assert_eq!(login.check(b"v=AAAA"), Err(ScramError::WrongPassword));
                }
                Err(error) => assert!(!fits && error == ScramError::WrongPassword),
            }
        }
    }

    #[test]
    fn a_login_is_bound_to_its_connection_and_no_offer_is_taken_away() {
        let (verifier, client_key) = known();
        let begin = |first: &[u8], binding| Exchange::begin(verifier.clone(), first, &[2; 18], binding);
        let (hash, other) = ([3u8; 32], [4u8; 32]);
        for (offered, fits) in [(&hash, true), (&other, false)] {
            let first = b"p=tls-server-end-point,,n=,r=abc";
            let (exchange, answer) = begin(first, Binding::EndPoint(offered)).unwrap();
            let channel = BASE64.encode([&b"p=tls-server-end-point,,"[..], &hash].concat());
            let unproved = format!("c={channel},r={}", exchange.nonce);
            let said = format!("n=,r=abc,{answer},{unproved}");
            let proof = xor(client_key, hmac(&verifier.stored_key, said.as_bytes()));
            let last = format!("{unproved},p={}", BASE64.encode(proof));
            match exchange.finish(last.as_bytes()) {
                Ok((credentials, _)) => assert!(fits && credentials.client_key == client_key),
                Err(error) => assert!(!fits && error == ScramError::OtherConnection, "{error}"),
            }
        }
        let refusal = |first: &[u8], binding| begin(first, binding).map(drop).unwrap_err();
        assert_eq!(refusal(b"y,,n=,r=abc", Binding::Declined), ScramError::NotSeen);
        assert!(begin(b"y,,n=,r=abc", Binding::NotOffered).is_ok());
        for (first, binding) in [
            ("n,,n=,r=abc", Binding::EndPoint(&hash)),
            ("y,,n=,r=abc", Binding::EndPoint(&hash)),
            ("p=tls-unique,,n=,r=abc", Binding::EndPoint(&hash)),
            ("p=tls-server-end-point,,n=,r=abc", Binding::Declined),
            ("p=tls-server-end-point,,n=,r=abc", Binding::NotOffered),
        ] {
            let told = refusal(first.as_bytes(), binding);
            assert!(matches!(told, ScramError::Malformed(_)), "{first:?} {binding:?}");
        }
    }

    #[test]
    fn nothing_malformed_passes() {
        let (verifier, _) = known();
        for first in [&b""[..], b"n", b"n,,", b"n,,n=x", b"p=tls-unique,,n=,r=abc", b"n,,m=1,r=abc", b"\xff"]
        {
            let begun = Exchange::begin(verifier.clone(), first, &[0; 18], Binding::NotOffered);
            assert!(matches!(begun, Err(ScramError::Malformed(_))), "{first:?}");
        }
        let (exchange, _) = Exchange::begin(verifier, b"n,,n=,r=abc", &[0; 18], Binding::NotOffered).unwrap();
        for last in [&b""[..], b"c=biws,r=abc,p=", b",p=AAAA", b"\xff,p=x"] {
            assert!(exchange.finish(last).is_err(), "{last:?}");
        }
        for text in ["", "md5abc", "SCRAM-SHA-256$0:YQ==$YQ==:YQ==", "SCRAM-SHA-256$4096:YQ==$YQ==:YQ=="] {
            assert_eq!(Verifier::parse(text), Err(ScramError::NotAVerifier), "{text}");
        }
    }
}
