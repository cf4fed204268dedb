//! What is wrong with a node file: where, which key, what was expected. Collected, so that one run of the
//! program names every mistake.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use thiserror::Error;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The file as a whole, or the directory.
    File(Arc<str>),
    /// A line of a file, counted from 1.
    Line(Arc<str>, usize),
    /// An environment variable.
    Variable(Arc<str>),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => f.write_str(file),
            Self::Line(file, line) => write!(f, "{file}:{line}"),
            Self::Variable(name) => write!(f, "environment variable {name}"),
        }
    }
}

/// One mistake or one remark.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where it stands.
    pub place: Place,
    /// The key with the sections around it (`postgresql.listen`); empty if it concerns the file.
    pub path: String,
    /// What is wrong and what to do.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            write!(f, "{}: {}", self.place, self.text)
        } else {
            write!(f, "{}: {}: {}", self.place, self.path.escape_debug(), self.text)
        }
    }
}

/// Every mistake of a node file, in the order of its lines. Displayed one a line.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{}", lines(.problems))]
pub struct ConfigErrors {
    /// The mistakes; at least one.
    pub problems: Vec<Problem>,
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Most problems that are kept: a hostile file must not fill the memory with complaints about itself.
const PROBLEMS_MAX: usize = 200;

/// What was found while reading. Shared by all readers of one file, hence the cells.
#[derive(Debug, Default)]
pub(super) struct Findings {
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Problem>>,
}

impl Findings {
    pub(super) fn problem(&self, place: &Place, path: &str, text: impl Into<String>) {
        push(&self.problems, place, path, text.into());
    }

    pub(super) fn warning(&self, place: &Place, path: &str, text: impl Into<String>) {
        push(&self.warnings, place, path, text.into());
    }

    /// The warnings, or all problems if there is one, sorted by place.
    pub(super) fn finish(self) -> Result<Vec<Problem>, ConfigErrors> {
        let (mut problems, mut warnings) = (self.problems.into_inner(), self.warnings.into_inner());
        problems.sort();
        problems.dedup();
        warnings.sort();
        if problems.is_empty() { Ok(warnings) } else { Err(ConfigErrors { problems }) }
    }

    pub(super) fn is_sound(&self) -> bool {
        self.problems.borrow().is_empty()
    }
}

fn push(list: &RefCell<Vec<Problem>>, place: &Place, path: &str, text: String) {
    let mut list = list.borrow_mut();
    if list.len() < PROBLEMS_MAX {
        list.push(Problem { place: place.clone(), path: path.to_owned(), text });
    }
}
