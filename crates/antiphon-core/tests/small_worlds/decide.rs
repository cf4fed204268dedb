//! Every combination of phase, server, task, lease, fence and settings through `decide`, against the laws of
//! one decision. What several decisions do together is for the scenarios and the simulation.

use std::collections::BTreeMap;
use std::time::Duration;

use antiphon_core::ha::cluster::{Cause, Cluster, Phase, Promise};
use antiphon_core::ha::decide::{Decision, decide};
use antiphon_core::ha::step::Step;
use antiphon_core::ha::sync::covers;
use antiphon_core::ha::why::Why;
use antiphon_core::ha::world::{
    Database, Failure, Local, PrimaryServer, Reinitialise, Server, Standby, StandbyServer, StopMode, Stopped,
    SyncNames, Task, Upstream, World,
};
use antiphon_core::settings::SyncMode;
use antiphon_core::{Epoch, Lsn, Timeline};

use crate::exhaust::Gen;
use crate::world::{NOW, TERM, cluster, leader, name, position, serving, sync_set, world};

const NEXT: Epoch = Epoch(TERM.0 + 1);

fn phases() -> Vec<Phase> {
    let mut phases = vec![
        Phase::Led { leader: leader("a") },
        Phase::Led { leader: leader("b") },
        Phase::Bootstrapping { by: name("a") },
        Phase::Bootstrapping { by: name("b") },
    ];
    let causes = [
        Cause::Silent,
        Cause::ServerDied { how: "signal 9".to_owned() },
        Cause::Switchover { to: name("c") },
        Cause::Failover { to: name("b"), accept_loss: true },
    ];
    for last in ["a", "b"] {
        for cause in &causes {
            let (cause, opened_by) = (cause.clone(), name("c"));
            phases.push(Phase::Electing { cause, opened_by, last: leader(last) });
        }
    }
    phases
}

fn stopped(primary: bool, clean: bool, crash: bool) -> Server {
    let crash = crash.then(|| "signal 9".to_owned());
    Server::Stopped(Stopped {
        crash,
        clean,
        primary,
        restored: !primary && clean,
        checkpoint: position(3, 1000),
    })
}

fn standby(upstream: Option<(&str, Epoch)>, known: bool) -> Server {
    let streaming = upstream.is_some();
    Server::Standby(StandbyServer {
        upstream: upstream.map(|(from, epoch)| Upstream { name: name(from), epoch }),
        receiving: streaming,
        streaming,
        position: known.then(|| position(3, 1000)),
        replayed: Lsn(1000),
        starved_since: None,
    })
}

fn primary() -> Server {
    let standbys = ["c", "d"].map(|text| Standby { name: name(text), streaming: true, flushed: Lsn(1000) });
    Server::Primary(PrimaryServer {
        timeline: Timeline(3),
        flushed: Lsn(1000),
        history: serving().history,
        sync: SyncNames::Set(sync_set(1, &["c", "d"])),
        proven: None,
        standbys: standbys.to_vec(),
        last_streaming: BTreeMap::new(),
        waiting_since: None,
        checkpointed: None,
    })
}

fn servers() -> Vec<Server> {
    let stuck = |primary| Server::Stuck { since: NOW, why: "no answer".to_owned(), primary };
    vec![
        Server::Absent,
        Server::Refused { reason: "belongs to another user".to_owned() },
        stopped(true, true, false),
        stopped(true, false, false),
        stopped(true, false, true),
        stopped(false, true, false),
        stopped(false, false, true),
        Server::Orphans { how: "signal 9".to_owned() },
        Server::Starting { since: NOW - Duration::from_secs(1), primary: false },
        Server::Starting { since: NOW - Duration::from_secs(1), primary: true },
        Server::Starting { since: NOW - Duration::from_secs(3000), primary: true },
        standby(None, true),
        standby(None, false),
        standby(Some(("a", Epoch(2))), true),
        standby(Some(("a", TERM)), true),
        primary(),
        stuck(true),
        stuck(false),
    ]
}

/// One of each kind that is treated in a way of its own.
const TASKS: [Option<Task>; 7] = [
    None,
    Some(Task::Stop(StopMode::Fast)),
    Some(Task::Stop(StopMode::Kill)),
    Some(Task::Clone),
    Some(Task::Start),
    Some(Task::Promote),
    Some(Task::SetSync),
];

/// A law of one decision; it panics where it is broken.
type Law = fn(&World, &Decision);

