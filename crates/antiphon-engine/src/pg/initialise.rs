//! The first data directory: initdb, a first start as primary, the roles that the cluster needs.
//!
//! A journal beside the directory says that it is being made; what such an attempt left behind is cleared
//! by the next one, and by nothing else. The superuser's password reaches initdb in a file that is removed.

use std::fs;
use std::io;
use std::path::Path;

use antiphon_core::Epoch;
use antiphon_core::ha::world::SyncNames;

use super::config;
use super::control::{self, Directory};
use super::files;
use super::settings::{Credentials, PgSettings};
use super::sql::within;
use super::{Inner, QUICK, scripts, tool};
use crate::EngineError;

/// The longest that a statement of the bootstrap may take.
const STATEMENT_MAX: std::time::Duration = std::time::Duration::from_secs(60);

impl Inner {
    pub(super) async fn initialise(&self) -> Result<(), EngineError> {
        let what = "create the data directory";
        if !self.process.is_empty() {
            let reason = "processes of an earlier server are still there: stop it first".to_owned();
            return Err(EngineError::Failed { what: what.to_owned(), reason });
        }
        let settings = self.settings();
        let binaries = self.binaries(None).await?;
        let program = binaries.program("initdb")?;
        let paths = self.paths.clone();
        let password = settings.superuser.password.clone();
        let password_file = self.paths.state.join("initdb.password");
        let file = password_file.clone();
        files::blocking(what, move || {
            let journal = paths.initialise_journal();
            if journal.exists() {
                clear(&paths.data)?;
            } else if control::inspect(&paths).directory != Directory::Absent {
                return Err(io::Error::other(format!("{} is not empty", paths.data.display())));
            }
            files::write_durably(&journal, b"initialise\n", 0o600)?;
            password.map_or(Ok(()), |password| {
                files::write_durably(&file, format!("{password}\n").as_bytes(), 0o600)
            })
        })
        .await?;
        let mut command = tool::command(&program, &self.paths.state, &self.paths.passwords());
        command.arg("-D").arg(&self.paths.data).args([
            "--data-checksums",
            "-U",
            &settings.superuser.username,
        ]);
        command.args(["--auth-host=scram-sha-256", "--auth-local=peer"]);
        if settings.superuser.password.is_some() {
            command.args(["--auth-local=scram-sha-256", "--pwfile"]).arg(&password_file);
        }
        command.args(&settings.initdb);
        self.say("creating the data directory".to_owned());
        let made = tool::run("run initdb", command, |_| ()).await;
        files::blocking("remove the password file", move || files::remove_durably(&password_file)).await?;
        made?;
        self.first_start(&settings).await
    }

    async fn first_start(&self, settings: &PgSettings) -> Result<(), EngineError> {
        let journal = self.paths.initialise_journal();
        let mark = journal.clone();
        // The journal forbids a start; it is back in place until the roles exist.
        files::blocking("note the first start", move || files::remove_durably(&mark)).await?;
        let started = self.start_primary(self.fenced().max(Epoch(1)), &SyncNames::Nobody).await;
        let made = match started {
            Ok(()) => self.create_roles(settings).await,
            Err(error) => Err(error),
        };
        if made.is_err() {
            files::blocking("note the failed bootstrap", move || {
                files::write_durably(&journal, b"initialise\n", 0o600)
            })
            .await?;
        }
        made
    }

    async fn create_roles(&self, settings: &PgSettings) -> Result<(), EngineError> {
        self.say("creating the roles".to_owned());
        let client = self.connect().await?;
        let mut statements = Vec::new();
        if settings.replication.username != settings.superuser.username {
            statements.push(create_role(&settings.replication, "REPLICATION"));
        }
        let rewind = settings.rewind.as_ref();
        let others = [&settings.superuser.username, &settings.replication.username];
        if let Some(rewind) = rewind.filter(|rewind| !others.contains(&&rewind.username)) {
            statements.push(create_role(rewind, ""));
        }
        if let Some(rewind) = rewind {
            for function in [
                "pg_ls_dir(text, boolean, boolean)",
                "pg_stat_file(text, boolean)",
                "pg_read_binary_file(text)",
                "pg_read_binary_file(text, bigint, bigint, boolean)",
            ] {
                statements.push(format!(
                    "GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {}",
                    identifier(&rewind.username)
                ));
            }
        }
        // Passwords are in these statements: they stay out of the server's log, whatever it logs.
        let silent = "SET log_statement = none; SET log_min_error_statement = panic; \
                      SET log_min_duration_statement = -1";
        within("prepare to create the roles", QUICK, client.batch_execute(silent)).await?;
        for statement in statements {
            within("create the roles", STATEMENT_MAX, client.batch_execute(&statement)).await?;
        }
        self.post_bootstrap(settings).await
    }

    /// Patroni's contract: the script's last argument is a connection URL; its failure fails the bootstrap.
    async fn post_bootstrap(&self, settings: &PgSettings) -> Result<(), EngineError> {
        let Some(script) = &settings.post_bootstrap else { return Ok(()) };
        let (program, words) = scripts::words(script)?;
        let mut command = tool::command(Path::new(&program), &self.paths.state, &self.paths.passwords());
        let folder = config::socket_folders(&self.paths, settings).into_iter().next().unwrap_or_default();
        let user = percent_encoded(&settings.superuser.username);
        let (host, port) = (percent_encoded(&folder), settings.port);
        command.args(words).arg(format!("postgres://{user}@{host}:{port}/postgres"));
        self.say("running the post-bootstrap script".to_owned());
        tool::run("run the post-bootstrap script", command, |_| ()).await.map(drop)
    }
}

fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn create_role(role: &Credentials, attributes: &str) -> String {
    let name = identifier(&role.username);
    let password = role.password.as_ref().map_or_else(String::new, |password| {
        format!(" PASSWORD E'{}'", password.replace('\\', "\\\\").replace('\'', "''"))
    });
    format!("CREATE ROLE {name} LOGIN {attributes}{password}")
}

pub(super) fn percent_encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

/// Empties a folder.
pub(super) fn clear(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    files::sync_folder(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_a_password_cannot_break_out_of_the_statement() {
        let role = Credentials::new("a\"b", "it's \\ here");
        assert_eq!(
            create_role(&role, "REPLICATION"),
            r#"CREATE ROLE "a""b" LOGIN REPLICATION PASSWORD E'it''s \\ here'"#
        );
    }
}
