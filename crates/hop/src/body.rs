//! The type of all bodies that pass through a hop. Common kinds need no box.

use crate::activity::{Activity, BodyNote, BodyState, Held, LINGER, RequestGuard};
use crate::connection::Exchange;
use crate::timer::{SILENCE, Still};
use bytes::Bytes;
use daemon::Tasks;
use http::{HeaderMap, header};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

/// Time without progress that a request's body may take while its reader waits.
pub const STALL: Duration = Duration::from_secs(60);

/// Any error of a body.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// Condition that ends an exchange early: the future completes when the exchange may not go on. Its
/// output is the last data of the body, or the error that breaks the body off.
pub type Until = Pin<Box<dyn Future<Output = Result<Bytes, BoxError>> + Send>>;

/// Frames between two polls of the [`Until`] of a body that never waits.
const LOOK: u8 = 32;

/// A body of a request or an answer.
#[derive(Default)]
pub struct Body {
    kind: Kind,
    held: Option<Held>,
    guard: Option<RequestGuard>,
    until: Option<Until>,
    /// Frames since the last poll of `until`.
    frames: u8,
    /// Set when trailers are left out.
    no_trailers: bool,
    /// Set for a request's body on a server's connection.
    served: Option<Box<Served>>,
}

/// State of a request's body on a server's connection.
struct Served {
    /// Tools for reading the rest of a dropped body and for recording its end. `None` on a shared
    /// connection, where the stream is reset instead.
    alone: Option<(Tasks, BodyNote)>,
    /// Set once the answer has begun. From then on the client may send at any pace.
    answered: Answered,
    limit: Duration,
    still: Still,
}

/// Flag that is set once the answer to a request has begun.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answered(Arc<AtomicBool>);

impl Answered {
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Error of a request's body that made no progress for too long while its reader waited.
#[derive(Debug, thiserror::Error)]
#[error("the request body made no progress for {} s", .0.as_secs())]
pub struct Stalled(Duration);

impl Stalled {
    /// Reports whether an error has a stalled body as its cause.
    #[must_use]
    pub fn is_cause_of(error: &(dyn std::error::Error + 'static)) -> bool {
        std::iter::successors(Some(error), |error| error.source()).any(|error| error.is::<Self>())
    }
}

/// Returns the time that a request's body may make no progress. A stream of messages, such as
/// gRPC's, may be silent for as long as any exchange.
fn patience(headers: &HeaderMap) -> Duration {
    let kind = headers.get(header::CONTENT_TYPE).map_or(&b""[..], |kind| kind.as_bytes());
    let streams = [&b"application/grpc"[..], b"application/connect+"];
    if streams.iter().any(|of| kind.starts_with(of)) { SILENCE } else { STALL }
}

#[derive(Default)]
enum Kind {
    #[default]
    Empty,
    Full(Bytes),
    Incoming(Incoming),
    Exchange(Exchange<Body>),
    Boxed(UnsyncBoxBody<Bytes, BoxError>),
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body").finish_non_exhaustive()
    }
}

impl Body {
    /// Makes a body without bytes.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// Wraps a body of another library.
    pub fn boxed<B>(body: B) -> Self
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Kind::Boxed(body.map_err(Into::into).boxed_unsync()).into()
    }

    /// Takes the body of a request. Returns it with the flag to set when its answer begins. With
    /// `alone`, on a connection that is not shared, the rest of a dropped body is read.
    pub(crate) fn taken(
        body: Incoming,
        headers: &HeaderMap,
        alone: Option<(&Tasks, &Arc<Activity>)>,
    ) -> (Self, Option<Answered>) {
        let mut this = Self::from(body);
        if !matches!(this.kind, Kind::Incoming(_)) {
            return (this, None);
        }
        let (answered, limit) = (Answered::default(), patience(headers));
        let alone = alone.map(|(tasks, activity)| (tasks.clone(), activity.body()));
        let served = Served { alone, answered: answered.clone(), limit, still: Still::default() };
        this.served = Some(Box::new(served));
        (this, Some(answered))
    }

