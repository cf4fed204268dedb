//! Where the text of a node file comes from: a file, a directory of files, or one environment variable.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::environment::WHOLE_FILE;
use super::problem::{Findings, Place};
use super::yaml::{self, Content, FILE_BYTES_MAX, Node};

/// Most files of a directory that are read.
const FILES_MAX: usize = 100;

/// The tree of the whole configuration. None if there is nothing to go on with; the reason is a finding.
pub(super) fn read(path: &Path, env: &BTreeMap<String, String>, findings: &Findings) -> Option<Node> {
    if let Some(text) = env.get(WHOLE_FILE) {
        return yaml::read(&WHOLE_FILE.into(), text.as_bytes(), findings);
    }
    if !path.is_dir() {
        return read_file(path, findings);
    }
    let mut merged: Option<Node> = None;
    for file in files_of(path, findings)? {
        let node = read_file(&file, findings)?;
        merged = Some(match merged {
            None => node,
            Some(before) => merge(before, node),
        });
    }
    if merged.is_none() {
        findings.problem(&place(path), "", "is a directory without a *.yml file; put the node file there");
    }
    merged
}

fn place(path: &Path) -> Place {
    Place::File(path.display().to_string().into())
}

fn files_of(folder: &Path, findings: &Findings) -> Option<Vec<PathBuf>> {
    let names = std::fs::read_dir(folder).and_then(|entries| {
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()
    });
    let mut files = match names {
        Ok(names) => names,
        Err(error) => {
            findings.problem(&place(folder), "", format!("could not be listed: {error}"));
            return None;
        }
    };
    files.retain(|file| file.extension().is_some_and(|extension| extension == "yml"));
    files.sort();
    if files.len() > FILES_MAX {
        findings.problem(&place(folder), "", format!("has {} *.yml files, at most {FILES_MAX}", files.len()));
        return None;
    }
    Some(files)
}

fn read_file(path: &Path, findings: &Findings) -> Option<Node> {
    let name: Arc<str> = path.display().to_string().into();
    let (bytes, metadata) = match contents(path) {
        Ok(read) => read,
        Err(error) => {
            findings.problem(&place(path), "", format!("could not be read: {error}"));
            return None;
        }
    };
    let node = yaml::read(&name, &bytes, findings)?;
    if metadata.permissions().mode() & 0o004 != 0 && holds_secret(&node) {
        let text = "has passwords and every user of this machine can read it; run chmod 600 on it";
        findings.warning(&place(path), "", text);
    }
    Some(node)
}

/// The bytes of a regular file, one more than allowed at most: a pipe or a device would never end.
fn contents(path: &Path) -> std::io::Result<(Vec<u8>, Metadata)> {
    if !path.metadata()?.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok((bytes, metadata))
}

fn holds_secret(node: &Node) -> bool {
    match &node.content {
        Content::Map(entries) => entries.iter().any(|entry| {
            let scalar = matches!(entry.node.content, Content::Scalar { .. });
            scalar && entry.key.ends_with("password") || holds_secret(&entry.node)
        }),
        Content::List(items) => items.iter().any(holds_secret),
        Content::Null | Content::Scalar { .. } => false,
    }
}

/// Lays a later file over an earlier one: maps are merged, everything else is replaced; a later null removes.
fn merge(before: Node, after: Node) -> Node {
    match (before.content, after.content) {
        (Content::Map(mut entries), Content::Map(later)) => {
            for entry in later {
                match entries.iter().position(|own| own.key == entry.key) {
                    Some(index) => {
                        let own = entries.remove(index);
                        let node = merge(own.node, entry.node);
                        entries.insert(index, yaml::Entry { node, ..entry });
                    }
                    None => entries.push(entry),
                }
            }
            Node { place: before.place, content: Content::Map(entries) }
        }
        (_, content) => Node { place: after.place, content },
    }
}
