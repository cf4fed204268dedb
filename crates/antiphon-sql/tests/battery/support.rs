//! A leader and a hot standby of it, on sockets in a folder of their own, and what each answers.
//!
//! A test that is started by root runs itself again as user `postgres`, who may run PostgreSQL.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use antiphon_sql::{Catalogue, catalogue};
use futures_util::TryStreamExt;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

/// The longest that anything in a test may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a test as a user that may run PostgreSQL.
pub fn run<F: Future<Output = ()>>(test: impl FnOnce(Pair) -> F) {
    if is_root() {
        let name = std::thread::current().name().expect("the test's thread has its name").to_owned();
        let copy = std::env::temp_dir().join(format!("antiphon-sql-{name}-{}", std::process::id()));
        fs::copy(std::env::current_exe().expect("this program has a path"), &copy).expect("a copy of it");
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("others may run it");
        let status = Command::new("setpriv")
            .args(["--reuid=postgres", "--regid=postgres", "--init-groups"])
            .arg(&copy)
            .args(["--exact", &name, "--nocapture", "--test-threads=1"])
            .current_dir("/")
            .status()
            .expect("setpriv runs");
        fs::remove_file(&copy).expect("the copy goes");
        assert!(status.success(), "{name} failed as user postgres");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async { test(Pair::start().await).await });
}

fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").expect("a process knows itself");
    status.lines().any(|line| line.starts_with("Uid:\t0\t"))
}

/// A leader, its standby, and a client of each.
pub struct Pair {
    pub leader: Client,
    pub standby: Client,
    servers: Vec<Child>,
    folder: PathBuf,
}

impl Pair {
    async fn start() -> Self {
        let folder = std::env::temp_dir().join(format!("aq{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("a folder");
        let (leads, follows) = (folder.join("l"), folder.join("s"));
        let initdb = Command::new(bin().join("initdb"))
            .args(["--no-sync", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "-D"])
            .arg(&leads)
            .stdout(Stdio::null())
            .status();
        assert!(initdb.expect("initdb runs").success());
        let copied = Command::new("cp").arg("-a").arg(&leads).arg(&follows).status();
        assert!(copied.expect("cp runs").success());
        fs::write(follows.join("standby.signal"), "").expect("a signal file");
        let conninfo = format!("primary_conninfo = 'host={} user=postgres'\n", leads.display());
        fs::write(follows.join("postgresql.auto.conf"), conninfo).expect("its settings");
        let servers = vec![start_server(&leads), start_server(&follows)];
        let leader = wait_for_client(&leads).await;
        leader.batch_execute(include_str!("fixtures.sql")).await.expect("the fixtures");
        let standby = wait_for_client(&follows).await;
        let pair = Self { leader, standby, servers, folder };
        pair.wait_replayed().await;
        for client in [&pair.leader, &pair.standby] {
            client
                .batch_execute("SET search_path = app, public; SET statement_timeout = '20s'")
                .await
                .unwrap();
        }
        pair
    }

    /// Waits until the standby has all that the leader has.
    pub async fn wait_replayed(&self) {
        let until = Instant::now() + PATIENCE;
        let sample = answer(&self.leader, "SELECT pg_current_wal_lsn()").await.unwrap().concat();
        let asked = format!("SELECT pg_last_wal_replay_lsn() >= '{}'", sample.trim());
        while answer(&self.standby, &asked).await != Ok(vec!["t".to_owned()]) {
            assert!(Instant::now() < until, "the standby does not replay");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The catalogue as the leader tells it.
    pub async fn catalogue(&self) -> Catalogue {
        let messages = self.leader.simple_query(catalogue::QUERY).await.expect("the catalogue's query runs");
        Catalogue::from_rows(messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                Some(std::array::from_fn(|at| row.get(at).expect("none is null")))
            }
            _ => None,
        }))
    }

    /// The version of the servers, as a number.
    pub async fn version(&self) -> u32 {
        let version = answer(&self.leader, "SHOW server_version_num").await.unwrap().concat();
        version.parse::<u32>().unwrap() / 10_000
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Where PostgreSQL's programs are: as the other tests, `ANTIPHON_TEST_BIN` or the newest installed.
fn bin() -> PathBuf {
    if let Some(bin) = std::env::var_os("ANTIPHON_TEST_BIN") {
        return bin.into();
    }
    let versions = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed");
    let major = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
    let newest = versions.flatten().map(|entry| entry.path()).max_by_key(major);
    newest.expect("PostgreSQL is installed").join("bin")
}

fn start_server(data: &Path) -> Child {
    let log = fs::File::create(data.with_extension("log")).expect("a log");
    Command::new(bin().join("postgres"))
        .arg("-D")
        .arg(data)
        .args(["-c", "listen_addresses=", "-c", "fsync=off", "-c", "shared_buffers=16MB"])
        .args(["-c", "max_prepared_transactions=5", "-c", "autovacuum=off"])
        .arg("-k")
        .arg(data)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("its log"))
        .stderr(log)
        .spawn()
        .expect("postgres runs")
}

async fn wait_for_client(data: &Path) -> Client {
    let until = Instant::now() + PATIENCE;
    let mut config = Config::new();
    config.host_path(data).user("postgres").dbname("postgres");
    loop {
        match config.connect(NoTls).await {
            Ok((client, connection)) => {
                tokio::spawn(connection);
                return client;
            }
            Err(error) => {
                let log = || fs::read_to_string(data.with_extension("log")).unwrap_or_default();
                assert!(Instant::now() < until, "no connection: {error}: {}", log());
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The rows as texts, or the SQLSTATE.
pub async fn answer(client: &Client, text: &str) -> Result<Vec<String>, String> {
    if text.starts_with("COPY") {
        let lines = client
            .copy_out(text)
            .await
            .map_err(|error| code(&error))?
            .try_collect::<Vec<_>>()
            .await
            .map_err(|error| code(&error))?;
        return Ok(lines.iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect());
    }
    let messages = client.simple_query(text).await.map_err(|error| code(&error))?;
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|at| row.get(at).unwrap_or("null")).collect::<Vec<_>>().join("|"))
        }
        _ => None,
    });
    Ok(rows.collect())
}

fn code(error: &tokio_postgres::Error) -> String {
    error.code().map_or_else(|| format!("broken: {error}"), |code| code.code().to_owned())
}