    pub(crate) fn exchange(exchange: Exchange<Self>) -> Self {
        Kind::Exchange(exchange).into()
    }

    /// Keeps `held` until the body has ended or is dropped. When an answer switches protocols, the
    /// connection keeps `held` instead.
    #[must_use]
    pub fn holding(mut self, held: Held) -> Self {
        self.held = Some(match self.held.take() {
            Some(before) => Box::new((before, held)),
            None => held,
        });
        self
    }

    /// Takes the held values out of the body.
    pub(crate) fn take_held(&mut self) -> Option<Held> {
        self.held.take()
    }

    /// Ends the body when `until` completes, unless it has ended before.
    #[must_use]
    pub fn until(mut self, until: Until) -> Self {
        use http_body::Body as _;
        self.until = (!self.is_end_stream()).then_some(until);
        self
    }

    /// Leaves trailers out, if any come.
    pub fn drop_trailers(&mut self) {
        self.no_trailers = true;
    }

    /// Checks if the body must end now, and returns its last frame then. Checks at each poll of a
    /// waiting body, and every [`LOOK`] frames of a body that does not wait.
    fn ended(&mut self, cx: &mut Context<'_>, waits: bool) -> Option<Last> {
        let until = self.until.as_mut()?;
        self.frames += 1;
        if !waits && self.frames < LOOK {
            return None;
        }
        self.frames = 0;
        let Poll::Ready(last) = until.as_mut().poll(cx) else { return None };
        // Dropping the kind also drops the connection that the body comes from.
        (self.kind, self.until) = (Kind::Empty, None);
        Some(match last {
            Ok(bytes) if bytes.is_empty() => None,
            last => Some(last.map(Frame::data)),
        })
    }

    /// Counts the request as under way until the body has ended or is dropped.
    pub(crate) fn answering(mut self, guard: RequestGuard) -> Self {
        self.guard = Some(guard);
        self
    }
}

/// Last frame of a body that ends early. `None` when it ends without a frame.
type Last = Option<Result<Frame<Bytes>, BoxError>>;

impl From<Kind> for Body {
    fn from(kind: Kind) -> Self {
        Self {
            kind,
            held: None,
            guard: None,
            until: None,
            frames: 0,
            no_trailers: false,
            served: None,
        }
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
        let alone = self.served.take().and_then(|served| served.alone);
        if let (Some((tasks, note)), Kind::Incoming(rest)) = (alone, std::mem::take(&mut self.kind))
        {
            match http_body::Body::is_end_stream(&rest) {
                true => note.set(BodyState::Complete),
                false => tasks.clone().spawn(discard(rest, tasks, note)),
            }
        }
    }
}

impl Served {
    /// Returns an error when the body has made no progress for too long.
    fn look<T>(&mut self, cx: &mut Context<'_>, frame: &Poll<T>) -> Option<Stalled> {
        if frame.is_ready() || self.answered.0.load(Ordering::Relaxed) {
            self.still.moved();
            return None;
        }
        self.still.poll(cx, self.limit).is_ready().then_some(Stalled(self.limit))
    }
}

/// Reads the rest of a dropped body.
async fn discard(mut body: Incoming, tasks: Tasks, note: BodyNote) {
    // Only the last frame of a chunked body shows its end.
    let reading = async {
        loop {
            match body.frame().await {
                Some(Ok(_)) => {}
                Some(Err(_)) => return BodyState::Abandoned,
                None => return BodyState::Complete,
            }
        }
    };
    let state = tokio::select! {
        read = tokio::time::timeout(LINGER, reading) => read.unwrap_or(BodyState::Abandoned),
        () = tasks.stopping() => BodyState::Abandoned,
    };
    note.set(state);
}

