//! Start of the control plane: makes the shared state, spawns the background tasks, and hands every
//! request to the sandbox proxy or the API.

use crate::agent::Agents;
use crate::app::App;
use crate::auth::directory::Directory;
use crate::auth::keys::KeyCache;
use crate::auth::origin::{ByTls, Peer};
use crate::auth::revocations::Revocations;
use crate::auth::session;
use crate::builds::changes::BuildChanges;
use crate::cache::InvalidationHealth;
use crate::capsules::waiters::Waiters;
use crate::channels::guard;
use crate::domains::{Domains, PublicUrl};
use crate::hosts::tls::CertStore;
use crate::hosts::{Fleet, Signer};
use crate::limits::Limiter;
use crate::load::{Load, UnderWay};
use crate::proxy::routes::Routes;
use crate::proxy::{self, SandboxProxy};
use crate::rounds::Rounds;
use crate::seal::Sealer;
use crate::streams::Streams;
use crate::users::accounts::Accounts;
use crate::users::mail::{self, Mailer};
use crate::{audit, changes, channels, db, gauges, http, reconcile};
use anyhow::Context;
use daemon::{Metrics, Tasks};
use sqlx::PgPool;
use sqlx::postgres::PgConnectOptions;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tower::ServiceExt;

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
    /// Days for which metrics of capsules and hosts are kept; 0 keeps none.
    pub metrics_days: u32,
    /// Limits of each listener.
    pub limits: hop::Limits,
}

/// Values that are made of the secrets which all replicas share.
struct Secrets {
    host_signer: Signer,
    user_signer: session::Signer,
    channels: Arc<[u8]>,
    links: Arc<[u8]>,
    uploads: Arc<[u8]>,
    sealer: Sealer,
}

impl Secrets {
    /// Reads the secrets from the database. The first replica makes them.
    async fn load(db: &PgPool) -> anyhow::Result<Self> {
        let secret = async |name| {
            db::secrets::load(db, name)
                .await
                .with_context(|| format!("cannot read the secret {name}"))
        };
        Ok(Self {
            host_signer: Signer::new(&secret("host-jwt").await?),
            user_signer: session::Signer::new(&secret("user-jwt").await?),
            channels: secret("channels").await?.into(),
            links: secret("links").await?.into(),
            uploads: secret("uploads").await?.into(),
            sealer: Sealer::new(&secret("logins").await?).context("cannot make a key")?,
        })
    }
}

impl App {
    /// Connects to the database, migrates it, and starts the background tasks.
    ///
    /// # Errors
    /// When the database or the authority cannot be used. The error names the one that failed.
    pub async fn start(settings: Settings, tasks: &Tasks) -> anyhow::Result<Self> {
        // The recorder comes first, since metrics that are set earlier would be lost.
        let metrics = Metrics::install();
        let db = db::connect(settings.database).await?;
        let public = PublicUrl::parse(&settings.public_url)?;
        let cert_store = match &settings.authority {
            Some((certs, key)) => Some(Arc::new(CertStore::new(certs, key)?)),
            None => {
                tracing::warn!(
                    "connections to hosts are in plain text; set WRENN_CA_CERT and WRENN_CA_KEY \
                     for TLS"
                );
                None
            }
        };
        let fleet = Arc::new(Fleet::new(db.clone()));
        fleet.read().await.context("cannot read the hosts from the database")?;
        fleet.spawn_refresh(tasks);
        let agents = Agents::new(Arc::clone(&fleet), cert_store.clone(), settings.plaintext, tasks);
        let secrets = Secrets::load(&db).await?;
        // A second call, as in tests, keeps the first one's choice.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let health = InvalidationHealth::default();
        let load = Arc::new(Load::new(settings.limits));
        let key_cache = Arc::new(KeyCache::new(db.clone(), Arc::clone(&load), health.clone()));
        let routes =
            Routes::new(db.clone(), Arc::clone(&load), Arc::clone(&key_cache), health.clone());
        let directory = Directory::new(db.clone(), Arc::clone(&load), health.clone());
        let streams = Streams::new(db.clone());
        let (rounds, requests) = Rounds::new();
        let app = Self {
            db,
            agents,
            fleet,
            cert_store,
            plaintext: settings.plaintext,
            signer: Arc::new(secrets.host_signer),
            user_signer: Arc::new(secrets.user_signer),
            key_cache,
            routes: Arc::new(routes),
            directory: Arc::new(directory),
            revocations: Arc::new(Revocations::new()),
            waiters: Arc::new(Waiters::new(health.clone())),
            invalidation_health: health,
            limiter: Arc::new(Limiter::new()),
            load,
            build_changes: Arc::new(BuildChanges::new()),
            version_watch: Arc::default(),
            audit_buffer: Arc::default(),
            streams: Arc::new(streams),
            http: guard::client(true)?,
            channel_client: guard::client(settings.accounts.private_channels)?,
            channel_secret: secrets.channels,
            link_secret: secrets.links,
            upload_secret: secrets.uploads,
            sealer: Arc::new(secrets.sealer),
            accounts: settings.accounts,
            mailer: Arc::new(Mailer::new(settings.mail)?),
            audit_access: settings.audit_access,
            audit_days: (settings.audit_days > 0)
                .then(|| i32::try_from(settings.audit_days).unwrap_or(i32::MAX)),
            metrics_days: settings.metrics_days,
            domains: Domains::new(&settings.domains),
            public,
            metrics,
            rounds: Arc::new(rounds),
            health: Arc::default(),
            wake: Arc::default(),
            tasks: tasks.clone(),
        };
        if let Some(cert_store) = &app.cert_store {
            cert_store.spawn_renewal(tasks);
        }
        changes::spawn(&app);
        reconcile::spawn(&app, requests);
        audit::buffer::spawn_writer(&app.audit_buffer, &app.db, tasks);
        channels::deliver::spawn(&app);
        gauges::spawn(&app);
        Ok(app)
    }

    /// Returns the limits of each listener.
    #[must_use]
    pub fn limits(&self) -> hop::Limits {
        self.load.limits()
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
