//! What systemd is told: that the process is ready, that it stops.

use std::os::unix::net::UnixDatagram;

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
