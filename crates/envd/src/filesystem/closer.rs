//! The close of a caller's file. On some file systems, such as FUSE, each close waits for a server,
//! and no signal ends the wait. So the thread that serves never drops the last holder of a file.

use crate::jobs::Pool;
use std::fs::File;
use std::sync::Arc;

/// Closes a file on a thread of a pool. Stands after every other holder of the file, so that it is
/// dropped last.
pub(super) struct Closer {
    file: Option<Arc<File>>,
    pool: Pool,
}

impl Closer {
    pub(super) fn new(file: &Arc<File>, pool: &Pool) -> Self {
        Self { file: Some(Arc::clone(file)), pool: pool.clone() }
    }

    /// Leaves the close to the other holders, whose thread may block.
    pub(super) fn release(&mut self) {
        self.file = None;
    }
}

impl Drop for Closer {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            self.pool.later(move || drop(file));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::{self, Jobs};
    use std::time::Duration;

    #[tokio::test]
    async fn file_dropped_on_serving_thread_is_closed_by_a_job() {
        let file = Arc::new(File::open("/dev/null").unwrap());
        let closer = Closer::new(&file, &Jobs::default().files);
        let seen = Arc::downgrade(&file);
        drop(file);
        drop(closer);
        // No job begins before this thread waits.
        assert_eq!(seen.strong_count(), 1);
        let closed = async {
            while seen.strong_count() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(jobs::LIMIT, closed).await.unwrap();
    }
}
