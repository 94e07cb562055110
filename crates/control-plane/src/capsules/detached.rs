//! Runs changes of capsules as tasks of their own.

use crate::app::App;
use crate::error::{Error, Result};
use std::future::Future;

/// Runs work that goes on when its caller leaves.
pub(super) async fn detached<T: Send + 'static>(
    app: &App,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    app.tasks.detached(work).await.unwrap_or(Err(Error::HostUnavailable))
}
