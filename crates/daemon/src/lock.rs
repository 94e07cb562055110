//! Locks that stay usable after a panic. A panic ends one task; all other tasks still need the
//! value, so a poisoned lock is taken like any other.

use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Locks a mutex, even when an earlier holder panicked.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks a value for reading, even when an earlier writer panicked.
pub fn read_lock<T>(value: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    value.read().unwrap_or_else(PoisonError::into_inner)
}

/// Locks a value for writing, even when an earlier writer panicked.
pub fn write_lock<T>(value: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    value.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_stay_usable_after_a_panic_of_their_holder() {
        let (mutex, value) = (Mutex::new(1), RwLock::new(2));
        let holder = || {
            let _held = (lock(&mutex), write_lock(&value));
            assert!(mutex.is_poisoned(), "the holder panics");
        };
        std::thread::scope(|scope| assert!(scope.spawn(holder).join().is_err()));
        assert!(mutex.is_poisoned() && value.is_poisoned());
        assert_eq!((*lock(&mutex), *read_lock(&value)), (1, 2));
        *write_lock(&value) += 1;
        assert_eq!(*read_lock(&value), 3);
    }
}
