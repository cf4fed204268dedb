//! The log file: batches of what Raft must not forget, each made durable before anything that depends on it
//! is said to another member.
//!
//! ```text
//! header   "ANTIPLOG" | version u32 | generation u64 | crc u32
//! batch    length u32 | crc u32 (of length and payload) | payload
//! ```
//! One batch is one write and one flush. So a damaged batch that nothing follows may be one that a crash
//! tore, and is cut off, with a log line; one that something follows was durable once, and the member refuses
//! to start. To tell a torn last batch from a damaged one, the file `mark` holds how much was flushed: it is
//! written after every flush, not flushed itself, and so never ahead of the log. A log that is shorter than
//! its mark, or damaged before it, has lost what others may count on: refused, never cut.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tracing::warn;

use super::disk::{self, DiskError};

const MAGIC: &[u8; 8] = b"ANTIPLOG";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 24;
const BATCH_HEAD_BYTES: usize = 8;
const MARK_BYTES: usize = 20;
/// More than any batch can have: a log is replaced long before.
const BATCH_BYTES_MAX: usize = 256 * 1024 * 1024;

/// An open log file, positioned at its end.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: File,
    mark: File,
    generation: u64,
    length: u64,
}

impl Log {
    /// Opens the log in `dir` and returns the batches in it, oldest first. A new one is begun if there is
    /// none and `may_create`.
    pub(crate) fn open(dir: &Path, may_create: bool) -> Result<(Self, Vec<Vec<u8>>), DiskError> {
        let path = dir.join("log");
        let mark_path = dir.join("mark");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound && may_create && !mark_path.exists() => {
                let bytes = header(1);
                disk::replace(&path, &bytes)?;
                bytes
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(DiskError::corrupt(&path, 0, "the file is missing"));
            }
            Err(error) => return Err(DiskError::io("read", &path)(error)),
        };
        let generation = read_header(&path, &bytes)?;
        let mark = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&mark_path);
        let mark = mark.map_err(DiskError::io("open", &mark_path))?;
        let durable = durable_bytes(&path, &mark, generation)?;
        if bytes.len() < durable {
            let why = format!("{} bytes are left of {durable} that were durable", bytes.len());
            return Err(DiskError::corrupt(&path, bytes.len(), why));
        }
        let (batches, end) = scan(&path, &bytes, durable)?;
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.map_err(DiskError::io("open", &path))?;
        if end < bytes.len() {
            let cut_bytes = bytes.len() - end;
            warn!(path = %path.display(), at = end, cut_bytes, "cut off a batch that a crash left unfinished");
            file.set_len(end as u64).map_err(DiskError::io("cut", &path))?;
        }
        // What was read may never have reached the disk: after a crash of the process alone it is in memory.
        file.sync_all().map_err(DiskError::io("flush", &path))?;
        let log = Self { path, file, mark, generation, length: end as u64 };
        log.set_mark()?;
        Ok((log, batches))
    }

    /// Appends one batch; it is durable when this returns. After an error the log must not be used again:
    /// what the disk holds is then unknown.
    pub(crate) fn append(&mut self, payload: &[u8]) -> Result<(), DiskError> {
        let batch = frame(&self.path, payload)?;
        self.file.write_all_at(&batch, self.length).map_err(DiskError::io("write", &self.path))?;
        self.file.sync_data().map_err(DiskError::io("flush", &self.path))?;
        self.length += batch.len() as u64;
        self.set_mark()
    }

    /// Begins a new log that holds `payload` alone, in one durable step.
    pub(crate) fn replace(&mut self, payload: &[u8]) -> Result<(), DiskError> {
        let generation = self.generation.saturating_add(1);
        let mut bytes = header(generation);
        bytes.write_all(&frame(&self.path, payload)?).map_err(DiskError::io("write", &self.path))?;
        self.file = disk::replace(&self.path, &bytes)?;
        self.generation = generation;
        self.length = bytes.len() as u64;
        self.set_mark()
    }

    /// The file's length in bytes.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    fn set_mark(&self) -> Result<(), DiskError> {
        let mut mark = Vec::with_capacity(MARK_BYTES);
        mark.extend_from_slice(&self.generation.to_be_bytes());
        mark.extend_from_slice(&self.length.to_be_bytes());
        mark.extend_from_slice(&crc32fast::hash(&mark).to_be_bytes());
        self.mark.write_all_at(&mark, 0).map_err(DiskError::io("write the mark of", &self.path))
    }
}

