//! Kept: old data directories and diverged WAL, which nobody removes but an operator.
//!
//! A rewind copies the WAL that only this server had to `diverged-…` in the state directory; a clone that replaces
//! a directory with such WAL renames it to `….old-…`. Both can be the last copy of something, so nothing here
//! removes them: it finds, measures, and tells, at the start and once a day. Files are looked at by a thread of
//! their own; a disk that hangs holds up nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use antiphon_core::Instant;
use tokio::task::JoinHandle;

use super::clock;
use super::view::Kept;

/// How often their names are looked for.
const LOOK: Duration = Duration::from_secs(10);
/// How often the log tells of them.
const TELL: Duration = Duration::from_secs(24 * 3600);
/// Folders in folders that are measured.
const DEPTH_MAX: u32 = 16;

/// Keeps the list.
pub struct KeptDirectories {
    /// The data directory and the state directory; none on a witness.
    places: Option<(PathBuf, PathBuf)>,
    known: BTreeMap<PathBuf, u64>,
    looked: Option<Instant>,
    told: Option<Instant>,
    looking: Option<JoinHandle<BTreeMap<PathBuf, u64>>>,
}

impl KeptDirectories {
    /// Those beside a data directory and in a state directory.
    pub fn new(places: Option<(PathBuf, PathBuf)>) -> Self {
        Self { places, known: BTreeMap::new(), looked: None, told: None, looking: None }
    }

    /// What is known, and a new look if one is due.
    pub async fn look(&mut self) -> Vec<Kept> {
        let now = clock::now();
        if self.looking.as_ref().is_some_and(JoinHandle::is_finished)
            && let Some(ended) = self.looking.take()
        {
            // A look that failed is made again.
            self.known = ended.await.unwrap_or_default();
            self.tell(now);
        }
        let due = self.looked.is_none_or(|at| now.since(at) >= LOOK);
        if due && self.looking.is_none() {
            self.looked = Some(now);
            let known = self.known.clone();
            self.looking = self
                .places
                .clone()
                .map(|(data, state)| tokio::task::spawn_blocking(move || find(&data, &state, &known)));
        }
        self.known.iter().map(|(path, bytes)| Kept { path: path.clone(), bytes: *bytes }).collect()
    }

    fn tell(&mut self, now: Instant) {
        let due = self.told.is_none_or(|at| now.since(at) >= TELL);
        if due && !self.known.is_empty() {
            self.told = Some(now);
            for (path, bytes) in &self.known {
                tracing::warn!(
                    path = %path.display(), bytes,
                    "data of an earlier history is kept here: remove it when nobody misses a write in it"
                );
            }
        }
    }
}

/// The directories that are kept, with their sizes; what is known already does not change and is not measured again.
fn find(data: &Path, state: &Path, known: &BTreeMap<PathBuf, u64>) -> BTreeMap<PathBuf, u64> {
    let old = data.file_name().map(|name| format!("{}.old-", name.to_string_lossy()));
    let places = data.parent().zip(old).into_iter().chain([(state, "diverged-".to_owned())]);
    let found = places.flat_map(|(folder, prefix)| named(folder, &prefix));
    found.map(|path| (path.clone(), known.get(&path).copied().unwrap_or_else(|| size(&path, 0)))).collect()
}

/// The folders in `folder` whose names begin with `prefix`, whole ones only.
fn named(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.starts_with(prefix) && !name.ends_with(".new") && entry.path().is_dir()
        })
        .map(|entry| entry.path())
        .collect()
}

/// Bytes of the files in a folder. Links are not followed: a tablespace lies elsewhere.
fn size(folder: &Path, depth: u32) -> u64 {
    if depth > DEPTH_MAX {
        return 0;
    }
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(data) if data.is_dir() => size(&entry.path(), depth + 1),
            Ok(data) => data.len(),
            Err(_) => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_found_and_measured_and_nothing_else_is() {
        let root = std::env::temp_dir().join(format!("antiphon-kept-{}", std::process::id()));
        let (data, state) = (root.join("data"), root.join("data.antiphon"));
        let file = |path: PathBuf, bytes: usize| {
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, vec![b'x'; bytes]).expect("written");
        };
        file(root.join("data.old-17/base/1/2"), 1000);
        file(root.join("data.old-17/PG_VERSION"), 3);
        file(state.join("diverged-00000001-5000000/000000010000000000000005"), 500);
        file(state.join("diverged-00000001-6000000.new/000000010000000000000006"), 500);
        file(data.join("PG_VERSION"), 3);
        file(root.join("data.older/x"), 7);
        let found = find(&data, &state, &BTreeMap::new());
        let expected = [(root.join("data.old-17"), 1003), (state.join("diverged-00000001-5000000"), 500)];
        assert_eq!(found, BTreeMap::from(expected));
        fs::remove_dir_all(&root).expect("removed");
    }
}
