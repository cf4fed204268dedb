//! The server's configuration: our own file beside the data directory, which includes the user's.
//!
//! Order decides: our defaults, then the user's `postgresql.conf`, then the user's parameters from the
//! cluster's settings, then what the engine itself must hold. The user's files are never written, with one
//! exception: `postgresql.auto.conf` beats every other file, so an ALTER SYSTEM of a setting on which a
//! promise rests (whom to stream from, what commits wait for) is taken out of it before a start.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use antiphon_core::ha::cluster::{Method, SyncSet};
use antiphon_core::ha::step::synchronous_standby_names;
use antiphon_core::ha::world::SyncNames;
use antiphon_core::{Epoch, NodeName};
use serde::{Deserialize, Serialize};

use super::files::{self, Paths};
use super::settings::{Credentials, PgSettings};
use crate::EngineError;

/// What a standby waits for if someone promotes it behind our back: a name that no member can have, so
/// that such a commit is never acknowledged. It also keeps the "somebody must acknowledge" flag of the
/// server's shared memory set from its start, so that a promotion has no moment without it.
pub(super) const NOBODY_YET: &str = "\"antiphon:nobody\"";

/// Settings on which promises rest.
pub(super) const CRITICAL: [&str; 5] = [
    "primary_conninfo",
    "primary_slot_name",
    "synchronous_standby_names",
    "recovery_target_timeline",
    "restart_after_crash",
];

/// Settings that the engine alone sets; the user's values for them are left out.
const OURS: [&str; 10] = [
    "listen_addresses",
    "port",
    "cluster_name",
    "hot_standby",
    "wal_log_hints",
    "config_file",
    "data_directory",
    "hba_file",
    "ident_file",
    "unix_socket_directories",
];

/// Defaults that the user's files may change.
const DEFAULTS: [(&str, &str); 8] = [
    ("wal_level", "replica"),
    ("max_slot_wal_keep_size", "10GB"),
    ("wal_keep_size", "128MB"),
    ("wal_retrieve_retry_interval", "100ms"),
    ("wal_receiver_timeout", "5s"),
    ("wal_sender_timeout", "5s"),
    ("wal_receiver_status_interval", "1s"),
    ("password_encryption", "scram-sha-256"),
];

/// Whether the engine alone sets this parameter.
pub(super) fn is_ours(name: &str) -> bool {
    OURS.contains(&name)
}

/// Whom the server here streams from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Following {
    pub(super) name: NodeName,
    pub(super) epoch: Epoch,
    /// `host:port`.
    pub(super) address: String,
}

/// What the engine must still know after a restart about the configuration it wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Role {
    pub(super) format: u32,
    pub(super) upstream: Option<Following>,
    /// `synchronous_standby_names`.
    pub(super) sync: String,
}

/// Version of `role.json`.
const ROLE_FORMAT: u32 = 1;

impl Role {
    /// Reads it; nobody followed if there is none.
    pub(super) fn read(paths: &Paths) -> io::Result<Self> {
        match fs::read(paths.role()) {
            Ok(bytes) => {
                let role: Self = serde_json::from_slice(&bytes).map_err(io::Error::other)?;
                if role.format > ROLE_FORMAT {
                    return Err(io::Error::other("it was written by a newer version"));
                }
                Ok(role)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok(Self { format: ROLE_FORMAT, upstream: None, sync: NOBODY_YET.to_owned() })
            }
            Err(error) => Err(error),
        }
    }

    fn write(&self, paths: &Paths) -> io::Result<()> {
        let bytes = serde_json::to_vec(self).map_err(io::Error::other)?;
        files::write_if_changed(&paths.role(), &bytes, 0o600).map(drop)
    }
}

/// Writes everything that the server reads, durably: the order does not matter to a server that is told to
/// reload afterwards.
pub(super) fn write_all(paths: &Paths, settings: &PgSettings, role: &Role) -> io::Result<()> {
    let config = render(paths, settings, role).map_err(io::Error::other)?;
    role.write(paths)?;
    files::write_if_changed(&paths.passwords(), passwords(settings).as_bytes(), 0o600)?;
    files::write_if_changed(&paths.hba(), access(paths, settings).as_bytes(), 0o600)?;
    files::write_if_changed(&paths.ident(), identities(paths, settings).as_bytes(), 0o600)?;
    files::write_if_changed(&paths.config(), config.as_bytes(), 0o600).map(drop)
}

