//! The replicated state: the key space, who the members are, and which requests were done already.
//!
//! Every member applies the same log to it and holds the same state. A request may stand in the log twice,
//! because who asked repeats it when the leader changes; the second one does nothing. Pure: no I/O, no clock.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::codec::{Reader, Writer};
use crate::space::{self, Applied};
use crate::{Expect, Snapshot, Transaction, Versioned};

/// How many done requests of a node are remembered. A node has at most half as many under way.
pub(crate) const REQUESTS_REMEMBERED: usize = 512;

const COMMAND_VERSION: u8 = 1;
const MACHINE_VERSION: u8 = 1;

/// A transaction on its way through the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Command {
    /// The node that asked.
    pub(crate) node: u64,
    /// Its number: the node's session in the upper half, so that numbers grow across restarts.
    pub(crate) request: u64,
    pub(crate) transaction: Transaction,
}

/// The replicated state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Machine {
    /// Names this cluster; 0 before there is one.
    pub(crate) cluster: u64,
    pub(crate) space: Arc<Snapshot>,
    /// The addresses of all voters and learners.
    pub(crate) members: BTreeMap<u64, String>,
    done: BTreeMap<u64, BTreeMap<u64, Applied>>,
}

impl Machine {
    /// The state that a cluster begins with.
    pub(crate) fn founded(cluster: u64, members: BTreeMap<u64, String>) -> Self {
        Self { cluster, members, ..Self::default() }
    }

    /// Does what `command` says unless it was done before.
    pub(crate) fn apply(&mut self, command: &Command) -> Option<Applied> {
        let done = self.done.entry(command.node).or_default();
        if done.contains_key(&command.request) {
            return None;
        }
        // Older than all that is remembered, or of a session before the newest: it may have been done.
        let newest = done.last_key_value().map_or(0, |(request, _)| *request);
        let oldest = done.first_key_value().map_or(0, |(request, _)| *request);
        let forgotten = done.len() >= REQUESTS_REMEMBERED && command.request < oldest;
        if forgotten || session(command.request) < session(newest) {
            return None;
        }
        if session(command.request) > session(newest) {
            done.clear();
        }
        let applied = space::apply(&mut self.space, &command.transaction);
        done.insert(command.request, applied);
        if done.len() > REQUESTS_REMEMBERED {
            done.pop_first();
        }
        Some(applied)
    }

    /// What became of a request, if it was done and is remembered.
    pub(crate) fn outcome(&self, node: u64, request: u64) -> Option<Applied> {
        self.done.get(&node)?.get(&request).copied()
    }

    /// Forgets the members that `keep` does not name.
    pub(crate) fn retain(&mut self, keep: impl Fn(u64) -> bool) {
        self.members.retain(|id, _| keep(*id));
        self.done.retain(|id, _| keep(*id));
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u8(MACHINE_VERSION).u64(self.cluster).u64(self.space.revision);
        out.count(self.space.entries.len());
        for (key, stored) in &self.space.entries {
            out.bytes(key.as_bytes()).bytes(stored.value.as_bytes()).u64(stored.revision);
        }
        out.count(self.members.len());
        for (id, address) in &self.members {
            out.u64(*id).bytes(address.as_bytes());
        }
        out.count(self.done.len());
        for (node, requests) in &self.done {
            out.u64(*node).count(requests.len());
            for (request, applied) in requests {
                let (kind, value) = match applied {
                    Applied::Committed(revision) => (0, *revision),
                    Applied::Conflict(position) => (1, u64::from(*position)),
                    Applied::Full => (2, 0),
                };
                out.u64(*request).u8(kind).u64(value);
            }
        }
        out.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader::new(bytes);
        if from.u8()? != MACHINE_VERSION {
            return None;
        }
        let cluster = from.u64()?;
        let mut space = Snapshot { revision: from.u64()?, entries: BTreeMap::new() };
        for _ in 0..from.count()? {
            let key = from.text()?;
            space.entries.insert(key, Versioned { value: from.text()?, revision: from.u64()? });
        }
        let mut members = BTreeMap::new();
        for _ in 0..from.count()? {
            members.insert(from.u64()?, from.text()?);
        }
        let mut done = BTreeMap::new();
        for _ in 0..from.count()? {
            let node = from.u64()?;
            let mut requests = BTreeMap::new();
            for _ in 0..from.count()? {
                let request = from.u64()?;
                let applied = match (from.u8()?, from.u64()?) {
                    (0, revision) => Applied::Committed(revision),
                    (1, position) => Applied::Conflict(u16::try_from(position).ok()?),
                    (2, 0) => Applied::Full,
                    _ => return None,
                };
                requests.insert(request, applied);
            }
            done.insert(node, requests);
        }
        from.end()?;
        Some(Self { cluster, space: Arc::new(space), members, done })
    }
}

