//! TLS for the one connection that Antiphon itself makes to a server elsewhere: to the source of a rewind.
//!
//! Everything else over TCP (streaming, base backups, pg_rewind) is libpq's, which reads the same options. Here
//! they mean the same, but that revocation lists and channel binding are not used: nothing but a timeline is
//! asked for on this connection, and a password never crosses it in the clear (SCRAM).

use antiphon_tls::{ClientFiles, ClientTls, Connector, File, Identity, TlsError, Trust};
use tokio_postgres::config::SslMode;

use super::settings::Credentials;

/// How a role's options have a server elsewhere spoken to.
pub(super) fn of(role: &Credentials) -> Result<(SslMode, Connector), TlsError> {
    let option = |name: &str| role.options.get(name).map(String::as_str);
    let file = |name: &str| option(name).map(|path| File::new(name, path));
    let (mode, trust) = match (option("sslmode").unwrap_or("prefer"), option("sslrootcert")) {
        ("disable", _) => (SslMode::Disable, Trust::Anyone),
        ("allow" | "prefer", _) => (SslMode::Prefer, Trust::Anyone),
        // With an authority at hand `require` verifies by it, as libpq does.
        ("require" | "verify-ca", Some(path)) if path != "system" => {
            (SslMode::Require, Trust::AnyName(File::new("sslrootcert", path)))
        }
        ("require", _) => (SslMode::Require, Trust::Anyone),
        (_, Some(path)) if path != "system" => {
            (SslMode::Require, Trust::Authorities(File::new("sslrootcert", path)))
        }
        (_, Some(_) | None) => (SslMode::Require, Trust::System),
    };
    let identity = file("sslcert").map(|certificates| Identity { certificates, key: file("sslkey") });
    let tls = ClientTls::load(&ClientFiles { identity, trust })?;
    Ok((mode, tls.connector()))
}
