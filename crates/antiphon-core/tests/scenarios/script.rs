//! The language of the scenarios: one command a line, read by a person first.
//!
//! `member a nofailover`, `set failure_timeout 2s`, `run 3s`, `quiet 5s` (a run without a transcript),
//! `server a crash "signal 9"`, `host a down`, `agent a down`, `store a cut`, `deaf b to a`, `write a 500`,
//! `request switchover from a to b`, `slow a fast-stop 3s`, `fail b promote "no space"`, `show`.

use std::time::Duration;

use antiphon_core::ha::cluster::{Position, Promise, Request, SyncSet};
use antiphon_core::ha::world::{LogicalSlot, Reinitialise, Stored};
use antiphon_core::settings::{Settings, span};
use antiphon_core::{Lsn, NodeName, Timeline};
use serde_json::{Map, Value, json};

use crate::show;
use crate::table::{Node, Run, Table};

/// Plays a scenario; its text with the transcript as it is now.
pub fn play(text: &str) -> Result<String, String> {
    let mut table = Table::new();
    let mut document = Map::new();
    let mut written = String::new();
    for (index, line) in text.lines().enumerate() {
        if let Some(command) = line.strip_prefix("> ") {
            written += &format!("{line}\n");
            let words = words(command);
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            perform(&mut table, &mut document, &words)
                .map_err(|problem| format!("line {}: {problem}", index + 1))?;
            for said in table.transcript.drain(..) {
                written += &format!("{said}\n");
            }
        } else if line.starts_with('#') || line.is_empty() {
            written += &format!("{line}\n");
        }
    }
    Ok(written)
}

/// Words are separated by spaces; quotes keep some together.
fn words(command: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (index, part) in command.split('"').enumerate() {
        if index % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}

fn perform(table: &mut Table, document: &mut Map<String, Value>, words: &[&str]) -> Result<(), String> {
    match words {
        ["member", name, tags @ ..] => add_member(table, name, tags)?,
        ["set", key, value] => {
            // Double quotes hold words together: a map is written with single ones.
            let value = serde_json::from_str(&value.replace('\'', "\"")).unwrap_or_else(|_| json!(value));
            if let Some(key) = key.strip_prefix("postgresql.") {
                document.insert("postgresql".to_owned(), json!({ key: value }));
            } else {
                document.insert((*key).to_owned(), value);
            }
            let resolved = Settings::resolve(&Value::Object(document.clone()));
            table.settings = resolved.map_err(|errors| format!("{errors:?}"))?;
        }
        ["store", "external"] => table.external_store = true,
        ["run", span] => table.run(duration(span)?),
        ["quiet", span] => {
            table.quiet = true;
            table.run(duration(span)?);
            table.quiet = false;
        }
        ["show"] => show_all(table),
        ["request", request @ ..] => ask(table, request)?,
        ["write", name, bytes] => {
            let bytes = bytes.parse().map_err(|_| format!("{bytes} is no number of bytes"))?;
            table.write(&node_name(name)?, bytes);
        }
        ["promise", "quorum", k, members @ ..] => corrupt(table, k, members)?,
        [what, name, how @ ..] => happen(table, what, name, how)?,
        _ => return Err(format!("{words:?} is no command")),
    }
    Ok(())
}

fn duration(text: &str) -> Result<Duration, String> {
    span(&json!(text)).ok_or_else(|| format!("{text} is no duration"))
}

fn node_name(text: &str) -> Result<NodeName, String> {
    text.parse().map_err(|error| format!("{error}"))
}

fn node<'a>(table: &'a mut Table, name: &str) -> Result<&'a mut Node, String> {
    table.nodes.get_mut(&node_name(name)?).ok_or_else(|| format!("there is no member {name}"))
}

fn add_member(table: &mut Table, name: &str, tags: &[&str]) -> Result<(), String> {
    let name = node_name(name)?;
    let now = table.now;
    table.nodes.entry(name.clone()).or_insert_with(|| Node::new(name.clone(), now));
    for tag in tags {
        set_tag(node(table, name.as_str())?, tag)?;
    }
    Ok(())
}

