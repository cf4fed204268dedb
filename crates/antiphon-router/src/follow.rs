//! Following the cluster: the events of every agent or what the servers say of themselves, and out of that where sessions go, to write and to read.
//!
//! All agents are followed at once, because any one of them may be cut off without knowing. What was known stays
//! known while none answers: a leader is then taken to lead, and its server says if that is not so.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use antiphon_tls::{ClientTls, Stream};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::dial;
use crate::feed::Feeds;
use crate::positions::Reading;
use crate::rest;
use crate::servers;
use crate::settings::{Account, Servers, Settings};
use crate::shared::{Shared, Target};
use crate::topology::{self, Leader, Member, Seen};

/// The longest event that is read.
const EVENT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Nothing for this long is a dead connection: agents send something every 10 s.
const SILENCE_MAX: Duration = Duration::from_secs(25);
/// How long connecting to an agent may take.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// The pause before another attempt.
const PAUSE: Duration = Duration::from_millis(200);
/// Events that wait to be read.
const EVENTS_MAX: usize = 64;
/// The first byte of a complaint in TLS, which no answer in HTTP begins with.
const ALERT: u8 = 0x15;
/// Who speaks for servers that are asked themselves.
const SERVERS: &str = "router.servers";
/// How long a host name may take to be looked up.
const RESOLVE_MAX: Duration = Duration::from_secs(2);

/// Follows all agents for ever; tells threads and `target` where sessions go.
pub async fn run(shared: Arc<Shared>, target: watch::Sender<Target>) {
    let (tell, mut told) = mpsc::channel(EVENTS_MAX);
    let mut settings = shared.watch_settings();
    let mut agents = Agents::new(tell);
    agents.follow(&shared, &settings.borrow_and_update().clone());
    let mut readers = Readers::new(&shared);
    let mut follows = Follows {
        shared,
        target,
        seen: BTreeMap::new(),
        resolved: None,
        tokens: BTreeMap::new(),
        resting: BTreeMap::new(),
    };
    loop {
        tokio::select! {
            news = told.recv() => {
                let Some((agent, news)) = news else { return };
                if follows.learned(agent, news) {
                    follows.look(&mut readers).await;
                }
            }
            changed = settings.changed() => {
                if changed.is_err() {
                    return;
                }
                let settings = settings.borrow_and_update().clone();
                agents.follow(&follows.shared, &settings);
                follows.forget(&settings);
                readers = readers.change(&follows.shared);
                follows.look(&mut readers).await;
            }
        }
    }
}

/// The agents that are followed.
struct Agents {
    tell: mpsc::Sender<(String, News)>,
    tasks: JoinSet<()>,
    followed: Vec<String>,
    asked: Option<Servers>,
}

impl Agents {
    fn new(tell: mpsc::Sender<(String, News)>) -> Self {
        Self { tell, tasks: JoinSet::new(), followed: Vec::new(), asked: None }
    }

    /// Follows the agents of these settings. With TLS all are followed anew: its files may have changed.
    fn follow(&mut self, shared: &Arc<Shared>, settings: &Settings) {
        let same = self.followed == settings.agents && self.asked == settings.servers;
        if same && settings.agents_tls.is_none() {
            return;
        }
        self.tasks = JoinSet::new();
        self.followed.clone_from(&settings.agents);
        self.asked.clone_from(&settings.servers);
        if let Some(servers) = settings.servers.clone() {
            let (tell, timeline) = (self.tell.clone(), shared.target().0.epoch);
            let tell = async move |seen| tell.send((SERVERS.to_owned(), News::Event(seen))).await.is_ok();
            self.tasks.spawn(servers::follow(shared.clone(), servers, timeline, tell));
        }
        for agent in &settings.agents {
            self.tasks.spawn(follow(agent.clone(), settings.agents_tls.clone(), self.tell.clone()));
        }
    }
}

/// What agents said, and what was made of it.
struct Follows {
    shared: Arc<Shared>,
    target: watch::Sender<Target>,
    seen: BTreeMap<String, Seen>,
    resolved: Option<(Leader, Target)>,
    /// What agents know this router by.
    tokens: BTreeMap<String, String>,
    /// The agents of leaders that are about to hand over; each hears when nothing is under way on its server.
    resting: BTreeMap<String, JoinSet<()>>,
}

