//! What the names of one database mean: safe to read on a follower, or why not.
//!
//! It is made of the rows of one query ([`QUERY`]), which the caller runs on a server of the cluster, again after
//! a change of the schema. Every name is kept, as a hash with its verdict, once within its schema and once for all
//! schemas together: which one an unqualified name finds depends on a search path that is not known here, so it is
//! safe only if all of that name are. What is not here is unknown, and unknown is not safe.
//!
//! Views, row security policies, domains, and functions in SQL or PL/pgSQL are looked into: a view is as its query,
//! a STABLE function is as what it calls. What functions of other languages declare is believed.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use crate::builtin;
use crate::names::{Kind, Name};
use crate::scan::{Token, tokens};
use crate::statement::{Content, Statement, parse};
use crate::why::Why;

/// The query whose rows make a [`Catalogue`]: six columns of type text, none null. PostgreSQL 14 to 18.
pub const QUERY: &str = include_str!("query.sql");

/// The verdicts of one database.
///
/// Names are hashed with keys of its own, so that nobody can craft a name that is taken for another.
#[derive(Debug, Default)]
pub struct Catalogue {
    keys: RandomState,
    verdicts: HashMap<u64, Verdict>,
}

/// Nothing wrong, or what.
type Verdict = Option<Why>;

/// Is this certainly a read, and one that a follower answers as the leader would? If not, why.
pub fn certainly_reads(statement: &Statement, catalogue: &Catalogue) -> Result<(), Why> {
    match &statement.content {
        Content::Query(names) => catalogue.check(names),
        Content::Transaction(_) => Err(Why::TransactionControl),
        Content::Setting(_) => Err(Why::OwnSetting),
        Content::Refused(why) => Err(*why),
    }
}

impl Catalogue {
    /// Made of the rows of [`QUERY`], each as its six columns in order.
    pub fn from_rows<'a>(rows: impl IntoIterator<Item = [&'a str; 6]>) -> Self {
        let mut catalogue = Self::default();
        let mut open = Vec::new();
        for row in rows {
            let Some(row) = Row::read(row) else { continue };
            catalogue.set(&row, row.verdict());
            if let Some(parts) = row.parts() {
                match parts {
                    Ok(parts) => open.push((row, parts)),
                    Err(why) => catalogue.set(&row, Some(why)),
                }
            }
        }
        catalogue.settle(open);
        catalogue
    }

    /// How many names it knows; none means that it was never read.
    pub fn len(&self) -> usize {
        self.verdicts.len()
    }

    pub fn is_empty(&self) -> bool {
        self.verdicts.is_empty()
    }

    /// What is made of something unsafe is unsafe, until nothing changes any more.
    fn settle(&mut self, mut open: Vec<(Row<'_>, Parts)>) {
        loop {
            let before = open.len();
            open.retain(|(row, parts)| {
                let found = match parts {
                    Parts::Query(names) => self.check(names).err(),
                    Parts::Code(names) => names.iter().find_map(|name| self.verdict(name).flatten()),
                };
                if found.is_some() {
                    self.set(row, found);
                }
                found.is_none()
            });
            if open.len() == before {
                return;
            }
        }
    }

    fn check(&self, names: &[Name]) -> Result<(), Why> {
        for name in names {
            match (self.verdict(name), name.kind) {
                (Some(Some(why)), _) => return Err(why),
                // name(x) is a cast where there is a type, but no fitting function, of that name.
                (Some(None), Kind::Function) => {
                    if let Some(Some(why)) = self.verdict_as(Kind::Type, name) {
                        return Err(why);
                    }
                }
                // Most fields are columns, of which the catalogue knows nothing.
                (Some(None), Kind::Operator | Kind::Relation | Kind::Type | Kind::Field)
                | (None, Kind::Field) => {}
                (None, _) if self.is_empty() => return Err(Why::NoCatalogue),
                (None, Kind::Function | Kind::Operator | Kind::Relation | Kind::Type) => {
                    return Err(Why::UnknownName);
                }
            }
        }
        Ok(())
    }

    fn verdict(&self, name: &Name) -> Option<Verdict> {
        self.verdict_as(name.kind, name)
    }

    fn verdict_as(&self, kind: Kind, name: &Name) -> Option<Verdict> {
        self.verdicts.get(&self.key(kind, name.schema.as_deref(), &name.name)).copied()
    }

    fn key(&self, kind: Kind, schema: Option<&str>, name: &str) -> u64 {
        self.keys.hash_one((kind, schema, name))
    }

    /// What is wrong once stays wrong.
    fn set(&mut self, row: &Row<'_>, verdict: Verdict) {
        for schema in [Some(row.schema), None] {
            let key = self.key(row.kind, schema, row.name);
            let known = self.verdicts.entry(key).or_insert(verdict);
            *known = known.or(verdict);
        }
    }
}

