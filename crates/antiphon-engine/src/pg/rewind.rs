//! pg_rewind: a former primary takes over the history of the present one.
//!
//! It changes the data directory in place, so a journal beside it says so from before the first change until
//! the directory is whole: a rewind that was killed half-way leaves a directory that looks cleanly shut down
//! and is not. The WAL that only this server had is copied away first, and this server's own configuration
//! files are put back afterwards, because pg_rewind brings the source's.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use antiphon_core::Lsn;
use tokio::time::{Instant as Deadline, sleep_until};

use super::binaries::Binaries;
use super::control::Directory;
use super::files::{self, Paths};
use super::settings::PgSettings;
use super::sql::{connect_to, value};
use super::{Inner, QUICK, config, tool};
use crate::EngineError;

/// The most diverged WAL that is kept, in bytes.
const DIVERGED_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// How long the source may take to write the checkpoint that names its timeline.
const SOURCE_CHECKPOINT_MAX: Duration = Duration::from_secs(60);
/// Files of the user's that pg_rewind would replace by the source's.
const CONFIGURATION: [&str; 4] = ["postgresql.conf", "postgresql.auto.conf", "pg_hba.conf", "pg_ident.conf"];

impl Inner {
    pub(super) async fn rewind(&self, address: &str) -> Result<(), EngineError> {
        let what = "rewind the data directory";
        let facts = self.directory_at_rest(what).await?;
        let failed = |reason: String| EngineError::Failed { what: what.to_owned(), reason };
        if facts.half_built {
            return Err(failed("it was left half-built by an earlier attempt: clone it anew".to_owned()));
        }
        let Directory::Data { major, control, .. } = facts.directory else {
            return Err(failed("there is no data directory: clone one".to_owned()));
        };
        let binaries = self.binaries(Some(major)).await?;
        let program = binaries.program("pg_rewind")?;
        let settings = self.settings();
        self.write_passwords().await?;
        let unreachable = |error: EngineError| EngineError::Unreachable {
            what: what.to_owned(),
            address: address.to_owned(),
            source: Box::new(error),
        };
        self.wait_for_source(&settings, address).await.map_err(unreachable)?;
        if !control.clean {
            self.recover_alone(&binaries).await?;
        }
        let source = config::conninfo(&self.paths, config::TOOL_APPLICATION, address, settings.rewind_role())
            .map_err(failed)?;
        let source = format!("{source} dbname=postgres");
        self.say("comparing histories".to_owned());
        let found = match tool::run("try pg_rewind", self.pg_rewind(&program, &source, true), |_| ()).await {
            Ok(found) => found,
            // Nothing has been changed. That it failed says something of the directory only if the source is there.
            Err(error) => {
                self.wait_for_source(&settings, address).await.map_err(unreachable)?;
                return Err(error);
            }
        };
        let diverged = found.iter().find_map(|line| divergence(line));
        let needed = !found.iter().any(|line| line.contains("no rewind required"));
        let keep = move |paths: &Paths| {
            if let (true, Some(from)) = (needed, diverged) {
                keep_diverged(paths, from)?;
            }
            let saved = save_configuration(paths)?;
            files::write_durably(&paths.rewind_journal(), b"rewind\n", 0o600)?;
            Ok(saved)
        };
        let saved = self.change_directory("keep the diverged WAL", keep).await?;
        if needed {
            self.say("rewinding".to_owned());
            let command = self.pg_rewind(&program, &source, false);
            tool::run("run pg_rewind", command, |line| self.say(line.to_owned())).await?;
        }
        self.change_directory("finish the rewind", move |paths| {
            restore_configuration(paths, &saved)?;
            files::remove_durably(&paths.data.join("recovery.signal"))?;
            files::write_durably(&paths.standby_signal(), b"", 0o600)?;
            files::remove_durably(&paths.rewind_journal())
        })
        .await
    }

    fn pg_rewind(&self, program: &Path, source: &str, only_try: bool) -> tokio::process::Command {
        let mut command = tool::command(program, &self.paths.state, &self.paths.passwords());
        command.arg("--target-pgdata").arg(&self.paths.data).arg("--source-server").arg(source);
        // The recovery after a crash was done with our configuration: pg_rewind knows only its own.
        command.args(["--no-ensure-shutdown", "--progress"]);
        if only_try {
            command.arg("--dry-run");
        }
        command
    }

