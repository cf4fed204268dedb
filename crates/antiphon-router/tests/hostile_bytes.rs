//! Random and damaged bytes through everything that reads what strangers and servers send: nothing panics, nothing is
//! kept without bound, and every message that is understood is dealt with. A failure names the seed that repeats it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use antiphon_router::downstream::{Downstream, Flow};
use antiphon_router::gates::Schemas;
use antiphon_router::judge::Judge;
use antiphon_router::login::ServerLogin;
use antiphon_router::out::Out;
use antiphon_router::parameters::{Interned, Parameters};
use antiphon_router::positions::Reading;
use antiphon_router::rules::Rules;
use antiphon_router::scram::{Binding, Exchange, Verifier};
use antiphon_router::secrets::Secret;
use antiphon_router::session::{Link, Session};
use antiphon_router::statements::Statements;
use antiphon_router::topology::Seen;
use antiphon_router::upstream::{LOOKED_AT_BYTES_MAX, Stop, Upstream};
use antiphon_router::wire::startup::{self, Opening, PACKET_BYTES_MAX};
use antiphon_router::wire::{self, messages};
use antiphon_router::{console, loss, own, route};

/// The most that is read at once here.
const PIECE: usize = 4096;

/// Chance by a seed (SplitMix64).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap_or(0)
    }

    fn one_in(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }

    fn of<'a, T: ?Sized>(&mut self, among: &[&'a T]) -> &'a T {
        among[self.below(among.len())]
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most + 1)).map(|_| self.next() as u8).collect()
    }

    /// The same bytes with some damage, or none.
    fn damage(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..self.below(4) {
            let at = self.below(bytes.len().max(1)).min(bytes.len());
            match self.below(6) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, self.next() as u8),
                2 => drop(bytes.splice(at..at, self.bytes(40))),
                // A length that is far too long, or too short.
                3 if at + 4 <= bytes.len() => {
                    let length = (self.next() as u32) >> self.below(32);
                    bytes[at..at + 4].copy_from_slice(&length.to_be_bytes());
                }
                _ if at < bytes.len() => bytes[at] = self.next() as u8,
                _ => {}
            }
        }
    }
}

/// Runs one story for each seed.
fn for_seeds(count: u64, story: impl Fn(&mut Chance)) {
    for seed in 0..count {
        if catch_unwind(AssertUnwindSafe(|| story(&mut Chance(seed)))).is_err() {
            panic!("seed {seed}");
        }
    }
}

const TEXTS: [&str; 18] = [
    "SELECT 1",
    "BEGIN",
    "BEGIN READ ONLY",
    "COMMIT",
    "ROLLBACK",
    "INSERT INTO t VALUES ($1)",
    "SET work_mem = '1MB'; SELECT 1",
    "SET antiphon.consistency = strong",
    "SHOW antiphon.token",
    "SET antiphon.report_token = on",
    "RESET antiphon.consistency",
    "LISTEN x",
    "COPY t FROM STDIN",
    "PREPARE a AS SELECT 1",
    "CREATE TABLE t (n int)",
    "DISCARD ALL",
    "select $tag$ it''s -- /* \" $tag$, E'\\'' -- \n;",
    "",
];

/// What a client sends after its login.
fn of_client(chance: &mut Chance) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..chance.below(8) {
        let text = chance.of(&TEXTS);
        let name = chance.of(&["", "a", "b", "antiphon_none"]);
        let number = chance.bytes(20);
        match chance.below(13) {
            0 | 1 => out.extend(messages::query(text)),
            2 | 3 => messages::put(&mut out, b'P', |body| {
                messages::put_text(body, name.as_bytes());
                messages::put_text(body, text.as_bytes());
                body.extend([0, 0]);
            }),
            4 | 5 => messages::put(&mut out, b'B', |body| {
                messages::put_text(body, b"");
                messages::put_text(body, name.as_bytes());
                body.extend(number);
            }),
            6 => messages::put(&mut out, b'D', |body| {
                body.push(if number.len().is_multiple_of(2) { b'S' } else { b'P' });
                messages::put_text(body, name.as_bytes());
            }),
            7 => messages::put(&mut out, b'C', |body| {
                body.push(b'S');
                messages::put_text(body, name.as_bytes());
            }),
            8 => messages::put(&mut out, b'E', |body| body.extend([0; 5])),
            9 | 10 => messages::put(&mut out, b'S', |_| ()),
            11 => messages::put(&mut out, *b"HdcfF".get(number.len() % 5).unwrap_or(&b'H'), |body| {
                body.extend(number);
            }),
            _ => out.extend(number),
        }
    }
    out
}

