//! The one type of body that passes through a hop, with no box around the common kinds.

use crate::line::Exchange;
use crate::timed::Busy;
use bytes::Bytes;
use daemon::Tasks;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use std::any::Any;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// How long what nobody wants of a request's body is read: a connection that is closed with bytes
/// unread takes an answer away from whoever has not read it yet.
const LINGER: Duration = Duration::from_secs(5);

/// Any error of a body.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// Something that lives as long as a body does, as a count of requests under way.
pub type Held = Box<dyn Any + Send>;

/// A body of a request or an answer.
#[derive(Default)]
pub struct Body {
    kind: Kind,
    held: Option<Held>,
    busy: Option<Busy>,
    /// Of a request that is served: what reads the rest of it.
    lingers: Option<Tasks>,
}

#[derive(Default)]
enum Kind {
    #[default]
    Empty,
    Full(Bytes),
    Incoming(Incoming),
    Exchange(Exchange),
    Boxed(UnsyncBoxBody<Bytes, BoxError>),
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body").finish_non_exhaustive()
    }
}

impl Body {
    /// One without a byte.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// A body of another library's.
    pub fn boxed<B>(body: B) -> Self
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Kind::Boxed(body.map_err(Into::into).boxed_unsync()).into()
    }

    /// That of a request that is served; when it is dropped, the rest of it is read.
    pub(crate) fn taken(body: Incoming, tasks: &Tasks) -> Self {
        let mut this = Self::from(body);
        this.lingers = matches!(this.kind, Kind::Incoming(_)).then(|| tasks.clone());
        this
    }

    pub(crate) fn exchange(exchange: Exchange) -> Self {
        Kind::Exchange(exchange).into()
    }

    /// Keeps `held` until the body has ended or is dropped.
    #[must_use]
    pub fn holding(mut self, held: Held) -> Self {
        self.held = Some(held);
        self
    }

    /// Keeps the request under way likewise.
    pub(crate) fn answering(mut self, busy: Busy) -> Self {
        self.busy = Some(busy);
        self
    }
}

impl From<Kind> for Body {
    fn from(kind: Kind) -> Self {
        Self { kind, held: None, busy: None, lingers: None }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::empty() } else { Kind::Full(bytes).into() }
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

impl From<Incoming> for Body {
    fn from(body: Incoming) -> Self {
        use http_body::Body as _;
        if body.is_end_stream() { Self::empty() } else { Kind::Incoming(body).into() }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if let (Some(tasks), Kind::Incoming(rest)) =
            (self.lingers.take(), std::mem::take(&mut self.kind))
        {
            tasks.clone().spawn(discard(rest, tasks));
        }
    }
}

/// Reads a body that nobody wants.
async fn discard(mut body: Incoming, tasks: Tasks) {
    let reading = async { while let Some(Ok(_)) = body.frame().await {} };
    tokio::select! {
        _ = tokio::time::timeout(LINGER, reading) => {}
        () = tasks.stopping() => {}
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = match &mut self.kind {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.kind = Kind::Empty;
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            Kind::Incoming(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Kind::Exchange(body) => body.poll_frame(cx).map_err(Into::into),
            Kind::Boxed(body) => Pin::new(body).poll_frame(cx),
        };
        if let Poll::Ready(None) = frame {
            (self.held, self.busy, self.lingers) = (None, None, None);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Full(_) => false,
            Kind::Incoming(body) => body.is_end_stream(),
            Kind::Exchange(body) => body.is_end_stream(),
            Kind::Boxed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Incoming(body) => body.size_hint(),
            Kind::Exchange(body) => body.size_hint(),
            Kind::Boxed(body) => body.size_hint(),
        }
    }
}
