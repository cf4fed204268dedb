//! The loop of one agent: wait for an event, observe, decide, act, show.
//!
//! All waiting is in `next_event`, all changing of state behind it. Whatever takes longer than a decision is a
//! task of the engine or of `upkeep`; its outcome is an event.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use antiphon_core::ha::cluster::Phase;
use antiphon_core::ha::decide::{Decision, decide};
use antiphon_core::ha::role::Role;
use antiphon_core::ha::slots;
use antiphon_core::ha::step::Step;
use antiphon_core::ha::why::Why;
use antiphon_core::ha::world::{Beat, Local, Server, World};
use antiphon_core::{Epoch, Instant};
use antiphon_engine::{Engine, sentence};
use antiphon_peer::Peers;
use antiphon_store::{Snapshot, Store};
use tokio::sync::{mpsc, oneshot, watch};

use super::act::{Hands, Renewed};
use super::assemble;
use super::beats::Beats;
use super::brief;
use super::clock;
use super::command::Command;
use super::guard::Guard;
use super::identity::{self, Name};
use super::journal::Journal;
use super::kept::KeptDirectories;
use super::observe::{self, Firsts, Outside, Own};
use super::records::{self, Records};
use super::routers::Routers;
use super::settings::SettingsInForce;
use super::upkeep::Upkeep;
use super::view::{ServerFacts, View};

/// How often an agent looks again where things move: an election, a promotion, a rejoin.
const BRISK: Duration = Duration::from_millis(15);
/// How often it looks again otherwise, if nothing happens before.
const CALM: Duration = Duration::from_millis(500);

/// Everything that an agent works with; put together by `assemble`.
pub struct Agent {
    pub(super) scope: String,
    pub(super) own: Own,
    pub(super) hands: Hands,
    pub(super) store: Arc<dyn Store>,
    pub(super) engine: Option<Arc<dyn Engine>>,
    pub(super) peers: Peers,
    pub(super) beats: Beats,
    pub(super) routers: Arc<Routers>,
    pub(super) renewals: mpsc::Receiver<Renewed>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) view: watch::Sender<Option<Arc<View>>>,
    pub(super) settings: SettingsInForce,
    pub(super) upkeep: Upkeep,
    pub(super) journal: Journal,
    pub(super) guard: Guard,
    pub(super) kept: KeptDirectories,
    pub(super) firsts: Firsts,
    pub(super) records: Arc<Records>,
    pub(super) store_seen: u64,
    pub(super) restarting: Option<oneshot::Sender<Result<(), String>>>,
}

/// What woke the agent.
enum Event {
    /// Look again: the time has come, or a source changed.
    Look,
    /// The store pushed a snapshot.
    Store,
    /// The snapshot is at least as new as what was committed when the agent started.
    CaughtUp,
    /// The store's part here ended and will push no more.
    StoreGone,
    /// A renewal ended.
    Renewed(Renewed),
    /// An operator asks.
    Command(Command),
    /// The agent shall end.
    Stop,
}

