//! `SET`, `SHOW` and `RESET` of the router's own settings: answered here, wherever the session is.
//!
//! Pure. In the extended protocol a round that begins with one of them is answered here to its Sync; nothing else
//! may stand in it. No server hears of these settings.

use std::sync::Arc;

use crate::parameters::Parameters;
use crate::positions::{Consistency, Reading, Token};
use crate::routes::Reason;
use crate::session::{Session, Status};
use crate::settings::Wants;
use crate::wire::messages::{self, Complaint, Severity};
use crate::wire::rows;

/// What all names of these settings begin with.
const PREFIX: &str = "antiphon.";
/// What the token is reported by.
pub const TOKEN: &str = "antiphon.token";

/// One of the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    Consistency,
    /// Where the session's last statement or transaction went, and why. It can only be shown.
    Route,
    /// What the session's reads see at least, to be handed to another session.
    Token,
    /// Whether the session is told that after each commit.
    ReportToken,
}

impl Name {
    fn word(self) -> &'static str {
        match self {
            Self::Consistency => "antiphon.consistency",
            Self::Route => "antiphon.route",
            Self::Token => TOKEN,
            Self::ReportToken => "antiphon.report_token",
        }
    }
}

/// A statement about one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    name: Name,
    what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Show,
    Set(String),
    Reset,
}

/// Where the session's last statement or transaction went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Went {
    /// To the leader.
    Leader(Reason),
    /// To this follower.
    Follower(Arc<str>),
}

/// A round of the extended protocol that is answered here.
#[derive(Debug, Default)]
pub struct Round {
    prepared: Option<Own>,
    bound: Option<Own>,
}

/// What a text is, if it is about one of the settings. Anything else costs a look at its first letters.
pub fn parse(sql: &[u8]) -> Option<Own> {
    let first = sql.iter().position(|byte| !byte.is_ascii_whitespace())?;
    let head = sql.get(first..first + 3)?;
    if ![&b"set"[..], b"sho", b"res"].iter().any(|word| head.eq_ignore_ascii_case(word)) {
        return None;
    }
    let text = std::str::from_utf8(sql).ok()?.trim().trim_end_matches(';').trim_end();
    let (verb, rest) = text.split_once(char::is_whitespace)?;
    let rest = rest.trim_start();
    let is = |word: &str| verb.eq_ignore_ascii_case(word);
    if is("show") || is("reset") {
        let what = if is("show") { What::Show } else { What::Reset };
        return Some(Own { name: name(rest)?, what });
    }
    if !is("set") {
        return None;
    }
    let rest = match rest.split_once(char::is_whitespace) {
        Some((word, rest)) if word.eq_ignore_ascii_case("session") => rest.trim_start(),
        Some(_) | None => rest,
    };
    let end = rest.find(|c: char| c.is_whitespace() || c == '=')?;
    let (setting, rest) = rest.split_at(end);
    let name = name(setting)?;
    let rest = rest.trim_start();
    let value = match (rest.strip_prefix('='), rest.get(..3)) {
        (Some(value), _) => value,
        (None, Some(to)) if to.trim_end().eq_ignore_ascii_case("to") => rest.get(2..)?,
        (None, _) => return None,
    };
    let value = value.trim();
    let plain = value.strip_prefix('\'').and_then(|value| value.strip_suffix('\'')).unwrap_or(value);
    let what = match plain.eq_ignore_ascii_case("default") {
        true => What::Reset,
        false => What::Set(plain.to_owned()),
    };
    Some(Own { name, what })
}

fn name(text: &str) -> Option<Name> {
    let head = text.get(..PREFIX.len())?;
    let known = match text.get(PREFIX.len()..)?.to_ascii_lowercase().as_str() {
        "consistency" => Name::Consistency,
        "route" => Name::Route,
        "token" => Name::Token,
        "report_token" => Name::ReportToken,
        _ => return None,
    };
    head.eq_ignore_ascii_case(PREFIX).then_some(known)
}

impl Own {
    /// Whether it has to wait until more is known of the servers; `reading`: none if no reads go to followers.
    pub fn waits(&self, session: &mut Session, reading: Option<&Reading>) -> bool {
        let Some(reading) = reading else { return false };
        match (self.name, &self.what) {
            (Name::Token, What::Show) => session.floor.token(reading).is_none(),
            // Of an epoch that this router will hear of in a moment.
            (Name::Token, What::Set(value)) => {
                value.parse::<Token>().is_ok_and(|token| token.epoch > reading.epoch)
            }
            (Name::Token, What::Reset) | (Name::Consistency | Name::Route | Name::ReportToken, _) => false,
        }
    }
}