/// What a server sends after a login.
fn of_server(chance: &mut Chance) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..chance.below(8) {
        let kind = *b"ZZZC1123DTnItSENAGHdcKRsvW".get(chance.below(26)).unwrap_or(&b'Z');
        let body = match kind {
            b'Z' => chance.of(&[&b"I"[..], b"T", b"E", b"", b"X", b"II"]).to_vec(),
            b'S' => b"client_encoding\0LATIN1\0".to_vec(),
            b'E' | b'N' => {
                let code = chance.of(&["57P01", "25006", "40001", "0A000", "42P01", "XX000"]);
                let severity = chance.of(&["ERROR", "FATAL", "PANIC"]);
                format!("V{severity}\0C{code}\0Mno\0RSyncRepWaitForLSN\0\0").into_bytes()
            }
            _ => chance.bytes(60),
        };
        messages::put(&mut out, kind, |to| to.extend(body));
    }
    out
}

/// A session, its link, and what each side still has to hear.
struct World {
    session: Session,
    link: Option<Link>,
    statements: Statements,
    schemas: Schemas,
    judge: Judge,
    interned: Interned,
    reading: Reading,
    from_client: Vec<u8>,
    from_server: Vec<u8>,
}

impl World {
    fn new() -> Self {
        Self {
            session: Session::new(Arc::new(Parameters::default())),
            link: None,
            statements: Statements::new(0),
            schemas: Schemas::default(),
            judge: Judge::default(),
            interned: Interned::default(),
            reading: Reading::default(),
            from_client: Vec::new(),
            from_server: Vec::new(),
        }
    }

    /// Reads what the client has sent; whether the session goes on.
    fn up(&mut self, chance: &mut Chance) -> bool {
        let (mut out, mut replies) = (Out::default(), Vec::new());
        let input = std::mem::take(&mut self.from_client);
        let (moved, stop) = Upstream {
            session: &mut self.session,
            link: self.link.as_mut(),
            statements: &mut self.statements,
            schemas: &self.schemas,
            judge: &mut self.judge,
            reading: chance.one_in(2).then_some(&self.reading),
            input: &input,
            out: &mut out,
            replies: &mut replies,
        }
        .run();
        assert!(moved <= input.len(), "more was dealt with than there was");
        self.session.again.sent(&input[..moved]);
        let sent = out.finish(&input).len();
        // A short name of a statement may stand for its whole text, and be answered by an error of the router.
        assert!(
            sent + replies.len() <= (moved + 1) * 1024,
            "{moved} bytes became {sent} and {}",
            replies.len()
        );
        self.from_client = input[moved..].to_vec();
        match stop {
            Stop::Goodbye | Stop::Refuse(_) => return false,
            Stop::More => assert!(
                self.from_client.len() <= LOOKED_AT_BYTES_MAX + PIECE,
                "{} bytes are kept of a message that is not whole",
                self.from_client.len()
            ),
            Stop::Link if self.link.is_none() => {
                let _ = route::look(&self.session, &self.from_client, &mut self.judge);
                let mut link = Link::new(Arc::new(Parameters::default()));
                link.take_up(&mut self.session, b"", &mut Out::default());
                self.link = Some(link);
            }
            Stop::Link => panic!("a session with a link wants one"),
            Stop::Busy | Stop::Unsettled | Stop::Answered | Stop::Moves | Stop::Misplaced => {}
        }
        true
    }

    /// Reads what the server has sent; whether the link goes on.
    fn down(&mut self) -> bool {
        let Some(link) = &mut self.link else { return true };
        let mut out = Out::default();
        let input = std::mem::take(&mut self.from_server);
        let session = Some(&mut self.session);
        let (moved, flow) =
            Downstream { session, link, interned: &mut self.interned, input: &input, out: &mut out }.run();
        assert!(moved <= input.len());
        assert!(out.finish(&input).len() <= (moved + 1) * 1024);
        self.from_server = input[moved..].to_vec();
        assert!(
            self.from_server.len() <= LOOKED_AT_BYTES_MAX + PIECE || flow != Flow::On,
            "{} bytes are kept of a message that is not whole",
            self.from_server.len()
        );
        match flow {
            Flow::On | Flow::Reset => true,
            Flow::Free => {
                self.link = None;
                self.from_server.clear();
                true
            }
            Flow::Failed | Flow::Repeat(_) | Flow::Broken(_) => false,
        }
    }
}

