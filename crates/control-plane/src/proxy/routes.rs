//! The cache that keeps SQL out of the way of proxied requests: capsules by id, keys by hash.
//!
//! What is found is kept for two minutes, what is not found for a second. A change anywhere drops
//! what it concerns at once: told by PostgreSQL to every replica, and by whoever makes it to its
//! own. While a replica does not hear of changes it caches nothing. A look-up under way when a
//! change comes is answered and not kept.

use crate::app::App;
use crate::db::listen::{Change, Changes};
use crate::db::routes::Row;
use crate::error::Result;
use crate::hosts::Fleet;
use crate::{auth, db};
use quick_cache::sync::Cache;
use sqlx::PgPool;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use types::{CapsuleId, CapsuleState, HostId, TeamId};

const KEPT: Duration = Duration::from_secs(120);
const KEPT_MISSING: Duration = Duration::from_secs(1);
/// Most capsules, and most keys, that are kept.
const MOST: usize = 50_000;
/// Before another try to hear of changes.
const RETRY: Duration = Duration::from_millis(500);

/// What is known of a capsule.
#[derive(Debug)]
pub(crate) struct Route {
    pub team: TeamId,
    pub state: CapsuleState,
    pub host: Option<HostId>,
    pub envd_token: Box<str>,
    pub traffic_token: Box<str>,
    pub public_ports: Box<[u16]>,
    /// Whether it is resumed when something is asked of it.
    pub auto_resume: bool,
}

/// A thing that was looked up, whether there is one or not.
#[derive(Clone)]
struct Known<T> {
    found: Option<T>,
    until: Instant,
}

impl<T: Clone> Known<T> {
    fn new(found: Option<T>, longest: Option<Duration>) -> Self {
        let kept = if found.is_some() { KEPT } else { KEPT_MISSING };
        let kept = longest.map_or(kept, |longest| kept.min(longest));
        Self { found, until: Instant::now() + kept }
    }

    fn is_fresh(&self) -> bool {
        Instant::now() < self.until
    }
}

/// The cache.
pub(crate) struct Routes {
    capsules: Cache<CapsuleId, Known<Arc<Route>>>,
    keys: Cache<[u8; 32], Known<TeamId>>,
    /// Whether changes are heard of.
    hears: AtomicBool,
}

impl Routes {
    pub(crate) fn new() -> Self {
        let (capsules, keys) = (Cache::new(MOST), Cache::new(MOST));
        Self { capsules, keys, hears: AtomicBool::new(false) }
    }

    /// A capsule and the team of a key, by one query at most.
    pub(crate) async fn find(
        &self,
        db: &PgPool,
        id: CapsuleId,
        key: Option<&str>,
    ) -> Result<(Option<Arc<Route>>, Option<TeamId>)> {
        let hash = key.map(auth::hash);
        if !self.hears.load(Ordering::Acquire) {
            let row = query(db, id, hash.as_ref()).await?;
            return Ok((route(&row), row.key_team.map(TeamId)));
        }
        let (found, asked) = self.capsule(db, id, hash.as_ref()).await?;
        let Some(hash) = hash else { return Ok((found, None)) };
        if let Some(team) = asked {
            return Ok((found, team));
        }
        Ok((found, self.key(db, id, hash).await?))
    }

    /// A capsule; with the key's team too, when that was asked for by the same query.
    async fn capsule(
        &self,
        db: &PgPool,
        id: CapsuleId,
        hash: Option<&[u8; 32]>,
    ) -> Result<(Option<Arc<Route>>, Option<Option<TeamId>>)> {
        match self.capsules.get(&id) {
            Some(known) if known.is_fresh() => return Ok((known.found, None)),
            Some(_) => drop(self.capsules.remove_if(&id, |known| !known.is_fresh())),
            None => {}
        }
        // Whoever comes while another looks it up waits for what they find.
        match self.capsules.get_value_or_guard_async(&id).await {
            Ok(known) => Ok((known.found, None)),
            Err(place) => {
                let key = hash.map(|hash| (hash, self.keys.get(hash)));
                let wanted = key.as_ref().filter(|(_, known)| known.is_none());
                // Before the query, so that a change to the key meanwhile drops it.
                let key_place = match wanted {
                    Some((hash, _)) => self.keys.get_value_or_guard_async(*hash).await.err(),
                    None => None,
                };
                let row = query(db, id, hash).await?;
                let found = route(&row);
                // Refused when a change dropped it meanwhile.
                let _ = place.insert(Known::new(found.clone(), None));
                if let Some(place) = key_place {
                    let _ = place.insert(known_key(&row));
                }
                Ok((found, hash.map(|_| row.key_team.map(TeamId))))
            }
        }
    }

