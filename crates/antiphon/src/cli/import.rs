//! `import`: the file of another program as one for a router. So far pgbouncer.ini.
//!
//! What means the same is carried over, what does not is said, and nothing is left out in silence. Pure but for
//! reading the file and printing.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;

use super::failure::Failure;

/// Largest file.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// `import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The file of the program that the router takes the place of
    #[arg(value_name = "pgbouncer.ini")]
    file: PathBuf,
}

/// Prints the router's file; what a human has to look at stands in its comments and on standard error.
pub fn import(args: &ImportArgs) -> Result<(), Failure> {
    let name = args.file.display();
    let size = std::fs::metadata(&args.file).map_or(0, |file| file.len());
    if size > FILE_BYTES_MAX {
        return Err(Failure::Refused(format!("{name} is larger than 1 MiB; is it a pgbouncer.ini?")));
    }
    let text = std::fs::read_to_string(&args.file)
        .map_err(|error| Failure::Refused(format!("{name} could not be read: {error}")))?;
    let made = router_file(&text).map_err(|why| Failure::Refused(format!("{name}: {why}")))?;
    print!("{}", made.text);
    for note in &made.notes {
        eprintln!("antiphon: {note}");
    }
    Ok(())
}

/// A router's file.
#[derive(Debug, Default)]
struct Made {
    text: String,
    /// What was not carried over, or has to be looked at.
    notes: Vec<String>,
}

/// Keys that mean the same, and the router's names for them.
const SAME: [(&str, &str); 20] = [
    ("auth_user", "auth_user"),
    ("auth_query", "auth_query"),
    ("auth_dbname", "auth_dbname"),
    ("default_pool_size", "pool_size"),
    ("max_client_conn", "max_client_conn"),
    ("query_wait_timeout", "failover_hold"),
    ("client_login_timeout", "client_login_timeout"),
    ("server_idle_timeout", "server_idle_timeout"),
    ("server_lifetime", "server_lifetime"),
    ("auth_hba_file", "auth_hba_file"),
    ("admin_users", "admin_users"),
    ("stats_users", "stats_users"),
    ("client_tls_sslmode", "client_tls_sslmode"),
    ("client_tls_key_file", "client_tls_key_file"),
    ("client_tls_cert_file", "client_tls_cert_file"),
    ("client_tls_ca_file", "client_tls_ca_file"),
    ("server_tls_sslmode", "server_tls_sslmode"),
    ("server_tls_key_file", "server_tls_key_file"),
    ("server_tls_cert_file", "server_tls_cert_file"),
    ("server_tls_ca_file", "server_tls_ca_file"),
];

/// Keys without which the router does the same, or better.
const NOT_NEEDED: [&str; 22] = [
    "logfile",
    "pidfile",
    "syslog",
    "syslog_ident",
    "syslog_facility",
    "log_connections",
    "log_disconnections",
    "log_pooler_errors",
    "log_stats",
    "stats_period",
    "verbose",
    "user",
    "so_reuseport",
    "max_prepared_statements",
    "track_extra_parameters",
    "ignore_startup_parameters",
    "server_reset_query",
    "server_check_query",
    "server_check_delay",
    "server_fast_close",
    "pkt_buf",
    "tcp_keepalive",
];

