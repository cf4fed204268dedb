//! One more node: slots first, then a copy at one moment of another node, then the changes since.
//!
//! What makes it exact: every other node has a slot for the newcomer before the copy's moment, and the donor has
//! applied everything up to those slots' beginnings. So whatever is not in the copy comes by a stream, and the copy
//! says for each stream from where.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use antiphon_core::Lsn;
use antiphon_core::mesh::joining::Horizon;
use antiphon_core::mesh::{CommitTime, NodeId};
use tokio_postgres::Client;

use super::copy::Copy;
use super::create::{check_name, take_in};
use super::{SetupError, check, install, settings};
use crate::dsn::Dsn;
use crate::manage::id as id_of;
use crate::members::{self, Member, Names};
use crate::name::TableName;
use crate::node::{self, NodeError};
use crate::shape::Shape;
use crate::wire::replication::Snapshot;
use crate::wire::{Connection, Kind};

/// How long the donor may take to apply what the others had written.
const LEVEL_PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);

/// A node that is to join.
#[derive(Clone, Debug)]
pub struct Joining {
    /// What it is called.
    pub node: String,
    /// Its database, which has the tables already, empty.
    pub connect: Dsn,
    /// How others reach it.
    pub advertise: String,
    /// The node that it gets its rows from.
    pub donor: Dsn,
    /// How to reach others, where that differs from what is written down; by name.
    pub peers: BTreeMap<String, Dsn>,
    /// The environment, for passwords.
    pub env: BTreeMap<String, String>,
}

/// How far a join is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The donor applies what the others had written.
    Levelling,
    /// A table is copied.
    Copying {
        /// Which.
        table: String,
        /// The how many-eth of all.
        nth: usize,
        /// How many there are.
        of: usize,
        /// Bytes so far, of all tables.
        bytes: u64,
        /// About how many there will be.
        bytes_about: u64,
    },
    /// It takes part.
    Done {
        /// Rows that were copied.
        rows: u64,
    },
}

/// A node that takes part already.
struct Other {
    member: Member,
    dsn: Dsn,
    client: Client,
}

/// Lets a database join as a new node; gives its number.
///
/// # Errors
/// What has to be put right first, or why it failed. What was made until then, `leave` takes away.
pub async fn join(joining: &Joining, mut tell: impl FnMut(Progress)) -> Result<NodeId, SetupError> {
    check_name(&joining.node)?;
    let target = joining.connect.control("antiphon mesh join").await?;
    target.batch_execute("SET search_path = ''").await?;
    if let Ok(own) = node::own(&target).await {
        return Err(SetupError::Refused(format!(
            "this database is a node of mesh {} already",
            own.names.mesh
        )));
    }
    let donor = joining.donor.control("antiphon mesh join").await?;
    donor.batch_execute("SET search_path = ''").await?;
    let own = node::own(&donor).await.map_err(|error| match error {
        NodeError::NotSetUp(why) => {
            SetupError::Refused(format!("the database to join, {}, is of no use: {why}", joining.donor))
        }
        other => other.into(),
    })?;
    let names = own.names.clone();
    let shapes = install::shapes(&donor).await?;
    // Ledgers are made here.
    let tables = shapes.iter().filter(|shape| shape.ledger_of.is_none());
    let tables: Vec<TableName> = tables.map(Shape::table).collect();
    let mut findings = check(&target, &tables).await?;
    for table in &tables {
        findings.extend(not_empty(&target, table).await?);
    }
    if !findings.is_empty() {
        return Err(SetupError::NotReady { findings });
    }
    let others = reach(joining, &donor).await?;
    let id = enrol(joining, &others).await?;
    prepare(joining, &target, &names, id, &others, &shapes).await?;
    for other in &others {
        // After the publication: a slot reads it as it was where the slot began.
        admit(other, joining, id).await?;
    }

    // Slots on everybody but the donor, then the donor past their beginnings, then its own slot and the copy.
    let mut begins = BTreeMap::new();
    for other in others.iter().filter(|other| other.member.id != own.id) {
        let mut connection =
            Connection::open(&other.dsn, Kind::Replication, "antiphon mesh join", &[]).await?;
        let created = connection.create_slot(&names.slot(id), Snapshot::Nothing, false, false).await?;
        begins.insert(other.member.id, created.lsn);
    }
    tell(Progress::Levelling);
    level(&donor, &begins).await?;
    let mut exporting =
        Connection::open(&joining.donor, Kind::Replication, "antiphon mesh join", &[]).await?;
    // Whatever the donor commits behind the slot is later than this.
    let clock = CommitTime(donor.query_one(NOW, &[]).await?.get(0));
    let slot = exporting.create_slot(&names.slot(id), Snapshot::Export, false, false).await?;
    begin_copy(&donor, slot.snapshot.as_deref().unwrap_or_default()).await?;
    let horizon = horizon(&donor, own.id, clock).await?;
    let progress = progress_of(&donor, &others, own.id, slot.lsn).await?;
    let copy =
        Copy { donor: &donor, donor_id: own.id, target: &target, names: &names, horizon, begin: slot.lsn };
    let rows = copy.all(&shapes, &install::shapes(&target).await?, &mut tell).await?;
    donor.batch_execute("COMMIT").await?;
    drop(exporting);
    wait_for_clock(&donor, &target).await?;

    for (node, lsn) in progress {
        let set = "UPDATE antiphon.progress SET lsn = $2::text::pg_lsn WHERE node = $1";
        target.execute(set, &[&id_of(node), &lsn.to_string()]).await?;
    }
    let active = "UPDATE antiphon.nodes SET state = 'active' WHERE id = $1";
    target.execute(active, &[&id_of(id)]).await?;
    for other in &others {
        other.client.execute(active, &[&id_of(id)]).await?;
    }
    tell(Progress::Done { rows });
    Ok(id)
}

