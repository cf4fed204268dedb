//! What one member holds: the log's tail in memory and on disk, the last snapshot, and the applied state.
//!
//! The disk part is written here and nowhere else, in an order that a crash at any point leaves whole: a
//! snapshot is durable before the log that leads up to it is dropped. Any error must stop the member.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ::raft::eraftpb::{ConfState, Entry, EntryType, HardState, Snapshot};
use ::raft::{GetEntriesContext, RaftState, StorageError};

use super::codec::{Reader, Writer};
use super::disk::{self, DiskError};
use super::log::Log;
use super::machine::Machine;

/// The log is cut when it holds this many applied entries…
const ENTRIES_MAX: u64 = 1000;
/// …or this many bytes on disk.
const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// How many applied entries stay in memory for members that lag, bounded by bytes too.
const TAIL_ENTRIES_MAX: usize = 200;
const TAIL_BYTES_MAX: usize = 4 * 1024 * 1024;

const SNAPSHOT_MAGIC: &[u8; 8] = b"ANTIPSNP";
const SNAPSHOT_VERSION: u8 = 1;
const BATCH_VERSION: u8 = 1;

/// All that a member must not forget, and what follows from it.
pub(crate) struct Storage {
    snapshot_path: PathBuf,
    log: Log,
    hard: HardState,
    /// The cluster that this member has voted in; 0 before it heard of one.
    cluster: u64,
    /// Index and term of the entry before the first of `entries`.
    base: (u64, u64),
    entries: VecDeque<Entry>,
    /// Index and term of the last snapshot on disk.
    snapshot: (u64, u64),
    applied: (u64, u64),
    conf: ConfState,
    pub(crate) machine: Machine,
}

