//! Heartbeats: this member's word to the others every 100 ms or so, and theirs to it.
//!
//! They run on the thread of the links, so that work or a stall in the rest of the agent is not taken for death,
//! and a heartbeat that comes or goes wakes no other thread. The same thread knocks at the leader's server when
//! its agent falls silent, because a silent agent beside an answering server is not a dead leader.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use antiphon_core::ha::world::{Beat, Knock};
use antiphon_core::{Instant, NodeName};
use antiphon_engine::server_knock;
use antiphon_peer::{Channel, Envelope, Peers};
use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::clock;

/// How often a member speaks. A little less often than Raft does, with which it shares a packet if it can.
pub const INTERVAL: Duration = Duration::from_millis(115);
/// How soon it may speak again if Raft does.
const COMPANY_AFTER: Duration = Duration::from_millis(50);
/// A leader that has been silent for this long has its server knocked at.
const KNOCK_AFTER: Duration = Duration::from_millis(250);
/// How long a knock may take.
const KNOCK_DEADLINE: Duration = Duration::from_millis(300);

/// What was heard of one member.
#[derive(Clone, Debug)]
pub struct Heard {
    /// When.
    pub at: Instant,
    /// Where it speaks from (`host:port` of its agent).
    pub address: String,
    /// What it said.
    pub beat: Beat,
}

/// What the heartbeats share with the agent.
#[derive(Debug, Default)]
struct Shared {
    /// What this member says; nothing until the first decision.
    mine: Option<Beat>,
    /// The newest of every other member.
    heard: BTreeMap<NodeName, Heard>,
    /// Whom to knock at if it falls silent: its name and its server's `host:port`.
    leader: Option<(NodeName, String)>,
    /// The newest knock, at which leader, and when it ended.
    knock: Option<(NodeName, Knock, Instant)>,
}

/// The agent's end of the heartbeats.
#[derive(Clone, Debug)]
pub struct Beats {
    shared: Arc<Mutex<Shared>>,
    changed: watch::Receiver<u64>,
}

impl Beats {
    /// Starts them on the thread of the links.
    pub fn start(peers: &Peers, inbox: mpsc::Receiver<Envelope>) -> Self {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (sender, changed) = watch::channel(0);
        let beats = Self { shared: shared.clone(), changed };
        peers.spawn(|links| async move { run(&links, inbox, &shared, &sender).await });
        beats
    }

    /// Says this from now on.
    pub fn say(&self, beat: Beat) {
        self.lock().mine = Some(beat);
    }

    /// Watches over this leader from now on; the address is its server's `host:port`.
    pub fn watch_leader(&self, leader: Option<(NodeName, String)>) {
        let mut shared = self.lock();
        if shared.leader != leader {
            shared.leader = leader;
            shared.knock = None;
        }
    }

    /// The newest of every member that was heard.
    pub fn heard(&self) -> BTreeMap<NodeName, Heard> {
        self.lock().heard.clone()
    }

    /// The newest knock at this member's server.
    pub fn knock(&self, name: &NodeName) -> Knock {
        match &self.lock().knock {
            Some((knocked, knock, at)) if knocked == name && clock::now().since(*at) < 4 * KNOCK_DEADLINE => {
                *knock
            }
            _ => Knock::Unknown,
        }
    }

    /// Changes when a member says something that can matter to a decision, or a knock ended differently.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn run(
    peers: &Peers,
    mut inbox: mpsc::Receiver<Envelope>,
    shared: &Arc<Mutex<Shared>>,
    changed: &watch::Sender<u64>,
) {
    let (timer, company) = (sleep(Duration::ZERO), peers.company(Duration::ZERO));
    tokio::pin!(timer, company);
    let mut links = peers.links();
    let mut knocking: Option<tokio::task::JoinHandle<()>> = None;
    loop {
        let speaks = tokio::select! {
            () = &mut timer => true,
            () = &mut company => true,
            envelope = inbox.recv() => {
                let Some(envelope) = envelope else { return };
                hear(&envelope, shared, changed);
                false
            }
            Ok(()) = links.changed() => {
                changed.send_modify(|count| *count += 1);
                false
            }
        };
        if speaks {
            speak(peers, shared);
            timer.as_mut().reset(tokio::time::Instant::now() + INTERVAL);
            company.set(peers.company(COMPANY_AFTER));
        }
        let free = knocking.as_ref().is_none_or(tokio::task::JoinHandle::is_finished);
        if free && let Some((leader, address)) = silent_leader(peers, shared) {
            let (shared, changed) = (shared.clone(), changed.clone());
            knocking = Some(tokio::spawn(async move {
                let knock = server_knock(&address, KNOCK_DEADLINE).await;
                let ended = clock::now();
                let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
                if shared.leader.as_ref().is_some_and(|(name, _)| *name == leader) {
                    let news = shared.knock.as_ref().is_none_or(|(_, known, _)| *known != knock);
                    shared.knock = Some((leader, knock, ended));
                    if news {
                        changed.send_modify(|count| *count += 1);
                    }
                }
            }));
        }
    }
}

/// The leader and its server's address, if it is to be knocked at now.
fn silent_leader(peers: &Peers, shared: &Arc<Mutex<Shared>>) -> Option<(NodeName, String)> {
    let shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
    let (name, address) = shared.leader.as_ref()?;
    let now = clock::now();
    let heard = shared.heard.get(name);
    let silent = heard.is_none_or(|heard| now.since(heard.at) >= KNOCK_AFTER);
    let lost = heard.is_some_and(|heard| {
        peers
            .links()
            .borrow()
            .get(&heard.address)
            .is_some_and(|link| !matches!(link, antiphon_peer::Link::Up { .. }))
    });
    let fresh = shared.knock.as_ref().is_some_and(|(_, _, at)| now.since(*at) < INTERVAL);
    ((silent || lost) && !fresh).then(|| (name.clone(), address.clone()))
}

fn speak(peers: &Peers, shared: &Arc<Mutex<Shared>>) {
    let mine = shared.lock().unwrap_or_else(PoisonError::into_inner).mine.clone();
    let Some(body) = mine.and_then(|beat| serde_json::to_vec(&beat).ok()) else { return };
    let body = Bytes::from(body);
    for address in peers.links().borrow().keys() {
        // A full queue drops the beat; the next one is not far.
        let _ = peers.send(address, Channel::Beat, body.clone());
    }
}

fn hear(envelope: &Envelope, shared: &Arc<Mutex<Shared>>, changed: &watch::Sender<u64>) {
    let Ok(beat) = serde_json::from_slice::<Beat>(&envelope.body) else {
        tracing::debug!(from = %envelope.from, "a heartbeat that cannot be read was dropped");
        return;
    };
    let heard = Heard { at: clock::now(), address: envelope.from.clone(), beat };
    let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
    let news = shared.heard.get(&heard.beat.name).is_none_or(|known| matters(&known.beat, &heard.beat));
    shared.heard.insert(heard.beat.name.clone(), heard);
    if news {
        changed.send_modify(|count| *count += 1);
    }
}

/// Whether the change from one beat to the next is more than WAL that moved on.
fn matters(old: &Beat, new: &Beat) -> bool {
    (old.suspects, old.leads) != (new.suspects, new.leads)
        || (&old.server.state, &old.server.role, &old.server.upstream)
            != (&new.server.state, &new.server.role, &new.server.upstream)
}
