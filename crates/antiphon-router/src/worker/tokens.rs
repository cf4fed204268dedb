//! Clients that ask for a token, or bring one, and have to wait until the router knows enough of the servers.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Work, Worker};
use crate::own;
use crate::pace::Wish;
use crate::positions::Token;
use crate::wire::messages::{self, Complaint};

/// How long a commit's answer is kept back at most until its position is known.
const REPORT_WAIT: Duration = Duration::from_secs(1);

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

    /// A session has committed: it is told where, and then that it is ready. The position is known a moment later.
    pub(super) fn report(&mut self, slot: usize) {
        let Some(client) = self.clients.get_mut(slot).filter(|client| client.session.reports.due) else {
            return;
        };
        let until = *client.wait_until.get_or_insert(self.now + REPORT_WAIT);
        let token = match client.session.floor.token(&self.reading) {
            Some(token) => token,
            None if until <= self.now => Token::unknown(self.reading.epoch),
            None => {
                client.waits = true;
                let id = client.id(slot);
                self.unsettled.push_back((until, id));
                if let Some(inbox) = self.shared.threads.get(usize::from(self.number)) {
                    inbox.waits.store(true, Ordering::SeqCst);
                }
                return self.shared.pace.wish(Wish::Urgent, self.shared.ms_of(self.now));
            }
        };
        client.session.reports.due = false;
        client.wait_until = None;
        let mut bytes = Vec::new();
        messages::parameter_status(&mut bytes, own::TOKEN, &token.to_string());
        messages::ready(&mut bytes, client.session.status.byte());
        self.tell(slot, &bytes);
        self.resume(slot);
        self.leave_if_done(slot);
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
            if client.session.reports.due {
                self.report(id.slot);
                continue;
            }
            client.resumes = true;
            self.work.push_back(Work::Client(id.slot));
        }
    }
}