/// The configuration file.
fn render(paths: &Paths, settings: &PgSettings, role: &Role) -> Result<String, String> {
    let mut text =
        String::from("# Written by antiphon, overwritten at will. Change the cluster's settings instead.\n");
    let set = |text: &mut String, name: &str, value: &str| -> Result<(), String> {
        let sound = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.'));
        if !sound {
            return Err(format!("{name:?} is not the name of a parameter"));
        }
        if value.chars().any(char::is_control) {
            return Err(format!("the value of {name} holds a control character"));
        }
        writeln!(text, "{name} = {}", quoted(value)).map_err(|error| error.to_string())
    };
    for (name, value) in DEFAULTS {
        set(&mut text, name, value)?;
    }
    let user_file = settings.config_dir.as_ref().unwrap_or(&paths.data).join("postgresql.conf");
    writeln!(text, "include_if_exists {}", quoted(&user_file.to_string_lossy()))
        .map_err(|e| e.to_string())?;
    for (name, value) in &settings.parameters {
        let name = name.to_ascii_lowercase();
        if !OURS.contains(&name.as_str()) && !CRITICAL.contains(&name.as_str()) {
            set(&mut text, &name, &at_least(&name, value))?;
        }
    }
    set(&mut text, "listen_addresses", &settings.listen_addresses)?;
    set(&mut text, "port", &settings.port.to_string())?;
    set(&mut text, "cluster_name", &settings.scope)?;
    set(&mut text, "hot_standby", "on")?;
    set(&mut text, "wal_log_hints", "on")?;
    // A backend's crash ends the server: whether it starts again, and where, is decided, not automatic.
    set(&mut text, "restart_after_crash", "off")?;
    set(&mut text, "recovery_target_timeline", "latest")?;
    set(&mut text, "unix_socket_directories", &socket_folders(paths, settings).join(", "))?;
    set(&mut text, "hba_file", &paths.hba().to_string_lossy())?;
    set(&mut text, "ident_file", &paths.ident().to_string_lossy())?;
    set(&mut text, "synchronous_standby_names", &role.sync)?;
    let (upstream, slot) = match &role.upstream {
        Some(upstream) => {
            let address = &upstream.address;
            (
                conninfo(paths, settings.name.as_str(), address, &settings.replication)?,
                settings.name.slot_name(),
            )
        }
        None => (String::new(), String::new()),
    };
    set(&mut text, "primary_slot_name", &slot)?;
    if !copies_slots(paths, settings) {
        set(&mut text, "primary_conninfo", &upstream)?;
        return Ok(text);
    }
    let upstream = if upstream.is_empty() { upstream } else { format!("{upstream} dbname=postgres") };
    set(&mut text, "primary_conninfo", &upstream)?;
    // Off with the receiver: a promotion would wait for a process that asks a leader that is gone.
    set(&mut text, "sync_replication_slots", if upstream.is_empty() { "off" } else { "on" })?;
    set(&mut text, "hot_standby_feedback", "on")?;
    // A consumer that had read what no later leader has would skip what that leader writes in its place.
    set(&mut text, "synchronized_standby_slots", &slots_of_sync_set(&role.sync))?;
    Ok(text)
}

/// Whether followers copy the leader's logical slots: the parameters for it exist from PostgreSQL 17 on.
fn copies_slots(paths: &Paths, settings: &PgSettings) -> bool {
    let version = || fs::read_to_string(paths.data.join("PG_VERSION")).ok()?.trim().parse::<u32>().ok();
    settings.synchronise_slots && version().is_some_and(|major| major >= 17)
}

/// The slots of the members that acknowledge commits, as a list.
fn slots_of_sync_set(sync: &str) -> String {
    match parse_sync(sync) {
        SyncNames::Set(set) => set.members.iter().map(NodeName::slot_name).collect::<Vec<_>>().join(", "),
        SyncNames::Nobody | SyncNames::Foreign(_) => String::new(),
    }
}

