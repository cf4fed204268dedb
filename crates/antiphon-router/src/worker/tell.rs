//! What a thread tells of itself when the console or a page of metrics asks: its pools, clients and links.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::Worker;
use super::client::{Client, Phase};
use super::link::{ServerLink, Stage};
use super::pools::Pool;
use crate::orders::{PoolTold, Socket, Told, ago, socket_id};

/// A pool before its clients and links are counted.
fn pool_told(pool: &Pool, now: Instant) -> PoolTold {
    let first = pool.waiters().map(|waiter| waiter.since).min();
    PoolTold {
        key: pool.key.clone(),
        clients_active: 0,
        clients_waiting: 0,
        waits: first.map_or(Duration::ZERO, |at| ago(now, at)),
        active: 0,
        being_canceled: 0,
        idle: 0,
        tested: 0,
        login: 0,
        counts: pool.stats.counts,
        recent: pool.stats.recent(now),
        queries: pool.stats.queries,
        wait_times: pool.stats.waits,
    }
}

impl Worker {
    /// All of its pools, and if `each` all clients and links.
    pub(super) fn told(&self, each: bool) -> Told {
        let mut told = Told {
            pools: self.pools.iter().map(|pool| pool_told(pool, self.now)).collect(),
            ..Told::default()
        };
        let since: HashMap<usize, Instant> = match each {
            true => self
                .pools
                .iter()
                .flat_map(Pool::waiters)
                .map(|waiter| (waiter.client.slot, waiter.since))
                .collect(),
            false => HashMap::new(),
        };
        for (slot, client) in &self.clients {
            match &client.phase {
                Phase::Session | Phase::Greeting(_) => {
                    let Some(pool) = told.pools.get_mut(client.pool) else { continue };
                    if client.waits || !matches!(client.phase, Phase::Session) {
                        pool.clients_waiting += 1;
                    } else {
                        pool.clients_active += 1;
                    }
                    if each {
                        told.clients.push(self.client_told(client, since.get(&slot).copied()));
                    }
                }
                Phase::Console(_) => {}
                Phase::Opening(_)
                | Phase::Direct
                | Phase::Lookup(_)
                | Phase::Sasl(_)
                | Phase::Proof(_)
                | Phase::Md5(_) => {
                    told.logging_in += 1;
                }
            }
        }
        for (_, link) in &self.links {
            let Some(pool) = told.pools.get_mut(link.pool) else { continue };
            match (&link.stage, link.client) {
                (Stage::Asking(_) | Stage::Login(_), _) => pool.login += 1,
                (Stage::Reset | Stage::Cancelling, _) => pool.tested += 1,
                (Stage::Ready, Some(_)) => pool.active += 1,
                (Stage::Ready, None) => pool.idle += 1,
            }
            pool.being_canceled += usize::from(link.client.is_some() && link.cancels > 0);
            if each {
                told.links.push(self.link_told(link));
            }
        }
        told
    }

    fn client_told(&self, client: &Client, waits_since: Option<Instant>) -> Socket {
        let key = self.pools.get(client.pool).map(|pool| &pool.key);
        let link = client.link.and_then(|link| self.links.get(link));
        let waits = client.waits || matches!(client.phase, Phase::Greeting(_));
        let asked = client.asked.round_at.map(|at| ago(self.now, at));
        Socket {
            id: socket_id(self.number, client.serial),
            user: key.map(|key| key.user.clone()).unwrap_or_default(),
            database: key.map(|key| key.database.clone()).unwrap_or_default(),
            state: match (waits, link) {
                (true, _) => "waiting",
                (false, Some(_)) => "active",
                (false, None) => "idle",
            },
            peer: client.socket.tcp.peer_addr().ok(),
            local: client.socket.tcp.local_addr().ok(),
            age: ago(self.now, client.since),
            asked,
            waits: waits_since.filter(|_| waits).map_or(Duration::ZERO, |at| ago(self.now, at)),
            close_needed: client.leaves,
            other: link.map(|link| socket_id(self.number, link.serial)),
            process: 0,
            tls: client.socket.tls_name(),
            application_name: client
                .session
                .parameters
                .shown("application_name")
                .unwrap_or_default()
                .to_owned(),
            prepared: client.session.named(),
            pinned: client.session.pinned,
        }
    }

    fn link_told(&self, link: &ServerLink) -> Socket {
        let client = link.client.and_then(|client| self.clients.get(client));
        let local: Option<SocketAddr> = link.socket.tcp.local_addr().ok();
        Socket {
            id: socket_id(self.number, link.serial),
            user: link.key_of.user.clone(),
            database: link.key_of.database.clone(),
            state: match (&link.stage, client) {
                (Stage::Asking(_) | Stage::Login(_), _) => "new",
                (Stage::Reset | Stage::Cancelling, _) => "tested",
                (Stage::Ready, Some(_)) if link.cancels > 0 => "being_canceled",
                (Stage::Ready, Some(_)) => "active",
                (Stage::Ready, None) => "idle",
            },
            peer: Some(link.server),
            local,
            age: ago(self.now, link.since),
            asked: client.and_then(|client| client.asked.round_at).map(|at| ago(self.now, at)),
            waits: Duration::ZERO,
            close_needed: self.is_outlived(link),
            other: client.map(|client| socket_id(self.number, client.serial)),
            process: link.process,
            tls: link.socket.tls_name(),
            application_name: link.wire.parameters.shown("application_name").unwrap_or_default().to_owned(),
            prepared: link.wire.prepared.len(),
            pinned: client.and_then(|client| client.session.pinned),
        }
    }
}
