//! The HTTPS listener. It serves the same requests as the plain listener, with a certificate from
//! files. Changed files are loaded again.

use super::listen;
use crate::settings::Tls;
use anyhow::Context;
use control_plane::{App, Secure};
use daemon::Tasks;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Time between two checks of the files for changes.
const LOOK: Duration = Duration::from_secs(30);

/// HTTPS listener before it serves. Its address is known already.
pub(super) struct Https {
    listener: TcpListener,
    files: Files,
}

#[derive(Clone)]
struct Files {
    cert: PathBuf,
    key: PathBuf,
}

impl Files {
    fn read(&self) -> anyhow::Result<rustls::ServerConfig> {
        let read = |path: &Path, setting: &str| {
            let what = || format!("cannot read {} ({setting})", path.display());
            fs::read_to_string(path).with_context(what)
        };
        let cert_pem = read(&self.cert, "WRENN_TLS_CERT")?;
        let key_pem = read(&self.key, "WRENN_TLS_KEY")?;
        if let Some(at) = ::pki::expires_at(&cert_pem) {
            daemon::report_expiry("public", at.unix_timestamp());
        }
        let config = ::pki::serve_public(&::pki::Pair { cert_pem, key_pem });
        config.context("cannot use the certificate (WRENN_TLS_CERT) and its key (WRENN_TLS_KEY)")
    }

    /// Returns the modification times of the certificate and the key.
    fn written(&self) -> [Option<SystemTime>; 2] {
        [&self.cert, &self.key].map(|path| fs::metadata(path).ok()?.modified().ok())
    }
}

impl Https {
    /// Opens the listener. Returns `None` when no address is configured.
    pub(super) async fn listen(settings: &Tls) -> anyhow::Result<Option<Self>> {
        let Some(at) = settings.tls_listen else { return Ok(None) };
        let (Some(cert), Some(key)) = (settings.tls_cert.clone(), settings.tls_key.clone()) else {
            anyhow::bail!(
                "WRENN_TLS_LISTEN_ADDR needs WRENN_TLS_CERT and WRENN_TLS_KEY; `wrenn pki wildcard \
                 DOMAIN` creates both"
            );
        };
        let listener = listen(at, "WRENN_TLS_LISTEN_ADDR").await?;
        Ok(Some(Self { listener, files: Files { cert, key } }))
    }

    pub(super) fn address(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    pub(super) fn serve(self, app: &App, tasks: &Tasks) -> anyhow::Result<()> {
        let mut written = self.files.written();
        let (sender, receiver) = watch::channel(Arc::new(self.files.read()?));
        tracing::info!(address = %self.address()?, "serving HTTPS");
        let server = Secure(app.clone().server());
        hop::serve_tls(self.listener, receiver, server, app.limits(), tasks);
        let files = self.files;
        tasks.every(LOOK, move || {
            let now = files.written();
            if now != written {
                match files.read() {
                    Ok(config) => {
                        written = now;
                        sender.send_replace(Arc::new(config));
                        tracing::info!("read the changed certificate");
                    }
                    // The certificate may have been replaced before its key, so the next check
                    // tries again.
                    Err(error) => {
                        tracing::warn!(
                            error = format!("{error:#}"),
                            "cannot read the changed certificate"
                        );
                    }
                }
            }
            std::future::ready(())
        });
        Ok(())
    }
}
