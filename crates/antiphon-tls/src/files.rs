//! Reading certificate and key files (PEM), and every way in which they can be of no use.
//!
//! Each file is named by the key of the node file that names it, so that one line of an error says what to put
//! right. Private keys are kept in memory by the TLS library alone and are never shown.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, Error, RootCertStore};
use thiserror::Error as ThisError;

use crate::provider;

/// The largest file that is read, in bytes: a bundle of all public authorities is a quarter of a megabyte.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// A validity that ends later than this is not told apart from it.
const DAYS_MAX: u32 = 36_500;

/// Where systems keep the authorities that they trust.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// A file and the setting that names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// The setting: `restapi.certfile`.
    pub key: String,
    /// The file.
    pub path: PathBuf,
}

impl File {
    /// A file that a setting names.
    pub fn new(key: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self { key: key.into(), path: path.into() }
    }
}

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.path.display())
    }
}

/// What one end proves itself with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its certificate, followed by those between it and the authority.
    pub certificates: File,
    /// Its private key; none: in the file of the certificate.
    pub key: Option<File>,
}

/// Why files cannot be used. One line that names the setting, the file and the remedy.
#[derive(Debug, ThisError)]
pub enum TlsError {
    /// It cannot be read.
    #[error("{file} could not be read; check that it is there and that the user of this process may read it")]
    Read {
        /// Which.
        file: File,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("{file} {why}")]
    Unusable {
        /// Which.
        file: File,
        /// Why, to follow its name in a sentence.
        why: String,
    },
    /// The key is another certificate's.
    #[error(
        "{key} is not the private key of the certificate in {certificates}; put the two that belong together there"
    )]
    Mismatch {
        /// The certificate.
        certificates: File,
        /// The key.
        key: File,
    },
    /// The authority did not sign the certificate.
    #[error(
        "{certificates} is not signed by the authority in {authorities}; use a certificate of that authority"
    )]
    NotSigned {
        /// The certificate.
        certificates: File,
        /// The authority.
        authorities: File,
    },
    /// This machine names no authorities.
    #[error("this machine has no bundle of trusted authorities; name the file of yours (cacert)")]
    NoSystemBundle,
}

impl TlsError {
    pub(crate) fn unusable(file: &File, why: &str) -> Self {
        Self::Unusable { file: file.clone(), why: format!("cannot be used: {why}") }
    }
}

fn read(file: &File) -> Result<Vec<u8>, TlsError> {
    use std::io::Read;
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        std::fs::File::open(&file.path)?.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(|source| TlsError::Read { file: file.clone(), source })
}

pub(crate) fn certificates(file: &File) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(file)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|error| TlsError::unusable(file, &format!("it is not PEM: {error:?}")))?;
    if found.is_empty() {
        return Err(TlsError::unusable(file, "it holds no certificate (BEGIN CERTIFICATE)"));
    }
    Ok(found)
}

fn private_key(file: &File) -> Result<PrivateKeyDer<'static>, TlsError> {
    let bytes = read(file)?;
    let has = |mark: &[u8]| bytes.windows(mark.len()).any(|window| window == mark);
    if has(b"BEGIN ENCRYPTED PRIVATE KEY") || has(b"Proc-Type: 4,ENCRYPTED") {
        return Err(TlsError::unusable(
            file,
            "the key is encrypted with a password, which is not supported; decrypt it with `openssl pkey -in OLD -out \
             NEW` and let only this process's user read it",
        ));
    }
    PrivateKeyDer::from_pem_slice(&bytes)
        .map_err(|_| TlsError::unusable(file, "it holds no private key (BEGIN PRIVATE KEY)"))
}

