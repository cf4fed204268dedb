//! Guard: a process beside the agent that kills the server when the lease has run out.
//!
//! In asynchronous mode two leaders are kept apart by the lease alone, and an agent that is paused or killed
//! cannot stop its server. The guard can: it knows nothing but a deadline, which the agent moves on with each
//! renewal. It outlives the agent, and a new agent goes on telling it.
//!
//! In synchronous modes the fence does this without a clock, and there is no guard.

use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use antiphon_core::Instant;
use antiphon_core::ha::cluster::Promise;
use antiphon_core::ha::decide::Decision;
use antiphon_core::ha::role::Role;
use antiphon_core::ha::world::World;

use super::clock;

/// Tells the guard to end.
const DISARM: u64 = 0;

/// The agent's end of the guard.
pub struct Guard {
    place: Option<Place>,
    told: u64,
    child: Option<Child>,
    socket: Option<UnixDatagram>,
}

/// Where the guard listens, and over what it stands guard.
struct Place {
    socket: PathBuf,
    data_dir: PathBuf,
}

impl Guard {
    /// The guard of the server in `data_dir`; its socket lies in `state_dir`. None on a witness.
    pub fn new(directories: Option<(PathBuf, PathBuf)>) -> Self {
        let place =
            directories.map(|(data_dir, state_dir)| Place { socket: state_dir.join("guard.sock"), data_dir });
        Self { place, told: DISARM, child: None, socket: UnixDatagram::unbound().ok() }
    }

    /// Keeps the guard at the lease while this member leads in asynchronous mode, and ends it otherwise.
    pub fn follow(&mut self, world: &World, decision: &Decision, lease_until: Option<Instant>) {
        let asynchronous =
            world.store.cluster.as_ref().is_some_and(|cluster| cluster.value.sync == Promise::Asynchronous);
        let leads = matches!(decision.role, Role::Leader { .. });
        let deadline = match lease_until {
            Some(until) if asynchronous && leads && !world.settings.pause => until.0,
            _ => DISARM,
        };
        if deadline == self.told {
            return;
        }
        let Some(place) = &self.place else { return };
        if self.tell(place, deadline) {
            self.told = deadline;
        } else if deadline == DISARM {
            self.told = DISARM;
        } else if self.child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None))) {
            match spawn(place, deadline) {
                Ok(child) => self.child = Some(child),
                Err(error) => tracing::warn!(%error, "the guard process could not be started"),
            }
        }
    }

    fn tell(&self, place: &Place, deadline: u64) -> bool {
        self.socket
            .as_ref()
            .is_some_and(|socket| socket.send_to(&deadline.to_le_bytes(), &place.socket).is_ok())
    }
}

fn spawn(place: &Place, deadline: u64) -> std::io::Result<Child> {
    // The link and not the path it names: the server's user may not be able to reach that.
    Command::new("/proc/self/exe")
        .arg("guard")
        .arg("--socket")
        .arg(&place.socket)
        .arg("--data-dir")
        .arg(&place.data_dir)
        .arg("--deadline")
        .arg(deadline.to_string())
        .stdin(Stdio::null())
        .process_group(0)
        .spawn()
}

/// Stands guard: returns when told to, or after it killed the server. `deadline` is in nanoseconds of
/// CLOCK_BOOTTIME.
///
/// # Errors
/// If the socket cannot be bound.
pub fn stand(socket: &Path, data_dir: &Path, deadline: u64) -> std::io::Result<()> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let orders = UnixDatagram::bind(socket)?;
    let mut deadline = deadline;
    loop {
        let left = Instant(deadline).since(clock::now());
        if left.is_zero() {
            let killed = antiphon_engine::kill_server(data_dir);
            tracing::error!(killed, "the lease ran out and nobody renewed it: killed the server");
            return std::fs::remove_file(socket);
        }
        // Short naps: a machine that slept must find the lease over when it wakes.
        orders.set_read_timeout(Some(left.min(Duration::from_millis(250))))?;
        let mut order = [0; 8];
        match orders.recv(&mut order) {
            Ok(8) => match u64::from_le_bytes(order) {
                DISARM => return std::fs::remove_file(socket),
                later => deadline = later,
            },
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
