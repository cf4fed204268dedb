//! Messages through a session and its link, without a socket: what is changed, what is kept back, what a client is
//! told when its link dies. Every exchange is tried in one piece and cut at every byte.

use super::*;
use crate::downstream::{Downstream, Flow};
use crate::gates::Schemas;
use crate::judge::{self, Judge};
use crate::loss::{self, Verdict};
use crate::out::Out;
use crate::parameters::Interned;
use crate::statements::Statements;
use crate::upstream::{Stop, Upstream};

/// A session with or without a link.
struct Play {
    session: Session,
    link: Option<Link>,
    statements: Statements,
    schemas: Schemas,
    judge: Judge,
    interned: Interned,
    replies: Vec<u8>,
    deposed: bool,
}

impl Play {
    fn new() -> Self {
        let defaults = Arc::new(Parameters::default());
        let session = Session::new(defaults);
        Self {
            session,
            link: None,
            statements: Statements::new(0),
            schemas: Schemas::default(),
            judge: judge::tests::informed(),
            interned: Interned::default(),
            replies: Vec::new(),
            deposed: true,
        }
    }

    fn attach(&mut self) -> Vec<u8> {
        let mut link = Link::new(Arc::new(Parameters::default()));
        let mut out = Out::default();
        link.take_up(&mut self.session, b"", &mut out);
        self.link = Some(link);
        out.finish(b"").to_vec()
    }

    /// What the server is sent, and why it stopped.
    fn up(&mut self, input: &[u8]) -> (Vec<u8>, usize, Stop) {
        let mut out = Out::default();
        let upstream = Upstream {
            session: &mut self.session,
            link: self.link.as_mut(),
            statements: &mut self.statements,
            schemas: &self.schemas,
            judge: &mut self.judge,
            reading: None,
            input,
            out: &mut out,
            replies: &mut self.replies,
        };
        let (moved, stop) = upstream.run();
        self.session.again.sent(&input[..moved]);
        (out.finish(input).to_vec(), moved, stop)
    }

    /// What the client is sent, and what became of it.
    fn down(&mut self, input: &[u8]) -> (Vec<u8>, usize, Flow) {
        let mut out = Out::default();
        let link = self.link.as_mut().expect("a link");
        let (session, interned) = (Some(&mut self.session), &mut self.interned);
        let (moved, flow) = Downstream { session, link, interned, input, out: &mut out }.run();
        let sent = out.finish(input).to_vec();
        if !sent.is_empty() {
            self.session.again.never();
        }
        (sent, moved, flow)
    }

    fn lose(&mut self, code: Option<&str>) -> Verdict {
        let mut link = self.link.take().expect("a link");
        let said = |code: &str| Farewell { code: code.to_owned(), message: "gone".to_owned() };
        link.farewell = link.farewell.take().or(code.map(said));
        loss::lose(&mut self.session, &link, self.deposed)
    }
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    messages::put(&mut out, kind, |out| out.extend(body));
    out
}

fn prepared(name: &str, sql: &str) -> Vec<u8> {
    message(b'P', format!("{name}\0{sql}\0\0\0").as_bytes())
}

fn bound(name: &str) -> Vec<u8> {
    message(b'B', format!("\0{name}\0\0\0\0\0\0\0").as_bytes())
}

fn sync() -> Vec<u8> {
    message(b'S', b"")
}

fn ready(status: u8) -> Vec<u8> {
    message(b'Z', &[status])
}

fn kinds(mut bytes: &[u8]) -> String {
    let mut kinds = String::new();
    while let crate::wire::Frame::Message { kind, bytes: length } = crate::wire::from_server(bytes) {
        kinds.push(char::from(kind));
        bytes = bytes.get(length..).unwrap_or_default();
    }
    kinds
}

fn contains(bytes: &[u8], part: &str) -> bool {
    bytes.windows(part.len()).any(|window| window == part.as_bytes())
}

