//! This host's membership in a platform. The host registers once. After that it sends heartbeats,
//! renews its credentials long before they expire, and serves only the platform's control planes.
//!
//! The host's private key is made here and stays here. If the platform is lost, nothing changes on
//! this host: capsules run on, and the host keeps asking the platform for as long as it takes.

mod credentials;

pub use credentials::Credentials;

use crate::context::AgentContext;
use crate::standing;
use anyhow::Context;
use daemon::Tasks;
use pki::Key;
use reqwest::StatusCode;
use rustls::ServerConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

/// Period of the heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// Time limit for the platform's answer.
const ANSWER: Duration = Duration::from_secs(30);
/// Time limit for a client that checks this host's key, since other clients may wait.
const SHOWING: Duration = Duration::from_secs(2);
/// Number of attempts to register, each with the same key.
const TRIES: u32 = 5;
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Values that a host registers with.
pub struct Registration {
    pub token: String,
    /// Address at which control planes reach this host, as `HOST:PORT`.
    pub address: String,
    /// URL of the platform's API.
    pub control_plane: String,
}

/// Source of this host's reports to the platform: its properties and its load.
#[derive(Clone)]
pub struct About(pub(crate) Arc<AgentContext>);

/// Membership of this host in a platform.
pub struct Membership {
    path: PathBuf,
    http: reqwest::Client,
    credentials: Credentials,
    tls: Option<watch::Sender<Arc<ServerConfig>>>,
}

/// Reason why the platform did not answer as asked.
enum Refused {
    /// The host's credentials are not valid.
    Credentials(String),
    /// The request is not valid.
    Request(String),
    /// The platform does not know this host.
    Unknown,
    /// The platform may answer later.
    Other(anyhow::Error),
}

impl Registration {
    /// Returns the URL of the platform's API, without a slash at its end.
    fn base(&self) -> &str {
        self.control_plane.trim_end_matches('/')
    }

    fn request(&self, about: &About, key: &Key) -> anyhow::Result<api::RegisterHost> {
        Ok(api::RegisterHost {
            token: self.token.clone(),
            address: self.address.clone(),
            csr_pem: Some(key.request()?),
            specs: about.specs(),
        })
    }
}

impl Membership {
    /// Loads the membership that this host was given before.
    ///
    /// # Errors
    /// Fails when there is none, and says what to do.
    pub fn load(dir: &Path) -> anyhow::Result<Self> {
        let path = Credentials::path(dir);
        let credentials = Credentials::load(&path)?;
        Self::new(path, http()?, credentials)
    }

    /// Loads the membership that this host was given before, if this host can still serve by it.
    /// The certificate must be valid, of the authorities in `trust`, and for `address`.
    #[must_use]
    pub fn standing(dir: &Path, trust: &str, address: &str) -> Option<Self> {
        let before = Self::load(dir).ok()?;
        (before.tls.is_some() && before.credentials.serve(trust, address)).then_some(before)
    }

    /// Registers at the platform, which checks that this host answers at `listener`.
    ///
    /// # Errors
    /// Fails with the platform's reason, or when the platform cannot be reached.
    pub async fn register(
        dir: &Path,
        asked: &Registration,
        about: &About,
        listener: &TcpListener,
    ) -> anyhow::Result<Self> {
        let (http, key) = (http()?, Key::generate()?);
        let request = asked.request(about, &key)?;
        let base = asked.base();
        let acceptor = TlsAcceptor::from(Arc::new(pki::prove(&key.self_signed()?)?));
        let given: api::HostCredentials = tokio::select! {
            given = ask(&http, base, &request) => given?,
            never = show(listener, &acceptor) => never,
        };
        let mut credentials = Credentials::new(base, &asked.address);
        credentials.listens = listener.local_addr().ok();
        credentials.take(given, &key);
        let path = Credentials::path(dir);
        credentials.save(&path)?;
        tracing::info!(host = credentials.host_id, address = asked.address, "enrolled");
        Self::new(path, http, credentials)
    }

    /// Registers this host again. The host serves by its earlier credentials until it has new ones.
    ///
    /// # Errors
    /// Fails when the platform refuses the registration, or cannot be reached.
    pub async fn register_anew(
        &mut self,
        asked: &Registration,
        about: &About,
    ) -> anyhow::Result<()> {
        let key = Key::generate()?;
        let request = asked.request(about, &key)?;
        self.serve_by(Some(&key))?;
        let given = ask(&self.http, asked.base(), &request).await;
        let taken = given.and_then(|given| {
            let mut credentials = Credentials::new(asked.base(), &asked.address);
            credentials.listens = self.credentials.listens;
            self.take(credentials, given, &key)
        });
        self.serve_by(None)?;
        taken?;
        tracing::info!(host = self.host(), address = asked.address, "enrolled");
        Ok(())
    }