/// All of them, by the name that states them.
const LAWS: &[Law] = &[
    no_world_lets_a_primary_go_on_without_a_lease,
    no_world_promotes_or_starts_a_primary_without_a_record_that_names_this_member_and_a_lease,
    no_world_follows_a_leader_of_a_term_that_this_member_is_fenced_against,
    no_world_starts_or_rewinds_a_half_built_directory,
    no_world_replaces_data_unasked_or_without_keeping_the_old,
    no_world_promises_what_the_names_in_effect_do_not_keep,
    every_change_of_the_record_is_one_that_may_be_acted_upon_and_no_term_goes_back,
    a_view_of_the_store_older_than_a_promise_is_not_acted_upon,
    a_healthy_leader_with_a_lease_is_never_stopped_unasked,
    every_world_acts_or_knows_when_to_look_again_or_says_what_it_waits_for,
    no_world_asks_to_be_woken_in_the_past,
    a_fence_is_for_the_term_that_is_elected,
    in_a_pause_nobody_is_suspected_or_deposed,
];

fn check(world: &World) {
    let decision = decide(world);
    for law in LAWS {
        law(world, &decision);
    }
}

/// A world with everything in order but the phase and the server.
fn a_world(phase: Phase, server: Server) -> World {
    let epoch = match phase {
        Phase::Electing { .. } => NEXT,
        Phase::Led { .. } | Phase::Bootstrapping { .. } => TERM,
    };
    world(cluster(epoch, phase), server)
}

fn database(world: &World) -> &Database {
    match &world.local {
        Local::Database(db) => db,
        Local::Witness => unreachable!("these worlds have a server"),
    }
}

fn database_mut(world: &mut World) -> &mut Database {
    match &mut world.local {
        Local::Database(db) => db,
        Local::Witness => unreachable!("these worlds have a server"),
    }
}

fn lease(world: &mut World, choice: usize) {
    world.me.lease_until = match choice {
        0 => Some(NOW + Duration::from_secs(4)),
        1 => None,
        2 => Some(NOW),
        _ => Some(NOW + Duration::from_secs(1)),
    };
}

/// The worlds around what a member may do with its server, its lease and its fence.
#[test]
fn every_server_task_lease_and_fence_keeps_every_law() {
    let (phases, servers) = (phases(), servers());
    let mut gen_ = Gen::default();
    while !gen_.done() {
        let mut world = a_world(gen_.of(&phases).clone(), gen_.of(&servers).clone());
        let task = *gen_.of(&TASKS);
        database_mut(&mut world).task = task.map(|task| (task, NOW - Duration::from_millis(500)));
        lease(&mut world, gen_.below(4));
        let epoch = world.store.cluster.as_ref().expect("it has one").value.epoch;
        world.me.fenced = Epoch(epoch.0 + 1 - gen_.below(3) as u64);
        database_mut(&mut world).half_built = gen_.flag();
        check(&world);
    }
}

/// The worlds around what was asked for, what failed, and what is set.
#[test]
fn every_wish_failure_and_setting_keeps_every_law() {
    let (phases, servers) = (phases(), servers());
    let failures =
        [None, Some(Task::Start), Some(Task::Promote), Some(Task::Rewind), Some(Task::Stop(StopMode::Kill))];
    let mut gen_ = Gen::default();
    while !gen_.done() {
        let mut world = a_world(gen_.of(&phases).clone(), gen_.of(&servers).clone());
        let failed = *gen_.of(&failures);
        let ago = if failed.is_some() && gen_.flag() {
            Duration::from_millis(10)
        } else {
            Duration::from_secs(100)
        };
        database_mut(&mut world).failed =
            failed.map(|task| Failure { task, at: NOW - ago, times: 3, error: "no space".to_owned() });
        let wish = Some(Reinitialise::default());
        (world.me.restart_requested, world.me.reinitialise_requested, world.me.may_reinitialise) =
            *gen_.of(&[(false, None, false), (true, None, false), (false, wish, false), (false, None, true)]);
        lease(&mut world, gen_.below(2));
        match gen_.below(4) {
            0 => {}
            1 => world.settings.pause = true,
            2 => {
                world.settings.synchronous_mode = SyncMode::Off;
                world.store.cluster.as_mut().expect("it has one").value.sync = Promise::Asynchronous;
            }
            _ => world.store.cluster.as_mut().expect("it has one").value.sync = Promise::Alone,
        }
        check(&world);
    }
}

