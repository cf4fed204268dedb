//! YAML text to a tree that remembers where everything stood.
//!
//! Scalars keep their text: what `on` or `010` means depends on the key, and only the key's reader knows.
//! Nothing here may blow up on a hostile file: size, depth and alias expansion are bounded before anything is
//! built, tags of languages are refused, and a key that is given twice is an error, not a silent choice.

use std::collections::BTreeMap;
use std::sync::Arc;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, Tag};
use serde_json::{Map, Value};

use super::problem::{Findings, Place};

/// Largest file that is read, in bytes.
pub(super) const FILE_BYTES_MAX: usize = 1024 * 1024;

/// Deepest nesting of lists and maps.
const DEPTH_MAX: usize = 32;

/// Most nodes that all aliases of a file together may stand for.
const ALIAS_NODES_MAX: usize = 10_000;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) content: Content,
}

/// A value as it was written.
#[derive(Clone, Debug)]
pub(super) enum Content {
    Null,
    /// The text; `plain` if it stood without quotes, so that it may be a number or a switch.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) place: Place,
    pub(super) node: Node,
}

impl Node {
    /// The value as JSON. Words that YAML 1.1 takes for switches become switches, since files written for
    /// Patroni rely on it; a number that could be read in two ways (`010`, `1_000`) stays a text.
    pub(super) fn to_json(&self) -> Value {
        match &self.content {
            Content::Null => Value::Null,
            Content::Scalar { text, plain: true } => plain_json(text),
            Content::Scalar { text, plain: false } => Value::String(text.clone()),
            Content::List(items) => Value::Array(items.iter().map(Self::to_json).collect()),
            Content::Map(entries) => {
                let pairs = entries.iter().map(|entry| (entry.key.clone(), entry.node.to_json()));
                Value::Object(pairs.collect::<Map<_, _>>())
            }
        }
    }

    /// Where the value at the end of a path stands, or the last part of the path that exists.
    pub(super) fn place_of(&self, path: &[String]) -> &Place {
        let Some((first, rest)) = path.split_first() else { return &self.place };
        match &self.content {
            Content::Map(entries) => match entries.iter().find(|entry| entry.key == *first) {
                Some(entry) if rest.is_empty() => &entry.place,
                Some(entry) => entry.node.place_of(rest),
                None => &self.place,
            },
            Content::List(items) => match first.parse().ok().and_then(|index: usize| items.get(index)) {
                Some(item) => item.place_of(rest),
                None => &self.place,
            },
            Content::Null | Content::Scalar { .. } => &self.place,
        }
    }

    fn nodes(&self) -> usize {
        let below: usize = match &self.content {
            Content::Null | Content::Scalar { .. } => 0,
            Content::List(items) => items.iter().map(Self::nodes).sum(),
            Content::Map(entries) => entries.iter().map(|entry| entry.node.nodes()).sum(),
        };
        below + 1
    }
}

/// A switch as YAML 1.1 has them.
pub(super) fn switch_word(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => Some(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => Some(false),
        _ => None,
    }
}

fn plain_json(text: &str) -> Value {
    if let Some(on) = switch_word(text) {
        return Value::Bool(on);
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (whole, fraction) = match digits.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (digits, None),
    };
    let number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if !number(whole) || (whole.len() > 1 && whole.starts_with('0')) || !fraction.is_none_or(number) {
        return Value::String(text.to_owned());
    }
    let value = match fraction {
        None => text.parse::<i64>().ok().map(Value::from),
        Some(_) => text.parse::<f64>().ok().map(Value::from),
    };
    value.unwrap_or_else(|| Value::String(text.to_owned()))
}

/// Reads one file. None if it is not YAML at all; smaller mistakes are noted and the rest is still read.
pub(super) fn read(file: &Arc<str>, bytes: &[u8], findings: &Findings) -> Option<Node> {
    let whole = Place::File(file.clone());
    let line_at = |offset: usize| {
        let before = bytes.get(..offset).unwrap_or(bytes);
        Place::Line(file.clone(), 1 + before.iter().filter(|b| **b == b'\n').count())
    };
    if bytes.len() > FILE_BYTES_MAX {
        findings.problem(&whole, "", format!("has {} bytes, at most {FILE_BYTES_MAX} are read", bytes.len()));
        return None;
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            findings.problem(&line_at(error.valid_up_to()), "", "is not UTF-8; save the file as UTF-8");
            return None;
        }
    };
    if text.starts_with('\u{feff}') {
        findings.problem(
            &line_at(0),
            "",
            "starts with a byte order mark; save the file as UTF-8 without one",
        );
        return None;
    }
    let control = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r');
    if let Some(offset) = text.find(control) {
        findings.problem(&line_at(offset), "", "has a control character; remove it");
        return None;
    }
    let mut composer =
        Composer { file, findings, stack: Vec::new(), anchors: BTreeMap::new(), aliased: 0, root: None };
    for event in Parser::new_from_str(text) {
        let done = match event {
            Ok((event, span)) => composer.take(event, span),
            Err(error) => composer.syntax(&error, text),
        };
        if done.is_err() {
            return None;
        }
    }
    Some(composer.root.unwrap_or(Node { place: whole, content: Content::Map(Vec::new()) }))
}

/// The file cannot be read further; the reason is among the findings.
struct Stop;

/// A list or map that is being built.
struct Frame {
    place: Place,
    anchor: usize,
    body: Body,
}

enum Body {
    List(Vec<Node>),
    Map { entries: Vec<Entry>, key: Option<(String, Place)>, merged: Vec<Node> },
}

struct Composer<'a> {
    file: &'a Arc<str>,
    findings: &'a Findings,
    stack: Vec<Frame>,
    anchors: BTreeMap<usize, Node>,
    aliased: usize,
    root: Option<Node>,
}

