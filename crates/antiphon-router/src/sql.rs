//! What a statement may leave behind in a session, told by its words alone.
//!
//! A link is shared only between sessions that leave nothing on it. This lexer knows strings, quoted names,
//! comments and dollar quotes, and no grammar: what it cannot be sure of pins the session to its link, which is
//! always right and only costs sharing. It cannot see into functions: one that calls `set_config` or takes an
//! advisory lock in its body leaves that behind unseen (docs/limits.md). Pure; nothing is allocated.

/// What is known of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// The session must keep its link from now on.
    pub pins: Option<Pin>,
    /// It may end a transaction with its changes kept.
    pub may_commit: bool,
    /// Every statement is a plain query or change of rows, which by itself cannot commit half-way.
    pub plain: bool,
    /// Prepared statements of the link may be gone afterwards.
    pub forgets_statements: bool,
    /// Names may mean something else afterwards.
    pub changes_schema: bool,
}

/// Why a session keeps its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// A setting that the server does not report was changed.
    Setting,
    /// LISTEN.
    Listen,
    /// A temporary table.
    Temporary,
    /// PREPARE in SQL.
    Prepared,
    /// A cursor WITH HOLD.
    Cursor,
    /// An advisory lock of the session.
    AdvisoryLock,
    /// Something else whose trace cannot be followed.
    Other,
    /// A text too long to look through.
    Oversize,
    /// Nothing in particular: in session mode every session keeps its link.
    SessionMode,
}

impl Pin {
    /// A word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Setting => "setting",
            Self::Listen => "listen",
            Self::Temporary => "temporary",
            Self::Prepared => "prepare",
            Self::Cursor => "cursor",
            Self::AdvisoryLock => "advisory_lock",
            Self::Other => "other",
            Self::Oversize => "oversize",
            Self::SessionMode => "session_mode",
        }
    }
}

/// What a text may leave behind that is too long to look through.
pub const OVERSIZE: Effects = Effects {
    pins: Some(Pin::Oversize),
    may_commit: true,
    plain: false,
    forgets_statements: false,
    changes_schema: true,
};

/// CREATE OR REPLACE LOCAL TEMPORARY: after so many words nothing is said to be temporary.
const TEMPORARY_WITHIN: usize = 4;

/// Settings that the server reports when they change, so that they are followed (all versions since 14).
///
/// `standard_conforming_strings` is reported too, but without it strings end elsewhere than the lexer thinks.
const REPORTED: [&str; 6] = [
    "application_name",
    "client_encoding",
    "datestyle",
    "default_transaction_read_only",
    "intervalstyle",
    "timezone",
];

/// Looks through a text of one or more statements.
pub fn effects(sql: &[u8]) -> Effects {
    let mut seen = Effects { plain: true, ..Effects::default() };
    let mut words = Words { sql, at: 0, in_body: false };
    let mut statements = 0;
    let mut first = true;
    let mut previous: &[u8] = b"";
    while let Some(token) = words.next() {
        let word = match token {
            Token::End | Token::Other => b"",
            Token::Word(word) => word,
        };
        if first && !word.is_empty() {
            statements += 1;
            begin(word, &mut words, &mut seen);
        }
        anywhere(previous, word, &mut seen);
        first = matches!(token, Token::End);
        previous = word;
    }
    seen.plain &= statements == 1 && seen.pins.is_none();
    seen
}

/// What the first word of a statement says.
fn begin(word: &[u8], words: &mut Words<'_>, seen: &mut Effects) {
    let is = |name: &str| word.eq_ignore_ascii_case(name.as_bytes());
    const PLAIN: [&str; 6] = ["select", "insert", "update", "delete", "values", "table"];
    if PLAIN.iter().any(|name| is(name)) || is("with") || is("merge") {
        return;
    }
    seen.plain = false;
    seen.changes_schema |= match ["alter", "drop", "import"].iter().any(|name| is(name)) {
        true => true,
        false => is("create") && !words.is_temporary(),
    };
    if is("set") {
        set(words, seen);
    } else if is("commit") || is("end") || is("call") || is("rollback") {
        // ROLLBACK AND CHAIN and the like keep nothing, but a procedure may commit.
        seen.may_commit |= !is("rollback");
    } else if is("do") {
        seen.may_commit = true;
        words.in_body = true;
    } else if is("prepare") {
        match words.word() {
            Some(next) if next.eq_ignore_ascii_case(b"transaction") => seen.may_commit = true,
            Some(_) | None => pin(seen, Pin::Prepared),
        }
    } else if is("deallocate") || is("discard") {
        seen.forgets_statements = true;
        pin(seen, Pin::Prepared);
    } else if is("reset") {
        pin(seen, Pin::Setting);
    } else if is("listen") {
        pin(seen, Pin::Listen);
    } else if is("load") || is("import") {
        pin(seen, Pin::Other);
    }
}