    /// A source that was promoted just now still has its old timeline in the control file, and pg_rewind
    /// would take it for the same history: waits for the checkpoint that follows a promotion.
    async fn wait_for_source(&self, settings: &PgSettings, address: &str) -> Result<(), EngineError> {
        let failed = |reason: String| EngineError::Failed {
            what: "reach the source of the rewind".to_owned(),
            reason,
        };
        let (host, port) = config::host_and_port(address).map_err(failed)?;
        let client = connect_to(host, port, settings.rewind_role(), QUICK).await?;
        let deadline = Deadline::now() + SOURCE_CHECKPOINT_MAX;
        self.say("waiting for the source's checkpoint".to_owned());
        loop {
            if value("ask the source for its timeline", QUICK, &client, SOURCE_IS_READY, &[]).await? {
                return Ok(());
            }
            if Deadline::now() > deadline {
                let what = "see the source's first checkpoint on its timeline".to_owned();
                return Err(EngineError::Deadline { what, limit: SOURCE_CHECKPOINT_MAX });
            }
            sleep_until(Deadline::now() + Duration::from_millis(100)).await;
        }
    }

    /// Crash recovery in a single-user server, with our configuration.
    async fn recover_alone(&self, binaries: &Binaries) -> Result<(), EngineError> {
        self.say("recovering from the crash".to_owned());
        self.change_directory("prepare the recovery", |paths| {
            files::remove_durably(&paths.data.join("recovery.signal"))?;
            files::remove_durably(&paths.standby_signal())
        })
        .await?;
        let postgres = binaries.program("postgres")?;
        let mut command = tool::command(&postgres, &self.paths.state, &self.paths.passwords());
        let mut setting = std::ffi::OsString::from("config_file=");
        setting.push(self.paths.config());
        command.arg("--single").arg("-D").arg(&self.paths.data).arg("-c").arg(setting).arg("template1");
        tool::run("recover the crashed server before the rewind", command, |_| ()).await.map(drop)
    }
}

const SOURCE_IS_READY: &str = "SELECT NOT pg_is_in_recovery() AND (SELECT timeline_id FROM pg_control_checkpoint()) = \
     ('x' || substr(pg_walfile_name(pg_current_wal_flush_lsn()), 1, 8))::bit(32)::int";

/// `pg_rewind: servers diverged at WAL location 0/3000148 on timeline 1`.
fn divergence(line: &str) -> Option<Lsn> {
    let rest = line.split_once("diverged at WAL location ")?.1;
    rest.split_whitespace().next()?.parse().ok()
}

/// Copies the WAL from the divergence on: a link would share the bytes that pg_rewind overwrites.
fn keep_diverged(paths: &Paths, from: Lsn) -> io::Result<()> {
    let segments = segments_from(&paths.wal(), from)?;
    // By the place and not by the time: a rewind that is tried again keeps the same WAL once.
    let timeline = segments.first().and_then(|(path, _)| path.file_name()?.to_str()?.get(..8));
    let folder = paths.state.join(format!("diverged-{}-{:X}", timeline.unwrap_or("0"), from.0));
    let begun = folder.with_extension("new");
    match copy_segments(&segments, &begun, from) {
        Ok(kept) => {
            if folder.exists() {
                fs::remove_dir_all(&folder)?;
            }
            fs::rename(&begun, &folder)?;
            files::sync_folder(&paths.state)?;
            let folder = folder.display();
            tracing::warn!(%from, bytes = kept, %folder, "kept the WAL that only this server had");
            Ok(())
        }
        Err(error) => {
            // It fills the disk that promises are written to; the segments are all still there.
            match fs::remove_dir_all(&begun) {
                Err(left) if left.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(folder = %begun.display(), error = %left, "could not remove an unfinished copy");
                }
                Ok(()) | Err(_) => {}
            }
            Err(error)
        }
    }
}