/// Raises the settings that replication needs to the least that serves it.
fn at_least(name: &str, value: &str) -> String {
    let few = |least: u32| value.trim().parse::<u32>().is_ok_and(|given| given < least);
    match name {
        "max_wal_senders" | "max_replication_slots" if few(10) => "10".to_owned(),
        "wal_level" if value.trim() != "logical" => "replica".to_owned(),
        _ => value.to_owned(),
    }
}

/// A value as the configuration file wants it.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

/// A value as libpq wants it in a connection string.
fn libpq_quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// Host and port of `host:port`; an IPv6 host may be in brackets.
pub(super) fn host_and_port(address: &str) -> Result<(&str, u16), String> {
    let wrong = || format!("{address:?} is not an address: expected host:port");
    let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() {
        return Err(wrong());
    }
    Ok((host, port.parse().map_err(|_| wrong())?))
}

/// What the tools call themselves. No member can have this name, so that the WAL that a base backup receives
/// is never taken for a member's acknowledgement.
pub(super) const TOOL_APPLICATION: &str = "antiphon tool";

/// A connection string without a password in it.
pub(super) fn conninfo(
    paths: &Paths,
    application: &str,
    address: &str,
    role: &Credentials,
) -> Result<String, String> {
    let (host, port) = host_and_port(address)?;
    let mut text = format!(
        "host={} port={port} user={} application_name={} passfile={} connect_timeout=2 keepalives_idle=5 \
         keepalives_interval=2 keepalives_count=3",
        libpq_quoted(host),
        libpq_quoted(&role.username),
        libpq_quoted(application),
        libpq_quoted(&paths.passwords().to_string_lossy()),
    );
    if !role.options.contains_key("sslmode") {
        text.push_str(" sslmode=prefer");
    }
    for (name, value) in &role.options {
        write!(text, " {name}={}", libpq_quoted(value)).map_err(|error| error.to_string())?;
    }
    Ok(text)
}

/// The password file: every role of ours, for every host.
fn passwords(settings: &PgSettings) -> String {
    let escaped = |text: &str| text.replace('\\', "\\\\").replace(':', "\\:");
    let mut text = String::new();
    for role in [Some(&settings.superuser), Some(&settings.replication), settings.rewind.as_ref()]
        .into_iter()
        .flatten()
    {
        if let Some(password) = &role.password {
            text.push_str(&format!("*:*:*:{}:{}\n", escaped(&role.username), escaped(password)));
        }
    }
    text
}

/// The access file: the user's lines, or ours followed by the data directory's.
fn access(paths: &Paths, settings: &PgSettings) -> String {
    let user = |role: &Credentials| format!("\"{}\"", role.username.replace('"', "\"\""));
    let method = if settings.superuser.password.is_some() { "scram-sha-256" } else { "peer" };
    let own = format!("local all {} {method}\n", user(&settings.superuser));
    if let Some(lines) = &settings.pg_hba {
        let head = if lines.iter().any(|line| admits_locally(line, &settings.superuser)) { "" } else { &own };
        return format!("{head}{}\n", lines.join("\n"));
    }
    let remote = |role: &Credentials| if role.password.is_some() { "scram-sha-256" } else { "trust" };
    let mut text = own;
    if settings.replication.password.is_some() {
        let (name, method) = (user(&settings.replication), remote(&settings.replication));
        text.push_str(&format!("local replication {name} {method}\nhost replication {name} all {method}\n"));
    }
    if settings.rewind_role().password.is_some() {
        let (name, method) = (user(settings.rewind_role()), remote(settings.rewind_role()));
        text.push_str(&format!("host postgres {name} all {method}\n"));
    }
    if settings.synchronise_slots && settings.replication.password.is_some() {
        let (name, method) = (user(&settings.replication), remote(&settings.replication));
        text.push_str(&format!("host postgres {name} all {method}\n"));
    }
    let folder = settings.config_dir.as_ref().unwrap_or(&paths.data);
    text.push_str(&fs::read_to_string(folder.join("pg_hba.conf")).unwrap_or_default());
    text
}

