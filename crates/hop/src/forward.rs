//! Passes a request on and its answer back. Headers of a single hop are removed and set anew. A
//! switch of protocols becomes a tunnel.

use crate::activity::Held;
use crate::body::{Body, Until};
use crate::connection::Switched;
use crate::headers;
use crate::pool::{Dial, Error, Failed, Pool};
use crate::tunnel::tunnel;
use daemon::Tasks;
use futures::future::OptionFuture;
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

/// A request whose hop-by-hop headers are removed.
pub struct Outgoing {
    /// The request to send. Callers may change all of it except the headers that [`headers`] owns.
    pub request: Request<Body>,
    /// Ends the whole exchange when the future completes. This covers the wait for an answer, the
    /// answer's body, and the tunnel after a switch of protocols.
    pub until: Option<Until>,
    switch: Option<(HeaderValue, OnUpgrade)>,
}

impl Outgoing {
    /// Makes an outgoing request from an incoming one.
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

    /// Reports whether the request asks for a switch of protocols.
    #[must_use]
    pub fn upgrades(&self) -> bool {
        self.switch.is_some()
    }

    /// Sends the request and returns the answer to pass back. `held` lives until the answer's body,
    /// or the tunnel, has ended.
    ///
    /// # Errors
    /// Returns the reason why there is no answer. Returns the request too, when nothing of it was
    /// sent.
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
            return Err((Error::UnexpectedUpgrade, None));
        };
        headers::set_upgrade(answer.headers_mut(), protocol);
        join(client, guest, until, held(), tasks);
        Ok(answer)
    }
}

/// Joins a client with a connection, once the client knows that the protocol was switched. The
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
        // This fails when the client left before it had the answer.
        let Ok(client) = client.await else { return };
        let mut client = TokioIo::new(client);
        tokio::select! {
            biased;
            // Both sides notice by themselves how the tunnel ended.
            _ = tunnel(&mut client, &mut other.stream, other.read) => {}
            () = stopping => {}
            Some(_) = OptionFuture::from(until) => {}
        }
        drop(held);
    });
}
