//! Where a server is and how one logs in there: a connection string of libpq, in either of its two forms.
//!
//! What libpq leaves to its defaults and to the environment is looked up as it does, with two exceptions: host and
//! user must be said, by the string or the environment. A key that is not known here is refused, not passed over:
//! it may be one that says whom to believe. Files (passwords, certificates) are read whenever a connection is made,
//! so that new ones count from then on. No password is ever shown.

mod passfile;
mod text;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use antiphon_tls::{ClientFiles, ClientTls, File, Identity, TlsError, Trust};

/// How long one attempt at one server may take if the string does not say (`connect_timeout`).
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// Idle for this long, a connection is probed if the string does not say (`keepalives_idle`).
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const PORT: u16 = 5432;

/// The keys of a connection string and the variable that stands in for each.
const KEYS: [(&str, &str); 21] = [
    ("host", "PGHOST"),
    ("hostaddr", "PGHOSTADDR"),
    ("port", "PGPORT"),
    ("user", "PGUSER"),
    ("dbname", "PGDATABASE"),
    ("password", "PGPASSWORD"),
    ("passfile", "PGPASSFILE"),
    ("options", "PGOPTIONS"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
    ("sslmode", "PGSSLMODE"),
    ("sslnegotiation", "PGSSLNEGOTIATION"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("require_auth", "PGREQUIREAUTH"),
    ("keepalives", ""),
    ("keepalives_idle", ""),
    ("keepalives_interval", ""),
    ("tcp_user_timeout", ""),
];

/// Keys that are taken and have no effect: who connects is told by the caller, text is UTF-8, and the rest is about
/// what is never done here.
const WITHOUT_EFFECT: [&str; 6] = [
    "application_name",
    "fallback_application_name",
    "client_encoding",
    "sslcompression",
    "sslsni",
    "krbsrvname",
];

/// Why a text is no connection string.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DsnError {
    /// It has neither form.
    #[error("the connection string is malformed: {0}")]
    Malformed(String),
    /// A key that is not known.
    #[error("the connection string has the key {0}, which is not supported; leave it out")]
    Unknown(String),
    /// A key with a value that it cannot have.
    #[error("the connection string has {key}={value}: {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// What it says.
        value: String,
        /// What it could say.
        expected: &'static str,
    },
    /// It does not say where the server is.
    #[error("the connection string names no host; add host=…")]
    NoHost,
    /// It does not say as whom to log in.
    #[error("the connection string names no user; add user=…")]
    NoUser,
}

/// Text that is not shown.
#[derive(Clone, PartialEq, Eq)]
struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// One of the servers that a connection string names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) place: Place,
    pub(crate) port: u16,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The folder of its socket.
    Folder(PathBuf),
    /// The name that its certificate is for, and its address if that is not to be looked up.
    Network { name: String, address: Option<IpAddr> },
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Folder(folder) => write!(f, "{}:{}", folder.display(), self.port),
            Place::Network { name, .. } if name.contains(':') => write!(f, "[{name}]:{}", self.port),
            Place::Network { name, .. } => write!(f, "{name}:{}", self.port),
        }
    }
}

/// `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// `channel_binding`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Binding {
    Disable,
    Prefer,
    Require,
}

/// `target_session_attrs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

/// `require_auth`: how the server may ask who we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Methods {
    /// Not at all.
    pub(crate) nothing: bool,
    /// For the password itself. Unless asked for by name it is sent over TLS and sockets only.
    pub(crate) password: bool,
    pub(crate) md5: bool,
    pub(crate) scram: bool,
    /// Whether methods were asked for by name.
    pub(crate) named: bool,
}

/// The timers of a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Keepalive {
    pub(crate) probes: bool,
    pub(crate) idle: Duration,
    pub(crate) interval: Option<Duration>,
    pub(crate) user_timeout: Option<Duration>,
}

/// Where a server is, and how one logs in there. Debug and Display without the password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dsn {
    pub(crate) hosts: Vec<Host>,
    pub(crate) target: Target,
    pub(crate) options: Option<String>,
    pub(crate) connect_time: Duration,
    pub(crate) ssl_mode: SslMode,
    /// TLS from the first byte on (`sslnegotiation=direct`).
    pub(crate) direct: bool,
    pub(crate) binding: Binding,
    pub(crate) methods: Methods,
    pub(crate) keepalive: Keepalive,
    user: String,
    database: String,
    password: Option<Secret>,
    passfile: Option<PathBuf>,
    root: Option<String>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    /// Where certificates are that no key names (`~/.postgresql`).
    folder: Option<PathBuf>,
}

