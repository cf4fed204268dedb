//! From a server to its client: everything as it comes, but for answers to what the router asked itself.
//!
//! Pure. Rows are skipped by their length, never looked at. Known afterwards: whether the link is free again,
//! what the server said before it went, and which settings it reported.

use crate::answers::{Deal, Expected, Purpose};
use crate::loss::{self, Refusal};
use crate::out::Out;
use crate::parameters::Interned;
use crate::session::{Farewell, Link, Reads, Rest, Session, Status};
use crate::upstream::LOOKED_AT_BYTES_MAX;
use crate::wire::messages::{self, Complaint};
use crate::wire::{self, Frame, HEADER_BYTES, fields};

/// What became of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// It goes on.
    On,
    /// The session has no use for the link any more.
    Free,
    /// What a session had left behind has been removed.
    Reset,
    /// A query of the router's own failed: the link is not as it should be.
    Failed,
    /// A follower cannot answer, and nothing of its answer has gone: the leader shall. What was read is not passed on.
    Repeat(Refusal),
    /// The server does not keep to the protocol.
    Broken(&'static str),
}

/// One read of a server.
#[derive(Debug)]
pub struct Downstream<'a> {
    /// The client's side; none if nobody has the link.
    pub session: Option<&'a mut Session>,
    /// The server's side.
    pub link: &'a mut Link,
    /// Sets of settings.
    pub interned: &'a mut Interned,
    /// What was read.
    pub input: &'a [u8],
    /// What the client is sent.
    pub out: &'a mut Out,
}

