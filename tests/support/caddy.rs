//! Caddy in front of a platform, run with the deployed Caddyfile and certificates of its own CA.

use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Running Caddy server.
pub struct Caddy {
    dir: TempDir,
    process: Child,
    /// Address at which Caddy serves TLS.
    pub address: SocketAddr,
}

/// Returns a free port. It is below the ports that the kernel gives to outgoing connections, so it
/// stays free for a while.
#[must_use]
pub fn free_port() -> u16 {
    let random = || u16::try_from(RandomState::new().build_hasher().finish() % 12_000).unwrap();
    let mut ports = std::iter::repeat_with(|| 20_000 + random()).take(100);
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

impl Caddy {
    /// Starts Caddy for a domain at a port, in front of the platform at `url`.
    ///
    /// # Panics
    /// When Caddy does not start.
    #[must_use]
    pub fn start(domain: &str, port: u16, url: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("wrenn-caddy-").tempdir().unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let log = File::create(dir.path().join("log")).unwrap();
        let mut process = Command::new("caddy")
            .args(["run", "--adapter", "caddyfile", "--config"])
            .arg(root.join("deploy/Caddyfile"))
            .env("WRENN_DOMAIN", domain)
            .env("WRENN_UPSTREAM", url.strip_prefix("http://").unwrap())
            .env("WRENN_HTTPS_PORT", port.to_string())
            .env("WRENN_HTTP_PORT", free_port().to_string())
            .env("XDG_DATA_HOME", dir.path())
            .env("XDG_CONFIG_HOME", dir.path())
            .env("HOME", dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("caddy is missing: run ./test, which installs it");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let limit = Instant::now() + Duration::from_secs(30);
        let name = format!("*.{domain}");
        let certificate =
            dir.path().join("caddy/certificates/local").join(name.replace('*', "wildcard_"));
        while std::net::TcpStream::connect(address).is_err() || !certificate.exists() {
            let log = || std::fs::read_to_string(dir.path().join("log")).unwrap();
            assert!(process.try_wait().unwrap().is_none(), "caddy ended: {}", log());
            assert!(Instant::now() < limit, "caddy does not serve: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { dir, process, address }
    }

    /// Returns the root of Caddy's certificates.
    fn root(&self) -> Vec<u8> {
        std::fs::read(self.dir.path().join("caddy/pki/authorities/local/root.crt")).unwrap()
    }

    /// Builds a client that resembles a browser: it trusts the root, speaks HTTP/2, and resolves
    /// these names to Caddy.
    ///
    /// # Panics
    /// When the root cannot be read.
    #[must_use]
    pub fn client(&self, names: &[&str]) -> reqwest::Client {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let root = reqwest::Certificate::from_pem(&self.root()).unwrap();
        let mut builder = reqwest::Client::builder().no_proxy().tls_certs_only([root]);
        builder = builder.redirect(reqwest::redirect::Policy::none());
        for name in names {
            builder = builder.resolve(name, self.address);
        }
        builder.build().unwrap()
    }

    /// Builds the settings of TLS connections that trust the root and speak HTTP/1.1.
    ///
    /// # Panics
    /// When the root cannot be read.
    #[must_use]
    pub fn tls(&self) -> Arc<rustls::ClientConfig> {
        use rustls::pki_types::pem::PemObject;
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut roots = rustls::RootCertStore::empty();
        let root = rustls::pki_types::CertificateDer::from_pem_slice(&self.root()).unwrap();
        roots.add(root).unwrap();
        let config = rustls::ClientConfig::builder().with_root_certificates(roots);
        Arc::new(config.with_no_client_auth())
    }
}

impl Drop for Caddy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
