//! Following, fencing, promotion, rewinding, and what commits wait for.

use std::fs;
use std::time::Instant;

use antiphon_core::ha::cluster::Position;
use antiphon_core::ha::world::{Server, StopMode, SyncNames, Task, Upstream};
use antiphon_core::{Epoch, Lsn, Timeline};
use antiphon_engine::{Change, Engine, EngineError, ReplicaCommand, ReplicaMethod, Work};

use crate::support::{Member, any_of, has_program, run};

fn promote(epoch: u64, sync: SyncNames) -> Work {
    let timeline = Timeline(u32::try_from(epoch).expect("small"));
    Work::Promote { epoch: Epoch(epoch), timeline, sync }
}

#[test]
fn a_clone_follows_and_its_position_is_what_the_primary_flushed() {
    run(async |place| {
        let primary = place.primary("n1").await;
        let standby = place.standby("n2", &primary, 1).await;
        primary.sql("CREATE TABLE t AS SELECT generate_series(1, 1000)").await;
        let flushed = primary.primary(|_| true).await.flushed;
        let end = |position: Option<Position>| position.is_some_and(|position| position.lsn >= flushed);
        let seen = standby.standby(|standby| end(standby.position)).await;
        assert_eq!(seen.upstream, Some(Upstream { name: primary.name(), epoch: Epoch(1) }));
        assert!(
            seen.receiving && seen.position.is_some_and(|position| position.timeline == Timeline(1)),
            "{seen:?}"
        );
        let seen = primary.primary(|primary| !primary.standbys.is_empty()).await;
        assert_eq!(seen.standbys[0].name, standby.name());
        assert!(seen.last_streaming.contains_key(&standby.name()));
        assert!(primary.engine.observe().await.slots.contains_key("n2"));
    });
}

#[test]
fn a_fence_stops_the_receiver_for_good_and_outlives_engine_and_server() {
    run(async |place| {
        let primary = place.primary("n1").await;
        let standby = place.standby("n2", &primary, 1).await;
        let begun = Instant::now();
        standby.engine.fence(Epoch(2)).await.expect("fenced");
        let seen = standby.standby(|standby| !standby.receiving).await;
        eprintln!("fenced and seen to be so after {:?}", begun.elapsed());
        let end = seen.position.expect("its position is known");
        assert_eq!(seen.upstream, None);
        primary.sql("CREATE TABLE late AS SELECT 1").await;
        let settings = standby.settings.clone();
        drop(standby);
        let standby = Member::open(settings);
        assert_eq!(standby.engine.fenced(), Epoch(2));
        let (upstream, address) = primary.as_upstream(1);
        let refused =
            standby.engine.follow(upstream.clone(), &address).await.expect_err("the leader is older");
        assert!(matches!(refused, EngineError::Fenced { .. }), "{refused}");
        assert!(standby.engine.fence(Epoch(1)).await.is_err(), "a promise never goes back");
        let seen = standby.standby(|standby| !standby.receiving).await;
        assert_eq!(seen.position, Some(end));
        standby.stop(StopMode::Fast).await;
        let seen =
            standby.ended(Work::StartStandby { upstream: Some((upstream.clone(), address.clone())) }).await;
        assert!(seen.failed.is_some_and(|failure| failure.error.contains("fenced")));
        standby.done(Work::StartStandby { upstream: None }).await;
        let seen = standby.standby(|standby| standby.position.is_some()).await;
        assert_eq!((seen.position, seen.receiving), (Some(end), false));
        let newer = Upstream { epoch: Epoch(2), ..upstream };
        standby.engine.follow(newer, &address).await.expect("the same term may be followed");
        standby.standby(|standby| standby.streaming && standby.position > Some(end)).await;
    });
}

