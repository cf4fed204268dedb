//! The settings of a session that the server reports or that its start asked for, and how a link is given them.
//!
//! Pure. A link is brought from one session's settings to another's by one query, sent in front of the
//! session's own first message. Equal sets are one value in memory, so that comparing them is comparing pointers.

use std::collections::HashSet;
use std::sync::Arc;

use crate::wire::messages::Complaint;
use crate::wire::startup::Start;

/// What is followed when the server reports that it changed, as the server spells it.
const FOLLOWED: [&str; 8] = [
    "application_name",
    "client_encoding",
    "DateStyle",
    "IntervalStyle",
    "TimeZone",
    "default_transaction_read_only",
    "search_path",
    "standard_conforming_strings",
];
/// Sets of settings that a thread remembers.
const SETS_MAX: usize = 10_000;

/// The server's names of encodings, which it reports whatever it was asked for.
const ENCODINGS: [&str; 42] = [
    "SQL_ASCII",
    "EUC_JP",
    "EUC_CN",
    "EUC_KR",
    "EUC_TW",
    "EUC_JIS_2004",
    "UTF8",
    "MULE_INTERNAL",
    "LATIN1",
    "LATIN2",
    "LATIN3",
    "LATIN4",
    "LATIN5",
    "LATIN6",
    "LATIN7",
    "LATIN8",
    "LATIN9",
    "LATIN10",
    "WIN1256",
    "WIN1258",
    "WIN866",
    "WIN874",
    "KOI8R",
    "WIN1251",
    "WIN1252",
    "ISO_8859_5",
    "ISO_8859_6",
    "ISO_8859_7",
    "ISO_8859_8",
    "WIN1250",
    "WIN1253",
    "WIN1254",
    "WIN1255",
    "WIN1257",
    "KOI8U",
    "SJIS",
    "BIG5",
    "GBK",
    "UHC",
    "GB18030",
    "JOHAB",
    "SHIFT_JIS_2004",
];

/// The server's name of an encoding, as clients may spell it; drivers compare what they are told with that.
fn encoding(asked: &str) -> Option<String> {
    let plain = |text: &str| -> String {
        text.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
    };
    let asked = plain(asked);
    let known = ENCODINGS.iter().find(|name| plain(name) == asked);
    known.copied().or((asked == "unicode").then_some("UTF8")).map(str::to_owned)
}

