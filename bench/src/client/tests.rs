//! The client against a real PostgreSQL: what it counts as an outage and as lost.
//!
//! Each test has a server of its own, on a free port and in a temporary folder, and stops it at its end.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;
use crate::process::{SERVER_USER, server_folder, wait_until};

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn the_outage_is_the_longest_gap_that_ends_after_the_event() {
    let (start, acks) = acks(&[0, 900, 1000, 1300, 1310, 1400]);
    let event = start + Duration::from_millis(1001);
    assert_eq!(longest_gap(&acks, event), Some(Duration::from_millis(300)));
}

#[test]
fn no_acknowledgement_after_the_event_is_no_gap_but_nothing() {
    let (start, acks) = acks(&[0, 10]);
    assert_eq!(longest_gap(&acks, start + Duration::from_millis(11)), None);
}

#[tokio::test]
async fn an_acknowledged_row_that_is_not_there_counts_as_lost() {
    let server = Server::start();
    let direct: Config = server.dsn().parse().unwrap();
    create_table(&direct).await.unwrap();
    let writers = Writers::start(&direct, &Arc::new(AtomicI64::new(1)));
    wait_until("no writes", LIMIT, || async {
        (writers.acks().len() >= 50).then_some(()).ok_or_else(|| format!("{} errors", writers.errors()))
    })
    .await
    .unwrap();
    let acked = writers.stop().await;
    assert_eq!(lost(&direct, &acked).await.unwrap(), 0);

    let delete = format!("DELETE FROM {TABLE} WHERE id IN ({}, {})", acked[7].id, acked[30].id);
    connect(&direct).await.unwrap().batch_execute(&delete).await.unwrap();
    assert_eq!(lost(&direct, &acked).await.unwrap(), 2);
}

fn acks(millis: &[u64]) -> (Instant, Vec<Ack>) {
    let start = Instant::now();
    let at = |(id, after): (usize, &u64)| Ack { id: id as i64, at: start + Duration::from_millis(*after) };
    (start, millis.iter().enumerate().map(at).collect())
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A PostgreSQL server that stops when it is dropped.
struct Server {
    bin: PathBuf,
    folder: PathBuf,
    port: u16,
}

impl Server {
    fn start() -> Server {
        let port = free_port();
        let folder = std::env::temp_dir().join(format!("antiphon-bench-test-{}-{port}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let server = Server { bin: newest_postgresql(), folder, port };
        if nix::unistd::geteuid().is_root() {
            server_folder(&server.folder).unwrap();
        }
        let data = server.folder.join("data");
        server.run("initdb", &["-N", "-A", "trust", "-U", "postgres", "-D", &data.display().to_string()]);
        let folder = server.folder.display();
        let options = format!("-F -p {port} -c listen_addresses=127.0.0.1 -k {folder}");
        let log = format!("{folder}/log");
        server.run("pg_ctl", &["-w", "-D", &data.display().to_string(), "-o", &options, "-l", &log, "start"]);
        server
    }

    fn dsn(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname=postgres", self.port)
    }

    /// Runs one of the server's programs, as the server user when the test runs as root.
    fn run(&self, program: &str, args: &[&str]) {
        let program = self.bin.join(program);
        let mut command = Command::new("setpriv");
        if nix::unistd::geteuid().is_root() {
            command
                .args(["--reuid", SERVER_USER, "--regid", SERVER_USER, "--init-groups", "--"])
                .arg(&program);
        } else {
            command = Command::new(&program);
        }
        // A server that inherits a pipe would keep it open for ever: its output goes to a file.
        let said = std::fs::File::create(self.folder.with_extension("out")).unwrap();
        let errors = said.try_clone().unwrap();
        let status = command.args(args).current_dir("/").stdout(said).stderr(errors).status().unwrap();
        let said = std::fs::read_to_string(self.folder.with_extension("out")).unwrap_or_default();
        assert!(status.success(), "{} {args:?} failed: {said}", program.display());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let data = self.folder.join("data");
        self.run("pg_ctl", &["-m", "immediate", "-D", &data.display().to_string(), "stop"]);
        std::fs::remove_dir_all(&self.folder).unwrap();
        std::fs::remove_file(self.folder.with_extension("out")).unwrap();
    }
}

fn newest_postgresql() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest =
        versions.map(|entry| entry.path().join("bin")).filter(|bin| bin.join("initdb").exists()).max();
    let in_path = || {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).find(|bin: &PathBuf| Path::new(bin).join("initdb").exists())
    };
    newest.or_else(in_path).expect("no PostgreSQL server: run scripts/servers.sh ensure")
}
