//! The top of the node file and its small sections: who this is, log, API, watchdog, tags.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use antiphon_core::NodeName;
use serde_json::Value;

use super::address::{Address, Listen};
use super::model::{
    ApiConfig, BootstrapConfig, CtlConfig, LogConfig, LogFormat, LogLevel, Login, NodeConfig, StoreConfig,
    Tags, WatchdogConfig, WatchdogMode,
};
use super::problem::Findings;
use super::section::Section;
use super::yaml::{Content, Node};
use super::{bootstrap, postgres, store, tls};

const API_PORT: u16 = 8008;
const OTHER_STORE: &str = "is not supported: antiphon agrees through its own raft or through etcd3; a member that \
                           looked elsewhere would form a second cluster. Use a raft or etcd3 section";

/// Reads all sections. None only if a problem has been noted.
pub(super) fn resolve(root: &Node, findings: &Findings) -> Option<NodeConfig> {
    let top = Section::of(root, String::new(), findings);
    let scope =
        top.required("scope", "name the cluster, as scope: main").filter(|scope| check_scope(&top, scope));
    let namespace = namespace(&top);
    let name = name(&top);
    let log = log(&top);
    let restapi_section = top.section("restapi");
    let restapi = restapi_section.as_ref().map(api);
    if restapi.is_none() {
        top.problem(
            "restapi",
            "is missing: members and the command line talk to it; add restapi: {listen: 'HOST:8008'}",
        );
    }
    let ctl = ctl(top.section("ctl").as_ref(), restapi_section.as_ref());
    let store = store::store(&top);
    let heartbeat = store::heartbeat(&top, matches!(store, Some(StoreConfig::Etcd(_))));
    let postgresql = top.section("postgresql").as_ref().map(postgres::postgres);
    if postgresql.is_none() && top.has("postgresql") {
        top.problem(
            "postgresql",
            "is empty; give it listen, data_dir and authentication, or remove it for a witness",
        );
    }
    let opted_in = postgresql.as_ref().is_some_and(|config| config.allow_dynamic_commands);
    let bootstrap = match top.section("bootstrap") {
        Some(section) => bootstrap::bootstrap(&section, opted_in),
        None => Some(BootstrapConfig {
            dcs: Value::Object(Default::default()),
            initdb: Vec::new(),
            post_bootstrap: None,
        }),
    };
    let watchdog = watchdog(top.section("watchdog"));
    let tags = tags(top.section("tags"));
    top.without_effect(&["thread_pool_size", "thread_stack_size"], "threads are sized by the machine");
    top.refused(&["consul", "zookeeper", "exhibitor", "kubernetes"], OTHER_STORE);
    top.refused(
        &["citus"],
        "is not supported: workers of a sharded database need Patroni's Citus support; keep Patroni for them",
    );
    top.refused(&["standby_cluster"], "is not supported yet, and belongs under bootstrap.dcs; remove it");
    // Read by itself.
    top.has("router");
    top.has("mesh");
    top.finish();
    let config = NodeConfig {
        scope: scope?,
        namespace: namespace?,
        name: name?,
        log,
        restapi: restapi??,
        ctl,
        store: store?,
        heartbeat,
        bootstrap: bootstrap?,
        postgresql,
        watchdog,
        tags,
        warnings: Vec::new(),
    };
    one_port_each(&config, &top);
    one_directory_each(&config, &top);
    findings.is_sound().then_some(config)
}

/// A name that reaches keys of the store, file names and `cluster_name`.
fn check_scope(top: &Section<'_>, scope: &str) -> bool {
    let sound = is_key_part(scope);
    if !sound {
        top.problem("scope", format!("{scope:?} is not a cluster name: use 1 to 63 letters, digits, '_', '-', '.' or ':', and no '..'"));
    }
    sound
}

fn is_key_part(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b':');
    (1..=63).contains(&text.len()) && text.bytes().all(allowed) && !text.contains("..") && text != "."
}

fn namespace(top: &Section<'_>) -> Option<String> {
    let Some(text) = top.text("namespace") else {
        return (!top.has("namespace")).then(|| "/service".to_owned());
    };
    let parts = text.trim_matches('/');
    if !parts.split('/').all(is_key_part) {
        top.problem(
            "namespace",
            format!("{text:?} is not a place in the store: use a path of letters and digits like /service"),
        );
        return None;
    }
    Some(format!("/{parts}"))
}

fn name(top: &Section<'_>) -> Option<NodeName> {
    let text = top.required("name", "name this member, as name: n1")?;
    match text.parse() {
        Ok(name) => Some(name),
        Err(error) => {
            top.problem("name", format!("{error}"));
            None
        }
    }
}

