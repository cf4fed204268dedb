//! The leader and its follower: two members of Antiphon, which run the servers that every way leads to.
//!
//! Every way goes to the same two servers, so agents and replication cost all of them alike. Nothing is written
//! while it is measured.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use tokio::process::Child;
use tokio_postgres::Client;

use super::Host;
use super::cell::Proof;
use super::pgbench::ACCOUNTS;
use crate::client;
use crate::process::{self, server_folder, start, wait_until};
use crate::systems::SCOPE;

/// Two members become a cluster within this time.
const WHOLE_LIMIT: Duration = Duration::from_secs(120);
/// The connections of one measurement are gone this soon after it.
const QUIET_LIMIT: Duration = Duration::from_secs(30);
/// How long filling the tables may take.
const FILL_LIMIT: Duration = Duration::from_secs(120);
/// How long it may take until both members have seen a pause.
const PAUSE_LIMIT: Duration = Duration::from_secs(60);
/// Rows of the table that is read whole, of 110 bytes each on the wire.
const ROWS: i64 = 1000;

/// One of the two members.
struct Member {
    name: &'static str,
    server: u16,
    api: u16,
    raft: u16,
}

const MEMBERS: [Member; 2] = [
    Member { name: "n1", server: 5432, api: 8008, raft: 2222 },
    Member { name: "n2", server: 5433, api: 8009, raft: 2223 },
];

/// The two servers at work.
pub(super) struct Servers {
    /// The port of the leader.
    pub(super) leader: u16,
    /// The port of the follower.
    pub(super) follower: u16,
    /// What the server keeps of the password that logins are measured with.
    pub(super) verifier: String,
    /// They end with this; the servers themselves with their host.
    _agents: Vec<Child>,
}

impl Servers {
    /// The members' APIs, which a router is told.
    pub(super) fn apis() -> String {
        MEMBERS.map(|member| format!("'127.0.0.1:{}'", member.api)).join(", ")
    }

    /// Starts both from nothing and fills their tables.
    pub(super) async fn start(host: &Host, antiphon: &Path) -> anyhow::Result<Servers> {
        let mut agents = Vec::new();
        for member in &MEMBERS {
            let folder = host.folder.join(member.name);
            server_folder(&folder)?;
            let file = folder.join("antiphon.yml");
            std::fs::write(&file, settings(host, member))?;
            let mut command = host.command(antiphon);
            command.arg("run").arg(&file);
            agents.push(start(command, &folder.join("antiphon.log"))?);
        }
        wait_until("no leader has a follower", WHOLE_LIMIT, || async {
            leader().await.map(drop).map_err(|error| format!("{error:#}"))
        })
        .await?;
        let leader = leader().await?;
        let follower = MEMBERS.iter().map(|member| member.server).find(|port| *port != leader);
        let follower = follower.context("there is no other member")?;
        let verifier = fill(host, leader).await?;
        wait_until("the follower has no table of ours", WHOLE_LIMIT, || async {
            let filled = count(follower, "SELECT count(*) FROM thousand").await;
            let filled = filled.map_err(|error| format!("{error:#}"))?;
            (filled == ROWS).then_some(()).ok_or_else(|| format!("{filled} rows"))
        })
        .await?;
        // The load leaves no processor free: who is slow to answer then must not be taken for dead.
        let mut command = host.command(antiphon);
        command.args(["pause", "--wait", "--url", &format!("http://127.0.0.1:{}", MEMBERS[0].api)]);
        process::run(command, PAUSE_LIMIT).await.context("failovers could not be switched off")?;
        Ok(Servers { leader, follower, verifier, _agents: agents })
    }

    /// Waits until both servers have done with the clients of the measurement before.
    pub(super) async fn quiet(&self) -> anyhow::Result<()> {
        let users = [Proof::Trust, Proof::Scram].map(|proof| format!("'{}'", proof.user())).join(", ");
        let query = format!("SELECT count(*) FROM pg_stat_activity WHERE usename IN ({users})");
        for port in [self.leader, self.follower] {
            wait_until("connections of an earlier measurement", QUIET_LIMIT, || async {
                let left = count(port, &query).await.map_err(|error| format!("{error:#}"))?;
                (left == 0).then_some(()).ok_or_else(|| format!("{left} are left on port {port}"))
            })
            .await?;
        }
        Ok(())
    }
}

/// A connection of our own to a server.
async fn connect(port: u16) -> anyhow::Result<Client> {
    let mut config = Host::config(port, Proof::Trust);
    config.user("postgres");
    client::connect(&config).await
}

