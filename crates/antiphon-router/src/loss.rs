//! A link died under a session: what its client is told, and what is done again without a word.
//!
//! Pure. Three cases: nothing was in flight; something was whose outcome can be told; something was whose outcome
//! nobody knows. Only what certainly was not carried out is sent again, and reads of which nothing was answered.

use crate::session::{Link, Lost, Reads, Rest, Session, Status};
use crate::wire::messages::{self, Complaint};

/// What a client in a transaction is told.
pub const TRANSACTION_LOST: &str = "the transaction was rolled back because its server was lost";
/// What a client is told whose statement may or may not have been carried out.
const OUTCOME_UNKNOWN: &str =
    "the server was lost before it answered: the outcome of the statement is unknown";
/// What a client is told whose read was cut off.
const READ_CUT_OFF: &str =
    "the follower that answered this read was lost: the answer is not whole, ask again";
/// What a client is told that asks a follower for what only the leader can do.
pub const MISPLACED: &str = "this statement needs the leader, and its READ ONLY transaction has been read from a follower; begin it without READ ONLY, or with this statement";
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

/// A follower's refusal of what was taken for a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is none, or not there.
    NoRead,
    /// This time it could not be answered: what replay needed was in its way, or has not been replayed yet.
    NotNow,
}

/// What an error of a follower says of the read it is the answer to; none if the leader would say the same.
/// `routine`: the function of the server that reported it.
pub fn refusal(code: &[u8], routine: &[u8]) -> Option<Refusal> {
    // Serializable transactions, and tables that only the leader has.
    let never = matches!(routine, b"GetSerializableTransactionSnapshot" | b"get_relation_info");
    match code {
        // read_only_sql_transaction, object_not_in_prerequisite_state.
        b"25006" | b"55000" => Some(Refusal::NoRead),
        // feature_not_supported.
        b"0A000" if never => Some(Refusal::NoRead),
        // Cancelled by replay; or what another session has changed in the schema is on its way.
        b"40001" | b"40P01" | b"3F000" | b"0A000" => Some(Refusal::NotNow),
        _ if code.starts_with(b"42") => Some(Refusal::NotNow),
        _ => None,
    }
}

/// What the loss of its link means to a session; brings the session to the state that its client is told.
/// `deposed`: the link's server is known not to lead any more.
pub fn lose(session: &mut Session, link: &Link, deposed: bool) -> Verdict {
    let said = link.farewell.as_ref().map(|farewell| format!("The server said: {}", farewell.message));
    // An error cannot stand in the middle of another message.
    if link.rest.bytes > 0 && !link.rest.dropped {
        return Verdict::Ends(Vec::new());
    }
    if session.reads != Reads::No {
        return lose_reading(session, said);
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
    let again = if clean || session.only_reads { session.again.take() } else { None };
    if let Some(bytes) = again {
        forget_round(session);
        // What was sent in part is among these bytes from its beginning.
        session.rest = Rest::default();
        return Verdict::Again(bytes);
    }
    let open = session.status != Status::Idle;
    if !session.in_flight() {
        return goes_on(session, said);
    }
    let unknown = !open || session.may_commit;
    let complaint = match unknown {
        true => Complaint::error("08007", OUTCOME_UNKNOWN),
        false => Complaint::error("57P01", TRANSACTION_LOST),
    };
    let status = if unknown { Status::Idle } else { Status::Failed };
    Verdict::Goes(answers(session, &complaint.with_detail(said), status))
}

/// A follower died, and with it no more than reads.
fn lose_reading(session: &mut Session, said: Option<String>) -> Verdict {
    let again = session.again.take();
    let moves = (again.is_some() || !session.in_flight()) && session.moves();
    let (reads, idle) = (std::mem::take(&mut session.reads), session.status == Status::Idle);
    if let Some(bytes) = again.filter(|_| moves || idle) {
        forget_round(session);
        session.rest = Rest::default();
        return Verdict::Again(bytes);
    }
    if moves {
        forget_round(session);
        return Verdict::Goes(Vec::new());
    }
    if !session.in_flight() {
        return goes_on(session, said);
    }
    tracing::debug!(?reads, "a read was cut off");
    let (complaint, status) = match idle || session.may_commit {
        true => (Complaint::error("57P01", READ_CUT_OFF), Status::Idle),
        false => (Complaint::error("57P01", TRANSACTION_LOST), Status::Failed),
    };
    Verdict::Goes(answers(session, &complaint.with_detail(said), status))
}

/// Nothing was in flight: the client learns of it with its next statement, if there is anything to learn.
fn goes_on(session: &mut Session, said: Option<String>) -> Verdict {
    session.lost = match session.status {
        Status::Idle => Lost::Nothing,
        Status::Open => Lost::Untold,
        Status::Failed => Lost::Told,
    };
    session.lost_because = said;
    forget_round(session);
    Verdict::Goes(Vec::new())
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
