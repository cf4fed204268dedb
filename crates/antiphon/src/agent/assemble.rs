//! Assemble: an agent from its node file: links, store, engine, API, all started in the order they need.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::ha::cluster::{FORMAT, Member, Tags};
use antiphon_core::settings::Settings;
use antiphon_engine::{Credentials, Engine, PgSettings, Postgres, ReplicaCommand, ReplicaMethod};
use antiphon_peer::{Inboxes, PeerSettings, Peers};
use antiphon_store::Store;
use anyhow::Context;

use antiphon_store::{EtcdSettings, EtcdStore, RaftSettings, RaftStore, RaftTimings};
use tokio::sync::{mpsc, watch};

use super::act::Hands;
use super::beats::Beats;
use super::certificates::Certificates;
use super::clock;
use super::command::{COMMANDS_MAX, Command};
use super::guard::Guard;
use super::journal::Journal;
use super::kept::KeptDirectories;
use super::observe::{Firsts, Own};
use super::records::Records;
use super::routers::Routers;
use super::run::Agent;
use super::settings::{SettingsInForce, change};
use super::upkeep::Upkeep;
use super::view::View;
use crate::config::{
    Account, Address, CallbackEvent, Listen, NodeConfig, PostgresConfig, Secret, StoreConfig,
};

/// How long a call of etcd may take.
const STORE_CALL_LIMIT: Duration = Duration::from_secs(2);

/// An agent that is ready to run, and what the API needs of it.
pub struct Assembled {
    /// The agent.
    pub agent: Agent,
    /// Where it shows itself; none before its first turn.
    pub view: watch::Receiver<Option<Arc<View>>>,
    /// Where it takes commands.
    pub commands: mpsc::Sender<Command>,
    /// The routers that follow it.
    pub routers: Arc<Routers>,
    /// The store, for what concerns the whole cluster.
    pub store: Arc<dyn Store>,
    /// The server's hands, to stop it at the end; none on a witness.
    pub engine: Option<Arc<dyn Engine>>,
    /// What the API speaks TLS with, and everything else.
    pub certificates: Certificates,
}

/// Puts an agent together and connects it.
///
/// # Errors
/// What cannot be had (a port, a directory, a program), and what to do about it.
pub async fn assemble(file: &Path, config: &NodeConfig) -> anyhow::Result<Assembled> {
    let certificates = Certificates::load(config)?;
    tokio::spawn(certificates.clone().watch_dates());
    let (peer_address, peers, inboxes, first_peers) = links(config, &certificates)?;
    let Inboxes { raft: raft_inbox, beats: beats_inbox } = inboxes;
    let beats = Beats::start(&peers, beats_inbox);
    let (store, raft): (Arc<dyn Store>, Option<RaftStore>) = match &config.store {
        StoreConfig::Raft(raft) => {
            let mut members: Vec<String> = first_peers.iter().cloned().collect();
            members.push(peer_address.clone());
            members.sort();
            members.dedup();
            let settings = RaftSettings {
                data_dir: raft.data_dir.clone(),
                peers: peers.clone(),
                inbox: raft_inbox,
                address: peer_address.clone(),
                members,
                join: raft.join,
                timings: RaftTimings::default(),
            };
            let store = RaftStore::start(settings).context("could not start the embedded store")?;
            (Arc::new(store.clone()), Some(store))
        }
        StoreConfig::Etcd(etcd) => {
            let scheme = if certificates.etcd.is_some() { "https" } else { "http" };
            let settings = EtcdSettings {
                endpoints: etcd.endpoints.iter().map(|endpoint| format!("{scheme}://{endpoint}")).collect(),
                tls: certificates.etcd.clone(),
                namespace: config.namespace.trim_start_matches('/').to_owned(),
                scope: config.scope.clone(),
                user: etcd.login.as_ref().map(|l| (l.username.clone(), l.password.expose().to_owned())),
                call_limit: STORE_CALL_LIMIT,
            };
            let store = EtcdStore::start(&settings).context("could not use etcd")?;
            (Arc::new(store), None)
        }
    };
    let engine = match &config.postgresql {
        Some(pg) => Some(engine(config, pg)?),
        None => None,
    };
    let (renewals_in, renewals) = mpsc::channel(4);
    let (commands_in, commands) = mpsc::channel(COMMANDS_MAX);
    let (view_in, view) = watch::channel(None);
    let state_dir = config.postgresql.as_ref().map_or_else(|| witness_dir(config), |pg| pg.state_dir.clone());
    let directories = config.postgresql.as_ref().map(|pg| (pg.data_dir.clone(), pg.state_dir.clone()));
    let described = describe(config, &peer_address);
    let kept = KeptDirectories::new(directories.clone());
    let replace = config.postgresql.as_ref().is_some_and(|pg| {
        pg.remove_data_directory_on_diverged_timelines || pg.remove_data_directory_on_rewind_failure
    });
    let routers = Arc::new(Routers::default());
    let joins = matches!(&config.store, StoreConfig::Raft(raft) if raft.join);
    let agent = Agent {
        scope: config.scope.clone(),
        own: Own {
            described,
            started: clock::now(),
            lease_until: None,
            may_bootstrap: !joins,
            may_reinitialise: replace,
            reinitialise_requested: None,
            restart_requested: false,
        },
        hands: Hands {
            store: store.clone(),
            engine: engine.clone(),
            name: config.name.clone(),
            renewals: renewals_in,
            renewing: false,
            after_stop: None,
            first_config: config.bootstrap.dcs.to_string(),
        },
        store: store.clone(),
        settings: SettingsInForce::new(file.to_owned(), config, engine.clone(), certificates.clone()),
        engine: engine.clone(),
        peers,
        beats,
        routers: routers.clone(),
        renewals,
        commands,
        view: view_in,
        upkeep: Upkeep::new(store.clone(), raft, config.name.clone(), first_peers),
        journal: Journal::new(state_dir.join("journal.jsonl")),
        guard: Guard::new(directories),
        kept,
        firsts: Firsts::default(),
        records: Arc::new(Records::default()),
        store_seen: 0,
        restarting: None,
    };
    Ok(Assembled { agent, view, commands: commands_in, routers, store, engine, certificates })
}

