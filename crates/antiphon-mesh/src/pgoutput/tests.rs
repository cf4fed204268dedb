//! Messages built by hand, whole and damaged.

use antiphon_core::Lsn;
use bytes::Bytes;

use super::{Column, Decoded, Decoder, Identity, Message, Old, Relation, Tuple, Value};

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
fn inside_a_stream_every_change_says_whose_it_is() {
    let mut decoder = Decoder::new(2);
    let mut decode = |data: &'static [u8]| decoder.decode(Bytes::from_static(data));
    let start = Message::StreamStart { xid: 9, first: true };
    assert_eq!(decode(b"S\0\0\0\x09\x01"), Ok(Decoded { xid: None, message: start }));
    let insert = Message::Insert { relation: 7, new: Tuple(vec![Value::Null]) };
    assert_eq!(decode(b"I\0\0\0\x0a\0\0\0\x07N\0\x01n"), Ok(Decoded { xid: Some(10), message: insert }));
    assert!(decode(b"S\0\0\0\x09\0").is_err());
    assert_eq!(decode(b"E"), Ok(Decoded { xid: None, message: Message::StreamStop }));
    let abort = Message::StreamAbort { xid: 9, subxid: 10, aborted: Some((Lsn(5), 6)) };
    let bytes = b"A\0\0\0\x09\0\0\0\x0a\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\x06";
    assert_eq!(decode(bytes), Ok(Decoded { xid: None, message: abort }));
}

#[test]
fn a_stream_that_lies_is_told_what_and_where() {
    let cases: [(&[u8], &str); 9] = [
        (b"", "it is empty, at byte 0 of 0 of a message '?'"),
        (b"Q", "the kind is not known, at byte 1 of 1 of a message 'Q'"),
        (
            b"S\0\0\0\x09\x01",
            "the kind is of a later protocol than was asked for, at byte 1 of 6 of a message 'S'",
        ),
        (b"B\0\0", "the position of the commit, at byte 1 of 3 of a message 'B'"),
        (
            b"I\0\0\0\x07N\xff\xff",
            "there cannot be as many columns as it says, at byte 8 of 8 of a message 'I'",
        ),
        (b"I\0\0\0\x07N\0\x01t\0\0\0\x05abc", "a value, at byte 9 of 16 of a message 'I'"),
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
