//! Reading a section of the node file: typed values out, complaints to the findings.
//!
//! A section knows the names that its reader asked for. [`Section::finish`] reports every other one, with the
//! nearest name that would have been understood, so that a slip is never silently a default.

use std::cell::RefCell;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use antiphon_core::settings::{nearest, span};
use serde_json::Value;

use super::address::{Address, Listen};
use super::problem::{Findings, Place};
use super::secret::Secret;
use super::yaml::{Content, Entry, Node, switch_word};

/// Longest text of one value, in bytes.
const TEXT_BYTES_MAX: usize = 16 * 1024;

pub(super) struct Section<'a> {
    pub(super) path: String,
    pub(super) place: &'a Place,
    entries: &'a [Entry],
    asked: RefCell<Vec<String>>,
    findings: &'a Findings,
}

impl<'a> Section<'a> {
    /// A map as a section; a complaint and an empty section if it is something else.
    pub(super) fn of(node: &'a Node, path: String, findings: &'a Findings) -> Self {
        let entries: &[Entry] = match &node.content {
            Content::Map(entries) => entries,
            Content::Null | Content::Scalar { .. } | Content::List(_) => {
                findings.problem(&node.place, &path, "must be a map of keys and values");
                &[]
            }
        };
        Self { path, place: &node.place, entries, asked: RefCell::default(), findings }
    }

