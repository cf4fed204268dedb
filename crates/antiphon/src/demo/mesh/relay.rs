//! The distance between two regions: a relay on loopback that delays every byte and can be cut.
//!
//! A node reaches each of the others through a relay of its own, so a pair of regions can be parted while both still
//! reach a third.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// Most bytes that are read at once, and most such pieces that are on their way in one direction of a connection.
const PIECE_BYTES_MAX: usize = 16 * 1024;
const PIECES_MAX: usize = 256;

/// A way from one region to another.
pub struct Relay {
    /// Where it listens on loopback.
    pub port: u16,
    shared: Arc<Shared>,
    cut: watch::Sender<bool>,
    listening: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    target: AtomicU16,
    delay_micros: AtomicU64,
}

impl Relay {
    /// Listens; nothing is delayed yet.
    ///
    /// # Errors
    /// If no port can be had.
    pub async fn listen() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared::default());
        let (cut, is_cut) = watch::channel(false);
        let listening = tokio::spawn(accept(listener, shared.clone(), is_cut));
        Ok(Self { port, shared, cut, listening })
    }

    /// Leads to this port of loopback from now on.
    pub fn lead_to(&self, port: u16) {
        self.shared.target.store(port, Ordering::Relaxed);
    }

    /// Takes so long one way from now on.
    pub fn take(&self, delay: Duration) {
        let micros = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        self.shared.delay_micros.store(micros, Ordering::Relaxed);
    }

    /// Breaks all connections and lets none through until it is healed.
    pub fn cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, is_cut: watch::Receiver<bool>) {
    while let Ok((client, _)) = listener.accept().await {
        let (shared, mut is_cut) = (shared.clone(), is_cut.clone());
        tokio::spawn(async move {
            tokio::select! {
                _ = is_cut.wait_for(|cut| *cut) => {}
                () = carry(client, &shared) => {}
            }
        });
    }
}

/// Carries one connection until either end closes it.
async fn carry(client: TcpStream, shared: &Shared) {
    let target = shared.target.load(Ordering::Relaxed);
    let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else { return };
    for stream in [&client, &server] {
        // Without it, the kernel would delay as well.
        let _ = stream.set_nodelay(true);
    }
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        () = pump(from_client, to_server, shared) => {}
        () = pump(from_server, to_client, shared) => {}
    }
}

/// Carries one direction: every piece is written the delay after it was read.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, shared: &Shared) {
    let (send, mut receive) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES_MAX);
    let read = async move {
        let mut buffer = vec![0; PIECE_BYTES_MAX];
        while let Ok(bytes @ 1..) = from.read(&mut buffer).await {
            let delay = Duration::from_micros(shared.delay_micros.load(Ordering::Relaxed));
            if send.send((Instant::now() + delay, buffer[..bytes].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, piece)) = receive.recv().await {
            tokio::time::sleep_until(due).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(read, write);
}
