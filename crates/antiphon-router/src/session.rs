//! A client's session and a server link, as far as the protocol goes: plain state, no sockets.
//!
//! `upstream` and `downstream` move messages between the two and keep this state; `loss` says what a client is
//! told when its link dies. What of a session cannot be moved to another link pins it (`pinned`). What it sends
//! to a follower is one round, or one transaction that only reads (`Reads`).

use std::collections::HashMap;
use std::sync::Arc;

use crate::answers::{Answers, Expected, Purpose};
use crate::out::Out;
use crate::own::{self, Went};
use crate::parameters::Parameters;
use crate::positions::{Consistency, Floors};
use crate::sql::{Effects, Pin};
use crate::statements::{Prepared, Statement};
use crate::stats::Tally;
use crate::wire::messages::{self, Complaint};

/// Statements that a client may have prepared at a time, and the bytes of their texts.
const NAMES_MAX: usize = 10_000;
const NAMED_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The most of a round that is kept for sending it again, in bytes.
pub const AGAIN_BYTES_MAX: usize = 16 * 1024;
/// Room that is kept for it between two rounds, in bytes.
const KEPT_BYTES: usize = 512;

/// Begins a transaction that has failed, as the one that was lost. The name tells whoever reads the server's log.
const FAILED_TRANSACTION: &str = "BEGIN; ROLLBACK TO SAVEPOINT antiphon_transaction_was_lost";

/// The transaction's state, as ReadyForQuery tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// None is open.
    Idle,
    /// One is open.
    Open,
    /// One is open and has failed.
    Failed,
}

impl Status {
    /// Reads the byte of the protocol.
    pub fn of(byte: u8) -> Option<Self> {
        match byte {
            b'I' => Some(Self::Idle),
            b'T' => Some(Self::Open),
            b'E' => Some(Self::Failed),
            _ => None,
        }
    }

    /// The byte of the protocol.
    pub fn byte(self) -> u8 {
        match self {
            Self::Idle => b'I',
            Self::Open => b'T',
            Self::Failed => b'E',
        }
    }
}

/// What became of a transaction whose link died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Nothing was lost.
    Nothing,
    /// It was lost and the client knows: the next link begins a failed one.
    Told,
    /// It was lost while the client was thinking: the next statement is answered with it.
    Untold,
    /// It was given up, because its next statement cannot be carried out where it is.
    Misplaced,
}

/// The bytes of a message of which not all is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rest {
    /// How many are to come.
    pub bytes: usize,
    /// Whether they are left out.
    pub dropped: bool,
}

/// What a session does on the link that it has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Reads {
    /// Anything: the link goes to the leader, or it has none.
    #[default]
    No,
    /// One round that only reads, on a follower.
    Round,
    /// A transaction that only reads, on a follower; with this text it was begun, and that is all so far.
    Begun(String),
    /// Its first round is on its way.
    First(String),
    /// It has been answered something, and cannot go elsewhere.
    Going,
}

/// What has been sent since the link was taken, kept as long as it could be sent again.
#[derive(Debug, Default)]
pub struct Again {
    bytes: Vec<u8>,
    sound: bool,
}

impl Again {
    /// A new round begins; it could be sent again if no transaction is open.
    pub fn begin(&mut self, sound: bool) {
        self.bytes.clear();
        self.sound = sound;
    }

    /// These bytes were sent too.
    pub fn sent(&mut self, bytes: &[u8]) {
        if !self.sound {
            return;
        }
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() > AGAIN_BYTES_MAX {
            self.never();
        }
    }

    /// It cannot be sent again: something of it was answered, or it may have been carried out in part.
    pub fn never(&mut self) {
        self.sound = false;
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES);
    }

    /// All of it that could be sent again.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether it can be sent again.
    pub fn is_sound(&self) -> bool {
        self.sound && !self.bytes.is_empty()
    }

    /// All of it, if it can be sent again.
    pub fn take(&mut self) -> Option<Vec<u8>> {
        self.sound.then(|| std::mem::take(&mut self.bytes)).filter(|bytes| !bytes.is_empty())
    }
}

/// Whether a session is told its token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reports {
    /// It is, after each commit.
    pub on: bool,
    /// It is if it does not say.
    pub standard: bool,
    /// A ReadyForQuery is kept back until the token is known that goes before it.
    pub due: bool,
}

