//! What the router's tests have in common: a cluster with a router before it, and clients of that.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use antiphon::demo::cluster::{Cluster, PASSWORD, Plan};
use antiphon_testcerts::{Authority, Issued};
use antiphon_tls::{ClientFiles, ClientTls, Connector, File, Trust};
use serde_json::json;
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, Config, NoTls};

/// How long a cluster may take to come up on a busy machine.
pub const UP_WITHIN: Duration = Duration::from_secs(120);
/// The pause between two looks at a condition.
const LOOK: Duration = Duration::from_millis(20);

/// A cluster with a router before it. Its directory is removed when the test passes.
pub struct Routed {
    pub cluster: Cluster,
    pub port: u16,
    /// What everybody proves himself with, if clients, router and servers speak TLS.
    certificates: Option<Certificates>,
    router: Child,
    dir: PathBuf,
}

impl Routed {
    /// Starts members and router and waits until a client is served. `more` are further lines of its section.
    pub async fn start(test: &str, members: usize, more: &str) -> Self {
        Self::begin(test, members, more, None).await
    }

    /// The same inside TLS: clients must speak it, and servers must prove who they are.
    pub async fn start_secure(test: &str, members: usize, more: &str) -> Self {
        let certificates = Certificates::new(&dir_of(test), &["127.0.0.1"]);
        let section = format!("{}{}{more}", certificates.of_clients("require"), certificates.of_servers());
        Self::begin(test, members, &section, Some(certificates)).await
    }

    async fn begin(test: &str, members: usize, more: &str, certificates: Option<Certificates>) -> Self {
        let dir = dir_of(test);
        eprintln!("{test}: members, router and their logs in {}", dir.display());
        let cluster = start_cluster(&dir, members, certificates.as_ref()).await;
        let port = free_port();
        let router = start_router(&dir, "router", &router_file(port, &agents(&cluster), more));
        let routed = Self { cluster, port, certificates, router, dir };
        routed.wait_for_client().await;
        routed
    }

    /// Another router before the same cluster, with another section; no client of it is waited for.
    pub fn another(&self, name: &str, more: &str) -> Another {
        Another::start(&self.dir, name, &agents(&self.cluster), more)
    }

    /// The certificates of a cluster that was started with them.
    pub fn certificates(&self) -> &Certificates {
        self.certificates.as_ref().expect("it was started with certificates")
    }

    /// A client of the router.
    pub async fn client(&self) -> Client {
        self.connect("postgres").await.unwrap()
    }

    /// The same, to this database.
    pub async fn connect(&self, database: &str) -> Result<Client, tokio_postgres::Error> {
        let (client, connection) = self.config(database).connect(self.connector()).await?;
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
        config.ssl_mode(if self.certificates.is_some() { SslMode::Require } else { SslMode::Disable });
        config
    }

    /// How its clients speak TLS, if they do.
    pub fn connector(&self) -> Connector {
        let trust = self.certificates.as_ref().map_or(Trust::Anyone, Certificates::trust);
        ClientTls::load(&ClientFiles { identity: None, trust }).unwrap().connector()
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
        let mut command = self.command(program);
        let output = command.args(arguments).stdin(Stdio::null()).output();
        output.unwrap_or_else(|error| panic!("{program} could not be run: {error}"))
    }

    /// The same, not run yet.
    pub fn command(&self, program: &str) -> Command {
        let mut command = client_program(program, self.port);
        match &self.certificates {
            Some(certificates) => {
                command.env("PGSSLMODE", "verify-full").env("PGSSLROOTCERT", &certificates.authority.file)
            }
            None => command.env("PGSSLMODE", "disable"),
        };
        command
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

    /// Changes the router's file, of which the router does not know yet.
    pub fn change_file(&self, from: &str, to: &str) {
        let file = self.dir.join("router.yml");
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains(from), "{from}: {text}");
        std::fs::write(&file, text.replacen(from, to, 1)).unwrap();
    }

    /// Sends the router's process a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let process = nix::unistd::Pid::from_raw(self.router.id().try_into().unwrap());
        nix::sys::signal::kill(process, signal).unwrap();
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
        let next = run_router(&self.dir, "router", "second.log");
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

/// A further router. It ends with the test.
pub struct Another {
    pub port: u16,
    process: Child,
    log: PathBuf,
}

impl Another {
    /// Starts one that keeps its file and its log in `dir` and follows these agents.
    pub fn start(dir: &Path, name: &str, agents: &str, more: &str) -> Self {
        let port = free_port();
        let process = start_router(dir, name, &router_file(port, agents, more));
        Self { port, process, log: dir.join(format!("{name}.log")) }
    }

    /// The same with another file; `LISTEN` in it becomes where it listens.
    pub fn of_file(dir: &Path, name: &str, text: &str) -> Self {
        let port = free_port();
        let process = start_router(dir, name, &text.replace("LISTEN", &format!("127.0.0.1:{port}")));
        Self { port, process, log: dir.join(format!("{name}.log")) }
    }

