//! Who leads among servers that nobody manages as far as the router knows: by what each says of itself.
//!
//! Pure. There is no epoch; the timeline stands for it. A server that is promoted begins a new timeline, so among
//! those that accept writes the highest one is the newest leader's, and once it was seen no server of a lower one
//! is gone to, whatever it says of itself. Two on the same timeline are copies that have parted: then nobody leads,
//! but for the one that did before.

use crate::topology::{Leader, Member, Seen};

/// A server as the file names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its host.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl Server {
    /// What logs call it.
    pub fn name(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// What a server says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    /// It follows another one.
    pub follows: bool,
    /// The timeline of its WAL.
    pub timeline: u64,
    /// The number that all copies of a server have in common.
    pub system: u64,
}

/// What is known of the servers.
#[derive(Debug)]
pub struct Plain {
    servers: Vec<Server>,
    /// What each said last, while it answers.
    said: Vec<Option<Said>>,
    /// The highest timeline that was led.
    timeline: u64,
    /// Who led on it, and still does unless somebody says otherwise.
    leader: Option<usize>,
    system: Option<u64>,
}

/// What is odd about the servers, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Odd {
    /// It is a copy of something else than the others.
    Foreign(String),
    /// It accepts writes on a timeline that was left.
    Outlived(String),
    /// Both accept writes on the same timeline.
    Parted(String, String),
}

impl std::fmt::Display for Odd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Foreign(server) => {
                write!(f, "{server} is no copy of the other servers in router.servers; nobody is sent there")
            }
            Self::Outlived(server) => write!(
                f,
                "{server} accepts writes on a timeline that another server has left behind; stop it, and rewind or rebuild it"
            ),
            Self::Parted(one, other) => write!(
                f,
                "{one} and {other} accept writes on the same timeline; stop the one that is wrong, nobody is sent to the other meanwhile"
            ),
        }
    }
}

impl Plain {
    /// Of these, of which nothing is known but that nobody goes below this timeline.
    pub fn new(servers: Vec<Server>, timeline: u64) -> Self {
        let said = vec![None; servers.len()];
        Self { servers, said, timeline, leader: None, system: None }
    }

    /// A server said something of itself, or does not answer any more.
    pub fn heard(&mut self, server: usize, said: Option<Said>) {
        if let Some(place) = self.said.get_mut(server) {
            *place = said;
        }
    }

    /// Where sessions go by all that was said, and what is odd about it.
    pub fn look(&mut self, scope: &str) -> (Seen, Vec<Odd>) {
        let mut odd = Vec::new();
        self.system = self.system.or(self.said.iter().flatten().map(|said| said.system).next());
        let system = self.system.unwrap_or_default();
        let mut leads: Vec<(usize, Said)> = Vec::new();
        for (server, said) in self.said.iter().enumerate() {
            match said {
                Some(said) if said.system != system => odd.push(Odd::Foreign(self.name(server))),
                Some(said) if !said.follows => leads.push((server, *said)),
                Some(_) | None => {}
            }
        }
        let newest = leads.iter().map(|(_, said)| said.timeline).max().unwrap_or_default();
        if newest > self.timeline {
            (self.timeline, self.leader) = (newest, None);
        }
        let outlived = leads.iter().filter(|(_, said)| said.timeline < self.timeline);
        odd.extend(outlived.map(|(server, _)| Odd::Outlived(self.name(*server))));
        leads.retain(|(_, said)| said.timeline == self.timeline);
        let before = self.leader.filter(|leader| {
            // One that is silent may still lead; one that follows or has another timeline does not.
            leads.iter().any(|(server, _)| server == leader) || self.said.get(*leader) == Some(&None)
        });
        self.leader = match (before, leads.as_slice()) {
            (Some(before), _) => Some(before),
            (None, [(only, _)]) => Some(*only),
            (None, _) => None,
        };
        if let [(one, _), (other, _), ..] = leads.as_slice() {
            odd.push(Odd::Parted(self.name(*one), self.name(*other)));
        }
        (self.seen(scope, system), odd)
    }

    fn name(&self, server: usize) -> String {
        self.servers.get(server).map(Server::name).unwrap_or_default()
    }