    async fn key(&self, db: &PgPool, id: CapsuleId, hash: [u8; 32]) -> Result<Option<TeamId>> {
        match self.keys.get(&hash) {
            Some(known) if known.is_fresh() => return Ok(known.found),
            Some(_) => drop(self.keys.remove_if(&hash, |known| !known.is_fresh())),
            None => {}
        }
        match self.keys.get_value_or_guard_async(&hash).await {
            Ok(known) => Ok(known.found),
            Err(place) => {
                let row = query(db, id, Some(&hash)).await?;
                let _ = place.insert(known_key(&row));
                Ok(row.key_team.map(TeamId))
            }
        }
    }

    /// Drops what is known of a capsule.
    pub(crate) fn forget(&self, id: CapsuleId) {
        self.capsules.remove(&id);
    }

    fn forget_all(&self) {
        self.capsules.clear();
        self.keys.clear();
    }

    fn apply(&self, change: &Change) {
        match change {
            Change::Capsule(id) => self.forget(*id),
            Change::Key(hash) => {
                self.keys.remove(hash);
            }
            // By its id it is reached, wherever it is.
            Change::Host(_) => {}
            Change::All => self.forget_all(),
        }
    }

    /// Hears of changes until the connection for it is lost.
    async fn hear(&self, db: &PgPool, fleet: &Fleet) -> sqlx::Result<()> {
        let mut changes = Changes::listen(db).await?;
        self.hears.store(true, Ordering::Release);
        while let Some(change) = changes.next().await {
            self.apply(&change);
            if let Change::Host(_) | Change::All = change {
                fleet.tell();
            }
        }
        Ok(())
    }
}

/// Keeps the cache true for as long as the process lives.
pub(crate) fn keep_true(app: &App) {
    let (routes, db, tasks) = (Arc::clone(&app.routes), app.db.clone(), app.tasks.clone());
    let fleet = Arc::clone(&app.fleet);
    app.tasks.spawn(async move {
        let mut stop = tasks.stop_signal().wait();
        loop {
            let heard = tokio::select! {
                heard = routes.hear(&db, &fleet) => heard,
                () = &mut stop => return,
            };
            // In this order: nothing is kept any more once it is dropped.
            routes.hears.store(false, Ordering::Release);
            routes.forget_all();
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

async fn query(db: &PgPool, id: CapsuleId, hash: Option<&[u8; 32]>) -> Result<Row> {
    metrics::counter!("wrenn_proxy_lookups_total").increment(1);
    Ok(db::routes::find(db, id, hash.map(<[u8; 32]>::as_slice)).await?)
}

fn route(row: &Row) -> Option<Arc<Route>> {
    let state = row.status.as_deref()?.parse().unwrap_or(CapsuleState::Error);
    let ports = row.public_ports.iter().flatten();
    Some(Arc::new(Route {
        team: TeamId(row.team_id?),
        state,
        host: row.host_id.map(HostId),
        envd_token: row.envd_token.as_deref()?.into(),
        traffic_token: row.traffic_token.as_deref()?.into(),
        auto_resume: row.auto_resume.unwrap_or(false),
        public_ports: ports.filter_map(|port| u16::try_from(*port).ok()).collect(),
    }))
}

/// A key, kept no longer than it is valid.
fn known_key(row: &Row) -> Known<TeamId> {
    let left = row.key_expires.map(|at| at - time::OffsetDateTime::now_utc());
    let left = left.map(|left| Duration::try_from(left).unwrap_or_default());
    Known::new(row.key_team.map(TeamId), left)
}
