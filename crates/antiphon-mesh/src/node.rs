//! A node at work: a link from each of the others, announcements in the own log, and tidying up.
//!
//! Who takes part stands in the database, so links come and go with its rows; nothing else is configured.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use antiphon_core::mesh::{CommitTime, Completeness, NodeId, Reached};
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_postgres::Client;

use crate::announcement::{self, Announcement, PREFIX};
use crate::dsn::Dsn;
use crate::link::{self, Ends};
use crate::members::{self, Member, Names};
use crate::shape::{CATALOGUE, Shape};
use crate::standing::{Link, Standing};
use crate::verify::{self, Site};

/// How often a node looks after itself, and announces when something happens.
const TICK: Duration = Duration::from_millis(100);
/// How often it announces when nothing does.
const QUIET_EVERY: Duration = Duration::from_secs(2);
/// How often it looks who takes part.
const MEMBERS_EVERY: Duration = Duration::from_secs(1);
/// How often tombstones are collected.
const COLLECT_EVERY: Duration = Duration::from_secs(10);
/// How long after a failure it connects again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What a node needs to be told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its own database.
    pub connect: Dsn,
    /// How to reach others, where that differs from what the mesh has written down; by name.
    pub peers: BTreeMap<String, Dsn>,
    /// The environment, for passwords.
    pub env: BTreeMap<String, String>,
}

