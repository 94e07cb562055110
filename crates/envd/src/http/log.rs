//! `/log`: gives the host the output of programs that nobody waits for, and takes the choice of it.

use crate::error::{Error, Result};
use crate::guest::Guest;
use crate::peer::Peer;
use crate::process::log::Mode;
use axum::extract::{ConnectInfo, Query, State};
use axum::response::{IntoResponse, Response};
use connectrpc::ErrorCode;
use http::{StatusCode, header};
use std::sync::Arc;

/// Answers with the pieces after the cursor. The pieces up to the cursor are dropped, so only the
/// host may call this.
pub(super) async fn read(
    State(guest): State<Arc<Guest>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Query(query): Query<protocol::log::Query>,
) -> Result<Response> {
    check_host(&peer)?;
    let body = guest.processes.log().read(&query).await;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response())
}

/// Sets the output that the log has: `none`, `background` or `all`. Without any, earlier output is
/// dropped, so only the host may call this.
pub(super) async fn set_mode(
    State(guest): State<Arc<Guest>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    mode: String,
) -> Result<StatusCode> {
    check_host(&peer)?;
    guest.processes.log().set_mode(Mode::parse(&mode));
    Ok(StatusCode::NO_CONTENT)
}

fn check_host(peer: &Peer) -> Result<()> {
    if peer.is_program() {
        let message = "only the host may call this route";
        return Err(Error::new(ErrorCode::PermissionDenied, message));
    }
    Ok(())
}
