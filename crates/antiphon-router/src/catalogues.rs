//! What names mean in each database: read from the leader, again after a change and from time to time.
//!
//! A change that passes through this router makes the database's catalogue unknown at once, so that nothing is
//! taken for a read by what names meant before. One that is made elsewhere is seen within [`EVERY`].

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::dial::{self, described};
use crate::settings::Account;
use crate::shared::{Note, Shared, Target, lock};
use antiphon_sql::Catalogue;
use antiphon_sql::catalogue::QUERY;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

/// How often a catalogue is read that nobody is known to have changed.
const EVERY: Duration = Duration::from_secs(15);
/// How long reading one may take.
const READ_MAX: Duration = Duration::from_secs(20);
/// The pause before another attempt.
const PAUSE: Duration = Duration::from_millis(500);
/// The pause after a change, since more of them come at a time: this, and so many times what reading took, so that
/// whoever changes the schema all day does not keep the leader busy.
const SETTLES: Duration = Duration::from_millis(50);
const RESTS_FOR: u32 = 4;

/// The catalogues as they are known, by database.
#[derive(Debug, Default)]
pub struct Catalogues(Mutex<HashMap<String, Known>>);

#[derive(Debug, Default)]
struct Known {
    /// How often this router saw the schema change.
    changes: u64,
    catalogue: Option<Arc<Catalogue>>,
}

impl Catalogues {
    /// What is known of a database.
    pub fn get(&self, database: &str) -> Option<Arc<Catalogue>> {
        lock(&self.0).get(database)?.catalogue.clone()
    }

    fn changes(&self, database: &str) -> u64 {
        lock(&self.0).get(database).map_or(0, |known| known.changes)
    }

    /// Names of a database may mean something else now: `tell` hands that to the threads.
    pub fn changed(&self, database: &str, tell: impl FnOnce()) {
        let mut all = lock(&self.0);
        let known = all.entry(database.to_owned()).or_default();
        known.changes += 1;
        known.catalogue = None;
        tell();
    }

    /// A catalogue was read, begun after so many changes: whether it is still true, and told.
    fn learned(&self, database: &str, changes: u64, catalogue: &Arc<Catalogue>, tell: impl FnOnce()) -> bool {
        let mut all = lock(&self.0);
        let known = all.entry(database.to_owned()).or_default();
        if known.changes != changes {
            return false;
        }
        known.catalogue = Some(catalogue.clone());
        tell();
        true
    }
}

/// The tasks that keep catalogues, by database.
#[derive(Debug, Default)]
pub struct Keepers(HashMap<String, (Arc<Notify>, Task)>);

#[derive(Debug)]
struct Task(tokio::task::JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Keepers {
    /// A database's catalogue is wanted, or wanted anew.
    pub fn want(&mut self, shared: &Arc<Shared>, database: String, follows: &watch::Receiver<Target>) {
        if let Some((again, _)) = self.0.get(&database) {
            again.notify_one();
            return;
        }
        let again = Arc::new(Notify::new());
        let keeps = keep(shared.clone(), database.clone(), again.clone(), follows.clone());
        self.0.insert(database, (again, Task(tokio::spawn(keeps))));
    }
}

/// Keeps the catalogue of a database for ever.
async fn keep(shared: Arc<Shared>, database: String, again: Arc<Notify>, follows: watch::Receiver<Target>) {
    let mut settings = shared.watch_settings();
    let mut last = None;
    let mut told = false;
    loop {
        let account = settings.borrow_and_update().reads.as_ref().map(|reads| reads.account.clone());
        let Some(account) = account else {
            // Nobody asks; and what is known grows old.
            shared
                .catalogues
                .changed(&database, || shared.tell_all(|| Note::Catalogue(database.clone(), None)));
            last = None;
            if settings.changed().await.is_err() {
                return;
            }
            continue;
        };
        let changes = shared.catalogues.changes(&database);
        let leader = follows.borrow().leader;
        let began = Instant::now();
        let read = match leader {
            Some(leader) => timeout(READ_MAX, read(&shared, &account, &database, leader)).await,
            None => Ok(Err("the cluster has no leader".to_owned())),
        };
        let rest = SETTLES.max(began.elapsed() * RESTS_FOR);
        match read.unwrap_or_else(|_| Err("it took too long".to_owned())) {
            Ok(rows) => {
                told = false;
                let mut hash = DefaultHasher::new();
                (changes, &rows).hash(&mut hash);
                let hash = Some(hash.finish());
                if hash != last {
                    let rows = rows.iter().map(|row| row.each_ref().map(String::as_str));
                    let catalogue = Arc::new(Catalogue::from_rows(rows));
                    tracing::debug!(database, names = catalogue.len(), "learned what names mean");
                    let tell =
                        || shared.tell_all(|| Note::Catalogue(database.clone(), Some(catalogue.clone())));
                    if !shared.catalogues.learned(&database, changes, &catalogue, tell) {
                        sleep(rest).await;
                        continue;
                    }
                    last = hash;
                }
            }
            Err(why) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::info!(
                        database,
                        why,
                        "a catalogue could not be read; statements go to the leader"
                    );
                }
                sleep(PAUSE).await;
                continue;
            }
        }
        tokio::select! {
            () = again.notified() => sleep(rest).await,
            () = sleep(EVERY) => {}
            changed = settings.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

/// The rows of which a catalogue is made.
async fn read(
    shared: &Shared,
    account: &Account,
    database: &str,
    leader: SocketAddr,
) -> Result<Vec<[String; 6]>, String> {
    let described = |error: tokio_postgres::Error| described(&error);
    let (mut config, connector) = dial::config(shared, account, leader);
    config.dbname(database);
    let (client, connection) = config.connect(connector).await.map_err(described)?;
    let drives = async {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "the connection for a catalogue ended");
        }
    };
    let _drives = Task(tokio::spawn(drives));
    let rows = client.query(QUERY, &[]).await.map_err(described)?;
    let text = |row: &tokio_postgres::Row, at: usize| row.try_get::<_, String>(at);
    let read = rows.iter().map(|row| {
        Ok([text(row, 0)?, text(row, 1)?, text(row, 2)?, text(row, 3)?, text(row, 4)?, text(row, 5)?])
    });
    read.collect::<Result<_, _>>().map_err(described)
}
