//! `global/pg_control` and what else a data directory says of itself while no server runs.
//!
//! Only the head of the control file is read, which has the same layout from PostgreSQL 14 to 18 (seen
//! against `pg_controldata` in the tests); a version that is not known is refused, never guessed at.

use std::fs;
use std::io;
use std::path::Path;

use antiphon_core::ha::cluster::Position;
use antiphon_core::{Lsn, Timeline};

use super::files::Paths;

/// Control file versions of PostgreSQL 13 to 18.
const VERSIONS: [u32; 3] = [1300, 1700, 1800];

/// The head of the control file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Control {
    pub(super) system_identifier: String,
    /// Shut down cleanly, as primary or in recovery.
    pub(super) clean: bool,
    /// The states that only a primary writes.
    pub(super) primary: bool,
    /// The latest checkpoint and its timeline.
    pub(super) checkpoint: Position,
}

/// Reads the head of a control file.
pub(super) fn parse(bytes: &[u8]) -> Result<Control, String> {
    let word = |at: usize| -> Result<u32, String> {
        let field = bytes.get(at..at + 4).and_then(|field| field.try_into().ok());
        field.map(u32::from_ne_bytes).ok_or_else(|| "the control file is too short".to_owned())
    };
    let long = |at: usize| -> Result<u64, String> {
        let field = bytes.get(at..at + 8).and_then(|field| field.try_into().ok());
        field.map(u64::from_ne_bytes).ok_or_else(|| "the control file is too short".to_owned())
    };
    let version = word(8)?;
    if !VERSIONS.contains(&version) {
        return Err(format!("control file version {version} is not one of PostgreSQL 14 to 18"));
    }
    let state = word(16)?;
    if state > 6 {
        return Err(format!("the control file holds the unknown state {state}"));
    }
    Ok(Control {
        system_identifier: long(0)?.to_string(),
        clean: matches!(state, 1 | 2),
        primary: matches!(state, 1 | 3 | 4 | 6),
        checkpoint: Position { timeline: Timeline(word(48)?), lsn: Lsn(long(32)?) },
    })
}

/// What is at the place of the data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Directory {
    /// Nothing, or an empty folder.
    Absent,
    /// Something that is no data directory of ours, and why.
    Foreign(String),
    /// A data directory of this major version.
    Data {
        major: u32,
        control: Control,
        /// A base backup that was never started.
        backup: bool,
    },
}

/// Everything about the data directory that is read from files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) directory: Directory,
    pub(super) half_built: bool,
    /// A server that starts here comes up as a standby.
    pub(super) standby: bool,
    pub(super) pid_file: Option<PidFile>,
}

/// The main process as `postmaster.pid` names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PidFile {
    pub(super) pid: i32,
    pub(super) port: Option<u16>,
    pub(super) socket_dir: Option<String>,
}

/// Reads `postmaster.pid`.
pub(super) fn pid_file(data: &Path) -> Option<PidFile> {
    let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let lines: Vec<&str> = text.lines().collect();
    let line = |at: usize| lines.get(at).map(|line| line.trim()).filter(|line| !line.is_empty());
    Some(PidFile {
        pid: line(0)?.parse().ok().filter(|pid| *pid > 1)?,
        port: line(3).and_then(|port| port.parse().ok()),
        socket_dir: line(4).map(str::to_owned),
    })
}

/// Looks at the data directory. Blocks on its disk.
pub(super) fn inspect(paths: &Paths) -> Facts {
    let half_built = [paths.rewind_journal(), paths.clone_journal(), paths.initialise_journal()]
        .iter()
        .any(|journal| journal.exists());
    let standby = paths.standby_signal().exists();
    Facts {
        directory: directory(&paths.data, half_built),
        half_built,
        standby,
        pid_file: pid_file(&paths.data),
    }
}

fn directory(data: &Path, half_built: bool) -> Directory {
    use std::os::unix::fs::MetadataExt;
    let shown = data.display();
    let metadata = match fs::metadata(data) {
        Ok(metadata) if metadata.is_dir() => metadata,
        Ok(_) => return Directory::Foreign(format!("{shown} is not a folder: move it away")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Directory::Absent,
        Err(error) => return Directory::Foreign(format!("{shown} cannot be looked at: {error}")),
    };
    let me = nix::unistd::geteuid().as_raw();
    let entries = match fs::read_dir(data) {
        Ok(entries) => entries,
        Err(error) => {
            let owner = metadata.uid();
            return Directory::Foreign(format!(
                "{shown} cannot be read ({error}): it belongs to user {owner} and this runs as user {me}; \
                 run as its owner or change the owner"
            ));
        }
    };
    let empty = entries.flatten().all(|entry| entry.file_name() == "lost+found");
    if empty {
        return Directory::Absent;
    }
    if metadata.uid() != me {
        return Directory::Foreign(format!(
            "{shown} belongs to user {} and this runs as user {me}: run as its owner or change the owner",
            metadata.uid()
        ));
    }
    let Ok(version) = fs::read_to_string(data.join("PG_VERSION")) else {
        if half_built {
            return Directory::Absent;
        }
        return Directory::Foreign(format!(
            "{shown} is not empty and not a PostgreSQL data directory (it has no PG_VERSION): \
             move its content away or name another data directory"
        ));
    };
    let Ok(major) = version.trim().parse() else {
        return Directory::Foreign(format!(
            "{shown} is of PostgreSQL {}: 14 to 18 are known",
            version.trim()
        ));
    };
    let control = fs::read(data.join("global/pg_control")).map_err(|error| error.to_string());
    match control.and_then(|bytes| parse(&bytes)) {
        Ok(control) => Directory::Data { major, control, backup: data.join("backup_label").exists() },
        Err(_) if half_built => Directory::Absent,
        Err(error) => Directory::Foreign(format!("{shown}/global/pg_control cannot be used: {error}")),
    }
}