    /// Switches to new credentials once they are on the disk. Until then the old ones are still
    /// valid.
    fn take(
        &mut self,
        mut credentials: Credentials,
        given: api::HostCredentials,
        key: &Key,
    ) -> anyhow::Result<()> {
        credentials.take(given, key);
        credentials.save(&self.path)?;
        self.credentials = credentials;
        Ok(())
    }

    /// Makes the next handshakes use this host's current credentials. A control plane that looks
    /// for `proven` at this host's address finds that key.
    fn serve_by(&self, proven: Option<&Key>) -> anyhow::Result<()> {
        if let (Some(tls), Some(config)) = (&self.tls, self.credentials.tls(proven)?) {
            tls.send_replace(Arc::new(config));
        }
        Ok(())
    }

    fn new(path: PathBuf, http: reqwest::Client, credentials: Credentials) -> anyhow::Result<Self> {
        let tls = credentials.tls(None)?.map(|config| watch::Sender::new(Arc::new(config)));
        Ok(Self { path, http, credentials, tls })
    }

    /// Returns the id of this host.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.credentials.host_id
    }

    /// Returns the SHA-256 of this host's certificate, in hexadecimal digits. Returns `None` if the
    /// platform has no certificates.
    #[must_use]
    pub fn fingerprint(&self) -> Option<String> {
        self.credentials.fingerprint()
    }

    /// Returns the address at which this host listened when it registered.
    #[must_use]
    pub fn listens(&self) -> Option<SocketAddr> {
        self.credentials.listens
    }

    /// Returns the TLS configuration for each handshake; `None` if the platform has no
    /// certificates.
    #[must_use]
    pub fn tls(&self) -> Option<hop::Tls> {
        self.tls.as_ref().map(watch::Sender::subscribe)
    }

    /// Spawns the task that sends heartbeats and renews the credentials, for as long as the process
    /// lives. `control_plane` is the platform's current URL; it replaces the URL from the file.
    pub fn spawn(mut self, about: About, control_plane: Option<String>, tasks: &Tasks) {
        if let Some(url) = control_plane {
            self.credentials.control_plane = url;
        }
        let (at, standing) = (tasks.clone(), Arc::clone(&about.0.standing));
        tasks.spawn(async move {
            let Ok(mut hangups) = daemon::hangups() else { return };
            let mut told = true;
            loop {
                let sent = standing::now();
                let heard = self.beat(&about).await;
                standing.heard(sent, heard.is_ok());
                match &heard {
                    Ok(()) if !told => tracing::info!("the platform answers again"),
                    Err(error) if told => {
                        tracing::warn!(
                            error = format!("{error:#}"),
                            "cannot reach the platform; trying again"
                        );
                    }
                    _ => {}
                }
                told = heard.is_ok();
                tokio::select! {
                    () = tokio::time::sleep(HEARTBEAT) => {}
                    () = standing.asked() => {}
                    () = hangups.next() => {
                        if let Err(error) = self.renew().await {
                            tracing::warn!(error = format!("{error:#}"), "renewing");
                        }
                    }
                    () = at.stopping() => return,
                }
            }
        });
    }

    /// Sends a heartbeat, and renews the credentials when that is due.
    async fn beat(&mut self, about: &About) -> anyhow::Result<()> {
        // A failed renewal does not stop the heartbeats, since the credentials last for days more.
        if self.credentials.renew_at <= SystemTime::now()
            && let Err(error) = self.renew().await
        {
            tracing::warn!(error = format!("{error:#}"), "renewing");
        }
        let trust = self.credentials.ca_cert_pem.as_deref();
        let word = api::Heartbeat {
            specs: about.specs(),
            load: about.load(),
            trust: trust.map(|pem| pki::fingerprint(pem.as_bytes())),
        };
        let path = format!("/v1/hosts/{}/heartbeat", self.credentials.host_id);
        let request = self.http.post(format!("{}{path}", self.credentials.control_plane));
        let request = request.bearer_auth(&self.credentials.jwt);
        match exchange::<_, api::HeartbeatAnswer>(request, &word).await {
            Ok(answer) if answer.renew => self.renew().await,
            Ok(_) => Ok(()),
            Err(Refused::Credentials(_)) => self.renew().await,
            Err(Refused::Unknown) => anyhow::bail!(
                "the platform does not know this host; its capsules keep running; enrol it again \
                 with `wrenn agent --register`"
            ),
            Err(Refused::Request(why)) => {
                anyhow::bail!("the platform refused the heartbeat: {why}")
            }
            Err(Refused::Other(error)) => Err(error),
        }
    }

    /// Gets new credentials for a new key, and switches to them at once.
    async fn renew(&mut self) -> anyhow::Result<()> {
        let key = Key::generate()?;
        self.serve_by(Some(&key))?;
        let renewed = self.renew_for(&key).await;
        self.serve_by(None)?;
        renewed
    }

    async fn renew_for(&mut self, key: &Key) -> anyhow::Result<()> {
        let request = api::RefreshHost {
            refresh_token: self.credentials.refresh_token.clone(),
            csr_pem: Some(key.request()?),
        };
        let url = format!("{}/v1/hosts/refresh", self.credentials.control_plane);
        let given: api::HostCredentials = match exchange(self.http.post(url), &request).await {
            Ok(given) => given,
            Err(Refused::Credentials(why)) => anyhow::bail!(
                "the platform rejects this host's credentials ({why}); enrol it again with `wrenn \
                 host token`, then `wrenn agent --register`"
            ),
            Err(Refused::Request(why)) => {
                anyhow::bail!("the platform refused to renew the credentials: {why}")
            }
            Err(Refused::Unknown) => {
                anyhow::bail!("the platform has no route to renew credentials")
            }
            Err(Refused::Other(error)) => return Err(error),
        };
        self.take(self.credentials.clone(), given, key)?;
        tracing::info!("renewed this host's credentials");
        Ok(())
    }
}

