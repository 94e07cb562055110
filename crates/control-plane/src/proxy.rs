//! The sandbox proxy. It serves requests whose host name or E2B headers name a port of a capsule,
//! before the API sees them.
//!
//! ```text
//!  SandboxProxy::answer                       refusals
//!    target::of ─ Addressee::Api ─▶ the API   Invalid
//!        │
//!        ├─ is_preflight ─▶ answer::preflight
//!        │ pass                               MethodNotAllowed, for CONNECT
//!        ▼
//!    authorize    Routes::find,               Unauthenticated, PrivatePort, NotFound,
//!        │        Presented::decide           LinkExpired, LinkRevoked, …
//!        │
//!        ├─ Admitted::Link ─▶ answer::enter   PrivatePort, unless GET or HEAD
//!        ▼
//!    wake         with auto_resume, unless    TooManyConnections, NotRunning,
//!        │        the capsule runs            errors of the resume
//!        ▼
//!    rewrite      address, reachable, strip,  Invalid, NotRunning, HostUnavailable, NotFound
//!        │        forwarded, rename
//!        ▼
//!    send         ◀─▶ host agent ◀─▶ guest    HostUnavailable, GuestSilent, BodyTooSlow,
//!        │                                    AccessRevoked, Error::from_refusal
//!        ├─ NotRunning ─▶ send_again: waits, wakes and sends, at most WAKES times
//!        ▼
//!    answer::rewrite_headers
//! ```
//! `send_again` takes requests without a body or upgrade, to a capsule with `auto_resume`.
//! `answer::refuse` answers each refusal. `e2b_error` first rewords those of `pass` for E2B's
//! clients.
//!
//! Bytes are streamed and never held. The proxy changes nothing of a capsule, apart from waking it.

mod access;
mod answer;
mod links;
mod port_admission;
mod preview;
pub(crate) mod routes;
mod signed;
mod target;

pub(crate) use preview::{Link, Maker};
pub(crate) use target::Target;

use crate::app::App;
use crate::audit::{Actor, AuditEvent, Principal};
use crate::auth::Caller;
use crate::auth::authorize::key_caller;
use crate::auth::origin::{FORWARDED_FOR, FORWARDED_PROTO, Peer, Transport};
use crate::capsules::{self, HOST_PORT};
use crate::error::{Error, Result};
use crate::http::compat_e2b;
use access::{Admitted, GuestAccess, Presented};
use answer::{Form, Public};
use bytes::Bytes;
use hop::{Body, Outgoing, Share};
use http::header::{FORWARDED, HOST};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri};
use http_body::Body as _;
use links::Links;
use metrics::Counter;
use port_admission::PortAdmission;
use protocol::{REFUSAL, Refusal};
use routes::Route;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use target::Addressee;
use types::{CapsuleId, CapsuleState, HostId, PLATFORM_TEAM};

const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Time between two looks at a capsule that is being paused and wakes for requests.
const WAKE: Duration = Duration::from_millis(100);
/// Number of these looks. A pause waits two seconds for requests under way.
const WAKES: u32 = 50;

/// Proxy of requests to ports of capsules (sandboxes).
pub(crate) struct SandboxProxy {
    app: Arc<App>,
    /// Counters of requests that were passed on, and that were refused.
    passed: Counter,
    refused: Counter,
}

/// Answers a request beyond a limit of connections or requests.
pub(crate) fn refuse(error: &Error, headers: &HeaderMap) -> Response<Body> {
    answer::refuse(error, None, Form::of(headers))
}

/// Signs a link to a port. Returns it as a query field, `name=value`.
pub(crate) fn link(app: &App, target: Target, link: &Link) -> String {
    format!("{}={}", preview::FIELD, link.sign(&app.link_secret, target))
}

impl SandboxProxy {
    pub(crate) fn new(app: Arc<App>) -> Self {
        let counter =
            |outcome| metrics::counter!("wrenn_proxy_requests_total", "outcome" => outcome);
        Self { app, passed: counter("passed"), refused: counter("refused") }
    }

