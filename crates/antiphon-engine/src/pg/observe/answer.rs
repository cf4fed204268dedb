//! What the server answers to one query, and the server that it makes.
//!
//! Everything about one moment comes from one statement. Order matters in one place: the startup process'
//! wait is read before the replay position, so that a position read while it waits covers all local WAL.

use std::collections::BTreeMap;
use std::sync::Arc;

use antiphon_core::ha::cluster::Position;
use antiphon_core::ha::world::{LogicalSlot, PrimaryServer, Server, Standby, StandbyServer, Upstream};
use antiphon_core::{Instant, Lsn, Timeline};
use serde::Deserialize;

use super::super::clock::now;
use super::super::{Inner, config, lock};
use super::{Doing, LOOK, SELDOM, SeenTimeline};
use crate::{About, PendingRestart, sentence};

/// The moment's facts, as JSON.
const MOMENT: &str = "SELECT json_build_object(\
    'recovery', s.recovery, \
    'config_file', current_setting('config_file'), \
    'flushed', CASE WHEN NOT s.recovery THEN pg_current_wal_flush_lsn()::text END, \
    'timeline', CASE WHEN NOT s.recovery THEN substr(pg_walfile_name(pg_current_wal_flush_lsn()), 1, 8) END, \
    'sync', current_setting('synchronous_standby_names'), \
    'receiving', a.receiving, \
    'receiver', (SELECT status FROM pg_stat_wal_receiver LIMIT 1), \
    'startup_wait', a.startup_wait, \
    'received', CASE WHEN s.recovery THEN pg_last_wal_receive_lsn()::text END, \
    'replayed', CASE WHEN s.recovery THEN pg_last_wal_replay_lsn()::text END, \
    'waiting', a.waiting, \
    'standbys', (SELECT json_agg(json_build_object('name', application_name, 'state', state, \
        'flushed', flush_lsn::text)) FROM pg_stat_replication))::text \
    FROM (SELECT pg_is_in_recovery() AS recovery) s, \
    (SELECT coalesce(bool_or(backend_type = 'walreceiver'), false) AS receiving, \
        max(wait_event) FILTER (WHERE backend_type = 'startup') AS startup_wait, \
        json_agg(json_build_array(pid, coalesce(query_start::text, ''))) \
            FILTER (WHERE wait_event = 'SyncRep') AS waiting \
        FROM pg_stat_activity OFFSET 0) a";

/// What changes seldom, as JSON.
const SELDOM_SEEN: &str = "SELECT json_build_object(\
    'version', current_setting('server_version_num')::int, \
    'started', pg_postmaster_start_time()::text, \
    'pending_restart', (SELECT coalesce(json_object_agg(name, json_build_object('old_value', setting, 'new_value', \
        coalesce((SELECT f.setting FROM pg_file_settings f WHERE f.name = s.name ORDER BY f.seqno DESC LIMIT 1), \
            boot_val))), '{}') FROM pg_settings s WHERE pending_restart), \
    'overridden', (SELECT coalesce(json_agg(name), '[]') FROM pg_settings \
        WHERE sourcefile LIKE '%/postgresql.auto.conf'), \
    'replayed_at', CASE WHEN pg_is_in_recovery() THEN pg_last_xact_replay_timestamp()::text END, \
    'replay_paused', CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END, \
    'replication', (SELECT coalesce(json_agg(json_build_object('usename', usename, 'application_name', \
        application_name, 'client_addr', client_addr, 'state', state, 'sync_state', sync_state, \
        'sync_priority', sync_priority)), '[]') FROM pg_stat_replication), \
    'oldest_segment', (SELECT min(substr(name, 9)) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$'), \
    'segment_bytes', (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size'), \
    'slots', (SELECT coalesce(json_object_agg(slot_name, restart_lsn::text), '{}') \
        FROM pg_replication_slots WHERE slot_type = 'physical'), \
    'logical_slots', (SELECT coalesce(json_object_agg(slot_name, json_build_object('database', database, \
        'plugin', plugin, 'active', active, 'synced', coalesce((to_jsonb(s) ->> 'synced')::bool, false))), '{}') \
        FROM pg_replication_slots s WHERE slot_type = 'logical' AND NOT temporary))::text";