async fn count(port: u16, query: &str) -> anyhow::Result<i64> {
    Ok(connect(port).await?.query_one(query, &[]).await?.try_get(0)?)
}

/// The port of the server that leads and has a follower.
async fn leader() -> anyhow::Result<u16> {
    let query =
        "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND NOT pg_is_in_recovery()";
    for member in &MEMBERS {
        if count(member.server, query).await? == 1 {
            return Ok(member.server);
        }
    }
    anyhow::bail!("both answer, but nobody streams")
}

/// Makes the roles and tables that are asked for; the verifier of the role that has a password.
async fn fill(host: &Host, leader: u16) -> anyhow::Result<String> {
    let (app, prover) = (Proof::Trust.user(), Proof::Scram.user());
    let mut command = host.command(&host.postgresql.join("pgbench"));
    command.args(["-i", "-q", "-h", "127.0.0.1", "-p", &leader.to_string(), "-U", "postgres", "postgres"]);
    process::run(command, FILL_LIMIT).await.context("pgbench could not make its tables")?;
    let client = connect(leader).await?;
    let password = Proof::Scram.password().unwrap_or_default();
    let statements = format!(
        "CREATE ROLE {app} LOGIN; CREATE ROLE {prover} LOGIN PASSWORD '{password}'; \
         CREATE TABLE thousand AS SELECT n AS number, repeat('x', 92) AS filler FROM generate_series(1, {ROWS}) n; \
         GRANT SELECT ON thousand, pgbench_accounts TO {app}, {prover}"
    );
    client.batch_execute(&statements).await.context("could not make the tables of the bench")?;
    for statement in
        ["VACUUM (FREEZE, ANALYZE) thousand", "VACUUM (FREEZE, ANALYZE) pgbench_accounts", "CHECKPOINT"]
    {
        client.batch_execute(statement).await.with_context(|| statement.to_string())?;
    }
    let accounts: i64 = client.query_one("SELECT count(*) FROM pgbench_accounts", &[]).await?.try_get(0)?;
    anyhow::ensure!(accounts == i64::from(ACCOUNTS), "pgbench made {accounts} accounts, not {ACCOUNTS}");
    let query = "SELECT rolpassword FROM pg_authid WHERE rolname = $1";
    Ok(client.query_one(query, &[&prover]).await?.try_get(0)?)
}

/// A member's node file. Connections that are proxied come from loopback, our own ones over the bridge.
fn settings(host: &Host, member: &Member) -> String {
    let Member { name, server, api, raft } = member;
    let others = MEMBERS.iter().filter(|other| other.name != *name);
    let partners: Vec<String> = others.map(|other| format!("'127.0.0.1:{}'", other.raft)).collect();
    format!(
        "scope: {SCOPE}\nname: {name}\n\
         restapi:\n  listen: 127.0.0.1:{api}\n  connect_address: 127.0.0.1:{api}\n\
         raft:\n  self_addr: '127.0.0.1:{raft}'\n  bind_addr: '127.0.0.1:{raft}'\n  \
         partner_addrs: [{partners}]\n  data_dir: {folder}/raft\n  password: bench\n\
         bootstrap:\n  dcs:\n    synchronous_mode: quorum\n    postgresql:\n      use_pg_rewind: true\n      \
         parameters:\n        max_connections: 400\n        wal_writer_delay: 10ms\n  \
         initdb:\n  - encoding: UTF8\n  - data-checksums\n\
         postgresql:\n  listen: 0.0.0.0:{server}\n  connect_address: 127.0.0.1:{server}\n  \
         data_dir: {folder}/data\n  bin_dir: {bin}\n  pgpass: {folder}/pgpass\n  authentication:\n    \
         superuser: {{username: postgres, password: bench}}\n    \
         replication: {{username: replicator, password: bench}}\n    \
         rewind: {{username: rewinder, password: bench}}\n  \
         parameters:\n    unix_socket_directories: {folder}\n  pg_hba:\n  - local all all trust\n  \
         - host all {prover} 127.0.0.1/32 scram-sha-256\n  - host all all 127.0.0.1/32 trust\n  \
         - host all all {network} trust\n  - host replication all 127.0.0.1/32 trust\n",
        partners = partners.join(", "),
        folder = host.folder.join(name).display(),
        bin = host.postgresql.display(),
        prover = Proof::Scram.user(),
        network = crate::net::NETWORK,
    )
}