fn header(generation: u64) -> Vec<u8> {
    let mut header = Vec::with_capacity(HEADER_BYTES);
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&VERSION.to_be_bytes());
    header.extend_from_slice(&generation.to_be_bytes());
    header.extend_from_slice(&crc32fast::hash(&header).to_be_bytes());
    header
}

fn read_header(path: &Path, bytes: &[u8]) -> Result<u64, DiskError> {
    let Some((body, crc)) = bytes.get(..HEADER_BYTES).and_then(|head| head.split_last_chunk::<4>()) else {
        return Err(DiskError::corrupt(path, 0, "the header is cut"));
    };
    if crc32fast::hash(body) != u32::from_be_bytes(*crc) {
        return Err(DiskError::corrupt(path, 0, "the header's checksum is wrong"));
    }
    match (body.strip_prefix(MAGIC).and_then(|rest| rest.split_first_chunk::<4>()), body.last_chunk::<8>()) {
        (Some((version, _)), Some(generation)) if u32::from_be_bytes(*version) == VERSION => {
            Ok(u64::from_be_bytes(*generation))
        }
        _ => Err(DiskError::Unusable {
            path: path.to_owned(),
            why: "it is not a log of this release; start the release that wrote it".to_owned(),
        }),
    }
}

/// How many bytes of the log with this generation were certainly flushed.
fn durable_bytes(path: &Path, mark: &File, generation: u64) -> Result<usize, DiskError> {
    let mut bytes = [0; MARK_BYTES];
    let read = mark.read_at(&mut bytes, 0).map_err(DiskError::io("read the mark of", path))?;
    let Some((body, crc)) = bytes.split_last_chunk::<4>() else { return Ok(HEADER_BYTES) };
    if read < MARK_BYTES || crc32fast::hash(body) != u32::from_be_bytes(*crc) {
        // Never flushed, so a crash of the host may have torn it: it then vouches for nothing.
        return Ok(HEADER_BYTES);
    }
    let (Some(marked), Some(length)) = (body.first_chunk::<8>(), body.last_chunk::<8>()) else {
        return Ok(HEADER_BYTES);
    };
    match u64::from_be_bytes(*marked).cmp(&generation) {
        // The log was replaced, then came a crash: the new one was flushed whole, its batches check it.
        std::cmp::Ordering::Less => Ok(HEADER_BYTES),
        std::cmp::Ordering::Equal => Ok(usize::try_from(u64::from_be_bytes(*length)).unwrap_or(usize::MAX)),
        std::cmp::Ordering::Greater => Err(DiskError::corrupt(path, 0, "an older log has taken its place")),
    }
}

fn frame(path: &Path, payload: &[u8]) -> Result<Vec<u8>, DiskError> {
    let length = u32::try_from(payload.len()).ok().filter(|_| payload.len() <= BATCH_BYTES_MAX);
    let length = length.ok_or_else(|| io::Error::other("a batch is too large"));
    let length = length.map_err(DiskError::io("write", path))?.to_be_bytes();
    let mut crc = crc32fast::Hasher::new();
    crc.update(&length);
    crc.update(payload);
    Ok([&length, &crc.finalize().to_be_bytes(), payload].concat())
}

/// The batch at `offset` and where it ends, if there is a whole one.
fn batch_at(bytes: &[u8], offset: usize) -> Option<(&[u8], usize)> {
    let rest = bytes.get(offset..)?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let payload_bytes = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let payload = rest.get(..payload_bytes).filter(|payload| !payload.is_empty())?;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(length);
    hasher.update(payload);
    (hasher.finalize() == u32::from_be_bytes(*crc))
        .then(|| (payload, offset + BATCH_HEAD_BYTES + payload_bytes))
}

/// All batches, and where the last whole one ends.
fn scan(path: &Path, bytes: &[u8], durable: usize) -> Result<(Vec<Vec<u8>>, usize), DiskError> {
    let mut batches = Vec::new();
    let mut end = HEADER_BYTES;
    while let Some((payload, next)) = batch_at(bytes, end) {
        batches.push(payload.to_vec());
        end = next;
    }
    if end < durable {
        return Err(DiskError::corrupt(path, end, "a batch that was durable is damaged"));
    }
    // A batch is only begun when the one before it is durable: what is whole after a damaged one proves that
    // the damage came later than the write.
    if (end + 1..bytes.len()).any(|offset| batch_at(bytes, offset).is_some()) {
        return Err(DiskError::corrupt(path, end, "a batch that others follow is damaged"));
    }
    Ok((batches, end))
}

#[cfg(test)]
mod tests;
