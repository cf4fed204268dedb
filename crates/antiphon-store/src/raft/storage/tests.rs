//! What a member reads back from its directory, at every step of what it writes.
//!
//! A crash is played by putting back the files as they were at that point.

use super::*;
use crate::raft::machine::Command;
use crate::{Transaction, Versioned};
use std::collections::BTreeMap;
use std::sync::Arc;

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("antiphon-storage-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn entry(index: u64, term: u64) -> Entry {
    let puts = vec![("key".to_owned(), index.to_string())];
    let transaction = Transaction { puts, ..Transaction::default() };
    let command = Command { node: 9, request: index, transaction };
    Entry { index, term, data: command.encode().into(), ..Entry::default() }
}

fn hard(term: u64, vote: u64, commit: u64) -> HardState {
    HardState { term, vote, commit, ..HardState::default() }
}

fn snapshot(index: u64, term: u64) -> Snapshot {
    let mut machine = Machine::founded(3, BTreeMap::from([(9, "a:1".to_owned())]));
    let stored = Versioned { value: "from the snapshot".to_owned(), revision: 1 };
    Arc::make_mut(&mut machine.space).entries.insert("key".to_owned(), stored);
    let mut snapshot = Snapshot { data: machine.encode().into(), ..Snapshot::default() };
    snapshot.mut_metadata().index = index;
    snapshot.mut_metadata().term = term;
    snapshot.mut_metadata().mut_conf_state().set_voters(vec![9]);
    snapshot
}

fn apply(storage: &mut Storage, entry: &Entry) {
    storage.machine.apply(&Command::decode(&entry.data).unwrap());
    storage.set_applied(entry);
}

fn indexes(storage: &Storage) -> Vec<(u64, u64)> {
    storage.entries.iter().map(|entry| (entry.index, entry.term)).collect()
}

#[test]
fn what_was_committed_is_known_after_a_start() {
    let dir = Dir::new("committed");
    let mut storage = Storage::open(&dir.0).unwrap();
    storage.join_cluster(3).unwrap();
    storage.append(&[entry(1, 2), entry(2, 2)], Some(&hard(2, 9, 0))).unwrap();
    storage.note_commit(2);
    storage.append(&[entry(3, 2)], None).unwrap();
    drop(storage);
    let mut storage = Storage::open(&dir.0).unwrap();
    assert_eq!(storage.hard, hard(2, 9, 2), "it was written with the next entry");
    storage.note_commit(3);
    storage.keep_commit().unwrap();
    drop(storage);
    assert_eq!(Storage::open(&dir.0).unwrap().hard, hard(2, 9, 3), "it was kept without one");
}

#[test]
fn votes_and_entries_survive_and_later_entries_overwrite_earlier_ones() {
    let dir = Dir::new("survive");
    let mut storage = Storage::open(&dir.0).unwrap();
    storage.restore(&snapshot(1, 1), Some(&hard(1, 0, 1))).unwrap();
    storage.append(&[entry(2, 1), entry(3, 1), entry(4, 1)], Some(&hard(1, 9, 2))).unwrap();
    storage.append(&[entry(3, 2)], Some(&hard(2, 7, 2))).unwrap();
    drop(storage);
    let storage = Storage::open(&dir.0).unwrap();
    assert_eq!(indexes(&storage), [(2, 1), (3, 2)]);
    assert_eq!(storage.hard, hard(2, 7, 2));
    assert_eq!((storage.cluster(), storage.applied()), (3, (1, 1)));
}

#[test]
fn a_long_log_becomes_a_snapshot_and_nothing_is_lost() {
    let dir = Dir::new("compact");
    let mut storage = Storage::open(&dir.0).unwrap();
    storage.restore(&snapshot(1, 1), Some(&hard(1, 0, 1))).unwrap();
    for index in 2..=ENTRIES_MAX + 50 {
        let entry = entry(index, 1);
        storage.append(std::slice::from_ref(&entry), Some(&hard(1, 9, index))).unwrap();
        apply(&mut storage, &entry);
        storage.compact().unwrap();
    }
    storage.append(&[entry(ENTRIES_MAX + 51, 1)], None).unwrap();
    assert!(storage.entries.len() < 400, "{} entries stay in memory", storage.entries.len());
    assert!(storage.log.length() < 64 * 1024, "{} bytes stay in the log", storage.log.length());
    let (last, machine) = (storage.last(), storage.machine.clone());
    drop(storage);
    let mut storage = Storage::open(&dir.0).unwrap();
    assert_eq!(storage.last(), last);
    assert_eq!(storage.hard, hard(1, 9, ENTRIES_MAX + 50));
    let rest: Vec<Entry> = storage.entries.iter().take(49).cloned().collect();
    for entry in rest {
        apply(&mut storage, &entry);
    }
    assert_eq!(storage.machine, machine);
}

#[test]
fn a_crash_between_a_snapshot_from_the_leader_and_the_new_log_leaves_no_contradiction() {
    let dir = Dir::new("between");
    let mut storage = Storage::open(&dir.0).unwrap();
    storage.restore(&snapshot(1, 1), Some(&hard(1, 0, 1))).unwrap();
    storage.append(&[entry(2, 1), entry(3, 1), entry(4, 1)], Some(&hard(1, 9, 2))).unwrap();
    let old_log = fs::read(dir.0.join("log")).unwrap();
    storage.restore(&snapshot(3, 5), Some(&hard(5, 0, 3))).unwrap();
    drop(storage);
    // The old log was still in place when the crash came.
    fs::write(dir.0.join("log"), old_log).unwrap();
    fs::remove_file(dir.0.join("mark")).unwrap();
    let storage = Storage::open(&dir.0).unwrap();
    assert_eq!(indexes(&storage), [], "entries that do not lead to the snapshot are dropped");
    assert_eq!(storage.hard, hard(5, 0, 3));
    assert_eq!(storage.machine.space.entries["key"].value, "from the snapshot");
}

#[test]
fn a_damaged_or_missing_snapshot_is_refused() {
    let dir = Dir::new("damaged");
    let mut storage = Storage::open(&dir.0).unwrap();
    storage.restore(&snapshot(5, 2), Some(&hard(2, 0, 5))).unwrap();
    storage.append(&[entry(6, 2)], Some(&hard(2, 9, 6))).unwrap();
    drop(storage);
    let path = dir.0.join("snapshot");
    let whole = fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 4;
        fs::write(&path, &damaged).unwrap();
        assert!(Storage::open(&dir.0).is_err(), "damage at {at} went unseen");
        fs::write(&path, &whole[..at]).unwrap();
        assert!(Storage::open(&dir.0).is_err(), "a cut at {at} went unseen");
    }
    fs::remove_file(&path).unwrap();
    assert!(Storage::open(&dir.0).is_err(), "a log without the snapshot that it continues");
    fs::write(&path, &whole).unwrap();
    assert_eq!(indexes(&Storage::open(&dir.0).unwrap()), [(6, 2)]);
}
