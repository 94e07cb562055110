//! Passes one request on and its answer back: what concerns one hop is taken off and put on
//! anew, a switch of protocols becomes a tunnel.

use crate::body::{Body, Held, Until};
use crate::headers;
use crate::line::Switched;
use crate::pool::{Dial, Error, Failed, Pool};
use crate::tunnel::tunnel;
use daemon::Tasks;
use futures::future::OptionFuture;
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

/// A request whose hop-by-hop headers are taken off.
pub struct Outgoing {
    /// What is sent; it may be changed, but for what [`headers`] owns.
    pub request: Request<Body>,
    /// Ends the whole exchange when the future completes. That covers the wait for an answer, the
    /// answer's body, and the tunnel after a switch of protocols.
    pub until: Option<Until>,
    switch: Option<(HeaderValue, OnUpgrade)>,
}

impl Outgoing {
    /// Takes a request that came in.
    #[must_use]
    pub fn of(mut request: Request<Body>) -> Self {
        let protocol = headers::upgrade(request.headers());
        // HTTP/2 has no such switch (RFC 9113, 8.2.2).
        let switches = request.version() == http::Version::HTTP_11;
        let protocol = protocol.filter(|_| switches);
        let switch = protocol.map(|protocol| (protocol, hyper::upgrade::on(&mut request)));
        headers::strip(request.headers_mut());
        if request.version() == http::Version::HTTP_2 {
            headers::join_cookies(request.headers_mut());
        }
        if let Some((protocol, _)) = &switch {
            headers::set_upgrade(request.headers_mut(), protocol.clone());
        }
        request.extensions_mut().clear();
        Self { request, until: None, switch }
    }

    /// Whether it asks for a switch of protocols.
    #[must_use]
    pub fn upgrades(&self) -> bool {
        self.switch.is_some()
    }

    /// Sends it and returns the answer to be passed back. `held` lives as long as anything of it
    /// is under way.
    ///
    /// # Errors
    /// Why there is no answer; with the request, when nothing of it was sent.
    pub async fn send<D: Dial>(
        self,
        pool: &Pool<D>,
        to: &D::To,
        held: impl FnOnce() -> Option<Held>,
        tasks: &Tasks,
    ) -> Result<Response<Body>, (Error, Option<Self>)> {
        let Self { request, mut until, switch } = self;
        let sent = match &mut until {
            None => pool.send(to, request).await,
            Some(end) => tokio::select! {
                biased;
                sent = pool.send(to, request) => sent,
                _ = end => return Err((Error::Ended, None)),
            },
        };
        let sent = match sent {
            Ok(sent) => sent,
            Err(Failed { error, request }) => {
                return Err((error, request.map(|request| Self { request, until, switch })));
            }
        };
        let mut answer = sent.answer;
        let protocol = headers::upgrade(answer.headers());
        headers::strip(answer.headers_mut());
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(answer.map(|mut body| {
                if let Some(held) = held() {
                    body = body.holding(held);
                }
                if let Some(until) = until {
                    body = body.until(until);
                }
                body
            }));
        }
        let (Some((_, client)), Some(protocol), Some(guest)) = (switch, protocol, sent.switched)
        else {
            return Err((Error::Unasked, None));
        };
        headers::set_upgrade(answer.headers_mut(), protocol);
        join(client, guest, until, held(), tasks);
        Ok(answer)
    }
}

/// Joins a client with a connection, once the client is told that the protocol was switched. The
/// tunnel ends when `until` completes.
pub fn join(
    client: OnUpgrade,
    mut other: Switched,
    until: Option<Until>,
    held: Option<Held>,
    tasks: &Tasks,
) {
    let stopping = tasks.stop_signal().wait();
    tasks.spawn(async move {
        // Fails when the client left before it was told.
        let Ok(client) = client.await else { return };
        let mut client = TokioIo::new(client);
        tokio::select! {
            biased;
            // How it ended, both sides see for themselves.
            _ = tunnel(&mut client, &mut other.stream, other.read) => {}
            () = stopping => {}
            Some(_) = OptionFuture::from(until) => {}
        }
        drop(held);
    });
}
