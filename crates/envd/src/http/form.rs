//! Forms (`multipart/form-data`) whose parts are as large as files.

use crate::error::{Error, Result};
use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::Multipart;
use axum::extract::multipart::{Field, MultipartError};
use futures::{Stream, StreamExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

/// Most bytes of a form that its parser may hold. The parser has no bound of its own, and searches
/// all that it holds at each step.
const FORM_MAX: usize = 1 << 20;

/// A piece of a request's body.
type Chunk = std::result::Result<Bytes, axum::Error>;

/// Feeds a form's parser a piece of the body only when the parser needs it to continue. By itself,
/// the parser reads and holds all bytes that have arrived.
#[derive(Clone, Default)]
pub(super) struct Demand {
    /// Set while the parser may have a piece.
    wanted: Arc<AtomicBool>,
    /// Bytes that the parser got since its last output.
    fed: Arc<AtomicUsize>,
}

impl Demand {
    /// Returns the body that the parser reads.
    pub(super) fn feed(&self, body: Body) -> Body {
        let (demand, mut body) = (self.clone(), body.into_data_stream());
        Body::from_stream(futures::stream::poll_fn(move |cx| demand.poll_body(&mut body, cx)))
    }

    fn poll_body(&self, body: &mut BodyDataStream, cx: &mut Context<'_>) -> Poll<Option<Chunk>> {
        if !self.wanted.load(Ordering::Relaxed) {
            // `poll` polls again by itself.
            return Poll::Pending;
        }
        let piece = ready!(body.poll_next_unpin(cx));
        if let Some(Ok(piece)) = &piece {
            self.wanted.store(false, Ordering::Relaxed);
            self.fed.fetch_add(piece.len(), Ordering::Relaxed);
        }
        Poll::Ready(piece)
    }

    /// Polls the parser. Gives it a piece when it cannot continue without.
    fn poll<T>(
        &self,
        cx: &mut Context<'_>,
        mut parser: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<Result<T>> {
        loop {
            if let Poll::Ready(given) = parser(cx) {
                self.fed.store(0, Ordering::Relaxed);
                return Poll::Ready(Ok(given));
            }
            if self.fed.load(Ordering::Relaxed) > FORM_MAX {
                let message = "the form has more than 1 MiB outside its parts' contents";
                return Poll::Ready(Err(Error::invalid(message)));
            }
            if self.wanted.swap(true, Ordering::Relaxed) {
                return Poll::Pending;
            }
        }
    }

    /// Returns the next part. `None` marks the end of the form.
    pub(super) async fn next_part<'a>(&self, form: &'a mut Multipart) -> Result<Option<Field<'a>>> {
        let mut next = std::pin::pin!(form.next_field());
        let part = std::future::poll_fn(|cx| self.poll(cx, |cx| next.as_mut().poll(cx))).await?;
        part.map_err(|e| Error::invalid(e.body_text()))
    }

    /// Returns the contents of a part.
    pub(super) fn contents<'a>(
        &self,
        mut part: Field<'a>,
    ) -> impl Stream<Item = std::result::Result<Bytes, String>> + Unpin + use<'a> {
        let demand = self.clone();
        futures::stream::poll_fn(move |cx| {
            let polled = ready!(demand.poll(cx, |cx| part.poll_next_unpin(cx)));
            let told = |e: MultipartError| e.body_text();
            Poll::Ready(match polled {
                Ok(piece) => piece.map(|piece| piece.map_err(told)),
                Err(error) => Some(Err(error.message)),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::extract::{FromRequest, Request};
    use http::header;
    use std::io;

    #[tokio::test]
    async fn form_parser_gets_no_more_of_a_body_than_it_needs() {
        const PART: &str = "--b\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nx\r\n";
        let given = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&given);
        let pieces = futures::stream::iter(0..100).map(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            Ok::<_, io::Error>(Bytes::from_static(PART.as_bytes()))
        });
        let demand = Demand::default();
        let request = Request::builder()
            .header(header::CONTENT_TYPE, "multipart/form-data; boundary=b")
            .body(demand.feed(Body::from_stream(pieces)))
            .unwrap();
        let mut form = Multipart::from_request(request, &()).await.unwrap();
        for number in 1..100 {
            let part = demand.next_part(&mut form).await.unwrap().unwrap();
            let contents: Vec<_> =
                demand.contents(part).map(std::result::Result::unwrap).collect().await;
            assert_eq!(contents.concat(), b"x");
            assert!(given.load(Ordering::Relaxed) <= number + 1);
        }
    }
}
