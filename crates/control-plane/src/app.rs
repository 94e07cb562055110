//! State that every handler shares and takes as an argument, and the start of the control plane.

use crate::agent::{Agent, Agents};
use crate::audit::{Actor, AuditBuffer};
use crate::auth::directory::Directory;
use crate::auth::origin::Peer;
use crate::auth::revocations::Revocations;
use crate::auth::session;
use crate::cache::InvalidationHealth;
use crate::db::capsules::Capsule;
use crate::db::listen::Change;
use crate::error::{Error, Result};
use crate::hosts::tls::CertStore;
use crate::hosts::{Fleet, Signer};
use crate::limits::Limiter;
use crate::load::{Load, UnderWay};
use crate::proxy::{self, Domains, Routes, SandboxProxy};
use crate::streams::Streams;
use crate::users::SignUp;
use crate::users::mail::{self, Mailer};
use crate::users::oauth::Provider;
use crate::{audit, auth, capsules, channels, db, http, keys, reconcile};
use anyhow::Context;
use daemon::{Metrics, Tasks};
use sqlx::postgres::PgConnectOptions;
use sqlx::{PgConnection, PgPool};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tower::ServiceExt;
use types::{HostId, PLATFORM_TEAM, TeamId};

/// Name of the host that `wrenn up` runs beside its control plane.
const LOCAL: &str = "local";

/// Time for which the result of a database check is reused.
const HEALTH: Duration = Duration::from_millis(250);
/// Time between two checks for an online host, and the number of checks: at least 30 s in all.
const ONLINE: Duration = Duration::from_millis(50);
const ONLINE_TRIES: u32 = 600;

/// Settings that a control plane gets once, at its start.
pub struct Settings {
    pub database: PgConnectOptions,
    /// Certificates of the trusted authorities, and the key of one of them (PEM). Hosts are reached
    /// by plain HTTP if there are none.
    pub authority: Option<(String, String)>,
    /// Set if hosts on other machines may be reached by plain HTTP.
    pub plaintext: bool,
    /// Domains whose names `{port}-{capsule}.{domain}` lead to capsules. Any domain does if the
    /// list is empty.
    pub domains: Vec<String>,
    /// URL whose host is the domain of the capsules' names.
    pub public_url: String,
    pub accounts: Accounts,
    pub mail: mail::Settings,
    /// Set if commands, file accesses and traffic are noted in the audit log.
    pub audit_access: bool,
    /// Days for which audit entries are kept; 0 means for ever.
    pub audit_days: u32,
    /// Limits of each listener.
    pub limits: hop::Limits,
}

/// Rules of sign-up and sign-in, and of the addresses that events may go to.
#[derive(Debug, Clone)]
pub struct Accounts {
    pub sign_up: SignUp,
    pub providers: Vec<Provider>,
    /// URL of the API, to which providers send browsers back.
    pub url: String,
    /// Set if events may be sent to private addresses.
    pub private_channels: bool,
    /// Locks that let attempts to sign in to one account happen one after the other.
    pub(crate) turns: Arc<Stripes>,
}

impl Accounts {
    /// Creates the rules of sign-up, sign-in and event addresses.
    #[must_use]
    pub fn new(
        sign_up: SignUp,
        providers: Vec<Provider>,
        url: String,
        private_channels: bool,
    ) -> Self {
        Self { sign_up, providers, url, private_channels, turns: Arc::default() }
    }
}

/// A fixed number of locks, chosen by a hash.
#[derive(Debug)]
pub(crate) struct Stripes(Vec<Arc<tokio::sync::Mutex<()>>>);

impl Default for Stripes {
    fn default() -> Self {
        Self((0..=u8::MAX).map(|_| Arc::default()).collect())
    }
}

impl Stripes {
    pub(crate) fn of(&self, hash: &[u8; 32]) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(&self.0[usize::from(hash[0])])
    }
}

