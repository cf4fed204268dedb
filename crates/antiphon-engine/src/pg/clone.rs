//! A copy of another member: by a base backup, or by commands of the user's.
//!
//! A base backup is built beside the data directory. That is untouched until the new one is whole and durable; then it
//! is renamed away, and removed only if it was not to be kept. A command fills the data directory itself, because only
//! it knows where its backups go. What an earlier attempt left is removed by the next one.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::control::{self, Directory, Facts};
use super::files::{self, Paths};
use super::settings::{ReplicaCommand, ReplicaMethod};
use super::{Inner, config, initialise, scripts, tool};
use crate::{EngineError, sentence};

impl Inner {
    pub(super) async fn clone_from(
        self: &Arc<Self>,
        address: &str,
        keep_old: bool,
    ) -> Result<(), EngineError> {
        let what = "copy another member";
        let settings = self.settings();
        let mut outcome = Err(EngineError::Failed {
            what: what.to_owned(),
            reason: "create_replica_methods names none".to_owned(),
        });
        for method in &settings.replica_methods {
            if let Err(error) = &outcome {
                tracing::debug!(error = sentence(error), ?method, "trying the next way to copy");
            }
            let old = self.directory_at_rest(what).await?;
            // What a copy left half-built is not worth keeping; what a rewind did is.
            let keep_old = keep_old && !self.paths.clone_journal().exists();
            outcome = match method {
                ReplicaMethod::BaseBackup => self.base_backup(address, &old, keep_old).await,
                ReplicaMethod::Command(command) => self.copy_by(command, address, keep_old).await,
            };
            match &outcome {
                Ok(()) => break,
                Err(error) => tracing::warn!(error = sentence(error), "a way to copy another member failed"),
            }
        }
        outcome
    }

    async fn base_backup(
        self: &Arc<Self>,
        address: &str,
        old: &Facts,
        keep_old: bool,
    ) -> Result<(), EngineError> {
        let what = "take a base backup";
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
        self.finish_copy(target, keep_old).await
    }

    /// Patroni's contract: the command fills the data directory from wherever it likes.
    async fn copy_by(
        self: &Arc<Self>,
        method: &ReplicaCommand,
        address: &str,
        keep_old: bool,
    ) -> Result<(), EngineError> {
        let settings = self.settings();
        let (program, words) = scripts::words(&method.command)?;
        self.write_passwords().await?;
        let keep_data = method.keep_data;
        let what = "make room for a copy";
        self.change_directory(what, move |paths| make_room(paths, keep_old, keep_data)).await?;
        let mut command = tool::command(Path::new(&program), &self.paths.state, &self.paths.passwords());
        command.args(words);
        if !method.no_params {
            let user = initialise::percent_encoded(&settings.replication.username);
            let given = [
                ("scope", settings.scope.clone()),
                ("role", "replica".to_owned()),
                ("datadir", self.paths.data.display().to_string()),
                ("connstring", format!("postgres://{user}@{address}/postgres")),
            ];
            let own = method.options.iter().map(|(name, value)| (name.as_str(), value.clone()));
            command.args(given.into_iter().chain(own).map(|(name, value)| format!("--{name}={value}")));
        }
        self.say(format!("copying by {}", method.name));
        let inner = Arc::clone(self);
        let name = method.name.clone();
        let what = format!("copy by {}", method.name);
        tool::run(&what, command, move |line| inner.say(format!("copying by {name}: {line}"))).await?;
        self.finish_copy(self.paths.data.clone(), false).await
    }

    async fn finish_copy(&self, target: PathBuf, keep_old: bool) -> Result<(), EngineError> {
        self.say("putting the new data directory in place".to_owned());
        let expected = super::lock(&self.expected).clone();
        self.change_directory("put the copy in place", move |paths| {
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
        return Err(cannot_rename(paths));
    }
    // Built in place, so it is half-built from here on.
    files::write_durably(&paths.clone_journal(), b"clone\n", 0o600)?;
    initialise::clear(&paths.data)?;
    Ok(paths.data.clone())
}

fn cannot_rename(paths: &Paths) -> io::Error {
    io::Error::other(format!(
        "{} cannot be renamed (a mount point, or its parent is not writable) and holds data that is to be kept: \
         move its content away by hand",
        paths.data.display()
    ))
}

/// Prepares the data directory for a command that fills it: empty, or as it was.
fn make_room(paths: &Paths, keep_old: bool, keep_data: bool) -> io::Result<()> {
    if keep_old && paths.data.join("PG_VERSION").exists() {
        if !can_rename(&paths.data) {
            return Err(cannot_rename(paths));
        }
        let aside = put_aside(paths)?;
        tracing::warn!(kept = ?aside, "kept the old data directory");
    }
    files::write_durably(&paths.clone_journal(), b"clone\n", 0o600)?;
    match fs::DirBuilder::new().mode(0o700).create(&paths.data) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Err(_) if keep_data => Ok(()),
        Ok(()) | Err(_) => initialise::clear(&paths.data),
    }
}

/// Makes the complete base backup the data directory.
fn put_in_place(paths: &Paths, new: &Path, keep_old: bool, expected: Option<&str>) -> io::Result<()> {
    let bytes = fs::read(new.join("global/pg_control"))?;
    let control = control::parse(&bytes).map_err(io::Error::other)?;
    if expected.is_some_and(|expected| expected != control.system_identifier) {
        return Err(io::Error::other(format!(
            "the copy has the system identifier {} and this cluster another: wrong address?",
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
