//! Messages built by hand, and messages of every release, whole and damaged.
//!
//! What was captured from servers (`captured/`, a line has the protocol and the bytes; the tests against servers
//! write them) is decoded and encoded again: nothing may be lost. Damaged, a message is refused or reads as what it
//! then says, to the byte.

use std::path::Path;

use antiphon_core::Lsn;
use bytes::{BufMut, Bytes, BytesMut};

use super::{Column, Decoded, Decoder, Identity, Message, Old, Prepared, Relation, Tuple, Value};

fn decode(protocol: u8, data: &[u8]) -> Result<Decoded, String> {
    Decoder::new(protocol).decode(Bytes::copy_from_slice(data)).map_err(|error| error.to_string())
}

#[test]
fn a_table_and_its_changes_read_as_they_were_sent() {
    let relation = b"R\0\0\0\x07s\0t\0d\0\x02\x01id\0\0\0\0\x17\xff\xff\xff\xff\0name\0\0\0\0\x19\0\0\0\x0e";
    let columns = vec![
        Column { key: true, name: "id".into(), type_id: 23, modifier: -1 },
        Column { key: false, name: "name".into(), type_id: 25, modifier: 14 },
    ];
    let message = Message::Relation(Relation {
        id: 7,
        schema: "s".into(),
        name: "t".into(),
        identity: Identity::Default,
        columns,
    });
    assert_eq!(decode(1, relation), Ok(Decoded { xid: None, message }));
    let update = b"U\0\0\0\x07K\0\x02t\0\0\0\x011nN\0\x02b\0\0\0\x02\0\x02u";
    let message = Message::Update {
        relation: 7,
        old: Some(Old::Key(Tuple(vec![Value::Text(Bytes::from_static(b"1")), Value::Null]))),
        new: Tuple(vec![Value::Binary(Bytes::from_static(b"\0\x02")), Value::Unchanged]),
    };
    assert_eq!(decode(1, update), Ok(Decoded { xid: None, message }));
}

#[test]
fn a_value_is_a_slice_of_its_message() {
    let data = Bytes::from_static(b"I\0\0\0\x07N\0\x01t\0\0\0\x03abc");
    let decoded = Decoder::new(1).decode(data.clone()).expect("sound");
    let Message::Insert { new: Tuple(values), .. } = decoded.message else { panic!("{decoded:?}") };
    let [Value::Text(value)] = &values[..] else { panic!("{values:?}") };
    assert_eq!(value.as_ptr(), data[13..].as_ptr());
}

#[test]
fn inside_a_stream_every_change_says_whose_it_is() {
    let mut decoder = Decoder::new(2);
    let mut decode = |data: &'static [u8]| decoder.decode(Bytes::from_static(data));
    let start = Message::StreamStart { xid: 9, first: true };
    assert_eq!(decode(b"S\0\0\0\x09\x01"), Ok(Decoded { xid: None, message: start }));
    let insert = Message::Insert { relation: 7, new: Tuple(vec![Value::Null]) };
    assert_eq!(decode(b"I\0\0\0\x0a\0\0\0\x07N\0\x01n"), Ok(Decoded { xid: Some(10), message: insert }));
    assert!(decode(b"S\0\0\0\x09\0").is_err());
    assert_eq!(decode(b"E"), Ok(Decoded { xid: None, message: Message::StreamStop }));
    assert!(decode(b"E").is_err());
    let abort = Message::StreamAbort { xid: 9, subxid: 10, aborted: Some((Lsn(5), 6)) };
    let bytes = b"A\0\0\0\x09\0\0\0\x0a\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\x06";
    assert_eq!(decode(bytes), Ok(Decoded { xid: None, message: abort }));
}

#[test]
fn a_stream_that_lies_is_told_what_and_where() {
    let cases: [(&[u8], &str); 11] = [
        (b"", "it is empty, at byte 0 of 0 of a message '?'"),
        (b"Q", "the kind is not known, at byte 1 of 1 of a message 'Q'"),
        (
            b"S\0\0\0\x09\x01",
            "the kind is of a later protocol than was asked for, at byte 1 of 6 of a message 'S'",
        ),
        (b"B\0\0", "the position of the commit, at byte 1 of 3 of a message 'B'"),
        (b"C\x01", "there are flags that are not known, at byte 2 of 2 of a message 'C'"),
        (
            b"I\0\0\0\x07N\xff\xff",
            "there cannot be as many columns as it says, at byte 8 of 8 of a message 'I'",
        ),
        (b"I\0\0\0\x07N\0\x01t\0\0\0\x05abc", "a value, at byte 9 of 16 of a message 'I'"),
        (b"I\0\0\0\x07N\0\x01t\xff\xff\xff\xffabc", "a value, at byte 9 of 16 of a message 'I'"),
        (b"I\0\0\0\x07N\0\x01nn", "there is more than belongs to it, at byte 9 of 10 of a message 'I'"),
        (
            b"T\xff\xff\xff\xff\0\0\0\0\x01",
            "there are not as many tables as it says, at byte 6 of 10 of a message 'T'",
        ),
        (b"O\0\0\0\0\0\0\0\x01name", "the origin's name, at byte 9 of 13 of a message 'O'"),
    ];
    for (data, complaint) in cases {
        let complaint = format!("a change cannot be read: {complaint}");
        assert_eq!(decode(1, data), Err(complaint), "{data:?}");
    }
}