#[test]
fn a_round_that_cannot_wait_for_a_link_is_answered_with_an_error_and_the_session_goes_on() {
    let many = [prepared("a", "SELECT 1"), bound("a"), message(b'E', b"\0\0\0\0\0"), sync()].concat();
    for (round, answer) in [(messages::query("SELECT 1"), "EZ"), (many, "EZ")] {
        let mut play = Play::new();
        assert_eq!(play.up(&round).2, Stop::Link);
        play.session.refused = Some(Box::new(Complaint::error("57P03", "nobody leads")));
        let (sent, moved, stop) = play.up(&round);
        assert_eq!((sent.len(), moved, stop), (0, round.len(), Stop::More));
        assert_eq!(kinds(&play.replies), answer);
        assert!(contains(&play.replies, "57P03") && play.replies.ends_with(&ready(b'I')));
        assert_eq!(play.up(&messages::query("SELECT 2")).2, Stop::Link, "the next one may wait");
    }
}

#[test]
fn a_query_needs_a_link_and_gives_it_back() {
    let mut play = Play::new();
    let query = messages::query("SELECT 1");
    assert_eq!(play.up(&query), (Vec::new(), 0, Stop::Link));
    assert!(play.attach().is_empty());
    assert_eq!(play.up(&query), (query.clone(), query.len(), Stop::More));
    let answer = [message(b'T', b"row"), message(b'D', b"data"), message(b'C', b"SELECT 1\0")].concat();
    assert_eq!(play.down(&answer), (answer.clone(), answer.len(), Flow::On));
    assert_eq!(play.down(&ready(b'T')).2, Flow::On, "a transaction keeps its link");
    play.up(&query);
    assert_eq!(play.down(&ready(b'I')).2, Flow::Free);
}

#[test]
fn cuts_anywhere_change_nothing() {
    let sent = [
        prepared("a", "SELECT $1"),
        bound("a"),
        message(b'D', b"Sa\0"),
        message(b'E', b"\0\0\0\0\0"),
        message(b'C', b"Sa\0"),
        sync(),
        messages::query("SELECT 2"),
    ]
    .concat();
    let mut whole = Play::new();
    whole.attach();
    let (expected, ..) = whole.up(&sent);
    let answered = [
        message(b'1', b""),
        message(b'2', b""),
        message(b'T', b"row"),
        message(b'D', &[7; 300]),
        message(b'3', b""),
        ready(b'I'),
        message(b'D', b"x"),
        ready(b'I'),
    ]
    .concat();
    for cut in 0..=sent.len() {
        let mut play = Play::new();
        play.attach();
        let (mut all, moved, _) = play.up(&sent[..cut]);
        all.extend(play.up(&sent[moved..]).0);
        assert_eq!(all, expected, "cut at {cut}");
        if cut > answered.len() {
            continue;
        }
        let (mut all, moved, _) = play.down(&answered[..cut]);
        let (rest, _, flow) = play.down(&answered[moved..]);
        all.extend(rest);
        assert_eq!((all, flow), (answered.clone(), Flow::Free), "cut at {cut}");
    }
}

#[test]
fn statements_are_prepared_where_they_are_missing_and_only_there() {
    let mut play = Play::new();
    play.attach();
    let (first, ..) = play.up(&[prepared("a", "SELECT 1"), sync()].concat());
    assert!(contains(&first, "antiphon_0\0SELECT 1"), "our name on the server");
    assert_eq!(play.down(&[message(b'1', b""), ready(b'I')].concat()).2, Flow::Free);
    // The same text under another name: known to the server, so it is not sent again.
    let (again, ..) = play.up(&[prepared("b", "SELECT 1"), bound("b"), sync()].concat());
    assert_eq!(kinds(&again), "CBS");
    assert!(contains(&again, "\0antiphon_0\0"));
    let (told, ..) = play.down(&[message(b'3', b""), message(b'2', b""), ready(b'I')].concat());
    assert_eq!(kinds(&told), "12Z");
    // On another link it is prepared first, and nobody is told.
    play.attach();
    let (elsewhere, ..) = play.up(&[bound("a"), sync()].concat());
    assert_eq!(kinds(&elsewhere), "PBS");
    let (told, ..) = play.down(&[message(b'1', b""), message(b'2', b""), ready(b'I')].concat());
    assert_eq!(kinds(&told), "2Z");
}

#[test]
fn the_unnamed_statement_moves_with_its_session() {
    let mut play = Play::new();
    play.attach();
    play.up(&[prepared("", "SELECT 1"), sync()].concat());
    play.down(&[message(b'1', b""), ready(b'I')].concat());
    play.attach();
    let (sent, ..) = play.up(&[bound(""), sync()].concat());
    assert_eq!(kinds(&sent), "PBS");
    let (told, ..) = play.down(&[message(b'1', b""), message(b'2', b""), ready(b'I')].concat());
    assert_eq!(kinds(&told), "2Z");
}

