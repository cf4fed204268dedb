//! Journal: every decision that differs from the one before, kept on disk for `antiphon explain`.
//!
//! It is written for people and decides nothing; when it cannot be written, the agent says so once and goes on.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use antiphon_core::Instant;
use antiphon_core::ha::decide::Decision;
use antiphon_core::ha::step::Step;
use antiphon_core::ha::world::World;
use serde_json::json;

use super::clock;

/// The file is renamed to `*.1` when it is longer.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// How long the same failure of a step is not told again.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(10);

/// Writes decisions down.
pub struct Journal {
    path: PathBuf,
    file: Option<File>,
    last: Option<(String, Vec<String>)>,
    complained: bool,
    complaint: Option<(String, Instant)>,
}

impl Journal {
    /// A journal at this path.
    pub fn new(path: PathBuf) -> Self {
        Self { path, file: None, last: None, complained: false, complaint: None }
    }

    /// Tells of a step that failed, once in a while: what cannot be done is tried again many times a second.
    pub fn complain(&mut self, decision: &Decision, error: &str, now: Instant) {
        let told = self.complaint.as_ref();
        if told.is_some_and(|(last, at)| last == error && now.since(*at) < COMPLAINT_PAUSE) {
            return;
        }
        if told.is_some_and(|(last, _)| last == error) {
            tracing::warn!(why = %decision.why, error, "a step still cannot be carried out; put right what it says");
        } else {
            tracing::info!(why = %decision.why, error, "a step was not carried out; it is decided anew");
        }
        self.complaint = Some((error.to_owned(), now));
    }

    /// Notes a decision if it is a new one.
    pub fn note(&mut self, world: &World, decision: &Decision) {
        let steps: Vec<String> = decision.steps.iter().filter_map(step_name).collect();
        let sentence = decision.why.to_string();
        if self
            .last
            .as_ref()
            .is_some_and(|(why, last)| *why == sentence && (*last == steps || steps.is_empty()))
        {
            return;
        }
        if self.last.as_ref().is_none_or(|(why, _)| *why != sentence) {
            if decision.why.needs_operator() {
                tracing::error!("{sentence}");
            } else {
                tracing::info!("{sentence}");
            }
        }
        let epoch = world.store.cluster.as_ref().map_or(0, |cluster| cluster.value.epoch.0);
        let line = json!({
            "at": clock::rfc3339(clock::unix_seconds()),
            "since_boot_ms": world.now.0 / 1_000_000,
            "epoch": epoch,
            "role": decision.role,
            "why": decision.why,
            "sentence": sentence,
            "steps": steps,
        });
        self.last = Some((sentence, steps));
        if let Err(error) = self.write(&format!("{line}\n"))
            && !self.complained
        {
            self.complained = true;
            tracing::warn!(path = %self.path.display(), %error, "the journal cannot be written");
        }
    }

    fn write(&mut self, line: &str) -> std::io::Result<()> {
        if self
            .file
            .as_ref()
            .is_some_and(|file| file.metadata().is_ok_and(|data| data.len() > FILE_BYTES_MAX))
        {
            self.file = None;
            fs::rename(&self.path, self.path.with_extension("jsonl.1"))?;
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(OpenOptions::new().create(true).append(true).open(&self.path)?),
        };
        file.write_all(line.as_bytes())
    }
}

/// What a step is called in the journal; the routine ones are left out.
fn step_name(step: &Step) -> Option<String> {
    match step {
        Step::RenewLease { .. } | Step::Slots { .. } => None,
        other => {
            let value = serde_json::to_value(other).ok()?;
            Some(value.get("step")?.as_str()?.to_owned())
        }
    }
}
