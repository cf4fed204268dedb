//! The names a statement depends on, each told apart by what kind of thing it names.

use std::collections::BTreeSet;

/// What kind of thing a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A function or aggregate that is called.
    Function,
    /// An operator.
    Operator,
    /// A table, view or anything else that stands in FROM.
    Relation,
    /// A type that something is cast to.
    Type,
    /// A field of something, `x.name`, which PostgreSQL also takes as the call `name(x)`.
    Field,
}

/// One name, in a schema or wherever the search path finds it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    pub kind: Kind,
    pub schema: Option<Box<str>>,
    pub name: Box<str>,
}

/// Names as they are found; each is kept once.
#[derive(Debug, Default)]
pub(crate) struct Names(BTreeSet<Name>);

impl Names {
    pub(crate) fn add(&mut self, kind: Kind, schema: Option<&str>, name: &str) {
        self.0.insert(Name { kind, schema: schema.map(Into::into), name: name.into() });
    }

    pub(crate) fn into_boxed(self) -> Box<[Name]> {
        self.0.into_iter().collect()
    }
}