/// The highest timeline of the WAL segments here.
const HIGHEST_TIMELINE: &str =
    "SELECT coalesce(max(substr(name, 1, 8)), '') FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$'";

/// The history of the timeline that is written.
const HISTORY: &str = "SELECT coalesce(pg_read_file('pg_wal/' || substr(pg_walfile_name(\
    pg_current_wal_flush_lsn()), 1, 8) || '.history', 0, 1048576, true), '')";

#[derive(Deserialize)]
struct Moment {
    recovery: bool,
    config_file: String,
    flushed: Option<Lsn>,
    timeline: Option<String>,
    sync: String,
    receiving: bool,
    receiver: Option<String>,
    startup_wait: Option<String>,
    received: Option<Lsn>,
    replayed: Option<Lsn>,
    waiting: Option<Vec<Doing>>,
    standbys: Option<Vec<Sender>>,
}

#[derive(Deserialize)]
struct Sender {
    name: String,
    state: Option<String>,
    flushed: Option<Lsn>,
}

#[derive(Deserialize)]
struct Seldom {
    version: u32,
    started: String,
    pending_restart: BTreeMap<String, PendingRestart>,
    overridden: Vec<String>,
    replayed_at: Option<String>,
    replay_paused: bool,
    replication: Vec<serde_json::Value>,
    oldest_segment: Option<String>,
    segment_bytes: u64,
    slots: BTreeMap<String, Option<Lsn>>,
    logical_slots: BTreeMap<String, SeenSlot>,
}

#[derive(Deserialize)]
struct SeenSlot {
    database: String,
    plugin: String,
    active: bool,
    synced: bool,
}

impl From<SeenSlot> for LogicalSlot {
    fn from(seen: SeenSlot) -> Self {
        let SeenSlot { database, plugin, active, synced } = seen;
        Self { database, plugin, synced, active }
    }
}

/// Where the WAL of a segment begins: the name of its file without the timeline, high and low half of its number.
fn segment_start(name: &str, segment_bytes: u64) -> Option<Lsn> {
    let half = |range| u64::from_str_radix(name.get(range)?, 16).ok();
    let low = half(8..16)?.checked_mul(segment_bytes)?;
    Some(Lsn(half(0..8)?.checked_shl(32)?.checked_add(low)?))
}

pub(super) fn timeline(hexadecimal: &str) -> Option<Timeline> {
    u32::from_str_radix(hexadecimal, 16).ok().map(Timeline)
}

/// The ancestors in a history file: `TIMELINE<tab>LSN<tab>reason` a line, comments and empty lines aside.
fn history(text: &str) -> Vec<Position> {
    let ancestor = |line: &str| {
        let mut fields = line.split_whitespace();
        let timeline = Timeline(fields.next()?.parse().ok()?);
        Some(Position { timeline, lsn: fields.next()?.parse().ok()? })
    };
    text.lines().filter_map(ancestor).collect()
}

impl Inner {
    /// One round trip, or a few when something changed. The caller holds the deadline.
    pub(super) async fn ask(self: &Arc<Self>) -> Result<Server, String> {
        // Before the question: a position that was asked for earlier may not be the last one.
        let upstream = lock(&self.upstream).clone();
        let surely_off = upstream.is_none() && self.receiver_is_off();
        let moment: Moment = self.json(MOMENT).await?;
        if std::path::Path::new(&moment.config_file) != self.paths.config() {
            return Ok(Server::Refused {
                reason: format!(
                    "the server that runs in {} was started by somebody else (its configuration is {}): stop it with \
                     pg_ctl stop -D {0}, and it will be started as a member",
                    self.paths.data.display(),
                    moment.config_file
                ),
            });
        }
        let seldom_due = lock(&self.memory).seldom.is_none_or(|at| now().since(at) >= SELDOM);
        if seldom_due {
            self.look_at_what_changes_seldom().await?;
        }
        if moment.recovery {
            self.standby(moment, upstream, surely_off).await
        } else {
            self.primary(moment).await
        }
    }