#[test]
fn settings_come_before_the_first_message_and_their_answers_reach_nobody() {
    let mut play = Play::new();
    let zone = Parameters::default().after("TimeZone", "UTC").unwrap();
    play.session.parameters = Arc::new(zone);
    let first = play.attach();
    assert!(contains(&first, "set_config(E'timezone', E'UTC', false)"));
    play.up(&messages::query("SELECT 1"));
    let own =
        [message(b'T', b""), message(b'S', b"TimeZone\0UTC\0"), message(b'C', b""), ready(b'I')].concat();
    let (told, _, flow) = play.down(&[own, message(b'C', b""), ready(b'I')].concat());
    assert_eq!((kinds(&told).as_str(), flow), ("CZ", Flow::Free));
    // What the session changes itself goes with it.
    play.up(&messages::query("SET TimeZone = 'Asia/Tokyo'"));
    play.down(&[message(b'C', b""), message(b'S', b"TimeZone\0Asia/Tokyo\0"), ready(b'I')].concat());
    assert_eq!(play.session.parameters.shown("TimeZone"), Some("Asia/Tokyo"));
    assert!(contains(&play.attach(), "Asia/Tokyo"));
}

#[test]
fn a_pinned_session_keeps_its_link() {
    let mut play = Play::new();
    play.attach();
    play.up(&messages::query("LISTEN news"));
    assert_eq!(play.down(&ready(b'I')).2, Flow::On);
    assert_eq!(play.session.pinned, Some(Pin::Listen));
    assert!(matches!(play.lose(None), Verdict::Ends(bytes) if contains(&bytes, "57P01")));
    let mut long = Play::new();
    long.attach();
    let query = messages::query(&format!("SELECT '{}'", "x".repeat(200_000)));
    assert_eq!(long.up(&query[..100_000]).1, 100_000, "it is passed on without waiting for its end");
    assert_eq!(long.session.pinned, Some(Pin::Oversize));
}

#[test]
fn a_statement_whose_outcome_is_unknown_says_so() {
    for said in [None, Some("57P02")] {
        let mut play = Play::new();
        play.attach();
        play.up(&messages::query("INSERT INTO t VALUES (1)"));
        let Verdict::Goes(told) = play.lose(said) else { panic!("the session goes on") };
        assert!(contains(&told, "C08007\0") && contains(&told, "SERROR\0"));
        assert_eq!(kinds(&told), "EZ");
        assert_eq!((told.last(), play.session.lost), (Some(&b'I'), Lost::Nothing));
    }
}

#[test]
fn what_was_certainly_not_done_is_sent_again() {
    let query = messages::query("INSERT INTO t VALUES (1)");
    let mut play = Play::new();
    play.attach();
    play.up(&query);
    assert_eq!(play.lose(Some("57P01")), Verdict::Again(query.clone()));
    // Not if it was ended on a server that leads: somebody wanted that.
    (play.deposed, _) = (false, play.attach());
    play.up(&query);
    assert!(matches!(play.lose(Some("57P01")), Verdict::Goes(told) if contains(&told, "C08007\0")));
    play.deposed = true;
    // Not once something of it was answered, and not what could have been carried out in part.
    play.attach();
    play.up(&query);
    play.down(&message(b'N', b"\0"));
    assert!(matches!(play.lose(Some("57P01")), Verdict::Goes(told) if contains(&told, "C08007\0")));
    for sql in
        ["CALL p()", "DO $$ begin commit; end $$", "INSERT INTO t VALUES (1); SELECT 2", "COMMIT", "VACUUM"]
    {
        let mut play = Play::new();
        play.attach();
        play.up(&messages::query(sql));
        assert!(
            matches!(play.lose(Some("57P01")), Verdict::Goes(told) if contains(&told, "C08007\0")),
            "{sql}"
        );
    }
}