impl Agent {
    /// Runs until `stop` says so.
    ///
    /// # Errors
    /// If the store holds a record of leadership that this version cannot read, if the store's part here has
    /// ended, or if another member has this one's name. The server is left as it is.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) -> anyhow::Result<()> {
        let mut store = self.store.watch();
        let mut engine = self.engine.as_ref().map(|engine| engine.events());
        let mut beats = self.beats.changes();
        let mut routers = self.routers.changes();
        self.read_store(&store.borrow_and_update().clone())?;
        let mut pause = Duration::ZERO;
        let mut gone = false;
        let mut known = Known::default();
        let mut caught_up = caught_up(self.store.clone());
        loop {
            let event = tokio::select! {
                biased;
                Ok(()) = stop.changed() => Event::Stop,
                changed = store.changed(), if !gone => match changed {
                    Ok(()) => Event::Store,
                    Err(_) => Event::StoreGone,
                },
                Some(renewed) = self.renewals.recv() => Event::Renewed(renewed),
                Ok(()) = &mut caught_up, if !known.store => Event::CaughtUp,
                Ok(()) = changed(engine.as_mut()) => Event::Look,
                Ok(()) = beats.changed() => Event::Look,
                Ok(()) = routers.changed() => Event::Look,
                Some(command) = self.commands.recv() => Event::Command(command),
                () = tokio::time::sleep(pause) => Event::Look,
            };
            match event {
                Event::Stop => return Ok(()),
                Event::Store => {
                    let snapshot = store.borrow_and_update().clone();
                    self.read_store(&snapshot)?;
                }
                Event::CaughtUp => {
                    let snapshot = store.borrow_and_update().clone();
                    self.read_store(&snapshot)?;
                    known.store = true;
                }
                Event::StoreGone => {
                    gone = true;
                    tracing::error!(
                        "the store's part here has ended (the line before says why): this agent ends as soon as no \
                         primary runs here; put right what is wrong and start it again"
                    );
                }
                Event::Renewed(renewed) => self.renewed(&renewed),
                Event::Command(command) => self.command(command).await,
                Event::Look => {}
            }
            pause = self.turn(&mut known).await?;
            // A primary is kept until its lease ends, and stopped then.
            anyhow::ensure!(!gone || self.may_write(), "the store's part here has ended");
        }
    }

    /// Whether a primary runs here or may come to.
    fn may_write(&self) -> bool {
        let view = self.view.borrow();
        view.as_ref().is_some_and(|view| match &view.world.local {
            Local::Witness => false,
            Local::Database(db) => match &db.server {
                Server::Primary(_) | Server::Orphans { .. } => true,
                Server::Starting { primary, .. } | Server::Stuck { primary, .. } => *primary,
                Server::Standby(_) | Server::Stopped(_) => db.task.is_some(),
                Server::Absent | Server::Refused { .. } => false,
            },
        })
    }

    /// One turn: observe, decide, act, show. Returns how long to wait for the next event at most.
    /// Nothing is done before it is `known` where the cluster stands and that the member's name is its own.
    async fn turn(&mut self, known: &mut Known) -> anyhow::Result<Duration> {
        let world = self.observe().await;
        // A store that cannot be reached says nothing: a primary must still be stopped before its lease ends.
        known.store = known.store || world.now.since(self.own.started) >= world.settings.ttl / 2;
        known.name = known.name || (known.store && self.is_named(&world)?);
        let ready = known.name && known.store;
        let decision = if ready { decide(&world) } else { hold(&world) };
        self.routers.ask(matches!(decision.why, Why::HandingOver { .. }), world.now);
        let facts = self.facts().await;
        self.tell(&world, &decision, &facts);
        self.journal.note(&world, &decision);
        let server = match &world.local {
            Local::Database(db) => Some(&db.server),
            Local::Witness => None,
        };
        let ttl = world.settings.ttl;
        let outcome = self.hands.carry_out(&decision.steps, &self.records, server, ttl).await;
        match outcome {
            Ok(done) => {
                self.own.lease_until = done.lease_until.or(self.own.lease_until);
                if decision.steps.iter().any(|step| matches!(step, Step::Clone { .. })) {
                    self.own.reinitialise_requested = None;
                }
            }
            Err(error) => self.journal.complain(&decision, &sentence(&error), world.now),
        }
        if ready {
            self.guard.follow(&world, self.own.lease_until);
        }
        self.after(&world, &decision).await;
        self.show(&world, &decision, facts);
        Ok(pause(&world, &decision))
    }

    /// Whether this member's name is known to be its own.
    fn is_named(&self, world: &World) -> anyhow::Result<bool> {
        let heard = self.beats.heard();
        let age = world.now.since(self.own.started);
        let lately = world.settings.failure_timeout;
        match identity::check(&self.own.described, &self.records, &heard, world.now, age, lately) {
            Name::Ours => Ok(true),
            Name::Unknown => Ok(false),
            Name::Taken(why) => anyhow::bail!(why),
        }
    }

    async fn observe(&mut self) -> World {
        let database = match &self.engine {
            Some(engine) => {
                let mut database = engine.observe().await;
                if self.hands.after_stop.is_some() {
                    self.hands.go_on_after_stop(&database.server, database.task.is_some());
                    database = engine.observe().await;
                }
                Some(database)
            }
            None => None,
        };
        let fenced = self.engine.as_ref().map_or(Epoch(0), |engine| engine.fenced());
        let voters = self.store.voters().map(|voters| voters.len());
        let outside = Outside {
            records: &self.records,
            firsts: &self.firsts,
            voters,
            peers: &self.peers,
            beats: &self.beats,
            routers: &self.routers,
        };
        let local = observe::local(database);
        observe::world(&self.own, fenced, self.settings.resolved(), local, &outside)
    }

    /// Tells the other members by heartbeat, and the heartbeats whom to watch over.
    fn tell(&mut self, world: &World, decision: &Decision, facts: &ServerFacts) {
        let leads = match (&decision.role, &world.local) {
            (Role::Leader { epoch }, _) => Some(*epoch),
            _ => None,
        };
        self.beats.say(Beat {
            name: world.me.name().clone(),
            suspects: decision.suspects,
            leads,
            server: brief::server(world, decision, facts),
            slots: if leads.is_some() { slots::permanent_positions(world) } else { BTreeMap::new() },
        });
        let leader = world.store.cluster.as_ref().and_then(|cluster| match &cluster.value.phase {
            Phase::Led { leader } | Phase::Electing { last: leader, .. } => Some(leader),
            Phase::Bootstrapping { .. } => None,
        });
        let watched = leader.filter(|leader| leader.name != *world.me.name()).and_then(|leader| {
            let address = world.store.member(&leader.name)?.server_address.clone()?;
            Some((leader.name.clone(), address))
        });
        self.beats.watch_leader(watched);
    }

    /// Work that follows from a decision and decides nothing.
    async fn after(&mut self, world: &World, decision: &Decision) {
        let now = clock::now();
        let heard = self.beats.heard().into_values();
        let heard = heard.filter(|heard| now.since(heard.at) < world.settings.failure_timeout);
        let heard = heard.map(|heard| heard.address).collect();
        self.upkeep.turn(world, &self.records, &heard).await;
        if let (Some(engine), Some(cluster)) = (&self.engine, &world.store.cluster) {
            engine.expect_system_identifier(cluster.value.system_identifier.clone());
        }
        if matches!(decision.role, Role::Leader { .. } | Role::Promoting { .. }) {
            // Asked for as a follower: carried out after a later hand-over, it would surprise everyone.
            self.own.reinitialise_requested = None;
        }
        if self.restarting.as_ref().is_some_and(oneshot::Sender::is_closed) {
            // Whoever asked was told that it did not come to it, or went away.
            self.restarting = None;
            self.own.restart_requested = false;
        }
        if let Local::Database(db) = &world.local {
            let stopping = matches!(db.task, Some((antiphon_core::ha::world::Task::Stop(_), _)));
            if self.own.restart_requested && stopping {
                self.own.restart_requested = false;
            }
            let answers = matches!(db.server, Server::Primary(_) | Server::Standby(_));
            if !self.own.restart_requested
                && answers
                && !stopping
                && db.task.is_none()
                && let Some(done) = self.restarting.take()
            {
                // Who asked may have gone away.
                let _ = done.send(Ok(()));
            }
        }
    }

    /// Figures of the server that decide nothing.
    async fn facts(&mut self) -> ServerFacts {
        let kept = self.kept.look().await;
        brief::facts(self.engine.as_deref(), self.upkeep.semi_sync(), kept)
    }

    fn show(&mut self, world: &World, decision: &Decision, facts: ServerFacts) {
        let view = View {
            scope: self.scope.clone(),
            world: Arc::new(world.clone()),
            decision: Arc::new(decision.clone()),
            config: self.records.config.clone(),
            history: self.records.history.clone(),
            scheduled: self
                .records
                .request
                .as_ref()
                .filter(|request| request.value.scheduled_at.is_some_and(|at| at > clock::unix_seconds()))
                .map(|request| request.value.clone()),
            server: facts,
            store_seen: self.store_seen,
            raft: self.upkeep.raft(),
            progress: self.engine.as_ref().and_then(|engine| engine.progress()),
        };
        self.view.send_replace(Some(Arc::new(view)));
    }

    fn read_store(&mut self, snapshot: &Arc<Snapshot>) -> anyhow::Result<()> {
        let records = records::read(snapshot)?;
        for unreadable in records.unreadable.iter().filter(|known| !self.records.unreadable.contains(known)) {
            tracing::warn!("{unreadable}; it is left out");
        }
        self.firsts.see(&records);
        self.store_seen = clock::unix_seconds();
        let known: BTreeMap<_, _> =
            records.members.values().map(|m| (m.value.peer_address.clone(), m.value.name.clone())).collect();
        self.upkeep.know_peers(&self.peers, known.into_keys());
        self.settings.take(&records.config);
        self.records = Arc::new(records);
        Ok(())
    }

    fn renewed(&mut self, renewed: &Renewed) {
        self.hands.renewing = false;
        let leads =
            self.records.cluster.as_ref().and_then(|c| c.value.leader()).is_some_and(|leader| {
                leader.name == self.own.described.name && leader.epoch == renewed.epoch
            });
        if leads && renewed.until.is_some() {
            // One renewal at a time: this is the newest, also when it is shorter than the one before.
            self.own.lease_until = renewed.until;
        }
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Restart { done } => {
                if self.engine.is_none() {
                    let _ = done.send(Err("this member is a witness and has no server".to_owned()));
                } else if self.restarting.is_some() {
                    let _ = done.send(Err("a restart is in progress".to_owned()));
                } else {
                    self.own.restart_requested = true;
                    self.restarting = Some(done);
                }
            }
            Command::Reload { done } => {
                let answer = self.settings.reload().await.map(|(file, pending)| {
                    // Published with the next decision, as everything else that this member says of itself.
                    (self.own.described.tags, self.own.described.delayed) = assemble::traits(&file);
                    pending
                });
                let _ = done.send(answer);
            }
            Command::Reinitialise { how, done } => {
                let leads = self.records.cluster.as_ref().and_then(|c| c.value.leader());
                let answer = match (&self.engine, leads) {
                    (None, _) => Err("this member is a witness and has no data to build".to_owned()),
                    (_, Some(leader)) if leader.name == self.own.described.name => {
                        Err("I am the leader, can not reinitialize".to_owned())
                    }
                    (_, None) => Err("there is no leader to copy from".to_owned()),
                    (Some(_), Some(_)) => {
                        self.own.reinitialise_requested = Some(how);
                        Ok(())
                    }
                };
                let _ = done.send(answer);
            }
        }
    }
}

