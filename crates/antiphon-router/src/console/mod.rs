//! The console: the databases `antiphon` and `pgbouncer` of the router itself, with PgBouncer's commands.
//!
//! Pure: what a text asks for (`parse`), who may ask it, and what the answer looks like (`tables`). The worker
//! collects what is shown (`orders`) and carries out the rest.

mod tables;

use crate::wire::messages::{self, Complaint};
use crate::wire::rows::{self, Kind};

pub use tables::{Facts, table};

/// The databases of the console.
pub const DATABASES: [&str; 2] = ["antiphon", "pgbouncer"];

/// What somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Nothing; drivers ask that to see whether somebody is there.
    Nothing,
    /// To be shown something.
    Show(Show),
    /// Sessions of this database, or of all, shall wait; answered when none has a link.
    Pause(Option<String>),
    /// They go on.
    Resume(Option<String>),
    /// New clients of this database are turned away.
    Disable(String),
    /// They are let in again.
    Enable(String),
    /// Links to this database, or all, are made anew, each when it is not used.
    Reconnect(Option<String>),
    /// All clients and links of this database, or of all, are closed, and it is paused.
    Kill(Option<String>),
    /// This client is closed.
    KillClient(u64),
    /// The file is read again.
    Reload,
}

/// What can be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// Clients.
    Clients,
    /// Settings.
    Config,
    /// Databases.
    Databases,
    /// Followers that reads go to.
    Followers,
    /// What can be asked.
    Help,
    /// How many there are of each kind of thing.
    Lists,
    /// Pools: a user and a database.
    Pools,
    /// Where statements went, by reason.
    Routes,
    /// Links.
    Servers,
    /// Whether all is paused.
    State,
    /// Counts by database, and averages.
    Stats,
    /// Averages by database.
    StatsAverages,
    /// Counts by database.
    StatsTotals,
    /// Counts of all databases, a row each.
    Totals,
    /// Users.
    Users,
    /// The version.
    Version,
}

/// All that can be shown, by name.
const SHOWS: [(&str, Show); 16] = [
    ("CLIENTS", Show::Clients),
    ("CONFIG", Show::Config),
    ("DATABASES", Show::Databases),
    ("FOLLOWERS", Show::Followers),
    ("HELP", Show::Help),
    ("LISTS", Show::Lists),
    ("POOLS", Show::Pools),
    ("ROUTES", Show::Routes),
    ("SERVERS", Show::Servers),
    ("STATE", Show::State),
    ("STATS", Show::Stats),
    ("STATS_AVERAGES", Show::StatsAverages),
    ("STATS_TOTALS", Show::StatsTotals),
    ("TOTALS", Show::Totals),
    ("USERS", Show::Users),
    ("VERSION", Show::Version),
];

/// Commands of PgBouncer that there are not here, and what to do instead.
const ELSEWHERE: [(&str, &str); 4] = [
    ("SHUTDOWN", "end the process by SIGTERM"),
    ("SUSPEND", "use PAUSE"),
    ("WAIT_CLOSE", "use RECONNECT"),
    ("SET", "settings are in the file; change it there, and RELOAD"),
];

impl Command {
    /// Whether it changes nothing.
    pub fn only_looks(&self) -> bool {
        matches!(self, Self::Nothing | Self::Show(_))
    }

    /// What its CommandComplete says.
    pub fn tag(&self) -> &'static str {
        match self {
            Self::Nothing => "",
            Self::Show(_) => "SHOW",
            Self::Pause(_) => "PAUSE",
            Self::Resume(_) => "RESUME",
            Self::Disable(_) => "DISABLE",
            Self::Enable(_) => "ENABLE",
            Self::Reconnect(_) => "RECONNECT",
            Self::Kill(_) => "KILL",
            Self::KillClient(_) => "KILL_CLIENT",
            Self::Reload => "RELOAD",
        }
    }
}