/// Why a node cannot work.
#[derive(Debug, Error)]
pub enum NodeError {
    /// Its server cannot be reached.
    #[error(transparent)]
    Wire(#[from] crate::wire::WireError),
    /// Its server fails.
    #[error("the node's own database: {}", explain(.0))]
    Control(#[from] tokio_postgres::Error),
    /// Its database is not what it should be.
    #[error("{0}")]
    NotSetUp(String),
}

/// What the server said, which the library's error hides in its source.
#[must_use]
pub fn explain(error: &tokio_postgres::Error) -> String {
    let Some(server) = error.as_db_error() else { return error.to_string() };
    let hint = server.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
    format!("{}{hint}", server.message())
}

/// Works as a node until the task is dropped. How it stands is shown in `shown`.
pub async fn run(config: Config, shown: watch::Sender<Arc<Standing>>) {
    let mut last = String::new();
    loop {
        // What was applied before a crash of the server may not be any more: nothing is carried over.
        let standing = Arc::new(Standing::default());
        shown.send_replace(standing.clone());
        let Err(error) = once(&config, &standing).await;
        let error = error.to_string();
        if error != last {
            tracing::error!("the mesh is interrupted: {error}");
            last = error;
        }
        tokio::time::sleep(RETRY_AFTER).await;
    }
}

/// Who this node is, as its database says.
#[derive(Clone, Debug)]
pub struct Own {
    /// Its number.
    pub id: NodeId,
    /// The mesh's names.
    pub names: Names,
}

/// Reads who this database is.
///
/// # Errors
/// If it takes part in no mesh, or is the copy of a database that does.
pub async fn own(client: &Client) -> Result<Own, NodeError> {
    let not = || {
        NodeError::NotSetUp(
            "this database takes part in no mesh: run `antiphon mesh create` or `join`".into(),
        )
    };
    let exists = "SELECT pg_catalog.to_regclass('antiphon.mesh') IS NOT NULL";
    if !client.query_one(exists, &[]).await?.get::<_, bool>(0) {
        return Err(not());
    }
    let row = "SELECT m.name, m.id::text, m.node, m.system_id = s.system_identifier::text \
               FROM antiphon.mesh m, pg_catalog.pg_control_system() s";
    let row = client.query_opt(row, &[]).await?.ok_or_else(not)?;
    if !row.get::<_, bool>(3) {
        return Err(NodeError::NotSetUp(
            "this database is a copy of a node's, made into another server: two nodes cannot have one number; drop \
             schema antiphon here and let it join as a new node"
                .into(),
        ));
    }
    let (name, id, number): (String, String, i16) = (row.get(0), row.get(1), row.get(2));
    let number = u16::try_from(number).ok().and_then(NodeId::new).ok_or_else(not)?;
    Ok(Own { id: number, names: Names::new(&name, &id).map_err(NodeError::NotSetUp)? })
}

struct Node<'a> {
    config: &'a Config,
    standing: &'a Arc<Standing>,
    client: Client,
    own: Own,
    links: JoinSet<()>,
    comparing: JoinSet<()>,
    running: BTreeMap<NodeId, (Member, tokio::task::AbortHandle)>,
    /// Who takes part, as the links that run know it.
    active: Vec<NodeId>,
    completeness: Completeness,
    announced: Option<Announced>,
}

/// What the last announcement was made on.
struct Announced {
    at: Instant,
    next_transaction: i64,
    transactions: u64,
}

async fn once(config: &Config, standing: &Arc<Standing>) -> Result<std::convert::Infallible, NodeError> {
    let client = config.connect.control("antiphon mesh node").await?;
    client.batch_execute("SET search_path = ''; SET synchronous_commit = on").await?;
    let own = own(&client).await?;
    // While its rows are copied, the origins are the copy's, and whatever is tidied up or announced would be wrong.
    let active =
        members::read(&client).await?.iter().any(|member| member.id == own.id && member.state == "active");
    if !active {
        return Err(NodeError::NotSetUp(
            "this node is joining and takes part as soon as `antiphon mesh join` is done; if that failed, run \
             `antiphon mesh leave` and join again"
                .into(),
        ));
    }
    let mut node = Node {
        config,
        standing,
        client,
        own,
        links: JoinSet::new(),
        comparing: JoinSet::new(),
        running: BTreeMap::new(),
        active: Vec::new(),
        completeness: Completeness::default(),
        announced: None,
    };
    node.run().await
}

impl Node<'_> {
    async fn run(&mut self) -> Result<std::convert::Infallible, NodeError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut members_at, mut collected_at) = (None::<Instant>, Instant::now());
        loop {
            tick.tick().await;
            if members_at.is_none_or(|at| at.elapsed() >= MEMBERS_EVERY) {
                self.look_who_takes_part().await?;
                members_at = Some(Instant::now());
            }
            self.announce().await?;
            if collected_at.elapsed() >= COLLECT_EVERY {
                self.collect().await?;
                collected_at = Instant::now();
            }
        }
    }

    /// Begins and ends links as nodes come and go.
    async fn look_who_takes_part(&mut self) -> Result<(), NodeError> {
        let paused = "SELECT node FROM antiphon.links WHERE paused";
        let paused = self.client.query(paused, &[]).await?;
        let paused: Vec<i16> = paused.iter().map(|row| row.get(0)).collect();
        let members = members::read(&self.client).await?;
        let own = self.own.id;
        let active: Vec<NodeId> =
            members.iter().filter(|member| member.state == "active").map(|member| member.id).collect();
        if active != self.active {
            self.compare_in_background(&members)?;
            // A link knows the origins that there were when it began. To one that does not know the newcomer's, its
            // rows would look like the source's own, and an older change would overwrite them.
            for (_, handle) in std::mem::take(&mut self.running).into_values() {
                handle.abort();
            }
            self.active = active;
        }
        for member in members.into_iter().filter(|member| member.id != own) {
            let wanted =
                member.takes_part() && !paused.contains(&i16::try_from(member.id.number()).unwrap_or(0));
            if member.takes_part() {
                self.standing.admit(member.id, &member.name);
            } else {
                self.standing.release(member.id);
            }
            let running = self.running.get(&member.id);
            if running.is_some_and(|(then, handle)| !wanted || *then != member || handle.is_finished()) {
                let (_, handle) = self.running.remove(&member.id).expect("it was just there");
                handle.abort();
            }
            if wanted && member.state == "active" && !self.running.contains_key(&member.id) {
                self.begin(member)?;
            }
        }
        while self.links.try_join_next().is_some() {}
        Ok(())
    }

    /// How another node is reached.
    fn remote(&self, member: &Member) -> Result<Dsn, NodeError> {
        match self.config.peers.get(&member.name) {
            Some(remote) => Ok(remote.clone()),
            None => Dsn::parse(&member.connect, &self.config.env).map_err(|error| {
                NodeError::NotSetUp(format!("the connection string of node {}: {error}", member.name))
            }),
        }
    }

    /// The node with the lowest number compares the rows of all; once is enough.
    fn compare_in_background(&mut self, members: &[Member]) -> Result<(), NodeError> {
        self.comparing = JoinSet::new();
        self.standing.set_diverged_rows(None);
        let active: Vec<&Member> = members.iter().filter(|member| member.state == "active").collect();
        if active.len() < 2 || active.iter().any(|member| member.id < self.own.id) {
            return Ok(());
        }
        let site = |member: &&Member| {
            let own = member.id == self.own.id;
            let dsn = if own { self.config.connect.clone() } else { self.remote(member)? };
            Ok(Site { id: member.id, name: member.name.clone(), dsn })
        };
        let sites: Vec<Site> = active.iter().map(site).collect::<Result<_, NodeError>>()?;
        self.comparing.spawn(verify::run_in_background(sites, self.standing.clone()));
        Ok(())
    }

    fn begin(&mut self, member: Member) -> Result<(), NodeError> {
        let remote = self.remote(&member)?;
        let ends = Ends {
            names: self.own.names.clone(),
            own: self.own.id,
            local: self.config.connect.clone(),
            source: member.clone(),
            remote,
        };
        let handle = self.links.spawn(link::run(ends, self.standing.clone()));
        self.running.insert(member.id, (member, handle));
        Ok(())
    }

    /// Says in the own log up to when it is complete and what is applied here. Its commit waits as the cluster's own
    /// settings say; when it is through, what was applied before it is safe, too.
    async fn announce(&mut self) -> Result<(), NodeError> {
        // The clock first: who is not in the snapshot that follows commits later than that.
        let now = self.standing.read_server_clock(&self.client).await?;
        let snapshot = "SELECT pg_catalog.pg_snapshot_xmin(s)::text::bigint, pg_catalog.pg_snapshot_xmax(s)::text::bigint \
                        FROM pg_catalog.pg_current_snapshot() s";
        let row = self.client.query_one(snapshot, &[]).await?;
        let (oldest, next): (i64, i64) = (row.get(0), row.get(1));
        let complete_to = self.completeness.observe(now, oldest.cast_unsigned(), next.cast_unsigned());
        let links = self.standing.links();
        let transactions = links.values().map(|link| link.transactions).sum();
        if let Some(last) = &self.announced
            // One of them was the last announcement's own.
            && next - last.next_transaction <= 1
            && transactions == last.transactions
            && last.at.elapsed() < QUIET_EVERY
        {
            return Ok(());
        }
        let applied = self.standing.reached();
        let announcement = Announcement { node: self.own.id, complete_to, applied: applied.clone() };
        let transaction = self.client.transaction().await?;
        for (node, link) in &links {
            write_down(&transaction, *node, link, applied.of(*node)).await?;
        }
        let emit = "SELECT pg_catalog.pg_logical_emit_message(true, $1, $2::text)";
        transaction.execute(emit, &[&PREFIX, &announcement.to_text()]).await?;
        transaction.commit().await?;
        self.standing.is_safe(&links);
        self.announced = Some(Announced { at: Instant::now(), next_transaction: next, transactions });
        Ok(())
    }

    /// Forgets deletes that no change can meet any more, and whose time everybody has seen.
    async fn collect(&mut self) -> Result<(), NodeError> {
        let before = self.seen_by_everybody();
        // Whoever joins just now has applied nothing yet.
        self.look_who_takes_part().await?;
        let horizon = before.min(self.seen_by_everybody());
        if horizon == CommitTime::UNKNOWN {
            return Ok(());
        }
        if !self.collect_ledgers(horizon).await? {
            return Ok(());
        }
        let tables =
            "SELECT 'antiphon.gone_' || id FROM antiphon.tables UNION ALL SELECT 'antiphon.truncations'";
        for row in self.client.query(tables, &[]).await? {
            let table: String = row.get(0);
            let old = format!(
                "DELETE FROM {table} WHERE coalesce((extract(epoch FROM pg_catalog.pg_xact_commit_timestamp(xmin)) \
                 * 1000000 - 946684800000000)::bigint, 0) <= $1"
            );
            self.client.execute(&old, &[&horizon.0]).await?;
        }
        Ok(())
    }

    /// Everything that is older than this is applied here and on all other nodes, whoever wrote it, and what they write
    /// from now on comes from somebody who has seen it.
    fn seen_by_everybody(&self) -> CommitTime {
        let links = self.standing.links();
        let seen =
            |of: NodeId| links.get(&of).map_or(CommitTime::UNKNOWN, |link| link.seen.of_all_but(&[of]));
        let others = self.active.iter().filter(|node| **node != self.own.id);
        others.map(|node| seen(*node)).fold(self.standing.reached().of_all_but(&[]), CommitTime::min)
    }

    /// Forgets what was counted in rows that are gone; false if somebody is in the way. Every node does so itself: what
    /// it deletes is not sent on.
    async fn collect_ledgers(&mut self, horizon: CommitTime) -> Result<bool, NodeError> {
        let mut statements = Vec::new();
        for row in self.client.query(CATALOGUE, &[]).await? {
            let shape: Result<Shape, _> = serde_json::from_str(row.get(0));
            let Some(shape) = shape.ok().filter(|shape| shape.ledger.is_some()) else { continue };
            statements.extend([shape.forget_truncated(), shape.forget_deleted()]);
        }
        if statements.is_empty() {
            return Ok(true);
        }
        let origin = self.own.names.repair_origin(self.own.id);
        let take = "SELECT pg_catalog.pg_replication_origin_session_setup($1)";
        if let Err(error) = self.client.execute(take, &[&origin]).await {
            // A link or a repair has it for a moment.
            let taken = error.code().is_some_and(|code| code.code() == "55006");
            return if taken { Ok(false) } else { Err(error.into()) };
        }
        let transaction = self.client.transaction().await?;
        transaction.batch_execute("SET LOCAL session_replication_role = replica").await?;
        for statement in statements {
            transaction.execute(&statement, &[&horizon.0]).await?;
        }
        let stamp = "SELECT pg_catalog.pg_replication_origin_xact_setup('0/1', pg_catalog.clock_timestamp())";
        transaction.execute(stamp, &[]).await?;
        transaction.commit().await?;
        self.client.execute("SELECT pg_catalog.pg_replication_origin_session_reset()", &[]).await?;
        Ok(true)
    }
}

