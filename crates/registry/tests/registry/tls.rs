//! Registries over TLS: authorities, client certificates, and the ways back to plain HTTP.

use crate::fake::{Fake, Fault};
use crate::sample::{Sample, layers, settings};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use registry::{Client, Error, Login, RegistrySettings, Settings};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::path::PathBuf;
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;

/// An authority, and the files that it wrote.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    cert: rcgen::Certificate,
    folder: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), cert.pem()).unwrap();
        Self { issuer: Issuer::new(params, key), cert, folder }
    }

    fn file(&self, name: &str) -> Option<PathBuf> {
        Some(self.folder.path().join(name))
    }

    /// Signs a certificate for `localhost`.
    fn sign(&self) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// Serves a registry over TLS, and returns its host.
    #[allow(clippy::disallowed_methods, reason = "the server ends with the test's runtime")]
    async fn serve(&self, fake: &Fake, wants_client: bool) -> String {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let (cert, key) = self.sign();
        let chain: Vec<CertificateDer<'static>> = vec![cert.der().clone()];
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let mut roots = RootCertStore::empty();
        roots.add(self.cert.der().clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
        let builder = ServerConfig::builder();
        let builder = if wants_client {
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let acceptor = TlsAcceptor::from(Arc::new(builder.with_single_cert(chain, key).unwrap()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let to = fake.host();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, to) = (acceptor.clone(), to.clone());
                tokio::spawn(async move {
                    let mut tls = acceptor.accept(stream).await?;
                    let mut plain = tokio::net::TcpStream::connect(to).await?;
                    tokio::io::copy_bidirectional(&mut tls, &mut plain).await
                });
            }
        });
        format!("localhost:{port}")
    }
}

fn with(host: &str, registry: RegistrySettings, rest: &[&Fake]) -> Settings {
    let mut settings = settings(rest);
    let registry = RegistrySettings { private: true, ..registry };
    settings.registries.insert(host.to_owned(), registry);
    settings.limits.tries = 1;
    settings
}

async fn pull(settings: Settings, host: &str, login: Option<Login>) -> Result<(), Error> {
    let client = Client::new(settings)?;
    let name = format!("{host}/team/app:1").parse()?;
    let image = client.image(&client.resolve(&name, login).await?).await?;
    layers(&image).await.map(|_| ())
}

#[tokio::test]
async fn authority_of_the_settings_is_trusted() {
    let (fake, authority) = (Fake::start().await, Authority::new());
    Sample::of(b"layer").push(&fake, "team/app", "1");
    let host = authority.serve(&fake, false).await;
    let ca_file = authority.file("ca.pem");
    let own = RegistrySettings { ca_file, ..Default::default() };
    pull(with(&host, own, &[]), &host, None).await.unwrap();
    let error = pull(with(&host, Default::default(), &[]), &host, None).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains(&format!("`registries.\"{host}\".ca_file`")), "{error}");
    let missing = RegistrySettings { ca_file: Some("/nowhere".into()), ..Default::default() };
    let error = Client::new(with(&host, missing, &[])).err().unwrap().to_string();
    assert!(error.contains(".ca_file`: /nowhere: "), "{error}");
}

#[tokio::test]
async fn client_certificate_of_the_settings_is_shown() {
    let (fake, authority) = (Fake::start().await, Authority::new());
    Sample::of(b"layer").push(&fake, "team/app", "1");
    let host = authority.serve(&fake, true).await;
    let (cert, key) = authority.sign();
    std::fs::write(authority.file("cert.pem").unwrap(), cert.pem()).unwrap();
    std::fs::write(authority.file("key.pem").unwrap(), key.serialize_pem()).unwrap();
    let own = RegistrySettings {
        ca_file: authority.file("ca.pem"),
        client_certificate: authority.file("cert.pem"),
        client_key: authority.file("key.pem"),
        ..Default::default()
    };
    pull(with(&host, own.clone(), &[]), &host, None).await.unwrap();
    let without = RegistrySettings { client_certificate: None, client_key: None, ..own.clone() };
    assert!(pull(with(&host, without, &[]), &host, None).await.is_err());
    let half = RegistrySettings { client_key: None, ..own };
    assert!(matches!(Client::new(with(&host, half, &[])), Err(Error::Settings { .. })));
}

#[tokio::test]
async fn plain_http_behind_an_encrypted_registry_is_refused() {
    let (fake, authority, other) = (Fake::start().await, Authority::new(), Fake::start().await);
    let sample = Sample::of(b"layer");
    sample.push(&fake, "team/app", "1");
    let host = authority.serve(&fake, false).await;
    let ca_file = authority.file("ca.pem");
    let own = RegistrySettings { ca_file, ..Default::default() };
    let mut settings = with(&host, own, &[&other]);
    settings.registries.get_mut(&other.host()).unwrap().http = false;
    fake.fault(sample.layer_digest(), Fault::Redirect(307, other.url("/storage/x")));
    let error = pull(settings.clone(), &host, None).await.unwrap_err();
    assert!(matches!(error, Error::NotEncrypted { what: "redirect", .. }), "{error}");
    assert!(error.to_string().contains(".http = true`"), "{error}");
    fake.demand(&[format!("Bearer realm=\"{}\"", other.url("/token"))], &["Bearer t"]);
    let login = Login::Password { username: "bob".into(), password: "hunter22".into() };
    let error = pull(settings, &host, Some(login)).await.unwrap_err();
    assert!(matches!(error, Error::NotEncrypted { .. }), "{error}");
    assert!(other.seen().is_empty());
}

#[tokio::test]
async fn registry_that_speaks_plain_http_is_told() {
    let fake = Fake::start().await;
    let mut settings = settings(&[&fake]);
    settings.registries.get_mut(&fake.host()).unwrap().http = false;
    settings.limits.tries = 1;
    let error = pull(settings, &fake.host(), None).await.unwrap_err();
    assert!(error.to_string().contains(".http = true` permits"), "{error}");
}
