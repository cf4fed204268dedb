//! Where the cluster agrees, and how members of a cluster on etcd hear each other.

use super::address::{Address, Listen};
use super::model::{EtcdConfig, HeartbeatConfig, Login, RaftConfig, StoreConfig};
use super::resolve::reached_at;
use super::section::Section;
use super::tls;

const ETCD_PORT: u16 = 2379;

/// Exactly one of raft and etcd3.
pub(super) fn store(top: &Section<'_>) -> Option<StoreConfig> {
    let (raft, etcd) = (top.section("raft"), top.section("etcd3"));
    let old = "is etcd's v2 API, whose keys members on the v3 API do not see, so two clusters would form; move all members \
               to an etcd3 section";
    top.refused(&["etcd"], old);
    let old_api = top.get("etcd").is_some();
    match (raft, etcd) {
        (Some(_), Some(_)) => {
            top.problem(
                "etcd3",
                "stands besides raft; a cluster agrees in one place only, remove one of them",
            );
            None
        }
        (Some(section), None) => self::raft(&section).map(StoreConfig::Raft),
        (None, Some(section)) => self::etcd(&section).map(StoreConfig::Etcd),
        (None, None) => {
            let elsewhere =
                ["consul", "zookeeper", "exhibitor", "kubernetes"].into_iter().any(|name| top.has(name));
            if !old_api && !elsewhere {
                top.problem(
                    "raft",
                    "is missing: add a raft section (the members agree among themselves) or an etcd3 section",
                );
            }
            None
        }
    }
}

fn raft(section: &Section<'_>) -> Option<RaftConfig> {
    if section.get("self_addr").is_none() {
        section.problem(
            "self_addr",
            "is missing: say where other members reach this one, as self_addr: 10.0.0.1:2222",
        );
    }
    let self_addr = section.address("self_addr", None);
    let bind_addr = match section.get("bind_addr") {
        Some(_) => section.listen("bind_addr", None),
        None => self_addr.as_ref().map(Listen::from),
    };
    let partner_addrs = addresses(section, "partner_addrs", None)
        .into_iter()
        .filter(|partner| {
            let itself = Some(partner) == self_addr.as_ref();
            if itself {
                section.warning("partner_addrs", format!("{partner} is this member itself; it is left out"));
            }
            !itself
        })
        .collect::<Vec<_>>();
    if section.get("data_dir").is_none() {
        section.problem(
            "data_dir",
            "is missing: say where the members' log is kept, as data_dir: /var/lib/antiphon/raft",
        );
    }
    let data_dir = section.path("data_dir");
    let password = section.secret("password");
    let join = section.switch("join").unwrap_or(false);
    if join && partner_addrs.is_empty() {
        section.problem("join", "needs partner_addrs: name at least one member of the running cluster");
    }
    let members = partner_addrs.len() + 1;
    if members == 2 && !join {
        let text =
            "makes two voters, and neither can go on alone; add a witness (a node file without postgresql)";
        section.warning("partner_addrs", text);
    }
    if password.is_none() && !partner_addrs.is_empty() {
        section.warning("password", "is missing: anyone who reaches the port can take part");
    }
    let tls = tls::members(section);
    section.finish();
    Some(RaftConfig {
        self_addr: self_addr?,
        bind_addr: bind_addr?,
        partner_addrs,
        data_dir: data_dir?,
        password,
        join,
        tls,
    })
}

fn etcd(section: &Section<'_>) -> Option<EtcdConfig> {
    let given = ["host", "hosts", "url"].into_iter().filter(|name| section.get(name).is_some()).count();
    if given != 1 {
        section.problem(
            "hosts",
            format!(
                "{given} of host, hosts and url are given; give one, as hosts: 10.0.0.1:2379,10.0.0.2:2379"
            ),
        );
    }
    let mut endpoints = addresses(section, "hosts", Some(ETCD_PORT));
    if section.get("hosts").is_some() && section.texts("hosts", true).is_empty() {
        section.problem("hosts", "is empty; name at least one server");
    }
    endpoints.extend(section.address("host", Some(ETCD_PORT)));
    endpoints.extend(url(section));
    let protocol = section.choice("protocol", &[("http", false), ("https", true)]);
    let by_url = section.text("url").map(|url| url.starts_with("https://"));
    if let (Some(false), Some(true)) = (protocol, by_url) {
        section.problem("protocol", "is http and the url begins with https://; remove one of the two");
    }
    let tls = tls::etcd(section, protocol.or(by_url).unwrap_or(false));
    section.refused(
        &["proxy", "srv", "srv_suffix", "use_proxies"],
        "is not supported: name the servers in hosts",
    );
    let login = (section.get("username").is_some() || section.get("password").is_some())
        .then(|| credentials(section));
    section.finish();
    let login = match login {
        Some(login) => Some(login?),
        None => None,
    };
    (given == 1 && !endpoints.is_empty()).then_some(EtcdConfig { endpoints, login, tls })
}

fn credentials(section: &Section<'_>) -> Option<Login> {
    let username = section.required("username", "a password needs a user");
    let password = section.secret("password");
    if password.is_none() {
        section.problem("password", "is missing: a user needs a password");
    }
    Some(Login { username: username?, password: password? })
}

/// `http://host:port` or `https://host:port`. Its text is not repeated in errors: people put passwords into URLs.
fn url(section: &Section<'_>) -> Option<Address> {
    let text = section.text("url")?;
    let Some(rest) = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")) else {
        section.problem("url", "must begin with http:// or https://");
        return None;
    };
    if rest.contains('@') {
        section.problem("url", "has a user in it; write username and password as keys");
        return None;
    }
    match Address::parse(rest.trim_end_matches('/'), Some(ETCD_PORT)) {
        Ok(address) => Some(address),
        Err(wrong) => {
            section.problem("url", wrong);
            None
        }
    }
}

fn addresses(section: &Section<'_>, name: &str, default_port: Option<u16>) -> Vec<Address> {
    let mut addresses = Vec::new();
    for text in section.texts(name, true) {
        match Address::parse(&text, default_port) {
            Ok(address) if addresses.contains(&address) => {
                section.problem(name, format!("{address} is given twice"));
            }
            Ok(address) => addresses.push(address),
            Err(wrong) => section.problem(name, format!("{text:?} {wrong}")),
        }
    }
    addresses
}

/// Heartbeats of a cluster on etcd.
pub(super) fn heartbeat(top: &Section<'_>, on_etcd: bool) -> Option<HeartbeatConfig> {
    let Some(section) = top.section("heartbeat") else {
        if on_etcd {
            let text = "is missing: members cannot hear each other, so a failure shows only when the leader's lease \
                        runs out; add heartbeat: {listen: 'HOST:PORT'}";
            top.warning("heartbeat", text);
        }
        return None;
    };
    if top.get("raft").is_some() {
        top.problem(
            "heartbeat",
            "is for clusters on etcd: with raft, members hear each other on raft.self_addr; remove it",
        );
        return None;
    }
    if section.get("listen").is_none() {
        section.problem("listen", "is missing: say where heartbeats arrive, as listen: 10.0.0.1:2222");
    }
    let listen = section.listen("listen", None);
    let connect_address = match (section.get("connect_address"), &listen) {
        (Some(_), _) => section.address("connect_address", None),
        (None, Some(listen)) => reached_at(&section, Some(listen), listen.port),
        (None, None) => None,
    };
    let password = section.secret("password");
    let tls = tls::members(&section);
    section.finish();
    Some(HeartbeatConfig { listen: listen?, connect_address: connect_address?, password, tls })
}
