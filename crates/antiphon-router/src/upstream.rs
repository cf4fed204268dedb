//! From a client to its server: what is read of each message, what is changed, what is kept back.
//!
//! Pure. Messages are passed on as they lie in the read buffer. Changed are only the names of prepared
//! statements; looked through are texts of statements, once each. What needs a link stops until there is one. To a
//! follower goes the round that was looked at before (`route`) and nothing behind it, or what a transaction sends
//! that only reads.

use crate::answers::Expected;
use crate::gates::Schemas;
use crate::judge::{Class, Judge};
use crate::out::Out;
use crate::positions::Reading;
use crate::session::{Link, Reads, Rest, Session, Status};
use crate::sql::{self, Effects, OVERSIZE};
use crate::statements::{Statement, Statements};
use crate::stats::Tally;
use crate::wire::messages::{self, Complaint};
use crate::wire::{self, Frame, HEADER_BYTES, fields};

mod alone;

/// Longest message that is looked through, in bytes; a longer text pins the session.
pub const LOOKED_AT_BYTES_MAX: usize = 128 * 1024;
/// Longest pair of names in a Bind, in bytes.
const NAMES_BYTES_MAX: usize = 8 * 1024;
/// A name that no statement has.
const NO_STATEMENT: &[u8] = b"antiphon_none";

/// Why the flow stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// More bytes are needed.
    More,
    /// A link is needed.
    Link,
    /// What was sent to a follower must be answered before the rest is looked at.
    Busy,
    /// More must be known of the servers before the router can answer.
    Unsettled,
    /// The router has answered something itself; there may be more.
    Answered,
    /// The transaction that only reads must go on at the leader, and can.
    Moves,
    /// It must, and cannot: something of it has been answered already.
    Misplaced,
    /// The client says goodbye.
    Goodbye,
    /// The client must be told this and closed.
    Refuse(Complaint),
}

/// One read of a client.
#[derive(Debug)]
pub struct Upstream<'a> {
    /// The client's side.
    pub session: &'a mut Session,
    /// The server's side; none if the session has no link.
    pub link: Option<&'a mut Link>,
    /// The statements of this thread.
    pub statements: &'a mut Statements,
    /// How often schemas have changed.
    pub schemas: &'a Schemas,
    /// What may be done with texts of the session's database.
    pub judge: &'a mut Judge,
    /// The servers as reads see them; none if no reads go to followers.
    pub reading: Option<&'a Reading>,
    /// What was read.
    pub input: &'a [u8],
    /// What the server is sent.
    pub out: &'a mut Out,
    /// What the client is answered without a server.
    pub replies: &'a mut Vec<u8>,
}