/// Makes a router's file of a pgbouncer.ini.
///
/// # Errors
/// The line that cannot be read.
fn router_file(ini: &str) -> Result<Made, String> {
    let mut made = Made::default();
    let mut hosts: Vec<String> = Vec::new();
    let mut lines: Vec<(String, String)> = Vec::new();
    let mut section = String::new();
    let (mut address, mut port) = ("127.0.0.1".to_owned(), "6432".to_owned());
    let mut users_file = None;
    for (number, line) in (1..).zip(ini.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with([';', '#']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.trim().to_ascii_lowercase();
            continue;
        }
        if line.starts_with("%include") {
            made.notes.push(format!("line {number}: {line} was not followed; import that file, too, or put it in the place of this line"));
            continue;
        }
        let pair = line.split_once('=').map(|(key, value)| (key.trim(), value.trim()));
        let (key, value) = pair.ok_or_else(|| format!("line {number} is no `key = value`: {line:?}"))?;
        match (section.as_str(), key) {
            ("databases", name) => database(name, value, &mut hosts, &mut made.notes),
            ("pgbouncer", "listen_addr") => address = value.replace('*', "0.0.0.0"),
            ("pgbouncer", "listen_port") => port = value.to_owned(),
            ("pgbouncer", "auth_file") => users_file = Some(value.to_owned()),
            ("pgbouncer", "auth_type") => lines.extend(auth_type(value, &mut made.notes)),
            ("pgbouncer", "pool_mode") => lines.extend(pool_mode(value, &mut made.notes)),
            ("pgbouncer", "query_wait_timeout" | "client_login_timeout") if value == "0" => {
                made.notes.push(format!(
                    "line {number}: {key} = 0 (for ever) has no equal; the router's default is used"
                ));
            }
            ("pgbouncer", key) => match SAME.iter().find(|(theirs, _)| *theirs == key) {
                Some((_, ours)) => lines.push(((*ours).to_owned(), value.to_owned())),
                None if NOT_NEEDED.contains(&key) => {}
                None => made.notes.push(format!("line {number}: {key} has no equal and was left out")),
            },
            ("users" | "peers", name) => {
                made.notes.push(format!("line {number}: [{section}] {name} has no equal and was left out"));
            }
            _ => return Err(format!("line {number} stands in no section of a pgbouncer.ini: {line:?}")),
        }
    }
    let asks = lines.iter().any(|(key, _)| key == "auth_user");
    match users_file {
        Some(_) if asks => made.notes.push(
            "auth_file was left out: with auth_user the servers are asked for all users; auth_password is still to be filled in".to_owned(),
        ),
        Some(file) => {
            made.notes.push(format!("auth_file {file}: lines with plain passwords have to be replaced by what the server keeps"));
            lines.push(("auth_file".to_owned(), file));
        }
        None => {}
    }
    made.text = yaml(&format!("{address}:{port}"), &hosts, &lines, asks, &mut made.notes);
    Ok(made)
}

/// A line of `[databases]`: where its server is, and what cannot be carried over.
fn database(name: &str, connection: &str, hosts: &mut Vec<String>, notes: &mut Vec<String>) {
    // Values in quotes have no blanks in practice; one that has gives a note about its rest.
    for pair in connection.split_whitespace() {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = value.trim_matches('\'');
        match key {
            "host" => {
                for host in value.split(',').filter(|host| !host.is_empty()) {
                    match host.starts_with('/') {
                        true => notes.push(format!(
                            "database {name}: the socket {host} is reached by its host's address instead"
                        )),
                        false if hosts.iter().any(|known| known == host) => {}
                        false => hosts.push(host.to_owned()),
                    }
                }
            }
            "dbname" if value == name => {}
            "port" | "client_encoding" | "datestyle" | "timezone" | "application_name" => {}
            _ => notes.push(format!("database {name}: {key} has no equal and was left out")),
        }
    }
}

fn auth_type(value: &str, notes: &mut Vec<String>) -> Option<(String, String)> {
    match value {
        "trust" | "any" => return Some(("auth_type".to_owned(), "trust".to_owned())),
        "scram-sha-256" => {}
        "cert" | "hba" => return Some(("auth_type".to_owned(), value.to_owned())),
        "md5" | "plain" => {
            notes.push(format!(
                "auth_type {value}: users whose password is kept as MD5 or SCRAM-SHA-256 log in; plain passwords in auth_file have to be replaced by what the server keeps"
            ));
            return Some(("auth_type".to_owned(), "md5".to_owned()));
        }
        _ => notes.push(format!("auth_type {value} has no equal: the router takes SCRAM-SHA-256")),
    }
    Some(("auth_type".to_owned(), "scram-sha-256".to_owned()))
}

