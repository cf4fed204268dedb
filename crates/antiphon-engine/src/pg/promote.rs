//! Promotion onto a wanted timeline.
//!
//! PostgreSQL takes the first timeline above its own that has no history file. Empty files up to the wanted
//! one make it take exactly that, so timelines are unique by consensus and not by chance. What commits
//! wait for is in force before recovery ends, so that no commit slips through.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::ha::world::{StopMode, SyncNames};
use antiphon_core::{Epoch, Timeline};
use tokio::time::{Instant as Deadline, sleep_until};

use super::clock::now;
use super::config::{self, Role};
use super::files::{self, Paths};
use super::sql::{value, within};
use super::{Inner, QUICK, lock};
use crate::{EngineError, sentence};

/// The longest that a promotion may take: recovery first replays all that was received.
const PROMOTE_MAX: Duration = Duration::from_secs(300);
/// The first commits of the new leader, and the followers that stream again, have the disk to themselves.
const CHECKPOINT_AFTER: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(2);
/// A promotion waits for the process that copies logical slots, which may wait for a leader that is cut off.
const END_COPYING: &str =
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'slotsync worker'";
/// More skipped timelines than this are a mistake, not a cluster's history.
const GAP_MAX: u32 = 100_000;

impl Inner {
    pub(super) async fn promote(
        self: &Arc<Self>,
        epoch: Epoch,
        timeline: Timeline,
        sync: &SyncNames,
    ) -> Result<(), EngineError> {
        let begun = now();
        let fenced = self.fenced();
        if epoch < fenced {
            return Err(EngineError::Fenced { asked: epoch, fenced });
        }
        self.pre_promote().await?;
        let sync = config::sync_text(sync);
        let mut role = self.role.lock().await;
        let next = Role { upstream: None, sync: sync.clone(), ..role.clone() };
        self.write_role(&mut role, next).await?;
        self.tell_server().await?;
        drop(role);
        let client = self.wait_for_setting("synchronous_standby_names", &sync).await?;
        let made = self
            .change_directory("lead PostgreSQL to its timeline", move |paths| fill_gap(paths, timeline))
            .await?;
        let prepared = now();
        let promoted = self.end_recovery(&client, timeline).await;
        match promoted {
            Ok(()) => {
                let ended = now();
                tracing::info!(%timeline, prepared = ?prepared.since(begun), ended = ?ended.since(prepared), "promoted");
                let mut memory = lock(&self.memory);
                memory.proven = None;
                memory.checkpointed = None;
                drop(memory);
                self.checkpoint_in_background();
                self.call_back(|callbacks| callbacks.on_role_change.clone(), "on_role_change", "primary");
                Ok(())
            }
            Err(error) => {
                let query = "SELECT pg_is_in_recovery()";
                let standby: Result<bool, _> =
                    value("ask whether recovery goes on", QUICK, &client, query, &[]).await;
                if standby.unwrap_or(false) {
                    files::blocking("remove what led to the timeline", move || remove_all(&made)).await?;
                }
                Err(error)
            }
        }
    }

    async fn end_recovery(
        &self,
        client: &tokio_postgres::Client,
        wanted: Timeline,
    ) -> Result<(), EngineError> {
        within("end the copying of slots", QUICK, client.batch_execute(END_COPYING)).await?;
        within("promote", QUICK, client.query_one("SELECT pg_promote(false)", &[])).await?;
        let deadline = Deadline::now() + PROMOTE_MAX;
        let ask = "SELECT pg_is_in_recovery()";
        let ask = within("prepare a question", QUICK, client.prepare(ask)).await?;
        let read = |source| EngineError::Sql { what: "read the server's answer".to_owned(), source };
        while within("ask whether recovery ended", QUICK, client.query_one(&ask, &[]))
            .await?
            .try_get(0)
            .map_err(read)?
        {
            if Deadline::now() > deadline {
                return Err(EngineError::Deadline { what: "promote".to_owned(), limit: PROMOTE_MAX });
            }
            sleep_until(Deadline::now() + TICK).await;
        }
        let query = "SELECT substr(pg_walfile_name(pg_current_wal_flush_lsn()), 1, 8)";
        let taken: String = value("ask for the timeline", QUICK, client, query, &[]).await?;
        if u32::from_str_radix(&taken, 16) == Ok(wanted.0) {
            return Ok(());
        }
        tracing::error!(taken, %wanted, "the promotion took another timeline: stopping the server at once");
        self.stop(StopMode::Immediate).await?;
        Err(EngineError::Failed {
            what: format!("promote onto timeline {wanted}"),
            reason: format!(
                "the server took timeline {taken} (hexadecimal) and was stopped: rewind or clone it"
            ),
        })
    }

    /// Followers that rewind read the new timeline from the control file, which a checkpoint writes.
    fn checkpoint_in_background(self: &Arc<Self>) {
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            sleep_until(Deadline::now() + CHECKPOINT_AFTER).await;
            let client = match inner.connect().await {
                Ok(client) => client,
                Err(error) => {
                    return tracing::warn!(error = sentence(&error), "no checkpoint after the promotion");
                }
            };
            let checkpoint = client.batch_execute("CHECKPOINT");
            if let Err(error) = within("write a checkpoint", PROMOTE_MAX, checkpoint).await {
                tracing::warn!(error = sentence(&error), "no checkpoint after the promotion");
            }
        });
    }
}

/// Makes every timeline below `wanted` taken; returns the files that were made.
fn fill_gap(paths: &Paths, wanted: Timeline) -> io::Result<Vec<PathBuf>> {
    let folder = paths.wal();
    let mut present = Vec::new();
    let mut highest_segment = 1;
    for entry in fs::read_dir(&folder)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(timeline) = name.get(..8).and_then(|head| u32::from_str_radix(head, 16).ok()) else {
            continue;
        };
        if name.len() == 24 {
            highest_segment = highest_segment.max(timeline);
        } else if name.get(8..) == Some(".history") {
            present.push(timeline);
        }
    }
    let highest = present.iter().copied().max().unwrap_or(1).max(highest_segment);
    if highest >= wanted.0 || wanted.0 - highest > GAP_MAX {
        return Err(io::Error::other(format!(
            "timeline {highest} is there already, so {wanted} cannot be taken"
        )));
    }
    // Also below the present one: a clone lacks its ancestors' files, and a follower asks for each of them.
    let mut made = Vec::new();
    for timeline in (2..wanted.0).filter(|timeline| !present.contains(timeline)) {
        let path = folder.join(format!("{timeline:08X}.history"));
        fs::File::create_new(&path)?.sync_all()?;
        made.push(path);
    }
    files::sync_folder(&folder)?;
    Ok(made)
}

fn remove_all(paths: &[PathBuf]) -> io::Result<()> {
    paths.iter().rev().try_for_each(|path| files::remove_durably(path))
}
