//! What the engine does not touch, and what it never tells.

use std::fs;

use antiphon_core::ha::world::{Server, StopMode};
use antiphon_engine::{Engine, Work};

use crate::support::{Member, PASSWORDS, glob_logs, has_program, run};

fn refusal(server: Server) -> String {
    match server {
        Server::Refused { reason } => reason,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_folder_that_is_no_data_directory_is_refused_and_left_alone() {
    run(async |place| {
        let member = place.member("n1");
        fs::create_dir_all(&member.settings.data_dir).expect("a folder");
        let letter = member.settings.data_dir.join("letter.txt");
        fs::write(&letter, "dear").expect("a file");
        let reason = refusal(member.engine.observe().await.server);
        assert!(reason.contains("PG_VERSION"), "{reason}");
        for work in [Work::Initialise, Work::Clone { address: "127.0.0.1:1".into(), keep_old: false }] {
            assert!(member.ended(work).await.failed.is_some());
        }
        assert_eq!(fs::read_to_string(letter).expect("it is there"), "dear");
    });
}

#[test]
fn the_directory_of_another_cluster_or_version_is_refused() {
    run(async |place| {
        let member = place.primary("n1").await;
        member.stop(StopMode::Fast).await;
        member.engine.expect_system_identifier(Some("42".into()));
        let reason = refusal(member.engine.observe().await.server);
        assert!(reason.contains("another cluster"), "{reason}");
        let seen = member.ended(Work::StartStandby { upstream: None }).await;
        assert!(seen.failed.is_some_and(|failure| failure.error.contains("42")));
        member.engine.expect_system_identifier(None);
        member.stopped().await;
        fs::write(member.settings.data_dir.join("PG_VERSION"), "13\n").expect("written");
        let member = Member::open(member.settings.clone());
        let reason = refusal(member.until(|seen| matches!(seen.server, Server::Refused { .. })).await.server);
        assert!(reason.contains("13"), "{reason}");
    });
}

#[test]
fn passwords_are_in_no_log_and_on_no_command_line() {
    run(async |place| {
        if !has_program("pg_basebackup") {
            return eprintln!("skipped: there is no pg_basebackup");
        }
        let primary = place.primary("n1").await;
        let standby = place.member("n2");
        standby.engine.begin(Work::Clone { address: primary.address(), keep_old: false }).expect("begun");
        let mut seen_running = false;
        while standby.engine.observe().await.task.is_some() {
            seen_running |= command_lines().iter().any(|line| line.contains("pg_basebackup"));
            let told = command_lines()
                .into_iter()
                .find(|line| PASSWORDS.iter().any(|password| line.contains(password)));
            assert_eq!(told, None);
        }
        assert!(seen_running, "the base backup was never seen at work");
        assert_eq!(standby.engine.observe().await.failed, None);
        standby.done(Work::StartStandby { upstream: Some(primary.as_upstream(1)) }).await;
        standby.standby(|standby| standby.streaming).await;
        for log in glob_logs(&place.folder) {
            let text = fs::read_to_string(&log).expect("a log");
            assert!(text.contains("statement: "), "statements are logged, else this proves nothing");
            for password in PASSWORDS {
                assert!(!text.contains(password) && !text.contains(&password.replace('\'', "''")), "{text}");
            }
        }
    });
}

fn command_lines() -> Vec<String> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let read = |entry: fs::DirEntry| fs::read(entry.path().join("cmdline")).ok();
    entries.filter_map(read).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).collect()
}

#[test]
fn a_wrong_address_fails_a_clone_with_what_the_tool_said() {
    run(async |place| {
        if !has_program("pg_basebackup") {
            return eprintln!("skipped: there is no pg_basebackup");
        }
        let member = place.member("n1");
        let seen = member.ended(Work::Clone { address: "127.0.0.1:1".into(), keep_old: false }).await;
        let failure = seen.failed.expect("it failed");
        assert!(failure.error.contains("onnection refused") && failure.times == 1, "{failure:?}");
        let seen = member.ended(Work::Clone { address: "nowhere".into(), keep_old: false }).await;
        let failure = seen.failed.expect("it failed");
        assert!(failure.error.contains("host:port") && failure.times == 2, "{failure:?}");
    });
}
