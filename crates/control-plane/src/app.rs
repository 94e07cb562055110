//! What every handler shares, passed explicitly; and the start of the control plane.

use crate::agent::{Agent, Agents};
use crate::proxy::{self, Domains, Proxy, Routes};
use crate::{auth, db, http, reconcile};
use anyhow::Context;
use daemon::{Metrics, Tasks};
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tower::ServiceExt;
use types::{HostId, PLATFORM_TEAM, TeamId};

const RECONCILE: Duration = Duration::from_secs(5);

/// What a control plane is told once, at its start.
pub struct Settings {
    pub database: PgConnectOptions,
    /// Base URL of the one host agent.
    pub agent_url: String,
    /// Domains whose names `{port}-{capsule}.{domain}` lead to capsules; any, when none.
    pub domains: Vec<String>,
    /// URL whose host is the domain of the names that are given out.
    pub public_url: String,
}

/// The control plane's parts.
#[derive(Clone)]
pub struct App {
    pub(crate) db: PgPool,
    pub(crate) agent: Agent,
    pub(crate) agents: Agents,
    pub(crate) routes: Arc<Routes>,
    pub(crate) domains: Domains,
    pub(crate) public: PublicUrl,
    pub(crate) host: HostId,
    pub(crate) metrics: Metrics,
    /// Held by the round that reconciles.
    pub(crate) reconciling: Arc<tokio::sync::Mutex<()>>,
    pub(crate) tasks: Tasks,
}

impl App {
    /// Connects, migrates, makes the host and the shared templates known, and begins to
    /// reconcile.
    ///
    /// # Errors
    /// When the database or the agent cannot be used, with which.
    pub async fn start(settings: Settings, tasks: &Tasks) -> anyhow::Result<Self> {
        let db = PgPoolOptions::new()
            .max_connections(16)
            .acquire_timeout(Duration::from_secs(5))
            .connect_with(settings.database)
            .await
            .context("connecting to the database (DATABASE_URL)")?;
        sqlx::migrate!("./migrations").run(&db).await.context("migrating the database")?;
        let public = PublicUrl::parse(&settings.public_url)?;
        let agents = Agents::new(tasks);
        let agent = Agent::new(&settings.agent_url, agents.clone())?;
        let host = Self::meet(&db, &agent, &settings.agent_url).await?;
        let app = Self {
            db,
            agent,
            agents,
            routes: Arc::new(Routes::new()),
            domains: Domains::new(&settings.domains),
            public,
            host,
            metrics: Metrics::install(),
            reconciling: Arc::default(),
            tasks: tasks.clone(),
        };
        proxy::keep_true(&app);
        reconcile::follow(&app);
        let at = app.clone();
        tasks.every(RECONCILE, move || {
            let app = at.clone();
            async move { reconcile::run(&app).await }
        });
        Ok(app)
    }

    /// Makes the host and its templates known. One that was known and does not answer now may
    /// answer later: that keeps nobody from looking at what there is.
    async fn meet(db: &PgPool, agent: &Agent, url: &str) -> anyhow::Result<HostId> {
        let described = match agent.describe().await {
            Ok(described) => described,
            Err(error) => {
                let known = db::hosts::first(db).await?;
                tracing::warn!(error = format!("{error:#}"), "the host agent does not answer");
                return known.ok_or(error).context("asking the host agent what it is");
            }
        };
        let host = db::hosts::upsert(db, url, &described).await?;
        for name in &described.templates {
            db::templates::share(db, name).await?;
        }
        Ok(host)
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
        Ok(db::keys::team_of(&self.db, &auth::hash(key)).await?.is_some())
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
