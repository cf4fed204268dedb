//! Running the router: beside a member, or alone when its file has nothing else.
//!
//! Alone it is a plain process: it keeps nothing on disk, needs no user of its own and ends at SIGTERM or SIGINT,
//! which closes each client when its transaction has ended; a second one closes all at once. SIGHUP reads the file
//! again. The router itself is told what the file says and reads none.

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use antiphon_router::plain::Server;
use antiphon_router::{
    Account, AuthQuery, Authentication, ClientsTls, Console, Reads, Router, Secrets, Servers, ServersTls,
    Settings, Source,
};
use antiphon_tls::{ClientTls, ServerTls, TlsError, days_left};
use anyhow::Context;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::api::{self, RouterApi, datetime};
use crate::config::{self, Listen, RouterConfig, RouterFile, RouterSecrets};
use crate::log::Log;
use crate::systemd::{self, notify};

/// How long transactions that are open may take to end when the router does.
pub const DRAIN_PATIENCE: Duration = Duration::from_secs(10);
/// A certificate with fewer days left is told of.
const WARN_DAYS: u32 = 30;

/// Starts the router on the runtime at hand. `source` is where it is told of changes.
///
/// # Errors
/// If it cannot listen where it shall, or a file that TLS needs cannot be used.
pub fn start(file: &RouterFile, source: Source) -> anyhow::Result<Router> {
    let settings = settings(file)?;
    let threads = settings.threads;
    let inherited = systemd::listeners().context("the sockets that systemd hands over are of no use")?;
    let handed_over = inherited.len();
    let router = Router::start(settings, source, &inherited)?;
    if handed_over > 0 {
        tracing::info!(handed_over, threads, "routing at sockets that systemd has handed over");
    } else {
        tracing::info!(listen = %file.router.listen, threads, "routing");
    }
    Ok(router)
}

/// Reads the file again that described this router, and has the log follow it.
pub fn source(path: &Path, env: BTreeMap<String, String>, first: &RouterFile, log: Log) -> Source {
    let (path, alone) = (path.to_owned(), first.alone);
    let http = first.router.http.clone();
    Arc::new(move || {
        let read = config::load_router(&path, &env).map_err(|errors| errors.to_string())?;
        let (file, warnings) = read.ok_or("it has no router section any more; stop the router instead")?;
        if file.alone != alone {
            return Err("it describes a member where it did not before, or none; restart".to_owned());
        }
        let settings = settings(&file).map_err(|error| format!("{error:#}"))?;
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        let http = (file.router.http != http).then_some("router.http_listen");
        Ok((settings, log.change(&file.log).into_iter().chain(http).collect()))
    })
}

/// What a file tells the router.
fn settings(file: &RouterFile) -> anyhow::Result<Settings> {
    let config = &file.router;
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let account = config.account.as_ref().map(|account| Account {
        user: account.user.clone(),
        password: account.password.as_ref().map(|password| password.expose().to_owned()),
        database: account.database.clone(),
    });
    let secrets = match (&config.authentication.secrets, &account) {
        (RouterSecrets::Nothing, _) => Secrets::Nothing,
        (RouterSecrets::Users(users), _) => Secrets::Users(users.clone()),
        (RouterSecrets::Query(query), Some(account)) => {
            Secrets::Query(AuthQuery { account: account.clone(), query: query.clone() })
        }
        (RouterSecrets::Query(_), None) => anyhow::bail!("router.auth_user is missing"),
    };
    let authentication = Authentication { rules: config.authentication.rules.clone(), secrets };
    let servers = config.servers.iter();
    let servers = servers.map(|address| Server { host: address.host.clone(), port: address.port });
    let servers =
        (!config.servers.is_empty()).then(|| Servers { list: servers.collect(), account: account.clone() });
    let reads = config.reads.clone().zip(account).map(|(reads, account)| Reads {
        account,
        sessions: reads.sessions,
        users: reads.users,
        databases: reads.databases,
        causal_wait: reads.causal_wait,
        balance: reads.balance,
    });
    let (clients_tls, servers_tls) = tls(config)?;
    Ok(Settings {
        listen: addresses(&config.listen, "router.listen")?,
        agents_tls: config.agents_tls.as_ref().map(ClientTls::load).transpose()?,
        servers,
        peers: config.peers.iter().map(ToString::to_string).collect(),
        agents: config.agents.iter().map(ToString::to_string).collect(),
        scope: file.scope.clone(),
        // Who is busier does more each time it wakes; and servers or applications want processors, too.
        threads: config.threads.unwrap_or_else(|| u16::try_from(processors / 2).unwrap_or(64)).clamp(1, 64),
        pool_mode: config.pool_mode,
        pool_size: config.pool_size,
        server_idle_timeout: config.server_idle_timeout,
        server_lifetime: config.server_lifetime,
        clients_max: config.clients_max,
        failover_hold: config.failover_hold,
        failover_hold_max: config.failover_hold_max,
        login_timeout: config.login_timeout,
        authentication,
        reads,
        console: Console { admins: config.admin_users.clone(), viewers: config.stats_users.clone() },
        show_time: datetime::format,
        clients_tls,
        servers_tls,
    })
}

