//! What every test here needs: to run as a user that PostgreSQL accepts, a place of its own, members in it.
//!
//! A test that is started by root runs itself again as user `postgres`. A place kills what was started in
//! it and removes itself, also when the test failed.

use std::fs;
use std::future::Future;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use antiphon_core::ha::cluster::{Method, SyncSet};
use antiphon_core::ha::world::{
    Database, PrimaryServer, Server, StandbyServer, StopMode, Stopped, SyncNames, Upstream,
};
use antiphon_core::{Epoch, NodeName};
use antiphon_engine::{Credentials, Engine, PgSettings, Postgres, Work};

/// Words that must never be seen outside the password files.
pub(crate) const PASSWORDS: [&str; 3] = ["super-Secret'1", "repl-Secret:2", "rewind-Secret\\3"];

/// The longest that anything in a test may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a test as a user that may run PostgreSQL.
pub(crate) fn run<F: Future<Output = ()>>(test: impl FnOnce(Place) -> F) {
    if nix::unistd::geteuid().is_root() {
        let name = std::thread::current().name().expect("the test's thread has its name").to_owned();
        let status = Command::new("setpriv")
            .args(["--reuid=postgres", "--regid=postgres", "--init-groups"])
            .arg(reachable_program())
            .args(["--exact", &name, "--nocapture", "--test-threads=1"])
            .current_dir("/")
            .status()
            .expect("setpriv runs");
        assert!(status.success(), "{name} failed as user postgres");
        return;
    }
    static LOG: OnceLock<()> = OnceLock::new();
    LOG.get_or_init(|| {
        let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into());
        tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().init();
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(test(Place::new()));
}

/// This program, or a copy of it that other users can reach.
fn reachable_program() -> PathBuf {
    static COPY: OnceLock<PathBuf> = OnceLock::new();
    let program = std::env::current_exe().expect("this program has a path");
    let open = |folder: &Path| fs::metadata(folder).is_ok_and(|metadata| metadata.mode() & 0o001 != 0);
    if program.ancestors().skip(1).all(open) {
        return program;
    }
    COPY.get_or_init(|| {
        let copy = std::env::temp_dir().join(format!("antiphon-engine-tests-{}", std::process::id()));
        fs::copy(&program, &copy).expect("a copy of this program");
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("it may be run");
        copy
    })
    .clone()
}

/// A folder for one test.
pub(crate) struct Place {
    pub(crate) folder: PathBuf,
}

impl Place {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::SeqCst);
        let folder = std::env::temp_dir().join(format!("ae{}-{count}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        Self { folder: folder.canonicalize().expect("its path") }
    }

    /// A member that does not exist yet.
    pub(crate) fn member(&self, name: &str) -> Member {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its number").port();
        let [superuser, replication, rewind] = PASSWORDS;
        let mut settings = PgSettings::new(
            name.parse().expect("a name"),
            "test",
            self.folder.join(name),
            port,
            Credentials::new("postgres", superuser),
            Credentials::new("replicator", replication),
        );
        settings.rewind = Some(Credentials::new("rewinder", rewind));
        settings.listen_addresses = "127.0.0.1".into();
        settings.initdb = vec!["--no-sync".into()];
        settings.bin_dir = std::env::var_os("ANTIPHON_TEST_BIN").map(PathBuf::from);
        for (parameter, value) in
            [("shared_buffers", "16MB"), ("max_connections", "30"), ("log_statement", "all")]
        {
            settings.parameters.insert(parameter.into(), value.into());
        }
        Member::open(settings)
    }

    /// A primary in epoch 1.
    pub(crate) async fn primary(&self, name: &str) -> Member {
        let member = self.member(name);
        member.done(Work::Initialise).await;
        member
    }

    /// A standby of `primary` that streams in `epoch`.
    pub(crate) async fn standby(&self, name: &str, primary: &Member, epoch: u64) -> Member {
        let member = self.member(name);
        if has_program("pg_basebackup") {
            member.done(Work::Clone { address: primary.address(), keep_old: false }).await;
        } else {
            // A server's package without the tools: a copy of the directory at rest does as well.
            let sync = primary.primary(|_| true).await.sync;
            primary.stop(StopMode::Fast).await;
            let copied = Command::new("cp")
                .arg("-a")
                .arg(&primary.settings.data_dir)
                .arg(&member.settings.data_dir)
                .status();
            assert!(copied.expect("cp runs").success());
            primary.done(Work::StartPrimary { epoch: Epoch(epoch), sync }).await;
        }
        primary.engine.slots(&[(member.name().slot_name(), None)], &[], &[]).await.expect("a slot");
        member.done(Work::StartStandby { upstream: Some(primary.as_upstream(epoch)) }).await;
        member.standby(|standby| standby.streaming && standby.position.is_some()).await;
        member
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            if fs::read_link(entry.path().join("cwd")).is_ok_and(|folder| folder.starts_with(&self.folder)) {
                // It may have ended since.
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
        }
        if std::thread::panicking() {
            for log in glob_logs(&self.folder) {
                let text = fs::read_to_string(&log).unwrap_or_default();
                let tail: Vec<&str> = text.lines().rev().take(25).collect();
                eprintln!("--- {}", log.display());
                tail.iter().rev().for_each(|line| eprintln!("{line}"));
            }
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Whether the programs to test with have this one.
pub(crate) fn has_program(name: &str) -> bool {
    std::env::var_os("ANTIPHON_TEST_BIN").is_none_or(|folder| Path::new(&folder).join(name).exists())
}

/// The servers' logs.
pub(crate) fn glob_logs(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().join("postgresql.log")).filter(|log| log.exists()).collect()
}

/// A member: its engine and how it is reached.
pub(crate) struct Member {
    pub(crate) engine: Postgres,
    pub(crate) settings: PgSettings,
}

impl Member {
    pub(crate) fn open(settings: PgSettings) -> Self {
        Self { engine: Postgres::open(settings.clone()).expect("an engine"), settings }
    }

    pub(crate) fn name(&self) -> NodeName {
        self.settings.name.clone()
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.settings.port)
    }

    pub(crate) fn as_upstream(&self, epoch: u64) -> (Upstream, String) {
        (Upstream { name: self.name(), epoch: Epoch(epoch) }, self.address())
    }

    /// Waits until an observation is as wanted.
    pub(crate) async fn until(&self, wanted: impl Fn(&Database) -> bool) -> Database {
        let begun = Instant::now();
        let mut events = self.engine.events();
        loop {
            let seen = self.engine.observe().await;
            if wanted(&seen) {
                return seen;
            }
            assert!(begun.elapsed() < PATIENCE, "{}: still {seen:#?}", self.name());
            let _ = tokio::time::timeout(Duration::from_millis(5), events.changed()).await;
        }
    }

    /// Does work and waits for its success.
    pub(crate) async fn done(&self, work: Work) -> Database {
        let seen = self.ended(work).await;
        assert_eq!(seen.failed, None, "{}", self.name());
        seen
    }

    /// Does work and waits for its end.
    pub(crate) async fn ended(&self, work: Work) -> Database {
        self.engine.begin(work).expect("begun");
        self.until(|seen| seen.task.is_none()).await
    }

    pub(crate) async fn standby(&self, wanted: impl Fn(&StandbyServer) -> bool) -> StandbyServer {
        match self
            .until(|seen| matches!(&seen.server, Server::Standby(standby) if wanted(standby)))
            .await
            .server
        {
            Server::Standby(standby) => standby,
            other => panic!("not a standby: {other:?}"),
        }
    }

    pub(crate) async fn primary(&self, wanted: impl Fn(&PrimaryServer) -> bool) -> PrimaryServer {
        match self
            .until(|seen| matches!(&seen.server, Server::Primary(primary) if wanted(primary)))
            .await
            .server
        {
            Server::Primary(primary) => primary,
            other => panic!("not a primary: {other:?}"),
        }
    }

    pub(crate) async fn stopped(&self) -> Stopped {
        match self.until(|seen| matches!(seen.server, Server::Stopped(_)) && seen.task.is_none()).await.server
        {
            Server::Stopped(stopped) => stopped,
            other => panic!("not stopped: {other:?}"),
        }
    }

    pub(crate) async fn stop(&self, mode: StopMode) -> Stopped {
        self.done(Work::Stop { mode }).await;
        self.stopped().await
    }

    pub(crate) fn pid(&self) -> i32 {
        let text = fs::read_to_string(self.settings.data_dir.join("postmaster.pid")).expect("it runs");
        text.lines().next().expect("a line").parse().expect("a number")
    }

    pub(crate) async fn connect(&self) -> tokio_postgres::Client {
        let mut config = tokio_postgres::Config::new();
        config.host_path(&self.settings.state_dir).port(self.settings.port).dbname("postgres");
        config.user("postgres").password(PASSWORDS[0]).application_name("test");
        let (client, connection) = config.connect(tokio_postgres::NoTls).await.expect("a connection");
        tokio::spawn(connection);
        client
    }

    pub(crate) async fn sql(&self, statement: &str) {
        self.connect().await.batch_execute(statement).await.expect(statement);
    }

    pub(crate) async fn count(&self, table: &str) -> i64 {
        let row = self.connect().await.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await;
        row.expect("a count").get(0)
    }
}

/// `ANY 1` of these.
pub(crate) fn any_of(members: &[&Member]) -> SyncNames {
    SyncNames::Set(SyncSet { method: Method::Any, k: 1, members: members.iter().map(|m| m.name()).collect() })
}
