//! A link: the changes of one other node, read from its log and applied here, for as long as both are there.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use antiphon_core::Lsn;
use antiphon_core::mesh::{CommitTime, NodeId, Reached};
use thiserror::Error;

use crate::announcement::parse_reached;
use crate::apply::{Applier, ApplyError, Identity, Merger, Resume};
use crate::dsn::Dsn;
use crate::manage::id;
use crate::members::{self, Member, Names};
use crate::session::Session;
use crate::shape::{CATALOGUE, Shape};
use crate::standing::{Standing, State};
use crate::transaction::{Assembler, Nonsense, Steps, Transaction};
use crate::wire::replication::{Frame, Replication};
use crate::wire::{Connection, Kind, WireError};

/// Most transactions that are put together before they are applied.
const BATCH_MAX: usize = 1000;
/// How often the source hears how far its changes are safe here, at least.
const CONFIRM_EVERY: Duration = Duration::from_millis(500);
/// How long after a failure it is tried again: the first time, and at most.
const RETRY_AFTER: Duration = Duration::from_millis(200);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(10);
/// The same after a loss of the connection, which costs nobody anything to try.
const RECONNECT_AFTER_MAX: Duration = Duration::from_secs(1);
/// How often a change that cannot be applied is tried before the link stops and waits for somebody.
const TRIES_MAX: u32 = 3;
/// How far the clock of another node may be ahead before the link stops: until then its changes wait for ours.
const SKEW_MAX: Duration = Duration::from_secs(10);
/// The output plugin's text is to be what the applier's session reads: the same settings on both ends.
const SETTINGS: [(&str, &str); 6] = [
    ("DateStyle", "ISO"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "1"),
    ("bytea_output", "hex"),
    ("wal_sender_timeout", "60s"),
];
/// From this release on the server leaves out what it did not write itself.
const FILTERS_ORIGIN: u32 = 160_000;

/// Why a link broke.
#[derive(Debug, Error)]
pub enum LinkError {
    /// A connection failed, or a server refused something.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The client library's connection did.
    #[error("{0}")]
    Control(#[from] tokio_postgres::Error),
    /// A change could not be applied.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The source sends what no server sends, or it could not be kept.
    #[error("the stream of node {node} makes no sense: {error}")]
    Stream {
        /// The source.
        node: String,
        /// What it sent.
        error: Nonsense,
    },
    /// Its clock is too far ahead.
    #[error("the clock of node {node} is {} ms ahead of ours: set the clocks right; its changes wait here until ours has caught up", ahead.as_millis())]
    Skew {
        /// The source.
        node: String,
        /// How far.
        ahead: Duration,
    },
    /// The connection string in the list of nodes is of no use.
    #[error("the connection string of node {node}: {error}")]
    Address {
        /// The source.
        node: String,
        /// What is wrong with it.
        error: crate::dsn::DsnError,
    },
    /// Something that the set-up makes is not there.
    #[error("{0}")]
    NotSetUp(String),
}

/// Both ends of a link.
#[derive(Clone, Debug)]
pub struct Ends {
    /// The mesh's names of things.
    pub names: Names,
    /// This node.
    pub own: NodeId,
    /// This node's database.
    pub local: Dsn,
    /// The node whose changes are applied.
    pub source: Member,
    /// Its database.
    pub remote: Dsn,
}

/// Runs a link until its task is dropped. What becomes of it is told to `standing`.
pub async fn run(ends: Ends, standing: Arc<Standing>) {
    let mut failures = 0;
    loop {
        standing.set(ends.source.id, State::Connecting, None);
        let applied = standing.applied(ends.source.id);
        let Err(error) = once(&ends, &standing).await;
        if standing.applied(ends.source.id) != applied {
            failures = 0;
        }
        failures += 1;
        let stopped = matches!(error, LinkError::Apply(_)) && failures >= TRIES_MAX;
        let state = if stopped { State::Stopped } else { State::Retrying };
        if standing.set(ends.source.id, state, Some(error.to_string())) {
            tracing::warn!(node = ends.source.name, %error, "the link is interrupted");
        }
        let wait = RETRY_AFTER * 2_u32.saturating_pow(failures.min(10) - 1);
        let max = if matches!(error, LinkError::Wire(_)) { RECONNECT_AFTER_MAX } else { RETRY_AFTER_MAX };
        tokio::time::sleep(wait.min(max)).await;
    }
}

/// A stream that is being applied.
struct Flow<'a> {
    ends: &'a Ends,
    standing: &'a Standing,
    stream: Replication,
    assembler: Assembler,
    applier: Applier,
    /// Everything before here was received and, if it had something for us, applied.
    received: Lsn,
    batch: Vec<Transaction>,
}

