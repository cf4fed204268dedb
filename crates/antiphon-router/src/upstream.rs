//! From a client to its server: what is read of each message, what is changed, what is kept back.
//!
//! Pure. Messages are passed on as they lie in the read buffer. Changed are only the names of prepared
//! statements; looked through are texts of statements, once each. What needs a link stops until there is one.

use crate::answers::Expected;
use crate::out::Out;
use crate::session::{Link, Lost, Rest, Session, Status};
use crate::sql::{self, Effects, Pin};
use crate::statements::{Statement, Statements};
use crate::wire::messages::{self, Complaint};
use crate::wire::{self, Frame, HEADER_BYTES, fields};

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
            let (kind, bytes) = match wire::from_client(rest) {
                Frame::Message { kind: b'X', .. } => return (at, Stop::Goodbye),
                Frame::Message { kind, bytes } => (kind, bytes),
                Frame::Partial => return (at, Stop::More),
                Frame::Malformed => {
                    let byte = rest.first().copied().unwrap_or_default();
                    return (at, refuse(format!("invalid frontend message of type {byte}")));
                }
            };
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

    /// What is dealt with without a server: how many bytes, or none if it needs one.
    fn alone(&mut self, kind: u8, bytes: usize, rest: &[u8]) -> Option<Result<usize, Stop>> {
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
        match kind {
            // What a client still sends of a COPY that has failed; a server ignores it, too.
            b'd' | b'c' | b'f' => Some(self.drop(bytes)),
            _ if self.session.lost == Lost::Untold => Some(self.tell(kind, bytes, rest)),
            _ => Some(Err(Stop::Link)),
        }
    }

    /// The first message after a transaction was lost is answered with that.
    fn tell(&mut self, kind: u8, bytes: usize, rest: &[u8]) -> Result<usize, Stop> {
        if kind == b'S' && rest.len() < bytes {
            return Err(Stop::More);
        }
        self.session.lost = Lost::Told;
        self.session.status = Status::Failed;
        let complaint = Complaint::error("57P01", crate::loss::TRANSACTION_LOST)
            .with_detail(self.session.lost_because.take());
        if kind != b'S' {
            messages::error(self.replies, &complaint);
        }
        match kind {
            b'S' => {
                messages::ready(self.replies, Status::Failed.byte());
                Ok(bytes)
            }
            b'Q' | b'F' => {
                messages::ready(self.replies, Status::Failed.byte());
                self.drop(bytes)
            }
            _ => {
                self.session.skips_to_sync = Some(Status::Failed);
                self.drop(bytes)
            }
        }
    }

    fn drop(&mut self, bytes: usize) -> Result<usize, Stop> {
        self.session.rest = Rest { bytes, dropped: true };
        Ok(0)
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
            b'P' => self.parse(bytes, at, whole),
            b'B' => self.bind(bytes, at, rest),
            b'D' | b'C' => self.describe_or_close(kind, bytes, at, whole.ok_or(Stop::More)?),
            b'S' => {
                whole.ok_or(Stop::More)?;
                if !self.link.as_ref().is_some_and(|link| link.copies_in) {
                    self.ends_round(Expected::Sync);
                }
                Ok(self.pass(at, bytes))
            }
            b'F' => {
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
            link.answers.expect(answer);
        }
    }

    fn ends_round(&mut self, answer: Expected) {
        self.expect(answer);
        self.session.due += 1;
        self.session.open_round = false;
    }

    fn sends(&mut self, effects: Effects) {
        if let Some(link) = self.link.as_deref_mut() {
            self.session.sends(effects, link);
        }
    }

    fn query(&mut self, bytes: usize, at: usize, whole: Option<&[u8]>) -> Result<usize, Stop> {
        let effects = match whole {
            Some(body) => sql::effects(fields::text(body).ok_or_else(|| refuse("a query has no end"))?.0),
            None if bytes > LOOKED_AT_BYTES_MAX => OVERSIZE,
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
            self.session.open_round = true;
            self.sends(OVERSIZE);
            self.session.unnamed_here = true;
            self.expect(Expected::Parse(None));
            return Ok(self.pass(at, bytes));
        };
        self.session.open_round = true;
        let no_end = || refuse("a statement to prepare has no end");
        let (name, text) = fields::text(body).ok_or_else(no_end)?;
        let sql = fields::text(text).ok_or_else(no_end)?.0;
        if name.is_empty() {
            self.sends(sql::effects(sql));
            self.session.unnamed.clear();
            self.session.unnamed.extend_from_slice(text);
            self.session.unnamed_here = true;
            self.expect(Expected::Parse(None));
            return Ok(self.pass(at, bytes));
        }
        let statement = self.statements.get(text, || sql::effects(sql));
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
            prepare(link, &statement, out);
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
        self.session.open_round = true;
        if name.is_empty() {
            self.unnamed();
            return Ok(self.pass(at, bytes));
        }
        let Some(statement) = self.session.statement(name).cloned() else {
            self.session.again.never();
            return Ok(self.pass(at, bytes));
        };
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
        let broken = || refuse("a Describe or Close has no name");
        let (what, after) = body.split_first().ok_or_else(broken)?;
        let name = fields::text(after).ok_or_else(broken)?.0;
        let statement = self.session.statement(name).cloned().filter(|_| *what == b'S');
        match (kind, statement) {
            (b'C', Some(_)) => {
                self.session.forget(name);
                self.expect(Expected::Close);
                messages::close_statement(self.out.put(self.input), NO_STATEMENT);
                Ok(bytes)
            }
            (b'C', None) => {
                if *what == b'S' && name.is_empty() {
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
                if *what == b'S' && name.is_empty() {
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
            prepare(link, statement, self.out.put(self.input));
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
        self.session.again.never();
        self.expect(Expected::ParseOfOurs(None));
    }
}

const OVERSIZE: Effects =
    Effects { pins: Some(Pin::Oversize), may_commit: true, plain: false, forgets_statements: false };

fn refuse(message: impl Into<String>) -> Stop {
    Stop::Refuse(Complaint::fatal("08P01", message))
}

/// Tells a server a statement under our name, and closes another one if there are too many.
fn prepare(link: &mut Link, statement: &std::sync::Arc<Statement>, out: &mut Vec<u8>) {
    if let Some(oldest) = link.prepared.add(statement) {
        messages::close_statement(out, oldest.name.as_bytes());
        link.answers.expect(Expected::CloseOfOurs);
    }
    messages::put(out, b'P', |body| {
        messages::put_text(body, statement.name.as_bytes());
        body.extend_from_slice(&statement.text);
    });
}
