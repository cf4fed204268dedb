//! What the router's tests have in common: a cluster with a router before it, and clients of that.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use antiphon::demo::cluster::{Cluster, PASSWORD, Plan};
use serde_json::json;
use tokio_postgres::{Client, Config, NoTls};

/// How long a cluster may take to come up on a busy machine.
pub const UP_WITHIN: Duration = Duration::from_secs(120);
/// The pause between two looks at a condition.
const LOOK: Duration = Duration::from_millis(20);

/// A cluster with a router before it. Its directory is removed when the test passes.
pub struct Routed {
    pub cluster: Cluster,
    pub port: u16,
    router: Child,
    dir: PathBuf,
}

impl Routed {
    /// Starts members and router and waits until a client is served. `more` are further lines of its section.
    pub async fn start(test: &str, members: usize, more: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("antiphon-router-{test}-{}", std::process::id()));
        eprintln!("{test}: members, router and their logs in {}", dir.display());
        let binary: PathBuf = env!("CARGO_BIN_EXE_antiphon").into();
        let settings = json!({
            "synchronous_mode": if members > 1 { "quorum" } else { "off" },
            // What reads leave in the WAL (pruned pages) reaches followers soon, and sessions come back to them.
            "postgresql": { "parameters": { "max_connections": 100, "wal_writer_delay": "10ms" } },
        });
        let plan = Plan {
            dir: dir.clone(),
            binary: binary.clone(),
            bin_dir: std::env::var_os("ANTIPHON_PG_BIN").map(PathBuf::from),
            data_members: members,
            witness: false,
            settings,
            etcd: None,
        };
        let cluster = Cluster::start(&plan).unwrap();
        cluster.wait_whole(UP_WITHIN).await.unwrap();
        let port = free_port();
        let agents: Vec<String> =
            cluster.nodes.iter().map(|node| format!("\"127.0.0.1:{}\"", node.api_port)).collect();
        let text = format!(
            "scope: demo\nlog: {{level: debug}}\nrouter:\n  listen: 127.0.0.1:{port}\n  agents: [{}]\n  auth_user: postgres\n  auth_password: {PASSWORD}\n{more}",
            agents.join(", ")
        );
        let router = start_router(&binary, &dir, &text);
        let routed = Self { cluster, port, router, dir };
        routed.wait_for_client().await;
        routed
    }

    /// A client of the router.
    pub async fn client(&self) -> Client {
        self.connect("postgres").await.unwrap()
    }

    /// The same, to this database.
    pub async fn connect(&self, database: &str) -> Result<Client, tokio_postgres::Error> {
        let (client, connection) = self.config(database).connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// A client of one member's server, past the router.
    pub async fn direct(&self, index: usize) -> Client {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.cluster.nodes[index].server_port).user("postgres");
        let (client, connection) = config.password(PASSWORD).dbname("postgres").connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// How to reach the router.
    pub fn config(&self, database: &str) -> Config {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.port).user("postgres").password(PASSWORD).dbname(database);
        config.connect_timeout(Duration::from_secs(60));
        config
    }

    async fn wait_for_client(&self) -> Client {
        let until = Instant::now() + UP_WITHIN;
        loop {
            match self.connect("postgres").await {
                Ok(client) => return client,
                Err(error) => {
                    assert!(Instant::now() < until, "no client is served: {error}: {}", self.log());
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Runs a program of PostgreSQL against the router.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Output {
        Command::new(program)
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "postgres"])
            .args(arguments)
            .env("PGPASSWORD", PASSWORD)
            .env("PGDATABASE", "postgres")
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("{program} could not be run: {error}"))
    }

    /// The same; it must succeed. Gives what it printed.
    pub fn succeed(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.run(program, arguments);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{program} {arguments:?}: {out}{err}\n{}", self.log());
        assert!(!err.contains("ERROR") && !err.contains("FATAL"), "{program} {arguments:?}: {err}");
        out.into_owned()
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The last of the router's log.
    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(self.dir.join("router.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(40).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// What the router's process holds in memory, in KiB.
    pub fn memory_kib(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.router.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Starts another router with the same file, and so at the same port; it takes the first one's place here.
    /// Gives the first one.
    pub fn succeed_router(&mut self) -> Child {
        let binary = PathBuf::from(env!("CARGO_BIN_EXE_antiphon"));
        let next = run_router(&binary, &self.dir, "second.log");
        std::mem::replace(&mut self.router, next)
    }

    /// Whether the router's process still runs.
    pub fn is_up(&mut self) -> bool {
        matches!(self.router.try_wait(), Ok(None))
    }
}

impl Drop for Routed {
    fn drop(&mut self) {
        let _ = self.router.kill();
        let _ = self.router.wait();
        self.cluster.stop();
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

fn start_router(binary: &Path, dir: &Path, text: &str) -> Child {
    use std::os::unix::fs::PermissionsExt;
    let file = dir.join("router.yml");
    std::fs::write(&file, text).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    run_router(binary, dir, "router.log")
}

fn run_router(binary: &Path, dir: &Path, log: &str) -> Child {
    let log = std::fs::File::create(dir.join(log)).unwrap();
    Command::new(binary)
        .arg("run")
        .arg(dir.join("router.yml"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Waits until something holds.
pub async fn wait_until(what: &str, within: Duration, mut holds: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + within;
    while !holds().await {
        assert!(Instant::now() < until, "{what}: not within {within:?}");
        tokio::time::sleep(LOOK).await;
    }
}

/// The SQLSTATE of an error; empty if the connection broke instead.
pub fn code(error: &tokio_postgres::Error) -> String {
    error.code().map_or_else(String::new, |code| code.code().to_owned())
}