/// Asks to be registered; asks again after a lost answer.
async fn ask(
    http: &reqwest::Client,
    base: &str,
    request: &api::RegisterHost,
) -> anyhow::Result<api::HostCredentials> {
    let mut tries = 0;
    loop {
        tries += 1;
        let url = format!("{base}/v1/hosts/register");
        match exchange(http.post(url), request).await {
            Ok(given) => return Ok(given),
            Err(Refused::Credentials(why) | Refused::Request(why)) => {
                anyhow::bail!("the platform refused: {why}")
            }
            Err(Refused::Unknown) => anyhow::bail!("{base} is not a Wrenn platform"),
            Err(Refused::Other(error)) if tries == TRIES => {
                return Err(error.context("registering"));
            }
            Err(Refused::Other(_)) => tokio::time::sleep(TRY_AGAIN).await,
        }
    }
}

/// Proves this host's key to each client that connects, and serves nothing else. Never returns.
async fn show<T>(listener: &TcpListener, acceptor: &TlsAcceptor) -> T {
    loop {
        match listener.accept().await {
            // The client has seen the key once the handshake is over.
            Ok((stream, _)) => {
                let _ = tokio::time::timeout(SHOWING, acceptor.accept(stream)).await;
            }
            Err(_) => tokio::time::sleep(TRY_AGAIN).await,
        }
    }
}

async fn exchange<B: Serialize + Sync, T: DeserializeOwned>(
    request: reqwest::RequestBuilder,
    body: &B,
) -> Result<T, Refused> {
    let answer = request.json(body).send().await.map_err(|e| Refused::Other(e.into()))?;
    let status = answer.status();
    if status.is_success() {
        return answer.json().await.map_err(|e| Refused::Other(e.into()));
    }
    let told = answer.json::<api::ErrorBody>().await.map(|body| body.error);
    let (code, why) = told.map_or_else(|_| Default::default(), |told| (told.code, told.message));
    match status {
        StatusCode::UNAUTHORIZED => Err(Refused::Credentials(why)),
        StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN | StatusCode::CONFLICT => {
            Err(Refused::Request(why))
        }
        StatusCode::NOT_FOUND if code == "not_found" || code.is_empty() => Err(Refused::Unknown),
        status => Err(Refused::Other(anyhow::anyhow!("the platform answered {status}: {why}"))),
    }
}

fn http() -> anyhow::Result<reqwest::Client> {
    // A second call keeps the choice of the first.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let builder = reqwest::Client::builder().no_proxy().timeout(ANSWER);
    builder.build().context("cannot create the HTTP client for the platform")
}