impl Upstream<'_> {
    /// Moves as much as possible: how many bytes of the input are dealt with, and why no more are.
    pub fn run(mut self) -> (usize, Stop) {
        let mut at = 0;
        loop {
            let there = self.input.len() - at;
            if self.session.rest.bytes > 0 {
                let now = there.min(self.session.rest.bytes);
                if !self.session.rest.dropped {
                    self.out.pass(self.input, at..at + now);
                }
                self.session.rest.bytes -= now;
                at += now;
                if self.session.rest.bytes > 0 {
                    return (at, Stop::More);
                }
                continue;
            }
            let rest = self.input.get(at..).unwrap_or_default();
            if self.is_busy() && !rest.is_empty() {
                return (at, Stop::Busy);
            }
            let (kind, bytes) = match wire::from_client(rest) {
                Frame::Message { kind: b'X', .. } => return (at, Stop::Goodbye),
                Frame::Message { kind, bytes } => (kind, bytes),
                Frame::Partial => return (at, Stop::More),
                Frame::Malformed => {
                    let byte = rest.first().copied().unwrap_or_default();
                    return (at, refuse(format!("invalid frontend message of type {byte}")));
                }
            };
            match self.own(kind, bytes, rest) {
                Some(Ok(())) => return (at + bytes, Stop::Answered),
                Some(Err(stop)) => return (at, stop),
                None => {}
            }
            // Only the first round was looked at.
            self.session.only_reads &= self.session.due == 0;
            let moved = match self.alone(kind, bytes, rest) {
                Some(moved) => moved,
                None => self.message(kind, bytes, at),
            };
            match moved {
                Ok(moved) => at += moved,
                Err(stop) => return (at, stop),
            }
        }
    }

    /// A round of reads is on its way, and what follows has not been looked at.
    fn is_busy(&self) -> bool {
        let session = &self.session;
        let between = session.due > 0 && !session.open_round;
        // In a transaction, too: what is on its way may end it.
        between && session.reads != Reads::No && self.link.is_some()
    }

    /// Passes a message on, the part of it that is there.
    fn pass(&mut self, at: usize, bytes: usize) -> usize {
        let now = bytes.min(self.input.len() - at);
        self.out.pass(self.input, at..at + now);
        self.session.rest = Rest { bytes: bytes - now, dropped: false };
        now
    }

    /// A message for the server: how many bytes of it were dealt with.
    fn message(&mut self, kind: u8, bytes: usize, at: usize) -> Result<usize, Stop> {
        let rest = self.input.get(at..).unwrap_or_default();
        let whole = rest.get(HEADER_BYTES..bytes);
        match kind {
            b'Q' => self.query(bytes, at, whole),
            b'P' => self.parse(bytes, at, whole).inspect(|_| self.count(|tally| tally.parses += 1)),
            b'B' => self.bind(bytes, at, rest).inspect(|_| self.count(|tally| tally.binds += 1)),
            b'D' | b'C' => self.describe_or_close(kind, bytes, at, whole.ok_or(Stop::More)?),
            b'S' => {
                whole.ok_or(Stop::More)?;
                if !self.link.as_ref().is_some_and(|link| link.copies_in) {
                    self.ends_round(Expected::Sync);
                }
                Ok(self.pass(at, bytes))
            }
            b'F' => {
                self.needs_leader()?;
                self.session.again.never();
                self.ends_round(Expected::Ready);
                Ok(self.pass(at, bytes))
            }
            b'E' | b'H' => {
                self.session.open_round = true;
                Ok(self.pass(at, bytes))
            }
            b'd' | b'c' | b'f' => {
                self.session.again.never();
                if let Some(link) = self.link.as_deref_mut().filter(|_| kind != b'd') {
                    link.copies_in = false;
                }
                Ok(self.pass(at, bytes))
            }
            _ => Err(refuse(format!("unexpected frontend message of type {kind}"))),
        }
    }

    fn expect(&mut self, answer: Expected) {
        if let Some(link) = self.link.as_deref_mut() {
            let parses = matches!(answer, Expected::Parse(_) | Expected::ParseOfOurs(_));
            link.tally.server_parses += u32::from(parses);
            link.answers.expect(answer);
        }
    }

    fn count(&mut self, of: fn(&mut Tally)) {
        if let Some(link) = self.link.as_deref_mut() {
            of(&mut link.tally);
        }
    }

    fn ends_round(&mut self, answer: Expected) {
        self.expect(answer);
        self.session.due += 1;
        self.session.open_round = false;
    }

    fn sends(&mut self, effects: Effects) {
        if let Some(link) = self.link.as_deref_mut() {
            if effects.changes_schema {
                self.schemas.changed();
            }
            self.session.sends(effects, link);
        }
    }

    /// In a transaction that only reads, on a follower: something only the leader can do comes.
    fn needs_leader(&self) -> Result<(), Stop> {
        match &self.session.reads {
            Reads::No => Ok(()),
            Reads::Begun(_) if !self.session.in_flight() => Err(Stop::Moves),
            Reads::Round | Reads::Begun(_) | Reads::First(_) | Reads::Going => Err(Stop::Misplaced),
        }
    }

    /// In a transaction that only reads, on a follower: whether this text may run there.
    fn stays(&mut self, sql: &[u8]) -> Result<(), Stop> {
        if self.session.reads == Reads::No || self.session.status != Status::Open {
            return Ok(());
        }
        let between = !self.session.in_flight();
        match (self.judge.class(sql), std::mem::take(&mut self.session.reads)) {
            (Class::Reads, Reads::Begun(text)) if between => {
                self.session.reads = Reads::First(text);
                self.session.again.begin(true);
                Ok(())
            }
            (Class::Unproven | Class::BeginsReading, reads @ Reads::Begun(_)) if between => {
                self.session.reads = reads;
                Err(Stop::Moves)
            }
            (Class::LeaderOnly, reads) => {
                self.session.reads = reads;
                self.needs_leader()
            }
            // What writes is refused there as it would be by the leader.
            (Class::Reads | Class::Unproven | Class::BeginsReading, reads) => {
                self.session.reads = reads;
                Ok(())
            }
        }
    }

    fn query(&mut self, bytes: usize, at: usize, whole: Option<&[u8]>) -> Result<usize, Stop> {
        let effects = match whole {
            Some(body) => {
                let sql = fields::text(body).ok_or_else(|| refuse("a query has no end"))?.0;
                self.stays(sql)?;
                sql::effects(sql)
            }
            None if bytes > LOOKED_AT_BYTES_MAX => {
                self.needs_leader()?;
                OVERSIZE
            }
            None => return Err(Stop::More),
        };
        self.sends(effects);
        self.session.unnamed.clear();
        self.session.unnamed_here = false;
        self.ends_round(Expected::Ready);
        Ok(self.pass(at, bytes))
    }

    fn parse(&mut self, bytes: usize, at: usize, whole: Option<&[u8]>) -> Result<usize, Stop> {
        let Some(body) = whole else {
            if bytes <= LOOKED_AT_BYTES_MAX {
                return Err(Stop::More);
            }
            self.needs_leader()?;
            self.session.open_round = true;
            self.sends(OVERSIZE);
            self.session.unnamed_here = true;
            self.expect(Expected::Parse(None));
            return Ok(self.pass(at, bytes));
        };
        let no_end = || refuse("a statement to prepare has no end");
        let (name, text) = fields::text(body).ok_or_else(no_end)?;
        let sql = fields::text(text).ok_or_else(no_end)?.0;
        self.stays(sql)?;
        self.session.open_round = true;
        if name.is_empty() {
            self.sends(sql::effects(sql));
            self.session.unnamed.clear();
            self.session.unnamed.extend_from_slice(text);
            self.session.unnamed_here = true;
            self.expect(Expected::Parse(None));
            return Ok(self.pass(at, bytes));
        }
        let statement = self.statements.get(text, self.schemas.changes(), || sql::effects(sql));
        self.sends(statement.effects);
        if !self.session.name(name, statement.clone()) {
            return Err(Stop::Refuse(Complaint::fatal(
                "53400",
                "too many prepared statements in one session",
            )));
        }
        let Some(link) = self.link.as_deref_mut() else { return Err(Stop::Link) };
        let out = self.out.put(self.input);
        if link.prepared.has(statement.id) {
            messages::close_statement(out, NO_STATEMENT);
            link.answers.expect(Expected::CloseAsParse);
        } else {
            link.prepare(&statement, out);
            link.answers.expect(Expected::Parse(Some(statement.id)));
        }
        Ok(bytes)
    }

    fn bind(&mut self, bytes: usize, at: usize, rest: &[u8]) -> Result<usize, Stop> {
        let there = rest.get(HEADER_BYTES..bytes.min(rest.len())).unwrap_or_default();
        let names = fields::text(there).and_then(|(portal, after)| {
            let (name, _) = fields::text(after)?;
            Some((portal, name))
        });
        let Some((portal, name)) = names else {
            return Err(if rest.len() >= bytes || there.len() > NAMES_BYTES_MAX {
                refuse("a Bind has no names")
            } else {
                Stop::More
            });
        };
        if name.is_empty() {
            let text = std::mem::take(&mut self.session.unnamed);
            let stays = self.stays(fields::text(&text).unwrap_or_default().0);
            self.session.unnamed = text;
            stays?;
            self.session.open_round = true;
            self.unnamed();
            return Ok(self.pass(at, bytes));
        }
        let Some(statement) = self.session.statement(name).cloned() else {
            self.session.open_round = true;
            self.session.again.never();
            return Ok(self.pass(at, bytes));
        };
        self.stays(fields::text(&statement.text).unwrap_or_default().0)?;
        self.session.open_round = true;
        self.named(&statement);
        let head = portal.len() + name.len() + 2;
        let length = bytes - 1 - name.len() + statement.name.len();
        let out = self.out.put(self.input);
        out.push(b'B');
        out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
        messages::put_text(out, portal);
        messages::put_text(out, statement.name.as_bytes());
        let head = HEADER_BYTES + head;
        Ok(head + self.pass(at + head, bytes - head))
    }

    fn describe_or_close(&mut self, kind: u8, bytes: usize, at: usize, body: &[u8]) -> Result<usize, Stop> {
        self.session.open_round = true;
        let (what, name) = close(body)?;
        let statement = self.session.statement(name).cloned().filter(|_| what == b'S');
        match (kind, statement) {
            (b'C', Some(_)) => {
                self.session.forget(name);
                self.expect(Expected::Close);
                messages::close_statement(self.out.put(self.input), NO_STATEMENT);
                Ok(bytes)
            }
            (b'C', None) => {
                if what == b'S' && name.is_empty() {
                    self.session.unnamed.clear();
                }
                self.expect(Expected::Close);
                Ok(self.pass(at, bytes))
            }
            (_, Some(statement)) => {
                self.named(&statement);
                messages::put(self.out.put(self.input), b'D', |body| {
                    body.push(b'S');
                    messages::put_text(body, statement.name.as_bytes());
                });
                Ok(bytes)
            }
            (_, None) => {
                if what == b'S' && name.is_empty() {
                    self.unnamed();
                }
                Ok(self.pass(at, bytes))
            }
        }
    }

    /// A named statement is about to be used: the link's server learns it if it does not know it.
    fn named(&mut self, statement: &std::sync::Arc<Statement>) {
        self.sends(statement.effects);
        let Some(link) = self.link.as_deref_mut() else { return };
        if !link.prepared.has(statement.id) {
            link.prepare(statement, self.out.put(self.input));
            link.answers.expect(Expected::ParseOfOurs(Some(statement.id)));
        }
    }

    /// The statement without a name is about to be used: on another link than it was prepared on, again.
    fn unnamed(&mut self) {
        if self.session.unnamed_here || self.session.unnamed.is_empty() {
            return;
        }
        let text = std::mem::take(&mut self.session.unnamed);
        messages::put(self.out.put(self.input), b'P', |body| {
            body.push(0);
            body.extend_from_slice(&text);
        });
        self.session.unnamed = text;
        self.session.unnamed_here = true;
        // Looked through when it came; what it may leave behind has been noted since.
        if self.session.reads == Reads::No && !self.session.only_reads {
            self.session.again.never();
        }
        self.expect(Expected::ParseOfOurs(None));
    }
}

/// What a Describe or Close is about: a statement or a portal, and its name.
fn close(body: &[u8]) -> Result<(u8, &[u8]), Stop> {
    let broken = || refuse("a Describe or Close has no name");
    let (what, after) = body.split_first().ok_or_else(broken)?;
    Ok((*what, fields::text(after).ok_or_else(broken)?.0))
}

fn refuse(message: impl Into<String>) -> Stop {
    Stop::Refuse(Complaint::fatal("08P01", message))
}