/// A client's session.
#[derive(Debug)]
pub struct Session {
    /// Its settings.
    pub parameters: Arc<Parameters>,
    /// Why it keeps its link, if it does.
    pub pinned: Option<Pin>,
    /// Where its transaction stands.
    pub status: Status,
    /// Rounds that a server still has to end with ReadyForQuery.
    pub due: u32,
    /// Messages were sent that no Sync has ended yet.
    pub open_round: bool,
    /// Something in flight may commit.
    pub may_commit: bool,
    /// Its next round is answered with this: there is no link for it, and it cannot wait for one.
    pub refused: Option<Box<Complaint>>,
    /// Everything up to a Sync is left out; this is the state to answer it with.
    pub skips_to_sync: Option<Status>,
    /// A transaction of which the link died.
    pub lost: Lost,
    /// What the server said when it lost the transaction, if the client does not know yet.
    pub lost_because: Option<String>,
    /// The rest of a message that is passed on in parts.
    pub rest: Rest,
    /// What could be sent again.
    pub again: Again,
    /// The text of the statement without a name, if it has not gone yet.
    pub unnamed: Vec<u8>,
    /// That statement has been prepared on the link at hand.
    pub unnamed_here: bool,
    /// What is on its way to the leader certainly only reads: it can be done twice.
    pub only_reads: bool,
    /// What it does on a follower, if its link goes to one.
    pub reads: Reads,
    /// A transaction that only reads is begun with this text before anything else: it was moved here.
    pub begins: Option<String>,
    /// What it asks of its reads, and what it asks if it does not say.
    pub consistency: Consistency,
    /// See [`Session::consistency`].
    pub standard: Consistency,
    /// What its reads must see.
    pub floor: Floors,
    /// It was given rows on the link that it has.
    pub saw: bool,
    /// It is told its token after each commit, and whether it is if it does not say.
    pub reports: Reports,
    /// Where its last statement or transaction went.
    pub went: Option<Went>,
    /// The round that is answered without a server.
    pub own: Option<Box<own::Round>>,
    /// It has prepared statements about the router's settings.
    pub has_own: bool,
    /// It has sent what changes the meaning of names, since that was last told.
    pub changed_schema: bool,
    /// Texts mean what they look like unless the session says otherwise: UTF-8, and backslashes are backslashes.
    pub plain_texts: bool,
    names: HashMap<Box<[u8]>, Arc<Statement>>,
    named_bytes: usize,
}

impl Session {
    /// A session that begins with these settings.
    pub fn new(parameters: Arc<Parameters>) -> Self {
        Self {
            parameters,
            pinned: None,
            status: Status::Idle,
            due: 0,
            open_round: false,
            may_commit: false,
            refused: None,
            skips_to_sync: None,
            lost: Lost::Nothing,
            lost_because: None,
            rest: Rest::default(),
            again: Again::default(),
            unnamed: Vec::new(),
            unnamed_here: false,
            only_reads: false,
            reads: Reads::No,
            begins: None,
            consistency: Consistency::default(),
            standard: Consistency::default(),
            floor: Floors::default(),
            saw: false,
            reports: Reports::default(),
            went: None,
            own: None,
            has_own: false,
            changed_schema: false,
            plain_texts: false,
            names: HashMap::new(),
            named_bytes: 0,
        }
    }

    /// A statement that the client gave this name.
    pub fn statement(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        self.names.get(name)
    }

    /// The client gives a statement a name; false if it has too many.
    pub fn name(&mut self, name: &[u8], statement: Arc<Statement>) -> bool {
        self.forget(name);
        self.named_bytes += statement.text.len();
        self.names.insert(name.into(), statement);
        self.names.len() <= NAMES_MAX && self.named_bytes <= NAMED_BYTES_MAX
    }

    /// How many statements have a name.
    pub fn named(&self) -> usize {
        self.names.len()
    }

    /// The client closes a statement; whether it had it.
    pub fn forget(&mut self, name: &[u8]) -> bool {
        let known = self.names.remove(name);
        self.named_bytes -= known.as_ref().map_or(0, |known| known.text.len());
        known.is_some()
    }

    /// Takes note of what is about to be sent.
    pub fn sends(&mut self, effects: Effects, link: &mut Link) {
        self.pinned = self.pinned.or(effects.pins);
        self.may_commit |= effects.may_commit;
        self.changed_schema |= effects.changes_schema;
        // What only reads can be done twice.
        if !effects.plain && self.reads == Reads::No && !self.only_reads {
            self.again.never();
        }
        if effects.forgets_statements {
            self.names.clear();
            self.named_bytes = 0;
            link.prepared.clear();
        }
    }