/// What an agent must know before it does anything.
#[derive(Debug, Default)]
struct Known {
    /// The store as it was when the agent started, or newer. An embedded store that was started again shows its
    /// past first, in which the primary here may be one that was deposed.
    store: bool,
    /// The member's name is its own.
    name: bool,
}

/// Ends when the store here has everything that was committed before this call.
fn caught_up(store: Arc<dyn Store>) -> oneshot::Receiver<()> {
    let (done, ended) = oneshot::channel();
    tokio::spawn(async move {
        while !done.is_closed() {
            match store.read().await {
                Ok(_) => {
                    // The agent is gone if nobody listens; so is the need to tell it.
                    let _ = done.send(());
                    return;
                }
                Err(error) => tracing::debug!(%error, "the store has not caught up yet"),
            }
            tokio::time::sleep(BRISK).await;
        }
    });
    ended
}

/// The decision to wait until more is known.
fn hold(world: &World) -> Decision {
    Decision {
        role: Role::Waiting,
        steps: Vec::new(),
        why: Why::NoStore,
        wake_at: Some(world.now + BRISK),
        suspects: None,
    }
}

/// Waits for the engine's next event; for ever on a witness.
async fn changed(events: Option<&mut watch::Receiver<u64>>) -> Result<(), watch::error::RecvError> {
    match events {
        Some(events) => events.changed().await,
        None => std::future::pending().await,
    }
}

/// How long to wait for the next event at most.
fn pause(world: &World, decision: &Decision) -> Duration {
    // What is done to a slot shows at the next look; one in use may stay for long.
    let acts = decision.steps.iter().any(|step| !matches!(step, Step::Slots { .. }));
    let moving = match &decision.role {
        Role::Leader { .. } | Role::Follower { .. } | Role::Witness | Role::Waiting | Role::Rejoining => acts,
        Role::Bootstrapping | Role::Promoting { .. } | Role::Fenced { .. } | Role::Demoting => true,
    };
    let step = if moving { BRISK } else { CALM };
    let wake = decision.wake_at.map_or(CALM, |at: Instant| at.since(world.now));
    step.min(wake.max(Duration::from_millis(2)))
}
