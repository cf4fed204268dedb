//! Why a TLS connection failed, in words for who has to put it right: what the library knows as a code.

use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

/// The reason of a failed connection, to follow "it" or "the member there" in a sentence. What has nothing to do
/// with TLS is told as the system does.
pub fn explain(error: &io::Error) -> String {
    reason(error).unwrap_or_else(|| error.to_string())
}

/// The same if TLS is the reason; none if the connection itself failed.
pub fn reason(error: &io::Error) -> Option<String> {
    error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()).map(sentence)
}

fn sentence(error: &Error) -> String {
    let text = match error {
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => "it does not speak TLS",
        Error::NoCertificatesPresented => "it gave no certificate, and one is required",
        Error::PeerIncompatible(_) => {
            "it offers neither TLS 1.2 nor 1.3 with a cipher suite that is used here"
        }
        Error::AlertReceived(alert) => return objection(*alert),
        Error::InvalidCertificate(reason) => return complaint(reason),
        other => return format!("the TLS connection failed: {other}"),
    };
    text.to_owned()
}

/// What the other end says of us.
fn objection(alert: AlertDescription) -> String {
    let text = match alert {
        AlertDescription::CertificateRequired => "it wants a certificate, and none was given",
        AlertDescription::UnknownCA => {
            "it does not trust the authority that signed the certificate given here"
        }
        AlertDescription::CertificateExpired => "it finds the certificate given here out of date",
        // Some servers say this when there was none, too.
        AlertDescription::BadCertificate => {
            "it wants a certificate that it accepts, and was given none or another"
        }
        AlertDescription::CertificateUnknown
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::AccessDenied
        | AlertDescription::DecryptError => "it does not accept the certificate given here",
        AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure => {
            "it accepts neither TLS 1.2 nor 1.3 with a cipher suite that is used here"
        }
        other => return format!("it ended the TLS connection: {other:?}"),
    };
    text.to_owned()
}

/// What we say of the other end's certificate.
fn complaint(reason: &CertificateError) -> String {
    let text = match reason {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "its certificate is not signed by an authority that is trusted here"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "its certificate has expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet; compare the clocks"
        }
        CertificateError::NotValidForName => "its certificate does not name the host that was connected to",
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names: Vec<&str> = presented.iter().map(|name| plain(name)).collect();
            let names = if names.is_empty() { "no name".to_owned() } else { names.join(", ") };
            return format!(
                "its certificate is not for {}, which was connected to; its subjectAltName has {names}",
                expected.to_str()
            );
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the extendedKeyUsage of its certificate does not allow this end (serverAuth, clientAuth)"
        }
        other => match flaw(other) {
            Some(flaw) => return format!("its certificate {flaw}"),
            None => return format!("its certificate cannot be used: {other}"),
        },
    };
    text.to_owned()
}

/// `DnsName("n1.example")` and `IpAddress(10.0.0.1)` without their wrappers.
fn plain(name: &str) -> &str {
    let inner = name.split_once('(').map_or(name, |(_, inner)| inner);
    inner.trim_end_matches(')').trim_matches('"')
}

/// What is wrong with a certificate that was made as one easily does, to follow it in a sentence. The library
/// shows these by their code only.
pub(crate) fn flaw(reason: &CertificateError) -> Option<&'static str> {
    let code = format!("{reason:?}");
    if code.contains("CaUsedAsEndEntity") {
        Some("is an authority's own (self-signed, CA:TRUE); have an authority sign one for this host")
    } else if code.contains("UnsupportedCertVersion") {
        Some("is of X.509 version 1, which has no names in it; sign it with a subjectAltName")
    } else {
        None
    }
}

/// What the other end says of our certificate, if that is why a connection failed: it did nothing that was asked
/// of it. Looks through the causes of any error.
pub fn rejection(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let inner = inner.and_then(|inner| inner.downcast_ref::<Error>());
        if let Some(Error::AlertReceived(alert)) = inner.or_else(|| error.downcast_ref::<Error>())
            && is_about_certificates(*alert)
        {
            return Some(objection(*alert));
        }
        next = error.source();
    }
    None
}

fn is_about_certificates(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::CertificateRequired
            | AlertDescription::UnknownCA
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::AccessDenied
    )
}
