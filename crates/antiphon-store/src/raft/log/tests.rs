//! The log under damage: what a crash can leave is recovered, what a crash cannot leave is refused, and
//! nothing that was durable is lost in silence.
//!
//! Each case is drawn from a seed that its failure prints.

use super::*;

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("antiphon-log-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Numbers that look random and repeat: a failing case prints its seed.
struct Seed(u64);

impl Seed {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap() % bound
    }
}

fn payload(number: usize) -> Vec<u8> {
    let byte = u8::try_from(number % 251 + 1).unwrap();
    vec![byte; 1 + number * 37 % 300]
}

/// A log of `count` batches; returns its files and where each batch ends.
fn written(dir: &Path, count: usize) -> (Vec<u8>, Vec<u8>, Vec<usize>) {
    let _ = fs::remove_file(dir.join("log"));
    let _ = fs::remove_file(dir.join("mark"));
    let (mut log, _) = Log::open(dir, true).unwrap();
    let mut ends = Vec::new();
    for number in 0..count {
        log.append(&payload(number)).unwrap();
        ends.push(usize::try_from(log.length()).unwrap());
    }
    (fs::read(dir.join("log")).unwrap(), fs::read(dir.join("mark")).unwrap(), ends)
}

fn open(dir: &Path, log: &[u8], mark: Option<&[u8]>) -> Result<Vec<Vec<u8>>, DiskError> {
    fs::write(dir.join("log"), log).unwrap();
    match mark {
        Some(mark) => fs::write(dir.join("mark"), mark).unwrap(),
        None => {
            let _ = fs::remove_file(dir.join("mark"));
        }
    }
    Log::open(dir, false).map(|(_, batches)| batches)
}

fn payloads(count: usize) -> Vec<Vec<u8>> {
    (0..count).map(payload).collect()
}

#[test]
fn any_damage_to_what_was_durable_is_refused() {
    let dir = Dir::new("durable");
    for seed in 1..=200_u64 {
        let mut random = Seed(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let count = 1 + random.below(8);
        let (mut bytes, mark, _) = written(&dir.0, count);
        let at = random.below(bytes.len());
        if seed % 2 == 0 {
            bytes.truncate(at);
        } else {
            bytes[at] ^= 1 << random.below(8);
        }
        let outcome = open(&dir.0, &bytes, Some(&mark));
        assert!(outcome.is_err(), "seed {seed}: damage at {at} went unseen");
        assert!(open(&dir.0, &bytes, Some(&mark)).is_err(), "seed {seed}: the second start must refuse, too");
    }
}

#[test]
fn whatever_a_crash_leaves_of_an_unfinished_batch_is_cut_and_the_rest_kept() {
    let dir = Dir::new("torn");
    for seed in 1..=200_u64 {
        let mut random = Seed(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let count = 2 + random.below(8);
        let (bytes, _, ends) = written(&dir.0, count);
        // The mark as it was before the last batch; a crash of the host may have lost it altogether.
        let (_, mark, _) = written(&dir.0, count - 1);
        let mark = (random.below(3) > 0).then_some(mark.as_slice());
        let durable = ends[count - 2];
        let mut torn = bytes.clone();
        match random.below(3) {
            0 => torn.truncate(durable + random.below(bytes.len() - durable)),
            // The file grew, and a part of it was never written.
            1 => torn[durable + random.below(bytes.len() - durable)..].fill(0),
            _ => {
                let at = durable + random.below(bytes.len() - durable);
                torn[at] ^= 0x10;
            }
        }
        if torn == bytes {
            continue;
        }
        let batches = open(&dir.0, &torn, mark).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(batches, payloads(count - 1), "seed {seed}");
        // What was cut is gone for good: the log goes on after what was kept.
        let (mut log, _) = Log::open(&dir.0, false).unwrap();
        log.append(b"next").unwrap();
        let (_, batches) = Log::open(&dir.0, false).unwrap();
        assert_eq!(batches.len(), count, "seed {seed}");
    }
}

#[test]
fn damage_before_a_whole_batch_is_refused_even_without_a_mark() {
    let dir = Dir::new("middle");
    let (bytes, _, ends) = written(&dir.0, 10);
    for at in HEADER_BYTES..ends[8] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x80;
        assert!(open(&dir.0, &damaged, None).is_err(), "damage at {at} went unseen");
    }
}

#[test]
fn a_replaced_log_holds_the_new_batch_and_an_older_one_in_its_place_is_refused() {
    let dir = Dir::new("replaced");
    let (old, old_mark, _) = written(&dir.0, 5);
    let (mut log, batches) = Log::open(&dir.0, false).unwrap();
    assert_eq!(batches, payloads(5));
    log.replace(b"all in one").unwrap();
    log.append(b"and one more").unwrap();
    let (new, new_mark) = (fs::read(dir.0.join("log")).unwrap(), fs::read(dir.0.join("mark")).unwrap());
    assert_eq!(open(&dir.0, &new, Some(&new_mark)).unwrap(), [&b"all in one"[..], b"and one more"]);
    // The crash came between the new log and its mark.
    assert_eq!(open(&dir.0, &new, Some(&old_mark)).unwrap().len(), 2);
    assert!(open(&dir.0, &old, Some(&new_mark)).is_err());
}

#[test]
fn a_missing_log_beside_its_mark_is_refused() {
    let dir = Dir::new("missing");
    written(&dir.0, 3);
    fs::remove_file(dir.0.join("log")).unwrap();
    assert!(matches!(Log::open(&dir.0, true), Err(DiskError::Corrupt { .. })));
}
