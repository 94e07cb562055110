//! What every handler shares, passed explicitly; and the start of the control plane.

use crate::agent::{Agent, Agents};
use crate::db::capsules::Capsule;
use crate::error::{Error, Result};
use crate::hosts::tls::Identity;
use crate::hosts::{Fleet, Signer};
use crate::proxy::{self, Domains, Proxy, Routes};
use crate::{auth, db, http, reconcile};
use anyhow::Context;
use daemon::{Metrics, Tasks};
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tower::ServiceExt;
use types::{HostId, PLATFORM_TEAM, TeamId};

/// Name of the host that `wrenn up` runs beside its control plane.
const LOCAL: &str = "local";

/// How often, and how many times, it is looked whether a host is there.
const ONLINE: Duration = Duration::from_millis(50);
const ONLINE_TRIES: u32 = 600;

/// What a control plane is told once, at its start.
pub struct Settings {
    pub database: PgConnectOptions,
    /// Certificates of the authorities that are trusted, and the key of one (PEM); none for
    /// plain HTTP to hosts.
    pub authority: Option<(String, String)>,
    /// Whether hosts on other machines may be reached by plain HTTP.
    pub plaintext: bool,
    /// Domains whose names `{port}-{capsule}.{domain}` lead to capsules; any, when none.
    pub domains: Vec<String>,
    /// URL whose host is the domain of the names that are given out.
    pub public_url: String,
}

/// The control plane's parts.
#[derive(Clone)]
pub struct App {
    pub(crate) db: PgPool,
    pub(crate) agents: Agents,
    pub(crate) fleet: Arc<Fleet>,
    /// None without certificates.
    pub(crate) identity: Option<Arc<Identity>>,
    pub(crate) plaintext: bool,
    pub(crate) signer: Arc<Signer>,
    pub(crate) routes: Arc<Routes>,
    pub(crate) domains: Domains,
    pub(crate) public: PublicUrl,
    pub(crate) metrics: Metrics,
    pub(crate) turns: Arc<reconcile::Turns>,
    /// Has whoever reconciles do it now.
    pub(crate) wake: Arc<Notify>,
    pub(crate) tasks: Tasks,
}

impl App {
    /// Connects, migrates, and begins to keep hosts and rows in line.
    ///
    /// # Errors
    /// When the database or the authority cannot be used, with which.
    pub async fn start(settings: Settings, tasks: &Tasks) -> anyhow::Result<Self> {
        let db = PgPoolOptions::new()
            .max_connections(16)
            .acquire_timeout(Duration::from_secs(5))
            .connect_with(settings.database)
            .await
            .context("connecting to the database (DATABASE_URL)")?;
        sqlx::migrate!("./migrations").run(&db).await.context("migrating the database")?;
        let public = PublicUrl::parse(&settings.public_url)?;
        let identity = match &settings.authority {
            Some((certs, key)) => Some(Arc::new(Identity::new(certs, key)?)),
            None => {
                tracing::warn!(
                    "no authority (WRENN_CA_CERT, WRENN_CA_KEY): hosts are talked to in plain text"
                );
                None
            }
        };
        let fleet = Arc::new(Fleet::new(db.clone()));
        fleet.read().await.context("reading the hosts")?;
        fleet.keep_true(tasks);
        let agents = Agents::new(Arc::clone(&fleet), identity.clone(), settings.plaintext, tasks);
        let signer = Signer::load(&db).await.context("reading the secret of hosts' tokens")?;
        let app = Self {
            db,
            agents,
            fleet,
            identity,
            plaintext: settings.plaintext,
            signer: Arc::new(signer),
            routes: Arc::new(Routes::new()),
            domains: Domains::new(&settings.domains),
            public,
            metrics: Metrics::install(),
            turns: Arc::default(),
            wake: Arc::default(),
            tasks: tasks.clone(),
        };
        if let Some(identity) = &app.identity {
            identity.keep_valid(tasks);
        }
        proxy::keep_true(&app);
        reconcile::keep(&app);
        Ok(app)
    }

    /// A host's agent.
    pub(crate) fn agent(&self, host: HostId) -> Agent {
        Agent::new(host, self.agents.clone())
    }

    /// The agent of the host that a capsule is on.
    pub(crate) fn agent_of(&self, capsule: &Capsule) -> Result<Agent> {
        let host = capsule.host_id.map(HostId).ok_or(Error::HostUnavailable)?;
        Ok(self.agent(host))
    }

    /// Waits until a host can take capsules.
    ///
    /// # Errors
    /// When none can for long.
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

    /// Returns a token for the host on the platform's own machine to register with: anew, where
    /// it was one before, by its id.
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
            return Ok(invite_again(self, id).await?.registration_token);
        }
        let named = api::NewHost { name: Some(LOCAL.to_owned()), ..Default::default() };
        let invited = match invite(self, named).await {
            // That of another machine, which shares the database.
            Err(Error::Conflict(_)) => invite(self, api::NewHost::default()).await?,
            invited => invited?,
        };
        Ok(invited.registration_token)
    }

    /// What serves every request.
    #[must_use]
    pub fn server(self) -> ControlPlane {
        let app = Arc::new(self);
        ControlPlane { proxy: Proxy::new(Arc::clone(&app)), api: http::router(app) }
    }

    /// Makes the first team and its key; returns the key the first time only.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn bootstrap(&self) -> anyhow::Result<Option<String>> {
        if db::keys::any(&self.db).await? {
            return Ok(None);
        }
        let team = TeamId::new();
        db::keys::insert_team(&self.db, team, "Default").await?;
        let key = auth::new_api_key();
        db::keys::insert(&self.db, team, "first", &key).await?;
        Ok(Some(key))
    }

    /// Whether a key is valid.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn accepts(&self, key: &str) -> anyhow::Result<bool> {
        Ok(db::keys::caller(&self.db, &auth::hash(key)).await?.is_some())
    }

    /// Makes a key for the first team that is not the platform's.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn add_key(&self, name: &str) -> anyhow::Result<String> {
        let team = db::keys::first_team(&self.db).await?.unwrap_or(PLATFORM_TEAM);
        let key = auth::new_api_key();
        db::keys::insert(&self.db, team, name, &key).await?;
        Ok(key)
    }
}

/// Serves every request: those for capsules, and the API.
pub struct ControlPlane {
    proxy: Proxy,
    api: axum::Router,
}

impl hop::Handler for ControlPlane {
    async fn handle(
        self: &Arc<Self>,
        request: ::http::Request<hyper::body::Incoming>,
        peer: SocketAddr,
    ) -> ::http::Response<hop::Body> {
        let request = match self.proxy.answer(request, peer).await {
            Ok(answer) => return answer,
            Err(request) => request.map(axum::body::Body::new),
        };
        let Ok(answer) = self.api.clone().oneshot(request).await;
        answer.map(hop::Body::boxed)
    }
}

/// The URL whose host is the domain of the names of capsules.
#[derive(Debug, Clone)]
pub(crate) struct PublicUrl {
    scheme: String,
    /// With the port, where it is not the scheme's own.
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

    /// The URL of a capsule's port.
    pub(crate) fn of(&self, target: proxy::Target) -> String {
        let proxy::Target { capsule, port } = target;
        format!("{}://{port}-{capsule}.{}", self.scheme, self.authority)
    }
}
