//! The keys that name certificates, keys and authorities, in every section that has them, the router's with the
//! names that PgBouncer gave them.
//!
//! Read into what the TLS layer takes, each file with the key that names it. Nothing is opened here: whether the
//! files are of use is found when they are loaded, after root is given up.

use antiphon_router::Encryption;
use antiphon_tls::{ClientFiles, Clients, File, Identity, MemberFiles, ServerFiles, Trust};

use super::section::Section;

/// Why ciphers cannot be chosen.
pub(super) const NOTHING_WEAKER: &str = "TLS 1.2 and 1.3 are spoken with forward secrecy and authenticated encryption; there is nothing weaker to leave out";
/// Of an authority that nothing is verified by.
const UNVERIFIED: &str =
    "has no effect: nothing is verified by it unless sslmode is verify-ca or verify-full";
const ENCRYPTED_KEY: &str = "is not supported: a key must be readable as it is; decrypt it with `openssl pkey -in OLD -out \
                             NEW`, give the new file mode 0600, and remove the password";

/// How the API speaks TLS (`restapi`); none: in the clear.
pub(super) fn api(section: &Section<'_>) -> Option<ServerFiles> {
    #[derive(Clone, Copy)]
    enum Verify {
        None,
        Optional,
        Required,
    }
    let identity = identity(section, "certfile", "keyfile");
    let authorities = file(section, "cafile");
    let modes = [("none", Verify::None), ("optional", Verify::Optional), ("required", Verify::Required)];
    let verify = section.choice("verify_client", &modes).unwrap_or(Verify::None);
    section.refused(&["keyfile_password"], ENCRYPTED_KEY);
    section.without_effect(&["ciphers"], NOTHING_WEAKER);
    let clients = match (verify, authorities) {
        (Verify::None, _) => Clients::NotAsked,
        (Verify::Optional, Some(authorities)) => Clients::Optional(authorities),
        (Verify::Required, Some(authorities)) => Clients::Required(authorities),
        (Verify::Optional | Verify::Required, None) => {
            section.problem("verify_client", "needs cafile: the authority whose certificates clients show");
            return None;
        }
    };
    if identity.is_none() && clients != Clients::NotAsked {
        section.problem("verify_client", "needs certfile: without it the API speaks no TLS");
    }
    Some(ServerFiles { identity: identity?, clients })
}

/// How the command line speaks TLS to members (`ctl`, with `restapi.cafile` to fall back on).
pub(super) fn ctl(section: Option<&Section<'_>>, restapi: Option<&Section<'_>>) -> ClientFiles {
    let insecure = section.and_then(|section| section.switch("insecure")).unwrap_or(false);
    let authorities = section
        .and_then(|section| file(section, "cacert"))
        .or_else(|| restapi.and_then(|section| file(section, "cafile")));
    let identity = section.and_then(|section| identity(section, "certfile", "keyfile"));
    if let Some(section) = section {
        section.refused(&["keyfile_password"], ENCRYPTED_KEY);
    }
    let trust = match authorities {
        _ if insecure => Trust::Anyone,
        Some(authorities) => Trust::Authorities(authorities),
        None => Trust::System,
    };
    ClientFiles { identity, trust }
}

/// How members speak TLS to each other (`tls` in `raft` or `heartbeat`); none: in the clear.
pub(super) fn members(section: &Section<'_>) -> Option<MemberFiles> {
    let section = section.section("tls")?;
    for (name, what) in [
        ("certfile", "this member's certificate"),
        ("cafile", "the authority that signed the certificates of all members"),
    ] {
        if section.get(name).is_none() {
            section.problem(name, format!("is missing: name the file of {what}"));
        }
    }
    let (identity, authorities) = (identity(&section, "certfile", "keyfile"), file(&section, "cafile"));
    section.refused(&["keyfile_password"], ENCRYPTED_KEY);
    section.finish();
    Some(MemberFiles { identity: identity?, authorities: authorities? })
}

/// How etcd is spoken to (`etcd3`) when `encrypted`; none: in the clear.
pub(super) fn etcd(section: &Section<'_>, encrypted: bool) -> Option<ClientFiles> {
    let (identity, authorities) = (identity(section, "cert", "key"), file(section, "cacert"));
    if !encrypted {
        for name in ["cacert", "cert"].into_iter().filter(|name| section.get(name).is_some()) {
            section.problem(name, "needs protocol: https, or a url that begins with https://");
        }
        return None;
    }
    let trust = authorities.map_or(Trust::System, Trust::Authorities);
    Some(ClientFiles { identity, trust })
}

/// How the clients of a router speak TLS to it.
#[derive(Clone, Debug)]
pub struct RouterClientsTls {
    /// What they are shown, and what they show.
    pub files: ServerFiles,
    /// Nobody is let in in the clear.
    pub required: bool,
}

/// How a router speaks to servers.
#[derive(Clone, Debug)]
pub struct RouterServersTls {
    /// Whom it believes, and what it shows.
    pub files: ClientFiles,
    /// Whether it is done inside TLS.
    pub encryption: Encryption,
}

/// How strict a side is, as PgBouncer and libpq name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

