//! A socket of an event loop, in the clear or inside TLS. Nothing waits here, and nothing is decided.
//!
//! What the other side does not take at once is kept by the caller, in `out`, as it will be sent: inside TLS it is
//! encrypted already. So it is the same question on either kind of socket whether everything has gone, and what
//! is read is opened to its end, so that the kernel alone knows whether there is more.

use std::io::{self, Read, Write};
use std::sync::Arc;

use antiphon_tls::{Connection, PROTOCOL, explain};
use mio::net::TcpStream;

use super::READ_BYTES;

/// Room that is kept for bytes that wait, when they have gone.
pub const KEPT_BYTES: usize = 512;
/// The most that is read at once from a socket inside TLS: with the beginning of a record that came before it,
/// it opens to no more than there is room for.
pub const SEALED_BYTES: usize = READ_BYTES - RECORD_BYTES_MAX;
/// More than the longest record of TLS.
const RECORD_BYTES_MAX: usize = 20 * 1024;
/// Library buffers grow beyond this only while a long record comes in pieces.
const PIECE_BYTES: usize = 4096;

/// What a read gave.
pub enum Got {
    /// So many bytes, and whether there may be more.
    Bytes(usize, bool),
    /// Nothing for now.
    Nothing,
    /// The other side has gone.
    End,
    /// The other side does not speak TLS as it should, or is not believed: why.
    Broken(String),
}

/// A socket.
pub struct Socket {
    /// The connection below.
    pub tcp: TcpStream,
    tls: Option<Box<Connection>>,
    /// What a login inside can be bound to.
    end_point: Option<Arc<[u8]>>,
}

impl Socket {
    /// One in the clear.
    pub fn new(tcp: TcpStream) -> Self {
        Self { tcp, tls: None, end_point: None }
    }

    /// Whether it is inside TLS.
    pub fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// The version and the ciphers of TLS; empty in the clear.
    pub fn tls_name(&self) -> String {
        let Some(tls) = &self.tls else { return String::new() };
        let version = tls.protocol_version().and_then(|version| version.as_str()).unwrap_or_default();
        let suite = tls.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str());
        format!("{}/{}", version.replace('_', "."), suite.unwrap_or_default())
    }

    /// Whether the two sides have agreed, inside TLS, on the protocol that comes next.
    pub fn says_postgresql(&self) -> bool {
        self.tls.as_ref().and_then(|tls| tls.alpn_protocol()) == Some(PROTOCOL)
    }

    /// The certificate that the other side has shown, and that was found good.
    pub fn certificate(&self) -> Option<&[u8]> {
        let chain = self.tls.as_ref()?.peer_certificates()?;
        chain.first().map(|certificate| certificate.as_ref())
    }

    /// What a login can be bound to; none in the clear.
    pub fn end_point(&self) -> Option<&[u8]> {
        self.end_point.as_deref()
    }

    /// Logins of the other side can be bound to this, once it is inside TLS.
    pub fn can_be_bound_to(&mut self, end_point: Option<Arc<[u8]>>) {
        self.end_point = end_point;
    }

    /// Goes on inside TLS; `first` is what the other side has sent of it already.
    pub fn secure(&mut self, mut tls: Connection, first: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        // What is written is bounded by what was read elsewhere, as it is in the clear.
        tls.set_buffer_limit(None);
        let tls = self.tls.insert(Box::new(tls));
        let opened = unseal(tls, first, &mut []);
        // Also if that failed: the other side is told why.
        let sent = send(tls, &mut self.tcp, out);
        opened.and(sent).map_err(|error| explain(&error))
    }

    /// Reads what is there. `sealed` is room for it as it came, [`SEALED_BYTES`]; `room` has [`READ_BYTES`].
    #[inline]
    pub fn read(&mut self, room: &mut [u8], sealed: &mut [u8], out: &mut Vec<u8>, hung_up: bool) -> Got {
        match &mut self.tls {
            None => read(&mut self.tcp, room, hung_up),
            Some(tls) => read_sealed(tls, &mut self.tcp, room, sealed, out, hung_up),
        }
    }

    /// Writes what can be written and keeps the rest.
    #[inline]
    pub fn write(&mut self, out: &mut Vec<u8>, bytes: &[u8]) -> io::Result<()> {
        match &mut self.tls {
            None => write(&mut self.tcp, out, bytes),
            Some(tls) => {
                tls.writer().write_all(bytes)?;
                send(tls, &mut self.tcp, out)
            }
        }
    }

    /// Writes what was kept; whether all of it has gone.
    #[inline]
    pub fn flush(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        if out.is_empty() {
            return Ok(true);
        }
        let mut kept = std::mem::take(out);
        write(&mut self.tcp, out, &kept)?;
        if out.is_empty() && kept.capacity() <= KEPT_BYTES {
            kept.clear();
            *out = kept;
        }
        Ok(out.is_empty())
    }

    /// Says goodbye inside TLS, if nothing is left to be said before that. The socket is about to be closed.
    pub fn part(&mut self, out: &[u8]) {
        if let Some(tls) = self.tls.as_mut().filter(|_| out.is_empty()) {
            tls.send_close_notify();
            // Who has gone hears nothing.
            let _ = tls.write_tls(&mut self.tcp);
        }
    }
}

