//! What a text says by itself, without a catalogue: a small owned summary that can be kept with the text.
//!
//! Most texts that are no read show that by their first word and are not parsed. The rest goes through
//! PostgreSQL's own parser. It is written in C and is handed what clients send, so it is used with care: texts are
//! bounded ([`TEXT_MAX`]), its depth is bounded by its own check of the stack and again when its tree is decoded,
//! and should the decoding panic, the text counts as unparsable. The deepest tree takes 200 KiB of stack, in a build
//! for development 1.1 MiB: every thread that Rust starts has 2 MiB.

use std::panic::catch_unwind;

use pg_query::ParserOptions;
use pg_query::protobuf::{
    Node, TransactionStmt, TransactionStmtKind, VariableSetKind, VariableSetStmt, a_const, node::Node as Is,
};

use crate::names::Name;
use crate::scan::{Token, tokens};
use crate::walk;
use crate::why::Why;

// The flag beside it keeps the parser from replacing standard error: see there.
const _: () = assert!(
    option_env!("LIBPG_QUERY_FLAGS").is_some(),
    "build within the checkout: .cargo/config.toml has a flag that the C parser must be built with"
);

/// The longest text that is looked through, in bytes.
pub const TEXT_MAX: usize = 256 * 1024;

/// A text, summed up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    pub content: Content,
    /// What its author says in a comment.
    pub hint: Option<Hint>,
}

/// What a text is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing but queries: a read if all that these names stand for only reads.
    Query(Box<[Name]>),
    /// One statement that begins or ends a transaction, or says of which kind it is.
    Transaction(Transaction),
    /// One SET, SHOW or RESET of a setting of ours.
    Setting(Setting),
    /// Impossible as a read.
    Refused(Why),
}

/// `/* antiphon: leader */` or `/* antiphon: follower */`, anywhere in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    Leader,
    Follower,
}

/// A statement about the transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transaction {
    /// BEGIN, START TRANSACTION.
    Begin(Modes),
    /// SET TRANSACTION.
    Set(Modes),
    /// SET SESSION CHARACTERISTICS AS TRANSACTION: for all that follow.
    SetSession(Modes),
    /// COMMIT, END; with `chain`, a transaction of the same kind begins.
    Commit { chain: bool },
    /// ROLLBACK, ABORT.
    Rollback { chain: bool },
    /// SAVEPOINT, RELEASE, ROLLBACK TO.
    Savepoint,
    /// PREPARE TRANSACTION, COMMIT PREPARED, ROLLBACK PREPARED.
    TwoPhase,
}

/// What a transaction is said to be; what is not said follows the session's defaults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Modes {
    pub access: Option<Access>,
    pub isolation: Option<Isolation>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    ReadOnly,
    ReadWrite,
}

/// Followers know all levels but the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    ReadUncommitted,
    ReadCommitted,
    RepeatableRead,
    Serializable,
}

/// A statement about `antiphon.NAME`; the name is given without the prefix, in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting {
    /// SET, in any of its forms; `local` is for the transaction only.
    Set {
        name: String,
        value: String,
        local: bool,
    },
    /// RESET, or SET to DEFAULT.
    Reset {
        name: String,
    },
    Show {
        name: String,
    },
}

/// Sums up a text of any number of statements.
pub fn parse(text: &str) -> Statement {
    let hint = hint(text);
    if text.len() > TEXT_MAX {
        return Statement { content: Content::Refused(Why::TooLong), hint };
    }
    let content = match opening(text) {
        Opening::Empty => Content::Query(Box::default()),
        Opening::Refused(why) => Content::Refused(why),
        Opening::Parse => content(text),
    };
    Statement { content, hint }
}

enum Opening {
    Empty,
    Refused(Why),
    /// Only the parser can tell.
    Parse,
}

/// What the first word says.
fn opening(text: &str) -> Opening {
    const PARSE: [&str; 15] = [
        "select",
        "with",
        "values",
        "table",
        "copy",
        "set",
        "show",
        "reset",
        "begin",
        "start",
        "commit",
        "end",
        "rollback",
        "abort",
        "savepoint",
    ];
    const WRITES: [&str; 5] = ["insert", "update", "delete", "merge", "truncate"];
    for (token, part) in tokens(text) {
        let is = |word: &&str| part.eq_ignore_ascii_case(word.as_bytes());
        return match token {
            Token::Space | Token::Comment => continue,
            Token::Other if matches!(part, b"(" | b";") => continue,
            Token::Word if PARSE.iter().any(is) => Opening::Parse,
            Token::Word if is(&"release") || is(&"prepare") => Opening::Parse,
            Token::Word if WRITES.iter().any(is) => Opening::Refused(Why::Writes),
            Token::Word => Opening::Refused(Why::Utility),
            Token::Other
            | Token::QuotedName
            | Token::String
            | Token::OddString
            | Token::Number
            | Token::Parameter => Opening::Refused(Why::Unparsable),
        };
    }
    Opening::Empty
}

