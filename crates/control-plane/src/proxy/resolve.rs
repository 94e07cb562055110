//! First step of the proxy: finds the capsule and the port of a request, and the way it came.

use super::access;
use super::target::{self, Addressee, Target};
use crate::auth::origin::{Peer, Transport};
use crate::domains::Domains;
use crate::error::{Error, Result};
use hop::Body;
use http::Request;
use std::net::{IpAddr, SocketAddr};

/// Destination of a request to a capsule, and the way that the request came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival {
    pub target: Target,
    pub peer: Peer,
    /// Address of the client, as the peer reports it if the peer is a trusted proxy.
    pub from: IpAddr,
    pub transport: Transport,
}

impl Arrival {
    /// Returns the scheme of the URL by which the client reached the capsule.
    pub(super) fn scheme(&self) -> &'static str {
        match self.transport {
            Transport::Tls => "https",
            Transport::Plain => "http",
        }
    }
}

/// Recipient of a request.
pub(super) enum Resolved {
    Api,
    /// The proxy itself, which answers a browser's CORS preflight to envd.
    Preflight,
    Capsule(Arrival),
}

/// Finds the recipient of a request.
///
/// # Errors
/// `Invalid` for a capsule whose name cannot exist.
pub(super) fn resolve(
    request: &Request<Body>,
    peer: SocketAddr,
    domains: &Domains,
) -> Result<Resolved> {
    let target = match target::of(request, domains) {
        Addressee::Api => return Ok(Resolved::Api),
        Addressee::Capsule(target) => target,
        Addressee::Malformed(wrong) => return Err(Error::invalid("host", wrong)),
    };
    if access::is_preflight(request.method(), request.headers(), target) {
        return Ok(Resolved::Preflight);
    }
    let peer = Peer(peer);
    let from = peer.client(request.headers());
    let by_tls = peer.came_by_tls(request.headers(), request.extensions());
    let transport = if by_tls { Transport::Tls } else { Transport::Plain };
    Ok(Resolved::Capsule(Arrival { target, peer, from, transport }))
}
