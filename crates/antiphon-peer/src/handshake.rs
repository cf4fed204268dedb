//! Who is at the other end: both sides prove that they know the secret before anything else is read.
//!
//! ```text
//! dialer   -> hello  (version, cluster, node, address, nonce)
//! acceptor -> hello, or refuse (why)
//! dialer   -> proof  HMAC(key, "dialer"   | both hellos)
//! acceptor -> proof  HMAC(key, "acceptor" | both hellos), or refuse
//! ```
//! Each message is `kind u8 | length u16 | body`, at most 1 KiB long. The direction is part of
//! what is proven, so that a proof cannot be sent back to where it came from; the nonces make it good for
//! this connection only. The acceptor proves nothing to one that has not: a stranger learns no material to
//! guess the secret from. Nothing here decides whether an address is welcome: whoever knows the secret is a
//! member.

use std::io;

use hmac::{Hmac, Mac};
use sha2::Sha256;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::wire::Seal;

const MAGIC: &[u8; 4] = b"ANTP";
const VERSION: u16 = 1;
const NONCE_BYTES: usize = 32;
const NAME_BYTES_MAX: usize = 255;
const MESSAGE_BYTES_MAX: usize = 1024;
const REASON_BYTES_MAX: usize = 300;

const HELLO: u8 = b'H';
const PROOF: u8 = b'P';
const REFUSE: u8 = b'R';

/// What a member says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) cluster: String,
    pub(crate) node: String,
    pub(crate) address: String,
}

/// Made from the secret; the secret itself is not kept.
pub(crate) struct Key(Hmac<Sha256>);

/// Why a handshake failed.
#[derive(Debug, Error)]
pub(crate) enum HandshakeError {
    /// The connection failed before it was over.
    #[error("the connection ended during the handshake")]
    Io(#[from] io::Error),
    /// The other side refused us and said why.
    #[error("{0}")]
    RefusedByPeer(String),
    /// We refuse the other side.
    #[error("{0}")]
    Refused(String),
}

impl Key {
    pub(crate) fn from_secret(secret: &str) -> Self {
        let key = mac(secret.as_bytes()).chain_update(b"antiphon peer key 1").finalize().into_bytes();
        Self(mac(&key))
    }

    fn sign(&self, purpose: &[u8], transcript: &[u8]) -> Hmac<Sha256> {
        self.0.clone().chain_update(purpose).chain_update(transcript)
    }

    fn seal(&self, transcript: &[u8]) -> Seal {
        Seal::new(mac(&self.sign(b"session", transcript).finalize().into_bytes()))
    }
}

fn mac(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

/// Dialer's side: proves itself to `stream`, demands proof, and returns the peer with the seal of what is sent.
pub(crate) async fn dial<S>(
    stream: &mut S,
    own: &Identity,
    key: &Key,
    expected_address: &str,
) -> Result<(Identity, Seal), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let ours = hello(own)?;
    send(stream, HELLO, &ours).await?;
    let theirs = receive(stream, HELLO).await?;
    let peer = parse_hello(&theirs).map_err(|why| HandshakeError::Refused(why.to_owned()))?;
    check_cluster(own, &peer).map_err(HandshakeError::Refused)?;
    if peer.address != expected_address {
        let why =
            format!("the member there advertises the address {:?}; correct one of the two", peer.address);
        return Err(HandshakeError::Refused(why));
    }
    let transcript = transcript(&ours, &theirs);
    send(stream, PROOF, &key.sign(b"dialer", &transcript).finalize().into_bytes()).await?;
    let proof = receive(stream, PROOF).await?;
    match key.sign(b"acceptor", &transcript).verify_slice(&proof) {
        Ok(()) => Ok((peer, key.seal(&transcript))),
        Err(_) => Err(HandshakeError::Refused("it does not know the secret of this cluster".to_owned())),
    }
}

/// Acceptor's side: demands proof first, then gives it; returns the peer with the seal of what is received.
pub(crate) async fn accept<S>(
    stream: &mut S,
    own: &Identity,
    key: &Key,
) -> Result<(Identity, Seal), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let theirs = receive(stream, HELLO).await?;
    let peer = match parse_hello(&theirs) {
        Ok(peer) => peer,
        Err(why) => return refuse(stream, why.to_owned()).await,
    };
    if let Err(why) = check_cluster(own, &peer) {
        return refuse(stream, why).await;
    }
    if peer.address == own.address {
        return refuse(stream, format!("two members advertise the address {:?}", own.address)).await;
    }
    let ours = hello(own)?;
    send(stream, HELLO, &ours).await?;
    let transcript = transcript(&theirs, &ours);
    let proof = receive(stream, PROOF).await?;
    if key.sign(b"dialer", &transcript).verify_slice(&proof).is_err() {
        return refuse(stream, "wrong secret: the members must be given the same one".to_owned()).await;
    }
    send(stream, PROOF, &key.sign(b"acceptor", &transcript).finalize().into_bytes()).await?;
    Ok((peer, key.seal(&transcript)))
}

/// True for what may stand in a hello: 1 to 255 bytes that can be logged as they are.
pub(crate) fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= NAME_BYTES_MAX && !text.chars().any(char::is_control)
}

