//! Which cluster is meant: the member to ask first, how to sign in, and the members that it names.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use antiphon_tls::{ClientFiles, File, Identity, Trust};
use clap::Args;
use hyper::Method;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::client::{Answer, Client};
use super::failure::Failure;
use crate::config::{self, Login, Secret};

/// Which cluster is meant.
#[derive(Clone, Debug, Default, Args)]
pub struct TargetArgs {
    /// A node file: its restapi and ctl sections say where the API is, how to sign in, and the certificates
    #[arg(short, long, global = true, value_name = "FILE", env = "ANTIPHON_CONFIG_FILE")]
    pub config_file: Option<PathBuf>,
    /// The API of a member, http://HOST:PORT or https://HOST:PORT; several with commas are tried in order
    #[arg(long, global = true, value_name = "URL", env = "ANTIPHON_URL")]
    pub url: Option<String>,
    /// Do not verify the members' certificates
    #[arg(short = 'k', long, global = true)]
    pub insecure: bool,
    /// The authority that signed the members' certificates
    #[arg(long, global = true, value_name = "FILE", env = "ANTIPHON_CACERT")]
    pub cacert: Option<PathBuf>,
    /// A certificate to show to members that want one
    #[arg(long, global = true, value_name = "FILE", env = "ANTIPHON_CERT")]
    pub cert: Option<PathBuf>,
    /// Its private key, if it is not in the same file
    #[arg(long, global = true, value_name = "FILE", env = "ANTIPHON_KEY", requires = "cert")]
    pub key: Option<PathBuf>,
}

/// The members to ask first, and how to sign in.
pub(super) struct Target {
    entries: Vec<Client>,
    login: Option<Login>,
    tls: ClientFiles,
}

/// `GET /cluster`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Cluster {
    pub(super) members: Vec<Member>,
    #[serde(default)]
    pub(super) pause: bool,
    #[serde(default)]
    pub(super) scope: String,
    pub(super) system_identifier: Option<String>,
    pub(super) scheduled_switchover: Option<Map<String, Value>>,
    pub(super) epoch: Option<u64>,
    pub(super) sync: Option<Value>,
}

/// A member of it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) role: String,
    pub(super) state: String,
    #[serde(default)]
    pub(super) api_url: String,
    #[serde(default)]
    pub(super) host: String,
    pub(super) port: Option<u16>,
    pub(super) timeline: Option<u32>,
    #[serde(default)]
    pub(super) pending_restart: bool,
    /// What an operator has to do there.
    #[serde(default)]
    pub(super) trouble: Option<String>,
    /// Bytes of old data directories and diverged WAL that are kept there.
    #[serde(default)]
    pub(super) kept_bytes: u64,
    #[serde(default)]
    pub(super) tags: Map<String, Value>,
    pub(super) receive_lag: Option<Value>,
    pub(super) receive_lsn: Option<String>,
    pub(super) replay_lag: Option<Value>,
    pub(super) replay_lsn: Option<String>,
    #[serde(default)]
    pub(super) followers: Vec<Member>,
}

impl Member {
    /// Whether it leads.
    pub(super) fn leads(&self) -> bool {
        matches!(self.role.as_str(), "leader" | "standby_leader")
    }
}

impl Cluster {
    /// The leader, if there is one.
    pub(super) fn leader(&self) -> Option<&Member> {
        self.members.iter().find(|member| member.leads())
    }

    /// The member of this name.
    pub(super) fn member(&self, name: &str) -> Result<&Member, Failure> {
        let known = || self.members.iter().map(|member| member.name.as_str()).collect::<Vec<_>>().join(", ");
        let found = self.members.iter().find(|member| member.name == name);
        found.ok_or_else(|| {
            Failure::Usage(format!("there is no member {name:?} in {}; there are {}", self.scope, known()))
        })
    }

    /// The members of these names. A first name that is the cluster's is left out, as patronictl wants it there.
    pub(super) fn chosen<'a>(&'a self, names: &[String]) -> Result<Vec<&'a Member>, Failure> {
        let names = match names.split_first() {
            Some((first, rest)) if *first == self.scope && self.member(first).is_err() => rest,
            Some(_) | None => names,
        };
        names.iter().map(|name| self.member(name)).collect()
    }

    /// Refuses if another cluster's name was given.
    pub(super) fn check_name(&self, name: Option<&str>) -> Result<(), Failure> {
        match name {
            Some(name) if name != self.scope => {
                Err(Failure::Usage(format!("this is cluster {:?}, not {name:?}", self.scope)))
            }
            Some(_) | None => Ok(()),
        }
    }
}