#[test]
fn a_lost_transaction_stays_failed_until_its_client_ends_it() {
    let begin = |play: &mut Play| {
        play.attach();
        play.up(&messages::query("BEGIN"));
        play.down(&ready(b'T'));
    };
    let mut busy = Play::new();
    begin(&mut busy);
    busy.up(&messages::query("INSERT INTO t VALUES (1)"));
    let Verdict::Goes(told) = busy.lose(Some("57P01")) else { panic!("the session goes on") };
    assert!(contains(&told, "C57P01\0") && told.ends_with(&ready(b'E')));
    assert!(contains(&busy.attach(), "antiphon_transaction_was_lost"));
    let own = [message(b'C', b""), message(b'E', b"VERROR\0C3B001\0\0"), ready(b'E')].concat();
    assert_eq!(busy.down(&own), (Vec::new(), own.len(), Flow::On));

    let mut idle = Play::new();
    begin(&mut idle);
    assert_eq!(idle.lose(None), Verdict::Goes(Vec::new()));
    let batch = [prepared("", "SELECT 1"), bound(""), message(b'E', b"\0\0\0\0\0"), sync()].concat();
    assert_eq!(idle.up(&batch), (Vec::new(), batch.len(), Stop::More));
    assert!(contains(&idle.replies, "C57P01\0") && idle.replies.ends_with(&ready(b'E')));
    assert_eq!(idle.up(&messages::query("ROLLBACK")).2, Stop::Link);

    let mut committing = Play::new();
    begin(&mut committing);
    committing.up(&messages::query("COMMIT"));
    assert!(matches!(committing.lose(Some("57P01")), Verdict::Goes(told) if contains(&told, "C08007\0")));
}

#[test]
fn a_pipeline_is_answered_to_its_end() {
    let mut play = Play::new();
    play.attach();
    let part = [prepared("", "CALL p()"), bound(""), message(b'E', b"\0\0\0\0\0")].concat();
    play.up(&[&part[..], &sync(), &part, &sync(), &part].concat());
    let Verdict::Goes(told) = play.lose(None) else { panic!("the session goes on") };
    assert_eq!(kinds(&told), "EZEZE");
    play.up(&[part, sync()].concat());
    assert_eq!(play.replies, ready(b'I'), "what belonged to the last round is left out");
}

#[test]
fn an_unacknowledged_commit_is_no_success() {
    let mut play = Play::new();
    play.attach();
    play.up(&messages::query("INSERT INTO t VALUES (1)"));
    let notice = message(b'N', b"SWARNING\0VWARNING\0C01000\0Mcanceling\0RSyncRepWaitForLSN\0\0");
    let (told, ..) = play.down(&[notice, message(b'C', b"INSERT 0 1\0"), ready(b'I')].concat());
    assert_eq!(kinds(&told), "NEZ");
    assert!(contains(&told, "C08007\0"));
}

#[test]
fn a_server_that_answers_what_nobody_asked_is_left() {
    for kind in [b'1', b'3', b'Z'] {
        let mut play = Play::new();
        play.attach();
        let (_, _, flow) = play.down(&message(kind, if kind == b'Z' { b"I" } else { b"" }));
        assert!(matches!(flow, Flow::Broken(_)), "{}", char::from(kind));
    }
}

fn reading(play: &mut Play, reads: Reads) {
    play.attach();
    play.session.reads = reads;
}

fn refusal(code: &str) -> Vec<u8> {
    message(b'E', format!("SERROR\0VERROR\0C{code}\0Mno\0\0").as_bytes())
}

#[test]
fn only_the_round_that_was_looked_at_goes_to_a_follower() {
    let mut play = Play::new();
    let query = messages::query("SELECT * FROM t");
    let both = [query.clone(), messages::query("INSERT INTO t VALUES (1)")].concat();
    reading(&mut play, Reads::Round);
    assert_eq!(play.up(&both), (query.clone(), query.len(), Stop::Busy));
    assert_eq!(play.down(&[message(b'C', b""), ready(b'I')].concat()).2, Flow::Free);
    let round = [prepared("", "SELECT * FROM t"), bound(""), sync()].concat();
    reading(&mut play, Reads::Round);
    assert_eq!(play.up(&[&round[..], &round].concat()).1, round.len());
}

