//! The control plane's identity towards hosts: a certificate that it signs itself and keeps in
//! memory. The certificate is renewed long before it expires, and no connection is dropped.

use crate::error::{Error, Result};
use anyhow::Context;
use daemon::Tasks;
use pki::Authority;
use rustls::ClientConfig;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use types::HostId;

/// Time between two renewals, half of a certificate's life.
const RENEW: Duration = Duration::from_secs(12 * 3600);

/// The authority, and the current TLS configuration for connections to hosts.
pub(crate) struct CertStore {
    pub authority: Authority,
    current: watch::Sender<Arc<ClientConfig>>,
}

impl CertStore {
    /// Loads the authority from its certificates and key (PEM).
    pub(crate) fn new(certs: &str, key: &str) -> anyhow::Result<Self> {
        let authority = Authority::load(certs, key);
        let authority =
            authority.context("cannot load the authority (WRENN_CA_CERT, WRENN_CA_KEY)")?;
        let current = watch::Sender::new(config(&authority)?);
        Ok(Self { authority, current })
    }

    /// Returns a hash that identifies the set of trusted authorities.
    pub(crate) fn trust_hash(&self) -> String {
        pki::fingerprint(self.authority.trust().pem().as_bytes())
    }

    /// Signs a certificate for a host's key.
    pub(crate) fn sign(&self, request: &str, host: HostId, name: &str) -> Result<pki::Leaf> {
        let signed = self.authority.sign_host(request, host, name);
        signed.map_err(|e| Error::invalid("csr_pem", e.to_string()))
    }

    /// Returns the configuration for finding out which key answers at an address.
    pub(crate) fn witness(&self) -> Result<ClientConfig> {
        let made = self.authority.control_plane().and_then(|pair| pki::witness(Some(&pair)));
        made.map_err(|error| Error::Internal(error.into()))
    }

    /// Returns the configuration for the next connection.
    pub(crate) fn current(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.current.borrow())
    }

    /// Makes a new certificate. Open connections go on.
    pub(crate) fn renew(&self) -> anyhow::Result<()> {
        self.current.send_replace(config(&self.authority)?);
        tracing::info!("renewed this control plane's certificate");
        Ok(())
    }

    /// Renews the certificate periodically, and on SIGHUP.
    pub(crate) fn spawn_renewal(self: &Arc<Self>, tasks: &Tasks) {
        let (this, at) = (Arc::clone(self), tasks.clone());
        tasks.spawn(async move {
            let Ok(mut hangups) = daemon::hangups() else { return };
            loop {
                tokio::select! {
                    () = tokio::time::sleep(RENEW) => {}
                    () = hangups.next() => {}
                    () = at.stopping() => return,
                }
                if let Err(error) = this.renew() {
                    tracing::error!(
                        error = format!("{error:#}"),
                        "cannot renew this control plane's certificate"
                    );
                }
            }
        });
    }
}

fn config(authority: &Authority) -> anyhow::Result<Arc<ClientConfig>> {
    let pair = authority.control_plane()?;
    report_expiry("control_plane", &pair.cert_pem);
    report_expiry("authority", authority.trust().pem());
    Ok(Arc::new(pki::dial_host(authority.trust(), &pair)?))
}

/// Sets the gauge of a certificate's end.
fn report_expiry(certificate: &'static str, pem: &str) {
    if let Some(at) = pki::expires_at(pem) {
        daemon::report_expiry(certificate, at.unix_timestamp());
    }
}

/// Reports whether a host is a loopback address, and so on this machine.
pub(crate) fn is_loopback(host: &str) -> bool {
    host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
