//! Other settings: what a thread does at once when the router is told something else.

use super::Worker;
use super::link::ServerLink;
use crate::shared::ClientId;
use crate::wire::messages::Complaint;

impl Worker {
    /// What the router is told now holds for all that begins from here on.
    pub(super) fn take_settings(&mut self) {
        self.settings = self.shared.settings();
        for number in 0..self.pools.len() {
            self.shed(number);
        }
        // More may be opened than before.
        self.serve_all();
    }

    /// Whether a link that nobody uses is one more than there may be.
    pub(super) fn is_surplus(&self, link: &ServerLink) -> bool {
        let pool = self.pools.get(link.pool);
        pool.is_some_and(|pool| pool.budget.is_overdrawn(self.settings.pool_size))
    }

    /// Closes idle links of a pool as long as there are more than there may be.
    fn shed(&mut self, number: usize) {
        while let Some(pool) = self.pools.get(number)
            && pool.budget.is_overdrawn(self.settings.pool_size)
            && let Some(slot) = pool.idle.front().copied()
            && let Some(serial) = self.links.get(slot).map(|link| link.serial)
        {
            self.drop_link(slot, serial);
        }
    }

    /// The file was read again for a client of the console.
    pub(super) fn reloaded(&mut self, id: ClientId, done: Result<Vec<&'static str>, String>) {
        let answer = match done {
            Ok(waits) if waits.is_empty() => Ok(None),
            Ok(waits) => Ok(Some(format!("these wait for a restart of the router: {}", waits.join(", ")))),
            Err(why) => {
                let message = "the router's file was not taken over; all is as it was before";
                Err(Complaint::error("F0000", message).with_detail(Some(why)))
            }
        };
        self.answer_reload(id, answer);
    }
}
