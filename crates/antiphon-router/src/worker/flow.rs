//! Reading and writing: one read of one side becomes one write of the other.
//!
//! Back-pressure without a system call: a side is not read while the other has not taken what it was given. Every
//! socket stays registered for both directions, edge-triggered, so the reading goes on when the rest has gone.

use super::client::Phase;
use super::link::Stage;
use super::reads::judge_of;
use super::socket::{Got, KEPT_BYTES};
use super::{READ_BYTES, Work, Worker};
use crate::downstream::{Downstream, Flow};
use crate::upstream::{Stop, Upstream};
use crate::wire::messages::{self, Complaint};

impl Worker {
    pub(super) fn flush_client(&mut self, slot: usize) {
        let Some(client) = self.clients.get_mut(slot) else { return };
        let waited = !client.out.is_empty();
        match client.socket.flush(&mut client.out) {
            Ok(true) if client.leaves => self.work.push_back(Work::Close(slot, client.serial)),
            Ok(true) if waited => {
                self.work.extend(client.link.map(Work::Link));
                self.leave_if_done(slot);
            }
            Ok(_) => {}
            Err(_) => self.work.push_back(Work::Close(slot, client.serial)),
        }
    }

    pub(super) fn flush_link(&mut self, slot: usize) {
        let Some(link) = self.links.get_mut(slot) else { return };
        let waited = !link.out.is_empty();
        match link.socket.flush(&mut link.out) {
            Ok(true) if waited => self.work.extend(link.client.map(Work::Client)),
            Ok(_) => {}
            // What the server said before it went is still to be read.
            Err(_) => (link.readable, link.hung_up) = (true, true),
        }
    }

    /// Sends bytes to a client.
    pub(super) fn tell(&mut self, slot: usize, bytes: &[u8]) {
        let Some(client) = self.clients.get_mut(slot) else { return };
        if client.socket.write(&mut client.out, bytes).is_err() {
            self.work.push_back(Work::Close(slot, client.serial));
        }
    }

    /// Sends a client its last message and closes it when that has gone.
    pub(super) fn dismiss(&mut self, slot: usize, complaint: &Complaint) {
        let mut bytes = Vec::new();
        messages::error(&mut bytes, complaint);
        self.dismiss_with(slot, &bytes);
    }

    pub(super) fn dismiss_with(&mut self, slot: usize, bytes: &[u8]) {
        self.tell(slot, bytes);
        let Some(client) = self.clients.get_mut(slot) else { return };
        client.leaves = true;
        if client.out.is_empty() {
            self.work.push_back(Work::Close(slot, client.serial));
        }
    }

    /// Sends bytes to a server.
    pub(super) fn send(&mut self, slot: usize, bytes: &[u8]) {
        let Some(link) = self.links.get_mut(slot) else { return };
        if link.socket.write(&mut link.out, bytes).is_err() {
            (link.readable, link.hung_up) = (true, true);
            self.work.push_back(Work::Link(slot));
        }
    }

    /// Reads a client until nothing is left, or what it needs is not there.
    pub(super) fn pump_client(&mut self, slot: usize) {
        loop {
            let Some(client) = self.clients.get_mut(slot) else { return };
            let at_work = match &client.phase {
                Phase::Lookup(_) | Phase::Greeting(_) => false,
                Phase::Console(console) => !console.is_at_work(),
                Phase::Opening(_)
                | Phase::Direct
                | Phase::Sasl(_)
                | Phase::Proof(_)
                | Phase::Md5(_)
                | Phase::Session => true,
            };
            let held = client.waits || client.busy;
            if held || client.leaves || !at_work || !client.out.is_empty() {
                // One that has gone is not served any more; what it sent before it went does not matter.
                if client.hung_up && (held || !at_work || client.leaves) {
                    self.work.push_back(Work::Close(slot, client.serial));
                }
                return;
            }
            let resumes = std::mem::take(&mut client.resumes) && !client.inbox.is_empty();
            let blocked =
                client.link.and_then(|link| self.links.get(link)).is_some_and(|link| !link.out.is_empty());
            if !resumes && (blocked || !client.readable) {
                return;
            }
            let mut buffer = std::mem::take(&mut self.buffer);
            let kept = client.inbox.len();
            if let Some(place) = buffer.get_mut(..kept) {
                place.copy_from_slice(&client.inbox);
            }
            client.inbox.clear();
            client.inbox.shrink_to(KEPT_BYTES);
            let got = match buffer.get_mut(kept..kept + READ_BYTES) {
                Some(room) if !resumes => {
                    client.socket.read(room, &mut self.sealed, &mut client.out, client.hung_up)
                }
                Some(_) | None => Got::Bytes(0, client.readable),
            };
            let serial = client.serial;
            match &got {
                Got::Bytes(bytes, more) => {
                    client.readable = *more;
                    let input = buffer.get(..kept + bytes).unwrap_or_default();
                    self.client_bytes(slot, input);
                }
                Got::Nothing | Got::End | Got::Broken(_) => {
                    client.readable = false;
                    client.inbox.extend_from_slice(buffer.get(..kept).unwrap_or_default());
                }
            }
            self.buffer = buffer;
            if let Got::Broken(why) = &got {
                tracing::info!(why, "a client is closed: no TLS with it");
            }
            if matches!(got, Got::End | Got::Broken(_)) {
                self.work.push_back(Work::Close(slot, serial));
                return;
            }
        }
    }