#[test]
fn a_promotion_takes_the_timeline_of_its_epoch_and_followers_and_the_old_primary_cross_the_gap() {
    run(async |place| {
        let first = place.primary("n1").await;
        let second = place.standby("n2", &first, 1).await;
        let third = place.standby("n3", &first, 1).await;
        first.sql("CREATE TABLE t AS SELECT 1 AS a").await;
        let flushed = first.primary(|_| true).await.flushed;
        for standby in [&second, &third] {
            standby.standby(|standby| standby.position.is_some_and(|position| position.lsn >= flushed)).await;
            standby.engine.fence(Epoch(7)).await.expect("fenced");
        }
        first.sql("INSERT INTO t VALUES (2)").await;
        let before = second.standby(|standby| !standby.receiving && standby.position.is_some()).await;
        let begun = Instant::now();
        second.done(promote(7, any_of(&[&third]))).await;
        eprintln!("promoted after {:?}", begun.elapsed());
        let seen = second.primary(|_| true).await;
        assert_eq!((seen.timeline, seen.sync), (Timeline(7), any_of(&[&third])));
        let left = seen.history.last().expect("an ancestor");
        assert_eq!(left.timeline, Timeline(1));
        // The end of the old timeline is the position that the standby had, to the byte.
        assert_eq!(Some(left.lsn), before.position.map(|position| position.lsn));

        second.engine.slots(&[("n1".into(), None), ("n3".into(), None)], &[], &[]).await.expect("slots");
        let (upstream, address) = second.as_upstream(7);
        third.engine.follow(upstream.clone(), &address).await.expect("follows");
        let on =
            |timeline, position: Option<Position>| position.is_some_and(|p| p.timeline == Timeline(timeline));
        third.standby(|standby| standby.streaming && on(7, standby.position)).await;
        second.done(Work::SetSync { sync: any_of(&[&third]), prove: true }).await;
        second.sql("INSERT INTO t VALUES (3)").await;

        first.done(Work::Stop { mode: StopMode::Kill }).await;
        if !has_program("pg_rewind") {
            return eprintln!("the rest is skipped: there is no pg_rewind");
        }
        first.done(Work::Rewind { address: address.clone() }).await;
        let seen = first.engine.observe().await;
        assert!(!seen.half_built, "{seen:?}");
        let kept = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("diverged-");
        assert!(
            fs::read_dir(&first.settings.state_dir).expect("its folder").flatten().any(|entry| kept(&entry))
        );
        first.done(Work::StartStandby { upstream: Some((upstream, address)) }).await;
        first.standby(|standby| standby.streaming && on(7, standby.position)).await;
        let flushed = second.primary(|_| true).await.flushed;
        first.standby(|standby| standby.replayed >= flushed).await;
        assert_eq!(first.count("t").await, 2, "1 and 3: 2 was never acknowledged by anybody");
    });
}

#[test]
fn what_commits_wait_for_is_proven_and_a_wait_is_seen() {
    run(async |place| {
        let primary = place.primary("n1").await;
        let standby = place.standby("n2", &primary, 1).await;
        let sync = any_of(&[&standby]);
        let begun = Instant::now();
        primary.done(Work::SetSync { sync: sync.clone(), prove: true }).await;
        eprintln!("set and proven after {:?}", begun.elapsed());
        let seen = primary.primary(|_| true).await;
        assert_eq!((seen.sync, seen.proven), (sync.clone(), Some(sync.clone())));
        standby.stop(StopMode::Fast).await;
        let client = primary.connect().await;
        let write = tokio::spawn(async move { client.batch_execute("CREATE TABLE waits ()").await });
        primary.primary(|primary| primary.waiting_since.is_some()).await;
        // Unproven as soon as it changes, and a proof that nobody acknowledges fails.
        let other = place.member("n9");
        let seen = primary.ended(Work::SetSync { sync: any_of(&[&standby, &other]), prove: true }).await;
        assert!(seen.failed.is_some_and(|failure| failure.task == Task::SetSync));
        assert_eq!(primary.primary(|_| true).await.proven, None);
        standby.done(Work::StartStandby { upstream: Some(primary.as_upstream(1)) }).await;
        write.await.expect("it ended").expect("it was acknowledged");
        primary.done(Work::SetSync { sync: SyncNames::Nobody, prove: true }).await;
        primary.primary(|primary| primary.sync == SyncNames::Nobody && primary.waiting_since.is_none()).await;
    });
}