    /// Answers a request for a capsule. Returns any other request as the error.
    pub(crate) async fn answer(
        &self,
        request: Request<Body>,
        peer: SocketAddr,
    ) -> std::result::Result<Response<Body>, Request<Body>> {
        let target = match target::of(&request, &self.app.domains) {
            Addressee::Api => return Err(request),
            Addressee::Capsule(target) => target,
            Addressee::Malformed(wrong) => {
                self.refused.increment(1);
                let error = Error::invalid("host", wrong);
                return Ok(answer::refuse(&error, None, Form::of(request.headers())));
            }
        };
        let form = Form::of(request.headers());
        if access::is_preflight(request.method(), request.headers(), target) {
            return Ok(answer::preflight());
        }
        let from = Peer(peer).client(request.headers());
        Ok(match self.pass(request, target, (peer, from)).await {
            Ok(answer) => {
                self.passed.increment(1);
                answer
            }
            Err(error) => {
                self.refused.increment(1);
                tracing::debug!(capsule = %target.capsule, port = target.port, %error, "refused");
                let worded = Box::pin(self.e2b_error(error, form, (target, from)));
                let (error, form) = worded.await;
                answer::refuse(&error, Some(target), form)
            }
        })
    }

    /// Rewords an error for E2B's clients: its SDKs, and programs that use a capsule made by E2B's
    /// API. Such clients ask why a request broke off. Only the host may know that the capsule has
    /// come to its end. An error before admission is the same in every state of the capsule.
    async fn e2b_error(
        &self,
        error: Error,
        form: Form,
        (target, from): (Target, IpAddr),
    ) -> (Error, Form) {
        if matches!(error, Error::Overloaded | Error::TooManyAtOnce(_)) {
            // The refusal may have come from this very look-up.
            return (error, form);
        }
        let find = async || {
            let found = self.app.routes.find(target.capsule, None, Some(from)).await;
            found.ok().and_then(|(route, _)| route)
        };
        let mut route = find().await;
        let made = route.as_ref().is_some_and(|route| route.e2b);
        if form != Form::E2b && !made {
            return (error, form);
        }
        let form = if form == Form::Page { Form::Page } else { Form::E2b };
        let kept_out = matches!(error, Error::NotFound("route") | Error::MethodNotAllowed);
        if kept_out || error.is_refusal() {
            return (error, form);
        }
        if matches!(error, Error::GuestUnavailable)
            && let Some(host) = route.and_then(|route| route.host)
            // Anybody may cause this wait at a public port, so a capsule has a bound on waiters.
            && let Ok(_place) = self.app.load.waiter(target.capsule)
        {
            self.app.rounds.fresh(host).await;
        }
        route = find().await;
        let absent = route.is_some_and(|route| answer::is_absent(&error, &route));
        (if absent { Error::NotFound("capsule") } else { compat_e2b::concurrent(error) }, form)
    }