const SSL_MODES: [(&str, SslMode); 6] = [
    ("disable", SslMode::Disable),
    ("allow", SslMode::Allow),
    ("prefer", SslMode::Prefer),
    ("require", SslMode::Require),
    ("verify-ca", SslMode::VerifyCa),
    ("verify-full", SslMode::VerifyFull),
];

/// How clients speak TLS to the router (`client_tls_…`); none: in the clear only. `rules_ask`: some of those who log
/// in have to show a certificate.
pub(super) fn router_clients(section: &Section<'_>, rules_ask: bool) -> Option<RouterClientsTls> {
    use SslMode::{Allow, Disable, Prefer, Require, VerifyCa, VerifyFull};
    let mode = section.choice("client_tls_sslmode", &SSL_MODES).unwrap_or(Disable);
    let identity = identity(section, "client_tls_cert_file", "client_tls_key_file");
    let authorities = file(section, "client_tls_ca_file");
    if section.get("client_tls_sslmode").is_none() && identity.is_some() {
        section.problem(
            "client_tls_cert_file",
            "needs client_tls_sslmode, which is disable unless it is given: say require, or prefer to let clients choose",
        );
    }
    let clients = match (mode, authorities) {
        (Disable, _) => return None,
        // Some may be asked, and others have none.
        (Allow | Prefer | Require, Some(authorities)) if rules_ask => Clients::Optional(authorities),
        (Allow | Prefer | Require, authorities) => {
            if authorities.is_some() {
                section.warning("client_tls_ca_file", UNVERIFIED);
            }
            Clients::NotAsked
        }
        (VerifyCa | VerifyFull, Some(authorities)) => Clients::Required(authorities),
        (VerifyCa | VerifyFull, None) => {
            section.problem(
                "client_tls_ca_file",
                "is missing: client_tls_sslmode asks clients for certificates; name the file of the authority that signed theirs",
            );
            return None;
        }
    };
    if section.get("client_tls_cert_file").is_none() {
        section.problem(
            "client_tls_cert_file",
            "is missing: clients are to speak TLS; name the file of the router's certificate",
        );
    }
    let required = !matches!(mode, Disable | Allow | Prefer);
    Some(RouterClientsTls { files: ServerFiles { identity: identity?, clients }, required })
}

/// How the router speaks TLS to servers (`server_tls_…`).
pub(super) fn router_servers(section: &Section<'_>) -> RouterServersTls {
    use SslMode::{Allow, Disable, Prefer, Require, VerifyCa, VerifyFull};
    let mode = section.choice("server_tls_sslmode", &SSL_MODES).unwrap_or(Prefer);
    let identity = identity(section, "server_tls_cert_file", "server_tls_key_file");
    let identity = identity.filter(|_| mode != Disable);
    let trust = match (mode, file(section, "server_tls_ca_file")) {
        (VerifyCa, Some(authorities)) => Trust::AnyName(authorities),
        (VerifyFull, Some(authorities)) => Trust::Authorities(authorities),
        (Disable | Allow | Prefer | Require, Some(_)) => {
            section.warning("server_tls_ca_file", UNVERIFIED);
            Trust::Anyone
        }
        (VerifyCa | VerifyFull, None) => {
            if section.get("server_tls_ca_file").is_none() {
                section.problem(
                    "server_tls_ca_file",
                    "is missing: server_tls_sslmode verifies servers; name the file of the authority that signed their certificates",
                );
            }
            Trust::Anyone
        }
        (Disable | Allow | Prefer | Require, None) => Trust::Anyone,
    };
    let encryption = match mode {
        Disable => Encryption::Off,
        Allow | Prefer => Encryption::Preferred,
        Require | VerifyCa | VerifyFull => Encryption::Required,
    };
    RouterServersTls { files: ClientFiles { identity, trust }, encryption }
}

/// How the router speaks to the members' APIs (`agents_tls`, keys as in `ctl`); none: in the clear. Beside a member
/// whose API speaks TLS it is what the command line goes by, unless the file says otherwise.
pub(super) fn router_agents(section: &Section<'_>, top: &Section<'_>) -> Option<ClientFiles> {
    if let Some(own) = section.section("agents_tls") {
        let files = ctl(Some(&own), top.section("restapi").as_ref());
        own.finish();
        return Some(files);
    }
    if section.has("agents_tls") {
        section.problem(
            "agents_tls",
            "is empty; give it cacert, the authority of the members' APIs, or remove it",
        );
        return None;
    }
    let restapi = top.section("restapi").filter(|restapi| restapi.get("certfile").is_some())?;
    Some(ctl(top.section("ctl").as_ref(), Some(&restapi)))
}

fn identity(section: &Section<'_>, certificates: &str, key: &str) -> Option<Identity> {
    let (certificates_file, key_file) = (file(section, certificates), file(section, key));
    if key_file.is_some() && section.get(certificates).is_none() {
        section.problem(key, format!("needs {certificates}: a key proves nothing without its certificate"));
    }
    Some(Identity { certificates: certificates_file?, key: key_file })
}

fn file(section: &Section<'_>, name: &str) -> Option<File> {
    section.path(name).map(|path| File::new(section.path_of(name), path))
}