fn session(request: u64) -> u64 {
    request >> 32
}

impl Command {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let Transaction { expects, puts, deletes } = &self.transaction;
        let mut out = Writer::default();
        out.u8(COMMAND_VERSION).u64(self.node).u64(self.request);
        out.count(expects.len());
        for (key, expect) in expects {
            match expect {
                Expect::Absent => out.bytes(key.as_bytes()).u8(0).u64(0),
                Expect::At(revision) => out.bytes(key.as_bytes()).u8(1).u64(*revision),
            };
        }
        out.count(puts.len());
        for (key, value) in puts {
            out.bytes(key.as_bytes()).bytes(value.as_bytes());
        }
        out.count(deletes.len());
        for key in deletes {
            out.bytes(key.as_bytes());
        }
        out.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader::new(bytes);
        if from.u8()? != COMMAND_VERSION {
            return None;
        }
        let (node, request) = (from.u64()?, from.u64()?);
        let mut transaction = Transaction::default();
        for _ in 0..from.count()? {
            let key = from.text()?;
            let expect = match (from.u8()?, from.u64()?) {
                (0, _) => Expect::Absent,
                (1, revision) => Expect::At(revision),
                _ => return None,
            };
            transaction.expects.push((key, expect));
        }
        for _ in 0..from.count()? {
            transaction.puts.push((from.text()?, from.text()?));
        }
        for _ in 0..from.count()? {
            transaction.deletes.push(from.text()?);
        }
        from.end()?;
        Some(Self { node, request, transaction })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(request: u64, value: &str) -> Command {
        let puts = vec![("key".to_owned(), value.to_owned())];
        Command { node: 7, request, transaction: Transaction { puts, ..Transaction::default() } }
    }

    #[test]
    fn a_request_that_stands_in_the_log_twice_is_done_once() {
        let mut machine = Machine::default();
        assert_eq!(machine.apply(&put(1, "a")), Some(Applied::Committed(1)));
        assert_eq!(machine.apply(&put(2, "b")), Some(Applied::Committed(2)));
        assert_eq!(machine.apply(&put(1, "a")), None);
        assert_eq!(machine.space.entries["key"].value, "b");
        assert_eq!(machine.outcome(7, 1), Some(Applied::Committed(1)));
        // A new session; what the old one left in the network does nothing any more.
        assert_eq!(machine.apply(&put(1 << 32, "c")), Some(Applied::Committed(3)));
        assert_eq!(machine.apply(&put(3, "late")), None);
        // However many follow, the memory stays bounded and the forgotten are not done again.
        for request in 1..2000 {
            machine.apply(&put((1 << 32) + request, "d"));
        }
        assert_eq!(machine.done[&7].len(), REQUESTS_REMEMBERED);
        assert_eq!(machine.apply(&put((1 << 32) + 5, "again")), None);
    }

    #[test]
    fn state_and_commands_survive_their_encoding_and_no_cut_one_is_taken() {
        let members = BTreeMap::from([(7, "127.0.0.1:7".to_owned())]);
        let mut machine = Machine::founded(5, members);
        let mut command = put(3, "v");
        command.transaction.expects =
            vec![("key".to_owned(), Expect::Absent), ("other".to_owned(), Expect::At(9))];
        command.transaction.deletes = vec!["gone".to_owned()];
        machine.apply(&put(1, "\u{1F980}\"\n\0"));
        machine.apply(&command);
        for (bytes, decodes) in [
            (machine.encode(), (|b| Machine::decode(b).is_some()) as fn(&[u8]) -> bool),
            (command.encode(), |b| Command::decode(b).is_some()),
        ] {
            assert!(decodes(&bytes));
            for length in 0..bytes.len() {
                assert!(!decodes(&bytes[..length]), "cut at {length}");
            }
            for position in 0..bytes.len() {
                let mut changed = bytes.clone();
                changed[position] = 0xff;
                // Whether it is taken is not the point here (a checksum sees to that): it must not panic.
                decodes(&changed);
            }
        }
        assert_eq!(Machine::decode(&machine.encode()), Some(machine));
        assert_eq!(Command::decode(&command.encode()), Some(command));
    }
}