impl Follows {
    /// Takes in what came from an agent; whether it counts.
    fn learned(&mut self, agent: String, news: News) -> bool {
        match news {
            News::Event(event) if is_foreign(&self.shared, &event) => return false,
            News::Event(event) => drop(self.seen.insert(agent, event)),
            News::Token(token) => {
                self.tokens.insert(agent, token);
                return false;
            }
            News::Silence => {
                if let Some(seen) = self.seen.get_mut(&agent) {
                    seen.live = false;
                }
            }
        }
        true
    }

    /// Agents that are about to hand over hear when nothing is under way on their server any more. The threads have
    /// been told to hold back what begins there.
    fn come_to_rest(&mut self) {
        self.resting.retain(|agent, _| self.seen.get(agent).is_some_and(Seen::is_leaving));
        let leaving = self.seen.iter().filter(|(_, seen)| seen.is_leaving()).map(|(agent, _)| agent);
        let new: Vec<_> = leaving.filter(|agent| !self.resting.contains_key(*agent)).cloned().collect();
        for agent in new {
            let Some(token) = self.tokens.get(&agent).cloned() else { continue };
            let mut task = JoinSet::new();
            let tls = self.shared.settings().agents_tls.clone();
            task.spawn(rest::tell(self.shared.clone(), agent.clone(), tls, token));
            self.resting.insert(agent, task);
        }
    }

    /// Agents that are not followed any more say nothing new; the newest that one of them said stays known.
    fn forget(&mut self, settings: &Settings) {
        let newest = topology::newest(self.seen.values()).0;
        self.seen.retain(|agent, seen| {
            let followed = settings.agents.contains(agent) || settings.servers.is_some();
            seen.live &= followed;
            followed || seen.epoch == newest
        });
    }

    /// Tells where sessions go if that is news.
    async fn look(&mut self, readers: &mut Readers) {
        let (epoch, leader) = topology::newest(self.seen.values());
        let next = match (&leader, &self.resolved) {
            (None, _) => Target { epoch, leader: None },
            (Some(leader), Some((known, target))) if leader == known && target.epoch == epoch => *target,
            (Some(leader), _) => {
                let next = Target { epoch, leader: resolve(&self.shared, &leader.host, leader.port).await };
                self.resolved = next.leader.map(|_| (leader.clone(), next));
                next
            }
        };
        if *self.target.borrow() != next {
            tracing::info!(epoch = next.epoch, leader = ?next.leader, "the router follows");
            // At once: finding the addresses of followers may take a while.
            self.shared.set_target(next, readers.without_leader());
            self.target.send_replace(next);
        }
        self.come_to_rest();
        if let Some(reading) = readers.look(&self.shared, &self.seen, epoch, leader.as_ref(), next).await {
            self.shared.set_target(next, Some(reading));
        }
    }
}

fn is_foreign(shared: &Shared, event: &Seen) -> bool {
    let scope = &shared.settings().scope;
    let foreign = scope.as_ref().is_some_and(|scope| *scope != event.scope);
    if foreign {
        tracing::warn!(scope = event.scope, "an agent in router.agents belongs to another cluster");
    }
    foreign
}

/// Who is read from.
enum Readers {
    /// Nobody but the leader. The threads know unless that is new.
    Nobody {
        told: bool,
    },
    Followers(Box<Followers>),
}

impl Readers {
    fn new(shared: &Arc<Shared>) -> Self {
        match &shared.settings().reads {
            None => Self::Nobody { told: true },
            Some(reads) => Self::Followers(Box::new(Followers::new(shared, &reads.account))),
        }
    }

    /// What the settings of today ask for; feeds begin anew if servers are asked with another account.
    fn change(self, shared: &Arc<Shared>) -> Self {
        match (self, &shared.settings().reads) {
            (Self::Followers(followers), Some(reads)) if followers.account == reads.account => {
                Self::Followers(followers)
            }
            (Self::Nobody { told }, None) => Self::Nobody { told },
            (Self::Followers(_), None) => Self::Nobody { told: false },
            (_, Some(_)) => Self::new(shared),
        }
    }

