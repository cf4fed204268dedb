//! The routers that follow this agent's events, and whether they have done what a hand-over asks of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use antiphon_core::Instant;
use antiphon_core::ha::world;
use tokio::sync::watch;

/// The routers that follow this agent. A router is known by a number that nobody else is told.
pub struct Routers {
    book: Mutex<Book>,
    news: watch::Sender<()>,
}

#[derive(Default)]
struct Book {
    /// Whether each has said that nothing of its clients is under way.
    at_rest: HashMap<u128, bool>,
    asked: Option<Instant>,
}

/// A router's entry; dropping it takes it out.
pub struct Router {
    /// What it proves by that it is this one.
    pub token: u128,
    routers: Arc<Routers>,
}

impl Drop for Router {
    fn drop(&mut self) {
        self.routers.book().at_rest.remove(&self.token);
        self.routers.news.send_replace(());
    }
}

impl Default for Routers {
    fn default() -> Self {
        Self { book: Mutex::default(), news: watch::Sender::new(()) }
    }
}

impl Routers {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more follows.
    pub fn admit(self: &Arc<Self>, token: u128) -> Router {
        self.book().at_rest.insert(token, false);
        Router { token, routers: self.clone() }
    }

    /// That router holds back what begins, and nothing of its clients is under way; whether there is one.
    pub fn is_at_rest(&self, token: u128) -> bool {
        let known = self.book().at_rest.get_mut(&token).map(|at_rest| *at_rest = true).is_some();
        self.news.send_replace(());
        known
    }

    /// They are asked to hold back what begins, from `now` on or since earlier; or not any more.
    pub fn ask(&self, asked: bool, now: Instant) {
        let mut book = self.book();
        if asked {
            book.asked.get_or_insert(now);
        } else if book.asked.take().is_some() {
            book.at_rest.values_mut().for_each(|at_rest| *at_rest = false);
        }
    }

    /// As a decision needs it.
    pub fn seen(&self) -> world::Routers {
        let book = self.book();
        let awaited = book.at_rest.values().filter(|at_rest| !**at_rest).count();
        world::Routers { awaited, asked: book.asked }
    }

    /// Changes whenever one of them has spoken or left.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routers_count_as_at_rest_only_for_the_hand_over_that_they_were_asked_for() {
        let routers = Arc::new(Routers::default());
        let now = Instant::default();
        let (first, second) = (routers.admit(1), routers.admit(2));
        assert_eq!(routers.seen(), world::Routers { awaited: 2, asked: None });
        routers.ask(true, now);
        assert!(routers.is_at_rest(first.token) && !routers.is_at_rest(7));
        assert_eq!(routers.seen(), world::Routers { awaited: 1, asked: Some(now) });
        drop(second);
        assert_eq!(routers.seen().awaited, 0, "one that has gone is not waited for");
        routers.ask(false, now);
        assert_eq!(routers.seen(), world::Routers { awaited: 1, asked: None });
    }
}
