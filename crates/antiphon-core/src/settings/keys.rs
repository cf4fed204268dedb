//! The table of all settings, and how a document is read by it.
//!
//! One entry a setting: its name, its old names, what it takes, where its value lives in [`Settings`], and a
//! sentence for the reference page. Reading, checking, defaults and documentation all come from here, so a
//! setting cannot exist in one of them only.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value};

use super::error::{KeyPath, SettingsError};
use super::nearest::nearest;
use super::parameters::{Origin, check_hba_line, check_parameter, gone_parameter, scalar_text};
use super::slots::{PermanentSlot, SlotMatcher, read_matcher, read_slot};
use super::{DynamicCommands, Settings, SyncMode, read};

/// What a setting takes, and where its value lives.
#[derive(Clone, Copy)]
pub enum Kind {
    /// A duration between two bounds, in seconds if it has no unit.
    Span { min: Duration, max: Duration, at: fn(&mut Settings) -> &mut Duration },
    /// A duration; zero means none.
    SpanOrNone { max: Duration, at: fn(&mut Settings) -> &mut Option<Duration> },
    /// A size of zero bytes or more.
    Bytes { at: fn(&mut Settings) -> &mut u64 },
    /// A size; -1 means none.
    BytesOrNone { at: fn(&mut Settings) -> &mut Option<u64> },
    /// A whole number between two bounds.
    Count { min: u32, max: u32, at: fn(&mut Settings) -> &mut u32 },
    /// On or off.
    Switch { at: fn(&mut Settings) -> &mut bool },
    /// off, on or quorum.
    Mode { at: fn(&mut Settings) -> &mut SyncMode },
    /// Permanent slots by name.
    Slots { at: fn(&mut Settings) -> &mut BTreeMap<String, PermanentSlot> },
    /// Slots of others.
    Matchers { at: fn(&mut Settings) -> &mut Vec<SlotMatcher> },
    /// Parameters of PostgreSQL.
    Parameters { at: fn(&mut Settings) -> &mut BTreeMap<String, String> },
    /// Lines of an access file.
    Lines { at: fn(&mut Settings) -> &mut Vec<String> },
    /// Taken for compatibility, without effect; the text says why nothing is lost.
    NoEffect(&'static str),
    /// Known and not possible here; the text says what to do instead.
    Refused(&'static str),
}

/// One setting.
pub struct Key {
    /// Name, with dots: `postgresql.use_slots`.
    pub name: &'static str,
    /// Older or other names of the last part, which are read the same.
    pub aliases: &'static [&'static str],
    /// What it takes.
    pub kind: Kind,
    /// What it is for, in a sentence.
    pub about: &'static str,
}

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);
const YEAR: Duration = Duration::from_secs(365 * 86_400);

const fn key(name: &'static str, kind: Kind, about: &'static str) -> Key {
    Key { name, aliases: &[], kind, about }
}

const LOCAL_ONLY: &str = "belongs to a node, not to the cluster; set it in the node file";

