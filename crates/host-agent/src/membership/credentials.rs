//! Credentials of this host, in `host-credentials.json`. Only the file's owner may read it, and it
//! is replaced in one step.

use anyhow::Context;
use pki::{Key, Pair, Trust};
use rustls::ServerConfig;
use serde::{Deserialize, Serialize};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Least remaining life of a certificate with which a host begins to serve.
const SPARE: Duration = Duration::from_secs(3600);

/// Contents of the file.
#[derive(Clone, Serialize, Deserialize)]
pub struct Credentials {
    pub(super) host_id: String,
    pub(super) jwt: String,
    pub(super) refresh_token: String,
    /// Certificate of this host. The certificate and the next two fields are `None` if the platform
    /// has no certificates.
    cert_pem: Option<String>,
    key_pem: Option<String>,
    pub(super) ca_cert_pem: Option<String>,
    /// URL of the platform's API.
    pub(super) control_plane: String,
    /// Address at which control planes reach this host.
    pub(super) address: String,
    /// Address at which this host listened when it registered.
    #[serde(default)]
    pub(super) listens: Option<SocketAddr>,
    pub(super) renew_at: SystemTime,
}

impl Credentials {
    /// Returns the path of the file.
    #[must_use]
    pub fn path(dir: &Path) -> PathBuf {
        dir.join("host-credentials.json")
    }

    pub(super) fn new(control_plane: &str, address: &str) -> Self {
        Self {
            host_id: String::new(),
            jwt: String::new(),
            refresh_token: String::new(),
            cert_pem: None,
            key_pem: None,
            ca_cert_pem: None,
            control_plane: control_plane.to_owned(),
            address: address.to_owned(),
            listens: None,
            renew_at: SystemTime::UNIX_EPOCH,
        }
    }

    /// Stores the credentials that the platform issued for a key.
    pub(super) fn take(&mut self, given: api::HostCredentials, key: &Key) {
        self.host_id = given.host_id;
        self.jwt = given.jwt;
        self.refresh_token = given.refresh_token;
        self.key_pem = given.cert_pem.is_some().then(|| key.to_pem());
        self.cert_pem = given.cert_pem;
        self.ca_cert_pem = given.ca_cert_pem;
        // The renewal comes up to a tenth sooner, so hosts that enrolled together do not renew
        // together.
        let sooner = 1.0 - f64::from(rand::random::<f32>()) / 10.0;
        self.renew_at = SystemTime::now() + Duration::from_secs(given.renew_in).mul_f64(sooner);
    }

    pub(super) fn load(path: &Path) -> anyhow::Result<Self> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => anyhow::bail!(
                "this host is not enrolled ({} is missing); get a token with `wrenn host add`, \
                 then run `wrenn agent --register TOKEN --address IP:PORT`",
                path.display()
            ),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        serde_json::from_slice(&text).with_context(|| format!("cannot read {}", path.display()))
    }

    pub(super) fn save(&self, path: &Path) -> anyhow::Result<()> {
        let what = || format!("cannot write {}", path.display());
        daemon::write_private(path, &serde_json::to_vec_pretty(self)?).with_context(what)
    }

    /// Reports whether a host can serve by these credentials at `address` now, for control planes
    /// of these authorities.
    pub(super) fn serve(&self, trust: &str, address: &str) -> bool {
        let now = SystemTime::now();
        let until = self.cert_pem.as_deref().and_then(pki::expires_at);
        self.address == address
            && self.ca_cert_pem.as_deref() == Some(trust)
            && until.is_some_and(|until| SystemTime::from(until) > now + SPARE)
    }

    /// Returns the SHA-256 of the certificate, in hexadecimal digits.
    pub(super) fn fingerprint(&self) -> Option<String> {
        self.cert_pem.as_deref().and_then(pki::fingerprint_of_pem)
    }

    /// Returns the configuration by which this host serves TLS; `None` if the platform has no
    /// certificates. `proven` is a new key that control planes may look for.
    pub(super) fn tls(&self, proven: Option<&Key>) -> anyhow::Result<Option<ServerConfig>> {
        let (Some(cert), Some(key), Some(trust)) =
            (&self.cert_pem, &self.key_pem, &self.ca_cert_pem)
        else {
            return Ok(None);
        };
        if let Some(at) = pki::expires_at(cert) {
            daemon::report_expiry("host", at.unix_timestamp());
        }
        let pair = Pair { cert_pem: cert.clone(), key_pem: key.clone() };
        accept(&pair, trust, proven).map(Some).context("cannot use this host's certificate")
    }
}

/// Returns the configuration by which this host serves TLS.
fn accept(pair: &Pair, trust: &str, proven: Option<&Key>) -> anyhow::Result<ServerConfig> {
    let trust = Trust::from_pem(trust)?;
    Ok(match proven {
        None => pki::accept_control_plane(&trust, pair)?,
        Some(key) => pki::accept_and_prove(&trust, pair, &key.self_signed()?)?,
    })
}
