//! An HTTP/1.1 connection to a server. Its user drives it.
//!
//! hyper wants a task of its own to drive a connection. Here, the task that serves the client
//! drives it, during the wait for the head and while the body passes. So no byte wakes a second
//! task on another core. No task drives a connection that rests in the pool. The pool checks that
//! it is open when it is taken out.

use crate::timed::Timed;
use bytes::Bytes;
use daemon::lock;
use http::{Request, Response};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

/// Transport of a connection.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

type Io = TokioIo<Timed<Box<dyn Stream>>>;

/// Largest head of an answer, in bytes.
pub(crate) const HEAD_MAX: usize = 64 * 1024;
/// Largest buffer, in bytes.
const BUFFER: usize = 128 * 1024;

/// Time that a connection may rest before it is closed.
///
/// nginx allows 75 s, gunicorn and Node less. A connection that the server has closed is noticed
/// when it is taken from the pool.
const REST: Duration = Duration::from_secs(60);

/// A body of requests that a connection can send.
pub(crate) trait Payload:
    http_body::Body<Data = Bytes, Error = Box<dyn std::error::Error + Send + Sync>> + 'static
{
}
impl<B> Payload for B where
    B: http_body::Body<Data = Bytes, Error = Box<dyn std::error::Error + Send + Sync>> + 'static
{
}

/// A connection, and the right to send on it.
pub(crate) struct Connection<B: Payload> {
    sender: http1::SendRequest<B>,
    /// Connection of hyper, or `None` once it has ended.
    driver: Option<http1::Connection<Io, B>>,
    /// Time at which the connection was opened or put into the pool.
    pub since: Instant,
}

impl<B: Payload> Connection<B> {
    /// Opens a connection over `stream`. Sends header names as `Content-Type` with `title_case`,
    /// and as `content-type` without.
    pub(crate) async fn open(
        stream: Box<dyn Stream>,
        title_case: bool,
    ) -> hyper::Result<Box<Self>> {
        let mut builder = http1::Builder::new();
        builder.title_case_headers(title_case);
        // An answer has at most 100 headers, hyper's default, which hyper reads without allocating.
        // The buffer bounds the bytes that a slow reader makes this process hold.
        builder.max_header_size(HEAD_MAX).max_buf_size(BUFFER);
        let io = TokioIo::new(Timed::dialled(stream));
        let (sender, driver) = builder.handshake(io).await?;
        Ok(Box::new(Self { sender, driver: Some(driver), since: Instant::now() }))
    }

    /// Drives the connection. Ready when it has ended.
    fn drive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(driver) = &mut self.driver else { return Poll::Ready(()) };
        // The caller that waits for the answer gets the error.
        std::task::ready!(Pin::new(driver).poll(cx)).ok();
        self.driver = None;
        Poll::Ready(())
    }

    /// Reports whether another request can be sent on the connection.
    pub(crate) fn is_reusable(&mut self) -> bool {
        // The next sender drives the connection with its own waker.
        let mut cx = Context::from_waker(Waker::noop());
        self.drive(&mut cx).is_pending() && self.sender.is_ready()
    }

    /// Sends a request and waits for the answer's head. If the answer switches protocols, the
    /// connection is kept for the new protocol.
    pub(crate) async fn send(
        &mut self,
        request: Request<B>,
    ) -> Result<Response<Incoming>, TrySendError<Request<B>>> {
        let mut sending = pin!(self.sender.try_send_request(request));
        let driver = &mut self.driver;
        let mut ended = false;
        let answer = std::future::poll_fn(|cx| {
            if let (Some(driven), false) = (driver.as_mut(), ended) {
                ended = driven.poll_without_shutdown(cx).is_ready();
            }
            sending.as_mut().poll(cx)
        });
        let answer = answer.await?;
        if answer.status() == http::StatusCode::SWITCHING_PROTOCOLS && !ended {
            let rest = std::future::poll_fn(|cx| match driver {
                Some(driven) => driven.poll_without_shutdown(cx),
                None => Poll::Ready(Ok(())),
            });
            // An error here shows on the connection itself.
            let _ = rest.await;
        } else if ended && answer.status() != http::StatusCode::SWITCHING_PROTOCOLS {
            *driver = None;
        }
        Ok(answer)
    }

    /// Returns the transport of a connection that has switched protocols.
    pub(crate) fn switched(self: Box<Self>) -> Option<Switched> {
        let parts = self.driver?.into_parts();
        Some(Switched { read: parts.read_buf, stream: parts.io.into_inner().into_inner() })
    }
}