#[test]
fn what_servers_sent_reads_without_loss_and_cut_short_not_at_all() {
    let mut kinds = std::collections::BTreeSet::new();
    for (name, lines) in captured() {
        let mut decoder = None;
        for (protocol, data) in lines {
            let decoder = decoder.get_or_insert_with(|| Decoder::new(protocol));
            let in_stream = decoder.in_stream;
            let decoded = decoder.decode(data.clone()).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(encode(&decoded), data, "{name}: {decoded:?}");
            kinds.insert(data[0]);
            for end in 0..data.len() {
                let cut = Decoder { protocol, in_stream }.decode(data.slice(..end));
                // An abort may end before what is told of it with `streaming 'parallel'`.
                let is_whole = data[0] == b'A' && end == 9;
                assert_eq!(cut.is_ok(), is_whole, "{name}: {end} bytes of {data:?} read as {cut:?}");
            }
        }
    }
    assert_eq!(kinds, b"BCORYIUDTMSEcAbPKrp".iter().copied().collect(), "not every kind was captured");
}

#[test]
fn a_damaged_message_is_refused_or_reads_as_what_it_says() {
    let lines: Vec<(u8, Bytes)> = captured().into_iter().flat_map(|(_, lines)| lines).collect();
    let mut refused = 0;
    for seed in 1..=40_000_u64 {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let (protocol, data) = &lines[random.below(lines.len())];
        let damaged = damage(data, &lines, &mut random);
        let in_stream = random.below(2) == 0;
        match (Decoder { protocol: *protocol, in_stream }).decode(damaged.clone()) {
            Ok(decoded) => assert_eq!(encode(&decoded), damaged, "seed {seed}: {decoded:?}"),
            Err(error) => {
                refused += 1;
                assert!(error.at <= error.length && error.length == damaged.len(), "seed {seed}: {error:?}");
            }
        }
    }
    assert!((10_000..40_000).contains(&refused), "{refused} were refused");
}

/// The captured messages, by file.
fn captured() -> Vec<(String, Vec<(u8, Bytes)>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/pgoutput/captured");
    let mut files: Vec<_> =
        std::fs::read_dir(folder).expect("they are here").map(|entry| entry.expect("one").path()).collect();
    files.sort();
    let line = |line: &str| {
        let (protocol, hex) = line.split_once(' ').expect("two fields");
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
        (protocol.parse().expect("a number"), (0..hex.len()).step_by(2).map(byte).collect::<Bytes>())
    };
    let read = |path: std::path::PathBuf| {
        let text = std::fs::read_to_string(&path).expect("a file");
        (path.display().to_string(), text.lines().map(line).collect())
    };
    files.into_iter().map(read).collect()
}

/// A message with some of its bytes changed, left out, put in or taken from another message.
fn damage(data: &Bytes, others: &[(u8, Bytes)], random: &mut Random) -> Bytes {
    const TELLING: [u8; 12] = [0, 1, 2, 0x7f, 0x80, 0xff, b'N', b'K', b'O', b't', b'n', b'u'];
    let mut damaged = data.to_vec();
    for _ in 0..=random.below(3) {
        let at = random.below(damaged.len() + 1);
        let telling = TELLING[random.below(TELLING.len())];
        match random.below(6) {
            0 => damaged.truncate(at),
            1 => damaged.insert(at, telling),
            2 if at < damaged.len() => drop(damaged.remove(at)),
            3 if at < damaged.len() => damaged[at] ^= 1 << random.below(8),
            4 => {
                let (_, other) = &others[random.below(others.len())];
                damaged.truncate(at);
                damaged.extend_from_slice(&other[random.below(other.len())..]);
            }
            _ if at < damaged.len() => damaged[at] = telling,
            _ => {}
        }
    }
    damaged.into()
}

/// Numbers that a seed repeats (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit.max(1) as u64).expect("below a size")
    }
}