fn shown(world: &World, decision: &Decision) -> String {
    let cluster = &world.store.cluster.as_ref().expect("it has one").value;
    let db = database(world);
    format!(
        "\n{decision:#?}\nphase {:?} of {}, sync {:?}\n{:?}\ntask {:?}, failed {:?}, half built {}, fenced {}, lease {:?}, \
         pause {}, restart {}, reinit {:?}",
        cluster.phase,
        cluster.epoch,
        cluster.sync,
        db.server,
        db.task,
        db.failed,
        db.half_built,
        world.me.fenced,
        world.me.lease_until.map(|until| until.0 as i64 - NOW.0 as i64),
        world.settings.pause,
        world.me.restart_requested,
        world.me.reinitialise_requested,
    )
}

fn record(world: &World) -> &Cluster {
    &world.store.cluster.as_ref().expect("these worlds have a record").value
}

fn leads(world: &World) -> bool {
    record(world).leader().is_some_and(|leader| leader.name == *world.me.name())
}

fn lease_has_ended(world: &World) -> bool {
    world.me.lease_until.is_none_or(|until| world.now >= until)
}

fn no_world_lets_a_primary_go_on_without_a_lease(world: &World, decision: &Decision) {
    let db = database(world);
    let bootstrapping = matches!(record(world).phase, Phase::Bootstrapping { .. });
    if !lease_has_ended(world) || world.settings.pause || bootstrapping {
        return;
    }
    let behind = world.me.fenced > record(world).epoch;
    let mine = leads(world)
        || matches!(&record(world).phase, Phase::Electing { last, .. } if last.name == *world.me.name());
    let writes = matches!(
        db.server,
        Server::Primary(_)
            | Server::Orphans { .. }
            | Server::Starting { primary: true, .. }
            | Server::Stuck { primary: true, .. }
    );
    let promotes =
        (mine || behind) && matches!((&db.server, db.task), (Server::Standby(_), Some((Task::Promote, _))));
    if !writes && !promotes {
        return;
    }
    let kill_failed = matches!(&db.failed, Some(Failure { task: Task::Stop(StopMode::Kill), .. }));
    let stopping = matches!(db.task, Some((Task::Stop(_), _)));
    let ordered = decision.steps.iter().any(|step| matches!(step, Step::Stop { .. }));
    assert!(stopping || ordered || kill_failed, "it goes on: {}", shown(world, decision));
    let gentle = matches!(db.task, Some((Task::Stop(StopMode::Fast), _)));
    if mine && gentle && !behind {
        let killed = decision.steps.contains(&Step::Stop { mode: StopMode::Kill });
        assert!(killed, "it is stopped too gently: {}", shown(world, decision));
    }
}

fn no_world_promotes_or_starts_a_primary_without_a_record_that_names_this_member_and_a_lease(
    world: &World,
    decision: &Decision,
) {
    for step in &decision.steps {
        let (Step::Promote { epoch, .. } | Step::StartPrimary { epoch, .. }) = step else { continue };
        let sound = leads(world) && record(world).epoch == *epoch && !lease_has_ended(world);
        assert!(sound, "{}", shown(world, decision));
    }
}

fn no_world_follows_a_leader_of_a_term_that_this_member_is_fenced_against(
    world: &World,
    decision: &Decision,
) {
    for step in &decision.steps {
        let (Step::Follow { upstream, .. } | Step::StartStandby { upstream: Some((upstream, _)) }) = step
        else {
            continue;
        };
        assert!(upstream.epoch >= world.me.fenced, "{}", shown(world, decision));
        assert!(record(world).leader().is_some(), "nobody leads: {}", shown(world, decision));
    }
}

fn no_world_starts_or_rewinds_a_half_built_directory(world: &World, decision: &Decision) {
    let starts = |step: &Step| {
        matches!(step, Step::StartStandby { .. } | Step::StartPrimary { .. } | Step::Rewind { .. })
    };
    let broken = database(world).half_built && decision.steps.iter().any(starts);
    assert!(!broken, "{}", shown(world, decision));
}

fn no_world_replaces_data_unasked_or_without_keeping_the_old(world: &World, decision: &Decision) {
    let db = database(world);
    for step in &decision.steps {
        let allowed = match step {
            Step::Clone { keep_old: true, .. } => {
                db.half_built || world.me.may_reinitialise || world.me.reinitialise_requested.is_some()
            }
            Step::Clone { keep_old: false, .. } => {
                db.server == Server::Absent || world.me.reinitialise_requested.is_some()
            }
            Step::Initialise => {
                let mine =
                    matches!(&record(world).phase, Phase::Bootstrapping { by } if by == world.me.name());
                mine && (db.server == Server::Absent || db.half_built)
            }
            Step::Rewind { .. } => !leads(world),
            _ => true,
        };
        assert!(allowed, "{}", shown(world, decision));
    }
}

