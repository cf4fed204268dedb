//! Sampling positions: one connection a server, one small question at a time, and threads read the answers.
//!
//! Often while somebody waits for a position, less often while followers are read from, seldom else. It is the
//! health check of followers, too: one whose feed broke or is silent is not read from. Nothing here decides where
//! a read goes (`positions`).

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use crate::dial::{self, described};
use crate::positions::{Feed, Follower, Reading, end_of_wal};
use crate::settings::Account;
use crate::shared::{Shared, lock};
use crate::topology::Member;

/// How often a server is sampled while a session waits for its position.
const URGENT: Duration = Duration::from_millis(2);
/// How often while followers are read from.
const READ: Duration = Duration::from_millis(20);
/// How often while they are not.
const IDLE: Duration = Duration::from_millis(200);
/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// The pause before another attempt to connect, and the longest one.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// What of the leader's past is kept: so many positions, so far apart.
const TRAIL_MAX: usize = 10_000;
const TRAIL_EVERY_MS: u64 = 20;

const LEADER: &str = "SELECT pg_catalog.pg_current_wal_insert_lsn()";
const FOLLOWER: &str = "SELECT pg_catalog.pg_last_wal_replay_lsn()";
const SIZES: &str = "SELECT setting::pg_catalog.int8 * CASE unit WHEN '8kB' THEN 8192 ELSE 1 END \
                     FROM pg_catalog.pg_settings WHERE name IN ('wal_block_size', 'wal_segment_size') ORDER BY name";

/// Where the leader was, and when.
#[derive(Debug, Default)]
struct Trail(VecDeque<(u64, u64)>);

impl Trail {
    /// The leader was here when it was asked at this time.
    fn was(&mut self, asked_ms: u64, lsn: u64) {
        match self.0.back_mut() {
            // As far as it was before: the newest time says most.
            Some(last) if last.1 == lsn => last.0 = asked_ms,
            Some(last) if asked_ms < last.0 + TRAIL_EVERY_MS => {}
            Some(_) | None => self.0.push_back((asked_ms, lsn)),
        }
        if self.0.len() > TRAIL_MAX {
            self.0.pop_front();
        }
    }

    /// The latest time at which the leader had no more than this; 0 if that is longer ago than is kept.
    fn as_of(&self, lsn: u64) -> u64 {
        let behind = self.0.partition_point(|(_, was)| *was <= lsn);
        behind.checked_sub(1).and_then(|at| self.0.get(at)).map_or(0, |(at, _)| *at)
    }
}

/// The feeds of all servers.
pub struct Feeds {
    shared: Arc<Shared>,
    account: Account,
    trail: Arc<Mutex<Trail>>,
    leader: Option<(u64, SocketAddr, Arc<Feed>, Task)>,
    followers: BTreeMap<String, (Arc<Follower>, Task)>,
}

/// A task that ends with its owner.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Feeds {
    /// None yet; servers are asked with this account.
    pub fn new(shared: Arc<Shared>, account: Account) -> Self {
        let (trail, followers) = (Arc::default(), BTreeMap::new());
        Self { shared, account, trail, leader: None, followers }
    }

    /// These servers are there now: the picture for the threads. Who was there before keeps its feed.
    pub fn update(
        &mut self,
        epoch: u64,
        leader: Option<SocketAddr>,
        followers: &[(Member, SocketAddr)],
    ) -> Reading {
        let known = self.leader.take().filter(|(of, at, ..)| leader == Some(*at) && *of == epoch);
        self.leader = known.or_else(|| {
            // Another epoch's leader begins anew: what was compared with the old one's positions is not.
            let feed = Arc::new(Feed::new(self.shared.feed_number()));
            self.trail = Arc::default();
            let task = self.sampled(leader?, Sampled::Leader(feed.clone(), self.trail.clone()));
            Some((epoch, leader?, feed, task))
        });
        let wanted = |known: &Follower| {
            followers.iter().any(|(member, address)| {
                let same = *member.name == *known.name && *address == known.address;
                same && member.zone.as_deref() == known.zone.as_deref() && member.weight == known.weight
            })
        };
        self.followers.retain(|_, (follower, _)| wanted(follower));
        for (member, address) in followers {
            if !self.followers.contains_key(&member.name) {
                let mut follower = Follower::new(&member.name, *address, self.shared.feed_number());
                (follower.zone, follower.weight) = (member.zone.as_deref().map(Box::from), member.weight);
                let follower = Arc::new(follower);
                let task = self.sampled(*address, Sampled::Follower(follower.clone(), self.trail.clone()));
                self.followers.insert(member.name.clone(), (follower, task));
            }
        }
        Reading {
            epoch,
            leader: self.leader.as_ref().map(|(_, _, feed, _)| feed.clone()),
            followers: self.followers.values().map(|(follower, _)| follower.clone()).collect(),
        }
    }

    fn sampled(&self, address: SocketAddr, who: Sampled) -> Task {
        Task(tokio::spawn(sample(self.shared.clone(), self.account.clone(), address, who)))
    }
}