    /// The transaction that only reads goes on at the leader, if nothing of it has been answered: whether it does.
    pub fn moves(&mut self) -> bool {
        match std::mem::take(&mut self.reads) {
            Reads::Begun(text) | Reads::First(text) if self.status == Status::Open => {
                self.begins = Some(text);
                true
            }
            reads => {
                self.reads = reads;
                false
            }
        }
    }

    /// Whether a server has something of this session to answer.
    pub fn in_flight(&self) -> bool {
        self.due > 0 || self.open_round
    }

    /// Whether it has a transaction open, or something to be answered by a server.
    pub fn is_under_way(&self) -> bool {
        self.status != Status::Idle || self.in_flight()
    }
}

/// Why a link is about to end, in the server's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Farewell {
    /// SQLSTATE.
    pub code: String,
    /// The message.
    pub message: String,
}

/// A link to a server, logged in.
#[derive(Debug)]
pub struct Link {
    /// The settings it has.
    pub parameters: Arc<Parameters>,
    /// The statements its server knows.
    pub prepared: Prepared,
    /// What is still to be answered.
    pub answers: Answers,
    /// The rest of a message that is passed on in parts.
    pub rest: Rest,
    /// The server said that it ends the connection.
    pub farewell: Option<Farewell>,
    /// A commit on the way was not acknowledged as the cluster promises.
    pub doubtful: bool,
    /// The server takes rows, and ignores every Sync until they end.
    pub copies_in: bool,
    /// The round on the way is asked elsewhere: its answer is for nobody.
    pub drains: bool,
    /// An error in a round of the router's own.
    pub own_error: Option<Farewell>,
    /// What its messages amounted to, not counted yet.
    pub tally: Tally,
    /// The server said that a statement was prepared before the schema was changed.
    pub outdated: bool,
}

impl Link {
    /// A link that has just logged in, with the server's own settings.
    pub fn new(parameters: Arc<Parameters>) -> Self {
        Self {
            parameters,
            prepared: Prepared::default(),
            answers: Answers::default(),
            rest: Rest::default(),
            farewell: None,
            doubtful: false,
            copies_in: false,
            drains: false,
            own_error: None,
            tally: Tally::default(),
            outdated: false,
        }
    }

    /// Tells the server a statement under our name, and closes another one if there are too many.
    pub fn prepare(&mut self, statement: &Arc<Statement>, out: &mut Vec<u8>) {
        self.tally.server_parses += 1;
        if let Some(oldest) = self.prepared.add(statement) {
            messages::close_statement(out, oldest.name.as_bytes());
            self.answers.expect(Expected::CloseOfOurs);
        }
        messages::put(out, b'P', |body| {
            messages::put_text(body, statement.name.as_bytes());
            body.extend_from_slice(&statement.text);
        });
    }

    /// Makes this link the session's: what must be sent before the session's own messages.
    pub fn take_up(&mut self, session: &mut Session, input: &[u8], out: &mut Out) {
        session.unnamed_here = false;
        session.again.begin(session.status == Status::Idle && session.lost == Lost::Nothing);
        if !Arc::ptr_eq(&self.parameters, &session.parameters) {
            let sql = self.parameters.change_to(&session.parameters);
            if !sql.is_empty() {
                out.put(input).extend_from_slice(&messages::query(&sql));
                self.answers.expect(Expected::Round(Purpose::Settings));
            }
            self.parameters = session.parameters.clone();
        }
        if let Some(text) = session.begins.take() {
            out.put(input).extend_from_slice(&messages::query(&text));
            self.answers.expect(Expected::Round(Purpose::Begin));
        }
        if session.lost == Lost::Told {
            session.lost = Lost::Nothing;
            out.put(input).extend_from_slice(&messages::query(FAILED_TRANSACTION));
            self.answers.expect(Expected::Round(Purpose::FailedTransaction));
        }
    }

    /// Removes what a session left: what must be sent for it.
    pub fn reset(&mut self, defaults: Arc<Parameters>) -> Vec<u8> {
        self.prepared.clear();
        self.parameters = defaults;
        self.answers.expect(Expected::Round(Purpose::Reset));
        messages::query("DISCARD ALL")
    }
}

#[cfg(test)]
mod tests;