/// A connection that no longer speaks HTTP.
pub struct Switched {
    /// Bytes that have been read from it already.
    pub read: Bytes,
    /// The connection itself.
    pub stream: Box<dyn Stream>,
}

/// Idle connections to a single destination.
pub(crate) struct IdlePool<B: Payload> {
    #[expect(clippy::vec_box, reason = "a connection is large, and moves often")]
    connections: Mutex<Vec<Box<Connection<B>>>>,
    most: usize,
}

impl<B: Payload> IdlePool<B> {
    /// Makes an empty pool of at most `most` connections.
    pub(crate) fn new(most: usize) -> Self {
        Self { connections: Mutex::default(), most }
    }

    #[expect(clippy::vec_box, reason = "as the field")]
    fn lock(&self) -> MutexGuard<'_, Vec<Box<Connection<B>>>> {
        lock(&self.connections)
    }

    pub(crate) fn put(&self, mut connection: Box<Connection<B>>) {
        connection.since = Instant::now();
        let mut connections = self.lock();
        if connections.len() < self.most {
            connections.push(connection);
        }
    }

    /// Takes the newest connection that is still open.
    pub(crate) fn take(&self) -> Option<Box<Connection<B>>> {
        loop {
            let mut connection = self.lock().pop()?;
            if connection.is_reusable() {
                return Some(connection);
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Closes the connections that have rested for too long or were closed by the other side.
    pub(crate) fn sweep(&self) {
        let mut connections = self.lock();
        connections.retain_mut(|open| open.since.elapsed() < REST && open.is_reusable());
        connections.shrink_to_fit();
    }
}

/// The body of an answer, with the connection that it comes from.
pub(crate) struct Exchange<B: Payload> {
    body: Incoming,
    connection: Option<Box<Connection<B>>>,
    pool: Arc<IdlePool<B>>,
    /// Error that the body broke off with.
    broken: Option<hyper::Error>,
}

impl<B: Payload> Exchange<B> {
    pub(crate) fn new(
        body: Incoming,
        connection: Box<Connection<B>>,
        pool: Arc<IdlePool<B>>,
    ) -> Self {
        let mut this = Self { body, connection: Some(connection), pool, broken: None };
        if this.body.is_end_stream() {
            this.release();
        }
        this
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(broken) = self.broken.take() {
            return Poll::Ready(Some(Err(broken)));
        }
        let mut frame = Pin::new(&mut self.body).poll_frame(cx);
        if let (Poll::Pending, Some(connection)) = (&frame, &mut self.connection) {
            let _ = connection.drive(cx);
            frame = Pin::new(&mut self.body).poll_frame(cx);
        }
        if let Poll::Ready(Some(Err(broken))) = frame {
            // Earlier bytes are passed on first: a server that gets an error sends nothing more,
            // not even bytes that it has.
            self.broken = Some(broken);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if matches!(frame, Poll::Ready(None)) || self.body.is_end_stream() {
            self.release();
        }
        frame
    }

    /// Gives the connection back to the pool, if it can be used again.
    fn release(&mut self) {
        if let Some(mut connection) = self.connection.take()
            && connection.is_reusable()
        {
            self.pool.put(connection);
        }
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B: Payload> Drop for Exchange<B> {
    /// Leaves the connection to later requests if the body was read to its end. Otherwise closes
    /// it, so that the other side notices.
    fn drop(&mut self) {
        if self.body.is_end_stream() {
            self.release();
        }
    }
}
