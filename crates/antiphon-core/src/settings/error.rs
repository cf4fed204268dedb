//! What is wrong with a settings document: the key, the value, what was expected and what to do.

use std::fmt;

use thiserror::Error;

/// The longest value that an error repeats, in characters.
const SHOWN_CHARS_MAX: usize = 60;

/// The way to a key in a document, from the top. Names may hold dots (`plperl.on_init`), so it is a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyPath(pub Vec<String>);

impl KeyPath {
    /// A path of literal names.
    pub fn of(names: &[&str]) -> Self {
        Self(names.iter().map(|name| (*name).to_owned()).collect())
    }

    /// The path one step down.
    pub fn join(&self, name: &str) -> Self {
        let mut names = self.0.clone();
        names.push(name.to_owned());
        Self(names)
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(".").escape_debug().to_string())
    }
}

/// One mistake in a settings document. Displayed as its path and its sentence.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{}: {}", self.path(), self.sentence())]
pub enum SettingsError {
    /// No setting has this name.
    Unknown {
        /// Where it stands.
        path: KeyPath,
        /// The known name that is closest, if one is close.
        nearest: Option<String>,
    },
    /// The value is of the wrong kind or out of range.
    Invalid {
        /// Where it stands.
        path: KeyPath,
        /// The value, shortened.
        value: String,
        /// What would have been right, as a noun ("a duration like 10s").
        expected: String,
    },
    /// The setting or its value cannot be honoured; the reason says what to do instead.
    Refused {
        /// Where it stands.
        path: KeyPath,
        /// Why, and the remedy.
        reason: String,
    },
}

impl SettingsError {
    pub(crate) fn invalid(path: KeyPath, value: &serde_json::Value, expected: impl Into<String>) -> Self {
        Self::Invalid { path, value: shown(&value.to_string()), expected: expected.into() }
    }

    pub(crate) fn refused(path: KeyPath, reason: String) -> Self {
        Self::Refused { path, reason }
    }

    /// What is wrong, without where.
    pub fn sentence(&self) -> String {
        match self {
            Self::Unknown { nearest: Some(name), .. } => format!("unknown setting; did you mean {name}?"),
            Self::Unknown { nearest: None, .. } => "unknown setting".to_owned(),
            Self::Invalid { value, expected, .. } => format!("{value} is not {expected}"),
            Self::Refused { reason, .. } => reason.clone(),
        }
    }

    /// Where the mistake stands.
    pub fn path(&self) -> &KeyPath {
        match self {
            Self::Unknown { path, .. } | Self::Invalid { path, .. } | Self::Refused { path, .. } => path,
        }
    }
}

/// A value as an error shows it: bounded.
pub(crate) fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    short
}
