//! Authentication of callers: the access token on every path, or a signature on `/files`.
//!
//! `/health` is open, since it reveals nothing. `/init` checks a token in its body. Only the host
//! may call it, since bodies from the guest's programs could use up envd's memory.

use crate::error::{Error, Result};
use crate::guest::Guest;
use crate::peer::Peer;
use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use connectrpc::ErrorCode;
use http::{HeaderMap, Method};
use protocol::{Operation, SignedFile};
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// The parts of a link that its signature covers, and the signature.
#[derive(Debug, Clone, Default, serde::Deserialize)]
pub(crate) struct Signed {
    #[serde(default)]
    pub path: String,
    pub username: Option<String>,
    pub signature: Option<String>,
    pub signature_expiration: Option<i64>,
}

/// Refuses a request without a valid token, on all paths but those with rules of their own.
pub(crate) async fn require_token(
    State(guest): State<Arc<Guest>>,
    request: Request,
    next: Next,
) -> Response {
    let peer = request.extensions().get::<ConnectInfo<Peer>>();
    if request.uri().path() == "/init" && peer.is_some_and(|peer| peer.0.is_program()) {
        let message = "only the host may call this route";
        return Error::new(ErrorCode::PermissionDenied, message).into_response();
    }
    let open = matches!(request.uri().path(), "/health" | "/init" | "/files")
        || request.method() == Method::OPTIONS;
    if !open && let Err(error) = check_token(&guest, request.headers()) {
        return error.into_response();
    }
    next.run(request).await
}

/// Checks the token header. Every request passes before a token is set.
pub(crate) fn check_token(guest: &Guest, headers: &HeaderMap) -> Result<()> {
    let Some(token) = guest.settings().token else {
        return Ok(());
    };
    let given = headers.get(protocol::ACCESS_TOKEN).map_or(&b""[..], |v| v.as_bytes());
    if same(given, token.as_bytes()) {
        return Ok(());
    }
    Err(Error::unauthenticated("the access token is missing or wrong"))
}

/// Checks a request for a file's contents by its signature or, if it has none, by its token.
pub(crate) fn check_file(
    guest: &Guest,
    headers: &HeaderMap,
    signed: &Signed,
    operation: Operation,
) -> Result<()> {
    let Some(token) = guest.settings().token else {
        return Ok(());
    };
    let Some(signature) = signed.signature.as_deref() else {
        return check_token(guest, headers);
    };
    let (user, until) = (signed.username.as_deref(), signed.signature_expiration);
    let wanted = SignedFile { path: &signed.path, user, until }.sign(operation, &token);
    if !same(signature.as_bytes(), wanted.as_bytes()) {
        return Err(Error::unauthenticated("invalid signature"));
    }
    if signed.signature_expiration.is_some_and(|at| at < crate::clock::unix_seconds()) {
        return Err(Error::unauthenticated("signature is already expired"));
    }
    Ok(())
}

/// Compares secrets in a time that does not depend on where they differ.
pub(crate) fn same(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}