/// SET: what the server reports is followed, what ends with the transaction does not matter, all else pins.
fn set(words: &mut Words<'_>, seen: &mut Effects) {
    let is = |word: &[u8], name: &str| word.eq_ignore_ascii_case(name.as_bytes());
    let mut word = words.word();
    if word.is_some_and(|word| is(word, "local") || is(word, "transaction") || is(word, "constraints")) {
        return;
    }
    if word.is_some_and(|word| is(word, "session")) {
        word = words.word();
    }
    let followed = word.is_some_and(|word| {
        REPORTED.iter().any(|name| is(word, name))
            || is(word, "names")
            || is(word, "time") && words.word().is_some_and(|zone| is(zone, "zone"))
    });
    if !followed {
        pin(seen, Pin::Setting);
    }
}

/// What a word says wherever it stands.
fn anywhere(previous: &[u8], word: &[u8], seen: &mut Effects) {
    let starts = |prefix: &str| {
        word.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix.as_bytes()))
    };
    let is = |name: &str| word.eq_ignore_ascii_case(name.as_bytes());
    let after = |names: &[&str]| names.iter().any(|name| previous.eq_ignore_ascii_case(name.as_bytes()));
    // By the first letter, so that the words of an ordinary statement cost one comparison.
    match word.first().map(u8::to_ascii_lowercase) {
        Some(b'p') if starts("pg_advisory_") || starts("pg_try_advisory_") => {
            let of_transaction = word.windows(5).any(|part| part.eq_ignore_ascii_case(b"_xact"));
            if !of_transaction {
                pin(seen, Pin::AdvisoryLock);
            }
        }
        Some(b'p') if is("pg_temp") => pin(seen, Pin::Temporary),
        Some(b'p') if starts("pg_replication_origin_session") => pin(seen, Pin::Other),
        Some(b's') if is("set_config") => pin(seen, Pin::Setting),
        // Not as the name of a column.
        Some(b't') if is("temp") || is("temporary") => {
            if after(&["create", "local", "global", "replace", "into"]) {
                pin(seen, Pin::Temporary);
            }
        }
        Some(b'h') if is("hold") && after(&["with"]) => pin(seen, Pin::Cursor),
        Some(b'd') if starts("dblink_connect") => pin(seen, Pin::Other),
        Some(b'u') if is("u&") => pin(seen, Pin::Other),
        Some(_) | None => {}
    }
}

fn pin(seen: &mut Effects, why: Pin) {
    seen.pins.get_or_insert(why);
}

enum Token<'a> {
    /// A word or a quoted name.
    Word(&'a [u8]),
    /// A semicolon.
    End,
    /// Anything else that is no space.
    Other,
}

struct Words<'a> {
    sql: &'a [u8],
    at: usize,
    /// Dollar quotes hold code that is run at once (DO): its words count.
    in_body: bool,
}

impl<'a> Words<'a> {
    /// Whether what is created is temporary: nobody else ever finds it. Looks ahead, and takes nothing.
    fn is_temporary(&self) -> bool {
        let mut ahead = Self { sql: self.sql, at: self.at, in_body: false };
        let words = std::iter::from_fn(|| ahead.word()).take(TEMPORARY_WITHIN);
        words
            .into_iter()
            .any(|word| [&b"temp"[..], b"temporary"].iter().any(|name| word.eq_ignore_ascii_case(name)))
    }