/// Reads the files for TLS with clients and servers.
fn tls(config: &RouterConfig) -> Result<(Option<ClientsTls>, ServersTls), TlsError> {
    let clients = match &config.clients_tls {
        Some(clients) => {
            let tls = ServerTls::load(&clients.files)?;
            let (identity, days) = (&clients.files.identity, days_left(&clients.files.identity)?);
            if days < WARN_DAYS {
                let file = &identity.certificates;
                tracing::warn!(%file, days, "a certificate expires soon; put a new one there and send the router SIGHUP");
            }
            Some(ClientsTls::new(&tls, clients.required))
        }
        None => None,
    };
    let servers = &config.servers_tls;
    Ok((clients, ServersTls::new(&ClientTls::load(&servers.files)?, servers.encryption)))
}

/// Runs a router that is all that its file describes, until it is told to end.
///
/// # Errors
/// If it cannot be started.
pub fn alone(file: &RouterFile, source: Source) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("could not start the runtime")?;
    runtime.block_on(async {
        let mut term = signal(SignalKind::terminate()).context("signals cannot be received")?;
        let mut int = signal(SignalKind::interrupt()).context("signals cannot be received")?;
        let mut hup = signal(SignalKind::hangup()).context("signals cannot be received")?;
        let router = start(file, source)?;
        let handle = router.handle();
        if let Some(listen) = &file.router.http {
            let api = RouterApi::new(router.handle());
            for address in addresses(listen, "router.http_listen")? {
                let listener = TcpListener::bind(address).await;
                let listener = listener
                    .with_context(|| format!("could not listen at {address} (router.http_listen)"))?;
                tokio::spawn(api::serve(listener, None, api.clone(), std::future::pending()));
            }
        }
        notify("READY=1");
        loop {
            tokio::select! {
                _ = term.recv() => break,
                _ = int.recv() => break,
                // What is wrong with the file is in the log then.
                _ = hup.recv() => drop(handle.reload().await),
            }
        }
        notify("STOPPING=1");
        tokio::select! {
            () = router.drain(DRAIN_PATIENCE) => {}
            _ = term.recv() => tracing::warn!("told twice: ending at once"),
            _ = int.recv() => tracing::warn!("told twice: ending at once"),
        }
        Ok(())
    })
}

/// The addresses that a key of the file names.
///
/// # Errors
/// If a name has none.
pub fn addresses(listen: &Listen, key: &str) -> anyhow::Result<Vec<SocketAddr>> {
    let mut addresses = Vec::new();
    for host in &listen.hosts {
        let host = if host == "*" { "0.0.0.0" } else { host };
        let found = (host, listen.port).to_socket_addrs();
        addresses.extend(found.with_context(|| format!("{host} has no address ({key})"))?.take(1));
    }
    Ok(addresses)
}
