//! How a node's links stand: written by the links, read by whoever announces, shows or confirms it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use antiphon_core::Lsn;
use antiphon_core::mesh::{CommitTime, NodeId, Reached};

use crate::apply::Applied;

/// The server's clock, in microseconds since 2000.
const SERVER_CLOCK: &str =
    "SELECT (extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000 - 946684800000000)::bigint";

/// What a link does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is being set up.
    Connecting,
    /// Changes come and are applied.
    Streaming,
    /// It broke and is tried again.
    Retrying,
    /// A change cannot be applied, and somebody has to see to it. It is still tried now and then.
    Stopped,
}

impl State {
    /// Its name in tables and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Streaming => "streaming",
            Self::Retrying => "retrying",
            Self::Stopped => "stopped",
        }
    }
}

/// One link.
#[derive(Clone, Debug)]
pub struct Link {
    /// The node's name.
    pub name: String,
    /// What it does.
    pub state: State,
    /// Why, if it does not stream.
    pub message: Option<String>,
    /// Everything of the node before here is applied.
    pub applied: Lsn,
    /// Everything of the node before here is applied and will not be lost.
    pub safe: Lsn,
    /// What the node had seen of the others when it wrote what was applied last.
    pub seen: Reached,
    /// Where the transaction ends that cannot be applied.
    pub failed: Option<Lsn>,
    /// Transactions applied since the link was made.
    pub transactions: u64,
    /// Rows written or decided.
    pub rows: u64,
    /// Conflicts, by kind.
    pub conflicts: HashMap<&'static str, u64>,
    /// The longest that changes waited for the clock here.
    pub clock_wait_max: Duration,
}

/// All links of a node.
#[derive(Debug, Default)]
pub struct Standing {
    inner: Mutex<Inner>,
    turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug, Default)]
struct Inner {
    links: BTreeMap<NodeId, Link>,
    reached: Reached,
    /// How far the server's clock is ahead of this machine's, at least, in microseconds.
    clock_ahead: Option<i64>,
    diverged_rows: Option<u64>,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            name: String::new(),
            state: State::Connecting,
            message: None,
            applied: Lsn::default(),
            safe: Lsn::default(),
            seen: Reached::default(),
            failed: None,
            transactions: 0,
            rows: 0,
            conflicts: HashMap::new(),
            clock_wait_max: Duration::ZERO,
        }
    }
}

impl Standing {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nobody panics while holding it")
    }

    fn link<T>(&self, node: NodeId, act: impl FnOnce(&mut Link) -> T) -> T {
        act(self.inner().links.entry(node).or_default())
    }

    /// What one link at a time holds while it corrects counts.
    #[must_use]
    pub fn turn(&self) -> Arc<tokio::sync::Mutex<()>> {
        self.turn.clone()
    }

    /// Every link.
    #[must_use]
    pub fn links(&self) -> BTreeMap<NodeId, Link> {
        self.inner().links.clone()
    }

    /// What is applied here of everybody.
    #[must_use]
    pub fn reached(&self) -> Reached {
        self.inner().reached.clone()
    }

    /// That node takes part: nothing is known of it yet.
    pub fn admit(&self, node: NodeId, name: &str) {
        let mut inner = self.inner();
        inner.reached.advance(node, CommitTime::UNKNOWN);
        name.clone_into(&mut inner.links.entry(node).or_default().name);
    }

    /// So many rows are known to differ between the nodes; none if this node does not compare them.
    pub fn set_diverged_rows(&self, rows: Option<u64>) {
        self.inner().diverged_rows = rows;
    }

    /// Rows that are known to differ between the nodes; none on a node that does not compare them.
    #[must_use]
    pub fn diverged_rows(&self) -> Option<u64> {
        self.inner().diverged_rows
    }

    /// That node takes no part any more, and all that it wrote is applied here.
    pub fn release(&self, node: NodeId) {
        let mut inner = self.inner();
        inner.reached.release(node);
        inner.links.remove(&node);
    }

    /// Says what a link does; true if that is news.
    pub(crate) fn set(&self, node: NodeId, state: State, message: Option<String>) -> bool {
        self.link(node, |link| {
            let news = link.message != message && message.is_some();
            // While it is tried again, why it broke is what people want to see.
            if state != State::Connecting || link.message.is_none() {
                link.state = state;
                link.message = message;
            }
            news
        })
    }

    pub(crate) fn fails_at(&self, node: NodeId, end: Lsn) {
        self.link(node, |link| link.failed = Some(end));
    }

    pub(crate) fn applied(&self, node: NodeId) -> Lsn {
        self.link(node, |link| link.applied)
    }

    pub(crate) fn safe(&self, node: NodeId) -> Lsn {
        self.link(node, |link| link.safe)
    }

    pub(crate) fn advance(&self, node: NodeId, applied: Lsn, complete_to: Option<CommitTime>) {
        let mut inner = self.inner();
        if let Some(at) = complete_to {
            inner.reached.advance(node, at);
        }
        let link = inner.links.entry(node).or_default();
        link.applied = link.applied.max(applied);
        link.failed = link.failed.filter(|failed| *failed > applied);
    }

    pub(crate) fn count(&self, node: NodeId, applied: &Applied) {
        self.link(node, |link| {
            link.transactions += applied.transactions;
            link.rows += applied.rows;
            link.seen.clone_from(&applied.seen);
            for (kind, count) in &applied.conflicts {
                *link.conflicts.entry(kind).or_default() += count;
            }
        });
    }

    pub(crate) fn waited_for_clock(&self, node: NodeId, time: Duration) {
        self.link(node, |link| link.clock_wait_max = link.clock_wait_max.max(time));
    }

    /// What was applied when `links` was asked for has been followed by a commit that is safe.
    pub fn is_safe(&self, links: &BTreeMap<NodeId, Link>) {
        let mut inner = self.inner();
        for (node, then) in links {
            if let Some(link) = inner.links.get_mut(node) {
                link.safe = link.safe.max(then.applied);
            }
        }
    }

    /// The server's clock stood at `server` at some time before this machine's stood at `own`.
    pub fn read_clock(&self, server: CommitTime, own: CommitTime) {
        let ahead = server.0.saturating_sub(own.0);
        let mut inner = self.inner();
        // The last reading, not the best one: clocks drift and are set.
        inner.clock_ahead = Some(ahead);
    }

    /// Reads the server's clock.
    ///
    /// # Errors
    /// If the server fails.
    pub async fn read_server_clock(
        &self,
        client: &tokio_postgres::Client,
    ) -> Result<CommitTime, tokio_postgres::Error> {
        let row = client.query_one(SERVER_CLOCK, &[]).await?;
        let server = CommitTime(row.get(0));
        self.read_clock(server, crate::link::clock());
        Ok(server)
    }

    /// What the server's clock shows at least while this machine's shows `own`.
    #[must_use]
    pub fn server_clock(&self, own: CommitTime) -> CommitTime {
        let ahead = self.inner().clock_ahead;
        ahead.map_or(CommitTime::UNKNOWN, |ahead| CommitTime(own.0.saturating_add(ahead)))
    }
}