impl Storage {
    /// Reads back what `dir` holds. Cuts a torn end of the log; refuses everything else that is not whole.
    pub(crate) fn open(dir: &Path) -> Result<Self, DiskError> {
        let snapshot_path = dir.join("snapshot");
        let found = match fs::read(&snapshot_path) {
            Ok(bytes) => Some(read_snapshot(&snapshot_path, &bytes)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(DiskError::io("read", &snapshot_path)(error)),
        };
        let (log, batches) = Log::open(dir, found.is_none())?;
        let (snapshot, conf, machine) = found.unwrap_or_default();
        let cluster = machine.cluster;
        let mut storage = Self {
            snapshot_path,
            log,
            hard: HardState::default(),
            cluster,
            base: snapshot,
            entries: VecDeque::new(),
            snapshot,
            applied: snapshot,
            conf,
            machine,
        };
        storage.replay(&dir.join("log"), &batches)?;
        Ok(storage)
    }

    fn replay(&mut self, path: &Path, batches: &[Vec<u8>]) -> Result<(), DiskError> {
        let mut entries: VecDeque<Entry> = VecDeque::new();
        for batch in batches {
            let Some(batch) = Batch::decode(batch) else {
                return Err(DiskError::corrupt(path, 0, "a batch cannot be read"));
            };
            if let Some(hard) = batch.hard {
                self.hard = hard;
            }
            if batch.cluster != 0 {
                self.cluster = batch.cluster;
            }
            for entry in batch.entries {
                let first = entries.front().map_or(entry.index, |first| first.index);
                let next = first + entries.len() as u64;
                if entry.index < first || entry.index > next {
                    return Err(DiskError::corrupt(
                        path,
                        0,
                        format!("entry {} is out of order", entry.index),
                    ));
                }
                entries.truncate(usize::try_from(entry.index - first).unwrap_or(usize::MAX));
                entries.push_back(entry);
            }
        }
        self.adopt(path, entries)?;
        let (index, term) = self.snapshot;
        if self.hard.term < term {
            // A snapshot came in, and the crash came before the log was replaced: no vote was given since.
            self.hard.term = term;
            self.hard.vote = 0;
        }
        self.hard.commit = self.hard.commit.max(index);
        if self.hard.commit > self.last().0 {
            let why = format!("entry {} was committed, the last one is {}", self.hard.commit, self.last().0);
            return Err(DiskError::corrupt(path, 0, why));
        }
        Ok(())
    }

    /// Takes those of the log's entries that continue the snapshot.
    fn adopt(&mut self, path: &Path, mut entries: VecDeque<Entry>) -> Result<(), DiskError> {
        let (index, term) = self.snapshot;
        let Some(first) = entries.front().map(|entry| entry.index) else { return Ok(()) };
        if first > index + 1 {
            let why = format!("it begins with entry {first}, the snapshot ends with {index}");
            return Err(DiskError::corrupt(path, 0, why));
        }
        let covered = usize::try_from(index + 1 - first).unwrap_or(usize::MAX);
        // A snapshot that came in from the leader replaces a log that does not lead to it.
        let leads_here = covered == 0 || entries.get(covered - 1).is_some_and(|entry| entry.term == term);
        if leads_here {
            entries.drain(..covered);
            self.entries = entries;
        }
        Ok(())
    }

    /// Makes `entries` and `hard` durable, and what is known to be committed with them. Entries overwrite those
    /// that they contradict.
    pub(crate) fn append(&mut self, entries: &[Entry], hard: Option<&HardState>) -> Result<(), DiskError> {
        if let Some(hard) = hard {
            self.hard = hard.clone();
        }
        // Costs no flush of its own, and a member that starts again without a leader knows the more of what it
        // applied: above all who votes.
        self.log.append(&encode_batch(Some(&self.hard), self.cluster, entries.iter()))?;
        for entry in entries {
            let keep = entry.index.saturating_sub(self.base.0 + 1);
            self.entries.truncate(usize::try_from(keep).unwrap_or(usize::MAX));
            self.entries.push_back(entry.clone());
        }
        Ok(())
    }

    /// Notes a hard state that need not be durable: the commit index alone, which Raft finds again.
    pub(crate) fn note_commit(&mut self, commit: u64) {
        self.hard.commit = self.hard.commit.max(commit);
    }

    /// Binds this member to a cluster, before its first word in it.
    pub(crate) fn join_cluster(&mut self, cluster: u64) -> Result<(), DiskError> {
        self.cluster = cluster;
        self.log.append(&encode_batch(None, cluster, [].iter()))
    }

    /// Makes durable what is known to be committed.
    pub(crate) fn keep_commit(&mut self) -> Result<(), DiskError> {
        self.log.append(&encode_batch(Some(&self.hard), self.cluster, [].iter()))
    }

    /// Puts a snapshot in the place of everything.
    pub(crate) fn restore(&mut self, snapshot: &Snapshot, hard: Option<&HardState>) -> Result<(), DiskError> {
        let path = self.snapshot_path.clone();
        let machine = Machine::decode(&snapshot.data)
            .ok_or_else(|| DiskError::corrupt(&path, 0, "the leader's snapshot cannot be read"))?;
        let meta = snapshot.get_metadata();
        self.cluster = machine.cluster;
        self.machine = machine;
        self.conf = meta.get_conf_state().clone();
        self.applied = (meta.index, meta.term);
        self.hard = hard.unwrap_or(&self.hard).clone();
        self.hard.commit = self.hard.commit.max(meta.index);
        self.base = self.applied;
        self.entries.clear();
        self.write_snapshot()
    }

    /// Writes a snapshot and cuts the log, if the log has become long. Raft must have been told of all that
    /// was applied.
    pub(crate) fn compact(&mut self) -> Result<(), DiskError> {
        let long = self.applied.0.saturating_sub(self.snapshot.0) >= ENTRIES_MAX;
        let large = self.log.length() > LOG_BYTES_MAX && self.applied.0 > self.snapshot.0;
        if !long && !large {
            return Ok(());
        }
        self.write_snapshot()?;
        let mut bytes: usize = 0;
        let tail = self.entries.iter().rev().skip_while(|entry| entry.index > self.applied.0);
        let kept = tail
            .take(TAIL_ENTRIES_MAX)
            .take_while(|entry| {
                bytes = bytes.saturating_add(entry.data.len());
                bytes <= TAIL_BYTES_MAX
            })
            .count();
        let covered = usize::try_from(self.applied.0 - self.base.0).unwrap_or(usize::MAX);
        for _ in kept..covered {
            if let Some(entry) = self.entries.pop_front() {
                self.base = (entry.index, entry.term);
            }
        }
        Ok(())
    }

    fn write_snapshot(&mut self) -> Result<(), DiskError> {
        let mut out = Writer::default();
        out.u8(SNAPSHOT_VERSION).u64(self.applied.0).u64(self.applied.1);
        out.u64s(&self.conf.voters).u64s(&self.conf.learners);
        out.u64s(&self.conf.voters_outgoing).u64s(&self.conf.learners_next);
        out.u8(u8::from(self.conf.auto_leave)).bytes(&self.machine.encode());
        let payload = out.finish();
        let crc = crc32fast::hash(&payload).to_be_bytes();
        disk::replace(&self.snapshot_path, &[SNAPSHOT_MAGIC, &crc[..], &payload].concat())?;
        self.snapshot = self.applied;
        let rest = self.entries.iter().filter(|entry| entry.index > self.applied.0);
        self.log.replace(&encode_batch(Some(&self.hard), self.cluster, rest))
    }

    /// Index and term up to which the machine has applied the log.
    pub(crate) fn applied(&self) -> (u64, u64) {
        self.applied
    }

    pub(crate) fn set_applied(&mut self, entry: &Entry) {
        self.applied = (entry.index, entry.term);
    }

    pub(crate) fn conf(&self) -> &ConfState {
        &self.conf
    }

    pub(crate) fn set_conf(&mut self, conf: ConfState) {
        self.conf = conf;
    }

    pub(crate) fn cluster(&self) -> u64 {
        self.cluster
    }

    /// Index and term of the last entry.
    pub(crate) fn last(&self) -> (u64, u64) {
        self.entries.back().map_or(self.base, |entry| (entry.index, entry.term))
    }

    fn position(&self, index: u64) -> Option<usize> {
        index.checked_sub(self.base.0 + 1).and_then(|position| usize::try_from(position).ok())
    }
}

/// One write to the log.
struct Batch {
    hard: Option<HardState>,
    cluster: u64,
    entries: Vec<Entry>,
}

fn encode_batch<'a>(
    hard: Option<&HardState>,
    cluster: u64,
    entries: impl Iterator<Item = &'a Entry>,
) -> Vec<u8> {
    let mut out = Writer::default();
    out.u8(BATCH_VERSION).u64(cluster).u8(u8::from(hard.is_some()));
    if let Some(hard) = hard {
        out.u64(hard.term).u64(hard.vote).u64(hard.commit);
    }
    for entry in entries {
        let kind = match entry.get_entry_type() {
            EntryType::EntryNormal => 0,
            EntryType::EntryConfChange => 1,
            EntryType::EntryConfChangeV2 => 2,
        };
        out.u8(kind).u64(entry.index).u64(entry.term).bytes(&entry.data).bytes(&entry.context);
    }
    out.finish()
}

