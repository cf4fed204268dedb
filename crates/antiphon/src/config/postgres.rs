//! The `postgresql` section: the local server.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use antiphon_core::settings::{
    Origin, check_parameter, gone_parameter, scalar_text, works_only_cluster_wide,
};

use super::address::{Address, Listen};
use super::bootstrap::options;
use super::model::{Account, CallbackEvent, PostgresConfig, ReplicaMethod};
use super::resolve::reached_at;
use super::section::Section;
use super::yaml::Content;

const PORT: u16 = 5432;

/// Longest name of a database user, in bytes.
const USER_BYTES_MAX: usize = 63;

/// Options of pg_basebackup that are the manager's own.
const BASEBACKUP_OWN: [&str; 13] = [
    "pgdata",
    "format",
    "wal-method",
    "xlog-method",
    "gzip",
    "compress",
    "version",
    "dbname",
    "host",
    "port",
    "username",
    "no-password",
    "password",
];

/// Connection options of an account.
pub(super) const ACCOUNT_OPTIONS: [&str; 9] = [
    "sslmode",
    "sslkey",
    "sslcert",
    "sslrootcert",
    "sslcrl",
    "sslcrldir",
    "sslnegotiation",
    "gssencmode",
    "channel_binding",
];

/// Those of them that are one of a few words.
const OPTION_WORDS: [(&str, &[&str]); 4] = [
    ("sslmode", &["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]),
    ("sslnegotiation", &["postgres", "direct"]),
    ("gssencmode", &["disable", "prefer", "require"]),
    ("channel_binding", &["disable", "prefer", "require"]),
];

const KEY_PASSWORD: &str = "is not supported: PostgreSQL would write it into its log with primary_conninfo; decrypt the \
                            key with `openssl pkey -in OLD -out NEW` and give the new file mode 0600";

/// Reads the section. What is missing or wrong has been noted, and an empty value stands in its place so that
/// the rest is read and complained about too; a file with a problem is never used.
pub(super) fn postgres(section: &Section<'_>) -> PostgresConfig {
    if section.get("listen").is_none() {
        section.problem(
            "listen",
            format!("is missing: say where the server listens, as listen: 10.0.0.1:{PORT}"),
        );
    }
    let listen = section.listen("listen", Some(PORT));
    let connect_address = reached_at(section, listen.as_ref(), PORT);
    if section.get("data_dir").is_none() {
        section.problem(
            "data_dir",
            "is missing: say where the server's data is, as data_dir: /var/lib/postgresql/data",
        );
    }
    let data_dir = section.path("data_dir");
    let state_dir = state_dir(section, data_dir.as_deref());
    let data_dir = data_dir.unwrap_or_default();
    let accounts = accounts(section);
    let (create_replica_methods, replica_methods) = replica_methods(section);
    let switch = |name| section.switch(name).unwrap_or(false);
    let config = PostgresConfig {
        listen: listen.unwrap_or(Listen { hosts: Vec::new(), port: 0 }),
        connect_address: connect_address.unwrap_or(Address { host: String::new(), port: 0 }),
        proxy_address: section.address("proxy_address", Some(PORT)),
        config_dir: section.path("config_dir").unwrap_or_else(|| data_dir.clone()),
        data_dir,
        bin_dir: section.path("bin_dir"),
        state_dir: state_dir.unwrap_or_default(),
        pgpass: section.path("pgpass"),
        custom_conf: section.path("custom_conf"),
        use_unix_socket: switch("use_unix_socket"),
        use_unix_socket_repl: switch("use_unix_socket_repl"),
        superuser: accounts.superuser,
        replication: accounts.replication,
        rewind: accounts.rewind,
        callbacks: callbacks(section),
        create_replica_methods,
        replica_methods,
        basebackup: options(section, "basebackup", &BASEBACKUP_OWN),
        parameters: parameters(section, "parameters"),
        recovery_conf: parameters(section, "recovery_conf"),
        pg_hba: section.texts("pg_hba", false),
        pg_ident: section.texts("pg_ident", false),
        pg_ctl_timeout: section.span("pg_ctl_timeout").unwrap_or(Duration::from_secs(60)),
        use_pg_rewind: section.switch("use_pg_rewind"),
        remove_data_directory_on_rewind_failure: switch("remove_data_directory_on_rewind_failure"),
        remove_data_directory_on_diverged_timelines: switch("remove_data_directory_on_diverged_timelines"),
        pre_promote: section.command("pre_promote"),
        before_stop: section.command("before_stop"),
        allow_dynamic_commands: switch("allow_dynamic_commands"),
    };
    section.refused(&["bin_name"], "is not supported: name the directory of the programs in bin_dir");
    section.refused(&["use_slots"], "counts for the whole cluster; set it with bootstrap.dcs or edit-config");
    section.finish();
    config
}

/// Antiphon's own directory: beside the data, never in it, since a clone replaces the data directory whole.
fn state_dir(section: &Section<'_>, data_dir: Option<&Path>) -> Option<PathBuf> {
    let state_dir = match section.get("state_dir") {
        Some(_) => section.path("state_dir")?,
        None => {
            let mut beside = data_dir?.as_os_str().to_owned();
            beside.push(".antiphon");
            PathBuf::from(beside)
        }
    };
    if data_dir.is_some_and(|data_dir| state_dir.starts_with(data_dir) || data_dir.starts_with(&state_dir)) {
        section.problem(
            "state_dir",
            "and data_dir must not contain each other: a clone replaces data_dir whole",
        );
        return None;
    }
    Some(state_dir)
}

struct Accounts {
    superuser: Account,
    replication: Account,
    rewind: Option<Account>,
}

fn accounts(section: &Section<'_>) -> Accounts {
    let nobody = || Account { username: String::new(), password: None, options: BTreeMap::new() };
    let Some(authentication) = section.section("authentication") else {
        section.problem(
            "authentication",
            "is missing: add superuser and replication, each with username and password",
        );
        return Accounts { superuser: nobody(), replication: nobody(), rewind: None };
    };
    let read = |name: &str| authentication.section(name).as_ref().map(account);
    let needed = |name: &str| {
        read(name).unwrap_or_else(|| {
            authentication.problem(name, "is missing: add its username and password");
            nobody()
        })
    };
    let accounts = Accounts {
        superuser: needed("superuser"),
        replication: needed("replication"),
        rewind: read("rewind"),
    };
    let (superuser, replication) =
        (("superuser", &accounts.superuser), ("replication", &accounts.replication));
    let mut pairs = vec![(superuser, replication)];
    if let Some(rewind) = &accounts.rewind {
        pairs.extend([(superuser, ("rewind", rewind)), (replication, ("rewind", rewind))]);
    }
    for ((first, one), (name, other)) in pairs {
        if one.username == other.username && one.password != other.password && !one.username.is_empty() {
            authentication
                .problem(name, format!("has the user of {first} and another password; a user has one"));
        }
    }
    authentication.finish();
    accounts
}

fn account(section: &Section<'_>) -> Account {
    let username = section.required("username", "say who to connect as").unwrap_or_default();
    if username.len() > USER_BYTES_MAX {
        section.problem(
            "username",
            format!("is longer than {USER_BYTES_MAX} bytes, which PostgreSQL would cut off"),
        );
    }
    let mut given = BTreeMap::new();
    for option in ACCOUNT_OPTIONS {
        given.extend(connection_option(section, option).map(|value| (option.to_owned(), value)));
    }
    let verifies = given.get("sslmode").is_some_and(|mode| mode.starts_with("verify-"));
    if verifies && section.get("sslrootcert").is_none() {
        section.problem(
            "sslrootcert",
            "is missing: sslmode is to verify the server; name the file of the authority, or system (PostgreSQL 16 and newer)",
        );
    }
    section.refused(&["sslpassword"], KEY_PASSWORD);
    let password = section.secret("password");
    section.finish();
    Account { username, password, options: given }
}

/// A connection option as libpq wants it. Files have whole paths: the server and its tools work in other places.
fn connection_option(section: &Section<'_>, option: &str) -> Option<String> {
    if let Some((_, words)) = OPTION_WORDS.iter().find(|(name, _)| *name == option) {
        let choices: Vec<(&str, &str)> = words.iter().map(|word| (*word, *word)).collect();
        return section.choice(option, &choices).map(str::to_owned);
    }
    if option == "sslrootcert" && section.text(option).as_deref() == Some("system") {
        return Some("system".to_owned());
    }
    section.path(option).map(|path| path.to_string_lossy().into_owned())
}

fn callbacks(section: &Section<'_>) -> BTreeMap<CallbackEvent, String> {
    let Some(callbacks) = section.section("callbacks") else { return BTreeMap::new() };
    let events = [
        ("on_reload", CallbackEvent::Reload),
        ("on_restart", CallbackEvent::Restart),
        ("on_role_change", CallbackEvent::RoleChange),
        ("on_start", CallbackEvent::Start),
        ("on_stop", CallbackEvent::Stop),
    ];
    let given = events.iter().filter_map(|(name, event)| Some((*event, callbacks.command(name)?))).collect();
    callbacks.finish();
    given
}

/// The methods in order, and the definitions of those that are not built in.
fn replica_methods(section: &Section<'_>) -> (Vec<String>, BTreeMap<String, ReplicaMethod>) {
    let mut names = section.texts("create_replica_methods", false);
    names.extend(section.texts("create_replica_method", false));
    if names.is_empty() {
        names.push("basebackup".to_owned());
    }
    let mut methods = BTreeMap::new();
    for name in names.iter().filter(|name| *name != "basebackup") {
        let Some(method) = section.section(name) else {
            section.problem(
                "create_replica_methods",
                format!("names {name:?}, which has no section; add {name}: {{command: ...}}"),
            );
            continue;
        };
        if method.get("command").is_none() {
            method.problem("command", "is missing: say what makes the replica");
        }
        let command = method.command("command");
        let switch = |key| method.switch(key).unwrap_or(false);
        let (no_leader, keep_data, no_params) =
            (switch("no_leader") || switch("no_master"), switch("keep_data"), switch("no_params"));
        let own = method.rest();
        let options =
            own.iter().filter_map(|entry| Some((entry.key.clone(), method.text(&entry.key)?))).collect();
        methods.extend(command.map(|command| {
            (name.clone(), ReplicaMethod { command, no_leader, keep_data, no_params, options })
        }));
    }
    (names, methods)
}

fn parameters(section: &Section<'_>, name: &str) -> BTreeMap<String, String> {
    let Some(node) = section.get(name) else { return BTreeMap::new() };
    let Content::Map(entries) = &node.content else {
        section.problem(name, "must be a map of parameters");
        return BTreeMap::new();
    };
    let mut parameters = BTreeMap::new();
    for entry in entries.iter().filter(|entry| !matches!(entry.node.content, Content::Null)) {
        let path = format!("{}.{}", section.path_of(name), entry.key);
        let wrong = |text: String| section.findings().problem(&entry.place, &path, text);
        if let Some(instead) = gone_parameter(&entry.key) {
            let text = format!("has no effect: PostgreSQL has it no more; {instead}");
            section.findings().warning(&entry.place, &path, text);
            continue;
        }
        let Some(text) = scalar_text(&entry.node.to_json()) else {
            wrong("must be a number, a switch or a text of one line".to_owned());
            continue;
        };
        match check_parameter(&entry.key, &text, Origin::NodeFile) {
            Err(reason) => wrong(reason),
            Ok(()) if works_only_cluster_wide(&entry.key) => {
                let text = "has no effect here: it must be equal on all members; set it with bootstrap.dcs or edit-config";
                section.findings().warning(&entry.place, &path, text);
            }
            Ok(()) => drop(parameters.insert(entry.key.to_ascii_lowercase(), text)),
        }
    }
    parameters
}