impl fmt::Display for Dsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "postgresql://{}@", self.user)?;
        for (index, host) in self.hosts.iter().enumerate() {
            write!(f, "{}{host}", if index == 0 { "" } else { "," })?;
        }
        write!(f, "/{}", self.database)
    }
}

/// A connection string in keyword form as it was written, but for the password: fit to be shown and kept.
///
/// # Errors
/// What is wrong with it.
pub fn without_password(text: &str) -> Result<String, DsnError> {
    let quoted = |value: &str| {
        let plain =
            !value.is_empty() && !value.contains(|c: char| c.is_whitespace() || c == '\'' || c == '\\');
        if plain {
            value.to_owned()
        } else {
            format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
        }
    };
    let pairs = text::pairs(text)?;
    let kept = pairs.iter().filter(|(key, _)| key != "password" && key != "sslpassword");
    Ok(kept.map(|(key, value)| format!("{key}={}", quoted(value))).collect::<Vec<_>>().join(" "))
}

impl Dsn {
    /// Reads a connection string; what it does not say, the environment may (`PGPASSWORD` and its like, `HOME` for
    /// the files below it).
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str, env: &BTreeMap<String, String>) -> Result<Self, DsnError> {
        let said = Said::new(text::pairs(text)?, env)?;
        let user = said.get("user").ok_or(DsnError::NoUser)?.to_owned();
        let home = env.get("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
        let root = said.get("sslrootcert").map(str::to_owned);
        let from_system = root.as_deref() == Some("system");
        let ssl_mode = ssl_mode(said.get("sslmode"), from_system)?;
        Ok(Self {
            hosts: hosts(&said)?,
            target: target(said.get("target_session_attrs"))?,
            options: said.get("options").map(str::to_owned),
            connect_time: match said.seconds("connect_timeout")? {
                Some(time) if !time.is_zero() => time,
                Some(_) | None => CONNECT_TIME,
            },
            ssl_mode,
            direct: direct(said.get("sslnegotiation"), ssl_mode)?,
            binding: binding(said.get("channel_binding"))?,
            methods: methods(said.get("require_auth"))?,
            keepalive: Keepalive {
                probes: said.get("keepalives") != Some("0"),
                idle: said
                    .seconds("keepalives_idle")?
                    .filter(|idle| !idle.is_zero())
                    .unwrap_or(KEEPALIVE_IDLE),
                interval: said.seconds("keepalives_interval")?.filter(|interval| !interval.is_zero()),
                user_timeout: said
                    .number::<u64>("tcp_user_timeout", "expected milliseconds")?
                    .filter(|milliseconds| *milliseconds > 0)
                    .map(Duration::from_millis),
            },
            database: said.get("dbname").unwrap_or(&user).to_owned(),
            user,
            password: said.get("password").map(|password| Secret(password.to_owned())),
            passfile: match said.get("passfile") {
                Some(path) => Some(path.into()),
                None => home.as_ref().map(|home| home.join(".pgpass")),
            },
            root,
            certificate: said.get("sslcert").map(PathBuf::from),
            key: said.get("sslkey").map(PathBuf::from),
            folder: home.map(|home| home.join(".postgresql")),
        })
    }

    /// The database.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The role that logs in.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The same servers and role, another database.
    #[must_use]
    pub fn with_database(&self, database: &str) -> Self {
        Self { database: database.to_owned(), ..self.clone() }
    }

    /// What one logs in with at this server: the password of the string, else the one in the password file.
    pub(crate) fn password(&self, host: &Host) -> Option<String> {
        if let Some(Secret(password)) = &self.password {
            return Some(password.clone());
        }
        passfile::password(self.passfile.as_deref()?, host, &self.database, &self.user)
    }

    /// Whom to believe inside TLS, by the files that are there now; none if TLS is not wanted.
    pub(crate) fn tls(&self) -> Result<Option<ClientTls>, TlsError> {
        let is_network = |host: &Host| matches!(host.place, Place::Network { .. });
        if self.ssl_mode == SslMode::Disable || !self.hosts.iter().any(is_network) {
            return Ok(None);
        }
        let default =
            |name: &str| self.folder.as_ref().map(|folder| folder.join(name)).filter(|path| path.exists());
        let root = match self.root.as_deref() {
            Some(root) => Some(PathBuf::from(root)),
            None => default("root.crt"),
        };
        let trust = match (self.ssl_mode, root) {
            (_, Some(root)) if root == Path::new("system") => Trust::System,
            (SslMode::VerifyFull, Some(root)) => Trust::Authorities(File::new("sslrootcert", root)),
            // As libpq: who signed is looked at wherever that can be, the name only where it is asked for.
            (_, Some(root)) => Trust::AnyName(File::new("sslrootcert", root)),
            // Reading it says which file is missing.
            (SslMode::VerifyCa | SslMode::VerifyFull, None) => {
                let missing =
                    self.folder.as_ref().map_or_else(PathBuf::new, |folder| folder.join("root.crt"));
                Trust::AnyName(File::new("sslrootcert", missing))
            }
            (SslMode::Disable | SslMode::Allow | SslMode::Prefer | SslMode::Require, None) => Trust::Anyone,
        };
        let identity = self.certificate.clone().or_else(|| default("postgresql.crt")).map(|certificate| {
            let key = self.key.clone().or_else(|| default("postgresql.key"));
            Identity {
                certificates: File::new("sslcert", certificate),
                key: key.map(|key| File::new("sslkey", key)),
            }
        });
        Ok(Some(ClientTls::load(&ClientFiles { identity, trust })?.for_postgresql()))
    }
}