/// The links to the other members: this member's address on them, and theirs as far as the file knows.
fn links(
    config: &NodeConfig,
    certificates: &Certificates,
) -> anyhow::Result<(String, Peers, Inboxes, BTreeSet<String>)> {
    let (address, listen, password, partners): (&Address, &Listen, &Option<Secret>, &[Address]) = match (
        &config.store,
        &config.heartbeat,
    ) {
        (StoreConfig::Raft(raft), _) => {
            (&raft.self_addr, &raft.bind_addr, &raft.password, &raft.partner_addrs)
        }
        (StoreConfig::Etcd(_), Some(beat)) => (&beat.connect_address, &beat.listen, &beat.password, &[]),
        (StoreConfig::Etcd(_), None) => anyhow::bail!(
            "a cluster on etcd needs a `heartbeat` section (listen, connect_address, password): members hear each \
                 other directly"
        ),
    };
    let settings = PeerSettings {
        cluster: config.scope.clone(),
        node: config.name.to_string(),
        address: address.to_string(),
        listen: listen_text(listen),
        secret: password.as_ref().map(|secret| secret.expose().to_owned()).unwrap_or_default(),
        tls: certificates.links.clone(),
    };
    let partners: BTreeSet<String> = partners.iter().map(ToString::to_string).collect();
    let (peers, inboxes) = Peers::start(settings, partners.iter().cloned().collect())
        .with_context(|| format!("could not listen for the other members at {}", listen_text(listen)))?;
    Ok((address.to_string(), peers, inboxes, partners))
}

/// `host:port` of the first host; all hosts for `*`.
pub fn listen_text(listen: &Listen) -> String {
    let host = listen.hosts.first().map_or("*", String::as_str);
    let host = if host == "*" { "0.0.0.0" } else { host };
    Address { host: host.to_owned(), port: listen.port }.to_string()
}

/// What a file says of a member that can change while its agent runs: its tags, and whether it replays late.
pub(super) fn traits(config: &NodeConfig) -> (Tags, bool) {
    let tags = &config.tags;
    let tags = Tags {
        nofailover: tags.nofailover,
        failover_priority: (tags.failover_priority != 1).then_some(tags.failover_priority),
        noloadbalance: tags.noloadbalance,
        clonefrom: tags.clonefrom,
        replicatefrom: tags.replicatefrom.clone(),
        nosync: tags.nosync || tags.sync_priority == 0,
        custom: tags.custom.clone(),
    };
    // The file's own alone: what all members do makes none of them another.
    let delays = config.postgresql.iter().flat_map(|pg| pg.parameters.iter().chain(&pg.recovery_conf));
    let delayed = delays
        .filter(|(name, _)| name.eq_ignore_ascii_case("recovery_min_apply_delay"))
        .any(|(_, span)| span.contains(|digit: char| matches!(digit, '1'..='9')));
    (tags, delayed)
}