impl Composer<'_> {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Stop> {
        let place = Place::Line(self.file.clone(), span.start.line());
        match event {
            Event::DocumentStart(_) if self.root.is_some() => {
                self.stop(&place, "a second document begins; a node file is one document, remove the '---'")
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
            Event::SequenceStart(anchor, tag) => {
                self.open(place, anchor, Body::List(Vec::new()), tag.as_deref())
            }
            Event::MappingStart(anchor, tag) => {
                let body = Body::Map { entries: Vec::new(), key: None, merged: Vec::new() };
                self.open(place, anchor, body, tag.as_deref())
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && tag.as_ref().is_none_or(|tag| tag.suffix != "str");
                let null = plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                self.check_tag(&place, tag.as_deref());
                let content =
                    if null { Content::Null } else { Content::Scalar { text: text.into_owned(), plain } };
                self.put(Node { place, content }, anchor);
                Ok(())
            }
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor) else {
                    return self.stop(&place, "an alias refers to something that contains it; write it out");
                };
                self.aliased = self.aliased.saturating_add(node.nodes());
                if self.aliased > ALIAS_NODES_MAX {
                    let text =
                        format!("aliases stand for more than {ALIAS_NODES_MAX} values; write fewer of them");
                    return self.stop(&place, &text);
                }
                let node = node.clone();
                self.put(node, 0);
                Ok(())
            }
        }
    }

    fn open(&mut self, place: Place, anchor: usize, body: Body, tag: Option<&Tag>) -> Result<(), Stop> {
        if self.stack.len() >= DEPTH_MAX {
            return self.stop(&place, &format!("is nested deeper than {DEPTH_MAX} levels; flatten it"));
        }
        self.check_tag(&place, tag);
        self.stack.push(Frame { place, anchor, body });
        Ok(())
    }

    fn close(&mut self) -> Result<(), Stop> {
        let Some(frame) = self.stack.pop() else { return Err(Stop) };
        let content = match frame.body {
            Body::List(items) => Content::List(items),
            Body::Map { mut entries, merged, .. } => {
                for node in merged {
                    self.merge(&mut entries, node);
                }
                Content::Map(entries)
            }
        };
        self.put(Node { place: frame.place, content }, frame.anchor);
        Ok(())
    }

    /// `<<`: the keys of other maps, where this one does not have them itself.
    fn merge(&self, entries: &mut Vec<Entry>, node: Node) {
        match node.content {
            Content::Map(merged) => {
                for entry in merged {
                    if entries.iter().all(|own| own.key != entry.key) {
                        entries.push(entry);
                    }
                }
            }
            Content::List(items) => items.into_iter().for_each(|item| match item.content {
                Content::Map(_) => self.merge(entries, item),
                _ => self.findings.problem(&item.place, "<<", "is not a map; only maps can be merged"),
            }),
            Content::Null | Content::Scalar { .. } => {
                self.findings.problem(&node.place, "<<", "is not a map; only maps can be merged");
            }
        }
    }

    /// Puts a finished value where it belongs.
    fn put(&mut self, node: Node, anchor: usize) {
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let findings = self.findings;
        match self.stack.last_mut().map(|frame| &mut frame.body) {
            None => self.root = Some(node),
            Some(Body::List(items)) => items.push(node),
            Some(Body::Map { entries, key, merged }) => match key.take() {
                None => *key = Some((key_text(&node, findings), node.place)),
                Some((name, _)) if name == "<<" => merged.push(node),
                Some((name, place)) => match entries.iter().find(|entry| entry.key == name) {
                    Some(first) => {
                        let text = format!("is given twice, first at {}; remove one of them", first.place);
                        findings.problem(&place, &name, text);
                    }
                    None => entries.push(Entry { key: name, place, node }),
                },
            },
        }
    }

    fn check_tag(&self, place: &Place, tag: Option<&Tag>) {
        let Some(tag) = tag else { return };
        let known = ["str", "int", "float", "bool", "null", "map", "seq"].contains(&tag.suffix.as_str());
        if !(tag.is_yaml_core_schema() && known) {
            let text = format!(
                "has the tag {:?}, which means nothing here; remove it",
                format!("{}{}", tag.handle, tag.suffix)
            );
            self.findings.problem(place, "", text);
        }
    }

    fn stop(&self, place: &Place, text: &str) -> Result<(), Stop> {
        self.findings.problem(place, "", text);
        Err(Stop)
    }

    fn syntax(&self, error: &ScanError, text: &str) -> Result<(), Stop> {
        let line = error.marker().line();
        let tabbed = |line: usize| {
            let text = line.checked_sub(1).and_then(|index| text.lines().nth(index));
            text.is_some_and(|text| text.trim_start_matches(' ').starts_with('\t'))
        };
        // The parser may notice a tab only on the line after it.
        let tab = [line, line.saturating_sub(1), line + 1].into_iter().find(|line| tabbed(*line));
        match tab {
            Some(line) => {
                let place = Place::Line(self.file.clone(), line);
                self.stop(&place, "is indented with a tab; YAML takes spaces only")
            }
            None => {
                let place = Place::Line(self.file.clone(), line);
                let column = error.marker().col() + 1;
                self.stop(&place, &format!("is not YAML: {} (column {column})", error.info()))
            }
        }
    }
}

fn key_text(node: &Node, findings: &Findings) -> String {
    match &node.content {
        Content::Scalar { text, .. } => text.clone(),
        Content::Null | Content::List(_) | Content::Map(_) => {
            findings.problem(&node.place, "", "a key must be a text");
            String::new()
        }
    }
}
