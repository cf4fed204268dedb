//! How a new cluster begins: its first settings, the options of initdb, what runs once afterwards.

use antiphon_core::settings::{DynamicCommands, Settings, without_effect};
use serde_json::{Map, Value};

use super::model::BootstrapConfig;
use super::section::Section;
use super::yaml::{Content, Node};

/// Options of initdb that are the manager's own.
const INITDB_OWN: [&str; 6] = ["pgdata", "pwfile", "pwprompt", "sync-only", "version", "no-sync"];

/// An option of a program: its name without dashes, and its value.
pub(super) type ProgramOption = (String, Option<String>);

/// Reads `bootstrap`. `opted_in`: the node allows its cluster's settings to hold commands.
pub(super) fn bootstrap(section: &Section<'_>, opted_in: bool) -> Option<BootstrapConfig> {
    let dcs = match section.get("dcs") {
        Some(node) => dcs(section, node, opted_in),
        None => Value::Object(Map::new()),
    };
    let initdb = options(section, "initdb", &INITDB_OWN);
    let post_bootstrap = match (section.command("post_bootstrap"), section.command("post_init")) {
        (Some(_), Some(_)) => {
            section.problem(
                "post_init",
                "is another name of post_bootstrap, which is set too; remove one of them",
            );
            None
        }
        (one, other) => one.or(other),
    };
    if section.text("method").is_some_and(|method| method != "initdb") {
        let text = "is not supported yet: a new cluster would be made by initdb instead of from your backup. Restore the \
                    backup into data_dir first and let antiphon adopt it";
        section.problem("method", text);
    }
    let users = "Patroni 4 dropped it; create users in post_bootstrap";
    section.without_effect(&["users"], users);
    section.refused(&["pg_hba", "pg_ident"], "is an old place for these lines; move them to postgresql");
    // The section of a method that is not chosen does nothing; of one that is, see above.
    for entry in section.rest() {
        if matches!(&entry.node.content, Content::Map(entries) if entries.iter().any(|inner| inner.key == "command"))
        {
            let _ = section.get(&entry.key);
            section.warning(
                &entry.key,
                "has no effect: bootstrap methods other than initdb are not supported yet",
            );
        }
    }
    section.finish();
    Some(BootstrapConfig { dcs, initdb, post_bootstrap })
}

/// The first settings of the cluster, checked here so that a mistake is found before there is a cluster.
fn dcs(section: &Section<'_>, node: &Node, opted_in: bool) -> Value {
    let document = node.to_json();
    let commands = if opted_in { DynamicCommands::Allowed } else { DynamicCommands::Refused };
    let path =
        |inner: &antiphon_core::settings::KeyPath| section.path_of(&format!("dcs.{}", inner.0.join(".")));
    for error in Settings::resolve_with(&document, commands).err().into_iter().flatten() {
        let place = node.place_of(&error.path().0);
        section.findings().problem(place, &path(error.path()), error.sentence());
    }
    for (key, reason) in without_effect(&document) {
        section.findings().warning(node.place_of(&key.0), &path(&key), format!("has no effect: {reason}"));
    }
    document
}

/// Options of a program, as Patroni takes them: a list of names and of one-key maps, or a map.
pub(super) fn options(section: &Section<'_>, name: &str, own: &[&str]) -> Vec<ProgramOption> {
    let Some(node) = section.get(name) else { return Vec::new() };
    let mut options = Vec::new();
    let wrong =
        |node: &Node, text: &str| section.findings().problem(&node.place, &section.path_of(name), text);
    let value = |node: &Node| match &node.content {
        Content::Scalar { text, .. } if !text.contains(char::is_control) => Some(text.clone()),
        Content::Null | Content::Scalar { .. } | Content::List(_) | Content::Map(_) => None,
    };
    let items: &[Node] = match &node.content {
        Content::List(items) => items,
        Content::Map(_) => std::slice::from_ref(node),
        Content::Null | Content::Scalar { .. } => {
            wrong(node, "must be a list of options, as - data-checksums or - encoding: UTF8");
            &[]
        }
    };
    for item in items {
        match &item.content {
            Content::Scalar { text, .. } => options.push((item, text.clone(), None)),
            Content::Map(entries) => {
                for entry in entries {
                    match (value(&entry.node), &entry.node.content) {
                        (None, Content::Null) => options.push((item, entry.key.clone(), None)),
                        (None, _) => wrong(&entry.node, "must be an option's value on one line"),
                        (value, _) => options.push((item, entry.key.clone(), value)),
                    }
                }
            }
            Content::Null | Content::List(_) => {
                wrong(item, "must be an option, as data-checksums or encoding: UTF8");
            }
        }
    }
    options.retain(|(item, option, _)| {
        let plain =
            option.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') && !option.starts_with('-');
        if option.is_empty() || !plain {
            wrong(
                item,
                &format!(
                    "{option:?} is not an option's name; write it without dashes in front, as data-checksums"
                ),
            );
        } else if own.contains(&option.as_str()) {
            wrong(item, &format!("{option} is set by antiphon; remove it"));
        } else {
            return true;
        }
        false
    });
    options.into_iter().map(|(_, option, value)| (option, value)).collect()
}
