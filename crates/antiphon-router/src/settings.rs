//! What the router is told: addresses, bounds and who may log in. Checked by whoever reads the file.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use antiphon_tls::{ClientTls, ServerTls};
use tokio_postgres::Config;

use crate::balance::Balance;
use crate::plain::Server;
use crate::positions::Consistency;
use crate::rules::Rules;
use crate::secrets::Secret;

/// Reads again what the router is told, which may take a while: that, and what besides has changed that waits for a
/// restart of the process. An error says what is wrong with it.
pub type Source = Arc<dyn Fn() -> Result<(Settings, Vec<&'static str>), String> + Send + Sync>;

/// All that a router needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where clients connect to; every thread listens at each.
    pub listen: Vec<SocketAddr>,
    /// The members' APIs, as `host:port`; their events say who leads.
    pub agents: Vec<String>,
    /// The servers themselves, if no agents say who of them leads.
    pub servers: Option<Servers>,
    /// How the members' APIs are spoken to; none: in the clear.
    pub agents_tls: Option<ClientTls>,
    /// Other routers of the cluster, as `host:port`: a cancel request may come to any of them.
    pub peers: Vec<String>,
    /// The name of the cluster whose events count.
    pub scope: Option<String>,
    /// Threads that carry traffic, 1 to 64.
    pub threads: u16,
    /// How long a session keeps a link.
    pub pool_mode: PoolMode,
    /// Links to a server for each user and database, over all threads.
    pub pool_size: u32,
    /// How long a link may be unused; zero: for ever.
    pub server_idle_timeout: Duration,
    /// How old a link may get; zero: as old as it likes.
    pub server_lifetime: Duration,
    /// Clients at a time.
    pub clients_max: usize,
    /// How long a client waits for a leader or for a free link.
    pub failover_hold: Duration,
    /// How many clients wait at a time because nobody leads.
    pub failover_hold_max: usize,
    /// How long a login may take.
    pub login_timeout: Duration,
    /// How clients prove who they are.
    pub authentication: Authentication,
    /// How reads go to followers; none if all goes to the leader.
    pub reads: Option<Reads>,
    /// Who may use the console.
    pub console: Console,
    /// How a point in time is shown, in seconds since 1970.
    pub show_time: fn(u64) -> String,
    /// How clients are spoken to inside TLS; none: in the clear only.
    pub clients_tls: Option<ClientsTls>,
    /// How servers are spoken to.
    pub servers_tls: ServersTls,
}

/// Servers that are asked who of them leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Servers {
    /// All of them.
    pub list: Vec<Server>,
    /// The router's own account; one server that nobody can ask leads.
    pub account: Option<Account>,
}

/// Who may use the console; with nobody there is none, and its databases are like any other.
#[derive(Clone, Debug, Default)]
pub struct Console {
    /// Users who may do everything.
    pub admins: Vec<String>,
    /// Users who may look.
    pub viewers: Vec<String>,
}

impl Console {
    /// Whether there is a console.
    pub fn is_there(&self) -> bool {
        !self.admins.is_empty() || !self.viewers.is_empty()
    }
}

/// How long a session keeps a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PoolMode {
    /// To the end of its transaction, or longer if it has left something there.
    #[default]
    Transaction,
    /// To its own end.
    Session,
}

impl PoolMode {
    /// Its name.
    pub fn word(self) -> &'static str {
        match self {
            Self::Transaction => "transaction",
            Self::Session => "session",
        }
    }
}

/// How clients are spoken to inside TLS.
#[derive(Clone, Debug)]
pub struct ClientsTls {
    pub(crate) tls: ServerTls,
    /// Nobody is let in in the clear.
    pub(crate) required: bool,
    /// What logins can be bound to.
    pub(crate) end_point: Option<Arc<[u8]>>,
}

impl ClientsTls {
    /// By these files; `required`: nobody is let in in the clear.
    pub fn new(tls: &ServerTls, required: bool) -> Self {
        Self { tls: tls.for_postgresql(), required, end_point: tls.end_point().map(Arc::from) }
    }
}

/// How servers are spoken to.
#[derive(Clone, Debug)]
pub struct ServersTls {
    pub(crate) tls: ClientTls,
    pub(crate) encryption: Encryption,
}