    async fn pass(
        &self,
        mut request: Request<Body>,
        target: Target,
        (peer, from): (SocketAddr, IpAddr),
    ) -> Result<Response<Body>> {
        if *request.method() == Method::CONNECT {
            return Err(Error::MethodNotAllowed);
        }
        let peer = Peer(peer);
        let by_tls = peer.came_by_tls(request.headers(), request.extensions());
        let transport = if by_tls { Transport::Tls } else { Transport::Plain };
        let presented = Presented::new(
            request.method(),
            request.headers(),
            (request.uri().path(), request.uri().query().unwrap_or("")),
            transport,
        );
        let (admission, owner) = self.authorize(&presented, target, from).await?;
        let (mut route, admitted) = (Arc::clone(&admission.route), admission.admitted);
        let scheme = if by_tls { "https" } else { "http" };
        if let (Admitted::Link(seconds), Some(link)) = (admitted, &presented.link) {
            let browses = matches!(*request.method(), Method::GET | Method::HEAD);
            let place = without_link(&request);
            return match browses {
                true => Ok(answer::enter(&place, link, seconds, transport)),
                false => Err(Error::PrivatePort),
            };
        }
        let path = if presented.link.is_some() { Some(without_link(&request)) } else { None };
        // The owner wakes the capsule by their own right. Other requests wake it by the right of
        // the platform.
        let waker = owner.filter(|_| admitted == Admitted::Owner);
        let waker = waker.unwrap_or_else(|| Caller::of(route.team));
        if route.auto_resume && route.state != CapsuleState::Running {
            route = self.wake(waker, target, &admitted).await?;
        }
        let host = name(&request)?;
        address(&mut request, target, path.as_deref())?;
        // `Outgoing::of` removes connection options before the proxy adds its headers. A client
        // could otherwise name such a header as an option and have it removed.
        route.reachable()?;
        let mut outgoing = Outgoing::of(request);
        outgoing.until = Some(admission.until());
        outgoing.request.body_mut().drop_trailers();
        let headers = outgoing.request.headers_mut();
        access::strip(headers, target, &route, &admitted);
        forwarded(headers, &host, scheme, peer)?;
        rename(headers, &route, target)?;
        let public = Public { scheme, host: host.to_str().unwrap_or(""), target };
        // A request without a body can be sent again if the capsule was about to be paused.
        let plain = outgoing.request.body().is_end_stream() && !outgoing.upgrades();
        let again = (route.auto_resume && plain).then(|| copied(&outgoing.request));
        let sent = self.send(outgoing, route.reachable()?, &public).await;
        match (again, sent) {
            (Some(again), Err(Error::NotRunning(_))) => {
                Box::pin(self.send_again(again, (&admission, waker), route, &public)).await
            }
            (_, sent) => sent,
        }
    }

    /// Wakes a capsule that was about to be paused, and sends a request to it again.
    async fn send_again(
        &self,
        request: Request<Body>,
        (admission, waker): (&PortAdmission, Caller),
        mut route: Arc<Route>,
        public: &Public<'_>,
    ) -> Result<Response<Body>> {
        let (target, admitted) = (public.target, &admission.admitted);
        let mut left = WAKES;
        loop {
            tokio::time::sleep(WAKE).await;
            let place = self.place(target, admitted)?;
            self.app.rounds.fresh(route.reachable()?).await;
            drop(place);
            route = self.wake(waker, target, admitted).await?;
            let mut outgoing = Outgoing::of(copied(&request));
            outgoing.until = Some(admission.until());
            let sent = self.send(outgoing, route.reachable()?, public).await;
            left -= 1;
            if left == 0 || !matches!(sent, Err(Error::NotRunning(_))) {
                return sent;
            }
        }
    }

    /// Decides whether a request is let in, and on which grounds. Also returns the owner of its
    /// key.
    async fn authorize(
        &self,
        presented: &Presented<'_>,
        target: Target,
        from: IpAddr,
    ) -> Result<(PortAdmission, Option<Caller>)> {
        let app = &self.app;
        // The count is taken before the first look-up, so that no change in between is missed.
        let seen = app.revocations.count();
        let hash = presented.key().map(crate::secret::hash);
        let (route, key) = app.routes.find(target.capsule, hash.as_ref(), Some(from)).await?;
        let owner = match &key {
            Some(key) => key_caller(app, key, Actor::SYSTEM).await.ok(),
            None => None,
        };
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        let links = Links::find(app, presented, target, route.as_deref(), now).await?;
        let decided = presented.decide(target, route.as_deref(), owner.as_ref(), &links, now);
        let admitted = decided.inspect_err(|error| {
            self.note(error, route.as_deref(), owner, target, from);
        })?;
        let route = route.ok_or(Error::NotFound("capsule"))?;
        if app.audit_access {
            self.note_access(&route, owner, target, from);
        }
        let hash = hash.filter(|_| admitted == Admitted::Owner);
        let basis = match (admitted, links.cookie) {
            (Admitted::Guest(GuestAccess::Cookie(_)), Some((_, basis))) => basis,
            _ => port_admission::basis(target, key.as_deref().zip(hash)),
        };
        let app = Arc::clone(app);
        Ok((PortAdmission { app, target, route, admitted, key: hash, basis, seen }, owner))
    }

