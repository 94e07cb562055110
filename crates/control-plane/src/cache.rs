//! Look-ups that are kept for as long as their changes are heard of: two minutes what is found, a
//! second what is not. A look-up under way when a change comes is answered and not kept.

use crate::error::Result;
use quick_cache::sync::Cache;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const KEPT: Duration = Duration::from_secs(120);
const KEPT_MISSING: Duration = Duration::from_secs(1);
/// Most of one kind that are kept.
const MOST: usize = 50_000;

/// A thing that was looked up, whether there is one or not.
#[derive(Clone)]
pub(crate) struct Known<T> {
    pub found: Option<T>,
    until: Instant,
}

impl<T: Clone> Known<T> {
    pub(crate) fn new(found: Option<T>, longest: Option<Duration>) -> Self {
        let kept = if found.is_some() { KEPT } else { KEPT_MISSING };
        let kept = longest.map_or(kept, |longest| kept.min(longest));
        Self { found, until: Instant::now() + kept }
    }

    fn is_fresh(&self) -> bool {
        Instant::now() < self.until
    }
}

/// Whether changes are heard of; shared by every cache.
#[derive(Clone, Default)]
pub(crate) struct Hears(Arc<AtomicBool>);

impl Hears {
    pub(crate) fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    pub(crate) fn set(&self, hears: bool) {
        self.0.store(hears, Ordering::Release);
    }
}

/// Things of one kind, by their key.
pub(crate) struct Lookups<K, T>(Cache<K, Known<T>>);

impl<K: Hash + Eq + Clone, T: Clone> Lookups<K, T> {
    pub(crate) fn new() -> Self {
        Self(Cache::new(MOST))
    }

    /// What is kept and good.
    pub(crate) fn kept(&self, key: &K) -> Option<Option<T>> {
        match self.0.get(key) {
            Some(known) if known.is_fresh() => Some(known.found),
            Some(_) => {
                self.0.remove_if(key, |known| !known.is_fresh());
                None
            }
            None => None,
        }
    }

    /// The thing: kept, or looked up now. Whoever comes while another looks it up waits for what
    /// they find. What is there already costs no allocation.
    pub(crate) async fn get<F>(&self, hears: &Hears, key: &K, look: F) -> Result<Option<T>>
    where
        F: Future<Output = Result<Known<T>>>,
    {
        if !hears.get() {
            return Ok(Box::pin(look).await?.found);
        }
        match self.kept(key) {
            Some(found) => Ok(found),
            None => Box::pin(self.look(key, look)).await,
        }
    }

    async fn look<F>(&self, key: &K, look: F) -> Result<Option<T>>
    where
        F: Future<Output = Result<Known<T>>>,
    {
        match self.0.get_value_or_guard_async(key).await {
            Ok(known) => Ok(known.found),
            Err(place) => {
                let known = look.await?;
                // Refused when a change dropped it meanwhile.
                let _ = place.insert(known.clone());
                Ok(known.found)
            }
        }
    }

    /// Takes the place of something that is not kept; none when another has it or found it.
    pub(crate) async fn place(&self, key: &K) -> Option<impl FnOnce(Known<T>)> {
        let place = self.0.get_value_or_guard_async(key).await.err()?;
        Some(|known| drop(place.insert(known)))
    }

    pub(crate) fn forget(&self, key: &K) {
        self.0.remove(key);
    }

    pub(crate) fn forget_all(&self) {
        self.0.clear();
    }
}
