//! Priority: threads whose silence is taken for death run before the host's ordinary load.
//!
//! Only the threads of heartbeats, links and store: the servers and tools that are started must not inherit it.

use std::sync::Once;

/// The nice value of such a thread.
const NICE: i32 = -10;

/// Raises the calling thread's priority where that is allowed (root, CAP_SYS_NICE, RLIMIT_NICE).
pub fn raise() {
    static TOLD: Once = Once::new();
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        TOLD.call_once(|| {
            tracing::info!(
                %error,
                "threads run with ordinary priority: a busy host can hold up the heartbeats; LimitNICE=-10 allows it"
            );
        });
    }
}