/// Who is sampled.
enum Sampled {
    Leader(Arc<Feed>, Arc<Mutex<Trail>>),
    Follower(Arc<Follower>, Arc<Mutex<Trail>>),
}

impl Sampled {
    fn feed(&self) -> &Feed {
        match self {
            Self::Leader(feed, _) => feed,
            Self::Follower(follower, _) => &follower.feed,
        }
    }
}

/// Samples a server for ever.
async fn sample(shared: Arc<Shared>, account: Account, address: SocketAddr, who: Sampled) {
    let mut pause = PAUSE;
    let mut told = false;
    loop {
        match connected(&shared, &account, address).await {
            Ok((client, mut connection)) => {
                who.feed().connected();
                (pause, told) = (PAUSE, false);
                // A server that is restarted is noticed by the end of the connection, between two samples, too.
                let why = tokio::select! {
                    why = samples(&shared, &client, &who) => why,
                    _ = &mut connection.0 => "it closed the connection".to_owned(),
                };
                tracing::debug!(%address, why, "a server is not sampled any more");
            }
            Err(why) if told => tracing::debug!(%address, why, "a server could not be sampled"),
            Err(why) => {
                tracing::info!(%address, why, "a server could not be sampled; it is not read from meanwhile");
                told = true;
            }
        }
        who.feed().lost();
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

async fn connected(
    shared: &Shared,
    account: &Account,
    address: SocketAddr,
) -> Result<(Client, Task), String> {
    let (config, connector) = dial::config(shared, account, address);
    let connected = timeout(ANSWER_MAX, config.connect(connector)).await;
    let (client, connection) =
        connected.map_err(|_| "it did not answer".to_owned())?.map_err(|error| described(&error))?;
    let drives = async {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "the connection of a feed ended");
        }
    };
    Ok((client, Task(tokio::spawn(drives))))
}

/// Samples over one connection until it breaks: why it did.
async fn samples(shared: &Shared, client: &Client, who: &Sampled) -> String {
    match samples_until_error(shared, client, who).await {
        Ok(never) => match never {},
        Err(why) => why,
    }
}

async fn samples_until_error(
    shared: &Shared,
    client: &Client,
    who: &Sampled,
) -> Result<std::convert::Infallible, String> {
    let within = async |what: &str| {
        let statement = timeout(ANSWER_MAX, client.prepare(what)).await.map_err(|_| "no answer")?;
        statement.map_err(|error| described(&error))
    };
    let (question, sizes) = match who {
        Sampled::Leader(..) => {
            let rows = timeout(ANSWER_MAX, client.query(SIZES, &[])).await.map_err(|_| "no answer")?;
            let rows = rows.map_err(|error| described(&error))?;
            let sizes: Vec<u64> =
                rows.iter().filter_map(|row| row.get::<_, i64>(0).try_into().ok()).collect();
            (within(LEADER).await?, sizes)
        }
        Sampled::Follower(..) => (within(FOLLOWER).await?, Vec::new()),
    };
    loop {
        let asked_ms = shared.clock_ms();
        let number = who.feed().begin();
        let row = timeout(ANSWER_MAX, client.query_one(&question, &[])).await.map_err(|_| "no answer")?;
        let lsn: Option<PgLsn> = row.and_then(|row| row.try_get(0)).map_err(|error| described(&error))?;
        let lsn: u64 = lsn.ok_or("it has no position")?.into();
        match who {
            Sampled::Leader(feed, trail) => {
                let [page, segment] = *sizes else { return Err("its WAL's sizes are not known".into()) };
                let lsn = end_of_wal(lsn, page, segment);
                lock(trail).was(asked_ms, lsn);
                feed.answered(number, lsn, asked_ms, shared.clock_ms());
            }
            Sampled::Follower(follower, trail) => {
                let as_of = lock(trail).as_of(lsn);
                follower.feed.answered(number, lsn, as_of, shared.clock_ms());
            }
        }
        shared.sampled();
        shared.pace.next(|| shared.clock_ms(), [URGENT, READ, IDLE]).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_follower_is_as_old_as_the_last_time_the_leader_had_no_more() {
        let mut trail = Trail::default();
        assert_eq!(trail.as_of(10), 0);
        for (at, lsn) in [(100, 10), (110, 11), (200, 20), (300, 20), (400, 30)] {
            trail.was(at, lsn);
        }
        assert_eq!(
            [9, 10, 19, 20, 29, 30, 99].map(|lsn| trail.as_of(lsn)),
            [0, 100, 100, 300, 300, 400, 400]
        );
        for at in 0..2 * TRAIL_MAX as u64 {
            trail.was(1000 + at * TRAIL_EVERY_MS, 100 + at);
        }
        assert!(trail.0.len() <= TRAIL_MAX);
    }
}
