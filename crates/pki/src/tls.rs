//! TLS configurations. The platform's parts speak TLS 1.3 alone and resume no session. So every
//! connection proves anew who is at its ends. The public side also speaks TLS 1.2.

use crate::identity::{Pair, certificates, common_name};
use crate::{CONTROL_PLANE, Error};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, DistinguishedName,
    RootCertStore, ServerConfig, SignatureScheme, WantsVerifier,
};
use std::sync::Arc;

/// Protocol (ALPN) of a control plane that looks for a host's new key. Hosts of earlier versions
/// ignore it.
const PROOF: &[u8] = b"wrenn-proof";

/// Trusted authorities.
#[derive(Debug, Clone)]
pub struct Trust {
    roots: Arc<RootCertStore>,
    pem: String,
}

impl Trust {
    /// Reads the authorities in a PEM bundle.
    ///
    /// # Errors
    /// Returns an error when the bundle holds no certificate, or an unreadable one.
    pub fn from_pem(pem: &str) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        for cert in certificates(pem)? {
            roots.add(cert)?;
        }
        Ok(Self { roots: Arc::new(roots), pem: pem.to_owned() })
    }

    /// Returns the PEM bundle.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn client() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, Error> {
    let builder = ClientConfig::builder_with_provider(provider());
    Ok(builder.with_protocol_versions(&[&rustls::version::TLS13])?)
}

fn server() -> Result<ConfigBuilder<ServerConfig, WantsVerifier>, Error> {
    let builder = ServerConfig::builder_with_provider(provider());
    Ok(builder.with_protocol_versions(&[&rustls::version::TLS13])?)
}

/// Makes the configuration by which a control plane, as `pair`, dials hosts. It accepts only hosts
/// that the authorities vouch for.
///
/// # Errors
/// Returns an error when the certificate or its key cannot be used.
pub fn dial_host(trust: &Trust, pair: &Pair) -> Result<ClientConfig, Error> {
    let (certs, key) = pair.parts()?;
    let builder = client()?.with_root_certificates(Arc::clone(&trust.roots));
    let mut config = builder.with_client_auth_cert(certs, key)?;
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Makes the configuration by which a host, as `pair`, serves. It accepts only control planes that
/// the authorities vouch for.
///
/// # Errors
/// Returns an error when the certificate or its key cannot be used.
pub fn accept_control_plane(trust: &Trust, pair: &Pair) -> Result<ServerConfig, Error> {
    accept(trust, Shown { serves: certified(pair)?, proven: None })
}

/// Works like [`accept_control_plane`], but shows a [`witness`] the certificate `proven`. The host
/// has asked for a certificate for that key.
///
/// # Errors
/// Returns an error when a certificate or its key cannot be used.
pub fn accept_and_prove(trust: &Trust, pair: &Pair, proven: &Pair) -> Result<ServerConfig, Error> {
    accept(trust, Shown { serves: certified(pair)?, proven: Some(certified(proven)?) })
}

fn accept(trust: &Trust, shown: Shown) -> Result<ServerConfig, Error> {
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(&trust.roots), provider());
    let verifier =
        verifier.build().map_err(|_| Error::Wrong("no trusted authority is configured"))?;
    let builder = server()?.with_client_cert_verifier(Arc::new(ControlPlanes(verifier)));
    let mut config = builder.with_cert_resolver(Arc::new(shown));
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn certified(pair: &Pair) -> Result<Arc<CertifiedKey>, Error> {
    let (certs, key) = pair.parts()?;
    Ok(Arc::new(CertifiedKey::from_der(certs, key, &provider())?))
}

/// The certificates of a host: its own, and perhaps another for a control plane that looks for the
/// host's new key.
#[derive(Debug)]
struct Shown {
    serves: Arc<CertifiedKey>,
    proven: Option<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let looks = hello.alpn().is_some_and(|mut offered| offered.any(|name| name == PROOF));
        let shown = self.proven.as_ref().filter(|_| looks).unwrap_or(&self.serves);
        Some(Arc::clone(shown))
    }
}

/// Makes the configuration by which a host without a certificate of the authority shows its key.
/// Anybody may connect.
///
/// # Errors
/// Returns an error when the certificate or its key cannot be used.
pub fn prove(pair: &Pair) -> Result<ServerConfig, Error> {
    let (certs, key) = pair.parts()?;
    let mut config = server()?.with_no_client_auth().with_single_cert(certs, key)?;
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Makes the configuration for the public, whose clients have no certificate: TLS 1.2 or 1.3,
/// HTTP/2 or HTTP/1.1.
///
/// # Errors
/// Returns an error when the certificate or its key cannot be used.
pub fn serve_public(pair: &Pair) -> Result<ServerConfig, Error> {
    let (certs, key) = pair.parts()?;
    let builder = ServerConfig::builder_with_provider(provider());
    let builder = builder.with_safe_default_protocol_versions()?;
    let mut config = builder.with_no_client_auth().with_single_cert(certs, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Makes the configuration by which a control plane finds out the key that answers at an address.
/// With `pair`, the control plane shows its certificate. The control plane must not send anything
/// over such a connection.
///
/// # Errors
/// Returns an error when the certificate or its key cannot be used.
pub fn witness(pair: Option<&Pair>) -> Result<ClientConfig, Error> {
    let builder =
        client()?.dangerous().with_custom_certificate_verifier(Arc::new(AnyKey(provider())));
    let mut config = match pair.map(Pair::parts).transpose()? {
        Some((certs, key)) => builder.with_client_auth_cert(certs, key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![PROOF.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Verifier that accepts only control planes' certificates of the authorities.
#[derive(Debug)]
struct ControlPlanes(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for ControlPlanes {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        cert: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.0.verify_client_cert(cert, intermediates, now)?;
        if common_name(cert).as_deref() == Some(CONTROL_PLANE) {
            return Ok(verified);
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Verifier that accepts any certificate whose key the other side has.
#[derive(Debug)]
struct AnyKey(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyKey {
    fn verify_server_cert(
        &self,
        _cert: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not supported".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let schemes = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signed, schemes)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
