//! What every handler shares, passed explicitly; and the start of the control plane.

use crate::agent::Agent;
use crate::{auth, db, http, reconcile};
use anyhow::Context;
use daemon::{Metrics, Tasks};
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use std::sync::Arc;
use std::time::Duration;
use types::{HostId, PLATFORM_TEAM, TeamId};

const RECONCILE: Duration = Duration::from_secs(5);

/// What a control plane is told once, at its start.
pub struct Settings {
    pub database: PgConnectOptions,
    /// Base URL of the one host agent.
    pub agent_url: String,
}

/// The control plane's parts.
#[derive(Clone)]
pub struct App {
    pub(crate) db: PgPool,
    pub(crate) agent: Agent,
    pub(crate) host: HostId,
    pub(crate) metrics: Metrics,
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
        let agent = Agent::new(&settings.agent_url)?;
        let host = Self::meet(&db, &agent, &settings.agent_url).await?;
        let app = Self { db, agent, host, metrics: Metrics::install(), tasks: tasks.clone() };
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

    /// Serves every request.
    pub fn router(self) -> axum::Router {
        http::router(Arc::new(self))
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
