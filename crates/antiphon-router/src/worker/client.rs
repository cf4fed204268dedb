//! A client: its socket and how far it has come, from its first byte to its session.

use mio::net::TcpStream;

use crate::scram::Exchange;
use crate::session::Session;
use crate::shared::ClientId;

/// What is known of a client before it has a session.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// Who it says it is.
    pub user: String,
    /// The database.
    pub database: String,
    /// The protocol's minor version.
    pub minor: u16,
}

/// How far a client has come.
#[derive(Debug)]
pub enum Phase {
    /// Nothing is known; it has asked for encryption so many times.
    Opening(u8),
    /// Its user is being looked up.
    Lookup(Box<Wish>),
    /// It shall begin the SCRAM exchange, against this verifier.
    Sasl(Box<(Wish, crate::scram::Verifier)>),
    /// It shall prove its password.
    Proof(Box<(Wish, Exchange)>),
    /// It is who it says, and waits until a server has told of itself.
    Greeting(Box<Wish>),
    /// It has a session.
    Session,
}

/// A client.
pub struct Client {
    /// Its socket.
    pub stream: TcpStream,
    /// Unlike that of any other client of the thread.
    pub serial: u64,
    /// How far it has come.
    pub phase: Phase,
    /// Its session; of no meaning before it has one.
    pub session: Session,
    /// Its pool, by the thread's number of it.
    pub pool: usize,
    /// Its link.
    pub link: Option<usize>,
    /// The link has been taken and not been told the session's settings yet.
    pub fresh_link: bool,
    /// It waits for a link.
    pub waits: bool,
    /// Bytes that it has not taken yet.
    pub out: Vec<u8>,
    /// Bytes that it sent and that wait: for a link, or for the rest of a message.
    pub inbox: Vec<u8>,
    /// What is in `inbox` can be gone on with.
    pub resumes: bool,
    /// There may be something to read.
    pub readable: bool,
    /// It has closed its side.
    pub hung_up: bool,
    /// It is closed as soon as `out` is empty.
    pub leaves: bool,
    /// What a cancel request for it must know.
    pub key: Vec<u8>,
}

impl Client {
    /// Its name in its thread.
    pub fn id(&self, slot: usize) -> ClientId {
        ClientId { slot, serial: self.serial }
    }
}