/// A message as a server sends it: what the decoder takes apart, put together.
fn encode(decoded: &Decoded) -> Bytes {
    let mut out = BytesMut::new();
    let text = |out: &mut BytesMut, text: &str| {
        out.put_slice(text.as_bytes());
        out.put_u8(0);
    };
    let schema = |out: &mut BytesMut, name: &str| text(out, if name == "pg_catalog" { "" } else { name });
    let mut begin = |kind: u8, head: &[u8]| {
        out.put_u8(kind);
        if let Some(xid) = decoded.xid {
            out.put_u32(xid);
        }
        out.put_slice(head);
    };
    match &decoded.message {
        Message::Begin { final_lsn, committed_at, xid } => {
            begin(b'B', &final_lsn.0.to_be_bytes());
            out.put_i64(*committed_at);
            out.put_u32(*xid);
        }
        Message::Commit { lsn, end_lsn, committed_at } => {
            begin(b'C', &[0]);
            commit(&mut out, (lsn, end_lsn, *committed_at));
        }
        Message::Origin { lsn, name } => {
            begin(b'O', &lsn.0.to_be_bytes());
            text(&mut out, name);
        }
        Message::Relation(relation) => {
            begin(b'R', &relation.id.to_be_bytes());
            schema(&mut out, &relation.schema);
            text(&mut out, &relation.name);
            out.put_u8(match relation.identity {
                Identity::Default => b'd',
                Identity::Nothing => b'n',
                Identity::Full => b'f',
                Identity::Index => b'i',
            });
            out.put_u16(u16::try_from(relation.columns.len()).expect("few"));
            for column in &relation.columns {
                out.put_u8(u8::from(column.key));
                text(&mut out, &column.name);
                out.put_u32(column.type_id);
                out.put_i32(column.modifier);
            }
        }
        Message::Type { id, schema: of, name } => {
            begin(b'Y', &id.to_be_bytes());
            schema(&mut out, of);
            text(&mut out, name);
        }
        Message::Insert { relation, new } => {
            begin(b'I', &relation.to_be_bytes());
            tuple(&mut out, b'N', new);
        }
        Message::Update { relation, old: was, new } => {
            begin(b'U', &relation.to_be_bytes());
            was.iter().for_each(|was| old(&mut out, was));
            tuple(&mut out, b'N', new);
        }
        Message::Delete { relation, old: was } => {
            begin(b'D', &relation.to_be_bytes());
            old(&mut out, was);
        }
        Message::Truncate { relations, cascade, restart_identity } => {
            begin(b'T', &u32::try_from(relations.len()).expect("few").to_be_bytes());
            out.put_u8(u8::from(*cascade) | u8::from(*restart_identity) << 1);
            relations.iter().for_each(|id| out.put_u32(*id));
        }
        Message::Logical { transactional, lsn, prefix, content } => {
            begin(b'M', &[u8::from(*transactional)]);
            out.put_u64(lsn.0);
            text(&mut out, prefix);
            bytes(&mut out, content);
        }
        Message::StreamStart { xid, first } => {
            begin(b'S', &xid.to_be_bytes());
            out.put_u8(u8::from(*first));
        }
        Message::StreamStop => begin(b'E', &[]),
        Message::StreamCommit { xid, lsn, end_lsn, committed_at } => {
            begin(b'c', &xid.to_be_bytes());
            out.put_u8(0);
            commit(&mut out, (lsn, end_lsn, *committed_at));
        }
        Message::StreamAbort { xid, subxid, aborted } => {
            begin(b'A', &xid.to_be_bytes());
            out.put_u32(*subxid);
            if let Some((lsn, at)) = aborted {
                out.put_u64(lsn.0);
                out.put_i64(*at);
            }
        }
        Message::BeginPrepare(transaction) => prepared(&mut out, b"b", transaction),
        Message::Prepare(transaction) => prepared(&mut out, b"P\0", transaction),
        Message::StreamPrepare(transaction) => prepared(&mut out, b"p\0", transaction),
        Message::CommitPrepared { lsn, end_lsn, committed_at, xid, gid } => {
            begin(b'K', &[0]);
            commit(&mut out, (lsn, end_lsn, *committed_at));
            out.put_u32(*xid);
            text(&mut out, gid);
        }
        Message::RollbackPrepared { prepare_end_lsn, end_lsn, prepared_at, rolled_back_at, xid, gid } => {
            begin(b'r', &[0]);
            commit(&mut out, (prepare_end_lsn, end_lsn, *prepared_at));
            out.put_i64(*rolled_back_at);
            out.put_u32(*xid);
            text(&mut out, gid);
        }
    }
    out.freeze()
}

fn commit(out: &mut BytesMut, (lsn, end_lsn, at): (&Lsn, &Lsn, i64)) {
    out.put_u64(lsn.0);
    out.put_u64(end_lsn.0);
    out.put_i64(at);
}

fn prepared(out: &mut BytesMut, head: &[u8], transaction: &Prepared) {
    out.put_slice(head);
    commit(out, (&transaction.lsn, &transaction.end_lsn, transaction.prepared_at));
    out.put_u32(transaction.xid);
    out.put_slice(transaction.gid.as_bytes());
    out.put_u8(0);
}

fn old(out: &mut BytesMut, was: &Old) {
    match was {
        Old::Key(values) => tuple(out, b'K', values),
        Old::Full(values) => tuple(out, b'O', values),
    }
}

fn tuple(out: &mut BytesMut, kind: u8, Tuple(values): &Tuple) {
    out.put_u8(kind);
    out.put_u16(u16::try_from(values.len()).expect("few"));
    for value in values {
        match value {
            Value::Null => out.put_u8(b'n'),
            Value::Unchanged => out.put_u8(b'u'),
            Value::Text(text) => {
                out.put_u8(b't');
                bytes(out, text);
            }
            Value::Binary(binary) => {
                out.put_u8(b'b');
                bytes(out, binary);
            }
        }
    }
}

fn bytes(out: &mut BytesMut, bytes: &Bytes) {
    out.put_u32(u32::try_from(bytes.len()).expect("short"));
    out.put_slice(bytes);
}
