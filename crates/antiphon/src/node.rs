//! A node: `antiphon run FILE`. Reads the file, gives up root, starts the agent and its API, and ends cleanly.
//!
//! SIGTERM and SIGINT hand leadership over, stop the server and end with exit code 0; a second one ends at once
//! and leaves the server running. SIGHUP reads the file again. While the cluster is paused, ending leaves the
//! server running, so that Antiphon itself can be replaced.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::ha::cluster::Request;
use antiphon_core::ha::role::Role;
use antiphon_core::ha::world::{Local, Server, StopMode};
use antiphon_engine::{Engine, Work};
use antiphon_router::{Handle, Router, Source};
use antiphon_store::{Expect, Store, Transaction};
use antiphon_tls::Clients;
use anyhow::Context;
use nix::unistd::{User, chown, initgroups, setgid, setuid};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::agent::assemble::{self, Assembled};
use crate::agent::command::Command;
use crate::agent::records::REQUEST;
use crate::agent::view::View;
use crate::api;
use crate::config::{self, MeshFile, NodeConfig, RouterFile, StoreConfig};
use crate::log::Log;
use crate::mesh::{self, Mesh};
use crate::resources;
use crate::router;
use crate::systemd::notify;

/// How long a leader that ends waits for a successor.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(15);
/// How long the server may take to stop before it is stopped the hard way.
const STOP_PATIENCE: Duration = Duration::from_secs(60);
/// How long the server may then take to abort before it is killed.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// How long the agent may take to end its turn.
const AGENT_PATIENCE: Duration = Duration::from_secs(5);
/// Exit code for a file with mistakes, as sysexits.h has it.
const EXIT_CONFIG: u8 = 78;