    fn client_bytes(&mut self, slot: usize, input: &[u8]) {
        let mut at = 0;
        loop {
            let Some(client) = self.clients.get(slot) else { return };
            let rest = input.get(at..).unwrap_or_default();
            let go_on = match client.phase {
                Phase::Session => self.session_bytes(slot, rest, &mut at),
                _ if rest.is_empty() => false,
                Phase::Console(_) => self.console_bytes(slot, rest, &mut at),
                _ => self.login_bytes(slot, rest, &mut at),
            };
            if !go_on {
                break;
            }
        }
        if let Some(client) = self.clients.get_mut(slot) {
            client.inbox.extend_from_slice(input.get(at..).unwrap_or_default());
        }
    }

    /// Moves what a session sent towards its server; whether to go on with what is left.
    fn session_bytes(&mut self, slot: usize, input: &[u8], at: &mut usize) -> bool {
        let Some(client) = self.clients.get_mut(slot) else { return false };
        self.out.clear();
        self.replies.clear();
        let mut link = client.link.and_then(|link| self.links.get_mut(link));
        if let Some(link) = link.as_mut().filter(|_| std::mem::take(&mut client.fresh_link)) {
            link.wire.take_up(&mut client.session, input, &mut self.out);
        }
        let (moved, stop) = Upstream {
            session: &mut client.session,
            link: link.as_mut().map(|link| &mut link.wire),
            statements: &mut self.statements,
            schemas: &self.shared.gates.schemas,
            judge: judge_of(&mut self.judges, &self.pools, client.pool),
            reading: self.settings.reads.as_ref().map(|_| &*self.reading),
            input,
            out: &mut self.out,
            replies: &mut self.replies,
        }
        .run();
        *at += moved;
        if let Some(pool) = self.pools.get_mut(client.pool) {
            pool.stats.counts.received += moved as u64;
        }
        if let Some(link) = link {
            client.session.again.sent(input.get(..moved).unwrap_or_default());
            client.asked.sent(client.session.in_flight(), self.now);
            let bytes = self.out.finish(input);
            if !bytes.is_empty() && link.socket.write(&mut link.out, bytes).is_err() {
                // What the server said before it went is still to be read, and says what became of this.
                (link.readable, link.hung_up) = (true, true);
                self.work.extend(client.link.map(Work::Link));
            }
        }
        if !self.replies.is_empty() {
            let replies = std::mem::take(&mut self.replies);
            self.tell(slot, &replies);
            self.replies = replies;
        }
        match stop {
            Stop::More => false,
            Stop::Answered => {
                self.settled(slot);
                true
            }
            Stop::Unsettled => self.unsettled(slot),
            Stop::Link => self.attach(slot, input.get(moved..).unwrap_or_default()),
            Stop::Busy => {
                if let Some(client) = self.clients.get_mut(slot) {
                    client.busy = true;
                }
                false
            }
            Stop::Moves | Stop::Misplaced => self.leave_follower(slot, stop == Stop::Misplaced),
            Stop::Goodbye => {
                let serial = self.clients.get(slot).map_or(0, |client| client.serial);
                self.work.push_back(Work::Close(slot, serial));
                *at += input.len() - moved;
                false
            }
            Stop::Refuse(complaint) => {
                tracing::info!(
                    message = complaint.message,
                    "a client is closed: it does not keep to the protocol"
                );
                self.dismiss(slot, &complaint);
                *at += input.len() - moved;
                false
            }
        }
    }