    /// Notes a refusal in the audit log. Common refusals are left out: private ports, and bad,
    /// expired or revoked links.
    fn note(
        &self,
        error: &Error,
        route: Option<&Route>,
        who: Option<Caller>,
        target: Target,
        from: IpAddr,
    ) {
        let common = matches!(error, Error::LinkExpired | Error::LinkRevoked);
        if common || matches!(error, Error::PrivatePort | Error::BadSignature(_)) {
            return;
        }
        let principal = who.map_or(Principal::Nobody, |caller| caller.by.principal);
        self.app.audit_buffer.note(AuditEvent {
            team: route.map_or(PLATFORM_TEAM, |route| route.team),
            by: Actor { principal, from: Some(from) },
            action: "capsule.refused",
            resource: target.capsule.to_string(),
            refused: true,
            code: error.code(),
        });
    }

    /// Notes an access in the audit log.
    fn note_access(&self, route: &Route, who: Option<Caller>, target: Target, from: IpAddr) {
        let principal = who.map_or(Principal::Nobody, |caller| caller.by.principal);
        self.app.audit_buffer.note(AuditEvent {
            team: route.team,
            by: Actor { principal, from: Some(from) },
            action: "capsule.access",
            resource: format!("{}:{}", target.capsule, target.port),
            refused: false,
            code: "",
        });
    }

    /// Takes a place among the requests that wait for a capsule; the owner needs none.
    fn place(&self, target: Target, admitted: &Admitted) -> Result<Option<Share<CapsuleId>>> {
        match admitted {
            Admitted::Owner => Ok(None),
            Admitted::Guest(_) | Admitted::Link(_) => {
                self.app.load.waiter(target.capsule).map(Some)
            }
        }
    }

    /// Wakes a capsule for a request that was admitted.
    async fn wake(&self, waker: Caller, target: Target, admitted: &Admitted) -> Result<Arc<Route>> {
        let _place = self.place(target, admitted)?;
        Box::pin(capsules::wake(&self.app, waker, target.capsule)).await?;
        let found = self.app.routes.find(target.capsule, None, None).await?;
        found.0.ok_or(Error::NotFound("capsule"))
    }

    async fn send(
        &self,
        outgoing: Outgoing,
        host: HostId,
        public: &Public<'_>,
    ) -> Result<Response<Body>> {
        let target = public.target;
        let (pool, tasks) = (self.app.agents.pool(), &self.app.tasks);
        let mut answer = match outgoing.send(pool, &host, || None, tasks).await {
            Ok(answer) => answer,
            // The host's agent has the same time limit.
            Err((hop::Error::IdleTimeout(_), _)) => return Err(Error::GuestSilent),
            Err((hop::Error::Ended, _)) => return Err(Error::AccessRevoked),
            Err((error, _)) if error.is_stalled() => return Err(Error::BodyTooSlow),
            // The client's own body failed, so nothing new is known of the capsule or its host.
            Err((hop::Error::Request(_), _)) => return Err(Error::broken_body()),
            Err((error, _)) => {
                tracing::debug!(%host, %error, "the host agent did not answer");
                self.app.routes.forget(target.capsule);
                return Err(Error::HostUnavailable);
            }
        };
        let Some(refusal) = answer.headers().get(REFUSAL) else {
            answer::rewrite_headers(answer.headers_mut(), public);
            return Ok(answer);
        };
        let refusal = Refusal::parse(refusal.as_bytes());
        if matches!(refusal, Some(Refusal::NotRunning | Refusal::Paused | Refusal::Draining)) {
            // The cached state of the capsule is out of date.
            self.app.routes.forget(target.capsule);
        }
        Err(Error::from_refusal(refusal, target.port))
    }
}