    async fn json<T: for<'a> Deserialize<'a>>(&self, query: &'static str) -> Result<T, String> {
        let text = self.text(query).await?;
        serde_json::from_str(&text).map_err(|error| format!("its answer was not understood: {error}"))
    }

    async fn text(&self, query: &'static str) -> Result<String, String> {
        let settings = self.settings();
        let mut eyes = self.eyes.lock().await;
        let text = eyes.text(&self.target(), &settings.superuser, query, LOOK).await;
        text.map_err(|error| sentence(&error))
    }

    async fn look_at_what_changes_seldom(self: &Arc<Self>) -> Result<(), String> {
        let seen: Seldom = self.json(SELDOM_SEEN).await?;
        let mut memory = lock(&self.memory);
        memory.seldom = Some(now());
        memory.slots = seen.slots;
        let had_copies = memory.has_copied_slots();
        memory.logical_slots =
            seen.logical_slots.into_iter().map(|(name, slot)| (name, slot.into())).collect();
        let copies_changed = memory.has_copied_slots() != had_copies;
        let ours = |name: &&String| config::CRITICAL.contains(&name.as_str()) || config::is_ours(name);
        let overridden: Vec<&String> = seen.overridden.iter().filter(ours).collect();
        if !overridden.is_empty() && !memory.complained {
            memory.complained = true;
            tracing::error!(
                ?overridden,
                "ALTER SYSTEM changed settings that antiphon sets: take it back with ALTER SYSTEM RESET and \
                 change the cluster's settings instead"
            );
        }
        drop(memory);
        if copies_changed && !self.settings().synchronise_slots {
            self.write_config_in_background();
        }
        let about = About {
            version: Some(seen.version),
            started: Some(seen.started),
            pending_restart: seen.pending_restart,
            replication: seen.replication,
            replayed_at: seen.replayed_at,
            replay_paused: seen.replay_paused,
            oldest_wal: seen.oldest_segment.and_then(|name| segment_start(&name, seen.segment_bytes)),
        };
        *lock(&self.about) = about;
        if self.paths.state.join(super::super::receiver::PAUSED_BY_US).exists() {
            self.settle_in_background();
        }
        Ok(())
    }

