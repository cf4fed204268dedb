//! Resources: what the agent claims of its host, so that load on it is not taken for the leader's death.
//!
//! Limits are raised while still root and inherited; memory is locked as far as it is touched, so that a host
//! that swaps does not stop the heartbeats. What is not allowed is left: the agent works without, and says so.

use rustix::io::Errno;
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// RLIMIT_NICE counts down from 20: this allows nice -10.
const NICE_LIMIT: u64 = 30;

/// Raises what a limit may be while this process is root: for the threads that must not wait, and for the
/// memory that must not be swapped. The servers that are started inherit the limits and make no use of them.
pub fn raise_limits() {
    let raise = |what: Resource, to: Option<u64>| setrlimit(what, Rlimit { current: to, maximum: to });
    let nice = raise(Resource::Nice, Some(NICE_LIMIT));
    let memory = raise(Resource::Memlock, None);
    if let Err(error) = nice.and(memory) {
        tracing::info!(%error, "the limits for priority and locked memory cannot be raised");
    }
}

/// Uses what is allowed: as many open files as the hard limit says, and memory that stays in RAM.
pub fn claim() {
    let files = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }) {
        tracing::warn!(%error, "the limit of open files cannot be raised to its hard limit");
    }
    let kept = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    let allowed = getrlimit(Resource::Memlock).current.is_none();
    match if allowed { mlockall(kept) } else { Err(Errno::PERM) } {
        Ok(()) => {}
        Err(error) => tracing::info!(
            %error,
            "memory is not locked: a host that swaps can hold up the heartbeats; LimitMEMLOCK=infinity allows it"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_files_as_the_hard_limit_allows_may_be_open() {
        claim();
        let files = getrlimit(Resource::Nofile);
        assert_eq!(files.current, files.maximum);
    }
}
