//! Connections to a guest's ports. A server that listens on the guest's loopback alone refuses the
//! host. For such a server, envd connects to it, and passes the bytes of the host's connection.

use super::route::{GuestStream, Route, reset};
use crate::network::namespace::Namespace;
use daemon::{Signal, Tasks, lock};
use hop::{Body, Dial, Error, Pool, Sent, Stream, Switched};
use http::{HeaderValue, Method, Request, StatusCode, header};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::AsyncReadExt;

/// Time limit for a guest to take a connection, and for envd to connect to the loopback.
const DIAL: Duration = Duration::from_secs(5);

/// Dialer of connections to a guest's ports.
pub(crate) struct Dialer {
    direct: Direct,
    loopback: Loopback,
}

impl Dialer {
    /// Returns a dialer along `route` until `cut` is triggered. envd expects the capsule's `token`.
    pub(super) fn new(route: Route, token: Arc<str>, cut: &Signal, tasks: Tasks) -> Self {
        let direct = Direct { route, cut: cut.clone() };
        // A connection to envd either becomes the server's, or is closed, so none stays idle.
        let envd = Pool::new(direct.clone(), 0, tasks);
        let loopback = Loopback { envd, token: Mutex::new(token) };
        Self { direct, loopback }
    }

    /// Returns a dialer to the same guest until another `cut` is triggered.
    pub(super) fn renewed(&self, cut: &Signal, tasks: Tasks) -> Self {
        Self::new(self.direct.route.clone(), self.loopback.token(), cut, tasks)
    }

    /// Returns the namespace that the guest is in; `None` for a driver without machines.
    pub(super) fn namespace(&self) -> Option<&Namespace> {
        match &self.direct.route {
            Route::Namespace(namespace) => Some(namespace),
            Route::Loopback(_) => None,
        }
    }

    /// Replaces the token that envd expects.
    pub(super) fn set_token(&self, token: Arc<str>) {
        *lock(&self.loopback.token) = token;
    }
}

impl Dial for Dialer {
    type To = u16;

    async fn dial(&self, port: &u16) -> io::Result<Box<dyn Stream>> {
        match self.direct.dial(port).await {
            Err(error)
                if error.kind() == io::ErrorKind::ConnectionRefused
                    && *port != protocol::ENVD_PORT =>
            {
                // The call is on the heap, since most connections need no second way.
                Box::pin(self.loopback.dial(*port)).await
            }
            dialled => dialled,
        }
    }
}

/// Dialer of connections to the address by which the host knows the guest.
#[derive(Clone)]
struct Direct {
    route: Route,
    cut: Signal,
}

impl Dial for Direct {
    type To = u16;

    async fn dial(&self, port: &u16) -> io::Result<Box<dyn Stream>> {
        let mut cut = self.cut.wait();
        let stream = tokio::select! {
            stream = tokio::time::timeout(DIAL, self.route.dial(*port)) => stream,
            () = &mut cut => return Err(reset()),
        };
        let stream = stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        Ok(Box::new(GuestStream { stream, cut }))
    }
}

/// Dialer of connections to the guest's loopback, through envd.
struct Loopback {
    envd: Pool<Direct>,
    token: Mutex<Arc<str>>,
}

impl Loopback {
    fn token(&self) -> Arc<str> {
        Arc::clone(&lock(&self.token))
    }

    async fn dial(&self, port: u16) -> io::Result<Box<dyn Stream>> {
        let asked = tokio::time::timeout(DIAL, self.ask(port)).await;
        asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Asks envd to turn a connection into a connection to a server. Root in the guest may answer
    /// in place of envd. The pool bounds the answer's head, and [`Self::dial`] bounds the time.
    async fn ask(&self, port: u16) -> io::Result<Box<dyn Stream>> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(format!("{}?port={port}", protocol::CONNECT_PORT))
            .header(protocol::ACCESS_TOKEN, &*self.token())
            .header(header::HOST, "envd")
            .header(header::CONTENT_LENGTH, "0")
            .body(Body::empty())
            .map_err(io::Error::other)?;
        hop::headers::set_upgrade(request.headers_mut(), HeaderValue::from_static("tcp"));
        let sent = self.envd.send(&protocol::ENVD_PORT, request).await;
        let Sent { answer, switched } = sent.map_err(|failed| {
            if let Error::Dial(error) = failed.error {
                return error;
            }
            io::Error::other(failed.error)
        })?;
        match (switched, answer.status()) {
            (Some(Switched { read, stream }), _) if read.is_empty() => Ok(stream),
            (Some(Switched { read, stream }), _) => {
                let (reader, writer) = tokio::io::split(stream);
                Ok(Box::new(tokio::io::join(io::Cursor::new(read).chain(reader), writer)))
            }
            (None, StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT) => {
                Err(io::ErrorKind::TimedOut.into())
            }
            // An envd of an earlier version does not know this path. The server refused the host
            // before.
            (None, _) => Err(io::ErrorKind::ConnectionRefused.into()),
        }
    }
}

#[cfg(test)]
mod tests;
