//! Who may log in to the router, and what passwords are checked against: `auth_…` and `hba`.

use std::collections::HashMap;
use std::path::Path;

use antiphon_router::rules::{Method, Rules};
use antiphon_router::secrets::Secret;

use super::RouterAccount;
use crate::config::section::Section;

/// Asks for the verifier of a user who may log in now.
const AUTH_QUERY: &str = "SELECT rolname, rolpassword FROM pg_catalog.pg_authid \
                          WHERE rolname = $1 AND rolcanlogin AND (rolvaliduntil IS NULL OR rolvaliduntil > now())";

/// How clients prove who they are.
#[derive(Clone, Debug)]
pub struct RouterAuthentication {
    /// What is asked of whom (`hba`, `auth_hba_file`, or `auth_type` for all).
    pub rules: Rules,
    /// What passwords are checked against.
    pub secrets: RouterSecrets,
}

/// What passwords are checked against.
#[derive(Clone, Debug)]
pub enum RouterSecrets {
    /// Nobody is asked for one.
    Nothing,
    /// The leader is asked what it keeps, with the router's own account, by this query.
    Query(String),
    /// What a file has.
    Users(HashMap<String, Secret>),
}

pub(super) fn account(section: &Section<'_>) -> Option<RouterAccount> {
    let user = section.text("auth_user");
    let password = section.secret("auth_password");
    let database = section.text("auth_dbname").unwrap_or_else(|| "postgres".to_owned());
    user.map(|user| RouterAccount { user, password, database })
}

/// `more`: the router's account is for more than to ask for passwords.
pub(super) fn authentication(
    section: &Section<'_>,
    has_account: bool,
    more: bool,
) -> Option<RouterAuthentication> {
    let rules = rules(section);
    let file = section.path("auth_file");
    let query = section.text("auth_query").unwrap_or_else(|| AUTH_QUERY.to_owned());
    let rules = rules?;
    if rules.trust_anybody() {
        let name = if section.has("auth_type") { "auth_type" } else { "hba" };
        section.warning(
            name,
            "has trust: whom that is for is let in as any user that the server does not ask for a password",
        );
    }
    let secrets = match (rules.ask_passwords(), file, has_account) {
        (false, _, _) => RouterSecrets::Nothing,
        (true, Some(_), true) if !more => {
            section.problem("auth_file", "is given beside auth_user; keep one of them");
            return None;
        }
        (true, Some(file), _) => RouterSecrets::Users(users(section, &file)?),
        (true, None, true) => RouterSecrets::Query(query),
        (true, None, false) => {
            section.problem(
                "auth_user",
                "is missing: the account with which the router asks for its users' verifiers; or give auth_file",
            );
            return None;
        }
    };
    Some(RouterAuthentication { rules, secrets })
}

/// The rules that stand here or in a file; else one for all.
fn rules(section: &Section<'_>) -> Option<Rules> {
    const BY_RULES: Option<Method> = None;
    let types = [
        ("scram-sha-256", Some(Method::Scram)),
        ("md5", Some(Method::Md5)),
        ("cert", Some(Method::Cert)),
        ("trust", Some(Method::Trust)),
        ("hba", BY_RULES),
    ];
    let kind = section.choice("auth_type", &types);
    let (here, file) = (section.texts("hba", false), section.path("auth_hba_file"));
    if section.has("hba") && file.is_some() {
        section.problem("hba", "is given beside auth_hba_file; keep one of them");
    }
    if !section.has("hba") && file.is_none() {
        if kind == Some(BY_RULES) {
            section.problem("auth_type", "is hba, which needs rules: give them in hba or in auth_hba_file");
            return None;
        }
        return Some(Rules::one(kind.flatten().unwrap_or(Method::Scram)));
    }
    if kind.flatten().is_some() {
        section
            .problem("auth_type", "is given beside rules, which say how themselves; remove it, or say hba");
    }
    let (name, read) = match &file {
        None => ("hba", Rules::parse(here.iter().map(String::as_str))),
        Some(file) => match std::fs::read_to_string(file) {
            Ok(text) => ("auth_hba_file", Rules::parse(text.lines())),
            Err(error) => {
                section.problem("auth_hba_file", format!("{} could not be read: {error}", file.display()));
                return None;
            }
        },
    };
    match read {
        Ok(rules) => Some(rules),
        Err(wrong) => {
            for (number, why) in wrong {
                let of = file.as_ref().map(|file| format!(" of {}", file.display()));
                section.problem(name, format!("line {number}{} {why}", of.unwrap_or_default()));
            }
            None
        }
    }
}

/// Reads a userlist as PgBouncer has it: a line a user, `"name" "SCRAM-SHA-256$…"` or `"name" "md5…"`.
fn users(section: &Section<'_>, file: &Path) -> Option<HashMap<String, Secret>> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => {
            section.problem("auth_file", format!("{} could not be read: {error}", file.display()));
            return None;
        }
    };
    let mut users = HashMap::new();
    let mut sound = true;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with(';') {
            continue;
        }
        let pair = quoted(line).and_then(|(name, rest)| Some((name, quoted(rest.trim_start())?.0)));
        match pair.map(|(name, secret)| (name, Secret::parse(&secret))) {
            Some((name, Ok(verifier))) => drop(users.insert(name, verifier)),
            // The line is not repeated: it may hold a password.
            Some((_, Err(error))) => {
                sound = false;
                section.problem("auth_file", format!("line {number} of {}: {error}", file.display()));
            }
            None => {
                sound = false;
                let form = "is not of the form \"user\" \"SCRAM-SHA-256$...\"";
                section.problem("auth_file", format!("line {number} of {} {form}", file.display()));
            }
        }
    }
    sound.then_some(users)
}

/// A text in double quotes, in which a doubled quote is one, and what follows.
fn quoted(line: &str) -> Option<(String, &str)> {
    let mut rest = line.strip_prefix('"')?;
    let mut text = String::new();
    loop {
        let (part, after) = rest.split_once('"')?;
        text.push_str(part);
        match after.strip_prefix('"') {
            Some(more) => {
                text.push('"');
                rest = more;
            }
            None => return Some((text, after)),
        }
    }
}