/// What a connection string and the environment say, by key. Nothing is said with an empty value.
struct Said(BTreeMap<&'static str, String>);

impl Said {
    fn new(pairs: Vec<(String, String)>, env: &BTreeMap<String, String>) -> Result<Self, DsnError> {
        let mut said: BTreeMap<&'static str, String> =
            KEYS.iter().filter_map(|(key, variable)| Some((*key, env.get(*variable)?.clone()))).collect();
        for (key, value) in pairs {
            match KEYS.iter().find(|(known, _)| *known == key) {
                Some((known, _)) => {
                    said.insert(known, value);
                }
                None if WITHOUT_EFFECT.contains(&key.as_str()) => {}
                None => return Err(DsnError::Unknown(key)),
            }
        }
        said.retain(|_, value| !value.is_empty());
        Ok(Self(said))
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    fn number<T: FromStr>(&self, key: &'static str, expected: &'static str) -> Result<Option<T>, DsnError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.trim().parse().map(Some).map_err(|_| wrong(key, value, expected))
    }

    fn seconds(&self, key: &'static str) -> Result<Option<Duration>, DsnError> {
        Ok(self.number(key, "expected seconds")?.map(Duration::from_secs))
    }
}

fn wrong(key: &'static str, value: &str, expected: &'static str) -> DsnError {
    DsnError::Value { key, value: value.to_owned(), expected }
}

fn hosts(said: &Said) -> Result<Vec<Host>, DsnError> {
    let list = |key: &str| said.get(key).map(|text| text.split(',').map(str::trim).collect::<Vec<_>>());
    let (names, addresses, ports) = (list("host"), list("hostaddr"), list("port").unwrap_or_default());
    let count = match (&names, &addresses) {
        (Some(names), Some(addresses)) if names.len() != addresses.len() => {
            let given = said.get("hostaddr").unwrap_or_default();
            return Err(wrong("hostaddr", given, "expected as many as there are hosts"));
        }
        (Some(list), _) | (None, Some(list)) => list.len(),
        (None, None) => return Err(DsnError::NoHost),
    };
    if ports.len() > 1 && ports.len() != count {
        return Err(wrong("port", &ports.join(","), "expected one, or as many as there are hosts"));
    }
    let at = |list: &Option<Vec<&str>>, index: usize| {
        list.as_ref()
            .and_then(|list| list.get(index))
            .copied()
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
    };
    let mut hosts = Vec::with_capacity(count);
    for index in 0..count {
        let port = match ports.get(index).or(ports.first()).copied().unwrap_or_default() {
            "" => PORT,
            port => port
                .parse()
                .ok()
                .filter(|port| *port > 0)
                .ok_or_else(|| wrong("port", port, "expected a number from 1 to 65535"))?,
        };
        let address = at(&addresses, index)
            .map(|text| text.parse().map_err(|_| wrong("hostaddr", &text, "expected an IP address")))
            .transpose()?;
        let name = at(&names, index).or_else(|| address.map(|address: IpAddr| address.to_string()));
        let name = name.ok_or(DsnError::NoHost)?;
        let place = if name.starts_with('/') && address.is_none() {
            Place::Folder(name.into())
        } else {
            Place::Network { name, address }
        };
        hosts.push(Host { place, port });
    }
    Ok(hosts)
}

fn ssl_mode(text: Option<&str>, from_system: bool) -> Result<SslMode, DsnError> {
    let mode = match text {
        None if from_system => SslMode::VerifyFull,
        None | Some("prefer") => SslMode::Prefer,
        Some("disable") => SslMode::Disable,
        Some("allow") => SslMode::Allow,
        Some("require") => SslMode::Require,
        Some("verify-ca") => SslMode::VerifyCa,
        Some("verify-full") => SslMode::VerifyFull,
        Some(other) => {
            let expected = "expected disable, allow, prefer, require, verify-ca or verify-full";
            return Err(wrong("sslmode", other, expected));
        }
    };
    if from_system && mode != SslMode::VerifyFull {
        // Anyone gets a certificate from a public authority for some name.
        return Err(wrong("sslmode", text.unwrap_or_default(), "sslrootcert=system needs verify-full"));
    }
    Ok(mode)
}

fn direct(text: Option<&str>, mode: SslMode) -> Result<bool, DsnError> {
    match text {
        None | Some("postgres") => Ok(false),
        Some("direct") if mode >= SslMode::Require => Ok(true),
        Some("direct") => {
            Err(wrong("sslnegotiation", "direct", "it needs sslmode=require or a stricter one"))
        }
        Some(other) => Err(wrong("sslnegotiation", other, "expected postgres or direct")),
    }
}

fn binding(text: Option<&str>) -> Result<Binding, DsnError> {
    match text {
        None | Some("prefer") => Ok(Binding::Prefer),
        Some("disable") => Ok(Binding::Disable),
        Some("require") => Ok(Binding::Require),
        Some(other) => Err(wrong("channel_binding", other, "expected disable, prefer or require")),
    }
}

fn target(text: Option<&str>) -> Result<Target, DsnError> {
    match text {
        None | Some("any") => Ok(Target::Any),
        Some("read-write") => Ok(Target::ReadWrite),
        Some("read-only") => Ok(Target::ReadOnly),
        Some("primary") => Ok(Target::Primary),
        Some("standby") => Ok(Target::Standby),
        Some("prefer-standby") => Ok(Target::PreferStandby),
        Some(other) => {
            let expected = "expected any, read-write, read-only, primary, standby or prefer-standby";
            Err(wrong("target_session_attrs", other, expected))
        }
    }
}

fn methods(text: Option<&str>) -> Result<Methods, DsnError> {
    let Some(text) = text else {
        return Ok(Methods { nothing: true, password: true, md5: true, scram: true, named: false });
    };
    let excluded = text.starts_with('!');
    let mut methods =
        Methods { nothing: excluded, password: excluded, md5: excluded, scram: excluded, named: !excluded };
    for word in text.split(',').map(str::trim) {
        let name = word.strip_prefix('!');
        if name.is_some() != excluded {
            return Err(wrong("require_auth", text, "expected methods all with ! before them or none"));
        }
        let method = match name.unwrap_or(word) {
            "none" => &mut methods.nothing,
            "password" => &mut methods.password,
            "md5" => &mut methods.md5,
            "scram-sha-256" => &mut methods.scram,
            // Never done here, so there is nothing to exclude.
            "gss" | "sspi" | "oauth" if excluded => continue,
            _ => return Err(wrong("require_auth", text, "expected none, password, md5 or scram-sha-256")),
        };
        *method = !excluded;
    }
    Ok(methods)
}
