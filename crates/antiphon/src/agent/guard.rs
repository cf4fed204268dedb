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
use antiphon_core::ha::detector;
use antiphon_core::ha::world::{Local, Server, Task, World};

use super::clock;

/// Tells the guard to end.
const DISARM: u64 = 0;

/// The agent's end of the guard.
pub struct Guard {
    place: Option<Place>,
    /// What it was told last; none while an earlier agent's guard may stand with another order.
    told: Option<u64>,
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
        let socket = UnixDatagram::unbound().ok();
        // A guard that does not take its orders must not hold up the agent.
        let socket = socket.filter(|socket| socket.set_nonblocking(true).is_ok());
        Self { place, told: None, child: None, socket }
    }

    /// Keeps the guard at the lease while the server here may write in asynchronous mode, and ends it when it
    /// surely does not.
    pub fn follow(&mut self, world: &World, lease_until: Option<Instant>) {
        let Some(deadline) = deadline(world, lease_until) else { return };
        let Some(place) = &self.place else { return };
        if self.told == Some(deadline) {
            return;
        }
        if self.tell(place, deadline) || deadline == DISARM {
            self.told = Some(deadline);
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

/// Until when the server may write, if that is known: an earlier agent's guard goes on as it was told while it
/// is not.
fn deadline(world: &World, lease_until: Option<Instant>) -> Option<u64> {
    let Local::Database(db) = &world.local else { return None };
    let cluster = &world.store.cluster.as_ref()?.value;
    let leads = cluster.leader().is_some_and(|leader| leader.name == *world.me.name());
    // Not by the role: one that is being demoted, or stuck, or starts, writes until it is gone.
    let may_write = match &db.server {
        Server::Primary(_) => true,
        Server::Starting { primary, .. } | Server::Stuck { primary, .. } => *primary,
        Server::Orphans { .. } => leads,
        Server::Standby(_) => matches!(db.task, Some((Task::Promote, _))),
        Server::Stopped(_) => leads && matches!(db.task, Some((Task::Start, _))),
        Server::Absent | Server::Refused { .. } => false,
    };
    if !may_write || cluster.sync != Promise::Asynchronous || world.settings.pause {
        return Some(DISARM);
    }
    let lease = lease_until?;
    if leads && world.settings.failsafe_mode && detector::everyone_answers(world) {
        // Whom everyone answers may go on without the store; an agent that stops asking may not.
        let step = world.settings.failure_timeout.max(Duration::from_millis(1));
        let rounded = (world.now.0 / nanoseconds(step)).saturating_mul(nanoseconds(step));
        return Some(lease.0.max((Instant(rounded) + step * 3).0));
    }
    Some(lease.0)
}

fn nanoseconds(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
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
        // What waits to be read comes before the verdict: a guard that was held up must not act on old orders.
        match next_order(&orders, Instant(deadline).since(clock::now()))? {
            Some(DISARM) => return std::fs::remove_file(socket),
            Some(later) => deadline = later,
            None if Instant(deadline) <= clock::now() => {
                let killed = antiphon_engine::kill_server(data_dir);
                let at = clock::rfc3339(clock::unix_seconds());
                let data_dir = data_dir.display();
                // Into the agent's log; the agent itself may be gone.
                eprintln!(
                    "{at} ERROR antiphon guard: the lease ran out and the agent did not renew it: killed {killed} \
                     processes of the server in {data_dir}; see why the agent stood still or could not reach the store"
                );
                return std::fs::remove_file(socket);
            }
            None => {}
        }
    }
}

/// The next order, if one comes within `left`.
fn next_order(orders: &UnixDatagram, left: Duration) -> std::io::Result<Option<u64>> {
    // Short naps: a machine that slept must find the lease over when it wakes.
    let nap = left.clamp(Duration::from_millis(1), Duration::from_millis(250));
    orders.set_read_timeout(Some(nap))?;
    let mut order = [0; 8];
    match orders.recv(&mut order) {
        Ok(8) => Ok(Some(u64::from_le_bytes(order))),
        Ok(_) => Ok(None),
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
