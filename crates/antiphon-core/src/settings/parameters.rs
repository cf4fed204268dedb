//! Parameters of PostgreSQL: which ones Antiphon sets itself, which ones must be equal everywhere, and which
//! ones are a way to run a program as the database's user.
//!
//! Whoever may write to the cluster's store may write the settings document. A document that can set
//! `archive_command` therefore turns write access to the store into a shell on every node; that power is
//! given by the node's own file or not at all.

use serde_json::Value;

use super::DynamicCommands;
use super::error::shown;

/// Where a parameter was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In the cluster's settings document.
    Cluster(DynamicCommands),
    /// In the node's own file.
    NodeFile,
}

/// Parameters that run a program or load a library. Besides these, every name that ends in `_command`.
const DANGEROUS: [&str; 13] = [
    "archive_library",
    "dynamic_library_path",
    "extension_control_path",
    "jit_provider",
    "local_preload_libraries",
    "oauth_validator_libraries",
    "plperl.on_init",
    "plperl.on_plperl_init",
    "plperl.on_plperlu_init",
    "pltcl.start_proc",
    "pltclu.start_proc",
    "session_preload_libraries",
    "shared_preload_libraries",
];

/// Parameters that Antiphon writes itself, and the setting that governs each.
const CONTROLLED: [(&str, &str); 14] = [
    ("cluster_name", "it is the scope"),
    ("config_file", "set postgresql.config_dir in the node file"),
    ("data_directory", "set postgresql.data_dir in the node file"),
    ("hba_file", "set postgresql.pg_hba"),
    ("ident_file", "set postgresql.pg_ident"),
    ("listen_addresses", "set postgresql.listen in the node file"),
    ("port", "set postgresql.listen in the node file"),
    ("primary_conninfo", "it follows the leader"),
    ("primary_slot_name", "it follows the member's name; see postgresql.use_slots"),
    ("promote_trigger_file", "promotions are decided by the cluster"),
    ("restart_after_crash", "a crash is answered by primary_start_timeout"),
    ("sync_replication_slots", "slots are kept on followers by the setting slots"),
    ("synchronous_standby_names", "set synchronous_mode and synchronous_node_count"),
    ("synchronized_standby_slots", "it follows the sync set"),
];

/// Parameters that have few sound values here, and those values.
const FIXED: [(&str, &[&str], &str); 4] = [
    ("full_page_writes", &["on", "true", "yes", "1"], "on, as pg_rewind needs it"),
    ("hot_standby", &["on", "true", "yes", "1"], "on, as followers are asked for their position"),
    ("wal_level", &["replica", "hot_standby", "logical"], "replica or logical"),
    ("wal_log_hints", &["on", "true", "yes", "1"], "on, as pg_rewind needs it"),
];

/// Parameters that must be equal on all members, because a follower with less than its leader stops, and
/// the least that works. They count in the cluster's settings only.
const CLUSTER_WIDE: [(&str, i64); 8] = [
    ("max_connections", 25),
    ("max_locks_per_transaction", 32),
    ("max_prepared_transactions", 0),
    ("max_replication_slots", 4),
    ("max_wal_senders", 3),
    ("max_worker_processes", 2),
    ("track_commit_timestamp", i64::MIN),
    ("wal_level", i64::MIN),
];

/// Parameters that no supported version of PostgreSQL knows, and what took their place. Old files still have
/// them; a server would refuse to start with one, so they are left out.
const GONE: [(&str, &str); 4] = [
    ("checkpoint_segments", "use max_wal_size"),
    ("operator_precedence_warning", "remove it"),
    ("vacuum_cleanup_index_scale_factor", "remove it"),
    ("wal_keep_segments", "use wal_keep_size"),
];

/// Longest value of a parameter, in bytes.
const VALUE_BYTES_MAX: usize = 16 * 1024;

/// Whether a parameter runs a program or loads a library, so that the cluster's document may hold it only
/// where the node file opts in.
pub fn needs_opt_in(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.ends_with("_command") || DANGEROUS.contains(&name.as_str())
}

/// Whether a parameter counts only in the cluster's settings; in a node file it has no effect.
pub fn works_only_cluster_wide(name: &str) -> bool {
    CLUSTER_WIDE.iter().any(|(known, _)| name.eq_ignore_ascii_case(known))
}

