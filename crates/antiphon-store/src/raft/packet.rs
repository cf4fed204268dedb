//! What members say to each other on the Raft channel: Raft's own messages, and who is there.
//!
//! Every Raft message names its cluster: one from another cluster, or for another incarnation of this member,
//! is not for us. Bytes come from members that proved themselves; they are still checked, never trusted to
//! parse.

use ::raft::eraftpb::Message;
use bytes::Bytes;
use protobuf::Message as _;

use super::codec::{Reader, Writer};

const RAFT: u8 = 1;
const PRESENCE: u8 = 2;

/// One message between members.
#[derive(Debug)]
pub(crate) enum Packet {
    /// A message of Raft, in this cluster.
    Raft { cluster: u64, message: Box<Message> },
    /// Who the sender is, said by those that hold no state yet, and in answer to them.
    Presence(Presence),
}

/// Who a member is, beyond its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Presence {
    /// Its Raft id.
    pub(crate) node: u64,
    /// The cluster that it has voted in; 0 for none.
    pub(crate) cluster: u64,
    /// Whether it holds no state: it waits to be given one.
    pub(crate) empty: bool,
}

/// Packs a Raft message; `None` if it cannot be encoded, which would be a defect of the encoder.
pub(crate) fn pack_raft(cluster: u64, message: &Message) -> Option<Bytes> {
    let body = message.write_to_bytes().ok()?;
    let mut out = Writer::default();
    out.u8(RAFT).u64(cluster);
    let mut bytes = out.finish();
    bytes.extend_from_slice(&body);
    Some(bytes.into())
}

pub(crate) fn pack_presence(presence: Presence) -> Bytes {
    let mut out = Writer::default();
    out.u8(PRESENCE).u64(presence.node).u64(presence.cluster).u8(u8::from(presence.empty));
    out.finish().into()
}

/// Takes a message apart; `None` if it is none.
pub(crate) fn unpack(bytes: &[u8]) -> Option<Packet> {
    let mut from = Reader::new(bytes);
    match from.u8()? {
        RAFT => {
            let cluster = from.u64()?;
            let message = Box::new(Message::parse_from_bytes(from.rest()).ok()?);
            Some(Packet::Raft { cluster, message })
        }
        PRESENCE => {
            let presence = Presence { node: from.u64()?, cluster: from.u64()?, empty: from.u8()? != 0 };
            from.end()?;
            Some(Packet::Presence(presence))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use ::raft::eraftpb::Entry;

    use super::*;

    #[test]
    fn messages_survive_their_packing_and_no_cut_or_changed_one_panics() {
        let mut message = Message { to: 1, from: 2, term: 3, index: 4, ..Message::default() };
        message.set_entries(vec![Entry { index: 5, data: vec![7; 40].into(), ..Entry::default() }].into());
        message.mut_snapshot().mut_metadata().mut_conf_state().set_voters(vec![1, 2, 3]);
        let packed = pack_raft(9, &message).unwrap();
        match unpack(&packed) {
            Some(Packet::Raft { cluster: 9, message: unpacked }) => assert_eq!(*unpacked, message),
            other => panic!("{other:?}"),
        }
        let presence = Presence { node: 1, cluster: 0, empty: true };
        let told = pack_presence(presence);
        assert!(matches!(unpack(&told), Some(Packet::Presence(unpacked)) if unpacked == presence));
        for bytes in [packed, told] {
            for length in 0..bytes.len() {
                unpack(&bytes[..length]);
            }
            for position in 0..bytes.len() {
                for value in [0, 1, 0x7f, 0x80, 0xff] {
                    let mut changed = bytes.to_vec();
                    changed[position] = value;
                    unpack(&changed);
                }
            }
        }
    }
}