impl Downstream<'_> {
    /// Moves as much as possible: how many bytes are dealt with, and what became of it.
    pub fn run(mut self) -> (usize, Flow) {
        let mut at = 0;
        let mut flow = Flow::On;
        loop {
            let there = self.input.len() - at;
            if self.link.rest.bytes > 0 {
                let now = there.min(self.link.rest.bytes);
                if !self.link.rest.dropped {
                    self.out.pass(self.input, at..at + now);
                }
                self.link.rest.bytes -= now;
                at += now;
                if self.link.rest.bytes > 0 {
                    return (at, flow);
                }
                continue;
            }
            let rest = self.input.get(at..).unwrap_or_default();
            let (kind, bytes) = match wire::from_server(rest) {
                Frame::Message { kind, bytes } => (kind, bytes),
                Frame::Partial => return (at, flow),
                Frame::Malformed => return (at, Flow::Broken("no message begins like this")),
            };
            let looked_at = matches!(kind, b'Z' | b'S' | b'E' | b'N' | b'1' | b'3' | b'G')
                || kind == b'C' && self.link.doubtful;
            if !looked_at || bytes > LOOKED_AT_BYTES_MAX {
                // Streamed: the loop above passes what is there.
                let dropped = self.session.is_none() || self.link.answers.own_round().is_some();
                // Rows, of a COPY too, and what a function returns.
                if matches!(kind, b'D' | b'd' | b'V')
                    && let Some(session) = self.session.as_deref_mut().filter(|_| !dropped)
                {
                    session.saw = true;
                }
                self.link.rest = Rest { bytes, dropped };
                continue;
            }
            let Some(body) = rest.get(HEADER_BYTES..bytes) else { return (at, flow) };
            match self.message(kind, body, at) {
                Flow::On => {}
                Flow::Free => flow = Flow::Free,
                Flow::Reset => flow = Flow::Reset,
                ends @ (Flow::Failed | Flow::Repeat(_) | Flow::Broken(_)) => return (at + bytes, ends),
            }
            at += bytes;
        }
    }

    fn message(&mut self, kind: u8, body: &[u8], at: usize) -> Flow {
        let range = at..at + HEADER_BYTES + body.len();
        let ours = self.session.is_none() || self.link.answers.own_round().is_some();
        match kind {
            b'Z' => return self.ready(body, range),
            b'S' => {
                self.parameter(body, ours);
                if !ours {
                    self.out.pass(self.input, range);
                }
            }
            b'E' => {
                self.link.copies_in = false;
                return self.error(body, ours, range);
            }
            b'G' | b'N' if ours => {}
            b'G' => {
                self.link.copies_in = true;
                let ignored = self.link.answers.copy_in();
                if let Some(session) = self.session.as_deref_mut().filter(|_| ignored > 0) {
                    session.due = session.due.saturating_sub(ignored);
                    session.open_round = true;
                }
                self.out.pass(self.input, range);
            }
            b'N' => {
                let notice = fields::report(body).unwrap_or_default();
                self.link.doubtful |= notice.routine == b"SyncRepWaitForLSN";
                self.out.pass(self.input, range);
            }
            b'C' => {
                self.link.doubtful = false;
                let complaint = Complaint::error("08007", loss::NOT_ACKNOWLEDGED);
                messages::error(self.out.put(self.input), &complaint);
            }
            _ => {
                let deal = if kind == b'1' { self.link.answers.parsed() } else { self.link.answers.closed() };
                match deal {
                    Some(Deal::Pass) => self.out.pass(self.input, range),
                    Some(Deal::AsParse) => messages::put(self.out.put(self.input), b'1', |_| ()),
                    Some(Deal::Drop) => {}
                    None => return Flow::Broken("an answer came to no question"),
                }
            }
        }
        Flow::On
    }

    fn ready(&mut self, body: &[u8], range: std::ops::Range<usize>) -> Flow {
        let [byte] = *body else { return Flow::Broken("a ReadyForQuery of a wrong length") };
        let Some(status) = Status::of(byte) else { return Flow::Broken("a ReadyForQuery of a wrong kind") };
        let prepared = &mut self.link.prepared;
        let round = self.link.answers.ready(|id| prepared.remove(id));
        let error = self.link.own_error.take();
        self.link.copies_in = false;
        match round {
            None => Flow::Broken("a ReadyForQuery came to no question"),
            Some(Expected::Round(Purpose::FailedTransaction)) if status == Status::Failed => Flow::On,
            Some(Expected::Round(Purpose::Settings)) if error.is_none() => Flow::On,
            Some(Expected::Round(Purpose::Begin)) if error.is_none() && status == Status::Open => Flow::On,
            Some(Expected::Round(Purpose::Reset)) if error.is_none() => Flow::Reset,
            Some(Expected::Round(_)) => {
                self.link.own_error = error;
                Flow::Failed
            }
            Some(_) if std::mem::take(&mut self.link.drains) => match status {
                Status::Idle => Flow::Free,
                Status::Open | Status::Failed => {
                    Flow::Broken("a read that is repeated left a transaction open")
                }
            },
            Some(_) => {
                self.link.doubtful = false;
                self.link.tally.rounds += 1;
                self.link.tally.transactions += u32::from(status == Status::Idle);
                let Some(session) = self.session.as_deref_mut() else { return Flow::Broken("nobody asked") };
                let last = session.due <= 1 && !session.open_round && status == Status::Idle;
                let wrote = session.reads == Reads::No && !session.only_reads;
                session.reports.due = session.reports.on && last && wrote;
                if !session.reports.due {
                    self.out.pass(self.input, range);
                }
                session.status = status;
                session.due = session.due.saturating_sub(1);
                session.reads = match std::mem::take(&mut session.reads) {
                    Reads::Round | Reads::First(_) if status != Status::Idle => Reads::Going,
                    reads => reads,
                };
                if session.in_flight() {
                    return Flow::On;
                }
                session.may_commit = false;
                let free = status == Status::Idle && session.pinned.is_none();
                if free { Flow::Free } else { Flow::On }
            }
        }
    }

    fn parameter(&mut self, body: &[u8], ours: bool) {
        let Some((name, value)) = fields::parameter(body) else { return };
        if ours {
            return;
        }
        if let (Some(next), Some(session)) = (self.link.parameters.after(name, value), &mut self.session) {
            self.link.parameters = self.interned.get(next);
            session.parameters = self.link.parameters.clone();
        }
    }

    fn error(&mut self, body: &[u8], ours: bool, range: std::ops::Range<usize>) -> Flow {
        let report = fields::report(body).unwrap_or_default();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let farewell = Farewell { code: text(report.code), message: text(report.message) };
        if matches!(report.severity, b"FATAL" | b"PANIC") {
            // Kept back: the client is told when the link has ended, in words that fit what it had in flight.
            self.link.farewell = Some(farewell);
        } else if ours {
            self.link.own_error = Some(farewell);
        } else {
            self.link.outdated |= report.code == b"0A000" && report.routine == b"RevalidateCachedQuery";
            let reads = self.session.as_deref().filter(|session| {
                session.reads != Reads::No && session.reads != Reads::Going && session.again.is_sound()
            });
            if let Some(refusal) = reads.and_then(|_| loss::refusal(report.code, report.routine)) {
                return Flow::Repeat(refusal);
            }
            self.out.pass(self.input, range);
        }
        Flow::On
    }
}