/// Parts of the control plane that every handler shares.
#[derive(Clone)]
pub struct App {
    pub(crate) db: PgPool,
    pub(crate) agents: Agents,
    pub(crate) fleet: Arc<Fleet>,
    /// Client certificate towards hosts; `None` without certificates.
    pub(crate) cert_store: Option<Arc<CertStore>>,
    pub(crate) plaintext: bool,
    pub(crate) signer: Arc<Signer>,
    pub(crate) user_signer: Arc<session::Signer>,
    pub(crate) invalidation_health: InvalidationHealth,
    pub(crate) routes: Arc<Routes>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) revocations: Arc<Revocations>,
    pub(crate) limiter: Arc<Limiter>,
    pub(crate) load: Arc<Load>,
    pub(crate) waiters: Arc<capsules::Waiters>,
    pub(crate) audit_buffer: Arc<AuditBuffer>,
    pub(crate) streams: Arc<Streams>,
    pub(crate) accounts: Accounts,
    pub(crate) mailer: Arc<Mailer>,
    /// HTTP client for the providers of sign-ins.
    pub(crate) http: reqwest::Client,
    /// HTTP client for channels. Users choose the addresses, so private addresses need a setting.
    pub(crate) channel_client: reqwest::Client,
    pub(crate) channel_secret: Arc<[u8]>,
    /// Secret that signs preview links.
    pub(crate) link_secret: Arc<[u8]>,
    pub(crate) audit_access: bool,
    pub(crate) audit_days: i32,
    pub(crate) domains: Domains,
    pub(crate) public: PublicUrl,
    pub(crate) metrics: Metrics,
    pub(crate) turns: Arc<reconcile::Turns>,
    pub(crate) asked: Arc<reconcile::Asked>,
    /// Time and result of the last database check.
    health: Arc<tokio::sync::Mutex<Option<(Instant, bool)>>>,
    /// Wakes the reconciler.
    pub(crate) wake: Arc<Notify>,
    pub(crate) tasks: Tasks,
}

impl App {
    /// Connects to the database, migrates it, and starts the background tasks.
    ///
    /// # Errors
    /// When the database or the authority cannot be used. The error names the one that failed.
    pub async fn start(settings: Settings, tasks: &Tasks) -> anyhow::Result<Self> {
        let db = db::connect(settings.database).await?;
        let public = PublicUrl::parse(&settings.public_url)?;
        let cert_store = match &settings.authority {
            Some((certs, key)) => Some(Arc::new(CertStore::new(certs, key)?)),
            None => {
                tracing::warn!(
                    "no authority (WRENN_CA_CERT, WRENN_CA_KEY): hosts are talked to in plain text"
                );
                None
            }
        };
        let fleet = Arc::new(Fleet::new(db.clone()));
        fleet.read().await.context("reading the hosts")?;
        fleet.spawn_refresh(tasks);
        let agents = Agents::new(Arc::clone(&fleet), cert_store.clone(), settings.plaintext, tasks);
        let secret = async |name| {
            db::secrets::load(&db, name).await.with_context(|| format!("reading the secret {name}"))
        };
        let signer = Signer::new(&secret("host-jwt").await?);
        let user_signer = session::Signer::new(&secret("user-jwt").await?);
        let channel_secret = secret("channels").await?.into();
        let link_secret = secret("links").await?.into();
        // A second call, as in tests, keeps the first one's choice.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let health = InvalidationHealth::default();
        let app = Self {
            db,
            agents,
            fleet,
            cert_store,
            plaintext: settings.plaintext,
            signer: Arc::new(signer),
            user_signer: Arc::new(user_signer),
            routes: Arc::new(Routes::new(health.clone())),
            directory: Arc::new(Directory::new(health.clone())),
            revocations: Arc::new(Revocations::new()),
            invalidation_health: health,
            limiter: Arc::new(Limiter::new()),
            load: Arc::new(Load::new(settings.limits)),
            waiters: Arc::default(),
            audit_buffer: Arc::default(),
            streams: Arc::new(Streams::new()),
            http: channels::client(true)?,
            channel_client: channels::client(settings.accounts.private_channels)?,
            channel_secret,
            link_secret,
            accounts: settings.accounts,
            mailer: Arc::new(Mailer::new(settings.mail)?),
            audit_access: settings.audit_access,
            audit_days: i32::try_from(settings.audit_days).unwrap_or(i32::MAX),
            domains: Domains::new(&settings.domains),
            public,
            metrics: Metrics::install(),
            turns: Arc::default(),
            asked: Arc::default(),
            health: Arc::default(),
            wake: Arc::default(),
            tasks: tasks.clone(),
        };
        if let Some(cert_store) = &app.cert_store {
            cert_store.spawn_renewal(tasks);
        }
        proxy::spawn_invalidation(&app);
        reconcile::spawn(&app);
        audit::spawn_writer(&app);
        channels::deliver::spawn(&app);
        Ok(app)
    }

    /// Applies a change that this replica has just made: drops it from the caches, has open
    /// exchanges checked again, and wakes waiters. PostgreSQL tells the other replicas.
    pub(crate) fn changed(&self, change: &Change) {
        self.routes.apply(change);
        self.directory.apply(change);
        self.revocations.apply(change);
        self.waiters.apply(change);
    }

