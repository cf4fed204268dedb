//! What the files of a Raft member have in common: the lock, the identity, and how a file is replaced.
//!
//! A directory belongs to one process at a time, and to one identity for ever: whoever finds it empty gets a
//! new one, so that a member whose directory was wiped never votes again as the one that had voted before.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::codec::hash;

const IDENTITY_FORMAT: u32 = 1;

/// Why the files of a Raft member cannot be used.
#[derive(Debug, Error)]
pub enum DiskError {
    /// The system refused.
    #[error("could not {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another process has the directory.
    #[error("the directory {} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// What is there is not what was written.
    #[error(
        "{} is damaged at byte {offset}: {why}; this member must not vote with it. Check the disk, then remove \
         the directory: the member comes back empty and is caught up by the others",
        path.display()
    )]
    Corrupt {
        /// Which file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// How it shows.
        why: String,
    },
    /// Written by another release, or for another member.
    #[error("{} cannot be used: {why}", path.display())]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// Why, and what to do.
        why: String,
    },
}

impl DiskError {
    /// For `map_err`: names what was tried on which file.
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, path: path.to_owned(), source }
    }

    pub(crate) fn corrupt(path: &Path, offset: usize, why: impl Into<String>) -> Self {
        let offset = u64::try_from(offset).unwrap_or(u64::MAX);
        Self::Corrupt { path: path.to_owned(), offset, why: why.into() }
    }
}

/// Who this directory is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    format: u32,
    address: String,
    incarnation: u64,
    node: u64,
    session: u32,
}

/// A locked directory and the identity in it.
#[derive(Debug)]
pub(crate) struct Home {
    /// The Raft id of this member.
    pub(crate) node: u64,
    /// Grows with every start; the upper half of request numbers.
    pub(crate) session: u32,
    _lock: Flock<File>,
}

impl Home {
    /// Locks `dir`, made if it is missing, and counts one more start in it.
    pub(crate) fn open(dir: &Path, address: &str) -> Result<Self, DiskError> {
        fs::create_dir_all(dir).map_err(DiskError::io("make the directory", dir))?;
        let path = dir.join("lock");
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file = file.map_err(DiskError::io("open", &path))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|_| DiskError::InUse(dir.to_owned()))?;
        let path = dir.join("identity");
        let mut identity = match fs::read(&path) {
            Ok(bytes) => read_identity(&path, &bytes, address)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => new_identity(dir, address)?,
            Err(error) => return Err(DiskError::io("read", &path)(error)),
        };
        identity.session = identity.session.checked_add(1).ok_or_else(|| DiskError::Unusable {
            path: path.clone(),
            why: "it was started too often; remove the directory".to_owned(),
        })?;
        let text = serde_json::to_vec_pretty(&identity).map_err(io::Error::other);
        replace(&path, &text.map_err(DiskError::io("write", &path))?)?;
        Ok(Self { node: identity.node, session: identity.session, _lock: lock })
    }
}

/// The Raft id of a member: a hash of its address and of the incarnation that its directory was given.
pub(crate) fn node_id(address: &str, incarnation: u64) -> u64 {
    hash(&[address.as_bytes(), &incarnation.to_be_bytes()])
}

fn new_identity(dir: &Path, address: &str) -> Result<Written, DiskError> {
    for name in ["log", "snapshot"] {
        let path = dir.join(name);
        if path.exists() {
            return Err(DiskError::corrupt(
                &dir.join("identity"),
                0,
                format!("it is missing beside `{name}`"),
            ));
        }
    }
    let mut random = [0; 8];
    getrandom::fill(&mut random)
        .map_err(|error| io::Error::other(error.to_string()))
        .map_err(DiskError::io("draw an identity for", dir))?;
    // 0 is the incarnation of members that were configured and never seen.
    let incarnation = u64::from_be_bytes(random).max(1);
    let node = node_id(address, incarnation);
    Ok(Written { format: IDENTITY_FORMAT, address: address.to_owned(), incarnation, node, session: 0 })
}

fn read_identity(path: &Path, bytes: &[u8], address: &str) -> Result<Written, DiskError> {
    let identity: Written =
        serde_json::from_slice(bytes).map_err(|error| DiskError::corrupt(path, 0, error.to_string()))?;
    if node_id(&identity.address, identity.incarnation) != identity.node {
        return Err(DiskError::corrupt(path, 0, "the id is not that of the address and incarnation"));
    }
    let unusable = |why| Err(DiskError::Unusable { path: path.to_owned(), why });
    if identity.format != IDENTITY_FORMAT {
        return unusable(format!("format {} is of another release", identity.format));
    }
    if identity.address != address {
        return unusable(format!(
            "it belongs to the member at {}, this one is {address}; to give a member another address, remove it \
             from the cluster, remove the directory, and add it again",
            identity.address
        ));
    }
    Ok(identity)
}

/// Puts `bytes` in the place of the file at `path`, durably: after a crash there is the old or the new one.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<File, DiskError> {
    let draft = path.with_extension("new");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(&draft)
        .map_err(DiskError::io("create", &draft))?;
    file.write_all(bytes).map_err(DiskError::io("write", &draft))?;
    file.sync_all().map_err(DiskError::io("flush", &draft))?;
    fs::rename(&draft, path).map_err(DiskError::io("rename to", path))?;
    let dir = path.parent().unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(DiskError::io("flush the directory", dir))?;
    Ok(file)
}