fn set_tag(node: &mut Node, tag: &str) -> Result<(), String> {
    match tag.split_once('=').unwrap_or((tag, "")) {
        ("witness", _) => node.witness = true,
        ("may-reinitialise", _) => node.may_reinitialise = true,
        ("nofailover", value) => node.tags.nofailover = value != "no",
        ("nosync", _) => node.tags.nosync = true,
        ("delayed", _) => node.delayed = true,
        ("clonefrom", _) => node.tags.clonefrom = true,
        ("priority", value) => node.tags.failover_priority = value.parse().ok(),
        ("replicatefrom", value) => node.tags.replicatefrom = Some(node_name(value)?),
        _ => return Err(format!("{tag} is no tag")),
    }
    Ok(())
}

/// Something happens to a member.
fn happen(table: &mut Table, what: &str, name: &str, how: &[&str]) -> Result<(), String> {
    let now = table.now;
    let node = node(table, name)?;
    match (what, how) {
        ("tag", [tag]) => set_tag(node, tag)?,
        ("agent", ["down"]) => node.agent_up = false,
        ("agent", ["up"]) => {
            (node.agent_up, node.started, node.lease_until) = (true, now, None);
            node.heard.clear();
        }
        ("host", ["down"]) => node.host_up = false,
        ("host", ["power-off"]) => {
            (node.host_up, node.task) = (false, None);
            let primary = matches!(node.run, Run::Primary { .. });
            node.run =
                Run::Stopped { crash: None, clean: false, primary, restored: false, checkpoint: node.wal };
        }
        ("host", ["up"]) => {
            if !matches!(node.run, Run::Primary { .. } | Run::Standby { .. }) {
                (node.started, node.lease_until) = (now, None);
                node.heard.clear();
            }
            node.host_up = true;
        }
        ("store", ["cut"]) => node.store_cut = true,
        ("store", ["back"]) => node.store_cut = false,
        ("deaf", ["to", other]) => drop(node.deaf_to.insert(node_name(other)?)),
        ("hears", [other]) => drop(node.deaf_to.remove(&node_name(other)?)),
        ("routers", [count, "follow"]) => {
            node.routers.awaited = count.parse().map_err(|_| format!("{count} is no number"))?;
        }
        ("routers", ["at-rest"]) => node.routers.awaited = 0,
        ("disk", ["full"]) => node.disk_full = true,
        ("disk", ["space"]) => node.disk_full = false,
        ("trim", []) => node.oldest_wal = node.wal.lsn,
        ("detach", []) => node.detached = true,
        ("attach", []) => node.detached = false,
        // What PostgreSQL 17 and newer does by itself.
        ("copies", [slot, database, plugin]) => {
            let (database, plugin) = ((*database).to_owned(), (*plugin).to_owned());
            let copy = LogicalSlot { database, plugin, synced: true, active: false };
            node.logical_slots.insert((*slot).to_owned(), copy);
        }
        ("lacks", [slot]) => drop(node.logical_slots.remove(*slot)),
        ("restart", []) => node.restart_requested = true,
        ("reinit", how) => {
            let [from_leader, force] = ["from-leader", "force"].map(|word| how.contains(&word));
            node.reinitialise_requested = Some(Reinitialise { from_leader, force });
        }
        ("slow", [work, span]) => drop(node.slow.insert((*work).to_owned(), duration(span)?)),
        ("fail", [work, error]) => drop(node.failing.insert((*work).to_owned(), (*error).to_owned())),
        ("heal", [work]) => {
            node.slow.remove(*work);
            node.failing.remove(*work);
        }
        ("server", how) => return server(table, name, how),
        _ => return Err(format!("{what} {name} {how:?} is no command")),
    }
    Ok(())
}