    /// Reports whether the database answers. Concurrent callers share one check, since the route is
    /// open to everybody.
    pub(crate) async fn healthy(&self) -> bool {
        let mut seen = self.health.lock().await;
        if let Some((_, up)) = seen.filter(|(at, _)| at.elapsed() < HEALTH) {
            return up;
        }
        let up = sqlx::query("SELECT 1").execute(&self.db).await.is_ok();
        *seen = Some((Instant::now(), up));
        up
    }

    /// Returns the limits of each listener.
    #[must_use]
    pub fn limits(&self) -> hop::Limits {
        self.load.limits()
    }

    /// Returns a client of a host's agent.
    pub(crate) fn agent(&self, host: HostId) -> Agent {
        Agent::new(host, self.agents.clone())
    }

    /// Returns a client of the agent on a capsule's host.
    pub(crate) fn agent_of(&self, capsule: &Capsule) -> Result<Agent> {
        let host = capsule.host_id.map(HostId).ok_or(Error::HostUnavailable)?;
        Ok(self.agent(host))
    }

    /// Waits until a host can take capsules.
    ///
    /// # Errors
    /// When no host comes online in time, or the database cannot be used.
    pub async fn wait_online(&self) -> anyhow::Result<()> {
        for _ in 0..ONLINE_TRIES {
            if self.fleet.all().iter().any(|host| host.online) {
                return Ok(());
            }
            tokio::time::sleep(ONLINE).await;
            self.fleet.read().await?;
        }
        anyhow::bail!("the host agent does not become a member of the platform; see the log")
    }

    /// Returns a registration token for the host on the platform's own machine. A host that was
    /// registered before, with the id `before`, registers again under that id.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn invite_local(&self, before: Option<&str>) -> anyhow::Result<String> {
        use crate::hosts::enrol::{invite, invite_again};
        let before = match before.and_then(|id| id.parse::<HostId>().ok()) {
            Some(id) => db::hosts::find(&self.db, id).await?.map(|host| host.id()),
            None => db::hosts::not_enrolled(&self.db, LOCAL).await?,
        };
        if let Some(id) = before {
            return Ok(invite_again(self, id, Actor::SYSTEM).await?.registration_token);
        }
        let named = api::NewHost { name: Some(LOCAL.to_owned()), ..Default::default() };
        let invited = match invite(self, named, Actor::SYSTEM).await {
            // Another machine that shares the database has this name.
            Err(Error::Conflict(_)) => invite(self, api::NewHost::default(), Actor::SYSTEM).await?,
            invited => invited?,
        };
        Ok(invited.registration_token)
    }

    /// Reports whether the database has a host with this certificate, named by its fingerprint, at
    /// this address.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn has_enrolled(
        &self,
        host: &str,
        cert: &str,
        address: &str,
    ) -> anyhow::Result<bool> {
        let Ok(id) = host.parse::<HostId>() else { return Ok(false) };
        let found = db::hosts::find(&self.db, id).await?;
        Ok(found.is_some_and(|host| {
            let certs = [&host.cert_fingerprint, &host.cert_previous];
            host.address == address && certs.iter().any(|known| known.as_deref() == Some(cert))
        }))
    }

    /// Returns the handler of all requests.
    #[must_use]
    pub fn server(self) -> ControlPlane {
        let app = Arc::new(self);
        let load = Arc::clone(&app.load);
        ControlPlane {
            sandbox_proxy: SandboxProxy::new(Arc::clone(&app)),
            api: http::router(app),
            load,
        }
    }

    /// Makes the first team and its operator's key. Returns the key, or `None` if the database
    /// already has one.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn bootstrap(&self) -> anyhow::Result<Option<String>> {
        let mut tx = self.db.begin().await?;
        // The lock lets only one of several starting replicas make the platform's first key.
        db::users::lock_admins(&mut tx).await?;
        if db::keys::any(&mut *tx).await? {
            return Ok(None);
        }
        let team = TeamId::new();
        db::teams::insert(&mut *tx, team, "Default").await?;
        let key = operators_key(&mut tx, team, "first").await?;
        tx.commit().await?;
        Ok(Some(key))
    }

    /// Reports whether a key is valid.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn accepts(&self, key: &str) -> anyhow::Result<bool> {
        Ok(self.routes.key(self, &auth::hash(key), None).await?.is_some())
    }

    /// Makes an operator's key for the first team that is not the platform's.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn add_key(&self, name: &str) -> anyhow::Result<String> {
        let team = db::teams::first(&self.db).await?.unwrap_or(PLATFORM_TEAM);
        let mut tx = self.db.begin().await?;
        let key = operators_key(&mut tx, team, name).await?;
        tx.commit().await?;
        Ok(key)
    }
}