async fn not_empty(target: &Client, table: &TableName) -> Result<Option<super::Finding>, SetupError> {
    let name = table.to_string();
    let exists = "SELECT pg_catalog.to_regclass($1::text) IS NOT NULL";
    if !target.query_one(exists, &[&name]).await?.get::<_, bool>(0) {
        return Ok(None);
    }
    let any = target.query_one(&format!("SELECT EXISTS (SELECT FROM {name})"), &[]).await?;
    let finding = super::Finding {
        what: format!("{name} has rows here"),
        remedy: "empty it: a node that joins gets its rows from another".into(),
    };
    Ok(any.get::<_, bool>(0).then_some(finding))
}

/// Connects to everybody who takes part.
async fn reach(joining: &Joining, donor: &Client) -> Result<Vec<Other>, SetupError> {
    let mut others = Vec::new();
    for member in members::read(donor).await? {
        if !member.takes_part() {
            continue;
        }
        let dsn = match joining.peers.get(&member.name) {
            Some(dsn) => dsn.clone(),
            None => Dsn::parse(&member.connect, &joining.env)
                .map_err(|error| SetupError::Refused(format!("node {}: {error}", member.name)))?,
        };
        let client = dsn.control("antiphon mesh join").await.map_err(|error| {
            SetupError::Refused(format!(
                "node {} cannot be reached, and every node must know of a new one: {error}",
                member.name
            ))
        })?;
        client.batch_execute("SET search_path = ''").await?;
        others.push(Other { member, dsn, client });
    }
    Ok(others)
}

/// Writes the newcomer down on every node, under a number that nobody had.
async fn enrol(joining: &Joining, others: &[Other]) -> Result<NodeId, SetupError> {
    let mut highest = 0;
    for other in others {
        let row =
            other.client.query_one("SELECT coalesce(max(id), 0)::smallint FROM antiphon.nodes", &[]).await?;
        highest = highest.max(row.get::<_, i16>(0));
        let taken = "SELECT FROM antiphon.nodes WHERE name = $1";
        if other.client.query_opt(taken, &[&joining.node]).await?.is_some() {
            return Err(SetupError::Refused(format!(
                "the mesh has, or had, a node {}: take another name",
                joining.node
            )));
        }
    }
    let id = u16::try_from(highest).ok().and_then(|highest| NodeId::new(highest + 1));
    let id = id.ok_or_else(|| SetupError::Refused("there are no more numbers for nodes".into()))?;
    for other in others {
        let insert = "INSERT INTO antiphon.nodes (id, name, connect, state) VALUES ($1, $2, $3, 'joining')";
        other.client.execute(insert, &[&id_of(id), &joining.node, &joining.advertise]).await.map_err(
            |error| {
                SetupError::Refused(format!(
                    "node {} would not have number {id}: {}; does another join at the same time?",
                    joining.node,
                    node::explain(&error)
                ))
            },
        )?;
    }
    Ok(id)
}

/// Makes on an old node what it needs to read from the new one.
async fn admit(other: &Other, joining: &Joining, id: NodeId) -> Result<(), SetupError> {
    let own = node::own(&other.client).await?;
    install::origins(&other.client, &own.names, id, false).await?;
    let mut connection =
        Connection::open(&joining.connect, Kind::Replication, "antiphon mesh join", &[]).await?;
    let slot = connection.create_slot(&own.names.slot(own.id), Snapshot::Nothing, false, false).await?;
    let insert = "INSERT INTO antiphon.progress (node, lsn) VALUES ($1, $2::text::pg_lsn)";
    other.client.execute(insert, &[&id_of(id), &slot.lsn.to_string()]).await?;
    Ok(())
}