impl TargetArgs {
    /// Finds out whom to ask.
    pub(super) fn resolve(&self) -> Result<Target, Failure> {
        let env: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        // A URL that was given wins over a file that a variable names.
        if let Some(urls) = &self.url {
            let login =
                env.get("ANTIPHON_API_USER").zip(env.get("ANTIPHON_API_PASSWORD")).map(|(user, password)| {
                    Login { username: user.clone(), password: Secret::new(password.clone()) }
                });
            let tls = self.tls(ClientFiles { identity: None, trust: Trust::System });
            let entries = urls.split(',').map(|url| Client::trusting(url.trim(), login.as_ref(), &tls));
            return Ok(Target { entries: entries.collect::<Result<_, _>>()?, login, tls });
        }
        let file = self.config_file.clone().or_else(|| env.get("PATRONICTL_CONFIG_FILE").map(PathBuf::from));
        let file = file.ok_or_else(|| {
            Failure::Usage("which cluster? give -c FILE or --url http://HOST:PORT".to_owned())
        })?;
        let config = config::load(&file, &env).map_err(|errors| Failure::Usage(errors.to_string()))?;
        let login = config.ctl.authentication.or(config.restapi.authentication);
        let tls = self.tls(config.ctl.tls);
        let scheme = if config.restapi.tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", config.restapi.connect_address);
        let entry = Client::trusting(&url, login.as_ref(), &tls)?;
        Ok(Target { entries: vec![entry], login, tls })
    }

    /// What the file says of TLS, with what the command line says laid over it.
    fn tls(&self, mut tls: ClientFiles) -> ClientFiles {
        if let Some(authorities) = &self.cacert {
            tls.trust = Trust::Authorities(File::new("--cacert", authorities));
        }
        if self.insecure {
            tls.trust = Trust::Anyone;
        }
        if let Some(certificate) = &self.cert {
            let key = self.key.as_ref().map(|key| File::new("--key", key));
            tls.identity = Some(Identity { certificates: File::new("--cert", certificate), key });
        }
        tls
    }
}

impl Target {
    /// The first member that answers, with what it says of the cluster.
    pub(super) async fn cluster(&self) -> Result<(Client, Cluster), Failure> {
        let (client, body) = self.look("/cluster").await?;
        let cluster = serde_json::from_value(body);
        let cluster = cluster
            .map_err(|error| Failure::Refused(format!("{} describes no cluster: {error}", client.url())))?;
        Ok((client, cluster))
    }

    /// JSON from the first member that answers.
    pub(super) async fn look(&self, path: &str) -> Result<(Client, Value), Failure> {
        let mut last = Failure::Usage("no member to ask was given".to_owned());
        for client in &self.entries {
            match client.get_json(path).await {
                Ok(body) => return Ok((client.clone(), body)),
                Err(failure @ Failure::Unreachable { .. }) => last = failure,
                Err(failure) => return Err(failure),
            }
        }
        Err(last)
    }

    /// The first member that answers.
    pub(super) async fn entry(&self) -> Result<Client, Failure> {
        self.look("/cluster").await.map(|(client, _)| client)
    }

    /// A member's own API.
    pub(super) fn client(&self, member: &Member) -> Result<Client, Failure> {
        Client::trusting(&member.api_url, self.login.as_ref(), &self.tls)
    }
}

/// Sends an order and takes every status but 2xx for a refusal.
pub(super) async fn order(
    client: &Client,
    method: Method,
    path: &str,
    body: Option<&Value>,
    limit: Duration,
) -> Result<Answer, Failure> {
    let answer = client.send(method, path, body, None, limit).await?;
    if (200..300).contains(&answer.status) { Ok(answer) } else { Err(refusal(&answer)) }
}

/// What a member's refusal means.
pub(super) fn refusal(answer: &Answer) -> Failure {
    let text = answer.text.trim();
    if text.ends_with("status unknown") {
        return Failure::Unknown(text.to_owned());
    }
    Failure::Refused(format!("{text} (status {})", answer.status))
}
