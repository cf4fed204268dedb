//! What has to be so before a database can take part, each with what to do about it.

use std::fmt;

use tokio_postgres::Client;

use super::SetupError;
use crate::name::TableName;

/// What a role that is no superuser has to be allowed, to write as somebody else wrote.
const ORIGINS: [&str; 6] = [
    "pg_replication_origin_create(text)",
    "pg_replication_origin_drop(text)",
    "pg_replication_origin_session_setup(text)",
    "pg_replication_origin_session_reset()",
    "pg_replication_origin_session_is_setup()",
    "pg_replication_origin_xact_setup(pg_lsn, timestamptz)",
];

/// Something that has to be put right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.what, self.remedy)
    }
}

pub(super) fn finding(what: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { what: what.into(), remedy: remedy.into() }
}

/// Looks at a server and these tables of it. Nothing found: they can take part.
///
/// # Errors
/// If the server cannot be asked.
pub async fn check(client: &Client, tables: &[TableName]) -> Result<Vec<Finding>, SetupError> {
    let mut findings = server(client).await?;
    for table in tables {
        findings.extend(of_table(client, table).await?);
    }
    Ok(findings)
}

async fn server(client: &Client) -> Result<Vec<Finding>, SetupError> {
    let mut findings = Vec::new();
    let row = "SELECT pg_catalog.current_setting('server_version_num')::int, pg_catalog.current_setting('wal_level'), \
               pg_catalog.current_setting('track_commit_timestamp'), pg_catalog.pg_is_in_recovery(), \
               pg_catalog.current_setting('max_replication_slots')::bigint \
                   - (SELECT count(*) FROM pg_catalog.pg_replication_slots), \
               pg_catalog.current_setting('server_encoding')";
    let row = client.query_one(row, &[]).await?;
    let (version, level, tracks, standby): (i32, String, String, bool) =
        (row.get(0), row.get(1), row.get(2), row.get(3));
    let (slots, encoding): (i64, String) = (row.get(4), row.get(5));
    if version < 140_000 {
        findings.push(finding(
            format!("the server is PostgreSQL {}", version / 10_000),
            "upgrade it to 14 or newer",
        ));
    }
    if standby {
        findings.push(finding(
            "the server is a standby",
            "name the primary, or all with target_session_attrs=read-write",
        ));
    }
    if level != "logical" {
        findings
            .push(finding(format!("wal_level is {level}"), "set wal_level = logical and restart the server"));
    }
    if tracks != "on" {
        findings.push(finding("track_commit_timestamp is off", "set it to on and restart the server"));
    }
    if slots < 1 {
        findings.push(finding(
            "no replication slot is free",
            "raise max_replication_slots and restart the server",
        ));
    }
    if encoding != "UTF8" {
        findings.push(finding(
            format!("the database's encoding is {encoding}"),
            "use a database with encoding UTF8",
        ));
    }
    findings.extend(rights(client, version).await?);
    Ok(findings)
}

/// What the role lacks, each with the statement that a superuser gives it by.
async fn rights(client: &Client, version: i32) -> Result<Vec<Finding>, SetupError> {
    let functions = "SELECT count(*) FILTER (WHERE NOT pg_catalog.has_function_privilege(f::regprocedure, 'EXECUTE')) > 0, \
        pg_catalog.quote_ident(current_user), pg_catalog.quote_ident(pg_catalog.current_database()), \
        (SELECT rolsuper OR rolreplication FROM pg_catalog.pg_roles WHERE rolname = current_user), \
        (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user), \
        pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE') \
        FROM pg_catalog.unnest($1::text[]) f";
    let names: Vec<String> = ORIGINS.iter().map(|name| format!("pg_catalog.{name}")).collect();
    let row = client.query_one(functions, &[&names]).await?;
    let (origins, role, database): (bool, String, String) = (row.get(0), row.get(1), row.get(2));
    let (replicates, is_super, creates): (bool, bool, bool) = (row.get(3), row.get(4), row.get(5));
    let mut findings = Vec::new();
    if origins {
        let what = "this role may not use replication origins";
        let grant = format!("as superuser: GRANT EXECUTE ON FUNCTION {} TO {role}", ORIGINS.join(", "));
        findings.push(finding(what, grant));
    }
    if !replicates {
        let what = "this role may not read the log";
        findings.push(finding(what, format!("as superuser: ALTER ROLE {role} REPLICATION")));
    }
    if !creates {
        let what = "this role may not make the schema antiphon and a publication";
        findings.push(finding(what, format!("as superuser: GRANT CREATE ON DATABASE {database} TO {role}")));
    }
    if is_super {
        return Ok(findings);
    }
    if version < 150_000 {
        let what = "this role may not set session_replication_role, which PostgreSQL 14 grants to nobody";
        findings.push(finding(what, "be a superuser there, or upgrade to 15"));
        return Ok(findings);
    }
    let parameter = "SELECT pg_catalog.has_parameter_privilege('session_replication_role', 'SET')";
    if !client.query_one(parameter, &[]).await?.get::<_, bool>(0) {
        let what = "this role may not set session_replication_role";
        let grant = format!("as superuser: GRANT SET ON PARAMETER session_replication_role TO {role}");
        findings.push(finding(what, grant));
    }
    Ok(findings)
}

async fn of_table(client: &Client, table: &TableName) -> Result<Vec<Finding>, SetupError> {
    let name = table.to_string();
    let row = "SELECT c.relkind::text, c.relpersistence::text, \
               EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary), \
               (SELECT pg_catalog.count(*) FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary \
                    AND NOT i.indimmediate), \
               pg_catalog.pg_has_role(c.relowner, 'USAGE') \
               FROM pg_catalog.pg_class c WHERE c.oid = pg_catalog.to_regclass($1::text)";
    let Some(row) = client.query_opt(row, &[&name]).await? else {
        return Ok(vec![finding(
            format!("there is no table {name} here"),
            "create it as it is on the other nodes",
        )]);
    };
    let (kind, persistence, has_key, deferrable, owner): (String, String, bool, i64, bool) =
        (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4));
    let mut findings = Vec::new();
    if kind != "r" {
        findings
            .push(finding(format!("{name} is no ordinary table"), "leave it out, or name its partitions"));
    }
    if persistence != "p" {
        findings.push(finding(
            format!("{name} is not logged"),
            format!("ALTER TABLE {name} SET LOGGED, or leave it out"),
        ));
    }
    if !has_key {
        findings.push(finding(
            format!("{name} has no primary key"),
            format!("ALTER TABLE {name} ADD PRIMARY KEY (...)"),
        ));
    }
    if deferrable > 0 {
        findings.push(finding(
            format!("the primary key of {name} is deferrable"),
            "make it NOT DEFERRABLE: ON CONFLICT cannot use it",
        ));
    }
    if !owner {
        findings.push(finding(
            format!("{name} belongs to another role"),
            "run this as its owner or as a superuser",
        ));
    }
    Ok(findings)
}