/// For a parameter that no supported version of PostgreSQL knows: what to do instead.
pub fn gone_parameter(name: &str) -> Option<&'static str> {
    GONE.iter().find(|(known, _)| name.eq_ignore_ascii_case(known)).map(|(_, instead)| *instead)
}

/// A parameter's value as postgresql.conf takes it, without quotes; none if it is a map, a list, null, too
/// long, or has a line feed or another control character in it.
pub fn scalar_text(value: &Value) -> Option<String> {
    let text = match value {
        Value::Bool(true) => "on".to_owned(),
        Value::Bool(false) => "off".to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Null | Value::Array(_) | Value::Object(_) => return None,
    };
    (text.len() <= VALUE_BYTES_MAX && !text.contains(|c: char| c.is_control() && c != '\t')).then_some(text)
}

/// Whether a parameter may be set there, to that value.
///
/// # Errors
/// A sentence that follows the parameter's name: why not, and what to do instead.
pub fn check_parameter(name: &str, text: &str, origin: Origin) -> Result<(), String> {
    let key = name.to_ascii_lowercase();
    let starts_well = key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'$');
    if !starts_well || !key.bytes().all(allowed) {
        return Err("is not the name of a parameter: use letters, digits, '_' and '.'".to_owned());
    }
    if let Some((_, values, expected)) = FIXED.iter().find(|(known, ..)| *known == key) {
        let sound = values.iter().any(|value| text.eq_ignore_ascii_case(value));
        return if sound {
            Ok(())
        } else {
            Err(format!("is {:?} and must be {expected}; remove it", shown(text)))
        };
    }
    if let Some((_, instead)) = CONTROLLED.iter().find(|(known, _)| *known == key) {
        return Err(format!("is controlled by antiphon and cannot be set: {instead}"));
    }
    if key.starts_with("recovery_target") {
        return Err(
            "would stop a follower in the middle of the WAL; restore to a point in time outside of a \
                    running cluster"
                .to_owned(),
        );
    }
    if origin == Origin::Cluster(DynamicCommands::Refused) && needs_opt_in(&key) {
        return Err(
            "runs a program or loads a library on every node, so the cluster's settings may not hold it; \
                    set it under postgresql.parameters of each node file, or set \
                    postgresql.allow_dynamic_commands: true there"
                .to_owned(),
        );
    }
    match CLUSTER_WIDE.iter().find(|(known, _)| *known == key) {
        Some((_, least)) if *least > i64::MIN => match text.trim().parse::<i64>() {
            Ok(number) if number >= *least => Ok(()),
            _ => Err(format!("is {:?} and must be a whole number of at least {least}", shown(text))),
        },
        _ => Ok(()),
    }
}

/// Whether a text is one line of pg_hba.conf or pg_ident.conf. What the line says is PostgreSQL's to judge.
pub fn check_hba_line(line: &str) -> bool {
    line.len() <= VALUE_BYTES_MAX && !line.contains(|c: char| c.is_control() && c != '\t')
}

/// The part of the reference page about parameters.
pub(super) fn section() -> String {
    let list = |names: Vec<String>| format!("`{}`", names.join("`, `"));
    let controlled: Vec<String> =
        CONTROLLED.iter().map(|(name, instead)| format!("- `{name}`: {instead}")).collect();
    let fixed: Vec<String> =
        FIXED.iter().map(|(name, _, expected)| format!("- `{name}`: {expected}")).collect();
    let dangerous = list(DANGEROUS.iter().map(|name| (*name).to_owned()).collect());
    let cluster_wide = list(CLUSTER_WIDE.iter().map(|(name, _)| (*name).to_owned()).collect());
    format!(
        "\n## PostgreSQL parameters\n\n\
         Set by antiphon, refused here and in a node file (`recovery_target*` too):\n\n{}\n\n\
         Taken with these values only:\n\n{}\n\n\
         Equal on all members, so they count here and not in a node file:\n{cluster_wide}.\n\n\
         Refused here unless each node file has `postgresql.allow_dynamic_commands: true`, because they run a\n\
         program or load a library on every node: all names that end in `_command`, and\n{dangerous}.\n",
        controlled.join("\n"),
        fixed.join("\n"),
    )
}