#[test]
fn slots_are_made_moved_forward_and_dropped_on_a_standby_too() {
    run(async |place| {
        let primary = place.primary("n1").await;
        let standby = place.standby("n2", &primary, 1).await;
        standby.engine.slots(&[("n3".into(), None)], &[], &[]).await.expect("made");
        let at = |seen: &antiphon_core::ha::world::Database| seen.slots.get("n3").copied().flatten();
        let made = at(&standby.until(|seen| at(seen).is_some()).await).expect("a position");
        primary.sql("CREATE TABLE t AS SELECT generate_series(1, 10000)").await;
        let flushed = primary.primary(|_| true).await.flushed;
        standby.standby(|standby| standby.replayed >= flushed).await;
        standby.engine.slots(&[("n3".into(), Some(flushed))], &[], &[]).await.expect("moved");
        let moved = at(&standby.until(|seen| at(seen) > Some(made)).await).expect("a position");
        assert!(moved >= flushed);
        // Neither back nor beyond what is here.
        for to in [made, Lsn(flushed.0 + (1 << 40))] {
            standby.engine.slots(&[("n3".into(), Some(to))], &[], &[]).await.expect("left alone");
        }
        let now = at(&standby.until(|seen| at(seen).is_some()).await).expect("a position");
        let replayed = standby.standby(|_| true).await.replayed;
        assert!(now >= moved && now <= replayed, "{moved} {now} {replayed}");
        standby.engine.slots(&[], &["n3".into()], &[]).await.expect("dropped");
        standby.until(|seen| seen.slots.is_empty()).await;
    });
}

#[test]
fn a_rewind_that_was_killed_leaves_a_directory_that_is_not_started() {
    run(async |place| {
        if !has_program("pg_rewind") {
            return eprintln!("skipped: there is no pg_rewind");
        }
        let first = place.primary("n1").await;
        let second = place.standby("n2", &first, 1).await;
        second.engine.fence(Epoch(2)).await.expect("fenced");
        second.standby(|standby| !standby.receiving && standby.position.is_some()).await;
        first.sql("CREATE TABLE t AS SELECT generate_series(1, 100000)").await;
        second.done(promote(2, SyncNames::Nobody)).await;
        first.stop(StopMode::Fast).await;
        first.engine.begin(Work::Rewind { address: second.address() }).expect("begun");
        let journal = first.settings.state_dir.join("rewind.inprogress");
        while !journal.exists() {
            assert!(first.engine.observe().await.task.is_some(), "it ended before it could be killed");
        }
        first.done(Work::Stop { mode: StopMode::Kill }).await;
        let seen = first.until(|seen| seen.half_built).await;
        assert!(matches!(seen.server, Server::Stopped(_)), "{seen:?}");
        for work in [
            Work::StartPrimary { epoch: Epoch(2), sync: SyncNames::Nobody },
            Work::StartStandby { upstream: None },
            Work::Rewind { address: second.address() },
        ] {
            assert!(
                first.ended(work).await.failed.is_some_and(|failure| failure.error.contains("half-built"))
            );
        }
        first.done(Work::Clone { address: second.address(), keep_old: true }).await;
        first.until(|seen| !seen.half_built).await;
        let old = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("n1.old-");
        assert!(fs::read_dir(&place.folder).expect("the place").flatten().any(|entry| old(&entry)));
        first.done(Work::StartStandby { upstream: Some(second.as_upstream(2)) }).await;
        second.engine.slots(&[("n1".into(), None)], &[], &[]).await.expect("a slot");
        first.standby(|standby| standby.streaming).await;
    });
}

