//! The agent's proxy to guests. `/proxy/{capsule}/{port}/…` leads to that port of the guest. Both
//! directions are streamed without buffering, and the path stays the same byte for byte. The
//! control plane has already authorized each request.

use crate::capsule::manager::Manager;
use crate::guest::Purpose;
use daemon::Tasks;
use hop::{Body, Error, Outgoing, headers};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri};
use protocol::{REFUSAL, Refusal};
use std::io;
use std::time::{Duration, Instant};
use types::CapsuleId;

/// Path prefix of requests for guests.
pub(crate) const PREFIX: &str = "/proxy/";
/// Delays before further attempts at a port that refuses. A program that has just been started may
/// be about to listen.
const RETRIES: [Duration; 3] =
    [Duration::from_millis(50), Duration::from_millis(100), Duration::from_millis(200)];

/// Delay before another attempt to reach a guest that waits for room on the host's disk. Each
/// attempt itself takes seconds.
const AGAIN: Duration = Duration::from_millis(200);

/// Wait of one request for a guest that waits for room on the host's disk. Such a guest takes no
/// connection. The request waits like a request on a connection that was already open.
struct Wait<'a> {
    manager: &'a Manager,
    id: CapsuleId,
    /// True when the guest stood still at the last look.
    waited: bool,
    until: Instant,
}

impl<'a> Wait<'a> {
    fn new(manager: &'a Manager, id: CapsuleId) -> Self {
        let waited = manager.waits_for_room(id);
        Self { manager, id, waited, until: Instant::now() + hop::SILENCE }
    }

    /// Reports whether to try again after a connection could not be opened. A guest that is thawed
    /// during an attempt may have missed the attempt, so one more follows.
    fn retries(&mut self, error: &io::Error) -> bool {
        let waits = self.manager.waits_for_room(self.id);
        let waited = std::mem::replace(&mut self.waited, waits);
        (waits || waited) && is_unanswered(error) && Instant::now() < self.until
    }
}

/// Returns the capsule, the port, and the guest's path and query from a request's URI.
fn target(uri: &Uri) -> Option<(CapsuleId, u16, PathAndQuery)> {
    let rest = uri.path_and_query()?.as_str().strip_prefix(PREFIX)?;
    let (capsule, rest) = rest.split_once('/')?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (port, path) = rest.split_at(end);
    let port: u16 = port.parse().ok().filter(|p| *p != 0)?;
    let path = if path.starts_with('/') { path.parse() } else { format!("/{path}").parse() };
    Some((capsule.parse().ok()?, port, path.ok()?))
}

/// Paths at which envd reports the guest's state.
const LOOKS: [&str; 3] = ["/health", "/metrics", protocol::PORTS];

/// Returns the purpose of a request. At envd's port, reads of [`LOOKS`] are looks, and so are the
/// requests that the control plane marked. All others are uses. Pure.
fn purpose(port: u16, method: &Method, path: &PathAndQuery, is_marked: bool) -> Purpose {
    let reads = *method == Method::GET || *method == Method::HEAD;
    let looks = is_marked || (reads && LOOKS.contains(&path.path()));
    if port == protocol::ENVD_PORT && looks { Purpose::Look } else { Purpose::Use }
}

/// Reports whether a request is for the part of envd that only this agent uses. A read of the log
/// drops what was read before. Pure.
fn is_own(port: u16, path: &PathAndQuery) -> bool {
    port == protocol::ENVD_PORT && path.path() == protocol::log::PATH
}

/// Path prefix of raw TCP connections to guests.
pub(crate) const TCP: &str = "/tcp/";

/// Joins a client that asks to switch to `tcp` with a connection to a guest's port.
pub(crate) async fn connect(
    manager: &Manager,
    tasks: &Tasks,
    mut request: Request<Body>,
) -> Response<Body> {
    let parts = request.uri().path().strip_prefix(TCP).and_then(|rest| rest.split_once('/'));
    let to = parts.and_then(|(id, port)| Some((id.parse().ok()?, port.parse::<u16>().ok()?)));
    let protocol = headers::upgrade(request.headers()).filter(|protocol| protocol == "tcp");
    let (Some((id, port)), Some(protocol)) = (to, protocol) else {
        return refuse(StatusCode::BAD_REQUEST, None);
    };
    let (guest, permits) = match manager.acquire_proxy_conn(id, port, Purpose::Use) {
        Ok(acquired) => acquired,
        Err(refusal) => return refuse(StatusCode::SERVICE_UNAVAILABLE, Some(refusal)),
    };
    let mut wait = Wait::new(manager, id);
    let dialled = loop {
        match guest.pool().dial(&port).await {
            Err(error) if wait.retries(&error) => tokio::time::sleep(AGAIN).await,
            dialled => break dialled,
        }
    };
    match dialled.map_err(Error::Dial) {
        Ok(stream) => {
            let client = hyper::upgrade::on(&mut request);
            hop::join(client, stream, None, Some(Box::new(permits)), tasks);
            let mut answer = refuse(StatusCode::SWITCHING_PROTOCOLS, None);
            headers::set_upgrade(answer.headers_mut(), protocol);
            answer
        }
        Err(error) => refuse(StatusCode::BAD_GATEWAY, Some(refusal(&error))),
    }
}

