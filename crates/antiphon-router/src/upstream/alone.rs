//! What of a client's messages is dealt with without a server: the router's own settings, what a session without a
//! link has to say, and rounds that are answered with an error.

use super::{LOOKED_AT_BYTES_MAX, Stop, Upstream, close};
use crate::own;
use crate::session::{Lost, Rest, Status};
use crate::sql;
use crate::wire::messages::{self, Complaint};
use crate::wire::{HEADER_BYTES, fields};

impl Upstream<'_> {
    /// A message about the router's own settings is answered here; none if it is about something else.
    pub(super) fn own(&mut self, kind: u8, bytes: usize, rest: &[u8]) -> Option<Result<(), Stop>> {
        let body = rest.get(HEADER_BYTES..bytes);
        if let Some(mut round) = self.session.own.take() {
            let Some(body) = body else {
                self.session.own = Some(round);
                return Some(Err(Stop::More));
            };
            if kind == b'S' {
                messages::ready(self.replies, self.session.status.byte());
                return Some(Ok(()));
            }
            match self.own_message(&mut round, kind, body) {
                Ok(()) => self.session.own = Some(round),
                Err(complaint) => {
                    messages::error(self.replies, &complaint);
                    self.session.skips_to_sync = Some(self.session.status);
                }
            }
            return Some(Ok(()));
        }
        let session = &mut *self.session;
        let elsewhere = session.open_round || session.status == Status::Failed;
        if elsewhere || session.lost != Lost::Nothing || session.skips_to_sync.is_some() {
            return None;
        }
        let own = match kind {
            b'Q' => own::parse(fields::text(body?)?.0),
            b'P' => own::parse(fields::text(fields::text(body?)?.1)?.0),
            b'B' if session.has_own => self.own_bound(body?),
            _ => None,
        }?;
        if self.session.due > 0 {
            // Answers come in the order of the questions.
            return Some(Err(Stop::Busy));
        }
        if own.waits(self.session, self.reading) {
            return Some(Err(Stop::Unsettled));
        }
        if kind != b'Q' {
            return self.begin_own(kind, body?);
        }
        own::query(&own, self.session, self.reading, self.replies);
        Some(Ok(()))
    }

    fn begin_own(&mut self, kind: u8, body: &[u8]) -> Option<Result<(), Stop>> {
        let mut round = Box::new(own::Round::default());
        self.session.has_own = true;
        // What it begins with was read before.
        self.own_message(&mut round, kind, body).ok()?;
        self.session.own = Some(round);
        Some(Ok(()))
    }

    fn own_message(&mut self, round: &mut own::Round, kind: u8, body: &[u8]) -> Result<(), Complaint> {
        match kind {
            b'P' => {
                let (name, text) = fields::text(body).ok_or_else(own::alone)?;
                let sql = fields::text(text).ok_or_else(own::alone)?.0;
                let statement = own::parse(sql).ok_or_else(own::alone)?;
                if name.is_empty() {
                    self.session.unnamed.clear();
                    self.session.unnamed.extend_from_slice(text);
                    self.session.unnamed_here = false;
                } else {
                    let kept = self.statements.get(text, self.schemas.changes(), || sql::effects(sql));
                    self.session.name(name, kept);
                }
                round.parse(statement, self.replies);
                Ok(())
            }
            b'B' => {
                let bound = self.own_bound(body).ok_or_else(own::alone)?;
                round.bind(Some(bound), self.replies);
                Ok(())
            }
            _ => round.message(kind, body, self.session, self.reading, self.replies),
        }
    }

    /// The statement about an own setting that a Bind names, if it names one.
    fn own_bound(&self, body: &[u8]) -> Option<own::Own> {
        let name = fields::text(fields::text(body)?.1)?.0;
        let text = match name {
            b"" => self.session.unnamed.as_slice(),
            _ => &self.session.statement(name)?.text,
        };
        own::parse(fields::text(text)?.0)
    }

    /// What is dealt with without a server: how many bytes, or none if it needs one.
    pub(super) fn alone(&mut self, kind: u8, bytes: usize, rest: &[u8]) -> Option<Result<usize, Stop>> {
        if let Some(status) = self.session.skips_to_sync {
            if kind != b'S' {
                return Some(self.drop(bytes));
            }
            if rest.len() < bytes {
                return Some(Err(Stop::More));
            }
            self.session.skips_to_sync = None;
            messages::ready(self.replies, status.byte());
            return Some(Ok(bytes));
        }
        if self.link.is_some() {
            return None;
        }
        if let Some(complaint) = self.session.refused.take() {
            return Some(self.answer_with(&complaint, kind, bytes));
        }
        match kind {
            // What a client still sends of a COPY that has failed; a server ignores it, too.
            b'd' | b'c' | b'f' => Some(self.drop(bytes)),
            _ if matches!(self.session.lost, Lost::Untold | Lost::Misplaced) => {
                Some(self.tell(kind, bytes, rest))
            }
            // No server has anything open of this session that it could close, or has to bring in step.
            b'C' | b'S' if self.session.status == Status::Idle => Some(self.nothing_open(kind, bytes, rest)),
            // Whether it is a read is seen when it is whole; and nobody keeps a link by sending slowly.
            _ if rest.len() < bytes && bytes <= LOOKED_AT_BYTES_MAX => Some(Err(Stop::More)),
            _ => Some(Err(Stop::Link)),
        }
    }

    /// A Close or a Sync of a session that has no link.
    fn nothing_open(&mut self, kind: u8, bytes: usize, rest: &[u8]) -> Result<usize, Stop> {
        let body = rest.get(HEADER_BYTES..bytes).ok_or(Stop::More)?;
        if kind == b'S' {
            messages::ready(self.replies, Status::Idle.byte());
            return Ok(bytes);
        }
        let (what, name) = close(body)?;
        match (what, name) {
            (b'S', b"") => self.session.unnamed.clear(),
            (b'S', name) => drop(self.session.forget(name)),
            _ => {}
        }
        messages::put(self.replies, b'3', |_| ());
        Ok(bytes)
    }

    /// The first message after a transaction was lost is answered with that.
    fn tell(&mut self, kind: u8, bytes: usize, rest: &[u8]) -> Result<usize, Stop> {
        if kind == b'S' && rest.len() < bytes {
            return Err(Stop::More);
        }
        let complaint = match self.session.lost {
            Lost::Misplaced => Complaint::error("0A000", crate::loss::MISPLACED),
            Lost::Nothing | Lost::Told | Lost::Untold => {
                Complaint::error("57P01", crate::loss::TRANSACTION_LOST)
            }
        };
        let complaint = complaint.with_detail(self.session.lost_because.take());
        self.session.lost = Lost::Told;
        self.session.status = Status::Failed;
        if kind == b'S' {
            messages::ready(self.replies, Status::Failed.byte());
            return Ok(bytes);
        }
        self.answer_with(&complaint, kind, bytes)
    }

    /// A round that begins with this message is answered with an error, whatever else it has.
    fn answer_with(&mut self, complaint: &Complaint, kind: u8, bytes: usize) -> Result<usize, Stop> {
        messages::error(self.replies, complaint);
        let status = self.session.status;
        match kind {
            b'Q' | b'F' => messages::ready(self.replies, status.byte()),
            _ => self.session.skips_to_sync = Some(status),
        }
        self.drop(bytes)
    }

    fn drop(&mut self, bytes: usize) -> Result<usize, Stop> {
        self.session.rest = Rest { bytes, dropped: true };
        Ok(0)
    }
}
