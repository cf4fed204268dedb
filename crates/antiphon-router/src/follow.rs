//! Following the cluster: the events of every agent, and out of them where sessions go, to write and to read.
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
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::feed::Feeds;
use crate::positions::Reading;
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
/// How long a host name may take to be looked up.
const RESOLVE_MAX: Duration = Duration::from_secs(2);

/// Follows all agents for ever; tells threads and `target` where sessions go.
pub async fn run(shared: Arc<Shared>, target: watch::Sender<Target>) {
    let (tell, mut told) = mpsc::channel(EVENTS_MAX);
    let mut followers = JoinSet::new();
    for (number, agent) in shared.settings.agents.iter().cloned().enumerate() {
        followers.spawn(follow(number, agent, shared.settings.agents_tls.clone(), tell.clone()));
    }
    drop(tell);
    let mut seen: BTreeMap<usize, Seen> = BTreeMap::new();
    let mut resolved: Option<(Leader, Target)> = None;
    let mut readers = Readers::new(&shared);
    while let Some((number, news)) = told.recv().await {
        match news {
            News::Event(event) if is_foreign(&shared, &event) => continue,
            News::Event(event) => drop(seen.insert(number, event)),
            News::Silence => {
                if let Some(seen) = seen.get_mut(&number) {
                    seen.live = false;
                }
            }
        }
        let (epoch, leader) = topology::newest(seen.values());
        let next = match (&leader, &resolved) {
            (None, _) => Target { epoch, leader: None },
            (Some(leader), Some((known, target))) if leader == known && target.epoch == epoch => *target,
            (Some(leader), _) => {
                let next = Target { epoch, leader: resolve(&shared, &leader.host, leader.port).await };
                resolved = next.leader.map(|_| (leader.clone(), next));
                next
            }
        };
        if *target.borrow() != next {
            tracing::info!(epoch = next.epoch, leader = ?next.leader, "the router follows");
            // At once: finding the addresses of followers may take a while.
            shared.set_target(next, readers.as_ref().map(Readers::without_leader));
            target.send_replace(next);
        }
        if let Some(readers) = &mut readers
            && let Some(reading) = readers.look(&shared, &seen, epoch, leader.as_ref(), next).await
        {
            shared.set_target(next, Some(reading));
        }
    }
}

fn is_foreign(shared: &Shared, event: &Seen) -> bool {
    let foreign = shared.settings.scope.as_ref().is_some_and(|scope| *scope != event.scope);
    if foreign {
        tracing::warn!(scope = event.scope, "an agent in router.agents belongs to another cluster");
    }
    foreign
}

/// Who is read from, as last told.
struct Readers {
    feeds: Feeds,
    epoch: u64,
    leader: Option<SocketAddr>,
    members: Vec<Member>,
    resolved: Vec<(String, SocketAddr)>,
    last: Reading,
}

impl Readers {
    /// None if reads go to the leader.
    fn new(shared: &Arc<Shared>) -> Option<Self> {
        let account = shared.settings.reads.as_ref()?.account.clone();
        let feeds = Feeds::new(shared.clone(), account);
        let (members, resolved, last) = (Vec::new(), Vec::new(), Reading::default());
        Some(Self { feeds, epoch: 0, leader: None, members, resolved, last })
    }

    /// The picture while the leader changes: nobody's position covers what is written meanwhile.
    fn without_leader(&self) -> Reading {
        Reading { leader: None, ..self.last.clone() }
    }

    /// The picture for the threads, if it is another one than before.
    async fn look(
        &mut self,
        shared: &Shared,
        seen: &BTreeMap<usize, Seen>,
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
            let address = known.and_then(|known| self.resolved.iter().find(|(name, _)| *name == known.name));
            match address {
                Some(known) => resolved.push(known.clone()),
                None => {
                    let address = resolve(shared, &member.host, member.port).await;
                    resolved.extend(address.map(|address| (member.name.clone(), address)));
                }
            }
        }
        let names: Vec<&str> = resolved.iter().map(|(name, _)| name.as_str()).collect();
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
    /// The connection to it broke.
    Silence,
}

async fn follow(number: usize, agent: String, tls: Option<ClientTls>, tell: mpsc::Sender<(usize, News)>) {
    let mut told = false;
    loop {
        match read_events(number, &agent, tls.as_ref(), &tell).await {
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
        if tell.send((number, News::Silence)).await.is_err() {
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
    let connect = async {
        let stream = TcpStream::connect(agent).await?;
        match tls {
            None => Ok(Stream::Plain(stream)),
            Some(tls) => {
                let host = agent.rsplit_once(':').map_or(agent, |(host, _)| host);
                tls.connect(host.trim_start_matches('[').trim_end_matches(']'), stream).await
            }
        }
    };
    let stream = timeout(CONNECT_MAX, connect).await.map_err(|_| "no connection in time".to_owned())?;
    stream.map_err(|error| broken(&error))
}

async fn read_events(
    number: usize,
    agent: &str,
    tls: Option<&ClientTls>,
    tell: &mpsc::Sender<(usize, News)>,
) -> Result<(), End> {
    let mut stream = connected(agent, tls).await?;
    // In HTTP/1.0 the answer ends with its connection and has no chunks.
    let request = format!("GET /events HTTP/1.0\r\nHost: {agent}\r\nAccept: text/event-stream\r\n\r\n");
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
            if let Some(seen) = data(&event)
                && tell.send((number, News::Event(seen))).await.is_err()
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

/// What an event says; none for comments and for what is no event of the cluster.
fn data(event: &[u8]) -> Option<Seen> {
    let text = String::from_utf8_lossy(event);
    let data = text.lines().find_map(|line| line.strip_prefix("data:"))?;
    Seen::of_event(&serde_json::from_str::<Value>(data.trim_start()).ok()?)
}