    /// What the configuration says depends on whether copies of slots are here.
    fn write_config_in_background(self: &Arc<Self>) {
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            let mut role = inner.role.lock().await;
            let same = role.clone();
            let written = match inner.write_role(&mut role, same).await {
                Ok(()) => inner.tell_server().await,
                Err(error) => Err(error),
            };
            if let Err(error) = written {
                tracing::warn!(error = sentence(&error), "the copying of slots goes on as it was");
            }
        });
    }

    fn settle_in_background(self: &Arc<Self>) {
        let inner = Arc::clone(self);
        tokio::spawn(async move { inner.settle_receiver().await });
    }

    /// `surely_off`: the receiver was proven to be off before the question was asked.
    async fn standby(
        self: &Arc<Self>,
        moment: Moment,
        upstream: Option<Upstream>,
        surely_off: bool,
    ) -> Result<Server, String> {
        if upstream.is_none() && !surely_off {
            self.settle_in_background();
        }
        let replayed = moment.replayed.unwrap_or_default();
        let all_read = moment.startup_wait.as_deref() == Some("RecoveryRetrieveRetryInterval");
        let end = match moment.received {
            // Streaming begins when all local WAL was replayed, at the start of a segment.
            Some(received) => Some(received.max(replayed)),
            None => all_read.then_some(replayed),
        };
        let known = {
            let mut memory = lock(&self.memory);
            if memory.was_receiving != moment.receiving {
                memory.was_receiving = moment.receiving;
                memory.timeline = None;
            }
            // One that was seen before the receiver was off may have been overtaken by its last write.
            let fresh =
                memory.timeline.filter(|seen| now().since(seen.at) < SELDOM && seen.surely_off == surely_off);
            fresh.map(|seen| seen.timeline)
        };
        let highest = match known {
            Some(timeline) => Some(timeline),
            None => {
                let at = now();
                let seen = timeline(&self.text(HIGHEST_TIMELINE).await?);
                lock(&self.memory).timeline = seen.map(|timeline| SeenTimeline { timeline, at, surely_off });
                seen
            }
        };
        let streaming = moment.receiver.as_deref() == Some("streaming");
        let starved_since = {
            let mut memory = lock(&self.memory);
            let waits = upstream.is_some() && !streaming;
            // Whatever reaches it by an archive moves the end of what it has.
            let known = memory.starved.filter(|(at, _)| *at == end.unwrap_or(replayed));
            memory.starved = waits.then(|| known.unwrap_or((end.unwrap_or(replayed), now())));
            memory.starved.map(|(_, since)| since)
        };
        let position = end.zip(highest).map(|(lsn, timeline)| Position { timeline, lsn });
        Ok(Server::Standby(StandbyServer {
            receiving: moment.receiving || (upstream.is_none() && !surely_off),
            streaming,
            upstream,
            position,
            replayed,
            starved_since,
        }))
    }

    async fn primary(&self, moment: Moment) -> Result<Server, String> {
        let written = moment.timeline.as_deref().and_then(timeline).ok_or("its timeline is not known")?;
        let known = lock(&self.memory).history.clone().filter(|(timeline, _)| *timeline == written);
        let history = match known {
            Some((_, history)) => history,
            None => {
                let history = history(&self.text(HISTORY).await?);
                lock(&self.memory).history = Some((written, history.clone()));
                history
            }
        };
        let seen_at = now();
        let standbys: Vec<Standby> = moment.standbys.iter().flatten().filter_map(standby).collect();
        let mut memory = lock(&self.memory);
        for standby in standbys.iter().filter(|standby| standby.streaming) {
            memory.last_streaming.insert(standby.name.clone(), seen_at);
        }
        let waiting_since = oldest(&mut memory.waiting, moment.waiting.unwrap_or_default(), seen_at);
        Ok(Server::Primary(PrimaryServer {
            timeline: written,
            flushed: moment.flushed.unwrap_or_default(),
            history,
            sync: config::parse_sync(&moment.sync),
            proven: memory.proven.clone(),
            standbys,
            last_streaming: memory.last_streaming.clone(),
            waiting_since,
            checkpointed: memory.checkpointed,
        }))
    }
}

/// Takes note of what the server does now: since when it has been seen doing what it has done for longest.
fn oldest(known: &mut BTreeMap<Doing, Instant>, seen: Vec<Doing>, at: Instant) -> Option<Instant> {
    let before = std::mem::take(known);
    *known =
        seen.into_iter().map(|doing| (doing.clone(), before.get(&doing).copied().unwrap_or(at))).collect();
    known.values().min().copied()
}

fn standby(sender: &Sender) -> Option<Standby> {
    let name = sender.name.parse().ok()?;
    let streaming = sender.state.as_deref() == Some("streaming");
    Some(Standby { name, streaming, flushed: sender.flushed.unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_begins_where_its_name_says() {
        let megabytes = 16 * 1024 * 1024;
        assert_eq!(segment_start("0000000000000009", megabytes), Some(Lsn(0x900_0000)));
        assert_eq!(segment_start("00000016000000B3", megabytes), Some(Lsn(0x16_B300_0000)));
        assert_eq!(segment_start("0000001600000001", 1 << 30), Some(Lsn(0x16_4000_0000)));
        for bad in ["", "0000", "00000000000000xx", "FFFFFFFFFFFFFFFF"] {
            assert_eq!(segment_start(bad, u64::MAX), None, "{bad}");
        }
    }

    #[test]
    fn a_history_is_read_past_comments_and_damage() {
        let text = "# one\n\n1\t0/5000000\tno recovery target specified\nnonsense\n3\t16/B374D848\tx\n";
        let expected = [
            Position { timeline: Timeline(1), lsn: Lsn(0x500_0000) },
            Position { timeline: Timeline(3), lsn: Lsn(0x16_B374_D848) },
        ];
        assert_eq!(history(text), expected);
    }
}