impl Batch {
    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader::new(bytes);
        if from.u8()? != BATCH_VERSION {
            return None;
        }
        let cluster = from.u64()?;
        let hard = match from.u8()? {
            0 => None,
            1 => {
                let (term, vote, commit) = (from.u64()?, from.u64()?, from.u64()?);
                Some(HardState { term, vote, commit, ..HardState::default() })
            }
            _ => return None,
        };
        let mut entries = Vec::new();
        while from.end().is_none() {
            let kind = match from.u8()? {
                0 => EntryType::EntryNormal,
                1 => EntryType::EntryConfChange,
                2 => EntryType::EntryConfChangeV2,
                _ => return None,
            };
            let mut entry = Entry { index: from.u64()?, term: from.u64()?, ..Entry::default() };
            entry.set_entry_type(kind);
            entry.data = from.bytes()?.to_vec().into();
            entry.context = from.bytes()?.to_vec().into();
            entries.push(entry);
        }
        Some(Self { hard, cluster, entries })
    }
}

type Snapshotted = ((u64, u64), ConfState, Machine);

fn read_snapshot(path: &Path, bytes: &[u8]) -> Result<Snapshotted, DiskError> {
    let head = bytes.strip_prefix(SNAPSHOT_MAGIC).and_then(|rest| rest.split_first_chunk::<4>());
    let Some((crc, payload)) = head else {
        return Err(DiskError::corrupt(path, 0, "the header is wrong"));
    };
    if crc32fast::hash(payload) != u32::from_be_bytes(*crc) {
        return Err(DiskError::corrupt(path, 0, "the checksum is wrong"));
    }
    decode_snapshot(payload).ok_or_else(|| DiskError::Unusable {
        path: path.to_owned(),
        why: "it is not a snapshot of this release; start the release that wrote it".to_owned(),
    })
}

fn decode_snapshot(payload: &[u8]) -> Option<Snapshotted> {
    let mut from = Reader::new(payload);
    if from.u8()? != SNAPSHOT_VERSION {
        return None;
    }
    let position = (from.u64()?, from.u64()?);
    let mut conf = ConfState::default();
    conf.set_voters(from.u64s()?);
    conf.set_learners(from.u64s()?);
    conf.set_voters_outgoing(from.u64s()?);
    conf.set_learners_next(from.u64s()?);
    conf.auto_leave = from.u8()? != 0;
    let machine = Machine::decode(from.bytes()?)?;
    from.end()?;
    Some((position, conf, machine))
}

impl ::raft::Storage for Storage {
    fn initial_state(&self) -> ::raft::Result<RaftState> {
        Ok(RaftState::new(self.hard.clone(), self.conf.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> ::raft::Result<Vec<Entry>> {
        let (from, to) = match (self.position(low), self.position(high)) {
            (Some(from), Some(to)) if to <= self.entries.len() => (from, to),
            (None, _) => return Err(StorageError::Compacted.into()),
            (Some(_), _) => return Err(StorageError::Unavailable.into()),
        };
        let mut entries: Vec<Entry> = self.entries.range(from..to).cloned().collect();
        ::raft::util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> ::raft::Result<u64> {
        if index == self.base.0 {
            return Ok(self.base.1);
        }
        let position = self.position(index).ok_or(StorageError::Compacted)?;
        Ok(self.entries.get(position).ok_or(StorageError::Unavailable)?.term)
    }

    fn first_index(&self) -> ::raft::Result<u64> {
        Ok(self.base.0 + 1)
    }

    fn last_index(&self) -> ::raft::Result<u64> {
        Ok(self.last().0)
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> ::raft::Result<Snapshot> {
        if self.applied.0 < request_index || self.applied.0 == 0 {
            return Err(StorageError::SnapshotTemporarilyUnavailable.into());
        }
        let mut snapshot = Snapshot { data: self.machine.encode().into(), ..Snapshot::default() };
        let meta = snapshot.mut_metadata();
        meta.index = self.applied.0;
        meta.term = self.applied.1;
        meta.set_conf_state(self.conf.clone());
        Ok(snapshot)
    }
}

#[cfg(test)]
mod tests;
