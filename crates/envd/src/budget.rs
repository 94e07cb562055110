//! Memory for starts of programs under way. Each start takes its part before it is read.

use crate::metrics;
use tokio::sync::{AcquireError, Semaphore, SemaphorePermit};

/// Most memory for all starts under way, in bytes.
const MEMORY_MAX: u64 = 64 << 20;
/// Part of a small guest's memory for all starts under way: an eighth.
const MEMORY_SHARE: u64 = 8;

/// Least memory for all starts under way, in bytes: enough for one small start.
const MEMORY_MIN: u32 = 160 << 10;

/// Memory for starts under way.
pub(crate) struct Budget {
    bytes: Semaphore,
    all: u32,
}

impl Default for Budget {
    fn default() -> Self {
        let all = MEMORY_MAX.min(metrics::memory().total / MEMORY_SHARE);
        let all = u32::try_from(all).unwrap_or(u32::MAX).max(MEMORY_MIN);
        Self { bytes: Semaphore::new(all as usize), all }
    }
}

impl Budget {
    /// Returns the memory for all starts, in bytes.
    pub(crate) fn all(&self) -> u32 {
        self.all
    }

    /// Waits for a part of the memory, in bytes. A drop gives it back.
    pub(crate) async fn take(&self, bytes: u32) -> Result<SemaphorePermit<'_>, AcquireError> {
        self.bytes.acquire_many(bytes).await
    }
}
