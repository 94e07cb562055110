//! Primitives of the tracker, which its model replaces by those of loom.

pub(crate) use futures::task::AtomicWaker;
pub(crate) use std::sync::Arc;
pub(crate) use std::sync::atomic::AtomicU64;
