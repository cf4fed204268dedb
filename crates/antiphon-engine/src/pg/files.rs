//! Files that must survive a power cut, and the names of the engine's own ones.
//!
//! A file is replaced as a whole: written beside, fsynced, renamed, and the folder fsynced. Everything here
//! blocks; callers run it off the event loop.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::EngineError;

/// Where the engine keeps what.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    /// The data directory, with symbolic links above it resolved, as `/proc/PID/cwd` shows it.
    pub(super) data: PathBuf,
    /// The engine's own folder.
    pub(super) state: PathBuf,
}

impl Paths {
    /// Resolves the data directory and creates the engine's own folder (0700).
    pub(super) fn prepare(data_dir: &Path, state_dir: &Path) -> Result<Self, EngineError> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(state_dir).map_err(|source| {
            EngineError::Io { what: format!("create the folder {}", state_dir.display()), source }
        })?;
        let state = state_dir.canonicalize().map_err(|source| EngineError::Io {
            what: format!("resolve the folder {}", state_dir.display()),
            source,
        })?;
        Ok(Self { data: resolve(data_dir), state })
    }

    pub(super) fn config(&self) -> PathBuf {
        self.state.join("postgresql.antiphon.conf")
    }

    pub(super) fn hba(&self) -> PathBuf {
        self.state.join("pg_hba.conf")
    }

    pub(super) fn ident(&self) -> PathBuf {
        self.state.join("pg_ident.conf")
    }

    pub(super) fn passwords(&self) -> PathBuf {
        self.state.join("pgpass")
    }

    pub(super) fn fence(&self) -> PathBuf {
        self.state.join("fence")
    }

    pub(super) fn role(&self) -> PathBuf {
        self.state.join("role.json")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.state.join("postgresql.log")
    }

    /// Exists from before a rewind changes the data directory until it is whole again.
    pub(super) fn rewind_journal(&self) -> PathBuf {
        self.state.join("rewind.inprogress")
    }

    /// Exists from before a clone touches the data directory until it is whole again.
    pub(super) fn clone_journal(&self) -> PathBuf {
        self.state.join("clone.inprogress")
    }

    /// Exists while the first data directory is made, until its roles exist.
    pub(super) fn initialise_journal(&self) -> PathBuf {
        self.state.join("initialise.inprogress")
    }

    pub(super) fn wal(&self) -> PathBuf {
        self.data.join("pg_wal")
    }

    pub(super) fn standby_signal(&self) -> PathBuf {
        self.data.join("standby.signal")
    }

    /// The data directory's path with something appended to its last component.
    pub(super) fn data_with(&self, suffix: &str) -> PathBuf {
        let mut path = self.data.clone().into_os_string();
        path.push(suffix);
        path.into()
    }
}

/// The path with links resolved as far as it exists.
fn resolve(path: &Path) -> PathBuf {
    if let Ok(whole) = path.canonicalize() {
        return whole;
    }
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match (absolute.parent().map(Path::canonicalize), absolute.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => absolute,
    }
}

/// Makes the names in a folder durable.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Replaces a file as a whole, durably.
pub(super) fn write_durably(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::other("a file without a folder"))?;
    let mut beside = path.to_owned().into_os_string();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    sync_folder(folder)
}

/// Writes a file durably unless it has that content already; true if it was written.
pub(super) fn write_if_changed(path: &Path, content: &[u8], mode: u32) -> io::Result<bool> {
    if fs::read(path).is_ok_and(|present| present == content) {
        return Ok(false);
    }
    write_durably(path, content, mode)?;
    Ok(true)
}

/// Removes a file durably; one that is not there is no error.
pub(super) fn remove_durably(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_folder(path.parent().unwrap_or(Path::new("/"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// The last `bytes_max` bytes of a file as text.
pub(super) fn tail(path: &Path, bytes_max: u64) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(bytes_max)))?;
        let mut bytes = Vec::new();
        file.take(bytes_max).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_default()
}

/// Runs blocking work off the event loop while nobody else holds `lock`. A caller that is interrupted leaves the
/// work to end by itself; the next one waits for it.
pub(super) async fn exclusively<T: Send + 'static>(
    lock: &Arc<tokio::sync::Mutex<()>>,
    what: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, EngineError> {
    let held = Arc::clone(lock).lock_owned().await;
    blocking(what, move || {
        let done = work();
        drop(held);
        done
    })
    .await
}

/// Runs blocking work off the event loop.
pub(super) async fn blocking<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, EngineError> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended
        .map_err(|error| EngineError::Failed { what: what.to_owned(), reason: error.to_string() })?
        .map_err(|source| EngineError::Io { what: what.to_owned(), source })
}