/// Reads what somebody typed.
///
/// # Errors
/// What the client is told.
pub fn parse(sql: &[u8]) -> Result<Command, Complaint> {
    let not_text = |_| Complaint::error("22021", "a command of the console must be UTF-8");
    let text = std::str::from_utf8(sql).map_err(not_text)?.trim().trim_end_matches(';').trim();
    let (verb, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let verb = verb.to_ascii_uppercase();
    if let Some((_, instead)) = ELSEWHERE.iter().find(|(name, _)| *name == verb) {
        return Err(Complaint::error("0A000", format!("{verb} is not supported: {instead}")));
    }
    let command = match verb.as_str() {
        "" => Command::Nothing,
        "SHOW" => Command::Show(show(rest.trim())?),
        "PAUSE" => Command::Pause(name(rest)?),
        "RESUME" => Command::Resume(name(rest)?),
        "DISABLE" => Command::Disable(named(rest)?),
        "ENABLE" => Command::Enable(named(rest)?),
        "RECONNECT" => Command::Reconnect(name(rest)?),
        "KILL" => Command::Kill(name(rest)?),
        "RELOAD" if rest.trim().is_empty() => Command::Reload,
        "KILL_CLIENT" => Command::KillClient(number(rest.trim())?),
        _ => return Err(Complaint::error("42601", "no such command; SHOW HELP lists them")),
    };
    Ok(command)
}

fn show(what: &str) -> Result<Show, Complaint> {
    let known = SHOWS.iter().find(|(name, _)| name.eq_ignore_ascii_case(what));
    let unknown = || Complaint::error("42704", "there is no such thing to show; SHOW HELP lists what is");
    known.map(|(_, show)| *show).ok_or_else(unknown)
}

/// The name of a database, bare or in double quotes; none if nothing is there.
fn name(text: &str) -> Result<Option<String>, Complaint> {
    let text = text.trim();
    let odd = |c: char| c.is_whitespace() || c == '"' || c == '\'';
    let name = match text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        // A doubled quote is one; another one would end the name.
        Some(inner) if !inner.replace("\"\"", "").contains('"') => inner.replace("\"\"", "\""),
        None if text.is_empty() => return Ok(None),
        None if !text.contains(odd) => text.to_owned(),
        Some(_) | None => String::new(),
    };
    if name.is_empty() {
        let message = "the name of a database is expected, in double quotes if it is not plain";
        return Err(Complaint::error("42601", message));
    }
    if DATABASES.contains(&name.as_str()) {
        return Err(Complaint::error("42809", format!("{name} is the console itself")));
    }
    Ok(Some(name))
}

fn named(text: &str) -> Result<String, Complaint> {
    name(text)?.ok_or_else(|| Complaint::error("42601", "a database is required"))
}

fn number(text: &str) -> Result<u64, Complaint> {
    let wrong = |_| Complaint::error("22023", "the id of a client is expected, as SHOW CLIENTS has it");
    text.parse().map_err(wrong)
}

/// Appends the notice that answers SHOW HELP.
pub fn help(out: &mut Vec<u8>) {
    let shows: Vec<&str> = SHOWS.iter().map(|(name, _)| *name).collect();
    let detail = format!(
        "\n\tSHOW {}\n\tPAUSE [<db>]\n\tRESUME [<db>]\n\tDISABLE <db>\n\tENABLE <db>\n\tRECONNECT [<db>]\n\tKILL [<db>]\n\tKILL_CLIENT <id>\n\tRELOAD",
        shows.join("|")
    );
    messages::notice(out, "Console usage", Some(&detail));
}

/// A result: its columns, and its rows as texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Names and types.
    pub columns: Vec<(&'static str, Kind)>,
    /// A text for each column; none is NULL.
    pub rows: Vec<Vec<Option<String>>>,
}

impl Table {
    /// Appends it as the answer to a query.
    pub fn write(&self, out: &mut Vec<u8>) {
        rows::describe(&self.columns, out);
        for row in &self.rows {
            rows::row(row.iter().map(Option::as_deref), out);
        }
        rows::complete("SHOW", out);
    }
}

#[cfg(test)]
mod tests;
