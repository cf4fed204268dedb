//! The keys that name certificates, keys and authorities, in every section that has them.
//!
//! Read into what the TLS layer takes, each file with the key that names it. Nothing is opened here: whether the
//! files are of use is found when they are loaded, after root is given up.

use antiphon_tls::{ClientFiles, Clients, File, Identity, MemberFiles, ServerFiles, Trust};

use super::section::Section;

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
    section.without_effect(
        &["ciphers"],
        "TLS 1.2 and 1.3 are spoken with forward secrecy and authenticated encryption; there is nothing weaker to leave out",
    );
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
