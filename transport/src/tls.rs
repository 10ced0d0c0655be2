//! TLS 1.3 with both sides known by the fingerprint of their key. Certificates carry keys and nothing else that counts.
//!
//! The verifiers compare the peer's public key with what was enrolled and leave the proof that the peer holds the private
//! key to the provider's algorithms. Sessions are never resumed: a resumed one would bypass the comparison.

use std::fmt;
use std::sync::{Arc, OnceLock};

use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, SignatureScheme,
};

use crate::enrolment::Enrolment;
use crate::identity::{Fingerprint, Identity, ParsedCertificate, PublicKey, parse_certificate};

/// Application protocol of version 1.
pub(crate) const ALPN: &[u8] = b"thirdsite/1";

/// Application protocol of a connection that measures its path.
pub(crate) const MEASURE_ALPN: &[u8] = b"thirdsite-measure/1";

/// Name that sources ask for; nothing is decided by it.
pub(crate) const SERVER_NAME: &str = "thirdsite";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Who answered, as far as the handshake came.
#[derive(Debug, Default)]
pub(crate) struct Presented(OnceLock<Option<PresentedKey>>);

/// Key that a peer presented, whether or not it was accepted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PresentedKey {
    pub(crate) fingerprint: Fingerprint,
    pub(crate) public_key: PublicKey,
}

impl Presented {
    /// The peer's key; none if no certificate of an Ed25519 key came.
    pub(crate) fn key(&self) -> Option<PresentedKey> {
        self.0.get().copied().flatten()
    }

    fn record(&self, certificate: &CertificateDer<'_>) -> Result<PresentedKey, Error> {
        let key =
            parse_certificate(certificate).map(|ParsedCertificate { fingerprint, public_key, .. }| {
                PresentedKey { fingerprint, public_key }
            });
        // A handshake has one certificate message; the first is the one that counts.
        self.0.set(key).ok();
        key.ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))
    }
}

/// Accepts a site with one of these fingerprints.
struct PinnedSite {
    expected: Vec<Fingerprint>,
    presented: Arc<Presented>,
    provider: Arc<CryptoProvider>,
}

/// Accepts the sources of a list.
struct EnrolledSources {
    enrolment: Enrolment,
    presented: Arc<Presented>,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for PinnedSite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedSite").field("expected", &self.expected).finish_non_exhaustive()
    }
}

impl fmt::Debug for EnrolledSources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnrolledSources").field("enrolment", &self.enrolment).finish_non_exhaustive()
    }
}

fn refuse_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
}

impl ServerCertVerifier for PinnedSite {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.expected.contains(&self.presented.record(certificate)?.fingerprint) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        refuse_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for EnrolledSources {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let key = self.presented.record(certificate)?;
        if self.enrolment.find(&key.fingerprint).is_some() {
            return Ok(ClientCertVerified::assertion());
        }
        Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        refuse_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// What one attempt to connect uses, and what it learns about the site.
pub(crate) fn source_config(
    identity: &Identity,
    expected: &[Fingerprint],
    protocol: &[u8],
) -> Result<(QuicClientConfig, Arc<Presented>), Error> {
    let presented = Arc::new(Presented::default());
    let provider = provider();
    let verifier =
        PinnedSite { expected: expected.to_vec(), presented: presented.clone(), provider: provider.clone() };
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(vec![identity.certificate()], PrivateKeyDer::Pkcs8(identity.private_key()))?;
    config.alpn_protocols = vec![protocol.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok((QuicClientConfig::try_from(config).map_err(no_cipher)?, presented))
}

/// What one handshake at the site uses, and what it learns about the source.
pub(crate) fn site_config(
    identity: &Identity,
    enrolment: Enrolment,
) -> Result<(QuicServerConfig, Arc<Presented>), Error> {
    let presented = Arc::new(Presented::default());
    let provider = provider();
    let verifier = EnrolledSources { enrolment, presented: presented.clone(), provider: provider.clone() };
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(vec![identity.certificate()], PrivateKeyDer::Pkcs8(identity.private_key()))?;
    config.alpn_protocols = vec![ALPN.to_vec(), MEASURE_ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok((QuicServerConfig::try_from(config).map_err(no_cipher)?, presented))
}

fn no_cipher(error: NoInitialCipherSuite) -> Error {
    Error::General(error.to_string())
}
