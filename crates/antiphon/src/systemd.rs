//! What systemd is told: that the process is ready, that it stops. And the sockets that it hands over.

use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// The first descriptor that systemd hands over (see sd_listen_fds(3)).
const FIRST: i32 = 3;
/// Most of them.
const LISTENERS_MAX: i32 = 64;

/// Tells systemd, if it asked to be told (see sd_notify(3)).
pub fn notify(state: &str) {
    let Ok(socket) = std::env::var("NOTIFY_SOCKET") else { return };
    let sent = UnixDatagram::unbound().and_then(|datagram| match socket.strip_prefix('@') {
        Some(name) => {
            use std::os::linux::net::SocketAddrExt;
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
            datagram.send_to_addr(state.as_bytes(), &address)
        }
        None => datagram.send_to(state.as_bytes(), &socket),
    });
    if let Err(error) = sent {
        tracing::warn!(%error, "could not notify systemd");
    }
}

/// The sockets that systemd listens at for this process and has handed over; none if it was started otherwise.
///
/// # Errors
/// If what was handed over is no socket, or cannot be taken.
pub fn listeners() -> io::Result<Vec<TcpListener>> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<i32>().ok());
    let ours = number("LISTEN_PID") == Some(getpid().as_raw_nonzero().get());
    let count = number("LISTEN_FDS").filter(|_| ours).unwrap_or(0).clamp(0, LISTENERS_MAX);
    if count == 0 {
        return Ok(Vec::new());
    }
    // A descriptor that nobody owns yet is copied by way of the process itself.
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    let take = |at: i32| -> io::Result<TcpListener> {
        let listener = TcpListener::from(pidfd_getfd(&own, at, PidfdGetfdFlags::empty())?);
        // Only a socket of the internet has such an address.
        listener.local_addr()?;
        Ok(listener)
    };
    (FIRST..FIRST + count).map(take).collect()
}
