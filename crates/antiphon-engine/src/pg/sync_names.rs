//! Changing what commits wait for, and proving that it is in force.
//!
//! A value that SHOW shows proves little: WAL senders and the checkpointer read the configuration on their
//! own, and a commit waits only once the checkpointer has. So each WAL sender is seen to handle messages
//! after it was told to reload, and a commit under the new setting is waited for.

use std::time::Duration;

use antiphon_core::ha::world::SyncNames;
use tokio::time::{Instant as Deadline, sleep_until};
use tokio_postgres::Client;

use super::config::{self, Role};
use super::sql::{value, within};
use super::{Inner, QUICK, lock};
use crate::EngineError;

/// How long a commit may wait for its acknowledgement while the setting is proven.
const PROVE_MAX: Duration = Duration::from_secs(5);
/// How long the WAL senders may take; one that hangs is ended by `wal_sender_timeout` before.
const SENDERS_MAX: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(2);

/// Writes a little WAL and returns its position.
const MARK: &str = "SELECT pg_logical_emit_message(true, 'antiphon', 'sync')::text";

impl Inner {
    pub(super) async fn set_sync(&self, sync: &SyncNames, prove: bool) -> Result<(), EngineError> {
        let text = config::sync_text(sync);
        let mut role = self.role.lock().await;
        if role.sync != text {
            lock(&self.memory).proven = None;
        }
        let next = Role { sync: text.clone(), ..role.clone() };
        self.write_role(&mut role, next).await?;
        self.tell_server().await?;
        drop(role);
        let client = self.wait_for_setting("synchronous_standby_names", &text).await?;
        within("turn waiting off for a mark", QUICK, client.batch_execute("SET synchronous_commit = local"))
            .await?;
        // Twice: a sender may send the first in the round in which the signal came, after it looked for one.
        for _ in 0..2 {
            self.wait_for_senders(&client).await?;
        }
        if prove {
            self.prove_by_commit(&text).await?;
            lock(&self.memory).proven = Some(sync.clone());
        }
        Ok(())
    }

    /// Waits until each streaming WAL sender has sent a mark that is written now, or is gone.
    async fn wait_for_senders(&self, client: &Client) -> Result<(), EngineError> {
        let read = |source| EngineError::Sql { what: "read the server's answer".to_owned(), source };
        let mark: String = value("write a mark", QUICK, client, MARK, &[]).await?;
        let senders = within("list the WAL senders", QUICK, client.query(SENDERS, &[])).await?;
        let senders: Vec<i32> =
            senders.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(read)?;
        let deadline = Deadline::now() + SENDERS_MAX;
        loop {
            let behind: i64 =
                value("watch the WAL senders", QUICK, client, BEHIND, &[&mark, &senders]).await?;
            if behind == 0 {
                return Ok(());
            }
            if Deadline::now() > deadline {
                let what = format!("see {behind} WAL senders take over synchronous_standby_names");
                return Err(EngineError::Deadline { what, limit: SENDERS_MAX });
            }
            sleep_until(Deadline::now() + TICK).await;
        }
    }

    /// A commit that waits for its acknowledgement.
    async fn prove_by_commit(&self, text: &str) -> Result<(), EngineError> {
        let client = self.connect().await?;
        within("turn waiting on", QUICK, client.batch_execute("SET synchronous_commit = on")).await?;
        let what = format!("see a commit acknowledged under {text:?}");
        let ended = within(&what, PROVE_MAX, client.query_one(MARK, &[])).await;
        if ended.is_err() {
            // Only the mark waits: cancelling it leaves no session behind and acknowledges nothing of a user.
            let cancelled = client.cancel_token();
            let cancel = cancelled.cancel_query(tokio_postgres::NoTls);
            if let Err(error) = within("cancel the waiting commit", QUICK, cancel).await {
                tracing::warn!(error = crate::sentence(&error), "a commit of antiphon's own goes on waiting");
            }
        }
        ended.map(drop)
    }
}

const SENDERS: &str = "SELECT pid FROM pg_stat_replication WHERE state = 'streaming'";

const BEHIND: &str = "SELECT count(*) FROM pg_stat_replication \
     WHERE pid = ANY($2) AND state = 'streaming' AND (sent_lsn IS NULL OR sent_lsn < ($1::text)::pg_lsn)";