/// Settings by name, in the order of the names, lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// What a session asked for at its start.
    ///
    /// # Errors
    /// What the client is told if it asked for what cannot be given.
    pub fn of_start(start: &Start) -> Result<Self, Complaint> {
        let mut parameters = Self::default();
        for (name, value) in &start.parameters {
            match name.as_str() {
                "user" | "database" => {}
                "replication" if ["false", "off", "no", "0"].contains(&value.as_str()) => {}
                "replication" => {
                    let message =
                        "the router does not carry replication connections; connect to a server itself";
                    return Err(Complaint::fatal("0A000", message));
                }
                "options" => {
                    for (name, value) in options(value)? {
                        parameters.insert(&name, &value)?;
                    }
                }
                _ => parameters.insert(name, value)?,
            }
        }
        Ok(parameters)
    }

    fn insert(&mut self, name: &str, value: &str) -> Result<(), Complaint> {
        let sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'$');
        if name.is_empty() || name.len() > 128 || !name.bytes().all(sound) {
            let name: String = name.chars().take(64).collect();
            return Err(Complaint::fatal("42704", format!("unrecognized configuration parameter {name:?}")));
        }
        // As the server does with the names of applications; other settings are names and numbers anyway.
        let value: String =
            value.chars().map(|c| if c.is_ascii() && !c.is_ascii_control() { c } else { '?' }).collect();
        match name.to_ascii_lowercase() {
            name if name == "client_encoding" => self.set(&name, encoding(&value).unwrap_or(value)),
            name => self.set(&name, value),
        }
        Ok(())
    }

    fn set(&mut self, name: &str, value: String) {
        match self.0.binary_search_by(|(key, _)| key.as_str().cmp(name)) {
            Ok(at) => {
                if let Some(entry) = self.0.get_mut(at) {
                    entry.1 = value;
                }
            }
            Err(at) => self.0.insert(at, (name.to_owned(), value)),
        }
    }

    /// Whether texts of the session can be parsed, and followers know its kind of transaction. `plain`: whether they
    /// can be by the server's own settings.
    pub fn suit_followers(&self, plain: bool) -> bool {
        let encoding = self.get("client_encoding").map(is_utf8);
        let strings = self.get("standard_conforming_strings").map(|value| value == "on");
        let serializable =
            self.get("default_transaction_isolation").is_some_and(|level| level == "serializable");
        encoding.unwrap_or(plain) && strings.unwrap_or(plain) && !serializable
    }

    /// Takes out a setting that is the router's own, by its name in lower case.
    pub fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.binary_search_by(|(key, _)| key.as_str().cmp(name)).ok()?;
        Some(self.0.remove(at).1)
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// This set after the server reported a setting; none if that is not followed or nothing changed.
    pub fn after(&self, name: &str, value: &str) -> Option<Self> {
        if !FOLLOWED.contains(&name) {
            return None;
        }
        let name = name.to_ascii_lowercase();
        if self.get(&name) == Some(value) {
            return None;
        }
        let mut next = self.clone();
        next.set(&name, value.to_owned());
        Some(next)
    }

    /// What a new session is told a setting is, if its start asked for it.
    pub fn shown(&self, name: &str) -> Option<&str> {
        self.get(&name.to_ascii_lowercase())
    }

    /// The query that brings a link with these settings to those of a session.
    pub fn change_to(&self, to: &Self) -> String {
        let mut sql = String::new();
        for (name, _) in self.0.iter().filter(|(name, _)| to.get(name).is_none()) {
            sql.push_str(&format!("RESET {};", dotted(name)));
        }
        let changed = to.0.iter().filter(|(name, value)| self.get(name) != Some(value));
        let calls: Vec<String> = changed
            .map(|(name, value)| {
                format!("pg_catalog.set_config({}, {}, false)", literal(name), literal(value))
            })
            .collect();
        if !calls.is_empty() {
            sql.push_str(&format!("SELECT {}", calls.join(", ")));
        }
        sql
    }
}

/// Whether an encoding is UTF-8, however it is spelled.
fn is_utf8(name: &str) -> bool {
    let letters: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    letters.eq_ignore_ascii_case("utf8") || letters.eq_ignore_ascii_case("unicode")
}

/// Whether texts mean what they look like by what a server reports of itself.
pub fn plain_texts(reported: &[(String, String)]) -> bool {
    let get = |name: &str| reported.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    get("client_encoding").is_some_and(is_utf8) && get("standard_conforming_strings") == Some("on")
}

/// A setting's name, whose parts are quoted one by one.
fn dotted(name: &str) -> String {
    let parts: Vec<String> = name.split('.').map(|part| format!("\"{part}\"")).collect();
    parts.join(".")
}

/// A literal that means the same whatever `standard_conforming_strings` is.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// The settings in the `options` of a start: `-c name=value`, `-cname=value` and `--name=value`.
fn options(text: &str) -> Result<Vec<(String, String)>, Complaint> {
    let mut found = Vec::new();
    let mut words = split(text).into_iter();
    while let Some(word) = words.next() {
        let setting = match (word.strip_prefix("--"), word.strip_prefix("-c")) {
            (Some(setting), _) => Some(setting.replace('-', "_")),
            (None, Some("")) => words.next(),
            (None, Some(setting)) => Some(setting.to_owned()),
            (None, None) => None,
        };
        let pair =
            setting.and_then(|setting| setting.split_once('=').map(|(n, v)| (n.to_owned(), v.to_owned())));
        let Some(pair) = pair else {
            let message = "the router understands no options other than -c name=value";
            return Err(Complaint::fatal("0A000", message));
        };
        found.push(pair);
    }
    Ok(found)
}

