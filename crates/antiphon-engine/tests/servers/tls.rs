//! Replication, base backups and rewinds over verified TLS, on servers that let nobody in without it.

use std::fs;
use std::path::Path;

use antiphon_core::ha::world::{StopMode, SyncNames};
use antiphon_core::{Epoch, Timeline};
use antiphon_engine::{Credentials, Engine, Work};
use antiphon_testcerts::Authority;

use crate::support::{Member, Place, has_program, run};

fn option(role: &mut Credentials, name: &str, value: impl AsRef<Path>) {
    role.options.insert(name.to_owned(), value.as_ref().to_string_lossy().into_owned());
}

/// A member whose server takes encrypted connections only, and a rewinder only with its certificate.
fn member(place: &Place, authority: &Authority, name: &str, trusted: &Path) -> Member {
    let mut settings = place.member(name).settings;
    let own = authority.issue(name, &["127.0.0.1"]);
    for (parameter, value) in [
        ("ssl", "on".to_owned()),
        ("ssl_cert_file", own.certificate.display().to_string()),
        ("ssl_key_file", own.key.display().to_string()),
        ("ssl_ca_file", authority.file.display().to_string()),
    ] {
        settings.parameters.insert(parameter.to_owned(), value);
    }
    settings.pg_hba = Some(vec![
        "local all all scram-sha-256".to_owned(),
        "hostssl replication replicator 127.0.0.1/32 scram-sha-256".to_owned(),
        "hostssl all rewinder 127.0.0.1/32 cert".to_owned(),
    ]);
    option(&mut settings.replication, "sslmode", "verify-full");
    option(&mut settings.replication, "sslrootcert", trusted);
    option(&mut settings.replication, "channel_binding", "require");
    let mut rewind = settings.rewind.take().expect("the rewinder");
    let proof = authority.issue("rewinder", &["rewinder"]);
    rewind.password = None;
    option(&mut rewind, "sslmode", "verify-full");
    option(&mut rewind, "sslrootcert", trusted);
    option(&mut rewind, "sslcert", &proof.certificate);
    option(&mut rewind, "sslkey", &proof.key);
    settings.rewind = Some(rewind);
    Member::open(settings)
}

/// Starts this member as the first one; false if the server to test with was built without TLS.
async fn is_primary(member: &Member) -> bool {
    let seen = member.ended(Work::Initialise).await;
    let log = fs::read_to_string(member.settings.state_dir.join("postgresql.log")).unwrap_or_default();
    if log.contains("SSL is not supported by this build") {
        eprintln!("skipped: the server was built without TLS");
        return false;
    }
    assert_eq!(seen.failed, None);
    true
}

async fn encrypted_receivers(primary: &Member) -> i64 {
    let query = "SELECT count(*) FROM pg_stat_replication JOIN pg_stat_ssl USING (pid) WHERE ssl";
    primary.connect().await.query_one(query, &[]).await.expect("an answer").get(0)
}

#[test]
fn a_follower_streams_is_rewound_and_streams_again_over_verified_tls() {
    run(async |place| {
        if !has_program("pg_basebackup") || !has_program("pg_rewind") {
            return eprintln!("skipped: there is no pg_basebackup or no pg_rewind");
        }
        let authority = Authority::new(&place.folder.join("certificates"), "ca");
        let first = member(&place, &authority, "n1", &authority.file);
        if !is_primary(&first).await {
            return;
        }
        let second = member(&place, &authority, "n2", &authority.file);
        second.done(Work::Clone { address: first.address(), keep_old: false }).await;
        first.engine.slots(&[("n2".into(), None)], &[], &[]).await.expect("a slot");
        second.done(Work::StartStandby { upstream: Some(first.as_upstream(1)) }).await;
        second.standby(|standby| standby.streaming && standby.position.is_some()).await;
        assert_eq!(encrypted_receivers(&first).await, 1);

        second.engine.fence(Epoch(2)).await.expect("fenced");
        second.standby(|standby| !standby.receiving && standby.position.is_some()).await;
        first.sql("CREATE TABLE only_there AS SELECT 1").await;
        let promote = Work::Promote { epoch: Epoch(2), timeline: Timeline(2), sync: SyncNames::Nobody };
        second.done(promote).await;
        second.done(Work::Checkpoint).await;
        first.stop(StopMode::Fast).await;
        first.done(Work::Rewind { address: second.address() }).await;
        second.engine.slots(&[("n1".into(), None)], &[], &[]).await.expect("a slot");
        first.done(Work::StartStandby { upstream: Some(second.as_upstream(2)) }).await;
        first.standby(|standby| standby.streaming).await;
        assert_eq!(encrypted_receivers(&second).await, 1);
    });
}

#[test]
fn nothing_is_copied_from_a_server_that_another_authority_vouches_for() {
    run(async |place| {
        if !has_program("pg_basebackup") || !has_program("pg_rewind") {
            return eprintln!("skipped: there is no pg_basebackup or no pg_rewind");
        }
        let folder = place.folder.join("certificates");
        let (ours, theirs) = (Authority::new(&folder, "ours"), Authority::new(&folder, "theirs"));
        let first = member(&place, &ours, "n1", &ours.file);
        if !is_primary(&first).await {
            return;
        }
        let doubting = member(&place, &ours, "n2", &theirs.file);
        let seen = doubting.ended(Work::Clone { address: first.address(), keep_old: false }).await;
        let error = seen.failed.expect("it failed").error;
        assert!(error.contains("certificate verify failed"), "{error}");

        // The same for the connection that asks the source of a rewind for its timeline.
        doubting.done(Work::Initialise).await;
        doubting.stop(StopMode::Fast).await;
        let seen = doubting.ended(Work::Rewind { address: first.address() }).await;
        let error = seen.failed.expect("it failed").error;
        assert!(error.contains("not signed by an authority that is trusted here"), "{error}");
    });
}