/// Makes an operator's key that has no maker, neither a user nor another key.
async fn operators_key(tx: &mut PgConnection, team: TeamId, name: &str) -> sqlx::Result<String> {
    let key = auth::new_api_key();
    let row = db::keys::Row { operator: true, ..keys::row(team, name, &key) };
    db::keys::insert(&mut *tx, &row, &key, &db::limits::Row::default()).await?;
    let id = types::ApiKeyId(row.id);
    let entry = audit::Entry::new(team, Actor::SYSTEM, "api_key.create", id);
    let what = serde_json::json!({ "name": name, "operator": true });
    db::audit::write(&mut *tx, &entry.with(what)).await?;
    Ok(key)
}

/// Serves every request: requests for capsules' ports, and the API.
pub struct ControlPlane {
    sandbox_proxy: SandboxProxy,
    api: axum::Router,
    load: Arc<Load>,
}

impl hop::Handler for ControlPlane {
    async fn handle(
        self: &Arc<Self>,
        request: ::http::Request<hop::Body>,
        peer: SocketAddr,
    ) -> ::http::Response<hop::Body> {
        self.serve(request, peer).await
    }

    fn standing(&self, peer: IpAddr) -> hop::Standing {
        self.load.standing(peer)
    }
}

impl ControlPlane {
    async fn serve(
        &self,
        request: ::http::Request<hop::Body>,
        peer: SocketAddr,
    ) -> ::http::Response<hop::Body> {
        let client = Peer(peer).client(request.headers());
        let share = match self.load.request(client, peer, request.version()) {
            Ok(share) => share,
            Err(error) => return proxy::refuse(&error, request.headers()),
        };
        let answer = self.answer(request, peer).await;
        match share {
            Some(share) => answer.map(|body| body.holding(share)),
            None => answer,
        }
    }

    async fn answer(
        &self,
        request: ::http::Request<hop::Body>,
        peer: SocketAddr,
    ) -> ::http::Response<hop::Body> {
        let request = match self.sandbox_proxy.answer(request, peer).await {
            Ok(answer) => return answer,
            Err(request) => request.map(axum::body::Body::new),
        };
        let mut request = request;
        if let Some(ours) = http::compat_wrenn_v0::ours(request.method(), request.uri()) {
            *request.uri_mut() = ours;
            request.extensions_mut().insert(http::compat_wrenn_v0::CompatRequest);
        }
        request.extensions_mut().insert(Peer(peer));
        let Ok(mut answer) = self.api.clone().oneshot(request).await;
        let under_way = answer.extensions_mut().remove::<UnderWay>();
        let answer = answer.map(hop::Body::boxed);
        match under_way {
            Some(under_way) => answer.map(|body| body.holding(Box::new(under_way))),
            None => answer,
        }
    }
}

/// Serves every request of a listener with TLS.
pub struct Secure(pub ControlPlane);

/// Marks a request that came by TLS.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ByTls;

impl hop::Handler for Secure {
    async fn handle(
        self: &Arc<Self>,
        mut request: ::http::Request<hop::Body>,
        peer: SocketAddr,
    ) -> ::http::Response<hop::Body> {
        request.extensions_mut().insert(ByTls);
        self.0.serve(request, peer).await
    }

    fn standing(&self, peer: IpAddr) -> hop::Standing {
        self.0.load.standing(peer)
    }
}

/// URL whose host is the domain of the capsules' names.
#[derive(Debug, Clone)]
pub(crate) struct PublicUrl {
    scheme: String,
    /// Host, with a port if the configured URL has one.
    authority: String,
}

impl PublicUrl {
    fn parse(url: &str) -> anyhow::Result<Self> {
        let wrong = || format!("WRENN_PUBLIC_URL `{url}` must be as https://sandbox.example.com");
        let (scheme, authority) =
            url.trim_end_matches('/').split_once("://").with_context(wrong)?;
        let known = matches!(scheme, "http" | "https");
        let parsed = authority.parse::<::http::uri::Authority>().with_context(wrong)?;
        anyhow::ensure!(known && !parsed.host().is_empty() && !authority.contains('@'), wrong());
        Ok(Self { scheme: scheme.to_owned(), authority: authority.to_owned() })
    }

    /// Returns the domain of the capsules' names, with its port.
    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }

    pub(crate) fn is_https(&self) -> bool {
        self.scheme == "https"
    }

    /// Returns the URL of a capsule's port.
    pub(crate) fn of(&self, target: proxy::Target) -> String {
        let proxy::Target { capsule, port } = target;
        format!("{}://{port}-{capsule}.{}", self.scheme, self.authority)
    }
}
