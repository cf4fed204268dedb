//! Clients that ask for a token, or bring one, and have to wait until the router knows enough of the servers.

use std::sync::atomic::Ordering;

use super::{Work, Worker};
use crate::pace::Wish;
use crate::wire::messages::Complaint;

impl Worker {
    /// The statement at hand is answered when more is known. Gives false: nothing goes on until then.
    pub(super) fn unsettled(&mut self, slot: usize) -> bool {
        let hold = self.settings.failover_hold;
        let Some(client) = self.clients.get_mut(slot) else { return false };
        let until = *client.wait_until.get_or_insert(self.now + hold);
        if until <= self.now {
            let message = format!("the cluster had no leader whose position is known for {hold:?}");
            self.dismiss(slot, &Complaint::fatal("57P03", message));
            return false;
        }
        client.waits = true;
        let id = client.id(slot);
        self.unsettled.push_back((until, id));
        if let Some(inbox) = self.shared.threads.get(usize::from(self.number)) {
            inbox.waits.store(true, Ordering::SeqCst);
        }
        self.shared.pace.wish(Wish::Urgent, self.shared.ms_of(self.now));
        false
    }

    /// A statement of a client was answered: it waits for nothing any more.
    pub(super) fn settled(&mut self, slot: usize) {
        if let Some(client) = self.clients.get_mut(slot) {
            client.wait_until = None;
        }
    }

    /// More may be known: those who wait for that try again.
    pub(super) fn look_at_unsettled(&mut self) {
        for (until, id) in std::mem::take(&mut self.unsettled) {
            let waits = |client: &&mut super::Client| {
                client.serial == id.serial && client.waits && client.wait_until == Some(until)
            };
            let Some(client) = self.clients.get_mut(id.slot).filter(waits) else { continue };
            client.waits = false;
            client.resumes = true;
            self.work.push_back(Work::Client(id.slot));
        }
    }
}