async fn once(ends: &Ends, standing: &Standing) -> Result<std::convert::Infallible, LinkError> {
    let control = ends.local.control("antiphon mesh link").await?;
    standing.read_server_clock(&control).await?;
    // The session first: when the tables' settings change, those that know the old ones are ended.
    let session = Session::open(&ends.local, &ends.names.origin(ends.source.id)).await?;
    let (tables, identity, from, before) = look(ends, &control).await?;
    let progress = from.progress;
    let members = members::read(&control).await?;
    let mut seen = seen_at_first(&members, ends.source.id);
    for (node, at) in before.iter() {
        seen.advance(node, at);
    }
    drop(control);

    let mut connection =
        Connection::open(&ends.remote, Kind::Replication, "antiphon mesh", &SETTINGS).await?;
    recognise(ends, &mut connection, progress).await?;
    let version = connection.server_version();
    let protocol = match version {
        160_000.. => 4,
        150_000.. => 3,
        _ => 2,
    };
    let (number, publication) = (protocol.to_string(), format!("\"{}\"", ends.names.publication()));
    let mut options = vec![
        ("proto_version", number.as_str()),
        ("publication_names", &publication),
        ("messages", "true"),
        ("streaming", "true"),
    ];
    if version >= FILTERS_ORIGIN {
        options.push(("origin", "none"));
    }
    let stream = Replication::start(connection, &ends.names.slot(ends.own), progress, &options).await?;
    let merger = Merger::new(ends.local.clone(), ends.names.clone(), standing.turn());
    let applier = Applier::new(session, identity, tables, Steps::new(protocol), merger, seen, from);
    let batch = Vec::with_capacity(BATCH_MAX);
    let mut flow = Flow {
        ends,
        standing,
        stream,
        assembler: Assembler::new(protocol),
        applier,
        received: progress,
        batch,
    };
    standing.set(ends.source.id, State::Streaming, None);
    let Err(error) = flow.run().await;
    if matches!(error, LinkError::Apply(_)) {
        standing.fails_at(ends.source.id, flow.applier.at());
    }
    Err(error)
}

impl Flow<'_> {
    async fn run(&mut self) -> Result<std::convert::Infallible, LinkError> {
        let mut due = tokio::time::interval(CONFIRM_EVERY);
        loop {
            let frame = tokio::select! {
                frame = self.stream.next() => frame?,
                _ = due.tick() => {
                    self.confirm().await?;
                    continue;
                }
            };
            let mut asked = self.take(frame)?;
            while self.batch.len() < BATCH_MAX
                && let Some(frame) = self.stream.buffered()
            {
                asked |= self.take(frame)?;
            }
            self.apply().await?;
            if asked {
                self.confirm().await?;
            }
        }
    }

    /// Takes one piece of the stream; says whether the source waits for an answer.
    fn take(&mut self, frame: Frame) -> Result<bool, LinkError> {
        let node = || self.ends.source.name.clone();
        match frame {
            Frame::Data { data, .. } => {
                let whole = self.assembler.take(data);
                let whole = whole.map_err(|error| LinkError::Stream { node: node(), error })?;
                self.batch.extend(whole);
                Ok(false)
            }
            Frame::Keepalive { end, reply_now } => {
                if !self.assembler.is_within() && self.batch.is_empty() {
                    self.received = self.received.max(end);
                    self.standing.advance(self.ends.source.id, self.received, None);
                }
                Ok(reply_now)
            }
        }
    }

    async fn apply(&mut self) -> Result<(), LinkError> {
        let Some(last) = self.batch.last() else { return Ok(()) };
        let end = last.end;
        // Older servers send what others wrote as well; that is waited for where it comes from.
        let own = self.batch.iter().filter(|whole| whole.forwarded_from.is_none());
        let latest = own.map(|whole| whole.committed_at).max();
        self.wait_for_clock(latest.unwrap_or(CommitTime::UNKNOWN)).await?;
        let settled = self.standing.reached().of_all_but(&[self.ends.source.id]);
        let mut due = tokio::time::interval(CONFIRM_EVERY);
        let applied = {
            let mut applying = pin!(self.applier.apply(&mut self.batch, settled));
            loop {
                tokio::select! {
                    applied = &mut applying => break applied?,
                    // However long it takes, the source hears of us, and does not end the stream.
                    _ = due.tick() => {
                        let safe = self.standing.safe(self.ends.source.id);
                        self.stream.confirm(safe, clock().0, false).await?;
                    }
                }
            }
        };
        self.batch.clear();
        self.received = self.received.max(end);
        let node = self.ends.source.id;
        self.standing.count(node, &applied);
        self.standing.advance(node, self.received, applied.complete_to);
        Ok(())
    }

    /// A change is not applied before the clock here has passed its time: so whatever is written here over it is
    /// later than it, by the clocks as well.
    async fn wait_for_clock(&mut self, at: CommitTime) -> Result<(), LinkError> {
        // Past it, not just at it: at the same time the greater node would win, not the later write.
        let past = CommitTime(at.0.saturating_add(1));
        while let Some(ahead) = self.standing.server_clock(clock()).micros_to(past) {
            let ahead = Duration::from_micros(ahead);
            if ahead > SKEW_MAX {
                return Err(LinkError::Skew { node: self.ends.source.name.clone(), ahead });
            }
            self.standing.waited_for_clock(self.ends.source.id, ahead);
            tokio::time::sleep(ahead.min(CONFIRM_EVERY)).await;
        }
        Ok(())
    }

    /// Tells the source how far its changes are safe here.
    async fn confirm(&mut self) -> Result<(), LinkError> {
        let safe = self.standing.safe(self.ends.source.id);
        Ok(self.stream.confirm(safe, clock().0, false).await?)
    }
}