/// Something happens to a member's server.
fn server(table: &mut Table, name: &str, how: &[&str]) -> Result<(), String> {
    let now = table.now;
    let node = node(table, name)?;
    node.task = None;
    let primary = matches!(node.run, Run::Primary { .. });
    let checkpoint = node.wal;
    node.run = match how {
        ["crash", how] => Run::Stopped {
            crash: Some((*how).to_owned()),
            clean: false,
            primary,
            restored: false,
            checkpoint,
        },
        ["orphans", how] => Run::Orphans { how: (*how).to_owned() },
        ["stuck", why] => Run::Stuck { since: now, why: (*why).to_owned() },
        ["lost"] => {
            node.identifier = None;
            Run::Absent
        }
        ["primary", timeline, lsn] => {
            node.identifier = Some("7001".to_owned());
            let number = |text: &str| text.parse::<u32>().map_err(|_| format!("{text} is no number"));
            node.wal = Position { timeline: Timeline(number(timeline)?), lsn: Lsn(number(lsn)?.into()) };
            Run::Primary {
                sync: antiphon_core::ha::world::SyncNames::Nobody,
                proven: None,
                checkpointed: None,
            }
        }
        ["half-built"] => {
            node.half_built = true;
            Run::Stopped { crash: None, clean: true, primary: true, restored: false, checkpoint }
        }
        ["foreign"] => {
            node.identifier = Some("9009".to_owned());
            node.run.clone()
        }
        _ => return Err(format!("server {name} {how:?} is no command")),
    };
    Ok(())
}

/// An operator asks for a hand-over.
fn ask(table: &mut Table, words: &[&str]) -> Result<(), String> {
    let (leader, candidate, accept_loss) = match words {
        ["switchover", "from", leader, "to", to] => (Some(*leader), Some(*to), false),
        ["switchover", "from", leader] => (Some(*leader), None, false),
        ["failover", "to", to] => (None, Some(*to), false),
        ["failover", "to", to, "accept-loss"] => (None, Some(*to), true),
        _ => return Err(format!("{words:?} is no request")),
    };
    table.revision += 1;
    let request = Request {
        leader: leader.map(node_name).transpose()?,
        candidate: candidate.map(node_name).transpose()?,
        scheduled_at: None,
        accept_loss,
    };
    table.store.request = Some(Stored { value: request, revision: table.revision });
    Ok(())
}

/// Somebody writes a sync set into the store by hand.
fn corrupt(table: &mut Table, k: &str, members: &[&str]) -> Result<(), String> {
    let k = k.parse().map_err(|_| format!("{k} is no number"))?;
    let members = members.iter().map(|name| node_name(name)).collect::<Result<_, _>>()?;
    table.revision += 1;
    let stored = table.store.cluster.as_mut().ok_or("there is no record yet")?;
    stored.revision = table.revision;
    let method = antiphon_core::ha::cluster::Method::Any;
    stored.value.sync = Promise::Quorum(SyncSet { method, k, members });
    Ok(())
}

/// The record of leadership, and every member's server.
fn show_all(table: &mut Table) {
    let record =
        table.store.cluster.as_ref().map_or("no record".to_owned(), |stored| show::record(&stored.value));
    table.say(format!("        record: {record}"));
    for node in table.nodes.values().cloned().collect::<Vec<_>>() {
        let state = match &node.run {
            _ if node.witness => "witness".to_owned(),
            Run::Absent => "no data".to_owned(),
            Run::Stopped { .. } => "stopped".to_owned(),
            Run::Orphans { .. } => "orphans".to_owned(),
            Run::Stuck { .. } => "stuck".to_owned(),
            Run::Primary { .. } => "primary".to_owned(),
            Run::Standby { upstream: Some(upstream), streaming: true } => {
                format!("streams from {}", upstream.name)
            }
            Run::Standby { .. } => "standby".to_owned(),
        };
        let (timeline, lsn) = (node.wal.timeline, node.wal.lsn);
        table.say(format!("        {}: {state}, WAL {timeline}/{lsn}", node.name));
    }
}
