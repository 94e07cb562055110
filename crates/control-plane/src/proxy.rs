//! The sandbox proxy. It serves requests whose host name or E2B headers name a port of a capsule,
//! before the API sees them.
//!
//! ```text
//!  SandboxProxy::answer                       refusals
//!    resolve ─ Resolved::Api ─▶ the API       Invalid
//!        │
//!        ├─ Preflight ─▶ answer::preflight
//!        │ pass
//!        ▼
//!    authorize    present,                    MethodNotAllowed, for CONNECT
//!        │        Routes::find,               Unauthenticated, PrivatePort, NotFound,
//!        │        Presented::decide           LinkExpired, LinkRevoked, …
//!        │
//!        ├─ Admitted::Link ─▶ exchange_link   PrivatePort, unless GET or HEAD
//!        ▼
//!    wake         with auto_resume, unless    TooManyConnections, NotRunning,
//!        │        the capsule runs            errors of the resume
//!        ▼
//!    rewrite      address, reachable, strip,  Invalid, NotRunning, HostUnavailable, NotFound
//!        │        forwarded, rename
//!        ▼
//!    send         ◀─▶ host agent ◀─▶ guest    HostUnavailable, GuestSilent, BodyTooSlow,
//!        │                                    AccessRevoked, Error::from_refusal
//!        ├─ NotRunning ─▶ send_again: waits, wakes and sends, at most SENDS_MAX times
//!        ▼
//!    answer::rewrite_headers
//! ```
//! Each step is a file of its own, with its own input and output type. `send_again` takes requests
//! without a body or upgrade, to a capsule with `auto_resume`. `answer::refuse` answers each
//! refusal. `reword` first rewords those of `pass` for E2B's clients.
//!
//! Bytes are streamed and never held. The proxy changes nothing of a capsule, apart from waking it.

mod access;
mod answer;
mod authorize;
mod links;
mod port_admission;
mod preview;
mod resolve;
mod reword;
mod rewrite;
pub(crate) mod routes;
mod send;
mod signed;
mod target;
mod wake;

pub(crate) use preview::{Link, Maker};
pub(crate) use target::Target;

use crate::app::App;
use crate::error::{Error, Result};
use access::Admitted;
use answer::Form;
use hop::Body;
use http::{HeaderMap, Request, Response};
use metrics::Counter;
use resolve::{Arrival, Resolved};
use rewrite::Rewritten;
use std::net::SocketAddr;
use std::sync::Arc;

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
        let arrival = match resolve::resolve(&request, peer, &self.app.domains) {
            Ok(Resolved::Api) => return Err(request),
            Ok(Resolved::Preflight) => return Ok(answer::preflight()),
            Ok(Resolved::Capsule(arrival)) => arrival,
            Err(error) => {
                self.refused.increment(1);
                return Ok(answer::refuse(&error, None, Form::of(request.headers())));
            }
        };
        let form = Form::of(request.headers());
        Ok(match self.pass(request, &arrival).await {
            Ok(answer) => {
                self.passed.increment(1);
                answer
            }
            Err(error) => {
                self.refused.increment(1);
                let target = arrival.target;
                tracing::debug!(capsule = %target.capsule, port = target.port, %error, "refused");
                let worded = Box::pin(reword::e2b_error(&self.app, error, form, &arrival));
                let (error, form) = worded.await;
                answer::refuse(&error, Some(target), form)
            }
        })
    }

    /// Passes a request on to its capsule, if it is let in.
    async fn pass(&self, request: Request<Body>, arrival: &Arrival) -> Result<Response<Body>> {
        let app = &self.app;
        let presented = authorize::present(&request, arrival)?;
        let authorized = authorize::authorize(app, presented, arrival).await?;
        let admission = &authorized.admission;
        if let (Admitted::Link(seconds), Some(link)) = (admission.admitted, &authorized.link) {
            return authorize::exchange_link(&request, link, seconds, arrival);
        }
        let route = match wake::is_needed(&admission.route) {
            true => wake::wake(app, &authorized).await?,
            false => Arc::clone(&admission.route),
        };
        let rewritten = rewrite::rewrite(request, &authorized, &route, arrival)?;
        let Rewritten { outgoing, host, public } = rewritten;
        let again = send::repeatable(&outgoing, &route);
        let sent = send::send(app, outgoing, host, &public).await;
        match (again, sent) {
            (Some(again), Err(Error::NotRunning(_))) => {
                Box::pin(send::send_again(app, again, &authorized, host, &public)).await
            }
            (_, sent) => sent,
        }
    }
}