/// Copies as many segments as are kept; how many bytes they have.
fn copy_segments(segments: &[(PathBuf, u64)], folder: &Path, from: Lsn) -> io::Result<u64> {
    fs::create_dir_all(folder)?;
    let mut kept = 0;
    for (path, length) in segments {
        if kept + length > DIVERGED_BYTES_MAX {
            tracing::warn!(%from, kept, "more WAL diverged than is kept: the rest is lost with the rewind");
            break;
        }
        let name = path.file_name().ok_or_else(|| io::Error::other("a segment without a name"))?;
        fs::copy(path, folder.join(name))?;
        kept += length;
    }
    files::sync_folder(folder)?;
    Ok(kept)
}

/// The segments of the highest timeline that hold WAL from `from` on, in order, with their lengths.
fn segments_from(folder: &Path, from: Lsn) -> io::Result<Vec<(PathBuf, u64)>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(folder)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            segments.push((name, entry.path(), entry.metadata()?.len()));
        }
    }
    segments.sort();
    let highest = segments.last().and_then(|(name, _, _)| name.get(..8)).unwrap_or_default().to_owned();
    let holds = |(name, path, length): (String, PathBuf, u64)| {
        let half = |range| name.get(range).and_then(|digits| u64::from_str_radix(digits, 16).ok());
        let end = (half(8..16)? << 32) + (half(16..24)? + 1) * length;
        (name.starts_with(&highest) && end > from.0).then_some((path, length))
    };
    Ok(segments.into_iter().filter_map(holds).collect())
}

type Saved = Vec<(&'static str, Option<Vec<u8>>)>;

/// Copies the user's files beside the journal, so that a person finds them whatever happens.
fn save_configuration(paths: &Paths) -> io::Result<Saved> {
    let folder = paths.state.join("configuration.saved");
    fs::create_dir_all(&folder)?;
    let mut saved = Vec::new();
    for name in CONFIGURATION {
        let content = match fs::read(paths.data.join(name)) {
            Ok(content) => Some(content),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if let Some(content) = &content {
            files::write_if_changed(&folder.join(name), content, 0o600)?;
        }
        saved.push((name, content));
    }
    Ok(saved)
}

fn restore_configuration(paths: &Paths, saved: &Saved) -> io::Result<()> {
    for (name, content) in saved {
        let path = paths.data.join(name);
        match content {
            Some(content) => drop(files::write_if_changed(&path, content, 0o600)?),
            None => files::remove_durably(&path)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn diverged_wal_is_kept_once_and_an_unfinished_copy_is_removed() {
        let root = std::env::temp_dir().join(format!("antiphon-diverged-{}", std::process::id()));
        let (data, state) = (root.join("data"), root.join("state"));
        let paths = Paths { data, state: state.clone() };
        fs::create_dir_all(paths.wal()).expect("a folder");
        fs::create_dir_all(&state).expect("a folder");
        let segment = paths.wal().join("000000020000000000000003");
        fs::write(&segment, b"wal").expect("a segment");
        let kept = || fs::read_dir(&state).expect("a folder").flatten().count();
        for _ in 0..2 {
            keep_diverged(&paths, Lsn(3)).expect("kept");
            assert_eq!(kept(), 1, "a second try makes no second copy");
        }
        let copy = state.join("diverged-00000002-3");
        assert_eq!(fs::read(copy.join("000000020000000000000003")).expect("a copy"), b"wal");
        // A segment that cannot be read to its end, as a full disk would leave it half-written.
        fs::create_dir(paths.wal().join("000000020000000000000004")).expect("a folder");
        keep_diverged(&paths, Lsn(3)).expect_err("a folder cannot be copied as a file");
        assert_eq!(kept(), 1, "the finished copy stays, the unfinished one does not");
        fs::remove_dir_all(root).expect("removed");
    }

    #[test]
    fn the_place_of_divergence_is_read_from_what_pg_rewind_says() {
        let line = "pg_rewind: servers diverged at WAL location 0/3000148 on timeline 1";
        assert_eq!(divergence(line), Some(Lsn(0x300_0148)));
        assert_eq!(divergence("pg_rewind: no rewind required"), None);
    }
}
