//! Second step of the proxy: decides whether a request is let in, and on which grounds.

use super::access::{Admitted, GuestAccess, Presented};
use super::links::Links;
use super::port_admission::{self, PortAdmission};
use super::resolve::Arrival;
use super::routes::Route;
use super::{answer, preview};
use crate::app::App;
use crate::audit::{Actor, AuditEvent, Principal};
use crate::auth::Caller;
use crate::auth::authorize::key_caller;
use crate::error::{Error, Result};
use hop::Body;
use http::uri::PathAndQuery;
use http::{Method, Request, Response};
use std::sync::Arc;
use types::PLATFORM_TEAM;

/// A request that was let in.
pub(super) struct Authorized {
    pub admission: PortAdmission,
    /// Caller by whose right the capsule is woken: the owner, or the platform for anybody else.
    pub waker: Caller,
    /// Token of the preview link in the request's query.
    pub link: Option<String>,
}

/// Collects the credentials of a request.
///
/// # Errors
/// `MethodNotAllowed` for `CONNECT`.
pub(super) fn present<'a>(request: &'a Request<Body>, arrival: &Arrival) -> Result<Presented<'a>> {
    if *request.method() == Method::CONNECT {
        return Err(Error::MethodNotAllowed);
    }
    let place = (request.uri().path(), request.uri().query().unwrap_or(""));
    Ok(Presented::new(request.method(), request.headers(), place, arrival.transport))
}

/// Decides whether a request is let in. Notes a refusal in the audit log.
///
/// # Errors
/// The refusals of [`Presented::decide`], `Overloaded`, `TooManyAtOnce`, and errors of the
/// database.
pub(super) async fn authorize(
    app: &Arc<App>,
    presented: Presented<'_>,
    arrival: &Arrival,
) -> Result<Authorized> {
    let (target, from) = (arrival.target, arrival.from);
    // The count is taken before the first look-up, so that no change in between is missed.
    let seen = app.revocations.count();
    let hash = presented.key().map(crate::secret::hash);
    let (route, key) = app.routes.find(target.capsule, hash.as_ref(), Some(from)).await?;
    let owner = match &key {
        Some(key) => key_caller(app, key, Actor::SYSTEM).await.ok(),
        None => None,
    };
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    let tokens = presented.link_tokens();
    let links = Links::find(app, tokens, target, route.as_deref(), now).await?;
    let decided = presented.decide(target, route.as_deref(), owner.as_ref(), &links, now);
    let admitted = decided.inspect_err(|error| {
        note_refusal(app, error, route.as_deref(), owner, arrival);
    })?;
    let route = route.ok_or(Error::NotFound("capsule"))?;
    if app.audit_access {
        note_access(app, &route, owner, arrival);
    }
    let hash = hash.filter(|_| admitted == Admitted::Owner);
    let basis = match (admitted, links.cookie) {
        (Admitted::Guest(GuestAccess::Cookie(_)), Some((_, basis))) => basis,
        _ => port_admission::basis(target, key.as_deref().zip(hash)),
    };
    let waker = owner.filter(|_| admitted == Admitted::Owner);
    let waker = waker.unwrap_or_else(|| Caller::of(route.team));
    let app = Arc::clone(app);
    let admission = PortAdmission { app, target, route, admitted, key: hash, basis, seen };
    Ok(Authorized { admission, waker, link: presented.link })
}

/// Exchanges a preview link for a cookie, by a redirect to the same place without the link.
///
/// # Errors
/// `PrivatePort` for a method that browsers do not open a link with.
pub(super) fn exchange_link(
    request: &Request<Body>,
    link: &str,
    seconds: i64,
    arrival: &Arrival,
) -> Result<Response<Body>> {
    match *request.method() {
        Method::GET | Method::HEAD => {
            Ok(answer::enter(&without_link(request), link, seconds, arrival.transport))
        }
        _ => Err(Error::PrivatePort),
    }
}

/// Returns a request's path and query without a link's token.
pub(super) fn without_link(request: &Request<Body>) -> String {
    let path = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
    preview::from_link(path).map_or_else(|| path.to_owned(), |(_, rest)| rest)
}

/// Notes a refusal in the audit log. Common refusals are left out: private ports, and bad, expired
/// or revoked links.
fn note_refusal(
    app: &App,
    error: &Error,
    route: Option<&Route>,
    who: Option<Caller>,
    arrival: &Arrival,
) {
    let common = matches!(error, Error::LinkExpired | Error::LinkRevoked);
    if common || matches!(error, Error::PrivatePort | Error::BadSignature(_)) {
        return;
    }
    let principal = who.map_or(Principal::Nobody, |caller| caller.by.principal);
    app.audit_buffer.note(AuditEvent {
        team: route.map_or(PLATFORM_TEAM, |route| route.team),
        by: Actor { principal, from: Some(arrival.from), reason: None },
        action: "capsule.refused",
        resource: arrival.target.capsule.to_string(),
        refused: true,
        code: error.code(),
    });
}

/// Notes an access in the audit log.
fn note_access(app: &App, route: &Route, who: Option<Caller>, arrival: &Arrival) {
    let principal = who.map_or(Principal::Nobody, |caller| caller.by.principal);
    app.audit_buffer.note(AuditEvent {
        team: route.team,
        by: Actor { principal, from: Some(arrival.from), reason: None },
        action: "capsule.access",
        resource: format!("{}:{}", arrival.target.capsule, arrival.target.port),
        refused: false,
        code: "",
    });
}
