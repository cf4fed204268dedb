//! Replication slots: the physical ones are created and kept where their consumers are, and slots of both
//! kinds are dropped; logical ones are created by `logical_slots`, which may take long.
//!
//! A slot is never moved back, never beyond the WAL that is here, and never while it is in use; PostgreSQL
//! refuses the first two as well. Only the first error is reported, but every slot is tried.

use std::sync::Arc;

use antiphon_core::Lsn;
use antiphon_core::ha::step::NewLogicalSlot;
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use super::sql::within;
use super::{Inner, QUICK, lock};
use crate::{EngineError, sentence};

struct Slot {
    name: String,
    active: bool,
    at: Option<Lsn>,
    /// PostgreSQL gave it up (`max_slot_wal_keep_size`): nobody can ever stream with it again.
    lost: bool,
}

const LIST: &str = "SELECT slot_name::text, active, restart_lsn::text, coalesce(wal_status = 'lost', false) \
     FROM pg_replication_slots";
const CREATE: &str = "SELECT pg_create_physical_replication_slot($1::text::name, true)";
const ADVANCE: &str = "SELECT pg_replication_slot_advance($1::text::name, least(($2::text)::pg_lsn, \
     CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END)) \
     WHERE ($2::text)::pg_lsn > $3::text::pg_lsn AND \
     CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END \
     > $3::text::pg_lsn";
const DROP: &str = "SELECT pg_drop_replication_slot($1::text::name)";

impl Inner {
    pub(super) async fn slots(
        self: &Arc<Self>,
        keep: &[(String, Option<Lsn>)],
        drop: &[String],
        logical: &[NewLogicalSlot],
    ) -> Result<(), EngineError> {
        let client = self.connect().await?;
        let slots = list(&client).await?;
        let oldest = lock(&self.about).oldest_wal;
        let mut first_error = None;
        let mut note = |result: Result<(), EngineError>| {
            if let Err(error) = result {
                tracing::warn!(error = sentence(&error), "a replication slot was not brought up to date");
                first_error.get_or_insert(error);
            }
        };
        for (name, to) in keep {
            match slots.iter().find(|slot| slot.name == *name) {
                None => {
                    note(change(&client, &format!("create the slot {name}"), CREATE, &[name]).await);
                }
                // Made anew for who can stream from here, and not to hold WAL for who never will.
                Some(Slot { active: false, lost: true, .. }) => {
                    if to.zip(oldest).is_some_and(|(to, oldest)| to < oldest) {
                        continue;
                    }
                    tracing::info!(slot = name, "making a slot anew that had lost the WAL it was to keep");
                    let dropped = change(&client, &format!("drop the lost slot {name}"), DROP, &[name]).await;
                    note(match dropped {
                        Ok(()) => change(&client, &format!("create the slot {name}"), CREATE, &[name]).await,
                        Err(error) => Err(error),
                    });
                }
                Some(Slot { active: false, at: Some(at), .. }) => {
                    let Some(to) = to.filter(|to| to > at) else { continue };
                    let (to, at) = (to.to_string(), at.to_string());
                    let what = format!("move the slot {name} to {to}");
                    note(change(&client, &what, ADVANCE, &[name, &to, &at]).await);
                }
                Some(Slot { .. }) => {}
            }
        }
        for slot in slots.iter().filter(|slot| !slot.active && drop.contains(&slot.name)) {
            let name = &slot.name;
            note(change(&client, &format!("drop the slot {name}"), DROP, &[name]).await);
        }
        self.make_logical_slots(logical);
        lock(&self.memory).forget_slots();
        first_error.map_or(Ok(()), Err)
    }
}

async fn change(
    client: &Client,
    what: &str,
    query: &str,
    parameters: &[&(dyn ToSql + Sync)],
) -> Result<(), EngineError> {
    within(what, QUICK, client.query(query, parameters)).await.map(std::mem::drop)
}

async fn list(client: &Client) -> Result<Vec<Slot>, EngineError> {
    let rows = within("list the slots", QUICK, client.query(LIST, &[])).await?;
    let read = |row: &tokio_postgres::Row| -> Result<Slot, tokio_postgres::Error> {
        let at: Option<String> = row.try_get(2)?;
        let at = at.and_then(|at| at.parse().ok());
        Ok(Slot { name: row.try_get(0)?, active: row.try_get(1)?, at, lost: row.try_get(3)? })
    };
    let slots: Result<_, _> = rows.iter().map(read).collect();
    slots.map_err(|source| EngineError::Sql { what: "read the list of slots".to_owned(), source })
}
