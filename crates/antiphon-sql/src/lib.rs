//! Is a text certainly a read that a follower answers as the leader would, but for how far it has replayed?
//!
//! Two halves. [`parse`] looks at the text alone, with PostgreSQL's own parser, and gives a [`Statement`] that can
//! be kept for as long as one likes: what it is impossible as, or the names on which the answer depends. The
//! [`Catalogue`] says what these names mean in one database. [`certainly_reads`] joins the two.
//!
//! In doubt the answer is no: what cannot be parsed, walked or found goes to the leader, with the reason
//! ([`Why`]). Nothing here does I/O: the caller runs [`catalogue::QUERY`] and hands in its rows.
//!
//! What the caller must know: the parser takes backslashes in plain strings for what they are, so a session with
//! `standard_conforming_strings` off, or with a client encoding other than UTF-8, must not ask.

mod builtin;
pub mod catalogue;
mod names;
mod scan;
mod shape;
mod statement;
mod walk;
mod why;

pub use catalogue::{Catalogue, certainly_reads};
pub use names::{Kind as NameKind, Name};
pub use shape::shape;
pub use statement::{
    Access, Content, Hint, Isolation, Modes, Setting, Statement, TEXT_MAX, Transaction, parse,
};
pub use why::Why;
