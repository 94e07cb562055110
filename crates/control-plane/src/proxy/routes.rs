//! Caches that keep SQL out of the way of proxied requests, and of callers with keys: capsules by
//! id, keys by hash.
//!
//! Every change drops the entries that it concerns. PostgreSQL announces it to every replica, and
//! the replica that makes it drops them at once. A replica that hears of no changes caches nothing.
//! Each replica tests every other second that it hears them.

use crate::app::App;
use crate::cache::{Cache, CacheEntry, InvalidationHealth};
use crate::db;
use crate::db::keys::Key;
use crate::db::listen::{Change, Changes};
use crate::db::routes::SandboxProxyTarget;
use crate::error::Result;
use protocol::ENVD_PORT;
use sqlx::PgPool;
use sqlx::types::Json;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use types::{ApiKeyId, CapsuleId, CapsuleState, HostId, TeamId};
use uuid::Uuid;

/// Time before another attempt to listen for changes.
const RETRY: Duration = Duration::from_millis(500);
/// Time between two test announcements, and the silence after which the connection counts as lost.
const LOOK: Duration = Duration::from_secs(2);
const SILENT: Duration = Duration::from_secs(5);

/// Cached facts about a capsule.
#[derive(Debug)]
pub(crate) struct Route {
    pub team: TeamId,
    pub template: Option<Uuid>,
    pub state: CapsuleState,
    pub host: Option<HostId>,
    pub envd_token: Box<str>,
    pub traffic_token: Box<str>,
    /// Generation of preview links; links of earlier generations no longer admit.
    pub link_generation: i64,
    pub public_ports: Box<[u16]>,
    /// Set if anyone may reach all ports except envd's.
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
        let all = self.public_traffic && port != ENVD_PORT;
        all || self.public_ports.contains(&port)
    }
}

/// Caches of capsules and keys.
pub(crate) struct Routes {
    health: InvalidationHealth,
    capsules: Cache<CapsuleId, Arc<Route>>,
    keys: Cache<[u8; 32], Arc<Key>>,
    /// Hashes of keys by the keys' ids. A hash never changes.
    hashes: Cache<ApiKeyId, [u8; 32]>,
}

impl Routes {
    pub(crate) fn new(health: InvalidationHealth) -> Self {
        let (capsules, keys, hashes) = (Cache::new(), Cache::new(), Cache::new());
        Self { health, capsules, keys, hashes }
    }

    /// Finds a capsule and a key, by one query at most, for a client at `from`.
    pub(crate) async fn find(
        &self,
        app: &App,
        id: CapsuleId,
        key: Option<&[u8; 32]>,
        from: Option<IpAddr>,
    ) -> Result<(Option<Arc<Route>>, Option<Arc<Key>>)> {
        if !self.health.is_healthy() {
            let row = query(app, Some(id), key, from).await?;
            return Ok((route(&row), row.key.map(|Json(key)| Arc::new(key))));
        }
        let mut asked = None;
        let look = async {
            // The place is taken before the query, so that a change to the key meanwhile drops the
            // result.
            let wanted = key.filter(|hash| self.keys.kept(hash).is_none());
            let place = match wanted {
                Some(hash) => self.keys.place(hash).await,
                None => None,
            };
            let row = query(app, Some(id), key, from).await?;
            let known = known_key(&row);
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
            (Some(hash), None) => Ok((found, self.key(app, hash, from).await?)),
        }
    }

    /// Finds a valid key, for a client at `from`.
    pub(crate) async fn key(
        &self,
        app: &App,
        hash: &[u8; 32],
        from: Option<IpAddr>,
    ) -> Result<Option<Arc<Key>>> {
        let look = async { Ok(known_key(&query(app, None, Some(hash), from).await?)) };
        self.keys.get(&self.health, hash, look).await
    }

    /// Returns the hash of a key, by its id.
    pub(crate) async fn hash(&self, db: &PgPool, id: ApiKeyId) -> Result<Option<[u8; 32]>> {
        let look = async {
            let hash = db::keys::hash(db, id).await?;
            Ok(CacheEntry::new(hash.and_then(|hash| hash.try_into().ok()), None))
        };
        self.hashes.get(&self.health, &id, look).await
    }