/// Carries a statement out: what its answer says. `standard`: the level of sessions that do not say.
fn carry_out(
    own: &Own,
    session: &mut Session,
    reading: Option<&Reading>,
) -> Result<(&'static str, Option<String>), Complaint> {
    match (own.name, &own.what) {
        (Name::Consistency, What::Show) => Ok(("SHOW", Some(session.consistency.to_string()))),
        (Name::Consistency, What::Reset) => {
            session.consistency = session.standard;
            Ok(("SET", None))
        }
        (Name::Consistency, What::Set(value)) => {
            session.consistency = level(value)?;
            Ok(("SET", None))
        }
        (Name::Route, What::Show) => {
            let went = match &session.went {
                None => "nowhere yet".to_owned(),
                Some(Went::Leader(reason)) => format!("leader: {}", reason.word()),
                Some(Went::Follower(name)) => format!("follower: {name}"),
            };
            Ok(("SHOW", Some(went)))
        }
        (Name::Token, What::Show) => {
            let why = "A router has none while it sends all reads to the leader (read_from).";
            let unknown = || {
                Complaint::error("55000", "the position of what the session wrote is not known")
                    .with_detail(Some(why.to_owned()))
            };
            let token = reading.and_then(|reading| session.floor.token(reading));
            Ok(("SHOW", Some(token.ok_or_else(unknown)?.to_string())))
        }
        (Name::Token, What::Set(value)) => {
            let wrong = |()| invalid(TOKEN, value, "must be what SHOW antiphon.token gave");
            session.floor.raise(value.parse().map_err(wrong)?);
            Ok(("SET", None))
        }
        (Name::Token, What::Reset) => Err(Complaint::error(
            "55P02",
            "parameter \"antiphon.token\" cannot be reset: what was seen was seen",
        )),
        (Name::ReportToken, What::Show) => {
            Ok(("SHOW", Some(if session.reports.on { "on" } else { "off" }.to_owned())))
        }
        (Name::ReportToken, What::Reset) => {
            session.reports.on = session.reports.standard;
            Ok(("SET", None))
        }
        (Name::ReportToken, What::Set(value)) => {
            let on = switch(value)?;
            if on && reading.is_none() {
                let why = "A router has no tokens while it sends all reads to the leader (read_from).";
                let complaint = Complaint::error("55000", "the router knows no positions");
                return Err(complaint.with_detail(Some(why.to_owned())));
            }
            session.reports.on = on;
            Ok(("SET", None))
        }
        (Name::Route, What::Set(_) | What::Reset) => {
            Err(Complaint::error("55P02", "parameter \"antiphon.route\" cannot be changed"))
        }
    }
}

/// A level as a session or its start names it.
///
/// # Errors
/// What the client is told of a wrong one.
pub fn level(value: &str) -> Result<Consistency, Complaint> {
    value.parse().map_err(|wrong: String| invalid(Name::Consistency.word(), value, &wrong))
}

/// What the start of a session asks for, taken out of what a server would be asked for.
///
/// # Errors
/// What the client is told of what is wrong.
pub fn at_start(parameters: &mut Parameters) -> Result<Wants, Complaint> {
    let fatal = |complaint| Complaint { severity: Severity::Fatal, ..complaint };
    let consistency = parameters.take(Name::Consistency.word()).map(|value| level(&value)).transpose();
    let report_token = parameters.take(Name::ReportToken.word()).map(|value| switch(&value)).transpose();
    Ok(Wants { consistency: consistency.map_err(fatal)?, report_token: report_token.map_err(fatal)? })
}

fn switch(value: &str) -> Result<bool, Complaint> {
    match value.trim().to_ascii_lowercase().as_str() {
        "on" | "true" | "yes" | "1" => Ok(true),
        "off" | "false" | "no" | "0" => Ok(false),
        _ => Err(invalid(Name::ReportToken.word(), value, "must be on or off")),
    }
}