#[test]
fn no_bytes_of_clients_and_servers_break_a_session() {
    for_seeds(4000, |chance| {
        let mut world = World::new();
        for _ in 0..30 {
            let mut bytes = if chance.one_in(2) { of_client(chance) } else { of_server(chance) };
            if chance.one_in(3) {
                chance.damage(&mut bytes);
            }
            // Now and then long enough to pass every bound.
            if chance.one_in(200) {
                bytes.extend(std::iter::repeat_n(b'x', 3 * LOOKED_AT_BYTES_MAX));
            }
            let to_server = chance.one_in(2);
            for piece in bytes.chunks(1 + chance.below(PIECE)) {
                if to_server {
                    world.from_client.extend(piece);
                    // Whoever must wait is not read from.
                    if !world.up(chance) {
                        return;
                    }
                } else {
                    world.from_server.extend(piece);
                    if !world.down() || chance.one_in(50) {
                        let Some(link) = world.link.take() else { return };
                        let _ = loss::lose(&mut world.session, &link, chance.one_in(2));
                        world.from_server.clear();
                    }
                }
            }
            world.from_client.truncate(LOOKED_AT_BYTES_MAX);
        }
    });
}

#[test]
fn no_first_bytes_of_a_stranger_break_a_login() {
    let verifier = Verifier::impossible("anna", b"secret");
    for_seeds(20_000, |chance| {
        let names =
            [("user", "anna"), ("database", "x"), ("options", "-c a=b --c-d=e\\ f"), ("replication", "no")];
        let some: Vec<(&str, &str)> = names.into_iter().filter(|_| !chance.one_in(3)).collect();
        let mut bytes = messages::start(&some);
        chance.damage(&mut bytes);
        let (opening, used) = startup::open(&bytes);
        assert!(used <= bytes.len() && used <= PACKET_BYTES_MAX);
        match opening {
            Opening::Partial => assert!(bytes.len() < PACKET_BYTES_MAX, "a packet that never ends is kept"),
            Opening::Start(start) => {
                if let Ok(mut parameters) = Parameters::of_start(&start) {
                    let _ = own::at_start(&mut parameters);
                    let sql = Parameters::default().change_to(&parameters);
                    assert!(sql.len() <= 8 * PACKET_BYTES_MAX);
                }
            }
            _ => {}
        }
        let mut first = b"n,,n=,r=abcdefghijklmnop".to_vec();
        chance.damage(&mut first);
        if let Ok((exchange, _)) = Exchange::begin(verifier.clone(), &first, &[b'x'; 18], Binding::NotOffered)
        {
            let mut last = b"c=biws,r=abcdefghijklmnopeHh4eHh4eHh4eHh4eHh4eHh4,p=AAAA".to_vec();
            chance.damage(&mut last);
            assert!(exchange.finish(&last).is_err(), "nobody knows an impossible password");
        }
    });
}

#[test]
fn no_server_breaks_the_router_that_logs_in_there() {
    for_seeds(20_000, |chance| {
        let mut login = ServerLogin::new(None, [7; 18]);
        let mut out = Vec::new();
        for _ in 0..12 {
            let mut bytes = match chance.below(3) {
                0 => of_server(chance),
                1 => {
                    let mut bytes = Vec::new();
                    let code = *[0, 3, 5, 7, 10, 11, 12, 77].get(chance.below(8)).unwrap_or(&0);
                    messages::authentication(&mut bytes, code, &chance.bytes(30));
                    bytes
                }
                _ => chance.bytes(40),
            };
            chance.damage(&mut bytes);
            let mut rest = bytes.as_slice();
            while let wire::Frame::Message { kind, bytes } = wire::from_server(rest) {
                let Some(body) = rest.get(wire::HEADER_BYTES..bytes) else { break };
                if login.message(kind, body, &mut out).is_err() {
                    return;
                }
                assert!(out.len() < 10_000, "what is sent grows without end");
                rest = rest.get(bytes..).unwrap_or_default();
            }
        }
    });
}

#[test]
fn no_text_breaks_what_reads_texts() {
    for_seeds(20_000, |chance| {
        let line =
            ["hostssl all \"a b\",c 10.0.0.0/8 cert", "SHOW POOLS", "KILL \"a\"", "md5abc", "{\"epoch\": 1}"];
        let mut bytes = chance.of(&line).as_bytes().to_vec();
        if chance.one_in(2) {
            bytes = chance.of(&TEXTS).as_bytes().to_vec();
        }
        chance.damage(&mut bytes);
        let _ = (console::parse(&bytes), own::parse(&bytes), antiphon_router::sql::effects(&bytes));
        let text = String::from_utf8_lossy(&bytes);
        let _ = (Rules::parse(text.lines()), Secret::parse(&text));
        if let Ok(value) = serde_json::from_slice(&bytes) {
            let _ = Seen::of_event(&value);
        }
    });
}
