//! A relay of bytes between connections that knows nothing of what they mean: the floor of what a proxy costs.
//!
//! Two threads a client, one for each direction: a read, a write, and nothing else. It runs until it is killed.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

use anyhow::Context;
use clap::Args;

/// The most that is read at once.
const READ_BYTES: usize = 64 * 1024;

/// What the relay is asked to do.
#[derive(Args)]
pub(crate) struct Wanted {
    /// Where clients connect to
    #[arg(long)]
    listen: SocketAddr,
    /// Where their bytes go
    #[arg(long)]
    to: SocketAddr,
}

/// Carries the bytes of every client that comes.
///
/// # Errors
/// When it cannot listen; a client that cannot be served is told of and closed.
pub(crate) fn run(wanted: &Wanted) -> anyhow::Result<()> {
    let listener = TcpListener::bind(wanted.listen)
        .with_context(|| format!("the relay could not listen at {}", wanted.listen))?;
    for client in listener.incoming() {
        if let Err(error) = client.and_then(|client| serve(client, wanted.to)) {
            eprintln!("a client of the relay could not be served: {error}");
        }
    }
    Ok(())
}

fn serve(client: TcpStream, to: SocketAddr) -> std::io::Result<()> {
    let server = TcpStream::connect(to)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_server) = (client.try_clone()?, server.try_clone()?);
    thread::Builder::new().spawn(move || carry(from_client, to_server))?;
    thread::Builder::new().spawn(move || carry(server, client))?;
    Ok(())
}

/// Copies from one side to the other until either ends, then ends both.
fn carry(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; READ_BYTES];
    while let Ok(bytes @ 1..) = from.read(&mut buffer) {
        if to.write_all(buffer.get(..bytes).unwrap_or_default()).is_err() {
            break;
        }
    }
    for side in [from, to] {
        // The other direction may have ended it already.
        let _ended = side.shutdown(Shutdown::Both);
    }
}
