//! Conversion between wire and domain for the two Connect services. It has no rules of its own.

mod filesystem;
mod process;
pub(crate) mod stream;
mod watch;

use crate::guest::Guest;
use connectrpc::{ConnectRpcService, DeadlinePolicy, Limits, Router};
use protocol::filesystem::FilesystemExt;
use protocol::process::ProcessExt;
use std::sync::Arc;

/// Largest message in bytes. Messages carry input and listings, never files' contents.
const MESSAGE_MAX: usize = 16 << 20;

/// Returns the services for processes and for files, as one tower service.
pub(crate) fn service(guest: &Arc<Guest>) -> ConnectRpcService {
    let router = Arc::new(process::Processes(Arc::clone(guest))).register(Router::new());
    let router = Arc::new(filesystem::Files(Arc::clone(guest))).register(router);
    let limits = Limits::default()
        .with_max_request_body_size(MESSAGE_MAX)
        .with_max_message_size(MESSAGE_MAX);
    // Streams keep their own deadline. It kills a program even when the caller has gone.
    let deadlines = DeadlinePolicy::new().with_enforce_on_streams(false);
    router.into_axum_service().with_limits(limits).with_deadline_policy(deadlines)
}
