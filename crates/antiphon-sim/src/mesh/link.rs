//! Links: one node reads another's log, in order, from where it is applied; when it breaks, from there again.

use std::collections::VecDeque;
use std::rc::Rc;

use antiphon_core::mesh::Reached;

use super::applier::Applier;
use super::mutation::Mutation;
use super::node::Member;
use super::state::{Place, Sent, id};
use super::{Event, Mesh};
use crate::clock::{MS, Time};

/// A link.
#[derive(Debug)]
pub struct Link {
    /// Which of all the links between the two this is.
    pub session: u64,
    /// The stream runs.
    pub connected: bool,
    /// The source has sent its log up to here.
    sent: Place,
    inflight: VecDeque<Sent>,
    last_arrival: Time,
    /// What came and is not applied yet.
    pub buffer: VecDeque<Sent>,
    /// Everything up to here came.
    pub received: Place,
    /// Everything up to here is applied.
    pub applied: Place,
    /// Everything up to here is applied and safe.
    pub safe: Place,
    /// What the source had seen when it wrote what comes now.
    pub seen: Reached,
    /// What applies it.
    pub applier: Applier,
    /// Everything takes longer until then.
    slow_until: Time,
}

impl Mesh {
    /// Begins a link, which connects as soon as it can.
    pub(crate) fn begin_link(&mut self, node: usize, source: usize) {
        let session = self.judge.next_session();
        // Nothing is known of what its writers have seen, of anybody, before its node says so.
        let view = self.nodes[node].view;
        let known = (0..self.nodes.len()).filter(|other| *other != source && view[*other] != Member::Unknown);
        let mut seen = Reached::unknown(known.map(id));
        if self.is(Mutation::LeftIsSeen) {
            let left = (0..self.nodes.len()).filter(|other| view[*other] == Member::Left);
            left.for_each(|other| seen.release(id(other)));
        }
        self.nodes[node].links[source] = Some(Link {
            session,
            connected: false,
            sent: 0,
            inflight: VecDeque::new(),
            last_arrival: 0,
            buffer: VecDeque::new(),
            received: 0,
            applied: 0,
            safe: 0,
            seen,
            applier: Applier::default(),
            slow_until: 0,
        });
        self.after(MS / 10, Event::Connect { node, source, session });
    }

    pub(crate) fn connect(&mut self, node: usize, source: usize, session: u64) {
        let here = &self.nodes[node];
        if here.link(source).is_none_or(|link| link.session != session || link.connected) {
            return;
        }
        let there = &self.nodes[source].server;
        let Some(slot) = self.nodes[source].slots[node] else { return };
        if !here.server.up || !there.up || self.cuts[source][node] > 0 {
            let pause = self.rng.range(5 * MS, 40 * MS);
            self.after(pause, Event::Connect { node, source, session });
            return;
        }
        // The slot has nothing any more of what its reader called safe.
        let begin = self.nodes[node].server.state.progress[source].max(slot);
        let link = self.nodes[node].link_mut(source);
        link.connected = true;
        (link.sent, link.received, link.applied) = (begin, begin, begin);
        self.note(|_| format!("n{} reads n{} from {begin}", id(node), id(source)));
        self.send(source, node);
    }

    /// Breaks a link; what was open is rolled back. It is tried again if `again`.
    pub(crate) fn break_link(&mut self, node: usize, source: usize, again: bool) {
        self.abandon(node, source);
        if self.nodes[node].link(source).is_none() {
            return;
        }
        self.nodes[node].links[source] = None;
        if again {
            self.begin_link(node, source);
        }
    }

    pub(crate) fn drop_link(&mut self, node: usize, source: usize) {
        self.break_link(node, source, false);
    }

    /// Sends to everybody what is safe.
    pub(crate) fn flush(&mut self, node: usize, upto: Place) {
        if self.nodes[node].server.flush(upto) {
            for reader in 0..self.nodes.len() {
                self.send(node, reader);
            }
        }
    }

    /// Where the rule is off, sends what the log has, safe or not.
    pub(crate) fn send_unsafe(&mut self, node: usize) {
        if self.is(Mutation::SendBeforeSafe) {
            for reader in 0..self.nodes.len() {
                self.send(node, reader);
            }
        }
    }

    fn send(&mut self, source: usize, reader: usize) {
        let unsafely = self.is(Mutation::SendBeforeSafe);
        if source == reader || self.nodes[reader].link(source).is_none_or(|link| !link.connected) {
            return;
        }
        let delay = self.rng.around(self.shape.delay);
        let server = &self.nodes[source].server;
        let end = if unsafely { server.log.len() } else { server.flushed };
        let from = self.nodes[reader].link(source).map_or(end, |link| link.sent);
        if end <= from {
            return;
        }
        let pieces: Vec<Sent> = (from..end)
            .filter(|place| server.log[*place].origin.is_none())
            .map(|place| (place + 1, Rc::clone(&server.log[place])))
            .collect();
        let now = self.now;
        let link = self.nodes[reader].link_mut(source);
        link.sent = end;
        link.inflight.extend(pieces);
        let delay = if now < link.slow_until { delay * 20 } else { delay };
        link.last_arrival = link.last_arrival.max(now + delay);
        let (at, session) = (link.last_arrival, link.session);
        self.schedule(at, Event::Arrive { node: reader, source, session, upto: end });
    }

    pub(crate) fn slow(&mut self, node: usize, source: usize, until: Time) {
        if let Some(link) = self.nodes[node].links[source].as_mut() {
            link.slow_until = until;
        }
    }

    pub(crate) fn arrive(&mut self, node: usize, source: usize, upto: Place) {
        let link = self.nodes[node].link_mut(source);
        while let Some((place, _)) = link.inflight.front() {
            if *place > upto {
                break;
            }
            link.buffer.extend(link.inflight.pop_front());
        }
        link.received = link.received.max(upto);
        if link.buffer.is_empty() && link.applier.is_idle() {
            link.applied = link.received;
            return;
        }
        let session = link.session;
        if link.applier.is_idle() {
            let pause = self.moment();
            self.after(pause, Event::Apply { node, source, session });
        }
    }

    /// Tells the sources how far their changes are safe here.
    pub(crate) fn confirm(&mut self, node: usize) {
        let early = self.is(Mutation::ConfirmBeforeSafe);
        for source in 0..self.nodes.len() {
            let Some(link) = self.nodes[node].link(source) else { continue };
            let safe = if early { link.applied } else { link.safe };
            if link.connected
                && self.cuts[node][source] == 0
                && let Some(slot) = &mut self.nodes[source].slots[node]
            {
                *slot = safe.max(*slot);
            }
        }
    }
}
