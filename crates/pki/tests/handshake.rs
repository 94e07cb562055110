//! Tests with whole handshakes: some peers are let in, and others are refused.

#![expect(clippy::unwrap_used, reason = "what goes wrong ends the test")]

use pki::{Authority, Key, Pair, Trust};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use std::sync::Arc;
use time::{Duration, OffsetDateTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use types::HostId;

fn authority() -> (Authority, Pair) {
    let made = Authority::generate().unwrap();
    (Authority::load(&made.cert_pem, &made.key_pem).unwrap(), made)
}

fn host_of(authority: &Authority, id: HostId, address: &str) -> Pair {
    let key = Key::generate().unwrap();
    let leaf = authority.sign_host(&key.request().unwrap(), id, address).unwrap();
    Pair { cert_pem: leaf.cert_pem, key_pem: key.to_pem() }
}

/// Makes a certificate that the authority itself would not give.
fn odd(ca: &Pair, change: impl FnOnce(&mut CertificateParams)) -> Pair {
    let key = KeyPair::generate().unwrap();
    let issuer = KeyPair::from_pem(&ca.key_pem).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&ca.cert_pem, issuer).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, pki::CONTROL_PLANE);
    params.subject_alt_names = vec![SanType::IpAddress("127.0.0.1".parse().unwrap())];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    change(&mut params);
    let cert_pem = params.signed_by(&key, &issuer).unwrap().pem();
    Pair { cert_pem, key_pem: key.serialize_pem() }
}

fn expired(params: &mut CertificateParams) {
    params.not_before = OffsetDateTime::now_utc() - Duration::days(2);
    params.not_after = OffsetDateTime::now_utc() - Duration::minutes(10);
}

/// Reports whether a byte gets from one side to the other and back.
async fn meets(client: ClientConfig, server: ServerConfig, name: &str) -> bool {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let asking = async {
        let mut stream = TlsConnector::from(Arc::new(client)).connect(name, near).await?;
        stream.write_all(b"x").await?;
        stream.read_u8().await
    };
    let answering = async {
        let mut stream = TlsAcceptor::from(Arc::new(server)).accept(far).await?;
        let asked = stream.read_u8().await?;
        stream.write_u8(asked).await?;
        stream.shutdown().await
    };
    let (asked, answered) = tokio::join!(asking, answering);
    asked.is_ok() && answered.is_ok()
}

#[tokio::test]
async fn control_plane_and_host_of_one_authority_connect() {
    let (ca, _) = authority();
    for (address, name) in
        [("10.0.0.7", "10.0.0.7"), ("[::1]", "::1"), ("host-7.example.com", "host-7.example.com")]
    {
        let host = host_of(&ca, HostId::new(), address);
        let client = pki::dial_host(ca.trust(), &ca.control_plane().unwrap()).unwrap();
        let server = pki::accept_control_plane(ca.trust(), &host).unwrap();
        assert!(meets(client, server, name).await, "{address}");
    }
}

/// Returns the key that a server shows to a client.
async fn shown(client: ClientConfig, server: ServerConfig) -> Option<Vec<u8>> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let asking = TlsConnector::from(Arc::new(client)).connect(name, near);
    let answering = TlsAcceptor::from(Arc::new(server)).accept(far);
    let (asked, answered) = tokio::join!(asking, answering);
    answered.ok()?;
    let certs = asked.ok()?.get_ref().1.peer_certificates()?.to_vec();
    pki::public_key(certs.first()?)
}

#[tokio::test]
async fn witness_sees_new_key_while_host_serves_with_old_one() {
    let (ca, _) = authority();
    let host = host_of(&ca, HostId::new(), "127.0.0.1");
    let new = Key::generate().unwrap();
    let key_of = |request: &str| pki::public_key_of_request(request).unwrap();
    let new_key = key_of(&new.request().unwrap());
    let old_key = key_of(&Key::from_pem(&host.key_pem).unwrap().request().unwrap());
    let proves = || pki::accept_and_prove(ca.trust(), &host, &new.self_signed().unwrap()).unwrap();
    let pair = ca.control_plane().unwrap();
    let witness = || pki::witness(Some(&pair)).unwrap();
    let dials = || pki::dial_host(ca.trust(), &pair).unwrap();
    assert_eq!(shown(witness(), proves()).await, Some(new_key));
    assert_eq!(shown(dials(), proves()).await, Some(old_key.clone()));
    assert!(meets(dials(), proves(), "127.0.0.1").await);
    // A client without the control plane's certificate gets nothing by asking for the new key.
    assert_eq!(shown(pki::witness(None).unwrap(), proves()).await, None);
    let (foreign, _) = authority();
    let stranger = foreign.control_plane().unwrap();
    assert_eq!(shown(pki::witness(Some(&stranger)).unwrap(), proves()).await, None);
    // A host without a new key shows its present key.
    let serves = pki::accept_control_plane(ca.trust(), &host).unwrap();
    assert_eq!(shown(witness(), serves).await, Some(old_key));
}