/// Makes the new node's schema, with everybody in it.
async fn prepare(
    joining: &Joining,
    target: &Client,
    names: &Names,
    id: NodeId,
    others: &[Other],
    shapes: &[Shape],
) -> Result<(), SetupError> {
    target.batch_execute("BEGIN").await?;
    install::schema(target).await?;
    let insert = "INSERT INTO antiphon.mesh (name, id, node, system_id) \
        SELECT $1, $2::text::uuid, $3, system_identifier::text FROM pg_catalog.pg_control_system()";
    target.execute(insert, &[&names.mesh, &names.id, &id_of(id)]).await?;
    let insert = "INSERT INTO antiphon.nodes (id, name, connect, state) VALUES ($1, $2, $3, $4)";
    let donor = others.first().expect("the donor takes part");
    for member in members::read(&donor.client).await? {
        let state = &member.state;
        target.execute(insert, &[&id_of(member.id), &member.name, &member.connect, state]).await?;
        if member.id == id {
            continue;
        }
        // Rows of those that left are here, too.
        install::origins(target, names, member.id, false).await?;
        if !member.takes_part() {
            continue;
        }
        let progress = "INSERT INTO antiphon.progress (node, lsn) VALUES ($1, '0/0')";
        target.execute(progress, &[&id_of(member.id)]).await?;
    }
    install::origins(target, names, id, true).await?;
    let tables = shapes.iter().filter(|shape| shape.ledger_of.is_none());
    take_in(target, names, &tables.map(Shape::table).collect::<Vec<_>>()).await?;
    target.batch_execute("COMMIT").await?;
    for shape in shapes.iter().filter(|shape| shape.ledger_of.is_none()) {
        settings::set_from_the_first(target, names, shape).await?;
    }
    tracing::info!(node = joining.node, %id, "prepared");
    Ok(())
}

/// Waits until the donor has applied everything before these points of the others' logs.
async fn level(donor: &Client, begins: &BTreeMap<NodeId, Lsn>) -> Result<(), SetupError> {
    let deadline = Instant::now() + LEVEL_PATIENCE;
    for (node, begin) in begins {
        loop {
            let reached = "SELECT lsn >= $2::text::pg_lsn, lsn::text FROM antiphon.progress WHERE node = $1";
            let row = donor.query_one(reached, &[&id_of(*node), &begin.to_string()]).await?;
            if row.get(0) {
                break;
            }
            if Instant::now() > deadline {
                let at: String = row.get(1);
                return Err(SetupError::Refused(format!(
                    "the node to copy from has applied node {node} only up to {at} and not to {begin}: does antiphon run \
                     there? Take what was made away with `antiphon mesh leave` and try again"
                )));
            }
            tokio::time::sleep(POLL).await;
        }
    }
    Ok(())
}

/// The server's clock, in microseconds since 2000.
const NOW: &str =
    "SELECT (extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000 - 946684800000000)::bigint";

/// Looks at the donor at the snapshot's moment from now on.
async fn begin_copy(donor: &Client, snapshot: &str) -> Result<(), SetupError> {
    let snapshot = crate::name::Literal(snapshot);
    let begin =
        format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {snapshot}");
    Ok(donor.batch_execute(&begin).await?)
}

/// Up to when the donor had applied everybody at the copy's moment.
async fn horizon(donor: &Client, donor_id: NodeId, clock: CommitTime) -> Result<Horizon, SetupError> {
    let complete = "SELECT (extract(epoch FROM l.complete_to) * 1000000 - 946684800000000)::bigint \
        FROM antiphon.nodes n LEFT JOIN antiphon.links l ON l.node = n.id, antiphon.mesh m \
        WHERE n.id <> m.node AND n.state = 'active'";
    let others = donor.query(complete, &[]).await?;
    let others =
        others.iter().map(|row| row.get::<_, Option<i64>>(0).map_or(CommitTime::UNKNOWN, CommitTime));
    Ok(Horizon::new(donor_id, clock, others))
}

/// Waits until the newcomer's clock is past the donor's: what is written there is later than what was copied.
async fn wait_for_clock(donor: &Client, target: &Client) -> Result<(), SetupError> {
    let now = "SELECT pg_catalog.clock_timestamp()::text";
    let copied: String = donor.query_one(now, &[]).await?.get(0);
    let deadline = Instant::now() + LEVEL_PATIENCE;
    let past = "SELECT pg_catalog.clock_timestamp() > $1::text::timestamptz";
    while !target.query_one(past, &[&copied]).await?.get::<_, bool>(0) {
        if Instant::now() > deadline {
            return Err(SetupError::Refused(
                "the clock of this server is minutes behind the other node's: set it right and join again"
                    .into(),
            ));
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// From where the newcomer reads each of the others.
async fn progress_of(
    donor: &Client,
    others: &[Other],
    donor_id: NodeId,
    begin: Lsn,
) -> Result<Vec<(NodeId, Lsn)>, SetupError> {
    let mut progress = vec![(donor_id, begin)];
    for other in others.iter().filter(|other| other.member.id != donor_id) {
        let lsn = "SELECT lsn::text FROM antiphon.progress WHERE node = $1";
        let lsn: String = donor.query_one(lsn, &[&id_of(other.member.id)]).await?.get(0);
        let lsn = lsn.parse().map_err(|error| SetupError::Refused(format!("{error}")))?;
        progress.push((other.member.id, lsn));
    }
    Ok(progress)
}
