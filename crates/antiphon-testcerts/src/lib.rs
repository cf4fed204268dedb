//! Authorities and certificates for tests, made when a test runs: none lies in the repository, and none expires
//! there. For tests only: keys are written without a password, and a failure panics.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// An authority, with its certificate in a file.
pub struct Authority {
    /// Its certificate.
    pub file: PathBuf,
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, in files.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate.
    pub certificate: PathBuf,
    /// The private key, mode 0600.
    pub key: PathBuf,
}

/// What a certificate is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Good {
    /// For both ends, for years.
    Now,
    /// It was, years ago.
    Before,
    /// For servers only.
    ForServers,
    /// For both ends, until 2200.
    ForCenturies,
    /// It is an authority of its own.
    AsAuthority,
}

impl Authority {
    /// A new one; its files go to `dir`.
    pub fn new(dir: &Path, name: &str) -> Self {
        fs::create_dir_all(dir).expect("a directory for certificates");
        let mut params = params(name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let file = dir.join(format!("{name}.crt"));
        write(&file, &certificate.pem());
        Self { file, dir: dir.to_owned(), issuer: Issuer::new(params, key) }
    }

    /// A certificate that is good now, for these names and addresses.
    pub fn issue(&self, name: &str, hosts: &[&str]) -> Issued {
        self.issue_good(name, hosts, Good::Now)
    }

    /// One that nobody but itself vouches for, as `openssl req -x509` makes it.
    pub fn self_signed(dir: &Path, name: &str, hosts: &[&str]) -> Issued {
        let mut params = params(name, hosts);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let issued =
            Issued { certificate: dir.join(format!("{name}.crt")), key: dir.join(format!("{name}.key")) };
        write(&issued.certificate, &certificate.pem());
        write(&issued.key, &key.serialize_pem());
        issued
    }

    /// A certificate that is good from now on for so long.
    pub fn issue_for(&self, name: &str, hosts: &[&str], span: Duration) -> Issued {
        let mut params = params(name, hosts);
        params.not_after = (SystemTime::now() + span).into();
        self.sign(name, &params)
    }

    /// A certificate with limits. Files of an earlier one of that name are replaced.
    pub fn issue_good(&self, name: &str, hosts: &[&str], good: Good) -> Issued {
        let mut params = params(name, hosts);
        params.extended_key_usages = match good {
            Good::Now | Good::Before | Good::ForCenturies | Good::AsAuthority => {
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
            }
            Good::ForServers => vec![ExtendedKeyUsagePurpose::ServerAuth],
        };
        if good == Good::Before {
            params.not_before = date_time_ymd(2001, 1, 1);
            params.not_after = date_time_ymd(2002, 1, 1);
        }
        if good == Good::ForCenturies {
            params.not_after = date_time_ymd(2200, 1, 1);
        }
        if good == Good::AsAuthority {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        self.sign(name, &params)
    }

    fn sign(&self, name: &str, params: &CertificateParams) -> Issued {
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let issued = Issued {
            certificate: self.dir.join(format!("{name}.crt")),
            key: self.dir.join(format!("{name}.key")),
        };
        write(&issued.certificate, &certificate.pem());
        write(&issued.key, &key.serialize_pem());
        issued
    }
}

fn params(name: &str, hosts: &[&str]) -> CertificateParams {
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let mut params = CertificateParams::new(hosts).expect("names and addresses");
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// Replaces a file. Keys and certificates alike are for the owner only: libpq insists on it for keys.
fn write(file: &Path, text: &str) {
    // A file that is not there needs no removal.
    let _ = fs::remove_file(file);
    let opened = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    opened.expect("a file").write_all(text.as_bytes()).expect("written");
}
