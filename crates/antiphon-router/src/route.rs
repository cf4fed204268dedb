//! Whether what a session is about to send may go to a follower, told by the round that lies in the buffer.
//!
//! Pure. A round is one simple query, or everything up to a Sync. It goes to a follower only whole: all of it is
//! there, every text in it is certainly a read, and it is short enough to be kept for a second time.

use crate::judge::{Class, Judge};
use crate::routes::Reason;
use crate::session::{AGAIN_BYTES_MAX, Session};
use crate::wire::{self, Frame, HEADER_BYTES, fields};

/// What a round is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// It may go to a follower.
    Reads,
    /// It may go to a follower, and does no more than begin a transaction, with this text.
    Begins(String),
    /// It is one for the leader.
    Leader(Reason),
}

/// Looks at the round at the front of `input`, of a session that has no link.
pub fn look(session: &Session, input: &[u8], judge: &mut Judge) -> Look {
    if session.pinned.is_some() {
        return Look::Leader(Reason::Pinned);
    }
    let mut round = Round { session, judge, reads: false, begins: None, unnamed: false };
    let mut at = 0;
    loop {
        let rest = input.get(at..).unwrap_or_default();
        let Frame::Message { kind, bytes } = wire::from_client(rest) else {
            return Look::Leader(Reason::NotWhole);
        };
        at += bytes;
        let Some(body) = rest.get(HEADER_BYTES..bytes).filter(|_| at <= AGAIN_BYTES_MAX) else {
            return Look::Leader(Reason::NotWhole);
        };
        match (kind, round.message(kind, body)) {
            (_, None) => return Look::Leader(Reason::NotARead),
            (b'Q' | b'S', Some(())) => return round.verdict(),
            (_, Some(())) => {}
        }
    }
}

/// Every text of the round at the front of `input`, as far as it is there.
pub fn texts(session: &Session, input: &[u8], mut tell: impl FnMut(&[u8])) {
    let mut at = 0;
    while let Frame::Message { kind, bytes } = wire::from_client(input.get(at..).unwrap_or_default()) {
        let Some(body) = input.get(at + HEADER_BYTES..at + bytes) else { return };
        at += bytes;
        if let Some(sql) = text_of(session, kind, body).flatten() {
            tell(sql);
        }
        if matches!(kind, b'Q' | b'S') {
            return;
        }
    }
}

/// The text that a message runs or prepares, if it does; none at all if the message is not as it should be.
fn text_of<'a>(session: &'a Session, kind: u8, body: &'a [u8]) -> Option<Option<&'a [u8]>> {
    match kind {
        b'Q' => Some(Some(fields::text(body)?.0)),
        b'P' => Some(Some(fields::text(fields::text(body)?.1)?.0)),
        b'B' => {
            let name = fields::text(fields::text(body)?.1)?.0;
            let text = match name {
                b"" => Some(session.unnamed.as_slice()).filter(|text| !text.is_empty()),
                _ => session.statement(name).map(|statement| &*statement.text),
            };
            Some(text.and_then(fields::text).map(|(sql, _)| sql))
        }
        _ => Some(None),
    }
}

struct Round<'a> {
    session: &'a Session,
    judge: &'a mut Judge,
    /// Something of it reads.
    reads: bool,
    /// Something of it begins a transaction.
    begins: Option<String>,
    /// It prepares the statement without a name itself.
    unnamed: bool,
}

impl Round<'_> {
    /// None if a message keeps the round from a follower.
    fn message(&mut self, kind: u8, body: &[u8]) -> Option<()> {
        match kind {
            b'Q' => self.judged(text_of(self.session, kind, body)??),
            b'P' => {
                self.unnamed |= body.first() == Some(&0);
                self.judged(text_of(self.session, kind, body)??)
            }
            b'B' => {
                let name = fields::text(fields::text(body)?.1)?.0;
                match text_of(self.session, kind, body)? {
                    // What this round prepares is judged where it does.
                    _ if name.is_empty() && self.unnamed => Some(()),
                    Some(sql) => self.judged(sql),
                    // Prepared in this round, or not at all, which any server says.
                    None => Some(()),
                }
            }
            b'D' => match self.session.statement(fields::text(body.get(1..)?)?.0) {
                Some(statement) if body.first() == Some(&b'S') => {
                    self.judged(fields::text(&statement.text)?.0)
                }
                Some(_) | None => Some(()),
            },
            b'C' | b'E' | b'H' | b'S' => Some(()),
            _ => None,
        }
    }

    fn judged(&mut self, sql: &[u8]) -> Option<()> {
        match self.judge.class(sql) {
            Class::Reads => self.reads = true,
            Class::BeginsReading => self.begins = Some(std::str::from_utf8(sql).ok()?.to_owned()),
            Class::Unproven | Class::LeaderOnly => return None,
        }
        Some(())
    }

    fn verdict(self) -> Look {
        match self.begins {
            Some(text) if !self.reads => Look::Begins(text),
            _ if self.reads => Look::Reads,
            Some(_) | None => Look::Leader(Reason::NotARead),
        }
    }
}
