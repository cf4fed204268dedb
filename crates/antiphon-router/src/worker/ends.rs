//! The ends: a link that died, a client that left, a statement that is cancelled.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::client::Phase;
use super::link::{ServerLink, Stage};
use super::{Work, Worker};
use crate::loss::{self, Verdict};
use crate::shared::{Ask, Place};

/// How often it is looked for links that are to be closed.
const RETIRE_LOOK: Duration = Duration::from_secs(1);

impl Worker {
    /// A link is of no use any more: its client is told what that means, and its place is given back.
    pub(super) fn drop_link(&mut self, slot: usize, serial: u64) {
        if self.links.get(slot).is_none_or(|link| link.serial != serial) {
            return;
        }
        let Some(mut link) = self.links.try_remove(slot) else { return };
        // Closing the socket does it, too; an error changes nothing.
        let _ = self.poll.registry().deregister(&mut link.socket.tcp);
        link.socket.part(&link.out);
        if link.stage.is_opening() {
            self.could_not_open(link.pool);
        } else if let Place::Follower(address) = link.key_of.place
            && link.hung_up
            && link.wire.farewell.as_ref().is_none_or(|farewell| farewell.code != "40001")
        {
            self.ban(address);
        }
        self.forget_idle(link.pool, slot);
        if let Some(client) = link.client {
            self.lost_link(client, &link.wire, link.epoch < self.target.epoch);
        }
        self.gave_up(link.pool);
    }

    /// Whether a link has lived for as long as one may.
    pub(super) fn is_too_old(&self, link: &ServerLink) -> bool {
        let most = self.settings.server_lifetime;
        !most.is_zero() && self.now.saturating_duration_since(link.since) >= most
    }

    /// Closes links that nobody has used for long, or that are too old.
    pub(super) fn retire_links(&mut self) {
        if self.retire_at > self.now {
            return;
        }
        self.retire_at = self.now + RETIRE_LOOK;
        let most = self.settings.server_idle_timeout;
        let retires = |link: &ServerLink| {
            let unused =
                link.client.is_none() && matches!(link.stage, Stage::Ready) && link.wire.answers.is_empty();
            let long = !most.is_zero() && self.now.saturating_duration_since(link.idle_since) >= most;
            unused && (long || self.is_too_old(link))
        };
        let old = self.links.iter().filter(|(_, link)| retires(link));
        let old: Vec<_> = old.map(|(slot, link)| (slot, link.serial)).collect();
        for (slot, serial) in old {
            self.drop_link(slot, serial);
        }
    }

    /// A client's link is of no use to it any more; the link itself lives on.
    pub(super) fn lose_to(&mut self, client: usize, link: usize) {
        let Some(lost) = self.links.get(link) else { return };
        let Some(waits) = self.clients.get_mut(client) else { return };
        let verdict = loss::lose(&mut waits.session, &lost.wire, false);
        self.lost(client, verdict, None);
    }

    fn lost_link(&mut self, slot: usize, link: &crate::session::Link, deposed: bool) {
        let Some(client) = self.clients.get_mut(slot) else { return };
        let verdict = loss::lose(&mut client.session, link, deposed);
        self.lost(slot, verdict, link.farewell.as_ref().map(|farewell| farewell.code.as_str()));
    }

    fn lost(&mut self, slot: usize, verdict: Verdict, said: Option<&str>) {
        let Some(client) = self.clients.get_mut(slot) else { return };
        client.leave_link(&self.reading);
        // What came behind a read that is on its way has waited.
        client.resumes |= std::mem::take(&mut client.busy);
        let (pool, changed) = (client.pool, std::mem::take(&mut client.session.changed_schema));
        tracing::debug!(
            told = matches!(verdict, Verdict::Goes(ref bytes) if !bytes.is_empty()),
            said,
            "a client lost its link"
        );
        match verdict {
            Verdict::Goes(bytes) => {
                self.tell(slot, &bytes);
                self.work.push_back(Work::Client(slot));
            }
            Verdict::Again(mut bytes) => {
                bytes.append(&mut client.inbox);
                client.inbox = bytes;
                client.resumes = true;
                self.work.push_back(Work::Client(slot));
            }
            Verdict::Ends(bytes) => self.dismiss_with(slot, &bytes),
        }
        if changed {
            self.tell_of_schema(pool);
        }
    }

    /// A client has left.
    pub(super) fn close_client(&mut self, slot: usize, serial: u64) {
        if self.clients.get(slot).is_none_or(|client| client.serial != serial) {
            return;
        }
        let Some(mut client) = self.clients.try_remove(slot) else { return };
        // Closing the socket does it, too; an error changes nothing.
        let _ = self.poll.registry().deregister(&mut client.socket.tcp);
        client.socket.part(&client.out);
        if self.shared.clients.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.shared.emptied.notify_one();
        }
        let link = client.link;
        client.leave_link(&self.reading);
        if client.session.changed_schema {
            self.tell_of_schema(client.pool);
        }
        let Some(number) = link else { return };
        let Some(link) = self.links.get_mut(number) else { return };
        link.client = None;
        let clean = !client.session.is_under_way()
            && client.session.rest.bytes == 0
            && link.wire.answers.is_empty()
            && link.wire.rest.bytes == 0
            && link.out.is_empty()
            && link.cancels == 0
            && matches!(client.phase, Phase::Session);
        if !clean {
            // Ends its transaction, which nobody waits for.
            self.work.push_back(Work::Drop(number, link.serial));
            return;
        }
        // Only a pinned session still has a link between two transactions.
        link.stage = Stage::Reset;
        let query = link.wire.reset(self.defaults.clone());
        let serial = link.serial;
        self.openings.push_back((self.now + super::openings::OPENING_MAX, number, serial));
        self.send(number, &query);
    }

    /// Somebody wants the statement of a client cancelled.
    pub(super) fn cancel(&mut self, process: u32, key: &[u8], forwarded: bool) {
        let slot = (process & 0xff_ffff) as usize;
        let Some(client) = self.clients.get(slot).filter(|client| !key.is_empty() && client.key == key)
        else {
            if !forwarded {
                self.shared.forward(process, key.to_vec());
            }
            return;
        };
        let Some(number) = client.link else { return };
        let Some(link) = self.links.get_mut(number).filter(|link| matches!(link.stage, Stage::Ready)) else {
            return;
        };
        let ask = Ask::Cancel {
            thread: self.number,
            link: (number, link.serial),
            server: link.server,
            process: link.process,
            key: link.key.clone(),
        };
        if self.shared.control.try_send(ask).is_ok() {
            link.cancels += 1;
        }
    }

    /// A cancel request has been dealt with.
    pub(super) fn cancelled(&mut self, slot: usize, serial: u64) {
        let Some(link) = self.links.get_mut(slot).filter(|link| link.serial == serial) else { return };
        link.cancels = link.cancels.saturating_sub(1);
        if link.cancels == 0 && matches!(link.stage, Stage::Cancelling) {
            self.offer(slot);
        }
    }
}
