//! The platform's certificate authority. All control planes share its key, which vouches for hosts
//! and for control planes. The trusted certificates are two while a new authority replaces an old
//! one.

use crate::identity::{Key, Pair, certificates, fingerprint, public_key};
use crate::tls::Trust;
use crate::{CONTROL_PLANE, Error};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
    SerialNumber,
};
use rustls::pki_types::CertificateDer;
use std::net::IpAddr;
use time::{Duration, OffsetDateTime};
use types::HostId;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Validity of a host's certificate.
pub const HOST_LIFE: Duration = Duration::days(7);
/// Validity of a control plane's certificate.
pub const CONTROL_PLANE_LIFE: Duration = Duration::hours(24);
/// Validity of a domain's certificate. Some clients refuse a longer one.
const WILDCARD_LIFE: Duration = Duration::days(397);
const AUTHORITY_LIFE: Duration = Duration::days(3650);
/// Time by which another clock may be behind the authority's.
const SKEW: Duration = Duration::minutes(5);

/// Certificate authority for hosts and control planes.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    trust: Trust,
}

/// A signed certificate.
#[derive(Debug, Clone)]
pub struct Leaf {
    pub cert_pem: String,
    pub fingerprint: String,
    pub expires_at: OffsetDateTime,
}

impl Authority {
    /// Makes a new authority's certificate and key.
    ///
    /// # Errors
    /// Returns an error when the certificate cannot be signed.
    pub fn generate() -> Result<Pair, Error> {
        let key = Key::generate()?;
        let mut params = lasting(AUTHORITY_LIFE);
        params.distinguished_name.push(DnType::CommonName, "Wrenn");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let cert_pem = params.self_signed(&key.0)?.pem();
        Ok(Pair { cert_pem, key_pem: key.to_pem() })
    }

    /// Loads the authority whose key is `key`. A certificate of `certs` is its own, and all of them
    /// are trusted.
    ///
    /// # Errors
    /// Returns an error when `certs` or `key` is invalid, or no certificate has this key.
    pub fn load(certs: &str, key: &str) -> Result<Self, Error> {
        let key = Key::from_pem(key)?;
        let all = certificates(certs)?;
        let ours = all.iter().find(|cert| public_key(cert) == Some(key.public_key()));
        let ours = ours.ok_or(Error::Wrong("the key belongs to none of the certificates"))?;
        all.iter().try_for_each(check)?;
        let issuer = Issuer::from_ca_cert_der(ours, key.0)?;
        Ok(Self { issuer, trust: Trust::from_pem(certs)? })
    }

    /// Returns the trusted authorities.
    #[must_use]
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Signs a certificate that vouches for a request's key as the key of a host, which is reached
    /// at `name`.
    ///
    /// # Errors
    /// Returns an error for a wrong `name`, and for a malformed or wrongly signed request.
    pub fn sign_host(&self, request: &str, host: HostId, name: &str) -> Result<Leaf, Error> {
        let request = CertificateSigningRequestParams::from_pem(request)
            .map_err(|_| Error::Wrong("the signing request is malformed or not signed"))?;
        let mut params = leaf(HOST_LIFE, &host.to_string(), ExtendedKeyUsagePurpose::ServerAuth);
        let name = name.trim_matches(['[', ']']);
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName(
                name.try_into()
                    .map_err(|_| Error::Wrong("the address is not a valid certificate name"))?,
            ),
        });
        self.sign(params, &request.public_key)
    }

    /// Makes a certificate and key for a domain and the names right below it. Clients must trust
    /// the authority.
    ///
    /// # Errors
    /// Returns an error when the domain is no name, or the certificate cannot be signed.
    pub fn wildcard(&self, domain: &str) -> Result<Pair, Error> {
        let domain = domain.trim_matches('.').to_ascii_lowercase();
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
        if domain.is_empty() || !domain.bytes().all(legal) || domain.contains("..") {
            return Err(Error::Wrong("the domain must be a name such as sandbox.example.com"));
        }
        let key = Key::generate()?;
        let mut params = leaf(WILDCARD_LIFE, &domain, ExtendedKeyUsagePurpose::ServerAuth);
        for name in [format!("*.{domain}"), domain] {
            let name = name
                .try_into()
                .map_err(|_| Error::Wrong("the domain is not a valid certificate name"))?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        let cert_pem = self.sign(params, &key.0)?.cert_pem;
        Ok(Pair { cert_pem, key_pem: key.to_pem() })
    }

    fn sign(&self, params: CertificateParams, key: &impl PublicKeyData) -> Result<Leaf, Error> {
        let expires_at = params.not_after;
        let cert = params.signed_by(key, &self.issuer)?;
        let fingerprint = fingerprint(cert.der());
        Ok(Leaf { cert_pem: cert.pem(), fingerprint, expires_at })
    }

    /// Makes a control plane's certificate and key, which stay in its memory.
    ///
    /// # Errors
    /// Returns an error when the certificate cannot be signed.
    pub fn control_plane(&self) -> Result<Pair, Error> {
        self.control_plane_for(CONTROL_PLANE_LIFE)
    }

    fn control_plane_for(&self, life: Duration) -> Result<Pair, Error> {
        let key = Key::generate()?;
        let params = leaf(life, CONTROL_PLANE, ExtendedKeyUsagePurpose::ClientAuth);
        let cert_pem = self.sign(params, &key.0)?.cert_pem;
        Ok(Pair { cert_pem, key_pem: key.to_pem() })
    }
}

/// Checks that a certificate is an authority's, and is valid now.
fn check(cert: &CertificateDer<'_>) -> Result<(), Error> {
    let parsed = X509Certificate::from_der(cert);
    let (_, cert) = parsed.map_err(|_| Error::Wrong("an authority's certificate is malformed"))?;
    if !cert.is_ca() {
        return Err(Error::Wrong("an authority's certificate does not belong to an authority"));
    }
    if !cert.validity().is_valid() {
        return Err(Error::Wrong("an authority's certificate has expired or is not valid yet"));
    }
    Ok(())
}

fn lasting(life: Duration) -> CertificateParams {
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.not_before = now - SKEW;
    params.not_after = now + life;
    params.serial_number = Some(SerialNumber::from(rand::random::<[u8; 16]>().to_vec()));
    params
}

fn leaf(life: Duration, name: &str, usage: ExtendedKeyUsagePurpose) -> CertificateParams {
    let mut params = lasting(life);
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    params
}
