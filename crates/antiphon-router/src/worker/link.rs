//! A connection to a server: its socket, what it is good for at the moment, and what the protocol knows of it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Instant;

use super::socket::Socket;
use crate::login::ServerLogin;
use crate::session::Link;
use crate::shared::PoolKey;

/// What a link is good for.
#[derive(Debug)]
pub enum Stage {
    /// The server has been asked whether it speaks TLS; then it is logged in.
    Asking(Box<ServerLogin>),
    /// It is being logged in.
    Login(Box<ServerLogin>),
    /// It carries a session, or could.
    Ready,
    /// What a session left behind is being removed.
    Reset,
    /// Its session is done with it, but a cancel request for it is still on its way.
    Cancelling,
}

impl Stage {
    /// Whether it has never been good for anything yet.
    pub fn is_opening(&self) -> bool {
        match self {
            Self::Asking(_) | Self::Login(_) => true,
            Self::Ready | Self::Reset | Self::Cancelling => false,
        }
    }
}

/// A connection to a server.
pub struct ServerLink {
    /// Its socket.
    pub socket: Socket,
    /// Unlike that of any other link of the thread.
    pub serial: u64,
    /// Whose link it is, by the thread's number of the pool.
    pub pool: usize,
    /// Whose link it is, in every thread.
    pub key_of: PoolKey,
    /// When it was opened.
    pub since: Instant,
    /// When it was last used.
    pub idle_since: Instant,
    /// The epoch that it was opened in.
    pub epoch: u64,
    /// How often links had to be made anew when it was opened.
    pub renewals: u64,
    /// Its server.
    pub server: SocketAddr,
    /// What it is good for.
    pub stage: Stage,
    /// Its protocol state.
    pub wire: Link,
    /// The client that has it.
    pub client: Option<usize>,
    /// Bytes that its server has not taken yet.
    pub out: Vec<u8>,
    /// The beginning of a message that has not come whole.
    pub inbox: Vec<u8>,
    /// There may be something to read.
    pub readable: bool,
    /// The server has closed its side.
    pub hung_up: bool,
    /// The server's process.
    pub process: u32,
    /// What a cancel request has to know.
    pub key: Vec<u8>,
    /// How often in a row its server, a follower, was found silent.
    pub silent_looks: u32,
    /// Cancel requests on their way.
    pub cancels: u32,
}

/// Places of links that nobody uses; the one used last is taken first, so that the others grow old.
pub type Idle = VecDeque<usize>;
