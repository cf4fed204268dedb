//! Links that are being opened: begun, logged in, refused, given up.
//!
//! One to the leader is tried until somebody gives up waiting. One to a follower is tried once: whoever waits for it
//! goes elsewhere, and nobody goes to that follower for a while.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Interest, Token};

use super::client::{Client, Phase};
use super::link::{ServerLink, Stage};
use super::pools::Waiter;
use super::socket::Socket;
use super::{LINK, Work, Worker};
use crate::login::ServerLogin;
use crate::routes::Reason;
use crate::session::{Farewell, Link};
use crate::settings::Encryption;
use crate::shared::{Place, PoolKey, lock};
use crate::wire::messages::{self, Complaint};

/// The pause before another attempt to reach a server that could not be reached.
const RETRY_PAUSE: Duration = Duration::from_millis(25);
/// How long logging in to a server, or cleaning a link, may take.
pub(super) const OPENING_MAX: Duration = Duration::from_secs(5);

impl Worker {
    /// Opens links as long as somebody waits for one; if no more may be opened, queues for those of others.
    pub(super) fn open_links(&mut self, number: usize) {
        loop {
            let now = self.now;
            let Some(server) = self.server_of(number) else { return };
            let Some(pool) = self.pools.get_mut(number) else { return };
            if pool.retry_at.is_some_and(|at| at > now) || pool.opening >= pool.wants() {
                return;
            }
            if !pool.budget.take(self.settings.pool_size) {
                return self.queue(number);
            }
            pool.opening += 1;
            if let Err(error) = self.open_link(number, server) {
                tracing::debug!(%error, %server, "could not begin to connect to a server");
                self.could_not_open(number);
                return self.gave_up(number);
            }
        }
    }

    fn open_link(&mut self, number: usize, server: SocketAddr) -> std::io::Result<()> {
        let mut nonce = [0; crate::scram::NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(|error| std::io::Error::other(error.to_string()))?;
        let mut stream = TcpStream::connect(server)?;
        self.serial += 1;
        let entry = self.links.vacant_entry();
        let slot = entry.key();
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(slot << 2 | LINK), interest)?;
        stream.set_nodelay(true)?;
        let Some(pool) = self.pools.get(number) else { return Ok(()) };
        let credentials = lock(&pool.home.credentials).clone();
        let login = Box::new(ServerLogin::new(credentials, nonce));
        let (stage, out) = match self.settings.servers_tls.encryption {
            Encryption::Off => (Stage::Login(login), first_packet(&pool.key)),
            Encryption::Preferred | Encryption::Required => (Stage::Asking(login), messages::tls_request()),
        };
        entry.insert(ServerLink {
            socket: Socket::new(stream),
            serial: self.serial,
            pool: number,
            key_of: pool.key.clone(),
            since: self.now,
            idle_since: self.now,
            epoch: self.target.epoch,
            renewals: self.shared.gates.renewals(&pool.gate),
            server,
            stage,
            wire: Link::new(self.defaults.clone()),
            client: None,
            // Written when the connection stands.
            out,
            inbox: Vec::new(),
            readable: false,
            hung_up: false,
            process: 0,
            key: Vec::new(),
            silent_looks: 0,
            cancels: 0,
        });
        self.openings.push_back((self.now + OPENING_MAX, slot, self.serial));
        Ok(())
    }

    /// An attempt to open a link failed: the next one waits a moment, and who waits for a follower goes elsewhere.
    pub(super) fn could_not_open(&mut self, number: usize) {
        let retry_at: Option<Instant> = Some(self.now + RETRY_PAUSE);
        let Some(pool) = self.pools.get_mut(number) else { return };
        pool.opening = pool.opening.saturating_sub(1);
        pool.retry_at = retry_at;
        pool.unreachable = true;
        if let Place::Follower(address) = pool.key.place {
            self.ban(address);
            return self.detour_all(number, Reason::NoneWell);
        }
        self.hold_all(number);
    }

    /// A link has logged in.
    pub(super) fn opened(&mut self, slot: usize, greeting: Vec<(String, String)>) {
        let Some(number) = self.links.get(slot).map(|link| link.pool) else { return };
        let Some(pool) = self.pools.get_mut(number) else { return };
        pool.opening = pool.opening.saturating_sub(1);
        pool.unreachable = false;
        *lock(&pool.budget.greeting) = Some(Arc::new(greeting));
        for Waiter { client: id, .. } in std::mem::take(&mut pool.greeting) {
            let waits =
                |client: &Client| client.serial == id.serial && matches!(client.phase, Phase::Greeting(_));
            if self.clients.get(id.slot).is_some_and(waits) {
                self.greeted(id.slot);
            }
        }
        self.offer(slot);
    }

    /// A server refused a login.
    pub(super) fn opening_failed(&mut self, slot: usize, why: &Farewell) {
        let Some(link) = self.links.get(slot) else { return };
        let (number, serial) = (link.pool, link.serial);
        self.work.push_back(Work::Drop(slot, serial));
        // Starting, stopping, full or a standby yet: this passes.
        if why.code.starts_with("57P") || why.code == "53300" {
            return;
        }
        let Some(pool) = self.pools.get_mut(number) else { return };
        tracing::info!(
            user = pool.key.user,
            database = pool.key.database,
            place = ?pool.key.place,
            why.code,
            why.message,
            "a server refused a login"
        );
        if pool.key.place != Place::Leader {
            // Dropping the link sends who waits elsewhere.
            return;
        }
        // What was proved once may not be the password any more.
        *lock(&pool.budget.credentials) = None;
        let complaint = Complaint::fatal("28000", "the server did not let this user in")
            .with_detail(Some(format!("The server said: {} ({})", why.message, why.code)));
        self.give_up_all(number, &complaint);
    }

    /// Nobody who waits for links of a pool will get one.
    pub(super) fn give_up_all(&mut self, number: usize, complaint: &Complaint) {
        let Some(pool) = self.pools.get_mut(number) else { return };
        let waiting = std::mem::take(&mut pool.waiting).into_iter().chain(std::mem::take(&mut pool.greeting));
        for waiter in waiting.collect::<Vec<_>>() {
            self.give_up_waiting(waiter.client, complaint);
        }
    }
}

/// What a session at a server begins with.
pub(super) fn first_packet(key: &PoolKey) -> Vec<u8> {
    messages::start(&[("user", &key.user), ("database", &key.database)])
}
