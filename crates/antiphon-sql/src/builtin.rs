//! PostgreSQL's own functions and views, where what their catalogue says is not what we need to know.
//!
//! Some volatile ones are harmless: a follower answers as well as the leader. Some that are declared stable are
//! not: they tell about the server, or fail in recovery. What begins with `pg_` is refused unless it is listed,
//! so that what a future version adds is refused until somebody has looked at it.

use crate::why::Why;

/// Volatile, and yet a follower's answer is as good as the leader's.
const HARMLESS: [&str; 15] = [
    "array_sample",
    "array_shuffle",
    "bernoulli",
    "clock_timestamp",
    "gen_random_uuid",
    "pg_sleep",
    "pg_sleep_for",
    "pg_sleep_until",
    "random",
    "random_normal",
    "system",
    "timeofday",
    // One of its overloads, in PostgreSQL 14 only, by mistake.
    "timezone",
    "uuidv4",
    "uuidv7",
];

/// The same, of extensions.
const HARMLESS_OF_EXTENSIONS: [(&str, &str); 6] = [
    ("pgcrypto", "gen_random_bytes"),
    ("pgcrypto", "gen_random_uuid"),
    ("pgcrypto", "gen_salt"),
    ("uuid-ossp", "uuid_generate_v1"),
    ("uuid-ossp", "uuid_generate_v1mc"),
    ("uuid-ossp", "uuid_generate_v4"),
];

/// What begins with `pg_` and tells about data and catalogues alone.
const OF_THE_DATA: [&str; 46] = [
    "pg_basetype",
    "pg_char_to_encoding",
    "pg_client_encoding",
    "pg_collation_for",
    "pg_column_compression",
    "pg_column_is_updatable",
    "pg_column_size",
    "pg_column_toast_chunk_id",
    "pg_describe_object",
    "pg_encoding_max_length",
    "pg_encoding_to_char",
    "pg_get_catalog_foreign_keys",
    "pg_get_constraintdef",
    "pg_get_expr",
    "pg_get_function_arg_default",
    "pg_get_function_arguments",
    "pg_get_function_identity_arguments",
    "pg_get_function_result",
    "pg_get_function_sqlbody",
    "pg_get_functiondef",
    "pg_get_indexdef",
    "pg_get_keywords",
    "pg_get_object_address",
    "pg_get_partition_constraintdef",
    "pg_get_partkeydef",
    "pg_get_ruledef",
    "pg_get_serial_sequence",
    "pg_get_statisticsobjdef",
    "pg_get_statisticsobjdef_columns",
    "pg_get_statisticsobjdef_expressions",
    "pg_get_triggerdef",
    "pg_get_userbyid",
    "pg_get_viewdef",
    "pg_has_role",
    "pg_identify_object",
    "pg_identify_object_as_address",
    "pg_index_column_has_property",
    "pg_index_has_property",
    "pg_indexam_has_property",
    "pg_options_to_table",
    "pg_partition_ancestors",
    "pg_partition_root",
    "pg_partition_tree",
    "pg_relation_is_updatable",
    "pg_size_bytes",
    "pg_size_pretty",
];

/// Declared stable or immutable, and of the server or the session all the same.
const OF_THE_SERVER: [&str; 9] = [
    "icu_unicode_version",
    "inet_client_addr",
    "inet_client_port",
    "inet_server_addr",
    "inet_server_port",
    "mxid_age",
    "system_user",
    "unicode_version",
    "version",
];

/// Stable, and they read whatever a text or an object's name says.
const READ_ANYTHING: [&str; 9] = [
    "database_to_xml",
    "database_to_xml_and_xmlschema",
    "database_to_xmlschema",
    "schema_to_xml",
    "schema_to_xml_and_xmlschema",
    "schema_to_xmlschema",
    "table_to_xml",
    "table_to_xml_and_xmlschema",
    "table_to_xmlschema",
];

/// System views that show replicated catalogues and nothing else.
const VIEWS: [&str; 16] = [
    "pg_group",
    "pg_indexes",
    "pg_matviews",
    "pg_policies",
    "pg_publication_tables",
    "pg_roles",
    "pg_rules",
    "pg_seclabels",
    "pg_shadow",
    "pg_stats",
    "pg_stats_ext",
    "pg_stats_ext_exprs",
    "pg_tables",
    "pg_user",
    "pg_user_mappings",
    "pg_views",
];

/// What is wrong with a function of `pg_catalog`, all of its name taken together.
pub(crate) fn function(name: &str, volatile: bool) -> Option<Why> {
    if HARMLESS.contains(&name) {
        return None;
    }
    let starts = |prefix: &str| name.starts_with(prefix);
    let is = |names: &[&str]| names.contains(&name);
    if is(&["nextval", "currval", "lastval", "setval", "pg_sequence_last_value", "pg_get_sequence_data"]) {
        Some(Why::Sequence)
    } else if starts("pg_advisory_") || starts("pg_try_advisory_") {
        Some(Why::AdvisoryLock)
    } else if starts("lo_") || is(&["loread", "lowrite"]) {
        Some(Why::LargeObject)
    } else if is(&["current_setting", "set_config", "setseed"]) {
        Some(Why::SessionSetting)
    } else if is(&OF_THE_SERVER) || starts("txid_") || starts("pg_stat_") {
        Some(Why::ServerState)
    } else if volatile || is(&READ_ANYTHING) {
        Some(Why::Volatile)
    } else if starts("pg_") && !is(&OF_THE_DATA) && !is_of_data_by_pattern(name) {
        Some(Why::ServerState)
    } else {
        None
    }
}

/// Families of small functions behind operators, types and casts.
fn is_of_data_by_pattern(name: &str) -> bool {
    let families =
        ["pg_lsn", "pg_snapshot_", "pg_ndistinct_", "pg_dependencies_", "pg_mcv_list_", "pg_node_tree_"];
    name == "pg_typeof"
        || name.starts_with("pg_input_")
        || name.ends_with("_is_visible")
        || families.iter().any(|family| name.starts_with(family))
}

/// Whether a volatile function of this extension is harmless.
pub(crate) fn of_extension(extension: &str, name: &str) -> bool {
    HARMLESS_OF_EXTENSIONS.contains(&(extension, name))
}

/// What is wrong with a view of `pg_catalog`.
pub(crate) fn view(name: &str) -> Option<Why> {
    (!VIEWS.contains(&name)).then_some(Why::ServerView)
}

/// What is wrong with a table of `pg_catalog`: they are replicated as all tables are.
pub(crate) fn table(name: &str) -> Option<Why> {
    name.starts_with("pg_largeobject").then_some(Why::LargeObject)
}