/// All settings, in the order of the reference page.
pub const KEYS: &[Key] = &[
    key(
        "ttl",
        Kind::Span { min: SECOND, max: DAY, at: |s| &mut s.ttl },
        "How long a leader may serve without renewing its lease. In asynchronous mode a new leader waits for it.",
    ),
    key(
        "loop_wait",
        Kind::Span { min: SECOND, max: DAY, at: |s| &mut s.loop_wait },
        "How often an idle node looks again. Events wake it at once, so this does not delay a failover.",
    ),
    key(
        "retry_timeout",
        Kind::Span { min: SECOND, max: DAY, at: |s| &mut s.retry_timeout },
        "How long an operation on the store or on PostgreSQL is tried again before it counts as failed.",
    ),
    key(
        "failure_timeout",
        Kind::Span { min: Duration::from_millis(200), max: DAY, at: |s| &mut s.failure_timeout },
        "How long a leader's heartbeats may be silent before it is suspected. At most half of ttl.",
    ),
    key(
        "maximum_lag_on_failover",
        Kind::Bytes { at: |s| &mut s.maximum_lag_on_failover },
        "Asynchronous mode: how much WAL a candidate may be behind and still become leader.",
    ),
    key(
        "maximum_lag_on_syncnode",
        Kind::BytesOrNone { at: |s| &mut s.maximum_lag_on_syncnode },
        "How much WAL a follower may be behind the best one and still acknowledge commits; -1: however much.",
    ),
    key(
        "max_timelines_history",
        Kind::Count { min: 0, max: 1_000_000, at: |s| &mut s.max_timelines_history },
        "How many promotions the history keeps; 0: all.",
    ),
    Key {
        name: "primary_start_timeout",
        aliases: &["master_start_timeout"],
        kind: Kind::Span { min: Duration::ZERO, max: YEAR, at: |s| &mut s.primary_start_timeout },
        about: "How long a start or a promotion may take before another member takes over. After a crash a follower takes over at once where one can; 0: the old leader waits longer for that before it restarts itself.",
    },
    Key {
        name: "primary_stop_timeout",
        aliases: &["master_stop_timeout"],
        kind: Kind::SpanOrNone { max: YEAR, at: |s| &mut s.primary_stop_timeout },
        about: "Synchronous modes: how long a leader may take to stop before it is killed; 0: as long as its lease.",
    },
    key(
        "synchronous_mode",
        Kind::Mode { at: |s| &mut s.synchronous_mode },
        "How commits are confirmed: quorum (any k followers), on (the k of highest priority), or off. Unlike in \
         Patroni the default loses no acknowledged write.",
    ),
    key(
        "synchronous_mode_strict",
        Kind::Switch { at: |s| &mut s.synchronous_mode_strict },
        "Writes wait when no follower can confirm them, instead of the leader going on alone.",
    ),
    key(
        "synchronous_node_count",
        Kind::Count { min: 1, max: 100, at: |s| &mut s.synchronous_node_count },
        "k: how many followers confirm a commit.",
    ),
    key(
        "sync_timeout",
        Kind::SpanOrNone { max: DAY, at: |s| &mut s.sync_timeout },
        "Semi-synchronous: how long commits wait for a confirmation before the leader goes on alone; 0: as long as \
         the sync set's members are seen.",
    ),
    key(
        "failsafe_mode",
        Kind::Switch { at: |s| &mut s.failsafe_mode },
        "A leader without a majority of the store stays leader while every member answers it directly.",
    ),
    key("check_timeline", Kind::NoEffect("timelines are always compared"), "Taken from Patroni."),
    key(
        "primary_race_backoff",
        Kind::NoEffect("an election is decided by the store, so candidates do not race"),
        "Taken from Patroni.",
    ),
    key(
        "member_slots_ttl",
        Kind::Span { min: Duration::ZERO, max: YEAR, at: |s| &mut s.member_slots_ttl },
        "How long the slot of a member that is gone keeps WAL for it.",
    ),
    key(
        "pause",
        Kind::Switch { at: |s| &mut s.pause },
        "No automatic change: failover, restart and rejoin wait for an operator.",
    ),
    Key {
        name: "slots",
        aliases: &["permanent_slots", "permanent_replication_slots"],
        kind: Kind::Slots { at: |s| &mut s.slots },
        about: "Permanent replication slots: name to type (physical or logical), database and plugin. Logical ones need \
                the parameter wal_level: logical; from PostgreSQL 17 on they survive a failover, before that a new \
                leader makes them anew (docs/limits.md).",
    },
    key(
        "ignore_slots",
        Kind::Matchers { at: |s| &mut s.ignore_slots },
        "Slots that others manage: a list of name, type, database, plugin; what is given must match.",
    ),
    key(
        "standby_cluster",
        Kind::Refused(
            "is not supported yet: this cluster would lead instead of following another one; remove it, or keep \
             Patroni for this cluster",
        ),
        "A cluster that follows another one.",
    ),
    key(
        "postgresql.use_pg_rewind",
        Kind::Switch { at: |s| &mut s.postgresql.use_pg_rewind },
        "A deposed leader that diverged is rewound; off: it is cloned anew where the node file allows it.",
    ),
    key(
        "postgresql.use_slots",
        Kind::Switch { at: |s| &mut s.postgresql.use_slots },
        "Members keep the WAL they need with physical replication slots.",
    ),
    key(
        "postgresql.parameters",
        Kind::Parameters { at: |s| &mut s.postgresql.parameters },
        "Parameters of postgresql.conf on all members.",
    ),
    key(
        "postgresql.pg_hba",
        Kind::Lines { at: |s| &mut s.postgresql.pg_hba },
        "Lines of pg_hba.conf on all members; a node file's own lines take their place.",
    ),
    key(
        "postgresql.pg_ident",
        Kind::Lines { at: |s| &mut s.postgresql.pg_ident },
        "Lines of pg_ident.conf on all members; likewise.",
    ),
    key(
        "postgresql.recovery_conf",
        Kind::Parameters { at: |s| &mut s.postgresql.recovery_conf },
        "Recovery parameters of followers, as recovery_min_apply_delay.",
    ),
    key("postgresql.data_dir", Kind::Refused(LOCAL_ONLY), ""),
    key("postgresql.bin_dir", Kind::Refused(LOCAL_ONLY), ""),
    key("postgresql.config_dir", Kind::Refused(LOCAL_ONLY), ""),
    key("postgresql.listen", Kind::Refused(LOCAL_ONLY), ""),
    key("postgresql.connect_address", Kind::Refused(LOCAL_ONLY), ""),
    key("postgresql.authentication", Kind::Refused(LOCAL_ONLY), ""),
    key("postgresql.callbacks", Kind::Refused(LOCAL_ONLY), ""),
    key("postgresql.create_replica_methods", Kind::Refused(LOCAL_ONLY), ""),
    key("postgresql.basebackup", Kind::Refused(LOCAL_ONLY), ""),
    key("postgresql.pg_ctl_timeout", Kind::Refused(LOCAL_ONLY), ""),
    key("postgresql.remove_data_directory_on_rewind_failure", Kind::Refused(LOCAL_ONLY), ""),
    key("postgresql.remove_data_directory_on_diverged_timelines", Kind::Refused(LOCAL_ONLY), ""),
    key("postgresql.pre_promote", Kind::Refused(LOCAL_ONLY), ""),
    key("postgresql.before_stop", Kind::Refused(LOCAL_ONLY), ""),
    key("postgresql.allow_dynamic_commands", Kind::Refused(LOCAL_ONLY), ""),
    key("postgresql.custom_conf", Kind::Refused(LOCAL_ONLY), ""),
    key("name", Kind::Refused(LOCAL_ONLY), ""),
    key("scope", Kind::Refused(LOCAL_ONLY), ""),
    key("namespace", Kind::Refused(LOCAL_ONLY), ""),
    key("restapi", Kind::Refused(LOCAL_ONLY), ""),
    key("log", Kind::Refused(LOCAL_ONLY), ""),
    key("tags", Kind::Refused(LOCAL_ONLY), ""),
    key("watchdog", Kind::Refused(LOCAL_ONLY), ""),
];