    fn seen(&self, scope: &str, system: u64) -> Seen {
        let leader = self.leader.and_then(|leader| self.servers.get(leader)).map(|server| Leader {
            name: server.name(),
            host: server.host.clone(),
            port: server.port,
            timeline: Some(self.timeline),
        });
        let followers = self.servers.iter().zip(&self.said).filter_map(|(server, said)| {
            let said = said.filter(|said| said.follows && said.system == system)?;
            Some(Member {
                name: server.name(),
                host: server.host.clone(),
                port: server.port,
                timeline: Some(said.timeline),
                up: true,
                serves_reads: true,
                zone: None,
                weight: 1,
            })
        });
        Seen {
            scope: scope.to_owned(),
            epoch: self.timeline,
            leader,
            members: followers.collect(),
            handing_over: false,
            live: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(count: u16) -> Plain {
        Plain::new((0..count).map(|port| Server { host: "h".to_owned(), port }).collect(), 0)
    }

    fn leads(timeline: u64) -> Option<Said> {
        Some(Said { follows: false, timeline, system: 7 })
    }

    fn follows(timeline: u64) -> Option<Said> {
        Some(Said { follows: true, ..leads(timeline).unwrap() })
    }

    /// The port of the leader, the ports of who follows, and what is odd.
    fn look(plain: &mut Plain, said: &[Option<Said>]) -> (u64, Option<u16>, Vec<u16>, usize) {
        for (server, said) in said.iter().enumerate() {
            plain.heard(server, *said);
        }
        let (seen, odd) = plain.look("s");
        let followers = seen.members.iter().map(|member| member.port).collect();
        (seen.epoch, seen.leader.map(|leader| leader.port), followers, odd.len())
    }

    #[test]
    fn the_one_that_accepts_writes_leads_and_the_newest_timeline_counts() {
        let mut plain = servers(3);
        assert_eq!(look(&mut plain, &[None, None, None]), (0, None, vec![], 0));
        assert_eq!(look(&mut plain, &[None, follows(1), None]), (0, None, vec![1], 0));
        assert_eq!(look(&mut plain, &[leads(1), follows(1), follows(1)]), (1, Some(0), vec![1, 2], 0));
        assert_eq!(
            look(&mut plain, &[None, follows(1), None]),
            (1, Some(0), vec![1], 0),
            "it may still lead"
        );
        assert_eq!(look(&mut plain, &[None, leads(2), None]), (2, Some(1), vec![], 0));
        assert_eq!(look(&mut plain, &[leads(1), leads(2), follows(2)]), (2, Some(1), vec![2], 1));
        assert_eq!(look(&mut plain, &[leads(1), None, None]), (2, Some(1), vec![], 1), "never back");
        assert_eq!(look(&mut plain, &[leads(1), follows(2), None]), (2, None, vec![1], 1));
        assert_eq!(look(&mut plain, &[follows(2), follows(2), leads(2)]), (2, Some(2), vec![0, 1], 0));
    }

    #[test]
    fn of_two_that_have_parted_neither_leads_but_the_one_that_did_before() {
        let mut plain = servers(2);
        assert_eq!(look(&mut plain, &[leads(4), leads(4)]), (4, None, vec![], 1));
        assert_eq!(look(&mut plain, &[leads(4), follows(4)]), (4, Some(0), vec![1], 0));
        assert_eq!(look(&mut plain, &[leads(4), leads(4)]), (4, Some(0), vec![], 1));
    }

    #[test]
    fn a_copy_of_something_else_is_left_alone_and_what_was_led_before_is_remembered() {
        let mut plain = servers(2);
        let foreign = Some(Said { follows: false, timeline: 9, system: 8 });
        assert_eq!(look(&mut plain, &[leads(1), foreign]), (1, Some(0), vec![], 1));
        assert_eq!(look(&mut plain, &[None, foreign]), (1, Some(0), vec![], 1));
        let mut later = Plain::new(plain.servers.clone(), 5);
        assert_eq!(look(&mut later, &[leads(4), None]), (5, None, vec![], 1));
        assert_eq!(look(&mut later, &[leads(5), None]), (5, Some(0), vec![], 0));
    }

    /// Whatever servers say, timelines never go back and nobody is sent to a server that says that it follows, or
    /// that is on a lower timeline than one that was led.
    #[test]
    fn no_history_of_four_steps_leads_back() {
        let words = [None, leads(1), leads(2), follows(1), follows(2)];
        for history in 0..(words.len() as u32).pow(2 * 4) {
            let mut plain = servers(2);
            let (mut left, mut highest) = (history as usize, 0);
            for _ in 0..4 {
                let said = [words[left % 5], words[left / 5 % 5]];
                left /= 25;
                let (epoch, leader, _, _) = look(&mut plain, &said);
                assert!(epoch >= highest, "{history}");
                highest = epoch;
                let Some(leader) = leader else { continue };
                let wrong =
                    said[usize::from(leader)].is_some_and(|said| said.follows || said.timeline < epoch);
                assert!(!wrong, "{history}: {said:?}");
            }
        }
    }
}
