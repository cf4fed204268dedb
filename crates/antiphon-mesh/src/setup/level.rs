//! Levelling the others after a node's death: each had applied its log up to another place, and nobody has the log.
//!
//! Who had applied most has applied all that any other has. So where rows differ, and nothing is on its way any more
//! that would change it, they are what they are there.

use std::time::{Duration, Instant};

use antiphon_core::Lsn;
use antiphon_core::mesh::{Choice, NodeId, Sight};
use tokio_postgres::Client;

use super::SetupError;
use crate::dsn::Dsn;
use crate::manage::{id, pause};
use crate::members::{Member, Names};
use crate::verify::{Difference, Options, Outcome, Repair, Report, Site, repair, verify};

/// How long a link may take to stop.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);
/// How often it is compared anew although nothing could be repaired, since rows were written meanwhile.
const ROUNDS_MAX: u32 = 5;

/// A node that stays.
pub(super) struct Survivor {
    pub(super) id: NodeId,
    pub(super) name: String,
    pub(super) dsn: Dsn,
    pub(super) client: Client,
}

/// Makes all have what the one has that has most of a dead node's.
pub(super) async fn level(survivors: &[Survivor], dead: &Member, names: &Names) -> Result<(), SetupError> {
    for survivor in survivors {
        pause(&survivor.client, Some(&dead.name), true).await?;
    }
    let mut reached = Vec::new();
    for survivor in survivors {
        wait_until_free(&survivor.client, &names.origin(dead.id)).await?;
        let progress = "SELECT lsn::text, committed_at::text FROM antiphon.progress WHERE node = $1";
        let row = survivor.client.query_opt(progress, &[&id(dead.id)]).await?;
        let lsn: Lsn = match &row {
            Some(row) => {
                row.get::<_, &str>(0).parse().map_err(|error| SetupError::Refused(format!("{error}")))?
            }
            None => Lsn::default(),
        };
        reached.push((lsn, row.and_then(|row| row.get::<_, Option<String>>(1)), survivor));
    }
    let Some((lsn, last, most)) = reached.iter().max_by_key(|(lsn, ..)| *lsn) else { return Ok(()) };
    // The same place, or the same last transaction that had something for them.
    let level = |(at, transaction, _): &(Lsn, Option<String>, &Survivor)| {
        at == lsn || (last.is_some() && transaction == last)
    };
    if reached.iter().all(level) {
        return Ok(());
    }
    tracing::info!(node = dead.name, most = most.name, "the others have less of the node that is gone");
    bring(survivors, dead, most).await
}

/// Waits until nobody writes in an origin's name.
pub(super) async fn wait_until_free(client: &Client, origin: &str) -> Result<(), SetupError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let taken = "SELECT pg_catalog.pg_replication_origin_session_setup($1)";
        match client.execute(taken, &[&origin]).await {
            Ok(_) => {
                client.batch_execute("SELECT pg_catalog.pg_replication_origin_session_reset()").await?;
                return Ok(());
            }
            Err(error) if error.code().is_some_and(|code| code.code() == "55006") => {}
            Err(error) => return Err(error.into()),
        }
        if Instant::now() > deadline {
            return Err(SetupError::Refused(format!(
                "a link goes on to write as {origin}: it may wait for a client that has a row locked; end that one and \
                 repeat this"
            )));
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn bring(survivors: &[Survivor], dead: &Member, most: &Survivor) -> Result<(), SetupError> {
    let sites: Vec<Site> = survivors
        .iter()
        .map(|one| Site { id: one.id, name: one.name.clone(), dsn: one.dsn.clone() })
        .collect();
    let options = Options { lost: vec![dead.id], ..Options::default() };
    let order = Repair { choice: Choice::Node(most.id), write: true };
    let mut rounds = 0;
    loop {
        let mut report = verify(&sites, &options, |_| {}).await?;
        for table in &mut report.tables {
            table.diverged.retain(|difference| is_of(difference, dead.id, most.id));
        }
        if report.is_equal() {
            return Ok(());
        }
        let repaired = repair(&sites, &report, order, |_| {}).await?;
        rounds = if repaired.iter().any(|one| one.outcome == Outcome::Done) { 0 } else { rounds + 1 };
        let refused = repaired.iter().find(|one| matches!(one.outcome, Outcome::Refused(_)));
        if let Some(one) = refused.filter(|_| rounds > 0) {
            return Err(SetupError::Refused(format!(
                "{} {} of the node that is gone {} on node {}: put it right and repeat this, or say --force",
                one.table, one.key, one.outcome, one.node
            )));
        }
        if rounds == ROUNDS_MAX {
            return Err(SetupError::Refused(left_over(&report)));
        }
    }
}

/// Whether rows differ by something that the dead node wrote, or deleted.
fn is_of(difference: &Difference, dead: NodeId, most: NodeId) -> bool {
    match difference.sights.get(&most) {
        // Deletes are forgotten in time.
        Some(Sight::Absent) => true,
        Some(sight) => sight.version().is_some_and(|version| version.node == dead),
        None => false,
    }
}

fn left_over(report: &Report) -> String {
    let why = report.tables.iter().find_map(|table| {
        let why = match table.unsettled.first() {
            Some(row) => row.why.to_string(),
            None => table.incomparable.clone()?,
        };
        Some(format!("{}: {why}", table.table))
    });
    let why = why.unwrap_or_else(|| "they are written all the time".into());
    format!(
        "the rows of the node that is gone cannot be made the same everywhere: {why}; repeat this, or say --force"
    )
}