/// Forwards a request to a guest.
pub(crate) async fn forward(
    manager: &Manager,
    tasks: &Tasks,
    mut request: Request<Body>,
) -> Response<Body> {
    let Some((id, port, path)) = target(request.uri()) else {
        return refuse(StatusCode::BAD_REQUEST, None);
    };
    if *request.method() == Method::CONNECT {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, None);
    }
    if is_own(port, &path) {
        return refuse(StatusCode::NOT_FOUND, None);
    }
    // No guest sees the mark.
    let is_marked = request.headers_mut().remove(protocol::PASSIVE).is_some();
    let purpose = purpose(port, request.method(), &path, is_marked);
    let (guest, permits) = match manager.acquire_proxy_conn(id, port, purpose) {
        Ok(acquired) => acquired,
        Err(refusal) => return refuse(StatusCode::SERVICE_UNAVAILABLE, Some(refusal)),
    };
    set_path(request.uri_mut(), path);
    let mut outgoing = Outgoing::of(request);
    let mut permits = Some(permits);
    let mut retries = RETRIES.into_iter();
    let mut wait = Wait::new(manager, id);
    loop {
        let held = || permits.take().map(|permits| Box::new(permits) as hop::Held);
        let (error, back) = match outgoing.send(guest.pool(), &port, held, tasks).await {
            Ok(mut answer) => {
                // Only the agent itself may send this header.
                answer.headers_mut().remove(REFUSAL);
                return answer;
            }
            Err(failed) => failed,
        };
        let pause = if is_refused(&error) {
            retries.next()
        } else if let Error::Dial(why) = &error
            && wait.retries(why)
        {
            Some(AGAIN)
        } else {
            None
        };
        let (Some(back), Some(pause)) = (back, pause) else {
            tracing::debug!(%id, port, %error, "the guest did not answer");
            return refuse(StatusCode::BAD_GATEWAY, Some(refusal(&error)));
        };
        outgoing = back;
        tokio::time::sleep(pause).await;
    }
}

/// Replaces a URI's path and query. Scheme and host, which HTTP/2 sends, stay if both are there.
fn set_path(uri: &mut Uri, path: PathAndQuery) {
    let mut parts = std::mem::take(uri).into_parts();
    parts.path_and_query = Some(path);
    if parts.scheme.is_none() || parts.authority.is_none() {
        (parts.scheme, parts.authority) = (None, None);
    }
    *uri = Uri::from_parts(parts).unwrap_or_default();
}

fn is_refused(error: &Error) -> bool {
    matches!(error, Error::Dial(e) if e.kind() == io::ErrorKind::ConnectionRefused)
}

/// Reports whether a guest did not react to a connection, as when it stands still.
fn is_unanswered(error: &io::Error) -> bool {
    // The error is `HostUnreachable` once the kernel has asked in vain for the guest's MAC address.
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable)
}

fn refusal(error: &Error) -> Refusal {
    match error {
        Error::Dial(_) if is_refused(error) => Refusal::PortClosed,
        Error::Dial(_) => Refusal::Unreachable,
        Error::Closed(_) | Error::Request(_) | Error::Ended => Refusal::Closed,
        Error::IdleTimeout(_) => Refusal::Silent,
        Error::InvalidResponse(_) | Error::UnexpectedUpgrade => Refusal::Garbage,
    }
}

fn refuse(status: StatusCode, why: Option<Refusal>) -> Response<Body> {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = status;
    if let Some(why) = why {
        let value = http::HeaderValue::from_static(why.as_str());
        answer.headers_mut().insert(REFUSAL, value);
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_envd_status_requests_do_not_count_as_activity() {
        let envd = protocol::ENVD_PORT;
        for (port, method, path, wanted) in [
            (envd, Method::GET, "/health", Purpose::Look),
            (envd, Method::GET, "/metrics?x", Purpose::Look),
            (envd, Method::GET, "/ports", Purpose::Look),
            (envd, Method::POST, "/health", Purpose::Use),
            (envd, Method::POST, "/ports/connect?port=80", Purpose::Use),
            (envd, Method::GET, "/files?path=/health", Purpose::Use),
            (80, Method::GET, "/health", Purpose::Use),
        ] {
            let asked = PathAndQuery::from_static(path);
            assert_eq!(purpose(port, &method, &asked, false), wanted, "{port} {method} {path}");
        }
    }

    #[test]
    fn log_of_envd_is_for_the_agent_alone() {
        let path = PathAndQuery::from_static("/log?most=1&number=99");
        assert!(is_own(protocol::ENVD_PORT, &path));
        assert!(!is_own(80, &path));
        assert!(!is_own(protocol::ENVD_PORT, &PathAndQuery::from_static("/logs")));
    }

    #[test]
    fn marked_request_is_a_look_at_the_port_of_envd_alone() {
        let path = PathAndQuery::from_static("/process.Process/List");
        for (port, wanted) in [
            (protocol::ENVD_PORT, Purpose::Look),
            (protocol::INTERPRETER_PORT, Purpose::Use),
            (80, Purpose::Use),
        ] {
            assert_eq!(purpose(port, &Method::POST, &path, true), wanted, "{port}");
        }
    }

    #[test]
    fn proxied_path_is_unchanged_byte_for_byte() {
        let id = CapsuleId::new();
        for (asked, wanted) in [
            ("80/a%2Fb//?x=%20", "/a%2Fb//?x=%20"),
            ("80/", "/"),
            ("80", "/"),
            ("80?q", "/?q"),
            ("80/../%2e%2e/./;a=b", "/../%2e%2e/./;a=b"),
        ] {
            let uri: Uri = format!("/proxy/{id}/{asked}").parse().unwrap();
            let (found, port, path) = target(&uri).unwrap();
            assert_eq!((found, port, path.as_str()), (id, 80, wanted));
        }
        for bad in ["/proxy/x/80/", "/proxy/", "/x", &format!("/proxy/{id}/0/"), "*"] {
            assert!(target(&bad.parse().unwrap()).is_none(), "{bad}");
        }
    }
}