fn describe(config: &NodeConfig, peer_address: &str) -> Member {
    let (tags, delayed) = traits(config);
    let scheme = if config.restapi.tls.is_some() { "https" } else { "http" };
    Member {
        format: FORMAT,
        name: config.name.clone(),
        peer_address: peer_address.to_owned(),
        server_address: config.postgresql.as_ref().map(|pg| pg.connect_address.to_string()),
        api_url: format!("{scheme}://{}/patroni", config.restapi.connect_address),
        tags,
        delayed,
        fence: None,
        release: None,
        serving: None,
        slots: BTreeSet::new(),
    }
}

fn witness_dir(config: &NodeConfig) -> PathBuf {
    match &config.store {
        StoreConfig::Raft(raft) => raft.data_dir.clone(),
        StoreConfig::Etcd(_) => PathBuf::from("."),
    }
}

fn engine(config: &NodeConfig, pg: &PostgresConfig) -> anyhow::Result<Arc<dyn Engine>> {
    let credentials = |account: &Account| Credentials {
        username: account.username.clone(),
        password: account.password.as_ref().map(|password| password.expose().to_owned()),
        options: account.options.clone(),
    };
    let flag = |options: &[(String, Option<String>)]| -> Vec<String> {
        options
            .iter()
            .map(|(name, value)| match value {
                Some(value) => format!("--{name}={value}"),
                None => format!("--{name}"),
            })
            .collect()
    };
    let mut settings = PgSettings::new(
        config.name.clone(),
        &config.scope,
        pg.data_dir.clone(),
        pg.listen.port,
        credentials(&pg.superuser),
        credentials(&pg.replication),
    );
    let cluster_wide = Settings::resolve(&config.bootstrap.dcs).unwrap_or_default();
    let first = change(pg, &cluster_wide);
    settings.config_dir = (pg.config_dir != pg.data_dir).then(|| pg.config_dir.clone());
    settings.bin_dir = pg.bin_dir.clone();
    settings.state_dir = pg.state_dir.clone();
    settings.listen_addresses = pg.listen.hosts.join(",");
    settings.rewind = pg.rewind.as_ref().map(credentials);
    settings.parameters = first.parameters;
    settings.synchronise_slots = first.synchronise_slots;
    settings.pg_hba = first.access;
    settings.pg_ident = first.identities;
    settings.initdb = flag(&config.bootstrap.initdb);
    settings.basebackup = flag(&pg.basebackup);
    settings.replica_methods = replica_methods(pg);
    settings.start_timeout = pg.pg_ctl_timeout;
    settings.post_bootstrap = config.bootstrap.post_bootstrap.clone();
    settings.pre_promote = pg.pre_promote.clone();
    settings.before_stop = pg.before_stop.clone();
    for (event, command) in &pg.callbacks {
        let slot = match event {
            CallbackEvent::Reload => &mut settings.callbacks.on_reload,
            CallbackEvent::Restart => &mut settings.callbacks.on_restart,
            CallbackEvent::RoleChange => &mut settings.callbacks.on_role_change,
            CallbackEvent::Start => &mut settings.callbacks.on_start,
            CallbackEvent::Stop => &mut settings.callbacks.on_stop,
        };
        *slot = Some(command.clone());
    }
    let data_dir = pg.data_dir.display().to_string();
    let server =
        Postgres::open(settings).with_context(|| format!("could not look after the server in {data_dir}"))?;
    Ok(Arc::new(server))
}

fn replica_methods(pg: &PostgresConfig) -> Vec<ReplicaMethod> {
    let of = |name: &String| match pg.replica_methods.get(name) {
        None => ReplicaMethod::BaseBackup,
        Some(method) => ReplicaMethod::Command(ReplicaCommand {
            name: name.clone(),
            command: method.command.clone(),
            keep_data: method.keep_data,
            no_params: method.no_params,
            options: method.options.clone(),
        }),
    };
    pg.create_replica_methods.iter().map(of).collect()
}
