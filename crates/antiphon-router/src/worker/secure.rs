//! TLS on both sides of a thread: when it begins, what a login is bound to, and what becomes of who fails at it.
//!
//! Nothing that was sent in the clear may pass for something that was said inside: whatever stands behind the
//! question for TLS, or behind the answer to it, ends the connection.

use super::client::Phase;
use super::link::Stage;
use super::login::malformed;
use super::openings::first_packet;
use super::{Work, Worker};
use crate::settings::Encryption;
use crate::shared::Place;
use crate::wire::messages::Complaint;

/// The first byte of TLS; as the first of a packet's length it would be far too long.
const HANDSHAKE: u8 = 0x16;

impl Worker {
    /// Whether a client is inside TLS.
    pub(super) fn is_secure(&self, slot: usize) -> bool {
        self.clients.get(slot).is_some_and(|client| client.socket.is_secure())
    }

    /// Whether a client that has said nothing else begins with TLS, and may.
    pub(super) fn begins_with_tls(&self, slot: usize, input: &[u8]) -> bool {
        !self.is_secure(slot) && input.first() == Some(&HANDSHAKE) && self.settings.clients_tls.is_some()
    }

    /// A client has asked for TLS, and `behind` is what it has sent after that.
    pub(super) fn answer_tls(&mut self, slot: usize, asked: u8, behind: &[u8]) -> Result<bool, Complaint> {
        if !behind.is_empty() {
            let why =
                "Either the client is defective, or somebody between it and the router has put them there.";
            let complaint = malformed("received unencrypted data after the request for TLS");
            return Err(complaint.with_detail(Some(why.to_owned())));
        }
        self.tell(slot, b"S");
        self.secure_client(slot, Phase::Opening(asked), &[]);
        Ok(false)
    }

    /// Goes on inside TLS with a client; `first` is what it has sent of that already.
    pub(super) fn secure_client(&mut self, slot: usize, phase: Phase, first: &[u8]) {
        let Some(clients) = &self.settings.clients_tls else { return };
        let Some(client) = self.clients.get_mut(slot) else { return };
        client.phase = phase;
        client.socket.can_be_bound_to(clients.end_point.clone());
        let tls = clients.tls.session().map_err(|error| error.to_string());
        if let Err(why) = tls.and_then(|tls| client.socket.secure(tls, first, &mut client.out)) {
            tracing::info!(why, "a client is closed: no TLS with it");
            self.work.push_back(Work::Close(slot, client.serial));
        }
    }

    /// A server has answered whether it speaks TLS.
    pub(super) fn link_asked(&mut self, slot: usize, input: &[u8]) {
        let servers = &self.settings.servers_tls;
        let Some(link) = self.links.get_mut(slot) else { return };
        let begun = match input {
            [b'S'] => {
                let tls = servers.tls.session(&self.shared.host(link.server));
                let tls = tls.map_err(|error| error.to_string());
                tls.and_then(|tls| link.socket.secure(tls, &[], &mut link.out))
            }
            // Whoever asked may have been told meanwhile that it need not.
            [b'N'] if servers.encryption != Encryption::Required => Ok(()),
            [b'N'] => {
                Err("it speaks no TLS, which server_tls_sslmode asks for; set ssl = on there".to_owned())
            }
            // It cannot take anybody at the moment.
            [b'E', ..] => return self.work.push_back(Work::Drop(slot, link.serial)),
            _ => Err("it answered the request for TLS with more than that, in the clear".to_owned()),
        };
        if let Err(why) = begun {
            return self.not_secured(slot, &why);
        }
        if let Stage::Asking(login) = std::mem::replace(&mut link.stage, Stage::Ready) {
            link.stage = Stage::Login(login);
        }
        // Inside TLS it goes when the server has proven itself.
        let first = first_packet(&link.key_of);
        self.send(slot, &first);
    }

    /// There is no TLS with a server. That does not pass by itself, so whoever waits for it at the leader is told;
    /// at a follower the leader answers instead.
    pub(super) fn not_secured(&mut self, slot: usize, why: &str) {
        let Some(link) = self.links.get(slot) else { return };
        let (number, server, opens) = (link.pool, link.server, link.stage.is_opening());
        tracing::warn!(%server, why, "no TLS with a server; its connection is closed");
        self.work.push_back(Work::Drop(slot, link.serial));
        if opens && self.pools.get(number).is_some_and(|pool| pool.key.place == Place::Leader) {
            let complaint = Complaint::fatal("08001", "the connection to the server could not be secured");
            self.give_up_all(number, &complaint.with_detail(Some(format!("The server at {server}: {why}"))));
        }
    }
}