/// A row of the query.
struct Row<'a> {
    kind: Kind,
    schema: &'a str,
    name: &'a str,
    verdict: &'a str,
    body: &'a str,
    origin: &'a str,
}

/// What something is made of.
enum Parts {
    /// A query: every name in it counts, also one that is not known.
    Query(Box<[Name]>),
    /// Code, of which only words are seen: those count that are known to be unsafe.
    Code(Box<[Name]>),
}

impl<'a> Row<'a> {
    /// None for a kind that this version does not know: nothing will ask for it.
    fn read([kind, schema, name, verdict, body, origin]: [&'a str; 6]) -> Option<Self> {
        let kind = match kind {
            "function" => Kind::Function,
            "field" => Kind::Field,
            "operator" => Kind::Operator,
            "relation" => Kind::Relation,
            "type" => Kind::Type,
            _ => return None,
        };
        Some(Self { kind, schema, name, verdict, body, origin })
    }

    /// By itself, whatever it is made of.
    fn verdict(&self) -> Verdict {
        let volatile = match self.verdict {
            "safe" => false,
            "volatile" => true,
            "unlogged" => return Some(Why::Unlogged),
            "foreign" => return Some(Why::Foreign),
            "sequence" => return Some(Why::Sequence),
            "system_view" => return builtin::view(self.name),
            _ => return Some(Why::Unclear),
        };
        match (self.kind, self.schema) {
            (Kind::Function, "pg_catalog") => builtin::function(self.name, volatile),
            (Kind::Function, _) if volatile && builtin::of_extension(self.origin, self.name) => None,
            (Kind::Relation, "pg_catalog") if !volatile => builtin::table(self.name),
            (Kind::Function | Kind::Operator | Kind::Relation | Kind::Type | Kind::Field, _) => {
                volatile.then_some(Why::Volatile)
            }
        }
    }

    fn parts(&self) -> Option<Result<Parts, Why>> {
        if self.body.is_empty() {
            return None;
        }
        Some(match self.kind {
            Kind::Relation | Kind::Type => match parse(self.body).content {
                Content::Query(names) => Ok(Parts::Query(names)),
                Content::Refused(why) => Err(why),
                Content::Transaction(_) | Content::Setting(_) => Err(Why::Unclear),
            },
            Kind::Function | Kind::Operator | Kind::Field => code(self.body),
        })
    }
}

/// The words of a function's code, as whatever they may be names of. Code that it puts together as it runs (EXECUTE)
/// says nothing.
fn code(body: &str) -> Result<Parts, Why> {
    let mut names = Vec::new();
    let mut word: Option<Box<str>> = None;
    let mut operator = String::new();
    for (token, part) in tokens(body) {
        match part {
            [byte] if token == Token::Other && b"+-*/<>=~!@#%^&|`?".contains(byte) => {
                operator.push(char::from(*byte));
            }
            _ if operator.is_empty() => {}
            _ => names.push(unqualified(Kind::Operator, &std::mem::take(&mut operator))),
        }
        match token {
            Token::Word | Token::QuotedName => {
                let text = String::from_utf8_lossy(part);
                let text = match token {
                    Token::QuotedName => text.trim_matches('"').replace("\"\"", "\""),
                    _ => text.to_lowercase(),
                };
                if text == "execute" {
                    return Err(Why::Volatile);
                }
                names.extend([Kind::Relation, Kind::Type].map(|kind| unqualified(kind, &text)));
                word = Some(text.into());
            }
            Token::Other if part == b"(" => {
                names.extend(word.take().map(|name| unqualified(Kind::Function, &name)));
            }
            Token::Space | Token::Comment => {}
            Token::String | Token::OddString | Token::Number | Token::Parameter | Token::Other => word = None,
        }
    }
    names.sort();
    names.dedup();
    Ok(Parts::Code(names.into()))
}

fn unqualified(kind: Kind, name: &str) -> Name {
    Name { kind, schema: None, name: name.into() }
}

#[cfg(test)]
mod tests;
