//! The world that the enumerations start from: member `b` of four, in term 3, with everything in order.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use antiphon_core::ha::cluster::{
    Cluster, FORMAT, Leader, Lease, Member, Method, Phase, Position, Promise, Serving, SyncSet, Tags,
};
use antiphon_core::ha::world::{
    Beat, Database, Knock, Link, Local, Me, Peer, Routers, Server, ServerBrief, StoreView, Stored, World,
};
use antiphon_core::settings::Settings;
use antiphon_core::{Epoch, Instant, Lsn, NodeName, Timeline};

/// The term that a leader is in office in, or was before an election.
pub const TERM: Epoch = Epoch(3);
/// Long after every clock began to count.
pub const NOW: Instant = Instant(1_000_000_000_000);

pub fn name(text: &str) -> NodeName {
    text.parse().expect("a member name")
}

pub fn position(timeline: u32, lsn: u64) -> Position {
    Position { timeline: Timeline(timeline), lsn: Lsn(lsn) }
}

pub fn member(text: &str) -> Member {
    Member {
        format: FORMAT,
        name: name(text),
        peer_address: format!("{text}:7432"),
        server_address: Some(format!("{text}:5432")),
        api_url: format!("http://{text}:8008"),
        tags: Tags::default(),
        delayed: false,
        fence: None,
        release: None,
        serving: None,
        slots: BTreeSet::new(),
    }
}

pub fn leader(text: &str) -> Leader {
    Leader { name: name(text), epoch: TERM, timeline: Timeline(3) }
}

pub fn serving() -> Serving {
    Serving { epoch: TERM, timeline: Timeline(3), history: vec![position(1, 500), position(2, 800)] }
}

pub fn cluster(epoch: Epoch, phase: Phase) -> Cluster {
    Cluster {
        format: FORMAT,
        system_identifier: Some("7001".to_owned()),
        epoch,
        phase,
        sync: Promise::Quorum(sync_set(1, &["c", "d"])),
        base: position(2, 800),
    }
}

pub fn sync_set(k: usize, members: &[&str]) -> SyncSet {
    SyncSet { method: Method::Any, k, members: members.iter().map(|member| name(member)).collect() }
}

pub fn peer(text: &str) -> Peer {
    let server = ServerBrief {
        state: "streaming".to_owned(),
        role: "replica".to_owned(),
        position: Some(position(3, 1000)),
        replayed: Some(Lsn(1000)),
        upstream: Some(name("a")),
        pending_restart: false,
        ..ServerBrief::default()
    };
    let beat = Beat { name: name(text), suspects: None, leads: None, server, slots: BTreeMap::new() };
    Peer {
        heard: Some(NOW - Duration::from_millis(100)),
        beat: Some(beat),
        link: Link::Up,
        knock: Knock::Answers,
    }
}

pub fn database(server: Server) -> Database {
    Database {
        system_identifier: Some("7001".to_owned()),
        server,
        task: None,
        failed: None,
        half_built: false,
        disk_full: false,
        slots: BTreeMap::new(),
        logical_slots: BTreeMap::new(),
    }
}

/// Member `b` of `a`, `b`, `c`, `d`; the phase and the server are what a test is about.
pub fn world(cluster: Cluster, server: Server) -> World {
    let others = ["a", "c", "d"];
    let stored = |member: Member| Stored { value: member, revision: 5 };
    let mut members: BTreeMap<NodeName, Stored<Member>> =
        ["a", "b", "c", "d"].iter().map(|m| (name(m), stored(member(m)))).collect();
    let leading = cluster.leader().map(|leader| leader.name.clone()).unwrap_or_else(|| name("a"));
    if let Some(member) = members.get_mut(&leading) {
        member.value.serving = Some(serving());
    }
    let holder = leading;
    World {
        now: NOW,
        me: Me {
            member: member("b"),
            started: NOW - Duration::from_secs(600),
            fenced: cluster.epoch,
            lease_until: Some(NOW + Duration::from_secs(4)),
            may_bootstrap: true,
            may_reinitialise: false,
            reinitialise_requested: None,
            restart_requested: false,
        },
        settings: Settings::default(),
        store: StoreView {
            cluster: Some(Stored { value: cluster, revision: 9 }),
            phase_since: NOW - Duration::from_millis(600),
            lease: Some(Stored {
                value: Lease { epoch: TERM, holder, count: 7, ttl_ms: 5000, end: None },
                revision: 8,
            }),
            lease_since: NOW - Duration::from_secs(1),
            members,
            request: None,
            voters: 4,
        },
        peers: others.iter().map(|m| (name(m), peer(m))).collect(),
        local: Local::Database(database(server)),
        routers: Routers::default(),
    }
}
