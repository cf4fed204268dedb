//! The promise of a follower: it streams from no leader of a term below the one written here.
//!
//! The promise is on disk before anything else happens, in a file that is replaced as a whole, and its
//! number never goes back. Switching the receiver off comes after it; whether it is off is proven by
//! `receiver` and shown by `observe`, never assumed.

use std::fs;
use std::io;
use std::sync::atomic::Ordering;

use antiphon_core::Epoch;
use antiphon_core::ha::world::Upstream;

use super::config::{self, Following, Role};
use super::files::{self, Paths};
use super::{Inner, lock, upstream_of};
use crate::EngineError;

/// Reads the promise; term 0 if none was ever given.
pub(super) fn read(paths: &Paths) -> Result<Epoch, EngineError> {
    let path = paths.fence();
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Epoch(0)),
        Err(source) => return Err(EngineError::Io { what: format!("read {}", path.display()), source }),
    };
    parse(&text).ok_or_else(|| EngineError::Failed {
        what: format!("read the promise in {}", path.display()),
        reason: "it is damaged; a member that does not know what it promised must be built anew: stop its server, \
                 remove the data directory and this file"
            .to_owned(),
    })
}

fn parse(text: &str) -> Option<Epoch> {
    text.strip_prefix("antiphon fence 1\nepoch ")?.strip_suffix('\n')?.parse().ok().map(Epoch)
}

impl Inner {
    pub(super) async fn fence(&self, epoch: Epoch) -> Result<(), EngineError> {
        let mut role = self.role.lock().await;
        let fenced = self.fenced();
        if epoch < fenced {
            let what = format!("fence for epoch {epoch}");
            let reason = format!("it is fenced for epoch {fenced} already, and a promise never goes back");
            return Err(EngineError::Failed { what, reason });
        }
        if epoch > fenced {
            let path = self.paths.fence();
            files::blocking("write the promise not to follow older leaders", move || {
                files::write_durably(&path, format!("antiphon fence 1\nepoch {epoch}\n").as_bytes(), 0o600)
            })
            .await?;
            self.fenced.store(epoch.0, Ordering::SeqCst);
        }
        // Who leads in the promised term itself may be followed on.
        let kept = role.upstream.clone().filter(|upstream| upstream.epoch >= epoch);
        self.set_upstream(&mut role, kept).await?;
        drop(role);
        self.prove_receiver_off_if_due().await
    }

    pub(super) async fn follow(&self, upstream: Upstream, address: &str) -> Result<(), EngineError> {
        config::host_and_port(address)
            .map_err(|reason| EngineError::Failed { what: "follow".to_owned(), reason })?;
        let mut role = self.role.lock().await;
        let fenced = self.fenced();
        if upstream.epoch < fenced {
            return Err(EngineError::Fenced { asked: upstream.epoch, fenced });
        }
        let following = Following { name: upstream.name, epoch: upstream.epoch, address: address.to_owned() };
        self.set_upstream(&mut role, Some(following)).await
    }

    pub(super) async fn unfollow(&self) -> Result<(), EngineError> {
        let mut role = self.role.lock().await;
        self.set_upstream(&mut role, None).await?;
        drop(role);
        self.prove_receiver_off_if_due().await
    }

    /// Writes the configuration with another upstream and tells a running server.
    async fn set_upstream(&self, role: &mut Role, upstream: Option<Following>) -> Result<(), EngineError> {
        let next = Role { upstream, ..role.clone() };
        self.write_role(role, next).await?;
        self.tell_server().await
    }

    /// Writes the configuration for another role; the caller holds the lock and reloads or starts. The role is
    /// taken over first: files that an interrupted or failed write left behind are written again by the next.
    pub(super) async fn write_role(&self, role: &mut Role, next: Role) -> Result<(), EngineError> {
        if next.upstream != role.upstream {
            self.receiver_off.store(false, Ordering::SeqCst);
            self.upstream_changes.fetch_add(1, Ordering::SeqCst);
        }
        *lock(&self.upstream) = next.upstream.as_ref().map(upstream_of);
        *role = next.clone();
        let (paths, mut settings) = (self.paths.clone(), (*self.settings()).clone());
        // The last copies are removed by the process that made them, and by nobody else.
        settings.synchronise_slots |= lock(&self.memory).has_copied_slots();
        files::exclusively(&self.config_files, "write the server's configuration", move || {
            config::write_all(&paths, &settings, &next)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_promise_is_not_guessed_at() {
        assert_eq!(parse("antiphon fence 1\nepoch 7\n"), Some(Epoch(7)));
        for bad in
            ["", "antiphon fence 1\nepoch 7", "antiphon fence 2\nepoch 7\n", "antiphon fence 1\nepoch -1\n"]
        {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
