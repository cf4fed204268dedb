//! Making logical slots on a leader.
//!
//! PostgreSQL finishes a new logical slot when the transactions of that moment have ended, so this goes on in
//! the background, one at a time, and is given up and tried again. It never replaces or changes a slot.

use std::sync::Arc;
use std::time::Duration;

use antiphon_core::Instant;
use antiphon_core::ha::step::NewLogicalSlot;

use super::clock::now;
use super::sql::{value, within};
use super::{Inner, QUICK, lock};
use crate::{EngineError, sentence};

/// How long PostgreSQL may take for one; it ends the attempt itself.
const CREATE_MAX: Duration = Duration::from_secs(60);
/// The pause after an attempt that failed.
const RETRY: Duration = Duration::from_secs(10);
/// The first version whose followers copy logical slots.
const COPIED_SINCE: i32 = 170_000;

const CREATE: &str =
    "SELECT pg_create_logical_replication_slot($1::text::name, $2::text::name, false, false)";
const CREATE_WITH_COPIES: &str =
    "SELECT pg_create_logical_replication_slot($1::text::name, $2::text::name, false, false, true)";

/// An attempt that failed: when, and why.
pub(super) type Failed = (Instant, String);

impl Inner {
    /// Begins to make these slots unless that goes on already or failed a moment ago.
    pub(super) fn make_logical_slots(self: &Arc<Self>, slots: &[NewLogicalSlot]) {
        if slots.is_empty() {
            return;
        }
        let Ok(mut failed) = Arc::clone(&self.making_slots).try_lock_owned() else { return };
        if failed.as_ref().is_some_and(|(at, _)| now().since(*at) < RETRY) {
            return;
        }
        let (inner, slots) = (Arc::clone(self), slots.to_vec());
        tokio::spawn(async move {
            for slot in &slots {
                match inner.make_logical_slot(slot).await {
                    Ok(()) => *failed = None,
                    Err(error) => {
                        let error = sentence(&error);
                        // The same failure is said once, however often it is tried again.
                        if failed.as_ref().is_none_or(|(_, before)| *before != error) {
                            tracing::warn!(
                                error,
                                slot = slot.name,
                                "a logical slot is missing; it is tried again"
                            );
                        }
                        *failed = Some((now(), error));
                        break;
                    }
                }
            }
            lock(&inner.memory).forget_slots();
            inner.changed();
        });
    }

    async fn make_logical_slot(&self, slot: &NewLogicalSlot) -> Result<(), EngineError> {
        let NewLogicalSlot { name, database, plugin, lost } = slot;
        let what = format!("create the logical slot {name}");
        let client = self.connect_to_database(database).await?;
        let level: String = value(&what, QUICK, &client, "SELECT current_setting('wal_level')", &[]).await?;
        if level != "logical" {
            let reason = format!(
                "wal_level is {level}: set postgresql.parameters.wal_level to logical in the cluster's settings \
                 and restart the members"
            );
            return Err(EngineError::Failed { what, reason });
        }
        let exists = "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1::text::name)";
        if value(&what, QUICK, &client, exists, &[name]).await? {
            return Ok(());
        }
        let version = "SELECT current_setting('server_version_num')::int";
        let version: i32 = value(&what, QUICK, &client, version, &[]).await?;
        let limit = format!("SET statement_timeout = {}", CREATE_MAX.as_millis());
        within(&what, QUICK, client.batch_execute(&limit)).await?;
        let create = if version >= COPIED_SINCE { CREATE_WITH_COPIES } else { CREATE };
        within(&what, CREATE_MAX + QUICK, client.query_one(create, &[name, plugin])).await?;
        if *lost {
            tracing::warn!(
                slot = name,
                database,
                "the logical slot was made anew on this leader: changes that its consumer had not read from the \
                 earlier leader are not in it. Fill the consumer anew (a subscription: drop it, empty its tables and \
                 create it again). Before PostgreSQL 17 every failover does this"
            );
        } else {
            tracing::info!(slot = name, database, plugin, "made a logical slot");
        }
        Ok(())
    }
}
