//! Start, stop, death and adoption of one server.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use antiphon_core::ha::world::{Server, StopMode, SyncNames, Task};
use antiphon_core::{Epoch, Timeline};
use antiphon_engine::{Change, Engine, EngineError, PendingRestart, Work};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Member, has_program, run};

#[test]
fn a_new_cluster_starts_stops_and_starts_again() {
    run(async |place| {
        let member = place.member("n1");
        assert_eq!(member.engine.observe().await.server, Server::Absent);
        let seen = member.done(Work::Initialise).await;
        assert!(!seen.half_built && seen.system_identifier.is_some(), "{seen:?}");
        let primary = member.primary(|_| true).await;
        assert_eq!(
            (primary.timeline, primary.sync, primary.history.len()),
            (Timeline(1), SyncNames::Nobody, 0)
        );
        let stopped = member.stop(StopMode::Fast).await;
        assert!(stopped.clean && stopped.primary && stopped.crash.is_none(), "{stopped:?}");
        assert!(stopped.checkpoint.lsn >= primary.flushed);
        member.done(Work::StartPrimary { epoch: Epoch(1), sync: SyncNames::Nobody }).await;
        member.primary(|primary| primary.timeline == Timeline(1)).await;
        let stopped = member.stop(StopMode::Immediate).await;
        assert!(!stopped.clean && stopped.crash.is_none(), "{stopped:?}");
    });
}

#[test]
fn what_the_control_file_says_is_what_pg_controldata_says() {
    run(async |place| {
        if !has_program("pg_controldata") {
            return eprintln!("skipped: there is no pg_controldata");
        }
        let member = place.primary("n1").await;
        let stopped = member.stop(StopMode::Fast).await;
        let seen = member.engine.observe().await;
        let data = member.connect_free_controldata();
        let field =
            |name: &str| data.iter().find_map(|(key, value)| (key == name).then(|| value.clone())).unwrap();
        assert_eq!(seen.system_identifier, Some(field("Database system identifier")));
        assert_eq!(stopped.checkpoint.lsn.to_string(), field("Latest checkpoint location"));
        assert_eq!(stopped.checkpoint.timeline.to_string(), field("Latest checkpoint's TimeLineID"));
        assert_eq!(field("Database cluster state"), "shut down");
    });
}

#[test]
fn a_killed_main_process_is_noticed_at_once_and_its_orphans_are_waited_for() {
    run(async |place| {
        let member = place.primary("n1").await;
        member.primary(|_| true).await;
        let busy = member.connect().await;
        let busy =
            tokio::spawn(
                async move { busy.batch_execute("SELECT count(*) FROM generate_series(1, 1e10)").await },
            );
        member.sql("SELECT 1").await;
        let mut events = member.engine.events();
        events.mark_unchanged();
        let begun = Instant::now();
        kill(Pid::from_raw(member.pid()), Signal::SIGKILL).expect("killed");
        events.changed().await.expect("the engine lives");
        let noticed = begun.elapsed();
        assert!(noticed < Duration::from_millis(100), "noticed after {noticed:?}");
        eprintln!("exit noticed after {noticed:?}");
        member.until(|seen| matches!(&seen.server, Server::Orphans { how } if how.contains("SIGKILL"))).await;
        member.done(Work::Stop { mode: StopMode::Kill }).await;
        let stopped = member.stopped().await;
        assert!(!stopped.clean && stopped.crash.is_some_and(|how| how.contains("SIGKILL")));
        assert!(busy.await.expect("it ended").is_err());
        member.done(Work::StartPrimary { epoch: Epoch(1), sync: SyncNames::Nobody }).await;
    });
}

#[test]
fn a_crash_of_one_backend_ends_the_server_instead_of_restarting_it() {
    run(async |place| {
        let member = place.primary("n1").await;
        member.primary(|_| true).await;
        let client = member.connect().await;
        let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await.expect("a pid").get(0);
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("killed");
        let stopped = member.stopped().await;
        assert!(stopped.crash.is_some(), "{stopped:?}");
    });
}

