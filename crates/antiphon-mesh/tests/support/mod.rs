//! A PostgreSQL server for one test: created, started, and gone with its folder when it is dropped.
//!
//! A test that runs as root starts its servers as user `postgres`, since they refuse to run as root. A data
//! directory is made once per release and copied for each server; the copy costs a tenth of `initdb`.
//! `ANTIPHON_TEST_BIN` names the programs of the release that is tested when a test asks for none.

#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, chown, geteuid};

/// The longest that anything in a test may take.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The releases that are looked for.
const RELEASES: [u32; 5] = [14, 15, 16, 17, 18];
/// What every server here is started with.
const SETTINGS: [(&str, &str); 12] = [
    ("wal_level", "logical"),
    ("track_commit_timestamp", "on"),
    ("listen_addresses", "127.0.0.1"),
    ("fsync", "off"),
    ("shared_buffers", "16MB"),
    ("max_connections", "40"),
    ("max_wal_senders", "10"),
    ("max_replication_slots", "10"),
    ("max_prepared_transactions", "10"),
    ("autovacuum_naptime", "10s"),
    ("log_min_messages", "warning"),
    ("timezone", "UTC"),
];

/// A server, its programs and its folder.
pub struct Server {
    /// Its data directory (`data`), its socket and its log (`log`) are in it.
    pub folder: PathBuf,
    /// On 127.0.0.1, and in the name of its socket.
    pub port: u16,
    /// Its release: 15.
    pub release: u32,
    bin: PathBuf,
    settings: BTreeMap<String, String>,
    process: Option<Child>,
}

impl Server {
    /// A running server of this release; of the tested one if none is named.
    pub fn start(release: Option<u32>) -> Self {
        Self::start_with(release, &[])
    }

    /// The same with settings of its own.
    pub fn start_with(release: Option<u32>, settings: &[(&str, &str)]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        listen_to_logs();
        let (release, bin) = match release {
            Some(release) => {
                (release, programs(release).unwrap_or_else(|| panic!("PostgreSQL {release} is not here")))
            }
            None => tested(),
        };
        let count = COUNT.fetch_add(1, Ordering::SeqCst);
        let folder = std::env::temp_dir().join(format!("am{}-{count}", std::process::id()));
        // Of a process of the same number that did not end well.
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("a folder");
        give_to_servers(&folder);
        let data = folder.join("data");
        copy(&template(release, &bin), &data);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its number").port();
        drop(listener);
        let settings = SETTINGS.iter().chain(settings);
        let settings = settings.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let mut server = Self { folder, port, release, bin, settings, process: None };
        server.resume();
        server
    }

    /// Starts it after `stop`, `kill` or `set`.
    pub fn resume(&mut self) {
        assert!(self.process.is_none(), "it runs");
        let log = fs::OpenOptions::new().create(true).append(true).open(self.folder.join("log"));
        let log = log.expect("a log");
        let mut command = as_servers_user(&self.bin.join("postgres"));
        command.arg("-D").arg(self.folder.join("data")).arg("-k").arg(&self.folder);
        command.arg("-p").arg(self.port.to_string());
        for (key, value) in &self.settings {
            command.arg("-c").arg(format!("{key}={value}"));
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("its copy")).stderr(log);
        self.process = Some(command.spawn().expect("a server"));
        self.wait_until_ready();
    }