#[test]
fn a_source_that_is_gone_is_not_held_against_the_directory_that_was_to_be_rewound() {
    run(async |place| {
        let first = place.primary("n1").await;
        let second = place.standby("n2", &first, 1).await;
        first.stop(StopMode::Fast).await;
        second.stop(StopMode::Fast).await;
        for _ in 0..4 {
            let failed = first.ended(Work::Rewind { address: second.address() }).await.failed;
            let failed = failed.expect("nobody is there to rewind to");
            assert!(failed.error.contains("does not answer") && failed.times == 1, "{failed:?}");
        }
        let seen = first.engine.observe().await;
        assert!(!seen.half_built && matches!(seen.server, Server::Stopped(_)), "{seen:?}");
    });
}

#[test]
fn a_standby_that_lags_in_its_replay_is_fenced_with_all_that_it_received() {
    run(async |place| {
        let primary = place.primary("n1").await;
        let standby = place.standby("n2", &primary, 1).await;
        let mut parameters = standby.settings.parameters.clone();
        parameters.insert("recovery_min_apply_delay".into(), "1h".into());
        standby.engine.reload(Change { parameters, ..Change::default() }).await.expect("reloaded");
        primary.sql("CREATE TABLE t AS SELECT generate_series(1, 100000)").await;
        let flushed = primary.primary(|_| true).await.flushed;
        standby.standby(|standby| standby.position.is_some_and(|position| position.lsn >= flushed)).await;
        standby.engine.fence(Epoch(2)).await.expect("fenced");
        let seen = standby.standby(|standby| !standby.receiving).await;
        assert!(
            seen.replayed < flushed && seen.position.is_some_and(|position| position.lsn >= flushed),
            "{seen:?}"
        );
        // A promotion replays the rest first: nothing that was received is lost.
        standby.done(promote(2, SyncNames::Nobody)).await;
        assert_eq!(standby.count("t").await, 100_000);
    });
}

#[test]
fn a_fence_under_full_load_ends_the_stream_for_good_and_leaves_replay_running() {
    run(async |place| {
        let primary = place.primary("n1").await;
        let standby = place.standby("n2", &primary, 1).await;
        let client = primary.connect().await;
        let load = "CREATE TABLE t (a int PRIMARY KEY, b text); \
                    INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, 200000) i";
        let load = tokio::spawn(async move { client.batch_execute(load).await });
        let begin = standby.standby(|_| true).await.replayed;
        standby.standby(|standby| standby.replayed.0 > begin.0 + (4 << 20)).await;
        standby.engine.fence(Epoch(2)).await.expect("fenced");
        let end = standby.standby(|standby| !standby.receiving && standby.position.is_some()).await.position;
        load.await.expect("it ended").expect("the primary goes on");
        // The last record may be there in part only, so replay need not reach the end.
        let seen = standby.standby(|_| true).await;
        assert_eq!((seen.position, seen.receiving), (end, false), "nothing came after the fence");
        let client = standby.connect().await;
        let row = client.query_one("SELECT pg_get_wal_replay_pause_state()", &[]).await.expect("a row");
        assert_eq!(row.get::<_, String>(0), "not paused");
    });
}

#[test]
fn alter_system_cannot_undo_a_fence() {
    run(async |place| {
        let primary = place.primary("n1").await;
        let standby = place.standby("n2", &primary, 1).await;
        let own: String =
            standby.connect().await.query_one("SHOW primary_conninfo", &[]).await.expect("a row").get(0);
        standby.sql(&format!("ALTER SYSTEM SET primary_conninfo = '{}'", own.replace('\'', "''"))).await;
        standby.sql("SELECT pg_reload_conf()").await;
        standby.engine.fence(Epoch(2)).await.expect("fenced");
        standby.standby(|standby| !standby.receiving).await;
        standby.stop(StopMode::Fast).await;
        standby.done(Work::StartStandby { upstream: None }).await;
        standby.standby(|standby| !standby.receiving && standby.position.is_some()).await;
    });
}