/// Says why the other side is refused, and that it is.
pub(crate) async fn refuse<S, T>(stream: &mut S, why: String) -> Result<T, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // Whether the stranger hears why does not matter to us.
    let _ = send(stream, REFUSE, why.as_bytes()).await;
    Err(HandshakeError::Refused(why))
}

fn check_cluster(own: &Identity, peer: &Identity) -> Result<(), String> {
    if own.cluster == peer.cluster {
        Ok(())
    } else {
        Err(format!("it belongs to cluster {:?}, not to {:?}", peer.cluster, own.cluster))
    }
}

fn transcript(dialer: &[u8], acceptor: &[u8]) -> Vec<u8> {
    let length = u64::try_from(dialer.len()).unwrap_or(u64::MAX).to_be_bytes();
    [&length, dialer, acceptor].concat()
}

fn hello(own: &Identity) -> io::Result<Vec<u8>> {
    let mut nonce = [0_u8; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(|error| io::Error::other(error.to_string()))?;
    let mut body = Vec::with_capacity(MESSAGE_BYTES_MAX);
    body.extend_from_slice(MAGIC);
    body.extend_from_slice(&VERSION.to_be_bytes());
    body.extend_from_slice(&nonce);
    for name in [&own.cluster, &own.node, &own.address] {
        body.push(u8::try_from(name.len()).unwrap_or(0));
        body.extend_from_slice(name.as_bytes());
    }
    Ok(body)
}

fn parse_hello(body: &[u8]) -> Result<Identity, &'static str> {
    let rest = body.strip_prefix(MAGIC).ok_or("it does not speak this protocol")?;
    let (version, rest) = rest.split_first_chunk::<2>().ok_or("its hello is too short")?;
    if u16::from_be_bytes(*version) != VERSION {
        return Err("it speaks another version of the peer protocol; upgrade one of the two");
    }
    let mut rest = rest.get(NONCE_BYTES..).ok_or("its hello is too short")?;
    let mut name = || -> Option<String> {
        let (length, tail) = rest.split_first()?;
        let (name, tail) = tail.split_at_checked(usize::from(*length))?;
        rest = tail;
        String::from_utf8(name.to_vec()).ok().filter(|name| is_name(name))
    };
    let identity = match (name(), name(), name()) {
        (Some(cluster), Some(node), Some(address)) => Identity { cluster, node, address },
        _ => return Err("a name in its hello cannot be read"),
    };
    if rest.is_empty() { Ok(identity) } else { Err("its hello is too long") }
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, kind: u8, body: &[u8]) -> io::Result<()> {
    let length = u16::try_from(body.len()).map_err(io::Error::other)?;
    let mut message = Vec::with_capacity(body.len() + 3);
    message.push(kind);
    message.extend_from_slice(&length.to_be_bytes());
    message.extend_from_slice(body);
    stream.write_all(&message).await?;
    stream.flush().await
}

async fn receive<S: AsyncRead + Unpin>(stream: &mut S, expected: u8) -> Result<Vec<u8>, HandshakeError> {
    let mut head = [0_u8; 3];
    stream.read_exact(&mut head).await?;
    let [kind, high, low] = head;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if (kind != expected && kind != REFUSE) || length > MESSAGE_BYTES_MAX {
        return Err(HandshakeError::Refused("it does not speak this protocol".to_owned()));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    if kind == REFUSE {
        let text = String::from_utf8_lossy(&body);
        let why = text.chars().filter(|c| !c.is_control()).take(REASON_BYTES_MAX).collect();
        return Err(HandshakeError::RefusedByPeer(why));
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(address: &str) -> Identity {
        Identity { cluster: "c".to_owned(), node: "n".to_owned(), address: address.to_owned() }
    }

    #[test]
    fn no_cut_or_changed_hello_panics_or_is_taken_for_another_member() {
        let body = hello(&identity("host:1")).unwrap();
        assert_eq!(parse_hello(&body).unwrap(), identity("host:1"));
        for length in 0..body.len() {
            assert!(parse_hello(&body[..length]).is_err());
        }
        for position in 0..body.len() {
            let mut changed = body.clone();
            changed[position] = 0xff;
            let _ = parse_hello(&changed);
        }
        assert!(parse_hello(&[body, vec![0]].concat()).is_err());
    }

    #[tokio::test]
    async fn a_proof_sent_back_to_its_maker_is_refused() {
        let key = Key::from_secret("secret");
        let (mut near, mut far) = tokio::io::duplex(4096);
        let mirror = tokio::spawn(async move {
            // Answers with a hello of its own, then reflects the dialer's proof.
            let _ = receive(&mut far, HELLO).await.unwrap();
            send(&mut far, HELLO, &hello(&identity("b")).unwrap()).await.unwrap();
            let proof = receive(&mut far, PROOF).await.unwrap();
            send(&mut far, PROOF, &proof).await.unwrap();
        });
        let outcome = dial(&mut near, &identity("a"), &key, "b").await;
        assert!(matches!(outcome, Err(HandshakeError::Refused(_))));
        mirror.await.unwrap();
    }
}
