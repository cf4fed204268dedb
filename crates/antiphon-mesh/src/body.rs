//! What a transaction did, as the messages of the log that say it: in memory while it is small, else in a file
//! without a name. Nothing is decoded before it is applied.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{BufMut, Bytes, BytesMut};

/// Most of a transaction that is kept in memory, in bytes.
const MEMORY_BYTES_MAX: usize = 4 << 20;
/// What is written to and read from a file at a time, in bytes.
const FILE_BYTES: usize = 1 << 18;

/// The messages of a transaction, in order.
#[derive(Debug, Default)]
pub struct Body {
    /// What is not in the file: all of it, or its end.
    memory: BytesMut,
    file: Option<BufWriter<File>>,
    messages: u64,
    /// Parts of it that were undone, by their numbers.
    pub undone: HashSet<u32>,
}

impl Body {
    /// Puts a message to the end.
    ///
    /// # Errors
    /// If the file cannot be written: the disk of the folder for temporary files is full.
    pub fn push(&mut self, message: &[u8]) -> io::Result<()> {
        let length = u32::try_from(message.len()).map_err(io::Error::other)?;
        self.memory.put_u32(length);
        self.memory.put_slice(message);
        self.messages += 1;
        if self.memory.len() > MEMORY_BYTES_MAX {
            let file = match &mut self.file {
                Some(file) => file,
                None => self.file.insert(BufWriter::with_capacity(FILE_BYTES, nameless()?)),
            };
            file.write_all(&self.memory)?;
            self.memory.clear();
        }
        Ok(())
    }

    /// How many messages there are.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.messages
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// Whether it is too large for memory.
    #[must_use]
    pub fn is_large(&self) -> bool {
        self.file.is_some()
    }

    /// Reads it from its beginning; as often as one likes, but one at a time.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read(&mut self) -> io::Result<Messages> {
        let file = match &mut self.file {
            Some(file) => {
                file.flush()?;
                let mut file = file.get_ref().try_clone()?;
                file.seek(SeekFrom::Start(0))?;
                Some(BufReader::with_capacity(FILE_BYTES, file))
            }
            None => None,
        };
        Ok(Messages { file, memory: self.memory.clone().freeze() })
    }
}

/// The messages of a body, one after the other.
#[derive(Debug)]
pub struct Messages {
    file: Option<BufReader<File>>,
    memory: Bytes,
}

impl Iterator for Messages {
    type Item = io::Result<Bytes>;

    fn next(&mut self) -> Option<io::Result<Bytes>> {
        if let Some(file) = &mut self.file {
            let mut length = [0; 4];
            match file.read_exact(&mut length) {
                Ok(()) => {
                    let mut message = vec![0; u32::from_be_bytes(length) as usize];
                    return Some(file.read_exact(&mut message).map(|()| message.into()));
                }
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => self.file = None,
                Err(error) => return Some(Err(error)),
            }
        }
        let (length, _) = self.memory.split_first_chunk::<4>()?;
        let length = u32::from_be_bytes(*length) as usize;
        let _ = self.memory.split_to(4);
        Some(Ok(self.memory.split_to(length)))
    }
}

/// A file for reading and writing that is gone when it is closed.
fn nameless() -> io::Result<File> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("antiphon-mesh-{}-{number}", std::process::id()));
    let open = |path: &Path| OpenOptions::new().read(true).write(true).create_new(true).open(path);
    let file = open(&path).or_else(|error| {
        // Left behind by a process of the same number that was killed in between.
        if error.kind() != io::ErrorKind::AlreadyExists {
            return Err(error);
        }
        std::fs::remove_file(&path)?;
        open(&path)
    })?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_read_as_it_was_written_whatever_its_size() {
        for count in [0_u32, 1, 1000, 300_000] {
            let mut body = Body::default();
            for number in 0..count {
                body.push(&number.to_be_bytes().repeat(1 + number as usize % 9)).expect("room");
            }
            assert_eq!(body.is_large(), count == 300_000);
            for _ in 0..2 {
                let mut expected = 0..count;
                for message in body.read().expect("a file") {
                    let number = expected.next().expect("no more than were written");
                    assert_eq!(
                        *message.expect("sound"),
                        number.to_be_bytes().repeat(1 + number as usize % 9)
                    );
                }
                assert_eq!(expected.next(), None, "of {count}");
            }
        }
    }
}
