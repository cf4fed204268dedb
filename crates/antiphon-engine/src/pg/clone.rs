//! A base backup of another member, built beside the data directory and put in its place when complete.
//!
//! The old directory is untouched until the new one is whole and durable; then it is renamed away, and
//! removed only if it was not to be kept. What an earlier attempt left is removed by the next one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::control::{self, Directory};
use super::files::{self, Paths};
use super::{Inner, config, initialise, tool};
use crate::EngineError;

impl Inner {
    pub(super) async fn clone_from(
        self: &Arc<Self>,
        address: &str,
        keep_old: bool,
    ) -> Result<(), EngineError> {
        let what = "take a base backup";
        let old = self.directory_at_rest(what).await?;
        let major = match &old.directory {
            Directory::Data { major, .. } => Some(*major),
            Directory::Absent | Directory::Foreign(_) => None,
        };
        let binaries = self.binaries(major).await?;
        let program = binaries.program("pg_basebackup")?;
        let settings = self.settings();
        let source = config::conninfo(&self.paths, config::TOOL_APPLICATION, address, &settings.replication)
            .map_err(|reason| EngineError::Failed { what: what.to_owned(), reason })?;
        self.write_passwords().await?;
        let target = self
            .change_directory("make room for a base backup", move |paths| prepare(paths, keep_old))
            .await?;
        let mut command = tool::command(&program, &self.paths.state, &self.paths.passwords());
        command.arg("-D").arg(&target).arg("-d").arg(source);
        command.args(["-X", "stream", "-c", "fast", "-P", "-w"]).args(&settings.basebackup);
        let inner = Arc::clone(self);
        tool::run("run pg_basebackup", command, move |line| {
            if let Some(progress) = progress(line) {
                inner.say(progress);
            }
        })
        .await?;
        self.say("putting the new data directory in place".to_owned());
        let expected = super::lock(&self.expected).clone();
        self.change_directory("put the base backup in place", move |paths| {
            put_in_place(paths, &target, keep_old, expected.as_deref())
        })
        .await
    }

    /// Tools read passwords from the file, which may not have been written yet.
    pub(super) async fn write_passwords(&self) -> Result<(), EngineError> {
        let mut role = self.role.lock().await;
        let same = role.clone();
        self.write_role(&mut role, same).await
    }
}

/// `  12345/67890 kB (18%), 0/1 tablespace` is `12 MB of 67 MB`.
fn progress(line: &str) -> Option<String> {
    let (done, rest) = line.trim().split_once('/')?;
    let total = rest.split_once(" kB")?.0;
    let megabytes = |text: &str| text.parse::<u64>().ok().map(|kilobytes| kilobytes / 1024);
    Some(format!("{} MB of {} MB", megabytes(done)?, megabytes(total)?))
}

/// Whether the data directory can be replaced by a rename: not if it is a mount point.
fn can_rename(data: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev());
    let Some(parent) = data.parent() else { return false };
    let same = match (device(data), device(parent)) {
        (Ok(own), Ok(above)) => own == above,
        (Err(_), Ok(_)) => true,
        (_, Err(_)) => false,
    };
    same && nix::unistd::access(parent, nix::unistd::AccessFlags::W_OK).is_ok()
}

/// Removes what an earlier attempt left; returns where to build.
fn prepare(paths: &Paths, keep_old: bool) -> io::Result<PathBuf> {
    let beside = paths.data_with(".new");
    if beside.exists() {
        fs::remove_dir_all(&beside)?;
    }
    if can_rename(&paths.data) {
        return Ok(beside);
    }
    if paths.data.join("PG_VERSION").exists() && keep_old {
        return Err(io::Error::other(format!(
            "{} cannot be renamed (a mount point, or its parent is not writable) and holds data that is to be kept: \
             move its content away by hand",
            paths.data.display()
        )));
    }
    // Built in place, so it is half-built from here on.
    files::write_durably(&paths.clone_journal(), b"clone\n", 0o600)?;
    initialise::clear(&paths.data)?;
    Ok(paths.data.clone())
}

/// Makes the complete base backup the data directory.
fn put_in_place(paths: &Paths, new: &Path, keep_old: bool, expected: Option<&str>) -> io::Result<()> {
    let bytes = fs::read(new.join("global/pg_control"))?;
    let control = control::parse(&bytes).map_err(io::Error::other)?;
    if expected.is_some_and(|expected| expected != control.system_identifier) {
        return Err(io::Error::other(format!(
            "the base backup has the system identifier {} and this cluster another: wrong address?",
            control.system_identifier
        )));
    }
    // Before it has its name: nobody may ever start it as a primary.
    files::write_durably(&new.join("standby.signal"), b"", 0o600)?;
    files::sync_folder(new)?;
    if new != paths.data {
        let parent = paths.data.parent().unwrap_or(Path::new("/"));
        let aside = put_aside(paths)?;
        fs::rename(new, &paths.data)?;
        files::sync_folder(parent)?;
        match aside {
            Some(aside) if keep_old => tracing::warn!(kept = %aside.display(), "kept the old data directory"),
            Some(aside) => fs::remove_dir_all(aside)?,
            None => {}
        }
    }
    for journal in [paths.clone_journal(), paths.rewind_journal(), paths.initialise_journal()] {
        files::remove_durably(&journal)?;
    }
    Ok(())
}

/// Renames the data directory away; where to, if there was one with something in it.
fn put_aside(paths: &Paths) -> io::Result<Option<PathBuf>> {
    if !paths.data.exists() {
        return Ok(None);
    }
    if fs::read_dir(&paths.data)?.next().is_none() {
        fs::remove_dir(&paths.data)?;
        return Ok(None);
    }
    let aside = paths.data_with(&format!(".old-{}", stamp()));
    fs::rename(&paths.data, &aside)?;
    Ok(Some(aside))
}

/// Seconds since 1970: names something for a person, decides nothing.
pub(super) fn stamp() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_in_megabytes() {
        assert_eq!(
            progress("  524288/2150400 kB (24%), 0/1 tablespace").as_deref(),
            Some("512 MB of 2100 MB")
        );
        assert_eq!(progress("waiting for checkpoint"), None);
    }
}