impl ServersTls {
    /// By these files, if at all.
    pub fn new(tls: &ClientTls, encryption: Encryption) -> Self {
        Self { tls: tls.for_postgresql(), encryption }
    }
}

/// Whether servers are spoken to inside TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// Never.
    Off,
    /// If the server speaks it.
    Preferred,
    /// Always, or not at all.
    Required,
}

/// How reads go to followers.
#[derive(Clone, Debug)]
pub struct Reads {
    /// The router's own account, with which it asks servers how far they are and what functions do.
    pub account: Account,
    /// What sessions ask unless they say, or their user or database has something else.
    pub sessions: Wants,
    /// What those of these users ask unless they say.
    pub users: HashMap<String, Wants>,
    /// What those of these databases ask unless they or their user say.
    pub databases: HashMap<String, Wants>,
    /// How long a read waits for a follower before it goes to the leader.
    pub causal_wait: Duration,
    /// How reads are spread over followers.
    pub balance: Balance,
}

impl Reads {
    /// What a session asks that does not say.
    pub fn wants(&self, user: &str, database: &str) -> Wants {
        let of = |wants: Option<&Wants>| wants.copied().unwrap_or_default();
        of(self.users.get(user)).or(of(self.databases.get(database))).or(self.sessions)
    }
}

/// What sessions ask of the router.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// What their reads see.
    pub consistency: Option<Consistency>,
    /// They are told their token after each commit.
    pub report_token: Option<bool>,
}

impl Wants {
    /// This, and of what it does not say the other.
    pub fn or(self, other: Self) -> Self {
        Self {
            consistency: self.consistency.or(other.consistency),
            report_token: self.report_token.or(other.report_token),
        }
    }
}

/// An account of the router's own.
#[derive(Clone, PartialEq, Eq)]
pub struct Account {
    /// Its name.
    pub user: String,
    /// Its password.
    pub password: Option<String>,
    /// The database that it goes to.
    pub database: String,
}

impl Account {
    /// How to connect to a server that is known by this name.
    pub fn config(&self, server: SocketAddr, host: &str) -> Config {
        let mut config = Config::new();
        config.host(host).hostaddr(server.ip()).port(server.port());
        config.user(&self.user).dbname(&self.database);
        config.application_name("antiphon router");
        if let Some(password) = &self.password {
            config.password(password);
        }
        config
    }
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in {}", self.user, self.database)
    }
}

/// How clients prove who they are.
#[derive(Clone, Debug)]
pub struct Authentication {
    /// What is asked of whom.
    pub rules: Rules,
    /// What passwords are checked against.
    pub secrets: Secrets,
}

/// Where it is known what is kept of passwords.
#[derive(Clone)]
pub enum Secrets {
    /// Nowhere: nobody is asked for one.
    Nothing,
    /// The leader is asked.
    Query(AuthQuery),
    /// Here, by user.
    Users(HashMap<String, Secret>),
}

/// Where verifiers are asked for.
#[derive(Clone)]
pub struct AuthQuery {
    /// The router's own account.
    pub account: Account,
    /// A query with the user as `$1`, that gives the user's name and what is kept of its password.
    pub query: String,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nothing => f.write_str("Nothing"),
            Self::Query(query) => write!(f, "Query by {:?}", query.account),
            Self::Users(users) => write!(f, "{} users", users.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_counts_more_than_a_database_and_that_more_than_the_rest() {
        let wants = |consistency, report_token| Wants { consistency, report_token };
        let account = Account { user: "router".to_owned(), password: None, database: "postgres".to_owned() };
        let reads = Reads {
            account,
            sessions: wants(Some(Consistency::Strong), Some(false)),
            users: [("anna".to_owned(), wants(Some(Consistency::Eventual), None))].into(),
            databases: [("app".to_owned(), wants(Some(Consistency::Monotonic), Some(true)))].into(),
            causal_wait: Duration::ZERO,
            balance: Balance::default(),
        };
        assert_eq!(reads.wants("anna", "app"), wants(Some(Consistency::Eventual), Some(true)));
        assert_eq!(reads.wants("eve", "app"), wants(Some(Consistency::Monotonic), Some(true)));
        assert_eq!(reads.wants("eve", "other"), wants(Some(Consistency::Strong), Some(false)));
    }
}