#[tokio::test]
async fn host_accepts_only_control_planes_of_its_authority() {
    let (ca, root) = authority();
    let (foreign, _) = authority();
    let host = host_of(&ca, HostId::new(), "127.0.0.1");
    let other = host_of(&ca, HostId::new(), "127.0.0.1");
    let self_signed = Key::generate().unwrap().self_signed().unwrap();
    let server = || pki::accept_control_plane(ca.trust(), &host).unwrap();
    let as_who = |pair: &Pair| pki::dial_host(ca.trust(), pair).unwrap();
    // The unchanged certificate is accepted, so each refusal below comes from its change.
    assert!(meets(as_who(&odd(&root, |_| {})), server(), "127.0.0.1").await);
    let unlike = [
        ("expired", odd(&root, expired)),
        (
            "not valid yet",
            odd(&root, |p| p.not_before = OffsetDateTime::now_utc() + Duration::hours(1)),
        ),
        ("of another name", odd(&root, |p| p.distinguished_name.push(DnType::CommonName, "x"))),
        ("of no use", odd(&root, |p| p.extended_key_usages.clear())),
        ("of a foreign authority", foreign.control_plane().unwrap()),
        ("another host's", other),
        ("self-signed", self_signed),
    ];
    for (what, pair) in &unlike {
        // A certificate without a stated use may serve any. Its name alone lets it in.
        let met = meets(as_who(pair), server(), "127.0.0.1").await;
        assert_eq!(met, *what == "of no use", "{what}");
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::aws_lc_rs::default_provider(),
    ));
    let mut roots = rustls::RootCertStore::empty();
    for cert in pem(&root.cert_pem) {
        roots.add(cert).unwrap();
    }
    let nobody = builder.with_safe_default_protocol_versions().unwrap();
    let nobody = nobody.with_root_certificates(roots).with_no_client_auth();
    assert!(!meets(nobody, server(), "127.0.0.1").await, "nobody");
}

#[tokio::test]
async fn control_plane_accepts_only_the_expected_host() {
    let (ca, root) = authority();
    let (foreign, _) = authority();
    let client = || pki::dial_host(ca.trust(), &ca.control_plane().unwrap()).unwrap();
    let server = |pair: &Pair| pki::accept_control_plane(ca.trust(), pair).unwrap();
    assert!(meets(client(), server(&odd(&root, |_| {})), "127.0.0.1").await);
    let unlike = [
        ("expired", odd(&root, expired)),
        ("for another address", host_of(&ca, HostId::new(), "10.0.0.8")),
        ("of a foreign authority", host_of(&foreign, HostId::new(), "127.0.0.1")),
        ("self-signed", Key::generate().unwrap().self_signed().unwrap()),
        ("a control plane's", ca.control_plane().unwrap()),
    ];
    for (what, pair) in &unlike {
        assert!(!meets(client(), server(pair), "127.0.0.1").await, "{what}");
    }
}

#[tokio::test]
async fn tls_1_2_is_refused_on_both_sides() {
    let (ca, root) = authority();
    static TLS13: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];
    static TLS12: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS12];
    let provider = || Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let host = host_of(&ca, HostId::new(), "127.0.0.1");
    let us = ca.control_plane().unwrap();
    let mut roots = rustls::RootCertStore::empty();
    for cert in pem(&root.cert_pem) {
        roots.add(cert).unwrap();
    }
    let old = |versions: &'static [&'static rustls::SupportedProtocolVersion]| {
        let client = ClientConfig::builder_with_provider(provider());
        let client = client.with_protocol_versions(versions).unwrap();
        let client = client.with_root_certificates(roots.clone());
        client.with_client_auth_cert(pem(&us.cert_pem), key(&us.key_pem)).unwrap()
    };
    let server = || pki::accept_control_plane(ca.trust(), &host).unwrap();
    assert!(meets(old(TLS13), server(), "127.0.0.1").await);
    assert!(!meets(old(TLS12), server(), "127.0.0.1").await);
    let server = ServerConfig::builder_with_provider(provider());
    let server = server.with_protocol_versions(&[&rustls::version::TLS12]).unwrap();
    let server = server.with_no_client_auth();
    let server = server.with_single_cert(pem(&host.cert_pem), key(&host.key_pem)).unwrap();
    let client = pki::dial_host(ca.trust(), &us).unwrap();
    assert!(!meets(client, server, "127.0.0.1").await);
}

#[tokio::test]
async fn authority_rotation_keeps_all_connections_possible() {
    let (old, old_pair) = authority();
    let new_pair = Authority::generate().unwrap();
    let both = format!("{}{}", old_pair.cert_pem, new_pair.cert_pem);
    let during = Authority::load(&both, &new_pair.key_pem).unwrap();
    // Some hosts and control planes have renewed, and others have not.
    let hosts =
        [host_of(&old, HostId::new(), "127.0.0.1"), host_of(&during, HostId::new(), "127.0.0.1")];
    let planes = [old.control_plane().unwrap(), during.control_plane().unwrap()];
    let trust = Trust::from_pem(&both).unwrap();
    for host in &hosts {
        for plane in &planes {
            let client = pki::dial_host(&trust, plane).unwrap();
            let server = pki::accept_control_plane(&trust, host).unwrap();
            assert!(meets(client, server, "127.0.0.1").await);
        }
    }
    // Afterwards, the old authority is worth nothing.
    let after = Trust::from_pem(&new_pair.cert_pem).unwrap();
    let server = pki::accept_control_plane(&after, &hosts[1]).unwrap();
    assert!(!meets(pki::dial_host(&after, &planes[0]).unwrap(), server, "127.0.0.1").await);
}

