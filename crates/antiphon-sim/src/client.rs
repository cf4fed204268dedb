//! Clients: writers that reach every server that accepts writes, also one that nobody leads any more.
//!
//! That is the worst case: no router stands between, old connections live on. Each commit has a number; the
//! judge is told when it is acknowledged.

use antiphon_core::ha::world::SyncNames;

use crate::clock::{MS, Time, US};
use crate::net::NodeId;
use crate::server::Happening;
use crate::wal::{Commit, Point};
use crate::{Event, Sim};

impl Sim {
    /// A client writes at a node, and will again.
    pub(crate) fn client_writes(&mut self, node: NodeId) {
        let again = self.now + self.rng.around(self.shape.write_every);
        self.schedule(again, Event::Write { node });
        let server = &self.nodes[node].server;
        if !server.writes() || self.nodes[node].host_paused {
            return;
        }
        if server.full {
            self.kill_by_panic(node);
            return;
        }
        let commit = self.wal.commits.len();
        let Some(at) = self.append(node, Some(commit)) else { return };
        self.wal.commits.push(Commit { at, acknowledged: None });
    }

    fn kill_by_panic(&mut self, node: NodeId) {
        self.note(|sim| format!("{}: PANIC, no space left on device", sim.name(node)));
        self.server_gone(node, None);
    }

    /// Writes a record; returns where it ends.
    pub(crate) fn append(&mut self, node: NodeId, commit: Option<usize>) -> Option<Point> {
        let size = self.rng.range(60, 600);
        let delay = self.rng.around(300 * US) + self.nodes[node].slow_disk;
        let server = &mut self.nodes[node].server;
        let branch = server.end()?.branch;
        let lsn = server.written() + size;
        server.unflushed.push_back((lsn, commit));
        if !server.flushing {
            server.flushing = true;
            self.in_server(self.now + delay, node, Happening::Flush(lsn));
        }
        Some(Point { branch, lsn })
    }

    /// WAL up to here is on disk: it is sent, and its commits wait or are acknowledged.
    pub(crate) fn flushed(&mut self, node: NodeId, upto: Time) {
        let now = self.now;
        let server = &mut self.nodes[node].server;
        server.flushing = false;
        if server.stopping.is_some() {
            return;
        }
        let mut done = Vec::new();
        while let Some((lsn, commit)) = server.unflushed.front().copied() {
            if lsn > upto {
                break;
            }
            server.unflushed.pop_front();
            done.push((lsn, commit));
        }
        let Some((end, _)) = done.last().copied() else { return };
        if let Some(directory) = &mut server.directory {
            directory.end.lsn = end;
        }
        if server.defined {
            server.waiters.extend(done.iter().map(|(lsn, commit)| (*lsn, *commit, now)));
        } else {
            for (lsn, commit) in done {
                self.confirm(node, lsn, commit);
            }
        }
        let server = &mut self.nodes[node].server;
        if let Some((lsn, _)) = server.unflushed.back().copied() {
            server.flushing = true;
            let delay = self.rng.around(300 * US) + self.nodes[node].slow_disk;
            self.in_server(now + delay, node, Happening::Flush(lsn));
        }
        self.pump_all(node);
    }

    /// A commit is acknowledged; or, without a number, a mark of the agent's own.
    pub(crate) fn confirm(&mut self, node: NodeId, lsn: u64, commit: Option<usize>) {
        match commit {
            Some(commit) => self.acknowledge(node, commit),
            None => self.mark_confirmed(node, lsn),
        }
    }

    /// Since when the oldest commit has been waiting.
    pub(crate) fn waiting_since(&self, node: NodeId) -> Option<Time> {
        let server = &self.nodes[node].server;
        let names = !matches!(*server.names, SyncNames::Nobody);
        server.waiters.front().filter(|_| names).map(|(_, _, since)| *since).filter(|at| self.now - at > MS)
    }
}