/// Reads a document into settings that hold the defaults. Empty: all was well.
pub(super) fn apply(
    document: &Value,
    commands: DynamicCommands,
    settings: &mut Settings,
) -> Vec<SettingsError> {
    let mut reader = Reader { commands, settings, errors: Vec::new() };
    match document.as_object() {
        Some(map) => reader.section("", &KeyPath::default(), map),
        None => reader.errors.push(SettingsError::invalid(
            KeyPath::of(&["settings"]),
            document,
            "a map of settings",
        )),
    }
    reader.errors
}

/// The keys of a document that are taken and do nothing, each with the reason.
pub fn without_effect(document: &Value) -> Vec<(KeyPath, String)> {
    let top = document.as_object().into_iter().flatten();
    let mut found: Vec<(KeyPath, String)> = top
        .filter_map(|(name, _)| match find("", name)?.kind {
            Kind::NoEffect(reason) => Some((KeyPath::of(&[name]), reason.to_owned())),
            _ => None,
        })
        .collect();
    let parameters = document.pointer("/postgresql/parameters").and_then(Value::as_object);
    for name in parameters.into_iter().flat_map(Map::keys) {
        found.extend(gone_parameter(name).map(|instead| {
            let path = KeyPath::of(&["postgresql", "parameters", name]);
            (path, format!("PostgreSQL has it no more; {instead}"))
        }));
    }
    found
}