/// Notes how a link stands, for people and for a node that joins.
async fn write_down(
    transaction: &tokio_postgres::Transaction<'_>,
    node: NodeId,
    link: &Link,
    complete_to: CommitTime,
) -> Result<(), NodeError> {
    let number = i16::try_from(node.number()).expect("numbers are smallint");
    let complete_to = (complete_to != CommitTime::UNKNOWN).then_some(complete_to.0);
    let upsert = "INSERT INTO antiphon.links AS l (node, state, message, complete_to, applied, failed, seen) \
        VALUES ($1, $2, $3, timestamptz '2000-01-01 00:00:00+00' + $4::bigint * interval '1 microsecond', $5, $6::text::pg_lsn, $7::text::jsonb) \
        ON CONFLICT (node) DO UPDATE SET state = excluded.state, message = excluded.message, at = excluded.at, \
        complete_to = coalesce(excluded.complete_to, l.complete_to), applied = excluded.applied, \
        failed = excluded.failed, seen = coalesce(excluded.seen, l.seen)";
    let transactions = i64::try_from(link.transactions).unwrap_or(i64::MAX);
    let state = link.state.name();
    // A link that has applied nothing yet knows less than what is written down.
    let seen = (link.seen != Reached::default()).then(|| announcement::reached_text(&link.seen));
    let failed = link.failed.map(|failed| failed.to_string());
    transaction
        .execute(upsert, &[&number, &state, &link.message, &complete_to, &transactions, &failed, &seen])
        .await?;
    // What had nothing for us leaves no trace in the progress but this.
    let lsn = link.applied.to_string();
    let progress =
        "UPDATE antiphon.progress SET lsn = $2::text::pg_lsn WHERE node = $1 AND lsn < $2::text::pg_lsn";
    transaction.execute(progress, &[&number, &lsn]).await?;
    Ok(())
}