pub(super) fn log(top: &Section<'_>) -> LogConfig {
    let mut config = LogConfig { level: LogLevel::Info, format: LogFormat::Plain };
    let Some(section) = top.section("log") else { return config };
    let levels = [
        ("error", LogLevel::Error),
        ("critical", LogLevel::Error),
        ("fatal", LogLevel::Error),
        ("warning", LogLevel::Warn),
        ("warn", LogLevel::Warn),
        ("info", LogLevel::Info),
        ("debug", LogLevel::Debug),
        ("trace", LogLevel::Trace),
    ];
    let formats = [("plain", LogFormat::Plain), ("json", LogFormat::Json)];
    config.level = section.choice("level", &levels).unwrap_or(config.level);
    config.format = section.choice("type", &formats).unwrap_or(config.format);
    // Patroni's `format` is a pattern of Python's logging; ours is the word that `type` takes too.
    match section.get("format").map(|node| &node.content) {
        Some(Content::Scalar { text, .. }) if !text.contains('%') => {
            config.format = section.choice("format", &formats).unwrap_or(config.format);
        }
        Some(_) => section.warning(
            "format",
            "has no effect: patterns of Python's logging mean nothing here; use plain or json",
        ),
        None => {}
    }
    let files = ["dir", "mode", "file_num", "file_size"];
    section.without_effect(&files, "the log goes to standard error; let systemd or the container keep it");
    let python = [
        "traceback_level",
        "dateformat",
        "max_queue_size",
        "loggers",
        "static_fields",
        "deduplicate_heartbeat_logs",
    ];
    section.without_effect(&python, "it belongs to Python's logging");
    section.finish();
    config
}

fn api(section: &Section<'_>) -> Option<ApiConfig> {
    if section.get("listen").is_none() {
        section.problem(
            "listen",
            format!("is missing: say where the API listens, as listen: 10.0.0.1:{API_PORT}"),
        );
    }
    let listen = section.listen("listen", Some(API_PORT));
    let connect_address = reached_at(section, listen.as_ref(), API_PORT);
    let authentication = login(section.section("authentication"));
    let allowlist = section.texts("allowlist", true);
    for entry in allowlist.iter().filter(|entry| !is_host_or_network(entry)) {
        section.problem(
            "allowlist",
            format!("{entry:?} is not an address, a network like 10.0.0.0/8 or a host name"),
        );
    }
    let allowlist_include_members = section.switch("allowlist_include_members").unwrap_or(false);
    let tls = tls::api(section);
    section.without_effect(
        &["http_extra_headers", "https_extra_headers", "server_tokens"],
        "headers cannot be changed",
    );
    section.without_effect(
        &["request_queue_size", "thread_pool_size"],
        "requests are served without threads of their own",
    );
    section.finish();
    Some(ApiConfig {
        listen: listen?,
        connect_address: connect_address?,
        authentication,
        allowlist,
        allowlist_include_members,
        tls,
    })
}

/// `connect_address`, or the address of `listen` if that names one host.
pub(super) fn reached_at(
    section: &Section<'_>,
    listen: Option<&Listen>,
    default_port: u16,
) -> Option<Address> {
    if section.get("connect_address").is_some() {
        return section.address("connect_address", Some(default_port));
    }
    let address = listen?.address();
    if address.is_none() {
        section.problem(
            "connect_address",
            "is missing: listen names every address of this host, so say which one others connect to",
        );
    }
    address
}

/// A user with a password, both or none.
pub(super) fn login(section: Option<Section<'_>>) -> Option<Login> {
    let section = section?;
    let (username, password) =
        (section.required("username", "a password needs a user"), section.secret("password"));
    if password.is_none() {
        section.problem("password", "is missing: a user needs a password");
    }
    section.finish();
    Some(Login { username: username?, password: password? })
}

fn ctl(section: Option<&Section<'_>>, restapi: Option<&Section<'_>>) -> CtlConfig {
    let authentication = section.and_then(|section| login(section.section("authentication")));
    let tls = tls::ctl(section, restapi);
    if let Some(section) = section {
        section.finish();
    }
    CtlConfig { authentication, tls }
}

fn is_host_or_network(text: &str) -> bool {
    match text.split_once('/') {
        Some((ip, bits)) => match (ip.parse::<std::net::IpAddr>(), bits.parse::<u8>()) {
            (Ok(ip), Ok(bits)) => bits <= if ip.is_ipv4() { 32 } else { 128 },
            _ => false,
        },
        None => {
            text.parse::<std::net::IpAddr>().is_ok()
                || Address::parse(text, Some(1)).is_ok() && !text.contains(':')
        }
    }
}

