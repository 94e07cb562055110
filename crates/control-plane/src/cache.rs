//! Caches that are valid while this replica hears of changes. A found value is kept for two
//! minutes, a missing one for a second. A look-up that is under way during a change is answered,
//! but not kept.

use crate::error::Result;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const KEPT: Duration = Duration::from_secs(120);
const KEPT_MISSING: Duration = Duration::from_secs(1);
/// Most entries of one cache.
const MOST: usize = 50_000;

/// Result of a look-up, found or missing.
#[derive(Clone)]
pub(crate) struct CacheEntry<T> {
    pub found: Option<T>,
    until: Instant,
}

impl<T: Clone> CacheEntry<T> {
    pub(crate) fn new(found: Option<T>, longest: Option<Duration>) -> Self {
        let kept = if found.is_some() { KEPT } else { KEPT_MISSING };
        let kept = longest.map_or(kept, |longest| kept.min(longest));
        Self { found, until: Instant::now() + kept }
    }

    fn is_fresh(&self) -> bool {
        Instant::now() < self.until
    }
}

/// State of the change notifications, shared by every cache. `true` while this replica hears of
/// changes.
#[derive(Clone, Default)]
pub(crate) struct InvalidationHealth(Arc<AtomicBool>);

impl InvalidationHealth {
    pub(crate) fn is_healthy(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    pub(crate) fn set(&self, healthy: bool) {
        self.0.store(healthy, Ordering::Release);
    }
}

/// Cache of one kind of value.
pub(crate) struct Cache<K, T>(quick_cache::sync::Cache<K, CacheEntry<T>>);

impl<K: Hash + Eq + Clone, T: Clone> Cache<K, T> {
    pub(crate) fn new() -> Self {
        Self(quick_cache::sync::Cache::new(MOST))
    }

    /// Returns a fresh entry.
    pub(crate) fn kept(&self, key: &K) -> Option<Option<T>> {
        match self.0.get(key) {
            Some(entry) if entry.is_fresh() => Some(entry.found),
            Some(_) => {
                self.0.remove_if(key, |entry| !entry.is_fresh());
                None
            }
            None => None,
        }
    }

    /// Returns the value, from the cache or by a look-up. Callers that come during a look-up wait
    /// for its result. A hit costs no allocation.
    pub(crate) async fn get<F>(
        &self,
        health: &InvalidationHealth,
        key: &K,
        look: F,
    ) -> Result<Option<T>>
    where
        F: Future<Output = Result<CacheEntry<T>>>,
    {
        if !health.is_healthy() {
            return Ok(Box::pin(look).await?.found);
        }
        match self.kept(key) {
            Some(found) => Ok(found),
            None => Box::pin(self.look(key, look)).await,
        }
    }

    async fn look<F>(&self, key: &K, look: F) -> Result<Option<T>>
    where
        F: Future<Output = Result<CacheEntry<T>>>,
    {
        match self.0.get_value_or_guard_async(key).await {
            Ok(entry) => Ok(entry.found),
            Err(place) => {
                let entry = look.await?;
                // The insert is refused when a change dropped the entry meanwhile.
                let _ = place.insert(entry.clone());
                Ok(entry.found)
            }
        }
    }

    /// Takes the place of a missing entry; `None` when another caller holds it or has filled it.
    pub(crate) async fn place(&self, key: &K) -> Option<impl FnOnce(CacheEntry<T>)> {
        let place = self.0.get_value_or_guard_async(key).await.err()?;
        Some(|entry| drop(place.insert(entry)))
    }

    pub(crate) fn forget(&self, key: &K) {
        self.0.remove(key);
    }

    pub(crate) fn forget_all(&self) {
        self.0.clear();
    }
}
