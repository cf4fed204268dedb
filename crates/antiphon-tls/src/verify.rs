//! Verdicts on certificates that the library's own verifier does not give: a server's self-signed certificate that a
//! client was given as such, less than the usual for clients that were told so (`insecure`, `sslmode=require`,
//! `verify-ca`), and a member's judgement of its own certificate.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::ClientCertVerifier;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use crate::explain::flaw;
use crate::{MemberFiles, TlsError, files, provider};

/// Believes servers that an authority of the file vouches for, and a server whose very certificate is in the file,
/// as self-signed ones are.
#[derive(Debug)]
pub(crate) struct Named {
    usual: Arc<WebPkiServerVerifier>,
    given: Vec<CertificateDer<'static>>,
}

impl Named {
    pub(crate) fn new(usual: Arc<WebPkiServerVerifier>, given: Vec<CertificateDer<'static>>) -> Self {
        Self { usual, given }
    }
}

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let usual = self.usual.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        let Err(refused) = usual else { return usual };
        if !self.given.iter().any(|given| given == end_entity) {
            return Err(refused);
        }
        if let Some(out_of_date) = files::out_of_date(end_entity, now) {
            return Err(Error::InvalidCertificate(out_of_date));
        }
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

/// Does not look at the server's name; with authorities, it looks at who signed.
#[derive(Debug)]
pub(crate) struct Lenient {
    authorities: Option<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Lenient {
    /// Believes whom these authorities signed.
    pub(crate) fn signed_by(authorities: RootCertStore, provider: &CryptoProvider) -> Self {
        Self { authorities: Some(authorities), algorithms: provider.signature_verification_algorithms }
    }

    /// Believes everyone.
    pub(crate) fn anyone(provider: &CryptoProvider) -> Self {
        Self { authorities: None, algorithms: provider.signature_verification_algorithms }
    }
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(authorities) = &self.authorities {
            let parsed = ParsedCertificate::try_from(end_entity)?;
            let algorithms = self.algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&parsed, authorities, intermediates, now, algorithms)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Sees that the other members, who trust the same authorities, will accept this member on both ends.
pub(crate) fn own_certificate(
    member: &MemberFiles,
    chain: &[CertificateDer<'static>],
    as_client: &dyn ClientCertVerifier,
) -> Result<(), TlsError> {
    let file = &member.identity.certificates;
    let (own, between) =
        chain.split_first().ok_or_else(|| TlsError::unusable(file, "it holds no certificate"))?;
    let verdict = || -> Result<(), Error> {
        let (parsed, now) = (ParsedCertificate::try_from(own)?, UnixTime::now());
        let roots =
            files::authorities(&member.authorities).map_err(|error| Error::General(error.to_string()))?;
        let algorithms = provider().signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots, between, now, algorithms)?;
        as_client.verify_client_cert(own, between, now).map(drop)
    };
    match verdict() {
        Ok(()) => Ok(()),
        Err(Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => {
            Err(TlsError::NotSigned { certificates: file.clone(), authorities: member.authorities.clone() })
        }
        Err(Error::InvalidCertificate(
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. },
        )) => Err(TlsError::unusable(
            file,
            "members use it on both ends, and its extendedKeyUsage does not name both serverAuth and clientAuth",
        )),
        Err(Error::InvalidCertificate(reason)) => {
            let text =
                flaw(&reason).map_or_else(|| reason.to_string(), |flaw| format!("the certificate {flaw}"));
            Err(TlsError::unusable(file, &text))
        }
        Err(error) => Err(TlsError::unusable(file, &error.to_string())),
    }
}