    /// Reads a link until nothing is left, or its client does not take it.
    pub(super) fn pump_link(&mut self, slot: usize) {
        loop {
            let Some(link) = self.links.get_mut(slot) else { return };
            let client = link.client.and_then(|client| self.clients.get(client));
            if !link.readable || client.is_some_and(|client| !client.out.is_empty()) {
                return;
            }
            let mut buffer = std::mem::take(&mut self.buffer);
            let kept = link.inbox.len();
            if let Some(place) = buffer.get_mut(..kept) {
                place.copy_from_slice(&link.inbox);
            }
            link.inbox.clear();
            link.inbox.shrink_to(KEPT_BYTES);
            let got = match buffer.get_mut(kept..kept + READ_BYTES) {
                Some(room) => link.socket.read(room, &mut self.sealed, &mut link.out, link.hung_up),
                None => Got::End,
            };
            let serial = link.serial;
            match &got {
                Got::Bytes(bytes, more) => {
                    link.readable = *more;
                    self.link_bytes(slot, buffer.get(..kept + bytes).unwrap_or_default());
                }
                Got::Nothing => {
                    link.readable = false;
                    link.inbox.extend_from_slice(buffer.get(..kept).unwrap_or_default());
                }
                Got::End | Got::Broken(_) => {}
            }
            self.buffer = buffer;
            if let Got::Broken(why) = &got {
                return self.not_secured(slot, why);
            }
            let dead = matches!(got, Got::End) || matches!(got, Got::Nothing) && self.is_gone(slot);
            if dead {
                self.work.push_back(Work::Drop(slot, serial));
                return;
            }
        }
    }

    /// Nothing is left to read of a link that is known to be closed.
    fn is_gone(&self, slot: usize) -> bool {
        self.links.get(slot).is_some_and(|link| link.hung_up)
    }

    pub(super) fn link_bytes(&mut self, slot: usize, input: &[u8]) {
        let Some(link) = self.links.get_mut(slot) else { return };
        match link.stage {
            Stage::Login(_) => return self.link_login(slot, input),
            Stage::Asking(_) => return self.link_asked(slot, input),
            Stage::Ready | Stage::Reset | Stage::Cancelling => {}
        }
        self.out.clear();
        let client = link.client;
        let mut to = client.and_then(|client| self.clients.get_mut(client));
        let (moved, flow) = Downstream {
            session: to.as_mut().map(|client| &mut client.session),
            link: &mut link.wire,
            interned: &mut self.interned,
            input,
            out: &mut self.out,
        }
        .run();
        link.inbox.extend_from_slice(input.get(moved..).unwrap_or_default());
        let (serial, resets) = (link.serial, matches!(link.stage, Stage::Reset));
        let reports = to.as_ref().is_some_and(|client| client.session.reports.due);
        if let Flow::Repeat(refusal) = flow {
            return self.repeat_at_leader(slot, refusal);
        }
        let bytes = self.out.finish(input);
        let tally = std::mem::take(&mut link.wire.tally);
        if std::mem::take(&mut link.wire.outdated) {
            self.shared.gates.schemas.changed();
        }
        if let Some(to) = to.filter(|_| !bytes.is_empty()) {
            if let Some(pool) = self.pools.get_mut(link.pool) {
                let in_flight = to.session.in_flight();
                pool.stats.answered(&mut to.asked, tally, bytes.len(), in_flight, self.now);
            }
            to.session.again.never();
            if to.socket.write(&mut to.out, bytes).is_err() {
                self.work.extend(client.map(|slot| Work::Close(slot, to.serial)));
            }
        }
        match flow {
            Flow::Free => self.release(slot),
            Flow::Reset if resets => self.offer(slot),
            Flow::On => self.go_on(client),
            // Repeated above.
            Flow::Reset | Flow::Repeat(_) => {}
            Flow::Failed => self.own_query_failed(slot),
            Flow::Broken(what) => {
                tracing::warn!(what, "a server does not keep to the protocol; its link is closed");
                self.work.push_back(Work::Drop(slot, serial));
            }
        }
        if let Some(client) = client.filter(|_| reports) {
            self.report(client);
        }
    }
}
