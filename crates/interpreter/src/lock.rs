//! Locks of a program that goes on after a task's panic.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex. Values behind these mutexes are whole even after a panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
