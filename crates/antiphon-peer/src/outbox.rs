//! What waits to be sent to one peer: two bounded queues, heartbeats first.
//!
//! Open only while the link is up: what was said to a peer that could not hear it is stale by the time it
//! can, and both heartbeats and Raft say it again. It must never block the caller.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::Channel;

const RAFT_MESSAGES_MAX: usize = 1024;
const RAFT_BYTES_MAX: usize = 32 * 1024 * 1024;
const BEATS_MAX: usize = 4;

#[derive(Default)]
pub(crate) struct Outbox {
    queues: Mutex<Queues>,
    filled: Notify,
    nudged: Notify,
}

#[derive(Default)]
struct Queues {
    open: bool,
    beats: VecDeque<Bytes>,
    raft: VecDeque<Bytes>,
    raft_bytes: usize,
}

impl Outbox {
    /// Lets messages in (the link is up) or drops what is queued and all that comes (it is down).
    pub(crate) fn set_open(&self, open: bool) {
        let mut queues = self.lock();
        *queues = Queues { open, ..Queues::default() };
    }

    /// Queues a message; false if it was dropped.
    pub(crate) fn push(&self, channel: Channel, body: Bytes) -> bool {
        let mut queues = self.lock();
        if !queues.open {
            return false;
        }
        match channel {
            Channel::Beat => {
                if queues.beats.len() >= BEATS_MAX {
                    queues.beats.pop_front();
                }
                queues.beats.push_back(body);
            }
            Channel::Raft => {
                let bytes = queues.raft_bytes.saturating_add(body.len());
                if queues.raft.len() >= RAFT_MESSAGES_MAX || bytes > RAFT_BYTES_MAX {
                    return false;
                }
                queues.raft_bytes = bytes;
                queues.raft.push_back(body);
            }
        }
        drop(queues);
        self.filled.notify_one();
        true
    }

    /// The peer was heard: it is worth dialling now.
    pub(crate) fn nudge(&self) {
        self.nudged.notify_one();
    }

    /// Waits for a nudge; one that came before counts.
    pub(crate) async fn nudged(&self) {
        self.nudged.notified().await;
    }

    /// Waits for the next message, the oldest heartbeat before any Raft message.
    pub(crate) async fn next(&self) -> (Channel, Bytes) {
        loop {
            if let Some(message) = self.take() {
                return message;
            }
            self.filled.notified().await;
        }
    }

    /// The next message if there is one.
    pub(crate) fn take(&self) -> Option<(Channel, Bytes)> {
        let mut queues = self.lock();
        if let Some(body) = queues.beats.pop_front() {
            return Some((Channel::Beat, body));
        }
        let body = queues.raft.pop_front()?;
        queues.raft_bytes = queues.raft_bytes.saturating_sub(body.len());
        Some((Channel::Raft, body))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_drops_the_oldest_beat_and_the_newest_raft_message() {
        let outbox = Outbox::default();
        assert!(!outbox.push(Channel::Beat, Bytes::from_static(b"closed")));
        outbox.set_open(true);
        for number in 0..=BEATS_MAX {
            assert!(outbox.push(Channel::Beat, Bytes::from(vec![u8::try_from(number).unwrap()])));
        }
        for _ in 0..RAFT_MESSAGES_MAX {
            assert!(outbox.push(Channel::Raft, Bytes::from_static(b"kept")));
        }
        assert!(!outbox.push(Channel::Raft, Bytes::from_static(b"newest")));
        assert_eq!(outbox.take(), Some((Channel::Beat, Bytes::from_static(&[1]))));
    }
}