    fn wait_until_ready(&mut self) {
        let begun = Instant::now();
        loop {
            let process = self.process.as_mut().expect("it was started");
            if let Some(status) = process.try_wait().expect("its state") {
                panic!("the server ended with {status}:\n{}", self.log());
            }
            let file = fs::read_to_string(self.folder.join("data/postmaster.pid")).unwrap_or_default();
            let ours = file.lines().next() == Some(&process.id().to_string());
            if ours && file.lines().nth(7).is_some_and(|state| ["ready", "standby"].contains(&state.trim())) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "the server is not ready:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// A setting from the next start on.
    pub fn set(&mut self, key: &str, value: &str) {
        self.settings.insert(key.to_owned(), value.to_owned());
    }

    /// Stops it and waits: its clients are cut off, their transactions undone.
    pub fn stop(&mut self) {
        self.end(Signal::SIGINT);
    }

    /// Ends it as a crash does.
    pub fn kill(&mut self) {
        self.end(Signal::SIGQUIT);
    }

    fn end(&mut self, signal: Signal) {
        let mut process = self.process.take().expect("it runs");
        self.signal(&process, signal);
        process.wait().expect("its end");
    }

    fn signal(&self, process: &Child, signal: Signal) {
        let pid = i32::try_from(process.id()).expect("a process number");
        kill(Pid::from_raw(pid), signal).expect("the server gets a signal");
    }

    /// Has it read its files again.
    pub fn reload(&self) {
        self.signal(self.process.as_ref().expect("it runs"), Signal::SIGHUP);
    }

    /// Replaces `pg_hba.conf`. `reload` or a start makes it count.
    pub fn hba(&self, lines: &str) {
        fs::write(self.folder.join("data/pg_hba.conf"), lines).expect("pg_hba.conf");
    }

    /// Puts a file into the data directory, as servers want theirs.
    pub fn file(&self, name: &str, content: &[u8]) {
        let path = self.folder.join("data").join(name);
        let mut file = fs::File::create(&path).expect("a file");
        file.set_permissions(fs::Permissions::from_mode(0o600)).expect("its mode");
        file.write_all(content).expect("its content");
        give_to_servers(&path);
    }

    /// How it is reached over its socket: without a password, as superuser.
    pub fn dsn(&self) -> String {
        self.dsn_of("postgres")
    }

    /// The same for another database.
    pub fn dsn_of(&self, database: &str) -> String {
        format!("host={} port={} user=postgres dbname={database}", self.folder.display(), self.port)
    }

    /// A connection of the client library.
    pub async fn client(&self) -> tokio_postgres::Client {
        self.client_of("postgres").await
    }

    /// The same to another database.
    pub async fn client_of(&self, database: &str) -> tokio_postgres::Client {
        let connected = tokio_postgres::connect(&self.dsn_of(database), tokio_postgres::NoTls).await;
        let (client, connection) = connected.expect("a connection");
        tokio::spawn(connection);
        client
    }

    /// Runs statements on a connection of their own.
    pub async fn sql(&self, statements: &str) {
        self.client().await.batch_execute(statements).await.expect(statements);
    }

    /// Waits until a query gives true.
    pub async fn wait_for(&self, condition: &str) {
        let begun = Instant::now();
        let client = self.client().await;
        while !client.query_one(condition, &[]).await.expect(condition).get::<_, bool>(0) {
            assert!(begun.elapsed() < PATIENCE, "still not: {condition}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// What it has written to its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.kill();
        }
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(25).collect();
            eprintln!("--- the log of PostgreSQL {} on port {}", self.release, self.port);
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The releases that tests can have here, oldest first.
pub fn releases() -> Vec<u32> {
    let mut found: Vec<u32> = RELEASES.into_iter().filter(|release| programs(*release).is_some()).collect();
    let (tested, _) = tested();
    if !found.contains(&tested) {
        found.push(tested);
        found.sort_unstable();
    }
    found
}

/// The release that is tested where a test asks for none, and its programs.
fn tested() -> (u32, PathBuf) {
    if let Some(bin) = std::env::var_os("ANTIPHON_TEST_BIN").map(PathBuf::from) {
        return (release_of(&bin), bin);
    }
    let newest = (RELEASES[0]..100)
        .rev()
        .map(|release| (release, PathBuf::from(format!("/usr/lib/postgresql/{release}/bin"))))
        .find(|(_, bin)| bin.join("initdb").exists());
    newest
        .or_else(|| RELEASES.into_iter().rev().find_map(|release| Some((release, programs(release)?))))
        .expect("PostgreSQL is installed (scripts/servers.sh ensure)")
}

/// Where the programs of a release are: installed, or where `scripts/servers.sh` puts them.
fn programs(release: u32) -> Option<PathBuf> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/servers");
    let caches = [
        std::env::var_os("ANTIPHON_CACHE").map(PathBuf::from),
        Some(repository),
        Some(PathBuf::from("/var/cache/antiphon")),
    ];
    let installed = PathBuf::from(format!("/usr/lib/postgresql/{release}/bin"));
    let within = [
        format!("usr/lib/postgresql/{release}/bin"),
        "package/native/bin".to_owned(),
        "pgserver/pginstall/bin".to_owned(),
    ];
    let cached = caches.iter().flatten().flat_map(|cache| {
        within.iter().map(move |path| cache.join(format!("postgresql-{release}")).join(path))
    });
    std::iter::once(installed).chain(cached).find(|bin| bin.join("initdb").exists())
}

fn release_of(bin: &Path) -> u32 {
    let output = Command::new(bin.join("postgres")).arg("--version").output().expect("postgres runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let number =
        text.split_whitespace().nth(2).and_then(|version| version.split(['.', 'b', 'r', 'd']).next());
    number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no version in {text:?}"))
}

/// A fresh data directory of a release, made once and kept beside the build.
fn template(release: u32, bin: &Path) -> PathBuf {
    static MAKING: Mutex<()> = Mutex::new(());
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let name: String =
        bin.to_string_lossy().chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("mesh-data-{release}{name}"));
    if kept.exists() {
        return kept;
    }
    let draft = std::env::temp_dir().join(format!("am{}-new", std::process::id()));
    fs::create_dir_all(&draft).expect("a folder");
    give_to_servers(&draft);
    let data = draft.join("data");
    let made = as_servers_user(&bin.join("initdb"))
        .args(["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "-D"])
        .arg(&data)
        .output()
        .expect("initdb runs");
    assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
    let beside = kept.with_extension(std::process::id().to_string());
    copy(&data, &beside);
    // Another run may have been faster.
    if fs::rename(&beside, &kept).is_err() {
        let _ = fs::remove_dir_all(&beside);
    }
    let _ = fs::remove_dir_all(&draft);
    kept
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp runs");
    assert!(copied.success(), "a copy of {}", from.display());
}

/// A command that runs as a user that PostgreSQL accepts.
fn as_servers_user(program: &Path) -> Command {
    let mut command = if geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.current_dir("/").env("LC_ALL", "C");
    command
}

fn give_to_servers(path: &Path) {
    if geteuid().is_root() {
        let user = User::from_name("postgres").expect("the users").expect("a user postgres");
        chown(path, Some(user.uid), Some(user.gid)).expect("it is given away");
    }
}

/// `RUST_LOG` says what of the log is shown.
fn listen_to_logs() {
    static LOG: OnceLock<()> = OnceLock::new();
    LOG.get_or_init(|| {
        let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into());
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
    });
}