    /// A client of it, as soon as one is served.
    pub async fn wait_for_client(&self) -> Client {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.port).user("postgres").password(PASSWORD).dbname("postgres");
        let until = Instant::now() + UP_WITHIN;
        loop {
            match config.connect(NoTls).await {
                Ok((client, connection)) => {
                    tokio::spawn(connection);
                    return client;
                }
                Err(error) => assert!(Instant::now() < until, "no client is served: {error}: {}", self.log()),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// All of its log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What `psql` prints and complains of, with these variables, when it asks whether the way from the router to
    /// its server is inside TLS. It is repeated until the router listens.
    pub async fn wait_for_psql(&self, variables: &[(&str, &str)]) -> String {
        let ask = "SELECT 'inside TLS: ' || ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        let until = Instant::now() + UP_WITHIN;
        loop {
            let mut command = client_program("psql", self.port);
            let command = command.envs(variables.iter().copied()).args(["-AtXc", ask]);
            let output = command.stdin(Stdio::null()).output().unwrap();
            let told = [output.stdout, output.stderr].concat();
            let told = String::from_utf8_lossy(&told).into_owned();
            if !told.contains("Connection refused") {
                return told;
            }
            assert!(Instant::now() < until, "{told}{}", self.log());
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Drop for Another {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("{}:\n{}", self.log.display(), self.log());
        }
    }
}

/// What servers and routers of a test prove themselves with.
pub struct Certificates {
    pub authority: Authority,
    servers: Issued,
    routers: Issued,
}

impl Certificates {
    /// For servers that are known by these names. All may read them: agents become another user.
    pub fn new(dir: &Path, servers: &[&str]) -> Self {
        let folder = dir.join("certificates");
        let authority = Authority::new(&folder, "ca");
        let servers = authority.issue("servers", servers);
        let routers = authority.issue("routers", &["127.0.0.1", "localhost"]);
        if nix::unistd::geteuid().is_root() {
            let user = nix::unistd::User::from_name("postgres").unwrap().unwrap();
            let files = [&authority.file, &servers.certificate, &servers.key];
            for path in files.into_iter().chain([&folder]) {
                nix::unistd::chown(path, Some(user.uid), Some(user.gid)).unwrap();
            }
        }
        Self { authority, servers, routers }
    }

    /// Lines of a router's section: its clients' side.
    pub fn of_clients(&self, mode: &str) -> String {
        let (certificate, key) = (self.routers.certificate.display(), self.routers.key.display());
        format!(
            "  client_tls_sslmode: {mode}\n  client_tls_cert_file: {certificate}\n  client_tls_key_file: {key}\n"
        )
    }

    /// Lines of a router's section: servers are verified in full.
    pub fn of_servers(&self) -> String {
        format!(
            "  server_tls_sslmode: verify-full\n  server_tls_ca_file: {}\n",
            self.authority.file.display()
        )
    }

    /// Whom clients of routers believe.
    pub fn trust(&self) -> Trust {
        Trust::Authorities(File::new("authority", &self.authority.file))
    }
}

/// A program of PostgreSQL as a client of the router at a port.
pub fn client_program(program: &str, port: u16) -> Command {
    let mut command = Command::new(program);
    command.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-U", "postgres"]);
    command.env("PGPASSWORD", PASSWORD).env("PGDATABASE", "postgres");
    command
}

/// Where a test keeps what it makes.
pub fn dir_of(test: &str) -> PathBuf {
    std::env::temp_dir().join(format!("antiphon-router-{test}-{}", std::process::id()))
}

/// Starts members and waits until all are there; their servers speak TLS if there are certificates.
pub async fn start_cluster(dir: &Path, members: usize, certificates: Option<&Certificates>) -> Cluster {
    // What reads leave in the WAL (pruned pages) reaches followers soon, and sessions come back to them.
    let mut parameters = json!({ "max_connections": 100, "wal_writer_delay": "10ms" });
    if let Some(Certificates { servers, .. }) = certificates {
        parameters["ssl"] = "on".into();
        parameters["ssl_cert_file"] = servers.certificate.to_str().into();
        parameters["ssl_key_file"] = servers.key.to_str().into();
    }
    let settings = json!({
        "synchronous_mode": if members > 1 { "quorum" } else { "off" },
        "postgresql": { "parameters": parameters },
    });
    let plan = Plan {
        dir: dir.to_owned(),
        binary: env!("CARGO_BIN_EXE_antiphon").into(),
        bin_dir: std::env::var_os("ANTIPHON_PG_BIN").map(PathBuf::from),
        data_members: members,
        witness: false,
        settings,
        etcd: None,
    };
    let cluster = Cluster::start(&plan).unwrap();
    cluster.wait_whole(UP_WITHIN).await.unwrap();
    cluster
}

/// The members' APIs, as a list in a file.
pub fn agents(cluster: &Cluster) -> String {
    let agents: Vec<String> =
        cluster.nodes.iter().map(|node| format!("\"127.0.0.1:{}\"", node.api_port)).collect();
    agents.join(", ")
}

fn router_file(port: u16, agents: &str, more: &str) -> String {
    // More than one, so that links and orders go from thread to thread.
    let threads = if more.contains("threads:") { "" } else { "  threads: 2\n" };
    format!(
        "scope: demo\nlog: {{level: debug}}\nrouter:\n  listen: 127.0.0.1:{port}\n  agents: [{agents}]\n  auth_user: postgres\n  auth_password: {PASSWORD}\n{threads}{more}"
    )
}

fn start_router(dir: &Path, name: &str, text: &str) -> Child {
    use std::os::unix::fs::PermissionsExt;
    let file = dir.join(format!("{name}.yml"));
    std::fs::write(&file, text).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    run_router(dir, name, &format!("{name}.log"))
}

/// Runs the router of a file that is there, with this log.
fn run_router(dir: &Path, name: &str, log: &str) -> Child {
    let log = std::fs::File::create(dir.join(log)).unwrap();
    Command::new(env!("CARGO_BIN_EXE_antiphon"))
        .arg("run")
        .arg(dir.join(format!("{name}.yml")))
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
