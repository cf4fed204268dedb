//! A client: its socket and how far it has come, from its first byte to its session, and where it is served.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::console::Console;
use super::hold::Hold;
use super::socket::Socket;
use crate::positions::{Follower, Reading};
use crate::routes::Reason;
use crate::scram::Exchange;
use crate::secrets::Hash;
use crate::session::{Reads, Session};
use crate::shared::ClientId;
use crate::stats::Asked;

/// What is known of a client before it has a session.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// Who it says it is.
    pub user: String,
    /// The database.
    pub database: String,
    /// The protocol's minor version.
    pub minor: u16,
    /// It may prove its password by an MD5 hash.
    pub md5: bool,
}

/// How far a client has come.
#[derive(Debug)]
pub enum Phase {
    /// Nothing is known; it has asked for encryption so many times.
    Opening(u8),
    /// It began with TLS, unasked, and has not said anything inside.
    Direct,
    /// Its user is being looked up.
    Lookup(Box<Wish>),
    /// It shall begin the SCRAM exchange, against this verifier.
    Sasl(Box<(Wish, crate::scram::Verifier)>),
    /// It shall prove its password.
    Proof(Box<(Wish, Exchange)>),
    /// It shall prove that it knows this hash, with this salt.
    Md5(Box<(Wish, Hash, [u8; 4])>),
    /// It is who it says, and waits until a server has told of itself.
    Greeting(Box<Wish>),
    /// It has a session.
    Session,
    /// It uses the console.
    Console(Box<Console>),
}

/// What a session uses its link for.
#[derive(Debug)]
pub enum Errand {
    /// It has none, and waits for none.
    Nothing,
    /// At the leader.
    Leader,
    /// Reading from a follower, whose feed was at this connection when it was chosen.
    Follower(Arc<Follower>, u64),
}

impl Errand {
    /// Whether what it was decided on is still so.
    pub fn still_holds(&self, now_ms: u64) -> bool {
        match self {
            Self::Nothing | Self::Leader => true,
            Self::Follower(follower, connection) => {
                follower.feed.connection() == *connection && follower.is_well(now_ms)
            }
        }
    }
}

/// A client.
pub struct Client {
    /// Its socket.
    pub socket: Socket,
    /// Unlike that of any other client of the thread.
    pub serial: u64,
    /// When it came.
    pub since: Instant,
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
    /// What its session does there.
    pub errand: Errand,
    /// What it waits for at a server.
    pub asked: Asked,
    /// It waits for a link.
    pub waits: bool,
    /// It waits because nobody leads.
    pub hold: Option<Hold>,
    /// Until when its next read may wait for a position; none if it has not waited.
    pub wait_until: Option<Instant>,
    /// Its next round goes to the leader, for this reason.
    pub detour: Option<Reason>,
    /// Reads that went to the leader because no follower was far enough, since the session's last write.
    pub misses: u32,
    /// Its reads do not wait for a position before this: the last one waited in vain.
    pub hurries_until: Option<Instant>,
    /// It sent more before what is on its way to a follower was answered.
    pub busy: bool,
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
    /// Its session has no link any more, or waits for none: what it did there is the floor of its next reads.
    pub fn leave_link(&mut self, reading: &Reading) {
        self.link = None;
        self.fresh_link = false;
        self.asked.forget();
        let session = &mut self.session;
        let saw = std::mem::take(&mut session.saw);
        match std::mem::replace(&mut self.errand, Errand::Nothing) {
            Errand::Nothing => {}
            Errand::Leader => session.floor.used_leader(reading, saw),
            Errand::Follower(follower, connection) => {
                follower.busy.fetch_sub(1, Ordering::Relaxed);
                session.floor.used_follower(reading, &follower, connection);
                session.reads = Reads::No;
            }
        }
    }

    /// Its session keeps its link between two transactions: what it did there is the floor of what follows.
    pub fn keeps_link(&mut self, reading: &Reading) {
        let session = &mut self.session;
        if matches!(self.errand, Errand::Leader) && !session.is_under_way() {
            session.floor.used_leader(reading, std::mem::take(&mut session.saw));
        }
    }

    /// Its name in its thread.
    pub fn id(&self, slot: usize) -> ClientId {
        ClientId { slot, serial: self.serial }
    }
}