fn invalid(name: &str, value: &str, wrong: &str) -> Complaint {
    let value: String = value.chars().take(64).collect();
    let message = format!("invalid value for parameter \"{name}\": \"{value}\"");
    Complaint::error("22023", message).with_detail(Some(format!("It {wrong}.")))
}

/// Answers a simple query.
pub fn query(own: &Own, session: &mut Session, reading: Option<&Reading>, out: &mut Vec<u8>) {
    match carry_out(own, session, reading) {
        Ok((tag, shown)) => {
            if let Some(value) = shown {
                describe(own, out);
                row(&value, out);
            }
            rows::complete(tag, out);
        }
        Err(complaint) => {
            messages::error(out, &complaint);
            if session.status == Status::Open {
                // The server does not know of the error, and its transaction goes on.
                tracing::debug!("a wrong setting within a transaction leaves that open");
            }
        }
    }
    messages::ready(out, session.status.byte());
}

impl Round {
    /// Prepares one of them.
    pub fn parse(&mut self, own: Own, out: &mut Vec<u8>) {
        self.prepared = Some(own);
        messages::put(out, b'1', |_| ());
    }

    /// Binds one: the one that was prepared in this round, or this.
    pub fn bind(&mut self, own: Option<Own>, out: &mut Vec<u8>) {
        self.bound = own.or_else(|| self.prepared.clone());
        messages::put(out, b'2', |_| ());
    }

    /// Answers any other message of the round but its Sync; false if nothing like this can stand there.
    pub fn message(
        &mut self,
        kind: u8,
        body: &[u8],
        session: &mut Session,
        reading: Option<&Reading>,
        out: &mut Vec<u8>,
    ) -> Result<(), Complaint> {
        match kind {
            b'D' => {
                let of_statement = body.first() == Some(&b'S');
                if of_statement {
                    messages::put(out, b't', |body| body.extend([0, 0]));
                }
                match self.bound.as_ref().filter(|_| !of_statement).or(self.prepared.as_ref()) {
                    Some(own) if own.what == What::Show => describe(own, out),
                    Some(_) | None => messages::put(out, b'n', |_| ()),
                }
                Ok(())
            }
            b'E' => {
                let none = || Complaint::error("34000", "portal does not exist");
                let own = self.bound.clone().ok_or_else(none)?;
                let (tag, shown) = carry_out(&own, session, reading)?;
                if let Some(value) = shown {
                    row(&value, out);
                }
                rows::complete(tag, out);
                Ok(())
            }
            b'C' => {
                messages::put(out, b'3', |_| ());
                Ok(())
            }
            b'H' => Ok(()),
            _ => Err(alone()),
        }
    }
}

/// What a client is told that mixes these statements with others in one round.
pub fn alone() -> Complaint {
    Complaint::error(
        "0A000",
        "SET and SHOW of the router's settings cannot be pipelined with other statements before a Sync",
    )
}

fn describe(own: &Own, out: &mut Vec<u8>) {
    rows::describe(&[(own.name.word(), rows::Kind::Text)], out);
}

fn row(value: &str, out: &mut Vec<u8>) {
    rows::row([Some(value)].into_iter(), out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_settings_are_ours() {
        let set = |value: &str| Some(Own { name: Name::Consistency, what: What::Set(value.to_owned()) });
        for text in [
            "SET antiphon.consistency = 'strong'",
            " set session Antiphon.Consistency to strong ;",
            "SET antiphon.consistency='strong'",
            "set antiphon.consistency to 'strong';",
        ] {
            assert_eq!(parse(text.as_bytes()), set("strong"), "{text}");
        }
        assert_eq!(parse(b"SET antiphon.consistency = bounded(2 s)"), set("bounded(2 s)"));
        let show = Some(Own { name: Name::Route, what: What::Show });
        assert_eq!(parse(b"SHOW antiphon.route;"), show);
        let reset = Some(Own { name: Name::Consistency, what: What::Reset });
        assert_eq!(parse(b"RESET antiphon.consistency"), reset);
        assert_eq!(parse(b"SET antiphon.consistency TO DEFAULT"), reset);
        for other in [
            "",
            "SET",
            "SET x = 1",
            "SHOW all",
            "SELECT 1",
            "set antiphon.consistency",
            "show antiphon.x",
            "SET antiphon.consistency toast",
        ] {
            assert_eq!(parse(other.as_bytes()), None, "{other}");
        }
    }
}
