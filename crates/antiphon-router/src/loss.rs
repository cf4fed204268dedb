//! A link died under a session: what its client is told, and what is done again without a word.
//!
//! Pure. Three cases: nothing was in flight; something was whose outcome can be told; something was whose outcome
//! nobody knows. Only what certainly was not carried out is sent again.

use crate::session::{Link, Lost, Rest, Session, Status};
use crate::wire::messages::{self, Complaint};

/// What a client in a transaction is told.
pub const TRANSACTION_LOST: &str = "the transaction was rolled back because its server was lost";
/// What a client is told whose statement may or may not have been carried out.
const OUTCOME_UNKNOWN: &str =
    "the server was lost before it answered: the outcome of the statement is unknown";
/// What a client is told whose commit is on one server only.
pub const NOT_ACKNOWLEDGED: &str =
    "the wait for other servers was cancelled: the commit may be lost in a failover, its outcome is unknown";

/// What is done with a client whose link died.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on; these bytes are for it.
    Goes(Vec<u8>),
    /// Its statement is sent to the next link: these bytes, before whatever has come since.
    Again(Vec<u8>),
    /// It is closed after these bytes.
    Ends(Vec<u8>),
}

/// What the loss of its link means to a session; brings the session to the state that its client is told.
/// `deposed`: the link's server is known not to lead any more.
pub fn lose(session: &mut Session, link: &Link, deposed: bool) -> Verdict {
    let said = link.farewell.as_ref().map(|farewell| format!("The server said: {}", farewell.message));
    // An error cannot stand in the middle of another message.
    if link.rest.bytes > 0 && !link.rest.dropped {
        return Verdict::Ends(Vec::new());
    }
    if let Some(pin) = session.pinned {
        let message = "the server was lost, and with it what this session kept there";
        let detail = format!("It kept its link because of: {pin:?}. {}", said.unwrap_or_default());
        let mut out = Vec::new();
        messages::error(&mut out, &Complaint::fatal("57P01", message).with_detail(Some(detail)));
        return Verdict::Ends(out);
    }
    // Ended by its administrator between two steps of a statement, of which nothing had been answered: an open
    // transaction was rolled back. A crash says 57P02 and may come at any moment, after the commit, too. While the
    // server leads, it was somebody who wanted this statement to end.
    let clean = deposed && link.farewell.as_ref().is_some_and(|farewell| farewell.code == "57P01");
    let again = if clean { session.again.take() } else { None };
    if let Some(bytes) = again {
        forget_round(session);
        // What was sent in part is among these bytes from its beginning.
        session.rest = Rest::default();
        return Verdict::Again(bytes);
    }
    let open = session.status != Status::Idle;
    if !session.in_flight() {
        session.lost = match session.status {
            Status::Idle => Lost::Nothing,
            Status::Open => Lost::Untold,
            Status::Failed => Lost::Told,
        };
        session.lost_because = said;
        forget_round(session);
        return Verdict::Goes(Vec::new());
    }
    let unknown = !open || session.may_commit;
    let complaint = match unknown {
        true => Complaint::error("08007", OUTCOME_UNKNOWN),
        false => Complaint::error("57P01", TRANSACTION_LOST),
    };
    let status = if unknown { Status::Idle } else { Status::Failed };
    Verdict::Goes(answers(session, &complaint.with_detail(said), status))
}

/// Answers every round that is in flight.
fn answers(session: &mut Session, complaint: &Complaint, status: Status) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..session.due {
        messages::error(&mut out, complaint);
        messages::ready(&mut out, status.byte());
    }
    if session.open_round {
        messages::error(&mut out, complaint);
        session.skips_to_sync = Some(status);
    }
    if status == Status::Failed {
        session.lost = Lost::Told;
    }
    session.status = status;
    session.rest.dropped = true;
    forget_round(session);
    out
}

fn forget_round(session: &mut Session) {
    session.due = 0;
    session.open_round = false;
    session.may_commit = false;
    session.unnamed_here = false;
    session.again.never();
}
