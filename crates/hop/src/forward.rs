//! Passes one request on and its answer back: what concerns one hop is taken off and put on
//! anew, a switch of protocols becomes a tunnel.

use crate::body::{Body, Held};
use crate::headers;
use crate::line::Switched;
use crate::pool::{Dial, Error, Failed, Pool};
use crate::tunnel::tunnel;
use daemon::Tasks;
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

/// A request whose hop-by-hop headers are taken off.
pub struct Outgoing {
    /// What is sent; it may be changed, but for what [`headers`] owns.
    pub request: Request<Body>,
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
        Self { request, switch }
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
        let Self { request, switch } = self;
        let sent = match pool.send(to, request).await {
            Ok(sent) => sent,
            Err(Failed { error, request }) => {
                return Err((error, request.map(|request| Self { request, switch })));
            }
        };
        let mut answer = sent.answer;
        let protocol = headers::upgrade(answer.headers());
        headers::strip(answer.headers_mut());
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(match held() {
                Some(held) => answer.map(|body| body.holding(held)),
                None => answer,
            });
        }
        let (Some((_, client)), Some(protocol), Some(guest)) = (switch, protocol, sent.switched)
        else {
            return Err((Error::Unasked, None));
        };
        headers::set_upgrade(answer.headers_mut(), protocol);
        join(client, guest, held(), tasks);
        Ok(answer)
    }
}

/// Joins a client, once it is told that the protocol was switched, with a connection.
pub fn join(client: OnUpgrade, mut other: Switched, held: Option<Held>, tasks: &Tasks) {
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
        }
        drop(held);
    });
}
