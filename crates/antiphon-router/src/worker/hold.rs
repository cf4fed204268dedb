//! Clients that wait because nobody leads, or the leader cannot be reached: so many and no more. The others hear at
//! once that they cannot, and keep their connection.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Worker;
use super::client::Client;
use crate::session::Reads;
use crate::shared::Place;
use crate::wire::messages::Complaint;

/// A place among those who wait. It is free again when this is dropped.
#[derive(Debug)]
pub struct Hold(Arc<AtomicUsize>);

impl Hold {
    /// Takes a place; none if all are taken.
    fn take(held: &Arc<AtomicUsize>, max: usize) -> Option<Self> {
        let next = |count: usize| (count < max).then_some(count + 1);
        held.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next).ok().map(|_| Self(held.clone()))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Worker {
    /// A client is about to wait for a link of a pool: whether it may, or what it is told instead.
    pub(super) fn hold(&mut self, slot: usize, number: usize) -> Result<(), Complaint> {
        let Some(pool) = self.pools.get(number).filter(|pool| pool.key.place == Place::Leader) else {
            return Ok(());
        };
        if self.target.leader.is_some() && !pool.unreachable || self.is_paused(number) {
            return Ok(());
        }
        let max = self.settings.failover_hold_max;
        let Some(client) = self.clients.get_mut(slot).filter(|client| client.hold.is_none()) else {
            return Ok(());
        };
        client.hold = Hold::take(&self.shared.held, max);
        if client.hold.is_some() {
            return Ok(());
        }
        let message = "the cluster has no leader that can be reached, and no more clients may wait for one";
        let detail = format!("{max} clients wait (failover_hold_max); try again in a moment.");
        Err(Complaint::error("57P03", message).with_detail(Some(detail)))
    }

    /// Nobody serves those who wait for links of a pool any more: they need places, too, and those who get none go.
    pub(super) fn hold_all(&mut self, number: usize) {
        let Some(pool) = self.pools.get_mut(number).filter(|pool| pool.key.place == Place::Leader) else {
            return;
        };
        let waiting = std::mem::take(&mut pool.waiting);
        let mut kept = VecDeque::with_capacity(waiting.len());
        for waiter in waiting {
            let id = waiter.client;
            let waits = |client: &&mut Client| client.serial == id.serial && client.waits;
            if self.clients.get_mut(id.slot).filter(waits).is_none() {
                continue;
            }
            let Err(complaint) = self.hold(id.slot, number) else {
                kept.push_back(waiter);
                continue;
            };
            self.refuse_round(id.slot, complaint);
            if let Some(client) = self.clients.get_mut(id.slot) {
                client.waits = false;
            }
            self.resume(id.slot);
        }
        if let Some(pool) = self.pools.get_mut(number) {
            pool.waiting = kept;
        }
    }

    /// The round at hand of a client is answered with an error; its session goes on.
    pub(super) fn refuse_round(&mut self, slot: usize, complaint: Complaint) {
        let Some(client) = self.clients.get_mut(slot) else { return };
        client.leave_link(&self.reading);
        client.session.reads = Reads::No;
        client.session.refused = Some(Box::new(complaint));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_wait_than_may_and_each_place_is_given_back() {
        let held = Arc::new(AtomicUsize::new(0));
        let first = Hold::take(&held, 2);
        let second = Hold::take(&held, 2);
        assert!(first.is_some() && second.is_some() && Hold::take(&held, 2).is_none());
        drop(first);
        let third = Hold::take(&held, 2);
        assert!(third.is_some() && Hold::take(&held, 2).is_none());
        drop((second, third));
        assert_eq!(held.load(Ordering::SeqCst), 0);
        assert!(Hold::take(&held, 0).is_none());
    }
}