#[test]
fn authority_load_refuses_mismatched_certificate_and_key() {
    let (one, other) = (Authority::generate().unwrap(), Authority::generate().unwrap());
    let (ca, _) = authority();
    let told = |certs: &str, key: &str| Authority::load(certs, key).err().map(|e| e.to_string());
    assert_eq!(told(&one.cert_pem, &one.key_pem), None);
    let wrong = told(&one.cert_pem, &other.key_pem).unwrap();
    assert!(wrong.contains("belongs to none"), "{wrong}");
    let wrong = told("x", &one.key_pem).unwrap();
    assert!(wrong.contains("not PEM"), "{wrong}");
    let host = host_of(&ca, HostId::new(), "127.0.0.1");
    let wrong = told(&host.cert_pem, &host.key_pem).unwrap();
    assert!(wrong.contains("does not belong to an authority"), "{wrong}");
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap().serialize_pem();
    assert!(told(&one.cert_pem, &p384).unwrap().contains("P-256"));
}

#[test]
fn signing_uses_only_the_key_of_a_request() {
    let (ca, _) = authority();
    let key = KeyPair::generate().unwrap();
    let mut asked = CertificateParams::new(vec!["evil.example.com".to_owned()]).unwrap();
    asked.distinguished_name.push(DnType::CommonName, pki::CONTROL_PLANE);
    asked.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let request = asked.serialize_request(&key).unwrap().pem().unwrap();
    let id = HostId::new();
    let leaf = ca.sign_host(&request, id, "127.0.0.1").unwrap();
    let cert = pem(&leaf.cert_pem).remove(0);
    assert_eq!(pki::common_name(&cert), Some(id.to_string()));
    assert_eq!(pki::fingerprint(&cert), leaf.fingerprint);
    // A clock that is a minute behind accepts the certificate, which is valid for seven days.
    let (from, to) = validity(&cert);
    let now = OffsetDateTime::now_utc();
    assert!(from < now - Duration::minutes(1) && from > now - Duration::minutes(10));
    assert!((to - now - Duration::days(7)).abs() < Duration::minutes(1));
    assert!(!String::from_utf8_lossy(&cert).contains("evil"));
    assert!(Authority::load(&leaf.cert_pem, &key.serialize_pem()).is_err());
    // A request with a wrong signature is refused.
    let mut bytes = request.clone().into_bytes();
    let at = bytes.len() - 80;
    bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
    assert!(ca.sign_host(&String::from_utf8(bytes).unwrap(), id, "127.0.0.1").is_err());
}

/// A key in both forms, made for this test.
const SEC1: &str = "-----BEGIN EC PRIVATE KEY-----\n\
    MHcCAQEEIIZd9VBT+U5QNM/MIdNt08f8Oz4LUBbwCBmboFZqB9TJoAoGCCqGSM49\n\
    AwEHoUQDQgAEY78VyLVIlaDakQoamYxFBAhEKwT56jktRAMfEQjjVeosls/dycZI\n\
    84V3SRknMrrRh51yCTcsmJQFWe27n7Dyig==\n\
    -----END EC PRIVATE KEY-----";
const PKCS8: &str = "-----BEGIN PRIVATE KEY-----\n\
    MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQghl31UFP5TlA0z8wh\n\
    023Tx/w7PgtQFvAIGZugVmoH1MmhRANCAARjvxXItUiVoNqRChqZjEUECEQrBPnq\n\
    OS1EAx8RCONV6iyWz93JxkjzhXdJGScyutGHnXIJNyyYlAVZ7bufsPKK\n\
    -----END PRIVATE KEY-----";

#[test]
fn pkcs8_and_sec1_keys_are_loaded() {
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let cert = params.self_signed(&KeyPair::from_pem(PKCS8).unwrap()).unwrap().pem();
    for key in [SEC1, PKCS8] {
        Authority::load(&cert, key).unwrap().control_plane().unwrap();
    }
}

fn validity(cert: &[u8]) -> (OffsetDateTime, OffsetDateTime) {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let (_, cert) = X509Certificate::from_der(cert).unwrap();
    (cert.validity().not_before.to_datetime(), cert.validity().not_after.to_datetime())
}

fn pem(text: &str) -> Vec<rustls::pki_types::CertificateDer<'static>> {
    use rustls::pki_types::pem::PemObject;
    rustls::pki_types::CertificateDer::pem_slice_iter(text.as_bytes()).map(|c| c.unwrap()).collect()
}

fn key(text: &str) -> rustls::pki_types::PrivateKeyDer<'static> {
    use rustls::pki_types::pem::PemObject;
    rustls::pki_types::PrivateKeyDer::from_pem_slice(text.as_bytes()).unwrap()
}
