//! Cache of capsules by id. It keeps SQL out of the way of proxied requests.
//!
//! Every change of a capsule drops its entry. PostgreSQL announces the change to every replica, and
//! the replica that makes it drops the entry at once. A replica that hears of no changes caches
//! nothing.

use crate::auth::keys;
use crate::auth::keys::KeyCache;
use crate::cache::{Cache, CacheEntry, InvalidationHealth};
use crate::db;
use crate::db::keys::Key;
use crate::db::listen::Change;
use crate::db::routes::SandboxProxyTarget;
use crate::error::Result;
use crate::load::Load;
use protocol::is_agent_port;
use sqlx::PgPool;
use sqlx::types::Json;
use std::net::IpAddr;
use std::sync::Arc;
use types::{CapsuleId, CapsuleState, HostId, TeamId, TemplateId};

/// Cached facts about a capsule.
#[derive(Debug)]
pub(crate) struct Route {
    pub team: TeamId,
    pub template: Option<TemplateId>,
    pub state: CapsuleState,
    pub host: Option<HostId>,
    pub envd_token: Box<str>,
    pub traffic_token: Box<str>,
    /// Generation of preview links; links of earlier generations no longer admit.
    pub link_generation: i64,
    pub public_ports: Box<[u16]>,
    /// Set if anyone may reach all ports except envd's and the code interpreter's.
    pub public_traffic: bool,
    /// Value of the `Host` header for the capsule's programs; `None` for the public name.
    pub host_header: Option<Box<str>>,
    /// Set if the capsule was made by E2B's API. Errors about it then use E2B's words, even after
    /// its end.
    pub e2b: bool,
    /// Set if a request resumes the paused capsule.
    pub auto_resume: bool,
}

impl Route {
    /// Reports whether anyone may reach a port.
    pub(crate) fn is_public(&self, port: u16) -> bool {
        !is_agent_port(port) && (self.public_traffic || self.public_ports.contains(&port))
    }
}

/// Cache of capsules, beside the cache of keys.
pub(crate) struct Routes {
    db: PgPool,
    load: Arc<Load>,
    keys: Arc<KeyCache>,
    health: InvalidationHealth,
    capsules: Cache<CapsuleId, Arc<Route>>,
}

impl Routes {
    pub(crate) fn new(
        db: PgPool,
        load: Arc<Load>,
        keys: Arc<KeyCache>,
        health: InvalidationHealth,
    ) -> Self {
        Self { db, load, keys, health, capsules: Cache::new() }
    }

    /// Finds a capsule and a key, by one query at most, for a client at `from`.
    pub(crate) async fn find(
        &self,
        id: CapsuleId,
        key: Option<&[u8; 32]>,
        from: Option<IpAddr>,
    ) -> Result<(Option<Arc<Route>>, Option<Arc<Key>>)> {
        if !self.health.is_healthy() {
            let row = self.query(id, key, from).await?;
            return Ok((route(&row), row.key.map(|Json(key)| Arc::new(key))));
        }
        let mut asked = None;
        let look = async {
            // The place is taken before the query, so that a change to the key meanwhile drops the
            // result.
            let place = match key {
                Some(hash) => self.keys.place(hash).await,
                None => None,
            };
            let row = self.query(id, key, from).await?;
            let known = keys::entry(&row);
            asked = key.map(|_| known.found.clone());
            if let Some(place) = place {
                place(known);
            }
            Ok(CacheEntry::new(route(&row), None))
        };
        let found = self.capsules.get(&self.health, &id, look).await?;
        match (key, asked) {
            (None, _) => Ok((found, None)),
            (Some(_), Some(key)) => Ok((found, key)),
            (Some(hash), None) => Ok((found, self.keys.find(hash, from).await?)),
        }
    }

    async fn query(
        &self,
        id: CapsuleId,
        hash: Option<&[u8; 32]>,
        from: Option<IpAddr>,
    ) -> Result<SandboxProxyTarget> {
        let _place = self.load.lookup(from).await?;
        metrics::counter!("wrenn_proxy_lookups_total").increment(1);
        let hash = hash.map(<[u8; 32]>::as_slice);
        Ok(db::routes::get_sandbox_proxy_target(&self.db, Some(id), hash).await?)
    }

    /// Drops a capsule from the cache.
    pub(crate) fn forget(&self, id: CapsuleId) {
        self.capsules.forget(&id);
    }

    pub(crate) fn forget_all(&self) {
        self.capsules.forget_all();
    }

    pub(crate) fn apply(&self, change: &Change) {
        match change {
            Change::Capsule(id) => self.forget(*id),
            Change::All => self.forget_all(),
            // The entries name a host only by its id, so its changes leave them valid.
            Change::Build(_)
            | Change::Host(_)
            | Change::Key(_)
            | Change::User(_)
            | Change::Session(_)
            | Change::Team(_)
            | Change::Events(_)
            | Change::Nothing => {}
        }
    }
}

fn route(row: &SandboxProxyTarget) -> Option<Arc<Route>> {
    let ports = row.public_ports.iter().flatten();
    Some(Arc::new(Route {
        team: row.team_id?,
        template: row.template_id,
        state: row.state?,
        host: row.host_id,
        envd_token: row.envd_token.as_deref()?.into(),
        traffic_token: row.traffic_token.as_deref()?.into(),
        link_generation: row.link_generation?,
        auto_resume: row.auto_resume.unwrap_or(false),
        public_traffic: row.public_traffic.unwrap_or(false),
        host_header: row.host_header.as_deref().map(Into::into),
        e2b: row.e2b.unwrap_or(false),
        public_ports: ports.filter_map(|port| u16::try_from(*port).ok()).collect(),
    }))
}