/// Whether a line of the access file speaks of the superuser's connections over the Unix socket.
fn admits_locally(line: &str, superuser: &Credentials) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    let names =
        |word: &str, name: &str| word.split(',').any(|item| item == "all" || item.trim_matches('"') == name);
    matches!(words.as_slice(), ["local", database, user, ..]
        if names(database, "postgres") && names(user, &superuser.username))
}

fn identities(paths: &Paths, settings: &PgSettings) -> String {
    let folder = settings.config_dir.as_ref().unwrap_or(&paths.data);
    settings.pg_ident.as_ref().map_or_else(
        || fs::read_to_string(folder.join("pg_ident.conf")).unwrap_or_default(),
        |lines| lines.join("\n") + "\n",
    )
}

/// Where the server puts its Unix sockets; the first is the one that the engine uses.
pub(super) fn socket_folders(paths: &Paths, settings: &PgSettings) -> Vec<String> {
    // A socket's path has at most 107 bytes, and the name of the lock file is the longest beside it.
    let fits = |folder: &Path| folder.as_os_str().len() + "/.s.PGSQL.65535".len() <= 107;
    let own = if fits(&paths.state) { paths.state.clone() } else { std::env::temp_dir() };
    let mut folders = vec![own.to_string_lossy().into_owned()];
    let configured = settings.socket_dir.as_ref().map(|folder| folder.to_string_lossy().into_owned());
    let listed = settings.parameters.get("unix_socket_directories").cloned().unwrap_or_default();
    let listed = listed.split(',').map(|folder| folder.trim().to_owned());
    for folder in configured.into_iter().chain(listed).filter(|folder| !folder.is_empty()) {
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    folders
}

/// `synchronous_standby_names` as text.
pub(super) fn sync_text(sync: &SyncNames) -> String {
    match sync {
        SyncNames::Nobody => String::new(),
        SyncNames::Set(set) => synchronous_standby_names(set),
        SyncNames::Foreign(text) => text.clone(),
    }
}

/// Reads `synchronous_standby_names` back; whatever is not exactly what we write is foreign.
pub(super) fn parse_sync(text: &str) -> SyncNames {
    if text.trim().is_empty() {
        return SyncNames::Nobody;
    }
    let parse = || -> Option<SyncSet> {
        let (head, list) = text.strip_suffix(')')?.split_once(" (")?;
        let (method, k) = head.split_once(' ')?;
        let method = match method {
            "ANY" => Method::Any,
            "FIRST" => Method::First,
            _ => return None,
        };
        let name = |item: &str| item.strip_prefix('"')?.strip_suffix('"')?.parse().ok();
        let members = list.split(", ").map(name).collect::<Option<Vec<NodeName>>>()?;
        Some(SyncSet { method, k: k.parse().ok()?, members })
    };
    match parse() {
        Some(set) if synchronous_standby_names(&set) == text => SyncNames::Set(set),
        Some(_) | None => SyncNames::Foreign(text.to_owned()),
    }
}

/// Takes the critical settings out of `postgresql.auto.conf`; returns those that were there. The server
/// must not run.
pub(super) fn clean_auto_conf(paths: &Paths) -> Result<Vec<String>, EngineError> {
    let file = paths.data.join("postgresql.auto.conf");
    let Ok(text) = fs::read_to_string(&file) else { return Ok(Vec::new()) };
    let (kept, removed) = without_critical(&text);
    if !removed.is_empty() {
        files::write_durably(&file, kept.as_bytes(), 0o600).map_err(|source| EngineError::Io {
            what: format!("take {} out of {}", removed.join(", "), file.display()),
            source,
        })?;
    }
    Ok(removed)
}

fn without_critical(text: &str) -> (String, Vec<String>) {
    let mut kept = String::new();
    let mut removed = Vec::new();
    for line in text.lines() {
        let name =
            line.trim_start().split(|c: char| c == '=' || c.is_whitespace()).next().unwrap_or_default();
        let name = name.to_ascii_lowercase();
        if CRITICAL.contains(&name.as_str()) {
            removed.push(name);
        } else {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    (kept, removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths() -> Paths {
        Paths { data: "/d".into(), state: "/o'dd \\path".into() }
    }

    fn settings() -> PgSettings {
        let name: NodeName = "n1".parse().expect("a name");
        PgSettings::new(
            name,
            "sc'ope",
            "/d",
            5432,
            Credentials::new("pg", "a"),
            Credentials::new("re p'l\\", "b:\\"),
        )
    }

    #[test]
    fn a_connection_string_is_quoted_by_both_rules_and_holds_no_password() {
        let upstream = Some(Following {
            name: "n2".parse().expect("a name"),
            epoch: Epoch(2),
            address: "[::1]:5433".into(),
        });
        let role = Role { format: 1, upstream, sync: String::new() };
        let text = render(&paths(), &settings(), &role).expect("a configuration");
        let line = text.lines().find(|line| line.starts_with("primary_conninfo")).expect("the line");
        assert!(line.contains(r"user=''re p\\''l\\\\''"), "{line}");
        assert!(line.contains(r"passfile=''/o\\''dd \\\\path/pgpass''"), "{line}");
        assert!(line.contains("host=''::1'' port=5433"), "{line}");
        assert!(line.contains("sslmode=prefer"), "{line}");
        assert!(!line.contains("b:"), "{line}");
        assert_eq!(passwords(&settings()), "*:*:*:pg:a\n*:*:*:re p'l\\\\:b\\:\\\\\n");
    }

    #[test]
    fn connection_options_reach_the_connection_string_quoted_and_once() {
        let mut role = Credentials::new("r", "p");
        for (name, value) in [("sslmode", "verify-full"), ("sslrootcert", "/c'a/root.crt")] {
            role.options.insert(name.to_owned(), value.to_owned());
        }
        let text = conninfo(&paths(), "n1", "h:1", &role).expect("a connection string");
        assert!(text.ends_with(r" sslmode='verify-full' sslrootcert='/c\'a/root.crt'"), "{text}");
        assert_eq!(text.matches("sslmode").count(), 1, "{text}");
    }

    #[test]
    fn a_parameter_cannot_break_out_of_its_line() {
        for (name, value) in [("work_mem", "1MB'\nport = 1"), ("work mem", "1"), ("a=b", "1"), ("", "1")] {
            let mut settings = settings();
            settings.parameters.insert(name.into(), value.into());
            assert!(render(&paths(), &settings, &Role::default()).is_err(), "{name:?} = {value:?} was taken");
        }
    }

    #[test]
    fn sync_names_read_back_as_they_were_written_and_others_are_foreign() {
        for text in ["ANY 1 (\"n1\", \"n-2\")", "FIRST 2 (\"a\", \"b\", \"c\")"] {
            let parsed = parse_sync(text);
            assert!(matches!(parsed, SyncNames::Set(_)), "{text}");
            assert_eq!(sync_text(&parsed), text);
        }
        assert_eq!(parse_sync(""), SyncNames::Nobody);
        for text in ["*", "n1", "ANY 1 (n1)", NOBODY_YET, "ANY 1 (\"a b\")"] {
            assert_eq!(parse_sync(text), SyncNames::Foreign(text.to_owned()));
        }
    }

    #[test]
    fn alter_system_of_a_critical_setting_is_taken_out_and_the_rest_stays() {
        let text = "# x\nwork_mem = '1MB'\nPrimary_ConnInfo = 'host=a'\nsynchronous_standby_names='*'\n";
        let (kept, removed) = without_critical(text);
        assert_eq!(kept, "# x\nwork_mem = '1MB'\n");
        assert_eq!(removed, ["primary_conninfo", "synchronous_standby_names"]);
    }

    #[test]
    fn the_agents_way_in_is_added_only_where_the_users_lines_lack_it() {
        let mut settings = settings();
        settings.pg_hba = Some(vec!["host all all all md5".into()]);
        assert!(access(&paths(), &settings).starts_with("local all \"pg\" scram-sha-256\n"));
        settings.pg_hba = Some(vec!["local all all peer".into()]);
        assert_eq!(access(&paths(), &settings), "local all all peer\n");
    }
}