#[inline]
fn read(tcp: &mut TcpStream, room: &mut [u8], hung_up: bool) -> Got {
    loop {
        match tcp.read(room) {
            Ok(0) => return Got::End,
            // Less than there was room for: nothing is left, and what comes next is a new event. Unless the end
            // has been announced already, for which no event comes again.
            Ok(bytes) => return Got::Bytes(bytes, bytes == room.len() || hung_up),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Got::Nothing,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Got::End,
        }
    }
}

#[inline]
fn write(tcp: &mut TcpStream, out: &mut Vec<u8>, bytes: &[u8]) -> io::Result<()> {
    let mut left = bytes;
    if out.is_empty() {
        while !left.is_empty() {
            match tcp.write(left) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => left = left.get(sent..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
    out.extend_from_slice(left);
    Ok(())
}

fn read_sealed(
    tls: &mut Connection,
    tcp: &mut TcpStream,
    room: &mut [u8],
    sealed: &mut [u8],
    out: &mut Vec<u8>,
    hung_up: bool,
) -> Got {
    loop {
        let (bytes, more) = match read(tcp, sealed, hung_up) {
            Got::Bytes(bytes, more) => (bytes, more),
            nothing => return nothing,
        };
        let opened = unseal(tls, sealed.get(..bytes).unwrap_or_default(), room);
        // Also if that failed: the other side is told why.
        let sent = send(tls, tcp, out);
        match (opened, sent) {
            (Err(error), _) => return Got::Broken(explain(&error)),
            (Ok(_), Err(_)) | (Ok((0, true)), Ok(())) => return Got::End,
            (Ok((0, false)), Ok(())) if more => {}
            (Ok((0, false)), Ok(())) => return Got::Nothing,
            (Ok((bytes, ended)), Ok(())) => return Got::Bytes(bytes, more || ended),
        }
    }
}

/// Opens what came: how many bytes it gave, and whether the other side has ended.
fn unseal(tls: &mut Connection, mut sealed: &[u8], room: &mut [u8]) -> io::Result<(usize, bool)> {
    let mut opened = 0;
    let long = sealed.len() > PIECE_BYTES;
    while !sealed.is_empty() {
        // What comes behind the end is not looked at.
        if tls.read_tls(&mut sealed)? == 0 {
            return Ok((opened, true));
        }
        let state =
            tls.process_new_packets().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        if state.plaintext_bytes_to_read() > 0 {
            let left = room.get_mut(opened..).unwrap_or_default();
            if state.plaintext_bytes_to_read() > left.len() {
                return Err(io::Error::other("more came than there is room for"));
            }
            opened += tls.reader().read(left)?;
        }
        if state.peer_has_closed() {
            return Ok((opened, true));
        }
    }
    if long {
        // Has the library give back the room that a long record took: it looks for that before it reads.
        let _ = tls.read_tls(&mut Silent);
    }
    Ok((opened, false))
}

/// A source that has nothing at the moment.
struct Silent;

impl Read for Silent {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

/// Writes what TLS has to say; what the socket does not take is kept in `out`.
fn send(tls: &mut Connection, tcp: &mut TcpStream, out: &mut Vec<u8>) -> io::Result<()> {
    while tls.wants_write() {
        let sent = if out.is_empty() { tls.write_tls(tcp) } else { tls.write_tls(out) };
        match sent {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tls.write_tls(out)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
