//! A cluster of three as views, and a served API over one of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use antiphon::agent::command::{COMMANDS_MAX, Command};
use antiphon::agent::view::{HistoryEntry, ServerFacts, View};
use antiphon::api::{self, Access, Api, Beside};
use antiphon::cli::{Answer, Client};
use antiphon::config::{Login, Secret};
use antiphon_core::ha::cluster::{
    Cluster, FORMAT, Leader, Member, Method, Phase, Position, Promise, Serving, SyncSet, Tags,
};
use antiphon_core::ha::decide::Decision;
use antiphon_core::ha::role::Role;
use antiphon_core::ha::why::Why;
use antiphon_core::ha::world::{
    Beat, Database, Knock, Link, Local, Me, Peer, PrimaryServer, Routers, Server, ServerBrief, StandbyServer,
    StoreView, Stored, SyncNames, Upstream, World,
};
use antiphon_core::settings::{DynamicCommands, Settings, SyncMode};
use antiphon_core::{Epoch, Instant, Lsn, NodeName, Timeline};
use antiphon_store::{Expect, MemoryStore, Store, Transaction};
use antiphon_tls::ServerTls;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};

pub(crate) const EPOCH: Epoch = Epoch(3);
pub(crate) const END: Lsn = Lsn(0x300_0000);

pub(crate) fn name(text: &str) -> NodeName {
    text.parse().expect("a name")
}

/// This moment of the boot-time clock.
pub(crate) fn now() -> Instant {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).expect("a clock");
    Instant::default() + Duration::from(time)
}

fn position(lsn: Lsn) -> Position {
    Position { timeline: Timeline(3), lsn }
}

pub(crate) fn member(text: &str, port: u16) -> Member {
    Member {
        format: FORMAT,
        name: name(text),
        peer_address: format!("127.0.0.1:{}", port + 1000),
        server_address: Some(format!("127.0.0.1:{port}")),
        api_url: format!("http://127.0.0.1:{}", port + 2000),
        tags: Tags::default(),
        delayed: false,
        fence: None,
        release: None,
        serving: None,
        slots: BTreeSet::new(),
    }
}

pub(crate) fn led_by(leader: &str, epoch: Epoch) -> Cluster {
    Cluster {
        format: FORMAT,
        system_identifier: Some("7412345678901234567".to_owned()),
        epoch,
        phase: Phase::Led { leader: Leader { name: name(leader), epoch, timeline: Timeline(3) } },
        sync: Promise::Quorum(SyncSet { method: Method::Any, k: 1, members: vec![name("n2")] }),
        base: position(Lsn(0x200_0000)),
    }
}

pub(crate) fn serving(text: &str, port: u16, epoch: Epoch) -> Member {
    let serving = Serving { epoch, timeline: Timeline(3), history: Vec::new() };
    Member { serving: Some(serving), ..member(text, port) }
}

pub(crate) fn primary() -> Server {
    Server::Primary(PrimaryServer {
        timeline: Timeline(3),
        flushed: END,
        history: Vec::new(),
        sync: SyncNames::Nobody,
        proven: None,
        standbys: Vec::new(),
        last_streaming: BTreeMap::new(),
        waiting_since: None,
        checkpointed: None,
    })
}

pub(crate) fn standby(lag: u64) -> Server {
    let at = Lsn(END.0 - lag);
    Server::Standby(StandbyServer {
        upstream: Some(Upstream { name: name("n1"), epoch: EPOCH }),
        receiving: true,
        streaming: true,
        position: Some(position(at)),
        replayed: at,
        starved_since: None,
    })
}

fn peer(text: &str, now: Instant, brief: ServerBrief) -> (NodeName, Peer) {
    let leads = (brief.role == "primary").then_some(EPOCH);
    let beat = Beat { name: name(text), suspects: None, leads, server: brief, slots: BTreeMap::new() };
    (name(text), Peer { heard: Some(now), beat: Some(beat), link: Link::Up, knock: Knock::Unknown })
}

fn brief(text: &str) -> ServerBrief {
    let leads = text == "n1";
    ServerBrief {
        state: if leads { "running" } else { "streaming" }.to_owned(),
        role: if leads { "primary" } else { "replica" }.to_owned(),
        position: Some(position(END)),
        replayed: (!leads).then_some(END),
        upstream: (!leads).then(|| name("n1")),
        pending_restart: false,
        ..ServerBrief::default()
    }
}

