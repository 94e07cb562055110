//! Fourth step of the proxy: makes the request that goes to the host agent. The platform's
//! credentials are removed, and the guest learns the client's address. Pure, apart from the clock.

use super::access;
use super::answer::Public;
use super::authorize::{Authorized, without_link};
use super::resolve::Arrival;
use super::routes::Route;
use super::target::Target;
use crate::auth::origin::{FORWARDED_FOR, FORWARDED_PROTO, Peer};
use crate::capsules::HOST_PORT;
use crate::error::{Error, Result};
use bytes::Bytes;
use hop::{Body, Outgoing};
use http::header::{FORWARDED, HOST};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri};
use types::HostId;

const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// A request that is ready to be sent.
pub(super) struct Rewritten {
    pub outgoing: Outgoing,
    /// Host that runs the capsule.
    pub host: HostId,
    /// Name by which the client reached the capsule, for the correction of the answer.
    pub public: Public,
}

/// Rewrites a request for the host agent and the guest.
///
/// # Errors
/// `Invalid` for a host name or a path that cannot be passed on. `NotRunning`, `HostUnavailable` or
/// `NotFound` if the capsule cannot be reached.
pub(super) fn rewrite(
    mut request: Request<Body>,
    authorized: &Authorized,
    route: &Route,
    arrival: &Arrival,
) -> Result<Rewritten> {
    let (target, scheme) = (arrival.target, arrival.scheme());
    let path = if authorized.link.is_some() { Some(without_link(&request)) } else { None };
    let name = name(&request)?;
    address(&mut request, target, path.as_deref())?;
    let host = route.reachable()?;
    // `Outgoing::of` removes connection options before the proxy adds its headers. A client
    // could otherwise name such a header as an option and have it removed.
    let mut outgoing = Outgoing::of(request);
    outgoing.until = Some(authorized.admission.until());
    outgoing.request.body_mut().drop_trailers();
    let headers = outgoing.request.headers_mut();
    access::strip(headers, target, route, &authorized.admission.admitted);
    forwarded(headers, &name, scheme, arrival.peer)?;
    rename(headers, route, target)?;
    Ok(Rewritten { outgoing, host, public: Public { scheme, host: name, target } })
}

/// Returns the host name of a request.
fn name(request: &Request<Body>) -> Result<HeaderValue> {
    // HTTP/2, and clients of a forward proxy, name the host only in the request's URI.
    match request.uri().authority() {
        Some(name) => HeaderValue::from_str(name.as_str())
            .map_err(|_| Error::invalid("host", "must be a host name")),
        None => Ok(request.headers().get(HOST).cloned().unwrap_or(HeaderValue::from_static(""))),
    }
}

/// Sets the `Host` header to the name that the capsule was made with, if there is one.
fn rename(headers: &mut HeaderMap, route: &Route, target: Target) -> Result<()> {
    if let Some(name) = &route.host_header
        && !protocol::is_agent_port(target.port)
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
