//! Bounded shares of a resource that many hold at once: connections, requests, bytes. Each key has
//! a bound, and all keys together have another. A request beyond a bound is refused at once and
//! never waits.

use daemon::lock;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// Locks that the keys are spread over.
const SHARDS: usize = 16;

/// Largest amounts that may be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Bound of all keys together.
    pub all: u64,
    /// Bound of a single key.
    pub each: u64,
}

/// The bound that is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// All keys together hold as much as they may.
    All,
    /// The key holds as much as it may.
    Each,
}

/// Counts the amount that each key holds. Clones share their counts.
#[derive(Debug)]
pub struct Shares<K>(Arc<Counts<K>>);

#[derive(Debug)]
struct Counts<K> {
    all: AtomicU64,
    each: [Mutex<HashMap<K, u64>>; SHARDS],
    hasher: RandomState,
}

/// An amount that a key holds until the share is dropped.
#[derive(Debug)]
pub struct Share<K: Hash + Eq> {
    counts: Arc<Counts<K>>,
    key: K,
    amount: u64,
}

impl<K> Clone for Shares<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K> Default for Shares<K> {
    fn default() -> Self {
        let each = std::array::from_fn(|_| Mutex::default());
        let (all, hasher) = (AtomicU64::new(0), RandomState::new());
        Self(Arc::new(Counts { all, each, hasher }))
    }
}

impl<K: Hash + Eq + Clone> Shares<K> {
    /// Takes an amount for a key.
    ///
    /// # Errors
    /// Returns the bound that would be exceeded. Takes nothing then.
    pub fn take(&self, key: K, amount: u64, bounds: Bounds) -> Result<Share<K>, Full> {
        let room = |held: u64| held.checked_add(amount).filter(|held| *held <= bounds.all);
        let all = self.0.all.fetch_update(Ordering::AcqRel, Ordering::Acquire, room);
        all.map_err(|_| Full::All)?;
        let mut counts = self.0.shard(&key);
        let held = counts.get(&key).copied().unwrap_or(0);
        match held.checked_add(amount).filter(|held| *held <= bounds.each) {
            Some(held) => counts.insert(key.clone(), held),
            None => {
                self.0.all.fetch_sub(amount, Ordering::AcqRel);
                return Err(Full::Each);
            }
        };
        drop(counts);
        Ok(Share { counts: Arc::clone(&self.0), key, amount })
    }

    /// Returns the amount that all keys together hold.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.0.all.load(Ordering::Acquire)
    }
}

impl<K: Hash + Eq> Counts<K> {
    fn shard(&self, key: &K) -> MutexGuard<'_, HashMap<K, u64>> {
        let at = usize::try_from(self.hasher.hash_one(key) >> 32).unwrap_or(0) % SHARDS;
        lock(&self.each[at])
    }
}

impl<K: Hash + Eq> Share<K> {
    /// Takes `more` in addition for the same key.
    ///
    /// # Errors
    /// Returns the bound that would be exceeded. Takes nothing then.
    pub fn grow(&mut self, more: u64, bounds: Bounds) -> Result<(), Full>
    where
        K: Clone,
    {
        let mut added = Shares(Arc::clone(&self.counts)).take(self.key.clone(), more, bounds)?;
        self.amount += std::mem::take(&mut added.amount);
        Ok(())
    }

    /// Gives back the part above `amount`.
    pub fn shrink(&mut self, amount: u64) {
        let back = self.amount.saturating_sub(amount);
        self.give_back(back);
        self.amount -= back;
    }

    fn give_back(&self, amount: u64) {
        if amount == 0 {
            return;
        }
        let mut counts = self.counts.shard(&self.key);
        if let Some(held) = counts.get_mut(&self.key) {
            *held = held.saturating_sub(amount);
            if *held == 0 {
                counts.remove(&self.key);
            }
        }
        drop(counts);
        self.counts.all.fetch_sub(amount, Ordering::AcqRel);
    }
}

impl<K: Hash + Eq> Drop for Share<K> {
    fn drop(&mut self) {
        self.give_back(self.amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FEW: Bounds = Bounds { all: 10, each: 4 };

    #[test]
    fn shares_are_bounded_per_key_and_in_total() {
        let shares = Shares::default();
        let first = shares.take("a", 4, FEW).unwrap();
        assert_eq!(shares.take("a", 1, FEW).unwrap_err(), Full::Each);
        let rest = [shares.take("b", 4, FEW).unwrap(), shares.take("c", 2, FEW).unwrap()];
        assert_eq!(shares.take("d", 1, FEW).unwrap_err(), Full::All);
        // A caller with a wider bound gets the room that is kept back from others.
        drop(shares.take("d", 1, Bounds { all: 11, ..FEW }).unwrap());
        drop(first);
        assert_eq!(shares.held(), 6);
        drop(shares.take("a", 4, FEW).unwrap());
        drop(rest);
        assert_eq!(shares.held(), 0);
        assert!(shares.0.each.iter().all(|shard| shard.lock().unwrap().is_empty()));
    }

    #[test]
    fn shrunk_share_frees_capacity() {
        let shares = Shares::default();
        let mut share = shares.take("a", 4, FEW).unwrap();
        share.shrink(1);
        assert_eq!(shares.held(), 1);
        let more = shares.take("a", 3, FEW).unwrap();
        drop(more);
        share.grow(3, FEW).unwrap();
        assert_eq!(share.grow(1, FEW), Err(Full::Each));
        assert_eq!(shares.held(), 4);
        drop(share);
        assert_eq!(shares.held(), 0);
    }

    #[test]
    fn concurrent_takers_never_exceed_bounds() {
        let shares = Shares::default();
        let bounds = Bounds { all: 60, each: 50 };
        std::thread::scope(|scope| {
            for key in 0..4 {
                let shares = shares.clone();
                scope.spawn(move || {
                    for _ in 0..2000 {
                        let share = shares.take(key, 20, bounds);
                        assert!(shares.held() <= bounds.all);
                        drop(share);
                    }
                });
            }
        });
        assert_eq!(shares.held(), 0);
    }
}