    /// The next word, if a word is next; anything else is left for [`Words::next`].
    fn word(&mut self) -> Option<&'a [u8]> {
        let before = self.at;
        match self.next() {
            Some(Token::Word(word)) => Some(word),
            Some(Token::End | Token::Other) | None => {
                self.at = before;
                None
            }
        }
    }

    fn next(&mut self) -> Option<Token<'a>> {
        loop {
            let rest = self.sql.get(self.at..)?;
            let byte = *rest.first()?;
            match byte {
                b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => self.at += 1,
                b'-' if rest.starts_with(b"--") => self.skip_line(rest),
                b'/' if rest.starts_with(b"/*") => self.skip_comment(rest),
                b';' => {
                    self.at += 1;
                    return Some(Token::End);
                }
                b'\'' => {
                    self.skip_string(rest, false);
                    return Some(Token::Other);
                }
                b'"' => return Some(Token::Word(self.quoted(rest))),
                b'$' if self.in_body => self.at += 1,
                b'$' => {
                    self.skip_dollar(rest);
                    return Some(Token::Other);
                }
                _ if is_word(byte) => return Some(self.plain_word(rest)),
                _ => {
                    self.at += 1;
                    return Some(Token::Other);
                }
            }
        }
    }

    fn plain_word(&mut self, rest: &'a [u8]) -> Token<'a> {
        // `$` may stand within a name, as in f$1, and does not begin a quote there.
        let end = rest.iter().position(|byte| !is_word(*byte) && *byte != b'$').unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        self.at += end;
        match (word, after) {
            (b"e" | b"E", [b'\'', ..]) => {
                self.skip_string(after, true);
                Token::Other
            }
            // Names with Unicode escapes are not unescaped here: told as a word of their own, which pins.
            (b"u" | b"U", [b'&', b'"', ..]) => Token::Word(b"u&"),
            _ => Token::Word(word),
        }
    }

    fn skip_line(&mut self, rest: &[u8]) {
        let end = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
        self.at += end.unwrap_or(rest.len());
    }

    /// Comments nest.
    fn skip_comment(&mut self, rest: &[u8]) {
        let mut depth = 0;
        let mut at = 0;
        loop {
            match rest.get(at..) {
                Some([b'/', b'*', ..]) => {
                    depth += 1;
                    at += 2;
                }
                Some([b'*', b'/', ..]) => {
                    depth -= 1;
                    at += 2;
                }
                Some([_, ..]) => at += 1,
                Some([]) | None => break,
            }
            if depth == 0 {
                break;
            }
        }
        self.at += at;
    }

    fn skip_string(&mut self, rest: &[u8], escapes: bool) {
        let mut at = 1;
        loop {
            match rest.get(at..) {
                // A backslash escapes in E'' strings, and in all of them for who switched that on: a quote too
                // many is taken as the end then, and what follows is looked at as words, which errs safely.
                Some([b'\\', _, ..]) if escapes => at += 2,
                Some([b'\'', b'\'', ..]) => at += 2,
                Some([b'\'', ..]) => {
                    at += 1;
                    break;
                }
                Some([_, ..]) => at += 1,
                Some([]) | None => break,
            }
        }
        self.at += at;
    }

    /// A quoted name without its quotes.
    fn quoted(&mut self, rest: &'a [u8]) -> &'a [u8] {
        let inner = rest.get(1..).unwrap_or_default();
        let end = inner.iter().position(|byte| *byte == b'"').unwrap_or(inner.len());
        self.at += (end + 2).min(rest.len());
        inner.get(..end).unwrap_or_default()
    }

    fn skip_dollar(&mut self, rest: &[u8]) {
        let tag = rest.iter().skip(1).position(|byte| !is_word(*byte));
        let digit = rest.get(1).is_some_and(u8::is_ascii_digit);
        let tag = tag.and_then(|end| rest.get(..end + 2)).filter(|tag| tag.ends_with(b"$") && !digit);
        let Some(tag) = tag else {
            self.at += 1;
            return;
        };
        let body = rest.get(tag.len()..).unwrap_or_default();
        let end = body.windows(tag.len()).position(|part| part == tag);
        self.at += end.map_or(rest.len(), |end| end + 2 * tag.len());
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pins(sql: &str) -> Option<Pin> {
        effects(sql.as_bytes()).pins
    }

    #[test]
    fn what_stays_in_the_session_pins_it() {
        let cases = [
            ("SET work_mem = '1MB'", Pin::Setting),
            ("/* a */ set session statement_timeout to 5", Pin::Setting),
            ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", Pin::Setting),
            ("SET ROLE anna", Pin::Setting),
            ("SET search_path = x", Pin::Setting),
            ("select 1; -- x\nSET x.y = 1", Pin::Setting),
            ("SELECT set_config('a.b', 'c', false)", Pin::Setting),
            ("select \"set_config\"('a.b', 'c', false)", Pin::Setting),
            ("RESET ALL", Pin::Setting),
            ("LISTEN news", Pin::Listen),
            ("CREATE TEMP TABLE t (a int)", Pin::Temporary),
            ("create table pg_temp.t (a int)", Pin::Temporary),
            ("SELECT 1 INTO TEMPORARY t", Pin::Temporary),
            ("PREPARE p AS SELECT 1", Pin::Prepared),
            ("DISCARD ALL", Pin::Prepared),
            ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", Pin::Cursor),
            ("SELECT pg_advisory_lock(1)", Pin::AdvisoryLock),
            ("SELECT pg_try_advisory_lock_shared(1)", Pin::AdvisoryLock),
            ("DO $$ begin perform pg_advisory_lock(1); end $$", Pin::AdvisoryLock),
            ("SELECT U&\"\\0070g_advisory_lock\"(1)", Pin::Other),
            ("LOAD 'x'", Pin::Other),
        ];
        for (sql, why) in cases {
            assert_eq!(pins(sql), Some(why), "{sql}");
        }
    }

    #[test]
    fn what_leaves_nothing_pins_nothing() {
        let cases = [
            "",
            ";;",
            "SELECT 1",
            "SET LOCAL work_mem = '1MB'",
            "SET TRANSACTION READ ONLY",
            "SET application_name TO 'x'",
            "SET TIME ZONE 'UTC'",
            "set session timezone = 'UTC'",
            "SET NAMES 'utf8'",
            "SELECT pg_advisory_xact_lock(1)",
            "SELECT pg_try_advisory_xact_lock_shared(1)",
            "SELECT 'SET x = 1; LISTEN y'",
            "SELECT E'\\'; LISTEN y; --'",
            "SELECT $$; LISTEN y$$",
            "SELECT $a$; LISTEN $$ y; $a$",
            "SELECT a$1, $1 FROM t WHERE x = 'it''s temp'",
            "SELECT temp, hold FROM readings",
            "/* LISTEN /* nested */ TEMP */ SELECT 1 -- TEMP",
            "BEGIN; UPDATE t SET a = 1; COMMIT",
            "COPY t FROM STDIN",
            "DO $$ begin perform f(); end $$",
        ];
        for sql in cases {
            assert_eq!(pins(sql), None, "{sql}");
        }
    }

    #[test]
    fn a_change_of_the_schema_is_one_that_others_may_find() {
        for sql in [
            "CREATE TABLE t (a int)",
            "create or replace function f() returns int",
            "DROP VIEW v",
            "SELECT 1; ALTER TABLE t ADD b int",
        ] {
            assert!(effects(sql.as_bytes()).changes_schema, "{sql}");
        }
        for sql in [
            "CREATE TEMP TABLE t (a int)",
            "CREATE OR REPLACE LOCAL TEMPORARY VIEW v AS SELECT 1",
            "SELECT 'drop'",
            "INSERT INTO t VALUES (1)",
        ] {
            assert!(!effects(sql.as_bytes()).changes_schema, "{sql}");
        }
        assert_eq!(pins("CREATE TEMP TABLE t (a int)"), Some(Pin::Temporary));
        assert!(effects(b"CREATE TEMP TABLE t (a int); CREATE TABLE u (a int)").changes_schema);
    }

    #[test]
    fn only_one_statement_that_cannot_commit_half_way_is_plain() {
        for sql in ["SELECT 1", " insert into t values (1);", "WITH a AS (SELECT 1) SELECT * FROM a"] {
            assert!(effects(sql.as_bytes()).plain, "{sql}");
        }
        let others =
            ["", "SELECT 1; SELECT 2", "CALL p()", "DO $$$$", "COMMIT", "COPY t FROM STDIN", "VACUUM"];
        for sql in others {
            assert!(!effects(sql.as_bytes()).plain, "{sql}");
        }
        for sql in ["commit", "BEGIN; INSERT INTO t VALUES (1); END", "CALL p()", "PREPARE TRANSACTION 'x'"] {
            assert!(effects(sql.as_bytes()).may_commit, "{sql}");
        }
        assert!(!effects(b"ROLLBACK").may_commit);
    }

    #[test]
    fn no_bytes_make_it_panic_or_run_for_ever() {
        let pieces: [&[u8]; 12] =
            [b"'", b"\"", b"$", b"$$", b"$a$", b"/*", b"*/", b"--", b"\\", b"E'", b"\xff", b"set"];
        for a in pieces {
            for b in pieces {
                for c in pieces {
                    effects(&[a, b, c].concat());
                    effects(&[a, b" ", c, b"\n", b].concat());
                }
            }
        }
    }
}