impl Body {
    /// Polls for the next frame, whatever its kind.
    fn poll_any(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        use http_body::Body as _;
        let this = &mut *self;
        let frame = match &mut this.kind {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                this.kind = Kind::Empty;
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            Kind::Incoming(body) => {
                let frame = Pin::new(body).poll_frame(cx).map_err(Into::into);
                let stalled = this.served.as_mut().and_then(|served| served.look(cx, &frame));
                if let Some(stalled) = stalled {
                    // A body without a reader makes the connection end after the answer.
                    if let Some((_, note)) = this.served.take().and_then(|served| served.alone) {
                        note.set(BodyState::Abandoned);
                    }
                    this.kind = Kind::Empty;
                    return Poll::Ready(Some(Err(stalled.into())));
                }
                frame
            }
            Kind::Exchange(body) => body.poll_frame(cx).map_err(Into::into),
            Kind::Boxed(body) => Pin::new(body).poll_frame(cx),
        };
        if let Poll::Ready(None) = frame {
            if let Some((_, note)) = self.served.take().and_then(|served| served.alone) {
                note.set(BodyState::Complete);
            }
            (self.held, self.guard, self.until) = (None, None, None);
        } else if let Some(last) = self.ended(cx, frame.is_pending()) {
            return Poll::Ready(last);
        }
        frame
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            let frame = self.poll_any(cx);
            let trailers = matches!(&frame, Poll::Ready(Some(Ok(frame))) if frame.is_trailers());
            if !(trailers && self.no_trailers) {
                return frame;
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;
    use http_body_util::StreamBody;
    use tokio::sync::oneshot;

    type Data = Result<Frame<Bytes>, BoxError>;

    fn data(text: &'static str) -> Data {
        Ok(Frame::data(Bytes::from_static(text.as_bytes())))
    }

    /// Returns a body that waits after its first frame, and the sender that ends it.
    fn waiting() -> (Body, oneshot::Sender<Result<Bytes, BoxError>>) {
        let (end, ended) = oneshot::channel();
        let frames = futures::stream::iter([data("a")]).chain(futures::stream::pending::<Data>());
        let until = async { ended.await.unwrap_or_else(|_| Err("left".into())) };
        (Body::boxed(StreamBody::new(frames)).until(Box::pin(until)), end)
    }

    #[tokio::test]
    async fn until_ends_pending_body_with_last_data_or_an_error() {
        let (mut body, end) = waiting();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "a");
        end.send(Ok(Bytes::from_static(b"z"))).unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "z");
        assert!(body.frame().await.is_none());
        let (mut body, end) = waiting();
        body.frame().await.unwrap().unwrap();
        end.send(Err("over".into())).unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap_err().to_string(), "over");
        assert!(body.frame().await.is_none());
    }

    #[tokio::test]
    async fn until_ends_body_that_is_always_ready() {
        let frames = futures::stream::repeat_with(|| data("a"));
        let until = Box::pin(async { Ok(Bytes::new()) });
        let mut body = Body::boxed(StreamBody::new(frames)).until(until);
        let mut count = 0;
        while let Some(frame) = body.frame().await {
            frame.unwrap();
            count += 1;
            assert!(count < usize::from(LOOK), "the body went on");
        }
    }

    #[tokio::test]
    async fn trailers_are_dropped_unless_requested() {
        let body = || {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", header::HeaderValue::from_static("42"));
            let frames = [data("a"), Ok(Frame::trailers(trailers))];
            Body::boxed(StreamBody::new(futures::stream::iter(frames)))
        };
        let whole = body().collect().await.unwrap();
        assert_eq!(whole.trailers().unwrap()["x-sum"], "42");
        let mut without = body();
        without.drop_trailers();
        let without = without.collect().await.unwrap();
        assert!(without.trailers().is_none());
        assert_eq!(without.to_bytes(), "a");
    }

    #[tokio::test]
    async fn until_does_not_cut_a_complete_body() {
        let until = Box::pin(async { Err("over".into()) });
        let mut body = Body::from(Bytes::from_static(b"all")).until(until);
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "all");
        assert!(body.frame().await.is_none());
    }
}
