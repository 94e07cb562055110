//! Cache of API keys by their hashes. Every change of a key drops its entry, on every replica.

use crate::cache::{Cache, CacheEntry, InvalidationHealth};
use crate::db;
use crate::db::keys::Key;
use crate::db::listen::Change;
use crate::db::routes::SandboxProxyTarget;
use crate::error::Result;
use crate::load::Load;
use sqlx::PgPool;
use sqlx::types::Json;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use types::ApiKeyId;

/// Cache of valid keys.
pub(crate) struct KeyCache {
    db: PgPool,
    load: Arc<Load>,
    health: InvalidationHealth,
    keys: Cache<[u8; 32], Arc<Key>>,
    /// Hashes of keys by the keys' ids. A hash never changes.
    hashes: Cache<ApiKeyId, [u8; 32]>,
}

impl KeyCache {
    pub(crate) fn new(db: PgPool, load: Arc<Load>, health: InvalidationHealth) -> Self {
        Self { db, load, health, keys: Cache::new(), hashes: Cache::new() }
    }

    /// Finds a valid key by its hash, for a client at `from`.
    pub(crate) async fn find(
        &self,
        hash: &[u8; 32],
        from: Option<IpAddr>,
    ) -> Result<Option<Arc<Key>>> {
        let look = async {
            let _place = self.load.lookup(from).await?;
            let hash = Some(hash.as_slice());
            Ok(entry(&db::routes::get_sandbox_proxy_target(&self.db, None, hash).await?))
        };
        self.keys.get(&self.health, hash, look).await
    }

    /// Returns the hash of a key, by its id.
    pub(crate) async fn hash(&self, id: ApiKeyId) -> Result<Option<[u8; 32]>> {
        let look = async {
            let hash = db::keys::hash(&self.db, id).await?;
            Ok(CacheEntry::new(hash.and_then(|hash| hash.try_into().ok()), None))
        };
        self.hashes.get(&self.health, &id, look).await
    }

    /// Returns the place for the entry of a key that the cache lacks. A change of the key while a
    /// query runs empties the place, so the result of that query is not kept.
    pub(crate) async fn place(&self, hash: &[u8; 32]) -> Option<impl FnOnce(CacheEntry<Arc<Key>>)> {
        match self.keys.kept(hash) {
            Some(_) => None,
            None => self.keys.place(hash).await,
        }
    }

    pub(crate) fn apply(&self, change: &Change) {
        match change {
            Change::Key(hash) => self.keys.forget(hash),
            Change::All => self.forget_all(),
            Change::Capsule(_)
            | Change::Build(_)
            | Change::Host(_)
            | Change::User(_)
            | Change::Session(_)
            | Change::Team(_)
            | Change::Events(_)
            | Change::Nothing => {}
        }
    }

    pub(crate) fn forget_all(&self) {
        self.keys.forget_all();
    }
}

/// Returns a cache entry for the key of a query's result, kept no longer than the key is valid.
pub(crate) fn entry(row: &SandboxProxyTarget) -> CacheEntry<Arc<Key>> {
    let left = row.key_expires.map(|at| at - time::OffsetDateTime::now_utc());
    let left = left.map(|left| Duration::try_from(left).unwrap_or_default());
    CacheEntry::new(row.key.as_ref().map(|Json(key)| Arc::new(key.clone())), left)
}