    /// Drops a capsule from the cache.
    pub(crate) fn forget(&self, id: CapsuleId) {
        self.capsules.forget(&id);
    }

    fn forget_all(&self) {
        self.capsules.forget_all();
        self.keys.forget_all();
    }

    pub(crate) fn apply(&self, change: &Change) {
        match change {
            Change::Capsule(id) => self.forget(*id),
            Change::Key(hash) => self.keys.forget(hash),
            // The entries name a host only by its id, so its changes leave them valid.
            Change::Host(_) | Change::User(_) | Change::Session(_) | Change::Team(_) => {}
            Change::Events(_) | Change::Nothing => {}
            Change::All => self.forget_all(),
        }
    }
}

/// Listens for changes until the connection is lost or silent. Changes that were still on their way
/// are then lost.
async fn hear(app: &App) -> sqlx::Result<()> {
    let mut changes = Changes::listen(&app.db).await?;
    app.invalidation_health.set(true);
    // Changes that were not heard may have revoked open exchanges.
    app.revocations.check_all();
    let mut look = tokio::time::interval(LOOK);
    let mut heard = Instant::now();
    loop {
        let change = tokio::select! {
            change = changes.next() => change,
            _ = look.tick() => {
                if heard.elapsed() > SILENT {
                    return Err(sqlx::Error::PoolTimedOut);
                }
                let db = app.db.clone();
                app.tasks.spawn(async move {
                    // A ping that fails needs no handling, since its silence is noticed.
                    let _ = tokio::time::timeout(LOOK, db::listen::ping(&db)).await;
                });
                continue;
            }
        };
        let Some(change) = change else { return Ok(()) };
        heard = Instant::now();
        app.changed(&change);
        match change {
            Change::Host(_) => app.fleet.tell(),
            Change::Events(team) => app.streams.wake(Some(team)),
            Change::All => {
                app.fleet.tell();
                app.streams.wake(None);
            }
            Change::Capsule(_)
            | Change::Key(_)
            | Change::User(_)
            | Change::Session(_)
            | Change::Team(_)
            | Change::Nothing => {}
        }
    }
}

/// Keeps the caches valid for as long as the process lives.
pub(crate) fn spawn_invalidation(app: &App) {
    let app = app.clone();
    app.tasks.clone().spawn(async move {
        let mut stop = app.tasks.stop_signal().wait();
        loop {
            let heard = tokio::select! {
                heard = hear(&app) => heard,
                () = &mut stop => return,
            };
            // Caching ends first, so that no entry is kept after the caches are cleared.
            app.invalidation_health.set(false);
            app.routes.forget_all();
            app.directory.forget_all();
            if let Err(error) = heard {
                tracing::warn!(%error, "the database does not tell of changes; nothing is cached");
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = &mut stop => return,
            }
        }
    });
}

async fn query(
    app: &App,
    id: Option<CapsuleId>,
    hash: Option<&[u8; 32]>,
    from: Option<IpAddr>,
) -> Result<SandboxProxyTarget> {
    let _place = app.load.lookup(from).await?;
    if id.is_some() {
        metrics::counter!("wrenn_proxy_lookups_total").increment(1);
    }
    Ok(db::routes::get_sandbox_proxy_target(&app.db, id, hash.map(<[u8; 32]>::as_slice)).await?)
}

fn route(row: &SandboxProxyTarget) -> Option<Arc<Route>> {
    let state = row.status.as_deref()?.parse().unwrap_or(CapsuleState::Error);
    let ports = row.public_ports.iter().flatten();
    Some(Arc::new(Route {
        team: TeamId(row.team_id?),
        template: row.template_id,
        state,
        host: row.host_id.map(HostId),
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

/// Returns a cache entry for a key, kept no longer than the key is valid.
fn known_key(row: &SandboxProxyTarget) -> CacheEntry<Arc<Key>> {
    let left = row.key_expires.map(|at| at - time::OffsetDateTime::now_utc());
    let left = left.map(|left| Duration::try_from(left).unwrap_or_default());
    CacheEntry::new(row.key.as_ref().map(|Json(key)| Arc::new(key.clone())), left)
}