/// Makes sure that this is the database which was read so far.
async fn recognise(ends: &Ends, connection: &mut Connection, progress: Lsn) -> Result<(), LinkError> {
    let node = &ends.source.name;
    let rows = connection.query("SELECT id::text, node::text FROM antiphon.mesh").await?;
    let expected = [Some(ends.names.id.clone()), Some(ends.source.id.to_string())];
    if rows.first().is_none_or(|row| **row != expected) {
        return Err(LinkError::NotSetUp(format!(
            "the database at {} is not node {node} of mesh {}: correct its connection string",
            ends.remote, ends.names.mesh
        )));
    }
    let system = connection.identify_system().await?;
    if system.xlogpos < progress {
        return Err(LinkError::NotSetUp(format!(
            "node {node} is at {} in its log, but it was applied here up to {progress}: it was restored from a backup \
             or lost its end; take it out with `antiphon mesh leave` and let it join again",
            system.xlogpos
        )));
    }
    Ok(())
}

/// What the source had seen of the others before it said anything: nothing. Not of those that left either: it says so
/// itself when it has all that they wrote, and what it wrote before may not have seen it.
fn seen_at_first(members: &[Member], source: NodeId) -> Reached {
    Reached::unknown(members.iter().map(|member| member.id).filter(|id| *id != source))
}

/// Reads what this node has: its tables, who is who, and how far the source is applied.
async fn look(
    ends: &Ends,
    control: &tokio_postgres::Client,
) -> Result<(Vec<Shape>, Identity, Resume, Reached), LinkError> {
    let missing = |what: &str| LinkError::NotSetUp(format!("{what}: run `antiphon mesh join` again"));
    control.batch_execute("SET search_path = ''").await?;
    let mut tables = Vec::new();
    for row in control.query(CATALOGUE, &[]).await? {
        let shape = serde_json::from_str(row.get(0));
        tables.push(
            shape
                .map_err(|error| missing(&format!("a table cannot be read from the catalogue ({error})")))?,
        );
    }
    let mut nodes = HashMap::from([(0, ends.own)]);
    let mut origin = None;
    for row in
        control.query("SELECT roident::bigint, roname FROM pg_catalog.pg_replication_origin", &[]).await?
    {
        let (number, name): (i64, String) = (row.get(0), row.get(1));
        let number = u32::try_from(number).expect("an oid has 32 bits");
        if let Some(node) = ends.names.node_of_origin(&name) {
            nodes.insert(number, node);
            // Of the two that stand for it, the one that this link writes with.
            if name == ends.names.origin(ends.source.id) {
                origin = Some(number);
            }
        }
    }
    let origin = origin.ok_or_else(|| missing("there is no replication origin for it"))?;
    let progress = "SELECT p.lsn::text, l.skip::text, l.seen::text FROM antiphon.progress p \
                    LEFT JOIN antiphon.links l ON l.node = p.node WHERE p.node = $1";
    let row = control.query_opt(progress, &[&id(ends.source.id)]).await?;
    let row = row.ok_or_else(|| missing("nothing says how far it is applied"))?;
    let lsn = |text: &str| text.parse::<Lsn>().map_err(|error| LinkError::NotSetUp(error.to_string()));
    let from =
        Resume { progress: lsn(row.get(0))?, skip: row.get::<_, Option<&str>>(1).map(lsn).transpose()? };
    // What is written down was written after what it speaks of was applied: it holds for all that comes now.
    let seen = row.get::<_, Option<&str>>(2).map(parse_reached).transpose();
    let seen = seen.map_err(|error| LinkError::NotSetUp(error.to_string()))?.unwrap_or_default();
    Ok((tables, Identity { source: ends.source.id, own: ends.own, origin, nodes }, from, seen))
}

/// This machine's clock, in microseconds since 2000.
#[must_use]
pub fn clock() -> CommitTime {
    const UNIX_TO_2000_MICROS: i64 = 946_684_800_000_000;
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    CommitTime(i64::try_from(since_1970.as_micros()).unwrap_or(i64::MAX) - UNIX_TO_2000_MICROS)
}
