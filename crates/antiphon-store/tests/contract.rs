//! What every store promises, run against each of them: memory, Raft with one and with three members over
//! loopback, and a real etcd.
//!
//! Each promise is a function over several handles on one space, as the members of a cluster have them.

#![allow(clippy::unwrap_used, reason = "a failed assumption of a test is a failed test")]

mod support;

use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use antiphon_store::{
    EtcdSettings, EtcdStore, Expect, MemoryStore, OPERATIONS_MAX, Snapshot, Store, StoreError,
    TRANSACTION_BYTES_MAX, Transaction, VALUE_BYTES_MAX,
};
use antiphon_testcerts::{Authority, Issued};
use antiphon_tls::{ClientFiles, ClientTls, File, Identity, Trust};
use support::{PATIENCE, TempDir, put};

type Stores = Vec<Arc<dyn Store>>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_keeps_the_contract() {
    let store = MemoryStore::new();
    contract(vec![Arc::new(store.clone()), Arc::new(store)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raft_alone_keeps_the_contract() {
    let dir = TempDir::new();
    let members = support::cluster(&dir, 1).await;
    contract(members.iter().map(|member| Arc::new(member.store.clone()) as Arc<dyn Store>).collect()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raft_of_three_keeps_the_contract() {
    let dir = TempDir::new();
    let members = support::cluster(&dir, 3).await;
    contract(members.iter().map(|member| Arc::new(member.store.clone()) as Arc<dyn Store>).collect()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_etcd_keeps_the_contract() {
    let etcd = Etcd::start();
    let stores: Stores = (0..2).map(|_| Arc::new(etcd.store("one")) as Arc<dyn Store>).collect();
    wait_reachable(&*stores[0]).await;
    contract(stores).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_restarts_is_found_again_and_other_scopes_do_not_show() {
    let mut etcd = Etcd::start();
    let (store, other) = (etcd.store("one"), etcd.store("two"));
    wait_reachable(&store).await;
    let revision = store.commit(put("kept", "yes")).await.unwrap();
    other.commit(put("other", "scope")).await.unwrap();
    etcd.stop();
    let gone = store.commit(put("kept", "no")).await;
    assert!(matches!(gone, Err(StoreError::Unavailable(_) | StoreError::Timeout(_))), "{gone:?}");
    etcd.run();
    wait_reachable(&store).await;
    let seen = store.read().await.unwrap();
    assert_eq!(seen.entries.keys().collect::<Vec<_>>(), ["kept"]);
    assert_eq!(seen.entries["kept"].revision, revision);
    // The watch is back as well: it shows what another client writes.
    let mut watch = store.watch();
    etcd.store("one").commit(put("pushed", "again")).await.unwrap();
    let pushed = watch.wait_for(|seen| value(seen, "pushed").is_some());
    tokio::time::timeout(PATIENCE, pushed).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_etcd_that_wants_certificates_keeps_the_contract() {
    let etcd = Etcd::start_with_certificates();
    let stores: Stores = (0..2).map(|_| Arc::new(etcd.store("one")) as Arc<dyn Store>).collect();
    wait_reachable(&*stores[0]).await;
    contract(stores).await;
}

#[tokio::test]
async fn an_etcd_with_tls_is_not_spoken_to_without_the_right_certificates() {
    let settings =
        EtcdSettings { endpoints: vec!["https://127.0.0.1:2379".to_owned()], ..etcd_settings("one") };
    let refused = EtcdStore::start(&settings).err().unwrap();
    assert!(refused.to_string().contains("TLS"), "{refused}");

    let etcd = Etcd::start_with_certificates();
    let certificates = etcd.certificates.as_ref().unwrap();
    wait_reachable(&etcd.store("one")).await;
    let other = Authority::new(&etcd.dir.path().join("other"), "other");
    let (foreign, theirs) = (other.issue("client", &["localhost"]), &certificates.authority.file);
    for (identity, authority, why) in [
        (None, theirs, "wants a certificate"),
        (Some(&foreign), theirs, "wants a certificate|does not trust the authority"),
        (Some(&certificates.client), &other.file, "not signed by an authority that is trusted here"),
    ] {
        let tls = Some(client_tls(identity, authority));
        let settings = EtcdSettings { endpoints: vec![etcd.client.clone()], tls, ..etcd_settings("one") };
        let refused = EtcdStore::start(&settings).unwrap().read().await.unwrap_err().to_string();
        assert!(why.split('|').any(|why| refused.contains(why)), "{refused}");
    }
}

fn etcd_settings(scope: &str) -> EtcdSettings {
    EtcdSettings {
        endpoints: Vec::new(),
        namespace: "service".to_owned(),
        scope: scope.to_owned(),
        user: None,
        tls: None,
        call_limit: Duration::from_secs(10),
    }
}

fn client_tls(identity: Option<&Issued>, authority: &std::path::Path) -> ClientTls {
    let identity = identity.map(|issued| Identity {
        certificates: File::new("etcd3.cert", &issued.certificate),
        key: Some(File::new("etcd3.key", &issued.key)),
    });
    ClientTls::load(&ClientFiles {
        identity,
        trust: Trust::Authorities(File::new("etcd3.cacert", authority)),
    })
    .unwrap()
}

/// What an etcd and its clients prove themselves with.
struct Certificates {
    authority: Authority,
    server: Issued,
    client: Issued,
}

/// A real etcd in a directory of its own; stopped when dropped.
struct Etcd {
    dir: TempDir,
    client: String,
    peer: String,
    process: Option<Child>,
    certificates: Option<Certificates>,
}

impl Etcd {
    fn start() -> Self {
        Self::start_in(TempDir::new(), None)
    }

    /// One that speaks TLS and lets nobody in without a certificate.
    fn start_with_certificates() -> Self {
        let dir = TempDir::new();
        let authority = Authority::new(&dir.path().join("certificates"), "ca");
        let server = authority.issue("etcd", &["127.0.0.1"]);
        let client = authority.issue("client", &["localhost"]);
        Self::start_in(dir, Some(Certificates { authority, server, client }))
    }

    fn start_in(dir: TempDir, certificates: Option<Certificates>) -> Self {
        let addresses = support::free_addresses(2);
        let scheme = if certificates.is_some() { "https" } else { "http" };
        let (client, peer) = (format!("{scheme}://{}", addresses[0]), format!("http://{}", addresses[1]));
        let mut etcd = Self { dir, client, peer, process: None, certificates };
        etcd.run();
        etcd
    }

    fn run(&mut self) {
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        let mut command = Command::new("etcd");
        if let Some(Certificates { authority, server, .. }) = &self.certificates {
            command.arg("--cert-file").arg(&server.certificate).arg("--key-file").arg(&server.key);
            command.arg("--trusted-ca-file").arg(&authority.file).arg("--client-cert-auth");
        }
        let started = command
            .arg("--data-dir")
            .arg(self.dir.path().join("data"))
            .args([
                "--name",
                "one",
                "--listen-client-urls",
                &self.client,
                "--advertise-client-urls",
                &self.client,
            ])
            .args(["--listen-peer-urls", &self.peer, "--initial-advertise-peer-urls", &self.peer])
            .args(["--initial-cluster", &format!("one={}", self.peer)])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        match started {
            Ok(process) => self.process = Some(process),
            Err(error) => panic!("could not run etcd ({error}); install it: apt install etcd-server"),
        }
    }

    fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    fn store(&self, scope: &str) -> EtcdStore {
        // An endpoint that refuses comes first: the next one must serve.
        let scheme = self.client.split_once(':').unwrap().0;
        let endpoints = vec![format!("{scheme}://127.0.0.1:1"), self.client.clone()];
        let given = self.certificates.as_ref();
        let tls = given.map(|given| client_tls(Some(&given.client), &given.authority.file));
        EtcdStore::start(&EtcdSettings { endpoints, tls, ..etcd_settings(scope) }).unwrap()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn wait_reachable(store: &dyn Store) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = store.read().await {
        assert!(Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn contract(stores: Stores) {
    compare_and_set(&stores).await;
    transactions_are_atomic(&stores).await;
    limits_are_kept(&stores).await;
    own_watch_is_as_new_as_the_commit(&stores).await;
    reads_are_linearizable_across_members(&stores).await;
    watches_see_every_change_and_never_go_back(&stores).await;
    concurrent_increments_all_count(&stores).await;
}

fn expecting(key: &str, expect: Expect, mut transaction: Transaction) -> Transaction {
    transaction.expects.push((key.to_owned(), expect));
    transaction
}

fn value(snapshot: &Snapshot, key: &str) -> Option<String> {
    snapshot.entries.get(key).map(|stored| stored.value.clone())
}

fn conflict_key(outcome: Result<u64, StoreError>) -> String {
    match outcome {
        Err(StoreError::Conflict { key }) => key,
        other => panic!("{other:?}"),
    }
}

async fn compare_and_set(stores: &Stores) {
    let (a, b) = (&stores[0], stores.last().unwrap());
    let first = a.commit(expecting("cas", Expect::Absent, put("cas", "1"))).await.unwrap();
    let lost = b.commit(expecting("cas", Expect::Absent, put("cas", "2"))).await;
    assert_eq!(conflict_key(lost), "cas");
    let second = b.commit(expecting("cas", Expect::At(first), put("cas", "3"))).await.unwrap();
    assert!(second > first, "revisions grow");
    let late = a.commit(expecting("cas", Expect::At(first), put("cas", "4"))).await;
    assert_eq!(conflict_key(late), "cas");
    let now = a.read().await.unwrap();
    assert_eq!(value(&now, "cas").as_deref(), Some("3"));
    assert_eq!(now.entries["cas"].revision, second);
    // Comparing alone is a transaction, too, and changes nothing.
    let same = a.commit(expecting("cas", Expect::At(second), Transaction::default())).await.unwrap();
    assert!(same >= second);
    let removes = Transaction { deletes: vec!["cas".to_owned(), "never".to_owned()], ..Default::default() };
    let third = a.commit(expecting("cas", Expect::At(second), removes)).await.unwrap();
    assert!(third > second);
    assert_eq!(value(&b.read().await.unwrap(), "cas"), None);
    assert_eq!(conflict_key(b.commit(expecting("cas", Expect::At(second), put("cas", "5"))).await), "cas");
    b.commit(expecting("cas", Expect::Absent, put("cas", "6"))).await.unwrap();
}

async fn transactions_are_atomic(stores: &Stores) {
    let store = &stores[0];
    let both = Transaction {
        puts: vec![("x".to_owned(), "1".to_owned()), ("y".to_owned(), "\u{e9}\"\\\n\u{1F980}".to_owned())],
        ..Transaction::default()
    };
    let revision = store.commit(both).await.unwrap();
    let now = store.read().await.unwrap();
    assert_eq!((now.entries["x"].revision, now.entries["y"].revision), (revision, revision));
    assert_eq!(now.entries["y"].value, "\u{e9}\"\\\n\u{1F980}", "values come back as they were put");
    let half = Transaction {
        expects: vec![("x".to_owned(), Expect::At(revision)), ("y".to_owned(), Expect::Absent)],
        puts: vec![("x".to_owned(), "2".to_owned()), ("z".to_owned(), "2".to_owned())],
        deletes: vec!["y".to_owned()],
    };
    assert_eq!(conflict_key(store.commit(half).await), "y");
    let now = store.read().await.unwrap();
    assert_eq!((value(&now, "x").as_deref(), value(&now, "z")), (Some("1"), None), "nothing was written");
}

async fn limits_are_kept(stores: &Stores) {
    let text = |bytes: usize| "v".repeat(bytes);
    let twice = Transaction {
        puts: vec![("k".to_owned(), "1".to_owned()), ("k".to_owned(), "2".to_owned())],
        ..Transaction::default()
    };
    let put_and_deleted = Transaction { deletes: vec!["k".to_owned()], ..put("k", "1") };
    let puts = |count: usize, bytes: usize| Transaction {
        puts: (0..count).map(|number| (format!("limit/{number}"), text(bytes))).collect(),
        ..Transaction::default()
    };
    for refused in [
        twice,
        put_and_deleted,
        put("k", &text(VALUE_BYTES_MAX + 1)),
        put("", "no name"),
        puts(OPERATIONS_MAX + 1, 1),
        puts(5, TRANSACTION_BYTES_MAX / 4),
    ] {
        let outcome = stores[0].commit(refused).await;
        assert!(matches!(outcome, Err(StoreError::Invalid(_))), "{outcome:?}");
    }
    stores[0].commit(put("largest", &text(VALUE_BYTES_MAX))).await.unwrap();
    let now = stores.last().unwrap().read().await.unwrap();
    assert_eq!(now.entries["largest"].value.len(), VALUE_BYTES_MAX);
    let gone = Transaction { deletes: vec!["largest".to_owned()], ..Transaction::default() };
    stores[0].commit(gone).await.unwrap();
}

async fn own_watch_is_as_new_as_the_commit(stores: &Stores) {
    for store in stores {
        let watch = store.watch();
        for number in 0..20 {
            let revision = store.commit(put("own", &number.to_string())).await.unwrap();
            let seen = watch.borrow().clone();
            assert!(seen.revision >= revision);
            assert_eq!(value(&seen, "own"), Some(number.to_string()));
        }
    }
}

async fn reads_are_linearizable_across_members(stores: &Stores) {
    for round in 0..20 {
        let writer = &stores[round % stores.len()];
        let revision = writer.commit(put("linear", &round.to_string())).await.unwrap();
        for reader in stores {
            let seen = reader.read().await.unwrap();
            assert!(seen.revision >= revision);
            assert_eq!(value(&seen, "linear"), Some(round.to_string()));
        }
    }
}

async fn watches_see_every_change_and_never_go_back(stores: &Stores) {
    let mut watchers = Vec::new();
    for store in stores {
        let mut watch = store.watch();
        watchers.push(tokio::spawn(async move {
            let (mut revision, mut number) = (0, -1_i64);
            while number < 49 {
                let seen = watch.borrow_and_update().clone();
                assert!(seen.revision >= revision, "the watch went back");
                let now = value(&seen, "counted").map_or(-1, |value| value.parse().unwrap());
                assert!(now >= number, "a value went back");
                (revision, number) = (seen.revision, now);
                if number < 49 {
                    watch.changed().await.unwrap();
                }
            }
        }));
    }
    for number in 0..50 {
        stores[number % stores.len()].commit(put("counted", &number.to_string())).await.unwrap();
    }
    for watcher in watchers {
        tokio::time::timeout(PATIENCE, watcher).await.unwrap().unwrap();
    }
}

async fn concurrent_increments_all_count(stores: &Stores) {
    let mut tasks = Vec::new();
    for number in 0..100 {
        let store = Arc::clone(&stores[number % stores.len()]);
        tasks.push(tokio::spawn(async move {
            loop {
                let now = store.read().await.unwrap();
                let stored = now.entries.get("sum");
                let count: u64 = stored.map_or(0, |stored| stored.value.parse().unwrap());
                let expect = stored.map_or(Expect::Absent, |stored| Expect::At(stored.revision));
                match store.commit(expecting("sum", expect, put("sum", &(count + 1).to_string()))).await {
                    Ok(_) => return,
                    Err(StoreError::Conflict { .. }) => {}
                    Err(other) => panic!("{other:?}"),
                }
            }
        }));
    }
    for task in tasks {
        tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
    }
    for store in stores {
        assert_eq!(value(&store.read().await.unwrap(), "sum").as_deref(), Some("100"));
    }
}