#[test]
fn a_running_server_is_adopted_and_its_end_noticed() {
    run(async |place| {
        let first = place.primary("n1").await;
        first.primary(|_| true).await;
        let pid = first.pid();
        let settings = first.settings.clone();
        drop(first);
        let second = Member::open(settings);
        second.primary(|_| true).await;
        assert_eq!(second.pid(), pid);
        let refused = second.engine.begin(Work::StartPrimary { epoch: Epoch(1), sync: SyncNames::Nobody });
        refused.expect("begun");
        let seen = second.until(|seen| seen.task.is_none()).await;
        assert!(seen.failed.is_some_and(|failure| failure.task == Task::Start), "a second start must fail");
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("killed");
        second
            .until(|seen| matches!(&seen.server, Server::Stopped(stopped) if stopped.crash.is_some()))
            .await;
    });
}

#[test]
fn a_harder_stop_replaces_a_softer_one_and_nothing_else_interrupts_it() {
    run(async |place| {
        let member = place.primary("n1").await;
        member.primary(|_| true).await;
        let paused = Pid::from_raw(member.pid());
        kill(paused, Signal::SIGSTOP).expect("paused");
        member.engine.begin(Work::Stop { mode: StopMode::Fast }).expect("begun");
        member.engine.begin(Work::Stop { mode: StopMode::Fast }).expect("the same again is no error");
        let busy = member.engine.begin(Work::Checkpoint).expect_err("a stop goes on");
        assert!(matches!(busy, EngineError::Busy { .. }));
        assert!(member.engine.observe().await.task.is_some());
        member.engine.begin(Work::Stop { mode: StopMode::Kill }).expect("harder");
        member.engine.begin(Work::Stop { mode: StopMode::Fast }).expect_err("softer");
        member.stopped().await;
    });
}

#[test]
fn a_server_that_does_not_answer_is_stuck_after_the_timeout_and_no_look_takes_longer_than_it_may() {
    run(async |place| {
        let member = place.primary("n1").await;
        member.primary(|_| true).await;
        let paused = Pid::from_raw(member.pid());
        for pid in member.backend_pids().await {
            kill(Pid::from_raw(pid), Signal::SIGSTOP).expect("paused");
        }
        kill(paused, Signal::SIGSTOP).expect("paused");
        let begun = Instant::now();
        let mut longest = Duration::ZERO;
        loop {
            let look = Instant::now();
            let seen = member.engine.observe().await;
            longest = longest.max(look.elapsed());
            if matches!(&seen.server, Server::Stuck { primary: true, .. }) {
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(10), "{seen:?}");
        }
        assert!(longest < Duration::from_millis(700), "a look took {longest:?}");
        member.done(Work::Stop { mode: StopMode::Kill }).await;
    });
}

#[test]
fn a_setting_that_needs_a_restart_is_reported_and_others_take_effect() {
    run(async |place| {
        let member = place.primary("n1").await;
        let mut parameters = member.settings.parameters.clone();
        parameters.insert("work_mem".into(), "7MB".into());
        let change = Change { parameters: parameters.clone(), ..Change::default() };
        assert!(!member.engine.reload(change).await.expect("reloaded"));
        let shown: String =
            member.connect().await.query_one("SHOW work_mem", &[]).await.expect("a row").get(0);
        assert_eq!(shown, "7MB");
        parameters.insert("max_connections".into(), "40".into());
        let change = Change { parameters, ..Change::default() };
        assert!(member.engine.reload(change).await.expect("reloaded"));
        let value = |text: &str| Some(text.to_owned());
        let change = PendingRestart { old_value: value("30"), new_value: value("40") };
        let pending = BTreeMap::from([("max_connections".to_owned(), change)]);
        member.until(|_| member.engine.about().pending_restart == pending).await;
    });
}

impl Member {
    /// What pg_controldata says, as pairs.
    fn connect_free_controldata(&self) -> Vec<(String, String)> {
        let folder = self.settings.bin_dir.clone().unwrap_or_else(|| {
            let config = std::process::Command::new("pg_config").arg("--bindir").output().expect("pg_config");
            String::from_utf8_lossy(&config.stdout).trim().into()
        });
        let output = std::process::Command::new(folder.join("pg_controldata"))
            .arg(&self.settings.data_dir)
            .env("LC_ALL", "C")
            .output()
            .expect("pg_controldata");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let pair =
            |line: &str| line.split_once(':').map(|(key, value)| (key.to_owned(), value.trim().to_owned()));
        text.lines().filter_map(pair).collect()
    }

    /// Every process of the server but the main one.
    async fn backend_pids(&self) -> Vec<i32> {
        let client = self.connect().await;
        let rows = client.query("SELECT pid FROM pg_stat_activity WHERE application_name = 'antiphon'", &[]);
        rows.await.expect("rows").iter().map(|row| row.get(0)).collect()
    }
}