/// Runs the node that this file describes until it is told to end.
pub fn run(file: &Path) -> ExitCode {
    let env: BTreeMap<String, String> = std::env::vars().collect();
    let mesh = match config::load_mesh(file, &env) {
        Ok(Some((mesh, warnings))) if mesh.alone => return run_mesh(env, &mesh, &warnings),
        Ok(mesh) => mesh,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let router = match config::load_router(file, &env) {
        Ok(Some((router, warnings))) if router.alone => return run_router(file, env, &router, &warnings),
        Ok(router) => router,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let config = match config::load(file, &env) {
        Ok(config) => config,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let log = Log::start(&config.log);
    let of_router = router.iter().flat_map(|(_, warnings)| warnings);
    let of_mesh = mesh.iter().flat_map(|(_, warnings)| warnings);
    for warning in config.warnings.iter().chain(of_router).chain(of_mesh) {
        tracing::warn!("{warning}");
    }
    let router = router.map(|(router, _)| {
        let source = router::source(file, env.clone(), &router, log);
        (router, source)
    });
    let prepared = prepare(&config);
    resources::claim();
    match prepared.and_then(|()| serve(file, &config, router, mesh.map(|(mesh, _)| (mesh, env)))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a file that describes a node of a mesh and nothing else.
fn run_mesh(env: BTreeMap<String, String>, file: &MeshFile, warnings: &[config::Problem]) -> ExitCode {
    Log::start(&file.log);
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    match mesh::alone(file, env) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a file that describes a router and nothing else.
fn run_router(
    path: &Path,
    env: BTreeMap<String, String>,
    file: &RouterFile,
    warnings: &[config::Problem],
) -> ExitCode {
    let log = Log::start(&file.log);
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    resources::raise_limits();
    match router::alone(file, router::source(path, env, file, log)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Creates the directories that are missing and becomes the server's user, if started as root.
fn prepare(config: &NodeConfig) -> anyhow::Result<()> {
    let mut directories: Vec<PathBuf> = Vec::new();
    if let StoreConfig::Raft(raft) = &config.store {
        directories.push(raft.data_dir.clone());
    }
    if let Some(pg) = &config.postgresql {
        directories.push(pg.state_dir.clone());
        directories.extend(pg.data_dir.parent().map(Path::to_owned));
    }
    let user = if nix::unistd::geteuid().is_root() { Some(server_user(config)?) } else { None };
    for directory in &directories {
        create(directory, user.as_ref())?;
    }
    let Some(user) = user else { return Ok(()) };
    resources::raise_limits();
    let name = std::ffi::CString::new(user.name.clone()).context("the server user's name has a NUL in it")?;
    initgroups(&name, user.gid).and_then(|()| setgid(user.gid)).and_then(|()| setuid(user.uid)).with_context(
        || {
            format!(
                "could not become user {}, whom the server runs as; PostgreSQL refuses to run as root",
                user.name
            )
        },
    )
}

/// Whom the server runs as: the owner of its data directory if there is one, else `postgres`.
fn server_user(config: &NodeConfig) -> anyhow::Result<User> {
    let owner = config
        .postgresql
        .as_ref()
        .and_then(|pg| std::fs::metadata(&pg.data_dir).ok())
        .and_then(|data| User::from_uid(data.uid().into()).ok().flatten())
        .filter(|user| !user.uid.is_root());
    match owner {
        Some(user) => Ok(user),
        None => User::from_name("postgres").context("could not look up user postgres")?.context(
            "there is no user postgres to run the server as: create it, or do not start antiphon as root",
        ),
    }
}

fn create(directory: &Path, owner: Option<&User>) -> anyhow::Result<()> {
    if directory.exists() {
        return Ok(());
    }
    if let Some(parent) = directory.parent() {
        create(parent, owner)?;
    }
    std::fs::create_dir(directory).with_context(|| format!("could not create {}", directory.display()))?;
    match owner {
        Some(user) => chown(directory, Some(user.uid), Some(user.gid))
            .with_context(|| format!("could not give {} to user {}", directory.display(), user.name)),
        None => Ok(()),
    }
}

fn serve(
    file: &Path,
    config: &NodeConfig,
    router: Option<(RouterFile, Source)>,
    mesh: Option<(MeshFile, BTreeMap<String, String>)>,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("could not start the runtime")?;
    runtime.block_on(async {
        let listen = assemble::listen_text(&config.restapi.listen);
        let listener = tokio::net::TcpListener::bind(&listen)
            .await
            .with_context(|| format!("could not listen at {listen} (restapi.listen)"))?;
        let router = router.map(|(router, source)| router::start(&router, source)).transpose()?;
        let mesh = mesh.map(|(mesh, env)| mesh::start(&mesh, env)).transpose()?;
        let Assembled { agent, mut view, commands, routers, store, engine, certificates } =
            assemble::assemble(file, config).await?;
        let (stop, stopped) = watch::channel(false);
        let mut agent = tokio::spawn(agent.run(stopped));
        let Ok(first) = view.wait_for(Option::is_some).await.map(|view| view.clone()) else {
            return ended(agent.await);
        };
        let Some(first) = first else { unreachable!("waited for a view") };
        let shown = follow(view, first);

        let access = api::Access {
            login: config.restapi.authentication.clone(),
            allowlist: config.restapi.allowlist.clone(),
            include_members: config.restapi.allowlist_include_members,
            certificates: config.restapi.tls.as_ref().is_some_and(|tls| tls.clients != Clients::NotAsked),
        };
        let api = api::Api::new(
            shown.clone(),
            commands.clone(),
            routers,
            store.clone(),
            access,
            config.dynamic_commands(),
            api::Beside { router: router.as_ref().map(Router::handle), mesh: mesh.as_ref().map(Mesh::shown) },
        );
        let (api_stop, api_stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(api::serve(listener, certificates.api, api, async move {
            let _ = api_stopped.await;
        }));
        notify("READY=1");
        tracing::info!(scope = %config.scope, name = %config.name, api = %listen, "running");
        let result = tokio::select! {
            result = &mut agent => ended(result),
            () = until_told(&commands, router.as_ref().map(Router::handle)) => {
                notify("STOPPING=1");
                tokio::select! {
                    () = async {
                        end(&config.name, shown, store, engine, &stop, &mut agent).await;
                        if let Some(router) = &router {
                            router.drain(router::DRAIN_PATIENCE).await;
                        }
                    } => Ok(()),
                    () = told_again() => {
                        tracing::warn!("told twice: ending at once, the server is left running");
                        Ok(())
                    }
                }
            }
        };
        drop(mesh);
        drop(router);
        drop(api_stop);
        // Answers that are being written get a moment to be read.
        let _ = tokio::time::timeout(Duration::from_secs(1), serving).await;
        result
    })
}

fn ended(result: Result<anyhow::Result<()>, tokio::task::JoinError>) -> anyhow::Result<()> {
    match result {
        Ok(result) => result,
        Err(error) => Err(anyhow::anyhow!("the agent ended because of a defect: {error}")),
    }
}

/// The view without its first moment of absence.
fn follow(mut view: watch::Receiver<Option<Arc<View>>>, first: Arc<View>) -> watch::Receiver<Arc<View>> {
    let (sender, receiver) = watch::channel(first);
    tokio::spawn(async move {
        while view.changed().await.is_ok() {
            let next = view.borrow_and_update().clone();
            if let Some(next) = next {
                sender.send_replace(next);
            }
        }
    });
    receiver
}

/// Waits for SIGTERM or SIGINT; SIGHUP reloads meanwhile.
async fn until_told(commands: &mpsc::Sender<Command>, router: Option<Handle>) {
    let (Ok(mut term), Ok(mut int), Ok(mut hup)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()), signal(SignalKind::hangup()))
    else {
        tracing::error!("signals cannot be received; end this process with SIGKILL");
        return std::future::pending().await;
    };
    loop {
        tokio::select! {
            _ = term.recv() => return,
            _ = int.recv() => return,
            _ = hup.recv() => {
                reload(commands).await;
                if let Some(router) = &router {
                    // What is wrong with the file is in the log then.
                    let _ = router.reload().await;
                }
            }
        }
    }
}

async fn told_again() {
    until_told(&mpsc::channel(1).0, None).await;
}

async fn reload(commands: &mpsc::Sender<Command>) {
    let (done, answer) = oneshot::channel();
    if commands.send(Command::Reload { done }).await.is_err() {
        return;
    }
    match answer.await {
        Ok(Ok(pending)) if pending.is_empty() => tracing::info!("read the node file again"),
        Ok(Ok(pending)) => tracing::info!(?pending, "read the node file again; these wait for a restart"),
        Ok(Err(error)) => tracing::error!("the node file was not taken over: {error}"),
        Err(_) => {}
    }
}

/// Hands leadership over if this member has it, then stops the server.
async fn end(
    me: &antiphon_core::NodeName,
    mut view: watch::Receiver<Arc<View>>,
    store: Arc<dyn Store>,
    engine: Option<Arc<dyn Engine>>,
    stop: &watch::Sender<bool>,
    agent: &mut JoinHandle<anyhow::Result<()>>,
) {
    let Some(engine) = engine else {
        stop.send_replace(true);
        return;
    };
    if view.borrow().world.settings.pause {
        tracing::info!("the cluster is paused: the server is left running");
        stop.send_replace(true);
        return;
    }
    if matches!(view.borrow().decision.role, Role::Leader { .. }) {
        tracing::info!("handing leadership over before ending");
        if ask_for_successor(me, store.as_ref()).await {
            // Refused (nobody can lead) or done: either way the request is consumed.
            let gone = |view: &Arc<View>| {
                !matches!(view.decision.role, Role::Leader { .. }) && released(view)
                    || matches!(view.decision.why, antiphon_core::ha::why::Why::RequestRefused { .. })
            };
            let _ = tokio::time::timeout(HAND_OVER_PATIENCE, view.wait_for(gone)).await;
        }
    }
    stop.send_replace(true);
    // Else it could start the server again after it was seen stopped. A turn that hangs is not waited for.
    if tokio::time::timeout(AGENT_PATIENCE, agent).await.is_err() {
        tracing::warn!("the agent did not end within {AGENT_PATIENCE:?}; stopping the server without it");
    }
    stop_server(engine).await;
}

/// Asks for a hand-over to whoever is best, unless one is asked for already; whether one is asked for. One that
/// waits for its time is replaced: when that comes, its leader does not lead any more.
async fn ask_for_successor(me: &antiphon_core::NodeName, store: &dyn Store) -> bool {
    let ask = async {
        let stored = store.read().await.ok()?.entries.get(REQUEST).cloned();
        let waits = |text: &str| {
            serde_json::from_str::<Request>(text).map_or(true, |wish| wish.scheduled_at.is_some())
        };
        if stored.as_ref().is_some_and(|stored| !waits(&stored.value)) {
            return Some(());
        }
        let expect = stored.map_or(Expect::Absent, |stored| Expect::At(stored.revision));
        let request =
            Request { leader: Some(me.clone()), candidate: None, scheduled_at: None, accept_loss: false };
        let ask = Transaction {
            expects: vec![(REQUEST.to_owned(), expect)],
            puts: vec![(REQUEST.to_owned(), serde_json::to_string(&request).ok()?)],
            deletes: Vec::new(),
        };
        store.commit(ask).await.ok().map(drop)
    };
    tokio::time::timeout(AGENT_PATIENCE, ask).await.is_ok_and(|asked| asked.is_some())
}

/// Another member leads, or this one's server has stopped for it.
fn released(view: &Arc<View>) -> bool {
    let leads_elsewhere =
        view.world.store.cluster.as_ref().and_then(|cluster| cluster.value.leader()).is_some();
    let stopped = matches!(&view.world.local, Local::Database(db) if matches!(db.server, Server::Stopped(_)));
    leads_elsewhere || stopped
}

async fn stop_server(engine: Arc<dyn Engine>) {
    let mut events = engine.events();
    let started = tokio::time::Instant::now();
    let mut mode = StopMode::Fast;
    loop {
        let database = engine.observe().await;
        if matches!(database.server, Server::Stopped(_) | Server::Absent | Server::Refused { .. })
            && database.task.is_none()
        {
            tracing::info!("the server is stopped");
            return;
        }
        let next = mode_after(started.elapsed());
        if next != mode {
            tracing::warn!(mode = ?next, "the server does not stop; stopping it harder");
            mode = next;
        }
        if let Err(error) = engine.begin(Work::Stop { mode }) {
            tracing::debug!(%error, "the stop goes on");
        }
        let _ = tokio::time::timeout(Duration::from_millis(500), events.changed()).await;
    }
}

/// How hard the server is stopped after this long: commits that wait for an acknowledgement hold up a fast stop
/// for ever, and a process that hangs an immediate one.
fn mode_after(waited: Duration) -> StopMode {
    if waited > STOP_PATIENCE + KILL_PATIENCE {
        StopMode::Kill
    } else if waited > STOP_PATIENCE {
        StopMode::Immediate
    } else {
        StopMode::Fast
    }
}