    /// The picture while the leader changes: nobody's position covers what is written meanwhile.
    fn without_leader(&self) -> Option<Reading> {
        match self {
            Self::Nobody { .. } => None,
            Self::Followers(followers) => Some(Reading { leader: None, ..followers.last.clone() }),
        }
    }

    /// The picture for the threads, if it is another one than before.
    async fn look(
        &mut self,
        shared: &Shared,
        seen: &BTreeMap<String, Seen>,
        newest: u64,
        leader: Option<&Leader>,
        target: Target,
    ) -> Option<Reading> {
        match self {
            Self::Nobody { told } => (!std::mem::replace(told, true)).then(Reading::default),
            Self::Followers(followers) => followers.look(shared, seen, newest, leader, target).await,
        }
    }
}

/// The followers that are read from, as last told.
struct Followers {
    account: Account,
    feeds: Feeds,
    epoch: u64,
    leader: Option<SocketAddr>,
    members: Vec<Member>,
    resolved: Vec<(Member, SocketAddr)>,
    last: Reading,
}

impl Followers {
    fn new(shared: &Arc<Shared>, account: &Account) -> Self {
        let feeds = Feeds::new(shared.clone(), account.clone());
        let (members, resolved, last) = (Vec::new(), Vec::new(), Reading::default());
        Self { account: account.clone(), feeds, epoch: 0, leader: None, members, resolved, last }
    }

    async fn look(
        &mut self,
        shared: &Shared,
        seen: &BTreeMap<String, Seen>,
        newest: u64,
        leader: Option<&Leader>,
        target: Target,
    ) -> Option<Reading> {
        // Positions are an epoch's: while nobody leads, they are still those of the last one that was led.
        let epoch = if target.leader.is_some() { newest } else { self.epoch };
        let leader = leader.filter(|_| target.leader.is_some());
        let members = topology::followers(seen.values(), newest, leader, &self.members);
        if members == self.members && epoch == self.epoch && target.leader == self.leader {
            return None;
        }
        let mut resolved = Vec::new();
        for member in &members {
            let known = self.members.iter().find(|known| *known == member);
            let same = |(at, _): &&(Member, SocketAddr)| known.is_some_and(|known| at.name == known.name);
            match self.resolved.iter().find(same) {
                Some((_, address)) => resolved.push((member.clone(), *address)),
                None => {
                    let address = resolve(shared, &member.host, member.port).await;
                    resolved.extend(address.map(|address| (member.clone(), address)));
                }
            }
        }
        let names: Vec<&str> = resolved.iter().map(|(member, _)| member.name.as_str()).collect();
        tracing::info!(epoch, followers = ?names, "reads may go to");
        (self.epoch, self.leader, self.members) = (epoch, target.leader, members);
        self.resolved = resolved;
        self.last = self.feeds.update(epoch, target.leader, &self.resolved);
        Some(self.last.clone())
    }
}

/// The address of a server, which keeps its name: its certificate is for that.
async fn resolve(shared: &Shared, host: &str, port: u16) -> Option<SocketAddr> {
    let found = timeout(RESOLVE_MAX, tokio::net::lookup_host((host, port))).await;
    let addresses: Vec<_> = match found {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(_)) | Err(_) => Vec::new(),
    };
    if addresses.is_empty() {
        tracing::warn!(host, "a server's host has no address; sessions do not go there");
    }
    let address = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first()).copied();
    address.inspect(|address| shared.set_host(*address, host))
}

/// What comes from an agent.
enum News {
    Event(Seen),
    /// It knows this router by that.
    Token(String),
    /// The connection to it broke.
    Silence,
}