/// The cluster as `me` sees it: n1 leads, n2 may acknowledge, n3 just follows.
pub(crate) fn view(me: &str) -> View {
    let now = now();
    let records = [serving("n1", 5001, EPOCH), member("n2", 5002), member("n3", 5003)];
    let mine = records.iter().find(|member| member.name == name(me)).cloned().expect("one of three");
    let members =
        records.into_iter().map(|member| (member.name.clone(), Stored { value: member, revision: 1 }));
    let server = if me == "n1" { primary() } else { standby(0) };
    let role =
        if me == "n1" { Role::Leader { epoch: EPOCH } } else { Role::Follower { upstream: name("n1") } };
    let why = if me == "n1" { Why::Leading } else { Why::Following { upstream: name("n1") } };
    let settings = Settings { synchronous_mode: SyncMode::Quorum, ..Settings::default() };
    let others = ["n1", "n2", "n3"].into_iter().filter(|other| *other != me);
    let world = World {
        now,
        me: Me {
            member: mine,
            started: now,
            fenced: EPOCH,
            lease_until: (me == "n1").then(|| now + settings.ttl),
            may_bootstrap: false,
            may_reinitialise: false,
            reinitialise_requested: None,
            restart_requested: false,
        },
        settings,
        store: StoreView {
            cluster: Some(Stored { value: led_by("n1", EPOCH), revision: 7 }),
            members: members.collect(),
            voters: 3,
            ..StoreView::default()
        },
        peers: others.map(|other| peer(other, now, brief(other))).collect(),
        local: Local::Database(Database {
            system_identifier: Some("7412345678901234567".to_owned()),
            server,
            task: None,
            failed: None,
            half_built: false,
            disk_full: false,
            slots: BTreeMap::new(),
            logical_slots: BTreeMap::new(),
        }),
        routers: Routers::default(),
    };
    View {
        scope: "demo".to_owned(),
        world: Arc::new(world),
        decision: Arc::new(Decision { role, steps: Vec::new(), why, wake_at: None, suspects: None }),
        config: (json!({ "ttl": 30 }), 1),
        history: vec![HistoryEntry {
            timeline: 1,
            lsn: Lsn(0x200_0000),
            reason: "no recovery target specified".to_owned(),
            at: "2026-11-23T05:00:00Z".to_owned(),
            leader: "n1".to_owned(),
            epoch: 3,
        }],
        scheduled: None,
        server: ServerFacts {
            version: 150_018,
            started: Some("2026-11-23 04:00:00.123456+00".to_owned()),
            ..ServerFacts::default()
        },
        store_seen: 1_795_409_000,
        raft: None,
        progress: None,
    }
}

/// The view with its world changed.
pub(crate) fn changed(mut view: View, change: impl FnOnce(&mut World)) -> View {
    let mut world = (*view.world).clone();
    change(&mut world);
    view.world = Arc::new(world);
    view
}

/// The view with another server here.
pub(crate) fn with_server(view: View, server: Server) -> View {
    changed(view, |world| {
        if let Local::Database(database) = &mut world.local {
            database.server = server;
        }
    })
}

pub(crate) fn with_role(mut view: View, role: Role) -> View {
    view.decision = Arc::new(Decision { role, ..(*view.decision).clone() });
    view
}

/// A served API; it ends when this is dropped.
pub(crate) struct Served {
    pub(crate) address: SocketAddr,
    pub(crate) view: watch::Sender<Arc<View>>,
    pub(crate) store: MemoryStore,
    pub(crate) commands: mpsc::Receiver<Command>,
    _stop: oneshot::Sender<()>,
}

pub(crate) fn secret() -> Login {
    Login { username: "admin".to_owned(), password: Secret::new("s3cr:t") }
}

impl Served {
    /// Serves a view, with the settings stored and without any protection.
    pub(crate) async fn new(view: View) -> Self {
        Self::protected(view, Access::default()).await
    }

    pub(crate) async fn protected(view: View, access: Access) -> Self {
        Self::covered(view, access, None).await
    }

    /// Serves inside TLS if certificates are given.
    pub(crate) async fn covered(view: View, access: Access, tls: Option<ServerTls>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let (view, seen) = watch::channel(Arc::new(view));
        let (orders, commands) = mpsc::channel(COMMANDS_MAX);
        let store = MemoryStore::new();
        let api = Api::new(
            seen,
            orders,
            Arc::default(),
            Arc::new(store.clone()),
            access,
            DynamicCommands::Refused,
            Beside::default(),
        );
        let (stop, stopped) = oneshot::channel::<()>();
        tokio::spawn(async move {
            api::serve(listener, tls, api, async {
                // An error is the sender's end, which stops as well.
                let _ = stopped.await;
            })
            .await;
        });
        let served = Self { address, view, store, commands, _stop: stop };
        served.put("config", r#"{"ttl":30,"synchronous_mode":"quorum"}"#).await;
        served.put("cluster", &serde_json::to_string(&led_by("n1", EPOCH)).expect("JSON")).await;
        served
    }

    pub(crate) async fn put(&self, key: &str, value: &str) {
        let puts = vec![(key.to_owned(), value.to_owned())];
        self.store.commit(Transaction { puts, ..Transaction::default() }).await.expect("a write");
    }

    pub(crate) async fn put_member(&self, member: &Member) {
        self.put(&format!("members/{}", member.name), &serde_json::to_string(member).expect("JSON")).await;
    }

    pub(crate) async fn delete(&self, key: &str) {
        let revision = self.revision(key).await.expect("the key");
        let expects = vec![(key.to_owned(), Expect::At(revision))];
        let transaction = Transaction { expects, puts: Vec::new(), deletes: vec![key.to_owned()] };
        self.store.commit(transaction).await.expect("a write");
    }

    pub(crate) async fn revision(&self, key: &str) -> Option<u64> {
        self.store.read().await.expect("a snapshot").entries.get(key).map(|stored| stored.revision)
    }

    pub(crate) async fn value(&self, key: &str) -> Option<serde_json::Value> {
        let snapshot = self.store.read().await.expect("a snapshot");
        snapshot.entries.get(key).map(|stored| serde_json::from_str(&stored.value).expect("JSON"))
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(&self.url(), None).expect("a URL")
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.client().get(path).await.expect("an answer")
    }

    pub(crate) async fn send(&self, method: &str, path: &str, body: Option<serde_json::Value>) -> Answer {
        let method = method.parse().expect("a method");
        let limit = Duration::from_secs(20);
        self.client().send(method, path, body.as_ref(), None, limit).await.expect("an answer")
    }

    /// Waits until the store holds a key.
    pub(crate) async fn wait_for(&self, key: &str) {
        let mut snapshots = self.store.watch();
        let held = snapshots.wait_for(|snapshot| snapshot.entries.contains_key(key));
        tokio::time::timeout(Duration::from_secs(10), held).await.expect("in time").expect("a store");
    }
}