#[test]
fn a_round_is_looked_at_whole() {
    use crate::route::{Look, look};
    use crate::routes::Reason;
    let mut play = Play::new();
    play.attach();
    play.up(&[prepared("r", "SELECT * FROM t"), prepared("w", "INSERT INTO t VALUES (1)"), sync()].concat());
    play.link = None;
    let (read, write) = (prepared("", "SELECT * FROM t"), prepared("", "INSERT INTO t VALUES (1)"));
    let execute = message(b'E', b"\0\0\0\0\0");
    let not_a_read = Look::Leader(Reason::NotARead);
    let cases = [
        ([messages::query("SELECT * FROM t")].concat(), Look::Reads),
        ([messages::query("INSERT INTO t VALUES (1)")].concat(), not_a_read.clone()),
        ([read.clone(), bound(""), execute.clone(), sync()].concat(), Look::Reads),
        ([bound("r"), execute.clone(), sync()].concat(), Look::Reads),
        ([bound("r"), execute.clone(), bound("w"), execute.clone(), sync()].concat(), not_a_read.clone()),
        ([bound("w"), execute.clone(), sync()].concat(), not_a_read.clone()),
        (
            [read.clone(), bound(""), execute.clone(), write, bound(""), execute.clone(), sync()].concat(),
            not_a_read.clone(),
        ),
        ([read, bound(""), execute].concat(), Look::Leader(Reason::NotWhole)),
        (sync(), not_a_read.clone()),
        (message(b'F', b""), not_a_read),
        (messages::query("BEGIN READ ONLY"), Look::Begins("BEGIN READ ONLY".into())),
        (prepared("", "BEGIN READ ONLY"), Look::Leader(Reason::NotWhole)),
        (
            messages::query(&format!("SELECT * FROM t WHERE a = '{}'", "x".repeat(AGAIN_BYTES_MAX))),
            Look::Leader(Reason::NotWhole),
        ),
    ];
    for (input, expected) in cases {
        assert_eq!(look(&play.session, &input, &mut play.judge), expected, "{}", kinds(&input));
    }
    play.session.pinned = Some(Pin::Listen);
    assert_eq!(
        look(&play.session, &messages::query("SELECT * FROM t"), &mut play.judge),
        Look::Leader(Reason::Pinned)
    );
}

#[test]
fn what_concerns_no_server_is_answered_without_one() {
    let mut play = Play::new();
    play.attach();
    play.up(&[prepared("r", "SELECT * FROM t"), sync()].concat());
    play.down(&[message(b'1', b""), ready(b'I')].concat());
    play.link = None;
    let closes = [message(b'C', b"Sr\0"), message(b'C', b"Snone\0"), sync()].concat();
    assert_eq!(play.up(&closes), (Vec::new(), closes.len(), Stop::More));
    assert_eq!(kinds(&play.replies), "33Z");
    assert!(play.session.statement(b"r").is_none());
}

#[test]
fn a_read_that_a_follower_cannot_answer_is_repeated_unless_its_client_heard_of_it() {
    let query = messages::query("SELECT * FROM t");
    for code in ["25006", "40001", "42P01"] {
        let mut play = Play::new();
        reading(&mut play, Reads::Round);
        play.up(&query);
        let answer = [message(b'T', b"row"), refusal(code), ready(b'I')].concat();
        assert!(matches!(play.down(&answer).2, Flow::Repeat(_)), "{code}");
    }
    let mut play = Play::new();
    reading(&mut play, Reads::Round);
    play.up(&query);
    assert_eq!(
        play.down(&[refusal("22012"), ready(b'I')].concat()).2,
        Flow::Free,
        "the leader would say the same"
    );
    reading(&mut play, Reads::Round);
    play.up(&query);
    play.down(&message(b'T', b"row"));
    assert_eq!(play.down(&refusal("40001")).2, Flow::On);
}

#[test]
fn a_read_whose_follower_died_is_repeated_unless_its_client_heard_of_it() {
    let round = [prepared("", "SELECT * FROM t"), bound(""), sync()].concat();
    let mut play = Play::new();
    reading(&mut play, Reads::Round);
    play.up(&round);
    assert_eq!(play.lose(None), Verdict::Again(round.clone()));
    assert_eq!((&play.session.reads, play.session.in_flight()), (&Reads::No, false));
    reading(&mut play, Reads::Round);
    play.up(&round);
    play.down(&message(b'1', b""));
    assert!(
        matches!(play.lose(None), Verdict::Goes(told) if contains(&told, "C57P01\0") && told.ends_with(&ready(b'I')))
    );
}

#[test]
fn a_read_whose_leader_died_is_repeated_if_nothing_came_behind_it() {
    let (query, write) = (messages::query("SELECT * FROM t"), messages::query("INSERT INTO t VALUES (1)"));
    let mut play = Play::new();
    play.attach();
    play.session.only_reads = true;
    play.up(&query);
    assert_eq!(play.lose(None), Verdict::Again(query.clone()));
    play.attach();
    play.session.only_reads = true;
    play.up(&[query, write].concat());
    assert!(matches!(play.lose(None), Verdict::Goes(told) if contains(&told, "C08007\0")));
}