/// A certificate with its chain and its key, which belong together and are valid now.
pub(crate) fn identity(
    identity: &Identity,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let chain = certificates(&identity.certificates)?;
    let key_file = identity.key.as_ref().unwrap_or(&identity.certificates);
    let key = private_key(key_file)?;
    let signing = provider()
        .key_provider
        .load_private_key(key.clone_key())
        .map_err(|error| TlsError::unusable(key_file, &error.to_string()))?;
    match CertifiedKey::new(chain.clone(), signing).keys_match() {
        Ok(()) | Err(Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
        Err(Error::InconsistentKeys(_)) => {
            let (certificates, key) = (identity.certificates.clone(), key_file.clone());
            return Err(TlsError::Mismatch { certificates, key });
        }
        Err(error) => return Err(TlsError::unusable(&identity.certificates, &error.to_string())),
    }
    for certificate in &chain {
        check_date(&identity.certificates, certificate)?;
    }
    Ok((chain, key))
}

/// How many whole days from now a certificate and those between it and its authority are still valid.
///
/// # Errors
/// If the file cannot be used, or one of them is not valid now.
pub fn days_left(identity: &Identity) -> Result<u32, TlsError> {
    let file = &identity.certificates;
    let now = UnixTime::now().as_secs();
    let mut least = DAYS_MAX;
    for certificate in certificates(file)? {
        check_date(file, &certificate)?;
        let valid_in = |days: u32| {
            let then = Duration::from_secs(now.saturating_add(u64::from(days) * 24 * 3600));
            check_date_at(file, &certificate, UnixTime::since_unix_epoch(then)).is_ok()
        };
        // Halved until it is found: valid in `least`, or valid in `low` and not in `high`.
        let (mut low, mut high) = (0, least);
        if valid_in(high) {
            continue;
        }
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if valid_in(middle) {
                low = middle;
            } else {
                high = middle;
            }
        }
        least = low;
    }
    Ok(least)
}

/// Sees that a certificate is valid at this moment.
fn check_date(file: &File, certificate: &CertificateDer<'static>) -> Result<(), TlsError> {
    check_date_at(file, certificate, UnixTime::now())
}

fn check_date_at(
    file: &File,
    certificate: &CertificateDer<'static>,
    moment: UnixTime,
) -> Result<(), TlsError> {
    ParsedCertificate::try_from(certificate).map_err(|error| TlsError::unusable(file, &error.to_string()))?;
    match out_of_date(certificate, moment) {
        None => Ok(()),
        Some(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            Err(TlsError::unusable(file, "the certificate has expired; put a new one there"))
        }
        Some(_) => {
            Err(TlsError::unusable(file, "the certificate is not valid yet; check the clock of this machine"))
        }
    }
}

/// Whether a certificate has expired at a moment, or is not valid yet.
pub(crate) fn out_of_date(certificate: &CertificateDer<'_>, moment: UnixTime) -> Option<CertificateError> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    // Without authorities nothing is ever verified; a certificate's own dates are looked at before that is found.
    let (nobody, provider) = (RootCertStore::empty(), provider());
    let algorithms = provider.signature_verification_algorithms.all;
    match verify_server_cert_signed_by_trust_anchor(&parsed, &nobody, &[], moment, algorithms) {
        Err(Error::InvalidCertificate(
            verdict @ (CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. }),
        )) => Some(verdict),
        Ok(()) | Err(_) => None,
    }
}

/// The authorities in a file.
pub(crate) fn authorities(file: &File) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        check_date(file, &certificate)?;
        roots.add(certificate).map_err(|error| TlsError::unusable(file, &error.to_string()))?;
    }
    Ok(roots)
}

/// The authorities that this machine trusts.
pub(crate) fn system_authorities() -> Result<RootCertStore, TlsError> {
    let path = SYSTEM_BUNDLES.iter().map(Path::new).find(|path| path.exists());
    let file = File::new("the system's authorities", path.ok_or(TlsError::NoSystemBundle)?);
    let mut roots = RootCertStore::empty();
    // A bundle of a hundred may hold some that nobody needs and this library does not read.
    roots.add_parsable_certificates(certificates(&file)?);
    Ok(roots)
}