/// The hint in a comment; the leader where two disagree. Both `:` and `=` do, with or without quotes, so that the
/// comments that tools append (`/*antiphon='leader'*/`) are understood too.
fn hint(text: &str) -> Option<Hint> {
    let mut found = None;
    for (_, comment) in tokens(text).filter(|(token, _)| *token == Token::Comment) {
        let words = || comment.split(|byte| !byte.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        for (word, value) in words().zip(words().skip(1)) {
            let is = |name: &str| value.eq_ignore_ascii_case(name.as_bytes());
            if !word.eq_ignore_ascii_case(b"antiphon") {
                continue;
            }
            if is("leader") {
                return Some(Hint::Leader);
            }
            if is("follower") {
                found = Some(Hint::Follower);
            }
        }
    }
    found
}

/// Lets the parser look.
fn content(text: &str) -> Content {
    // It would write its warnings about backslashes to our standard error, one for each text.
    let options = ParserOptions::DISABLE_ESCAPE_STRING_WARNING;
    let Ok(Ok(parsed)) = catch_unwind(|| pg_query::parse(text, options)) else {
        return Content::Refused(Why::Unparsable);
    };
    let statements =
        parsed.protobuf.stmts.iter().map(|raw| raw.stmt.as_deref().and_then(|stmt| stmt.node.as_ref()));
    let Some(statements) = statements.collect::<Option<Vec<&Is>>>() else {
        return Content::Refused(Why::Unclear);
    };
    if let [only] = statements.as_slice() {
        match only {
            Is::TransactionStmt(stmt) => return transaction(stmt),
            Is::VariableSetStmt(stmt) => return set(stmt),
            Is::VariableShowStmt(stmt) => return show(&stmt.name),
            _ => {}
        }
    }
    walk::names(&statements).map_or_else(Content::Refused, Content::Query)
}

fn transaction(stmt: &TransactionStmt) -> Content {
    use TransactionStmtKind as Kind;
    let chain = stmt.chain;
    Content::Transaction(match stmt.kind() {
        Kind::TransStmtBegin | Kind::TransStmtStart => match modes(&stmt.options) {
            Some(modes) => Transaction::Begin(modes),
            None => return Content::Refused(Why::Unclear),
        },
        Kind::TransStmtCommit => Transaction::Commit { chain },
        Kind::TransStmtRollback => Transaction::Rollback { chain },
        Kind::TransStmtSavepoint | Kind::TransStmtRelease | Kind::TransStmtRollbackTo => {
            Transaction::Savepoint
        }
        Kind::TransStmtPrepare | Kind::TransStmtCommitPrepared | Kind::TransStmtRollbackPrepared => {
            Transaction::TwoPhase
        }
        Kind::Undefined => return Content::Refused(Why::Unclear),
    })
}

/// The modes in the order they are said: the last word counts, as on the server.
fn modes(options: &[Node]) -> Option<Modes> {
    let mut modes = Modes::default();
    for option in options {
        let Some(Is::DefElem(option)) = &option.node else { return None };
        let value = option.arg.as_deref().and_then(constant)?;
        match option.defname.as_str() {
            "transaction_read_only" if value == "0" => modes.access = Some(Access::ReadWrite),
            "transaction_read_only" => modes.access = Some(Access::ReadOnly),
            "transaction_isolation" => {
                modes.isolation = Some(match value.as_str() {
                    "read uncommitted" => Isolation::ReadUncommitted,
                    "read committed" => Isolation::ReadCommitted,
                    "repeatable read" => Isolation::RepeatableRead,
                    "serializable" => Isolation::Serializable,
                    _ => return None,
                });
            }
            "transaction_deferrable" => {}
            _ => return None,
        }
    }
    Some(modes)
}

fn set(stmt: &VariableSetStmt) -> Content {
    use VariableSetKind as Kind;
    let refused = Content::Refused(Why::Utility);
    match (stmt.kind(), own(&stmt.name)) {
        (Kind::VarSetMulti, _) => match (stmt.name.as_str(), modes(&stmt.args)) {
            ("TRANSACTION", Some(modes)) => Content::Transaction(Transaction::Set(modes)),
            ("SESSION CHARACTERISTICS", Some(modes)) => Content::Transaction(Transaction::SetSession(modes)),
            _ => refused,
        },
        (Kind::VarSetValue, Some(name)) => {
            let values: Option<Vec<String>> = stmt.args.iter().map(constant).collect();
            values.map_or(refused, |values| {
                let value = values.join(", ");
                Content::Setting(Setting::Set { name, value, local: stmt.is_local })
            })
        }
        (Kind::VarSetDefault | Kind::VarReset, Some(name)) => Content::Setting(Setting::Reset { name }),
        (Kind::VarSetCurrent | Kind::VarResetAll | Kind::Undefined, _)
        | (Kind::VarSetValue | Kind::VarSetDefault | Kind::VarReset, None) => refused,
    }
}

fn show(name: &str) -> Content {
    match own(name) {
        Some(name) => Content::Setting(Setting::Show { name }),
        None => Content::Refused(Why::Utility),
    }
}

/// The rest of a setting's name, if it is one of ours.
pub(crate) fn own(name: &str) -> Option<String> {
    let (prefix, rest) = name.split_once('.')?;
    prefix.eq_ignore_ascii_case("antiphon").then(|| rest.to_ascii_lowercase())
}

/// A constant as a text.
fn constant(node: &Node) -> Option<String> {
    let Some(Is::AConst(constant)) = &node.node else { return None };
    Some(match constant.val.as_ref()? {
        a_const::Val::Ival(value) => value.ival.to_string(),
        a_const::Val::Fval(value) => value.fval.clone(),
        a_const::Val::Sval(value) => value.sval.clone(),
        a_const::Val::Boolval(value) => value.boolval.to_string(),
        a_const::Val::Bsval(_) => return None,
    })
}

#[cfg(test)]
mod tests;
