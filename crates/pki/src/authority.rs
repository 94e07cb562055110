//! The authority: one key that every control plane has, which vouches for hosts and for control
//! planes, and certificates of those that are trusted, which are two while one replaces another.

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

/// How long a host's certificate is valid.
pub const HOST_LIFE: Duration = Duration::days(7);
/// How long a control plane's certificate is valid.
pub const CONTROL_PLANE_LIFE: Duration = Duration::hours(24);
/// How long a domain's certificate is valid: longer ones, some clients refuse.
const WILDCARD_LIFE: Duration = Duration::days(397);
const AUTHORITY_LIFE: Duration = Duration::days(3650);
/// By how much a clock may be behind the authority's.
const SKEW: Duration = Duration::minutes(5);

/// Vouches for hosts and control planes.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    trust: Trust,
}

/// A certificate of a host.
#[derive(Debug, Clone)]
pub struct Leaf {
    pub cert_pem: String,
    pub fingerprint: String,
    pub expires_at: OffsetDateTime,
}

impl Authority {
    /// A new authority's certificate and key.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn generate() -> Result<Pair, Error> {
        let key = Key::generate()?;
        let mut params = lasting(AUTHORITY_LIFE);
        params.distinguished_name.push(DnType::CommonName, "Wrenn");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let cert_pem = params.self_signed(&key.0)?.pem();
        Ok(Pair { cert_pem, key_pem: key.to_pem() })
    }

    /// An authority whose key is `key`: its certificate is one of `certs`, and all of those are
    /// trusted.
    ///
    /// # Errors
    /// What is wrong with either, or that they do not belong together.
    pub fn load(certs: &str, key: &str) -> Result<Self, Error> {
        let key = Key::from_pem(key)?;
        let all = certificates(certs)?;
        let ours = all.iter().find(|cert| public_key(cert) == Some(key.public_key()));
        let ours = ours.ok_or(Error::Wrong("the key belongs to none of the certificates"))?;
        all.iter().try_for_each(check)?;
        let issuer = Issuer::from_ca_cert_der(ours, key.0)?;
        Ok(Self { issuer, trust: Trust::from_pem(certs)? })
    }

    /// Those that are trusted.
    #[must_use]
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Vouches that a request's key is a host's, which is reached at `name`.
    ///
    /// # Errors
    /// When the request is none, or is not signed by its key.
    pub fn sign_host(&self, request: &str, host: HostId, name: &str) -> Result<Leaf, Error> {
        let request = CertificateSigningRequestParams::from_pem(request)
            .map_err(|_| Error::Wrong("the signing request cannot be read, or is not signed"))?;
        let mut params = leaf(HOST_LIFE, &host.to_string(), ExtendedKeyUsagePurpose::ServerAuth);
        let name = name.trim_matches(['[', ']']);
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName(
                name.try_into().map_err(|_| Error::Wrong("the address is no name"))?,
            ),
        });
        self.sign(params, &request.public_key)
    }

    /// A certificate and key for a domain and the names right below it, for anyone who trusts the
    /// authority.
    ///
    /// # Errors
    /// When the domain is no name, or it cannot be signed.
    pub fn wildcard(&self, domain: &str) -> Result<Pair, Error> {
        let domain = domain.trim_matches('.').to_ascii_lowercase();
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
        if domain.is_empty() || !domain.bytes().all(legal) || domain.contains("..") {
            return Err(Error::Wrong("the domain must be a name as sandbox.example.com"));
        }
        let key = Key::generate()?;
        let mut params = leaf(WILDCARD_LIFE, &domain, ExtendedKeyUsagePurpose::ServerAuth);
        for name in [format!("*.{domain}"), domain] {
            let name = name.try_into().map_err(|_| Error::Wrong("the domain is no name"))?;
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

    /// A control plane's certificate and key, which stay in its memory.
    ///
    /// # Errors
    /// When it cannot be signed.
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

/// Checks that a certificate may vouch for others, today.
fn check(cert: &CertificateDer<'_>) -> Result<(), Error> {
    let parsed = X509Certificate::from_der(cert);
    let (_, cert) = parsed.map_err(|_| Error::Wrong("an authority's certificate is none"))?;
    if !cert.is_ca() {
        return Err(Error::Wrong("an authority's certificate is not that of an authority"));
    }
    if !cert.validity().is_valid() {
        return Err(Error::Wrong("an authority's certificate has expired, or is not valid yet"));
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
