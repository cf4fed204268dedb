//! Deletes of what is not there: made known first, then those who were writing are waited for, then it is looked anew.

use antiphon_core::mesh::Version;
use antiphon_core::mesh::truncation::supersedes;

use super::applier::Work;
use super::mutation::Mutation;
use super::server::{Actor, Lock, Resource};
use super::state::{Effect, id};
use super::{Event, Mesh};
use crate::clock::{MS, US};

impl Mesh {
    /// Writes a tombstone, or a truncation, in a transaction of its own that has the delete's time.
    pub(crate) fn say(&mut self, node: usize, source: usize) {
        let link = self.nodes[node].link_mut(source);
        let (Some(absent), Some(next)) = (link.applier.saying, link.applier.batch.front().cloned()) else {
            return;
        };
        let (session, actor) = (link.session, Actor::Applier(source));
        let xid = match &link.applier.work {
            Some(work) => work.xid,
            None => {
                let xid = self.nodes[node].server.begin();
                let work = Work { xid, nth: 0, closer: None };
                self.nodes[node].link_mut(source).applier.work = Some(work);
                xid
            }
        };
        let resource = absent.key.map_or(Resource::Truncation, Resource::Gone);
        let server = &mut self.nodes[node].server;
        server.awake(xid);
        match server.lock(xid, resource, actor) {
            Lock::Taken => {}
            Lock::Wait => return,
            Lock::Deadlock => {
                self.abandon(node, source);
                let pause = self.moment();
                return self.after(pause, Event::Apply { node, source, session });
            }
        }
        let version = Version { at: next.entry.at, node: id(source) };
        let stands = match absent.key {
            Some(key) => server.tombstone(xid, key),
            None => server.truncation(xid),
        };
        let gone = self.gone_of(source, next.place, absent.knew);
        let goes_back = self.is(Mutation::TombstoneGoesBack);
        let server = &mut self.nodes[node].server;
        if !self.mutation.is_some_and(|rule| rule == Mutation::BuryUnsaid)
            && (supersedes(version, stands.map(|gone| gone.version)) || goes_back)
        {
            server.tx(xid).effects.push(match absent.key {
                Some(key) => Effect::Gone(key, Some(gone)),
                None => Effect::Truncated(Some(gone)),
            });
        }
        let entry = server.write_commit(node, xid, next.entry.at, Some(source));
        self.nothing_goes_back(node, &entry);
        let woken = self.nodes[node].server.end(xid, Some(&entry));
        self.note(|_| format!("n{} hears of {:?}", id(node), entry.effects));
        let writers = self.writers(node);
        let applier = &mut self.nodes[node].link_mut(source).applier;
        applier.work = None;
        applier.saying = None;
        applier.known.retain(|known| known.key != absent.key);
        applier.known.push(absent);
        applier.grace = Some(writers);
        self.wake(node, woken);
        let pause = self.moment();
        self.after(pause, Event::Apply { node, source, session });
    }

    /// Who is writing into the table.
    fn writers(&self, node: usize) -> Vec<u64> {
        let server = &self.nodes[node].server;
        server.txs.iter().filter(|(_, tx)| tx.in_table).map(|(xid, _)| *xid).collect()
    }

    /// Goes on when those who were writing have ended. A client that has not begun to commit by now will be later.
    pub(crate) fn wait_for_writers(&mut self, node: usize, source: usize) {
        let here = &self.nodes[node];
        let idle: Vec<u64> = here.writers.iter().filter_map(super::writer::Writer::idle_in).collect();
        let appliers: Vec<u64> =
            here.links.iter().flatten().filter_map(|link| Some(link.applier.work.as_ref()?.xid)).collect();
        let (nobody, only_clients) =
            (self.is(Mutation::BuryWithoutWait), self.is(Mutation::WaitForClientsOnly));
        let applier = &mut self.nodes[node].links[source].as_mut().expect("it applies").applier;
        let mut grace = applier.grace.take().unwrap_or_default();
        let server = &self.nodes[node].server;
        grace.retain(|xid| {
            let excused = nobody || (only_clients && appliers.contains(xid));
            server.txs.contains_key(xid) && !idle.contains(xid) && !excused
        });
        let link = self.nodes[node].link_mut(source);
        let session = link.session;
        if grace.is_empty() {
            return self.after(5 * US, Event::Apply { node, source, session });
        }
        link.applier.grace = Some(grace);
        let pause = self.rng.range(50 * US, 2 * MS);
        self.after(pause, Event::Apply { node, source, session });
    }
}