#[test]
fn a_promotion_needs_its_script_and_a_stop_waits_for_its_own() {
    run(async |place| {
        let first = place.primary("n1").await;
        let mut settings = place.standby("n2", &first, 1).await.settings;
        let path = |name: &str| place.folder.join(name);
        let is_there = |name: &str| path(name).exists();
        settings.pre_promote = Some(format!("sh -c 'test -e {}'", path("allowed").display()));
        settings.before_stop = Some(format!("sh -c 'touch {}; exit 1'", path("asked").display()));
        settings.callbacks.on_role_change = Some(format!("sh -c 'echo $* > {}' -", path("told").display()));
        let second = Member::open(settings);
        second.standby(|standby| standby.streaming).await;

        let seen = second.ended(promote(2, SyncNames::Nobody)).await;
        let failed = seen.failed.expect("the script is against it");
        assert!(failed.error.contains("pre_promote"), "{}", failed.error);
        assert!(matches!(seen.server, Server::Standby(_)), "{:?}", seen.server);

        fs::write(path("allowed"), "").expect("written");
        second.done(promote(2, SyncNames::Nobody)).await;
        second
            .until(|_| {
                fs::read_to_string(path("told")).is_ok_and(|said| said == "on_role_change primary test\n")
            })
            .await;

        second.stop(StopMode::Immediate).await;
        assert!(!is_there("asked"), "nobody waits before a stop at once");
        second.done(Work::StartPrimary { epoch: Epoch(2), sync: SyncNames::Nobody }).await;
        second.stop(StopMode::Fast).await;
        assert!(is_there("asked"));
    });
}

/// A command that gets the engine's words from `$1` on.
fn shell(name: &str, script: &str) -> ReplicaCommand {
    let command = format!("sh -c '{script}' -");
    ReplicaCommand { name: name.into(), command, ..ReplicaCommand::default() }
}

#[test]
fn a_copy_is_made_by_the_first_command_that_can_and_keeps_what_it_must() {
    run(async |place| {
        let first = place.primary("n1").await;
        let backup = place.standby("n2", &first, 1).await;
        backup.stop(StopMode::Fast).await;
        let said = place.folder.join("said");
        let copy = format!(
            "echo \"$*\" > {}; cp -a {}/. \"${{3#--datadir=}}\"",
            said.display(),
            backup.settings.data_dir.display()
        );
        let mut settings = place.member("n3").settings;
        let mut broken = shell("broken", "echo junk > \"${3#--datadir=}\"/junk; exit 1");
        broken.options.insert("repo".into(), "2".into());
        settings.replica_methods =
            vec![ReplicaMethod::Command(broken), ReplicaMethod::Command(shell("copy", &copy))];
        let third = Member::open(settings.clone());
        third.done(Work::Clone { address: first.address(), keep_old: false }).await;
        let expected = format!(
            "--scope=test --role=replica --datadir={} --connstring=postgres://replicator@{}/postgres\n",
            settings.data_dir.display(),
            first.address()
        );
        assert_eq!(fs::read_to_string(&said).expect("it was run"), expected);
        assert!(!settings.data_dir.join("junk").exists());
        first.engine.slots(&[("n3".into(), None)], &[], &[]).await.expect("a slot");
        third.done(Work::StartStandby { upstream: Some(first.as_upstream(1)) }).await;
        third.standby(|standby| standby.streaming).await;
        third.stop(StopMode::Fast).await;
        drop(third);

        let restore = ReplicaCommand {
            keep_data: true,
            no_params: true,
            ..shell("restore", "test $# = 0 && test -e n3/PG_VERSION")
        };
        let folder = format!("cd {} && ", place.folder.display());
        let restore = ReplicaCommand {
            command: restore.command.replace("test $#", &format!("{folder}test $#")),
            ..restore
        };
        settings.replica_methods = vec![ReplicaMethod::Command(restore)];
        let third = Member::open(settings.clone());
        third.done(Work::Clone { address: first.address(), keep_old: false }).await;
        let seen = third.ended(Work::Clone { address: first.address(), keep_old: true }).await;
        assert!(seen.failed.expect("nothing was there").error.contains("restore"));
        let kept = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("n3.old-");
        assert!(fs::read_dir(&place.folder).expect("its folder").flatten().any(|entry| kept(&entry)));
        assert!(third.engine.observe().await.half_built, "what a command left is not started");
    });
}
