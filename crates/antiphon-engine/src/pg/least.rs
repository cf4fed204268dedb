//! The least that a standby must be started with: what its leader ran with when the WAL here was written.
//!
//! PostgreSQL refuses hot standby with less of five settings than the primary has, which the control file
//! remembers. A setting that was lowered and that the leader has not been restarted for yet must therefore not
//! keep a follower from starting: it starts with the old value, given on the command line, and goes on waiting for
//! a restart.

use super::Inner;
use super::binaries::Binaries;
use super::tool;

/// The settings, and what `pg_controldata` calls them.
const SETTINGS: [(&str, &str); 5] = [
    ("max_connections", "max_connections setting"),
    ("max_worker_processes", "max_worker_processes setting"),
    ("max_wal_senders", "max_wal_senders setting"),
    ("max_prepared_transactions", "max_prepared_xacts setting"),
    ("max_locks_per_transaction", "max_locks_per_xact setting"),
];

impl Inner {
    /// `name=value` for each setting that the configuration has less of than the WAL here was written with. None
    /// if that cannot be told: the server itself says what is wrong then.
    pub(super) async fn least(&self, binaries: &Binaries) -> Vec<String> {
        let (Ok(reader), Ok(postgres)) = (binaries.program("pg_controldata"), binaries.program("postgres"))
        else {
            return Vec::new();
        };
        let mut command = tool::command(&reader, &self.paths.state, &self.paths.passwords());
        command.arg("-D").arg(&self.paths.data);
        let mut needed = Vec::new();
        let read = |line: &str| needed.extend(needs(line));
        if let Err(error) = tool::run("read the control file", command, read).await {
            tracing::debug!(error = crate::sentence(&error), "the leader's settings are not known");
            return Vec::new();
        }
        let mut config = std::ffi::OsString::from("config_file=");
        config.push(self.paths.config());
        let mut least = Vec::new();
        for (name, needs) in needed {
            let mut command = tool::command(&postgres, &self.paths.state, &self.paths.passwords());
            command.arg("-D").arg(&self.paths.data).arg("-c").arg(&config).arg("-C").arg(name);
            let said = tool::run("read a setting", command, |_| ()).await.unwrap_or_default();
            let configured = said.last().and_then(|line| line.trim().parse::<u64>().ok());
            if configured.is_some_and(|configured| configured < needs) {
                tracing::warn!(
                    name,
                    configured,
                    needs,
                    "the leader still has more of this setting: starting with that; restart the leader, then this server"
                );
                least.push(format!("{name}={needs}"));
            }
        }
        least
    }
}

/// A setting and its value from a line of `pg_controldata`.
fn needs(line: &str) -> Option<(&'static str, u64)> {
    let (label, value) = line.split_once(':')?;
    let (name, _) = SETTINGS.iter().find(|(_, known)| *known == label.trim())?;
    Some((*name, value.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_five_settings_are_read_and_nothing_else_is() {
        assert_eq!(needs("max_connections setting:              100"), Some(("max_connections", 100)));
        assert_eq!(
            needs("max_locks_per_xact setting:           64"),
            Some(("max_locks_per_transaction", 64))
        );
        for line in
            ["wal_level setting:                    replica", "max_connections setting: many", "x", ""]
        {
            assert_eq!(needs(line), None, "{line}");
        }
    }
}