async fn follow(agent: String, tls: Option<ClientTls>, tell: mpsc::Sender<(String, News)>) {
    let mut told = false;
    loop {
        match read_events(&agent, tls.as_ref(), &tell).await {
            Ok(()) => {}
            Err(End::BrokeOff(why)) => {
                tracing::debug!(agent, why, "an agent's events broke off");
                told = false;
            }
            Err(End::NoTls(why)) if told => tracing::debug!(agent, why, "an agent cannot be followed"),
            Err(End::NoTls(why)) => {
                tracing::warn!(agent, why, "an agent cannot be followed (router.agents_tls)");
                told = true;
            }
        }
        if tell.send((agent.clone(), News::Silence)).await.is_err() {
            return;
        }
        sleep(PAUSE).await;
    }
}

/// Why an agent is not heard any more.
enum End {
    /// The connection broke, or there was none.
    BrokeOff(String),
    /// The two do not agree on TLS: it does not pass by itself.
    NoTls(String),
}

impl From<String> for End {
    fn from(why: String) -> Self {
        Self::BrokeOff(why)
    }
}

async fn connected(agent: &str, tls: Option<&ClientTls>) -> Result<Stream, End> {
    let stream = timeout(CONNECT_MAX, dial::agent(agent, tls)).await;
    stream.map_err(|_| "no connection in time".to_owned())?.map_err(|error| broken(&error))
}

async fn read_events(
    agent: &str,
    tls: Option<&ClientTls>,
    tell: &mpsc::Sender<(String, News)>,
) -> Result<(), End> {
    let mut stream = connected(agent, tls).await?;
    // In HTTP/1.0 the answer ends with its connection and has no chunks.
    let request =
        format!("GET /events?router HTTP/1.0\r\nHost: {agent}\r\nAccept: text/event-stream\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(|error| broken(&error))?;
    stream.flush().await.map_err(|error| broken(&error))?;
    let mut buffer = Vec::new();
    let mut answered = false;
    let mut part = vec![0; 16 * 1024];
    loop {
        let bytes = timeout(SILENCE_MAX, stream.read(&mut part)).await;
        let bytes = bytes.map_err(|_| "silence".to_owned())?.map_err(|error| broken(&error))?;
        if bytes == 0 {
            return Err("the agent ended it".to_owned().into());
        }
        buffer.extend_from_slice(part.get(..bytes).unwrap_or_default());
        if buffer.len() > EVENT_BYTES_MAX {
            return Err("an event is too long".to_owned().into());
        }
        if !answered && buffer.first() == Some(&ALERT) && tls.is_none() {
            return Err(End::NoTls("it speaks TLS, and is asked in the clear".to_owned()));
        }
        if !answered {
            let Some(end) = end_of(&buffer, b"\r\n\r\n") else { continue };
            let head: Vec<u8> = buffer.drain(..end).collect();
            if !head.starts_with(b"HTTP/1.") || head.get(9..12) != Some(b"200") {
                return Err("the agent has no events for us".to_owned().into());
            }
            answered = true;
        }
        while let Some(end) = end_of(&buffer, b"\n\n") {
            let event: Vec<u8> = buffer.drain(..end).collect();
            if let Some(news) = news(&event)
                && tell.send((agent.to_owned(), news)).await.is_err()
            {
                return Ok(());
            }
        }
    }
}

/// In TLS 1.3 the verdict on a certificate comes when the connection seems to stand already.
fn broken(error: &std::io::Error) -> End {
    antiphon_tls::reason(error).map_or_else(|| End::BrokeOff(error.to_string()), End::NoTls)
}

fn end_of(buffer: &[u8], mark: &[u8]) -> Option<usize> {
    buffer.windows(mark.len()).position(|part| part == mark).map(|at| at + mark.len())
}

/// What an event says; none for comments and for events of no known kind.
fn news(event: &[u8]) -> Option<News> {
    let text = String::from_utf8_lossy(event);
    let data = text.lines().find_map(|line| line.strip_prefix("data:"))?;
    let data = serde_json::from_str::<Value>(data.trim_start()).ok()?;
    let token = data.get("token").and_then(Value::as_str);
    // It goes into the head of a request.
    let token = token.filter(|token| token.bytes().all(|byte| byte.is_ascii_hexdigit()));
    match token {
        Some(token) => Some(News::Token(token.to_owned())),
        None => Seen::of_event(&data).map(News::Event),
    }
}