fn begun() -> Play {
    let mut play = Play::new();
    reading(&mut play, Reads::Begun("BEGIN READ ONLY".into()));
    play.up(&messages::query("BEGIN READ ONLY"));
    assert_eq!(play.down(&[message(b'C', b""), ready(b'T')].concat()).2, Flow::On);
    play
}

#[test]
fn a_transaction_that_only_reads_goes_to_the_leader_when_it_has_to_and_can() {
    let moved = |play: &mut Play| {
        let begin = play.attach();
        assert!(contains(&begin, "BEGIN READ ONLY"));
        assert_eq!(play.down(&[message(b'C', b""), ready(b'T')].concat()), (Vec::new(), 11, Flow::On));
    };
    // With its first statement.
    let mut play = begun();
    assert_eq!(play.up(&messages::query("SELECT volatile_one()")).2, Stop::Moves);
    assert_eq!(play.lose(None), Verdict::Goes(Vec::new()));
    moved(&mut play);
    // When its follower dies between two statements, or under the first one.
    let mut play = begun();
    assert_eq!(play.lose(None), Verdict::Goes(Vec::new()));
    moved(&mut play);
    let (mut play, query) = (begun(), messages::query("SELECT * FROM t"));
    play.up(&query);
    assert_eq!(play.lose(None), Verdict::Again(query.clone()));
    moved(&mut play);
    // A first statement that a follower cannot answer.
    let mut play = begun();
    play.up(&query);
    assert!(matches!(play.down(&refusal("40001")).2, Flow::Repeat(_)));
    // Not once it has been answered.
    let mut play = begun();
    play.up(&query);
    play.down(&[message(b'C', b""), ready(b'T')].concat());
    assert_eq!(play.session.reads, Reads::Going);
    assert_eq!(play.up(&messages::query("SELECT volatile_one()")).2, Stop::More, "the follower says");
    play.down(&[message(b'C', b""), ready(b'T')].concat());
    assert_eq!(play.up(&messages::query("LISTEN news")).2, Stop::Misplaced);
    assert_eq!(play.lose(None), Verdict::Goes(Vec::new()));
    assert_eq!(play.session.lost, Lost::Untold);
}

#[test]
fn settings_of_the_router_are_answered_by_it() {
    let mut play = Play::new();
    let ask = messages::query("SET antiphon.consistency = 'bounded(2s)'");
    assert_eq!(play.up(&ask), (Vec::new(), ask.len(), Stop::Answered));
    assert_eq!(kinds(&play.replies), "CZ");
    play.replies.clear();
    let show = [prepared("s", "SHOW antiphon.consistency"), message(b'D', b"Ss\0"), sync()].concat();
    let mut at = 0;
    let all = |play: &mut Play, input: &[u8], at: &mut usize| {
        while *at < input.len() {
            let (sent, moved, stop) = play.up(&input[*at..]);
            assert_eq!((sent, stop), (Vec::new(), Stop::Answered));
            *at += moved;
        }
    };
    all(&mut play, &show, &mut at);
    assert_eq!(kinds(&play.replies), "1tTZ");
    play.replies.clear();
    let run = [bound("s"), message(b'E', b"\0\0\0\0\0"), sync()].concat();
    all(&mut play, &run, &mut 0);
    assert_eq!(kinds(&play.replies), "2DCZ");
    assert!(contains(&play.replies, "bounded(2000ms)"));
    play.replies.clear();
    play.up(&messages::query("SET antiphon.consistency = weak"));
    assert!(contains(&play.replies, "C22023\0"));
    // Mixed with others they are refused, and what follows is left out to the Sync.
    play.replies.clear();
    let mixed = [prepared("", "SHOW antiphon.route"), prepared("", "SELECT 1"), bound(""), sync()].concat();
    let (mut at, mut stop) = (0, Stop::Answered);
    while stop == Stop::Answered {
        let (_, moved, next) = play.up(&mixed[at..]);
        (at, stop) = (at + moved, next);
    }
    assert_eq!((kinds(&play.replies).as_str(), at), ("1EZ", mixed.len()));
}
