//! State that every handler and background task shares and takes as an argument. This module holds
//! values and services only. `serve` makes them.

use crate::agent::{Agent, Agents};
use crate::audit::buffer::AuditBuffer;
use crate::auth::directory::Directory;
use crate::auth::keys::KeyCache;
use crate::auth::revocations::Revocations;
use crate::auth::session;
use crate::builds::changes::BuildChanges;
use crate::cache::InvalidationHealth;
use crate::capsules::waiters::Waiters;
use crate::db;
use crate::db::capsules::Capsule;
use crate::db::listen::Change;
use crate::domains::{Domains, PublicUrl};
use crate::error::{Error, Result};
use crate::hosts::tls::CertStore;
use crate::hosts::{Fleet, Signer};
use crate::limits::Limiter;
use crate::load::Load;
use crate::proxy::routes::Routes;
use crate::rounds::Rounds;
use crate::seal::Sealer;
use crate::streams::Streams;
use crate::users::accounts::Accounts;
use crate::users::mail::Mailer;
use crate::versions::watch::VersionWatch;
use daemon::{Metrics, Tasks};
use sqlx::PgPool;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use types::HostId;

/// Time for which the result of a database check is reused.
const HEALTH: Duration = Duration::from_millis(250);

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
    pub(crate) key_cache: Arc<KeyCache>,
    pub(crate) routes: Arc<Routes>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) revocations: Arc<Revocations>,
    pub(crate) limiter: Arc<Limiter>,
    pub(crate) load: Arc<Load>,
    pub(crate) waiters: Arc<Waiters>,
    /// News of builds.
    pub(crate) build_changes: Arc<BuildChanges>,
    pub(crate) version_watch: Arc<VersionWatch>,
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
    /// Secret that signs the addresses of uploads.
    pub(crate) upload_secret: Arc<[u8]>,
    /// Encrypts secrets that the database holds.
    pub(crate) sealer: Arc<Sealer>,
    pub(crate) audit_access: bool,
    /// Days for which audit entries are kept; `None` means for ever.
    pub(crate) audit_days: Option<i32>,
    /// Days for which metrics of capsules are kept; 0 keeps none.
    pub(crate) metrics_days: u32,
    pub(crate) domains: Domains,
    pub(crate) public: PublicUrl,
    pub(crate) metrics: Metrics,
    pub(crate) rounds: Arc<Rounds>,
    /// Time and result of the last database check.
    pub(crate) health: Arc<tokio::sync::Mutex<Option<(Instant, bool)>>>,
    /// Wakes the reconciler.
    pub(crate) wake: Arc<Notify>,
    pub(crate) tasks: Tasks,
}

impl App {
    /// Applies a change that this replica has just made: drops it from the caches, has open
    /// exchanges checked again, and wakes waiters. PostgreSQL tells the other replicas.
    pub(crate) fn changed(&self, change: &Change) {
        self.routes.apply(change);
        self.key_cache.apply(change);
        self.directory.apply(change);
        self.revocations.apply(change);
        self.waiters.apply(change);
        self.build_changes.apply(change);
    }

    /// Reports whether the database answers. Concurrent callers share one check, since the route is
    /// open to everybody.
    pub(crate) async fn healthy(&self) -> bool {
        let mut seen = self.health.lock().await;
        if let Some((_, up)) = seen.filter(|(at, _)| at.elapsed() < HEALTH) {
            return up;
        }
        let up = db::pool::probe(&self.db).await.is_ok();
        *seen = Some((Instant::now(), up));
        up
    }

    /// Returns a client of a host's agent.
    pub(crate) fn agent(&self, host: HostId) -> Agent {
        Agent::new(host, self.agents.clone())
    }

    /// Returns a client of the agent on a capsule's host.
    pub(crate) fn agent_of(&self, capsule: &Capsule) -> Result<Agent> {
        let host = capsule.host_id.ok_or(Error::HostUnavailable)?;
        Ok(self.agent(host))
    }
}
