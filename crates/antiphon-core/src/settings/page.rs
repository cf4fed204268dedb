//! The reference page of the settings, made from their table.

use std::fmt::Write;
use std::time::Duration;

use super::keys::{KEYS, Kind};
use super::{Settings, SyncMode};

const HEAD: &str = "\
# Cluster-wide settings

These hold for all members. They are stored in the cluster and changed with `antiphon edit-config` or
`PATCH /config`; `bootstrap.dcs` in a node file sets them for a new cluster. A change takes effect without a
restart, except for PostgreSQL parameters that need one. Names are Patroni's where Patroni has the setting.

A duration is a number of seconds or a text with a unit (`500ms`, `10s`, `1min`, `2h`, `1d`); a size is a
number of bytes or a text with a unit (`16kB`, `1MB`, `2GB`). Setting a value to `null` brings back the default.

This page is generated from `crates/antiphon-core/src/settings/keys.rs`.

| setting | takes | default | what it is for |
| --- | --- | --- | --- |
";

/// The page as Markdown.
pub fn page() -> String {
    let mut defaults = Settings::default();
    let mut page = HEAD.to_owned();
    for key in KEYS {
        if matches!(key.kind, Kind::Refused(_)) {
            continue;
        }
        let aliases = match key.aliases {
            [] => String::new(),
            names => format!(" Also: `{}`.", names.join("`, `")),
        };
        let effect = match key.kind {
            Kind::NoEffect(reason) => format!(" No effect: {reason}."),
            _ => String::new(),
        };
        let default = default_of(&key.kind, &mut defaults);
        // Writing to a String cannot fail.
        let _ = writeln!(
            page,
            "| `{}` | {} | {default} | {}{effect}{aliases} |",
            key.name,
            key.kind.takes(),
            key.about
        );
    }
    page.push_str(&super::parameters::section());
    page
}

fn default_of(kind: &Kind, defaults: &mut Settings) -> String {
    let span = |span: Duration| match span.as_secs() {
        minutes if minutes >= 60 && minutes % 60 == 0 && span.subsec_nanos() == 0 => {
            format!("{}min", minutes / 60)
        }
        _ => format!("{span:?}"),
    };
    match kind {
        Kind::Span { at, .. } => span(*at(defaults)),
        Kind::SpanOrNone { at, .. } => at(defaults).map_or_else(|| "0".to_owned(), span),
        Kind::Bytes { at } => at(defaults).to_string(),
        Kind::BytesOrNone { at } => at(defaults).map_or_else(|| "-1".to_owned(), |bytes| bytes.to_string()),
        Kind::Count { at, .. } => at(defaults).to_string(),
        Kind::Switch { at } => at(defaults).to_string(),
        Kind::Mode { at } => match at(defaults) {
            SyncMode::Off => "off".to_owned(),
            SyncMode::On => "on".to_owned(),
            SyncMode::Quorum => "quorum".to_owned(),
        },
        Kind::Slots { .. } | Kind::Matchers { .. } | Kind::Parameters { .. } | Kind::Lines { .. } => {
            "none".to_owned()
        }
        Kind::NoEffect(_) | Kind::Refused(_) => String::new(),
    }
}