fn watchdog(section: Option<Section<'_>>) -> WatchdogConfig {
    let mut config = WatchdogConfig {
        mode: WatchdogMode::Automatic,
        device: PathBuf::from("/dev/watchdog"),
        safety_margin: Some(Duration::from_secs(5)),
    };
    let Some(section) = section else { return config };
    let modes = [
        ("off", WatchdogMode::Off),
        ("false", WatchdogMode::Off),
        ("automatic", WatchdogMode::Automatic),
        ("required", WatchdogMode::Required),
    ];
    config.mode = section.choice("mode", &modes).unwrap_or(config.mode);
    config.device = section.path("device").unwrap_or(config.device);
    if section.text("safety_margin").as_deref() == Some("-1") {
        config.safety_margin = None;
    } else if let Some(margin) = section.span("safety_margin") {
        config.safety_margin = Some(margin);
    }
    section.without_effect(&["driver"], "the device speaks for itself");
    section.finish();
    config
}

fn tags(section: Option<Section<'_>>) -> Tags {
    let mut tags = Tags {
        nofailover: false,
        failover_priority: 1,
        noloadbalance: false,
        clonefrom: false,
        replicatefrom: None,
        nosync: false,
        sync_priority: 1,
        nostream: false,
        custom: BTreeMap::new(),
    };
    let Some(section) = section else { return tags };
    let nofailover = section.switch("nofailover");
    let nosync = section.switch("nosync");
    tags.noloadbalance = section.switch("noloadbalance").unwrap_or(false);
    tags.clonefrom = section.switch("clonefrom").unwrap_or(false);
    tags.nostream = section.switch("nostream").unwrap_or(false);
    tags.replicatefrom =
        section.parsed("replicatefrom", |text| text.parse().map_err(|_| "is not a member name".to_owned()));
    (tags.nofailover, tags.failover_priority) =
        weight(&section, "nofailover", nofailover, "failover_priority");
    (tags.nosync, tags.sync_priority) = weight(&section, "nosync", nosync, "sync_priority");
    for entry in section.rest() {
        match entry.node.content {
            Content::Scalar { .. } => drop(tags.custom.insert(entry.key.clone(), entry.node.to_json())),
            Content::Null => {}
            Content::List(_) | Content::Map(_) => {
                section.problem(&entry.key, "must be a single text, number or switch");
            }
        }
    }
    tags
}

/// A tag that excludes and the priority that weighs: priority 0 excludes too, and excluding wins.
fn weight(section: &Section<'_>, excludes: &str, given: Option<bool>, weighs: &str) -> (bool, u32) {
    let priority = section.count(weighs, 0, 1_000_000);
    match (given, priority) {
        (Some(true), Some(1..)) => section.warning(weighs, format!("has no effect: {excludes} is set")),
        (Some(false), Some(0)) => section
            .warning(weighs, format!("is 0, which means {excludes}: true, but {excludes} is false and wins")),
        _ => {}
    }
    let excluded = given.unwrap_or(priority == Some(0));
    (excluded, if excluded { 0 } else { priority.unwrap_or(1).max(1) })
}

/// No two services of a node on one port.
fn one_port_each(config: &NodeConfig, top: &Section<'_>) {
    let mut taken: Vec<(&str, Listen)> = vec![("restapi", config.restapi.listen.clone())];
    let mut services: Vec<(&str, Listen)> = Vec::new();
    if let Some(server) = &config.postgresql {
        services.push(("postgresql", server.listen.clone()));
    }
    if let StoreConfig::Raft(raft) = &config.store {
        services.push(("raft", raft.bind_addr.clone()));
    }
    if let Some(heartbeat) = &config.heartbeat {
        services.push(("heartbeat", heartbeat.listen.clone()));
    }
    for (name, listen) in services {
        if let Some((other, _)) = taken.iter().find(|(_, other)| other.collides(&listen)) {
            top.problem(
                name,
                format!("listens on {listen}, which {other} does too; give each a port of its own"),
            );
        }
        taken.push((name, listen));
    }
}

/// The store's log survives a clone of the database only outside of its directory.
fn one_directory_each(config: &NodeConfig, top: &Section<'_>) {
    let (StoreConfig::Raft(raft), Some(server)) = (&config.store, &config.postgresql) else { return };
    if raft.data_dir.starts_with(&server.data_dir) || server.data_dir.starts_with(&raft.data_dir) {
        top.problem(
            "raft",
            "data_dir and that of postgresql must not contain each other: a clone replaces the latter whole",
        );
    }
}
