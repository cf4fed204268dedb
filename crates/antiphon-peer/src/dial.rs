//! Keeps one outgoing connection to each wanted peer and says what became of it.
//!
//! A lost link is dialled again at once: if the peer's process is gone, its kernel refuses within a round
//! trip, and that is the fastest proof of death there is. After that the attempts back off to 500 ms. A peer
//! whose host stops answering is found by unacknowledged bytes (TCP_USER_TIMEOUT), which a ping every 250 ms
//! makes sure exist.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use antiphon_tls::Stream;
use bytes::BytesMut;
use nix::sys::socket::{setsockopt, sockopt::TcpUserTimeout};
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::cover;
use crate::handshake::{self, HandshakeError};
use crate::outbox::Outbox;
use crate::wire::{self, Seal};
use crate::{Channel, Down, Shared};

const CONNECT_TIME_MAX: Duration = Duration::from_millis(500);
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(5);
const SILENCE_MILLIS_MAX: u32 = 1500;
const PING_EVERY: Duration = Duration::from_millis(250);
/// Waits before the first, second, … attempt after a link was up; the last one repeats.
const WAITS_MS: [u64; 7] = [0, 10, 50, 100, 200, 400, 500];
/// Frames are gathered up to about this size before they are written.
const WRITE_BYTES: usize = 64 * 1024;

/// Starts and ends the links as the wanted set changes; returns when the sender of that set is gone.
pub(crate) async fn serve(shared: Arc<Shared>) {
    let mut wanted = shared.wanted.subscribe();
    let mut running: BTreeMap<String, AbortHandle> = BTreeMap::new();
    loop {
        let now = wanted.borrow_and_update().clone();
        running.retain(|address, task| {
            let keep = now.contains(address);
            if !keep {
                task.abort();
                forget(&shared, address);
            }
            keep
        });
        for address in now {
            running.entry(address.clone()).or_insert_with(|| {
                let outbox = Arc::new(Outbox::default());
                let mut outboxes = shared.outboxes.lock().unwrap_or_else(PoisonError::into_inner);
                outboxes.insert(address.clone(), Arc::clone(&outbox));
                drop(outboxes);
                shared.set_link(&address, Err(Down::Connecting));
                tokio::spawn(keep(address, outbox, Arc::clone(&shared))).abort_handle()
            });
        }
        if wanted.changed().await.is_err() {
            return;
        }
    }
}

fn forget(shared: &Shared, address: &str) {
    shared.outboxes.lock().unwrap_or_else(PoisonError::into_inner).remove(address);
    shared.links.send_if_modified(|links| Arc::make_mut(links).remove(address).is_some());
}

/// Dials `address` for as long as the task lives.
async fn keep(address: String, outbox: Arc<Outbox>, shared: Arc<Shared>) {
    let mut attempt = 0;
    loop {
        let wait = WAITS_MS.get(attempt).or(WAITS_MS.last()).copied().unwrap_or_default();
        // A peer that has just dialled us is back: no need to wait out the pause.
        let _ = timeout(Duration::from_millis(wait), outbox.nudged()).await;
        attempt = attempt.saturating_add(1);
        let down = match connect(&address, &shared).await {
            Ok((stream, seal, node)) => {
                outbox.set_open(true);
                shared.set_link(&address, Ok(node));
                let down = carry(stream, seal, &outbox).await;
                outbox.set_open(false);
                attempt = 0;
                down
            }
            Err(down) => down,
        };
        shared.set_link(&address, Err(down));
    }
}

async fn connect(address: &str, shared: &Shared) -> Result<(Stream, Seal, String), Down> {
    let stream = within(CONNECT_TIME_MAX, TcpStream::connect(address)).await?.map_err(|e| down(&e))?;
    stream.set_nodelay(true).map_err(|e| down(&e))?;
    setsockopt(&stream, TcpUserTimeout, &SILENCE_MILLIS_MAX).map_err(|e| down(&e.into()))?;
    let shake = async {
        let mut stream = cover::dial(stream, shared.tls.as_ref(), address).await?;
        let (peer, seal) = handshake::dial(&mut stream, &shared.identity, &shared.key, address).await?;
        Ok((stream, seal, peer.node))
    };
    match within(HANDSHAKE_TIME_MAX, shake).await? {
        Ok(linked) => Ok(linked),
        Err(HandshakeError::Io(error)) => Err(down(&error)),
        Err(HandshakeError::RefusedByPeer(why)) => Err(Down::Rejected(format!("by the peer: {why}"))),
        Err(HandshakeError::Refused(why)) => Err(Down::Rejected(why)),
    }
}

async fn within<T>(limit: Duration, what: impl Future<Output = T>) -> Result<T, Down> {
    timeout(limit, what).await.map_err(|_| Down::TimedOut)
}

/// Sends what is queued until the connection ends; says how.
async fn carry(stream: Stream, mut seal: Seal, outbox: &Outbox) -> Down {
    let (mut from_peer, mut to_peer) = tokio::io::split(stream);
    let sending = async {
        let mut frames = BytesMut::with_capacity(WRITE_BYTES);
        loop {
            match timeout(PING_EVERY, outbox.next()).await {
                Ok(first) => {
                    let mut next = Some(first);
                    while let Some((channel, body)) = next {
                        let channel = match channel {
                            Channel::Raft => wire::RAFT,
                            Channel::Beat => wire::BEAT,
                        };
                        wire::put_frame(&mut frames, &mut seal, channel, &body);
                        next = if frames.len() < WRITE_BYTES { outbox.take() } else { None };
                    }
                }
                Err(_) => wire::put_frame(&mut frames, &mut seal, wire::PING, &[]),
            }
            let written = async {
                to_peer.write_all(&frames).await?;
                to_peer.flush().await
            };
            if let Err(error) = written.await {
                return down(&error);
            }
            frames.clear();
        }
    };
    // The peer sends nothing on this connection; reading tells at once when it is closed or reset.
    let reading = async {
        match from_peer.read_u8().await {
            Ok(_) => Down::Rejected("it sent something where nothing is due".to_owned()),
            Err(error) => down(&error),
        }
    };
    tokio::select! {
        biased;
        reason = reading => reason,
        reason = sending => reason,
    }
}

fn down(error: &io::Error) -> Down {
    if let Some(why) = antiphon_tls::reason(error) {
        return Down::Rejected(why);
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Down::Refused,
        io::ErrorKind::TimedOut => Down::TimedOut,
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe => Down::Lost,
        _ => Down::Unreachable(error.to_string()),
    }
}
