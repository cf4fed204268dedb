//! How often servers are sampled: as often as sessions of the moment need it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

/// How long a wish lasts, in milliseconds; it is renewed at half of that.
const LASTS_MS: u64 = 100;

/// What threads wish, and what feeds go by.
#[derive(Debug, Default)]
pub struct Pace {
    urgent_until_ms: AtomicU64,
    read_until_ms: AtomicU64,
    wake: Notify,
}

/// How much a new position is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// A session waits for one, or will soon.
    Urgent,
    /// Followers are read from.
    Read,
}

impl Pace {
    /// A thread wishes for positions now. Cheap if it was wished a moment ago.
    pub fn wish(&self, wish: Wish, now_ms: u64) {
        let until = match wish {
            Wish::Urgent => &self.urgent_until_ms,
            Wish::Read => &self.read_until_ms,
        };
        let lasts_to = until.load(Ordering::Relaxed);
        if lasts_to < now_ms + LASTS_MS / 2 {
            until.store(now_ms + LASTS_MS, Ordering::SeqCst);
            if lasts_to < now_ms {
                self.wake.notify_waiters();
            }
        }
    }

    /// Waits until the next sample is due, at these paces: urgent, while there are reads, else.
    pub async fn next(&self, now_ms: impl Fn() -> u64, [urgent, read, idle]: [Duration; 3]) {
        let woken = self.wake.notified();
        tokio::pin!(woken);
        // From here on a wish is not missed.
        woken.as_mut().enable();
        let now = now_ms();
        let rest = if self.urgent_until_ms.load(Ordering::SeqCst) > now {
            urgent
        } else if self.read_until_ms.load(Ordering::SeqCst) > now {
            read
        } else {
            idle
        };
        tokio::select! {
            () = woken => {}
            () = sleep(rest) => {}
        }
    }
}
