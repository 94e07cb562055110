//! Last step of the proxy: sends a request to the host agent, and repeats it if the capsule was
//! about to be paused.

use super::answer::{self, Public};
use super::authorize::Authorized;
use super::routes::Route;
use super::wake;
use crate::app::App;
use crate::capsules::waiters::Waited;
use crate::error::{Error, Result};
use hop::{Body, Outgoing};
use http::{Request, Response};
use http_body::Body as _;
use protocol::{REFUSAL, Refusal};
use std::time::Duration;
use types::HostId;

/// Longest wait for a capsule that is being paused and wakes for requests. A pause waits two
/// seconds for requests under way, and then writes the memory.
const WAKE_MAX: Duration = Duration::from_secs(50);
/// Most times that a request is sent again.
const SENDS_MAX: u32 = 50;

/// Returns a copy of a request that can be sent again if the capsule was about to be paused. Such a
/// request has no body and no upgrade.
pub(super) fn repeatable(outgoing: &Outgoing, route: &Route) -> Option<Request<Body>> {
    let plain = outgoing.request.body().is_end_stream() && !outgoing.upgrades();
    (route.auto_resume && plain).then(|| copied(&outgoing.request))
}

/// Sends a request to the host agent. Corrects the addresses in the answer.
///
/// # Errors
/// `HostUnavailable`, `GuestSilent`, `BodyTooSlow`, `AccessRevoked`, `Invalid` for a broken body,
/// and the refusals of the host agent, by `Error::from_refusal`.
pub(super) async fn send(
    app: &App,
    outgoing: Outgoing,
    host: HostId,
    public: &Public,
) -> Result<Response<Body>> {
    let target = public.target;
    let (pool, tasks) = (app.agents.pool(), &app.tasks);
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
            app.routes.forget(target.capsule);
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
        app.routes.forget(target.capsule);
    }
    Err(Error::from_refusal(refusal, target.port))
}

/// Wakes a capsule that was about to be paused, and sends a request to it again. Each change of the
/// capsule's row causes another attempt. The host is asked when no change is announced for a while.
///
/// # Errors
/// The errors of [`send`] and [`wake::wake`]. `NotRunning` when the time or the attempts are used
/// up.
pub(super) async fn send_again(
    app: &App,
    request: Request<Body>,
    authorized: &Authorized,
    mut host: HostId,
    public: &Public,
) -> Result<Response<Body>> {
    let admission = &authorized.admission;
    let mut waiter = app.waiters.watch(public.target.capsule, WAKE_MAX);
    let mut place = wake::place(app, admission)?;
    let mut waited = Waited::Due;
    let mut left = SENDS_MAX;
    loop {
        // The row has news after an announced change. Otherwise only the host may have some.
        if waited == Waited::Due {
            wake::follow_host(app, host).await;
        }
        waiter.note();
        drop(place);
        host = wake::wake(app, authorized).await?.reachable()?;
        let mut outgoing = Outgoing::of(copied(&request));
        outgoing.until = Some(admission.until());
        let sent = send(app, outgoing, host, public).await;
        left -= 1;
        if left == 0 || !matches!(sent, Err(Error::NotRunning(_))) {
            return sent;
        }
        place = wake::place(app, admission)?;
        waited = waiter.wait().await;
        if waited == Waited::Over {
            return sent;
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
