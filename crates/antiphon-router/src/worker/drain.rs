//! Before the end: nobody is let in, and each client goes when it has nothing under way.

use super::Worker;
use super::client::{Client, Phase};
use crate::wire::messages::Complaint;

/// The last that clients hear.
pub(super) fn farewell() -> Complaint {
    Complaint::fatal("57P01", "the router is ending; connect again")
}

/// Whether a client asks nothing and nothing of it is under way.
fn is_done(client: &Client) -> bool {
    match client.phase {
        Phase::Session => {
            let session = &client.session;
            let rests = client.inbox.is_empty() && client.out.is_empty() && !client.waits;
            rests && !session.is_under_way() && !session.reports.due
        }
        // Has not been let in, or only looks.
        _ => true,
    }
}

impl Worker {
    /// Closes the listeners, and the clients that are done.
    pub(super) fn drain(&mut self) {
        // Who waits in the queue of a listener would be refused with it.
        self.accept();
        for mut listener in std::mem::take(&mut self.listeners) {
            if let Err(error) = self.poll.registry().deregister(&mut listener) {
                tracing::debug!(%error, "a listener could not be deregistered before it was closed");
            }
        }
        self.accepts_at = None;
        let clients: Vec<usize> = self.clients.iter().map(|(slot, _)| slot).collect();
        clients.into_iter().for_each(|slot| self.leave_if_done(slot));
    }

    /// If the router is about to end and a client is done, that goes.
    pub(super) fn leave_if_done(&mut self, slot: usize) {
        if self.shared.drains.load(std::sync::atomic::Ordering::Relaxed)
            && self.clients.get(slot).is_some_and(|client| !client.leaves && is_done(client))
        {
            self.dismiss(slot, &farewell());
        }
    }
}