/// Words between spaces; a backslash takes the next character as it is.
fn split(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => word.extend(chars.next()),
            c if c.is_ascii_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// The sets that sessions of a thread have: equal ones are one value.
#[derive(Debug, Default)]
pub struct Interned(HashSet<Arc<Parameters>>);

impl Interned {
    /// The one value that is equal to this.
    pub fn get(&mut self, parameters: Parameters) -> Arc<Parameters> {
        if let Some(known) = self.0.get(&parameters) {
            return known.clone();
        }
        if self.0.len() >= SETS_MAX {
            self.0.retain(|set| Arc::strong_count(set) > 1);
        }
        let new = Arc::new(parameters);
        if self.0.len() < SETS_MAX {
            self.0.insert(new.clone());
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Result<Parameters, Complaint> {
        let parameters = pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        Parameters::of_start(&Start { parameters, ..Start::default() })
    }

    #[test]
    fn an_encoding_is_told_by_the_name_that_the_server_gives_it() {
        for (asked, told) in
            [("'utf-8'", "UTF8"), ("Unicode", "UTF8"), ("latin1", "LATIN1"), ("win-1252", "WIN1252")]
        {
            let mut parameters = Parameters::default();
            parameters.insert("client_encoding", asked).unwrap();
            assert_eq!(parameters.shown("client_encoding"), Some(told), "{asked}");
        }
        let mut parameters = Parameters::default();
        parameters.insert("client_encoding", "klingon").unwrap();
        assert_eq!(parameters.shown("client_encoding"), Some("klingon"), "the server is to refuse it");
    }

    #[test]
    fn a_link_is_given_what_differs_and_nothing_else() {
        let a = of(&[("user", "u"), ("application_name", "a"), ("TimeZone", "UTC")]).unwrap();
        let b = of(&[("application_name", "it's \\b"), ("timezone", "UTC")]).unwrap();
        assert_eq!(
            a.change_to(&b),
            "SELECT pg_catalog.set_config(E'application_name', E'it''s \\\\b', false)"
        );
        assert_eq!(a.change_to(&Parameters::default()), "RESET \"application_name\";RESET \"timezone\";");
        assert_eq!(a.change_to(&a), "");
    }

    #[test]
    fn options_are_settings_or_refused() {
        let a = of(&[("options", "-c search_path=a\\ b,c -cx.y=1 --work-mem=5MB")]).unwrap();
        assert_eq!(
            (a.get("search_path"), a.get("x.y"), a.get("work_mem")),
            (Some("a b,c"), Some("1"), Some("5MB"))
        );
        assert_eq!(of(&[("options", "-d 5")]).unwrap_err().code, "0A000");
        assert_eq!(of(&[("options", "-c")]).unwrap_err().code, "0A000");
        assert_eq!(of(&[("replication", "database")]).unwrap_err().code, "0A000");
        assert_eq!(of(&[("a\";drop", "x")]).unwrap_err().code, "42704");
        assert_eq!(of(&[("application_name", "é\n")]).unwrap().get("application_name"), Some("??"));
    }

    #[test]
    fn texts_that_do_not_mean_what_they_look_like_are_not_asked_about() {
        assert!(of(&[]).unwrap().suit_followers(true) && !of(&[]).unwrap().suit_followers(false));
        let spelled = [("client_encoding", "utf-8"), ("standard_conforming_strings", "on")];
        assert!(of(&spelled).unwrap().suit_followers(false));
        for odd in [
            ("client_encoding", "SJIS"),
            ("standard_conforming_strings", "off"),
            ("default_transaction_isolation", "serializable"),
        ] {
            assert!(!of(&[odd]).unwrap().suit_followers(true), "{odd:?}");
        }
        let reported = |encoding: &str| {
            [("client_encoding", encoding), ("standard_conforming_strings", "on")]
                .map(|(n, v)| (n.to_owned(), v.to_owned()))
        };
        assert!(plain_texts(&reported("UTF8")) && !plain_texts(&reported("LATIN1")) && !plain_texts(&[]));
    }

    #[test]
    fn reported_settings_are_followed() {
        let a = Parameters::default().after("DateStyle", "ISO, DMY").unwrap();
        assert_eq!(a.shown("DateStyle"), Some("ISO, DMY"));
        assert_eq!(a.after("DateStyle", "ISO, DMY"), None);
        assert_eq!(a.after("is_superuser", "on"), None);
    }
}