impl Route {
    /// Returns the host of a capsule that can be reached.
    fn reachable(&self) -> Result<HostId> {
        match self.state {
            CapsuleState::Running => self.host.ok_or(Error::HostUnavailable),
            CapsuleState::Missing => Err(Error::HostUnavailable),
            CapsuleState::Stopped => Err(Error::NotFound("capsule")),
            state @ (CapsuleState::Starting
            | CapsuleState::Pausing
            | CapsuleState::Paused
            | CapsuleState::Resuming
            | CapsuleState::Error
            | CapsuleState::Stopping) => Err(Error::NotRunning(state)),
        }
    }
}

/// Copies a request that has no body.
fn copied(request: &Request<Body>) -> Request<Body> {
    let mut again = Request::new(Body::empty());
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.version_mut() = request.version();
    *again.headers_mut() = request.headers().clone();
    again
}

/// Returns the host name of a request.
fn name(request: &Request<Body>) -> Result<HeaderValue> {
    // HTTP/2, and clients of a forward proxy, name the host only in the request's URI.
    match request.uri().authority() {
        Some(name) => HeaderValue::from_str(name.as_str())
            .map_err(|_| Error::invalid("host", "must be a host's name")),
        None => Ok(request.headers().get(HOST).cloned().unwrap_or(HeaderValue::from_static(""))),
    }
}

/// Sets the `Host` header to the name that the capsule was made with, if there is one.
fn rename(headers: &mut HeaderMap, route: &Route, target: Target) -> Result<()> {
    if let Some(name) = &route.host_header
        && target.port != protocol::ENVD_PORT
    {
        let name = name.replace(HOST_PORT, &target.port.to_string());
        let name = HeaderValue::from_str(&name).map_err(|e| Error::Internal(e.into()))?;
        headers.insert(HOST, name);
    }
    Ok(())
}

/// Tells the guest the request's original host name, scheme and client address.
fn forwarded(
    headers: &mut HeaderMap,
    host: &HeaderValue,
    scheme: &'static str,
    peer: Peer,
) -> Result<()> {
    headers.remove(FORWARDED);
    // The proxy's addresses go into one line, since some programs read only the first of several.
    let lines = headers.get_all(FORWARDED_FOR).iter().filter(|_| peer.is_proxy());
    let told = lines.map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b", "[..]);
    let from = match told.is_empty() {
        true => HeaderValue::from_str(&peer.client(&HeaderMap::new()).to_string()),
        false => HeaderValue::from_bytes(&told),
    };
    headers.insert(FORWARDED_FOR, from.map_err(|e| Error::Internal(e.into()))?);
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static(scheme));
    headers.insert(FORWARDED_HOST, host.clone());
    headers.insert(HOST, host.clone());
    Ok(())
}

/// Returns a request's path and query without a link's token.
fn without_link(request: &Request<Body>) -> String {
    let path = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
    preview::from_link(path).map_or_else(|| path.to_owned(), |(_, rest)| rest)
}

/// Sets the URI for the agent: the capsule and the port, and then `path` or the request's own path,
/// byte for byte.
fn address(request: &mut Request<Body>, target: Target, path: Option<&str>) -> Result<()> {
    let asked = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
    let path = path.unwrap_or(asked);
    let slash = if path.starts_with('/') { "" } else { "/" };
    let path = format!("/proxy/{}/{}{slash}{path}", target.capsule, target.port);
    let wrong = || Error::invalid("path", "must begin with `/`");
    let path = PathAndQuery::from_maybe_shared(Bytes::from(path)).map_err(|_| wrong())?;
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.path_and_query = Some(path);
    if request.version() != http::Version::HTTP_2 {
        (parts.scheme, parts.authority) = (None, None);
    }
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| wrong())?;
    Ok(())
}