fn no_world_promises_what_the_names_in_effect_do_not_keep(world: &World, decision: &Decision) {
    let Server::Primary(primary) = &database(world).server else { return };
    for step in &decision.steps {
        let sound = match step {
            Step::ChangeCluster { cluster, .. } => {
                cluster.sync == record(world).sync || covers(&cluster.sync, &primary.sync)
            }
            Step::SetSync { sync, .. } => covers(&record(world).sync, sync),
            _ => true,
        };
        assert!(sound, "{}", shown(world, decision));
    }
}

fn every_change_of_the_record_is_one_that_may_be_acted_upon_and_no_term_goes_back(
    world: &World,
    decision: &Decision,
) {
    for step in &decision.steps {
        let Step::ChangeCluster { cluster, take_lease, expect, .. } = step else { continue };
        let sound = cluster.check().is_ok()
            && cluster.epoch >= record(world).epoch
            && *expect == 9
            && (cluster.base >= record(world).base
                || matches!(record(world).phase, Phase::Bootstrapping { .. }));
        assert!(sound, "{}", shown(world, decision));
        if let Phase::Led { leader } = &cluster.phase {
            assert_eq!(leader.name, *world.me.name(), "{}", shown(world, decision));
            assert!(*take_lease || leads(world), "{}", shown(world, decision));
        } else {
            assert!(!take_lease, "{}", shown(world, decision));
        }
    }
}

fn a_view_of_the_store_older_than_a_promise_is_not_acted_upon(world: &World, decision: &Decision) {
    if world.me.fenced > record(world).epoch {
        let harmless = decision.steps.iter().all(|step| matches!(step, Step::Stop { .. }));
        assert!(harmless, "{}", shown(world, decision));
    }
}

fn a_healthy_leader_with_a_lease_is_never_stopped_unasked(world: &World, decision: &Decision) {
    let db = database(world);
    let healthy = leads(world)
        && world.me.lease_until == Some(NOW + Duration::from_secs(4))
        && matches!(db.server, Server::Primary(_))
        && !matches!(db.task, Some((Task::Stop(_), _)))
        && !world.me.restart_requested;
    if healthy {
        let stops = decision.steps.iter().any(|step| matches!(step, Step::Stop { .. }));
        assert!(!stops, "{}", shown(world, decision));
    }
}

fn every_world_acts_or_knows_when_to_look_again_or_says_what_it_waits_for(
    world: &World,
    decision: &Decision,
) {
    let waits = match &decision.why {
        // An event ends each of these: a task, a start, a record, an operator.
        Why::Working { .. }
        | Why::Starting
        | Why::Promoting
        | Why::Restarting
        | Why::Paused
        | Why::NeedsReinit
        | Why::WaitingForBootstrap
        | Why::WaitingForLeader { .. }
        | Why::DataDirectoryRefused { .. }
        | Why::OnlyLastLeaderMayWin { .. }
        | Why::Following { .. } => true,
        // Who is no candidate waits for the record to change.
        _ => {
            let electing = matches!(record(world).phase, Phase::Electing { .. });
            electing && !matches!(database(world).server, Server::Standby(_) | Server::Primary(_))
        }
    };
    let alive = !decision.steps.is_empty() || decision.wake_at.is_some() || waits;
    assert!(alive, "{}", shown(world, decision));
}

fn no_world_asks_to_be_woken_in_the_past(world: &World, decision: &Decision) {
    let late = decision.wake_at.is_some_and(|at| at <= world.now);
    assert!(!late, "{}", shown(world, decision));
}

fn a_fence_is_for_the_term_that_is_elected(world: &World, decision: &Decision) {
    for step in &decision.steps {
        let Step::Fence { epoch } = step else { continue };
        let electing = matches!(record(world).phase, Phase::Electing { .. });
        assert!(electing && *epoch == record(world).epoch, "{}", shown(world, decision));
    }
}

fn in_a_pause_nobody_is_suspected_or_deposed(world: &World, decision: &Decision) {
    if !world.settings.pause || record(world).leader().is_none() {
        return;
    }
    let deposes = |step: &Step| matches!(step, Step::ChangeCluster { cluster, .. } if matches!(cluster.phase, Phase::Electing { .. }));
    // A hand-over that was asked for is brought to its end.
    let failed = matches!(&database(world).failed, Some(Failure { task: Task::Promote, .. }));
    assert!(decision.suspects.is_none(), "{}", shown(world, decision));
    assert!(failed || !decision.steps.iter().any(deposes), "{}", shown(world, decision));
}
