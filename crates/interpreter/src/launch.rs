//! Starts of kernels, as contexts see them. `Launcher` is the one implementation; unit tests have a
//! scripted one.

use crate::kernel::launch::Launcher;
use crate::kernel::{SEED, Saved, StartError, StartSpec, Started};
use futures::future::BoxFuture;
use std::sync::Arc;

/// The result of a start.
pub(crate) type Start = BoxFuture<'static, Result<Started, StartError>>;

/// Starts kernels.
pub(crate) trait Launch: Send + Sync {
    fn start(self: Arc<Self>, spec: StartSpec) -> Start;

    /// Finds a kernel of an earlier interpreter again.
    fn adopt(self: Arc<Self>, spec: StartSpec, saved: Saved) -> Start;

    /// Languages that can be started, in alphabetical order.
    fn languages(&self) -> Vec<String>;

    /// Waits until starts are quick.
    fn ready(self: Arc<Self>) -> BoxFuture<'static, Result<(), StartError>>;

    /// Gives kernels that start from now on other randomness.
    fn epoch(&self, seed: [u8; SEED]);
}

impl Launch for Launcher {
    fn start(self: Arc<Self>, spec: StartSpec) -> Start {
        Box::pin(async move { Self::start(&self, spec).await })
    }

    fn adopt(self: Arc<Self>, spec: StartSpec, saved: Saved) -> Start {
        Box::pin(async move { Self::adopt(&self, spec, saved).await })
    }

    fn languages(&self) -> Vec<String> {
        Self::languages(self)
    }

    fn ready(self: Arc<Self>) -> BoxFuture<'static, Result<(), StartError>> {
        Box::pin(async move { Self::ready(&self).await })
    }

    fn epoch(&self, seed: [u8; SEED]) {
        Self::epoch(self, seed);
    }
}
