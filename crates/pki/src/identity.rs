//! Keys and certificates: makes them, reads them and identifies them.

use crate::Error;
use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use types::hex;
use x509_parser::prelude::{FromDer, X509Certificate, X509CertificationRequest};

/// A private key, ECDSA P-256. It leaves this type only for its file.
pub struct Key(pub(crate) KeyPair);

impl Key {
    /// Makes a new key.
    ///
    /// # Errors
    /// Returns an error when the system has no randomness.
    pub fn generate() -> Result<Self, Error> {
        Ok(Self(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?))
    }

    /// Reads a stored key, as PKCS#8 or SEC1.
    ///
    /// # Errors
    /// Returns an error when the text is no PEM, or the key is of another kind.
    pub fn from_pem(pem: &str) -> Result<Self, Error> {
        let der = PrivateKeyDer::from_pem_slice(pem.as_bytes());
        let der = der.map_err(|_| Error::NotPem("the key"))?;
        let pair = KeyPair::from_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256);
        Ok(Self(pair.map_err(|_| Error::Wrong("the key must be an ECDSA P-256 key"))?))
    }

    /// Returns the key as PEM, for its file.
    #[must_use]
    pub fn to_pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// Makes a signing request, which proves possession of the key. The authority alone decides on
    /// the certificate's contents.
    ///
    /// # Errors
    /// Returns an error when the request cannot be signed.
    pub fn request(&self) -> Result<String, Error> {
        Ok(CertificateParams::default().serialize_request(&self.0)?.pem()?)
    }

    /// Makes a certificate without an authority. It shows the key and proves nothing else.
    ///
    /// # Errors
    /// Returns an error when the certificate cannot be signed.
    pub fn self_signed(&self) -> Result<Pair, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "wrenn host before enrolment");
        let cert_pem = params.self_signed(&self.0)?.pem();
        Ok(Pair { cert_pem, key_pem: self.to_pem() })
    }

    pub(crate) fn public_key(&self) -> Vec<u8> {
        use rcgen::PublicKeyData;
        self.0.subject_public_key_info()
    }
}

/// A certificate and its key.
#[derive(Clone)]
pub struct Pair {
    pub cert_pem: String,
    pub key_pem: String,
}

impl Pair {
    pub(crate) fn parts(
        &self,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
        let certs = certificates(&self.cert_pem)?;
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes());
        Ok((certs, key.map_err(|_| Error::NotPem("the key"))?))
    }
}

pub(crate) fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let certs: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let certs = certs.map_err(|_| Error::NotPem("the certificate"))?;
    if certs.is_empty() { Err(Error::NotPem("the certificate")) } else { Ok(certs) }
}

/// Returns the fingerprint of a DER certificate: its SHA-256 in hexadecimal digits.
#[must_use]
pub fn fingerprint(cert: &[u8]) -> String {
    hex::encode(&Sha256::digest(cert))
}

/// Returns the fingerprint of a PEM certificate. Returns `None` when the text is no PEM.
#[must_use]
pub fn fingerprint_of_pem(pem: &str) -> Option<String> {
    certificates(pem).ok()?.first().map(|cert| fingerprint(cert))
}

/// Returns the expiry of a PEM certificate. Returns `None` when the text holds no certificate.
#[must_use]
pub fn expires_at(pem: &str) -> Option<OffsetDateTime> {
    let certs = certificates(pem).ok()?;
    let (_, cert) = X509Certificate::from_der(certs.first()?).ok()?;
    Some(cert.validity().not_after.to_datetime())
}

/// Returns the common name of a DER certificate, if it has one.
#[must_use]
pub fn common_name(cert: &[u8]) -> Option<String> {
    let (_, cert) = X509Certificate::from_der(cert).ok()?;
    let mut names = cert.subject().iter_common_name();
    names.next()?.as_str().ok().map(str::to_owned)
}

/// Returns the public key of a DER certificate. Returns `None` for anything else.
#[must_use]
pub fn public_key(cert: &[u8]) -> Option<Vec<u8>> {
    let (_, cert) = X509Certificate::from_der(cert).ok()?;
    Some(cert.public_key().raw.to_vec())
}

/// Returns the public key of a PEM signing request. Returns `None` for anything else.
#[must_use]
pub fn public_key_of_request(pem: &str) -> Option<Vec<u8>> {
    let der = rustls::pki_types::CertificateSigningRequestDer::from_pem_slice(pem.as_bytes());
    let der = der.ok()?;
    let (_, request) = X509CertificationRequest::from_der(&der).ok()?;
    Some(request.certification_request_info.subject_pki.raw.to_vec())
}