/// The setting with this name or alias in a section ("" or "postgresql.").
fn find(section: &str, name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| {
        key.name.strip_prefix(section) == Some(name) || section.is_empty() && key.aliases.contains(&name)
    })
}

struct Reader<'a> {
    commands: DynamicCommands,
    settings: &'a mut Settings,
    errors: Vec<SettingsError>,
}

impl Reader<'_> {
    fn section(&mut self, prefix: &str, path: &KeyPath, map: &Map<String, Value>) {
        for (name, value) in map {
            let path = path.join(name);
            // Null is how a merge deletes: the default holds.
            if value.is_null() {
                continue;
            }
            if prefix.is_empty() && name == "postgresql" {
                match value.as_object() {
                    Some(map) => self.section("postgresql.", &path, map),
                    None => self.invalid(&path, value, "a map"),
                }
                continue;
            }
            // A name with a dot at the top is not the way into a section.
            let known = find(prefix, name).filter(|_| !name.contains('.'));
            match known {
                Some(key) if key.name.strip_prefix(prefix) != Some(name) && map.contains_key(key.name) => {
                    self.refuse(
                        &path,
                        &format!("is another name of {}, which is set too; remove one of them", key.name),
                    );
                }
                Some(key) => self.value(&key.kind, &path, value),
                None => self.unknown(prefix, path, name),
            }
        }
    }

    fn unknown(&mut self, prefix: &str, path: KeyPath, name: &str) {
        let names =
            KEYS.iter().filter_map(|key| key.name.strip_prefix(prefix)).filter(|name| !name.contains('.'));
        let sections = prefix.is_empty().then_some("postgresql");
        let nearest = nearest(name, names.chain(sections)).map(|name| format!("{prefix}{name}"));
        self.errors.push(SettingsError::Unknown { path, nearest });
    }

    fn value(&mut self, kind: &Kind, path: &KeyPath, value: &Value) {
        match *kind {
            Kind::Span { min, max, at } => {
                match read::span(value).filter(|span| (min..=max).contains(span)) {
                    Some(span) => *at(self.settings) = span,
                    None => self.invalid(path, value, &kind.takes()),
                }
            }
            Kind::SpanOrNone { max, at } => match read::span(value).filter(|span| *span <= max) {
                Some(span) => *at(self.settings) = (!span.is_zero()).then_some(span),
                None => self.invalid(path, value, &kind.takes()),
            },
            Kind::Bytes { at } => match read::bytes(value).and_then(|bytes| u64::try_from(bytes).ok()) {
                Some(bytes) => *at(self.settings) = bytes,
                None => self.invalid(path, value, &kind.takes()),
            },
            Kind::BytesOrNone { at } => match read::bytes(value).filter(|bytes| *bytes >= -1) {
                Some(bytes) => *at(self.settings) = u64::try_from(bytes).ok(),
                None => self.invalid(path, value, &kind.takes()),
            },
            Kind::Count { min, max, at } => {
                let count = read::whole(value).and_then(|n| u32::try_from(n).ok());
                match count.filter(|n| (min..=max).contains(n)) {
                    Some(count) => *at(self.settings) = count,
                    None => self.invalid(path, value, &kind.takes()),
                }
            }
            Kind::Switch { at } => match read::switch(value) {
                Some(on) => *at(self.settings) = on,
                None => self.invalid(path, value, &kind.takes()),
            },
            Kind::Mode { at } => match read::sync_mode(value) {
                Some(mode) => *at(self.settings) = mode,
                None => self.invalid(path, value, &kind.takes()),
            },
            Kind::Slots { at } => self.slots(path, value, at),
            Kind::Matchers { at } => self.matchers(path, value, at),
            Kind::Parameters { at } => self.parameters(path, value, at),
            Kind::Lines { at } => self.lines(path, value, at),
            Kind::NoEffect(_) => {}
            Kind::Refused(reason) => self.refuse(path, reason),
        }
    }

    fn slots(
        &mut self,
        path: &KeyPath,
        value: &Value,
        at: fn(&mut Settings) -> &mut BTreeMap<String, PermanentSlot>,
    ) {
        let Some(map) = value.as_object() else { return self.invalid(path, value, "a map of slots by name") };
        for (name, value) in map {
            if let Some(slot) = read_slot(&path.join(name), name, value, &mut self.errors) {
                at(self.settings).insert(name.clone(), slot);
            }
        }
    }

    fn matchers(&mut self, path: &KeyPath, value: &Value, at: fn(&mut Settings) -> &mut Vec<SlotMatcher>) {
        let Some(list) = value.as_array() else { return self.invalid(path, value, "a list of maps") };
        for (index, value) in list.iter().enumerate() {
            if let Some(matcher) = read_matcher(&path.join(&index.to_string()), value, &mut self.errors) {
                at(self.settings).push(matcher);
            }
        }
    }

    fn parameters(
        &mut self,
        path: &KeyPath,
        value: &Value,
        at: fn(&mut Settings) -> &mut BTreeMap<String, String>,
    ) {
        let Some(map) = value.as_object() else { return self.invalid(path, value, "a map of parameters") };
        let wanted = |(name, value): &(&String, &Value)| !value.is_null() && gone_parameter(name).is_none();
        for (name, value) in map.iter().filter(wanted) {
            let path = path.join(name);
            let Some(text) = scalar_text(value) else {
                self.invalid(&path, value, "a number, a switch or a text of one line");
                continue;
            };
            match check_parameter(name, &text, Origin::Cluster(self.commands)) {
                Ok(()) => drop(at(self.settings).insert(name.to_ascii_lowercase(), text)),
                Err(reason) => self.refuse(&path, &reason),
            }
        }
    }

    fn lines(&mut self, path: &KeyPath, value: &Value, at: fn(&mut Settings) -> &mut Vec<String>) {
        let Some(list) = value.as_array() else { return self.invalid(path, value, "a list of lines") };
        for (index, value) in list.iter().enumerate() {
            match value.as_str().filter(|line| check_hba_line(line)) {
                Some(line) => at(self.settings).push(line.to_owned()),
                None => self.invalid(&path.join(&index.to_string()), value, "a text of one line"),
            }
        }
    }

    fn invalid(&mut self, path: &KeyPath, value: &Value, expected: &str) {
        self.errors.push(SettingsError::invalid(path.clone(), value, expected));
    }

    fn refuse(&mut self, path: &KeyPath, reason: &str) {
        self.errors.push(SettingsError::refused(path.clone(), reason.to_owned()));
    }
}

impl Kind {
    /// What the setting takes, as the noun of an error and of the reference page.
    pub fn takes(&self) -> String {
        match self {
            Self::Span { min, .. } if min.is_zero() => "a duration like 10s".to_owned(),
            Self::Span { min, .. } => format!("a duration of at least {min:?}, like 10s"),
            Self::SpanOrNone { .. } => "a duration like 10s, or 0".to_owned(),
            Self::Bytes { .. } => "a size like 1MB".to_owned(),
            Self::BytesOrNone { .. } => "a size like 1MB, or -1".to_owned(),
            Self::Count { min, max, .. } => format!("a whole number from {min} to {max}"),
            Self::Switch { .. } => "true or false".to_owned(),
            Self::Mode { .. } => "off, on or quorum".to_owned(),
            Self::Slots { .. } => "a map of slots by name".to_owned(),
            Self::Matchers { .. } => "a list of maps".to_owned(),
            Self::Parameters { .. } => "a map of parameters".to_owned(),
            Self::Lines { .. } => "a list of lines".to_owned(),
            Self::NoEffect(_) => "anything".to_owned(),
            Self::Refused(_) => "nothing".to_owned(),
        }
    }
}