fn pool_mode(value: &str, notes: &mut Vec<String>) -> Option<(String, String)> {
    if !matches!(value, "transaction" | "session") {
        notes.push(format!("pool_mode {value} has no equal: transaction is used"));
        return None;
    }
    Some(("pool_mode".to_owned(), value.to_owned()))
}

fn yaml(
    listen: &str,
    hosts: &[String],
    lines: &[(String, String)],
    asks: bool,
    notes: &mut Vec<String>,
) -> String {
    let agents: Vec<String> = hosts.iter().map(|host| quoted(&format!("{host}:8008"))).collect();
    let of_agents = match agents.is_empty() {
        true => "agents is to be filled in: the addresses of all members' APIs",
        false => "agents was guessed from the servers' hosts: name the APIs of all members",
    };
    notes.push(of_agents.to_owned());
    let mut text = String::from("# Made from a pgbouncer.ini. To be looked at:\n");
    for note in notes.iter() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# - {}", note.replace(['\n', '\r'], " "));
    }
    let _ = writeln!(text, "router:\n  listen: {}\n  agents: [{}]", quoted(listen), agents.join(", "));
    for (key, value) in lines {
        let _ = writeln!(text, "  {key}: {}", quoted(value));
    }
    if asks {
        text.push_str("  # auth_password:\n");
    }
    text
}

/// A text as YAML has it in double quotes, which is as JSON has it.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config;

    const INI: &str = "\
;; a comment
[databases]
app = host=10.0.0.1 port=5432 dbname=app
other = host=10.0.0.1,10.0.0.2 dbname=renamed pool_size=50
* = host=/run/postgresql

[pgbouncer]
listen_addr = *
listen_port = 6433
auth_type = md5
auth_user = pgbouncer
auth_query = SELECT * FROM lookup($1)
auth_file = /etc/pgbouncer/userlist.txt
pool_mode = transaction
default_pool_size = 25
max_client_conn = 2000
query_wait_timeout = 60
admin_users = dba, root
stats_users = exporter
reserve_pool_size = 5
logfile = /var/log/pgbouncer.log
[users]
bob = pool_mode=session
";

    #[test]
    fn what_means_the_same_is_carried_over_and_the_router_reads_it() {
        let made = router_file(INI).unwrap();
        let dir = std::env::temp_dir().join(format!("antiphon-import-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("router.yml");
        std::fs::write(&file, &made.text).unwrap();
        let read = config::load_router(&file, &BTreeMap::new());
        std::fs::remove_dir_all(&dir).unwrap();
        let (file, _) = read.unwrap_or_else(|errors| panic!("{errors}\n{}", made.text)).unwrap();
        let router = file.router;
        assert_eq!((router.listen.port, router.pool_size, router.clients_max), (6433, 25, 2000));
        assert_eq!(router.failover_hold.as_secs(), 60);
        assert_eq!(router.admin_users, ["dba", "root"]);
        let agents: Vec<String> = router.agents.iter().map(ToString::to_string).collect();
        assert_eq!(agents, ["10.0.0.1:8008", "10.0.0.2:8008"]);
    }

    #[test]
    fn what_cannot_be_carried_over_is_said() {
        let made = router_file(INI).unwrap();
        for wanted in [
            "auth_type md5",
            "auth_file was left out",
            "database other: dbname",
            "database other: pool_size",
            "the socket /run/postgresql",
            "reserve_pool_size has no equal",
            "[users] bob",
            "agents was guessed",
        ] {
            assert!(made.notes.iter().any(|note| note.contains(wanted)), "{wanted}: {:#?}", made.notes);
            assert!(made.text.contains(wanted), "{wanted}: {}", made.text);
        }
        assert!(!made.text.contains("logfile"));
    }

    #[test]
    fn what_is_no_pgbouncer_ini_is_refused_with_its_line() {
        assert!(router_file("[pgbouncer]\nnonsense\n").unwrap_err().contains("line 2"));
        assert!(router_file("a = b\n").unwrap_err().contains("line 1"));
    }
}
