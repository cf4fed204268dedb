//! Before a planned hand-over: when nothing of this thread's sessions is under way on the leader, that is said.

use std::sync::Arc;

use super::Worker;
use crate::orders::{Order, Told};
use crate::shared::Place;

impl Worker {
    /// Says so when nothing is under way on the leader, which holds back what begins; never if somebody leads again
    /// before that.
    pub(super) fn rest(&mut self, order: &Arc<Order>) {
        if self.target.leader.is_none() {
            self.resting.push(order.clone());
        }
    }

    /// Says so now, if anybody wants to know.
    pub(super) fn say_if_at_rest(&mut self) {
        if self.resting.is_empty() || self.has_work_on_leader() {
            return;
        }
        for order in std::mem::take(&mut self.resting) {
            self.carried_out(&order, Told::default());
        }
    }

    fn has_work_on_leader(&self) -> bool {
        let mut to_leader = self.links.iter().filter(|(_, link)| link.key_of.place == Place::Leader);
        to_leader.any(|(_, link)| {
            let client = link.client.and_then(|client| self.clients.get(client));
            client.is_some_and(|client| client.session.is_under_way())
        })
    }
}