    fn entry(&self, name: &str) -> Option<&'a Entry> {
        self.asked.borrow_mut().push(name.to_owned());
        self.entries.iter().find(|entry| entry.key == name)
    }

    /// The value of a key; none if it is absent or null.
    pub(super) fn get(&self, name: &str) -> Option<&'a Node> {
        let node = &self.entry(name)?.node;
        (!matches!(node.content, Content::Null)).then_some(node)
    }

    /// Whether a key stands there, with or without a value.
    pub(super) fn has(&self, name: &str) -> bool {
        self.entry(name).is_some()
    }

    /// The section below a key.
    pub(super) fn section(&self, name: &str) -> Option<Section<'a>> {
        self.get(name).map(|node| Section::of(node, self.path_of(name), self.findings))
    }

    pub(super) fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Complains about a key, where it stands or else where its section does.
    pub(super) fn problem(&self, name: &str, text: impl Into<String>) {
        self.findings.problem(self.place_of(name), &self.path_of(name), text);
    }

    pub(super) fn warning(&self, name: &str, text: impl Into<String>) {
        self.findings.warning(self.place_of(name), &self.path_of(name), text);
    }

    fn place_of(&self, name: &str) -> &'a Place {
        self.entries.iter().find(|entry| entry.key == name).map_or(self.place, |entry| &entry.place)
    }

    /// A text of one line, as it was written.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.get(name).and_then(|node| self.text_of(node, &self.path_of(name)))
    }

    /// A command of one line, split into words as a shell does when it runs.
    pub(super) fn command(&self, name: &str) -> Option<String> {
        let command = self.text(name)?;
        match shlex::split(&command) {
            Some(words) if !words.is_empty() => return Some(command),
            Some(_) => self.problem(name, "is empty; name a program"),
            None => self.problem(name, "has a quote that is not closed"),
        }
        None
    }

    fn text_of(&self, node: &Node, path: &str) -> Option<String> {
        match &node.content {
            Content::Scalar { text, .. } if text.len() > TEXT_BYTES_MAX => {
                self.findings.problem(&node.place, path, format!("is longer than {TEXT_BYTES_MAX} bytes"));
                None
            }
            Content::Scalar { text, .. } if text.contains(char::is_control) => {
                self.findings.problem(
                    &node.place,
                    path,
                    "has a line feed or a tab in it; write it on one line",
                );
                None
            }
            Content::Scalar { text, .. } => Some(text.clone()),
            Content::Null | Content::List(_) | Content::Map(_) => {
                self.findings.problem(&node.place, path, "must be a single text or number");
                None
            }
        }
    }

    /// A text that must be there and not be empty.
    pub(super) fn required(&self, name: &str, why: &str) -> Option<String> {
        if self.get(name).is_none() {
            self.problem(name, format!("is missing: {why}"));
            return None;
        }
        let text = self.text(name)?;
        if text.is_empty() {
            self.problem(name, format!("is empty: {why}"));
        }
        (!text.is_empty()).then_some(text)
    }

    /// A value read from its text. The reader says what is wrong, to follow the value in a sentence.
    pub(super) fn parsed<T>(&self, name: &str, read: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let text = self.text(name)?;
        match read(&text) {
            Ok(value) => Some(value),
            Err(wrong) => {
                self.problem(name, format!("{text:?} {wrong}"));
                None
            }
        }
    }

    /// One of a few words; letter case does not matter.
    pub(super) fn choice<T: Copy>(&self, name: &str, choices: &[(&str, T)]) -> Option<T> {
        let words = || choices.iter().map(|(word, _)| *word);
        self.parsed(name, |text| {
            let found = choices.iter().find(|(word, _)| text.eq_ignore_ascii_case(word));
            found.map(|(_, value)| *value).ok_or_else(|| {
                let hint = nearest(text, words()).map(|word| format!("; did you mean {word}?"));
                let known = words().collect::<Vec<_>>().join(", ");
                format!("is none of {known}{}", hint.unwrap_or_default())
            })
        })
    }

    pub(super) fn switch(&self, name: &str) -> Option<bool> {
        self.parsed(name, |text| switch_word(text).ok_or_else(|| "is not true or false".to_owned()))
    }

    pub(super) fn count(&self, name: &str, min: u32, max: u32) -> Option<u32> {
        self.parsed(name, |text| {
            let plain = !(text.len() > 1 && text.starts_with(['0', '+']));
            let number = text.parse().ok().filter(|number| plain && (min..=max).contains(number));
            number.ok_or_else(|| format!("is not a whole number from {min} to {max}"))
        })
    }

    pub(super) fn span(&self, name: &str) -> Option<Duration> {
        self.parsed(name, |text| {
            let spelled = Value::String(text.to_owned());
            span(&spelled).ok_or_else(|| "is not a duration like 10s".to_owned())
        })
    }

    pub(super) fn secret(&self, name: &str) -> Option<Secret> {
        // Its own path: an error of `parsed` would repeat the value.
        self.text(name).map(Secret::new)
    }

    pub(super) fn address(&self, name: &str, default_port: Option<u16>) -> Option<Address> {
        self.parsed(name, |text| Address::parse(text, default_port))
    }

    pub(super) fn listen(&self, name: &str, default_port: Option<u16>) -> Option<Listen> {
        self.parsed(name, |text| Listen::parse(text, default_port))
    }

    /// An absolute path other than `/`, without `..`.
    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        self.parsed(name, |text| {
            let path = Path::new(text);
            let plain =
                path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
            if !path.is_absolute() || !plain {
                return Err("is not an absolute path without '..'".to_owned());
            }
            if path.file_name().is_none() {
                return Err("is the root of the file system; name a directory of its own".to_owned());
            }
            // Rebuilt from its parts: no doubled or final slash is left to make two spellings of one path.
            Ok(path.components().collect())
        })
    }

    /// A list of texts; one text is a list of its comma-separated parts if the key is written that way too.
    pub(super) fn texts(&self, name: &str, commas: bool) -> Vec<String> {
        let Some(node) = self.get(name) else { return Vec::new() };
        let path = self.path_of(name);
        match &node.content {
            Content::List(items) => items
                .iter()
                .enumerate()
                .filter_map(|(index, item)| self.text_of(item, &format!("{path}.{index}")))
                .collect(),
            Content::Scalar { .. } if commas => {
                let text = self.text_of(node, &path).unwrap_or_default();
                // A list in brackets, as variables may have it; an IPv6 address in brackets is not one.
                let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
                let list = inner.filter(|inner| inner.parse::<std::net::Ipv6Addr>().is_err());
                let text = list.unwrap_or(&text);
                let parts = text.split(',').map(|part| part.trim().trim_matches(['\'', '"']));
                parts.filter(|part| !part.is_empty()).map(str::to_owned).collect()
            }
            Content::Null | Content::Scalar { .. } | Content::Map(_) => {
                self.findings.problem(&node.place, &path, "must be a list");
                Vec::new()
            }
        }
    }

    /// The keys that nobody asked for so far; they count as asked for from now on.
    pub(super) fn rest(&self) -> Vec<&'a Entry> {
        let asked = self.asked.borrow();
        self.entries.iter().filter(|entry| !asked.contains(&entry.key)).collect()
    }

    /// Keys of Patroni that are taken and do nothing here; each one that stands there gets a warning.
    pub(super) fn without_effect(&self, names: &[&str], reason: &str) {
        for name in names.iter().filter(|name| self.has(name)) {
            self.warning(name, format!("has no effect: {reason}"));
        }
    }

    /// Keys that would silently mean something else if they were ignored.
    pub(super) fn refused(&self, names: &[&str], reason: &str) {
        for name in names.iter().filter(|name| self.get(name).is_some()) {
            self.problem(name, reason);
        }
    }

    /// Complains about every key that nobody asked for.
    pub(super) fn finish(&self) {
        let rest = self.rest();
        let asked = self.asked.borrow();
        for entry in rest {
            let nearest = nearest(&entry.key, asked.iter().map(String::as_str));
            let hint = nearest.map(|name| format!("; did you mean {name}?")).unwrap_or_default();
            self.findings.problem(&entry.place, &self.path_of(&entry.key), format!("unknown key{hint}"));
        }
    }

    pub(super) fn findings(&self) -> &'a Findings {
        self.findings
    }
}
