//! Identity: whether this member's name is its own, before it does anything under it.
//!
//! Two members with one name would write each other's record and count as one voice that promises for both.
//! Names that differ only in case or punctuation are no better: PostgreSQL takes them for the same in
//! `synchronous_standby_names`, so an acknowledgement of one counts as the other's, and they share a slot.
//! The member that comes second gives way; one whose record is in the store under its own address stays.

use std::collections::BTreeMap;
use std::time::Duration;

use antiphon_core::ha::cluster::Member;
use antiphon_core::{Instant, NodeName};

use super::beats::Heard;
use super::records::Records;

/// What is known of the name.
#[derive(Debug, PartialEq, Eq)]
pub enum Name {
    /// It is this member's.
    Ours,
    /// Another member that has it must still have the time to say so.
    Unknown,
    /// Another member has it: who, in words with the remedy.
    Taken(String),
}

/// Whether the name in `me` is this member's, `age` after its agent started. A member counts as running if it
/// was heard less than `lately` ago.
pub fn check(
    me: &Member,
    records: &Records,
    heard: &BTreeMap<NodeName, Heard>,
    now: Instant,
    age: Duration,
    lately: Duration,
) -> Name {
    let known = records.members.get(&me.name);
    if known.is_some_and(|known| known.value.peer_address == me.peer_address) {
        return Name::Ours;
    }
    let running = |heard: &&Heard| heard.address != me.peer_address && now.since(heard.at) < lately;
    if let Some(twin) = heard.get(&me.name).filter(running) {
        return Name::Taken(format!(
            "a member named {} runs already, at {}: give this one another name in its file",
            me.name, twin.address
        ));
    }
    let names = records.members.keys().chain(heard.keys());
    let mut others = names.filter(|name| **name != me.name);
    if let Some(alike) = others.find(|name| name.slot_name() == me.name.slot_name()) {
        return Name::Taken(format!(
            "the name {} differs from that of member {alike} only in case or punctuation, which PostgreSQL cannot tell \
             apart: give this one another name in its file, or remove {alike} if it is gone for good",
            me.name
        ));
    }
    if age < lately { Name::Unknown } else { Name::Ours }
}

#[cfg(test)]
mod tests {
    use antiphon_core::ha::cluster::Tags;
    use antiphon_core::ha::world::{Beat, ServerBrief, Stored};

    use super::*;

    const LATELY: Duration = Duration::from_secs(1);
    const NOW: Instant = Instant(60_000_000_000);

    fn member(name: &str, peer_address: &str) -> Member {
        Member {
            format: 1,
            name: name.parse().expect("a name"),
            peer_address: peer_address.to_owned(),
            server_address: None,
            api_url: String::new(),
            tags: Tags::default(),
            delayed: false,
            fence: None,
            release: None,
            serving: None,
            slots: Default::default(),
        }
    }

    fn records(members: &[Member]) -> Records {
        let members = members.iter().cloned();
        let members = members.map(|value| (value.name.clone(), Stored { value, revision: 1 })).collect();
        Records { members, ..Records::default() }
    }

    fn heard(name: &str, address: &str) -> BTreeMap<NodeName, Heard> {
        let server = ServerBrief {
            state: "running".to_owned(),
            role: "replica".to_owned(),
            position: None,
            replayed: None,
            upstream: None,
            pending_restart: false,
            ..ServerBrief::default()
        };
        let name: NodeName = name.parse().expect("a name");
        let beat =
            Beat { name: name.clone(), suspects: None, leads: None, server, slots: Default::default() };
        BTreeMap::from([(name, Heard { at: NOW, address: address.to_owned(), beat })])
    }

    fn after(age: Duration, me: &Member, stored: &[Member], heard: &BTreeMap<NodeName, Heard>) -> Name {
        check(me, &records(stored), heard, NOW, age, LATELY)
    }

    #[test]
    fn the_second_of_two_members_with_one_name_gives_way_and_the_first_stays() {
        let (first, second) = (member("n2", "h2:1"), member("n2", "h3:1"));
        let stored = [first.clone()];
        assert!(matches!(after(LATELY, &second, &stored, &heard("n2", "h2:1")), Name::Taken(_)));
        assert_eq!(after(Duration::ZERO, &first, &stored, &heard("n2", "h3:1")), Name::Ours);
    }

    #[test]
    fn a_member_that_moved_to_another_address_keeps_its_name() {
        let (before, now) = (member("n2", "h2:1"), member("n2", "h9:1"));
        let silent = BTreeMap::new();
        assert_eq!(after(Duration::ZERO, &now, std::slice::from_ref(&before), &silent), Name::Unknown);
        assert_eq!(after(LATELY, &now, &[before], &silent), Name::Ours);
    }

    #[test]
    fn a_name_that_postgresql_takes_for_another_is_refused() {
        for (known, new) in [("node-1", "Node-1"), ("a-b", "a_b")] {
            let stored = [member(known, "h1:1")];
            let name = after(LATELY, &member(new, "h2:1"), &stored, &BTreeMap::new());
            assert!(matches!(name, Name::Taken(_)), "{new} was taken beside {known}");
        }
    }
}
